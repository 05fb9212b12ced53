//! Opening one connection that policies deny: the exception that does it, and what else it would
//! open.
//!
//! What is shown is what an export writes for the exception ([`exception::propose`]): a policy of
//! its own at each side that policies isolate, beside those that are there. It is read back and
//! judged, and nothing that it opens beside the connection stays unsaid.

use std::collections::BTreeSet;

use guardrail_graph::Snapshot;
use guardrail_policy::{
    evaluate::{ClusterPod, End, Evaluator, SideVerdict},
    exception::{self, ExceptionOutcome, Exceptions},
    generate::{Format, PlannedPolicy, RulePeer},
    model::{Direction, selector_matches},
    read,
};
use serde::Serialize;

use crate::plan::ExceptionEnd;

mod instead;
mod known;

pub use instead::instead;
pub use known::{known, selectors};

/// Which connection is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct UnblockQuestion<'a> {
    /// The policies in force, over the cluster.
    pub evaluator: &'a Evaluator,
    /// Every workload that may be named ([`known`]).
    pub snapshot: &'a Snapshot,
    /// The exception that is to open it: both ends, and the ports.
    pub opening: &'a exception::Opening,
    /// How its policies are written. [`Format::Cilium`]: the evaluator judges as Cilium does.
    pub format: Format,
}

/// What it takes to open a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Unblock {
    /// No policy denies it.
    NotDenied,
    /// This opens it.
    Exception(Opening),
    /// Policies deny it, and an exception cannot open it.
    Impossible {
        /// One sentence without a full stop.
        because: String,
    },
}

/// What opens a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Opening {
    /// One or two policies.
    pub rules: Vec<ExceptionRule>,
    /// What they open beside the connection: pods that the same selectors match.
    pub also: BTreeSet<AlsoOpened>,
}

/// A policy that opens one side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExceptionRule {
    /// Which side.
    pub direction: Direction,
    /// The file that an export writes.
    pub yaml: String,
}

/// A pair of ends between which the connection is opened, too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AlsoOpened {
    /// Workload, pod without one, or address.
    pub from: String,
    /// The same.
    pub to: String,
}

/// One end: what is meant, and all that the written selectors match, with their names.
struct Matched {
    own: Vec<End>,
    all: Vec<(String, End, bool)>,
}

/// What it takes to open the connection.
#[must_use]
pub fn unblock(question: &UnblockQuestion<'_>) -> Unblock {
    match open(question) {
        Ok(answer) => answer,
        Err(because) => Unblock::Impossible { because },
    }
}

fn open(question: &UnblockQuestion<'_>) -> Result<Unblock, String> {
    let UnblockQuestion { evaluator, snapshot, opening, format } = *question;
    let (sources, targets) = (ends(evaluator, &opening.from)?, ends(evaluator, &opening.to)?);
    let denied = denied(question, &sources, &targets)?;
    if denied.is_empty() {
        return Ok(Unblock::NotDenied);
    }
    let (Exceptions { policies, sides }, texts) = exception::propose(snapshot, opening, evaluator, format);
    for direction in denied {
        let end = if direction == Direction::Ingress { &opening.to } else { &opening.from };
        let side = sides.iter().find(|side| side.direction == direction);
        match side.map(|side| &side.outcome) {
            Some(ExceptionOutcome::Written) => {}
            Some(ExceptionOutcome::Impossible(why)) => return Err(why.clone()),
            Some(ExceptionOutcome::SomeOpen { isolated, pods }) => {
                return Err(format!(
                    "only {isolated} of {pods} pods that a rule for {end} selects are isolated for {direction}, and it would close the others"
                ));
            }
            Some(ExceptionOutcome::NotNeeded) | None => {
                return Err(format!("{end} is no workload that a policy of its own could select"));
            }
        }
    }
    // What is shown is what is judged.
    let (mut network_policies, mut forms) = (Vec::new(), Vec::new());
    for text in &texts {
        let read = read::policies("exception", text.as_bytes());
        let read = read.map_err(|error| format!("its rule cannot be written: {error}"))?;
        network_policies.extend(read.policies);
        forms.extend(read.forms);
    }
    let opened = evaluator.beside(network_policies, forms);
    let allows = |evaluator: &Evaluator, source: &End, target: &End| {
        opening.ports.iter().all(|(protocol, port)| evaluator.evaluate(source, target, *protocol, *port).allowed())
    };
    let from = matched(evaluator, &opening.from, &sources, &policies);
    let to = matched(evaluator, &opening.to, &targets, &policies);
    if from.own.iter().any(|source| to.own.iter().any(|target| !allows(&opened, source, target))) {
        return Err(
            "the data plane does not allow it with a policy of its own: change the policies that deny it".to_owned()
        );
    }
    let mut also = BTreeSet::new();
    for (source, source_end, source_is_own) in &from.all {
        for (target, target_end, target_is_own) in &to.all {
            let is_asked = *source_is_own && *target_is_own;
            if !is_asked && !allows(evaluator, source_end, target_end) && allows(&opened, source_end, target_end) {
                also.insert(AlsoOpened { from: source.clone(), to: target.clone() });
            }
        }
    }
    let direction = |policy: &PlannedPolicy| match policy.ingress {
        Some(_) => Direction::Ingress,
        None => Direction::Egress,
    };
    let rules = policies.iter().zip(texts).map(|(policy, yaml)| ExceptionRule { direction: direction(policy), yaml });
    Ok(Unblock::Exception(Opening { rules: rules.collect(), also }))
}

