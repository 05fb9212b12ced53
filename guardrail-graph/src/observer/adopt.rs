//! External peers that turn out to be the cluster's own: what was recorded under the bare address is named anew.
//!
//! The API server tells of a pod's address, a node or a Service a moment after its first traffic. Where the nodes' ranges do not tell that an address is a pod's (many
//! clusters give out pod addresses without `spec.podCIDR`), such traffic has been taken for an external peer's by then.

use std::{collections::HashMap, net::IpAddr};

use super::{
    ADDRESS_LEAD, Observer, UnresolvedReason,
    ends::{Found, Local, Remote},
    table::{Gain, Key, PeerId, side_index},
};
use crate::{snapshot::Side, time::Timestamp};

impl Observer {
    /// The address has an owner, or is a Service's, since this moment.
    pub(super) fn newcomer(&mut self, address: IpAddr) {
        if let Some(external) = self.peers.known_external(address) {
            self.newcomers.insert(external, address);
        }
    }

    /// Names anew what was recorded of newcomers. Those whose owner's name is not final yet wait for the next tick.
    pub(super) fn adopt(&mut self, now: Timestamp) {
        if self.newcomers.is_empty() {
            return;
        }
        let newcomers: HashMap<PeerId, IpAddr> = std::mem::take(&mut self.newcomers);
        let edges = self.edges.iter().filter_map(|(key, _)| {
            let server = newcomers.get(&key.1).map(|address| (*key, Side::Client, key.1, *address));
            server.or_else(|| newcomers.get(&key.0).map(|address| (*key, Side::Server, key.0, *address)))
        });
        for (key, side, external, address) in edges.collect::<Vec<_>>() {
            if !self.adopt_edge(&key, side, address, now) {
                self.late_newcomers.insert(external, address);
            }
        }
    }

    /// Whether no more can be said of the edge between an address and the end that is here, which is at this `side` of it.
    fn adopt_edge(&mut self, key: &Key, side: Side, address: IpAddr, now: Timestamp) -> bool {
        let Some(seen) = self.edges.get(key).and_then(|edge| edge.sides[side_index(side)].as_deref().copied()) else {
            return true;
        };
        let (protocol, port) = (key.2, key.3);
        let remote = match side {
            Side::Client => self.remote_server(address, port, protocol, seen.last, false),
            Side::Server => self.remote_peer(address, seen.last, false),
        };
        let adopted = match remote {
            Found::Wait => return false,
            Found::Yes(Remote::External { .. }) => false,
            // A Service's address was never anybody else's.
            Found::Yes(Remote::Service { .. }) | Found::No(UnresolvedReason::ServicePortUnknown) => true,
            // An address that has been there for longer than such news take was somebody else's before.
            _ => seen.first >= now.before(ADDRESS_LEAD),
        };
        if !adopted {
            return true;
        }
        let (local, external) = if side == Side::Client { (key.0, key.1) } else { (key.1, key.0) };
        let Some(edge) = self.edges.take(key, local, external) else { return true };
        let node_workload = edge.node_workloads.iter().next().cloned();
        let gain = Gain { side, seen, marks: edge.marks, node_workload, port_name: edge.port_name };
        let local = Local { peer: local, pod: None, marks: 0, node_workload: None };
        match remote {
            Found::Yes(remote) => self.place(protocol, port, address, &local, remote, gain),
            Found::No(reason) => {
                let count = seen.counts.established().saturating_add(seen.counts.failed());
                let peer = self.peers.get(local.peer);
                self.count_unresolved(reason, count, || format!("{peer} -> {address}:{port}/{protocol}"));
                if seen.counts.established() > 0 {
                    self.incomplete_peer(local.peer, reason.as_str());
                }
            }
            Found::Wait => {}
        }
        true
    }
}
