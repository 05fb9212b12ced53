//! The smallest rule that would allow a connection.

use std::{fmt::Write, net::IpAddr};

use guardrail_graph::inventory::{is_generated_label, release_keys};

use super::{Question, Smallest};
use crate::{
    evaluate::{ClusterPod, Evaluator, identity::POD_NAMESPACE},
    model::{
        Direction, Labels, NAMESPACE_NAME_LABEL, Protocol,
        tier::{Entity, PolicyKind},
    },
};

/// A rule under construction.
struct Draft {
    yaml: String,
    caution: Option<String>,
}

impl Evaluator {
    /// A rule for exactly this peer, protocol and port, to be added to this policy, before the rule
    /// with this index if there is one; `None` if a policy of its kind cannot say it.
    pub(super) fn smallest(
        &self,
        direction: Direction,
        policy: u32,
        before: Option<u32>,
        question: &Question<'_>,
    ) -> Option<Smallest> {
        let target = &self.forms()[policy as usize];
        let Draft { yaml, caution } = match target.kind {
            PolicyKind::NetworkPolicy => self.network_rule(direction, &target.namespace, question),
            kind if kind.is_cilium() => self.cilium_rule(direction, &target.namespace, question),
            kind => self.tier_rule(direction, kind, question),
        }?;
        Some(Smallest {
            policy: target.key(),
            location: target.location.clone(),
            direction,
            section: target.section,
            before: before.map(|rule| rule + 1),
            yaml,
            caution,
        })
    }

    /// Labels of a pod that stay the same and that selectors match by: those of its controller's
    /// own selector, else those that every live pod of its workload has.
    fn stable_labels(&self, pod: &ClusterPod) -> Labels {
        let filter = self.label_filter();
        let passing = release_keys(pod.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        let stable = |key: &str| {
            let known = !self.is_cilium() || !filter.leaves_out(key);
            known && !is_generated_label(key) && !passing.contains(key)
        };
        let own = pod.workload.as_ref().and_then(|workload| self.cluster().selectors.get(workload));
        if let Some(own) = own
            && !own.is_empty()
            && own.iter().all(|(key, value)| stable(key) && pod.labels.get(key) == Some(value))
        {
            return own.clone();
        }
        let of_workload = |other: &&ClusterPod| !other.finished && other.workload == pod.workload;
        let siblings: Vec<&ClusterPod> = match &pod.workload {
            Some(_) => self.cluster().pods.iter().filter(of_workload).collect(),
            None => Vec::new(),
        };
        let shared =
            |key: &str, value: &str| siblings.iter().all(|other| other.labels.get(key).is_some_and(|v| v == value));
        let kept = pod.labels.iter().filter(|(key, value)| stable(key) && shared(key, value));
        kept.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn network_rule(&self, direction: Direction, namespace: &str, question: &Question<'_>) -> Option<Draft> {
        let (other, name, address) = question.peer(direction);
        let mut caution = None;
        let mut yaml = format!("- {}:\n", direction.peers_field());
        if let Some(pod) = other.pod().map(|p| &self.cluster().pods[p as usize]) {
            let labels = self.stable_labels(pod);
            let mut head = "  - ";
            if pod.namespace != namespace {
                let own = Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), pod.namespace.clone())]);
                selector(&mut yaml, head, "namespaceSelector", &own);
                head = "    ";
            }
            if labels.is_empty() {
                caution = Some(unstable(name));
            }
            if !labels.is_empty() || head == "  - " {
                selector(&mut yaml, head, "podSelector", &labels);
            }
        } else if other.is_node() && self.is_cilium() {
            // Its ranges match no node.
            return None;
        } else {
            match address {
                Some(address) => {
                    let range = range(address);
                    let _ = writeln!(yaml, "  - ipBlock:\n      cidr: {range}");
                    if other.is_node() {
                        caution = Some(format!("{name} is a node: the rule breaks when the node is replaced"));
                    }
                }
                None => yaml = "-".to_owned(),
            }
        }
        let everybody = yaml == "-";
        if question.protocol.is_icmp() {
            if everybody {
                return None;
            }
            caution = Some("NetworkPolicy knows no ICMP: this allows every port".to_owned());
            return Some(Draft { yaml, caution });
        }
        yaml.push_str(if everybody { " ports:\n" } else { "  ports:\n" });
        if everybody {
            caution = Some(format!("the address of {name} is not known: this allows every peer"));
        }
        let _ = writeln!(yaml, "  - port: {}", question.port);
        if question.protocol != Protocol::Tcp {
            let _ = writeln!(yaml, "    protocol: {}", question.protocol);
        }
        Some(Draft { yaml, caution })
    }

    /// `namespace`: of the policy; empty for a clusterwide one.
    fn cilium_rule(&self, direction: Direction, namespace: &str, question: &Question<'_>) -> Option<Draft> {
        let (other, name, address) = question.peer(direction);
        let own = if direction == Direction::Ingress { question.dst.0 } else { question.src.0 };
        let word = direction.peers_field();
        let mut caution = None;
        let mut yaml = String::new();
        if let Some(pod) = other.pod().map(|p| &self.cluster().pods[p as usize]) {
            let mut labels = self.stable_labels(pod);
            if labels.is_empty() {
                caution = Some(unstable(name));
            }
            if pod.namespace != namespace {
                labels.insert(format!("k8s:{POD_NAMESPACE}"), pod.namespace.clone());
            }
            if labels.is_empty() {
                let _ = writeln!(yaml, "- {word}Endpoints:\n  - {{}}");
            } else {
                let _ = writeln!(yaml, "- {word}Endpoints:");
                selector_at(&mut yaml, "  - ", &labels);
            }
        } else {
            match (other.entity_seen_from(own)?, address) {
                (Entity::World, Some(address)) => {
                    let _ = writeln!(yaml, "- {word}CIDR:\n  - {}", range(address));
                }
                (entity, _) => {
                    let _ = writeln!(yaml, "- {word}Entities:\n  - {}", entity.as_str());
                    caution = (entity == Entity::World)
                        .then(|| format!("the address of {name} is not known: this allows every address outside"));
                }
            }
        }
        let Question { protocol, port, .. } = *question;
        if protocol.is_icmp() {
            let family = if protocol == Protocol::ICMP { "IPv4" } else { "IPv6" };
            let _ = writeln!(yaml, "  icmps:\n  - fields:\n    - type: {port}\n      family: {family}");
        } else {
            let _ = writeln!(yaml, "  toPorts:\n  - ports:\n    - port: \"{port}\"\n      protocol: {protocol}");
        }
        Some(Draft { yaml, caution })
    }

    /// Of ClusterNetworkPolicy and its predecessors, whose ingress knows pods alone.
    fn tier_rule(&self, direction: Direction, kind: PolicyKind, question: &Question<'_>) -> Option<Draft> {
        let (other, name, address) = question.peer(direction);
        let current = kind == PolicyKind::ClusterNetworkPolicy;
        let action = if current { "Accept" } else { "Allow" };
        let mut caution = None;
        let mut yaml = format!("- action: {action}\n  {}:\n", direction.peers_field());
        if let Some(pod) = other.pod().map(|p| &self.cluster().pods[p as usize]) {
            let labels = self.stable_labels(pod);
            if labels.is_empty() {
                caution = Some(unstable(name));
            }
            let own = Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), pod.namespace.clone())]);
            yaml.push_str("  - pods:\n");
            selector(&mut yaml, "      ", "namespaceSelector", &own);
            selector(&mut yaml, "      ", "podSelector", &labels);
        } else {
            let address = address.filter(|_| direction == Direction::Egress)?;
            let _ = writeln!(yaml, "  - networks:\n    - {}", range(address));
            if other.is_node() {
                caution = Some(format!("{name} is a node: the rule breaks when the node is replaced"));
            }
        }
        let Question { protocol, port, .. } = *question;
        if protocol.is_icmp() {
            caution = Some(format!("{} knows no ICMP: this allows every port", kind.as_str()));
        } else if current {
            let protocol = protocol.to_string().to_lowercase();
            let _ = writeln!(yaml, "  protocols:\n  - {protocol}:\n      destinationPort:\n        number: {port}");
        } else {
            let _ = writeln!(yaml, "  ports:\n  - portNumber:\n      protocol: {protocol}\n      port: {port}");
        }
        Some(Draft { yaml, caution })
    }
}

