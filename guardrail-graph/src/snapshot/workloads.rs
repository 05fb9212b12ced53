//! Facts of workloads. A cluster has tens of thousands of pods, so their entries are made when they
//! are written, and until then their objects are shared with the inventory.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use super::{
    LabelChanges, NamedPort, PodEntry, WorkloadEntry,
    facts::{Facts, keep_later},
};
use crate::{inventory::Pod, peer::Protocol, time::Timestamp};

/// The latest description of a workload.
#[derive(Clone, Debug)]
pub(crate) struct WorkloadFacts {
    /// Without time and pods.
    base: Arc<WorkloadEntry>,
    pub(crate) as_of: Timestamp,
    /// Sorted by node.
    hosted: Vec<Hosted>,
}

/// [`super::LabelChanges::labels`].
pub(crate) type ChangedLabels = BTreeMap<String, BTreeSet<String>>;

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
    pub(super) fn add_workloads(&mut self, workloads: Vec<WorkloadEntry>, label_changes: Vec<LabelChanges>) {
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

/// What a node hosts of a workload.
#[derive(Clone, Debug)]
pub(crate) enum Hosted {
    /// A live pod.
    Live(Arc<Pod>),
    /// A pod as a snapshot names it, and its node.
    Told(Box<(String, PodEntry)>),
    /// A node alone.
    Node(Arc<str>),
}

impl Hosted {
    /// The node's name, empty for a pod that is not scheduled.
    pub(crate) fn node(&self) -> &str {
        match self {
            Self::Live(pod) => pod.node.as_deref().unwrap_or_default(),
            Self::Told(told) => &told.0,
            Self::Node(name) => name,
        }
    }

    /// Sorts within the node.
    fn pod_name(&self) -> Option<&str> {
        match self {
            Self::Live(pod) => Some(&pod.name),
            Self::Told(told) => Some(&told.1.name),
            Self::Node(_) => None,
        }
    }

    fn entry(&self) -> Option<PodEntry> {
        match self {
            Self::Live(pod) => Some(pod_entry(pod)),
            Self::Told(told) => Some(told.1.clone()),
            Self::Node(_) => None,
        }
    }

    /// The names that the pod gives a port.
    fn port_names(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = &str> {
        let (live, told) = match self {
            Self::Live(pod) => (&*pod.ports, &[][..]),
            Self::Told(told) => (&[][..], &*told.1.ports),
            Self::Node(_) => (&[][..], &[][..]),
        };
        let live = live
            .iter()
            .filter(move |p| p.port == port && protocol.is_named(&p.protocol))
            .filter_map(|p| p.name.as_deref());
        let told =
            told.iter().filter(move |p| p.port == port && protocol.is_named(&p.protocol)).map(|p| p.name.as_str());
        live.chain(told)
    }
}

fn pod_entry(pod: &Pod) -> PodEntry {
    let mut ports: Vec<NamedPort> = pod
        .ports
        .iter()
        .filter_map(|p| Some(NamedPort { name: p.name.clone()?, protocol: p.protocol.clone(), port: p.port }))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    PodEntry { name: pod.name.clone(), addresses: pod.addresses.iter().copied().collect(), ports }
}

impl From<WorkloadEntry> for WorkloadFacts {
    fn from(mut entry: WorkloadEntry) -> Self {
        let (pods, as_of) = (std::mem::take(&mut entry.pods), std::mem::take(&mut entry.as_of));
        let mut facts = Self { base: Arc::new(entry), as_of, hosted: Vec::new() };
        for (node, pods) in pods {
            facts.hosted.extend(told(&node, pods));
        }
        facts.hosted.shrink_to_fit();
        facts
    }
}

fn told(node: &str, pods: Vec<PodEntry>) -> impl Iterator<Item = Hosted> {
    let alone = pods.is_empty().then(|| Hosted::Node(node.into()));
    pods.into_iter().map(move |pod| Hosted::Told(Box::new((node.to_owned(), pod)))).chain(alone)
}

impl WorkloadFacts {
    /// As it stands in a snapshot.
    pub(crate) fn entry(&self) -> WorkloadEntry {
        let mut pods: BTreeMap<String, Vec<PodEntry>> = BTreeMap::new();
        for hosted in &self.hosted {
            pods.entry(hosted.node().to_owned()).or_default().extend(hosted.entry());
        }
        WorkloadEntry { pods, as_of: self.as_of, ..WorkloadEntry::clone(&self.base) }
    }

    /// The same workload with what nodes host of it, in any order, as of another time.
    pub(crate) fn hosting(&self, mut hosted: Vec<Hosted>, as_of: Timestamp) -> Self {
        hosted.sort_unstable_by(|a, b| (a.node(), a.pod_name()).cmp(&(b.node(), b.pod_name())));
        hosted.shrink_to_fit();
        Self { base: Arc::clone(&self.base), as_of, hosted }
    }

    /// When a CronJob runs.
    pub(super) fn schedule(&self) -> Option<String> {
        self.base.schedule.clone()
    }

    /// Nodes that host a pod of it (`""`: not scheduled), one perhaps several times.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.hosted.iter().map(Hosted::node)
    }

    /// The names that its pods give a port.
    pub(super) fn port_names(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = &str> {
        self.hosted.iter().flat_map(move |hosted| hosted.port_names(protocol, port))
    }

    /// Puts others in the place of the pods of a node.
    pub(super) fn place(&mut self, node: &str, pods: Option<Vec<PodEntry>>) {
        self.hosted.retain(|hosted| hosted.node() != node);
        let at = self.hosted.partition_point(|hosted| hosted.node() < node);
        self.hosted.splice(at..at, pods.into_iter().flat_map(|pods| told(node, pods)));
    }

    /// Notes that it has a host-network pod.
    pub(super) fn set_host_network(&mut self) {
        Arc::make_mut(&mut self.base).host_network = true;
    }
}
