//! What one edge asks for: whether it supports a rule, and which peer the other end is.

use std::collections::BTreeSet;

use guardrail_graph::{
    Peer,
    snapshot::{EdgeRecord, Side, marks},
};
use serde::Serialize;

use super::{
    FlowName, RulePeer,
    context::{Context, single},
    reach::{Nodes, every_node, is_link_local},
};
use crate::{
    evaluate::{is_node_cache, uses_api_server},
    model::tier::Entity,
};

/// Why an edge supports no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unused {
    /// Only failed attempts (B22), or datagrams nobody answered inside the cluster.
    Failed,
    /// Multicast and broadcast, and link-local attempts that nobody answered.
    NotRoutable,
    /// Inside a tunnel of a mesh, or on a network beside the pods' first one: no policy judges it.
    NotJudged,
    /// The backend was inferred and `--accept-inferred` was not given.
    Inferred,
    /// `--ignore-client` names the client (B36).
    Ignored,
    /// `--accept` names the flow.
    Accepted,
    /// An exception of the plan is for it, and says until when.
    Excepted,
    /// It was last seen longer ago than `--drop-unused` says.
    Stale,
}

/// What became of an edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EdgeUse {
    /// It supports a rule wherever a policy covers one of its ends.
    Supports,
    /// It supports none.
    Unused(Unused),
}

impl EdgeUse {
    /// Whether the generated set must allow this edge.
    #[must_use]
    pub fn must_be_allowed(&self) -> bool {
        *self == Self::Supports
    }

    /// Whether the edge is an established flow that nobody took responsibility for: allowed, or a
    /// problem.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        matches!(self, Self::Supports | Self::Unused(Unused::Inferred))
    }
}

/// Whether the evidence shows a conversation. Marks say how it was seen and have no say in this:
/// without them, an edge is `supported` for the same reasons.
pub(crate) fn is_established(edge: &EdgeRecord) -> bool {
    if edge.is_set_aside() {
        return false;
    }
    let at_server = || edge.sources.iter().any(|s| s.side == Side::Server && s.counts.is_established());
    edge.supported
        || if edge.protocol.has_connections() {
            edge.counts.is_established()
        } else {
            edge.counts.bytes_received > 0 || at_server()
        }
}

/// Whether an export asks which sources counted this edge: where a node is an end of it, where a
/// port of a node was asked for, or where its counts alone do not show a conversation.
#[must_use]
pub fn asks_who_counted(edge: &EdgeRecord) -> bool {
    let is_node = |peer: &Peer| matches!(peer, Peer::Node { .. });
    is_node(&edge.client.peer) || is_node(&edge.server.peer) || edge.marks.contains(marks::HOST_PORT) || !edge.supported
}

/// Classifies an edge.
pub(crate) fn classify(edge: &EdgeRecord, context: &Context<'_>) -> EdgeUse {
    let unused =
        if edge.client.peer.workload().is_some_and(|w| context.options.ignore_clients.iter().any(|p| p.matches(w))) {
            Unused::Ignored
        } else if edge.is_set_aside() {
            Unused::NotJudged
        } else if is_accepted(edge, context) {
            Unused::Accepted
        } else if is_stale(edge, context) {
            Unused::Stale
        } else if has_group_address(edge) || (!is_established(edge) && is_not_routable(edge)) {
            Unused::NotRoutable
        } else if !is_established(edge) {
            Unused::Failed
        } else if context.options.excepted.iter().any(|opening| opening.is_for(edge)) {
            Unused::Excepted
        } else if edge.marks.contains("inferred") && !context.options.accept_inferred {
            Unused::Inferred
        } else {
            return EdgeUse::Supports;
        };
    EdgeUse::Unused(unused)
}

fn is_stale(edge: &EdgeRecord, context: &Context<'_>) -> bool {
    let limit = context.options.drop_unused.zip(context.body.window.to);
    limit.is_some_and(|(limit, end)| edge.last_seen.after(limit) < end)
}

/// NodeLocal DNS answers on a link-local address; the only link-local peer that a rule may name
/// (B15).
pub(crate) fn is_node_local_dns(edge: &EdgeRecord) -> bool {
    edge.port == 53 && edge.counts.bytes_received > 0 && external_address(&edge.server.peer).is_some_and(is_link_local)
}

fn is_accepted(edge: &EdgeRecord, context: &Context<'_>) -> bool {
    let accepted = &context.options.accepted;
    !accepted.is_empty() && {
        let flow = FlowName::of(edge);
        accepted.iter().any(|accepted| accepted.names(&flow))
    }
}

fn is_not_routable(edge: &EdgeRecord) -> bool {
    let marked = ["multicast", "broadcast", "link-local"].iter().any(|m| edge.marks.contains(*m));
    marked || external_ends(edge).any(is_link_local)
}