fn unstable(name: &str) -> String {
    format!("{name} has no stable label: this allows every pod of its namespace; give it a label of its own")
}

/// A range of one address, in quotes where YAML needs them.
fn range(address: IpAddr) -> String {
    if address.is_ipv4() { format!("{address}/32") } else { format!("\"{address}/128\"") }
}

/// `matchLabels` alone, as an item of a list.
fn selector_at(yaml: &mut String, head: &str, labels: &Labels) {
    let indent = " ".repeat(head.len());
    let _ = writeln!(yaml, "{head}matchLabels:");
    for (key, value) in labels {
        let _ = writeln!(yaml, "{indent}  {key}: {}", scalar(value));
    }
}

fn selector(yaml: &mut String, head: &str, field: &str, labels: &Labels) {
    let indent = " ".repeat(head.len());
    if labels.is_empty() {
        let _ = writeln!(yaml, "{head}{field}: {{}}");
        return;
    }
    let _ = writeln!(yaml, "{head}{field}:\n{indent}  matchLabels:");
    for (key, value) in labels {
        let _ = writeln!(yaml, "{indent}    {key}: {}", scalar(value));
    }
}

/// A label value that every YAML reader takes for a string: letters first and no word with a
/// meaning, else in quotes.
fn scalar(value: &str) -> String {
    let plain = value.len() > 3
        && value.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && !["true", "false", "null"].iter().any(|w| value.eq_ignore_ascii_case(w));
    if plain { value.to_owned() } else { format!("\"{value}\"") }
}
