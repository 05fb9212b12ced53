//! Cilium's label selectors: keys may carry a source, the namespace is implied or not.

use std::sync::Arc;

use guardrail_graph::snapshot::LabelSelector;

use super::super::{
    policy::Decoder,
    yaml::{Node, Value},
};
use crate::{
    evaluate::identity::{NAMESPACE_LABELS, POD_NAMESPACE},
    model::tier::{Entity, PodSelector, Scope, TierPeer},
};

/// A selector with its keys' sources taken off.
pub(super) struct SourcedSelector {
    pub(super) labels: LabelSelector,
    /// `reserved:` keys that have to be there, as they were written.
    reserved: Vec<String>,
    /// Another source than `k8s`, `any`, `reserved`.
    foreign: Option<String>,
}

impl SourcedSelector {
    /// Without conditions on the pod's namespace.
    pub(super) fn without_namespace(mut self) -> Self {
        Arc::make_mut(&mut self.labels.match_labels).remove(POD_NAMESPACE);
        self.labels.match_expressions.retain(|e| e.key != POD_NAMESPACE);
        self
    }

    fn names_namespace(&self) -> bool {
        let keys = self.labels.match_labels.keys().chain(self.labels.match_expressions.iter().map(|e| &e.key));
        keys.into_iter().any(|key| key == POD_NAMESPACE || key.starts_with(NAMESPACE_LABELS))
    }

    /// As a peer of a policy of this namespace (`None`: a clusterwide one).
    pub(super) fn peer(self, namespace: Option<&str>) -> TierPeer {
        if let Some(key) = self.foreign {
            return TierPeer::Undecidable(format!("the label {key}"));
        }
        if let [only] = self.reserved.as_slice()
            && self.labels.is_empty()
            && let Some(entity) = Entity::from_name(only)
        {
            return TierPeer::Entity(entity);
        }
        if let Some(first) = self.reserved.first() {
            return TierPeer::Undecidable(format!("the label reserved:{first} beside others"));
        }
        let scope = match namespace {
            _ if self.names_namespace() => Scope::Written,
            Some(own) => Scope::Namespace(own.to_owned()),
            None => Scope::Pods,
        };
        TierPeer::Pods(PodSelector::Cilium { scope, selector: self.labels })
    }
}

impl Decoder<'_> {
    /// A selector as written, keys split into source and key.
    pub(super) fn cilium_labels(&mut self, node: &Node, field: &str) -> Option<SourcedSelector> {
        let bare = without_sources(node);
        let before = self.problem_count();
        let labels = self.selector(&bare, field);
        if self.problem_count() > before {
            return None;
        }
        let mut found = SourcedSelector { labels, reserved: Vec::new(), foreign: None };
        for (source, key, asks) in sources(node) {
            match source.as_str() {
                "k8s" | "any" => {}
                "reserved" if asks => {
                    found.reserved.push(key.clone());
                    Arc::make_mut(&mut found.labels.match_labels).remove(&key);
                    found.labels.match_expressions.retain(|e| e.key != key);
                }
                _ => found.foreign = Some(format!("{source}:{key}")),
            }
        }
        Some(found)
    }
}

/// Every key with a source: source, key, and whether the label has to be there.
fn sources(node: &Node) -> Vec<(String, String, bool)> {
    let mut found = Vec::new();
    if let Some(Node { value: Value::Map(entries), .. }) = node.get("matchLabels") {
        let keys = entries.iter().filter_map(|(key, _)| key.name.split_once(':'));
        found.extend(keys.map(|(source, key)| (source.to_owned(), key.to_owned(), true)));
    }
    if let Some(Node { value: Value::Seq(items), .. }) = node.get("matchExpressions") {
        for item in items {
            let operator = item.get("operator").and_then(Node::as_str);
            if let Some((source, key)) = item.get("key").and_then(Node::as_str).and_then(|k| k.split_once(':')) {
                found.push((source.to_owned(), key.to_owned(), operator == Some("Exists")));
            }
        }
    }
    found
}

/// The same selector with plain keys, so that it is validated like any other.
fn without_sources(node: &Node) -> Node {
    let plain = |key: &str| key.split_once(':').map_or(key, |(_, key)| key).to_owned();
    let mut bare = node.clone();
    let Value::Map(fields) = &mut bare.value else { return bare };
    for (field, value) in fields {
        match (field.name.as_str(), &mut value.value) {
            ("matchLabels", Value::Map(labels)) => labels.iter_mut().for_each(|(key, _)| key.name = plain(&key.name)),
            ("matchExpressions", Value::Seq(items)) => {
                for item in items {
                    let Value::Map(parts) = &mut item.value else { continue };
                    for (part, value) in parts {
                        if let ("key", Value::Str(key)) = (part.name.as_str(), &mut value.value) {
                            *key = plain(key);
                        }
                    }
                }
            }
            _ => {}
        }
    }
    bare
}
