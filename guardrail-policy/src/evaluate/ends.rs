//! The two ends of a connection: from a name or an address to what policies can see of it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Cluster, Evaluator, Exemption, kinds::Kinds};
use crate::model::tier::Entity;

/// The address that NodeLocal DNSCache binds on every node: it is the pod's own node, whichever
/// that is (A29).
const NODE_LOCAL_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));

/// Whether it is NodeLocal DNSCache's address: the own node of whoever asks.
pub(crate) fn is_node_cache(address: IpAddr) -> bool {
    address == NODE_LOCAL_DNS
}

/// Who answers at an address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    Pod(u32),
    Node(u32),
}

/// One end, ready to be judged. Made by [`Evaluator::end`], [`Evaluator::end_of_pod`] or
/// [`Evaluator::end_of_address`]; cheap to copy, worth keeping. One line of the cache: of many
/// connections each reads two of them anywhere in memory.
#[repr(align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct End {
    /// Class of pods that no policy tells apart; `None`: not selectable (a node, a host-network
    /// pod, an external address).
    pub(super) class: Option<u32>,
    /// Index of the pod, if it is one and not on the host network.
    pub(super) pod: Option<u32>,
    /// What it is. A node counts as another node here; [`End::kinds`] tells the own one.
    kinds: Kinds,
    /// The node that this end is.
    host: NodeOf,
    /// The node that this pod runs on.
    node: NodeOf,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    v6_first: bool,
}

/// Whether one end is the node of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// It is, or both are one node.
    Own,
    /// It is not, or neither is a node.
    Remote,
    /// One is a node, and where the other runs is not known.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum NodeOf {
    None,
    /// Whichever node the other end runs on.
    Any,
    Is(u32),
}

impl End {
    /// Whether policies can select this end: a pod that is not on the host network.
    #[must_use]
    pub fn is_pod(&self) -> bool {
        self.class.is_some()
    }

    /// Whether this end is a node: one of its addresses, or a host-network pod.
    #[must_use]
    pub fn is_node(&self) -> bool {
        self.host != NodeOf::None
    }

    /// What it is, seen from the other end.
    pub(super) fn kinds(&self, relation: Relation) -> Kinds {
        match relation {
            Relation::Own if self.is_node() => self.kinds.without(Kinds::REMOTE).with(Kinds::HOST),
            _ => self.kinds,
        }
    }

    /// The most exact of Cilium's entities that this end is, seen from the other end; `None` for a
    /// pod.
    pub(crate) fn entity_seen_from(&self, other: &Self) -> Option<Entity> {
        let is = |entity: &Entity| self.kinds.meets(Kinds::of_entity(*entity));
        if self.is_pod() {
            return None;
        }
        if self.is_node() {
            let own = matches!(relation(self, other), Relation::Own);
            return Some(if own { Entity::Host } else { Entity::RemoteNode });
        }
        let narrow =
            [Entity::KubeApiserver, Entity::Ingress, Entity::Init, Entity::Health, Entity::Unmanaged, Entity::World];
        narrow.into_iter().find(is)
    }

    /// The node that this end is, if it is a certain one.
    pub(super) fn node_index(&self) -> Option<u32> {
        if let NodeOf::Is(index) = self.host { Some(index) } else { None }
    }

    /// Index of the pod in [`Cluster::pods`], if it is one that policies can select.
    #[must_use]
    pub fn pod(&self) -> Option<u32> {
        self.pod
    }

