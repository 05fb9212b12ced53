//! The edges and service flows of one observer, with peers and names as small numbers.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use indexmap::IndexMap;

use super::ObserverConfig;
use crate::{
    peer::{CompactPeer, Peer, Protocol},
    snapshot::{Side, facts::Seen},
};

/// A peer's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PeerId(u32);

impl PeerId {
    /// Its number.
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Peers by number.
#[derive(Debug, Default)]
pub(super) struct Peers {
    peers: Vec<CompactPeer>,
    ids: HashMap<Arc<Peer>, PeerId>,
    external: HashMap<IpAddr, PeerId>,
    /// Numbers of external peers that were none, to be given out again.
    free: Vec<PeerId>,
}

fn address(peer: &Peer) -> Option<IpAddr> {
    match peer {
        Peer::External { address } => address.parse().ok(),
        _ => None,
    }
}

impl Peers {
    pub(super) fn id(&mut self, peer: Peer) -> PeerId {
        if let Some(address) = address(&peer) {
            return self.external(address);
        }
        if let Some(id) = self.ids.get(&peer) {
            return *id;
        }
        let peer = Arc::new(peer);
        let id = self.push((&peer).into());
        self.ids.insert(peer, id);
        id
    }

    fn push(&mut self, peer: CompactPeer) -> PeerId {
        if let Some(id) = self.free.pop() {
            self.peers[id.0 as usize] = peer;
            return id;
        }
        let id = PeerId(u32::try_from(self.peers.len()).unwrap_or(u32::MAX));
        self.peers.push(peer);
        id
    }

    pub(super) fn external(&mut self, address: IpAddr) -> PeerId {
        if let Some(id) = self.external.get(&address) {
            return *id;
        }
        let id = self.push(address.into());
        self.external.insert(address, id);
        id
    }

    /// The external peer of that address, if it was ever used.
    pub(super) fn known_external(&self, address: IpAddr) -> Option<PeerId> {
        self.external.get(&address).copied()
    }

    /// Forgets an external peer that stands in no edge any more, so that ever new addresses do not
    /// make this grow.
    pub(super) fn forget_external(&mut self, id: PeerId) {
        if let Some(address) = self.address(id)
            && self.external.remove(&address).is_some()
        {
            self.free.push(id);
        }
    }

    /// How many numbers were given out, those that are free again included.
    pub(super) fn numbers(&self) -> usize {
        self.peers.len()
    }

    /// Forgets peers that `is_used` says nothing refers to.
    pub(super) fn retain(&mut self, is_used: impl Fn(PeerId) -> bool) {
        let free = &mut self.free;
        let mut keep = |id: PeerId| {
            let keep = is_used(id);
            if !keep {
                free.push(id);
            }
            keep
        };
        self.ids.retain(|_, id| keep(*id));
        self.external.retain(|_, id| keep(*id));
    }

    /// The number of a peer, if it was ever used.
    pub(super) fn find(&self, peer: &Peer) -> Option<PeerId> {
        match address(peer) {
            Some(address) => self.known_external(address),
            None => self.ids.get(peer).copied(),
        }
    }

    /// The number of a peer, if it was ever used.
    pub(super) fn find_compact(&self, peer: &CompactPeer) -> Option<PeerId> {
        match peer.named() {
            Some(named) => self.find(named),
            None => self.known_external(peer.address()?),
        }
    }

    pub(super) fn get(&self, id: PeerId) -> Arc<Peer> {
        self.compact(id).peer()
    }

    pub(super) fn compact(&self, id: PeerId) -> &CompactPeer {
        &self.peers[id.0 as usize]
    }

    /// The name, if it is a node.
    pub(super) fn node_name(&self, id: PeerId) -> Option<&str> {
        match &**self.compact(id).named()? {
            Peer::Node { name } => Some(name),
            _ => None,
        }
    }

    /// Whether it is outside the cluster: an address, or [`Peer::many`].
    pub(super) fn is_external(&self, id: PeerId) -> bool {
        self.compact(id).named().is_none_or(|peer| matches!(**peer, Peer::External { .. }))
    }

    /// The address, if it is one.
    pub(super) fn address(&self, id: PeerId) -> Option<IpAddr> {
        self.compact(id).address()
    }

