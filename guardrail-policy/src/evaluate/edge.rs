//! Judging an edge of a snapshot: both ends are workloads, nodes or external peers, not single
//! pods.
//!
//! A workload is judged at every kind of pod that it has (kinds differ in labels, named ports, or
//! the `ipBlock`s that hold their addresses). An edge is allowed only if every pair is. Two pods of
//! one workload count as two replicas, so a self edge is judged, not exempt.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use guardrail_graph::{
    Peer, WorkloadRef,
    snapshot::{EdgeRecord, Side, marks},
};

use super::{ClusterNode, End, Evaluator, Exemption, RuleRef, SideVerdict, Verdict};
use crate::model::{Direction, Protocol};

/// Addresses that stand for "many external clients": every one of them has to be allowed.
/// (Documentation ranges and public resolvers.)
const MANY_V4: [[u8; 4]; 3] = [[198, 51, 100, 1], [8, 8, 8, 8], [203, 0, 113, 250]];
const MANY_V6: [[u16; 8]; 2] = [[0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], [0x2606, 0x4700, 0, 0, 0, 0, 0, 0x1111]];

/// The answer for an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeVerdict {
    /// The verdict of the first pair that is denied, else of the first pair.
    pub verdict: Verdict,
    /// Pairs of ends that were judged.
    pub pairs: usize,
    /// Pairs among them that are not allowed.
    pub denied: usize,
    /// Pairs among those that may be allowed all the same: nothing here tells.
    pub unproven: usize,
    /// Every egress rule that matched a pair, sorted.
    pub egress_rules: Vec<RuleRef>,
    /// Every ingress rule that matched a pair, sorted.
    pub ingress_rules: Vec<RuleRef>,
}

impl EdgeVerdict {
    /// Every pair is allowed.
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.denied == 0
    }

    /// At least one pair is allowed: the question of the proof that nothing unobserved passes.
    #[must_use]
    pub fn any_allowed(&self) -> bool {
        self.denied < self.pairs
    }
}

/// The peer cannot be judged: the cluster does not know this workload, or the address is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing is known about {0}: neither inventory nor snapshot lists it")]
pub struct UnknownPeer(pub Peer);

/// A kind of pod of a workload: the pod that stands for it, as an end that is no particular pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replica {
    end: End,
    pod: u32,
}

/// Ends as clients, and as servers.
type Ends = (Vec<End>, Vec<End>);

/// The kinds of pods per workload.
pub(super) type Replicas = HashMap<WorkloadRef, Vec<Replica>>;

impl Evaluator {
    /// Judges an observed edge, from what was recorded with it: a node and the pods on that same
    /// node are exempt (A29), and a named port whose number differs between replicas is judged at
    /// those that have the observed number.
    ///
    /// # Errors
    /// [`UnknownPeer`] if an end cannot be judged.
    pub fn evaluate_edge(&self, edge: &EdgeRecord) -> Result<EdgeVerdict, UnknownPeer> {
        if let Some((clients, servers)) = self.ends_of(edge)? {
            let peers = [&*edge.client.peer, &*edge.server.peer];
            return Ok(self.judge_peers(peers, [&clients, &servers], edge.protocol, edge.port));
        }
        let verdict = Verdict {
            exemption: Some(Exemption::OwnNode),
            egress: SideVerdict::NotIsolated,
            ingress: SideVerdict::NotIsolated,
        };
        Ok(EdgeVerdict {
            verdict,
            pairs: 1,
            denied: 0,
            unproven: 0,
            egress_rules: Vec::new(),
            ingress_rules: Vec::new(),
        })
    }

    /// Whether an observed edge is allowed, as [`EdgeVerdict::allowed`] says of it. It costs less
    /// than asking which rules decide.
    ///
    /// # Errors
    /// [`UnknownPeer`] if an end cannot be judged.
    pub fn allows_edge(&self, edge: &EdgeRecord) -> Result<bool, UnknownPeer> {
        if self.is_gone(&edge.client.peer) || self.is_gone(&edge.server.peer) {
            return Ok(self.evaluate_edge(edge)?.allowed());
        }
        let Some((clients, servers)) = self.ends_of(edge)? else { return Ok(true) };
        let mut pairs = pairs(&clients, &servers);
        Ok(pairs.all(|(client, server)| self.allows(client, server, edge.protocol, edge.port)))
    }

