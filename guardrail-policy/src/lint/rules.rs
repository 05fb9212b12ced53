//! The rules that look at one policy.

use guardrail_graph::{inventory::is_generated_label, snapshot::LabelSelector};
use ipnet::IpNet;

use super::{
    ALLOW_ALL, CLUSTER_IP_BLOCK, EMPTY_SPEC, GENERATED_LABEL, IGNORED_RULES, Linter, MISSING_POLICY_TYPES, NODE_PORT,
    PEER_MATCHES_NOTHING, SELECTS_NOTHING, UNKNOWN_PORT_NAME, WIDE_PEER,
};
use crate::{
    explain::words,
    model::{Direction, NetworkPolicy, PeerKind, PolicyPeer, PortMatch, Rule},
};

impl Linter<'_> {
    pub(super) fn policy(&mut self, policy: &NetworkPolicy, index: u32) {
        let line = policy.location.as_ref().map_or(0, |l| l.line);
        self.labels(policy, &policy.pod_selector, policy.pod_selector_line, "podSelector");
        if self.evaluator.is_some_and(|e| e.selected_pods(index).is_empty()) {
            let message =
                format!("podSelector {} matches no live pod in {}", words(&policy.pod_selector), policy.namespace);
            self.add(&SELECTS_NOTHING, policy, policy.pod_selector_line, message);
        }
        let empty = policy.ingress.is_empty() && policy.egress.is_empty() && policy.pod_selector.is_empty();
        if empty && !policy.policy_types.explicit && policy.pod_selector_line == line {
            self.add(&EMPTY_SPEC, policy, line, format!("closes ingress of every pod in {}", policy.namespace));
        } else if !policy.policy_types.explicit {
            let means = if policy.policy_types.egress { "Ingress and Egress" } else { "Ingress" };
            self.add(&MISSING_POLICY_TYPES, policy, line, format!("policyTypes is missing and means {means} here"));
        }
        for direction in Direction::BOTH {
            let rules = policy.rules(direction);
            if !policy.isolates(direction) {
                if let Some(rule) = rules.first() {
                    self.add(
                        &IGNORED_RULES,
                        policy,
                        rule.line,
                        format!("policyTypes does not list {direction}, its rules are ignored"),
                    );
                }
                continue;
            }
            for (rule, number) in rules.iter().zip(1..) {
                self.rule(policy, index, direction, rule, &format!("{direction} rule {number}"));
            }
        }
    }

    fn rule(&mut self, policy: &NetworkPolicy, index: u32, direction: Direction, rule: &Rule, name: &str) {
        if rule.peers.is_empty() && rule.ports.is_empty() {
            self.add(&ALLOW_ALL, policy, rule.line, format!("{name} allows every peer on every port"));
        }
        for peer in &rule.peers {
            self.peer(policy, peer, name);
        }
        self.split_pair(policy, &rule.peers, name);
        for port in &rule.ports {
            match &port.port {
                PortMatch::Range { first, last } if first == last => {
                    let service = self
                        .context
                        .node_ports
                        .iter()
                        .find(|(number, _)| number == first)
                        .map(|(_, service)| service.clone());
                    if let Some(service) = service {
                        self.add(
                            &NODE_PORT,
                            policy,
                            port.line,
                            format!("{name}: {first} is the node port of Service {service}"),
                        );
                    } else if self.evaluator.is_none() && (30_000..=32_767).contains(first) {
                        self.add(
                            &NODE_PORT,
                            policy,
                            port.line,
                            format!("{name}: {first} lies in the range of node ports"),
                        );
                    }
                }
                PortMatch::Named(wanted) => {
                    // A quoted number is told as that.
                    let quoted = wanted.bytes().all(|b| b.is_ascii_digit());
                    let Some(evaluator) = self.evaluator.filter(|_| !quoted) else { continue };
                    let has = |pod: &crate::evaluate::ClusterPod| {
                        pod.ports.iter().any(|(n, p, _)| n == wanted && *p == port.protocol)
                    };
                    let pods = &evaluator.cluster().pods;
                    let selected = evaluator.selected_pods(index);
                    let known = match direction {
                        Direction::Ingress => selected.is_empty() || selected.iter().any(|p| has(&pods[*p as usize])),
                        Direction::Egress => pods.iter().any(has),
                    };
                    if !known {
                        let whose = if direction == Direction::Ingress { "selected pod" } else { "pod" };
                        self.add(
                            &UNKNOWN_PORT_NAME,
                            policy,
                            port.line,
                            format!("{name}: no {whose} has a {} port named {wanted}", port.protocol),
                        );
                    }
                }
                PortMatch::Any | PortMatch::Range { .. } => {}
            }
        }
    }

    fn peer(&mut self, policy: &NetworkPolicy, peer: &PolicyPeer, name: &str) {
        match &peer.kind {
            PeerKind::IpBlock(block) => {
                if block.cidr.prefix_len() == 0 {
                    if block.except.is_empty() {
                        self.add(
                            &WIDE_PEER,
                            policy,
                            peer.line,
                            format!("{name}: ipBlock {} holds every address, those of pods included", block.cidr),
                        );
                    }
                    return;
                }
                if let Some(what) = self.in_cluster(&block.cidr) {
                    self.add(&CLUSTER_IP_BLOCK, policy, peer.line, format!("{name}: ipBlock {} {what}", block.cidr));
                }
            }
            PeerKind::Pods { namespaces, pods } => {
                if let Some(selector) = namespaces {
                    self.labels(policy, selector, peer.line, "namespaceSelector");
                }
                if let Some(selector) = pods {
                    self.labels(policy, selector, peer.line, "podSelector");
                }
                let every = |s: &Option<LabelSelector>| s.as_ref().is_some_and(LabelSelector::is_empty);
                let any_pod = pods.is_none() || every(pods);
                if every(namespaces) && any_pod {
                    self.add(
                        &WIDE_PEER,
                        policy,
                        peer.line,
                        format!("{name}: `namespaceSelector: {{}}` means every pod of every namespace"),
                    );
                } else if namespaces.is_none() && every(pods) && !policy.pod_selector.is_empty() {
                    self.add(
                        &WIDE_PEER,
                        policy,
                        peer.line,
                        format!("{name}: `podSelector: {{}}` means every pod of namespace {}", policy.namespace),
                    );
                }
                if self.evaluator.is_some_and(|e| e.peer_pods(policy, &peer.kind) == Some(0)) {
                    let shown =
                        |field: &str, s: &Option<LabelSelector>| s.as_ref().map(|s| format!("{field} {}", words(s)));
                    let parts: Vec<String> = [shown("namespaceSelector", namespaces), shown("podSelector", pods)]
                        .into_iter()
                        .flatten()
                        .collect();
                    self.add(
                        &PEER_MATCHES_NOTHING,
                        policy,
                        peer.line,
                        format!("{name}: {} matches no live pod", parts.join(" with ")),
                    );
                }
            }
        }
    }

    /// Two items where one was probably meant: `- namespaceSelector` followed by `- podSelector` is an OR.
    fn split_pair(&mut self, policy: &NetworkPolicy, peers: &[PolicyPeer], name: &str) {
        for pair in peers.windows(2) {
            let (
                PeerKind::Pods { namespaces: Some(_), pods: None },
                PeerKind::Pods { namespaces: None, pods: Some(_) },
            ) = (&pair[0].kind, &pair[1].kind)
            else {
                continue;
            };
            let message = format!(
                "{name}: namespaceSelector and podSelector are two items, so either is enough; without the second `-` both are needed"
            );
            self.add(&WIDE_PEER, policy, pair[1].line, message);
        }
    }

    fn labels(&mut self, policy: &NetworkPolicy, selector: &LabelSelector, line: u32, field: &str) {
        let keys = selector.match_labels.keys().chain(selector.match_expressions.iter().map(|e| &e.key));
        let generated: Vec<String> = keys.filter(|k| is_generated_label(k)).cloned().collect();
        for key in generated {
            self.add(&GENERATED_LABEL, policy, line, format!("{field} names the generated label {key}"));
        }
    }

    fn in_cluster(&self, block: &IpNet) -> Option<String> {
        if let Some(range) = self.context.pod_ranges.iter().find(|r| r.contains(block) || block.contains(*r)) {
            return Some(format!("overlaps the pod range {range}"));
        }
        if let Some(address) = self.context.service_addresses.iter().find(|a| block.contains(*a)) {
            return Some(format!("holds the Service address {address}"));
        }
        let cluster = self.context.cluster.as_ref()?;
        let pod = cluster
            .pods
            .iter()
            .find(|p| !p.host_network && !p.finished && p.addresses.iter().any(|a| block.contains(a)))?;
        Some(format!("holds the address of pod {}/{}", pod.namespace, pod.name))
    }
}
