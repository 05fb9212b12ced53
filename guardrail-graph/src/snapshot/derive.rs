//! From facts to a snapshot: edges behind Services, support, marks and completeness.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    AddressEntry, BackendEntry, Body, Counts, Coverage, EdgePeer, EdgeRecord, Interval, LossEntry, NodeCoverage,
    ServiceFlow, ServicePortEntry, Side, Snapshot, Source, SourceCounts, UnresolvedEntry, Window, WorkloadCoverage,
    facts::{EdgeFacts, EdgeKey, Facts, FlowFacts, FlowKey, MAX_EXAMPLES, NODE_UNOBSERVED, Seen, WINDOW_GAP},
    marks,
    remote::Owners,
};
use crate::{
    observe::LossClass,
    observer::UnresolvedReason,
    peer::{Peer, Protocol, WorkloadRef},
    time::Timestamp,
};

/// An endpoint counts for a flow if it was one within this much of the flow's time: the API server's word comes late, and a terminating
/// endpoint still serves.
const ENDPOINT_SLACK: std::time::Duration = std::time::Duration::from_secs(30);

/// What Services add to an edge.
#[derive(Debug, Default)]
struct Derived {
    /// Counts of service flows that can only be this edge's.
    extra: Option<Seen>,
    /// How those counts came to be this edge's.
    marks: BTreeSet<&'static str>,
    /// What flows contribute whose backend a server-side record shows. More facts never take this back, so it may stand in the edge for good.
    certain: Inherited,
    /// What flows contribute by inference: shown only in edges that have no record of their own.
    inferred: Inherited,
}

/// What an edge takes over from service flows.
#[derive(Debug, Default)]
struct Inherited {
    via: BTreeSet<String>,
    marks: BTreeSet<String>,
    node_workloads: BTreeSet<String>,
}

impl Inherited {
    fn take(&mut self, other: Self) {
        self.via.extend(other.via);
        self.marks.extend(other.marks);
        self.node_workloads.extend(other.node_workloads);
    }
}

/// Where a Service port leads, as far as it concerns a flow.
struct Target {
    peer: Peer,
    port: u16,
    /// Some endpoint of it is on a node that nobody observed.
    unobserved: bool,
    /// It was an endpoint at the time of the flow.
    current: bool,
}

pub(super) struct Deriver<'a> {
    pub(super) facts: &'a Facts,
    /// Who had the addresses that only `merge` can name.
    pub(super) owners: Owners<'a>,
    derived: BTreeMap<EdgeKey, Derived>,
    unresolved: BTreeMap<(Source, String), (u64, BTreeSet<String>)>,
    pub(super) incomplete: BTreeMap<Peer, BTreeSet<String>>,
}

impl Facts {
    /// The snapshot that follows from these facts.
    pub(crate) fn finish(mut self) -> Snapshot {
        self.observed.extend(self.sources.iter().map(|s| s.node.clone()));
        self.expected.extend(self.observed.iter().cloned());
        for intervals in self.window.values_mut() {
            *intervals = joined(std::mem::take(intervals));
        }
        self.place_own_pods();
        self.name_remote_flows();
        let mut deriver = Deriver {
            facts: &self,
            owners: Owners::of(&self),
            derived: BTreeMap::new(),
            unresolved: self.unresolved.clone(),
            incomplete: self.incomplete.clone(),
        };
        for (key, flow) in &self.service_flows {
            deriver.service_flow(key, flow);
        }
        deriver.unnamed_flows();
        deriver.coverage_of_nodes();
        let Deriver { derived, unresolved, incomplete, .. } = deriver;
        let edges = self.edges(derived);
        let coverage = self.coverage(unresolved, incomplete);
        self.document(edges, coverage)
    }

    fn edges(&self, mut derived: BTreeMap<EdgeKey, Derived>) -> Vec<EdgeRecord> {
        let mut edges: Vec<EdgeRecord> = Vec::with_capacity(self.edges.len() + derived.len());
        for (key, facts) in &self.edges {
            let extra = derived.remove(key).unwrap_or_default();
            edges.push(self.edge(key, facts, extra));
        }
        let none = EdgeFacts::default();
        edges.extend(
            derived.into_iter().filter(|(_, d)| d.extra.is_some()).map(|(key, extra)| self.edge(&key, &none, extra)),
        );
        edges.sort_by(|a, b| {
            (&a.client, &a.server, a.protocol, a.port).cmp(&(&b.client, &b.server, b.protocol, b.port))
        });
        edges
    }

