//! The facts of a snapshot, apart from what follows from them. Facts join by set union, and numbers
//! by the maximum per source: both are commutative, associative and idempotent, and so is
//! everything that is computed from the joined facts.

mod edge;
mod presence;
mod unresolved;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

pub(crate) use edge::EdgeFacts;
use indexmap::IndexMap;

use super::{
    AddressEntry, BackendEntry, Body, Counts, EdgeRecord, Interval, InventoryState, PodEntry, Revision, ServiceEntry,
    Side, Snapshot, Source, SourceCounts,
    intervals::hull,
    marks,
    nodes::Nodes,
    presence::{LossTimes, Pods, Witnesses},
    span::Span,
    unresolved::Unresolved,
    workloads::{ChangedLabels, WorkloadFacts},
};
use crate::{
    interner::Interner,
    observe::LossClass,
    peer::{CompactPeer, Peer, Protocol, WorkloadRef},
    time::Timestamp,
    unresolved::UnresolvedReason,
};

/// Reasons of incompleteness that are computed.
pub(super) const NODE_UNOBSERVED: &str = "node_unobserved:";
pub(super) const WINDOW_GAP: &str = "window_gap:";
pub(super) const WINDOW_APART: &str = "window_apart:";
pub(super) const LOSSES: &str = "losses:";
const OF_NODES: [&str; 4] = [NODE_UNOBSERVED, WINDOW_GAP, WINDOW_APART, LOSSES];

/// `(client, server, protocol, port)`.
pub(crate) type EdgeKey = (CompactPeer, CompactPeer, Protocol, u16);
/// `(client, "namespace/name:port", protocol, port)`.
pub(crate) type FlowKey = (Arc<Peer>, Arc<str>, Protocol, u16);

/// What was counted by one source at one side, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) counts: Counts,
    pub(crate) first: Timestamp,
    pub(crate) last: Timestamp,
}

impl Seen {
    /// The same observation at different times, or by different eyes: the greater of each.
    pub(crate) fn max(&mut self, other: &Self) {
        self.counts = self.counts.max(&other.counts);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }

    /// Both, as far as there are any.
    pub(crate) fn sum(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(mut a), Some(b)) => {
                a.add(&b);
                Some(a)
            }
            (a, b) => a.or(b),
        }
    }

    /// Different observations.
    pub(crate) fn add(&mut self, other: &Self) {
        self.counts = self.counts.plus(&other.counts);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }
}

/// What each source counted at each side, sorted. Of 100,000 edges most have one, for which a map
/// would take ten times the memory; what was counted is shared with the observer's table until that
/// counts on.
#[derive(Clone, Debug, Default)]
pub(crate) enum BySource {
    #[default]
    Nothing,
    One {
        source: Arc<Source>,
        side: Side,
        seen: Arc<Seen>,
    },
    Many(Box<[Counted]>),
}

const _: () = assert!(size_of::<BySource>() == 24);

/// By whom, at which side, and what.
pub(crate) type Counted = ((Arc<Source>, Side), Arc<Seen>);

impl From<Vec<Counted>> for BySource {
    fn from(mut all: Vec<Counted>) -> Self {
        if all.len() > 1 {
            return Self::Many(all.into_boxed_slice());
        }
        all.pop().map_or(Self::Nothing, |((source, side), seen)| Self::One { source, side, seen })
    }
}

impl BySource {
    fn take(&mut self) -> Vec<Counted> {
        match std::mem::take(self) {
            Self::Nothing => Vec::new(),
            Self::One { source, side, seen } => vec![((source, side), seen)],
            Self::Many(all) => all.into_vec(),
        }
    }

    /// Joins what a source counted: of the same, the greater.
    pub(crate) fn max(&mut self, source: Arc<Source>, side: Side, seen: &Arc<Seen>) {
        self.join(source, side, seen, Seen::max);
    }

    /// Adds what a source counted besides.
    pub(crate) fn plus(&mut self, source: Arc<Source>, side: Side, seen: &Arc<Seen>) {
        self.join(source, side, seen, Seen::add);
    }

