//! The endpoints of Services over time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use super::{super::peers::PeerId, Catalogue, endpoints};
use crate::{
    interner::Interner,
    inventory::{Backend, Inventory},
    peer::{Peer, Protocol},
    snapshot::{
        ServiceEntry,
        behind::ENDPOINT_SLACK,
        facts::{BackendKey, PortKey, ServiceFacts},
    },
    time::Timestamp,
};

/// Endpoints remembered per Service port; of more the oldest ended ones are forgotten.
const MAX_BACKENDS: usize = 4_096;

/// Service port (`namespace/name:port`) and protocol → clients with their first and last use.
pub(in crate::observer) type Uses = HashMap<(Arc<str>, String), Vec<(PeerId, Timestamp, Timestamp)>>;

/// An endpoint that had ended and found no room: of which Service, of which port of it, and until
/// when.
pub(in crate::observer) type ForgottenEndpoint = ((String, String), PortKey, BackendKey, Timestamp);

/// How endpoints are settled.
#[derive(Clone, Copy, Debug)]
pub(in crate::observer) struct Settle {
    pub(in crate::observer) now: Timestamp,
    /// Since when new ones are; `None`: before the window.
    pub(in crate::observer) since: Option<Timestamp>,
    /// What is in no list is no endpoint any more.
    pub(in crate::observer) may_close: bool,
}

/// Those who used a Service port while this was an endpoint of it.
pub(in crate::observer) fn users<'a>(
    uses: &'a Uses,
    (namespace, name): &(String, String),
    (port, protocol, ..): &PortKey,
    backend: &BackendKey,
    to: Timestamp,
) -> impl Iterator<Item = &'a (PeerId, Timestamp, Timestamp)> + use<'a> {
    let key = (Arc::from(format!("{namespace}/{name}:{port}")), protocol.clone());
    let from = backend.4.map_or(Timestamp::MIN, |from| from.before(ENDPOINT_SLACK));
    let to = to.after(ENDPOINT_SLACK);
    uses.get(&key).into_iter().flatten().filter(move |(_, first, last)| from <= *last && to >= *first)
}

