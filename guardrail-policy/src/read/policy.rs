//! One NetworkPolicy object: decoded, validated as the API server does, defaulted.

use std::sync::Arc;

use guardrail_graph::snapshot::LabelSelector;

use super::{
    ObjectProblem, ObjectProblemKind, Refused,
    syntax::{is_dns_label, is_dns_subdomain, is_port_name},
    yaml::{Node, Value},
};
use crate::model::{
    Direction, IpBlock, Location, NetworkPolicy, PeerKind, PolicyPeer, PolicyPort, PolicyTypes, PortMatch, Protocol,
    Rule,
    tier::{PolicyKind, TierPolicy},
};

/// Fields of `meta/v1 ObjectMeta`.
const METADATA: &[&str] = &[
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// What became of one object.
pub(super) struct Decoded {
    /// The policy, if it is valid but for quoted ports.
    pub(super) policy: Option<NetworkPolicy>,
    pub(super) problems: Vec<ObjectProblem>,
    pub(super) warnings: Vec<ObjectProblem>,
}

pub(super) struct Decoder<'a> {
    file: &'a Arc<str>,
    policy: Option<String>,
    problems: Vec<ObjectProblem>,
    pub(super) warnings: Vec<ObjectProblem>,
}

pub(super) fn decode(file: &Arc<str>, node: &Node) -> Decoded {
    let mut decoder = Decoder::new(file);
    let policy = decoder.policy(node);
    // A policy whose only fault is a quoted port is kept for the linter; the problem stops
    // everybody else.
    let usable = decoder.problems.iter().all(|p| p.kind == ObjectProblemKind::QuotedPort);
    Decoded { policy: policy.filter(|_| usable), problems: decoder.problems, warnings: decoder.warnings }
}

/// What became of one object of a kind other than NetworkPolicy.
pub(super) struct Form {
    /// One, several for a Cilium policy with `specs`; none if it is invalid.
    pub(super) policies: Vec<TierPolicy>,
    pub(super) problems: Vec<ObjectProblem>,
    pub(super) warnings: Vec<ObjectProblem>,
    /// What the agent made of an object of Cilium's kinds.
    pub(super) stored: Option<Stored>,
}

/// An object of Cilium's kinds, as a cluster stores it.
pub(super) struct Stored {
    pub(super) kind: PolicyKind,
    pub(super) line: u32,
    /// `status.conditions` of type Valid.
    pub(super) valid: Option<bool>,
}

impl Form {
    /// The policy, if Cilium stores it and does not enforce it.
    pub(super) fn refused(&self, file: &Arc<str>) -> Option<Refused> {
        let Stored { kind, line, valid } = self.stored.as_ref()?;
        let problem = self.problems.first();
        if *valid != Some(false) && problem.is_none() {
            return None;
        }
        let name = problem.and_then(|p| p.policy.clone());
        let policy = match (self.policies.first(), name) {
            (Some(policy), _) => TierPolicy { section: None, ..policy.clone() }.key(),
            (None, Some(name)) => format!("{}/{name}", kind.as_str()),
            (None, None) => kind.as_str().to_owned(),
        };
        // A field that is not known here may be one of a later release.
        let known = self.problems.iter().all(|p| p.kind != ObjectProblemKind::UnknownField);
        let namespace = match self.policies.first() {
            Some(policy) => policy.namespace.clone(),
            None if *kind == PolicyKind::CiliumNetworkPolicy => policy.split('/').nth(1).unwrap_or_default().to_owned(),
            None => String::new(),
        };
        Some(Refused {
            policy,
            namespace,
            location: Location { file: file.clone(), line: problem.map_or(*line, |p| p.location.line) },
            because: problem.map_or_else(|| "its status says that it is not valid".to_owned(), |p| p.message.clone()),
            certain: *valid == Some(false) || valid.is_none() && known,
        })
    }
}

impl<'a> Decoder<'a> {
    /// For an object of this file.
    pub(super) fn new(file: &'a Arc<str>) -> Self {
        Self { file, policy: None, problems: Vec::new(), warnings: Vec::new() }
    }

