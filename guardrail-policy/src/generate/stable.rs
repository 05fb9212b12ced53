//! Selectors that still hold after the next release or run: labels that name one are taken out of
//! those of custom kinds, Jobs and bare pods, whose selectors are made of labels. A Deployment's
//! own selector cannot change and stays as it is.

use std::borrow::Cow;

use guardrail_graph::{Snapshot, inventory::is_release_label, snapshot::LabelSelector};

use crate::model::selector_matches;

/// The snapshot with such selectors: narrower ones lose the label, and those of which nothing is
/// left that tells who it is are none, with advice.
pub(crate) fn stable(snapshot: &Snapshot) -> Cow<'_, Snapshot> {
    let own_selector =
        |owner: &str| matches!(owner, "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicationController");
    let workloads = &snapshot.body.workloads;
    let mut changed = Vec::new();
    for (entry, index) in workloads.iter().zip(0..) {
        let Some(selector) = entry.selector.as_ref().filter(|_| !own_selector(&entry.workload.owner)) else { continue };
        let kept = selector.without_release_labels();
        if kept == *selector && kept.tells_who() {
            continue;
        }
        let clashes = workloads.iter().any(|other| {
            other.workload.namespace == entry.workload.namespace
                && other.workload != entry.workload
                && selector_matches(&kept, &other.labels)
        });
        changed.push((index, Some(kept).filter(|kept| kept.tells_who() && !clashes)));
    }
    if changed.is_empty() {
        return Cow::Borrowed(snapshot);
    }
    let mut snapshot = snapshot.clone();
    for (index, selector) in changed {
        let entry: &mut guardrail_graph::snapshot::WorkloadEntry = &mut snapshot.body.workloads[index];
        if selector.is_none() {
            entry.selector_advice = Some(format!(
                "no label of {} stays the same over its runs and releases: add one to its pod template, for example app.kubernetes.io/name: {}",
                entry.workload, entry.workload.name
            ));
        }
        // A rule for it as a peer is made of these where no selector is.
        entry.labels.retain(|key, _| !is_release_label(key));
        if selector.is_none() && !LabelSelector::of_labels(entry.labels.clone()).tells_who() {
            entry.labels.clear();
        }
        entry.selector = selector;
    }
    Cow::Owned(snapshot)
}
