//! DNS: whoever's egress is closed still resolves names (docs/semantics.md B15).

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{Peer, Protocol, WorkloadRef, snapshot::EdgeRecord};

use super::{
    PortRef, RulePeer, RulePort,
    context::{Context, single},
    edges::{EdgeUse, external_address, is_node_local_dns},
    reach::Nodes,
};
use crate::{evaluate::is_node_cache, model::tier::Entity};

/// The DNS servers that are in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dns {
    /// DNS workloads and the pod ports on which they answer.
    pods: BTreeMap<WorkloadRef, BTreeSet<u16>>,
    /// NodeLocal addresses.
    node_local: BTreeSet<std::net::IpAddr>,
    /// Pods' questions are answered on their nodes, and go on to the DNS pods without a word of
    /// whose they are.
    answered_on_nodes: bool,
}

impl Dns {
    /// Finds the servers in use: pods that were asked on port 53, or on the pod port behind a
    /// Service's port 53.
    pub(crate) fn in_use(context: &Context<'_>, uses: &[EdgeUse]) -> Self {
        let mut dns = Self::default();
        let mut through_nodes = false;
        for (edge, used) in context.body.edges.iter().zip(uses) {
            // What an external resolver or a node asks makes no pod the cluster's DNS.
            if !used.must_be_allowed() || edge.client.peer.workload().is_none() {
                continue;
            }
            if is_node_local_dns(edge) {
                through_nodes = true;
                dns.node_local.extend(external_address(&edge.server.peer));
            } else if let (Peer::Node { name }, 53) = (&*edge.server.peer, edge.port) {
                // A resolver in the host's network; NodeLocal DNS if the node owns a link-local
                // address.
                dns.node_local.extend(context.link_local_addresses_of_node(name));
                dns.node_local.extend(context.addresses_answered_on(name, edge));
            } else if let (Peer::Workload(server), true) = (&*edge.server.peer, asks_for_names(edge))
                && context.pods_peer(server, "").is_some()
            {
                dns.pods.entry(server.clone()).or_default().insert(edge.port);
            }
        }
        if context.reach.nodes == Nodes::Nothing {
            // No rule can name it: flows to it are judged like others.
            dns.node_local.retain(|address| !is_node_cache(*address));
        }
        dns.answered_on_nodes = through_nodes || !dns.node_local.is_empty();
        if dns.answered_on_nodes {
            // The node's cache forwards to the cluster's DNS pods, and pods fall back to them.
            for port in context.body.services.iter().flat_map(|s| &s.ports).filter(|p| p.port == 53) {
                for backend in &port.backends {
                    if let Peer::Workload(server) = &backend.peer {
                        dns.pods.entry(server.clone()).or_default().insert(backend.port);
                    }
                }
            }
        }
        dns
    }

    /// Whether pods ask a cache on their node. When that is down they ask the DNS pods themselves.
    pub(crate) fn is_answered_on_nodes(&self) -> bool {
        self.answered_on_nodes
    }

    /// Nothing was seen.
    pub(crate) fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.node_local.is_empty()
    }

    /// The peers with their ports (always UDP and TCP), for a policy in this namespace. What no
    /// label names is no DNS server here: flows to it are judged like others.
    pub(crate) fn allowed(&self, namespace: &str, context: &Context<'_>) -> Vec<(RulePeer, Vec<RulePort>)> {
        let mut allowed = Vec::new();
        for (workload, ports) in &self.pods {
            if let Some((peer, _)) = context.pods_peer(workload, namespace) {
                allowed.push((peer, ports.iter().flat_map(|port| both(*port)).collect()));
            }
        }
        allowed.extend(self.node_local.iter().map(|address| (single(*address), both(53).to_vec())));
        if context.reach.by_entity() && !self.node_local.is_empty() {
            // By setup it is the node, or an address outside.
            allowed.push((RulePeer::Entity(Entity::Host), both(53).to_vec()));
        }
        allowed
    }

    /// The pods that may be asked, with their ports.
    pub(crate) fn servers(&self) -> impl Iterator<Item = (&WorkloadRef, Protocol, u16)> {
        let port = |(workload, ports): (_, &BTreeSet<u16>)| {
            ports.iter().flat_map(move |p| both(*p).map(|b| (workload, b.protocol, *p))).collect::<Vec<_>>()
        };
        self.pods.iter().flat_map(port)
    }

    /// Whether the namespace-wide DNS rule already allows this edge.
    pub(crate) fn covers(&self, edge: &EdgeRecord) -> bool {
        match &*edge.server.peer {
            Peer::Workload(server) => self.pods.get(server).is_some_and(|ports| ports.contains(&edge.port)),
            peer => edge.port == 53 && external_address(peer).is_some_and(|a| self.node_local.contains(&a)),
        }
    }
}

fn asks_for_names(edge: &EdgeRecord) -> bool {
    edge.port == 53 || edge.via.iter().any(|via| via.ends_with(":53"))
}

fn both(port: u16) -> [RulePort; 2] {
    [Protocol::Tcp, Protocol::Udp].map(|protocol| RulePort { protocol, port: PortRef::Number(port) })
}
