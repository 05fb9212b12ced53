//! Selectors that still hold after the next release or run: labels that name one are taken out of
//! those of custom kinds, Jobs and bare pods, whose selectors are made of labels. A Deployment's
//! own selector cannot change and stays as it is.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use guardrail_graph::{
    Snapshot, WorkloadRef,
    inventory::{as_label_value, is_release_label, release_keys},
    snapshot::{LabelChanges, LabelSelector, SelectorOperator, SelectorRequirement, WorkloadEntry},
};

use crate::model::selector_matches;

/// The snapshot with such selectors: narrower ones lose the label, and those of which nothing is
/// left that tells who it is are none, with advice. The same holds for labels that were seen to
/// change between generations of the workload. Where what is left selects others, too, the label of
/// the run has to be there, with any value.
pub(crate) fn stable(snapshot: &Snapshot) -> Cow<'_, Snapshot> {
    let own_selector =
        |owner: &str| matches!(owner, "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicationController");
    let workloads = &snapshot.body.workloads;
    let seen_changing: BTreeMap<&WorkloadRef, BTreeSet<&str>> =
        snapshot.body.label_changes.iter().map(|c| (&c.workload, c.changing().collect())).collect();
    let mut changed = Vec::new();
    let mut passing = Vec::new();
    for (entry, index) in workloads.iter().zip(0..) {
        let changing = seen_changing.get(&entry.workload);
        let changes = |key: &str| changing.is_some_and(|keys| keys.contains(key));
        let own = entry.selector.as_ref().filter(|_| own_selector(&entry.workload.owner));
        let selects = |key: &str| own.is_some_and(|own| own.match_labels.contains_key(key));
        if entry.labels.keys().any(|key| changes(key) && !selects(key)) {
            let kept = entry.labels.iter().filter(|(key, _)| !changes(key) || selects(key));
            passing.push((index, kept.map(|(key, value)| (key.clone(), value.clone())).collect()));
        }
        let Some(selector) = entry.selector.as_ref().filter(|_| own.is_none()) else { continue };
        let mut kept = selector.without_release_labels();
        let passing = passing_keys(entry);
        Arc::make_mut(&mut kept.match_labels).retain(|key, _| !changes(key) && !passing.contains(key));
        kept.match_expressions.retain(|requirement| !changes(&requirement.key));
        if kept == *selector && kept.tells_who() {
            continue;
        }
        let clashing: Vec<&WorkloadEntry> = workloads
            .iter()
            .filter(|other| {
                other.workload.namespace == entry.workload.namespace
                    && other.workload != entry.workload
                    && selector_matches(&kept, &other.labels)
            })
            .collect();
        let mut run = None;
        if kept.tells_who() && !clashing.is_empty() {
            run = key_of_runs(entry, &clashing);
            let exists = |key: &String| SelectorRequirement {
                key: key.clone(),
                operator: SelectorOperator::Exists,
                values: Vec::new(),
            };
            kept.match_expressions.extend(run.iter().map(exists));
        }
        let is_own = kept.tells_who() && (clashing.is_empty() || run.is_some());
        changed.push((index, Some(kept).filter(|_| is_own), run));
    }
    if changed.is_empty() && passing.is_empty() {
        return Cow::Borrowed(snapshot);
    }
    let mut snapshot = snapshot.clone();
    let mut had = Vec::new();
    for (index, labels) in passing {
        let entry: &mut WorkloadEntry = &mut snapshot.body.workloads[index];
        entry.labels = labels;
    }
    for (index, selector, run) in changed {
        let entry: &mut WorkloadEntry = &mut snapshot.body.workloads[index];
        if selector.is_none() {
            entry.selector_advice = Some(format!(
                "no label of {} stays the same over its runs and releases: add one to its pod template, for example app.kubernetes.io/name: {}",
                entry.workload,
                as_label_value(&entry.workload.name)
            ));
        }
        // A rule for it as a peer is made of these where no selector is. Its pods have them all the
        // same.
        let keys = passing_keys(entry);
        let passing = entry.labels.extract_if(.., |key, _| keys.contains(key) && run.as_ref() != Some(key));
        let passing: BTreeMap<_, _> = passing.map(|(key, value)| (key, BTreeSet::from([value]))).collect();
        if !passing.is_empty() {
            let workload = entry.workload.clone();
            had.push(LabelChanges { workload, labels: passing });
        }
        if selector.is_none() && !LabelSelector::of_labels(entry.labels.clone()).tells_who() {
            entry.labels.clear();
        }
        entry.selector = selector;
    }
    snapshot.body.label_changes.append(&mut had);
    Cow::Owned(snapshot)
}

