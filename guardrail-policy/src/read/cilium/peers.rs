//! The peer fields of a Cilium rule.

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    super::{
        policy::Decoder,
        yaml::{Node, Value},
    },
    Context, Peers,
};
use crate::model::{
    Direction, IpBlock,
    tier::{Action, Entity, Feature, NamePattern, PodSelector, Reach, Scope, ServiceBy, Stars, TierPeer, TierPolicy},
};

/// The peer fields of a direction. The last one only adds conditions.
pub(super) const fn fields(direction: Direction) -> &'static [&'static str] {
    match direction {
        Direction::Ingress => {
            &["fromEndpoints", "fromCIDR", "fromCIDRSet", "fromEntities", "fromGroups", "fromNodes", "fromRequires"]
        }
        Direction::Egress => &[
            "toEndpoints",
            "toCIDR",
            "toCIDRSet",
            "toEntities",
            "toServices",
            "toFQDNs",
            "toGroups",
            "toNodes",
            "toRequires",
        ],
    }
}

impl Decoder<'_> {
    pub(super) fn cilium_peers(
        &mut self,
        node: &Node,
        field: &str,
        context: Context<'_>,
        policy: &mut TierPolicy,
    ) -> Option<Peers> {
        let mut found = Peers { peers: None, lines: Vec::new() };
        let mut given: Option<&str> = None;
        for &name in fields(context.direction) {
            let Some(list) = node.get(name) else { continue };
            let rule = field;
            let field = format!("{field}.{name}");
            if !matches!(list.value, Value::Seq(_)) {
                self.invalid(list.line, format!("`{field}` is a list, this is {}", list.describe()));
                return None;
            }
            let items = self.list(list, &field);
            if name.ends_with("Requires") {
                self.requires(items, &field, context, policy)?;
                continue;
            }
            if let Some(first) = given {
                self.invalid(
                    list.line,
                    format!("`{rule}` has {first} and {name}: Cilium takes one kind of peer; make them two rules"),
                );
                return None;
            }
            given = Some(name);
            if context.action == Action::Deny && name == "toFQDNs" {
                self.invalid(list.line, format!("`{field}`: a deny rule knows no names"));
                return None;
            }
            let peers = found.peers.get_or_insert_default();
            for (item, index) in items.iter().zip(0..) {
                for peer in self.cilium_peer(item, name, &format!("{field}[{index}]"), context)? {
                    peers.push(Arc::new(peer));
                    found.lines.push(item.line);
                }
            }
            if name.ends_with("Nodes") {
                Self::needs(policy, Feature::NodeSelector, list.line);
            }
        }
        Some(found)
    }

    fn requires(&mut self, items: &[Node], field: &str, context: Context<'_>, policy: &mut TierPolicy) -> Option<()> {
        for item in items {
            let labels = self.cilium_labels(item, field)?;
            if let TierPeer::Pods(selector) = labels.peer(context.namespace) {
                // The condition is on labels alone, wherever the pod is.
                let selector = match selector {
                    PodSelector::Cilium { selector, .. } => PodSelector::Cilium { scope: Scope::Pods, selector },
                    other => other,
                };
                let requires = &mut policy.requires[context.direction.slot()];
                let list = if context.action == Action::Deny { &mut requires.deny } else { &mut requires.accept };
                list.push(selector);
            }
            Self::needs(policy, Feature::Requires, item.line);
        }
        Some(())
    }

    fn cilium_peer(&mut self, item: &Node, name: &str, field: &str, context: Context<'_>) -> Option<Vec<TierPeer>> {
        let peer = match name {
            "fromEndpoints" | "toEndpoints" => self.cilium_labels(item, field)?.peer(context.namespace),
            "fromNodes" | "toNodes" => {
                TierPeer::Nodes { selector: self.cilium_labels(item, field)?.labels, remote_only: true }
            }
            "fromCIDR" | "toCIDR" => {
                let text = self.text(item, field, "a CIDR")?;
                // Cilium takes an address for its own range here.
                let block = match text.parse::<std::net::IpAddr>() {
                    Ok(address) => IpNet::from(address),
                    Err(_) => self.cidr(text, item.line)?,
                };
                TierPeer::Addresses { block: IpBlock { cidr: block, except: Vec::new() }, reach: Reach::Dataplane }
            }
            "fromCIDRSet" | "toCIDRSet" => self.cidr_rule(item, field)?,
            "fromEntities" | "toEntities" => {
                let text = self.text(item, field, "an entity")?;
                match Entity::from_name(text) {
                    Some(entity) => TierPeer::Entity(entity),
                    None => {
                        let all: Vec<&str> = Entity::ALL.into_iter().map(Entity::as_str).collect();
                        self.invalid(
                            item.line,
                            format!("`{field}` is `{text}`, which is no entity; write one of {}", all.join(", ")),
                        );
                        return None;
                    }
                }
            }
            "toServices" => self.service(item, field)?,
            "toFQDNs" => self.fqdn(item, field)?,
            // Groups: their addresses are known to the cloud.
            _ => TierPeer::Undecidable(format!("the group in `{field}`")),
        };
        Some(vec![peer])
    }

    fn text<'n>(&mut self, node: &'n Node, field: &str, what: &str) -> Option<&'n str> {
        if let Some(text) = node.as_str() {
            return Some(text);
        }
        self.invalid(node.line, format!("`{field}` is {what}, this is {}", node.describe()));
        None
    }

    fn cidr_rule(&mut self, node: &Node, field: &str) -> Option<TierPeer> {
        if !self.mapping(node, field, &["cidr", "cidrGroupRef", "cidrGroupSelector", "except"]) {
            return None;
        }
        let mut except = Vec::new();
        if let Some(list) = node.get("except") {
            for item in self.list(list, &format!("{field}.except")) {
                let text = self.text(item, field, "a CIDR")?;
                except.push(self.cidr(text, item.line)?);
            }
        }
        match (node.get("cidr"), node.get("cidrGroupRef"), node.get("cidrGroupSelector")) {
            (Some(cidr), None, None) => {
                let text = self.text(cidr, field, "a CIDR")?;
                let net = self.cidr(text, cidr.line)?;
                if let Some(outside) = except.iter().find(|e| !net.contains(*e)) {
                    self.invalid(node.line, format!("except {outside} is not inside {net}; correct one of them"));
                    return None;
                }
                Some(TierPeer::Addresses { block: IpBlock { cidr: net, except }, reach: Reach::Dataplane })
            }
            (None, Some(_), None) => {
                let name = self.string(node, "cidrGroupRef", field)?;
                Some(TierPeer::CidrGroup { name, except })
            }
            (None, None, Some(selector)) => {
                let selector = self.selector(selector, &format!("{field}.cidrGroupSelector"));
                Some(TierPeer::CidrGroups { selector, except })
            }
            _ => {
                self.invalid(
                    node.line,
                    format!("`{field}` needs exactly one of cidr, cidrGroupRef, cidrGroupSelector"),
                );
                None
            }
        }
    }

    fn service(&mut self, node: &Node, field: &str) -> Option<TierPeer> {
        if !self.exactly_one(node, field, &["k8sService", "k8sServiceSelector"]) {
            return None;
        }
        if let Some(service) = node.get("k8sService") {
            let field = format!("{field}.k8sService");
            self.mapping(service, &field, &["serviceName", "namespace"]);
            let name = self.string(service, "serviceName", &field)?;
            let namespace = service.get("namespace").and_then(Node::as_str).filter(|n| !n.is_empty());
            return Some(TierPeer::Service { namespace: namespace.map(str::to_owned), by: ServiceBy::Name(name) });
        }
        let service = node.get("k8sServiceSelector")?;
        let field = format!("{field}.k8sServiceSelector");
        self.mapping(service, &field, &["selector", "namespace"]);
        let Some(selector) = service.get("selector") else {
            self.invalid(service.line, format!("`{field}` lacks `selector`; add it"));
            return None;
        };
        let labels = self.cilium_labels(selector, &format!("{field}.selector"))?.labels;
        let namespace = service.get("namespace").and_then(Node::as_str).filter(|n| !n.is_empty());
        Some(TierPeer::Service { namespace: namespace.map(str::to_owned), by: ServiceBy::Labels(labels) })
    }

    fn fqdn(&mut self, node: &Node, field: &str) -> Option<TierPeer> {
        if !self.exactly_one(node, field, &["matchName", "matchPattern"]) {
            return None;
        }
        let exact = node.get("matchName").is_some();
        let text = self.string(node, if exact { "matchName" } else { "matchPattern" }, field)?;
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c) || (c == '*' && !exact);
        if name.is_empty() || !name.chars().all(known) {
            self.invalid(
                node.line,
                format!("`{text}` in `{field}` is no {}", if exact { "DNS name" } else { "pattern" }),
            );
            return None;
        }
        let stars = if exact { Stars::Literal } else { Stars::Label };
        Some(TierPeer::Name(NamePattern { pattern: name, stars }))
    }
}