impl Catalogue {
    /// Brings the endpoints of changed Services up to date. `peer_of` says who an endpoint is,
    /// unless that is not known yet. Returns those that found no room.
    pub(in crate::observer) fn settle_services(
        &mut self,
        settle: Settle,
        peer_of: impl Fn(&Inventory, &Backend) -> Option<Arc<Peer>>,
        texts: &mut Interner<str>,
    ) -> Vec<ForgottenEndpoint> {
        let mut forgotten = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            let before = self.endpoints_of(&key);
            self.settle_service(&key, settle, &peer_of, texts, &mut forgotten);
            for port in self.endpoints_of(&key) {
                *self.endpoint_ports.entry(port).or_default() += 1;
            }
            for port in before {
                if let Some(services) = self.endpoint_ports.get_mut(&port) {
                    *services -= 1;
                    if *services == 0 {
                        self.endpoint_ports.remove(&port);
                    }
                }
            }
        }
        forgotten
    }

    /// Whether a Service's endpoints may have changed.
    pub(in crate::observer) fn has_changed_services(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// All Services are looked at when they are settled next.
    pub(in crate::observer) fn mark_all_services(&mut self) {
        self.dirty.extend(self.services.keys().cloned());
    }

    /// The endpoints that a Service has now.
    pub(super) fn endpoints_of(&self, key: &(String, String)) -> BTreeSet<(IpAddr, u16, Protocol)> {
        let mut current = BTreeSet::new();
        for ((_, protocol, ..), backends) in self.services.get(key).into_iter().flat_map(|facts| &facts.ports) {
            let Ok(protocol) = protocol.parse() else { continue };
            let open = backends.iter().filter(|(_, to)| to.is_none());
            current.extend(open.map(|((address, port, ..), _)| (*address, *port, protocol)));
        }
        current
    }

    fn settle_service(
        &mut self,
        key: &(String, String),
        Settle { now, since, may_close }: Settle,
        peer_of: impl Fn(&Inventory, &Backend) -> Option<Arc<Peer>>,
        texts: &mut Interner<str>,
        forgotten: &mut Vec<ForgottenEndpoint>,
    ) {
        let (namespace, name) = key;
        let mut current: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        if let Some(service) = self.inventory.service(namespace, name).cloned() {
            let port_key = |index: usize| {
                let port = &service.ports[index];
                (port.port, port.protocol.clone(), port.name.clone(), port.node_port)
            };
            for index in 0..service.ports.len() {
                current.entry(port_key(index)).or_default();
            }
            for backend in self.inventory.backends(&service) {
                match peer_of(&self.inventory, &backend) {
                    Some(peer) => {
                        let node = backend.node.map(|node| texts.intern(node.as_str()));
                        let entry = (backend.address, backend.port, peer, node);
                        current.entry(port_key(backend.service_port)).or_default().insert(entry);
                    }
                    // Its pod is not known yet.
                    None => {
                        self.dirty.insert(key.clone());
                    }
                }
            }
            let base = ServiceEntry {
                namespace: namespace.clone(),
                name: name.clone(),
                service_type: service.service_type.clone(),
                addresses: service.cluster_ips.iter().chain(&service.external_ips).copied().collect(),
                external_name: service.external_name.clone(),
                ports: Vec::new(),
                as_of: now,
            };
            match self.services.entry(key.clone()) {
                Entry::Occupied(known) => Arc::make_mut(known.into_mut()).base = base,
                Entry::Vacant(new) => {
                    new.insert(Arc::new(ServiceFacts { base, ports: BTreeMap::new() }));
                }
            }
        }
        let Some(facts) = self.services.get_mut(key).map(Arc::make_mut) else { return };
        if may_close {
            for (port, known) in &mut facts.ports {
                endpoints::close(known, current.get(port), now);
            }
        }
        for (port, backends) in current {
            let known = facts.ports.entry(port.clone()).or_default();
            for endpoint in backends {
                endpoints::open(known, endpoint, since, now);
            }
            let gone = endpoints::bound(known, MAX_BACKENDS).into_iter();
            forgotten.extend(gone.map(|(backend, to)| (key.clone(), port.clone(), backend, to)));
        }
    }

    /// Forgets what no flow can refer to any more of endpoints that ended before `before`, and
    /// joins the rest: it grows with peers and nodes, not with time. Returns those that found no
    /// room.
    pub(in crate::observer) fn forget_endpoints(&mut self, before: Timestamp, uses: &Uses) -> Vec<ForgottenEndpoint> {
        let is_old = |to: &Option<Timestamp>| to.is_some_and(|to| to < before);
        let own_pods_only = self.own_pods_only;
        let mut ended = 0;
        for (name, facts) in &mut self.services {
            let is_current = |port: &PortKey| {
                let service = self.inventory.service(&name.0, &name.1);
                service.is_some_and(|s| s.ports.iter().any(|p| p.port == port.0 && p.protocol == port.1))
            };
            if facts.ports.iter().any(|(port, b)| b.values().any(is_old) || b.is_empty() && !is_current(port)) {
                let facts = Arc::make_mut(facts);
                for (port, known) in &mut facts.ports {
                    endpoints::fold(known, before, |backend, to| {
                        // The node that had such an address has forgotten whose it was, and `merge`
                        // asks that node.
                        let is_unnamed =
                            own_pods_only && backend.3.is_some() && matches!(*backend.2, Peer::External { .. });
                        !is_unnamed && users(uses, name, port, backend, to).next().is_some()
                    });
                }
                facts.ports.retain(|port, known| !known.is_empty() || is_current(port));
            }
            ended += facts.ports.values().flat_map(BTreeMap::values).filter(|to| to.is_some()).count();
        }
        self.bound_endpoints(ended.saturating_sub(self.max_ended))
    }

    /// Forgets this many of those that ended first.
    fn bound_endpoints(&mut self, excess: usize) -> Vec<ForgottenEndpoint> {
        if excess == 0 {
            return Vec::new();
        }
        let mut ended = Vec::new();
        for (name, facts) in &self.services {
            for (port, known) in &facts.ports {
                let of_port =
                    known.iter().filter_map(|(key, to)| Some(((*to)?, name.clone(), port.clone(), key.clone())));
                ended.extend(of_port);
            }
        }
        ended.sort_unstable();
        ended.truncate(excess);
        for (_, name, port, key) in &ended {
            if let Some(facts) = self.services.get_mut(name).map(Arc::make_mut) {
                facts.ports.entry(port.clone()).or_default().remove(key);
            }
        }
        ended.into_iter().map(|(to, name, port, key)| (name, port, key, to)).collect()
    }
}