    fn join(&mut self, source: Arc<Source>, side: Side, seen: &Arc<Seen>, join: impl Fn(&mut Seen, &Seen)) {
        let (mut all, key) = (self.take(), (source, side));
        match all.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(at) => join(Arc::make_mut(&mut all[at].1), seen),
            Err(at) => {
                all.reserve_exact(1);
                all.insert(at, (key, Arc::clone(seen)));
            }
        }
        *self = all.into();
    }

    fn add(&mut self, sources: &mut Interner<Source>, counts: Vec<SourceCounts>) {
        for c in counts.into_iter().filter(|c| !c.by_merge) {
            let seen = Seen { counts: c.counts, first: c.first_seen, last: c.last_seen };
            self.max(sources.intern(c.source), c.side, &Arc::new(seen));
        }
    }

    /// Takes out what a source counted.
    pub(crate) fn forget(&mut self, source: &Arc<Source>) {
        if self.iter().any(|(of, ..)| of == source) {
            let mut all = self.take();
            all.retain(|((of, _), _)| of != source);
            *self = all.into();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<Source>, Side, &Seen)> {
        let (one, many) = match self {
            Self::Nothing => (None, &[][..]),
            Self::One { source, side, seen } => (Some((source, *side, &**seen)), &[][..]),
            Self::Many(all) => (None, &**all),
        };
        one.into_iter().chain(many.iter().map(|((source, side), seen)| (source, *side, &**seen)))
    }

    /// The sum over sources at one side.
    pub(crate) fn at(&self, side: Side) -> Option<Seen> {
        sum(self.iter().filter(|(_, s, _)| *s == side))
    }

    /// The sum over all.
    pub(crate) fn total(&self) -> Option<Seen> {
        sum(self.iter())
    }
}

/// The sum over sources, which come sorted. A connection that is open over many epochs of an agent
/// is one.
fn sum<'a>(counted: impl Iterator<Item = (&'a Arc<Source>, Side, &'a Seen)>) -> Option<Seen> {
    let mut total: Option<Seen> = None;
    let mut open = 0u32;
    let mut of_agent: Option<((&str, &str, Side), u32)> = None;
    for (source, side, seen) in counted {
        total = Seen::sum(total, Some(*seen));
        let agent = (source.node.as_str(), source.instance.as_str(), side);
        match &mut of_agent {
            Some((known, greatest)) if *known == agent => *greatest = (*greatest).max(seen.counts.open),
            _ => {
                open = open.saturating_add(of_agent.map_or(0, |(_, greatest)| greatest));
                of_agent = Some((agent, seen.counts.open));
            }
        }
    }
    open = open.saturating_add(of_agent.map_or(0, |(_, greatest)| greatest));
    let mut total = total?;
    total.counts.open = open;
    Some(total)
}

impl Counts {
    fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        let short = |a: u32, b: u32| u32::try_from(f(a.into(), b.into())).unwrap_or(u32::MAX);
        Self {
            opened: f(self.opened, other.opened),
            found: short(self.found, other.found),
            open: short(self.open, other.open),
            refused: f(self.refused, other.refused),
            unanswered: f(self.unanswered, other.unanswered),
            unreachable: short(self.unreachable, other.unreachable),
            broken: short(self.broken, other.broken),
            bytes_sent: f(self.bytes_sent, other.bytes_sent),
            bytes_received: f(self.bytes_received, other.bytes_received),
        }
    }

    /// The greater of each number.
    #[must_use]
    pub fn max(&self, other: &Self) -> Self {
        self.zip(other, u64::max)
    }

    /// The sums.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// Whether there was a connection, or a datagram sent.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.established() > 0 || self.open > 0
    }

    /// Whether there was at least an attempt.
    pub(crate) fn is_seen(&self) -> bool {
        self.is_established() || self.failed() > 0
    }

    /// Connections that came about, or datagrams sent.
    #[must_use]
    pub fn established(&self) -> u64 {
        self.opened.saturating_add(self.found.into())
    }

    /// Attempts that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.refused.saturating_add(self.unanswered).saturating_add(self.unreachable.into())
    }
}

/// Facts of a service flow.
#[derive(Clone, Debug, Default)]
pub(crate) struct FlowFacts {
    pub(crate) marks: BTreeSet<String>,
    pub(crate) node_workloads: BTreeSet<String>,
    pub(crate) sources: BySource,
    /// As [`ServiceFlow::backend_unknown`]: follows from the others.
    pub(crate) backend_unknown: Option<Interval>,
}

/// `(end on the agent's node, which end that is, address of the other, protocol, port, whether a
/// proxy took it and nobody here knows what it dialled)`.
pub(crate) type RemoteKey = (Arc<Peer>, Side, IpAddr, Protocol, u16, bool);

