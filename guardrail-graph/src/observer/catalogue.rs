//! What the cluster has and had: the inventory with its workloads, Services and their endpoints
//! over time.
//!
//! It knows names and virtual addresses. Who owns a pod's or a node's address at a given time is
//! identity's.

mod endpoints;
mod services;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

pub(super) use services::{ForgottenEndpoint, Settle, Uses, users};

use super::ObserverConfig;
use crate::{
    inventory::{Inventory, Kind, Node, Object, ObjectKey, Pod, Service, VirtualTarget},
    peer::{Protocol, WorkloadRef},
    selector::LabelSelector,
    snapshot::{InventoryState, ServiceEntry, facts::Services, nodes::AS_TOLD, workloads::WorkloadFacts},
    time::Timestamp,
};

/// The inventory and what is remembered of it.
#[derive(Debug)]
pub(super) struct Catalogue {
    inventory: Inventory,
    /// Kinds of which a list or an object came.
    heard: BTreeSet<Kind>,
    services: Services,
    /// Endpoints → how many Services have them.
    endpoint_ports: HashMap<(IpAddr, u16, Protocol), u32>,
    /// Services whose endpoints may have changed.
    dirty: BTreeSet<(String, String)>,
    /// Virtual addresses of Services that are gone.
    gone_services: HashMap<IpAddr, (Arc<Service>, Timestamp)>,
    /// Virtual addresses that were asked for, until a Service or node changes.
    cache: HashMap<(IpAddr, u16, Protocol), (Arc<str>, u16)>,
    /// Workloads of the inventory with the nodes of their pods, but without the pods themselves:
    /// those are looked up for a snapshot.
    workloads: BTreeMap<WorkloadRef, WorkloadFacts>,
    workloads_version: Option<u64>,
    gone_workloads: BTreeMap<WorkloadRef, WorkloadFacts>,
    /// Nodes that hosted pods of workloads and may do so no longer, with the last time that was
    /// known.
    ran_on: BTreeMap<WorkloadRef, BTreeMap<String, Timestamp>>,
    own_pods_only: bool,
    max_cached: usize,
    max_ended: usize,
}

/// Why nobody can observe a node, if so.
pub(super) fn why_unobservable(node: &Node, told: &[LabelSelector]) -> Option<String> {
    let told = || told.iter().any(|selector| selector.matches(&node.labels)).then(|| AS_TOLD.to_owned());
    node.unobservable().or_else(told)
}

impl Catalogue {
    /// Nothing is known yet.
    pub(super) fn new(config: &ObserverConfig) -> Self {
        Self {
            inventory: Inventory::default(),
            heard: BTreeSet::new(),
            services: BTreeMap::new(),
            endpoint_ports: HashMap::new(),
            dirty: BTreeSet::new(),
            gone_services: HashMap::new(),
            cache: HashMap::new(),
            workloads: BTreeMap::new(),
            workloads_version: None,
            gone_workloads: BTreeMap::new(),
            ran_on: BTreeMap::new(),
            own_pods_only: config.own_pods_only,
            max_cached: config.max_edges,
            max_ended: config.max_ended_endpoints,
        }
    }

    /// The inventory as it stands.
    pub(super) fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Services and their endpoints over time.
    pub(super) fn services(&self) -> &Services {
        &self.services
    }

    /// A list of this kind came.
    pub(super) fn heard(&mut self, kind: Kind) {
        self.heard.insert(kind);
    }

    /// Whether any pod, or the list of pods, was heard of.
    pub(super) fn knows_pods(&self) -> bool {
        self.heard.contains(&Kind::Pod)
    }

    /// Which lists were heard.
    pub(super) fn state(&self) -> InventoryState {
        let heard = [Kind::Node, Kind::Pod, Kind::Service].map(|kind| self.heard.contains(&kind));
        match heard {
            [true, true, true] => InventoryState::Complete,
            [false, false, false] => InventoryState::Missing,
            _ => InventoryState::Partial,
        }
    }

