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

mod proof;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use guardrail_graph::{
    Peer, Snapshot, Timestamp, WorkloadRef,
    snapshot::{EdgeRecord, LabelSelector},
};
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    emit,
    evaluate::{ClusterPod, End, Evaluator},
    generate::{
        Context, Options, Phase, Plan, PlannedPolicy, PlannedRule, PortRef, Purpose, RulePeer, RulePort, identities,
        stable,
    },
    model::{Direction, Protocol, selector_matches},
};

/// The label that tells exceptions from other policies; its value is the exception's id.
pub const LABEL: &str = "guardrail.dev/exception";
/// Annotation: the end, RFC 3339.
pub const EXPIRES: &str = "guardrail.dev/expires";
/// Annotation: why it is there.
pub const REASON: &str = "guardrail.dev/reason";
/// Annotation: who answers for it.
pub const OWNER: &str = "guardrail.dev/owner";
/// Beginning of the name of every exception.
pub const PREFIX: &str = "guardrail-exception-";
/// End of the name of one for egress, where the one for ingress lies in the same namespace.
const EGRESS: &str = "-egress";

/// One end of an exception.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExceptionEnd {
    /// A workload of the cluster.
    Workload(WorkloadRef),
    /// Addresses outside of it.
    Range(IpNet),
}

impl ExceptionEnd {
    /// Whether it stands for this end of an edge.
    #[must_use]
    pub fn is(&self, peer: &Peer) -> bool {
        match (self, peer) {
            (Self::Workload(workload), peer) => peer.workload() == Some(workload),
            (Self::Range(range), Peer::External { address }) => {
                address.parse().is_ok_and(|address: IpAddr| range.contains(&address.to_canonical()))
            }
            (Self::Range(_), _) => false,
        }
    }
}

impl fmt::Display for ExceptionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(workload) => workload.fmt(f),
            Self::Range(range) => range.fmt(f),
        }
    }
}

/// What every object of an exception says of itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExceptionMark {
    /// Its id.
    pub id: String,
    /// Its end.
    pub expires: Timestamp,
    /// Why it is there.
    pub reason: String,
    /// Who answers for it.
    pub owner: String,
}

/// A connection that is to be allowed for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// What its objects say of it.
    pub mark: ExceptionMark,
    /// Who connects.
    pub from: ExceptionEnd,
    /// Who accepts.
    pub to: ExceptionEnd,
    /// On which pod ports.
    pub ports: BTreeSet<(Protocol, u16)>,
}

impl Opening {
    /// Its ends that are workloads, each with the direction in which a policy there allows it.
    fn sides(&self) -> impl Iterator<Item = (Direction, &WorkloadRef, &ExceptionEnd)> {
        let sides = [(Direction::Egress, &self.from, &self.to), (Direction::Ingress, &self.to, &self.from)];
        sides.into_iter().filter_map(|(direction, own, other)| match own {
            ExceptionEnd::Workload(workload) => Some((direction, workload, other)),
            ExceptionEnd::Range(_) => None,
        })
    }

    /// Whether it is what allows this edge.
    #[must_use]
    pub fn is_for(&self, edge: &EdgeRecord) -> bool {
        self.ports.contains(&(edge.protocol, edge.port))
            && self.from.is(&edge.client.peer)
            && self.to.is(&edge.server.peer)
    }

    /// The name of its policy in a direction: `guardrail-exception-ID-END`. Where both lie in one
    /// namespace, the one for egress says so.
    #[must_use]
    pub fn policy_name(&self, direction: Direction) -> String {
        let namespace = |end: &ExceptionEnd| match end {
            ExceptionEnd::Workload(workload) => Some(workload.namespace.clone()),
            ExceptionEnd::Range(_) => None,
        };
        let both = namespace(&self.from) == namespace(&self.to);
        let suffix = if both && direction == Direction::Egress { EGRESS } else { "" };
        format!("{}{suffix}", policy_name(&self.mark.id, self.mark.expires))
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports: Vec<String> = self.ports.iter().map(|(protocol, port)| format!("{port}/{protocol}")).collect();
        write!(f, "{} -> {} {}", self.from, self.to, ports.join(", "))
    }
}

