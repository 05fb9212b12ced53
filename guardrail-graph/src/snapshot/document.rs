//! A snapshot that is not yet spelled out: what it costs is a fraction of the snapshot, and it is
//! written piece by piece.

use std::{
    collections::BTreeMap,
    ops::{Bound, RangeBounds},
    sync::Arc,
};

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{
    API_VERSION, AddressEntry, BackendEntry, Body, Coverage, EdgeRecord, Interval, KIND, LabelChanges, PodPresence,
    Revision, ServiceEntry, ServiceFlow, ServicePortEntry, Snapshot, Source, SourceRevision, SourceWindow, Window,
    WorkloadEntry,
    counters::{EdgeCounter, of_edges},
    derive::{Derived, Deriver},
    facts::{
        EdgeFacts, EdgeKey, Facts, FlowFacts, FlowKey, KnownTenure, RemoteKey, ServiceFacts, TenureKey, source_counts,
    },
    intervals::{hull, joined},
    nodes::node_times,
    owners::Owners,
    parts::text,
    presence::{PodKey, pod_presence},
    remote::remote_entry,
};
use crate::{
    peer::{Peer, WorkloadRef},
    time::Timestamp,
};

/// A [`Snapshot`] whose entries are made when they are asked for.
#[derive(Debug)]
pub struct Document {
    facts: Facts,
    derived: BTreeMap<EdgeKey, Derived>,
    coverage: Coverage,
    window: Window,
    source_windows: Vec<SourceWindow>,
}

/// Where a range goes on.
fn after<K: Clone>(key: Option<&K>) -> impl RangeBounds<K> + use<K> {
    (key.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone())), Bound::Unbounded)
}

fn service(facts: &ServiceFacts) -> ServiceEntry {
    let ports = facts.ports.iter().map(|((port, protocol, name, node_port), backends)| ServicePortEntry {
        port: *port,
        protocol: protocol.clone(),
        name: name.clone(),
        node_port: *node_port,
        backends: backends
            .iter()
            .map(|((address, port, peer, node, from), to)| BackendEntry {
                address: *address,
                port: *port,
                peer: Peer::clone(peer),
                node: node.as_deref().map(str::to_owned),
                from: *from,
                to: *to,
            })
            .collect(),
    });
    ServiceEntry { ports: ports.collect(), ..facts.base.clone() }
}

fn address(key: &TenureKey, known: &KnownTenure, all_of_it: Interval) -> AddressEntry {
    let (address, from, peer, pod) = key;
    AddressEntry {
        address: *address,
        from: *from,
        to: known.to,
        peer: Peer::clone(peer),
        pod: pod.clone(),
        heard: (known.heard != all_of_it).then_some(known.heard),
        proven: known.proven,
        listed: known.listed,
    }
}

fn service_flow(key: &FlowKey, facts: &FlowFacts) -> ServiceFlow {
    let (client, service, protocol, port) = key;
    ServiceFlow {
        client: Peer::clone(client),
        service: service.to_string(),
        protocol: *protocol,
        port: *port,
        marks: facts.marks.clone(),
        node_workloads: facts.node_workloads.clone(),
        backend_unknown: facts.backend_unknown,
        sources: source_counts(&facts.sources, false).collect(),
    }
}

impl Facts {
    /// The document that follows from these facts.
    pub(crate) fn document(mut self) -> Document {
        self.settle();
        self.name_remote_flows();
        let untold = self.tell_redirected();
        self.edges.sort_unstable_keys();
        let mut deriver = Deriver {
            unresolved: std::mem::take(&mut self.unresolved),
            incomplete: std::mem::take(&mut self.incomplete),
            ..Deriver::default()
        };
        let owners = Owners::of(&self);
        deriver.service_flows(&self, &owners);
        deriver.unnamed_flows(&self, &owners);
        deriver.redirected(untold);
        deriver.coverage_of_nodes(&self);
        let Deriver { derived, unresolved, incomplete, unnamed, backend_unknown } = deriver;
        for (key, times) in backend_unknown {
            self.service_flows.entry(key).or_default().backend_unknown = Some(times);
        }
        for (key, may_be) in unnamed {
            self.remote_flows.entry(key).or_default().may_be = Some(may_be);
        }
        let coverage = self.coverage(unresolved, incomplete);
        Document::new(self, derived, coverage)
    }

