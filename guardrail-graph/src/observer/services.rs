//! The endpoints of Services over time.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Observer,
    ends::{Found, Remote},
};
use crate::{
    inventory::Backend,
    peer::{Peer, Protocol},
    snapshot::{ServiceEntry, facts::ServiceFacts},
    time::Timestamp,
};

/// Endpoints remembered per Service port; of more the oldest ended ones are forgotten.
const MAX_BACKENDS: usize = 4_096;

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
        let Some(facts) = self.services.get_mut(key).map(Arc::make_mut) else { return };
        for (port, known) in &mut facts.ports {
            let now_there = current.get(port);
            for ((address, number, peer, node, _), to) in known.iter_mut().filter(|(_, to)| to.is_none()) {
                if !now_there.is_some_and(|c| c.contains(&(*address, *number, Arc::clone(peer), node.clone()))) {
                    *to = Some(now);
                }
            }
        }
        for (port, backends) in current {
            let known = facts.ports.entry(port).or_default();
            for (address, number, peer, node) in backends {
                let open = known
                    .iter()
                    .any(|((a, n, p, o, _), to)| to.is_none() && (a, n, p, o) == (&address, &number, &peer, &node));
                if !open {
                    known.insert((address, number, peer, node, since), None);
                }
            }
            while known.len() > MAX_BACKENDS {
                let oldest = known.iter().filter_map(|(k, to)| Some((*to.as_ref()?, k.clone()))).min();
                let Some((_, oldest)) = oldest else { break };
                known.remove(&oldest);
            }
        }
    }

    /// Forgets Services that are long gone and that no flow went through.
    pub(super) fn forget_services(&mut self, before: Timestamp) {
        let used: BTreeSet<&str> =
            self.service_flows.keys().filter_map(|(_, service, ..)| Some(service.rsplit_once(':')?.0)).collect();
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
            let (_, record) = self.pods.by_name(namespace, name)?;
            return (!record.provisional).then(|| self.peers.get(record.peer));
        }
        match self.remote_peer(backend.address, now, true) {
            Found::Yes(Remote::Peer { peer, .. }) => Some(self.peers.get(peer)),
            Found::Yes(_) => Some(Arc::new(Peer::External { address: backend.address.to_string() })),
            Found::Wait | Found::No(_) => None,
        }
    }
}
