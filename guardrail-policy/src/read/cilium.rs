//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy` (cilium.io/v2), validated as the
//! custom resource definition and the agent do.
//!
//! Absent, null and empty differ here: an absent or null list says nothing, an empty list of peers
//! means nobody, an empty entry matches nothing.

use std::sync::Arc;

use super::{
    ObjectProblemKind,
    policy::{Decoder, Form, Stored},
    yaml::{Node, Value},
};
use crate::model::{
    Direction, Location,
    tier::{Action, Feature, Need, PodSelector, PolicyKind, Scope, Subject, Tier, TierPeer, TierPolicy, TierRule},
};

mod peers;
mod ports;
mod selector;

/// What the entries of one rule are read with.
#[derive(Clone, Copy)]
struct Context<'a> {
    direction: Direction,
    action: Action,
    /// Namespace of a CiliumNetworkPolicy.
    namespace: Option<&'a str>,
}

/// The policies of one object: its `spec`, and each item of its `specs`.
pub(super) fn decode(file: &Arc<str>, node: &Node, kind: PolicyKind) -> Form {
    let mut decoder = Decoder::new(file);
    let policies = decoder.cilium(node, kind).unwrap_or_default();
    let stored = Some(Stored { kind, line: node.line, valid: valid(node) });
    Form { stored, ..decoder.finish(policies) }
}

/// What the status says of it.
fn valid(node: &Node) -> Option<bool> {
    let Some(Node { value: Value::Seq(conditions), .. }) = node.get("status").and_then(|s| s.get("conditions")) else {
        return None;
    };
    let valid = conditions.iter().find(|c| c.get("type").and_then(Node::as_str) == Some("Valid"))?;
    match valid.get("status").and_then(Node::as_str) {
        Some("True") => Some(true),
        Some("False") => Some(false),
        _ => None,
    }
}