    fn edge(&self, key: &EdgeKey, facts: &EdgeFacts, derived: Derived) -> EdgeRecord {
        let (client, server, protocol, port) = key;
        let side = |side: Side| {
            facts.seen().filter(|((_, s), _)| *s == side).map(|(_, seen)| *seen).reduce(|mut a, b| {
                a.add(&b);
                a
            })
        };
        let own_client = side(Side::Client);
        let at_server = side(Side::Server);
        // Numbers without a source count only as long as there are none with one: else joining would depend on the order.
        let bare = facts.bare.as_ref().filter(|_| facts.is_unseen());
        let bare_support = bare.is_some_and(|b| b.2);
        let own_support = self.supported(key, own_client, at_server);
        let mut at_client = own_client;
        if let Some(extra) = derived.extra.filter(|_| bare.is_none()) {
            match &mut at_client {
                Some(seen) => seen.add(&extra),
                None => at_client = Some(extra),
            }
        }
        let total = [at_client, at_server, bare.map(|b| b.0)].into_iter().flatten().reduce(|mut a, b| {
            a.max(&b);
            a
        });
        // An edge without any count cannot exist: it is made of at least one of the three.
        let total = total.unwrap_or(Seen {
            counts: Counts::default(),
            first: Timestamp::default(),
            last: Timestamp::default(),
        });
        let mut inherited = derived.certain;
        if facts.is_unseen() && bare.is_none() {
            inherited.take(derived.inferred);
        }
        let mut seen_by: BTreeSet<Side> = facts.seen().map(|((_, side), _)| *side).collect();
        if !inherited.via.is_empty() {
            seen_by.insert(Side::Client);
        }
        let mut all_marks: BTreeSet<String> =
            facts.marks.iter().chain(&facts.by_merge.marks).chain(&inherited.marks).cloned().collect();
        // A record of its own makes an edge certain, whatever Services say.
        if own_support == Support::No && bare.is_none() {
            all_marks.extend(derived.marks.iter().map(|m| (*m).to_owned()));
        }
        if total.counts.found > 0 {
            all_marks.insert(marks::FOUND_AT_START.to_owned());
        }
        let mut supported = self.supported(key, at_client, at_server);
        if let Support::OneWay = supported {
            all_marks.insert(marks::ONE_WAY.to_owned());
        }
        if let Some((_, sides, _)) = bare {
            seen_by.extend(sides);
        }
        if bare_support {
            supported = Support::Yes;
        }
        if all_marks.iter().any(|m| marks::NEVER_SUPPORTED.contains(&m.as_str())) {
            supported = Support::No;
            all_marks.remove(marks::ONE_WAY);
        }
        EdgeRecord {
            client: EdgePeer { peer: client.clone(), names: facts.client_names.clone() },
            server: EdgePeer { peer: server.clone(), names: facts.server_names.clone() },
            protocol: *protocol,
            port: *port,
            port_name: if facts.is_unseen() && facts.bare.is_none() {
                self.port_name(server, *protocol, *port)
            } else {
                facts.port_name.clone().max(facts.by_merge.port_name.clone())
            },
            via: facts.via.union(&inherited.via).cloned().collect(),
            seen_by,
            counts: total.counts,
            first_seen: total.first,
            last_seen: total.last,
            supported: supported != Support::No,
            marks: all_marks,
            node_workloads: [&facts.node_workloads, &facts.by_merge.node_workloads, &inherited.node_workloads]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            sources: {
                let own = source_counts(&facts.sources, false);
                let mut all: Vec<_> = own.chain(source_counts(&facts.by_merge.sources, true)).collect();
                all.sort_by(|a, b| (&a.source, a.side, a.by_merge).cmp(&(&b.source, b.side, b.by_merge)));
                all
            },
        }
    }

    fn supported(&self, key: &EdgeKey, at_client: Option<Seen>, at_server: Option<Seen>) -> Support {
        let counts = |seen: Option<Seen>| seen.map(|s| s.counts).unwrap_or_default();
        let (client, server) = (counts(at_client), counts(at_server));
        let yes = match key.2 {
            Protocol::Tcp => client.established() > 0 || server.established() > 0,
            Protocol::Udp => server.established() > 0 || (client.bytes_sent > 0 && client.bytes_received > 0),
        };
        if yes {
            return Support::Yes;
        }
        let sent_in_vain = client.refused > 0 || client.unreachable > 0;
        if key.2 == Protocol::Udp && client.established() >= 2 && !sent_in_vain && !self.is_observed(&key.1) {
            return Support::OneWay;
        }
        Support::No
    }