    /// Whether no policy can tell the two apart but by addresses, of which they have the same
    /// families.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let families = |end: &Self| (end.v4.is_some(), end.v6.is_some());
        self.kind() == other.kind() && families(self) == families(other)
    }

    /// The same end, speaking from this address.
    #[must_use]
    pub(super) fn at(mut self, address: IpAddr) -> Self {
        (self.v4, self.v6, self.v6_first) = split(&[address]);
        self
    }

    /// The same pod as any replica like it: exempt neither as itself nor as its node's.
    pub(super) fn any_replica(mut self) -> Self {
        self.pod = None;
        self.node = NodeOf::None;
        self
    }

    /// What policies can select it by.
    pub(super) fn kind(&self) -> (Option<u32>, bool) {
        (self.class, self.is_node())
    }

    /// Its addresses, at most one of each family, the first one first.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let (v4, v6) = (self.v4.map(IpAddr::V4), self.v6.map(IpAddr::V6));
        let pair = if self.v6_first { [v6, v4] } else { [v4, v6] };
        pair.into_iter().flatten()
    }

    /// Whether both have an address of one family, as far as addresses are known.
    #[must_use]
    pub fn can_reach(&self, other: &Self) -> bool {
        let none = |end: &Self| end.v4.is_none() && end.v6.is_none();
        none(self)
            || none(other)
            || (self.v4.is_some() && other.v4.is_some())
            || (self.v6.is_some() && other.v6.is_some())
    }

    /// An address that every node has for itself (NodeLocal DNS): no Service's and no pod's port is
    /// reached there.
    pub(super) fn is_loopback_of_any(&self) -> bool {
        self.host == NodeOf::Any
    }

    fn first(&self) -> Option<IpAddr> {
        self.addresses().next()
    }
}

/// An end that cannot be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownEnd {
    /// Neither `namespace/pod` nor an address.
    #[error("`{0}` is neither namespace/pod nor an IP address")]
    Malformed(String),
    /// `reserved:` and no entity that a connection can come from or go to.
    #[error(
        "`{0}` names no single peer; write reserved:health, ingress, init, unmanaged, host, remote-node, kube-apiserver or world"
    )]
    NoEntity(String),
    /// The inventory has no such pod.
    #[error("the inventory has no pod `{0}`")]
    NoSuchPod(String),
    /// A workload with several pods, or several workloads.
    #[error("`{name}` names several pods: write one of them ({pods})")]
    Several {
        /// As the user named it.
        name: String,
        /// Some of them.
        pods: String,
    },
    /// Succeeded or Failed (A32).
    #[error("pod `{0}` has finished: it has no live endpoint")]
    Finished(String),
    /// The address of a Service: policies are judged at the pod behind it (A27).
    #[error("{address} is the virtual address of Service {service}: policies are judged at the pod behind it")]
    Virtual {
        /// The address.
        address: IpAddr,
        /// `namespace/name`.
        service: String,
    },
    /// A Service's port on a node.
    #[error("port {port} of {end} is the node port of Service {service}: policies are judged at the pods behind it")]
    NodePort {
        /// The node, as the user named it.
        end: String,
        /// `nodePort`.
        port: u16,
        /// `namespace/name`.
        service: String,
    },
    /// A pod's port on its node.
    #[error("port {port} of {end} is a host port of pod {pod}: policies are judged at that pod")]
    HostPort {
        /// The node, as the user named it.
        end: String,
        /// `hostPort`.
        port: u16,
        /// `namespace/name`.
        pod: String,
    },
    /// A node's port that only a Service would have, and no Service is known that does.
    #[error(
        "port {port} of {end}, a node, lies in the range of node ports, and the inventory has no Service with it: add Services to --inventory"
    )]
    MaybeNodePort {
        /// The node, as the user named it.
        end: String,
        /// The port.
        port: u16,
    },
}

impl UnknownEnd {
    /// The end exists, but a policy cannot be judged there: the flow is unproven; otherwise the
    /// input is wrong.
    #[must_use]
    pub fn is_unproven(&self) -> bool {
        !matches!(self, Self::Malformed(_) | Self::NoSuchPod(_) | Self::Several { .. })
    }
}

