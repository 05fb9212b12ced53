//! From facts to a document: edges behind Services, support, marks and completeness.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Counts, Coverage, EdgePeer, EdgeRecord, Interval, InventoryState, LossEntry, NodeCoverage, Side, Source,
    WorkloadCoverage,
    behind::{ENDPOINT_SLACK, Evidence, behind},
    facts::{EdgeFacts, EdgeKey, Facts, FlowKey, RemoteKey, Seen, Services, source_counts},
    intervals::hull,
    marks,
    owners::Owners,
    unresolved::Unresolved,
};
use crate::{
    observe::LossClass,
    peer::{CompactPeer, Peer, Protocol, WorkloadRef},
    time::Timestamp,
    unresolved::UnresolvedReason,
};

/// What Services add to an edge.
#[derive(Debug, Default)]
pub(super) struct Derived {
    /// Counts of service flows that can only be this edge's.
    pub(super) extra: Option<Seen>,
    /// How those counts came to be this edge's.
    marks: BTreeSet<&'static str>,
    /// Flows whose backend a server-side record shows. More facts never take this back, so their
    /// marks may stand in the edge for good.
    certain: Vec<FlowKey>,
    /// Flows that are this edge's by inference: an edge with a record of its own takes over the
    /// Service's name and the counts, others all they have.
    inferred: Vec<FlowKey>,
}

/// What an edge takes over from service flows.
#[derive(Debug, Default)]
struct Inherited {
    via: BTreeSet<String>,
    marks: BTreeSet<String>,
    node_workloads: BTreeSet<String>,
}

/// What follows from the facts, edge by edge and as a whole.
#[derive(Default)]
pub(super) struct Deriver {
    pub(super) derived: BTreeMap<EdgeKey, Derived>,
    pub(super) unresolved: BTreeMap<(Arc<Source>, String), Unresolved>,
    pub(super) incomplete: BTreeMap<Arc<Peer>, BTreeSet<String>>,
    /// Uses of Services of which nobody knows who answered, and when they were.
    pub(super) backend_unknown: Vec<(FlowKey, Interval)>,
    /// Remote flows with established connections that nobody can be given, and whose they may be.
    pub(super) unnamed: Vec<(RemoteKey, BTreeSet<Arc<Peer>>)>,
}

/// Facts, and who had the addresses that only `merge` can name, as evidence for what is behind
/// Services.
pub(super) struct Known<'a> {
    facts: &'a Facts,
    owners: &'a Owners<'a>,
    /// Addresses of Services that nodes have themselves.
    on_nodes: Arc<BTreeMap<IpAddr, Vec<Arc<Peer>>>>,
    /// Only what was recorded in this time counts.
    within: Option<Interval>,
}

impl<'a> Known<'a> {
    pub(super) fn new(facts: &'a Facts, owners: &'a Owners<'a>) -> Self {
        let of_services: BTreeSet<IpAddr> =
            facts.services.values().flat_map(|service| service.base.addresses.iter().copied()).collect();
        let mut on_nodes: BTreeMap<IpAddr, Vec<Arc<Peer>>> = BTreeMap::new();
        for (address, _, peer, _) in facts.addresses.keys() {
            if matches!(**peer, Peer::Node { .. }) && of_services.contains(address) {
                on_nodes.entry(*address).or_default().push(Arc::clone(peer));
            }
        }
        Self { facts, owners, on_nodes: Arc::new(on_nodes), within: None }
    }

    /// What of it is of the time of a flow.
    fn at_the_time_of(&self, flow: &Seen) -> Self {
        let time = Interval { from: flow.first.before(ENDPOINT_SLACK), to: flow.last.after(ENDPOINT_SLACK) };
        Self { on_nodes: Arc::clone(&self.on_nodes), within: Some(time), ..*self }
    }
}

