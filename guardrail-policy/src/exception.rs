//! Exceptions: connections that are allowed until a certain time, each as policies of its own.
//!
//! In: openings that have not ended, and the policies that will be in force beside them. Out: at
//! most two policies for each, ingress where it leads to and egress where it comes from, or the
//! reason why there is none.
//!
//! A policy isolates: alone at a pod, an exception would close it to everybody else. So one is
//! written only in a direction in which each pod that it selects is isolated already; elsewhere
//! nothing stands in its way. What is written is read back and proven: it denies nothing that was
//! allowed before, and allows nothing but its own connections.

pub(crate) mod opening;
mod proof;

use std::collections::BTreeSet;

use guardrail_graph::{Snapshot, WorkloadRef, snapshot::LabelSelector};
pub use opening::{
    EXPIRES, ExceptionEnd, ExceptionMark, ExceptionOutcome, ExceptionSide, LABEL, OWNER, Opening, PREFIX, REASON,
    named, policy_name,
};

use crate::{
    emit,
    evaluate::{ClusterPod, End, Evaluator},
    generate::{
        Context, Format, Options, Phase, Plan, PlannedPolicy, PlannedRule, PortRef, Purpose, RulePeer, RulePort,
        identities, stable,
    },
    model::{Direction, selector_matches},
};

/// Policies of exceptions, and what became of each.
#[derive(Clone, Debug, Default)]
pub struct Exceptions {
    /// Sorted by namespace and name.
    pub policies: Vec<PlannedPolicy>,
    /// By id and direction.
    pub sides: Vec<ExceptionSide>,
}

/// One exception with its texts, as an export writes them in this format beside the policies that
/// `in_force` judges: for whoever wants to see them before.
#[must_use]
pub fn propose(
    snapshot: &Snapshot,
    opening: &Opening,
    in_force: &Evaluator,
    format: Format,
) -> (Exceptions, Vec<String>) {
    let mut options = Options::new(Phase::Observe);
    options.format = format;
    options.dataplane = in_force.dataplane().clone();
    let snapshot = &*stable(snapshot);
    let snapshot = &*identities(snapshot, &options.enforcer());
    let exceptions = decide(snapshot, &options, std::slice::from_ref(opening), in_force);
    let texts = exceptions.policies.iter().map(|policy| text(policy, &options)).collect();
    (exceptions, texts)
}

/// Decides which exceptions get policies beside those that `in_force` judges.
#[must_use]
pub fn decide(snapshot: &Snapshot, options: &Options, openings: &[Opening], in_force: &Evaluator) -> Exceptions {
    let context = Context::new(snapshot, options);
    let mut all = Exceptions::default();
    let mut candidates = Vec::new();
    for opening in openings {
        for (direction, workload, other) in opening.sides() {
            let (outcome, policy) = match side(&context, in_force, opening, (direction, workload, other)) {
                Ok(policy) => (ExceptionOutcome::Written, Some(policy)),
                Err(outcome) => (outcome, None),
            };
            let side = ExceptionSide {
                id: opening.mark.id.clone(),
                direction,
                workload: workload.clone(),
                policy: opening.policy_name(direction),
                outcome,
            };
            candidates.extend(policy.map(|policy| Candidate {
                side: all.sides.len(),
                direction,
                workload,
                other,
                opening,
                policy,
            }));
            all.sides.push(side);
        }
    }
    // Each that fails is left out, until all that are left hold together.
    loop {
        let wrong = proof::failing(&context, in_force, &candidates);
        if wrong.is_empty() {
            break;
        }
        for candidate in candidates.extract_if(.., |candidate| wrong.contains(&candidate.side)) {
            let why = "beside the policies in force it would deny or allow something else";
            all.sides[candidate.side].outcome = ExceptionOutcome::Impossible(why.to_owned());
        }
    }
    all.policies = candidates.into_iter().map(|candidate| candidate.policy).collect();
    all.policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    all.sides.sort();
    all
}

/// A policy that is still to be proven.
struct Candidate<'a> {
    /// Index of what is said of it.
    side: usize,
    direction: Direction,
    /// Whose pods it selects.
    workload: &'a WorkloadRef,
    other: &'a ExceptionEnd,
    opening: &'a Opening,
    policy: PlannedPolicy,
}

