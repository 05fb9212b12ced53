//! Flows with an end or role that nobody can name, as they stand in a snapshot and are joined.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Interval, Source, intervals::hull, span::Span};
use crate::{
    peer::{Peer, Protocol},
    time::Timestamp,
};

/// Examples kept per reason.
pub(crate) const MAX_EXAMPLES: usize = 8;
/// Established flows kept for each reason: those that come first by their ends.
pub(crate) const MAX_FLOWS: usize = 1_000;

/// Flows whose end or role could not be named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnresolvedEntry {
    /// Who counted.
    pub source: Source,
    /// `ip_reuse`, `pod_range_no_owner`, `role_unknown`, `pod_unknown`, `service_backend_unknown`,
    /// …
    pub reason: String,
    /// How many.
    pub count: u64,
    /// A few examples (`client -> server:port/protocol`; the port is the server's), sorted, at most
    /// 8.
    pub examples: BTreeSet<String>,
    /// The established ones among them, sorted. `None`: they stand in `service_flows` and
    /// `remote_flows`, or nobody kept them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<Vec<UnresolvedFlow>>,
    /// There were more established ones than `flows` has, or some without ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// An established flow whose end or role could not be named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnresolvedFlow {
    /// The client; by its address if it has no name. Where the role is not known, the end on the
    /// source's node.
    pub client: Peer,
    /// The server, likewise.
    pub server: Peer,
    /// Protocol.
    pub protocol: Protocol,
    /// The server's port.
    pub port: u16,
    /// When it was.
    #[serde(flatten)]
    pub time: FlowTime,
}

/// First and last time of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTime {
    /// Not before.
    pub first_seen: Timestamp,
    /// Not after.
    pub last_seen: Timestamp,
}

/// `(client, server, protocol, port)`.
pub(crate) type FlowEnds = (Arc<Peer>, Arc<Peer>, Protocol, u16);

/// What is known of the unresolved flows of a source and reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unresolved {
    pub(crate) count: u64,
    pub(crate) examples: BTreeSet<String>,
    /// `None`: nobody kept them.
    pub(crate) flows: Option<BTreeMap<FlowEnds, Interval>>,
    pub(crate) more: bool,
}

impl Unresolved {
    /// One example more, if there is room.
    pub(super) fn add_example(&mut self, example: String) {
        self.examples.insert(example);
        while self.examples.len() > MAX_EXAMPLES {
            self.examples.pop_last();
        }
    }

    /// One established flow more, if there is room.
    pub(super) fn keep(&mut self, ends: FlowEnds, time: Interval) {
        let flows = self.flows.get_or_insert_default();
        let known = flows.entry(ends).or_insert(time);
        *known = hull([*known, time]);
        while flows.len() > MAX_FLOWS {
            flows.pop_last();
            self.more = true;
        }
    }

    /// What another snapshot says of the same source and reason. What comes first is kept, so that
    /// the order of joining plays no part.
    pub(super) fn join(&mut self, other: Self, is_new: bool) {
        self.count = self.count.max(other.count);
        other.examples.into_iter().for_each(|example| self.add_example(example));
        self.more |= other.more;
        self.flows = match (self.flows.take(), other.flows) {
            (None, flows) if is_new => flows,
            (Some(mut known), Some(flows)) => {
                for (ends, time) in flows {
                    let joined = known.entry(ends).or_insert(time);
                    *joined = hull([*joined, time]);
                }
                Some(known)
            }
            _ => None,
        };
        while let Some(flows) = self.flows.as_mut().filter(|flows| flows.len() > MAX_FLOWS) {
            flows.pop_last();
            self.more = true;
        }
    }

    /// As it stands in a snapshot.
    pub(crate) fn entry(self, source: Arc<Source>, reason: String) -> UnresolvedEntry {
        let flow = |((client, server, protocol, port), time): (FlowEnds, Interval)| UnresolvedFlow {
            client: Arc::unwrap_or_clone(client),
            server: Arc::unwrap_or_clone(server),
            protocol,
            port,
            time: FlowTime { first_seen: time.from, last_seen: time.to },
        };
        UnresolvedEntry {
            source: Arc::unwrap_or_clone(source),
            reason,
            count: self.count,
            examples: self.examples,
            flows: self.flows.map(|flows| flows.into_iter().map(flow).collect()),
            more: self.more,
        }
    }
}

impl UnresolvedEntry {
    /// Leaves the flows that meet the span.
    pub(super) fn cut(&mut self, span: &Span) {
        if let Some(flows) = &mut self.flows {
            flows.retain(|flow| span.meets(flow.time.first_seen, flow.time.last_seen));
        }
    }
}
