//! Workloads of the inventory, those that are gone, and where their pods ran.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::Catalogue;
use crate::{
    interner::Interner,
    inventory::Pod,
    peer::WorkloadRef,
    snapshot::{
        MORE_NODES, WorkloadEntry,
        workloads::{Hosted, WorkloadFacts},
    },
    time::Timestamp,
};

/// Workloads remembered after they are gone.
const MAX_GONE_WORKLOADS: usize = 10_000;
/// Nodes remembered per workload that its pods have left.
const MAX_RAN_ON: usize = 1_000;

impl Catalogue {
    /// A workload of the inventory, or one that is gone.
    pub(in crate::observer) fn workload(&self, name: &WorkloadRef) -> Option<&WorkloadFacts> {
        self.workloads.get(name).or_else(|| self.gone_workloads.get(name))
    }

    /// Workloads change with the inventory only.
    pub(in crate::observer) fn refresh_workloads(&mut self, texts: &mut Interner<str>, now: Timestamp) {
        let version = self.inventory.version();
        if self.workloads_version == Some(version) {
            return;
        }
        self.workloads_version = Some(version);
        let fresh = self.current_workloads(texts, now);
        for (name, workload) in std::mem::take(&mut self.workloads) {
            if !fresh.contains_key(&name) {
                self.gone_workloads.insert(name, workload.hosting(Vec::new(), now));
            }
        }
        self.gone_workloads.retain(|name, _| !fresh.contains_key(name));
        while self.gone_workloads.len() > MAX_GONE_WORKLOADS {
            let oldest =
                self.gone_workloads.iter().min_by_key(|(name, w)| (w.as_of, *name)).map(|(name, _)| name.clone());
            let Some(oldest) = oldest else { break };
            self.gone_workloads.remove(&oldest);
        }
        self.workloads = fresh;
        let (workloads, gone) = (&self.workloads, &self.gone_workloads);
        self.ran_on.retain(|name, _| workloads.contains_key(name) || gone.contains_key(name));
    }

    /// Whether a workload ran on another node than this one since then.
    pub(in crate::observer) fn ran_elsewhere(&self, this_node: &str, since: Timestamp) -> bool {
        let nodes = self.ran_on.values().flatten();
        nodes.filter(|(_, last)| **last > since).any(|(node, _)| node != this_node)
    }

    /// An epoch ended: what left its node before, left it there.
    pub(in crate::observer) fn turn(&mut self) {
        self.ran_on.clear();
    }

    /// A pod is no longer on its node.
    pub(super) fn pod_left(&mut self, pod: &Pod, now: Timestamp) {
        let Some(node) = &pod.node else { return };
        let nodes = self.ran_on.entry(self.inventory.owner_of(pod).workload).or_default();
        let node = if nodes.len() < MAX_RAN_ON || nodes.contains_key(&**node) { node } else { MORE_NODES };
        nodes.insert(node.to_string(), now);
    }

    fn current_workloads(&self, texts: &mut Interner<str>, now: Timestamp) -> BTreeMap<WorkloadRef, WorkloadFacts> {
        let mut host_network = BTreeSet::new();
        for pod in self.inventory.pods().filter(|pod| pod.host_network) {
            host_network.insert(self.inventory.owner_of(pod).workload);
        }
        let pods = self.pods_by_workload();
        let mut facts = BTreeMap::new();
        for (workload, selector) in self.inventory.workloads() {
            let pods = pods.get(&workload).into_iter().flatten();
            let nodes: BTreeSet<&str> = pods.map(|pod| pod.node.as_deref().unwrap_or_default()).collect();
            let nodes = nodes.into_iter().map(|node| Hosted::Node(texts.intern(node))).collect();
            let base = WorkloadFacts::from(WorkloadEntry {
                workload: workload.clone(),
                selector: selector.selector,
                selector_advice: selector.advice,
                labels: selector.labels.to_map(),
                schedule: self.inventory.schedule(&workload).map(str::to_owned),
                host_network: host_network.contains(&workload),
                pods: BTreeMap::new(),
                ran_on: BTreeMap::new(),
                as_of: now,
            });
            facts.insert(workload, base.hosting(nodes, now));
        }
        facts
    }

    fn pods_by_workload(&self) -> BTreeMap<WorkloadRef, Vec<Arc<Pod>>> {
        let mut by_workload: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for pod in self.inventory.pods().filter(|p| !p.finished) {
            by_workload.entry(self.inventory.owner_of(pod).workload).or_default().push(Arc::clone(pod));
        }
        by_workload
    }

    /// Workloads of the inventory that have a pod on this node.
    pub(in crate::observer) fn hosted_by<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a WorkloadRef> {
        self.workloads.iter().filter(move |(_, w)| w.nodes().any(|n| n == node)).map(|(name, _)| name)
    }

    /// Workloads with the pods that they have now, and those that are gone, for a snapshot.
    pub(in crate::observer) fn workload_facts(&self, now: Timestamp) -> BTreeMap<WorkloadRef, WorkloadFacts> {
        let mut facts = self.gone_workloads.clone();
        let mut pods = self.pods_by_workload();
        facts.extend(self.workloads.iter().map(|(name, workload)| {
            let pods = pods.remove(name).unwrap_or_default();
            (name.clone(), workload.hosting(pods.into_iter().map(Hosted::Live).collect(), now))
        }));
        facts
    }

    /// Nodes that hosted pods of workloads and may do so no longer, with the last time that was
    /// known.
    pub(in crate::observer) fn ran_on(&self) -> &BTreeMap<WorkloadRef, BTreeMap<String, Timestamp>> {
        &self.ran_on
    }

    /// Forgets workloads that are gone since before `before`, unless `is_used`.
    pub(in crate::observer) fn forget_workloads(&mut self, before: Timestamp, is_used: impl Fn(&WorkloadRef) -> bool) {
        self.gone_workloads.retain(|name, workload| workload.as_of >= before || is_used(name));
    }

    /// Puts workloads back, as a stored state has them. Their pods stand until
    /// [`Self::forget_restored_pods`].
    pub(in crate::observer) fn restore_workloads(&mut self, entries: &[WorkloadEntry]) {
        let mut places = crate::snapshot::facts::Facts::default();
        for entry in entries {
            let here = entry.pods.keys().filter(|node| !node.is_empty()).map(|node| (node, &entry.as_of));
            for (node, at) in entry.ran_on.iter().chain(here) {
                places.ran_on(&entry.workload, node.clone(), *at);
            }
        }
        self.ran_on = places.ran_on;
        let known = entries.iter().map(|w| WorkloadEntry { ran_on: BTreeMap::new(), ..w.clone() });
        self.gone_workloads = known.map(|w| (w.workload.clone(), w.into())).collect();
    }

    /// The list of pods has come: workloads that are not in it have none.
    pub(in crate::observer) fn forget_restored_pods(&mut self) {
        for workload in self.gone_workloads.values_mut() {
            *workload = workload.hosting(Vec::new(), workload.as_of);
        }
    }
}
