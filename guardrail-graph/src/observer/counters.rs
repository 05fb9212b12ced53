//! The edges' counters for `/metrics`, as a document would give them but without making one: a
//! scrape must not cost what a snapshot costs.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Observer, UnresolvedReason,
    edge::{Key, is_set_aside, side_index},
    peers::PeerId,
};
use crate::{
    peer::Peer,
    snapshot::{
        EdgeCounter, EdgeCounters, InventoryState, Side,
        behind::{Evidence, behind},
        counters::{OUTCOMES, add_outcomes},
        facts::{EdgeKey, Seen, Services},
        intervals::joined,
    },
    time::Timestamp,
};

/// What an observer knows, as evidence for what is behind Services.
struct Here<'a> {
    observer: &'a Observer,
    nodes: BTreeSet<String>,
    held: &'a HashMap<Key, [Option<Arc<Seen>>; 2]>,
    now: Timestamp,
}

impl Evidence for Here<'_> {
    fn services(&self) -> &Services {
        self.observer.catalogue.services()
    }

    fn is_node_observed(&self, node: &str) -> bool {
        node == self.observer.config.node
    }

    fn is_observed(&self, peer: &Peer) -> bool {
        match peer {
            Peer::External { .. } => false,
            Peer::Node { name } => self.is_node_observed(name),
            Peer::Workload(workload) => self
                .observer
                .catalogue
                .workload(workload)
                .is_none_or(|w| w.nodes().all(|node| node.is_empty() || self.is_node_observed(node))),
        }
    }

    fn nodes_at(&self, address: IpAddr) -> Vec<Arc<Peer>> {
        self.observer.identity.nodes_with(address).map(|node| self.observer.peers.get(node)).collect()
    }

    fn seen_at(&self, (client, server, protocol, port): &EdgeKey, side: Side) -> Option<Seen> {
        let peers = &self.observer.peers;
        let key = (peers.find_compact(client)?, peers.find_compact(server)?, *protocol, *port);
        let edge = self.observer.graph.edges().get(&key).filter(|edge| !is_set_aside(edge.marks));
        let held = self.held.get(&key).and_then(|sides| sides[side_index(side)].as_deref().copied());
        Seen::sum(edge.and_then(|edge| edge.until(side, self.now).map(|seen| **seen)), held)
    }

    fn services_used_by(&self, node: &Arc<Peer>) -> Vec<(Arc<str>, Seen)> {
        let Some(node) = self.observer.peers.find(node) else { return Vec::new() };
        let own = self.observer.graph.service_flows().iter().filter(|((client, ..), _)| *client == node);
        own.filter_map(|((_, service, ..), flow)| Some((Arc::clone(service), *flow.seen.as_deref()?))).collect()
    }

    fn any_node(&self, wanted: impl FnMut(&str) -> bool) -> bool {
        self.nodes.iter().map(String::as_str).any(wanted)
    }
}