impl Evidence for Known<'_> {
    fn services(&self) -> &Services {
        &self.facts.services
    }

    fn is_node_observed(&self, node: &str) -> bool {
        self.facts.observed.contains(node)
    }

    fn is_observed(&self, peer: &Peer) -> bool {
        self.facts.is_observed(peer)
    }

    fn nodes_at(&self, address: IpAddr) -> Vec<Arc<Peer>> {
        self.on_nodes.get(&address).cloned().unwrap_or_default()
    }

    fn seen_at(&self, key: &EdgeKey, side: Side) -> Option<Seen> {
        let edge = self.facts.edges.get(key).filter(|edge| !edge.is_set_aside())?;
        let Some(time) = self.within else { return edge.at(side) };
        let meets = |seen: &Seen| seen.first <= time.to && time.from <= seen.last;
        let seen = edge.seen().filter(|(_, of, seen)| *of == side && meets(seen));
        seen.fold(None, |sum, (.., seen)| Seen::sum(sum, Some(*seen)))
    }

    fn services_used_by(&self, node: &Arc<Peer>) -> Vec<(Arc<str>, Seen)> {
        let first = (Arc::clone(node), Arc::from(""), Protocol::Tcp, 0);
        let own = self.facts.service_flows.range(first..).take_while(|((client, ..), _)| client == node);
        own.filter_map(|((_, service, ..), flow)| Some((Arc::clone(service), flow.sources.total()?))).collect()
    }

    fn any_node(&self, wanted: impl FnMut(&str) -> bool) -> bool {
        self.facts.expected.iter().map(String::as_str).any(wanted)
    }

    fn backend(&self, address: IpAddr, peer: &Arc<Peer>, has_node: bool, flow: &Seen) -> BTreeSet<Arc<Peer>> {
        // A pod of a node that the agent knew nothing of but its name.
        if !self.facts.own_pods.is_empty() && has_node && matches!(**peer, Peer::External { .. }) {
            return self.owners.between(address, flow.first, flow.last).into_iter().cloned().collect();
        }
        BTreeSet::from([Arc::clone(peer)])
    }
}

impl Facts {
    /// An edge with what follows for it.
    pub(super) fn edge(&self, key: &EdgeKey, facts: &EdgeFacts, derived: &Derived) -> EdgeRecord {
        let (client, server, protocol, port) = key;
        let nothing = EdgeFacts::default();
        let facts = if derived.extra.is_some() && facts.is_set_aside() { &nothing } else { facts };
        let rare = facts.rare();
        let own_client = facts.at(Side::Client);
        let at_server = facts.at(Side::Server);
        // Numbers without a source count only as long as there are none with one: else joining
        // would depend on the order.
        let without_sources = rare.without_sources.as_ref().filter(|_| facts.is_unseen());
        let bare_support = without_sources.is_some_and(|b| b.2);
        let own_support = self.supported(key, own_client, at_server);
        let at_client = Seen::sum(own_client, derived.extra.filter(|_| without_sources.is_none()));
        let total = [at_client, at_server, without_sources.map(|b| b.0)].into_iter().flatten().reduce(|mut a, b| {
            a.max(&b);
            a
        });
        // An edge without any count cannot exist: it is made of at least one of the three.
        let total = total.unwrap_or(Seen {
            counts: Counts::default(),
            first: Timestamp::default(),
            last: Timestamp::default(),
        });
        let mut inherited = Inherited::default();
        self.inherit(&mut inherited, &derived.certain);
        if facts.is_unseen() && without_sources.is_none() {
            self.inherit(&mut inherited, &derived.inferred);
        } else if without_sources.is_none() {
            // Reached directly too: the counts above hold both ways, and `sources` only the direct
            // one.
            inherited.via.extend(derived.inferred.iter().map(|flow| flow.1.to_string()));
        }
        let mut seen_by: BTreeSet<Side> = facts.seen().map(|(_, side, _)| side).collect();
        if !inherited.via.is_empty() {
            seen_by.insert(Side::Client);
        }
        let mut all_marks: BTreeSet<String> =
            rare.marks.iter().chain(&rare.by_merge.marks).chain(&inherited.marks).cloned().collect();
        // A record of its own makes an edge certain, whatever Services say.
        if own_support == Support::No && without_sources.is_none() {
            all_marks.extend(derived.marks.iter().map(|m| (*m).to_owned()));
        }
        if total.counts.found > 0 {
            all_marks.insert(marks::FOUND_AT_START.to_owned());
        }
        let mut supported = self.supported(key, at_client, at_server);
        if let Support::OneWay = supported {
            all_marks.insert(marks::ONE_WAY.to_owned());
        }
        if let Some((_, sides, _)) = without_sources {
            seen_by.extend(sides);
        }
        if bare_support {
            supported = Support::Yes;
        }
        if all_marks.iter().any(|m| marks::NEVER_SUPPORTED.contains(&m.as_str())) || is_of_one_link(server) {
            supported = Support::No;
            all_marks.remove(marks::ONE_WAY);
        }
        EdgeRecord {
            client: EdgePeer { peer: client.peer(), names: rare.client_names.clone() },
            server: EdgePeer { peer: server.peer(), names: rare.server_names.clone() },
            protocol: *protocol,
            port: *port,
            port_name: if facts.is_unseen() && rare.without_sources.is_none() {
                server.named().and_then(|server| self.port_name(server, *protocol, *port))
            } else {
                facts.port_name.as_deref().max(rare.by_merge.port_name.as_deref()).map(str::to_owned)
            },
            via: rare.via.union(&inherited.via).cloned().collect(),
            seen_by,
            counts: total.counts,
            first_seen: total.first,
            last_seen: total.last,
            supported: supported != Support::No,
            marks: all_marks,
            node_workloads: [&rare.node_workloads, &rare.by_merge.node_workloads, &inherited.node_workloads]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            sources: {
                let own = source_counts(&facts.sources, false);
                let mut all: Vec<_> = own.chain(source_counts(&rare.by_merge.sources, true)).collect();
                all.sort_by(|a, b| (&a.source, a.side, a.by_merge).cmp(&(&b.source, b.side, b.by_merge)));
                all.shrink_to_fit();
                all
            },
        }
    }

