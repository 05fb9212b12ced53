//! Which exceptions in a cluster are to go: those that are guardrail's own and have ended, unless a
//! GitOps tool would only put them back.

use std::collections::BTreeMap;

use guardrail_graph::Timestamp;
use guardrail_policy::{
    emit::MANAGED_BY,
    exception::{EXPIRES, LABEL, PREFIX},
};

/// What a GitOps tool writes at what it applies: Argo CD an annotation, Flux labels.
const TRACKERS: [(&str, &str); 3] = [
    ("argocd.argoproj.io/tracking-id", "Argo CD"),
    ("kustomize.toolkit.fluxcd.io/name", "Flux"),
    ("helm.toolkit.fluxcd.io/name", "Flux"),
];

/// What becomes of an exception in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It has not ended.
    Open(Timestamp),
    /// It has ended and is deleted.
    Delete(Timestamp),
    /// It has ended, and this tool applies it: its file has to go.
    Tracked {
        /// Its end.
        expires: Timestamp,
        /// The tool.
        by: &'static str,
    },
    /// It bears the label, and guardrail did not write it.
    Foreign,
    /// It says no end that can be read.
    Endless,
}

/// Judges an object with the label of exceptions by its metadata.
#[must_use]
pub fn fate(
    name: &str,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    now: Timestamp,
) -> Fate {
    let (key, value) = MANAGED_BY;
    let is_ours = labels.get(key).is_some_and(|by| by == value);
    if !is_ours || !labels.contains_key(LABEL) || !name.starts_with(PREFIX) {
        return Fate::Foreign;
    }
    let Some(expires) = annotations.get(EXPIRES).and_then(|text| text.parse::<Timestamp>().ok()) else {
        return Fate::Endless;
    };
    if expires > now {
        return Fate::Open(expires);
    }
    let tracker = TRACKERS.iter().find(|(key, _)| annotations.contains_key(*key) || labels.contains_key(*key));
    tracker.map_or(Fate::Delete(expires), |(_, by)| Fate::Tracked { expires, by })
}