    /// Brings what was joined into its form.
    pub(crate) fn settle(&mut self) {
        self.observed.extend(self.sources.iter().map(|s| s.node.clone()));
        self.settle_nodes();
        for (source, intervals) in std::mem::take(&mut self.observed_by) {
            self.window.entry(source.node.clone()).or_default().extend(intervals);
        }
        for intervals in self.window.values_mut().chain(self.steps.values_mut()) {
            *intervals = joined(std::mem::take(intervals));
        }
        self.settle_losses();
        self.place_own_pods();
        self.settle_places();
    }

    /// Each workload as it stands in a snapshot.
    pub(crate) fn each_workload(&self, put: impl FnMut(WorkloadEntry)) {
        self.workloads.iter().map(|(name, workload)| self.workload(name, workload)).for_each(put);
    }

    /// Each Service as it stands in a snapshot.
    pub(crate) fn each_service(&self, put: impl FnMut(ServiceEntry)) {
        self.services.values().map(|facts| service(facts)).for_each(put);
    }

    /// Each address as it stands in a snapshot.
    pub(crate) fn each_address(&self, put: impl FnMut(AddressEntry)) {
        let all_of_it = hull(self.window.values().flatten().copied());
        self.addresses.iter().map(|(key, tenure)| address(key, tenure, all_of_it)).for_each(put);
    }

    /// Each pod that was there as it stands in a snapshot.
    pub(crate) fn each_presence(&self, put: impl FnMut(PodPresence)) {
        self.pods.iter().map(|(key, pod)| pod_presence(key, pod)).for_each(put);
    }
}

impl Document {
    pub(super) fn new(facts: Facts, derived: BTreeMap<EdgeKey, Derived>, coverage: Coverage) -> Self {
        let times = || facts.window.values().flatten();
        let window = Window {
            from: times().map(|i| i.from).min(),
            to: times().map(|i| i.to).max(),
            nodes: facts.window.clone(),
            steps: facts.steps.clone(),
        };
        let source_windows = facts.source_windows.iter().filter(|(source, observed)| {
            hull(window.nodes.get(&source.node).into_iter().flatten().copied()) != **observed
        });
        let source_windows = source_windows
            .map(|(source, observed)| SourceWindow { source: Source::clone(source), window: *observed })
            .collect();
        Self { facts, derived, coverage, window, source_windows }
    }

    /// As [`Snapshot`]'s.
    #[must_use]
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// As [`Snapshot`]'s.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Whether a source observed at another time than its node was observed.
    pub(super) fn has_source_windows(&self) -> bool {
        !self.source_windows.is_empty()
    }