    /// What became of the object: nothing but its problems, if it has any.
    pub(super) fn finish(self, policies: Vec<TierPolicy>) -> Form {
        let policies = if self.problems.is_empty() { policies } else { Vec::new() };
        Form { policies, problems: self.problems, warnings: self.warnings, stored: None }
    }

    pub(super) fn file(&self) -> &'a Arc<str> {
        self.file
    }

    pub(super) fn problem_count(&self) -> usize {
        self.problems.len()
    }
}

impl Decoder<'_> {
    fn policy(&mut self, node: &Node) -> Option<NetworkPolicy> {
        let (namespace, name) = self.names(node, PolicyKind::NetworkPolicy)?;
        self.mapping(node, "the object", &["apiVersion", "kind", "metadata", "spec", "status"]);
        let mut policy = NetworkPolicy {
            namespace,
            name,
            location: Some(Location { file: self.file.clone(), line: node.line }),
            pod_selector: LabelSelector::default(),
            pod_selector_line: node.line,
            policy_types: PolicyTypes { ingress: true, egress: false, explicit: false },
            ingress: Vec::new(),
            egress: Vec::new(),
        };
        let Some(spec) = node.get("spec") else { return Some(policy) };
        if !self.mapping(spec, "spec", &["podSelector", "policyTypes", "ingress", "egress"]) {
            return None;
        }
        if let Some(selector) = spec.get("podSelector") {
            policy.pod_selector = self.selector(selector, "spec.podSelector");
            policy.pod_selector_line = selector.line;
        }
        for direction in Direction::BOTH {
            if let Some(rules) = spec.get(direction.field()) {
                let field = format!("spec.{direction}");
                let rules = self
                    .list(rules, &field)
                    .iter()
                    .zip(0..)
                    .map(|(item, i)| self.rule(item, direction, &format!("{field}[{i}]")))
                    .collect();
                match direction {
                    Direction::Ingress => policy.ingress = rules,
                    Direction::Egress => policy.egress = rules,
                }
            }
        }
        policy.policy_types = self.policy_types(spec, !policy.egress.is_empty());
        Some(policy)
    }

    /// Namespace and name of an object of a namespaced kind; problems are told under them from here
    /// on.
    pub(super) fn names(&mut self, node: &Node, kind: PolicyKind) -> Option<(String, String)> {
        let (metadata, name) = self.name(node, kind)?;
        let namespace = match metadata.get("namespace") {
            Some(_) => self.string(metadata, "namespace", "metadata")?,
            None => String::new(),
        };
        let namespace = if namespace.is_empty() { "default".to_owned() } else { namespace };
        if !is_dns_label(&namespace) {
            self.invalid(
                metadata.line,
                format!("`{namespace}` is no valid namespace name: at most 63 lower case letters, digits and `-`"),
            );
        }
        self.policy = Some(format!("{namespace}/{name}"));
        Some((namespace, name))
    }

    /// Name of an object of a cluster-scoped kind.
    pub(super) fn cluster_name(&mut self, node: &Node, kind: PolicyKind) -> Option<String> {
        let (_, name) = self.name(node, kind)?;
        self.policy = Some(name.clone());
        Some(name)
    }

    fn name<'n>(&mut self, node: &'n Node, kind: PolicyKind) -> Option<(&'n Node, String)> {
        let Some(metadata) = node.get("metadata") else {
            self.invalid(node.line, format!("a {} needs metadata with a name", kind.as_str()));
            return None;
        };
        if !self.mapping(metadata, "metadata", METADATA) {
            return None;
        }
        // `kubectl create` takes it; the API server puts five letters in place of the star.
        let generated = metadata.get("generateName").filter(|_| metadata.get("name").is_none());
        let name = match generated.and_then(Node::as_str) {
            Some(first) => format!("{first}*"),
            None => self.string(metadata, "name", "metadata")?,
        };
        if !is_dns_subdomain(&name.replace('*', "0")) || generated.is_none() && name.contains('*') {
            self.invalid(
                metadata.line,
                format!("`{name}` is no valid name: at most 253 lower case letters, digits, `-` and `.`"),
            );
        }
        Some((metadata, name))
    }

    /// A2–A4.
    fn policy_types(&mut self, spec: &Node, has_egress_rules: bool) -> PolicyTypes {
        let items = match spec.get("policyTypes") {
            Some(list) => self.list(list, "spec.policyTypes"),
            None => &[],
        };
        if items.is_empty() {
            return PolicyTypes { ingress: true, egress: has_egress_rules, explicit: false };
        }
        let mut types = PolicyTypes { ingress: false, egress: false, explicit: true };
        for item in items {
            match item.as_str() {
                Some("Ingress") => types.ingress = true,
                Some("Egress") => types.egress = true,
                Some(other) => self.invalid(item.line, format!("`{other}` is no policy type; write Ingress or Egress")),
                None => {
                    self.invalid(item.line, format!("a policy type is Ingress or Egress, this is {}", item.describe()))
                }
            }
        }
        if items.len() > 2 {
            self.invalid(
                items[0].line,
                "`spec.policyTypes` has more than two entries; write each type once".to_owned(),
            );
        }
        types
    }

    fn rule(&mut self, node: &Node, direction: Direction, field: &str) -> Rule {
        let mut rule = Rule { line: node.line, ..Rule::default() };
        // A null item is a zero value for the API server: a rule that allows everything.
        if node.is_null() || !self.mapping(node, field, &[direction.peers_field(), "ports"]) {
            return rule;
        }
        let peers = direction.peers_field();
        if node.has_empty(peers) {
            let message = format!(
                "`{field}.{peers}` is empty, which means everybody; name the peers, remove the rule to allow nobody, or the field if everybody is meant"
            );
            self.warnings.push(self.make(ObjectProblemKind::EmptyField, node.line, message));
        }
        if node.has_empty("ports") {
            let message =
                format!("`{field}.ports` is empty, which means every port; name the ports, or remove the field");
            self.warnings.push(self.make(ObjectProblemKind::EmptyField, node.line, message));
        }
        if let Some(peers) = node.get(direction.peers_field()) {
            let field = format!("{field}.{}", direction.peers_field());
            for (item, index) in self.list(peers, &field).iter().zip(0..) {
                rule.peers.extend(self.peer(item, &format!("{field}[{index}]")));
            }
        }
        if let Some(ports) = node.get("ports") {
            let field = format!("{field}.ports");
            for (item, index) in self.list(ports, &field).iter().zip(0..) {
                rule.ports.extend(self.port(item, &format!("{field}[{index}]")));
            }
        }
        rule
    }

    /// A17, A18.
    fn peer(&mut self, node: &Node, field: &str) -> Option<PolicyPeer> {
        if !node.is_null() && !self.mapping(node, field, &["podSelector", "namespaceSelector", "ipBlock"]) {
            return None;
        }
        let pods = node.get("podSelector");
        let namespaces = node.get("namespaceSelector");
        let kind = match (node.get("ipBlock"), pods, namespaces) {
            (Some(block), None, None) => PeerKind::IpBlock(self.ip_block(block, &format!("{field}.ipBlock"))?),
            (Some(block), ..) => {
                self.invalid(block.line, format!("`{field}` has ipBlock beside a selector; make them two entries"));
                return None;
            }
            (None, None, None) => {
                self.invalid(
                    node.line,
                    format!("`{field}` names no peer; give it podSelector, namespaceSelector or ipBlock"),
                );
                return None;
            }
            (None, pods, namespaces) => PeerKind::Pods {
                namespaces: namespaces.map(|n| self.selector(n, &format!("{field}.namespaceSelector"))),
                pods: pods.map(|n| self.selector(n, &format!("{field}.podSelector"))),
            },
        };
        Some(PolicyPeer { kind, line: node.line })
    }

    /// A19.
    fn ip_block(&mut self, node: &Node, field: &str) -> Option<IpBlock> {
        if !self.mapping(node, field, &["cidr", "except"]) {
            return None;
        }
        if let Some(Node { value: Value::Seq(_), line }) = node.get("cidr") {
            self.invalid(*line, format!("`{field}.cidr` is one range, this is a list; write one ipBlock for each"));
            return None;
        }
        let text = self.string(node, "cidr", field)?;
        let line = node.get("cidr").map_or(node.line, |n| n.line);
        let cidr = self.cidr(&text, line)?;
        let mut except = Vec::new();
        if let Some(list) = node.get("except") {
            for item in self.list(list, &format!("{field}.except")) {
                let Some(text) = item.as_str() else {
                    self.invalid(
                        item.line,
                        format!("an entry of `{field}.except` is a CIDR, this is {}", item.describe()),
                    );
                    continue;
                };
                let Some(inner) = self.cidr(text, item.line) else { continue };
                if inner.prefix_len() > cidr.prefix_len() && cidr.contains(&inner) {
                    except.push(inner);
                } else {
                    self.invalid(
                        item.line,
                        format!("except {text} is not inside {cidr} and smaller than it; correct one of them"),
                    );
                }
            }
        }
        Some(IpBlock { cidr, except })
    }

    /// A23–A25.
    fn port(&mut self, node: &Node, field: &str) -> Option<PolicyPort> {
        let mut port = PolicyPort { protocol: Protocol::Tcp, port: PortMatch::Any, line: node.line };
        if node.is_null() {
            return Some(port);
        }
        if !self.mapping(node, field, &["protocol", "port", "endPort"]) {
            return None;
        }
        if let Some(protocol) = node.get("protocol") {
            let text = self.string(node, "protocol", field)?;
            match text.parse() {
                Ok(known) => port.protocol = known,
                Err(error) => {
                    self.invalid(protocol.line, format!("`{text}`: {error}, in capitals"));
                    return None;
                }
            }
        }
        let end = node.get("endPort");
        let Some(wanted) = node.get("port") else {
            if node.has_empty("port") {
                let message = format!(
                    "`{field}.port` is empty, which means every {} port; write its number, or remove the field",
                    port.protocol
                );
                self.warnings.push(self.make(ObjectProblemKind::EmptyField, node.line, message));
            }
            if let Some(end) = end {
                self.invalid(end.line, format!("`{field}` has endPort without port; add port"));
            }
            return Some(port);
        };
        port.port = match &wanted.value {
            Value::Int(_) | Value::Float(_) if wanted.as_whole().is_some() => {
                let first = self.number(wanted.as_whole()?, wanted.line, &format!("{field}.port"))?;
                let last = match end.map(|e| (e, e.as_whole())) {
                    None => first,
                    Some((end, Some(number))) => self.number(number, end.line, &format!("{field}.endPort"))?,
                    Some((end, None)) => {
                        let quotes = if end.as_str().is_some() { "; remove the quotes" } else { "" };
                        let said = end.describe();
                        self.invalid(
                            end.line,
                            format!("`{field}.endPort` is a number from 1 to 65535, this is {said}{quotes}"),
                        );
                        return None;
                    }
                };
                if last < first {
                    self.invalid(
                        end.map_or(node.line, |e| e.line),
                        format!("endPort {last} is less than port {first}; exchange them"),
                    );
                    return None;
                }
                PortMatch::Range { first, last }
            }
            Value::Str(name) => {
                self.port_name(name, wanted.line, field)?;
                if let Some(end) = end {
                    self.invalid(
                        end.line,
                        format!("`{field}` has endPort beside the port name `{name}`; a range needs a number"),
                    );
                    return None;
                }
                PortMatch::Named(name.clone())
            }
            _ => {
                self.invalid(
                    wanted.line,
                    format!("`{field}.port` is a number or a port name, this is {}", wanted.describe()),
                );
                return None;
            }
        };
        Some(port)
    }

    fn number(&mut self, number: i128, line: u32, field: &str) -> Option<u16> {
        let port = u16::try_from(number).ok().filter(|p| *p > 0);
        if port.is_none() {
            self.invalid(line, format!("`{field}` is {number}; a port is a number from 1 to 65535"));
        }
        port
    }

    /// `None` if the name is invalid in a way that leaves nothing to judge.
    fn port_name(&mut self, name: &str, line: u32, field: &str) -> Option<()> {
        if is_port_name(name) {
            return Some(());
        }
        if !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()) {
            let message =
                format!("`{field}.port` is \"{name}\" in quotes, which means a port *named* {name}; remove the quotes");
            self.problem(ObjectProblemKind::QuotedPort, line, message);
            return Some(());
        }
        let range =
            name.split_once(['-', ':']).and_then(|(a, b)| Some((a.parse::<u16>().ok()?, b.parse::<u16>().ok()?)));
        let message = match range {
            Some((first, last)) => {
                format!("`{name}` is no port; a range is written `port: {first}` and `endPort: {last}`")
            }
            None if name.starts_with("map[") => format!(
                "`{name}` is what a template prints for a whole mapping; let it print the port alone, or all of the item (toYaml)"
            ),
            None => format!(
                "`{name}` is no valid port name: at most 15 lower case letters, digits and `-`, one letter at least"
            ),
        };
        self.invalid(line, message);
        None
    }

    /// Whether it is a mapping; warns of fields that the API does not have.
    pub(super) fn mapping(&mut self, node: &Node, field: &str, known: &[&str]) -> bool {
        let Value::Map(entries) = &node.value else {
            let remedy = match &node.value {
                Value::Str(text) if text.contains('\u{a0}') => {
                    "; it holds a non-breaking space where a plain one belongs"
                }
                Value::Seq(items) if items.len() == 1 => "; remove the `-`",
                _ => "",
            };
            self.invalid(node.line, format!("`{field}` is a mapping, this is {}{remedy}", node.describe()));
            return false;
        };
        for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.name.as_str())) {
            let hint = match (key.name.as_str(), known) {
                ("to", ["from", ..]) => "; did you mean `from`?".to_owned(),
                ("from", ["to", ..]) => "; did you mean `to`?".to_owned(),
                ("matchLabels" | "matchExpressions", ["podSelector", ..]) => {
                    "; it belongs under podSelector or namespaceSelector, indented further".to_owned()
                }
                (name, _) => match known.iter().find(|k| k.eq_ignore_ascii_case(name) || is_close(k, name)) {
                    Some(k) => format!("; did you mean `{k}`?"),
                    None if known.first() == Some(&"matchLabels") => "; labels belong under `matchLabels`".to_owned(),
                    None => String::new(),
                },
            };
            let message = format!("`{field}` has no field `{}`, the API server drops it{hint}", key.name);
            self.warnings.push(self.make(ObjectProblemKind::UnknownField, key.line, message));
        }
        true
    }

    /// The items of a list; none, and a problem, if it is something else.
    pub(super) fn list<'n>(&mut self, node: &'n Node, field: &str) -> &'n [Node] {
        match &node.value {
            Value::Seq(items) => items,
            _ => {
                let remedy = match &node.value {
                    Value::Map(_) => "; begin its first line with `- `".to_owned(),
                    Value::Str(text) if text.len() <= 63 => format!("; write [{text}]"),
                    _ => String::new(),
                };
                self.invalid(node.line, format!("`{field}` is a list, this is {}{remedy}", node.describe()));
                &[]
            }
        }
    }

    /// A required string.
    pub(super) fn string(&mut self, node: &Node, name: &str, field: &str) -> Option<String> {
        match node.get(name) {
            Some(Node { value: Value::Str(s), .. }) => Some(s.clone()),
            Some(other) => {
                let remedy = match other.value {
                    Value::Seq(_) | Value::Map(_) => "",
                    _ => "; put it in quotes",
                };
                self.invalid(other.line, format!("`{field}.{name}` is a string, this is {}{remedy}", other.describe()));
                None
            }
            None => {
                self.invalid(node.line, format!("`{field}` lacks `{name}`; add it"));
                None
            }
        }
    }

    pub(super) fn invalid(&mut self, line: u32, message: String) {
        self.problem(ObjectProblemKind::Invalid, line, message);
    }

    pub(super) fn problem(&mut self, kind: ObjectProblemKind, line: u32, message: String) {
        let problem = self.make(kind, line, message);
        self.problems.push(problem);
    }

    pub(super) fn make(&self, kind: ObjectProblemKind, line: u32, message: String) -> ObjectProblem {
        ObjectProblem {
            location: Location { file: self.file.clone(), line },
            kind,
            policy: self.policy.clone(),
            message,
        }
    }
}

/// One letter too many, too few, or wrong.
fn is_close(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let start = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let end = a[start..].iter().rev().zip(b[start..].iter().rev()).take_while(|(x, y)| x == y).count();
    a.len() - start - end <= 1 && b.len() - start - end <= 1
}
