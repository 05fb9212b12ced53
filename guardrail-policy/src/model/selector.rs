//! Label selectors (A21).

use std::collections::BTreeMap;

use guardrail_graph::{
    WorkloadRef,
    snapshot::{LabelSelector, SelectorOperator},
};

/// Labels of a pod or namespace.
pub type Labels = BTreeMap<String, String>;

/// The label that every namespace carries with its own name (A22).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The label that the Job controller puts on every pod of a Job, and nobody on others. Its value is
/// the Job's name, another one at each run of a `CronJob`.
pub(crate) const JOB_NAME_LABEL: &str = "job-name";

/// [`JOB_NAME_LABEL`] of the pods of a Job or `CronJob`; snapshots and templates do not have it.
pub(crate) fn job_label(workload: &WorkloadRef) -> Option<(String, String)> {
    let name = match &*workload.owner {
        "Job" => workload.name.clone(),
        "CronJob" => format!("{}-*", workload.name),
        _ => return None,
    };
    Some((JOB_NAME_LABEL.to_owned(), name))
}

/// Whether the selector matches the labels. An empty selector matches everything.
#[must_use]
pub fn selector_matches(selector: &LabelSelector, labels: &Labels) -> bool {
    selector_matches_by(selector, |key| labels.get(key).map(String::as_str))
}

/// The same for labels that are not in one map.
#[must_use]
pub fn selector_matches_by<'a>(selector: &LabelSelector, label: impl Fn(&str) -> Option<&'a str>) -> bool {
    selector.match_labels.iter().all(|(key, value)| label(key) == Some(value))
        && selector.match_expressions.iter().all(|requirement| {
            let actual = label(&requirement.key);
            let among = |v: &str| requirement.values.iter().any(|known| known == v);
            match requirement.operator {
                SelectorOperator::In => actual.is_some_and(among),
                SelectorOperator::NotIn => !actual.is_some_and(among),
                SelectorOperator::Exists => actual.is_some(),
                SelectorOperator::DoesNotExist => actual.is_none(),
            }
        })
}

/// A selector in a few words.
pub(crate) fn words(selector: &LabelSelector) -> String {
    let mut parts: Vec<String> = selector.match_labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    for e in &selector.match_expressions {
        let values = if e.values.is_empty() { String::new() } else { format!(" ({})", e.values.join(", ")) };
        parts.push(format!("{} {:?}{values}", e.key, e.operator));
    }
    if parts.is_empty() { "{}".to_owned() } else { parts.join(", ") }
}
