//! Flows with an address whose owner only the API server's last word names: held until each watch
//! has spoken past their time.
//!
//! Until then they stand in documents and counters under the name that is believed, as long as the
//! watches follow; while one is silent, as remote flows. Both are made anew each time, so that what
//! is told late moves them whole. What a record of this node shows is not held.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    AddressOwner, Observer, UnresolvedReason,
    edge::{Edge, Gain, Key, is_set_aside, side_index},
    flows::is_same,
    graph::RemoteKey,
    identity::{LocalEnd, RemoteEnd, Resolution},
    peers::PeerId,
};
use crate::{
    inventory::Kind,
    observe::{Remote, Role},
    peer::Protocol,
    snapshot::{Counts, Side, facts::Seen, owners::LEAD},
    time::Timestamp,
};

/// What happened so long before a word may be on its way still.
const GUARD: Duration = Duration::from_secs(5);

/// Flows of one end here with one address and port.
#[derive(Debug, Default)]
pub(super) struct Flows {
    edge: Edge,
    closed: u64,
    /// Server or client that is believed to have had the address, with the server's port.
    believed: Option<(PeerId, u16)>,
}

/// Those of which every watch has told by now.
#[derive(Debug)]
struct Spoken {
    /// What came with that word has been taken by then.
    due: Timestamp,
    flows: HashMap<RemoteKey, Flows>,
}

/// All that are held.
#[derive(Debug)]
pub(super) struct Held {
    open: HashMap<RemoteKey, Flows>,
    spoken: VecDeque<Spoken>,
    max: usize,
}

/// How held flows stand in the graph at a time.
pub(super) enum Standing<'a> {
    /// Under the name that is believed.
    Edge(Key, &'a Edge),
    /// Under the address.
    Remote(&'a RemoteKey, &'a Edge),
}

impl Held {
    /// Nothing is held, and never more than `max`.
    pub(super) fn new(max: usize) -> Self {
        Self { open: HashMap::new(), spoken: VecDeque::new(), max }
    }

    fn len(&self) -> usize {
        self.open.len() + self.spoken.iter().map(|spoken| spoken.flows.len()).sum::<usize>()
    }

    fn iter(&self) -> impl Iterator<Item = (&RemoteKey, &Flows)> {
        let spoken = self.spoken.iter().flat_map(|spoken| spoken.flows.iter());
        self.open.iter().chain(spoken)
    }

    /// What was seen of each, one perhaps several times.
    pub(super) fn edges(&self) -> impl Iterator<Item = (&RemoteKey, &Edge)> {
        self.iter().map(|(key, flows)| (key, &flows.edge))
    }

    /// Whether such a flow is held.
    pub(super) fn contains(&self, key: &RemoteKey) -> bool {
        self.open.contains_key(key) || self.spoken.iter().any(|spoken| spoken.flows.contains_key(key))
    }

    /// The peers at both ends.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.iter().flat_map(|(key, flows)| [Some(key.0), flows.believed.map(|(peer, _)| peer)]).flatten()
    }

    /// Adds what was seen; false if there is no room.
    fn gain(&mut self, key: RemoteKey, believed: (PeerId, u16), gain: &Gain) -> bool {
        if !self.open.contains_key(&key) && self.len() >= self.max {
            return false;
        }
        let flows = self.open.entry(key).or_default();
        flows.edge.gain(gain, None);
        flows.closed = flows.closed.saturating_add(gain.closed);
        flows.believed = Some(believed);
        true
    }

    /// Everything has been told of these, and of those that were kept elsewhere.
    fn told(&mut self, is_told: impl Fn(&RemoteKey, &Edge) -> bool, now: Timestamp, restored: Vec<(RemoteKey, Edge)>) {
        let told = self.open.extract_if(|key, flows| is_told(key, &flows.edge)).collect();
        let restored = restored.into_iter().map(|(key, edge)| (key, Flows { edge, ..Flows::default() })).collect();
        for flows in [told, restored].into_iter().filter(|flows: &HashMap<_, _>| !flows.is_empty()) {
            self.spoken.push_back(Spoken { due: now.after(GUARD), flows });
        }
    }
}

