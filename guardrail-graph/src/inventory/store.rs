//! The indexed store of objects.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Change, Controller, EndpointSlice, Kind, Namespace, Node, Object, ObjectKey, Pod, Service, shared::Shared,
};

type Name = (String, String);

/// All objects that are known, by name, with the indexes that identity and policy need.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub(super) namespaces: BTreeMap<String, Arc<Namespace>>,
    pub(super) nodes: BTreeMap<String, Arc<Node>>,
    /// namespace → name → pod.
    pub(super) pods: BTreeMap<String, BTreeMap<String, Arc<Pod>>>,
    /// Address → pods that list it (live ones, host-network pods left out), sorted by name. Nearly
    /// always one, for which a set would take ten times the memory.
    pods_by_address: HashMap<IpAddr, Vec<Arc<Pod>>>,
    pub(super) services: BTreeMap<Name, Arc<Service>>,
    pub(super) slices: BTreeMap<Name, Arc<EndpointSlice>>,
    /// (namespace, Service) → names of its slices.
    pub(super) slices_by_service: BTreeMap<Name, BTreeSet<String>>,
    /// namespace → (kind, name) → controller.
    pub(super) controllers: BTreeMap<String, BTreeMap<Name, Arc<Controller>>>,
    /// Node address → node.
    pub(super) nodes_by_address: HashMap<IpAddr, String>,
    /// Cluster, external and load-balancer address → Services that have it (several may share an
    /// external address).
    pub(super) services_by_address: HashMap<IpAddr, BTreeSet<Name>>,
    /// Node port → Services, whatever the protocol.
    pub(super) services_by_node_port: HashMap<u16, BTreeSet<Name>>,
    /// Host port → pods that ask for it.
    pub(super) pods_by_host_port: HashMap<u16, BTreeSet<Name>>,
    /// What pods have alike.
    shared: Shared,
    version: u64,
}

fn unlink<K: std::hash::Hash + Eq, V: Ord>(index: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}

/// Takes an object out of its namespace; namespaces come and go as well.
fn take<K: Ord + std::borrow::Borrow<Q>, Q: Ord + ?Sized, V>(
    objects: &mut BTreeMap<String, BTreeMap<K, V>>,
    namespace: &str,
    name: &Q,
) -> Option<V> {
    let in_namespace = objects.get_mut(namespace)?;
    let taken = in_namespace.remove(name);
    if in_namespace.is_empty() {
        objects.remove(namespace);
    }
    taken
}

impl Inventory {
    /// Holds these objects; of two with one name the later.
    #[must_use]
    pub fn from_objects(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut inventory = Self::default();
        for object in objects {
            inventory.apply(object);
        }
        inventory
    }

    /// Grows with every change: whoever caches something derived compares it.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Takes a change as a watch reports it.
    pub fn change(&mut self, change: Change) {
        match change {
            Change::Apply(object) => self.apply(object),
            Change::Delete(key) => self.delete(&key),
            Change::Replace { kind, objects } => self.replace(&kind, objects),
            Change::Heard { .. } | Change::Interrupted { .. } => {}
        }
    }

    /// Adds an object, or replaces the one of that name.
    pub fn apply(&mut self, object: Object) {
        self.delete(&object.key());
        match object {
            Object::Namespace(o) => {
                self.namespaces.insert(o.name.clone(), o);
            }
            Object::Node(o) => {
                for address in &o.addresses {
                    self.nodes_by_address.insert(*address, o.name.clone());
                }
                self.nodes.insert(o.name.clone(), o);
            }
            Object::Pod(o) => {
                let pod = self.share(o);
                self.insert_pod(pod);
            }
            Object::Service(o) => {
                let name = (o.namespace.clone(), o.name.clone());
                for address in o.cluster_ips.iter().chain(&o.external_ips) {
                    self.services_by_address.entry(*address).or_default().insert(name.clone());
                }
                for port in o.ports.iter().filter_map(|p| p.node_port) {
                    self.services_by_node_port.entry(port).or_default().insert(name.clone());
                }
                self.services.insert(name, o);
            }
            Object::EndpointSlice(o) => {
                if let Some(service) = &o.service {
                    self.slices_by_service
                        .entry((o.namespace.clone(), service.clone()))
                        .or_default()
                        .insert(o.name.clone());
                }
                self.slices.insert((o.namespace.clone(), o.name.clone()), o);
            }
            Object::Controller(o) => {
                self.controllers.entry(o.namespace.clone()).or_default().insert((o.kind.clone(), o.name.clone()), o);
            }
        }
    }

    /// The pod with what it has in common with others shared with them, if nobody else holds it
    /// yet. Kept so until it is deleted.
    pub(crate) fn share(&mut self, pod: Arc<Pod>) -> Arc<Pod> {
        self.shared.share(pod)
    }

    fn insert_pod(&mut self, pod: Arc<Pod>) {
        let name = (pod.namespace.clone(), pod.name.clone());
        if !pod.host_network && !pod.finished {
            for address in &pod.addresses {
                let pods = self.pods_by_address.entry(*address).or_default();
                if let Err(at) = pods.binary_search_by(|p| (&p.namespace, &p.name).cmp(&(&name.0, &name.1))) {
                    pods.reserve_exact(1);
                    pods.insert(at, Arc::clone(&pod));
                }
            }
        }
        for port in pod.ports.iter().filter_map(|p| p.host_port) {
            self.pods_by_host_port.entry(port).or_default().insert(name.clone());
        }
        self.pods.entry(name.0).or_default().insert(name.1, pod);
    }

