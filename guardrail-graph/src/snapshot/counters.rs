//! Counters of edges, as `/metrics` shows them: the same from a snapshot and from an observer.

use std::sync::Arc;

use super::Counts;
use crate::peer::{Peer, Protocol};

/// Outcomes that [`EdgeCounter::outcomes`] counts: `opened` has those found at start in it, and
/// those that broke off later on, which `broken` counts once more.
pub const OUTCOMES: [&str; 5] = ["opened", "refused", "unanswered", "unreachable", "broken"];

/// Series of `guardrail_flow_connections_total`: an edge whose external ends are one, and its
/// counts by outcome.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EdgeCounter {
    /// The client; [`Peer::many`] for whatever is outside the cluster.
    pub client: Arc<Peer>,
    /// The server; likewise.
    pub server: Arc<Peer>,
    /// Protocol.
    pub protocol: Protocol,
    /// Pod port.
    pub port: u16,
    /// In the order of [`OUTCOMES`].
    pub outcomes: [u64; OUTCOMES.len()],
}

/// What `/metrics` shows of the edges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeCounters {
    /// Sorted.
    pub edges: Vec<EdgeCounter>,
    /// As [`crate::snapshot::Coverage::complete`].
    pub complete: bool,
}

/// Adds the counts of an edge.
pub(crate) fn add_outcomes(sums: &mut [u64; OUTCOMES.len()], counts: &Counts) {
    let gains = [counts.established(), counts.refused, counts.unanswered, counts.unreachable, counts.broken.into()];
    for (sum, gain) in sums.iter_mut().zip(gains) {
        *sum = sum.saturating_add(gain);
    }
}
