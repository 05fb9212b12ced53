//! Says in words how complete an observation is.

use std::collections::BTreeSet;

use guardrail_graph::{
    Snapshot,
    observe::LossClass,
    snapshot::{InventoryState, Starts},
};
use guardrail_policy::words::{few, percent};

use crate::exit::Outcome;

/// Whether no agent ever heard a list of the cluster.
pub(crate) fn heard_nothing(snapshot: &Snapshot) -> bool {
    snapshot.body.coverage.inventory == Some(InventoryState::Missing)
}

/// Why the observation is incomplete, one sentence each; empty if it is complete.
pub(crate) fn incomplete(snapshot: &Snapshot) -> Vec<String> {
    let coverage = &snapshot.body.coverage;
    if coverage.complete {
        return Vec::new();
    }
    let mut reasons = Vec::new();
    if heard_nothing(snapshot) {
        reasons.push("no list of the cluster was ever heard, so nothing has a name".to_owned());
    }
    let apart: Vec<&str> =
        coverage.workloads.iter().flat_map(|w| &w.reasons).filter_map(|r| r.strip_prefix("window_apart:")).collect();
    if !apart.is_empty() {
        let apart: Vec<&str> = apart.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        reasons.push(format!("nodes that were never observed together: {}", few(&apart)));
    }
    let missing: Vec<&str> = coverage.nodes.expected.difference(&coverage.nodes.observed).map(String::as_str).collect();
    if !missing.is_empty() {
        reasons.push(format!("nodes not observed: {}", few(&missing)));
    }
    if let Some(share) = coverage.coverage.filter(|share| *share < 1.0) {
        let least = coverage.by_workload.iter().min_by(|a, b| a.coverage.total_cmp(&b.coverage));
        let least =
            least.map_or_else(String::new, |time| format!(", least of {}: {}", time.workload, percent(time.coverage)));
        reasons.push(format!("{} of the time in which pods ran was observed{least}", percent(share)));
    }
    if let Some(Starts { covered, all }) = coverage.starts.filter(|starts| !starts.is_complete()) {
        reasons.push(format!("the first minute of {covered} of {all} pods that started was observed"));
    }
    let losses: Vec<String> = coverage
        .losses
        .iter()
        .filter(|l| l.class == LossClass::Edge)
        .map(|l| format!("{} {} on {}", l.count, l.reason, l.source.node))
        .collect();
    if !losses.is_empty() {
        reasons.push(format!("events lost: {}", few(&losses.iter().map(String::as_str).collect::<Vec<_>>())));
    }
    let unresolved: u64 = coverage.unresolved.iter().fold(0, |sum, u| sum.saturating_add(u.count));
    if unresolved > 0 {
        reasons.push(format!("{unresolved} flows with an end or role that could not be named"));
    }
    if reasons.is_empty() {
        reasons.push("its coverage says so (a gap in the window, or workloads that are incomplete)".to_owned());
    }
    reasons
}

/// What a command that shows the graph as it is has found out.
pub(crate) fn outcome(snapshot: &Snapshot) -> Outcome {
    if heard_nothing(snapshot) { Outcome::Unanswered } else { Outcome::Fine }
}
