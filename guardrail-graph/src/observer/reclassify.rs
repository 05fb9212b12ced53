//! External peers that turn out to be the cluster's own: what was recorded under the bare address
//! is named anew.
//!
//! The API server tells of a pod's address, a node or a Service a moment after its first traffic.
//! Where the nodes' ranges do not tell that an address is a pod's (many clusters give out pod
//! addresses without `spec.podCIDR`), such traffic has been taken for an external peer's by then.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::{
    Observer, UnresolvedReason,
    edge::{Gain, Key, side_index},
    flows::is_same,
    identity::{ADDRESS_LEAD, LocalEnd, RemoteEnd, Resolution},
    peers::PeerId,
};
use crate::{
    observe::{self, Role},
    snapshot::Side,
    time::Timestamp,
};

/// External peers that may be the cluster's own.
#[derive(Debug, Default)]
pub(super) struct Reclassify {
    /// Their address has an owner since a moment ago.
    due: HashMap<PeerId, IpAddr>,
    /// Their owner's name is not known yet, since when.
    waiting: HashMap<PeerId, (IpAddr, Timestamp)>,
}

impl Reclassify {
    /// The external peers.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.due.keys().chain(self.waiting.keys()).copied()
    }
}

/// What became of an edge with an address that may be the cluster's own.
enum Reclassified {
    /// It stands under another name now.
    Yes,
    /// It is an external peer's.
    No,
    /// The name is not known yet.
    Wait,
}

impl Observer {
    /// The address has an owner, or is a Service's, since this moment.
    pub(super) fn reclassify_later(&mut self, address: IpAddr) {
        if let Some(external) = self.peers.known_external(address) {
            self.reclassify.due.insert(external, address);
        }
    }

    /// Names anew what was recorded of those that are due.
    pub(super) fn reclassify_due(&mut self, now: Timestamp) {
        let due = std::mem::take(&mut self.reclassify.due);
        self.reclassify_these(due.into_iter().map(|(peer, address)| (peer, (address, now))).collect(), now);
    }

    /// The same for those that wait. Called once a second: each call looks at every edge.
    pub(super) fn reclassify_waiting(&mut self, now: Timestamp) {
        let waiting = std::mem::take(&mut self.reclassify.waiting);
        self.reclassify_these(waiting, now);
    }

    fn reclassify_these(&mut self, these: HashMap<PeerId, (IpAddr, Timestamp)>, now: Timestamp) {
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
            match self.reclassify_edge(&key, side, address, since, last) {
                Reclassified::Yes => continue,
                Reclassified::No => {}
                Reclassified::Wait => drop(self.reclassify.waiting.insert(external, (address, since))),
            }
            kept.insert(external);
        }
        let gone: Vec<PeerId> = these.into_keys().filter(|external| !kept.contains(external)).collect();
        if !gone.is_empty() {
            self.graph.forget_external(&gone);
        }
        for external in gone {
            self.reclassify.waiting.remove(&external);
            self.peers.forget_external(external);
        }
    }

    /// Names an edge anew between an address, which has an owner `since` then, and the end that is
    /// here, which is at this `side` of it. If this is the `last` time it does not wait.
    fn reclassify_edge(
        &mut self,
        key: &Key,
        side: Side,
        address: IpAddr,
        since: Timestamp,
        last: bool,
    ) -> Reclassified {
        let Some(seen) = self.graph.edges().get(key).and_then(|edge| edge.sides[side_index(side)].as_deref().copied())
        else {
            return Reclassified::No;
        };
        let (protocol, port) = (key.2, key.3);
        let remote = match side {
            Side::Client => self.remote_server((address, port, protocol), seen.last, last),
            Side::Server => self.remote_peer(address, seen.last, last),
        };
        let is_ours = match remote {
            Resolution::Wait if last => false,
            Resolution::Wait => return Reclassified::Wait,
            Resolution::Known(RemoteEnd::External { .. }) => false,
            // A Service's address was never anybody else's.
            Resolution::Known(RemoteEnd::Service { .. })
            | Resolution::Unresolved(UnresolvedReason::ServicePortUnknown) => true,
            // An address that has been there for longer than such news take was somebody else's
            // before, unless its owner says that it started by then.
            _ if seen.first >= since.before(ADDRESS_LEAD) => true,
            _ => {
                let first = match side {
                    Side::Client => self.remote_server((address, port, protocol), seen.first, true),
                    Side::Server => self.remote_peer(address, seen.first, true),
                };
                matches!(first, Resolution::Known(_)) && is_same(&first, &remote)
            }
        };
        if !is_ours {
            return Reclassified::No;
        }
        let (local, external) = if side == Side::Client { (key.0, key.1) } else { (key.1, key.0) };
        let Some(edge) = self.graph.take(key, local, external) else { return Reclassified::No };
        let node_workload = edge.node_workloads().next().cloned();
        let gain = Gain { side, seen, closed: 0, marks: edge.marks, node_workload, port_name: edge.port_name };
        let local = LocalEnd { peer: local, pod: None, marks: 0, node_workload: None };
        match remote {
            Resolution::Known(remote) => self.place(&local, (address, port, protocol), remote, gain),
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
        Reclassified::Yes
    }
}
