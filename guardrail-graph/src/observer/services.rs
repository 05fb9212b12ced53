//! The endpoints of Services over time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Observer, endpoints,
    identity::{RemoteEnd, Resolution},
    restore::Restored,
    table::PeerId,
};
use crate::{
    inventory::Backend,
    observe::LossReason,
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
type Uses = HashMap<(Arc<str>, String), Vec<(PeerId, Timestamp, Timestamp)>>;

/// Those who used a Service port while this was an endpoint of it.
fn users<'a>(
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

impl Observer {
    /// Brings the endpoints of changed Services up to date.
    pub(super) fn settle_services(&mut self, now: Timestamp) {
        if self.dirty_services.is_empty() {
            return;
        }
        for key in std::mem::take(&mut self.dirty_services) {
            let before = self.current_ports(&key);
            self.settle_service(&key, now);
            for port in self.current_ports(&key) {
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
    }

    /// The endpoints that a Service has now.
    fn current_ports(&self, key: &(String, String)) -> BTreeSet<(IpAddr, u16, Protocol)> {
        let mut current = BTreeSet::new();
        for ((_, protocol, ..), backends) in self.services.get(key).into_iter().flat_map(|facts| &facts.ports) {
            let protocol = match protocol.as_str() {
                "TCP" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                _ => continue,
            };
            let open = backends.iter().filter(|(_, to)| to.is_none());
            current.extend(open.map(|((address, port, ..), _)| (*address, *port, protocol)));
        }
        current
    }

    fn settle_service(&mut self, key: &(String, String), now: Timestamp) {
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
                match self.backend_peer(&backend, now) {
                    Some(peer) => {
                        let node = backend.node.map(|node| self.texts.intern(&node));
                        let entry = (backend.address, backend.port, peer, node);
                        current.entry(port_key(backend.service_port)).or_default().insert(entry);
                    }
                    // Its pod is not known yet.
                    None => {
                        self.dirty_services.insert(key.clone());
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
        let since = (self.saw_flow && now > self.config.started).then_some(now);
        let may_close = self.restored.as_ref().is_none_or(Restored::knows_endpoints);
        let Some(facts) = self.services.get_mut(key).map(Arc::make_mut) else { return };
        if may_close {
            for (port, known) in &mut facts.ports {
                endpoints::close(known, current.get(port), now);
            }
        }
        let mut forgotten = Vec::new();
        for (port, backends) in current {
            let known = facts.ports.entry(port.clone()).or_default();
            for endpoint in backends {
                endpoints::open(known, endpoint, since, now);
            }
            forgotten.extend(endpoints::bound(known, MAX_BACKENDS).into_iter().map(|gone| (port.clone(), gone)));
        }
        if !forgotten.is_empty() {
            let uses = self.uses();
            for (port, (backend, to)) in forgotten {
                self.endpoint_forgotten(&uses, key, &port, &backend, to);
            }
        }
    }

    /// Who used which Service port when.
    fn uses(&self) -> Uses {
        let mut uses = Uses::new();
        for ((client, service, protocol, _), flow) in self.graph.service_flows() {
            if let Some(seen) = &flow.seen {
                let of_port = uses.entry((Arc::clone(service), protocol.to_string())).or_default();
                of_port.push((*client, seen.first, seen.last));
            }
        }
        uses
    }

    /// There was no room for an endpoint that had ended. Whoever may have reached it misses an edge.
    fn endpoint_forgotten(
        &mut self,
        uses: &Uses,
        service: &(String, String),
        port: &PortKey,
        backend: &BackendKey,
        to: Timestamp,
    ) {
        let clients: Vec<PeerId> = users(uses, service, port, backend, to).map(|(client, ..)| *client).collect();
        if !clients.is_empty() {
            self.ledger.count_loss(LossReason::GraphFull, 1);
        }
        for client in clients {
            self.ledger.incomplete_peer(client, LossReason::GraphFull.as_str());
        }
    }

    /// Forgets what no flow can refer to any more of endpoints that ended before `before`, and joins the rest: it grows with
    /// peers and nodes, not with time.
    pub(super) fn forget_endpoints(&mut self, before: Timestamp) {
        let is_old = |to: &Option<Timestamp>| to.is_some_and(|to| to < before);
        let uses = self.uses();
        let own_pods_only = self.config.own_pods_only;
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
                        // The node that had such an address has forgotten whose it was, and `merge` asks that node.
                        let is_unnamed =
                            own_pods_only && backend.3.is_some() && matches!(*backend.2, Peer::External { .. });
                        !is_unnamed && users(&uses, name, port, backend, to).next().is_some()
                    });
                }
                facts.ports.retain(|port, known| !known.is_empty() || is_current(port));
            }
            ended += facts.ports.values().flat_map(BTreeMap::values).filter(|to| to.is_some()).count();
        }
        if ended > self.config.max_ended_endpoints {
            self.bound_endpoints(&uses, ended - self.config.max_ended_endpoints);
        }
    }

    /// Forgets this many of those that ended first.
    fn bound_endpoints(&mut self, uses: &Uses, excess: usize) {
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
        for (to, name, port, key) in ended {
            if let Some(facts) = self.services.get_mut(&name).map(Arc::make_mut) {
                facts.ports.entry(port.clone()).or_default().remove(&key);
            }
            self.endpoint_forgotten(uses, &name, &port, &key, to);
        }
    }

    /// Forgets Services that are long gone and that no flow went through.
    pub(super) fn forget_services(&mut self, before: Timestamp) {
        let used: BTreeSet<&str> = self
            .graph
            .service_flows()
            .keys()
            .filter_map(|(_, service, ..)| Some(service.rsplit_once(':')?.0))
            .collect();
        let inventory = &self.inventory;
        self.services.retain(|(namespace, name), facts| {
            inventory.service(namespace, name).is_some()
                || facts.base.as_of >= before
                || used.contains(format!("{namespace}/{name}").as_str())
        });
    }

    fn backend_peer(&self, backend: &Backend, now: Timestamp) -> Option<Arc<Peer>> {
        if self.config.own_pods_only && backend.node.as_ref().is_some_and(|node| *node != self.config.node) {
            // `merge` knows whose address it is.
            return Some(Arc::new(Peer::External { address: backend.address.to_string() }));
        }
        if let Some((namespace, name)) = &backend.pod {
            let record = self.identity.pod_by_name(namespace, name)?;
            return (!record.provisional).then(|| self.peers.get(record.peer));
        }
        match self.remote_peer(backend.address, now, true) {
            Resolution::Known(RemoteEnd::Peer { peer, .. }) => Some(self.peers.get(peer)),
            Resolution::Known(_) => Some(Arc::new(Peer::External { address: backend.address.to_string() })),
            Resolution::Wait | Resolution::Unresolved(_) => None,
        }
    }
}