    /// The facts that it is made of, but for unresolved flows and what is incomplete: those stand
    /// in its coverage.
    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whose counts are in it.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.facts.sources.iter().map(|source| &**source)
    }

    /// The document that several together make, as [`super::merge`] joins them. Each is taken when
    /// the one before is joined, so that two of them are never in memory.
    #[must_use]
    pub fn joined(snapshots: impl IntoIterator<Item = Snapshot>) -> Self {
        let mut facts = Facts::default();
        snapshots.into_iter().for_each(|snapshot| facts.add(snapshot));
        facts.document()
    }

    /// Spells it out.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::empty();
        let all_of_it = hull(self.window.nodes.values().flatten().copied());
        snapshot.body = Body {
            facts: Vec::new(),
            sources: self.facts.sources.iter().map(|s| Source::clone(s)).collect(),
            window: self.window.clone(),
            source_windows: self.source_windows.clone(),
            revisions: self.revisions(),
            coverage: self.coverage.clone(),
            workloads: self.facts.workloads.iter().map(|(name, w)| self.facts.workload(name, w)).collect(),
            label_changes: self.label_changes(),
            services: self.facts.services.values().map(|s| service(s)).collect(),
            addresses: self.facts.addresses.iter().map(|(key, tenure)| address(key, tenure, all_of_it)).collect(),
            service_flows: self.facts.service_flows.iter().map(|(key, flow)| service_flow(key, flow)).collect(),
            remote_flows: self.facts.remote_flows.iter().map(|(key, flow)| remote_entry(key, flow)).collect(),
            own_pods_as_of: self.own_pods_as_of(),
            witnesses: self.facts.witness_list(),
            presence: self.facts.pods.iter().map(|(key, pod)| pod_presence(key, pod)).collect(),
            nodes: node_times(&self.facts.nodes).collect(),
            edges: self.edges(None).map(|(_, edge)| edge).collect(),
        };
        snapshot
    }

    /// As [`Snapshot::edge_counters`].
    #[must_use]
    pub fn edge_counters(&self) -> Vec<EdgeCounter> {
        of_edges(self.edges(None).map(|(_, edge)| edge))
    }

    /// The revision of its epoch, if it is of one alone.
    #[must_use]
    pub fn revision(&self) -> Revision {
        let mut known = self.facts.revisions.values();
        known.next().copied().filter(|_| known.next().is_none()).unwrap_or_default()
    }

    fn revisions(&self) -> Vec<SourceRevision> {
        let known = self.facts.revisions.iter();
        known.map(|(source, revision)| SourceRevision { source: Source::clone(source), revision: *revision }).collect()
    }

    pub(crate) fn label_changes(&self) -> Vec<LabelChanges> {
        let changes = self.facts.label_changes.iter();
        changes.map(|(name, labels)| LabelChanges { workload: name.clone(), labels: labels.clone() }).collect()
    }

    fn own_pods_as_of(&self) -> BTreeMap<String, Timestamp> {
        self.facts.own_pods.iter().map(|(node, (at, _))| (node.clone(), *at)).collect()
    }

    /// The edges after that one, sorted by key: those with a record, and those that follow from
    /// service flows alone.
    fn edges(&self, from: Option<&EdgeKey>) -> impl Iterator<Item = (&EdgeKey, EdgeRecord)> {
        let edges = &self.facts.edges;
        let mut own = edges.iter().skip(from.map_or(0, |from| edges.partition_point(|key, _| key <= from))).peekable();
        let mut derived = self.derived.range(after(from)).filter(|(_, d)| d.extra.is_some()).peekable();
        let (no_facts, nothing) = (EdgeFacts::default(), Derived::default());
        std::iter::from_fn(move || {
            while let Some((key, of_edge)) = derived.next_if(|(key, _)| own.peek().is_none_or(|(next, _)| key <= next))
            {
                // An edge with a record takes what is derived along.
                if own.peek().is_none_or(|(next, _)| *next != key) {
                    return Some((key, self.facts.edge(key, &no_facts, of_edge)));
                }
            }
            let (key, facts) = own.next()?;
            Some((key, self.facts.edge(key, facts, self.derived.get(key).unwrap_or(&nothing))))
        })
    }

    /// The snapshot as compact JSON with a line break at its end, in pieces of about `bytes`.
    #[must_use]
    pub fn chunks(self: Arc<Self>, bytes: usize) -> Chunks {
        Chunks { document: self, bytes, at: At::Head, facts: Vec::new() }
    }
}

/// How far [`Chunks`] have come: in each list, the last entry that was written.
#[derive(Debug)]
enum At {
    Head,
    /// Whether it is the first of them.
    Facts(bool),
    Sources,
    /// In the coverage, which is sorted by peer as it comes from a map.
    Incomplete(Option<Peer>),
    Workloads(Option<WorkloadRef>),
    LabelChanges,
    Services(Option<(String, String)>),
    Addresses(Option<TenureKey>),
    ServiceFlows(Option<FlowKey>),
    RemoteFlows(Option<RemoteKey>),
    OwnPods,
    Presence(Option<PodKey>),
    Nodes,
    Edges(Option<EdgeKey>),
    Done,
}