impl Decoder<'_> {
    fn cilium(&mut self, node: &Node, kind: PolicyKind) -> Option<Vec<TierPolicy>> {
        let (namespace, name) = match kind {
            PolicyKind::CiliumNetworkPolicy => self.names(node, kind)?,
            _ => (String::new(), self.cluster_name(node, kind)?),
        };
        self.mapping(node, "the object", &["apiVersion", "kind", "metadata", "spec", "specs", "status"]);
        let mut policies = Vec::new();
        let template = TierPolicy {
            kind,
            namespace,
            name,
            section: None,
            location: Some(Location { file: self.file().clone(), line: node.line }),
            subject_line: node.line,
            tier: Tier::Normal,
            priority: 0,
            subject: Subject::Nodes(guardrail_graph::snapshot::LabelSelector::default()),
            isolates: [false, false],
            ingress: Vec::new(),
            egress: Vec::new(),
            requires: Default::default(),
            needs: Vec::new(),
        };
        if let Some(spec) = node.get("spec") {
            policies.extend(self.cilium_spec(spec, "spec", None, &template));
        }
        if let Some(specs) = node.get("specs") {
            for (spec, index) in self.list(specs, "specs").iter().zip(0..) {
                policies.extend(self.cilium_spec(spec, &format!("specs[{index}]"), Some(index), &template));
            }
        }
        if node.get("spec").is_none() && node.get("specs").is_none() {
            self.invalid(node.line, format!("a {} needs spec or specs; add one of them", kind.as_str()));
        }
        Some(policies)
    }

    fn cilium_spec(
        &mut self,
        spec: &Node,
        field: &str,
        section: Option<u32>,
        template: &TierPolicy,
    ) -> Option<TierPolicy> {
        const FIELDS: [&str; 10] = [
            "endpointSelector",
            "nodeSelector",
            "ingress",
            "ingressDeny",
            "egress",
            "egressDeny",
            "enableDefaultDeny",
            "labels",
            "description",
            "log",
        ];
        if !self.mapping(spec, field, &FIELDS) {
            return None;
        }
        let mut policy = TierPolicy { section, ..template.clone() };
        let namespace = (!policy.namespace.is_empty()).then(|| policy.namespace.clone());
        (policy.subject, policy.subject_line) = self.cilium_subject(spec, field, namespace.as_deref())?;
        let mut entries = [false, false];
        let mut listed = false;
        for (name, direction, action) in [
            ("ingress", Direction::Ingress, Action::Accept),
            ("ingressDeny", Direction::Ingress, Action::Deny),
            ("egress", Direction::Egress, Action::Accept),
            ("egressDeny", Direction::Egress, Action::Deny),
        ] {
            let Some(list) = spec.get(name) else { continue };
            let context = Context { direction, action, namespace: namespace.as_deref() };
            for (item, index) in self.list(list, &format!("{field}.{name}")).iter().zip(0..) {
                listed = true;
                entries[direction.slot()] = true;
                let rule = self.cilium_rule(item, &format!("{field}.{name}[{index}]"), index, context, &mut policy);
                match direction {
                    Direction::Ingress => policy.ingress.extend(rule.into_iter().flatten()),
                    Direction::Egress => policy.egress.extend(rule.into_iter().flatten()),
                }
            }
        }
        if !listed {
            self.invalid(
                spec.line,
                format!("`{field}` has no rule: Cilium rejects it, and the traffic stays open; for default deny write `ingress: [{{}}]`"),
            );
        }
        // Only an entry isolates, unless the posture is switched off.
        policy.isolates = entries;
        if let Some(posture) = spec.get("enableDefaultDeny")
            && self.mapping(posture, &format!("{field}.enableDefaultDeny"), &["ingress", "egress"])
        {
            for direction in Direction::BOTH {
                if let Some(value) = posture.get(direction.field()) {
                    match value.value {
                        Value::Bool(true) => {}
                        Value::Bool(false) => policy.isolates[direction.slot()] = false,
                        _ => self.invalid(value.line, format!("`enableDefaultDeny.{direction}` is true or false")),
                    }
                }
            }
        }
        Some(policy)
    }

    fn cilium_subject(&mut self, spec: &Node, field: &str, namespace: Option<&str>) -> Option<(Subject, u32)> {
        match (spec.get("endpointSelector"), spec.get("nodeSelector")) {
            (Some(endpoints), None) => {
                let selector = self.cilium_labels(endpoints, &format!("{field}.endpointSelector"))?;
                let scope = match namespace {
                    // The namespace is the object's, whatever a label says.
                    Some(own) => Scope::Namespace(own.to_owned()),
                    None => Scope::Pods,
                };
                let selector = if namespace.is_some() { selector.without_namespace() } else { selector };
                let selector = PodSelector::Cilium { scope, selector: selector.labels };
                Some((Subject::Pods(selector), endpoints.line))
            }
            (None, Some(nodes)) if namespace.is_none() => {
                Some((Subject::Nodes(self.cilium_labels(nodes, &format!("{field}.nodeSelector"))?.labels), nodes.line))
            }
            (None, Some(nodes)) => {
                let message = format!("`{field}.nodeSelector` is for CiliumClusterwideNetworkPolicy only");
                self.invalid(nodes.line, message);
                None
            }
            (None, None) => {
                self.invalid(
                    spec.line,
                    format!("`{field}` needs endpointSelector or nodeSelector; `{{}}` selects all"),
                );
                None
            }
            (Some(_), Some(nodes)) => {
                self.invalid(
                    nodes.line,
                    format!("`{field}` has endpointSelector and nodeSelector; it takes one of them"),
                );
                None
            }
        }
    }

    fn cilium_rule(
        &mut self,
        node: &Node,
        field: &str,
        index: u32,
        context: Context<'_>,
        policy: &mut TierPolicy,
    ) -> Option<Vec<TierRule>> {
        let deny = context.action == Action::Deny;
        let label = if deny { format!("deny{}", index + 1) } else { (index + 1).to_string() };
        let empty = TierRule {
            action: context.action,
            peers: Some(Vec::new()),
            peer_lines: Vec::new(),
            ports: Vec::new(),
            l7: false,
            label,
            line: node.line,
        };
        if node.is_null() {
            return Some(vec![empty]);
        }
        let mut fields: Vec<&str> = peers::fields(context.direction).to_vec();
        fields.extend(["toPorts", "icmps", "authentication"]);
        if !self.mapping(node, field, &fields) {
            return None;
        }
        if !self.refuse_fields(node, field, &fields) {
            return None;
        }
        let found = self.cilium_peers(node, field, context, policy)?;
        let ports = self.cilium_ports(node, field, context)?;
        // An entry without peers and ports matches nothing. without peers but with ports it matches
        // everybody.
        let peers = if ports.given { found.peers } else { Some(found.peers.unwrap_or_default()) };
        let rule =
            |ports, l7| TierRule { peers: peers.clone(), peer_lines: found.lines.clone(), ports, l7, ..empty.clone() };
        Some(match (ports.ports.is_empty(), ports.restricted.is_empty()) {
            // `icmps` without a type.
            (true, true) if ports.given => vec![empty],
            (true, true) => vec![rule(Vec::new(), false)],
            (false, true) => vec![rule(ports.ports, false)],
            (true, false) => vec![rule(ports.restricted, true)],
            (false, false) => vec![rule(ports.ports, false), rule(ports.restricted, true)],
        })
    }

    /// A field that a rule does not have would make it mean something else: such input is refused,
    /// not pruned.
    fn refuse_fields(&mut self, node: &Node, field: &str, known: &[&str]) -> bool {
        let Value::Map(entries) = &node.value else { return false };
        let unknown = entries.iter().find(|(key, _)| !known.contains(&key.name.as_str()));
        if let Some((key, _)) = unknown {
            self.problem(
                ObjectProblemKind::UnknownField,
                key.line,
                format!("`{field}` has no field `{}`: without it the rule would mean less or more", key.name),
            );
        }
        unknown.is_none()
    }

    fn needs(policy: &mut TierPolicy, what: Feature, line: u32) {
        policy.needs.push(Need { what, line });
    }
}

/// Peers of one entry.
struct Peers {
    /// `None`: no peer field.
    peers: Option<Vec<Arc<TierPeer>>>,
    lines: Vec<u32>,
}