    pub(super) fn len(&self) -> usize {
        self.peers.len() - self.free.len()
    }
}

/// Marks as bits, in the order of [`MARKS`].
pub(super) const MARKS: [&str; 5] = [
    crate::snapshot::marks::PROXIED,
    crate::snapshot::marks::MULTICAST,
    crate::snapshot::marks::BROADCAST,
    crate::snapshot::marks::LINK_LOCAL,
    crate::snapshot::marks::HOST_PORT,
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

/// NodeWorkloads of workloads on a node, each once. Few edges have any, so there is no room for
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

    fn absorb(&mut self, other: Self) {
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
    pub(super) fn gain(&mut self, gain: &Gain) {
        add(&mut self.seen, &gain.seen);
        self.marks |= gain.marks;
        if let Some(workload) = &gain.node_workload {
            self.node_workloads.add(workload);
        }
    }
}

/// External peers at one end of what is otherwise one edge.
#[derive(Debug)]
enum Externals {
    Apart(HashSet<PeerId>),
    /// Too many: they are one peer, `*`.
    Many,
}

/// Which end the external peers are at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum End {
    Client,
    Server,
}

/// All edges.
#[derive(Debug)]
pub(super) struct Edges {
    /// Its entries lie close together and grow in place, other than those of a hash table.
    edges: IndexMap<Key, Edge>,
    externals: HashMap<(End, PeerId, Protocol, u16), Externals>,
    many: PeerId,
    max_clients: usize,
    max_servers: usize,
    max_failed_servers: usize,
    max_edges: usize,
    /// Edges by the end that is here: whoever scans fills a share of the table and no more.
    held: HashMap<PeerId, usize>,
    max_held: usize,
}

impl Edges {
    pub(super) fn new(many: PeerId, config: &ObserverConfig) -> Self {
        Self {
            edges: IndexMap::new(),
            externals: HashMap::new(),
            many,
            max_clients: config.max_external_clients,
            max_servers: config.max_external_servers,
            max_failed_servers: config.max_failed_servers,
            max_edges: config.max_edges,
            held: HashMap::new(),
            max_held: config.max_edges_per_peer,
        }
    }

    /// Whether there is room for one more edge whose end here is `local`.
    fn has_room(&self, local: PeerId) -> bool {
        self.edges.len() < self.max_edges && self.held.get(&local).is_none_or(|held| *held < self.max_held)
    }

    fn insert(&mut self, key: Key, local: PeerId, edge: Edge) {
        if self.edges.insert(key, edge).is_none() {
            *self.held.entry(local).or_default() += 1;
        }
    }