/// Who answers at which address. Pods win over the nodes' range addresses; finished pods have none
/// (A32).
pub(super) fn owners(cluster: &Cluster) -> HashMap<IpAddr, Owner> {
    let mut owners = HashMap::new();
    for (pod, index) in cluster.pods.iter().zip(0..).filter(|(p, _)| !p.finished && !p.host_network) {
        for address in &pod.addresses {
            owners.entry(*address).or_insert(Owner::Pod(index));
        }
    }
    for (node, index) in cluster.nodes.iter().zip(0..) {
        for address in &node.addresses {
            owners.entry(*address).or_insert(Owner::Node(index));
        }
    }
    let names: HashMap<&str, u32> = cluster.nodes.iter().map(|n| n.name.as_str()).zip(0..).collect();
    for (address, node) in &cluster.unlisted_addresses {
        if let Some(index) = names.get(node.as_str()) {
            owners.entry(*address).or_insert(Owner::Node(*index));
        }
    }
    for (pod, index) in cluster.pods.iter().zip(0..).filter(|(p, _)| !p.finished && p.host_network) {
        for address in &pod.addresses {
            owners.entry(*address).or_insert(Owner::Pod(index));
        }
    }
    owners
}

impl Evaluator {
    /// The end that `namespace/pod` or an IP address names.
    ///
    /// # Errors
    /// See [`UnknownEnd`].
    pub fn end(&self, text: &str) -> Result<End, UnknownEnd> {
        if let Ok(address) = text.parse::<IpAddr>() {
            let address = address.to_canonical();
            if !self.owners.contains_key(&address)
                && let Some(service) = self.cluster().virtual_addresses.get(&address)
            {
                return Err(UnknownEnd::Virtual { address, service: service.clone() });
            }
            return Ok(self.end_of_address(address));
        }
        if let Some(name) = text.strip_prefix("reserved:") {
            return self.end_of_entity(name).ok_or_else(|| UnknownEnd::NoEntity(text.to_owned()));
        }
        let parts = text.split('/');
        if !(2..=3).contains(&parts.clone().count()) || parts.into_iter().any(str::is_empty) {
            return Err(UnknownEnd::Malformed(text.to_owned()));
        }
        let Some(&index) = self.names.get(text) else {
            return self.end_of_workload(text).unwrap_or_else(|| Err(UnknownEnd::NoSuchPod(text.to_owned())));
        };
        if self.cluster().pods[index as usize].finished {
            return Err(UnknownEnd::Finished(text.to_owned()));
        }
        Ok(self.end_of_pod(index))
    }

    /// Whether the pod with this index runs on the node that `node` is.
    pub(super) fn runs_on(&self, index: u32, node: &End) -> bool {
        let own = self.cluster().pods[index as usize].node.as_deref().and_then(|n| self.compiled.node_id(n));
        own.is_some_and(|own| node.host == NodeOf::Is(own))
    }

    /// The node that an end is, if it is a certain one.
    #[must_use]
    pub fn node_name(&self, end: &End) -> Option<&str> {
        let is = |name: &str| self.compiled.node_id(name).is_some_and(|id| end.host == NodeOf::Is(id));
        self.cluster().nodes.iter().map(|node| node.name.as_str()).find(|name| is(name))
    }

    /// The end of the pod with this index in [`Cluster::pods`].
    ///
    /// # Panics
    /// If there is no such pod.
    #[must_use]
    pub fn end_of_pod(&self, index: u32) -> End {
        let pod = &self.cluster().pods[index as usize];
        let node = pod.node.as_deref().and_then(|n| self.compiled.node_id(n)).map_or(NodeOf::None, NodeOf::Is);
        let mut addresses = pod.addresses.clone();
        if pod.host_network && addresses.is_empty() {
            // A host-network pod speaks with its node's address.
            let own = self.cluster().nodes.iter().find(|n| Some(&n.name) == pod.node.as_ref());
            addresses.extend(own.into_iter().flat_map(|n| n.addresses.iter().copied()));
        }
        let (v4, v6, v6_first) = split(&addresses);
        if pod.host_network {
            let mut end = End { v4, v6, v6_first, ..Self::node_end(known(node)) };
            if addresses.iter().any(|address| self.is_api_server(*address)) {
                end.kinds = end.kinds.with(Kinds::API_SERVER);
            }
            return end;
        }
        let class = self.compiled.class_of_pod(index);
        End { class, pod: Some(index), kinds: Kinds::POD, host: NodeOf::None, node, v4, v6, v6_first }
    }

