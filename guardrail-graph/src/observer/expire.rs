//! What the observer forgets, so that churn of pods, workloads and Services does not make it grow.

use std::collections::BTreeSet;

use super::{Observer, peers::PeerId};
use crate::{inventory::Kind, peer::Peer, time::Timestamp};

impl Observer {
    /// Forgets what ended before the tombstones' time and what nothing refers to.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let before = now.before(self.config.tombstone_ttl);
        self.keep_former(now, before);
        self.identity.expire(now, before);
        let services =
            self.graph.service_flows().keys().filter_map(|(_, service, ..)| Some(service.rsplit_once(':')?.0));
        let used: BTreeSet<&str> = services.collect();
        self.catalogue.expire(before, |service| used.contains(service));
        self.forget_endpoints(before);
        let used = self.used_peers();
        self.graph.forget_names(|client| used[client.index()]);
        self.peers.retain(|peer| used[peer.index()]);
        self.forget_workloads(before);
        self.expire_presence(now);
        self.texts.expire();
    }

    /// By peer number: whether anything refers to it.
    fn used_peers(&self) -> Vec<bool> {
        let restored = self.restored.iter().flat_map(|restored| restored.nodes());
        let peers = self
            .graph
            .peers()
            .chain(self.identity.peers())
            .chain(restored)
            .chain(self.reclassify.peers())
            .chain(self.unnamed.peers())
            .chain(self.held.peers())
            .chain(self.former.peers())
            .chain(self.ledger.incomplete().map(|(peer, _)| peer))
            .chain(self.ledger.flow_peers());
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
        self.catalogue.forget_workloads(before, |name| peers.find(&Peer::Workload(name.clone())).is_some());
    }
}