/// Facts of a remote flow.
#[derive(Clone, Debug, Default)]
pub(crate) struct RemoteFacts {
    pub(crate) port_name: Option<Arc<str>>,
    pub(crate) flow: FlowFacts,
    /// As [`RemoteFlow::may_be`]: follows from the others.
    pub(crate) may_be: Option<BTreeSet<Arc<Peer>>>,
}

/// The pods of one node by workload.
pub(crate) type PodsOfNode = BTreeMap<WorkloadRef, Vec<PodEntry>>;

pub(crate) type PortKey = (u16, String, Option<String>, Option<u16>);
/// `(address, port, peer, node, from)`.
pub(crate) type BackendKey = (IpAddr, u16, Arc<Peer>, Option<Arc<str>>, Option<Timestamp>);
/// Endpoints with their end.
pub(crate) type Backends = BTreeMap<BackendKey, Option<Timestamp>>;

/// `(address, from, owner, pod)`.
pub(crate) type TenureKey = (IpAddr, Option<Timestamp>, Arc<Peer>, Option<String>);

/// What is known of a tenure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KnownTenure {
    /// Its end; `None`: not known to have ended.
    pub(crate) to: Option<Timestamp>,
    /// [`AddressEntry::heard`]; [`NEVER`]: by nobody who observed at any time.
    pub(crate) heard: Interval,
    /// [`AddressEntry::proven`].
    pub(crate) proven: bool,
    /// [`AddressEntry::listed`].
    pub(crate) listed: Option<bool>,
}

impl KnownTenure {
    fn join(&mut self, other: Self) {
        self.to = earlier_end(self.to, other.to);
        self.heard = hull([self.heard, other.heard]);
        self.proven |= other.proven;
        self.listed = self.listed.max(other.listed);
    }
}

/// Facts of a Service: its latest description without ports, and every port and endpoint it ever
/// had.
#[derive(Clone, Debug)]
pub(crate) struct ServiceFacts {
    pub(crate) base: ServiceEntry,
    pub(crate) ports: BTreeMap<PortKey, Backends>,
}

/// Services by namespace and name.
pub(crate) type Services = BTreeMap<(String, String), Arc<ServiceFacts>>;

/// All facts of one or many snapshots.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Flows outside of it were left out.
    pub(crate) span: Span,
    pub(crate) sources: BTreeSet<Arc<Source>>,
    /// When each source observed; without an entry, in all of its node's window.
    pub(crate) source_windows: BTreeMap<Arc<Source>, Interval>,
    pub(crate) window: BTreeMap<String, Vec<Interval>>,
    /// As [`Window::steps`]: whoever says it, it goes with nobody.
    ///
    /// [`Window::steps`]: super::Window::steps
    pub(crate) steps: BTreeMap<String, Vec<Interval>>,
    /// The same of sources that came alone: it goes with them.
    pub(crate) observed_by: BTreeMap<Arc<Source>, Vec<Interval>>,
    pub(crate) revisions: BTreeMap<Arc<Source>, Revision>,
    pub(crate) observed: BTreeSet<String>,
    pub(crate) expected: BTreeSet<String>,
    pub(crate) unobservable: BTreeMap<String, String>,
    /// When nodes were there. What is expected beside these has no times.
    pub(crate) nodes: Nodes,
    /// The same at all times, where there is a span.
    pub(super) uncut_nodes: Nodes,
    /// Those as peers, by name.
    pub(super) node_peers: BTreeMap<String, Arc<Peer>>,
    pub(crate) losses: BTreeMap<(Arc<Source>, String), (LossClass, u64)>,
    /// When those were; `None`: nobody knows.
    pub(crate) loss_times: BTreeMap<(Arc<Source>, String), Option<LossTimes>>,
    pub(crate) witnesses: Witnesses,
    pub(crate) pods: Pods,
    pub(crate) unresolved: BTreeMap<(Arc<Source>, String), Unresolved>,
    pub(crate) incomplete: BTreeMap<Arc<Peer>, BTreeSet<String>>,
    pub(crate) workloads: BTreeMap<WorkloadRef, WorkloadFacts>,
    pub(crate) label_changes: BTreeMap<WorkloadRef, ChangedLabels>,
    /// Nodes that hosted pods of workloads, with the last time that was known.
    pub(crate) ran_on: BTreeMap<WorkloadRef, BTreeMap<String, Timestamp>>,
    pub(crate) inventory: Option<InventoryState>,
    pub(crate) services: Services,
    pub(crate) addresses: BTreeMap<TenureKey, KnownTenure>,
    pub(crate) service_flows: BTreeMap<FlowKey, FlowFacts>,
    pub(crate) remote_flows: BTreeMap<RemoteKey, RemoteFacts>,
    /// Pods of nodes whose agents know only those, and when that was so.
    pub(crate) own_pods: BTreeMap<String, (Timestamp, PodsOfNode)>,
    /// Workloads of which such an agent has a host-network pod.
    pub(crate) host_network: BTreeSet<WorkloadRef>,
    /// In no order before [`Facts::document`].
    pub(crate) edges: IndexMap<EdgeKey, EdgeFacts>,
    pub(super) peers: Interner<Peer>,
    pub(super) counters: Interner<Source>,
    pub(super) words: Interner<str>,
    pub(super) workload_names: Interner<WorkloadRef>,
}

