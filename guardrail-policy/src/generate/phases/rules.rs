//! From edges to the rules of one direction of one policy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use guardrail_graph::{
    Peer, Protocol, WorkloadRef,
    observer::MAX_NAMES_PER_ADDRESS,
    snapshot::{
        EdgeRecord,
        marks::{self, HBONE},
    },
};

use super::{Builder, Draft};
use crate::generate::{
    FlowName, Phase, PortRef, ProblemKind, RulePeer, RulePort,
    completeness::edge_name,
    context::single,
    edges::{Need, callee, caller},
    reach::{Nodes, dns_name, every_node},
};
use crate::model::Direction;

/// How many addresses of a name Cilium keeps unless it is told otherwise.
const ADDRESSES_OF_A_NAME: usize = 50;

/// Of whom the external ends are counted together: per port of a workload (ingress), or per name
/// and port (egress).
type OutsideKey = (Option<WorkloadRef>, Protocol, u16, String);

/// External ends of one port, gathered before it is known whether they stay single addresses.
#[derive(Default)]
struct Outside {
    ports: BTreeSet<RulePort>,
    addresses: BTreeMap<IpAddr, Vec<usize>>,
    anywhere: Vec<usize>,
    identity_lost: bool,
    names: BTreeSet<String>,
}

impl Builder<'_> {
    /// Turns edges into rules of one direction.
    pub(super) fn collect(&mut self, draft: &mut Draft, indices: &[usize], namespace: &str, direction: Direction) {
        let mut outside: BTreeMap<OutsideKey, Outside> = BTreeMap::new();
        let mut named: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        for &index in indices {
            let edge = self.edge(index);
            let need = match direction {
                Direction::Ingress => caller(edge, namespace, self.context),
                Direction::Egress => callee(edge, namespace, self.context),
            };
            let ports = self.ports(edge);
            if edge.marks.contains(marks::TUNNEL) {
                let note = format!(
                    "{} is a tunnel: which port is meant stands inside, so the rule opens every port of the server that its proxy serves",
                    edge_name(edge)
                );
                self.warnings.insert(note.clone());
                draft.notes.insert(note);
            }
            if direction == Direction::Egress && !matches!(need, Need::Inexpressible(_)) {
                self.allow_services(draft, index, &[index]);
                self.allow_node_ports(draft, index);
            }
            match need {
                Need::Peers { peers, hosts, note } => {
                    draft.allow(peers, &ports, &[index]);
                    for host in hosts {
                        self.allow_host_workload(draft, host, &ports, direction);
                    }
                    if let Some(note) = note {
                        self.warnings.insert(format!("{}: {note}", edge_name(edge)));
                        draft.notes.insert(note);
                    }
                }
                Need::ExternalAddress(address)
                    if direction == Direction::Egress
                        && self.allow_declared(draft, index, address, &ports, namespace) => {}
                // A resolver is named by its address: from it the names are learnt.
                Need::ExternalAddress(address) if draft.by_name && edge.port != 53 && !names_of(edge).is_empty() => {
                    let names = names_of(edge);
                    draft.allow(names.iter().cloned().map(RulePeer::Name), &ports, &[index]);
                    if edge.server.names.len() >= MAX_NAMES_PER_ADDRESS {
                        // It may have been called by one that is not kept.
                        draft.allow([single(address)], &ports, &[index]);
                        draft.notes.insert(format!(
                            "{address} had many names, of which some may not be known: allowed by itself, too"
                        ));
                    }
                    for name in names {
                        named.entry(name).or_default().insert(address);
                    }
                }
                Need::ExternalAddress(address) => {
                    if let (Direction::Ingress, Some(node)) = (direction, self.context.node_with_unlisted(address)) {
                        self.warnings.insert(format!(
                            "{}: {address} is an address of node {node} that its status does not list: declare it with --node-range CIDR",
                            edge_name(edge)
                        ));
                    }
                    let gathered = outside.entry(outside_key(edge, direction)).or_default();
                    gathered.ports.extend(ports);
                    gathered.addresses.entry(address).or_default().push(index);
                    let end = if direction == Direction::Ingress { &edge.client } else { &edge.server };
                    gathered.names.extend(end.names.iter().cloned());
                }
                Need::Anywhere { identity_lost } => {
                    let gathered = outside.entry(outside_key(edge, direction)).or_default();
                    gathered.ports.extend(ports);
                    gathered.anywhere.push(index);
                    gathered.identity_lost |= identity_lost;
                }
                Need::Implicit => {}
                Need::Inexpressible(why) => {
                    self.inexpressible.insert(index);
                    let side = if direction == Direction::Ingress { "ingress" } else { "egress" };
                    self.problem(
                        ProblemKind::Inexpressible,
                        [namespace],
                        format!(
                            "{} would be denied, no {side} rule can allow it: {why}; or leave it without a rule with --accept {}",
                            edge_name(edge),
                            FlowName::of(edge).quoted()
                        ),
                    );
                    draft.notes.insert(format!("not allowed although observed: {} ({side})", edge_name(edge)));
                }
            }
        }
        for (name, addresses) in named.iter().filter(|(_, addresses)| addresses.len() > ADDRESSES_OF_A_NAME) {
            let note = format!(
                "{name} had {} addresses, and by default Cilium keeps {ADDRESSES_OF_A_NAME} of a name: raise tofqdns-endpoint-max-ip-per-hostname, or declare its ranges with --declare NAME=CIDR",
                addresses.len()
            );
            self.warnings.insert(note.clone());
            draft.notes.insert(note);
        }
        for (key, gathered) in outside {
            self.allow_outside(draft, &key, gathered, namespace, direction);
        }
    }

    /// Where the network judges egress before it translates addresses: the addresses of Services
    /// that an edge asked for, at their ports, beside who stands behind them. The rules rest on
    /// `edges`.
    pub(super) fn allow_services(&self, draft: &mut Draft, index: usize, edges: &[usize]) {
        if !self.context.options.enforcer().judges_what_was_asked() {
            return;
        }
        let edge = self.edge(index);
        for (service, number) in self.context.services_asked(edge).filter(|(service, _)| !service.addresses.is_empty())
        {
            let mut ports = BTreeSet::from([RulePort { protocol: edge.protocol, port: PortRef::Number(number) }]);
            if self.dns.covers(edge) {
                let protocols = [Protocol::Tcp, Protocol::Udp];
                ports.extend(protocols.map(|protocol| RulePort { protocol, port: PortRef::Number(number) }));
            }
            draft.allow(service.addresses.iter().copied().map(single), &ports, edges);
            draft.notes.insert(format!(
                "Service {}/{} by its addresses, because the network judges egress before it translates them: export again when the Service is made anew",
                service.namespace, service.name
            ));
        }
    }

    /// Where another node than the client's was asked ([`marks::HOST_PORT`]): that node translates
    /// what has left the client by then, whose egress is judged at the node's address and port.
    /// Behind a node port every node leads to the same pods.
    fn allow_node_ports(&self, draft: &mut Draft, index: usize) {
        let edge = self.edge(index);
        for (number, nodes) in self.context.node_ports_asked(edge) {
            let peers: BTreeSet<RulePeer> = match self.context.reach.nodes {
                Nodes::Addresses => nodes.iter().flat_map(|node| self.context.peers_of_node(node, true)).collect(),
                Nodes::Entities => every_node(),
                Nodes::Nothing => continue,
            };
            let ports = BTreeSet::from([RulePort { protocol: edge.protocol, port: PortRef::Number(number) }]);
            draft.allow(peers, &ports, &[index]);
            draft.notes.insert(format!(
                "port {number} of nodes, which lead to {} {}: another node than the client's was asked, and egress is judged before that node translates it",
                edge.server.peer, edge.port
            ));
        }
    }

    /// Allows every node of a host-network workload, once for each rule: thousands of nodes may be
    /// clients, and each edge names the workload.
    fn allow_host_workload(&self, draft: &mut Draft, host: String, ports: &BTreeSet<RulePort>, direction: Direction) {
        if !draft.hosts.insert((host.clone(), ports.clone())) {
            return;
        }
        for node in self.context.nodes_of_host_workload(&host) {
            for peer in self.context.peers_of_node(node, direction == Direction::Egress) {
                draft.rules.allow(peer, ports.iter().cloned());
            }
        }
    }

    /// Allows an external server by the ranges that a person declared for one of its names (B20).
    /// Returns whether there are any.
    fn allow_declared(
        &mut self,
        draft: &mut Draft,
        index: usize,
        address: IpAddr,
        ports: &BTreeSet<RulePort>,
        namespace: &str,
    ) -> bool {
        let edge = self.edge(index);
        let Some((name, ranges)) = self.context.declared(edge, address) else { return false };
        let holds_pods = ranges.values().any(|range| range.holds_pods);
        draft.allow(ranges.values().map(|range| range.peer.clone()), ports, &[index]);
        draft.notes.insert(format!("{name}: ranges as declared"));
        if holds_pods {
            self.announce(edge.client.peer.workload(), ports, namespace, Direction::Egress);
            self.warnings.insert(format!(
                "the ranges declared for {name} hold addresses of pods, whose range is not known: give --inventory"
            ));
        }
        true
    }

    fn allow_outside(
        &mut self,
        draft: &mut Draft,
        key: &OutsideKey,
        gathered: Outside,
        namespace: &str,
        direction: Direction,
    ) {
        let (workload, protocol, port, _) = key;
        let Outside { ports, addresses, anywhere, identity_lost, names } = gathered;
        let who = workload.as_ref().map_or_else(String::new, |w| format!("{w} "));
        if anywhere.is_empty() && addresses.len() <= self.context.options.max_external_addresses {
            for (address, edges) in &addresses {
                draft.allow([single(*address)], &ports, edges);
            }
            return;
        }
        let mut edges: Vec<usize> = addresses.values().flatten().copied().chain(anywhere).collect();
        edges.sort_unstable();
        draft.allow(self.context.anywhere(!identity_lost), &ports, &edges);
        let label = format!("{who}{port}/{protocol}");
        let by_entity = self.context.reach.by_entity();
        if identity_lost && by_entity {
            draft.allow(every_node(), &ports, &edges);
        }
        // Entities of nodes and of everybody outside hold no pod.
        if !by_entity && identity_lost || !self.context.anywhere_is_outside() {
            self.announce(workload.as_ref(), &ports, namespace, direction);
        }
        match direction {
            Direction::Ingress if identity_lost => {
                let whom = if by_entity { "every node and any external address" } else { "any address" };
                let note = format!(
                    "{label}: client identity lost behind node addresses (node port or load balancer), open to {whom}"
                );
                self.warnings.insert(note.clone());
                draft.notes.insert(note);
            }
            Direction::Ingress => {
                draft.notes.insert(format!("{label}: many external clients, open to any external address"));
            }
            Direction::Egress => {
                let known = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
                let known = if known.is_empty() { "many external servers".to_owned() } else { known };
                let note = format!(
                    "{label}: {known} has too many addresses, open to any external address; declare its ranges with --declare NAME=CIDR"
                );
                self.warnings.insert(note.clone());
                draft.notes.insert(note);
            }
        }
        if !identity_lost && !self.context.anywhere_is_outside() {
            let note = format!(
                "{label}: the ranges where pods live are not known, so \"any external address\" includes them; give --inventory"
            );
            self.warnings.insert(note.clone());
            draft.notes.insert(note);
        }
    }

    /// Remembers that any address, those of pods included, passes these ports.
    fn announce(
        &mut self,
        workload: Option<&WorkloadRef>,
        ports: &BTreeSet<RulePort>,
        namespace: &str,
        direction: Direction,
    ) {
        let alike = workload.map(|workload| self.context.alike(workload)).unwrap_or_default();
        for port in ports {
            match direction {
                Direction::Ingress => {
                    // A namespace's boundary opens the port for all of its pods.
                    let options = self.context.options;
                    let boundary = workload.is_none_or(|workload| !self.is_closed(workload))
                        && options.phase_of(namespace) != Phase::DefaultDeny;
                    let opened: Vec<&WorkloadRef> = self
                        .context
                        .covered(namespace)
                        .map(|w| &w.workload)
                        .filter(|w| boundary && !self.is_closed(w) || alike.contains(*w))
                        .collect();
                    let triples = opened.into_iter().flat_map(|w| {
                        self.context.numbers_of(w, port).into_iter().map(|n| (w.clone(), port.protocol, n))
                    });
                    self.announced.from_anywhere.extend(triples);
                }
                Direction::Egress => {
                    let PortRef::Number(number) = port.port else { continue };
                    self.announced.to_anywhere.extend(alike.iter().map(|w| (w.clone(), port.protocol, number)));
                }
            }
        }
    }

    /// The ports that allow this edge.
    pub(super) fn ports(&self, edge: &EdgeRecord) -> BTreeSet<RulePort> {
        let mut ports = match &*edge.server.peer {
            Peer::Workload(server) => {
                self.context.ports_of(server, edge.protocol, edge.port, edge.port_name.as_deref())
            }
            _ => BTreeSet::from([RulePort { protocol: edge.protocol, port: PortRef::Number(edge.port) }]),
        };
        if self.context.options.also_service_ports {
            let service_ports = edge.via.iter().filter_map(|via| via.rsplit_once(':')?.1.parse().ok());
            ports.extend(
                service_ports.map(|number| RulePort { protocol: edge.protocol, port: PortRef::Number(number) }),
            );
        }
        let options = self.context.options;
        // With a plan always, so that a namespace that closes its egress opens nothing elsewhere.
        if (options.closes_egress() || !options.goals.is_empty()) && self.dns.covers(edge) {
            // A resolver turns to TCP when an answer is long (B15).
            let protocols = [Protocol::Tcp, Protocol::Udp];
            ports.extend(protocols.map(|protocol| RulePort { protocol, port: PortRef::Number(edge.port) }));
        }
        if edge.marks.contains("proxied") {
            // An ambient mesh carries the connection to the same pod inside HBONE.
            ports.insert(RulePort { protocol: Protocol::Tcp, port: PortRef::Number(HBONE) });
        }
        ports
    }
}

/// The names of an external server that a rule can hold.
fn names_of(edge: &EdgeRecord) -> BTreeSet<String> {
    edge.server.names.iter().filter_map(|name| dns_name(name)).collect()
}

fn outside_key(edge: &EdgeRecord, direction: Direction) -> OutsideKey {
    match direction {
        Direction::Ingress => (edge.server.peer.workload().cloned(), edge.protocol, edge.port, String::new()),
        Direction::Egress => (
            edge.client.peer.workload().cloned(),
            edge.protocol,
            edge.port,
            edge.server.names.iter().next().cloned().unwrap_or_default(),
        ),
    }
}
