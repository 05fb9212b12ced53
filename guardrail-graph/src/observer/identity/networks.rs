//! Networks of pods: which network namespace is whose, and addresses on networks beside the first
//! one (Multus), of which NetworkPolicy knows nothing.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::{AddressOwner, Identity, PodId, RemoteEnd, Resolution, address_class};
use crate::{
    identity::cgroups::Resident,
    inventory::Pod,
    observe::{CgroupId, NetnsId},
    time::Timestamp,
};

/// Both tables, bounded alike.
#[derive(Debug)]
pub(super) struct Networks {
    /// Network namespaces, as the pods' own sockets show them.
    of_pods: HashMap<NetnsId, PodId>,
    /// Addresses beside the first network: networks of their own may give out the same.
    secondary: HashMap<IpAddr, HashSet<PodId>>,
    max: usize,
}

impl Networks {
    pub(super) fn new(max: usize) -> Self {
        Self { of_pods: HashMap::new(), secondary: HashMap::new(), max }
    }

    /// What is known of a pod's addresses beside the first network. Of more than there is room for
    /// nobody knows whose they are: they are external peers.
    pub(super) fn claim(&mut self, pod: PodId, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            if self.secondary.len() < self.max || self.secondary.contains_key(&address) {
                self.secondary.entry(address).or_default().insert(pod);
            }
        }
    }

    /// Forgets pods.
    pub(super) fn retain(&mut self, is_kept: impl Fn(PodId) -> bool) {
        self.of_pods.retain(|_, pod| is_kept(*pod));
        self.secondary.retain(|_, pods| {
            pods.retain(|pod| is_kept(*pod));
            !pods.is_empty()
        });
    }
}

/// Whether a pod has the address on its first network. Without any address it is too new for the
/// API server to know them.
pub(super) fn is_first(pod: &Pod, address: IpAddr) -> bool {
    pod.addresses.contains(&address) || (pod.addresses.is_empty() && !pod.host_network)
}

/// Whether the pod's first network has an address of this family: where the API server tells of
/// none, nobody knows on which network this one is.
pub(super) fn has_another_of_its_family(pod: &Pod, address: IpAddr) -> bool {
    pod.addresses.iter().any(|first| first.is_ipv4() == address.is_ipv4())
}

impl Identity {
    /// A pod's own socket with an address of the pod shows whose the network namespace is.
    pub(in crate::observer) fn learn_namespace(
        &mut self,
        cgroup: CgroupId,
        netns: NetnsId,
        local: IpAddr,
        at: Timestamp,
    ) {
        let Some(Resident::Pod(uid)) = self.cgroups.at(cgroup, at) else { return };
        let Some((id, record)) = self.pods.by_uid(uid) else { return };
        let networks = &mut self.networks;
        if !record.pod.host_network
            && record.pod.addresses.contains(&local)
            && (networks.of_pods.len() < networks.max || networks.of_pods.contains_key(&netns))
        {
            networks.of_pods.insert(netns, id);
        }
    }

    /// The pod whose network namespace this is, as far as its own sockets have shown it.
    pub(in crate::observer) fn pod_in(&self, netns: NetnsId) -> Option<PodId> {
        self.networks.of_pods.get(&netns).copied()
    }

    /// Who has an address as the other end of a connection that is not on the first network.
    /// `last`: nothing more is waited for.
    pub(in crate::observer) fn peer_beside(&self, address: IpAddr, at: Timestamp, last: bool) -> Resolution<RemoteEnd> {
        let marks = address_class(address);
        if marks != 0 {
            return Resolution::Known(RemoteEnd::External { marks });
        }
        let pods = self.networks.secondary.get(&address).into_iter().flatten();
        let mut live = pods.filter_map(|id| Some((*id, self.pods.get(*id)?))).filter(|(_, r)| r.deleted.is_none());
        match (live.next(), live.next(), self.owner(address, at)) {
            (Some((_, record)), None, _) if record.provisional && !last => Resolution::Wait,
            (Some((id, record)), None, _) => Resolution::Known(RemoteEnd::Peer { peer: record.peer, pod: Some(id) }),
            (None, _, Some(AddressOwner::Node(peer))) => Resolution::Known(RemoteEnd::Peer { peer, pod: None }),
            (None, _, Some(AddressOwner::Pod(id))) if self.pods.get(id).is_some() => {
                let peer = self.peer_of(AddressOwner::Pod(id)).unwrap_or(self.this_node);
                Resolution::Known(RemoteEnd::Peer { peer, pod: Some(id) })
            }
            (None, ..) if !last => Resolution::Wait,
            _ => Resolution::Known(RemoteEnd::External { marks: 0 }),
        }
    }
}