/// The pieces of a document's JSON. Only the piece at hand is in memory.
#[derive(Debug)]
pub struct Chunks {
    document: Arc<Document>,
    bytes: usize,
    at: At,
    /// As [`Body::facts`], packed; the last one comes first.
    facts: Vec<Vec<u8>>,
}

impl Chunks {
    /// With what the document was joined of, packed ([`super::pack`]) or as the files of closed
    /// epochs.
    #[must_use]
    pub fn with_facts(mut self, facts: Vec<Vec<u8>>) -> Self {
        self.facts = facts;
        self.facts.reverse();
        self
    }
}

/// What of a list fits in `out`: the last key, if there may be more.
fn list<'a, K: Clone + 'a, T: Serialize>(
    out: &mut Vec<u8>,
    bytes: usize,
    name: &str,
    last: Option<K>,
    entries: impl Iterator<Item = (&'a K, T)>,
) -> Option<K> {
    let mut separator: &[u8] = b",";
    if last.is_none() {
        out.extend_from_slice(format!(",\"{name}\":[").as_bytes());
        separator = b"";
    }
    for (key, entry) in entries {
        out.extend_from_slice(separator);
        json(out, &entry);
        separator = b",";
        if out.len() >= bytes {
            return Some(key.clone());
        }
    }
    out.push(b']');
    None
}

/// What stands in a snapshot's coverage before the workloads.
struct Judgement<'a>(&'a Coverage);

impl Serialize for Judgement<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Coverage { complete, coverage, starts, nodes, inventory, by_workload, not_run, losses, unresolved, .. } =
            self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("complete", complete)?;
        map.serialize_entry("coverage", coverage)?;
        if let Some(starts) = starts {
            map.serialize_entry("starts", starts)?;
        }
        map.serialize_entry("nodes", nodes)?;
        if let Some(inventory) = inventory {
            map.serialize_entry("inventory", inventory)?;
        }
        if !by_workload.is_empty() {
            map.serialize_entry("by_workload", by_workload)?;
        }
        if !not_run.is_empty() {
            map.serialize_entry("not_run", not_run)?;
        }
        map.serialize_entry("losses", losses)?;
        map.serialize_entry("unresolved", unresolved)?;
        map.end()
    }
}

/// Writing to memory cannot fail, and neither can what a snapshot consists of: no map in it has
/// keys that are not text.
fn json(out: &mut Vec<u8>, value: &impl Serialize) {
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok(), "{written:?}");
}

