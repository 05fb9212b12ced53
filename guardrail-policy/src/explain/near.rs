//! The rule that came nearest, and why it does not match.

use std::net::IpAddr;

use super::{Question, words};
use crate::{
    evaluate::{Evaluator, RuleRef},
    model::{
        Direction, IpBlock, Labels, NAMESPACE_NAME_LABEL, NetworkPolicy, PeerKind, PolicyPort, PortMatch,
        selector_matches,
    },
};

/// How far a peer or port list is from matching, and the reasons.
type Distance = (u32, Vec<String>);

impl Evaluator {
    /// Of all rules of these policies the one that misses by least: the peer alone or the port alone before both.
    pub(super) fn nearest(
        &self,
        direction: Direction,
        policies: &[u32],
        question: &Question<'_>,
    ) -> Option<(RuleRef, Vec<String>)> {
        let mut best: Option<(u32, RuleRef, Vec<String>)> = None;
        for &index in policies {
            let policy = &self.policies()[index as usize];
            for (rule, number) in policy.rules(direction).iter().zip(0..) {
                let (peers, mut because) = self.peers_distance(
                    direction,
                    policy,
                    &rule.peers.iter().map(|p| &p.kind).collect::<Vec<_>>(),
                    question,
                );
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
        policy: &NetworkPolicy,
        peers: &[&PeerKind],
        question: &Question<'_>,
    ) -> Distance {
        let (other, name, address) = question.peer(direction);
        let mut misses = Vec::new();
        for peer in peers {
            let miss = match peer {
                PeerKind::IpBlock(block) => block_distance(block, address, name),
                PeerKind::Pods { namespaces, pods } => {
                    let Some(pod) = other.pod().map(|p| &self.cluster().pods[p as usize]) else {
                        misses.push((60, format!("it allows pods only, {name} is none")));
                        continue;
                    };
                    let labels = self.cluster().namespace_labels(&pod.namespace);
                    let (mut distance, mut reasons) = (0, Vec::new());
                    match namespaces {
                        None if pod.namespace != policy.namespace => {
                            distance += 15;
                            reasons.push(format!(
                                "without a namespaceSelector it means pods of {}, {name} is in {}",
                                policy.namespace, pod.namespace
                            ));
                        }
                        Some(selector) if !selector_matches(selector, &labels) => {
                            distance += 15;
                            reasons.push(format!(
                                "namespaceSelector {} does not match namespace {} ({})",
                                words(selector),
                                pod.namespace,
                                shown(&labels)
                            ));
                        }
                        _ => {}
                    }
                    if let Some(selector) = pods.as_ref().filter(|s| !selector_matches(s, &pod.labels)) {
                        let missing =
                            selector.match_labels.iter().filter(|(k, v)| pod.labels.get(*k) != Some(v)).count()
                                + selector.match_expressions.len();
                        distance += 10 + 2 * u32::try_from(missing).unwrap_or(5).min(5);
                        reasons.push(format!(
                            "podSelector {} does not match {name} ({})",
                            words(selector),
                            shown(&pod.labels)
                        ));
                    }
                    if reasons.is_empty() {
                        return (0, Vec::new());
                    }
                    Some((distance, reasons.join(", and ")))
                }
            };
            match miss {
                Some(miss) => misses.push(miss),
                None => return (0, Vec::new()),
            }
        }
        least(misses)
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

/// A list matches if one entry does: the nearest entry speaks for it. An empty list matches everything.
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
