//! The smallest rule that would allow a connection.

use std::fmt::Write;

use guardrail_graph::inventory::{is_generated_label, is_release_label};

use super::{Question, Smallest};
use crate::{
    evaluate::Evaluator,
    model::{Direction, Labels, NAMESPACE_NAME_LABEL, Protocol},
};

impl Evaluator {
    /// A rule for exactly this peer, protocol and port, to be appended to this policy.
    pub(super) fn smallest(&self, direction: Direction, policy: u32, question: &Question<'_>) -> Smallest {
        let (other, name, address) = question.peer(direction);
        let target = &self.policies()[policy as usize];
        let mut caution = None;
        let mut yaml = format!("- {}:\n", direction.peers_field());
        if let Some(pod) = other.pod().map(|p| &self.cluster().pods[p as usize]) {
            let mut labels = pod.labels.clone();
            labels.retain(|key, _| !is_generated_label(key) && !is_release_label(key));
            let mut head = "  - ";
            if pod.namespace != target.namespace {
                let own = Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), pod.namespace.clone())]);
                selector(&mut yaml, head, "namespaceSelector", &own);
                head = "    ";
            }
            if labels.is_empty() {
                caution = Some(format!(
                    "{name} has no stable label: this allows every pod of its namespace; give it a label of its own"
                ));
            }
            if !labels.is_empty() || head == "  - " {
                selector(&mut yaml, head, "podSelector", &labels);
            }
        } else {
            match address {
                Some(address) => {
                    let length = if address.is_ipv4() { 32 } else { 128 };
                    let quote = if address.is_ipv4() { "" } else { "\"" };
                    let _ = writeln!(yaml, "  - ipBlock:\n      cidr: {quote}{address}/{length}{quote}");
                    if other.is_node() {
                        caution = Some(format!("{name} is a node: the rule breaks when the node is replaced"));
                    }
                }
                None => yaml = "-".to_owned(),
            }
        }
        if yaml == "-" {
            yaml.push_str(" ports:\n");
            caution = Some(format!("the address of {name} is not known: this allows every peer"));
        } else {
            yaml.push_str("  ports:\n");
        }
        let _ = writeln!(yaml, "  - port: {}", question.port);
        if question.protocol != Protocol::Tcp {
            let _ = writeln!(yaml, "    protocol: {}", question.protocol);
        }
        Smallest { policy: target.key(), location: target.location.clone(), direction, yaml, caution }
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