impl Observer {
    /// Whether the watches have not told yet who had the remote address then, and no record of this
    /// node shows it. Gives who it is believed to have been.
    fn believed(&self, address: IpAddr, port: u16, remote: &RemoteEnd, at: Timestamp) -> Option<(PeerId, u16)> {
        let allowance = if self.identity.is_past_end(address, at) { LEAD } else { GUARD };
        if at.after(allowance) <= self.words.told_until() {
            return None;
        }
        let (owner, peer, port) = match *remote {
            RemoteEnd::Peer { peer, pod } => (pod.map_or(AddressOwner::Node(peer), AddressOwner::Pod), peer, port),
            RemoteEnd::HostPort { peer, port } => (self.identity.owner(address, at)?, peer, port),
            RemoteEnd::External { .. } | RemoteEnd::RemotePod | RemoteEnd::Service { .. } => return None,
        };
        (!self.identity.is_on_record(address, owner, at)).then_some((peer, port))
    }

    /// Adds what was seen at the local end to where the remote end belongs, which has this address,
    /// or holds it until it is told who had the address then. The port is the server's.
    pub(super) fn place(
        &mut self,
        local: &LocalEnd,
        (address, port, protocol): (IpAddr, u16, Protocol),
        remote: RemoteEnd,
        gain: Gain,
    ) {
        let key = (local.peer, gain.side, address, protocol, port, false);
        // Bytes and ends of connections go where their beginning stands.
        let begins = gain.seen.counts.is_seen() || self.held.open.contains_key(&key);
        let believed = match begins && !is_set_aside(gain.marks) {
            true => self.believed(address, port, &remote, gain.seen.last),
            false => None,
        };
        let Some(believed) = believed else {
            return self.place_now(local, (address, port, protocol), remote, gain);
        };
        let mut named = gain;
        self.name_port(local, &remote, (port, protocol), &mut named);
        if !self.held.gain(key, believed, &named) {
            self.place_now(local, (address, port, protocol), RemoteEnd::RemotePod, named);
        }
    }

    /// Everything of this kind until then has been told.
    pub(super) fn heard(&mut self, kind: &Kind, at: Timestamp, now: Timestamp) {
        let before = self.words.told_until();
        self.words.heard(kind, at);
        let until = self.words.told_until();
        if until > before {
            let identity = &self.identity;
            // After the end of the owner that is known, the word of the next may come late.
            let due = |address, last: Timestamp| match identity.is_past_end(address, last) {
                true => last.after(LEAD),
                false => last,
            };
            let is_told =
                |key: &RemoteKey, edge: &Edge| edge.sides.iter().flatten().all(|seen| due(key.2, seen.last) <= until);
            // Those of a state, and those for which there was no room.
            let waiting = match self.config.own_pods_only {
                true => Vec::new(),
                false => self.graph.take_remotes(is_told),
            };
            self.held.told(is_told, now, waiting);
        }
    }

    /// Names those of which every watch has told. Called once a second.
    pub(super) fn settle_held(&mut self, now: Timestamp) {
        while self.held.spoken.front().is_some_and(|spoken| spoken.due <= now) {
            let Some(spoken) = self.held.spoken.pop_front() else { return };
            for (key, flows) in spoken.flows {
                self.settle(key, &flows);
            }
        }
    }

    fn settle(&mut self, key: RemoteKey, flows: &Flows) {
        let (local, side, address, protocol, port, _) = key;
        let Some(seen) = flows.edge.sides[side_index(side)].as_deref().copied() else { return };
        let local = LocalEnd { peer: local, pod: None, marks: 0, node_workload: None };
        let end = |this: &mut Self, at| match side {
            // The owner that is known was gone, and nobody else's word came.
            _ if this.identity.is_past_end(address, at) => Resolution::Unresolved(UnresolvedReason::IpReuse),
            Side::Client => this.remote_server((address, port, protocol), at, true),
            Side::Server => this.remote_peer(address, at, true),
        };
        let (first, last) = (end(self, seen.first), end(self, seen.last));
        let identity = &self.identity;
        let is_one = is_same(&first, &last)
            && !(identity.changed_between(address, seen.first, seen.last)
                && identity.other_peers_between(address, seen.first, seen.last));
        let share = |seen: Seen| (seen, if seen.last == flows.last(side) { flows.closed } else { 0 });
        if is_one {
            return self.settle_share((&local, &key), last, share(seen), flows);
        }
        let counts = seen.counts;
        if counts.opened < 2 || counts.found > 0 || counts.failed() > 0 {
            // Which of them was reached how cannot be told.
            let reason = Resolution::Unresolved(UnresolvedReason::IpReuse);
            return self.settle_share((&local, &key), reason, share(seen), flows);
        }
        // The first and the last connection each prove an edge to who had it then. Those between
        // are the later one's, if nobody else is possible.
        let is_certain = [&first, &last].iter().all(|end| matches!(end, Resolution::Known(_)))
            && !identity.other_peers_between(address, seen.first, seen.last)
            && !identity.is_doubtful_between(address, seen.first, seen.last);
        let one = Counts { opened: 1, ..Counts::default() };
        let rest = Counts { opened: counts.opened - 1, ..counts };
        let (at_last, between) =
            if is_certain { (rest, 0) } else { (Counts { opened: 1, ..rest }, counts.opened.saturating_sub(2)) };
        self.settle_share((&local, &key), first, (Seen { counts: one, first: seen.first, last: seen.first }, 0), flows);
        let at_end = Seen { counts: at_last, first: seen.last, last: seen.last };
        self.settle_share((&local, &key), last, share(at_end), flows);
        if between > 0 {
            let role = if side == Side::Server { Role::Server } else { Role::Client };
            let remote = (Remote::Addr(address), port, protocol);
            self.unresolved(UnresolvedReason::IpReuse, (role, local.peer), remote, between, true);
        }
    }