    /// The end at this address: a live pod's, a node's, or something external.
    #[must_use]
    pub fn end_of_address(&self, address: IpAddr) -> End {
        let address = address.to_canonical();
        let mut end = match self.owners.get(&address) {
            Some(Owner::Pod(index)) => self.end_of_pod(*index),
            Some(Owner::Node(index)) => self.end_of_node(&self.cluster().nodes[*index as usize].name),
            None if address == NODE_LOCAL_DNS => Self::node_end(NodeOf::Any),
            None => External::end(Kinds::WORLD),
        };
        if self.is_api_server(address) {
            end.kinds = end.kinds.with(Kinds::API_SERVER);
        }
        end.at(address)
    }

    /// The end of a node at one of its addresses.
    pub(super) fn end_of_node_at(&self, name: &str, address: IpAddr) -> End {
        let mut end = self.end_of_node(name);
        if self.is_api_server(address) {
            end.kinds = end.kinds.with(Kinds::API_SERVER);
        }
        end.at(address)
    }

    pub(super) fn is_api_server(&self, address: IpAddr) -> bool {
        self.cluster().api_servers().is_some_and(|known| known.contains(&address))
    }

    /// The end of a node, without an address: only `ipBlock`-free rules match it until [`End`] gets
    /// one from `end_of_address`.
    pub(super) fn end_of_node(&self, name: &str) -> End {
        Self::node_end(known(self.compiled.node_id(name).map_or(NodeOf::None, NodeOf::Is)))
    }

    fn node_end(host: NodeOf) -> End {
        End { kinds: Kinds::REMOTE, host, ..External::end(Kinds::NONE) }
    }

    /// The end that a log saw with these identities and this address. What it says goes before the
    /// inventory, which may be of another time.
    ///
    /// # Errors
    /// The address of a Service, or an address that says nothing; see [`UnknownEnd`].
    pub fn end_seen_as(&self, entities: &[Entity], address: Option<IpAddr>) -> Result<End, UnknownEnd> {
        let has = |entity| entities.contains(&entity);
        let Some(first) = entities.first() else {
            return match address {
                Some(address) => self.end(&address.to_string()),
                None => Err(UnknownEnd::Malformed(String::new())),
            };
        };
        let known = address.map(|a| self.end_of_address(a)).filter(|end| end.is_node());
        let mut end = if has(Entity::Host) {
            Self::node_end(NodeOf::Any)
        } else if has(Entity::RemoteNode) {
            known.unwrap_or_else(|| Self::node_end(NodeOf::Is(u32::MAX)))
        } else if has(Entity::KubeApiserver) {
            known.unwrap_or_else(|| External::end(Kinds::WORLD))
        } else {
            External::end(Kinds::of_entity(*first))
        };
        if let Some(address) = address {
            let virtual_address = self.cluster().virtual_addresses.get(&address);
            if let Some(service) = virtual_address.filter(|_| has(Entity::World) && !self.owners.contains_key(&address))
            {
                return Err(UnknownEnd::Virtual { address, service: service.clone() });
            }
            end = end.at(address);
        }
        let api_server = has(Entity::KubeApiserver)
            || (has(Entity::World) || end.is_node()) && address.is_some_and(|a| self.is_api_server(a));
        if api_server {
            end.kinds = end.kinds.with(Kinds::API_SERVER);
        }
        Ok(end)
    }

