//! What is counted of one edge, and of one use of a Service port.

use std::sync::Arc;

use super::peers::PeerId;
use crate::{
    peer::Protocol,
    snapshot::{Side, facts::Seen},
};

/// Marks as bits, in the order of [`MARKS`].
pub(super) const MARKS: [&str; 6] = [
    crate::snapshot::marks::PROXIED,
    crate::snapshot::marks::MULTICAST,
    crate::snapshot::marks::BROADCAST,
    crate::snapshot::marks::LINK_LOCAL,
    crate::snapshot::marks::HOST_PORT,
    crate::snapshot::marks::TUNNEL,
];

/// The bit of a mark, 0 for those that are computed.
pub(super) fn mark_bit(mark: &str) -> u8 {
    MARKS.iter().position(|m| *m == mark).map_or(0, |i| 1 << i)
}

/// `(client, server, protocol, port)`.
pub(super) type Key = (PeerId, PeerId, Protocol, u16);

/// What is known of an edge.
#[derive(Debug, Default)]
pub(super) struct Edge {
    /// Seen at the client, at the server. Documents share it; what is counted while one is there
    /// goes to a copy.
    pub(super) sides: [Option<Arc<Seen>>; 2],
    pub(super) marks: u8,
    pub(super) node_workloads: NodeWorkloads,
    pub(super) port_name: Option<Arc<str>>,
}

pub(super) const fn side_index(side: Side) -> usize {
    match side {
        Side::Client => 0,
        Side::Server => 1,
    }
}

/// An addition to an edge.
#[derive(Clone, Debug)]
pub(super) struct Gain {
    pub(super) side: Side,
    pub(super) seen: Seen,
    pub(super) marks: u8,
    pub(super) node_workload: Option<Arc<str>>,
    pub(super) port_name: Option<Arc<str>>,
}

fn add(slot: &mut Option<Arc<Seen>>, seen: &Seen) {
    let opens = seen.counts.established() > 0 || seen.counts.failed() > 0;
    match slot.as_mut().map(Arc::make_mut) {
        Some(kept) if opens => kept.add(seen),
        // First and last seen are times of opens and attempts, not of bytes.
        Some(kept) => kept.counts = kept.counts.plus(&seen.counts),
        None if opens => *slot = Some(Arc::new(*seen)),
        None => {}
    }
}

/// Names of workloads on a node, each once. Few edges have any, so there is no room for
/// more before they come.
#[derive(Debug, Default)]
pub(super) struct NodeWorkloads(Box<[Arc<str>]>);

impl NodeWorkloads {
    fn add(&mut self, name: &Arc<str>) {
        if !self.0.contains(name) {
            self.0 = self.0.iter().chain([name]).cloned().collect();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Arc<str>> for NodeWorkloads {
    fn from_iter<I: IntoIterator<Item = Arc<str>>>(names: I) -> Self {
        Self(names.into_iter().collect())
    }
}

impl Edge {
    pub(super) fn gain(&mut self, gain: &Gain) {
        add(&mut self.sides[side_index(gain.side)], &gain.seen);
        self.marks |= gain.marks;
        if let Some(workload) = &gain.node_workload {
            self.node_workloads.add(workload);
        }
        if gain.port_name.is_some() {
            self.port_name.clone_from(&gain.port_name);
        }
    }

    pub(super) fn absorb(&mut self, other: Self) {
        for (slot, seen) in self.sides.iter_mut().zip(other.sides) {
            if let Some(seen) = seen {
                add(slot, &seen);
            }
        }
        self.marks |= other.marks;
        for workload in other.node_workloads.iter() {
            self.node_workloads.add(workload);
        }
        self.port_name = self.port_name.take().or(other.port_name);
    }
}

/// What is known of a client's use of a Service port.
#[derive(Debug, Default)]
pub(super) struct Flow {
    pub(super) seen: Option<Arc<Seen>>,
    pub(super) marks: u8,
    pub(super) node_workloads: NodeWorkloads,
}

impl Flow {
    /// A use that counts for nothing.
    pub(super) fn capture(&mut self, gain: &Gain) {
        self.seen.get_or_insert_with(|| Arc::new(gain.seen));
    }

    pub(super) fn gain(&mut self, gain: &Gain) {
        add(&mut self.seen, &gain.seen);
        self.marks |= gain.marks;
        if let Some(workload) = &gain.node_workload {
            self.node_workloads.add(workload);
        }
    }
}
