//! The rules about ports.

use super::{
    ANY_PEER, EVERY_PORT, Linter, NODE_PORT, OTHER_PROTOCOL, Policy, SERVICE_PORT, SPLIT_RULE, Severity,
    UNKNOWN_PORT_NAME, dns,
};
use crate::{
    evaluate::ClusterPod,
    model::{Direction, IpBlock, NetworkPolicy, PeerKind, PolicyPeer, PolicyPort, PortMatch, Protocol, Rule},
};

/// The API server's default for `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// A rule that accepts, as far as it may be half of one.
pub(super) struct Halves<'a> {
    pub(super) has_peers: bool,
    pub(super) ports: &'a [PolicyPort],
    /// How the rule is called.
    pub(super) label: String,
    pub(super) line: u32,
}

impl<'a> Linter<'a> {
    pub(super) fn ports(&mut self, policy: &NetworkPolicy, index: u32, direction: Direction, rule: &Rule, name: &str) {
        let concerned = self.concerned(policy, index, direction, rule);
        for port in &rule.ports {
            match &port.port {
                PortMatch::Range { first, last } if first == last => {
                    self.number(policy, direction, port, *first, concerned.as_deref(), name);
                    self.protocol(policy, rule, port, *first, concerned.as_deref().unwrap_or_default(), name);
                    if direction == Direction::Egress {
                        self.endpoint_port(policy, rule, port, *first, name);
                    }
                }
                PortMatch::Named(wanted) => self.port_name(policy, direction, port, wanted, concerned.as_deref(), name),
                PortMatch::Any => self.every_port(policy, rule, port, name),
                PortMatch::Range { .. } => {}
            }
        }
    }

    /// `- port: 8080` and `- protocol: TCP` as two items, where one was meant: the second is every
    /// port. Alone it is how all of a protocol is meant.
    fn every_port(&mut self, policy: &NetworkPolicy, rule: &Rule, port: &PolicyPort, name: &str) {
        let beside = |p: &&PolicyPort| p.protocol == port.protocol && !matches!(p.port, PortMatch::Any);
        let idle: Vec<String> = rule.ports.iter().filter(beside).map(ToString::to_string).collect();
        if !idle.is_empty() {
            let message = format!(
                "{name}: an item without `port` is every {} port, so {} beside it does nothing",
                port.protocol,
                idle.join(", ")
            );
            self.add_with(&EVERY_PORT, policy, port.line, message, "Write port and protocol in one item".to_owned());
            if let Some(last) = self.findings.last_mut() {
                last.severity = Severity::Warning;
            }
        }
    }

