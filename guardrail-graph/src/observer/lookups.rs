//! Who is at the two ends of a flow: identity and catalogue asked together, and what a lookup
//! proves learned at once.

use std::net::IpAddr;

use super::{
    Observer, UnresolvedReason,
    edge::mark_bit,
    identity::{LocalEnd, RemoteEnd, Resolution, address_class},
};
use crate::{
    inventory::{Kind, VirtualTarget},
    observe::CgroupId,
    peer::Protocol,
    snapshot::marks,
    time::Timestamp,
};

/// Whether a local end with these marks spoke on a network beside its pod's first one.
pub(super) fn is_beside_first_network(marks: u8) -> bool {
    marks & mark_bit(marks::SECONDARY_NETWORK) != 0
}

impl Observer {
    /// Who is behind the local socket. What that proves of its address is known from here on.
    /// `last`: nothing more is waited for.
    pub(super) fn local_end(
        &mut self,
        cgroup: CgroupId,
        address: IpAddr,
        at: Timestamp,
        last: bool,
    ) -> Resolution<LocalEnd> {
        let (mut found, evidence) = self.identity.local_end(cgroup, address, at, last);
        if let Resolution::Known(LocalEnd { marks, .. }) = &mut found
            && is_beside_first_network(*marks)
            && self.catalogue.inventory().has_service_address(address)
        {
            // A backend that has its Service's address itself: packets come by the first network.
            *marks &= !mark_bit(marks::SECONDARY_NETWORK);
            return found;
        }
        if let Some(owned) = evidence.and_then(|evidence| self.identity.learn(evidence)) {
            self.reclassify_later(owned);
        }
        found
    }

    /// Whoever had a remote address at the time of the flow.
    pub(super) fn remote_peer(&self, address: IpAddr, at: Timestamp, last: bool) -> Resolution<RemoteEnd> {
        self.identity.remote_peer(self.catalogue.inventory(), address, at, last)
    }

    /// Where a virtual address leads.
    pub(in crate::observer) fn virtual_target(
        &self,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
        at: Timestamp,
    ) -> Option<VirtualTarget> {
        let node = self.identity.node_at(address, at).and_then(|id| self.peers.node_name(id));
        let lists_are_known = self.restored.as_ref().is_none_or(|restored| restored.knows(&Kind::Service));
        self.catalogue.virtual_target((address, port, protocol), node, lists_are_known)
    }

    /// [`marks::HOST_PORT`], if a client asked for another node's address, which that node
    /// translates to the server's.
    pub(in crate::observer) fn host_port_mark(&self, remote: &RemoteEnd, address: IpAddr, at: Timestamp) -> u8 {
        let inventory = self.catalogue.inventory();
        let is_translated = match remote {
            // Where every node has each Service's address, the client's own one translates.
            RemoteEnd::Service { .. } => !inventory.has_service_address(address),
            RemoteEnd::HostPort { .. } => true,
            RemoteEnd::Peer { .. } | RemoteEnd::RemotePod | RemoteEnd::External { .. } => false,
        };
        let node = || {
            let seen = self.identity.node_at(address, at).and_then(|id| self.peers.node_name(id));
            seen.or_else(|| inventory.node_with_address(address))
        };
        if is_translated && node().is_some_and(|node| node != self.config.node) {
            mark_bit(marks::HOST_PORT)
        } else {
            0
        }
    }

    /// The server behind a remote address and port, at the time of the flow.
    pub(in crate::observer) fn remote_server(
        &mut self,
        asked: (IpAddr, u16, Protocol),
        at: Timestamp,
        last: bool,
    ) -> Resolution<RemoteEnd> {
        let (address, port, protocol) = asked;
        let marks = address_class(address);
        if marks != 0 {
            // A link-local address is the node's if a record shows that it has it, else that of a
            // service of the cloud.
            return Resolution::Known(match self.identity.node_at(address, at) {
                Some(peer) if address.is_ipv4() => RemoteEnd::Peer { peer, pod: None },
                _ => RemoteEnd::External { marks },
            });
        }
        if let Some((service, port)) = self.catalogue.cached(&asked) {
            return Resolution::Known(RemoteEnd::Service { service, port });
        }
        match self.virtual_target(address, port, protocol, at) {
            Some(VirtualTarget::Service { service, port: index }) => {
                let service_port = service.ports[index].port;
                let service =
                    self.texts.intern(format!("{}/{}:{service_port}", service.namespace, service.name).as_str());
                self.catalogue.cache(asked, &service, service_port);
                return Resolution::Known(RemoteEnd::Service { service, port: service_port });
            }
            Some(VirtualTarget::NoSuchPort { .. }) => {
                return Resolution::Unresolved(UnresolvedReason::ServicePortUnknown);
            }
            Some(VirtualTarget::HostPort { pod, port }) => match self.identity.pod_by_name(&pod.namespace, &pod.name) {
                Some(record) if record.provisional && !last => return Resolution::Wait,
                Some(record) => return Resolution::Known(RemoteEnd::HostPort { peer: record.peer, port }),
                None => {}
            },
            None => {}
        }
        match self.remote_peer(address, at, last) {
            // A node's port may be that of a Service or of a pod.
            Resolution::Known(RemoteEnd::Peer { pod: None, .. }) if self.identity.awaits_lists() => {
                if last {
                    Resolution::Unresolved(UnresolvedReason::ClusterUnknown)
                } else {
                    Resolution::Wait
                }
            }
            found => found,
        }
    }
}
