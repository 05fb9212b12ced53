//! Changes of the inventory, and what identity makes of them.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;

use super::{
    AddressOwner, Observer,
    catalogue::why_unobservable,
    identity::{AddressChanges, Told},
};
use crate::{
    inventory::{Change, Kind, Node, Object, ObjectKey, Pod},
    peer::Peer,
    snapshot::nodes::range_addresses,
    time::Timestamp,
};

impl Observer {
    /// Takes a change of the inventory. Flows that waited for it are named now.
    pub fn apply(&mut self, change: Change, now: Timestamp) {
        match change {
            Change::Apply(object) => self.apply_object(object, now),
            Change::Delete(key) => self.delete_object(&key, now),
            Change::Replace { kind, objects } => {
                self.catalogue.heard(kind.clone());
                for gone in self.catalogue.inventory().missing_after(&kind, &objects) {
                    self.delete_object(&gone, now);
                }
                for object in objects {
                    self.apply_object(object, now);
                }
                match kind {
                    Kind::Pod => self.pods_are_listed(now),
                    Kind::Node => self.nodes.are_listed(),
                    _ => {}
                }
                self.settle_restored(&kind, now);
                self.stop_awaiting(&kind);
            }
            Change::Heard { kind, at } => self.heard(&kind, at, now),
            Change::Interrupted { kind } => self.words.interrupted(&kind),
        }
        self.reclassify_due(now);
        self.retry_soon(now);
    }

    /// The API server refuses the list of this kind, or does not serve it. Flows no longer wait for
    /// it.
    pub fn list_unavailable(&mut self, kind: &Kind) {
        self.words.unavailable(kind);
        self.stop_awaiting(kind);
    }

    fn stop_awaiting(&mut self, kind: &Kind) {
        self.identity.await_no_list(kind);
        if let Some(restored) = &self.restored {
            let ended = restored.ended;
            self.settle_restored(kind, ended);
        }
    }

    fn apply_object(&mut self, object: Object, now: Timestamp) {
        match object {
            Object::Pod(pod) => self.apply_pod(pod, now),
            Object::Node(node) => self.apply_node(node, now),
            Object::Service(service) => {
                for address in service.cluster_ips.iter().chain(&service.external_ips) {
                    self.reclassify_later(*address);
                }
                self.catalogue.apply_other(Object::Service(service), now);
            }
            Object::Controller(controller) => {
                let may_be_controlled = matches!(controller.kind.as_str(), "Job" | "ReplicaSet");
                self.catalogue.apply_other(Object::Controller(controller), now);
                if may_be_controlled {
                    self.identity.rename_provisional(self.catalogue.inventory(), &mut self.peers);
                }
            }
            other @ (Object::EndpointSlice(_) | Object::Namespace(_)) => self.catalogue.apply_other(other, now),
        }
    }

    fn apply_pod(&mut self, pod: Arc<Pod>, now: Timestamp) {
        let (pod, before) = self.catalogue.apply_pod(pod, now);
        self.pod_is_there(&pod, before.as_deref(), now);
        let first_heard_finished = pod.finished && before.is_none();
        for change in self.identity.apply_pod(&pod, self.catalogue.inventory(), &mut self.peers, now) {
            if first_heard_finished && !pod.host_network {
                let is_late = self.words.silent_since(&Kind::Pod, now).is_some();
                self.identity.finished_pod(&pod, change.id, now, is_late);
            }
            self.address_changes(&change, now);
        }
        if pod.host_network || before.is_some_and(|p| p.host_network) {
            self.identity.index_host_ports();
        }
    }

    fn apply_node(&mut self, node: Arc<Node>, now: Timestamp) {
        let before = self.catalogue.apply_node(Arc::clone(&node));
        let why = why_unobservable(&node, &self.config.unobservable);
        self.nodes.is_there(&node, why, self.history.started(), now);
        let owner = AddressOwner::Node(self.peers.id(Peer::Node { name: node.name.clone() }));
        let told = self.told(&Kind::Node, now);
        if let Some(before) = &before {
            self.ranges_are_gone(before, |range| !node.pod_cidrs.contains(&range), told);
        }
        let released = before.iter().flat_map(|before| &before.addresses).filter(|a| !node.addresses.contains(a));
        for address in released {
            self.identity.release(*address, owner, told);
        }
        for address in &node.addresses {
            self.release_restored(*address, owner, now);
            self.identity.claim(*address, owner, told);
            self.reclassify_later(*address);
        }
        for address in node.pod_cidrs.iter().flat_map(|range| range_addresses(*range)) {
            self.reclassify_later(address);
        }
        self.identity.index_nodes(self.catalogue.inventory(), &mut self.peers);
    }

    fn delete_object(&mut self, key: &ObjectKey, now: Timestamp) {
        match &key.kind {
            Kind::Pod => {
                let Some(pod) = self.catalogue.delete_pod(key, now) else { return };
                self.pod_is_gone(&pod, now);
                if let Some(change) = self.identity.delete_pod(&key.namespace, &key.name, now) {
                    self.address_changes(&change, now);
                }
                if pod.host_network {
                    self.identity.index_host_ports();
                }
            }
            Kind::Node => {
                if let Some(node) = self.catalogue.delete_node(key) {
                    let owner = AddressOwner::Node(self.peers.id(Peer::Node { name: node.name.clone() }));
                    let told = self.told(&Kind::Node, now);
                    self.ranges_are_gone(&node, |_| true, told);
                    for address in &node.addresses {
                        self.identity.release(*address, owner, told);
                    }
                }
                self.nodes.is_gone(&key.name, now);
                self.identity.index_nodes(self.catalogue.inventory(), &mut self.peers);
            }
            _ => self.catalogue.delete_other(key, now),
        }
    }

    /// Pod ranges are a node's no more: what it owned by them was its own until now.
    fn ranges_are_gone(&mut self, node: &Node, is_gone: impl Fn(IpNet) -> bool, told: Told) {
        let (peer, since) = (self.peers.id(Peer::Node { name: node.name.clone() }), self.nodes.since(&node.name));
        for range in node.pod_cidrs.iter().copied().filter(|range| is_gone(*range)) {
            self.identity.range_is_gone(range, peer, since, told);
        }
    }

    /// When the word of a change of this kind came.
    pub(super) fn told(&self, kind: &Kind, now: Timestamp) -> Told {
        Told { from: self.history.owned_since(now), now, silent_since: self.words.silent_since(kind, now) }
    }

    fn address_changes(&mut self, change: &AddressChanges, now: Timestamp) {
        for address in &change.claimed {
            self.release_restored(*address, AddressOwner::Pod(change.id), now);
        }
        self.identity.change_addresses(change, self.told(&Kind::Pod, now));
        for address in &change.claimed {
            self.reclassify_later(*address);
        }
    }

    /// Nodes that the cluster has, as far as the inventory shows.
    pub(super) fn expected_nodes(&self) -> BTreeSet<String> {
        let mut expected = self.catalogue.expected_nodes();
        let restored = self.restored.iter().filter(|restored| !restored.knows_nodes());
        expected.extend(restored.flat_map(|restored| restored.expected.iter().cloned()));
        let unobservable = self.catalogue.unobservable_nodes(&self.config.unobservable);
        expected.retain(|node| !unobservable.contains_key(node));
        expected
    }
}
