//! The rule that came nearest, and why it does not match.

use std::{net::IpAddr, sync::Arc};

use guardrail_graph::snapshot::LabelSelector;

use super::Question;
use crate::{
    evaluate::{ClusterPod, Evaluator, RuleRef, identity::Identity},
    model::{
        Direction, IpBlock, Labels, NAMESPACE_NAME_LABEL, PolicyPort, PortMatch, selector_matches, selector_matches_by,
        tier::{Action, PodSelector, Scope, ServiceBy, TierPeer},
        words,
    },
};

/// How far a peer or port list is from matching, and the reasons.
type Distance = (u32, Vec<String>);

impl Evaluator {
    /// Of all rules of these policies the one that misses by least: the peer alone or the port
    /// alone before both.
    pub(super) fn nearest(
        &self,
        direction: Direction,
        policies: &[u32],
        question: &Question<'_>,
    ) -> Option<(RuleRef, Vec<String>)> {
        let mut best: Option<(u32, RuleRef, Vec<String>)> = None;
        for &index in policies {
            let policy = &self.forms()[index as usize];
            let accepting = policy.rules(direction).iter().zip(0..).filter(|(r, _)| r.action == Action::Accept);
            for (rule, number) in accepting {
                let (peers, mut because) = self.peers_distance(direction, rule.peers.as_deref(), question);
                let (ports, reasons) = self.ports_distance(&rule.ports, question);
                because.extend(reasons);
                let distance = peers + ports;
                if best.as_ref().is_none_or(|(least, ..)| distance < *least) {
                    best = Some((distance, RuleRef { policy: index, rule: number }, because));
                }
            }
        }
        best.map(|(_, rule, because)| (rule, because))
    }

    fn ports_distance(&self, ports: &[PolicyPort], question: &Question<'_>) -> Distance {
        let Question { protocol, port, dst, .. } = *question;
        let mut misses: Vec<(u32, String)> = Vec::new();
        for wanted in ports {
            if wanted.protocol != protocol {
                misses.push((30, format!("it allows {wanted}, the connection is {protocol}/{port}")));
                continue;
            }
            match &wanted.port {
                PortMatch::Any => return (0, Vec::new()),
                PortMatch::Range { first, last } if (*first..=*last).contains(&port) => return (0, Vec::new()),
                PortMatch::Range { .. } => {
                    misses.push((10, format!("it allows {}, the connection is to port {port}", wanted.port)))
                }
                PortMatch::Named(name) => {
                    let pod = dst.0.pod().map(|p| &self.cluster().pods[p as usize]);
                    let numbers: Vec<u16> = pod
                        .into_iter()
                        .flat_map(|p| {
                            p.ports.iter().filter(|(n, p, _)| n == name && *p == protocol).map(|(.., number)| *number)
                        })
                        .collect();
                    if numbers.contains(&port) {
                        return (0, Vec::new());
                    }
                    misses.push(match numbers.first() {
                        Some(number) => {
                            (10, format!("port \"{name}\" of {} is {number}, the connection is to port {port}", dst.1))
                        }
                        None => (15, format!("{} has no {protocol} port named \"{name}\"", dst.1)),
                    });
                }
            }
        }
        least(misses)
    }

    fn peers_distance(
        &self,
        direction: Direction,
        peers: Option<&[Arc<TierPeer>]>,
        question: &Question<'_>,
    ) -> Distance {
        let Some(peers) = peers else { return (0, Vec::new()) };
        let (other, name, address) = question.peer(direction);
        if peers.is_empty() {
            return (70, vec!["it names nobody".to_owned()]);
        }
        let mut misses = Vec::new();
        for peer in peers {
            let miss = match &**peer {
                TierPeer::Addresses { block, .. } => match block_distance(block, address, name) {
                    None if self.is_cilium() && (other.is_pod() || other.is_node()) => {
                        let what = if other.is_pod() { "pod" } else { "node" };
                        let reason = format!("{} matches no {what} under Cilium, and {name} is one", block.cidr);
                        Some((20, reason))
                    }
                    miss => miss,
                },
                TierPeer::Pods(selector) => {
                    let Some(pod) = other.pod().map(|p| &self.cluster().pods[p as usize]) else {
                        misses.push((60, format!("it allows pods only, {name} is none")));
                        continue;
                    };
                    self.pods_distance(selector, pod, name)
                }
                other => Some((40, format!("it allows {}, and {name} is none of that", described(other)))),
            };
            match miss {
                Some(miss) => misses.push(miss),
                None => return (0, Vec::new()),
            }
        }
        least(misses)
    }

