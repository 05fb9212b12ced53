//! The workloads that an exception may name: those that were observed, else those of an inventory.

use std::collections::BTreeMap;

use guardrail_graph::{
    Snapshot, WorkloadRef,
    inventory::{Object, is_generated_label, release_keys},
    snapshot::{LabelSelector, WorkloadEntry},
};
use guardrail_policy::{evaluate::Cluster, model::Labels};

use crate::plan::ExceptionEnd;

/// A snapshot that has both ends: the one that was observed, as an export reads it; or, if it does
/// not have them, the same with the workloads that only the inventory knows. The flag says that
/// these were needed.
#[must_use]
pub fn known(
    observed: Option<&Snapshot>,
    cluster: &Cluster,
    selectors: &BTreeMap<WorkloadRef, LabelSelector>,
    ends: [&ExceptionEnd; 2],
) -> (Snapshot, bool) {
    let mut snapshot = observed.cloned().unwrap_or_else(Snapshot::empty);
    let has = |workload: &WorkloadRef| snapshot.body.workloads.iter().any(|entry| entry.workload == *workload);
    let is_known = |end: &&ExceptionEnd| matches!(end, ExceptionEnd::Workload(workload) if !has(workload));
    if !ends.iter().any(is_known) {
        return (snapshot, false);
    }
    let mut labels: BTreeMap<&WorkloadRef, (Labels, bool)> = BTreeMap::new();
    for pod in cluster.pods.iter().filter(|pod| !pod.finished) {
        let Some(workload) = pod.workload.as_ref().filter(|workload| !has(workload)) else { continue };
        match labels.get_mut(workload) {
            None => {
                let passing = release_keys(pod.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())));
                let stable = |key: &str| !is_generated_label(key) && !passing.contains(key);
                let own = pod.labels.iter().filter(|(key, _)| stable(key));
                let own = own.map(|(key, value)| (key.clone(), value.clone())).collect();
                labels.insert(workload, (own, pod.host_network));
            }
            Some((common, _)) => common.retain(|key, value| pod.labels.get(key) == Some(&*value)),
        }
    }
    let entries = labels.into_iter().map(|(workload, (labels, host_network))| WorkloadEntry {
        workload: workload.clone(),
        selector: selectors.get(workload).cloned(),
        selector_advice: None,
        labels,
        schedule: None,
        host_network,
        pods: BTreeMap::new(),
        ran_on: BTreeMap::new(),
        as_of: snapshot.body.window.to.unwrap_or_default(),
    });
    let entries: Vec<WorkloadEntry> = entries.collect();
    snapshot.body.workloads.extend(entries);
    snapshot.body.workloads.sort_by(|a, b| a.workload.cmp(&b.workload));
    (snapshot, true)
}

/// The selectors of controllers: they hold for the pods that come, too.
#[must_use]
pub fn selectors(objects: &[Object]) -> BTreeMap<WorkloadRef, LabelSelector> {
    let own = |object: &Object| match object {
        Object::Controller(controller) if controller.controller.is_none() => {
            let workload = WorkloadRef {
                namespace: controller.namespace.clone(),
                owner: controller.kind.clone(),
                name: controller.name.clone(),
            };
            Some((workload, controller.selector.clone()?))
        }
        _ => None,
    };
    objects.iter().filter_map(own).collect()
}
