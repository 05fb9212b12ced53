//! The two ends of a flow: who is behind the local cgroup, who behind the remote address, at the
//! time of the event (docs/design.md#identity).

use std::{net::IpAddr, sync::Arc, time::Duration};

use super::{
    super::{UnresolvedReason, edge::mark_bit, peers::PeerId},
    AddressOwner, Identity, PodId, PodRecord,
    networks::{has_another_of_its_family, is_first},
};
use crate::{
    identity::{addresses::Lookup, cgroups::Resident},
    inventory::Inventory,
    observe::CgroupId,
    snapshot::marks,
    time::Timestamp,
};

/// An answer that may have to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::observer) enum Resolution<T> {
    Known(T),
    /// More may become known.
    Wait,
    /// Nothing more will.
    Unresolved(UnresolvedReason),
}

/// The local end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::observer) struct LocalEnd {
    pub(in crate::observer) peer: PeerId,
    pub(in crate::observer) pod: Option<PodId>,
    pub(in crate::observer) marks: u8,
    pub(in crate::observer) node_workload: Option<Arc<str>>,
}

/// The remote end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::observer) enum RemoteEnd {
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
    RemotePod,
}

/// What a flow proves of its local address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::observer) enum Evidence {
    /// The owner had it at that instant.
    Owned { address: IpAddr, owner: AddressOwner, at: Timestamp },
    /// It is this node's end of a pod's link. As a client's address it can only be this node's, see
    /// [`Identity::remote_peer`].
    Link { address: IpAddr, at: Timestamp },
    /// The pod has it on a network beside the first one.
    Beside { address: IpAddr, pod: PodId },
    /// The owner had it no longer than that: another pod, not known yet, has it by now.
    Ended { address: IpAddr, owner: AddressOwner, at: Timestamp },
}