impl Iterator for Chunks {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let Document { facts, coverage, window, source_windows, .. } = &*self.document;
        let bytes = self.bytes;
        let mut out = Vec::with_capacity(bytes + bytes / 8);
        while out.len() < bytes {
            self.at = match std::mem::replace(&mut self.at, At::Done) {
                At::Head => {
                    for (before, value) in [("{\"apiVersion\":", API_VERSION), (",\"kind\":", KIND)] {
                        out.extend_from_slice(before.as_bytes());
                        json(&mut out, &value);
                    }
                    if self.facts.is_empty() { At::Sources } else { At::Facts(true) }
                }
                At::Facts(is_first) => {
                    out.extend_from_slice(if is_first { b",\"facts\":[" } else { b"," });
                    json(&mut out, &self.facts.pop().as_deref().map(text));
                    if self.facts.is_empty() {
                        out.push(b']');
                        At::Sources
                    } else {
                        At::Facts(false)
                    }
                }
                At::Sources => {
                    out.extend_from_slice(b",\"sources\":");
                    json(&mut out, &facts.sources);
                    out.extend_from_slice(b",\"window\":");
                    json(&mut out, window);
                    if !source_windows.is_empty() {
                        out.extend_from_slice(b",\"source_windows\":");
                        json(&mut out, source_windows);
                    }
                    let revisions = self.document.revisions();
                    if !revisions.is_empty() {
                        out.extend_from_slice(b",\"revisions\":");
                        json(&mut out, &revisions);
                    }
                    out.extend_from_slice(b",\"coverage\":");
                    json(&mut out, &Judgement(coverage));
                    // What is left of it is long, and written piece by piece.
                    out.pop();
                    At::Incomplete(None)
                }
                At::Incomplete(last) => {
                    let all = &coverage.workloads;
                    let from = last.as_ref().map_or(0, |last| all.partition_point(|w| w.peer <= *last));
                    let rest = all[from..].iter().map(|w| (&w.peer, w));
                    match list(&mut out, bytes, "workloads", last, rest) {
                        Some(last) => At::Incomplete(Some(last)),
                        None => {
                            out.push(b'}');
                            At::Workloads(None)
                        }
                    }
                }
                At::Workloads(last) => {
                    let rest =
                        facts.workloads.range(after(last.as_ref())).map(|(key, w)| (key, facts.workload(key, w)));
                    let last = list(&mut out, bytes, "workloads", last, rest);
                    last.map_or(At::LabelChanges, |last| At::Workloads(Some(last)))
                }
                At::LabelChanges => {
                    let changes = self.document.label_changes();
                    if !changes.is_empty() {
                        out.extend_from_slice(b",\"label_changes\":");
                        json(&mut out, &changes);
                    }
                    At::Services(None)
                }
                At::Services(last) => {
                    let rest = facts.services.range(after(last.as_ref())).map(|(key, s)| (key, service(s)));
                    let last = list(&mut out, bytes, "services", last, rest);
                    last.map_or(At::Addresses(None), |last| At::Services(Some(last)))
                }
                At::Addresses(last) => {
                    let all_of_it = hull(window.nodes.values().flatten().copied());
                    let rest =
                        facts.addresses.range(after(last.as_ref())).map(|(key, t)| (key, address(key, t, all_of_it)));
                    let last = list(&mut out, bytes, "addresses", last, rest);
                    last.map_or(At::ServiceFlows(None), |last| At::Addresses(Some(last)))
                }
                At::ServiceFlows(last) => {
                    let rest = facts.service_flows.range(after(last.as_ref())).map(|(k, f)| (k, service_flow(k, f)));
                    let last = list(&mut out, bytes, "service_flows", last, rest);
                    last.map_or(At::RemoteFlows(None), |last| At::ServiceFlows(Some(last)))
                }
                // These two are left out where there are none.
                At::RemoteFlows(_) if facts.remote_flows.is_empty() => At::OwnPods,
                At::RemoteFlows(last) => {
                    let rest = facts.remote_flows.range(after(last.as_ref())).map(|(k, f)| (k, remote_entry(k, f)));
                    let last = list(&mut out, bytes, "remote_flows", last, rest);
                    last.map_or(At::OwnPods, |last| At::RemoteFlows(Some(last)))
                }
                At::OwnPods => {
                    let own_pods = self.document.own_pods_as_of();
                    if !own_pods.is_empty() {
                        out.extend_from_slice(b",\"own_pods_as_of\":");
                        json(&mut out, &own_pods);
                    }
                    let witnesses = facts.witness_list();
                    if !witnesses.is_empty() {
                        out.extend_from_slice(b",\"witnesses\":");
                        json(&mut out, &witnesses);
                    }
                    At::Presence(None)
                }
                At::Presence(_) if facts.pods.is_empty() => At::Nodes,
                At::Presence(last) => {
                    let rest = facts.pods.range(after(last.as_ref())).map(|(key, pod)| (key, pod_presence(key, pod)));
                    let last = list(&mut out, bytes, "presence", last, rest);
                    last.map_or(At::Nodes, |last| At::Presence(Some(last)))
                }
                At::Nodes => {
                    let nodes: Vec<_> = node_times(&facts.nodes).collect();
                    if !nodes.is_empty() {
                        out.extend_from_slice(b",\"nodes\":");
                        json(&mut out, &nodes);
                    }
                    At::Edges(None)
                }
                At::Edges(last) => {
                    let rest = self.document.edges(last.as_ref());
                    match list(&mut out, bytes, "edges", last.clone(), rest) {
                        Some(last) => At::Edges(Some(last)),
                        None => {
                            out.extend_from_slice(b"}\n");
                            At::Done
                        }
                    }
                }
                At::Done => break,
            };
        }
        (!out.is_empty()).then_some(out)
    }
}