/// `guardrail-exception-ID-END`, the end to the second: one that is renewed is another object.
#[must_use]
pub fn policy_name(id: &str, expires: Timestamp) -> String {
    let end: String = expires.to_string().split('.').next().unwrap_or_default().to_ascii_lowercase();
    let end: String = end.chars().filter(char::is_ascii_alphanumeric).collect();
    let zone = if end.ends_with('z') { "" } else { "z" };
    format!("{PREFIX}{id}-{end}{zone}")
}

/// The id and the end in a name that [`policy_name`] or [`Opening::policy_name`] made.
#[must_use]
pub fn named(name: &str) -> Option<(&str, Timestamp)> {
    let name = name.strip_prefix(PREFIX)?;
    let (id, end) = name.strip_suffix(EGRESS).unwrap_or(name).rsplit_once('-')?;
    let (date, time) = end.strip_suffix('z')?.split_once('t')?;
    Some((id, format!("{date}T{time}Z").parse().ok()?))
}

/// What became of an exception at one of its ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExceptionOutcome {
    /// A policy of this name allows it.
    Written,
    /// No policy isolates any of the pods: nothing stands in its way.
    NotNeeded,
    /// Not written: only some of the pods are isolated, and a policy would close the others.
    SomeOpen {
        /// Pods that are isolated.
        isolated: usize,
        /// All of them.
        pods: usize,
    },
    /// Not written: no policy can say it, and why.
    Impossible(String),
}

/// What became of an exception in one direction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ExceptionSide {
    /// Its id.
    pub id: String,
    /// Which side.
    pub direction: Direction,
    /// The workload on that side.
    pub workload: WorkloadRef,
    /// The name that its policy has, or would have.
    pub policy: String,
    /// What became of it.
    pub outcome: ExceptionOutcome,
}

impl fmt::Display for ExceptionSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direction, workload, policy, outcome, .. } = self;
        match outcome {
            ExceptionOutcome::Written => write!(f, "{direction} of {workload}: {}/{policy}", workload.namespace),
            ExceptionOutcome::NotNeeded => {
                write!(f, "{direction} of {workload}: not needed, no policy isolates its pods")
            }
            ExceptionOutcome::SomeOpen { isolated, pods } => write!(
                f,
                "{direction} of {workload}: not written, {isolated} of {pods} pods are isolated, and it would close the others"
            ),
            ExceptionOutcome::Impossible(why) => write!(f, "{direction} of {workload}: not written, {why}"),
        }
    }
}

/// Policies of exceptions, and what became of each.
#[derive(Clone, Debug, Default)]
pub struct Exceptions {
    /// Sorted by namespace and name.
    pub policies: Vec<PlannedPolicy>,
    /// By id and direction.
    pub sides: Vec<ExceptionSide>,
}

/// One exception with its texts, as an export writes them beside the policies that `in_force`
/// judges: for whoever wants to see them before.
#[must_use]
pub fn propose(snapshot: &Snapshot, opening: &Opening, in_force: &Evaluator) -> (Exceptions, Vec<String>) {
    let mut options = Options::new(Phase::Observe);
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
    let rules = Some(vec![PlannedRule { peers, ports: ports.collect(), learns_names: false }]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_its_id_and_its_end() {
        let end: Timestamp = "2026-03-04T00:00:07Z".parse().unwrap();
        for id in ["inc-1", "a", "egress", "7-egress", "x-20260304t000000z"] {
            let name = policy_name(id, end);
            assert_eq!(named(&name), Some((id, end)), "{name}");
            assert_eq!(named(&format!("{name}{EGRESS}")), Some((id, end)), "{name}");
        }
        for other in ["guardrail-exception-a-b", "guardrail-exception-a-20261304t000000z", "inc-1-20260304t000000z"] {
            assert_eq!(named(other), None, "{other}");
        }
    }
}
