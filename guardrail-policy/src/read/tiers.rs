//! `ClusterNetworkPolicy` v1alpha2, and its predecessors `AdminNetworkPolicy` and
//! `BaselineAdminNetworkPolicy` v1alpha1.
//!
//! Types: network-policy-api, `apis/v1alpha2/clusternetworkpolicy_types.go`, `apis/v1alpha1`.

use std::sync::Arc;

use guardrail_graph::snapshot::LabelSelector;

use super::{
    policy::{Decoder, Form},
    yaml::{Node, Value},
};
use crate::model::{
    Direction, IpBlock, Location, PolicyPort, PortMatch, Protocol,
    tier::{Action, NamePattern, PodSelector, PolicyKind, Reach, Stars, Subject, Tier, TierPeer, TierPolicy, TierRule},
};

/// Most rules per direction, and most peers per rule.
const MAX_ITEMS: usize = 25;
/// Most rules per direction of v1alpha1, and most peers and ports per rule.
const MAX_ITEMS_V1ALPHA1: usize = 100;
/// Highest priority number.
const MAX_PRIORITY: u16 = 1000;

/// The policy, if it is valid.
pub(super) fn decode(file: &Arc<str>, node: &Node, kind: PolicyKind) -> Form {
    let mut decoder = Decoder::new(file);
    let policy = decoder.tiered(node, kind);
    decoder.finish(policy.into_iter().collect())
}

