//! Workloads on whose flows policies had no say before, and have now (docs/semantics.md B24).

use std::collections::HashMap;

use guardrail_graph::{Peer, Snapshot, WorkloadRef};
use serde::Serialize;

use super::{Judges, Proof};
use crate::{evaluate::Evaluator, model::Direction};

/// A workload on whose flows policies had no say before, and have now (docs/semantics.md B24).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NewlyJudged {
    /// The side that becomes isolated.
    pub direction: Direction,
    /// The workload that becomes isolated.
    pub workload: String,
    /// Indices of edges in the snapshot that stay allowed.
    pub allowed: Vec<usize>,
    /// Of those that do not.
    pub denied: Vec<usize>,
}

/// Finds them.
pub(super) fn newly_judged(snapshot: &Snapshot, judges: Judges<'_>, before: Option<&Evaluator>, proof: &mut Proof) {
    let (alone, _) = judges.alone;
    let (_, allowed_after) = judges.together.unwrap_or(judges.alone);
    let isolates = |evaluator: &Evaluator, peer: &Peer, direction: Direction| {
        !evaluator.isolating_peer(peer, direction).is_empty()
    };
    let mut newly: HashMap<(Direction, &WorkloadRef), Option<NewlyJudged>> = HashMap::new();
    for (index, edge) in snapshot.body.edges.iter().enumerate() {
        for (direction, peer) in [(Direction::Ingress, &*edge.server.peer), (Direction::Egress, &*edge.client.peer)] {
            let Peer::Workload(workload) = peer else { continue };
            let known = newly.entry((direction, workload)).or_insert_with(|| {
                let is_new = isolates(alone, peer, direction) && !before.is_some_and(|b| isolates(b, peer, direction));
                let workload = workload.to_string();
                is_new.then(|| NewlyJudged { direction, workload, allowed: Vec::new(), denied: Vec::new() })
            });
            let Some(judged) = known else { continue };
            match allowed_after[index] {
                Some(true) => judged.allowed.push(index),
                Some(false) => judged.denied.push(index),
                None => {}
            }
        }
    }
    let mut newly: Vec<NewlyJudged> = newly
        .into_values()
        .flatten()
        .filter(|judged| !(judged.allowed.is_empty() && judged.denied.is_empty()))
        .collect();
    newly.sort_by(|a, b| (a.direction, &a.workload).cmp(&(b.direction, &b.workload)));
    proof.newly_judged = newly;
}
