//! What changes who may connect and is not evaluated here: kinds of other API groups, and policies
//! inside objects that are not opened (A34).

use std::sync::Arc;

use super::{
    Touches, Unevaluated,
    yaml::{Node, Value},
};
use crate::model::Location;

/// API group of NetworkPolicy.
pub(super) const GROUP: &str = "networking.k8s.io";

/// Deepest place in an object of another kind that is searched for a policy.
const MAX_DEPTH: usize = 32;

/// Kinds that restrict connections beside NetworkPolicy, by API group: they close what it leaves
/// open and open nothing that it closes. Sources: the projects' API references (Istio security,
/// Linkerd policy, Consul service intentions, Kuma traffic permissions, OVN-Kubernetes user-defined
/// networks, AWS security groups for pods, NSX security policies).
const RESTRICTING: [(&str, &[&str]); 8] = [
    ("auth.consul.hashicorp.com", &["TrafficPermissions"]),
    ("consul.hashicorp.com", &["ServiceIntentions"]),
    ("crd.nsx.vmware.com", &["SecurityPolicy"]),
    ("k8s.ovn.org", &["ClusterUserDefinedNetwork", "UserDefinedNetwork"]),
    ("kuma.io", &["MeshTrafficPermission", "TrafficPermission"]),
    ("policy.linkerd.io", &["AuthorizationPolicy", "EgressNetwork", "Server", "ServerAuthorization"]),
    ("security.istio.io", &["AuthorizationPolicy", "PeerAuthentication"]),
    ("vpcresources.k8s.aws", &["SecurityGroupPolicy"]),
];

/// What a text must contain to hold any of these, or a policy.
pub(super) const NEEDLES: [&str; 13] = [
    "NetworkPolic",
    "EgressFirewall",
    "TrafficPermission",
    "ServiceIntentions",
    "SecurityPolicy",
    "UserDefinedNetwork",
    "AuthorizationPolicy",
    "EgressNetwork",
    "policy.linkerd.io",
    "PeerAuthentication",
    "SecurityGroupPolicy",
    "ServerAuthorization",
    "security.istio.io",
];

/// Whether objects of this kind and group say who may connect, or are asked for by policies that
/// do: what has to be read of a cluster.
#[must_use]
pub fn is_read(kind: &str, group: &str) -> bool {
    is_policy(kind, group) || is_restricting(kind, group) || (kind, group) == ("CiliumCIDRGroup", "cilium.io")
}

/// Kinds, outside networking.k8s.io, that allow or deny connections: AdminNetworkPolicy and its
/// siblings, and what CNIs add.
fn is_policy(kind: &str, group: &str) -> bool {
    // Calico's staged policies enforce nothing.
    let enforced = !kind.starts_with("Staged");
    let named = kind.ends_with("NetworkPolicy") || kind.ends_with("EgressFirewall") || kind == "EgressNetworkPolicy";
    enforced && group != GROUP && named
}

fn is_restricting(kind: &str, group: &str) -> bool {
    RESTRICTING.iter().any(|(known, kinds)| *known == group && kinds.contains(&kind))
}

/// The object, if its kind changes who may connect.
pub(super) fn unevaluated(file: &Arc<str>, node: &Node, kind: &str, group: &str) -> Option<Unevaluated> {
    let restricts_only = is_restricting(kind, group);
    if !restricts_only && !is_policy(kind, group) || group == "k8s.ovn.org" && is_secondary(node) {
        return None;
    }
    let namespace = metadata(node, "namespace");
    // Istio's root namespace and the kinds of Consul and Kuma speak for the whole mesh.
    let everywhere = namespace.is_empty()
        || group == "security.istio.io" && namespace == "istio-system"
        || group.ends_with("consul.hashicorp.com")
        || group == "kuma.io";
    Some(Unevaluated {
        kind: kind.to_owned(),
        touches: if everywhere { Touches::Everything } else { Touches::Namespace },
        namespace,
        name: metadata(node, "name"),
        inside: None,
        restricts_only,
        location: Location { file: file.clone(), line: node.line },
    })
}

