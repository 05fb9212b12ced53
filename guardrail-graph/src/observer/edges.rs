//! The edges of one observer: bounded as a whole, and by the end that is here.

mod externals;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use externals::{Externals, Place, Sighting, StandIn};
use indexmap::IndexMap;

use super::{
    ObserverConfig,
    edge::{Earlier, Edge, Gain, Key, side_index},
    peers::{PeerId, Peers},
};
use crate::{peer::Protocol, snapshot::Side, time::Timestamp};

/// All edges.
#[derive(Debug)]
pub(super) struct Edges {
    /// Its entries lie close together and grow in place, other than those of a hash table.
    edges: IndexMap<Key, Edge>,
    /// Those of the epoch before.
    earlier: Earlier<(Key, Side)>,
    externals: Externals,
    many: PeerId,
    max_edges: usize,
    /// Edges by the end that is here: whoever scans fills a share of the table and no more.
    held: HashMap<PeerId, usize>,
    max_held: usize,
}

impl Edges {
    pub(super) fn new(many: PeerId, config: &ObserverConfig) -> Self {
        Self {
            edges: IndexMap::new(),
            earlier: Earlier::default(),
            externals: Externals::new(config),
            many,
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
        let earlier = self.earlier.keys().map(|(key, _)| key);
        self.edges.keys().chain(earlier).flat_map(|key| [key.0, key.1]).chain(self.externals.peers())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Edge)> {
        self.edges.iter()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Edge> {
        self.edges.get(key)
    }

    /// Whether there is such an edge, or was in the epoch before.
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.edges.contains_key(key)
            || [Side::Client, Side::Server].iter().any(|side| self.earlier.last(&(*key, *side)).is_some())
    }

    /// Takes out edges with an external peer that were first seen at `since` or later: it may turn
    /// out to be none.
    pub(super) fn take_young(&mut self, since: Timestamp, peers: &Peers) -> Vec<(Key, Edge)> {
        let is_young = |edge: &Edge| edge.sides.iter().flatten().all(|seen| seen.first >= since);
        let is_apart = |peer| peers.address(peer).is_some();
        let young = self.edges.iter().filter(|(key, edge)| is_apart(key.0) != is_apart(key.1) && is_young(edge));
        let young: Vec<Key> = young.map(|(key, _)| *key).collect();
        young
            .into_iter()
            .filter_map(|key| {
                let (local, external) = if is_apart(key.0) { (key.1, key.0) } else { (key.0, key.1) };
                Some((key, self.take(&key, local, external)?))
            })
            .collect()
    }

    /// Begins anew, and gives what there was.
    pub(super) fn turn(&mut self, config: &ObserverConfig) -> IndexMap<Key, Edge> {
        let old = std::mem::take(&mut self.edges);
        let sides = old.iter().flat_map(|(key, edge)| {
            let of = |side| edge.sides[side_index(side)].as_ref().map(|seen| ((*key, side), seen.last));
            [of(Side::Client), of(Side::Server)].into_iter().flatten()
        });
        *self = Self { earlier: Earlier::of(sides), ..Self::new(self.many, config) };
        old
    }

    /// Adds connections that are open as an epoch begins to an edge that the one before had.
    pub(super) fn open(
        &mut self,
        (key, side): (Key, Side),
        count: u32,
        start: Timestamp,
        before: &Edge,
        peers: &Peers,
    ) {
        let opened = before.open_since(side, count, start);
        match self.edges.get_mut(&key) {
            Some(edge) => edge.absorb(opened),
            None => self.restore(key, opened, peers),
        }
    }

    /// Says how many connections are open.
    pub(super) fn set_open(&mut self, open: impl Fn(&(Key, Side)) -> u32) {
        for (key, edge) in &mut self.edges {
            for side in [Side::Client, Side::Server] {
                if edge.still_open(side) > 0 {
                    edge.set_still_open(side, open(&(*key, side)));
                }
            }
        }
    }

    /// Adds to an edge. An external end is given by its address, so that one which will not be kept
    /// apart is never named. False if the edge is new and there is no room, in the table or in the
    /// share of the end that is here.
    pub(super) fn gain(
        &mut self,
        [client, server]: [Ref; 2],
        (protocol, port): (Protocol, u16),
        gain: &Gain,
        peers: &mut Peers,
    ) -> bool {
        let opens = gain.seen.counts.is_seen();
        let established = gain.seen.counts.is_established();
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
                let place = Place { side: Side::Client, other: *server, protocol, port };
                self.external(place, address, established, peers)
            }
            // Two external ends: neither is ours to keep apart.
            (Ref::External(_), Ref::External(_)) => Some(self.many),
        };
        let Some(client) = client else { return !opens };
        let server = match server {
            Ref::Peer(id) => Some(id),
            Ref::External(address) => {
                let place = Place { side: Side::Server, other: client, protocol, port };
                self.external(place, address, established, peers)
            }
        };
        let Some(server) = server else { return !opens };
        let key = (client, server, protocol, port);
        let earlier = if opens { None } else { self.earlier.last(&(key, gain.side)) };
        if let Some(edge) = self.edges.get_mut(&key) {
            edge.gain(gain, earlier);
            return true;
        }
        if !opens && earlier.is_none() {
            return true;
        }
        let local = if gain.side == Side::Client { client } else { server };
        if !self.has_room(local) {
            return false;
        }
        let mut edge = Edge::default();
        edge.gain(gain, earlier);
        self.insert(key, local, edge);
        true
    }

    /// Joins the edges of external peers that were kept apart to the one of [`Peer::many`].
    ///
    /// [`Peer::many`]: crate::peer::Peer::many
    fn join(&mut self, place: &Place, apart: HashSet<PeerId>) {
        let mut joined = self.remove(&place.key(self.many), place.other).unwrap_or_default();
        for id in apart {
            if let Some(edge) = self.remove(&place.key(id), place.other) {
                joined.absorb(edge);
            }
        }
        if joined.sides.iter().any(Option::is_some) {
            self.insert(place.key(self.many), place.other, joined);
        }
    }

    /// The peer that stands for an external address; `None` if it would be a new one and there is
    /// no room for its edge.
    fn external(&mut self, place: Place, address: IpAddr, established: bool, peers: &mut Peers) -> Option<PeerId> {
        let room = self.has_room(place.other);
        match self.externals.stand_in(&place, address, Sighting { established, room }, peers) {
            StandIn::Itself(id) => Some(id),
            StandIn::Many => Some(self.many),
            StandIn::ManyFromNow(apart) => {
                self.join(&place, apart);
                Some(self.many)
            }
            StandIn::NoRoom => None,
        }
    }

    /// Puts an edge back, as a stored state has it.
    pub(super) fn restore(&mut self, key: Key, edge: Edge, peers: &Peers) {
        // A scan's `*` stands beside the servers that were reached.
        let reached = edge.sides.iter().flatten().any(|seen| seen.counts.is_established());
        for side in [Side::Client, Side::Server] {
            let (place, external) = Place::of(&key, side);
            if external == self.many {
                self.externals.restore_many(place, reached);
            } else if peers.is_external(external) {
                self.externals.restore(place, external);
            }
        }
        let local = if edge.sides[side_index(Side::Client)].is_some() { key.0 } else { key.1 };
        self.insert(key, local, edge);
    }

    /// Forgets that these external peers, which stand in no edge any more, were kept apart.
    pub(super) fn forget_external(&mut self, gone: &[PeerId]) {
        self.externals.forget(gone);
    }

    /// Takes out an edge between the end that is here and an address that turned out to be no
    /// external peer.
    pub(super) fn take(&mut self, key: &Key, local: PeerId, external: PeerId) -> Option<Edge> {
        let side = if key.0 == external { Side::Client } else { Side::Server };
        self.externals.take(&Place::of(key, side).0, external);
        self.remove(key, local)
    }
}

/// An end of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ref {
    Peer(PeerId),
    External(IpAddr),
}