/// Addresses with which nobody has a conversation.
fn has_group_address(edge: &EdgeRecord) -> bool {
    external_ends(edge)
        .any(|a| a.is_multicast() || a.is_loopback() || a.is_unspecified() || a == std::net::Ipv4Addr::BROADCAST)
}

fn external_ends(edge: &EdgeRecord) -> impl Iterator<Item = std::net::IpAddr> {
    [&*edge.client.peer, &*edge.server.peer].into_iter().filter_map(external_address)
}

/// The address of an external peer, an IPv4-mapped one as IPv4 (B21).
pub(crate) fn external_address(peer: &Peer) -> Option<std::net::IpAddr> {
    match peer {
        Peer::External { address } => address.parse::<std::net::IpAddr>().ok().map(|a| a.to_canonical()),
        _ => None,
    }
}

/// How a rule can name the other end of an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// These peers; and the nodes of these host-network workloads, so that a rule does not break
    /// when another replica calls.
    Peers { peers: BTreeSet<RulePeer>, hosts: BTreeSet<String>, note: Option<String> },
    /// One external address among those of this port; names as observed.
    ExternalAddress(std::net::IpAddr),
    /// Any external address.
    Anywhere {
        /// The real client is hidden behind a node's address, so nothing inside may be left out.
        identity_lost: bool,
    },
    /// Allowed whatever the policies say: between a pod and its own node (A29), above all probes
    /// (B14).
    Implicit,
    /// No rule can name it; why, and what to do.
    Inexpressible(String),
}

/// Who calls: the peer of an ingress rule of the server, which is a workload.
pub(crate) fn caller(edge: &EdgeRecord, policy_namespace: &str, context: &Context<'_>) -> Need {
    match &*edge.client.peer {
        Peer::Workload(client) if edge.marks.contains(marks::MASQUERADED) => {
            masqueraded(pods(client, policy_namespace, context), client, context)
        }
        Peer::Workload(client) => pods(client, policy_namespace, context),
        Peer::External { address } if address == Peer::MANY => Need::Anywhere { identity_lost: false },
        Peer::External { address } => external_caller(address, context),
        Peer::Node { name } if context.hosts_api_server(name) => {
            from_control_plane(node_caller(edge, name, context), context)
        }
        Peer::Node { name } => node_caller(edge, name, context),
    }
}

/// A client for which a node's address stood in: where ingress is judged after that, the network
/// sees a node, and any on which the client's pods are.
fn masqueraded(seen: Need, client: &guardrail_graph::WorkloadRef, context: &Context<'_>) -> Need {
    let Need::Peers { mut peers, hosts, note } = seen else { return seen };
    peers.extend(match context.reach.nodes {
        Nodes::Addresses => context.peers_of_its_nodes(client),
        Nodes::Entities => every_node(),
        Nodes::Nothing => BTreeSet::new(),
    });
    let lost = format!(
        "the identity of {client} was lost behind a node's address (masquerading): the nodes of its pods may call, and whoever they stand for"
    );
    let note = note.into_iter().chain([lost]).collect::<Vec<_>>().join("; ");
    Need::Peers { peers, hosts, note: Some(note) }
}

/// The API server calls pods (webhooks), and any of its replicas may: all of their addresses beside
/// the one that was seen.
fn from_control_plane(seen: Need, context: &Context<'_>) -> Need {
    let mut more = context.control_plane_peers();
    let (peers, hosts, note) = match seen {
        Need::ExternalAddress(_) => (BTreeSet::new(), BTreeSet::new(), None),
        Need::Peers { peers, hosts, note } => (peers, hosts, note),
        other => return other,
    };
    if context.reach.by_entity() {
        more.insert(RulePeer::Entity(Entity::KubeApiserver));
    }
    more.extend(peers);
    let note =
        note.into_iter().chain(["the control plane: every address from which an API server may call".to_owned()]);
    Need::Peers { peers: more, hosts, note: Some(note.collect::<Vec<_>>().join("; ")) }
}

/// The API server, of which the network sees one address of many.
fn api_server(edge: &EdgeRecord, context: &Context<'_>) -> Option<Need> {
    let (asked, node) = match &*edge.server.peer {
        Peer::External { address } => {
            (address.parse().is_ok_and(|a: std::net::IpAddr| context.is_api_server(a.to_canonical())), None)
        }
        Peer::Node { name } => (uses_api_server(edge) && context.reach.nodes == Nodes::Addresses, Some(name)),
        Peer::Workload(_) => return None,
    };
    let mut peers = context.api_server_peers();
    if !asked || peers.is_empty() || context.reach.by_entity() {
        return None;
    }
    if let Some(name) = node.filter(|name| !context.hosts_api_server(name)) {
        peers.extend(context.peers_of_node(name, true));
    }
    let note = Some("the API server by all of its addresses: export again when one is added".to_owned());
    Some(Need::Peers { peers, hosts: BTreeSet::new(), note })
}