/// The policy for one side of an exception, or why there is none.
fn side(
    context: &Context<'_>,
    in_force: &Evaluator,
    opening: &Opening,
    (direction, workload, other): (Direction, &WorkloadRef, &ExceptionEnd),
) -> Result<PlannedPolicy, ExceptionOutcome> {
    let impossible = ExceptionOutcome::Impossible;
    let Some(entry) = context.workloads.get(workload) else {
        return Err(impossible(format!("nothing is known of {workload}")));
    };
    if entry.host_network {
        // No policy applies to it, so none isolates it.
        return Err(ExceptionOutcome::NotNeeded);
    }
    let Some(selector) = context.selector(workload) else {
        let advice = entry.selector_advice.as_deref().unwrap_or("give its pod template a label of its own");
        return Err(impossible(format!("no label names {workload} alone: {advice}")));
    };
    let ends = selected(context, in_force, workload, selector);
    let isolated = ends.iter().filter(|end| in_force.isolated(end, direction)).count();
    if isolated == 0 {
        return Err(ExceptionOutcome::NotNeeded);
    }
    if isolated < ends.len() {
        return Err(ExceptionOutcome::SomeOpen { isolated, pods: ends.len() });
    }
    let peers = peers(context, &workload.namespace, other).map_err(impossible)?;
    let ports =
        opening.ports.iter().map(|(protocol, port)| RulePort { protocol: *protocol, port: PortRef::Number(*port) });
    let rules =
        Some(vec![PlannedRule { peers: peers.into_iter().collect(), ports: ports.collect(), learns_names: false }]);
    let (ingress, egress) = match direction {
        Direction::Ingress => (rules, None),
        Direction::Egress => (None, rules),
    };
    Ok(PlannedPolicy {
        namespace: workload.namespace.clone(),
        name: opening.policy_name(direction),
        purpose: Purpose::Exception(opening.mark.clone()),
        phase: Phase::DefaultDeny,
        subject: selector.clone(),
        ingress,
        egress,
        complete: true,
        view: None,
        notes: BTreeSet::new(),
    })
}

/// Every pod that a selector of the workload's namespace selects, whoever has told of it.
fn selected(context: &Context<'_>, in_force: &Evaluator, workload: &WorkloadRef, selector: &LabelSelector) -> Vec<End> {
    let cluster = in_force.cluster();
    let is_selected = |pod: &ClusterPod| {
        pod.namespace == workload.namespace
            && !pod.host_network
            && !pod.finished
            && selector_matches(selector, &pod.labels)
    };
    let of_labels = cluster.pods.iter().zip(0..).filter(|(pod, _)| is_selected(pod)).map(|(_, index)| index);
    let members = context.alike(workload);
    let of_members = members.iter().filter_map(|member| cluster.workloads.get(member)).flatten().copied();
    let pods: BTreeSet<u32> = of_labels.chain(of_members).collect();
    pods.into_iter().map(|index| in_force.end_of_pod(index)).collect()
}

/// The other end as the peers of a rule in this namespace.
fn peers(context: &Context<'_>, namespace: &str, end: &ExceptionEnd) -> Result<BTreeSet<RulePeer>, String> {
    match end {
        ExceptionEnd::Range(range) => {
            Ok(BTreeSet::from([RulePeer::Block { cidr: range.trunc(), except: BTreeSet::new() }]))
        }
        ExceptionEnd::Workload(workload) => match context.workloads.get(workload) {
            None => Err(format!("nothing is known of {workload}")),
            Some(entry) if entry.host_network => {
                Err(format!("{workload} uses the host's network: name the range of its nodes instead"))
            }
            Some(_) => context
                .pods_peer(workload, namespace)
                .map(|(peer, _)| BTreeSet::from([peer]))
                .ok_or_else(|| format!("{workload} has no label that a rule could name")),
        },
    }
}

/// The text of an exception's policy.
#[must_use]
pub fn text(policy: &PlannedPolicy, options: &Options) -> String {
    let plan = Plan { phase: policy.phase, format: options.format, policies: Vec::new() };
    emit::policy_file(policy, &plan, options)
}