    /// The pods whose ports a rule can mean: those that the policy selects, or those that egress
    /// leads to. `None`: not known, or anything.
    fn concerned(
        &self,
        policy: &NetworkPolicy,
        index: u32,
        direction: Direction,
        rule: &Rule,
    ) -> Option<Vec<&'a ClusterPod>> {
        let evaluator = self.evaluator?;
        let pods = &evaluator.cluster().pods;
        match direction {
            Direction::Ingress => Some(evaluator.selected_pods(index).into_iter().map(|p| &pods[p as usize]).collect()),
            Direction::Egress if rule.peers.iter().any(|p| matches!(p.kind, PeerKind::IpBlock(_))) => None,
            Direction::Egress if rule.peers.is_empty() => None,
            Direction::Egress => {
                Some(rule.peers.iter().flat_map(|p| self.peer_pods(policy, &p.kind).selectable).collect())
            }
        }
    }

    /// A forgotten `protocol: UDP`, mostly.
    fn protocol(
        &mut self,
        policy: &NetworkPolicy,
        rule: &Rule,
        port: &PolicyPort,
        number: u16,
        concerned: &[&ClusterPod],
        name: &str,
    ) {
        let declared = |pod: &&ClusterPod| pod.declared_ports.iter().find(|d| d.port == number).map(|d| d.protocol);
        let with = |wanted: Protocol| {
            concerned.iter().any(|pod| pod.declared_ports.iter().any(|d| d.port == number && d.protocol == wanted))
        };
        let Some(other) = concerned.iter().find_map(declared).filter(|_| !with(port.protocol)) else { return };
        // Both protocols of one number are often opened together.
        let is = |p: &PolicyPort| p.protocol == other && p.port == port.port;
        if !rule.ports.iter().any(is) {
            let message = format!("{name}: {}/{number}, and the pods declare {other}/{number}", port.protocol);
            self.add_with(&OTHER_PROTOCOL, policy, port.line, message, format!("Write protocol: {other}"));
        }
    }

    /// The port of a Service without selector beside the addresses of its endpoints, which listen
    /// on another one: 443 of the API server, mostly.
    fn endpoint_port(&mut self, policy: &NetworkPolicy, rule: &Rule, port: &PolicyPort, number: u16, name: &str) {
        let narrow = |peer: &PolicyPeer| match &peer.kind {
            PeerKind::IpBlock(block) if block.cidr.max_prefix_len() - block.cidr.prefix_len() <= 8 => {
                Some(block.clone())
            }
            _ => None,
        };
        let blocks: Vec<IpBlock> = rule.peers.iter().filter_map(narrow).collect();
        if blocks.is_empty() || blocks.len() < rule.peers.len() {
            return;
        }
        let inventory = &self.context.inventory;
        let mut found = None;
        for service in inventory.services().filter(|s| s.selector.is_empty()) {
            for backend in inventory.backends(service) {
                if !blocks.iter().any(|block| block.contains(backend.address)) {
                    continue;
                }
                let of = &service.ports[backend.service_port];
                if backend.port == number {
                    return;
                }
                if of.port == number && port.protocol.is_named(&of.protocol) {
                    found.get_or_insert((format!("{}/{}", service.namespace, service.name), backend));
                }
            }
        }
        let Some((service, backend)) = found else { return };
        // `10.0.0.1:443` and `:6443` stand beside each other in rules that are to hold everywhere.
        let is = |p: &PolicyPort| matches!(&p.port, PortMatch::Range { first, last } if (first..=last).contains(&&backend.port));
        if !rule.ports.iter().any(is) {
            let message = format!(
                "{name}: {number} is the port of Service {service}, its endpoint {} listens on {}",
                backend.address, backend.port
            );
            self.add_with(
                &SERVICE_PORT,
                policy,
                port.line,
                message,
                format!("Write the endpoint's port, {}", backend.port),
            );
        }
    }

    pub(super) fn number(
        &mut self,
        policy: &impl Policy,
        direction: Direction,
        port: &PolicyPort,
        number: u16,
        concerned: Option<&[&ClusterPod]>,
        name: &str,
    ) {
        let declares =
            |pod: &&&ClusterPod| pod.declared_ports.iter().any(|d| d.protocol == port.protocol && d.port == number);
        if concerned.is_some_and(|pods| pods.iter().any(|p| declares(&p))) {
            return;
        }
        let of = self.context.node_ports.iter().find(|(known, _)| *known == number).map(|(_, service)| service.clone());
        if let Some(service) = of {
            let message = format!("{name}: {number} is the node port of Service {service}");
            return self.add(&NODE_PORT, policy, port.line, message);
        }
        if self.evaluator.is_none() && NODE_PORTS.contains(&number) {
            // It may be a port of the pods as well.
            let message = format!("{name}: {number} lies in the range of node ports");
            return self.add_as(Severity::Warning, &NODE_PORT, policy, port.line, message);
        }
        let Some((service, target, listens)) =
            concerned.and_then(|pods| self.service_port(pods, port.protocol, number))
        else {
            return;
        };
        let whose = if direction == Direction::Ingress { "no selected pod" } else { "no pod that it leads to" };
        let message = format!(
            "{name}: {number} is the port of Service {service}, the pods behind it listen on {listens}{target}; {whose} declares {number}"
        );
        self.add_with(&SERVICE_PORT, policy, port.line, message, format!("Write the container port, {listens}"));
    }

    /// A Service that has this port and leads to another one of these pods: its name, the target
    /// port's name, the pods' port.
    fn service_port(&self, pods: &[&ClusterPod], protocol: Protocol, number: u16) -> Option<(String, String, u16)> {
        for service in self.context.inventory.services().filter(|s| !s.selector.is_empty()) {
            let selects = |pod: &&&ClusterPod| {
                pod.namespace == service.namespace
                    && service.selector.iter().all(|(k, v)| pod.labels.get(k).is_some_and(|own| own == v))
            };
            let is = |p: &&guardrail_graph::inventory::ServicePort| p.port == number && protocol.is_named(&p.protocol);
            let Some(port) = service.ports.iter().find(is) else { continue };
            let Some(pod) = pods.iter().find(selects) else { continue };
            let (listens, target) = match &port.target_port {
                guardrail_graph::inventory::TargetPort::Number(n) => (Some(*n), String::new()),
                guardrail_graph::inventory::TargetPort::Name(wanted) => {
                    let found = pod.ports.iter().find(|(n, p, _)| n == wanted && *p == protocol);
                    (found.map(|(.., n)| *n), format!(" (targetPort {wanted})"))
                }
            };
            if let Some(listens) = listens.filter(|n| *n != number) {
                return Some((format!("{}/{}", service.namespace, service.name), target, listens));
            }
        }
        None
    }

    fn port_name(
        &mut self,
        policy: &NetworkPolicy,
        direction: Direction,
        port: &PolicyPort,
        wanted: &str,
        concerned: Option<&[&ClusterPod]>,
        name: &str,
    ) {
        // A quoted number is told as that.
        if self.evaluator.is_none() || wanted.bytes().all(|b| b.is_ascii_digit()) {
            return;
        }
        let has = |pod: &ClusterPod| pod.ports.iter().any(|(n, p, _)| n == wanted && *p == port.protocol);
        let known = match concerned {
            Some(pods) => pods.is_empty() || pods.iter().any(|p| has(p)),
            None => self.context.cluster.as_ref().is_some_and(|c| c.pods.iter().any(has)),
        };
        if known {
            return;
        }
        let whose = match (direction, concerned) {
            (Direction::Ingress, _) => "no selected pod".to_owned(),
            (Direction::Egress, None) => "no pod".to_owned(),
            (Direction::Egress, Some(pods)) => {
                let named: Vec<&str> = pods[0].ports.iter().map(|(n, ..)| n.as_str()).collect();
                format!(
                    "no pod that it leads to ({}: {})",
                    pods[0].full_name(),
                    if named.is_empty() { "no named port".to_owned() } else { named.join(", ") }
                )
            }
        };
        let message = format!("{name}: {whose} has a {} port named {wanted}", port.protocol);
        self.add(&UNKNOWN_PORT_NAME, policy, port.line, message);
    }

    /// Peers in one rule and ports in the next: entries of a list are ORed. Rules for DNS to
    /// anybody are common, and meant.
    pub(super) fn split_rules(&mut self, policy: &impl Policy, direction: Direction, rules: &[Halves<'_>]) {
        let is_peers = |r: &Halves<'_>| r.has_peers && r.ports.is_empty();
        let is_ports = |r: &Halves<'_>| !r.has_peers && !r.ports.is_empty() && !dns::is_only_dns(r.ports);
        let open = |r: &Halves<'_>| r.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut told = vec![false; rules.len()];
        for (pair, index) in rules.windows(2).zip(0_usize..) {
            let (first, second) = (&pair[0], &pair[1]);
            let (peers, ports, at) = match () {
                () if is_peers(first) && is_ports(second) => (first, second, index + 1),
                () if is_ports(first) && is_peers(second) => (second, first, index),
                () => continue,
            };
            told[at] = true;
            let message = format!(
                "{direction} rule {} has peers and no ports, rule {} has ports and no peers: {} is open to everybody, and the peers may use every port; without the second `-` both hold",
                peers.label,
                ports.label,
                open(ports)
            );
            self.add(&SPLIT_RULE, policy, second.line, message);
        }
        for (rule, _) in rules.iter().zip(&told).filter(|(r, told)| is_ports(r) && !**told) {
            let message = format!("{direction} rule {}: {} is open to every address", rule.label, open(rule));
            self.add(&ANY_PEER, policy, rule.line, message);
        }
    }
}