/// Who is called: the peer of an egress rule of the client, which is a workload.
pub(crate) fn callee(edge: &EdgeRecord, policy_namespace: &str, context: &Context<'_>) -> Need {
    if let Some(need) = api_server(edge, context) {
        return need;
    }
    match &*edge.server.peer {
        Peer::Workload(server) => pods(server, policy_namespace, context),
        Peer::External { address } if address == Peer::MANY => Need::Anywhere { identity_lost: false },
        Peer::External { address } => external_callee(address, context),
        Peer::Node { name } => node(edge, name, Side::Server, context),
    }
}

fn pods(workload: &guardrail_graph::WorkloadRef, policy_namespace: &str, context: &Context<'_>) -> Need {
    match context.pods_peer(workload, policy_namespace) {
        Some((peer, wider)) => Need::Peers {
            peers: BTreeSet::from([peer]),
            hosts: BTreeSet::new(),
            note: wider.then(|| {
                format!(
                    "the labels of {workload} may select other pods of {} too: give it a label of its own",
                    workload.namespace
                )
            }),
        },
        None => Need::Inexpressible(match context.workloads.get(workload) {
            Some(entry) => {
                let advice = entry.selector_advice.as_deref().unwrap_or("give its pod template a label of its own");
                format!("{workload} has no label that a rule could name: {advice}")
            }
            None => format!(
                "nothing is known of {workload} but its name, it was gone before its labels were seen: observe it again"
            ),
        }),
    }
}

fn external(address: &str, context: &Context<'_>) -> Need {
    match address.parse::<std::net::IpAddr>() {
        Ok(parsed) if context.reach.by_entity() && context.is_api_server(parsed.to_canonical()) => {
            Need::entities([Entity::KubeApiserver])
        }
        Ok(parsed) if context.is_inside_cluster(parsed.to_canonical()) => Need::Inexpressible(format!(
            "{address} lies inside the cluster's pod or Service addresses but nobody is known to own it"
        )),
        // The same address is another neighbour's on each link.
        Ok(parsed) if parsed.is_ipv6() && is_link_local(parsed) => {
            Need::Inexpressible(format!("{address} means something on one link alone"))
        }
        Ok(parsed) => Need::ExternalAddress(parsed.to_canonical()),
        Err(_) => Need::Inexpressible(format!("`{address}` is no address")),
    }
}

fn external_callee(address: &str, context: &Context<'_>) -> Need {
    let need = external(address, context);
    let Need::ExternalAddress(address) = need else { return need };
    node_cache(address, false, context).or_else(|| unlisted(address, context)).unwrap_or(need)
}

/// NodeLocal DNS: to Cilium it is the own node, or what the setup has put in its place.
fn node_cache(address: std::net::IpAddr, enters: bool, context: &Context<'_>) -> Option<Need> {
    if !is_node_cache(address) {
        return None;
    }
    match context.reach.nodes {
        Nodes::Entities => Some(Need::Peers {
            peers: BTreeSet::from([RulePeer::Entity(Entity::Host), single(address)]),
            hosts: BTreeSet::new(),
            note: None,
        }),
        Nodes::Nothing if !(enters && context.reach.own_node_enters) => {
            Some(Need::Inexpressible(format!("{address} is the pod's own node, {NO_NODE_IN_RANGES}")))
        }
        _ => None,
    }
}

/// An address that only its own node knows as its own is an external peer to all others, until a
/// person declares it.
fn external_caller(address: &str, context: &Context<'_>) -> Need {
    let need = external(address, context);
    let Need::ExternalAddress(address) = need else { return need };
    if context.is_control_plane(address) {
        return from_control_plane(need, context);
    }
    match context.node_range(address) {
        Some(range) => {
            let mut peers = BTreeSet::from([range.peer.clone()]);
            if context.reach.by_entity() {
                peers.extend(every_node());
            }
            Need::Peers { peers, hosts: BTreeSet::new(), note: Some("node addresses in declared ranges".to_owned()) }
        }
        None => node_cache(address, true, context).or_else(|| unlisted(address, context)).unwrap_or(need),
    }
}