    /// The ends that stand for those of an edge, as clients and as servers; `None`: whatever
    /// policies say, it is allowed.
    fn ends_of(&self, edge: &EdgeRecord) -> Result<Option<Ends>, UnknownPeer> {
        let seen_at = |side: Side| -> BTreeSet<&str> {
            edge.sources.iter().filter(|s| s.side == side).map(|s| s.source.node.as_str()).collect()
        };
        let own_node = match (&*edge.client.peer, &*edge.server.peer) {
            (Peer::Node { name }, Peer::Workload(_)) => seen_at(Side::Server) == BTreeSet::from([name.as_str()]),
            // Cilium lets the node in to its pods, not the pods out to it: then it is judged like
            // any node.
            (Peer::Workload(_), Peer::Node { name }) if !self.is_cilium() => {
                seen_at(Side::Client) == BTreeSet::from([name.as_str()])
            }
            _ => false,
        };
        if own_node {
            return Ok(None);
        }
        let mut clients = self.peer_ends(&edge.client.peer, true)?;
        if let (Peer::Node { name }, true) = (&*edge.client.peer, edge.marks.contains(marks::UNLISTED_ADDRESS)) {
            let unlisted = self.cluster().unlisted_addresses.iter().filter(|(_, node)| *node == name);
            clients.extend(unlisted.map(|(address, _)| self.end_of_node_at(name, *address)));
        }
        let servers = match (&*edge.server.peer, &edge.port_name) {
            (Peer::Workload(workload), Some(name)) => self.replicas_with_port(workload, name, edge.protocol, edge.port),
            _ => None,
        };
        let mut servers = match servers {
            Some(servers) => servers,
            None => self.peer_ends(&edge.server.peer, false)?,
        };
        if uses_api_server(edge) && matches!(*edge.server.peer, Peer::Node { .. }) {
            // Of a node's addresses it was the one behind the Service, if that is known.
            let is_behind = |end: &End| end.addresses().any(|address| self.is_api_server(address));
            if servers.iter().any(is_behind) {
                servers.retain(is_behind);
            }
        }
        Ok(Some((clients, servers)))
    }

    /// Judges every kind of pod of the client against every kind of the server.
    ///
    /// # Errors
    /// [`UnknownPeer`] if an end cannot be judged.
    pub fn evaluate_peers(
        &self,
        client: &Peer,
        server: &Peer,
        protocol: Protocol,
        port: u16,
    ) -> Result<EdgeVerdict, UnknownPeer> {
        let ends = [self.peer_ends(client, true)?, self.peer_ends(server, false)?];
        Ok(self.judge_peers([client, server], [&ends[0], &ends[1]], protocol, port))
    }

    /// A node that is gone.
    fn former_node(&self, name: &str) -> Option<&ClusterNode> {
        self.cluster().former_nodes.iter().find(|node| node.name == name)
    }

    /// Whether a peer is such a node.
    fn is_gone(&self, peer: &Peer) -> bool {
        matches!(peer, Peer::Node { name } if self.former_node(name).is_some())
    }

    /// Judges the ends that stand for two peers. Nobody knows which of its addresses a node used
    /// that is gone, and it uses none any more: one that is allowed speaks for it.
    fn judge_peers(
        &self,
        peers: [&Peer; 2],
        [clients, servers]: [&[End]; 2],
        protocol: Protocol,
        port: u16,
    ) -> EdgeVerdict {
        let are_gone = peers.map(|peer| self.is_gone(peer));
        if are_gone == [false, false] {
            return self.judge(clients, servers, protocol, port);
        }
        let [clients_of, servers_of] = [(are_gone[0], clients), (are_gone[1], servers)]
            .map(|(is_gone, ends)| ends.chunks(if is_gone { 1 } else { ends.len().max(1) }));
        let pairs = clients_of.flat_map(|clients| servers_of.clone().map(move |servers| (clients, servers)));
        let can_reach = |(clients, servers): &(&[End], &[End])| {
            clients.iter().any(|client| servers.iter().any(|server| client.can_reach(server)))
        };
        let mut verdicts =
            pairs.filter(can_reach).map(|(clients, servers)| self.judge(clients, servers, protocol, port));
        match verdicts.find(|verdict| verdict.denied == 0) {
            Some(allowed) => allowed,
            None => self.judge(clients, servers, protocol, port),
        }
    }

    /// The ends that stand for a peer, as the client or as the server of a connection.
    ///
    /// A node is each of its addresses; as a server, those outside the pod ranges (nobody calls a
    /// node at its tunnel address).
    ///
    /// # Errors
    /// [`UnknownPeer`] if nothing is known about it.
    pub fn peer_ends(&self, peer: &Peer, client: bool) -> Result<Vec<End>, UnknownPeer> {
        let unknown = || UnknownPeer(peer.clone());
        match peer {
            Peer::Workload(workload) => {
                let replicas = self.replicas.get(workload).filter(|r| !r.is_empty()).ok_or_else(unknown)?;
                Ok(replicas.iter().map(|r| r.end).collect())
            }
            Peer::Node { name } => {
                let node = self.cluster().nodes.iter().find(|n| n.name == *name).or_else(|| self.former_node(name));
                let all: Vec<IpAddr> = node.into_iter().flat_map(|n| n.addresses.iter().copied()).collect();
                let outside = |a: &IpAddr| !self.cluster().pod_ranges.iter().any(|range| range.contains(a));
                let called: Vec<IpAddr> = all.iter().copied().filter(outside).collect();
                let used = if client || called.is_empty() { all } else { called };
                if used.is_empty() {
                    return Ok(vec![self.end_of_node(name)]);
                }
                Ok(used.into_iter().map(|address| self.end_of_node_at(name, address)).collect())
            }
            Peer::External { address } if address == Peer::MANY => {
                let v4 = MANY_V4.into_iter().map(IpAddr::from);
                let v6 = MANY_V6.into_iter().map(IpAddr::from);
                Ok(v4.chain(v6).map(|a| self.end_of_address(a)).collect())
            }
            Peer::External { address } => Ok(vec![self.end_of_address(address.parse().map_err(|_| unknown())?)]),
        }
    }

