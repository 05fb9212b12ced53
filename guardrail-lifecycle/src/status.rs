//! Where each namespace stands: what it is meant to be, what is in force, what its next step is,
//! what holds that back, and what would break.
//!
//! The phase in force is read from the policies in force, pod by pod ([`crate::in_force`]). What a
//! step needs and would break is what the generator says of it, on the same evidence.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use guardrail_graph::{Peer, Snapshot, Timestamp, WorkloadRef};
use guardrail_policy::{
    evaluate::Evaluator,
    export,
    generate::{self, FlowName, MIN_COVERAGE, NamespaceVerdict, Options, Phase, Problem, ProblemKind},
    words::{duration, percent},
};
use serde::Serialize;

use crate::{
    in_force::{self, PodPhase},
    plan::{Environment, Exception, ExceptionEnd, Gates, Plan, Wanted},
};

/// Everything that the answer follows from.
#[derive(Debug)]
pub struct Question<'a> {
    /// What was observed.
    pub snapshot: &'a Snapshot,
    /// The policies in force, over the cluster that was observed.
    pub evaluator: &'a Evaluator,
    /// How policies are generated: what is known of the cluster, which flows are accepted. Phase,
    /// namespaces and window are set for each step.
    pub options: &'a Options,
    /// What is wanted; `None`: nothing is said, and the next step is the next phase.
    pub plan: Option<(&'a Plan, &'a str, &'a Environment)>,
    /// The time.
    pub now: Timestamp,
}

/// Where a namespace stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NamespaceStatus {
    /// Its name.
    pub namespace: String,
    /// What it is meant to be; `None` without a plan.
    pub wanted: Option<Wanted>,
    /// What is in force.
    pub in_force: InForce,
    /// Whether the phase that is wanted is in force, egress included.
    pub phase_in_force: bool,
    /// Whether everything that is wanted of it is in force, sensitive workloads included.
    pub as_wanted: bool,
    /// The next step; `None`: there is none, or it has no pods.
    pub next: Option<Wanted>,
    /// What the next step needs.
    pub gates: Vec<Gate>,
    /// Flows that the next step would deny, or that it cannot allow: one sentence each.
    pub would_break: Vec<String>,
    /// What else stops the next step.
    pub stopped_by: Vec<String>,
    /// Established flows that the policies in force deny.
    pub denied_now: Vec<String>,
    /// Workloads that nobody was seen to call and that called nobody.
    pub without_evidence: BTreeSet<String>,
    /// Sensitive workloads of the namespace.
    pub sensitive: Vec<Sensitive>,
    /// Exceptions with an end in the namespace.
    pub exceptions: Vec<ExceptionStatus>,
}

impl NamespaceStatus {
    /// Whether nothing holds the next step back.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.gates.iter().all(|gate| gate.passed) && self.would_break.is_empty() && self.stopped_by.is_empty()
    }
}

/// What is in force for the pods of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InForce {
    /// Pods that policies can select; a workload without one counts as one.
    pub pods: usize,
    /// For who calls them.
    pub ingress: SideInForce,
    /// For whom they call.
    pub egress: SideInForce,
}

/// What is in force in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SideInForce {
    /// The phase of the pod that is closed least; `None` without pods.
    pub phase: Option<Phase>,
    /// How many pods are in which phase.
    pub pods_by_phase: BTreeMap<Phase, usize>,
    /// Pods that policies isolate, closed or not.
    pub isolated: usize,
}

impl SideInForce {
    fn add(&mut self, phase: Phase, isolated: bool) {
        self.phase = Some(self.phase.map_or(phase, |least| least.min(phase)));
        *self.pods_by_phase.entry(phase).or_default() += 1;
        self.isolated += usize::from(isolated);
    }

    fn is_at_least(&self, phase: Phase) -> bool {
        self.phase.is_none_or(|least| least >= phase)
    }
}

/// What a step needs, and what there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gate {
    /// `window`, `coverage` or `quiet`.
    pub name: &'static str,
    /// What there is, in words.
    pub is: String,
    /// What is needed, in words.
    pub needs: String,
    /// How much of what is needed there is, in hundredths: 100 if and only if it is enough.
    pub percent: u8,
    /// Whether that is enough.
    pub passed: bool,
}

