//! When an object was changed last, as far as the API server says so in its metadata.

use guardrail_graph::Timestamp;

use super::{
    foreign,
    yaml::{Node, Value},
};
use crate::model::tier::PolicyKind;

/// The last change of an object's spec; `None`: it was not read from a cluster, or its metadata was
/// cut down. `generation` counts the changes of the spec from 1; `managedFields` say who wrote what
/// when (<https://kubernetes.io/docs/reference/using-api/server-side-apply/>), labels included, so
/// the spec may be older.
pub(super) fn at(node: &Node) -> Option<Timestamp> {
    let metadata = node.get("metadata")?;
    let time = |node: &Node| node.as_str()?.parse::<Timestamp>().ok();
    let created = metadata.get("creationTimestamp").and_then(time)?;
    if let Some(Node { value: Value::Int(1), .. }) = metadata.get("generation") {
        return Some(created);
    }
    let Some(Node { value: Value::Seq(fields), .. }) = metadata.get("managedFields") else { return None };
    // A status says nothing of the spec.
    let of_spec = fields.iter().filter(|entry| entry.get("subresource").is_none());
    of_spec.filter_map(|entry| entry.get("time").and_then(time)).max().map(|last| last.max(created))
}

/// The namespace as the readers of policies have it: `default` if missing, none for what is
/// cluster-scoped.
pub(super) fn namespace(node: &Node, kind: PolicyKind) -> String {
    match foreign::metadata(node, "namespace") {
        _ if !kind.is_namespaced() => String::new(),
        missing if missing.is_empty() => "default".to_owned(),
        namespace => namespace,
    }
}
