//! From documents to objects: `List`s are opened, policies are told from other kinds.

use std::{collections::BTreeMap, sync::Arc};

use guardrail_graph::Timestamp;

use super::{
    Expect, ObjectProblem, ObjectProblemKind, Unevaluated, changed, cilium, facts,
    foreign::{self, GROUP},
    policy::{self, Decoded, Form},
    tiers,
    yaml::{Node, Value},
};
use crate::{
    evaluate::Facts,
    model::{Location, tier::PolicyKind},
};

/// When policies were changed, by kind, namespace and name.
pub(super) type Changed = BTreeMap<(PolicyKind, String, String), Timestamp>;

#[derive(Default)]
pub(super) struct Found {
    pub(super) policies: Vec<Decoded>,
    /// Objects of the other kinds that are evaluated.
    pub(super) forms: Vec<Form>,
    pub(super) unevaluated: Vec<Unevaluated>,
    /// Kind and line.
    pub(super) others: Vec<(String, u32)>,
    pub(super) problems: Vec<ObjectProblem>,
    pub(super) facts: Facts,
    pub(super) changed: Changed,
}

impl Found {
    /// How many objects, or what looks like one.
    pub(super) fn count(&self) -> usize {
        self.policies.len() + self.forms.len() + self.unevaluated.len() + self.others.len() + self.problems.len()
    }
}

/// What a `List` of a certain kind says about items that do not say it themselves, as in an API
/// server's own lists.
#[derive(Clone, Copy, Default)]
struct Implied<'a> {
    api_version: Option<&'a str>,
    kind: Option<&'a str>,
}

pub(super) fn collect(file: &Arc<str>, document: &Node, expect: Expect, found: &mut Found) {
    object(file, document, expect, Implied::default(), found);
}

