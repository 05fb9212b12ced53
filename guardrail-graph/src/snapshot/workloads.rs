//! Facts of workloads. A cluster has tens of thousands of pods, so their entries are made when they
//! are written, and until then their objects are shared with the inventory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{NamedPort, PodEntry, WorkloadEntry};
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