impl Gate {
    fn new(name: &'static str, [is, needs]: [String; 2], share: f64, passed: bool) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 99")]
        let percent = if passed { 100 } else { (share * 100.0).clamp(0.0, 99.0) as u8 };
        Self { name, is, needs, percent, passed }
    }
}

/// A sensitive workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sensitive {
    /// Which.
    pub workload: WorkloadRef,
    /// Its pods, and how many of them are closed to everybody but named callers.
    pub pods: usize,
    /// How many are closed.
    pub closed: usize,
}

/// An exception of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExceptionStatus {
    /// Its id.
    pub id: String,
    /// Its end.
    pub expires: Timestamp,
    /// The end has come.
    pub is_over: bool,
    /// Its end in words: `ends in 3 days`, `ended 2 hours ago`.
    pub told: String,
    /// Why it is there.
    pub reason: String,
    /// Who answers for it.
    pub owner: String,
}

impl ExceptionStatus {
    pub(crate) fn new(exception: &Exception, now: Timestamp) -> Self {
        let is_over = exception.is_over(now);
        let told = if is_over {
            format!("ended {} ago", duration(now.since(exception.expires)))
        } else {
            format!("ends in {}", duration(exception.expires.since(now)))
        };
        let (reason, owner) = (exception.reason.clone(), exception.owner.clone());
        Self { id: exception.id.clone(), expires: exception.expires, is_over, told, reason, owner }
    }
}

/// Where every namespace stands, by name: what is wanted and in force, without a look at the
/// evidence, so there is nothing about the next step but which one it is.
#[must_use]
pub fn standing(question: &Question<'_>) -> Vec<NamespaceStatus> {
    by_namespace(question).into_values().collect()
}

/// Where every namespace stands, by name.
#[must_use]
pub fn status(question: &Question<'_>) -> Vec<NamespaceStatus> {
    let mut all = by_namespace(question);
    let gates = question.plan.map_or_else(Gates::default, |(_, _, environment)| environment.gates);
    let verdicts = verdicts(question.snapshot, question.options, &gates);
    let mut steps: BTreeMap<Wanted, BTreeSet<String>> = BTreeMap::new();
    for status in all.values() {
        if let Some(next) = status.next {
            steps.entry(next).or_default().insert(status.namespace.clone());
        }
    }
    for (step, namespaces) in steps {
        for problem in problems(question, step, &namespaces) {
            for namespace in problem.namespaces.iter().filter(|namespace| namespaces.contains(*namespace)) {
                let Some(status) = all.get_mut(namespace) else { continue };
                match problem.kind {
                    ProblemKind::Incomplete | ProblemKind::ShortWindow => {}
                    ProblemKind::Excess | ProblemKind::Unproven => status.stopped_by.push(problem.message.clone()),
                    _ => status.would_break.push(problem.message.clone()),
                }
            }
        }
    }
    for (namespace, status) in &mut all {
        let Some(verdict) = verdicts.get(namespace) else { continue };
        status.without_evidence.clone_from(&verdict.without_evidence);
        if let Some(next) = status.next {
            status.gates = self::gates(&gates, next.phase, verdict, workloads_of(question.snapshot, namespace));
        }
    }
    for (namespace, flow) in denied_now(question) {
        if let Some(status) = all.get_mut(&namespace) {
            status.denied_now.push(flow);
        }
    }
    all.into_values().collect()
}

