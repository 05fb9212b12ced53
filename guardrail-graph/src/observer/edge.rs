//! What is counted of one edge, and of one use of a Service port.

use std::{borrow::Cow, sync::Arc};

use super::peers::PeerId;
use crate::{
    peer::Protocol,
    snapshot::{Counts, Side, facts::Seen},
    time::Timestamp,
};

/// Marks as bits, in this order.
const MARKS: [&str; 8] = [
    crate::snapshot::marks::PROXIED,
    crate::snapshot::marks::MULTICAST,
    crate::snapshot::marks::BROADCAST,
    crate::snapshot::marks::LINK_LOCAL,
    crate::snapshot::marks::HOST_PORT,
    crate::snapshot::marks::TUNNEL,
    crate::snapshot::marks::INSIDE,
    crate::snapshot::marks::SECONDARY_NETWORK,
];

/// The bit of a mark, 0 for those that are computed.
pub(super) fn mark_bit(mark: &str) -> u8 {
    MARKS.iter().position(|m| *m == mark).map_or(0, |i| 1 << i)
}

/// The marks that these bits stand for.
pub(super) fn marks_of(bits: u8) -> impl Iterator<Item = &'static str> {
    MARKS.iter().enumerate().filter(move |(i, _)| bits & (1 << i) != 0).map(|(_, mark)| *mark)
}

/// Whether one of these marks sets what was seen aside ([`marks::SET_ASIDE`]).
///
/// [`marks::SET_ASIDE`]: crate::snapshot::marks::SET_ASIDE
pub(super) fn is_set_aside(marks: u8) -> bool {
    crate::snapshot::marks::SET_ASIDE.iter().any(|mark| marks & mark_bit(mark) != 0)
}

/// `(client, server, protocol, port)`.
pub(super) type Key = (PeerId, PeerId, Protocol, u16);

/// What is known of an edge.
#[derive(Clone, Debug, Default)]
pub(super) struct Edge {
    /// Seen at the client, at the server. Documents share it; what is counted while one is there
    /// goes to a copy.
    pub(super) sides: [Option<Arc<Seen>>; 2],
    pub(super) marks: u8,
    pub(super) port_name: Option<Arc<str>>,
    rare: Option<Box<Rare>>,
}

/// What few edges have: there are 100,000 of them.
#[derive(Clone, Debug, Default)]
struct Rare {
    /// Of the connections that were open when the epoch began, how many are not known to have
    /// ended, at each side.
    still_open: [u32; 2],
    node_workloads: NodeWorkloads,
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
    /// Connections that ended.
    pub(super) closed: u64,
    pub(super) marks: u8,
    pub(super) node_workload: Option<Arc<str>>,
    pub(super) port_name: Option<Arc<str>>,
}

/// What stood in the epoch before, with the time of the last open or attempt, sorted.
#[derive(Debug)]
pub(super) struct Earlier<K>(Box<[(K, Timestamp)]>);

impl<K> Default for Earlier<K> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<K: Ord> Earlier<K> {
    pub(super) fn of(all: impl Iterator<Item = (K, Timestamp)>) -> Self {
        let mut all: Box<[(K, Timestamp)]> = all.collect();
        all.sort_unstable();
        Self(all)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }

    /// The last open or attempt, if it stood there.
    pub(super) fn last(&self, key: &K) -> Option<Timestamp> {
        self.0.binary_search_by(|(known, _)| known.cmp(key)).ok().map(|at| self.0[at].1)
    }
}

/// Adds what was seen. Without an open or attempt it is bytes of what began before: that makes no
/// entry, unless it stands in the epoch before, as of `earlier`.
fn add(slot: &mut Option<Arc<Seen>>, seen: &Seen, earlier: Option<Timestamp>) {
    let opens = seen.counts.is_seen();
    match slot.as_mut().map(Arc::make_mut) {
        Some(kept) if opens => kept.add(seen),
        // First and last seen are times of opens and attempts, not of bytes; a connection that
        // broke off was there until it did.
        Some(kept) => {
            kept.counts = kept.counts.plus(&seen.counts);
            if seen.counts.broken > 0 {
                kept.last = kept.last.max(seen.last);
            }
        }
        None if opens => *slot = Some(Arc::new(*seen)),
        None => *slot = earlier.map(|last| Arc::new(Seen { first: last, last, ..*seen })),
    }
}

/// Takes ends of connections off those that are still open. Evidence of these lasts until then.
fn close(slot: Option<&mut Arc<Seen>>, still_open: &mut u32, gain: &Gain) {
    if gain.closed > 0
        && *still_open > 0
        && let Some(seen) = slot
    {
        *still_open = still_open.saturating_sub(u32::try_from(gain.closed).unwrap_or(u32::MAX));
        let seen = Arc::make_mut(seen);
        seen.last = seen.last.max(gain.seen.last);
    }
}

/// What was seen by `now`: of connections that are still open, up to now.
fn until<'a>(seen: Option<&'a Arc<Seen>>, still_open: u32, now: Timestamp) -> Option<Cow<'a, Arc<Seen>>> {
    let seen = seen?;
    if still_open == 0 || seen.last >= now {
        return Some(Cow::Borrowed(seen));
    }
    Some(Cow::Owned(Arc::new(Seen { last: now, ..**seen })))
}

/// Connections that are open as an epoch begins.
fn open_since(count: u32, start: Timestamp) -> Arc<Seen> {
    Arc::new(Seen { counts: Counts { open: count, ..Counts::default() }, first: start, last: start })
}