    /// Whether a server's own side would have been seen.
    fn is_observed(&self, peer: &Peer) -> bool {
        match peer {
            Peer::External { .. } => false,
            Peer::Node { name } => self.observed.contains(name),
            Peer::Workload(workload) => self.all_nodes_observed(workload),
        }
    }

    fn all_nodes_observed(&self, workload: &WorkloadRef) -> bool {
        // Where each agent knows its own node's pods only, a node without an agent may host some.
        if !self.own_pods.is_empty() && !self.expected.is_subset(&self.observed) {
            return false;
        }
        self.workloads
            .get(workload)
            .is_none_or(|w| w.pods.keys().all(|node| node.is_empty() || self.observed.contains(node)))
    }

    /// The one name that the server's pods give the port.
    fn port_name(&self, server: &Peer, protocol: Protocol, port: u16) -> Option<String> {
        let entry = self.workloads.get(server.workload()?)?;
        let protocol = protocol.to_string();
        let mut names = entry
            .pods
            .values()
            .flatten()
            .flat_map(|p| &p.ports)
            .filter(|p| p.port == port && p.protocol == protocol)
            .map(|p| &p.name);
        let first = names.next()?;
        names.all(|n| n == first).then(|| first.clone())
    }

    fn coverage(
        &self,
        unresolved: BTreeMap<(Source, String), (u64, BTreeSet<String>)>,
        incomplete: BTreeMap<Peer, BTreeSet<String>>,
    ) -> Coverage {
        let lost = self.losses.values().any(|(class, count)| *class == LossClass::Edge && *count > 0);
        let gap = self.window.values().any(|intervals| intervals.len() > 1);
        Coverage {
            complete: !lost && !gap && self.expected.is_subset(&self.observed) && incomplete.is_empty(),
            nodes: NodeCoverage { observed: self.observed.clone(), expected: self.expected.clone() },
            losses: self
                .losses
                .iter()
                .filter(|(_, (_, count))| *count > 0)
                .map(|((source, reason), (class, count))| LossEntry {
                    source: source.clone(),
                    reason: reason.clone(),
                    class: *class,
                    count: *count,
                })
                .collect(),
            unresolved: unresolved
                .into_iter()
                .filter(|(_, (count, _))| *count > 0)
                .map(|((source, reason), (count, examples))| UnresolvedEntry { source, reason, count, examples })
                .collect(),
            workloads: incomplete
                .into_iter()
                .map(|(peer, reasons)| WorkloadCoverage { peer, complete: false, reasons })
                .collect(),
        }
    }

