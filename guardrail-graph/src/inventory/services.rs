//! Services: which address and port leads where.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{Inventory, Pod, Service, ServicePort, TargetPort};
use crate::peer::Protocol;

/// Where a virtual address leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtualTarget {
    /// A port of a Service.
    Service {
        /// The Service.
        service: Arc<Service>,
        /// Index into [`Service::ports`].
        port: usize,
    },
    /// A Service's own address at a port that it does not have: nothing answers there.
    NoSuchPort {
        /// The Service.
        service: Arc<Service>,
    },
    /// A host port: one pod on that node.
    HostPort {
        /// The pod.
        pod: Arc<Pod>,
        /// Its container port.
        port: u16,
    },
}

/// An endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Index into [`Service::ports`].
    pub service_port: usize,
    /// Endpoint address.
    pub address: IpAddr,
    /// Endpoint port: the pod port.
    pub port: u16,
    /// The pod, if the endpoint is one: `(namespace, name)`.
    pub pod: Option<(String, String)>,
    /// The node that hosts it, if known.
    pub node: Option<String>,
}

impl Inventory {
    /// Where `address:port` leads, if it is a Service's address, a node's address at a node port,
    /// or a node's address at a host port. `is_node` says whether the address is one of a node (an
    /// observer knows more of them than the inventory), and of which.
    #[must_use]
    pub fn virtual_target(
        &self,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
        is_node: Option<&str>,
    ) -> Option<VirtualTarget> {
        let find = |matches: &dyn Fn(&ServicePort) -> bool, names: Option<&BTreeSet<(String, String)>>| {
            names.into_iter().flatten().filter_map(|name| self.services.get(name)).find_map(|service| {
                let index = service.ports.iter().position(|p| protocol.is_named(&p.protocol) && matches(p))?;
                Some(VirtualTarget::Service { service: Arc::clone(service), port: index })
            })
        };
        let by_address = self.services_by_address.get(&address);
        if let Some(found) = find(&|p| p.port == port, by_address) {
            return Some(found);
        }
        let node = is_node.or_else(|| self.nodes_by_address.get(&address).map(String::as_str));
        // A load-balancer address leads to the node port too when it is one of a node.
        if let Some(node) = node {
            if let Some(found) = find(&|p| p.node_port == Some(port), self.services_by_node_port.get(&port)) {
                return Some(found);
            }
            for (namespace, name) in self.pods_by_host_port.get(&port).into_iter().flatten() {
                if let Some(pod) = self.pod(namespace, name)
                    && pod.node.as_deref() == Some(node)
                    && !pod.host_network
                    && !pod.finished
                    && let Some(found) =
                        pod.ports.iter().find(|p| p.host_port == Some(port) && protocol.is_named(&p.protocol))
                {
                    return Some(VirtualTarget::HostPort { pod: Arc::clone(pod), port: found.port });
                }
            }
            return None;
        }
        let service = by_address?.iter().find_map(|name| self.services.get(name))?;
        Some(VirtualTarget::NoSuchPort { service: Arc::clone(service) })
    }

    /// The node whose status has this address.
    pub(crate) fn node_with_address(&self, address: IpAddr) -> Option<&str> {
        self.nodes_by_address.get(&address).map(String::as_str)
    }

    /// Whether the address is one of a node's status.
    pub(crate) fn has_node_address(&self, address: IpAddr) -> bool {
        self.nodes_by_address.contains_key(&address)
    }

    /// Whether the address is a Service's.
    pub(crate) fn has_service_address(&self, address: IpAddr) -> bool {
        self.services_by_address.contains_key(&address)
    }

    /// The endpoints of a Service, sorted: from its EndpointSlices if it has any (ready ones, and
    /// those that still serve while terminating), else from its selector and the pods.
    #[must_use]
    pub fn backends(&self, service: &Service) -> Vec<Backend> {
        let mut backends = BTreeSet::new();
        match self.slices_by_service.get(&(service.namespace.clone(), service.name.clone())) {
            Some(names) => {
                for slice in names.iter().filter_map(|n| self.slices.get(&(service.namespace.clone(), n.clone()))) {
                    for (service_port, declared) in service.ports.iter().enumerate() {
                        let named = slice.ports.iter().filter(|p| {
                            p.name == declared.name.as_deref().unwrap_or("") && p.protocol == declared.protocol
                        });
                        for port in named {
                            for endpoint in slice.endpoints.iter().filter(|e| e.ready) {
                                for address in &endpoint.addresses {
                                    backends.insert(Backend {
                                        service_port,
                                        address: *address,
                                        port: port.port,
                                        pod: endpoint.pod.clone().map(|name| (service.namespace.clone(), name)),
                                        node: endpoint.node.clone(),
                                    });
                                }
                            }
                        }
                    }
                }
            }
            None if !service.selector.is_empty() => {
                let selected = |pod: &Pod| !pod.finished && service.selector.are_in(&pod.labels);
                for pod in self.pods_in(&service.namespace).filter(|pod| selected(pod)) {
                    for (service_port, declared) in service.ports.iter().enumerate() {
                        let port = match &declared.target_port {
                            TargetPort::Number(number) => Some(*number),
                            TargetPort::Name(name) => pod
                                .ports
                                .iter()
                                .find(|p| p.name.as_ref() == Some(name) && p.protocol == declared.protocol)
                                .map(|p| p.port),
                        };
                        let Some(port) = port else { continue };
                        backends.extend(pod.addresses.iter().map(|address| Backend {
                            service_port,
                            address: *address,
                            port,
                            pod: Some((pod.namespace.clone(), pod.name.clone())),
                            node: pod.node.clone(),
                        }));
                    }
                }
            }
            None => {}
        }
        backends.into_iter().collect()
    }

    /// Services of the pod's namespace whose endpoints follow from this pod (no slices, and the
    /// selector matches).
    pub fn services_selecting<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a Arc<Service>> {
        self.services
            .range((pod.namespace.clone(), String::new())..)
            .take_while(|((namespace, _), _)| *namespace == pod.namespace)
            .map(|(_, service)| service)
            .filter(|s| !s.selector.is_empty() && s.selector.are_in(&pod.labels))
    }
}