/// The label of runs that tells the pods from those of others, whatever its value: every
/// `TaskRun`'s have `tekton.dev/taskRun`, no Deployment's have. Those of others that have it as
/// well are runs, too.
fn key_of_runs(entry: &WorkloadEntry, clashing: &[&WorkloadEntry]) -> Option<String> {
    let own = |key: &&String| is_release_label(key) && entry.labels.contains_key(*key);
    let selected = entry.selector.iter().flat_map(|selector| selector.match_labels.keys()).filter(own);
    let with = |key: &&String| clashing.iter().filter(|other| other.labels.contains_key(*key)).count();
    selected.min_by_key(with).filter(|key| with(key) < clashing.len()).cloned()
}

/// The labels of a workload's pods that a release or a run changes.
fn passing_keys(entry: &WorkloadEntry) -> BTreeSet<String> {
    release_keys(entry.labels.iter().map(|(k, v)| (k.as_str(), v.as_str()))).into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A snapshot of one workload of which `run` is known to have changed, after it was made
    /// stable: its selector and its labels.
    fn after(owner: &str, labels: &[(&str, &str)], own: Option<&[(&str, &str)]>) -> (Option<String>, String) {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let workload = WorkloadRef { namespace: "data".into(), owner: owner.into(), name: "pi".into() };
        let mut snapshot = Snapshot::empty();
        snapshot.body.workloads.push(WorkloadEntry {
            workload: workload.clone(),
            selector: Some(LabelSelector::of_labels(map(own.unwrap_or(labels)))),
            selector_advice: None,
            labels: map(labels),
            schedule: None,
            host_network: false,
            pods: BTreeMap::new(),
            ran_on: BTreeMap::new(),
            as_of: Default::default(),
        });
        let values = BTreeSet::from(["17".to_owned(), "18".to_owned()]);
        let changed =
            BTreeMap::from([("run".to_owned(), values), ("new".to_owned(), BTreeSet::from(["y".to_owned()]))]);
        snapshot.body.label_changes.push(LabelChanges { workload, labels: changed });
        let snapshot = stable(&snapshot);
        let entry = &snapshot.body.workloads[0];
        let text = |labels: &BTreeMap<String, String>| {
            labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
        };
        (entry.selector.as_ref().map(|selector| text(&selector.match_labels)), text(&entry.labels))
    }

    #[test]
    fn a_label_that_was_seen_to_change_is_no_identity() {
        let (app, run, new) = (("app", "pi"), ("run", "18"), ("new", "y"));
        assert_eq!(after("SparkApplication", &[app, run], None), (Some("app=pi".into()), "app=pi".into()));
        // One that was added once is as good as any.
        let both = Some("app=pi,new=y".into());
        assert_eq!(after("SparkApplication", &[app, new, run], None), (both, "app=pi,new=y".into()));
        assert_eq!(after("SparkApplication", &[run], None), (None, String::new()));
    }

    fn workload(owner: &str, name: &str, labels: &[(&str, &str)]) -> WorkloadEntry {
        let labels: BTreeMap<_, _> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        WorkloadEntry {
            workload: WorkloadRef { namespace: "data".into(), owner: owner.into(), name: name.into() },
            selector: Some(LabelSelector::of_labels(labels.clone())),
            selector_advice: None,
            labels,
            schedule: None,
            host_network: false,
            pods: BTreeMap::new(),
            ran_on: BTreeMap::new(),
            as_of: Default::default(),
        }
    }

    #[test]
    fn a_run_whose_other_labels_are_a_deployments_is_told_by_the_label_of_runs() {
        let (app, task, run) = (("app", "pay"), ("tekton.dev/taskRun", "pay-7"), ("tekton.dev/taskRun", "pay-8"));
        let mut snapshot = Snapshot::empty();
        snapshot.body.workloads = vec![
            workload("Deployment", "pay", &[app]),
            workload("TaskRun", "pay-7", &[app, task]),
            workload("TaskRun", "pay-8", &[app, run]),
        ];
        let snapshot = stable(&snapshot);
        let [pay, seven, eight] = &snapshot.body.workloads[..] else { panic!() };
        assert_eq!(pay.selector.as_ref().unwrap().match_labels.len(), 1);
        assert_eq!(seven.selector, eight.selector);
        let selector = seven.selector.as_ref().unwrap();
        assert_eq!(*selector.match_labels, pay.labels);
        let [requirement] = &selector.match_expressions[..] else { panic!("{selector:?}") };
        assert_eq!((&*requirement.key, requirement.operator), ("tekton.dev/taskRun", SelectorOperator::Exists));
        assert!(selector_matches(selector, &seven.labels) && !selector_matches(selector, &pay.labels));
    }

    #[test]
    fn a_controllers_own_selector_stays_and_its_other_labels_lose_what_changes() {
        let (app, run) = (("app", "pi"), ("run", "18"));
        assert_eq!(after("Deployment", &[app, run], Some(&[app])), (Some("app=pi".into()), "app=pi".into()));
        let own = (Some("run=18".into()), "app=pi,run=18".into());
        assert_eq!(after("Deployment", &[app, run], Some(&[run])), own);
    }
}
