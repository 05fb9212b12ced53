//! Changes of the inventory, and what identity makes of them.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    AddressOwner, Observer,
    identity::{AddressChanges, range_addresses},
};
use crate::{
    inventory::{Change, Kind, Object, ObjectKey, Pod, Service},
    peer::Peer,
    time::Timestamp,
};

impl Observer {
    /// Takes a change of the inventory. Flows that waited for it are named now.
    pub fn apply(&mut self, change: Change, now: Timestamp) {
        match change {
            Change::Apply(object) => self.apply_object(object, now),
            Change::Delete(key) => self.delete_object(&key, now),
            Change::Replace { kind, objects } => {
                self.heard.insert(kind.clone());
                for gone in self.inventory.missing_after(&kind, &objects) {
                    self.delete_object(&gone, now);
                }
                for object in objects {
                    self.apply_object(object, now);
                }
                self.settle_restored(&kind, now);
                self.stop_awaiting(&kind);
            }
        }
        self.adopt(now);
        self.retry_soon(now);
    }

    /// The API server refuses the list of this kind, or does not serve it. Flows no longer wait for it.
    pub fn list_unavailable(&mut self, kind: &Kind) {
        self.stop_awaiting(kind);
    }

    fn stop_awaiting(&mut self, kind: &Kind) {
        self.identity.await_no_list(kind);
        if let Some(restored) = &self.restored {
            let ended = restored.ended;
            self.settle_restored(kind, ended);
        }
    }

    /// What is known before anything was observed has been so since before the window, or since the restored state at latest.
    fn known_since(&self, now: Timestamp) -> Timestamp {
        if !self.saw_flow || now <= self.config.started { self.heard_since } else { now }
    }

    fn apply_object(&mut self, object: Object, now: Timestamp) {
        let kind = match &object {
            Object::Node(_) => Some(Kind::Node),
            Object::Pod(_) => Some(Kind::Pod),
            Object::Service(_) => Some(Kind::Service),
            _ => None,
        };
        self.heard.extend(kind);
        match object {
            Object::Pod(pod) => {
                let pod = self.inventory.share(pod);
                let before = self.inventory.pod(&pod.namespace, &pod.name).cloned();
                self.inventory.apply(Object::Pod(Arc::clone(&pod)));
                match &before {
                    // Another pod of this name came, and the end of this one was never told.
                    Some(before) if before.node.is_some() && before.node != pod.node => self.pod_left(before, now),
                    _ if pod.finished => self.pod_left(&pod, now),
                    _ => {}
                }
                let first_heard_finished = pod.finished && before.is_none();
                if before.as_ref().is_none_or(|before| endpoints_may_differ(before, &pod)) {
                    for changed in before.iter().chain([&pod]) {
                        self.pod_services_dirty(changed);
                    }
                }
                let changes = self.identity.apply_pod(&pod, &self.inventory, &mut self.peers, now);
                for change in changes {
                    if first_heard_finished && !pod.host_network {
                        self.identity.finished_pod(&pod, change.id, now);
                    }
                    self.address_changes(&change, self.known_since(now), now);
                }
                if pod.host_network || before.is_some_and(|p| p.host_network) {
                    self.identity.index_host_ports();
                }
            }
            Object::Node(node) => {
                self.service_cache.clear();
                let before = self.inventory.node(&node.name).map(|n| n.addresses.clone()).unwrap_or_default();
                let owner = AddressOwner::Node(self.peers.id(Peer::Node { name: node.name.clone() }));
                for address in before.iter().filter(|a| !node.addresses.contains(a)) {
                    self.identity.release(*address, owner, now);
                }
                for address in &node.addresses {
                    self.release_restored(*address, owner, now);
                    self.identity.claim(*address, owner, self.known_since(now));
                    self.newcomer(*address);
                }
                for address in node.pod_cidrs.iter().flat_map(|range| range_addresses(*range)) {
                    self.newcomer(address);
                }
                self.inventory.apply(Object::Node(node));
                self.identity.index_nodes(&self.inventory, &mut self.peers);
            }
            Object::Service(service) => {
                self.service_cache.clear();
                if let Some(before) = self.inventory.service(&service.namespace, &service.name).cloned() {
                    self.service_gone(&before, now);
                }
                for address in service.cluster_ips.iter().chain(&service.external_ips) {
                    self.gone_services.remove(address);
                }
                self.dirty_services.insert((service.namespace.clone(), service.name.clone()));
                for address in service.cluster_ips.iter().chain(&service.external_ips) {
                    self.newcomer(*address);
                }
                self.inventory.apply(Object::Service(service));
            }
            Object::EndpointSlice(slice) => {
                let before = self.inventory.slices_service(&slice.namespace, &slice.name);
                for service in before.into_iter().chain(slice.service.clone()) {
                    self.dirty_services.insert((slice.namespace.clone(), service));
                }
                self.inventory.apply(Object::EndpointSlice(slice));
            }
            Object::Controller(controller) => {
                let may_be_controlled = matches!(controller.kind.as_str(), "Job" | "ReplicaSet");
                self.inventory.apply(Object::Controller(controller));
                if may_be_controlled {
                    self.identity.rename_provisional(&self.inventory, &mut self.peers);
                }
            }
            Object::Namespace(namespace) => self.inventory.apply(Object::Namespace(namespace)),
        }
    }

