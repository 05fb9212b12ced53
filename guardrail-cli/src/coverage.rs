//! Says in words how complete an observation is.

use guardrail_graph::{Snapshot, observe::LossClass};

/// Why the observation is incomplete, one sentence each; empty if it is complete.
pub(crate) fn incomplete(snapshot: &Snapshot) -> Vec<String> {
    let coverage = &snapshot.body.coverage;
    if coverage.complete {
        return Vec::new();
    }
    let mut reasons = Vec::new();
    let missing: Vec<&str> = coverage.nodes.expected.difference(&coverage.nodes.observed).map(String::as_str).collect();
    if !missing.is_empty() {
        reasons.push(format!("nodes not observed: {}", few(&missing)));
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

fn few(names: &[&str]) -> String {
    let shown = names[..names.len().min(5)].join(", ");
    if names.len() > 5 { format!("{shown} and {} more", names.len() - 5) } else { shown }
}
