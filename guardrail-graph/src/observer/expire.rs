//! What the observer forgets, so that churn of pods, workloads and Services does not make it grow.

use super::{AddressOwner, Observer, table::PeerId};
use crate::{inventory::Kind, peer::Peer, time::Timestamp};

impl Observer {
    /// Forgets what ended before the tombstones' time and what nothing refers to.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let before = now.before(self.config.tombstone_ttl);
        self.forget_served(now);
        self.pods.expire(before);
        self.addresses.expire(before);
        self.cgroups.expire(before, self.config.max_cgroups);
        self.gone_services.retain(|_, (_, at)| *at >= before);
        self.service_cache.clear();
        self.forget_services(before);
        self.forget_endpoints(before);
        let used = self.used_peers();
        self.graph.forget_names(|client| used[client.index()]);
        self.peers.retain(|peer| used[peer.index()]);
        self.forget_workloads(before);
        self.texts.expire();
    }

    /// By peer number: whether anything refers to it.
    fn used_peers(&self) -> Vec<bool> {
        let node = |owner: &AddressOwner| match owner {
            AddressOwner::Node(peer) => Some(*peer),
            AddressOwner::Pod(_) => None,
        };
        let owners = self.addresses.iter().map(|(_, tenure)| &tenure.owner).chain(self.served.values().flatten());
        let owners = owners.chain(self.restored.iter().flat_map(|restored| restored.owners()));
        let peers = self
            .graph
            .peers()
            .chain([self.this_node])
            .chain(self.newcomers.keys().copied())
            .chain(self.unnamed.keys().copied())
            .chain(self.range_nodes.values().copied())
            .chain(self.host_ports.keys().map(|key| key.0))
            .chain(self.ledger.incomplete().map(|(peer, _)| peer))
            .chain(self.pods.iter().map(|(_, record)| record.peer))
            .chain(owners.filter_map(node));
        let mut used = vec![false; self.peers.numbers()];
        peers.for_each(|peer: PeerId| used[peer.index()] = true);
        used
    }

    /// Forgets workloads that have been gone for long and stand in no edge.
    fn forget_workloads(&mut self, before: Timestamp) {
        if self.restored.as_ref().is_some_and(|restored| !restored.knows(&Kind::Pod)) {
            return;
        }
        let peers = &self.peers;
        self.gone_workloads.retain(|name, w| w.as_of >= before || peers.find(&Peer::Workload(name.clone())).is_some());
    }
}
