//! External peers that turn out to be the cluster's own: what was recorded under the bare address is named anew.
//!
//! The API server tells of a pod's address, a node or a Service a moment after its first traffic. Where the nodes' ranges do not tell that an address is a pod's (many
//! clusters give out pod addresses without `spec.podCIDR`), such traffic has been taken for an external peer's by then.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::{
    Observer, UnresolvedReason,
    identity::{ADDRESS_LEAD, LocalEnd, RemoteEnd, Resolution},
    table::{Gain, Key, PeerId, side_index},
};
use crate::{
    observe::{self, Role},
    snapshot::Side,
    time::Timestamp,
};

/// What became of an edge with an address that may be the cluster's own.
enum Adopted {
    /// It stands under another name now.
    Yes,
    /// It is an external peer's.
    No,
    /// The name is not known yet.
    Wait,
}

impl Observer {
    /// The address has an owner, or is a Service's, since this moment.
    pub(super) fn newcomer(&mut self, address: IpAddr) {
        if let Some(external) = self.peers.known_external(address) {
            self.newcomers.insert(external, address);
        }
    }

    /// Names anew what was recorded of newcomers.
    pub(super) fn adopt(&mut self, now: Timestamp) {
        let newcomers = std::mem::take(&mut self.newcomers);
        self.adopt_these(newcomers.into_iter().map(|(peer, address)| (peer, (address, now))).collect(), now);
    }

    /// The same for those that wait. Called once a second: each call looks at every edge.
    pub(super) fn adopt_unnamed(&mut self, now: Timestamp) {
        let unnamed = std::mem::take(&mut self.unnamed);
        self.adopt_these(unnamed, now);
    }

    fn adopt_these(&mut self, these: HashMap<PeerId, (IpAddr, Timestamp)>, now: Timestamp) {
        if these.is_empty() {
            return;
        }
        let edges = self.graph.edges().iter().filter_map(|(key, _)| {
            let server = these.get(&key.1).map(|since| (*key, Side::Client, key.1, *since));
            server.or_else(|| these.get(&key.0).map(|since| (*key, Side::Server, key.0, *since)))
        });
        let mut kept: HashSet<PeerId> = HashSet::new();
        for (key, side, external, (address, since)) in edges.collect::<Vec<_>>() {
            let last = now.since(since) >= self.config.pod_timeout;
            match self.adopt_edge(&key, side, address, since, last) {
                Adopted::Yes => continue,
                Adopted::No => {}
                Adopted::Wait => drop(self.unnamed.insert(external, (address, since))),
            }
            kept.insert(external);
        }
        let gone: Vec<PeerId> = these.into_keys().filter(|external| !kept.contains(external)).collect();
        if !gone.is_empty() {
            self.graph.forget_external(&gone);
        }
        for external in gone {
            self.unnamed.remove(&external);
            self.peers.forget_external(external);
        }
    }

    /// Names an edge anew between an address, a newcomer `since` then, and the end that is here, which is at this `side` of it. If this is the `last` time it does not wait.
    fn adopt_edge(&mut self, key: &Key, side: Side, address: IpAddr, since: Timestamp, last: bool) -> Adopted {
        let Some(seen) = self.graph.edges().get(key).and_then(|edge| edge.sides[side_index(side)].as_deref().copied())
        else {
            return Adopted::No;
        };
        let (protocol, port) = (key.2, key.3);
        let remote = match side {
            Side::Client => self.remote_server(address, port, protocol, seen.last, last),
            Side::Server => self.remote_peer(address, seen.last, last),
        };
        let is_ours = match remote {
            Resolution::Wait if last => false,
            Resolution::Wait => return Adopted::Wait,
            Resolution::Known(RemoteEnd::External { .. }) => false,
            // A Service's address was never anybody else's.
            Resolution::Known(RemoteEnd::Service { .. })
            | Resolution::Unresolved(UnresolvedReason::ServicePortUnknown) => true,
            // An address that has been there for longer than such news take was somebody else's before.
            _ => seen.first >= since.before(ADDRESS_LEAD),
        };
        if !is_ours {
            return Adopted::No;
        }
        let (local, external) = if side == Side::Client { (key.0, key.1) } else { (key.1, key.0) };
        let Some(edge) = self.graph.take(key, local, external) else { return Adopted::No };
        let node_workload = edge.node_workloads.iter().next().cloned();
        let gain = Gain { side, seen, marks: edge.marks, node_workload, port_name: edge.port_name };
        let local = LocalEnd { peer: local, pod: None, marks: 0, node_workload: None };
        match remote {
            Resolution::Known(remote) => self.place(protocol, port, address, &local, remote, gain),
            Resolution::Unresolved(reason) => {
                let (established, failed) = (seen.counts.established(), seen.counts.failed());
                let remote = (observe::Remote::Addr(address), port, protocol);
                let role = if side == Side::Client { Role::Client } else { Role::Server };
                self.unresolved(
                    reason,
                    (role, local.peer),
                    remote,
                    established.saturating_add(failed),
                    established > 0,
                );
            }
            Resolution::Wait => {}
        }
        Adopted::Yes
    }
}
