//! Edges and flows as entries: their keys, in which peers stand by number, and what was counted.
//! [`super::state`] reads them.

use std::{collections::HashMap, hash::Hash, net::IpAddr};

use super::{
    bytes::put_bytes,
    log::Recording,
    state::{self, Flow, json, section},
};
use crate::{
    peer::{CompactPeer, Protocol},
    snapshot::{Side, marks},
    time::Timestamp,
};

/// Puts them into a recording. `K` tells peers apart: a number, where the caller has one.
pub(crate) struct Flows<'a, 'r, K> {
    recording: &'a mut Recording<'r>,
    /// The entries of peers that are no addresses.
    peers: HashMap<K, u32>,
    /// From here times are counted.
    begun: Timestamp,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<'a, 'r, K: Eq + Hash> Flows<'a, 'r, K> {
    pub(crate) fn new(recording: &'a mut Recording<'r>, begun: Timestamp) -> Self {
        Self { recording, peers: HashMap::new(), begun, key: Vec::new(), value: Vec::new() }
    }

    /// A use of a Service port.
    pub(crate) fn service_flow(
        &mut self,
        client: (K, &CompactPeer),
        service: &str,
        port: (Protocol, u16),
        flow: &Flow<'_>,
    ) {
        self.peer(client);
        put_bytes(&mut self.key, service.as_bytes());
        self.put(section::SERVICE_FLOW, port, flow);
    }

    /// A flow with an address. `untold`: a proxy took it, and nobody knows what it dialled.
    pub(crate) fn remote_flow(
        &mut self,
        (local, side, untold): ((K, &CompactPeer), Side, bool),
        address: IpAddr,
        port: (Protocol, u16),
        mut flow: Flow<'_>,
    ) {
        self.peer(local);
        state::put_end(&mut self.key, side, untold);
        state::put_address(&mut self.key, address);
        if untold {
            flow.words[0].push(marks::REDIRECTED);
        }
        self.put(section::REMOTE_FLOW, port, &flow);
    }

    /// An edge, from client to server.
    pub(crate) fn edge(&mut self, ends: [(K, &CompactPeer); 2], port: (Protocol, u16), flow: &Flow<'_>) {
        ends.into_iter().for_each(|end| self.peer(end));
        self.put(section::EDGE, port, flow);
    }

    /// A peer that is no address has an entry of its own.
    fn peer(&mut self, (id, peer): (K, &CompactPeer)) {
        match peer.address() {
            Some(address) => state::put_address(&mut self.key, address),
            None => {
                let put = || self.recording.put(section::PEER, &json(&*peer.peer()), &[]);
                state::put_named(&mut self.key, *self.peers.entry(id).or_insert_with(put));
            }
        }
    }

    fn put(&mut self, section: u8, (protocol, port): (Protocol, u16), flow: &Flow<'_>) {
        state::put_port(&mut self.key, protocol, port);
        flow.put(&mut self.value, self.begun);
        self.recording.put(section, &self.key, &self.value);
        self.key.clear();
        self.value.clear();
    }
}