    fn delete_object(&mut self, key: &ObjectKey, now: Timestamp) {
        match &key.kind {
            Kind::Pod => {
                if let Some(pod) = self.inventory.pod(&key.namespace, &key.name).cloned() {
                    if !pod.finished {
                        self.pod_left(&pod, now);
                    }
                    self.pod_services_dirty(&pod);
                    if let Some(change) = self.identity.delete_pod(&key.namespace, &key.name, now) {
                        self.address_changes(&change, now, now);
                    }
                    self.inventory.delete(key);
                    if pod.host_network {
                        self.identity.index_host_ports();
                    }
                }
            }
            Kind::Node => {
                self.service_cache.clear();
                if let Some(node) = self.inventory.node(&key.name).cloned() {
                    let owner = AddressOwner::Node(self.peers.id(Peer::Node { name: node.name.clone() }));
                    for address in &node.addresses {
                        self.identity.release(*address, owner, now);
                    }
                }
                self.inventory.delete(key);
                self.identity.index_nodes(&self.inventory, &mut self.peers);
            }
            Kind::Service => {
                self.service_cache.clear();
                if let Some(service) = self.inventory.service(&key.namespace, &key.name).cloned() {
                    self.service_gone(&service, now);
                    self.dirty_services.insert((key.namespace.clone(), key.name.clone()));
                }
                self.inventory.delete(key);
            }
            Kind::EndpointSlice => {
                if let Some(service) = self.inventory.slices_service(&key.namespace, &key.name) {
                    self.dirty_services.insert((key.namespace.clone(), service));
                }
                self.inventory.delete(key);
            }
            _ => self.inventory.delete(key),
        }
    }

    fn address_changes(&mut self, change: &AddressChanges, since: Timestamp, now: Timestamp) {
        for address in &change.claimed {
            self.release_restored(*address, AddressOwner::Pod(change.id), now);
        }
        self.identity.change_addresses(change, since, now);
        for address in &change.claimed {
            self.newcomer(*address);
        }
    }

    fn pod_services_dirty(&mut self, pod: &Pod) {
        let names: Vec<_> =
            self.inventory.services_selecting(pod).map(|s| (s.namespace.clone(), s.name.clone())).collect();
        self.dirty_services.extend(names);
    }

    pub(super) fn service_gone(&mut self, service: &Arc<Service>, now: Timestamp) {
        for address in service.cluster_ips.iter().chain(&service.external_ips) {
            self.gone_services.insert(*address, (Arc::clone(service), now));
        }
    }

    /// Nodes that the cluster has, as far as the inventory shows.
    pub(super) fn expected_nodes(&self) -> BTreeSet<String> {
        let of_pods = self.inventory.pods().filter(|p| !p.finished).filter_map(|p| p.node.clone());
        let mut expected: BTreeSet<String> = self.inventory.nodes().map(|n| n.name.clone()).chain(of_pods).collect();
        expected.extend(self.restored.iter().flat_map(|restored| restored.expected.iter().cloned()));
        expected
    }
}

/// Whether a change of a pod may change the endpoints of Services: most tell of readiness alone.
fn endpoints_may_differ(before: &Pod, after: &Pod) -> bool {
    *before != Pod { ready: before.ready, terminating: before.terminating, ..after.clone() }
}
