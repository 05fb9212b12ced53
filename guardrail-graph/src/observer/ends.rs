//! The two ends of a flow: who is behind the local cgroup, who behind the remote address, at the time of the event (DESIGN §4).

use std::{net::IpAddr, sync::Arc, time::Duration};

use super::{
    AddressOwner, Observer, UnresolvedReason,
    pods::{PodId, PodRecord},
    table::{PeerId, mark_bit},
};
use crate::{
    identity::{addresses::Lookup, cgroups::Resident},
    inventory::{Kind, VirtualTarget},
    observe::CgroupId,
    peer::Protocol,
    snapshot::marks,
    time::Timestamp,
};

/// An answer that may have to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found<T> {
    Yes(T),
    /// More may become known.
    Wait,
    /// Nothing more will.
    No(UnresolvedReason),
}

/// The local end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) peer: PeerId,
    pub(super) pod: Option<PodId>,
    pub(super) marks: u8,
    pub(super) node_workload: Option<Arc<str>>,
}

/// The remote end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Remote {
    Peer {
        peer: PeerId,
        pod: Option<PodId>,
    },
    /// A host port: the pod behind it, at its own port.
    HostPort {
        peer: PeerId,
        port: u16,
    },
    Service {
        service: Arc<str>,
        port: u16,
    },
    External {
        marks: u8,
    },
    /// A pod of another node, of which only the address is known.
    Elsewhere,
}

/// Multicast, broadcast and link-local addresses are no peers; the bit of their mark, 0 for all others.
pub(super) fn special(address: IpAddr) -> u8 {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_multicast() {
        mark_bit(marks::MULTICAST)
    } else if address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST) {
        mark_bit(marks::BROADCAST)
    } else if link_local {
        mark_bit(marks::LINK_LOCAL)
    } else {
        0
    }
}

impl Observer {
    fn pod_local(&self, id: PodId, record: &PodRecord, marks: u8, last: bool) -> Found<Local> {
        if record.pod.node.as_ref().is_some_and(|node| *node != self.config.node) {
            return Found::No(UnresolvedReason::OtherNode);
        }
        if record.provisional && !last {
            return Found::Wait;
        }
        Found::Yes(Local { peer: record.peer, pod: Some(id), marks, node_workload: record.node_workload.clone() })
    }

    /// A process of the node; `owner` has the local address.
    fn host_local(&self, owner: &Lookup<AddressOwner>) -> Found<Local> {
        if matches!(owner, Lookup::Owner(AddressOwner::Node(node)) if *node != self.this_node) {
            return Found::No(UnresolvedReason::OtherNode);
        }
        Found::Yes(Local { peer: self.this_node, pod: None, marks: 0, node_workload: None })
    }

    /// Who is behind the local socket. `last`: nothing more is waited for.
    pub(super) fn local_end(&mut self, cgroup: CgroupId, address: IpAddr, at: Timestamp, last: bool) -> Found<Local> {
        let usable = special(address) == 0 && !address.is_unspecified();
        let owner = if usable { self.addresses.lookup(address, at) } else { Lookup::Unknown };
        let pod_at_address = match owner {
            Lookup::Owner(AddressOwner::Pod(id)) => self.pods.get(id).map(|r| (id, r)),
            _ => None,
        };
        let proxied = mark_bit(marks::PROXIED);
        let found = match self.cgroups.at(cgroup, at) {
            Some(Resident::Pod(uid)) => match self.pods.by_uid(uid) {
                Some((id, record)) => {
                    // A socket in another pod's namespace (a node proxy) stands for that pod. Without addresses of its own the pod is too new
                    // for the API server to know them, and its cgroup is the better word.
                    let own = !usable
                        || record.pod.addresses.contains(&address)
                        || (record.pod.addresses.is_empty() && !record.pod.host_network);
                    match (pod_at_address, &owner) {
                        (Some((other, its)), _) if !own && other != id && its.deleted.is_none() => {
                            self.pod_local(other, its, proxied, last)
                        }
                        // A privileged pod's process in the node's own namespace.
                        (None, Lookup::Owner(AddressOwner::Node(node)))
                            if !own && *node == self.this_node && !record.pod.host_network =>
                        {
                            Found::Yes(Local { peer: *node, pod: None, marks: proxied, node_workload: None })
                        }
                        _ => self.pod_local(id, record, 0, last),
                    }
                }
                // Another pod, not known yet, has the address by now.
                None if self.is_older(pod_at_address.map(|(id, _)| id), uid) => {
                    if let (Lookup::Owner(old), Some(life)) = (&owner, self.cgroups.pod(uid)) {
                        self.addresses.end(address, *old, life.from.min(at));
                    }
                    if last { Found::No(UnresolvedReason::PodUnknown) } else { Found::Wait }
                }
                None if !last => Found::Wait,
                None => self.by_address(pod_at_address, &owner),
            },
            Some(Resident::Host { root }) => match (pod_at_address, &owner) {
                (Some((id, record)), _) => self.pod_local(id, record, if *root { 0 } else { proxied }, last),
                (None, Lookup::Ambiguous(_)) if !last => Found::Wait,
                (None, Lookup::Ambiguous(_)) => Found::No(UnresolvedReason::IpReuse),
                // Without cgroup v2 of their own, pods' processes are in the root cgroup, and this pod may not be known yet.
                (None, Lookup::Unknown | Lookup::Vacant)
                    if *root && !last && usable && (self.in_pod_range(address) || !self.awaited.is_empty()) =>
                {
                    Found::Wait
                }
                _ => self.host_local(&owner),
            },
            None if !last => Found::Wait,
            None => self.by_address(pod_at_address, &owner),
        };
        if let Found::Yes(local) = &found
            && local.peer == self.this_node
            && special(address) == mark_bit(marks::LINK_LOCAL)
        {
            // The node's end of a pod's link. As a client's address it can only be this node's, see `remote_peer`.
            self.addresses.prove(address, AddressOwner::Node(self.this_node), at);
        }
        if let Found::Yes(local) = &found
            && usable
        {
            let owner = match local.pod.and_then(|id| self.pods.get(id)) {
                Some(record) if !record.pod.host_network => local.pod.map(AddressOwner::Pod),
                _ if pod_at_address.is_none() => Some(AddressOwner::Node(self.this_node)),
                _ => None,
            };
            if let Some(owner) = owner {
                // Counts that are folded after the cgroup's end show the address up to that end.
                let at = at.min(self.cgroups.end(cgroup, at).before(Duration::from_nanos(1)));
                if self.addresses.prove(address, owner, at) {
                    if let AddressOwner::Pod(id) = owner
                        && let Some(life) = self.pod_life(id)
                    {
                        self.addresses.born(address, owner, life.from);
                    }
                    self.newcomer(address);
                }
            }
        }
        found
    }

