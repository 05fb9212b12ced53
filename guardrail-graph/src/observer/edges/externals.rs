//! External peers that are kept apart, up to a bound; then they are one peer, `*`.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::super::{
    ObserverConfig,
    edge::Key,
    peers::{PeerId, Peers},
};
use crate::{peer::Protocol, snapshot::Side};

/// What is one edge but for the external peers at one end of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Where the external peers are.
    pub(super) side: Side,
    /// The other end.
    pub(super) other: PeerId,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

impl Place {
    /// The place of an edge whose external end is at this side, and that end.
    pub(super) fn of(&(client, server, protocol, port): &Key, side: Side) -> (Self, PeerId) {
        let (external, other) = match side {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        (Self { side, other, protocol, port }, external)
    }

    /// The edge of one of its external peers.
    pub(super) fn key(&self, external: PeerId) -> Key {
        match self.side {
            Side::Client => (external, self.other, self.protocol, self.port),
            Side::Server => (self.other, external, self.protocol, self.port),
        }
    }
}

/// The external peers at one place.
#[derive(Debug)]
enum State {
    Apart(HashSet<PeerId>),
    /// Too many: they are one peer, `*`.
    Many,
}

/// Which peer stands for an external address.
#[derive(Debug)]
pub(super) enum StandIn {
    /// One of its own.
    Itself(PeerId),
    /// `*`.
    Many,
    /// `*` from now on, for those too that were kept apart so far.
    ManyFromNow(HashSet<PeerId>),
    /// It would be a new one, and there is no room for its edge. Such an address is not even
    /// remembered: whoever goes on to ever new ones when the graph is full must not grow anything.
    NoRoom,
}

/// What decides whether an external address gets a peer of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sighting {
    /// A connection was established.
    pub(super) established: bool,
    /// There is room for one more edge of the other end.
    pub(super) room: bool,
}

/// External peers by place.
#[derive(Debug)]
pub(super) struct Externals {
    places: HashMap<Place, State>,
    max_clients: usize,
    max_servers: usize,
    max_failed_servers: usize,
}

impl Externals {
    pub(super) fn new(config: &ObserverConfig) -> Self {
        Self {
            places: HashMap::new(),
            max_clients: config.max_external_clients,
            max_servers: config.max_external_servers,
            max_failed_servers: config.max_failed_servers,
        }
    }

    /// The peer that stands for an external address at this place.
    pub(super) fn stand_in(
        &mut self,
        place: &Place,
        address: IpAddr,
        Sighting { established, room }: Sighting,
        peers: &mut Peers,
    ) -> StandIn {
        let max = if place.side == Side::Client { self.max_clients } else { self.max_servers };
        if !room && !self.places.contains_key(place) {
            return StandIn::NoRoom;
        }
        let state = self.places.entry(*place).or_insert_with(|| State::Apart(HashSet::new()));
        let State::Apart(apart) = state else { return StandIn::Many };
        if let Some(known) = peers.known_external(address).filter(|id| apart.contains(id)) {
            return StandIn::Itself(known);
        }
        // A scan: nothing of it supports a rule, and it must not cost the servers that were reached
        // their names.
        if place.side == Side::Server && !established && apart.len() >= self.max_failed_servers {
            return StandIn::Many;
        }
        if apart.len() < max {
            if !room {
                return StandIn::NoRoom;
            }
            let id = peers.external(address);
            apart.insert(id);
            return StandIn::Itself(id);
        }
        let apart = std::mem::take(apart);
        *state = State::Many;
        StandIn::ManyFromNow(apart)
    }

    /// Every peer that is kept apart, and the other end of its place.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.places.iter().flat_map(|(place, state)| {
            let apart = match state {
                State::Apart(apart) => Some(apart),
                State::Many => None,
            };
            apart.into_iter().flatten().copied().chain([place.other])
        })
    }

    fn restored(&mut self, place: Place) -> &mut State {
        self.places.entry(place).or_insert_with(|| State::Apart(HashSet::new()))
    }

    /// An external peer of a stored state.
    pub(super) fn restore(&mut self, place: Place, external: PeerId) {
        if let State::Apart(apart) = self.restored(place) {
            apart.insert(external);
        }
    }

    /// The `*` of a stored state: all are one from now on, but for servers of which none was
    /// `reached`.
    pub(super) fn restore_many(&mut self, place: Place, reached: bool) {
        let state = self.restored(place);
        if place.side == Side::Client || reached {
            *state = State::Many;
        }
    }

    /// These are kept apart no longer.
    pub(super) fn forget(&mut self, gone: &[PeerId]) {
        for state in self.places.values_mut() {
            if let State::Apart(apart) = state {
                apart.retain(|id| !gone.contains(id));
            }
        }
    }

    /// Takes out one that turned out to be no external peer.
    pub(super) fn take(&mut self, place: &Place, external: PeerId) {
        if let Some(State::Apart(apart)) = self.places.get_mut(place) {
            apart.remove(&external);
            if apart.is_empty() {
                self.places.remove(place);
            }
        }
    }
}