/// Multicast, broadcast and link-local addresses are no peers; the bit of their mark, 0 for all
/// others.
pub(in crate::observer) fn address_class(address: IpAddr) -> u8 {
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

impl Identity {
    fn pod_local(&self, id: PodId, record: &PodRecord, marks: u8, last: bool) -> Resolution<LocalEnd> {
        if record.pod.node.as_ref().is_some_and(|node| *node != self.node) {
            return Resolution::Unresolved(UnresolvedReason::OtherNode);
        }
        if record.provisional && !last {
            return Resolution::Wait;
        }
        Resolution::Known(LocalEnd {
            peer: record.peer,
            pod: Some(id),
            marks,
            node_workload: record.node_workload.clone(),
        })
    }

    /// A process of the node; `owner` has the local address.
    fn host_local(&self, owner: &Lookup<AddressOwner>) -> Resolution<LocalEnd> {
        if matches!(owner, Lookup::Owner(AddressOwner::Node(node)) if *node != self.this_node) {
            return Resolution::Unresolved(UnresolvedReason::OtherNode);
        }
        Resolution::Known(LocalEnd { peer: self.this_node, pod: None, marks: 0, node_workload: None })
    }

    /// Who is behind the local socket, and what that proves of its address. `last`: nothing more is
    /// waited for.
    pub(in crate::observer) fn local_end(
        &self,
        cgroup: CgroupId,
        address: IpAddr,
        at: Timestamp,
        last: bool,
    ) -> (Resolution<LocalEnd>, Option<Evidence>) {
        let usable = address_class(address) == 0 && !address.is_unspecified();
        let owner = if usable { self.addresses.lookup(address, at) } else { Lookup::Unknown };
        let pod_at_address = match owner {
            Lookup::Owner(AddressOwner::Pod(id)) => self.pods.get(id).map(|r| (id, r)),
            _ => None,
        };
        let proxied = mark_bit(marks::PROXIED);
        let mut evidence = None;
        let found = match self.cgroups.at(cgroup, at) {
            Some(Resident::Pod(uid)) => match self.pods.by_uid(uid) {
                Some((id, record)) => {
                    // A socket in another pod's namespace (a node proxy) stands for that pod.
                    // Without addresses of its own the pod is too new for the API server to know
                    // them, and its cgroup is the better word.
                    let own = !usable || is_first(&record.pod, address);
                    let beside = !own
                        && !record.pod.host_network
                        && (record.pod.secondary_addresses.contains(&address)
                            || (owner == Lookup::Unknown
                                && !self.in_pod_range(address)
                                && has_another_of_its_family(&record.pod, address)));
                    match (pod_at_address, &owner) {
                        _ if beside => self.pod_local(id, record, mark_bit(marks::SECONDARY_NETWORK), last),
                        (Some((other, its)), _) if !own && other != id && its.deleted.is_none() => {
                            self.pod_local(other, its, proxied, last)
                        }
                        // A privileged pod's process in the node's own namespace.
                        (None, Lookup::Owner(AddressOwner::Node(node)))
                            if !own && *node == self.this_node && !record.pod.host_network =>
                        {
                            Resolution::Known(LocalEnd { peer: *node, pod: None, marks: proxied, node_workload: None })
                        }
                        _ => self.pod_local(id, record, 0, last),
                    }
                }
                // Another pod, not known yet, has the address by now.
                None if self.is_older(pod_at_address.map(|(id, _)| id), uid) => {
                    if let (Lookup::Owner(old), Some(life)) = (&owner, self.cgroups.pod(uid)) {
                        evidence = Some(Evidence::Ended { address, owner: *old, at: life.from.min(at) });
                    }
                    if last { Resolution::Unresolved(UnresolvedReason::PodUnknown) } else { Resolution::Wait }
                }
                None if !last => Resolution::Wait,
                // Whoever is known to have the address is another pod: this one may have it since.
                None if pod_at_address.is_some_and(|(_, record)| !record.pod.uid.is_empty()) => {
                    Resolution::Unresolved(UnresolvedReason::PodUnknown)
                }
                None => self.by_address(pod_at_address, &owner),
            },
            Some(Resident::Host { root }) => match (pod_at_address, &owner) {
                (Some((id, record)), _) => self.pod_local(id, record, if *root { 0 } else { proxied }, last),
                (None, Lookup::Ambiguous(_)) if !last => Resolution::Wait,
                (None, Lookup::Ambiguous(_)) => Resolution::Unresolved(UnresolvedReason::IpReuse),
                // Without cgroup v2 of their own, pods' processes are in the root cgroup, and this
                // pod may not be known yet.
                (None, Lookup::Unknown | Lookup::Vacant)
                    if *root && !last && usable && (self.in_pod_range(address) || !self.awaited.is_empty()) =>
                {
                    Resolution::Wait
                }
                _ => self.host_local(&owner),
            },
            None if !last => Resolution::Wait,
            None => self.by_address(pod_at_address, &owner),
        };
        if let Resolution::Known(local) = &found
            && local.peer == self.this_node
            && address_class(address) == mark_bit(marks::LINK_LOCAL)
        {
            evidence = Some(Evidence::Link { address, at });
        }
        if let Resolution::Known(LocalEnd { pod: Some(pod), marks, .. }) = &found
            && marks & mark_bit(marks::SECONDARY_NETWORK) != 0
        {
            return (found.clone(), Some(Evidence::Beside { address, pod: *pod }));
        }
        if let Resolution::Known(local) = &found
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
                evidence = Some(Evidence::Owned { address, owner, at });
            }
        }
        (found, evidence)
    }

    /// Whether a pod was there, in cgroups of its own, before the pod with this uid.
    fn is_older(&self, pod: Option<PodId>, uid: &str) -> bool {
        let old = pod.and_then(|id| self.pod_life(id));
        matches!((old, self.cgroups.pod(uid)), (Some(old), Some(new)) if old.from < new.from)
    }

    fn by_address(&self, pod: Option<(PodId, &PodRecord)>, owner: &Lookup<AddressOwner>) -> Resolution<LocalEnd> {
        match (pod, owner) {
            (Some((id, record)), _) => self.pod_local(id, record, 0, true),
            (None, Lookup::Owner(AddressOwner::Node(_))) => self.host_local(owner),
            _ => Resolution::Unresolved(UnresolvedReason::PodUnknown),
        }
    }

    /// Whether the address lies in a node's pod range.
    pub(in crate::observer) fn in_pod_range(&self, address: IpAddr) -> bool {
        self.pod_ranges.iter().chain(self.former_ranges.keys()).any(|r| r.contains(&address))
    }

    /// Whether the address is that of another node's pod, and nothing more will become known of it
    /// here.
    fn is_remote_pod(&self, address: IpAddr) -> bool {
        self.own_pods_only && self.in_pod_range(address) && !self.own_ranges.iter().any(|r| r.contains(&address))
    }

    /// Whether an address that nobody is known to own may be anybody's: a list is still to come, or
    /// neither a node nor a pod is known.
    fn may_be_unlisted(&self, inventory: &Inventory) -> bool {
        self.awaits_lists() || (inventory.nodes().next().is_none() && inventory.pods().next().is_none())
    }

    /// The node that owns an address, as far as known.
    pub(in crate::observer) fn node_at(&self, address: IpAddr, at: Timestamp) -> Option<PeerId> {
        match self.addresses.lookup(address, at) {
            Lookup::Owner(AddressOwner::Node(peer)) => Some(peer),
            Lookup::Unknown => self.range_nodes.get(&address).copied(),
            _ => None,
        }
    }

    /// Whoever had a remote address at the time of the flow.
    pub(in crate::observer) fn remote_peer(
        &self,
        inventory: &Inventory,
        address: IpAddr,
        at: Timestamp,
        last: bool,
    ) -> Resolution<RemoteEnd> {
        let marks = address_class(address);
        if marks == mark_bit(marks::LINK_LOCAL) {
            // Nobody forwards a link-local address, so a client that has one is the node, if a
            // record shows that the node has it.
            return match self.addresses.lookup(address, at) {
                Lookup::Owner(AddressOwner::Node(peer)) => Resolution::Known(RemoteEnd::Peer { peer, pod: None }),
                _ if last => Resolution::Known(RemoteEnd::External { marks }),
                _ => Resolution::Wait,
            };
        }
        if marks != 0 {
            return Resolution::Known(RemoteEnd::External { marks });
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
                    _ if last => Resolution::Unresolved(UnresolvedReason::IpReuse),
                    _ => Resolution::Wait,
                }
            }
            Lookup::Unknown | Lookup::Vacant => {
                if let Some(node) = self.range_nodes.get(&address) {
                    return Resolution::Known(RemoteEnd::Peer { peer: *node, pod: None });
                }
                if self.is_remote_pod(address) {
                    return Resolution::Known(RemoteEnd::RemotePod);
                }
                let pod_space = lookup == Lookup::Vacant || self.in_pod_range(address);
                let may_be_unlisted = !pod_space && self.may_be_unlisted(inventory);
                match (pod_space || may_be_unlisted, last) {
                    (true, false) => Resolution::Wait,
                    (true, true) if may_be_unlisted => Resolution::Unresolved(UnresolvedReason::ClusterUnknown),
                    (true, true) => Resolution::Unresolved(UnresolvedReason::PodRangeNoOwner),
                    (false, _) => Resolution::Known(RemoteEnd::External { marks: 0 }),
                }
            }
        }
    }

    pub(in crate::observer) fn peer_of(&self, owner: AddressOwner) -> Option<PeerId> {
        match owner {
            AddressOwner::Node(peer) => Some(peer),
            AddressOwner::Pod(id) => self.pods.get(id).map(|r| r.peer),
        }
    }

    fn remote_owner(&self, owner: AddressOwner, last: bool) -> Resolution<RemoteEnd> {
        match owner {
            AddressOwner::Node(peer) => Resolution::Known(RemoteEnd::Peer { peer, pod: None }),
            AddressOwner::Pod(id) => match self.pods.get(id) {
                Some(record) if record.provisional && !last => Resolution::Wait,
                Some(record) => Resolution::Known(RemoteEnd::Peer { peer: record.peer, pod: Some(id) }),
                None => Resolution::Unresolved(UnresolvedReason::PodRangeNoOwner),
            },
        }
    }
}