    /// Whether a pod was there, in cgroups of its own, before the pod with this uid.
    fn is_older(&self, pod: Option<PodId>, uid: &str) -> bool {
        let old = pod.and_then(|id| self.pod_life(id));
        matches!((old, self.cgroups.pod(uid)), (Some(old), Some(new)) if old.from < new.from)
    }

    fn by_address(&self, pod: Option<(PodId, &PodRecord)>, owner: &Lookup<AddressOwner>) -> Found<Local> {
        match (pod, owner) {
            (Some((id, record)), _) => self.pod_local(id, record, 0, true),
            (None, Lookup::Owner(AddressOwner::Node(_))) => self.host_local(owner),
            _ => Found::No(UnresolvedReason::PodUnknown),
        }
    }

    /// Whether the address lies in a node's pod range.
    pub(super) fn in_pod_range(&self, address: IpAddr) -> bool {
        self.pod_ranges.iter().any(|r| r.contains(&address))
    }

    /// Whether the address is that of another node's pod, and nothing more will become known of it here.
    fn is_elsewhere(&self, address: IpAddr) -> bool {
        self.config.own_pods_only && self.in_pod_range(address) && !self.own_ranges.iter().any(|r| r.contains(&address))
    }

    /// Whether an address that nobody is known to own may be anybody's: a list is still to come, or neither a node nor a pod is known.
    fn is_blind(&self) -> bool {
        !self.awaited.is_empty() || (self.inventory.nodes().next().is_none() && self.inventory.pods().next().is_none())
    }

    /// The node that owns an address, as far as known.
    pub(super) fn node_at(&self, address: IpAddr, at: Timestamp) -> Option<PeerId> {
        match self.addresses.lookup(address, at) {
            Lookup::Owner(AddressOwner::Node(peer)) => Some(peer),
            Lookup::Unknown => self.range_nodes.get(&address).copied(),
            _ => None,
        }
    }

    /// Where a virtual address leads.
    pub(super) fn virtual_target(
        &self,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
        at: Timestamp,
    ) -> Option<VirtualTarget> {
        let node = self.node_at(address, at).and_then(|id| self.peers.node_name(id));
        self.inventory.virtual_target(address, port, protocol, node).or_else(|| {
            // A Service that is gone since: flows of its time still belong to it.
            let service = self.gone_services.get(&address).map(|(service, _)| service)?;
            let is_listed = self.restored.as_ref().is_none_or(|restored| restored.knows(&Kind::Service));
            let text = protocol.to_string();
            let index = service.ports.iter().position(|p| p.port == port && p.protocol == text);
            Some(match index {
                Some(port) => VirtualTarget::Service { service: Arc::clone(service), port },
                None if is_listed => VirtualTarget::NoSuchPort { service: Arc::clone(service) },
                // The list may tell of a new port.
                None => return None,
            })
        })
    }