impl Observer {
    /// The counters of the edges: the same as [`crate::Snapshot::edge_counters`] of a snapshot at
    /// `now`. Pending flows stay pending.
    pub fn edge_counters(&mut self, now: Timestamp) -> EdgeCounters {
        if self.config.own_pods_only || !self.graph.remote_flows().is_empty() || self.holds_remotes(now) {
            // What goes to other nodes' pods is named by the document alone, and so is what arrived
            // at proxies that were not told what it dialled.
            let document = self.document(now);
            return EdgeCounters { edges: document.edge_counters(), complete: document.coverage().complete };
        }
        self.settle_services(now);
        self.catalogue.refresh_workloads(&mut self.texts, now);
        let nodes = self.nodes_of_epoch(now);
        let all_observed = nodes.len() == 1;
        let mut held = self.held_edges(now);
        let (attached, backends_known) = self.behind_services(nodes, &held, now);

        let mut counters: HashMap<Key, [u64; OUTCOMES.len()]> = HashMap::new();
        let mut extra: HashMap<Key, Seen> = HashMap::new();
        for ((client, server, protocol, port), seen) in attached {
            let server = self.peers.id(Arc::unwrap_or_clone(server));
            let sum =
                extra.entry((client, server, protocol, port)).or_insert(Seen { counts: Default::default(), ..seen });
            sum.add(&seen);
        }
        let many = self.graph.many();
        let shown = |id: PeerId| if self.peers.is_external(id) { many } else { id };
        let shown = |(client, server, protocol, port): &Key| (shown(*client), shown(*server), *protocol, *port);
        for (key, edge) in self.graph.edges().iter() {
            let [mut at_client, mut at_server] = edge.sides.each_ref().map(|seen| seen.as_deref().copied());
            let (more, of_held) = (extra.remove(key), held.remove(key));
            if (more.is_some() || of_held.is_some()) && is_set_aside(edge.marks) {
                (at_client, at_server) = (None, None);
            }
            let [held_client, held_server] = of_held.unwrap_or_default().map(|seen| seen.as_deref().copied());
            let at_client = Seen::sum(Seen::sum(at_client, held_client), more);
            let mut counts = at_client.map(|seen| seen.counts).unwrap_or_default();
            if let Some(at_server) = Seen::sum(at_server, held_server) {
                counts = counts.max(&at_server.counts);
            }
            add_outcomes(counters.entry(shown(key)).or_default(), &counts);
        }
        for (key, [at_client, at_server]) in held {
            let at_client = Seen::sum(at_client.as_deref().copied(), extra.remove(&key));
            let counts = [at_client, at_server.as_deref().copied()].into_iter().flatten();
            let counts = counts.map(|seen| seen.counts).reduce(|a, b| a.max(&b)).unwrap_or_default();
            add_outcomes(counters.entry(shown(&key)).or_default(), &counts);
        }
        for (key, seen) in extra {
            add_outcomes(counters.entry(shown(&key)).or_default(), &seen.counts);
        }
        let mut edges: Vec<EdgeCounter> = counters
            .into_iter()
            .map(|((client, server, protocol, port), outcomes)| EdgeCounter {
                client: self.peers.get(client),
                server: self.peers.get(server),
                protocol,
                port,
                outcomes,
            })
            .collect();
        edges.sort_unstable();

        let complete = self.ledger.is_complete()
            && all_observed
            && backends_known
            && self.catalogue.state() != InventoryState::Missing
            && !self.ran_elsewhere(now)
            && joined([&self.history.intervals(now), self.history.steps()].concat()).len() == 1;
        EdgeCounters { edges, complete }
    }

    /// What service flows add to edges, and whether every backend that answered is known. Counts
    /// what is not.
    #[expect(clippy::type_complexity, reason = "a key whose server may not have a number yet, and counts")]
    fn behind_services(
        &mut self,
        nodes: BTreeSet<String>,
        held: &HashMap<Key, [Option<Arc<Seen>>; 2]>,
        now: Timestamp,
    ) -> (Vec<((PeerId, Arc<Peer>, crate::peer::Protocol, u16), Seen)>, bool) {
        let here = Here { observer: self, nodes, held, now };
        let mut attached = Vec::new();
        let (mut backends_unknown, mut attempts_unknown) = (0u64, 0u64);
        let mut backends_known = true;
        for ((client, service, protocol, port), flow) in self.graph.service_flows() {
            let Some(total) = &flow.seen else { continue };
            let found = behind(&here, &(self.peers.get(*client), Arc::clone(service), *protocol, *port), total);
            attached.extend(found.attached.into_iter().filter_map(|a| {
                let (_, server, protocol, port) = a.key;
                Some(((*client, server.peer(), protocol, port), a.extra?))
            }));
            if found.backend_unknown {
                backends_known = false;
                backends_unknown = backends_unknown.saturating_add(total.counts.established());
            }
            if found.attempts_unknown {
                attempts_unknown = attempts_unknown.saturating_add(total.counts.failed());
            }
        }
        self.ledger.set_derived(UnresolvedReason::RemotePod, 0);
        self.ledger.set_derived(UnresolvedReason::Redirected, 0);
        self.ledger.set_derived(UnresolvedReason::ServiceBackendUnknown, backends_unknown);
        self.ledger.set_derived(UnresolvedReason::ServiceAttemptFailed, attempts_unknown);
        (attached, backends_known)
    }

    /// Whether a workload ran on another node since observation began.
    fn ran_elsewhere(&self, now: Timestamp) -> bool {
        let begin = self.history.intervals(now).iter().map(|i| i.from).min().unwrap_or(Timestamp::MIN);
        self.catalogue.ran_elsewhere(&self.config.node, begin)
    }
}