/// What is wanted and in force, without evidence.
fn by_namespace(question: &Question<'_>) -> BTreeMap<String, NamespaceStatus> {
    let phases = in_force::pods(question.evaluator);
    let cluster = question.evaluator.cluster();
    let mut in_force: BTreeMap<String, InForce> = BTreeMap::new();
    for pod in &cluster.pods {
        in_force.entry(pod.namespace.clone()).or_default();
    }
    for entry in &question.snapshot.body.workloads {
        in_force.entry(entry.workload.namespace.clone()).or_default();
    }
    for (index, PodPhase { ingress, egress, isolated }) in &phases {
        let Some(of) = in_force.get_mut(&cluster.pods[*index as usize].namespace) else { continue };
        of.pods += 1;
        of.ingress.add(*ingress, isolated[0]);
        of.egress.add(*egress, isolated[1]);
    }
    let mut sensitive = sensitive(question, &phases);
    let status = |(namespace, in_force): (String, InForce)| {
        let wanted = question.plan.map(|(_, _, environment)| environment.wanted(&namespace));
        let sensitive = sensitive.remove(&namespace).unwrap_or_default();
        let phase_in_force = wanted.is_none_or(|wanted| is_in_force(wanted, &in_force));
        let as_wanted = phase_in_force && sensitive.iter().all(|workload| workload.closed == workload.pods);
        let next = next(wanted, &in_force);
        let exceptions = exceptions(question, &namespace);
        let status = NamespaceStatus {
            namespace: namespace.clone(),
            wanted,
            in_force,
            phase_in_force,
            as_wanted,
            next,
            gates: Vec::new(),
            would_break: Vec::new(),
            stopped_by: Vec::new(),
            denied_now: Vec::new(),
            without_evidence: BTreeSet::new(),
            sensitive,
            exceptions,
        };
        (namespace, status)
    };
    in_force.into_iter().map(status).collect()
}

fn is_in_force(wanted: Wanted, in_force: &InForce) -> bool {
    in_force.ingress.is_at_least(wanted.phase) && (!wanted.egress || in_force.egress.is_at_least(wanted.phase))
}

/// One phase further towards what is wanted; egress comes last.
fn next(wanted: Option<Wanted>, in_force: &InForce) -> Option<Wanted> {
    let least = in_force.ingress.phase?;
    let goal = wanted.unwrap_or(Wanted { phase: Phase::DefaultDeny, egress: false });
    let egress = in_force.egress.is_at_least(Phase::Constrain);
    let phase = match least {
        _ if least >= goal.phase => {
            let open = goal.egress && !in_force.egress.is_at_least(goal.phase);
            return open.then_some(Wanted { phase: goal.phase, egress: true });
        }
        Phase::Observe => Phase::Constrain,
        _ => Phase::DefaultDeny,
    };
    Some(Wanted { phase, egress: egress && goal.egress })
}

/// Sensitive workloads by namespace.
fn sensitive(question: &Question<'_>, phases: &BTreeMap<u32, PodPhase>) -> BTreeMap<String, Vec<Sensitive>> {
    let mut found: BTreeMap<WorkloadRef, Sensitive> = BTreeMap::new();
    let Some((_, _, environment)) = question.plan else { return BTreeMap::new() };
    let cluster = question.evaluator.cluster();
    let of_snapshot =
        cluster.workloads.iter().flat_map(|(workload, pods)| pods.iter().map(move |pod| (workload, *pod)));
    let of_pods = cluster.pods.iter().zip(0..).filter_map(|(pod, index)| Some((pod.workload.as_ref()?, index)));
    let pairs: BTreeSet<(&WorkloadRef, u32)> = of_snapshot.chain(of_pods).collect();
    for (workload, pod) in pairs {
        let Some(phase) = phases.get(&pod).filter(|_| environment.is_sensitive(workload)) else { continue };
        let entry = found.entry(workload.clone()).or_insert_with(|| Sensitive {
            workload: workload.clone(),
            pods: 0,
            closed: 0,
        });
        entry.pods += 1;
        entry.closed += usize::from(phase.ingress == Phase::DefaultDeny);
    }
    let mut by_namespace: BTreeMap<String, Vec<Sensitive>> = BTreeMap::new();
    for (workload, status) in found {
        by_namespace.entry(workload.namespace).or_default().push(status);
    }
    by_namespace
}

fn exceptions(question: &Question<'_>, namespace: &str) -> Vec<ExceptionStatus> {
    let Some((plan, name, _)) = question.plan else { return Vec::new() };
    let is_here = |end: &ExceptionEnd| matches!(end, ExceptionEnd::Workload(w) if w.namespace == namespace);
    let here = plan.exceptions.iter().filter(|e| e.applies_in(name) && (is_here(&e.from) || is_here(&e.to)));
    let mut all: Vec<ExceptionStatus> = here.map(|exception| ExceptionStatus::new(exception, question.now)).collect();
    all.sort_by(|a, b| (a.expires, &a.id).cmp(&(b.expires, &b.id)));
    all
}

