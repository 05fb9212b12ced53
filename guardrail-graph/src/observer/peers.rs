//! Peers as small numbers.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use crate::peer::{CompactPeer, Peer};

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
