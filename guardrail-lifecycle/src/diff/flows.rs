//! Observed flows that two sets of policies judge differently.

use guardrail_graph::{Protocol, Snapshot, Timestamp};
use guardrail_policy::{evaluate::Evaluator, model::Direction};
use serde::Serialize;

/// An observed flow whose verdict changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TouchedFlow {
    /// Who opens it.
    pub client: String,
    /// Who accepts it.
    pub server: String,
    /// Protocol.
    pub protocol: Protocol,
    /// The server's own port.
    pub port: u16,
    /// Whether it is allowed now; before it was the other way round.
    pub allowed: bool,
    /// Which side denies it now, or denied it.
    pub denied_at: Vec<Direction>,
    /// Connections came about; otherwise there were only attempts.
    pub established: bool,
    /// How many.
    pub connections: u64,
    /// The last of them, or the last attempt.
    pub last_seen: Timestamp,
}

/// What is known of the observed flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Touched {
    /// Flows whose verdict changes, sorted.
    pub flows: Vec<TouchedFlow>,
    /// How many flows have an end that cannot be judged.
    pub unjudged: usize,
}

/// Judges every observed flow by both evaluators.
#[must_use]
pub fn touched(snapshot: &Snapshot, before: &Evaluator, after: &Evaluator) -> Touched {
    let mut touched = Touched::default();
    for edge in &snapshot.body.edges {
        let (Ok(was), Ok(is)) = (before.evaluate_edge(edge), after.evaluate_edge(edge)) else {
            touched.unjudged += 1;
            continue;
        };
        // Of all pods of the two ends: one that is cut off is an outage.
        let allowed = is.denied == 0;
        if allowed == (was.denied == 0) {
            continue;
        }
        let denying = if allowed { was.verdict } else { is.verdict };
        let sides = [(Direction::Egress, &denying.egress), (Direction::Ingress, &denying.ingress)];
        touched.flows.push(TouchedFlow {
            client: super::name(&edge.client),
            server: super::name(&edge.server),
            protocol: edge.protocol,
            port: edge.port,
            allowed,
            denied_at: sides.into_iter().filter(|(_, side)| !side.allows()).map(|(direction, _)| direction).collect(),
            established: edge.supported,
            connections: edge.counts.established(),
            last_seen: edge.last_seen,
        });
    }
    touched.flows.sort();
    touched
}