    /// Puts a share of held flows where it belongs.
    fn settle_share(
        &mut self,
        (local, (_, side, address, protocol, port, _)): (&LocalEnd, &RemoteKey),
        remote: Resolution<RemoteEnd>,
        (seen, closed): (Seen, u64),
        flows: &Flows,
    ) {
        let asked = (*address, *port, *protocol);
        match remote {
            Resolution::Known(remote) => {
                let mut workloads = flows.edge.node_workloads().cloned();
                let port_name = flows.edge.port_name.clone();
                let node_workload = workloads.next();
                let gain = Gain { side: *side, seen, closed, marks: flows.edge.marks, node_workload, port_name };
                self.place_now(local, asked, remote.clone(), gain.clone());
                for workload in workloads {
                    let counts = Counts::default();
                    let more = Gain { node_workload: Some(workload), closed: 0, ..gain.clone() };
                    self.place_now(local, asked, remote.clone(), Gain { seen: Seen { counts, ..seen }, ..more });
                }
            }
            Resolution::Unresolved(reason) => {
                let (established, failed) = (seen.counts.established(), seen.counts.failed());
                let role = if *side == Side::Server { Role::Server } else { Role::Client };
                let remote = (Remote::Addr(*address), *port, *protocol);
                let all = established.saturating_add(failed);
                self.unresolved(reason, (role, local.peer), remote, all, established > 0);
            }
            Resolution::Wait => {}
        }
    }

    /// How those that are held stand in the graph.
    pub(super) fn held_standings(&self, now: Timestamp) -> impl Iterator<Item = Standing<'_>> {
        let is_silent = self.words.is_silent(now);
        let is_past_end = |key: &RemoteKey, flows: &Flows| self.identity.is_past_end(key.2, flows.last(key.1));
        let is_believed = move |key: &RemoteKey, flows: &Flows| !is_silent && !is_past_end(key, flows);
        self.held.iter().map(move |(key, flows)| match flows.believed.filter(|_| is_believed(key, flows)) {
            Some((peer, port)) => {
                let ends = if key.1 == Side::Server { (peer, key.0) } else { (key.0, peer) };
                Standing::Edge((ends.0, ends.1, key.3, port), &flows.edge)
            }
            None => Standing::Remote(key, &flows.edge),
        })
    }

    /// Whether one of those that are held stands in the graph under its address.
    pub(super) fn holds_remotes(&self, now: Timestamp) -> bool {
        self.held_standings(now).any(|standing| matches!(standing, Standing::Remote(..)))
    }

    /// What those that are held add to edges.
    pub(super) fn held_edges(&self, now: Timestamp) -> HashMap<Key, [Option<Arc<Seen>>; 2]> {
        let mut edges: HashMap<Key, [Option<Arc<Seen>>; 2]> = HashMap::new();
        for standing in self.held_standings(now) {
            let Standing::Edge(key, edge) = standing else { continue };
            let sides = edges.entry(key).or_default();
            for (slot, seen) in sides.iter_mut().zip(&edge.sides) {
                *slot = Seen::sum(slot.as_deref().copied(), seen.as_deref().copied()).map(Arc::new);
            }
        }
        edges
    }

    /// Takes them out of the epoch that ends.
    pub(super) fn take_held(&mut self) -> Held {
        std::mem::replace(&mut self.held, Held::new(self.config.max_held))
    }
}

impl Flows {
    fn last(&self, side: Side) -> Timestamp {
        self.edge.sides[side_index(side)].as_ref().map_or(Timestamp::MIN, |seen| seen.last)
    }
}
