//! Egress that is closed without a way to DNS: judged over all policies together, because another
//! policy may open it.
//!
//! With an inventory the DNS pods are asked, at the port on which they listen; without one only
//! what is written down can be looked at.

use std::net::IpAddr;

use super::{Linter, NO_DNS, ranges::holds_private};
use crate::{
    evaluate::{ClusterPod, Evaluator},
    model::{
        Direction, Labels, NAMESPACE_NAME_LABEL, NetworkPolicy, PeerKind, PolicyPeer, PolicyPort, PortMatch, Protocol,
        Rule, selector_matches, words,
    },
};

/// Where clusters have their DNS pods: Kubernetes and most distributions, OpenShift.
const DNS_NAMESPACES: [&str; 2] = ["kube-system", "openshift-dns"];
/// Labels of DNS pods: CoreDNS and kube-dns, the CoreDNS chart, OpenShift's DNS operator.
const DNS_LABELS: [(&str, &str); 4] = [
    ("k8s-app", "kube-dns"),
    ("k8s-app", "coredns"),
    ("app.kubernetes.io/name", "coredns"),
    ("dns.operator.openshift.io/daemonset-dns", "default"),
];

fn is_dns_label(labels: &Labels) -> bool {
    DNS_LABELS.iter().any(|(key, value)| labels.get(*key).is_some_and(|own| own == value))
}

impl Linter<'_> {
    pub(super) fn dns(&mut self, policies: &[NetworkPolicy]) {
        let servers = self.evaluator.map(|evaluator| self.servers(evaluator)).unwrap_or_default();
        let closing = policies.iter().zip(0..).filter(|(p, _)| p.isolates(Direction::Egress));
        match self.evaluator {
            Some(evaluator) if !servers.is_empty() => {
                for (policy, index) in closing {
                    self.ask(evaluator, policy, index, &servers);
                }
            }
            _ => {
                let may = |policy: &NetworkPolicy| policy.egress.iter().any(|rule| may_be_dns(policy, rule));
                for (policy, index) in closing.filter(|(p, _)| !may(p)) {
                    let opened = match self.evaluator {
                        Some(evaluator) => opened_for_all(evaluator, index),
                        None => policies.iter().any(|other| opens(other, policy)),
                    };
                    if !opened {
                        let (why, fix) = own_namespace_only(policy).unzip();
                        let why = why.unwrap_or_else(|| "no policy allows DNS (UDP 53) for these pods".to_owned());
                        self.no_dns(policy, why, fix);
                    }
                }
            }
        }
    }

    fn no_dns(&mut self, policy: &NetworkPolicy, why: String, fix: Option<String>) {
        let line = policy.location.as_ref().map_or(0, |l| l.line);
        let message = format!("closes egress, and {why}");
        match fix {
            Some(fix) => self.add_with(&NO_DNS, policy, line, message, fix),
            None => self.add(&NO_DNS, policy, line, message),
        }
    }

    /// Whether some DNS pod can be asked by each pod that the policy selects.
    fn ask(&mut self, evaluator: &Evaluator, policy: &NetworkPolicy, index: u32, servers: &[(u32, u16)]) {
        let pods = &evaluator.cluster().pods;
        // With NodeLocal DNS pods ask their own node, which no policy forbids (A29).
        let node_local =
            |p: &ClusterPod| p.host_network && p.labels.get("k8s-app").is_some_and(|l| l == "node-local-dns");
        let asks_node = self
            .network_policies
            .iter()
            .any(|p| p.namespace == policy.namespace && p.egress.iter().any(asks_node_local));
        if asks_node
            || pods.iter().any(node_local)
            || evaluator.needs_namespace_labels().iter().any(|p| p.key() == policy.key())
        {
            return;
        }
        let cut_off = evaluator.selected_pods(index).into_iter().find(|pod| {
            let client = evaluator.end_of_pod(*pod);
            let itself = servers.iter().any(|(server, _)| server == pod);
            !itself
                && servers.iter().all(|(server, port)| {
                    let verdict = evaluator.evaluate(&client, &evaluator.end_of_pod(*server), Protocol::Udp, *port);
                    !verdict.egress.allows()
                })
        });
        let (Some(pod), Some((server, port))) = (cut_off, servers.first()) else { return };
        let (client, server) = (pods[pod as usize].full_name(), &pods[*server as usize]);
        let why = format!("no rule lets {client} ask the DNS pods ({}, UDP {port})", server.full_name());
        let fix = format!("Allow UDP and TCP {port} to the DNS pods of namespace {}", server.namespace);
        self.no_dns(policy, why, Some(fix));
    }

    /// The live DNS pods and the UDP ports on which they listen: those behind the DNS Service, else
    /// those with a DNS label.
    fn servers(&self, evaluator: &Evaluator) -> Vec<(u32, u16)> {
        let pods = &evaluator.cluster().pods;
        let mut servers = Vec::new();
        let inventory = &self.context.inventory;
        for service in inventory.services().filter(|s| DNS_NAMESPACES.contains(&s.namespace.as_str())) {
            for backend in inventory.backends(service) {
                let port = &service.ports[backend.service_port];
                let at = |pod: &ClusterPod| {
                    !pod.finished
                        && backend.pod.as_ref().is_some_and(|(ns, name)| pod.namespace == *ns && pod.name == *name)
                };
                if port.port == 53 && Protocol::Udp.is_named(&port.protocol) {
                    servers.extend(pods.iter().position(at).and_then(|i| Some((u32::try_from(i).ok()?, backend.port))));
                }
            }
        }
        if servers.is_empty() {
            let is = |p: &ClusterPod| {
                !p.finished && DNS_NAMESPACES.contains(&p.namespace.as_str()) && is_dns_label(&p.labels)
            };
            for (pod, index) in pods.iter().zip(0..).filter(|(p, _)| is(p)) {
                let declared = pod.declared_ports.iter().filter(|d| d.protocol == Protocol::Udp).map(|d| d.port);
                let usual = declared.clone().find(|p| *p == 53 || *p == 5353);
                servers.push((index, usual.or_else(|| declared.clone().next()).unwrap_or(53)));
            }
        }
        servers.sort_unstable();
        servers.dedup();
        servers
    }
}