/// How good the evidence is, by namespace: the same for every step.
pub(crate) fn verdicts(snapshot: &Snapshot, options: &Options, gates: &Gates) -> BTreeMap<String, NamespaceVerdict> {
    let mut options = options.clone();
    options.min_coverage = gates.coverage.unwrap_or(MIN_COVERAGE);
    (options.phase, options.egress, options.min_window) = (Phase::Observe, false, Duration::ZERO);
    let verdicts = generate::verdicts(snapshot, &options);
    verdicts.into_iter().map(|verdict| (verdict.namespace.clone(), verdict)).collect()
}

/// What stands against a step. Gates are judged by the plan, not here.
fn problems(question: &Question<'_>, step: Wanted, namespaces: &BTreeSet<String>) -> Vec<Problem> {
    let mut options = question.options.clone();
    (options.phase, options.egress) = (step.phase, step.egress);
    options.min_window = Duration::ZERO;
    options.namespaces.clone_from(namespaces);
    // What is in force in a namespace that takes a step is replaced by the step.
    options.existing.retain(|policy| !namespaces.contains(&policy.namespace));
    export::export(question.snapshot, &options).problems
}

pub(crate) fn workloads_of(snapshot: &Snapshot, namespace: &str) -> usize {
    snapshot.body.workloads.iter().filter(|entry| entry.workload.namespace == namespace).count()
}

pub(crate) fn gates(gates: &Gates, phase: Phase, verdict: &NamespaceVerdict, workloads: usize) -> Vec<Gate> {
    let window = Duration::from_secs(verdict.common_window_seconds);
    let needed = gates.window_for(phase);
    let incomplete: BTreeSet<&str> =
        verdict.reasons.iter().map(|reason| reason.split(": ").next().unwrap_or_default()).collect();
    let complete = workloads.saturating_sub(incomplete.len());
    // Both are small numbers.
    #[expect(clippy::cast_precision_loss, reason = "a share of workloads, for people")]
    let share = if workloads == 0 { 100.0 } else { complete as f64 * 100.0 / workloads as f64 };
    let of = |is: Duration, needed: Duration| is.as_secs_f64() / needed.as_secs_f64().max(1.0);
    let complete = format!("{complete} of {workloads} workloads complete");
    let coverage = match verdict.coverage {
        Some(least) => {
            let needed = gates.coverage.unwrap_or(MIN_COVERAGE);
            let is = format!("{complete}, at least {} of the time of their pods was observed", percent(least));
            Gate::new("coverage", [is, format!("{needed} %")], least * 100.0 / needed.max(1.0), verdict.complete)
        }
        // It is not known which pods were there.
        None => {
            let needed = gates.coverage.unwrap_or(100.0);
            Gate::new("coverage", [complete, format!("{needed} %")], share / needed.max(1.0), share >= needed)
        }
    };
    let long = Gate::new("window", [duration(window), duration(needed)], of(window, needed), window >= needed);
    let mut all = vec![long, coverage];
    if let Some(needed) = gates.quiet.filter(|needed| !needed.is_zero()) {
        // Without any connection there was no new one for all of the window.
        let quiet = verdict.since_last_new_edge_seconds.map_or(window, Duration::from_secs);
        let is = format!("last new connection {} ago", duration(quiet));
        all.push(Gate::new("quiet", [is, duration(needed)], of(quiet, needed), quiet >= needed));
    }
    all
}

/// Established flows that the policies in force deny, with each namespace that they touch.
fn denied_now(question: &Question<'_>) -> Vec<(String, String)> {
    let mut denied = Vec::new();
    for edge in question.snapshot.body.edges.iter().filter(|edge| edge.supported) {
        let Ok(verdict) = question.evaluator.evaluate_edge(edge) else { continue };
        if verdict.denied == 0 {
            continue;
        }
        let ends = [&*edge.client.peer, &*edge.server.peer].into_iter().filter_map(Peer::workload);
        let namespaces: BTreeSet<&str> = ends.map(|workload| workload.namespace.as_str()).collect();
        let flow = FlowName::of(edge).to_string();
        denied.extend(namespaces.into_iter().map(|namespace| (namespace.to_owned(), flow.clone())));
    }
    denied.sort();
    denied
}