/// Names of workloads on a node, each once. Few uses have any, so there is no room for more before
/// they come.
#[derive(Clone, Debug, Default)]
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
    /// What is set aside gives way to anything else. False: nothing is to be added to this edge by
    /// what has these marks.
    fn gives_way(&mut self, marks: u8, opens: bool) -> bool {
        let is_new = self.sides.iter().all(Option::is_none);
        if is_new || is_set_aside(self.marks) == is_set_aside(marks) {
            return true;
        }
        let gives_way = opens && is_set_aside(self.marks);
        if gives_way {
            *self = Self::default();
        }
        gives_way
    }

    pub(super) fn gain(&mut self, gain: &Gain, earlier: Option<Timestamp>) {
        if !self.gives_way(gain.marks, gain.seen.counts.is_seen()) {
            return;
        }
        let side = side_index(gain.side);
        add(&mut self.sides[side], &gain.seen, earlier);
        let mut still_open = self.still_open(gain.side);
        close(self.sides[side].as_mut(), &mut still_open, gain);
        self.set_still_open(gain.side, still_open);
        self.marks |= gain.marks;
        if let Some(workload) = &gain.node_workload {
            self.rare.get_or_insert_default().node_workloads.add(workload);
        }
        if gain.port_name.is_some() {
            self.port_name.clone_from(&gain.port_name);
        }
    }

    pub(super) fn absorb(&mut self, other: Self) {
        if !self.gives_way(other.marks, true) {
            return;
        }
        for (slot, seen) in self.sides.iter_mut().zip(other.sides) {
            if let Some(seen) = seen {
                add(slot, &seen, None);
            }
        }
        self.marks |= other.marks;
        self.port_name = self.port_name.take().or(other.port_name);
        let Some(other) = other.rare else { return };
        let rare = self.rare.get_or_insert_default();
        for (here, there) in rare.still_open.iter_mut().zip(other.still_open) {
            *here = here.saturating_add(there);
        }
        for workload in other.node_workloads.iter() {
            rare.node_workloads.add(workload);
        }
    }

    /// What was seen at a side by `now`.
    pub(super) fn until(&self, side: Side, now: Timestamp) -> Option<Cow<'_, Arc<Seen>>> {
        until(self.sides[side_index(side)].as_ref(), self.still_open(side), now)
    }

    /// So many connections at this side are open as an epoch begins, which has nothing else of this
    /// edge yet.
    pub(super) fn open_since(&self, side: Side, count: u32, start: Timestamp) -> Self {
        let mut next = Self::of(self.marks, self.port_name.clone(), self.node_workloads().cloned());
        next.sides[side_index(side)] = Some(open_since(count, start));
        next.set_still_open(side, count);
        next
    }

    /// One at which nothing was seen yet.
    pub(super) fn of(
        marks: u8,
        port_name: Option<Arc<str>>,
        node_workloads: impl IntoIterator<Item = Arc<str>>,
    ) -> Self {
        let node_workloads: NodeWorkloads = node_workloads.into_iter().collect();
        let rare = (!node_workloads.is_empty()).then(|| Box::new(Rare { node_workloads, ..Rare::default() }));
        Self { marks, port_name, rare, ..Self::default() }
    }

    /// Of the connections that were open when the epoch began, how many are not known to have ended
    /// at this side.
    pub(super) fn still_open(&self, side: Side) -> u32 {
        self.rare.as_ref().map_or(0, |rare| rare.still_open[side_index(side)])
    }

    /// So many of them are open by now.
    pub(super) fn set_still_open(&mut self, side: Side, count: u32) {
        if self.still_open(side) != count {
            self.rare.get_or_insert_default().still_open[side_index(side)] = count;
        }
    }

    /// Names of workloads on a node, each once.
    pub(super) fn node_workloads(&self) -> impl Iterator<Item = &Arc<str>> {
        self.rare.iter().flat_map(|rare| rare.node_workloads.iter())
    }
}

/// What is known of a client's use of a Service port.
#[derive(Debug, Default)]
pub(super) struct Flow {
    pub(super) seen: Option<Arc<Seen>>,
    /// As [`Edge::still_open()`].
    pub(super) still_open: u32,
    pub(super) marks: u8,
    pub(super) node_workloads: NodeWorkloads,
}

impl Flow {
    /// A use that counts for nothing.
    pub(super) fn capture(&mut self, gain: &Gain) {
        self.seen.get_or_insert_with(|| Arc::new(gain.seen));
    }

    pub(super) fn gain(&mut self, gain: &Gain, earlier: Option<Timestamp>) {
        add(&mut self.seen, &gain.seen, earlier);
        close(self.seen.as_mut(), &mut self.still_open, gain);
        self.marks |= gain.marks;
        if let Some(workload) = &gain.node_workload {
            self.node_workloads.add(workload);
        }
    }

    /// As [`Edge::until`].
    pub(super) fn until(&self, now: Timestamp) -> Option<Cow<'_, Arc<Seen>>> {
        until(self.seen.as_ref(), self.still_open, now)
    }

    /// As [`Edge::open_since`].
    pub(super) fn open_since(&self, count: u32, start: Timestamp) -> Self {
        Self {
            seen: Some(open_since(count, start)),
            still_open: count,
            marks: self.marks,
            node_workloads: self.node_workloads.clone(),
        }
    }
}