    /// A peer that no Kubernetes object describes. `host` is the node of the other end, whichever
    /// that is.
    fn end_of_entity(&self, name: &str) -> Option<End> {
        let entity = Entity::from_name(name)?;
        match entity {
            Entity::Host => Some(Self::node_end(NodeOf::Any)),
            Entity::RemoteNode => Some(Self::node_end(NodeOf::Is(u32::MAX))),
            Entity::All | Entity::Cluster | Entity::None => None,
            _ => Some(External::end(Kinds::of_entity(entity))),
        }
    }
}

/// An end that is neither pod nor node.
struct External;

impl External {
    fn end(kinds: Kinds) -> End {
        let (host, node) = (NodeOf::None, NodeOf::None);
        End { class: None, pod: None, kinds, host, node, v4: None, v6: None, v6_first: false }
    }
}

/// A node that no pod names is still a node: no pod runs there.
fn known(node: NodeOf) -> NodeOf {
    if node == NodeOf::None { NodeOf::Is(u32::MAX) } else { node }
}

fn split(addresses: &[IpAddr]) -> (Option<Ipv4Addr>, Option<Ipv6Addr>, bool) {
    let v4 = addresses.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None });
    let v6 = addresses.iter().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None });
    (v4, v6, addresses.first().is_some_and(IpAddr::is_ipv6))
}

/// A28, A29.
pub(super) fn exemption(src: &End, dst: &End) -> Option<Exemption> {
    if src.pod.is_some() && src.pod == dst.pod {
        return Some(Exemption::Itself);
    }
    let own = |pod: &End, node: &End| {
        pod.pod.is_some()
            && match (pod.node, node.host) {
                (_, NodeOf::Any) => true,
                (NodeOf::Is(a), NodeOf::Is(b)) => a == b,
                _ => false,
            }
    };
    (own(src, dst) || own(dst, src)).then_some(Exemption::OwnNode)
}

/// The two ends for each address family that both have; as they are, if that is none or one.
#[must_use]
pub fn families(src: &End, dst: &End) -> Vec<(End, End)> {
    match (src.v4.zip(dst.v4), src.v6.zip(dst.v6)) {
        (Some((s4, d4)), Some((s6, d6))) => {
            vec![(src.at(s4.into()), dst.at(d4.into())), (src.at(s6.into()), dst.at(d6.into()))]
        }
        _ => vec![(*src, *dst)],
    }
}

/// Whether one end is the other's node.
pub(super) fn relation(src: &End, dst: &End) -> Relation {
    let of = |end: &End| if end.is_node() { end.host } else { end.node };
    if !src.is_node() && !dst.is_node() {
        return Relation::Remote;
    }
    match (of(src), of(dst)) {
        (NodeOf::Any, _) | (_, NodeOf::Any) => Relation::Own,
        (NodeOf::Is(a), NodeOf::Is(b)) if a == b && a != u32::MAX => Relation::Own,
        // An external end runs on no node, a pod without a known node on any.
        (NodeOf::None, _) if src.is_pod() => Relation::Unknown,
        (_, NodeOf::None) if dst.is_pod() => Relation::Unknown,
        _ => Relation::Remote,
    }
}

/// The addresses between which the connection runs: one family that both have, the destination's
/// first one if they share both.
#[must_use]
pub fn common_addresses(src: &End, dst: &End) -> (Option<IpAddr>, Option<IpAddr>) {
    let four = || src.v4.zip(dst.v4).map(|(s, d)| (IpAddr::V4(s), IpAddr::V4(d)));
    let six = || src.v6.zip(dst.v6).map(|(s, d)| (IpAddr::V6(s), IpAddr::V6(d)));
    let pair = if dst.v6_first { six().or_else(four) } else { four().or_else(six) };
    match pair {
        Some((s, d)) => (Some(s), Some(d)),
        None => (src.first(), dst.first()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_one_line_of_the_cache() {
        assert_eq!(size_of::<End>(), 64);
    }
}