    fn remove(&mut self, key: &Key, local: PeerId) -> Option<Edge> {
        let edge = self.edges.swap_remove(key)?;
        if let Some(held) = self.held.get_mut(&local) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                self.held.remove(&local);
            }
        }
        Some(edge)
    }

    pub(super) fn len(&self) -> usize {
        self.edges.len()
    }

    /// Every peer that stands in an edge or is kept apart, some of them several times.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        let apart = self.externals.iter().flat_map(|(place, state)| {
            let apart = match state {
                Externals::Apart(apart) => Some(apart),
                Externals::Many => None,
            };
            apart.into_iter().flatten().copied().chain([place.1])
        });
        self.edges.keys().flat_map(|key| [key.0, key.1]).chain(apart)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Edge)> {
        self.edges.iter()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Edge> {
        self.edges.get(key)
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.edges.contains_key(key)
    }

    /// Adds to an edge. An external end is given by its address, so that one which will not be kept
    /// apart is never named. False if the edge is new and there is no room, in the table or in the
    /// share of the end that is here.
    pub(super) fn gain(
        &mut self,
        client: Ref,
        server: Ref,
        protocol: Protocol,
        port: u16,
        gain: &Gain,
        peers: &mut Peers,
    ) -> bool {
        let opens = gain.seen.counts.established() > 0 || gain.seen.counts.failed() > 0;
        let established = gain.seen.counts.established() > 0;
        // Bytes and ends of connections whose beginning stands elsewhere make no edge, and no
        // external peer.
        if !opens
            && [client, server].iter().any(|end| matches!(end, Ref::External(a) if peers.known_external(*a).is_none()))
        {
            return true;
        }
        let client = match (client, &server) {
            (Ref::Peer(id), _) => Some(id),
            (Ref::External(address), Ref::Peer(server)) => {
                self.external(End::Client, address, (*server, protocol, port), established, peers)
            }
            // Two external ends: neither is ours to keep apart.
            (Ref::External(_), Ref::External(_)) => Some(self.many),
        };
        let Some(client) = client else { return !opens };
        let server = match server {
            Ref::Peer(id) => Some(id),
            Ref::External(address) => self.external(End::Server, address, (client, protocol, port), established, peers),
        };
        let Some(server) = server else { return !opens };
        let key = (client, server, protocol, port);
        if let Some(edge) = self.edges.get_mut(&key) {
            edge.gain(gain);
            return true;
        }
        if !opens {
            return true;
        }
        let local = if gain.side == Side::Client { client } else { server };
        if !self.has_room(local) {
            return false;
        }
        let mut edge = Edge::default();
        edge.gain(gain);
        self.insert(key, local, edge);
        true
    }

    /// The peer that stands for an external address at this end; `None` if it would be a new one
    /// and there is no room for its edge. Such an address is not even remembered: whoever goes on
    /// to ever new ones when the graph is full must not grow anything.
    fn external(
        &mut self,
        end: End,
        address: IpAddr,
        (other, protocol, port): (PeerId, Protocol, u16),
        established: bool,
        peers: &mut Peers,
    ) -> Option<PeerId> {
        let max = if end == End::Client { self.max_clients } else { self.max_servers };
        let room = self.has_room(other);
        let place = (end, other, protocol, port);
        if !room && !self.externals.contains_key(&place) {
            return None;
        }
        let state = self.externals.entry(place).or_insert_with(|| Externals::Apart(HashSet::new()));
        let Externals::Apart(apart) = state else { return Some(self.many) };
        if let Some(known) = peers.known_external(address).filter(|id| apart.contains(id)) {
            return Some(known);
        }
        // A scan: nothing of it supports a rule, and it must not cost the servers that were reached
        // their names.
        if end == End::Server && !established && apart.len() >= self.max_failed_servers {
            return Some(self.many);
        }
        if apart.len() < max {
            if !room {
                return None;
            }
            let id = peers.external(address);
            apart.insert(id);
            return Some(id);
        }
        let Externals::Apart(apart) = std::mem::replace(state, Externals::Many) else { return Some(self.many) };
        let key = |external| match end {
            End::Client => (external, other, protocol, port),
            End::Server => (other, external, protocol, port),
        };
        let mut joined = self.remove(&key(self.many), other).unwrap_or_default();
        for id in apart {
            if let Some(edge) = self.remove(&key(id), other) {
                joined.absorb(edge);
            }
        }
        if joined.sides.iter().any(Option::is_some) {
            self.insert(key(self.many), other, joined);
        }
        Some(self.many)
    }

    /// Puts an edge back, as a stored state has it.
    pub(super) fn restore(&mut self, key: Key, edge: Edge, peers: &Peers) {
        let many = self.many;
        for (end, external, other) in [(End::Client, key.0, key.1), (End::Server, key.1, key.0)] {
            if peers.is_external(external) {
                let state = self
                    .externals
                    .entry((end, other, key.2, key.3))
                    .or_insert_with(|| Externals::Apart(HashSet::new()));
                // A scan's `*` stands beside the servers that were reached.
                let reached = edge.sides.iter().flatten().any(|seen| seen.counts.established() > 0);
                if external == many && (end == End::Client || reached) {
                    *state = Externals::Many;
                } else if let Externals::Apart(apart) = state
                    && external != many
                {
                    apart.insert(external);
                }
            }
        }
        let local = if edge.sides[side_index(Side::Client)].is_some() { key.0 } else { key.1 };
        self.insert(key, local, edge);
    }

    /// Forgets that these external peers, which stand in no edge any more, were kept apart.
    pub(super) fn forget_external(&mut self, gone: &[PeerId]) {
        for state in self.externals.values_mut() {
            if let Externals::Apart(apart) = state {
                apart.retain(|id| !gone.contains(id));
            }
        }
    }

    /// Takes out an edge between the end that is here and an address that turned out to be no
    /// external peer.
    pub(super) fn take(&mut self, key: &Key, local: PeerId, external: PeerId) -> Option<Edge> {
        let end = if key.0 == external { End::Client } else { End::Server };
        let place = (end, local, key.2, key.3);
        if let Some(Externals::Apart(apart)) = self.externals.get_mut(&place) {
            apart.remove(&external);
            if apart.is_empty() {
                self.externals.remove(&place);
            }
        }
        self.remove(key, local)
    }
}

/// An end of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ref {
    Peer(PeerId),
    External(IpAddr),
}
