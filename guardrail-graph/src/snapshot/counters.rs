//! Counters of edges, as `/metrics` shows them: the same from a snapshot and from an observer.

use std::{borrow::Borrow, collections::BTreeMap, sync::Arc};

use super::{Counts, EdgeRecord};
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
    let gains =
        [counts.established(), counts.refused, counts.unanswered, counts.unreachable.into(), counts.broken.into()];
    for (sum, gain) in sums.iter_mut().zip(gains) {
        *sum = sum.saturating_add(gain);
    }
}

/// The counters of these edges, sorted; external addresses are one peer, so a counter may join
/// several edges.
pub(crate) fn of_edges(edges: impl Iterator<Item = impl Borrow<EdgeRecord>>) -> Vec<EdgeCounter> {
    let many = Arc::new(Peer::many());
    let shown = |peer: &Peer| match peer {
        Peer::External { .. } => Arc::clone(&many),
        _ => Arc::new(peer.clone()),
    };
    let mut counters: BTreeMap<_, [u64; OUTCOMES.len()]> = BTreeMap::new();
    for edge in edges {
        let EdgeRecord { client, server, protocol, port, counts, .. } = edge.borrow();
        add_outcomes(counters.entry((shown(&client.peer), shown(&server.peer), *protocol, *port)).or_default(), counts);
    }
    let counter =
        |((client, server, protocol, port), outcomes)| EdgeCounter { client, server, protocol, port, outcomes };
    counters.into_iter().map(counter).collect()
}
