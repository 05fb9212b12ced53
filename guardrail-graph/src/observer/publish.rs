//! The snapshot of an observer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    AddressOwner, Observer, UnresolvedReason,
    edge::{is_set_aside, marks_of},
    held::Standing,
    identity::PodRecord,
    peers::PeerId,
};
use crate::{
    inventory::Kind,
    peer::Peer,
    snapshot::{
        Document, Interval, InventoryState, Revision, Side, Snapshot, Source,
        facts::{Facts, FlowFacts, KnownTenure},
        intervals::hull,
        owners::LEAD,
        unresolved::Unresolved,
        workloads::WorkloadFacts,
    },
    time::Timestamp,
};

/// Why nothing can be said of a node: its agent never heard of the cluster.
const INVENTORY_MISSING: &str = "inventory_missing";

fn mark_names(bits: u8) -> BTreeSet<String> {
    marks_of(bits).map(str::to_owned).collect()
}

impl Observer {
    /// The graph with everything derived, spelled out. Pending flows stay pending.
    pub fn snapshot(&mut self, now: Timestamp) -> Snapshot {
        self.document(now).snapshot()
    }

    /// The graph with everything derived, as a document that costs a fraction of the snapshot.
    /// Pending flows stay pending.
    pub fn document(&mut self, now: Timestamp) -> Document {
        let mut facts = self.facts_but_flows(now, now);
        let source = facts.sources.first().cloned().unwrap_or_default();
        if self.config.run > 0 {
            self.documents = self.documents.saturating_add(1);
            facts.revisions.insert(Arc::clone(&source), Revision { run: self.config.run, n: self.documents });
        }
        for ((client, service, protocol, port), flow) in self.graph.service_flows() {
            let Some(seen) = flow.until(now) else { continue };
            let key = (self.peers.get(*client), Arc::clone(service), *protocol, *port);
            let mut flow_facts = FlowFacts { marks: mark_names(flow.marks), ..FlowFacts::default() };
            flow_facts.node_workloads.extend(flow.node_workloads.iter().map(|w| w.to_string()));
            flow_facts.sources.max(Arc::clone(&source), Side::Client, &seen);
            facts.service_flows.insert(key, flow_facts);
        }
        self.remote_facts(&mut facts, &source, now);
        self.edge_facts(&mut facts, &source, now);
        let document = facts.document();
        // What Services left open is computed with the document; the counters of `/metrics` show
        // it.
        for reason in UnresolvedReason::DERIVED {
            let counts = document.coverage().unresolved.iter().filter(|u| u.reason == reason.as_str()).map(|u| u.count);
            self.ledger.set_derived(reason, counts.fold(0, u64::saturating_add));
        }
        document
    }

    /// What is known beside edges and flows. What lasts, lasts until `end`.
    pub(super) fn facts_but_flows(&mut self, now: Timestamp, end: Timestamp) -> Facts {
        self.settle_services(now);
        self.catalogue.refresh_workloads(&mut self.texts, now);
        let (node, instance) = (self.config.node.clone(), self.config.instance.clone());
        let source = Arc::new(Source { node, instance, start: self.history.epoch() });
        let mut facts = Facts::default();
        facts.expected = self.expected_nodes();
        facts.unobservable = self.catalogue.unobservable_nodes(&self.config.unobservable);
        facts.nodes = self.nodes.times(end);
        facts.sources.insert(Arc::clone(&source));
        facts.observed.insert(self.config.node.clone());
        facts.window.insert(self.config.node.clone(), self.history.intervals(end));
        if !self.history.steps().is_empty() {
            facts.steps.insert(self.config.node.clone(), self.history.steps().to_vec());
        }
        for (reason, count) in self.ledger.losses().filter(|(_, count)| *count > 0) {
            let key = (Arc::clone(&source), reason.as_str().to_owned());
            facts.loss_times.insert(key.clone(), self.ledger.times(reason, &self.peers));
            facts.losses.insert(key, (reason.class(), count));
        }
        self.presence_facts(&mut facts, &source, (now, end));
        for (reason, count, examples) in self.ledger.unresolved() {
            if count > 0 {
                let key = (Arc::clone(&source), reason.as_str().to_owned());
                let (flows, more) = self.ledger.unresolved_flows(reason, &self.peers);
                let unresolved = Unresolved { count, examples: examples.clone(), flows: Some(flows), more };
                facts.unresolved.insert(key, unresolved);
            }
        }
        for (peer, reasons) in self.ledger.incomplete() {
            facts.incomplete.insert(self.peers.get(peer), reasons.iter().map(|r| r.to_string()).collect());
        }
        if !self.ledger.node_wide().is_empty() {
            let here = self.catalogue.hosted_by(&self.config.node).map(|name| Peer::Workload(name.clone()));
            for peer in here.chain([Peer::Node { name: self.config.node.clone() }]) {
                let reasons = facts.incomplete.entry(Arc::new(peer)).or_default();
                reasons.extend(self.ledger.node_wide().iter().map(|r| r.to_string()));
            }
        }
        facts.workloads = self.catalogue.workload_facts(end);
        facts.ran_on = self.catalogue.ran_on().clone();
        facts.inventory = Some(self.catalogue.state());
        if facts.inventory == Some(InventoryState::Missing) {
            let here = Arc::new(Peer::Node { name: self.config.node.clone() });
            facts.incomplete.entry(here).or_default().insert(INVENTORY_MISSING.to_owned());
        }
        facts.services = self.catalogue.services().clone();
        self.address_facts(&mut facts, now);
        if self.config.own_pods_only {
            let as_of = BTreeMap::from([(self.config.node.clone(), end)]);
            let mut workloads: Vec<_> = facts.workloads.values().map(WorkloadFacts::entry).collect();
            facts.take_own_pods(as_of, &mut workloads);
            facts.workloads = workloads.into_iter().map(|w| (w.workload.clone(), w.into())).collect();
        }
        facts
    }