    /// `None`: it matches.
    fn pods_distance(&self, selector: &PodSelector, pod: &ClusterPod, name: &str) -> Option<(u32, String)> {
        let (mut distance, mut reasons) = (0, Vec::new());
        let labels = self.cluster().namespace_labels(&pod.namespace);
        match selector {
            PodSelector::Kubernetes { namespace: Some(own), .. } if *own != pod.namespace => {
                distance += 15;
                reasons.push(format!(
                    "without a namespaceSelector it means pods of {own}, {name} is in {}",
                    pod.namespace
                ));
            }
            PodSelector::Kubernetes { namespaces: Some(selector), .. } if !selector_matches(selector, &labels) => {
                distance += 15;
                reasons.push(format!(
                    "namespaceSelector {} does not match namespace {} ({})",
                    words(selector),
                    pod.namespace,
                    shown(&labels)
                ));
            }
            PodSelector::Cilium { scope: Scope::Namespace(own), .. } if *own != pod.namespace => {
                distance += 15;
                reasons.push(format!(
                    "without a key that names a namespace it means pods of {own}, {name} is in {}",
                    pod.namespace
                ));
            }
            _ => {}
        }
        match selector {
            PodSelector::Kubernetes { pods, .. } => {
                if let Some(selector) = pods.as_ref().filter(|s| !selector_matches(s, &pod.labels)) {
                    let has = |key: &str| pod.labels.get(key).map(String::as_str);
                    distance += 10 + 2 * missing(selector, has);
                    let (selector, labels) = (words(selector), shown(&pod.labels));
                    reasons.push(format!("podSelector {selector} does not match {name} ({labels})"));
                }
            }
            PodSelector::Cilium { selector, .. } => {
                let cluster = self.cilium_cluster();
                let account = pod.service_account.as_deref();
                let (namespace, pod_labels) = (&pod.namespace, &pod.labels);
                let filter = &self.label_filter();
                let identity =
                    Identity { namespace, namespace_labels: &labels, labels: pod_labels, account, cluster, filter };
                if !selector_matches_by(selector, |key| identity.label(key)) {
                    distance += 10 + 2 * missing(selector, |key| identity.label(key));
                    let left_out: Vec<&str> = selector
                        .match_labels
                        .keys()
                        .chain(selector.match_expressions.iter().map(|e| &e.key))
                        .map(String::as_str)
                        .filter(|key| identity.label(key).is_none() && filter.leaves_out(key))
                        .collect();
                    let why = match left_out.first() {
                        Some(key) => format!("; Cilium keeps {key} out of identities"),
                        None => String::new(),
                    };
                    let (selector, labels) = (words(selector), shown(pod_labels));
                    reasons.push(format!("selector {selector} does not match {name} ({labels}){why}"));
                }
            }
        }
        (!reasons.is_empty()).then(|| (distance, reasons.join(", and ")))
    }
}

fn missing<'a>(selector: &LabelSelector, label: impl Fn(&str) -> Option<&'a str>) -> u32 {
    let labels = selector.match_labels.iter().filter(|(key, value)| label(key) != Some(value)).count();
    u32::try_from(labels + selector.match_expressions.len()).unwrap_or(5).min(5)
}

/// A peer that is neither pods nor a range, in a few words.
fn described(peer: &TierPeer) -> String {
    match peer {
        TierPeer::Nodes { selector, .. } => format!("nodes with {}", words(selector)),
        TierPeer::Entity(entity) => format!("the entity {}", entity.as_str()),
        TierPeer::Name(name) => format!("the addresses of {}", name.pattern),
        TierPeer::CidrGroup { name, .. } => format!("the CIDR group {name}"),
        TierPeer::CidrGroups { selector, .. } => format!("CIDR groups with {}", words(selector)),
        TierPeer::Service { by: ServiceBy::Name(name), .. } => format!("what is behind the Service {name}"),
        TierPeer::Service { by: ServiceBy::Labels(labels), .. } => {
            format!("what is behind Services with {}", words(labels))
        }
        TierPeer::Undecidable(what) => what.clone(),
        TierPeer::Pods(_) => "pods".to_owned(),
        TierPeer::Addresses { block, .. } => block.cidr.to_string(),
    }
}

/// `None`: it matches.
fn block_distance(block: &IpBlock, address: Option<IpAddr>, name: &str) -> Option<(u32, String)> {
    let Some(address) = address else {
        return Some((50, format!("{name} has no address, and ipBlock {} needs one", block.cidr)));
    };
    if block.contains(address) {
        return None;
    }
    let what = if address.to_string() == name { name.to_owned() } else { format!("{name} ({address})") };
    Some(match block.except.iter().find(|e| e.contains(&address)) {
        Some(except) => (12, format!("{what} is in ipBlock {}, but excepted by {except}", block.cidr)),
        None if same_family(block, address) => (25, format!("{what} is not in ipBlock {}", block.cidr)),
        None => (40, format!("{what} is of another address family than ipBlock {}", block.cidr)),
    })
}

fn same_family(block: &IpBlock, address: IpAddr) -> bool {
    block.cidr.addr().is_ipv4() == address.is_ipv4()
}

/// A list matches if one entry does: the nearest entry speaks for it. An empty list matches
/// everything.
fn least(misses: Vec<(u32, String)>) -> Distance {
    let others = misses.len().saturating_sub(1);
    match misses.into_iter().min_by_key(|(distance, _)| *distance) {
        None => (0, Vec::new()),
        Some((distance, reason)) if others == 0 => (distance, vec![reason]),
        Some((distance, reason)) => (distance, vec![format!("{reason}; no other entry of the list matches either")]),
    }
}

fn shown(labels: &Labels) -> String {
    let shown: Vec<String> =
        labels.iter().filter(|(k, _)| *k != NAMESPACE_NAME_LABEL).map(|(k, v)| format!("{k}={v}")).collect();
    if shown.is_empty() { "no labels".to_owned() } else { shown.join(", ") }
}