    /// Indices of the policies that isolate ends of a peer in this direction; none if nothing is
    /// known about it.
    #[must_use]
    pub fn isolating_peer(&self, peer: &Peer, direction: Direction) -> BTreeSet<u32> {
        let ends = self.peer_ends(peer, direction == Direction::Egress).unwrap_or_default();
        ends.iter().flat_map(|end| self.isolating(end, direction)).collect()
    }

    fn judge(&self, clients: &[End], servers: &[End], protocol: Protocol, port: u16) -> EdgeVerdict {
        let mut first: Option<Verdict> = None;
        let (mut pairs, mut denied, mut unproven) = (0, 0, 0);
        // Allowed, unproven, denied: the worst one speaks for all.
        let rank = |v: &Verdict| if v.allowed() { 0 } else { 1 + u8::from(v.denied()) };
        let mut rules = (Vec::new(), Vec::new());
        for (client, server) in self::pairs(clients, servers) {
            let verdict = self.evaluate(client, server, protocol, port);
            pairs += 1;
            rules.0.extend_from_slice(verdict.egress.rules());
            rules.1.extend_from_slice(verdict.ingress.rules());
            if !verdict.allowed() {
                denied += 1;
                unproven += usize::from(!verdict.denied());
            }
            if first.as_ref().is_none_or(|f| rank(f) < rank(&verdict)) {
                first = Some(verdict);
            }
        }
        let verdict = first.expect("there is a pair");
        for side in [&mut rules.0, &mut rules.1] {
            side.sort_unstable();
            side.dedup();
        }
        EdgeVerdict { verdict, pairs, denied, unproven, egress_rules: rules.0, ingress_rules: rules.1 }
    }

    fn replicas_with_port(
        &self,
        workload: &WorkloadRef,
        name: &str,
        protocol: Protocol,
        port: u16,
    ) -> Option<Vec<End>> {
        let has = |replica: &&Replica| {
            let ports = &self.cluster().pods[replica.pod as usize].ports;
            ports.iter().any(|(n, p, number)| n == name && *p == protocol && *number == port)
        };
        let ends: Vec<End> = self.replicas.get(workload)?.iter().filter(has).map(|r| r.end).collect();
        (!ends.is_empty()).then_some(ends)
    }

    /// Reduces each workload's pods to the kinds that policies can tell apart.
    pub(super) fn find_replicas(&self) -> Replicas {
        let blocks = self.ip_blocks();
        let kinds = |pods: &Vec<u32>| {
            let mut seen = HashSet::new();
            let mut replicas = Vec::new();
            for &pod in pods {
                let end = self.end_of_pod(pod).any_replica();
                let within: Vec<bool> =
                    blocks.iter().flat_map(|b| end.addresses().map(|a| b.contains(a)).collect::<Vec<_>>()).collect();
                let families = end.addresses().map(|a| a.is_ipv6()).collect::<Vec<_>>();
                if seen.insert((end.kind(), within, families)) {
                    replicas.push(Replica { end, pod });
                }
            }
            replicas
        };
        self.cluster().workloads.iter().map(|(workload, pods)| (workload.clone(), kinds(pods))).collect()
    }
}

/// The pairs of ends that are judged, at least one: those that can reach each other. Of ends
/// without a family in common one pair is judged all the same, by what does not depend on
/// addresses.
fn pairs<'a>(clients: &'a [End], servers: &'a [End]) -> impl Iterator<Item = (&'a End, &'a End)> {
    let all = || clients.iter().flat_map(|client| servers.iter().map(move |server| (client, server)));
    let reach = move |(client, server): &(&End, &End)| clients.len() + servers.len() <= 2 || client.can_reach(server);
    let mut found = all().filter(reach).peekable();
    let instead = if found.peek().is_none() { all().next() } else { None };
    found.chain(instead)
}

/// Whether the client used Service `default/kubernetes`: the server is the API server.
pub(crate) fn uses_api_server(edge: &EdgeRecord) -> bool {
    edge.via.iter().any(|via| via.starts_with("default/kubernetes:"))
}

#[cfg(test)]
mod tests;