    fn document(self, edges: Vec<EdgeRecord>, coverage: Coverage) -> Snapshot {
        let times = || self.window.values().flatten();
        let window =
            Window { from: times().map(|i| i.from).min(), to: times().map(|i| i.to).max(), nodes: self.window.clone() };
        let services = self.services.into_values().map(|facts| {
            let mut entry = facts.base;
            entry.ports = facts
                .ports
                .into_iter()
                .map(|((port, protocol, name, node_port), backends)| ServicePortEntry {
                    port,
                    protocol,
                    name,
                    node_port,
                    backends: backends
                        .into_iter()
                        .map(|((address, port, peer, node, from), to)| BackendEntry {
                            address,
                            port,
                            peer,
                            node,
                            from,
                            to,
                        })
                        .collect(),
                })
                .collect();
            entry
        });
        let mut snapshot = Snapshot::empty();
        snapshot.body = Body {
            sources: self.sources,
            window,
            coverage,
            workloads: self.workloads.into_values().collect(),
            services: services.collect(),
            addresses: self
                .addresses
                .into_iter()
                .map(|((address, from, peer, pod), (to, proven))| AddressEntry { address, from, to, peer, pod, proven })
                .collect(),
            service_flows: self
                .service_flows
                .into_iter()
                .map(|((client, service, protocol, port), f)| ServiceFlow {
                    client,
                    service,
                    protocol,
                    port,
                    marks: f.marks,
                    node_workloads: f.node_workloads,
                    sources: source_counts(&f.sources, false).collect(),
                })
                .collect(),
            remote_flows: Self::remote_entries(self.remote_flows),
            own_pods_as_of: self.own_pods.into_iter().map(|(node, (at, _))| (node, at)).collect(),
            edges,
        };
        snapshot
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Support {
    Yes,
    OneWay,
    No,
}

pub(super) fn source_counts(
    sources: &BTreeMap<(Source, Side), Seen>,
    by_merge: bool,
) -> impl Iterator<Item = SourceCounts> + '_ {
    sources.iter().map(move |((source, side), seen)| SourceCounts {
        source: source.clone(),
        side: *side,
        counts: seen.counts,
        first_seen: seen.first,
        last_seen: seen.last,
        by_merge,
    })
}

/// Sorted, disjoint intervals; those that overlap or touch become one.
fn joined(mut intervals: Vec<Interval>) -> Vec<Interval> {
    intervals.sort_unstable();
    let mut out: Vec<Interval> = Vec::with_capacity(intervals.len());
    for next in intervals {
        match out.last_mut() {
            Some(last) if next.from <= last.to => last.to = last.to.max(next.to),
            _ => out.push(next),
        }
    }
    out
}

impl Deriver<'_> {
    /// The edges behind a client's use of a Service (DESIGN §4 "Virtual addresses").
    fn service_flow(&mut self, key: &FlowKey, flow: &FlowFacts) {
        let (client, service, protocol, port) = key;
        let total = flow.sources.values().copied().reduce(|mut a, b| {
            a.add(&b);
            a
        });
        let Some(total) = total else { return };
        let targets = self.targets(service, *protocol, *port, &total);
        let edge_key = |t: &Target| (client.clone(), t.peer.clone(), *protocol, t.port);
        let answered = match protocol {
            Protocol::Tcp => total.counts.established() > 0,
            Protocol::Udp => total.counts.bytes_received > 0,
        };
        let single = targets.iter().filter(|t| t.current).count() == 1;
        let mut resolved = false;
        for target in &targets {
            let key = edge_key(target);
            let external = matches!(target.peer, Peer::External { .. });
            if self.server_saw(&key) {
                self.attach(key, service, flow, (single && target.current).then_some(total), None);
                resolved = true;
            } else if target.current && total.counts.established() > 0 && (external || target.unobserved) {
                let mark = if external { marks::VIA_SERVICE } else { marks::INFERRED };
                self.attach(key, service, flow, Some(total), Some(mark));
                resolved = true;
            }
        }
        let targets: Vec<&Target> = targets.iter().filter(|t| t.current).collect();
        if !resolved && answered {
            // The server's node may have seen a node's address in the client's place.
            let masqueraded: Vec<_> =
                targets.iter().filter(|t| self.a_node_reached(t, *protocol)).map(|t| edge_key(t)).collect();
            let hairpin = targets.iter().any(|t| t.peer == *client);
            for key in &masqueraded {
                self.attach(key.clone(), service, flow, Some(total), Some(marks::INFERRED));
                if let Some(derived) = self.derived.get_mut(key) {
                    derived.marks.insert(marks::MASQUERADED);
                }
            }
            // A pod that reached itself leaves no edge.
            if masqueraded.is_empty() && !hairpin {
                self.count(key, flow, UnresolvedReason::ServiceBackendUnknown, Counts::established);
                self.incomplete
                    .entry(client.clone())
                    .or_default()
                    .insert(UnresolvedReason::ServiceBackendUnknown.as_str().to_owned());
            }
        }
        if total.counts.failed() > 0 && !(single && resolved) {
            // Only where one workload stands behind the port is it known whom the attempt was for.
            match &targets[..] {
                [only] if only.peer != *client => {
                    let mut failed = total;
                    failed.counts = Counts { opened: 0, found: 0, bytes_sent: 0, bytes_received: 0, ..total.counts };
                    self.attach(edge_key(only), service, flow, Some(failed), Some(marks::VIA_SERVICE));
                }
                _ => self.count(key, flow, UnresolvedReason::ServiceAttemptFailed, Counts::failed),
            }
        }
    }

    /// Adds a flow to the edge behind it; without a `mark` a server-side record shows that it is this one.
    fn attach(
        &mut self,
        key: EdgeKey,
        service: &str,
        flow: &FlowFacts,
        extra: Option<Seen>,
        mark: Option<&'static str>,
    ) {
        let derived = self.derived.entry(key).or_default();
        let inherited = if mark.is_none() { &mut derived.certain } else { &mut derived.inferred };
        inherited.via.insert(service.to_owned());
        inherited.marks.extend(flow.marks.iter().cloned());
        inherited.node_workloads.extend(flow.node_workloads.iter().cloned());
        derived.marks.extend(mark);
        if let Some(extra) = extra {
            match &mut derived.extra {
                Some(seen) => seen.add(&extra),
                None => derived.extra = Some(extra),
            }
        }
    }