/// A known end wins over an open one.
fn earlier_end(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Keeps the later of two descriptions; of two as of one time the greater text, so that the order
/// of joining plays no part.
pub(super) fn keep_later<T: serde::Serialize + PartialEq>(kept: &mut T, other: T, as_of: impl Fn(&T) -> Timestamp) {
    let text = |v: &T| serde_json::to_string(v).unwrap_or_default();
    if *kept != other && (as_of(&other), text(&other)) > (as_of(kept), text(kept)) {
        *kept = other;
    }
}

/// Whether a workload's reason of incompleteness is computed from facts.
pub(crate) fn is_computed(reason: &str) -> bool {
    OF_NODES.iter().any(|computed| reason.starts_with(computed))
        || UnresolvedReason::DERIVED.iter().any(|derived| derived.as_str() == reason)
}

impl Facts {
    /// Joins the facts of a snapshot.
    pub(crate) fn add(&mut self, mut snapshot: Snapshot) {
        self.settle_revisions(&mut snapshot.body);
        for (source, window) in snapshot.body.windows_of_sources() {
            let known = self.source_windows.entry(self.counters.intern(source)).or_insert(window);
            *known = hull([*known, window]);
        }
        let Body {
            facts: _,
            sources,
            window,
            source_windows: _,
            revisions: _,
            coverage,
            mut workloads,
            label_changes,
            services,
            addresses,
            service_flows,
            remote_flows,
            own_pods_as_of,
            witnesses,
            presence,
            nodes,
            edges,
        } = snapshot.body;
        self.add_presence(witnesses, presence);
        self.take_own_pods(own_pods_as_of, &mut workloads);
        self.add_nodes(nodes, coverage.nodes);
        let mut own = sources.first().cloned().filter(|_| sources.len() == 1);
        self.sources.extend(sources.into_iter().map(|source| self.counters.intern(source)));
        let all_of_it = hull(window.nodes.values().flatten().copied());
        for (node, steps) in window.steps {
            self.steps.entry(node).or_default().extend(steps);
        }
        for (node, intervals) in window.nodes {
            match own.take_if(|source| source.node == node) {
                Some(own) => self.observed_by.entry(self.counters.intern(own)).or_default().extend(intervals),
                None => self.window.entry(node).or_default().extend(intervals),
            }
        }
        for loss in coverage.losses.into_iter().filter(|l| l.count > 0) {
            self.add_loss_times(&loss.source, &loss.reason, loss.times);
            let kept = self.losses.entry((loss.source.into(), loss.reason)).or_insert((loss.class, 0));
            *kept = (kept.0.max(loss.class), kept.1.max(loss.count));
        }
        self.add_unresolved(coverage.unresolved);
        for entry in coverage.workloads {
            let reasons = entry.reasons.into_iter();
            let raw: Vec<_> = reasons.filter(|reason| !is_computed(reason)).collect();
            if !raw.is_empty() {
                let peer = self.peers.intern(entry.peer);
                self.incomplete.entry(peer).or_default().extend(raw);
            }
        }
        self.inventory = InventoryState::joined(self.inventory, coverage.inventory);
        self.add_workloads(workloads, label_changes);
        for entry in services {
            self.add_service(entry);
        }
        for AddressEntry { address, from, to, peer, pod, heard, proven, listed } in addresses {
            let known = KnownTenure { to, heard: heard.unwrap_or(all_of_it), proven, listed };
            let key = (address, from, self.peers.intern(peer), pod);
            self.addresses.entry(key).and_modify(|kept| kept.join(known)).or_insert(known);
        }
        // What follows from these is derived anew: more facts may take it back.
        let derived_via: BTreeSet<(Peer, String, Protocol)> =
            service_flows.iter().map(|flow| (flow.client.clone(), flow.service.clone(), flow.protocol)).collect();
        for flow in service_flows {
            let key = (self.peers.intern(flow.client), flow.service.into(), flow.protocol, flow.port);
            let facts = self.service_flows.entry(key).or_default();
            facts.marks.extend(flow.marks);
            facts.node_workloads.extend(flow.node_workloads);
            facts.sources.add(&mut self.counters, flow.sources);
        }
        for mut flow in remote_flows {
            let untold = flow.marks.remove(marks::REDIRECTED);
            let key = (self.peers.intern(flow.local), flow.side, flow.address, flow.protocol, flow.port, untold);
            let facts = self.remote_flows.entry(key).or_default();
            facts.port_name = facts.port_name.take().max(flow.port_name.map(Arc::from));
            facts.flow.marks.extend(flow.marks);
            facts.flow.node_workloads.extend(flow.node_workloads);
            facts.flow.sources.add(&mut self.counters, flow.sources);
        }
        for mut edge in edges {
            if !edge.sources.is_empty() && !edge.via.is_empty() {
                let is_derived =
                    |via: &String| derived_via.contains(&(Peer::clone(&edge.client.peer), via.clone(), edge.protocol));
                edge.via.retain(|via| !is_derived(via));
            }
            self.add_edge(edge);
        }
    }

    pub(crate) fn add_service(&mut self, mut entry: ServiceEntry) {
        let ports = std::mem::take(&mut entry.ports);
        let key = (entry.namespace.clone(), entry.name.clone());
        let mut facts = match self.services.remove(&key) {
            None => ServiceFacts { base: entry, ports: BTreeMap::new() },
            Some(known) => {
                let mut facts = Arc::unwrap_or_clone(known);
                keep_later(&mut facts.base, entry, |s| s.as_of);
                facts
            }
        };
        for port in ports {
            let backends = facts.ports.entry((port.port, port.protocol, port.name, port.node_port)).or_default();
            for BackendEntry { address, port, peer, node, from, to } in port.backends {
                backends
                    .entry((address, port, self.peers.intern(peer), node.map(Arc::from), from))
                    .and_modify(|kept| *kept = earlier_end(*kept, to))
                    .or_insert(to);
            }
        }
        self.services.insert(key, Arc::new(facts));
    }

    fn add_edge(&mut self, edge: EdgeRecord) {
        let derived = edge.marks.contains(marks::INFERRED) || edge.marks.contains(marks::VIA_SERVICE);
        if edge.sources.is_empty() && derived || !edge.sources.is_empty() && edge.sources.iter().all(|s| s.by_merge) {
            return;
        }
        let [client, server] = [edge.client.peer, edge.server.peer].map(|peer| (&self.peers.intern(peer)).into());
        let key = (client, server, edge.protocol, edge.port);
        let facts = self.edges.entry(key).or_default();
        if !facts.gives_way(marks::set_aside(&edge.marks)) {
            return;
        }
        facts.port_name = facts.port_name.take().max(edge.port_name.map(Arc::from));
        let marks: BTreeSet<String> =
            edge.marks.into_iter().filter(|m| !marks::DERIVED.contains(&m.as_str())).collect();
        let sets = [&edge.client.names, &edge.server.names, &edge.via, &marks, &edge.node_workloads];
        if sets.iter().any(|set| !set.is_empty()) {
            let rare = facts.rare_mut();
            rare.client_names.extend(edge.client.names);
            rare.server_names.extend(edge.server.names);
            rare.via.extend(edge.via);
            rare.marks.extend(marks);
            rare.node_workloads.extend(edge.node_workloads);
        }
        if edge.sources.is_empty() {
            let seen = Seen { counts: edge.counts, first: edge.first_seen, last: edge.last_seen };
            match &mut facts.rare_mut().without_sources {
                Some((kept, sides, supported)) => {
                    kept.max(&seen);
                    sides.extend(edge.seen_by);
                    *supported |= edge.supported;
                }
                without_sources @ None => *without_sources = Some((seen, edge.seen_by, edge.supported)),
            }
        }
        facts.sources.add(&mut self.counters, edge.sources);
    }
}

/// Counts as they stand in a snapshot.
pub(super) fn source_counts(sources: &BySource, by_merge: bool) -> impl Iterator<Item = SourceCounts> + '_ {
    sources.iter().map(move |(source, side, seen)| SourceCounts {
        source: Arc::clone(source),
        side,
        counts: seen.counts,
        first_seen: seen.first,
        last_seen: seen.last,
        by_merge,
    })
}
