//! Opening one connection that policies deny: the smallest rule, and what else it would open.
//!
//! What opens it is an exception: a policy of its own for each side that denies, beside those that
//! are there. A policy isolates what it selects, so it is written only where all that it selects is
//! isolated already. What is printed is read back and judged, and nothing that it opens beside the
//! connection stays unsaid.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{
    WorkloadRef,
    inventory::{is_generated_label, is_release_label},
    snapshot::LabelSelector,
};
use guardrail_policy::{
    emit,
    evaluate::{End, Evaluator, SideVerdict},
    generate::{Phase, PlannedPolicy, PlannedRule, PortRef, Purpose, RulePeer, RulePort},
    model::{Direction, Labels, selector_matches},
    read,
    words::few,
};
use serde::Serialize;

use crate::plan::{ExceptionEnd, PlanPort};

mod instead;

pub use instead::instead;

/// Beginning of the name of the policies.
const NAME: &str = "guardrail-exception";

/// Which connection is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct UnblockQuestion<'a> {
    /// The policies in force, over the cluster.
    pub evaluator: &'a Evaluator,
    /// Who connects.
    pub from: &'a ExceptionEnd,
    /// Who accepts.
    pub to: &'a ExceptionEnd,
    /// The server's own port.
    pub port: PlanPort,
    /// The selectors of controllers, as far as known.
    pub selectors: &'a BTreeMap<WorkloadRef, LabelSelector>,
    /// What the exception is called.
    pub id: &'a str,
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
    /// One or two policies: for each side that denies.
    pub rules: Vec<ExceptionRule>,
    /// What they open beside the connection: pods that the same selectors match.
    pub also: BTreeSet<AlsoOpened>,
}

/// A policy that opens one side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExceptionRule {
    /// Which side.
    pub direction: Direction,
    /// The NetworkPolicy.
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