    /// Nodes that the cluster has, as far as the inventory shows.
    pub(super) fn expected_nodes(&self) -> BTreeSet<String> {
        let of_pods = self.inventory.pods().filter(|p| !p.finished).filter_map(|p| p.node.clone());
        self.inventory.nodes().map(|n| n.name.clone()).chain(of_pods).collect()
    }

    /// Nodes that nobody can observe, and why. `told`: a person says so of those with these labels.
    pub(super) fn unobservable_nodes(&self, told: &[LabelSelector]) -> BTreeMap<String, String> {
        self.inventory.nodes().filter_map(|node| Some((node.name.clone(), why_unobservable(node, told)?))).collect()
    }

    /// A pod was added or changed. Returns it as it is kept, and as it was before.
    pub(super) fn apply_pod(&mut self, pod: Arc<Pod>, now: Timestamp) -> (Arc<Pod>, Option<Arc<Pod>>) {
        self.heard.insert(Kind::Pod);
        let pod = self.inventory.share(pod);
        let before = self.inventory.pod(&pod.namespace, &pod.name).cloned();
        self.inventory.apply(Object::Pod(Arc::clone(&pod)));
        match &before {
            // Another pod of this name came, and the end of this one was never told.
            Some(before) if before.node.is_some() && before.node != pod.node => self.pod_left(before, now),
            _ if pod.finished => self.pod_left(&pod, now),
            _ => {}
        }
        if before.as_ref().is_none_or(|before| endpoints_may_differ(before, &pod)) {
            for changed in before.iter().chain([&pod]) {
                self.mark_services_of(changed);
            }
        }
        (pod, before)
    }

    /// A pod was deleted. Returns it, if it was there.
    pub(super) fn delete_pod(&mut self, key: &ObjectKey, now: Timestamp) -> Option<Arc<Pod>> {
        let pod = self.inventory.pod(&key.namespace, &key.name).cloned()?;
        if !pod.finished {
            self.pod_left(&pod, now);
        }
        self.mark_services_of(&pod);
        self.inventory.delete(key);
        Some(pod)
    }

    /// A node was added or changed. Returns it as it was before.
    pub(super) fn apply_node(&mut self, node: Arc<Node>) -> Option<Arc<Node>> {
        self.heard.insert(Kind::Node);
        self.cache.clear();
        let before = self.inventory.node(&node.name).cloned();
        self.inventory.apply(Object::Node(node));
        before
    }

    /// A node was deleted. Returns it, if it was there.
    pub(super) fn delete_node(&mut self, key: &ObjectKey) -> Option<Arc<Node>> {
        self.cache.clear();
        let node = self.inventory.node(&key.name).cloned();
        self.inventory.delete(key);
        node
    }

    /// Any other object was added or changed.
    pub(super) fn apply_other(&mut self, object: Object, now: Timestamp) {
        match &object {
            Object::Service(service) => {
                self.heard.insert(Kind::Service);
                self.cache.clear();
                if let Some(before) = self.inventory.service(&service.namespace, &service.name).cloned() {
                    self.service_gone(&before, now);
                }
                for address in service.cluster_ips.iter().chain(&service.external_ips) {
                    self.gone_services.remove(address);
                }
                self.dirty.insert((service.namespace.clone(), service.name.clone()));
            }
            Object::EndpointSlice(slice) => {
                let before = self.inventory.slices_service(&slice.namespace, &slice.name);
                for service in before.into_iter().chain(slice.service.clone()) {
                    self.dirty.insert((slice.namespace.clone(), service));
                }
            }
            _ => {}
        }
        self.inventory.apply(object);
    }

    /// Any other object was deleted.
    pub(super) fn delete_other(&mut self, key: &ObjectKey, now: Timestamp) {
        match &key.kind {
            Kind::Service => {
                self.cache.clear();
                if let Some(service) = self.inventory.service(&key.namespace, &key.name).cloned() {
                    self.service_gone(&service, now);
                    self.dirty.insert((key.namespace.clone(), key.name.clone()));
                }
            }
            Kind::EndpointSlice => {
                if let Some(service) = self.inventory.slices_service(&key.namespace, &key.name) {
                    self.dirty.insert((key.namespace.clone(), service));
                }
            }
            _ => {}
        }
        self.inventory.delete(key);
    }