fn object(file: &Arc<str>, node: &Node, expect: Expect, implied: Implied<'_>, found: &mut Found) {
    let mut wrong = |line: u32, message: String| {
        found.problems.push(ObjectProblem {
            location: Location { file: file.clone(), line },
            kind: ObjectProblemKind::WrongKind,
            policy: None,
            message,
        });
    };
    let Value::Map(_) = &node.value else {
        if expect == Expect::Policies {
            wrong(
                node.line,
                format!("a Kubernetes object is a mapping with apiVersion and kind, this is {}", node.describe()),
            );
        }
        return;
    };
    let text = |field: &str| node.get(field).map(|n| (n.as_str(), n.line));
    let (kind, api_version) = match (text("kind"), text("apiVersion")) {
        (Some((Some(kind), _)), Some((Some(api_version), _))) => (kind, api_version),
        (kind, api_version) => match (kind.is_none(), api_version.is_none(), implied) {
            (true, true, Implied { kind: Some(kind), api_version: Some(api_version) }) => (kind, api_version),
            _ => {
                let bad = kind.filter(|k| k.0.is_none()).or(api_version.filter(|a| a.0.is_none()));
                if expect == Expect::Policies || bad.is_some() && kind.is_some() && api_version.is_some() {
                    let line = bad.map_or(node.line, |(_, line)| line);
                    wrong(
                        line,
                        "this is no Kubernetes object: apiVersion and kind have to be strings; add them".to_owned(),
                    );
                }
                return;
            }
        },
    };
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    if let Some(item_kind) = list_of(kind)
        && let Some(items) = node.get("items").or_else(|| (kind == "List").then_some(node))
    {
        let implied = Implied { api_version: Some(api_version), kind: (kind != "List").then_some(item_kind) };
        match &items.value {
            Value::Seq(items) => items.iter().for_each(|item| object(file, item, expect, implied, found)),
            // `kind: List` without items is an empty list.
            Value::Map(_) if std::ptr::eq(items, node) => {}
            _ => wrong(items.line, format!("`items` of a {kind} is a list, this is {}", items.describe())),
        }
        return;
    }
    if let Some(known) = PolicyKind::ALL.into_iter().find(|known| known.as_str() == kind && known.group() == group)
        && let Some(at) = changed::at(node)
    {
        found.changed.insert((known, changed::namespace(node, known), foreign::metadata(node, "name")), at);
    }
    // Valid YAML where each `{{ … }}` stands in quotes, and no policy before it is rendered.
    if foreign::changes_connections(node) && foreign::has_parameter(node, foreign::PLACEHOLDER) {
        match expect {
            Expect::Policies => wrong(
                node.line,
                "this is a template of a chart, no policy before it is rendered; render the chart first (helm template)"
                    .to_owned(),
            ),
            Expect::Anything | Expect::Inventory => found.unevaluated.push(foreign::in_a_chart(file, node.line)),
        }
        return;
    }
    match kind {
        "NetworkPolicy" if api_version == "networking.k8s.io/v1" => found.policies.push(policy::decode(file, node)),
        "NetworkPolicy" if group.is_empty() || group == GROUP || group == "extensions" => {
            let line = node.get("apiVersion").map_or(node.line, |n| n.line);
            wrong(line, format!("NetworkPolicy has no API version {api_version}; write networking.k8s.io/v1"));
        }
        "Template" if group == "template.openshift.io" || api_version == "v1" => template(file, node, expect, found),
        "ClusterNetworkPolicy" if api_version == "policy.networking.k8s.io/v1alpha2" => {
            found.forms.push(tiers::decode(file, node, PolicyKind::ClusterNetworkPolicy));
        }
        "AdminNetworkPolicy" if api_version == "policy.networking.k8s.io/v1alpha1" => {
            found.forms.push(tiers::decode(file, node, PolicyKind::AdminNetworkPolicy));
        }
        "BaselineAdminNetworkPolicy" if api_version == "policy.networking.k8s.io/v1alpha1" => {
            found.forms.push(tiers::decode(file, node, PolicyKind::BaselineAdminNetworkPolicy));
        }
        "CiliumNetworkPolicy" if group == "cilium.io" => {
            found.forms.push(cilium::decode(file, node, PolicyKind::CiliumNetworkPolicy));
        }
        "CiliumClusterwideNetworkPolicy" if group == "cilium.io" => {
            found.forms.push(cilium::decode(file, node, PolicyKind::CiliumClusterwideNetworkPolicy));
        }
        _ if group == GROUP && !["Ingress", "IngressClass", "IPAddress", "ServiceCIDR"].contains(&kind) => {
            let line = node.get("kind").map_or(node.line, |n| n.line);
            wrong(line, format!("{GROUP} has no kind {kind}; did you mean NetworkPolicy?"));
        }
        _ => match foreign::unevaluated(file, node, kind, group).or_else(|| foreign::inside(file, node, kind)) {
            Some(unevaluated) => found.unevaluated.push(unevaluated),
            None => {
                facts::collect(kind, group, node, &mut found.facts);
                found.others.push((kind.to_owned(), node.line));
            }
        },
    }
}

/// An OpenShift Template: its objects are read where they stand there as they will be made. A
/// policy with a parameter in it, or without a namespace (it will be that of whoever processes the
/// template), is named.
fn template(file: &Arc<str>, node: &Node, expect: Expect, found: &mut Found) {
    let Some(Node { value: Value::Seq(objects), .. }) = node.get("objects") else {
        return found.others.push(("Template".to_owned(), node.line));
    };
    for inner in objects {
        if !foreign::changes_connections(inner) {
            let kind = inner.get("kind").and_then(Node::as_str).unwrap_or("object").to_owned();
            found.others.push((kind, inner.line));
        } else if foreign::has_parameter(inner, foreign::PARAMETER) || foreign::metadata(inner, "namespace").is_empty()
        {
            found.unevaluated.push(foreign::hidden(file, inner, "Template", &foreign::metadata(node, "name")));
        } else {
            object(file, inner, expect, Implied::default(), found);
        }
    }
}

/// The kind of the items, if this is the kind of a list.
fn list_of(kind: &str) -> Option<&str> {
    kind.strip_suffix("List")
}