/// One end, with the pods that a selector for it matches.
struct Matched {
    /// The pods that are meant, or the address.
    own: Vec<End>,
    /// What a rule calls it; `None`: an address.
    selector: Option<(String, LabelSelector)>,
    /// All that the selector matches, with their names.
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
    let UnblockQuestion { evaluator, port, .. } = *question;
    let (sources, targets) = (ends(evaluator, question.from)?, ends(evaluator, question.to)?);
    let mut denied: BTreeSet<Direction> = BTreeSet::new();
    for (_, source) in &sources {
        for (_, target) in &targets {
            let verdict = evaluator.evaluate(source, target, port.protocol, port.port);
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
    }
    if denied.is_empty() {
        return Ok(Unblock::NotDenied);
    }
    let from = matched(question, question.from, &sources)?;
    let to = matched(question, question.to, &targets)?;
    let mut rules = Vec::new();
    let mut policies = Vec::new();
    for direction in denied {
        let (subject, peer) = if direction == Direction::Ingress { (&to, &from) } else { (&from, &to) };
        let planned = planned(question, direction, subject, peer)?;
        // What is printed is what is judged.
        let yaml = emit::network_policy(&planned);
        let read = read::policies("exception", yaml.as_bytes());
        policies.extend(read.map_err(|error| format!("its rule cannot be written: {error}"))?.policies);
        rules.push(ExceptionRule { direction, yaml });
    }
    let opened = evaluator.beside(policies, Vec::new());
    let allows = |evaluator: &Evaluator, source: &End, target: &End| {
        evaluator.evaluate(source, target, port.protocol, port.port).allowed()
    };
    if from.own.iter().any(|source| to.own.iter().any(|target| !allows(&opened, source, target))) {
        return Err(
            "the data plane does not allow it with a NetworkPolicy of its own: change the policies that deny it"
                .to_owned(),
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
    Ok(Unblock::Exception(Opening { rules, also }))
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

fn matched(question: &UnblockQuestion<'_>, end: &ExceptionEnd, own: &[(u32, End)]) -> Result<Matched, String> {
    let evaluator = question.evaluator;
    let ends: Vec<End> = own.iter().map(|(_, end)| *end).collect();
    let workload = match end {
        ExceptionEnd::Range(range) => {
            let all = ends.iter().map(|end| (range.addr().to_string(), *end, true)).collect();
            return Ok(Matched { own: ends, selector: None, all });
        }
        ExceptionEnd::Workload(workload) => workload,
    };
    let own: BTreeSet<u32> = own.iter().map(|(pod, _)| *pod).collect();
    let pods = &evaluator.cluster().pods;
    let selected = |selector: &LabelSelector| -> BTreeSet<u32> {
        let live = pods.iter().zip(0..).filter(|(pod, _)| !pod.finished && !pod.host_network);
        let here = live.filter(|(pod, _)| pod.namespace == workload.namespace);
        here.filter(|(pod, _)| selector_matches(selector, &pod.labels)).map(|(_, index)| index).collect()
    };
    let mut common: Option<Labels> = None;
    for pod in &own {
        let labels = &pods[*pod as usize].labels;
        match &mut common {
            None => common = Some(labels.clone()),
            Some(common) => common.retain(|key, value| labels.get(key) == Some(&*value)),
        }
    }
    let mut common = common.unwrap_or_default();
    common.retain(|key, _| !is_generated_label(key) && !is_release_label(key));
    let of_labels = (!common.is_empty()).then(|| LabelSelector::of_labels(common));
    let candidates = question.selectors.get(workload).cloned().into_iter().chain(of_labels);
    let candidates = candidates.map(|selector| (selected(&selector), selector));
    // The one that matches the fewest others; of equals the controller's own.
    let best = candidates.filter(|(all, _)| own.is_subset(all)).min_by_key(|(all, _)| all.len());
    let (all, selector) = best.ok_or_else(|| {
        format!("{workload} has no label that stays the same, so no rule can name it: add one to its pod template")
    })?;
    let all =
        all.into_iter().map(|pod| (pods[pod as usize].workload_name(), evaluator.end_of_pod(pod), own.contains(&pod)));
    Ok(Matched { own: ends, selector: Some((workload.namespace.clone(), selector)), all: all.collect() })
}

/// The policy that opens one side.
fn planned(
    question: &UnblockQuestion<'_>,
    direction: Direction,
    subject: &Matched,
    peer: &Matched,
) -> Result<PlannedPolicy, String> {
    let (own_end, other_end) = match direction {
        Direction::Ingress => (question.to, question.from),
        Direction::Egress => (question.from, question.to),
    };
    let (ExceptionEnd::Workload(workload), Some((namespace, selector))) = (own_end, &subject.selector) else {
        return Err(format!("{own_end} is no workload, so no policy selects it"));
    };
    let open: BTreeSet<&str> = subject
        .all
        .iter()
        .filter(|(_, end, _)| !question.evaluator.isolated(end, direction))
        .map(|(name, ..)| name.as_str())
        .collect();
    if !open.is_empty() {
        let names = few(&open.into_iter().collect::<Vec<_>>());
        return Err(format!(
            "a rule for {workload} also selects pods that no policy isolates for {direction} ({names}), and would close them: give {workload} a label of its own"
        ));
    }
    let peer = match (&peer.selector, other_end) {
        (Some((other, selector)), _) => {
            RulePeer::Pods { namespace: (other != namespace).then(|| other.clone()), selector: selector.clone() }
        }
        (None, ExceptionEnd::Range(range)) => RulePeer::Block { cidr: *range, except: BTreeSet::new() },
        (None, ExceptionEnd::Workload(other)) => return Err(format!("{other} has no label that a rule could name")),
    };
    let port = RulePort { protocol: question.port.protocol, port: PortRef::Number(question.port.port) };
    let rules = vec![PlannedRule { peers: [peer].into(), ports: [port].into(), learns_names: false }];
    let (ingress, egress) = match direction {
        Direction::Ingress => (Some(rules), None),
        Direction::Egress => (None, Some(rules)),
    };
    Ok(PlannedPolicy {
        namespace: namespace.clone(),
        name: format!("{NAME}-{}-{direction}", question.id),
        phase: Phase::DefaultDeny,
        purpose: Purpose::Workload(workload.clone()),
        subject: selector.clone(),
        ingress,
        egress,
        complete: true,
        view: None,
        notes: BTreeSet::new(),
    })
}
