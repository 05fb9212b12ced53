//! Label selectors (A21).

use std::collections::BTreeMap;

use guardrail_graph::snapshot::{LabelSelector, SelectorOperator};

/// Labels of a pod or namespace.
pub type Labels = BTreeMap<String, String>;

/// The label that every namespace carries with its own name (A22).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Whether the selector matches the labels. An empty selector matches everything.
#[must_use]
pub fn selector_matches(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().all(|requirement| {
            let actual = labels.get(&requirement.key);
            match requirement.operator {
                SelectorOperator::In => actual.is_some_and(|v| requirement.values.contains(v)),
                SelectorOperator::NotIn => actual.is_none_or(|v| !requirement.values.contains(v)),
                SelectorOperator::Exists => actual.is_some(),
                SelectorOperator::DoesNotExist => actual.is_none(),
            }
        })
}
