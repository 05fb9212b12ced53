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
    edge::{Edge, Gain, Key, side_index},
    peers::{PeerId, Peers},
};
use crate::{peer::Protocol, snapshot::Side};

/// All edges.
#[derive(Debug)]
pub(super) struct Edges {
    /// Its entries lie close together and grow in place, other than those of a hash table.
    edges: IndexMap<Key, Edge>,
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
        self.edges.keys().flat_map(|key| [key.0, key.1]).chain(self.externals.peers())
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
        [client, server]: [Ref; 2],
        (protocol, port): (Protocol, u16),
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
        let reached = edge.sides.iter().flatten().any(|seen| seen.counts.established() > 0);
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