    /// Removes an object, if it is there.
    pub fn delete(&mut self, key: &ObjectKey) {
        self.version += 1;
        let name = (key.namespace.clone(), key.name.clone());
        match &key.kind {
            Kind::Namespace => {
                self.namespaces.remove(&key.name);
            }
            Kind::Node => {
                if let Some(node) = self.nodes.remove(&key.name) {
                    for address in &node.addresses {
                        if self.nodes_by_address.get(address) == Some(&node.name) {
                            self.nodes_by_address.remove(address);
                        }
                    }
                }
            }
            Kind::Pod => {
                if let Some(pod) = take(&mut self.pods, &key.namespace, &key.name) {
                    for address in &pod.addresses {
                        if let Some(pods) = self.pods_by_address.get_mut(address) {
                            pods.retain(|p| !Arc::ptr_eq(p, &pod));
                            if pods.is_empty() {
                                self.pods_by_address.remove(address);
                            }
                        }
                    }
                    for port in pod.ports.iter().filter_map(|p| p.host_port) {
                        unlink(&mut self.pods_by_host_port, &port, &name);
                    }
                    self.shared.release(&pod);
                }
            }
            Kind::Service => {
                if let Some(service) = self.services.remove(&name) {
                    for address in service.cluster_ips.iter().chain(&service.external_ips) {
                        unlink(&mut self.services_by_address, address, &name);
                    }
                    for port in service.ports.iter().filter_map(|p| p.node_port) {
                        unlink(&mut self.services_by_node_port, &port, &name);
                    }
                }
            }
            Kind::EndpointSlice => {
                if let Some(slice) = self.slices.remove(&name)
                    && let Some(service) = &slice.service
                {
                    let service = (slice.namespace.clone(), service.clone());
                    if let Some(names) = self.slices_by_service.get_mut(&service) {
                        names.remove(&slice.name);
                        if names.is_empty() {
                            self.slices_by_service.remove(&service);
                        }
                    }
                }
            }
            Kind::Controller(kind) => {
                take(&mut self.controllers, &key.namespace, &(kind.clone(), key.name.clone()));
            }
            Kind::NetworkPolicy => {}
        }
    }

    /// Makes `objects` all there is of a kind.
    pub fn replace(&mut self, kind: &Kind, objects: Vec<Object>) {
        for gone in self.missing_after(kind, &objects) {
            self.delete(&gone);
        }
        for object in objects {
            self.apply(object);
        }
    }

    /// Objects of `kind` that are here and not among `objects`.
    pub(crate) fn missing_after(&self, kind: &Kind, objects: &[Object]) -> Vec<ObjectKey> {
        let kept: BTreeSet<ObjectKey> = objects.iter().map(Object::key).collect();
        self.keys(kind).into_iter().filter(|k| !kept.contains(k)).collect()
    }

    fn keys(&self, kind: &Kind) -> Vec<ObjectKey> {
        let key = |namespace: &str, name: &str| ObjectKey {
            kind: kind.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        match kind {
            Kind::Namespace => self.namespaces.keys().map(|n| key("", n)).collect(),
            Kind::Node => self.nodes.keys().map(|n| key("", n)).collect(),
            Kind::Pod => self.pods().map(|p| key(&p.namespace, &p.name)).collect(),
            Kind::Service => self.services.keys().map(|(ns, n)| key(ns, n)).collect(),
            Kind::EndpointSlice => self.slices.keys().map(|(ns, n)| key(ns, n)).collect(),
            Kind::Controller(kind) => {
                self.controllers().filter(|c| &c.kind == kind).map(|c| key(&c.namespace, &c.name)).collect()
            }
            Kind::NetworkPolicy => Vec::new(),
        }
    }

    /// All pods, sorted by namespace and name.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values().flat_map(BTreeMap::values)
    }

    /// The pods of a namespace, sorted by name.
    pub fn pods_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    /// All namespaces, sorted.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.namespaces.values()
    }

    /// All nodes, sorted.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// All Services, sorted by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All EndpointSlices, sorted by namespace and name.
    pub fn endpoint_slices(&self) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices.values()
    }

    /// All controllers, sorted by namespace, kind and name.
    pub fn controllers(&self) -> impl Iterator<Item = &Arc<Controller>> {
        self.controllers.values().flat_map(BTreeMap::values)
    }

    /// The namespace of that name.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.get(name)
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// The pod of that name.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Pod>> {
        self.pods.get(namespace)?.get(name)
    }

    /// Live pods that list this address (not host-network ones): normally at most one.
    pub fn pods_by_address(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods_by_address.get(&address).into_iter().flatten()
    }

    /// The Service of that name.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.services.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The controller of that kind and name.
    #[must_use]
    pub fn controller(&self, namespace: &str, kind: &str, name: &str) -> Option<&Arc<Controller>> {
        self.controllers.get(namespace)?.get(&(kind.to_owned(), name.to_owned()))
    }

    /// The Service that an EndpointSlice belongs to.
    pub(crate) fn slices_service(&self, namespace: &str, name: &str) -> Option<String> {
        self.slices.get(&(namespace.to_owned(), name.to_owned()))?.service.clone()
    }
}