/// An address that a node was seen with and its status does not list: to Cilium it may be the
/// node's, or somebody's outside.
fn unlisted(address: std::net::IpAddr, context: &Context<'_>) -> Option<Need> {
    let node = context.node_with_unlisted(address)?;
    match context.reach.nodes {
        Nodes::Addresses => None,
        Nodes::Entities => Some(Need::Peers {
            peers: every_node().into_iter().chain([single(address)]).collect(),
            hosts: BTreeSet::new(),
            note: Some(format!("{address} is an address of node {node} that its status does not list")),
        }),
        Nodes::Nothing => {
            Some(Need::Inexpressible(format!("{address} is an address of node {node}, {NO_NODE_IN_RANGES}")))
        }
    }
}

/// What a NetworkPolicy cannot say under Cilium, and what can.
const NO_NODE_IN_RANGES: &str =
    "and under Cilium no ipBlock matches a node: export with --format cilium, which names nodes by entity";

impl Need {
    fn entities(entities: impl IntoIterator<Item = Entity>) -> Self {
        let peers = entities.into_iter().map(RulePeer::Entity).collect();
        Self::Peers { peers, hosts: BTreeSet::new(), note: None }
    }
}

/// A node's address as a caller may be a host process, a host-network pod, the kubelet's probe, or
/// somebody whose address was translated.
fn node_caller(edge: &EdgeRecord, node_name: &str, context: &Context<'_>) -> Need {
    let server_nodes: BTreeSet<&str> =
        edge.sources.iter().filter(|s| s.side == Side::Server).map(|s| s.source.node.as_str()).collect();
    // Where the server's side saw nothing, its pod may have been on another node meanwhile.
    let own_node_only = server_nodes == BTreeSet::from([node_name]);
    let from_outside =
        edge.server.peer.workload().is_some_and(|w| context.is_reachable_from_outside(w, edge.protocol, edge.port));

    // The pods saw more connections from this node than its own sockets opened: somebody's address
    // was translated. What the node itself opens (above all its probes, B39) says nothing of the
    // rest.
    if from_outside && !context.explains_itself(edge) && context.reach.nodes != Nodes::Nothing {
        return Need::Anywhere { identity_lost: true };
    }
    if own_node_only && edge.node_workloads.is_empty() {
        match (context.reach.own_node_enters, context.reach.nodes) {
            (true, _) => return Need::Implicit,
            (false, Nodes::Entities) => return Need::entities([Entity::Host]),
            (false, _) => {}
        }
    }
    node(edge, node_name, Side::Client, context)
}

fn node(edge: &EdgeRecord, name: &str, side: Side, context: &Context<'_>) -> Need {
    let peers = match context.reach.nodes {
        Nodes::Addresses if side == Side::Server => {
            let answered = context.addresses_answered_on(name, edge).into_iter().map(single);
            context.peers_of_node(name, true).into_iter().chain(answered).collect()
        }
        Nodes::Addresses => context.peers_of_node(name, false),
        Nodes::Nothing => {
            let what = if side == Side::Client { "the client" } else { "the server" };
            return Need::Inexpressible(format!("{what} is a node, {NO_NODE_IN_RANGES}"));
        }
        Nodes::Entities if side == Side::Server && uses_api_server(edge) && context.hosts_api_server(name) => {
            return Need::entities([Entity::KubeApiserver]);
        }
        Nodes::Entities => every_node().into_iter().chain(context.ranges_of_unlisted(name)).collect(),
    };
    let former = context.former_addresses(name).filter(|addresses| peers.is_empty() && !addresses.is_empty());
    if let Some(addresses) = former {
        let were: Vec<String> = addresses.iter().take(2).map(ToString::to_string).collect();
        return Need::Inexpressible(format!(
            "node {name} is gone, and {} may be another's by now: declare the range from which nodes have their addresses with --node-range CIDR",
            were.join(", ")
        ));
    }
    if peers.is_empty() {
        return Need::Inexpressible(format!(
            "no address of node {name} is known, so no range can be said to hold it: export with an --inventory FILE that has the node"
        ));
    }
    if side == Side::Client && edge.marks.contains(marks::UNLISTED_ADDRESS) {
        let uncovered = context.uncovered_addresses_of_node(name);
        if let Some(first) = uncovered.first() {
            let more = if uncovered.len() > 1 { format!(" and {} more", uncovered.len() - 1) } else { String::new() };
            return Need::Inexpressible(format!(
                "node {name} was seen at addresses that its status does not list ({first}{more}): declare them with --node-range CIDR"
            ));
        }
    }
    let plural = if side == Side::Client { "clients" } else { "servers" };
    if context.reach.by_entity() {
        let note = format!("nodes as {plural}: the entities host and remote-node stand for every node");
        return Need::Peers { peers, hosts: BTreeSet::new(), note: Some(note) };
    }
    Need::Peers {
        peers,
        hosts: edge.node_workloads.clone(),
        note: Some(format!("node addresses as {plural}: these rules break when nodes change")),
    }
}