/// A user-defined network that is only ever a pod's second one: NetworkPolicy and our answers are
/// about the first.
fn is_secondary(node: &Node) -> bool {
    let spec = node.get("spec");
    let network = spec.and_then(|s| s.get("network")).or(spec);
    let role = network.and_then(|n| ["layer2", "layer3", "localnet"].into_iter().find_map(|t| n.get(t)?.get("role")));
    role.and_then(Node::as_str) == Some("Secondary")
}

/// A policy somewhere inside an object of a kind that is not opened: it would be made from there.
pub(super) fn inside(file: &Arc<str>, outer: &Node, kind: &str) -> Option<Unevaluated> {
    let found = search(outer, 0)?;
    Some(hidden(file, found, kind, &metadata(outer, "name")))
}

/// A policy in an object called `name` that nobody can read as it stands there.
pub(super) fn hidden(file: &Arc<str>, policy: &Node, kind: &str, name: &str) -> Unevaluated {
    Unevaluated {
        kind: policy.get("kind").and_then(Node::as_str).unwrap_or_default().to_owned(),
        // Where it will stand is not known before it is made.
        touches: Touches::Everything,
        namespace: metadata(policy, "namespace"),
        name: metadata(policy, "name"),
        inside: Some(format!("{kind} {name}").trim_end().to_owned()),
        restricts_only: false,
        location: Location { file: file.clone(), line: policy.line },
    }
}

fn search(node: &Node, depth: usize) -> Option<&Node> {
    if depth > MAX_DEPTH {
        return None;
    }
    match &node.value {
        Value::Map(entries) => entries.iter().map(|(_, value)| value).find_map(|value| {
            // A reference to a policy has no content.
            let whole = value.get("spec").or_else(|| value.get("data")).is_some();
            if whole && changes_connections(value) { Some(value) } else { search(value, depth + 1) }
        }),
        Value::Seq(items) => items.iter().find_map(|item| {
            let whole = item.get("spec").or_else(|| item.get("data")).is_some();
            if whole && changes_connections(item) { Some(item) } else { search(item, depth + 1) }
        }),
        _ => None,
    }
}

/// Whether this is a NetworkPolicy or one of the kinds named here.
pub(super) fn changes_connections(node: &Node) -> bool {
    let text = |field: &str| node.get(field).and_then(Node::as_str);
    let (Some(kind), Some(version)) = (text("kind"), text("apiVersion")) else { return false };
    let group = version.split_once('/').map_or("", |(group, _)| group);
    kind == "NetworkPolicy" && group == GROUP || is_policy(kind, group) || is_restricting(kind, group)
}

/// How a parameter of an OpenShift Template begins, and what Helm puts a value for.
pub(super) const PARAMETER: &str = "${";
pub(super) const PLACEHOLDER: &str = "{{";

/// Whether something that begins with `mark` stands in what decides a policy's verdicts: anywhere
/// but in its labels and annotations.
pub(super) fn has_parameter(policy: &Node, mark: &str) -> bool {
    fn any(node: &Node, ignored: &[&str], mark: &str) -> bool {
        match &node.value {
            Value::Str(text) => text.contains(mark),
            Value::Seq(items) => items.iter().any(|item| any(item, &[], mark)),
            Value::Map(entries) => entries
                .iter()
                .filter(|(key, _)| !ignored.contains(&key.name.as_str()))
                .any(|(key, value)| key.name.contains(mark) || any(value, &[], mark)),
            _ => false,
        }
    }
    any(policy, &["metadata"], mark) || policy.get("metadata").is_some_and(|m| any(m, &["labels", "annotations"], mark))
}

/// A policy in a template of a chart, which is no policy before it is rendered.
pub(super) fn in_a_chart(file: &Arc<str>, line: u32) -> Unevaluated {
    Unevaluated {
        kind: "NetworkPolicy".to_owned(),
        namespace: String::new(),
        name: String::new(),
        inside: Some("a chart's template".to_owned()),
        touches: Touches::Everything,
        restricts_only: false,
        location: Location { file: file.clone(), line },
    }
}

pub(super) fn metadata(node: &Node, field: &str) -> String {
    node.get("metadata").and_then(|m| m.get(field)).and_then(Node::as_str).unwrap_or_default().to_owned()
}