/// The directions in which policies deny it, between some pods at least.
fn denied(
    question: &UnblockQuestion<'_>,
    sources: &[(u32, End)],
    targets: &[(u32, End)],
) -> Result<BTreeSet<Direction>, String> {
    let UnblockQuestion { evaluator, opening, .. } = *question;
    let mut denied: BTreeSet<Direction> = BTreeSet::new();
    let pairs = sources.iter().flat_map(|source| targets.iter().map(move |target| (&source.1, &target.1)));
    let asked = pairs.flat_map(|pair| opening.ports.iter().map(move |port| (pair, port)));
    for ((source, target), (protocol, port)) in asked {
        let verdict = evaluator.evaluate(source, target, *protocol, *port);
        for (direction, side) in [(Direction::Ingress, &verdict.ingress), (Direction::Egress, &verdict.egress)] {
            if let SideVerdict::DeniedBy(rules) = side {
                let names: Vec<String> = rules.iter().map(|rule| evaluator.rule_name(direction, *rule)).collect();
                return Err(format!(
                    "{} denies it, which no exception overrules: narrow that rule",
                    names.join(" and ")
                ));
            }
            if side.denies() {
                denied.insert(direction);
            }
        }
    }
    Ok(denied)
}

/// The ends that an end of an exception stands for, with their names.
fn ends(evaluator: &Evaluator, end: &ExceptionEnd) -> Result<Vec<(u32, End)>, String> {
    match end {
        ExceptionEnd::Range(range) => Ok(vec![(u32::MAX, evaluator.end_of_address(range.addr()))]),
        ExceptionEnd::Workload(workload) => {
            let pods = evaluator.pods_of_workload(&workload.to_string());
            if pods.is_empty() {
                return Err(format!("{workload} has no pod and no template here"));
            }
            if pods.iter().any(|pod| evaluator.cluster().pods[*pod as usize].host_network) {
                return Err(format!(
                    "{workload} is on its nodes' network, where policies select no pods: name the nodes' addresses"
                ));
            }
            Ok(pods.into_iter().map(|pod| (pod, evaluator.end_of_pod(pod))).collect())
        }
    }
}

/// The pods of an end, and all others of its namespace that what is written selects or names.
fn matched(evaluator: &Evaluator, end: &ExceptionEnd, own: &[(u32, End)], policies: &[PlannedPolicy]) -> Matched {
    let ends: Vec<End> = own.iter().map(|(_, end)| *end).collect();
    let workload = match end {
        ExceptionEnd::Range(range) => {
            let all = ends.iter().map(|end| (range.addr().to_string(), *end, true)).collect();
            return Matched { own: ends, all };
        }
        ExceptionEnd::Workload(workload) => workload,
    };
    let own: BTreeSet<u32> = own.iter().map(|(pod, _)| *pod).collect();
    let is_named = |policy: &PlannedPolicy, pod: &ClusterPod| {
        let rules = policy.ingress.iter().chain(&policy.egress).flatten();
        let peers = rules.flat_map(|rule| &rule.peers).any(|peer| match peer {
            RulePeer::Pods { namespace, selector } => {
                pod.namespace == *namespace.as_ref().unwrap_or(&policy.namespace)
                    && selector_matches(selector, &pod.labels)
            }
            _ => false,
        });
        peers || policy.namespace == pod.namespace && selector_matches(&policy.subject, &pod.labels)
    };
    let pods = evaluator.cluster().pods.iter().zip(0..);
    let here = pods.filter(|(pod, _)| pod.namespace == workload.namespace && !pod.finished && !pod.host_network);
    let all = here.filter(|(pod, index)| own.contains(index) || policies.iter().any(|policy| is_named(policy, pod)));
    let all = all.map(|(pod, index)| (pod.workload_name(), evaluator.end_of_pod(index), own.contains(&index)));
    Matched { own: ends, all: all.collect() }
}
