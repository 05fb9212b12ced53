//! The rules about `ipBlock`s.

use std::net::{IpAddr, Ipv4Addr};

use guardrail_graph::inventory::Service;
use ipnet::IpNet;

use super::{
    CLIENT_ADDRESS_LOST, CLUSTER_IP_BLOCK, Linter, METADATA_ADDRESS, ONE_FAMILY, Severity, WIDE_PEER, dns,
    ranges::is_left,
};
use crate::model::{Direction, IpBlock, NetworkPolicy, PeerKind, PolicyPeer, PolicyPort, PortMatch, Protocol, Rule};

/// AWS, Google, Azure and others hand out credentials of the node there.
const METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));
/// All of them speak HTTP.
const METADATA_PORT: u16 = 80;

impl Linter<'_> {
    pub(super) fn block(&mut self, policy: &NetworkPolicy, direction: Direction, rule: &Rule, nth: usize, name: &str) {
        let peer = &rule.peers[nth];
        let PeerKind::IpBlock(block) = &peer.kind else { return };
        let cidr = block.cidr;
        if cidr.prefix_len() == 0 {
            // `::/0` beside `0.0.0.0/0` says nothing new.
            let earlier = &rule.peers[..nth];
            if is_everybody(peer) && !earlier.iter().any(is_everybody) {
                let message = format!("{name}: ipBlock {cidr} holds every address, those of pods included");
                self.everybody(policy, direction, rule, peer, message);
            }
            if direction == Direction::Egress && block.contains(METADATA) && allows_metadata(rule) {
                let message = format!("{name}: ipBlock {cidr} includes {METADATA}");
                self.add(&METADATA_ADDRESS, policy, peer.line, message);
            }
            return;
        }
        if let Some((what, fix)) = self.in_cluster(block) {
            let message = format!("{name}: ipBlock {cidr} {what}");
            match fix {
                Some(fix) => self.add_with(&CLUSTER_IP_BLOCK, policy, peer.line, message, fix),
                None => self.add(&CLUSTER_IP_BLOCK, policy, peer.line, message),
            }
        }
    }

    /// All of an address family. To DNS and to some port it is mostly meant: whoever writes it
    /// does not know the addresses outside.
    fn everybody(
        &mut self,
        policy: &NetworkPolicy,
        direction: Direction,
        rule: &Rule,
        peer: &PolicyPeer,
        message: String,
    ) {
        let ports = !rule.ports.is_empty();
        if ports && dns::is_only_dns(&rule.ports) {
            return;
        }
        let fix = "Except the ranges of pods if only addresses outside are meant, or name who is meant".to_owned();
        self.add_with(&WIDE_PEER, policy, peer.line, message, fix);
        if let Some(last) = self.findings.last_mut().filter(|_| ports && direction == Direction::Egress) {
            last.severity = Severity::Note;
        }
    }

    /// What of the cluster lies in the block, and what to do if it is a Service.
    pub(super) fn in_cluster(&self, block: &IpBlock) -> Option<(String, Option<String>)> {
        let overlap = |range: &IpNet| {
            let inner = if block.cidr.contains(range) { *range } else { block.cidr };
            (range.contains(&block.cidr) || block.cidr.contains(range)) && is_left(inner, &block.except)
        };
        if let Some(range) = self.context.pod_ranges.iter().find(|r| overlap(r)) {
            return Some((format!("overlaps the pod range {range}"), None));
        }
        let held = self.context.service_addresses.iter().find(|(address, _)| block.contains(**address));
        if let Some((address, service)) = held {
            let what = format!("holds the address {address} of Service {}/{}", service.namespace, service.name);
            return Some((what, Some(self.behind(service))));
        }
        let cluster = self.context.cluster.as_ref()?;
        let inside = |a: &IpAddr| block.contains(*a);
        let mut pods = cluster.pods.iter().filter(|p| !p.host_network && !p.finished);
        let pod = pods.find(|p| p.addresses.iter().any(inside))?;
        Some((format!("holds the address of pod {}", pod.full_name()), None))
    }

    /// How to name what is behind a Service.
    fn behind(&self, service: &Service) -> String {
        if !service.selector.is_empty() {
            let labels: Vec<String> = service.selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
            return format!(
                "Write a podSelector for the pods behind it ({}) and their own port; policies never see a Service's address",
                labels.join(", ")
            );
        }
        let backends = self.context.inventory.backends(service);
        let shown: Vec<String> = backends
            .iter()
            .take(3)
            .map(|b| format!("{}/{}, port {}", b.address, if b.address.is_ipv4() { 32 } else { 128 }, b.port))
            .collect();
        let endpoints = if shown.is_empty() {
            format!("kubectl get endpointslices -n {} shows them", service.namespace)
        } else {
            shown.join("; ")
        };
        format!(
            "The Service has no selector, so no podSelector matches what is behind it: write an ipBlock of its endpoints ({endpoints})"
        )
    }

    /// Ingress from addresses outside that nobody sees, because the Service in front replaces them.
    pub(super) fn lost_address(&mut self, policy: &NetworkPolicy, index: u32, rule: &Rule, name: &str) {
        let Some(evaluator) = self.evaluator else { return };
        let Some(block) = rule.peers.iter().find(|p| matches!(&p.kind, PeerKind::IpBlock(b) if b.cidr.prefix_len() > 0 && self.in_cluster(b).is_none() && !self.is_nodes(b)))
        else {
            return;
        };
        let pods = &evaluator.cluster().pods;
        let labels: Vec<_> = evaluator.selected_pods(index).into_iter().map(|p| &pods[p as usize].labels).collect();
        let in_front = self.context.inventory.services().find(|s| {
            s.namespace == policy.namespace
                && matches!(s.service_type.as_str(), "NodePort" | "LoadBalancer")
                && !s.keeps_client_address
                && !s.selector.is_empty()
                && labels.iter().any(|own| s.selector.iter().all(|(k, v)| own.get(k).is_some_and(|o| o == v)))
        });
        if let Some(service) = in_front {
            let message = format!(
                "{name}: clients that come through Service {}/{} ({}) have a node's address, the ipBlock does not see theirs",
                service.namespace, service.name, service.service_type
            );
            self.add_as(Severity::Note, &CLIENT_ADDRESS_LOST, policy, block.line, message);
        }
    }

    pub(super) fn is_nodes(&self, block: &IpBlock) -> bool {
        let nodes = self.context.cluster.iter().flat_map(|c| &c.nodes);
        nodes.flat_map(|n| &n.addresses).any(|a| block.contains(*a))
    }

    /// IPv4 blocks alone, where pods have both families.
    pub(super) fn one_family(&mut self, policy: &NetworkPolicy, direction: Direction, rules: &[Rule]) {
        let dual = |pod: &crate::evaluate::ClusterPod| {
            pod.addresses.iter().any(IpAddr::is_ipv4) && pod.addresses.iter().any(IpAddr::is_ipv6)
        };
        if !self.context.cluster.as_ref().is_some_and(|c| c.pods.iter().any(dual)) {
            return;
        }
        let blocks: Vec<(&IpBlock, u32)> = rules
            .iter()
            .flat_map(|r| &r.peers)
            .filter_map(|p| if let PeerKind::IpBlock(block) = &p.kind { Some((block, p.line)) } else { None })
            .collect();
        let v4 = |block: &IpBlock| block.cidr.addr().is_ipv4();
        let everybody = rules.iter().any(|r| r.peers.is_empty());
        let Some((first, line)) = blocks.first() else { return };
        if everybody || blocks.iter().any(|(block, _)| v4(block) != v4(first)) {
            return;
        }
        let (has, lacks) = if v4(first) { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
        let message = format!("{direction}: every ipBlock is {has}, and pods here have {lacks} addresses, too");
        self.add(&ONE_FAMILY, policy, *line, message);
    }
}

fn is_everybody(peer: &PolicyPeer) -> bool {
    matches!(&peer.kind, PeerKind::IpBlock(block) if block.cidr.prefix_len() == 0 && block.except.is_empty())
}

/// Whether the rule's ports include that of metadata services.
fn allows_metadata(rule: &Rule) -> bool {
    let is = |port: &PolicyPort| {
        port.protocol == Protocol::Tcp
            && match &port.port {
                PortMatch::Any => true,
                PortMatch::Range { first, last } => (first..=last).contains(&&METADATA_PORT),
                PortMatch::Named(_) => false,
            }
    };
    rule.ports.is_empty() || rule.ports.iter().any(is)
}