    fn inherit(&self, inherited: &mut Inherited, flows: &[FlowKey]) {
        for flow in flows {
            inherited.via.insert(flow.1.to_string());
            if let Some(facts) = self.service_flows.get(flow) {
                inherited.marks.extend(facts.marks.iter().cloned());
                inherited.node_workloads.extend(facts.node_workloads.iter().cloned());
            }
        }
    }

    fn supported(&self, key: &EdgeKey, at_client: Option<Seen>, at_server: Option<Seen>) -> Support {
        let counts = |seen: Option<Seen>| seen.map(|s| s.counts).unwrap_or_default();
        let (client, server) = (counts(at_client), counts(at_server));
        let at_client = if key.2.has_connections() {
            client.is_established()
        } else {
            client.bytes_sent > 0 && client.bytes_received > 0
        };
        if at_client || server.is_established() {
            return Support::Yes;
        }
        let sent_in_vain = client.refused > 0 || client.unreachable > 0;
        if key.2 == Protocol::Udp
            && client.established() >= 2
            && !sent_in_vain
            && !key.1.named().is_some_and(|server| self.is_observed(server))
        {
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
            .is_none_or(|w| w.nodes().all(|node| node.is_empty() || self.observed.contains(node)))
    }

    /// The one name that the server's pods give the port.
    fn port_name(&self, server: &Peer, protocol: Protocol, port: u16) -> Option<String> {
        let workload = self.workloads.get(server.workload()?)?;
        let mut names = workload.port_names(protocol, port);
        let first = names.next()?;
        names.all(|n| n == first).then(|| first.to_owned())
    }

    /// Losses as they stand in a snapshot.
    pub(crate) fn loss_entries(&self) -> impl Iterator<Item = LossEntry> {
        let losses = self.losses.iter().filter(|(_, (_, count))| *count > 0);
        losses.map(|(key, (class, count))| LossEntry {
            source: Source::clone(&key.0),
            reason: key.1.clone(),
            class: *class,
            count: *count,
            times: self.loss_times_of(key),
        })
    }

    pub(super) fn coverage(
        &self,
        unresolved: BTreeMap<(Arc<Source>, String), Unresolved>,
        incomplete: BTreeMap<Arc<Peer>, BTreeSet<String>>,
    ) -> Coverage {
        let lost = self.losses.values().any(|(class, count)| *class == LossClass::Edge && *count > 0);
        let gap = self.with_gaps().next().is_some();
        let judged = self.judged();
        Coverage {
            complete: !lost
                && !gap
                && judged.is_complete()
                && self.inventory != Some(InventoryState::Missing)
                && self.expected.is_subset(&self.observed)
                && incomplete.is_empty(),
            coverage: judged.coverage,
            starts: judged.coverage.map(|_| judged.starts),
            inventory: self.inventory,
            by_workload: judged.by_workload,
            not_run: judged.not_run,
            nodes: NodeCoverage {
                observed: self.observed.clone(),
                expected: self.expected.clone(),
                unobservable: self.unobservable.clone(),
            },
            losses: self.loss_entries().collect(),
            unresolved: unresolved
                .into_iter()
                .filter(|(_, unresolved)| unresolved.count > 0)
                .map(|((source, reason), unresolved)| unresolved.entry(source, reason))
                .collect(),
            workloads: incomplete
                .into_iter()
                .map(|(peer, reasons)| WorkloadCoverage { peer: Arc::unwrap_or_clone(peer), complete: false, reasons })
                .collect(),
        }
    }
}

/// Whether the server is an address that means something on one link alone.
fn is_of_one_link(server: &CompactPeer) -> bool {
    matches!(server.address(), Some(IpAddr::V6(address)) if address.is_unicast_link_local())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Support {
    Yes,
    OneWay,
    No,
}

impl Deriver {
    pub(super) fn service_flows(&mut self, facts: &Facts, owners: &Owners<'_>) {
        let known = Known::new(facts, owners);
        for (flow, of_flow) in &facts.service_flows {
            let Some(total) = of_flow.sources.total() else { continue };
            let found = behind(&known, flow, &total);
            // A record of another time says nothing of these; what was open already is told where
            // it began.
            let has_backend = |seen: &Seen| {
                let known = known.at_the_time_of(seen);
                found.attached.iter().any(|edge| known.server_saw(&edge.key))
                    || !behind(&known, flow, seen).backend_unknown
            };
            let several = of_flow.sources.iter().nth(1).is_some();
            let is_unknown =
                |seen: &Seen| found.backend_unknown || several && seen.counts.established() > 0 && !has_backend(seen);
            let unknown: Vec<_> = of_flow.sources.iter().filter(|(.., seen)| is_unknown(seen)).collect();
            for attached in found.attached {
                let derived = self.derived.entry(attached.key).or_default();
                let flows = if attached.marks.is_empty() { &mut derived.certain } else { &mut derived.inferred };
                flows.push(flow.clone());
                derived.marks.extend(attached.marks);
                derived.extra = Seen::sum(derived.extra, attached.extra);
            }
            if !unknown.is_empty() {
                let reason = UnresolvedReason::ServiceBackendUnknown;
                self.count(flow, unknown.iter().copied(), reason, Counts::established);
                let times = unknown.iter().map(|(.., seen)| Interval { from: seen.first, to: seen.last });
                self.backend_unknown.push((flow.clone(), hull(times)));
                self.incomplete.entry(Arc::clone(&flow.0)).or_default().insert(reason.as_str().to_owned());
            }
            if found.attempts_unknown {
                self.count(flow, of_flow.sources.iter(), UnresolvedReason::ServiceAttemptFailed, Counts::failed);
            }
        }
    }

    fn count<'a>(
        &mut self,
        (client, service, protocol, _): &FlowKey,
        sources: impl Iterator<Item = (&'a Arc<Source>, Side, &'a Seen)>,
        reason: UnresolvedReason,
        number: impl Fn(&Counts) -> u64,
    ) {
        for (source, _, seen) in sources {
            self.count_at(source, reason, number(&seen.counts), format!("{client} -> {service}/{protocol}"));
        }
    }

    pub(super) fn count_at(&mut self, source: &Arc<Source>, reason: UnresolvedReason, number: u64, example: String) {
        let entry = self.unresolved.entry((Arc::clone(source), reason.as_str().to_owned())).or_default();
        entry.count = entry.count.saturating_add(number);
        entry.add_example(example);
    }
}