    /// The server behind a remote address and port, at the time of the flow.
    pub(super) fn remote_server(
        &mut self,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
        at: Timestamp,
        last: bool,
    ) -> Found<Remote> {
        let marks = special(address);
        if marks != 0 {
            return Found::Yes(Remote::External { marks });
        }
        if let Some((service, port)) = self.service_cache.get(&(address, port, protocol)) {
            return Found::Yes(Remote::Service { service: Arc::clone(service), port: *port });
        }
        match self.virtual_target(address, port, protocol, at) {
            Some(VirtualTarget::Service { service, port: index }) => {
                let service_port = service.ports[index].port;
                let service = self.texts.intern(&format!("{}/{}:{service_port}", service.namespace, service.name));
                if self.service_cache.len() < self.config.max_edges {
                    self.service_cache.insert((address, port, protocol), (Arc::clone(&service), service_port));
                }
                return Found::Yes(Remote::Service { service, port: service_port });
            }
            Some(VirtualTarget::NoSuchPort { .. }) => return Found::No(UnresolvedReason::ServicePortUnknown),
            Some(VirtualTarget::HostPort { pod, port }) => match self.pods.by_name(&pod.namespace, &pod.name) {
                Some((_, record)) if record.provisional && !last => return Found::Wait,
                Some((_, record)) => return Found::Yes(Remote::HostPort { peer: record.peer, port }),
                None => {}
            },
            None => {}
        }
        match self.remote_peer(address, at, last) {
            // A node's port may be that of a Service or of a pod.
            Found::Yes(Remote::Peer { pod: None, .. }) if !self.awaited.is_empty() => {
                if last {
                    Found::No(UnresolvedReason::ClusterUnknown)
                } else {
                    Found::Wait
                }
            }
            found => found,
        }
    }

    /// Whoever had a remote address at the time of the flow.
    pub(super) fn remote_peer(&self, address: IpAddr, at: Timestamp, last: bool) -> Found<Remote> {
        let marks = special(address);
        if marks == mark_bit(marks::LINK_LOCAL) {
            // Nobody forwards a link-local address, so a client that has one is the node, if a record shows that the node has it.
            return match self.addresses.lookup(address, at) {
                Lookup::Owner(AddressOwner::Node(peer)) => Found::Yes(Remote::Peer { peer, pod: None }),
                _ if last => Found::Yes(Remote::External { marks }),
                _ => Found::Wait,
            };
        }
        if marks != 0 {
            return Found::Yes(Remote::External { marks });
        }
        let lookup = self.addresses.lookup(address, at);
        match lookup {
            Lookup::Owner(owner) => self.remote_owner(owner, last),
            Lookup::Ambiguous(owners) => {
                let peers: Vec<_> = owners.iter().filter_map(|o| self.peer_of(*o)).collect();
                match peers[..] {
                    // Replicas of one workload may pass an address among themselves.
                    [first, ..] if peers.len() == owners.len() && peers.iter().all(|p| *p == first) => {
                        self.remote_owner(owners[0], last)
                    }
                    _ if last => Found::No(UnresolvedReason::IpReuse),
                    _ => Found::Wait,
                }
            }
            Lookup::Unknown | Lookup::Vacant => {
                if let Some(node) = self.range_nodes.get(&address) {
                    return Found::Yes(Remote::Peer { peer: *node, pod: None });
                }
                if self.is_elsewhere(address) {
                    return Found::Yes(Remote::Elsewhere);
                }
                let pod_space = lookup == Lookup::Vacant || self.in_pod_range(address);
                let is_blind = !pod_space && self.is_blind();
                match (pod_space || is_blind, last) {
                    (true, false) => Found::Wait,
                    (true, true) if is_blind => Found::No(UnresolvedReason::ClusterUnknown),
                    (true, true) => Found::No(UnresolvedReason::PodRangeNoOwner),
                    (false, _) => Found::Yes(Remote::External { marks: 0 }),
                }
            }
        }
    }

    pub(super) fn peer_of(&self, owner: AddressOwner) -> Option<PeerId> {
        match owner {
            AddressOwner::Node(peer) => Some(peer),
            AddressOwner::Pod(id) => self.pods.get(id).map(|r| r.peer),
        }
    }

    fn remote_owner(&self, owner: AddressOwner, last: bool) -> Found<Remote> {
        match owner {
            AddressOwner::Node(peer) => Found::Yes(Remote::Peer { peer, pod: None }),
            AddressOwner::Pod(id) => match self.pods.get(id) {
                Some(record) if record.provisional && !last => Found::Wait,
                Some(record) => Found::Yes(Remote::Peer { peer: record.peer, pod: Some(id) }),
                None => Found::No(UnresolvedReason::PodRangeNoOwner),
            },
        }
    }
}
