//! Joining descriptions of workloads.

use std::collections::{BTreeSet, btree_map::Entry};

use super::{Facts, keep_later};
use crate::snapshot::{LabelChanges, WorkloadEntry, workloads::ChangedLabels};

/// Labels of a workload that are known to have changed, at most.
const MAX_CHANGED_LABELS: usize = 64;
/// Values of such a label: two say that it changed.
const MAX_VALUES: usize = 2;

/// Joins what is known of changed labels. What is kept are the first ones, so that the order of
/// joining plays no part.
fn join_changes(known: &mut ChangedLabels, others: impl IntoIterator<Item = (String, BTreeSet<String>)>) {
    for (key, others) in others {
        let values = known.entry(key).or_default();
        values.extend(others);
        while values.len() > MAX_VALUES {
            values.pop_last();
        }
    }
    while known.len() > MAX_CHANGED_LABELS {
        known.pop_last();
    }
}

/// The labels in which two descriptions of a workload differ.
fn differences(a: &WorkloadEntry, b: &WorkloadEntry) -> ChangedLabels {
    let keys: BTreeSet<&String> = a.labels.keys().chain(b.labels.keys()).collect();
    let changed = keys.into_iter().filter(|key| a.labels.get(*key) != b.labels.get(*key));
    let values = |key: &String| [a, b].iter().filter_map(|entry| entry.labels.get(key).cloned()).collect();
    changed.map(|key| (key.clone(), values(key))).collect()
}

impl Facts {
    /// Joins descriptions of workloads: the later one stands.
    pub(in crate::snapshot) fn add_workloads(
        &mut self,
        workloads: Vec<WorkloadEntry>,
        label_changes: Vec<LabelChanges>,
    ) {
        for mut entry in workloads {
            let earlier = std::mem::take(&mut entry.ran_on);
            let here = entry.pods.keys().filter(|node| !node.is_empty()).map(|node| (node.clone(), entry.as_of));
            for (node, at) in earlier.into_iter().chain(here) {
                self.ran_on(&entry.workload, node, at);
            }
            match self.workloads.entry(entry.workload.clone()) {
                Entry::Vacant(v) => {
                    v.insert(entry.into());
                }
                Entry::Occupied(mut o) => {
                    let mut known = o.get().entry();
                    let changes = differences(&known, &entry);
                    if !changes.is_empty() {
                        join_changes(self.label_changes.entry(entry.workload.clone()).or_default(), changes);
                    }
                    keep_later(&mut known, entry, |w| w.as_of);
                    o.insert(known.into());
                }
            }
        }
        for LabelChanges { workload, labels } in label_changes {
            join_changes(self.label_changes.entry(workload).or_default(), labels);
        }
    }
}