    fn edge_facts(&self, facts: &mut Facts, source: &Arc<Source>, now: Timestamp) {
        facts.edges.reserve_exact(self.graph.edges().len());
        let held = self.held_standings(now).filter_map(|standing| match standing {
            Standing::Edge(key, edge) => Some((key, edge)),
            Standing::Remote(..) => None,
        });
        for ((client, server, protocol, port), edge) in self.graph.edges().iter().map(|(k, e)| (*k, e)).chain(held) {
            let names = self.peers.address(server).map_or(&[][..], |address| self.graph.names().of(client, address));
            let [client, server] = [client, server].map(|end| self.peers.compact(end).clone());
            let known = facts.edges.entry((client, server, protocol, port)).or_default();
            if !known.gives_way(is_set_aside(edge.marks)) {
                continue;
            }
            for side in [Side::Client, Side::Server] {
                if let Some(seen) = edge.until(side, now) {
                    known.sources.plus(Arc::clone(source), side, &seen);
                }
            }
            if known.port_name.is_none() {
                known.port_name.clone_from(&edge.port_name);
            }
            if edge.marks != 0 || edge.node_workloads().next().is_some() || !names.is_empty() {
                let rare = known.rare_mut();
                rare.marks.extend(mark_names(edge.marks));
                rare.node_workloads.extend(edge.node_workloads().map(|w| w.to_string()));
                rare.server_names.extend(names.iter().map(|n| n.to_string()));
            }
        }
    }

    /// What is left for `merge` to name.
    fn remote_facts(&self, facts: &mut Facts, source: &Arc<Source>, now: Timestamp) {
        let held = self.held_standings(now).filter_map(|standing| match standing {
            Standing::Remote(key, flow) => Some((key, flow)),
            Standing::Edge(..) => None,
        });
        for ((local, side, address, protocol, port, untold), flow) in self.graph.remote_flows().iter().chain(held) {
            let Some(seen) = flow.until(*side, now) else { continue };
            let key = (self.peers.get(*local), *side, *address, *protocol, *port, *untold);
            let kept = facts.remote_flows.entry(key).or_default();
            kept.port_name.clone_from(&flow.port_name);
            kept.flow.marks.extend(mark_names(flow.marks));
            kept.flow.node_workloads.extend(flow.node_workloads().map(|w| w.to_string()));
            kept.flow.sources.plus(Arc::clone(source), *side, &seen);
        }
    }

    fn address_facts(&self, facts: &mut Facts, now: Timestamp) {
        let bound = |at: Timestamp| (at != Timestamp::MIN && at != Timestamp::MAX).then_some(at);
        let all_of_it = hull(facts.window.values().flatten().copied());
        let told = |kind| match self.words.silent_since(&kind, now) {
            // Nobody who reads it allows more after it than agents need that are asked in turn.
            Some(silent) => {
                let to = silent.before(LEAD).min(all_of_it.to);
                Interval { from: all_of_it.from.min(to), to }
            }
            None => all_of_it,
        };
        let (of_pods, of_nodes) = (told(Kind::Pod), told(Kind::Node));
        self.former_facts(facts, all_of_it);
        for (address, tenure) in self.identity.tenures() {
            let heard = match tenure.owner {
                owner if self.identity.is_on_record(address, owner, now) => all_of_it,
                AddressOwner::Node(_) => of_nodes,
                AddressOwner::Pod(_) => of_pods,
            };
            let (peer, pod, started, listed) = match tenure.owner {
                AddressOwner::Node(peer) => (peer, None, None, self.is_listed(address, peer)),
                AddressOwner::Pod(id) => match self.identity.pod(id) {
                    Some(PodRecord { peer, pod, .. }) => {
                        (*peer, Some(format!("{}/{}", pod.namespace, pod.name)), pod.started, None)
                    }
                    None => continue,
                },
            };
            let key = (address, self.begin_of(tenure, started, now), self.peers.get(peer), pod);
            let known = KnownTenure { to: bound(tenure.to), heard, proven: tenure.proven.is_some(), listed };
            facts.addresses.insert(key, known);
        }
        for (address, peer) in self.identity.range_nodes() {
            if let Some(free) = self.identity.is_free_since(*address, now) {
                let since = self.peers.node_name(*peer).and_then(|name| self.nodes.since(name));
                let from = bound(since.unwrap_or(Timestamp::MIN).max(free));
                let known = KnownTenure { to: None, heard: of_nodes, proven: false, listed: Some(true) };
                facts.addresses.insert((*address, from, self.peers.get(*peer), None), known);
            }
        }
    }

    /// Whether the API lists an address as a node's; `None` if it does not know the node.
    fn is_listed(&self, address: IpAddr, node: PeerId) -> Option<bool> {
        let Some(known) = self.peers.node_name(node).and_then(|name| self.catalogue.inventory().node(name)) else {
            return self.restored.as_ref()?.is_listed(address, node);
        };
        Some(known.addresses.contains(&address) || self.identity.range_nodes().get(&address) == Some(&node))
    }
}
