//! Flows on which policies had no say before, and have now (docs/semantics.md B24).

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{Peer, Snapshot, WorkloadRef};
use serde::Serialize;

use super::Proof;
use crate::{evaluate::Evaluator, generate::edge_name, model::Direction};

/// A flow on which policies had no say before, and have now (docs/semantics.md B24).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NewlyJudged {
    /// The side that becomes isolated.
    pub direction: Direction,
    /// The workload that becomes isolated.
    pub workload: String,
    /// `client -> server port/protocol`.
    pub flow: String,
    /// Whether it stays allowed.
    pub allowed: bool,
}

/// Finds them.
pub(super) fn newly_judged(
    snapshot: &Snapshot,
    alone: &Evaluator,
    before: Option<&Evaluator>,
    together: Option<&Evaluator>,
    proof: &mut Proof,
) {
    let after = together.unwrap_or(alone);
    let isolates = |evaluator: &Evaluator, peer: &Peer, direction: Direction| {
        !evaluator.isolating_peer(peer, direction).is_empty()
    };
    let mut newly: BTreeMap<(Direction, &WorkloadRef), bool> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for edge in &snapshot.body.edges {
        for (direction, peer) in [(Direction::Ingress, &*edge.server.peer), (Direction::Egress, &*edge.client.peer)] {
            let Peer::Workload(workload) = peer else { continue };
            let new = *newly.entry((direction, workload)).or_insert_with(|| {
                isolates(alone, peer, direction) && !before.is_some_and(|b| isolates(b, peer, direction))
            });
            if !new {
                continue;
            }
            let Ok(verdict) = after.evaluate_edge(edge) else { continue };
            found.insert(NewlyJudged {
                direction,
                workload: workload.to_string(),
                flow: edge_name(edge),
                allowed: verdict.allowed(),
            });
        }
    }
    proof.newly_judged = found.into_iter().collect();
}