    fn mark_services_of(&mut self, pod: &Pod) {
        let names: Vec<_> =
            self.inventory.services_selecting(pod).map(|s| (s.namespace.clone(), s.name.clone())).collect();
        self.dirty.extend(names);
    }

    fn service_gone(&mut self, service: &Arc<Service>, at: Timestamp) {
        for address in service.cluster_ips.iter().chain(&service.external_ips) {
            self.gone_services.insert(*address, (Arc::clone(service), at));
        }
    }

    /// Where a virtual address leads. `node`: the name of the node that has the address.
    /// `lists_are_known`: a port that no Service has, gone ones included, will not become known.
    pub(super) fn virtual_target(
        &self,
        (address, port, protocol): (IpAddr, u16, Protocol),
        node: Option<&str>,
        lists_are_known: bool,
    ) -> Option<VirtualTarget> {
        self.inventory.virtual_target(address, port, protocol, node).or_else(|| {
            // A Service that is gone since: flows of its time still belong to it.
            let service = self.gone_services.get(&address).map(|(service, _)| service)?;
            let index = service.ports.iter().position(|p| p.port == port && protocol.is_named(&p.protocol));
            Some(match index {
                Some(port) => VirtualTarget::Service { service: Arc::clone(service), port },
                // The address is a node's, too: its other ports never were the Service's.
                None if node.is_some() || self.inventory.has_node_address(address) => return None,
                None if lists_are_known => VirtualTarget::NoSuchPort { service: Arc::clone(service) },
                // The list may tell of a new port.
                None => return None,
            })
        })
    }

    /// The Service (`namespace/name:port`) and port that a virtual address led to when it was last
    /// asked for.
    pub(super) fn cached(&self, asked: &(IpAddr, u16, Protocol)) -> Option<(Arc<str>, u16)> {
        self.cache.get(asked).map(|(service, port)| (Arc::clone(service), *port))
    }

    /// Remembers where a virtual address led to.
    pub(super) fn cache(&mut self, asked: (IpAddr, u16, Protocol), service: &Arc<str>, port: u16) {
        if self.cache.len() < self.max_cached {
            self.cache.insert(asked, (Arc::clone(service), port));
        }
    }

    /// Whether a Service has this endpoint now.
    pub(super) fn is_endpoint(&self, endpoint: &(IpAddr, u16, Protocol)) -> bool {
        self.endpoint_ports.contains_key(endpoint)
    }

    /// Forgets Services and virtual addresses that are gone since before `before` and that
    /// `is_used` (by `namespace/name`) says no flow went through.
    pub(super) fn expire(&mut self, before: Timestamp, is_used: impl Fn(&str) -> bool) {
        self.gone_services.retain(|_, (_, at)| *at >= before);
        self.cache.clear();
        let inventory = &self.inventory;
        self.services.retain(|(namespace, name), facts| {
            inventory.service(namespace, name).is_some()
                || facts.base.as_of >= before
                || is_used(format!("{namespace}/{name}").as_str())
        });
    }

    /// Puts Services back, as a stored state has them.
    pub(super) fn restore_services(&mut self, entries: &[ServiceEntry]) {
        let mut facts = crate::snapshot::facts::Facts::default();
        for entry in entries {
            facts.add_service(entry.clone());
        }
        self.services = facts.services;
        let endpoints: Vec<_> = self.services.keys().flat_map(|name| self.endpoints_of(name)).collect();
        for endpoint in endpoints {
            *self.endpoint_ports.entry(endpoint).or_default() += 1;
        }
    }

    /// Puts the virtual addresses of a Service back, which is gone since then unless the list has
    /// it.
    pub(super) fn restore_gone_service(&mut self, service: &Arc<Service>, at: Timestamp) {
        self.service_gone(service, at);
    }
}

