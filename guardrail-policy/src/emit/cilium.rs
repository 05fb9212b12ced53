//! CiliumNetworkPolicy, `cilium.io/v2`.

use std::{collections::BTreeMap, sync::Arc};

use guardrail_graph::snapshot::{LabelSelector, SelectorOperator, SelectorRequirement};
use serde::Serialize;

use super::{Metadata, yaml};
use crate::{
    evaluate::identity::POD_NAMESPACE,
    generate::{PlannedPolicy, PlannedRule, PortRef, RulePeer},
    model::{Direction, tier::Entity},
};

/// Most ports of one item of `toPorts`, as the custom resource definition has it.
const MAX_PORTS: usize = 40;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Object<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: Spec<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    endpoint_selector: &'a LabelSelector,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<Vec<Entry<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<Vec<Entry<'a>>>,
}

/// An entry of `ingress` or `egress`: one field of peers, by its name, and the ports.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    #[serde(flatten)]
    peers: BTreeMap<&'static str, Vec<Peer<'a>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to_ports: Vec<Ports>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Peer<'a> {
    Endpoints(LabelSelector),
    Cidr {
        cidr: String,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        except: Vec<String>,
    },
    Entity(&'static str),
    Name {
        #[serde(rename = "matchName")]
        name: &'a str,
    },
}

#[derive(Serialize)]
struct Ports {
    ports: Vec<Port>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<Requests>,
}

#[derive(Clone, Serialize)]
struct Port {
    port: String,
    protocol: String,
}

/// Requests that pass, and whose answers teach which addresses a name has.
#[derive(Clone, Serialize)]
struct Requests {
    dns: [BTreeMap<&'static str, &'static str>; 1],
}

/// The policy as YAML.
pub(super) fn print(policy: &PlannedPolicy) -> String {
    let ingress = policy.ingress.as_ref().map(|rules| entries(policy, Direction::Ingress, rules));
    let egress = policy.egress.as_ref().map(|rules| entries(policy, Direction::Egress, rules));
    let text = yaml(&Object {
        api_version: "cilium.io/v2",
        kind: "CiliumNetworkPolicy",
        metadata: Metadata::of(policy),
        spec: Spec { endpoint_selector: &policy.subject, ingress, egress },
    });
    explained(&text)
}

fn entries<'a>(policy: &PlannedPolicy, direction: Direction, rules: &'a [PlannedRule]) -> Vec<Entry<'a>> {
    if rules.is_empty() {
        // An empty list would leave the direction open.
        return vec![Entry::default()];
    }
    rules.iter().map(|rule| entry(&policy.namespace, direction, rule)).collect()
}

/// The text with a comment above each field of `spec` whose empty value is read in two ways.
fn explained(text: &str) -> String {
    let mut lines = text.lines().peekable();
    let mut out = String::new();
    while let Some(line) = lines.next() {
        let comment = match (line, lines.peek()) {
            ("  endpointSelector: {}", _) => "  # Every pod of the namespace.\n",
            ("  ingress:" | "  egress:", Some(&"  - {}")) => {
                "  # Default deny: an entry without peers matches nobody.\n"
            }
            _ => "",
        };
        out.extend([comment, line, "\n"]);
    }
    out
}

fn entry<'a>(namespace: &str, direction: Direction, rule: &'a PlannedRule) -> Entry<'a> {
    let mut peers: BTreeMap<&'static str, Vec<Peer<'a>>> = BTreeMap::new();
    for planned in &rule.peers {
        peers.entry(field(direction, planned)).or_default().push(peer(namespace, planned));
    }
    let rules = rule.learns_names.then(|| Requests { dns: [BTreeMap::from([("matchPattern", "*")])] });
    let ports: Vec<Port> = rule
        .ports
        .iter()
        .map(|port| Port {
            port: match &port.port {
                PortRef::Number(number) => number.to_string(),
                PortRef::Name(name) => name.clone(),
            },
            protocol: port.protocol.to_string(),
        })
        .collect();
    let to_ports = ports.chunks(MAX_PORTS).map(|ports| Ports { ports: ports.to_vec(), rules: rules.clone() });
    Entry { peers, to_ports: to_ports.collect() }
}

const fn field(direction: Direction, peer: &RulePeer) -> &'static str {
    match (direction, peer) {
        (Direction::Ingress, RulePeer::Pods { .. } | RulePeer::EveryPod) => "fromEndpoints",
        (Direction::Egress, RulePeer::Pods { .. } | RulePeer::EveryPod) => "toEndpoints",
        (Direction::Ingress, RulePeer::Block { .. }) => "fromCIDRSet",
        (Direction::Egress, RulePeer::Block { .. }) => "toCIDRSet",
        (Direction::Ingress, RulePeer::Entity(_)) => "fromEntities",
        (Direction::Egress, RulePeer::Entity(_)) => "toEntities",
        // Nobody plans it for ingress: Cilium would refuse the field, and so does the reader.
        (Direction::Ingress, RulePeer::Name(_)) => "fromFQDNs",
        (Direction::Egress, RulePeer::Name(_)) => "toFQDNs",
    }
}

fn peer<'a>(own: &str, peer: &'a RulePeer) -> Peer<'a> {
    match peer {
        RulePeer::Pods { namespace, selector } => {
            let mut selector = selector.clone();
            // Without the label it is the policy's own namespace; `{}` alone would not say so.
            let said = namespace.as_deref().or(selector.is_empty().then_some(own));
            if let Some(said) = said {
                Arc::make_mut(&mut selector.match_labels).insert(format!("k8s:{POD_NAMESPACE}"), said.to_owned());
            }
            Peer::Endpoints(selector)
        }
        RulePeer::EveryPod => Peer::Endpoints(LabelSelector {
            match_labels: Arc::default(),
            match_expressions: vec![SelectorRequirement {
                key: format!("k8s:{POD_NAMESPACE}"),
                operator: SelectorOperator::Exists,
                values: Vec::new(),
            }],
        }),
        RulePeer::Block { cidr, except } => {
            Peer::Cidr { cidr: cidr.to_string(), except: except.iter().map(ToString::to_string).collect() }
        }
        RulePeer::Entity(entity) => Peer::Entity(entity.as_str()),
        RulePeer::Name(name) => Peer::Name { name },
    }
}

/// The lowest release of Cilium, major and minor, that reads these rules as they are meant.
///
/// 1.7 tells other nodes from the own one (cilium/cilium#8841); 1.11 knows the API server as an
/// entity (<https://isovalent.com/blog/post/2021-12-release-111/>).
pub(super) fn lowest_version<'a>(policies: impl IntoIterator<Item = &'a PlannedPolicy>) -> (u16, u16) {
    let rules = policies.into_iter().flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
    let mut peers = rules.flat_map(|rule| &rule.peers);
    if peers.any(|peer| *peer == RulePeer::Entity(Entity::KubeApiserver)) { (1, 11) } else { (1, 7) }
}