impl Decoder<'_> {
    fn tiered(&mut self, node: &Node, kind: PolicyKind) -> Option<TierPolicy> {
        let name = self.cluster_name(node, kind)?;
        self.mapping(node, "the object", &["apiVersion", "kind", "metadata", "spec", "status"]);
        let Some(spec) = node.get("spec") else {
            self.invalid(node.line, format!("a {} needs a spec", kind.as_str()));
            return None;
        };
        let fields: &[&str] = match kind {
            PolicyKind::ClusterNetworkPolicy => &["tier", "priority", "subject", "ingress", "egress"],
            PolicyKind::AdminNetworkPolicy => &["priority", "subject", "ingress", "egress"],
            _ => &["subject", "ingress", "egress"],
        };
        if !self.mapping(spec, "spec", fields) {
            return None;
        }
        if kind == PolicyKind::BaselineAdminNetworkPolicy && name != "default" {
            self.invalid(node.line, format!("`{name}`: there is one BaselineAdminNetworkPolicy, named default"));
        }
        let tier = match kind {
            PolicyKind::ClusterNetworkPolicy => match self.string(spec, "tier", "spec")?.as_str() {
                "Admin" => Tier::Admin,
                "Baseline" => Tier::Baseline,
                other => {
                    self.invalid(spec.line, format!("`spec.tier` is `{other}`; write Admin or Baseline"));
                    return None;
                }
            },
            PolicyKind::AdminNetworkPolicy => Tier::Admin,
            _ => Tier::Baseline,
        };
        let priority = match kind {
            // After all ClusterNetworkPolicies of the tier.
            PolicyKind::BaselineAdminNetworkPolicy => MAX_PRIORITY + 1,
            _ => self.priority(spec)?,
        };
        let (subject, subject_line) = self.tier_subject(spec)?;
        let [ingress, egress] = Direction::BOTH.map(|d| self.tier_rules(spec, kind, d));
        Some(TierPolicy {
            kind,
            namespace: String::new(),
            name,
            section: None,
            location: Some(Location { file: self.file().clone(), line: node.line }),
            subject_line,
            tier,
            priority,
            subject,
            isolates: [false, false],
            ingress,
            egress,
            requires: Default::default(),
            needs: Vec::new(),
        })
    }

    fn priority(&mut self, spec: &Node) -> Option<u16> {
        let Some(node) = spec.get("priority") else {
            self.invalid(spec.line, "`spec` lacks `priority`; add a number from 0 to 1000".to_owned());
            return None;
        };
        let number = if let Value::Int(number) = node.value { u16::try_from(number).ok() } else { None };
        let priority = number.filter(|n| *n <= MAX_PRIORITY);
        if priority.is_none() {
            self.invalid(node.line, "`spec.priority` is a number from 0 to 1000".to_owned());
        }
        priority
    }

    fn tier_subject(&mut self, spec: &Node) -> Option<(Subject, u32)> {
        let Some(subject) = spec.get("subject") else {
            self.invalid(spec.line, "`spec` lacks `subject`; add namespaces or pods".to_owned());
            return None;
        };
        if !self.mapping(subject, "spec.subject", &["namespaces", "pods"]) {
            return None;
        }
        match self.pod_like(subject, "spec.subject") {
            Some(Ok(selector)) => Some((Subject::Pods(selector), subject.line)),
            Some(Err(())) => None,
            None => {
                self.invalid(subject.line, "`spec.subject` is exactly one of namespaces and pods".to_owned());
                None
            }
        }
    }

    /// `namespaces` or `pods`; `None` unless exactly one of them is there.
    fn pod_like(&mut self, node: &Node, field: &str) -> Option<Result<PodSelector, ()>> {
        match (node.get("namespaces"), node.get("pods")) {
            (Some(namespaces), None) => {
                let namespaces = Some(self.selector(namespaces, &format!("{field}.namespaces")));
                Some(Ok(PodSelector::Kubernetes { namespace: None, namespaces, pods: None }))
            }
            (None, Some(pods)) => {
                let field = format!("{field}.pods");
                if !self.mapping(pods, &field, &["namespaceSelector", "podSelector"]) {
                    return Some(Err(()));
                }
                let mut selector = |name: &str| match pods.get(name) {
                    Some(selector) => Some(self.selector(selector, &format!("{field}.{name}"))),
                    None => {
                        self.invalid(pods.line, format!("`{field}` lacks `{name}`; `{{}}` selects all"));
                        None
                    }
                };
                let (namespaces, pods) = (selector("namespaceSelector"), selector("podSelector"));
                let both = namespaces.is_some() && pods.is_some();
                let selector = PodSelector::Kubernetes { namespace: None, namespaces, pods };
                Some(if both { Ok(selector) } else { Err(()) })
            }
            _ => None,
        }
    }

    fn tier_rules(&mut self, spec: &Node, kind: PolicyKind, direction: Direction) -> Vec<TierRule> {
        let field = format!("spec.{direction}");
        let Some(list) = spec.get(direction.field()) else { return Vec::new() };
        let items = self.list(list, &field);
        let most = most(kind);
        if items.len() > most {
            self.invalid(list.line, format!("`{field}` has {} rules; at most {most} are taken", items.len()));
        }
        let rules = items.iter().zip(0..).map(|(item, i)| self.tier_rule(item, kind, direction, &field, i));
        rules.collect::<Vec<_>>().into_iter().flatten().collect()
    }

    fn tier_rule(
        &mut self,
        node: &Node,
        kind: PolicyKind,
        direction: Direction,
        list: &str,
        index: u32,
    ) -> Option<TierRule> {
        let field = format!("{list}[{index}]");
        let ports_field = if kind == PolicyKind::ClusterNetworkPolicy { "protocols" } else { "ports" };
        if !self.mapping(node, &field, &["name", "action", direction.peers_field(), ports_field]) {
            return None;
        }
        let baseline = kind == PolicyKind::BaselineAdminNetworkPolicy;
        let (accept, words) = match kind {
            PolicyKind::ClusterNetworkPolicy => ("Accept", "Accept, Deny or Pass"),
            _ if baseline => ("Allow", "Allow or Deny"),
            _ => ("Allow", "Allow, Deny or Pass"),
        };
        let action = match self.string(node, "action", &field)?.as_str() {
            text if text == accept => Action::Accept,
            "Deny" => Action::Deny,
            "Pass" if !baseline => Action::Pass,
            other => {
                let line = node.get("action").map_or(node.line, |n| n.line);
                self.invalid(line, format!("`{field}.action` is `{other}`; write {words}"));
                return None;
            }
        };
        let peers_field = format!("{field}.{}", direction.peers_field());
        let (mut peers, mut peer_lines) = (Vec::new(), Vec::new());
        let items = match node.get(direction.peers_field()) {
            Some(list) => self.list(list, &peers_field),
            None => &[],
        };
        if items.is_empty() {
            self.invalid(node.line, format!("`{peers_field}` needs at least one peer; there is no rule for everybody"));
        }
        if items.len() > most(kind) {
            self.invalid(
                node.line,
                format!("`{peers_field}` has {} peers; at most {} are taken", items.len(), most(kind)),
            );
        }
        for (item, index) in items.iter().zip(0..) {
            for peer in self.tier_peer(item, direction, action, &format!("{peers_field}[{index}]")) {
                peers.push(Arc::new(peer));
                peer_lines.push(item.line);
            }
        }
        let mut ports = Vec::new();
        if let Some(list) = node.get(ports_field) {
            let field = format!("{field}.{ports_field}");
            for (item, index) in self.list(list, &field).iter().zip(0..) {
                let field = format!("{field}[{index}]");
                match kind {
                    PolicyKind::ClusterNetworkPolicy => self.protocol_item(item, &field, &mut ports),
                    _ => self.port_item(item, &field, &mut ports),
                }
            }
        }
        let (label, peers) = ((index + 1).to_string(), Some(peers));
        Some(TierRule { action, peers, peer_lines, ports, l7: false, label, line: node.line })
    }

    fn tier_peer(&mut self, node: &Node, direction: Direction, action: Action, field: &str) -> Vec<TierPeer> {
        let fields: &[&str] = match direction {
            Direction::Ingress => &["namespaces", "pods"],
            Direction::Egress => &["namespaces", "pods", "nodes", "networks", "domainNames"],
        };
        let Value::Map(entries) = &node.value else {
            self.invalid(node.line, format!("`{field}` is a mapping, this is {}", node.describe()));
            return Vec::new();
        };
        let known = entries.iter().filter(|(k, v)| fields.contains(&k.name.as_str()) && !v.is_null()).count();
        // A field that is not known here would widen or narrow the peer unseen: the API server and
        // its readers fail closed.
        if let Some((key, _)) = entries.iter().find(|(k, _)| !fields.contains(&k.name.as_str())) {
            self.invalid(
                key.line,
                format!("`{field}` has no field `{}`; write one of {}", key.name, fields.join(", ")),
            );
            return Vec::new();
        }
        if known != 1 {
            self.invalid(node.line, format!("`{field}` needs exactly one of {}", fields.join(", ")));
            return Vec::new();
        }
        if let Some(Ok(selector)) = self.pod_like(node, field) {
            return vec![TierPeer::Pods(selector)];
        }
        if let Some(nodes) = node.get("nodes") {
            let selector: LabelSelector = self.selector(nodes, &format!("{field}.nodes"));
            return vec![TierPeer::Nodes { selector, remote_only: false }];
        }
        let mut peers = Vec::new();
        for (name, what) in [("networks", "a CIDR"), ("domainNames", "a name")] {
            let Some(list) = node.get(name) else { continue };
            let field = format!("{field}.{name}");
            let items = self.list(list, &field);
            if items.is_empty() {
                self.invalid(list.line, format!("`{field}` needs at least one entry"));
            }
            if name == "domainNames" && action != Action::Accept {
                self.invalid(list.line, format!("`{field}`: names can only be accepted"));
            }
            for item in items {
                let Some(text) = item.as_str() else {
                    self.invalid(item.line, format!("an entry of `{field}` is {what}, this is {}", item.describe()));
                    continue;
                };
                if name == "networks" {
                    let block = self.cidr(text, item.line).map(|cidr| IpBlock { cidr, except: Vec::new() });
                    peers.extend(block.map(|block| TierPeer::Addresses { block, reach: Reach::Everybody }));
                } else {
                    peers.extend(self.domain_name(text, item.line));
                }
            }
        }
        peers
    }

    fn domain_name(&mut self, text: &str, line: u32) -> Option<TierPeer> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let rest = name.strip_prefix("*.").unwrap_or(name);
        if !super::syntax::is_dns_subdomain(rest) {
            self.invalid(line, format!("`{text}` is no DNS name; a `*` may only be its whole first label"));
            return None;
        }
        Some(TierPeer::Name(NamePattern { pattern: name.to_owned(), stars: Stars::Depth }))
    }

    /// An item of `protocols` (v1alpha2).
    fn protocol_item(&mut self, node: &Node, field: &str, ports: &mut Vec<PolicyPort>) {
        const FIELDS: [&str; 4] = ["tcp", "udp", "sctp", "destinationNamedPort"];
        if !self.exactly_one(node, field, &FIELDS) {
            return;
        }
        for (name, protocol) in [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)] {
            let Some(item) = node.get(name) else { continue };
            let field = format!("{field}.{name}");
            if !self.mapping(item, &field, &["destinationPort"]) {
                return;
            }
            let port = match item.get("destinationPort") {
                None => Some(PortMatch::Any),
                Some(port) => {
                    let field = format!("{field}.destinationPort");
                    if !self.exactly_one(port, &field, &["number", "range"]) {
                        return;
                    }
                    match port.get("range") {
                        Some(range) => self.port_span(range, &format!("{field}.range")),
                        None => self
                            .int_port(port, "number", &field)
                            .map(|number| PortMatch::Range { first: number, last: number }),
                    }
                }
            };
            ports.extend(port.map(|port| PolicyPort { protocol, port, line: node.line }));
        }
        if node.get("destinationNamedPort").is_some()
            && let Some(name) = self.string(node, "destinationNamedPort", field)
        {
            self.named_port(&name, node.line, ports);
        }
    }

    /// An item of `ports` (v1alpha1).
    fn port_item(&mut self, node: &Node, field: &str, ports: &mut Vec<PolicyPort>) {
        if !self.exactly_one(node, field, &["portNumber", "portRange", "namedPort"]) {
            return;
        }
        if let Some(number) = node.get("portNumber") {
            let field = format!("{field}.portNumber");
            if !self.mapping(number, &field, &["protocol", "port"]) {
                return;
            }
            let protocol = self.protocol(number, &field);
            let port = self.int_port(number, "port", &field).map(|p| PortMatch::Range { first: p, last: p });
            ports.extend(protocol.zip(port).map(|(protocol, port)| PolicyPort { protocol, port, line: node.line }));
        }
        if let Some(range) = node.get("portRange") {
            let field = format!("{field}.portRange");
            if !self.mapping(range, &field, &["protocol", "start", "end"]) {
                return;
            }
            let protocol = self.protocol(range, &field);
            let port = self.port_span(range, &field);
            ports.extend(protocol.zip(port).map(|(protocol, port)| PolicyPort { protocol, port, line: node.line }));
        }
        if node.get("namedPort").is_some()
            && let Some(name) = self.string(node, "namedPort", field)
        {
            self.named_port(&name, node.line, ports);
        }
    }

    /// A name holds for whichever protocol has it at the destination.
    fn named_port(&mut self, name: &str, line: u32, ports: &mut Vec<PolicyPort>) {
        if !super::syntax::is_port_name(name) {
            self.invalid(line, format!("`{name}` is no valid port name"));
            return;
        }
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            ports.push(PolicyPort { protocol, port: PortMatch::Named(name.to_owned()), line });
        }
    }

    fn protocol(&mut self, node: &Node, field: &str) -> Option<Protocol> {
        if node.get("protocol").is_none() {
            return Some(Protocol::Tcp);
        }
        let text = self.string(node, "protocol", field)?;
        let known = text.parse().ok();
        if known.is_none() {
            self.invalid(node.line, format!("`{text}`: a protocol is TCP, UDP or SCTP, in capitals"));
        }
        known
    }

    fn port_span(&mut self, node: &Node, field: &str) -> Option<PortMatch> {
        let (first, last) = (self.int_port(node, "start", field)?, self.int_port(node, "end", field)?);
        if last < first {
            self.invalid(node.line, format!("`{field}` ends at {last} before its start {first}"));
            return None;
        }
        Some(PortMatch::Range { first, last })
    }

    fn int_port(&mut self, node: &Node, name: &str, field: &str) -> Option<u16> {
        let port = match node.get(name).map(|n| &n.value) {
            Some(Value::Int(number)) => u16::try_from(*number).ok().filter(|p| *p > 0),
            _ => None,
        };
        if port.is_none() {
            self.invalid(node.line, format!("`{field}.{name}` is a number from 1 to 65535"));
        }
        port
    }

    /// Exactly one of these fields, and no other.
    pub(super) fn exactly_one(&mut self, node: &Node, field: &str, fields: &[&str]) -> bool {
        if !self.mapping(node, field, fields) {
            return false;
        }
        let one = fields.iter().filter(|f| node.get(f).is_some()).count() == 1;
        if !one {
            self.invalid(node.line, format!("`{field}` needs exactly one of {}", fields.join(", ")));
        }
        one
    }
}

const fn most(kind: PolicyKind) -> usize {
    if matches!(kind, PolicyKind::ClusterNetworkPolicy) { MAX_ITEMS } else { MAX_ITEMS_V1ALPHA1 }
}