/// Whether a change of a pod may change the endpoints of Services: most tell of readiness alone.
fn endpoints_may_differ(before: &Pod, after: &Pod) -> bool {
    // All fields, so that none that is new is forgotten.
    let Pod {
        namespace,
        name,
        uid,
        config_hash,
        labels,
        controller,
        node,
        host_network,
        addresses,
        secondary_addresses,
        started,
        networked: _,
        finished,
        terminating: _,
        ready: _,
        ports,
    } = before;
    (namespace, name, uid, config_hash) != (&after.namespace, &after.name, &after.uid, &after.config_hash)
        || (labels, controller, node) != (&after.labels, &after.controller, &after.node)
        || (addresses, secondary_addresses, ports) != (&after.addresses, &after.secondary_addresses, &after.ports)
        || (*host_network, *started, *finished) != (after.host_network, after.started, after.finished)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::read;

    const SERVICE: &str =
        "kind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}\n";

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    fn known() -> Catalogue {
        let mut catalogue = Catalogue::new(&ObserverConfig::new("a", "i", t(0)));
        for object in read::objects(SERVICE, "test").unwrap().objects {
            catalogue.apply_other(object, t(1));
        }
        catalogue
    }

    fn leads_to(catalogue: &Catalogue, port: u16, lists_are_known: bool) -> &'static str {
        let asked = (IpAddr::from([10, 96, 0, 7]), port, Protocol::Tcp);
        match catalogue.virtual_target(asked, None, lists_are_known) {
            Some(VirtualTarget::Service { .. }) => "service",
            Some(VirtualTarget::NoSuchPort { .. }) => "no such port",
            Some(VirtualTarget::HostPort { .. }) => "host port",
            None => "nothing",
        }
    }

    #[test]
    fn a_virtual_address_is_a_service_s_for_a_while_after_its_end() {
        let mut catalogue = known();
        assert_eq!((leads_to(&catalogue, 80, true), leads_to(&catalogue, 81, true)), ("service", "no such port"));
        let key = ObjectKey { kind: Kind::Service, namespace: "shop".into(), name: "api".into() };
        catalogue.delete_other(&key, t(10));
        assert_eq!((leads_to(&catalogue, 80, true), leads_to(&catalogue, 81, true)), ("service", "no such port"));
        assert_eq!(leads_to(&catalogue, 81, false), "nothing", "a list may tell of it");
        catalogue.expire(t(11), |_| false);
        assert_eq!(leads_to(&catalogue, 80, true), "nothing");
    }

    #[test]
    fn what_a_virtual_address_led_to_is_remembered_until_a_service_or_node_changes() {
        let mut catalogue = known();
        let asked = (IpAddr::from([10, 96, 0, 7]), 80, Protocol::Tcp);
        catalogue.cache(asked, &"shop/api:80".into(), 80);
        assert_eq!(catalogue.cached(&asked), Some(("shop/api:80".into(), 80)));
        for object in read::objects(SERVICE, "test").unwrap().objects {
            catalogue.apply_other(object, t(2));
        }
        assert_eq!(catalogue.cached(&asked), None);
    }

    #[test]
    fn news_of_readiness_alone_changes_no_endpoints() {
        let pod = Pod { name: "a".into(), started: Some(t(1)), ..Pod::default() };
        assert!(!endpoints_may_differ(&pod, &Pod { ready: true, ..pod.clone() }));
        assert!(!endpoints_may_differ(&pod, &Pod { terminating: true, networked: Some(t(2)), ..pod.clone() }));
        for other in [
            Pod { labels: [("app", "web")].into_iter().collect(), ..pod.clone() },
            Pod { node: Some("n".into()), ..pod.clone() },
            Pod { addresses: vec![IpAddr::from([10, 0, 0, 1])], ..pod.clone() },
            Pod { finished: true, ..pod.clone() },
        ] {
            assert!(endpoints_may_differ(&pod, &other), "{other:?}");
        }
    }

    #[test]
    fn it_says_which_lists_were_heard() {
        let mut catalogue = Catalogue::new(&ObserverConfig::new("a", "i", t(0)));
        assert_eq!(catalogue.state(), InventoryState::Missing);
        catalogue.heard(Kind::Service);
        assert_eq!(catalogue.state(), InventoryState::Partial);
        catalogue.heard(Kind::Pod);
        catalogue.heard(Kind::Node);
        assert_eq!(catalogue.state(), InventoryState::Complete);
    }
}