/// Every pod that the policy selects is selected by some policy that may allow DNS.
fn opened_for_all(evaluator: &Evaluator, policy: u32) -> bool {
    let mut opened = std::collections::BTreeSet::new();
    for (known, index) in evaluator.policies().iter().zip(0..) {
        if known.isolates(Direction::Egress) && known.egress.iter().any(|rule| may_be_dns(known, rule)) {
            opened.extend(evaluator.selected_pods(index));
        }
    }
    evaluator.selected_pods(policy).iter().all(|pod| opened.contains(pod))
}

/// Without an inventory: `other` allows DNS for everything that `policy` selects, as far as labels
/// written down tell.
fn opens(other: &NetworkPolicy, policy: &NetworkPolicy) -> bool {
    other.namespace == policy.namespace
        && other.isolates(Direction::Egress)
        && other.egress.iter().any(|rule| may_be_dns(other, rule))
        && (other.pod_selector.is_empty()
            || other.pod_selector == policy.pod_selector
            || (policy.pod_selector.match_expressions.is_empty()
                && !policy.pod_selector.is_empty()
                && selector_matches(&other.pod_selector, &policy.pod_selector.match_labels)))
}

/// A rule for DNS to a link-local address: whoever writes it has a cache there, 169.254.20.10.
fn asks_node_local(rule: &Rule) -> bool {
    let link_local = |peer: &PolicyPeer| {
        matches!(&peer.kind, PeerKind::IpBlock(block)
            if matches!(block.cidr.addr(), IpAddr::V4(a) if a.is_link_local()) && block.cidr.prefix_len() >= 16)
    };
    rule.ports.iter().any(|p| p.protocol == Protocol::Udp && is_dns_port(p)) && rule.peers.iter().any(link_local)
}

/// The DNS pods' label without a namespaceSelector: what it means, and what to do.
fn own_namespace_only(policy: &NetworkPolicy) -> Option<(String, String)> {
    let asks = |rule: &Rule| rule.ports.iter().any(|p| p.protocol == Protocol::Udp && is_dns_port(p));
    let peers = policy.egress.iter().filter(|rule| asks(rule)).flat_map(|rule| &rule.peers);
    let shown = peers.into_iter().find_map(|peer| match &peer.kind {
        PeerKind::Pods { namespaces: None, pods: Some(pods) } if is_dns_label(&pods.match_labels) => Some(words(pods)),
        _ => None,
    })?;
    Some((
        format!("podSelector {shown} without a namespaceSelector means pods of {}", policy.namespace),
        format!("Add a namespaceSelector in the same item ({NAMESPACE_NAME_LABEL}: {})", DNS_NAMESPACES[0]),
    ))
}

fn is_dns_port(port: &PolicyPort) -> bool {
    match &port.port {
        PortMatch::Any => true,
        PortMatch::Range { first, last } => [53, 5353].iter().any(|dns| (first..=last).contains(&dns)),
        PortMatch::Named(name) => name.contains("dns"),
    }
}

/// A rule for nothing but DNS.
pub(super) fn is_only_dns(ports: &[PolicyPort]) -> bool {
    ports.iter().all(|p| is_dns_port(p) && !matches!(p.port, PortMatch::Any))
}

/// The rule may let DNS pass: UDP 53 (or a DNS pod's port by name, or 5353) to a peer that may be
/// the DNS pods.
fn may_be_dns(policy: &NetworkPolicy, rule: &Rule) -> bool {
    let asks = rule.ports.iter().any(|p| p.protocol == Protocol::Udp && is_dns_port(p));
    let ports = rule.ports.is_empty() || asks;
    ports && (rule.peers.is_empty() || rule.peers.iter().any(|p| may_reach_dns(policy, &p.kind, asks)))
}

/// `asks`: the rule names the port, so that its author means DNS, wherever that may be; else the
/// peer must be one that holds the DNS pods.
fn may_reach_dns(policy: &NetworkPolicy, peer: &PeerKind, asks: bool) -> bool {
    match peer {
        PeerKind::Pods { namespaces: None, pods } => {
            // Its own namespace: the well-known DNS pods are there in few.
            let well_known = pods.as_ref().is_some_and(|s| is_dns_label(&s.match_labels));
            DNS_NAMESPACES.contains(&policy.namespace.as_str()) || asks && !well_known
        }
        PeerKind::Pods { namespaces: Some(selector), .. } => {
            let keys = selector.match_labels.keys().chain(selector.match_expressions.iter().map(|e| &e.key));
            let by_name = keys.clone().count() > 0 && keys.into_iter().all(|k| k == NAMESPACE_NAME_LABEL);
            let is_dns = |namespace: &&str| {
                selector_matches(selector, &Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), (*namespace).to_owned())]))
            };
            asks || !by_name || DNS_NAMESPACES.iter().any(is_dns)
        }
        PeerKind::IpBlock(block) if block.cidr.prefix_len() == 0 => holds_private(block),
        PeerKind::IpBlock(_) => asks,
    }
}