    fn count(&mut self, key: &FlowKey, flow: &FlowFacts, reason: UnresolvedReason, number: impl Fn(&Counts) -> u64) {
        let (client, service, protocol, _) = key;
        for ((source, _), seen) in &flow.sources {
            self.count_at(source, reason, number(&seen.counts), format!("{client} -> {service}/{protocol}"));
        }
    }

    pub(super) fn count_at(&mut self, source: &Source, reason: UnresolvedReason, number: u64, example: String) {
        let entry = self.unresolved.entry((source.clone(), reason.as_str().to_owned())).or_default();
        entry.0 = entry.0.saturating_add(number);
        entry.1.insert(example);
        while entry.1.len() > MAX_EXAMPLES {
            entry.1.pop_last();
        }
    }

    /// Whether the server's own node recorded this edge.
    fn server_saw(&self, key: &EdgeKey) -> bool {
        self.facts
            .edges
            .get(key)
            .is_some_and(|e| e.seen().any(|((_, side), seen)| *side == Side::Server && seen.counts.established() > 0))
    }

    fn a_node_reached(&self, target: &Target, protocol: Protocol) -> bool {
        self.facts.expected.iter().any(|node| {
            self.server_saw(&(Peer::Node { name: node.clone() }, target.peer.clone(), protocol, target.port))
        })
    }

    fn targets(&self, service: &str, protocol: Protocol, port: u16, flow: &Seen) -> Vec<Target> {
        let name = service.rsplit_once(':').map_or(service, |(name, _)| name);
        let Some((namespace, name)) = name.split_once('/') else { return Vec::new() };
        let Some(facts) = self.facts.services.get(&(namespace.to_owned(), name.to_owned())) else { return Vec::new() };
        let protocol = protocol.to_string();
        let all = || {
            facts
                .ports
                .iter()
                .filter(|((p, proto, ..), _)| *p == port && *proto == protocol)
                .flat_map(|(_, backends)| backends)
        };
        let at_that_time = |from: &Option<Timestamp>, to: &Option<Timestamp>| {
            from.is_none_or(|f| f.before(ENDPOINT_SLACK) <= flow.last)
                && to.is_none_or(|t| t.after(ENDPOINT_SLACK) >= flow.first)
        };
        let mut targets: BTreeMap<(&Peer, u16), (bool, bool)> = BTreeMap::new();
        for ((address, port, peer, node, from), to) in all() {
            // A pod of a node that the agent knew nothing of but its name.
            let elsewhere = !self.facts.own_pods.is_empty() && node.is_some() && matches!(peer, Peer::External { .. });
            let peers =
                if elsewhere { self.owners.between(*address, flow.first, flow.last) } else { BTreeSet::from([peer]) };
            for peer in peers {
                let unobserved = match (node, peer) {
                    (Some(node), Peer::Workload(_)) => !self.facts.observed.contains(node),
                    _ => !self.facts.is_observed(peer),
                };
                let current = at_that_time(from, to);
                let target = targets.entry((peer, *port)).or_default();
                *target = (target.0 | (unobserved && current), target.1 | current);
            }
        }
        targets
            .into_iter()
            .map(|((peer, port), (unobserved, current))| Target { peer: peer.clone(), port, unobserved, current })
            .collect()
    }

    /// Workloads on nodes that nobody watched, or not all the time.
    fn coverage_of_nodes(&mut self) {
        let gaps: BTreeSet<&String> =
            self.facts.window.iter().filter(|(_, i)| i.len() > 1).map(|(node, _)| node).collect();
        for (name, workload) in &self.facts.workloads {
            for node in workload.pods.keys().filter(|n| !n.is_empty()) {
                let reason = if !self.facts.observed.contains(node) {
                    NODE_UNOBSERVED
                } else if gaps.contains(node) {
                    WINDOW_GAP
                } else {
                    continue;
                };
                self.incomplete.entry(Peer::Workload(name.clone())).or_default().insert(format!("{reason}{node}"));
            }
        }
        for node in gaps {
            self.incomplete.entry(Peer::Node { name: node.clone() }).or_default().insert(format!("{WINDOW_GAP}{node}"));
        }
    }
}
