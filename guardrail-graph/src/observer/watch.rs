//! Changes of the inventory, and what identity makes of them.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use super::{
    AddressOwner, Observer,
    pods::{AddressChanges, PodId},
};
use crate::{
    identity::{
        addresses::{Lookup, Tenure},
        cgroups::PodLife,
    },
    inventory::{Change, Kind, Object, ObjectKey, Pod, Service},
    peer::{Peer, Protocol},
    time::Timestamp,
};

/// How long before the word of its end a pod that is first heard of as finished may have had its address.
const FINISHED_LEAD: Duration = Duration::from_secs(60);

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
        self.awaited.retain(|awaited| awaited != kind);
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
                let changes = self.pods.apply(&pod, &self.inventory, &mut self.peers, &self.config.node, now);
                for change in changes {
                    if first_heard_finished && !pod.host_network {
                        self.finished_pod(&pod, change.id, now);
                    }
                    self.address_changes(&change, self.known_since(now), now);
                }
                if pod.host_network || before.is_some_and(|p| p.host_network) {
                    self.index_host_ports();
                }
            }
            Object::Node(node) => {
                self.service_cache.clear();
                let before = self.inventory.node(&node.name).map(|n| n.addresses.clone()).unwrap_or_default();
                let owner = AddressOwner::Node(self.peers.id(Peer::Node { name: node.name.clone() }));
                for address in before.iter().filter(|a| !node.addresses.contains(a)) {
                    self.addresses.release(*address, owner, now);
                }
                for address in &node.addresses {
                    self.claim(*address, owner, self.known_since(now), now);
                    self.newcomer(*address);
                }
                for range in &node.pod_cidrs {
                    self.newcomer(range.network());
                    next(range.network()).into_iter().for_each(|first| self.newcomer(first));
                }
                self.inventory.apply(Object::Node(node));
                self.index_nodes();
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
                    self.pods.rename_provisional(&self.inventory, &mut self.peers, &self.config.node);
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
                    if let Some(change) = self.pods.delete(&key.namespace, &key.name, now) {
                        self.address_changes(&change, now, now);
                    }
                    self.inventory.delete(key);
                    if pod.host_network {
                        self.index_host_ports();
                    }
                }
            }
            Kind::Node => {
                self.service_cache.clear();
                if let Some(node) = self.inventory.node(&key.name).cloned() {
                    let owner = AddressOwner::Node(self.peers.id(Peer::Node { name: node.name.clone() }));
                    for address in &node.addresses {
                        self.addresses.release(*address, owner, now);
                    }
                }
                self.inventory.delete(key);
                self.index_nodes();
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
        let owner = AddressOwner::Pod(change.id);
        for address in &change.released {
            self.addresses.release(*address, owner, now);
        }
        // What our own cgroups show of the pod's life bounds what the API server says of its addresses.
        let life = self.pod_life(change.id);
        for address in &change.claimed {
            match life {
                Some(life) if life.to != Timestamp::MAX => self.addresses.past(*address, owner, life.from, life.to),
                _ => self.claim(*address, owner, since, now),
            }
            if let Some(life) = life {
                self.addresses.born(*address, owner, life.from);
            }
            self.newcomer(*address);
        }
    }

    /// The life of a pod on this node, as its cgroups show it.
    pub(super) fn pod_life(&self, id: PodId) -> Option<PodLife> {
        let pod = &self.pods.get(id)?.pod;
        let uids = std::iter::once(&pod.uid).chain(&pod.config_hash);
        let mut own = uids.filter(|uid| self.pods.by_uid(uid).is_some_and(|(owner, _)| owner == id));
        own.find_map(|uid| self.cgroups.pod(uid)).copied()
    }

    /// A pod's last cgroup on this node is gone: from then on its addresses are not its own, whatever the API server still says.
    pub(super) fn pod_ended(&mut self, uid: &str, at: Timestamp) {
        let Some((id, record)) = self.pods.by_uid(uid) else { return };
        for address in &record.pod.addresses {
            self.addresses.end(*address, AddressOwner::Pod(id), at);
        }
    }

    /// A pod whose cgroups were gone has one again.
    pub(super) fn pod_lives_again(&mut self, uid: &str, at: Timestamp) {
        let Some((id, record)) = self.pods.by_uid(uid) else { return };
        if record.deleted.is_none() && !record.pod.finished && !record.pod.host_network {
            for address in &record.pod.addresses {
                self.addresses.revive(*address, AddressOwner::Pod(id), at);
            }
        }
    }

    /// A pod of a second may be over before the API server tells of it: it had its address until now.
    fn finished_pod(&mut self, pod: &Pod, id: PodId, now: Timestamp) {
        let life = self.pod_life(id).filter(|l| l.to != Timestamp::MAX);
        for address in &pod.addresses {
            if let Some(life) = life {
                self.addresses.past(*address, AddressOwner::Pod(id), life.from, life.to);
            } else if matches!(self.addresses.lookup(*address, now), Lookup::Unknown) {
                let tenure = Tenure::told(AddressOwner::Pod(id), now.before(FINISHED_LEAD), now);
                self.addresses.restore(*address, tenure);
            }
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

    fn index_nodes(&mut self) {
        self.range_nodes.clear();
        self.pod_ranges.clear();
        self.own_ranges.clear();
        let nodes: Vec<_> = self.inventory.nodes().cloned().collect();
        for node in nodes {
            let peer = self.peers.id(Peer::Node { name: node.name.clone() });
            for range in &node.pod_cidrs {
                self.pod_ranges.push(*range);
                if node.name == self.config.node {
                    self.own_ranges.push(*range);
                }
                let network = range.network();
                self.range_nodes.insert(network, peer);
                if let Some(first) = next(network).filter(|a| range.contains(a)) {
                    self.range_nodes.insert(first, peer);
                }
            }
        }
    }

    fn index_host_ports(&mut self) {
        self.host_ports.clear();
        for (_, record) in
            self.pods.iter().filter(|(_, r)| r.pod.host_network && r.deleted.is_none() && !r.pod.finished)
        {
            for port in &*record.pod.ports {
                let protocol = match port.protocol.as_str() {
                    "TCP" => Protocol::Tcp,
                    "UDP" => Protocol::Udp,
                    _ => continue,
                };
                let name = record.node_workload.clone();
                self.host_ports
                    .entry((record.peer, port.port, protocol))
                    .and_modify(|known| {
                        if *known != name {
                            *known = None;
                        }
                    })
                    .or_insert(name);
            }
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

fn next(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(v4) => IpAddr::V4(u32::from(v4).checked_add(1)?.into()),
        IpAddr::V6(v6) => IpAddr::V6(u128::from(v6).checked_add(1)?.into()),
    })
}
