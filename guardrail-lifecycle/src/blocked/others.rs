//! What else is known of a server: what arrived there, who gets through, who does not.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use guardrail_graph::{
    Peer, Protocol, Timestamp,
    snapshot::{EdgeRecord, Side, WorkloadEntry},
};
use guardrail_policy::evaluate::EdgeVerdict;

use super::{BlockedEvidence, Target};

/// Who else was seen at a server's port.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Somebody else got through.
    pub(super) passes: bool,
    /// Somebody whom policies allow got no answer, and never got through.
    pub(super) allowed_unanswered: bool,
    /// Somebody whom policies allow was refused.
    pub(super) allowed_refused: bool,
}

/// The edges, by who accepts them.
pub(super) struct Others<'a> {
    evidence: &'a BlockedEvidence<'a>,
    edges: HashMap<&'a Peer, HashMap<(Protocol, u16), Vec<&'a EdgeRecord>>>,
    /// Servers of which everything that arrived would be known.
    watched: RefCell<BTreeMap<Peer, bool>>,
    workloads: HashMap<&'a guardrail_graph::WorkloadRef, &'a WorkloadEntry>,
    incomplete: BTreeSet<&'a Peer>,
}

impl<'a> Others<'a> {
    pub(super) fn new(evidence: &'a BlockedEvidence<'a>) -> Self {
        let body = &evidence.snapshot.body;
        let mut edges: HashMap<&Peer, HashMap<_, Vec<&EdgeRecord>>> = HashMap::new();
        for edge in body.edges.iter().filter(|edge| !edge.is_set_aside()) {
            let ports = edges.entry(&*edge.server.peer).or_default();
            ports.entry((edge.protocol, edge.port)).or_default().push(edge);
        }
        Self {
            evidence,
            edges,
            watched: RefCell::default(),
            workloads: body.workloads.iter().map(|entry| (&entry.workload, entry)).collect(),
            incomplete: body.coverage.workloads.iter().map(|workload| &workload.peer).collect(),
        }
    }

    fn edges_of(&self, target: &Target, protocol: Protocol) -> &[&'a EdgeRecord] {
        let ports = self.edges.get(&target.peer);
        ports.and_then(|ports| ports.get(&(protocol, target.port))).map_or(&[], Vec::as_slice)
    }

    /// Connections of the client that arrived at the servers, and the last of them.
    pub(super) fn arrived(&self, client: &Peer, targets: &[Target], protocol: Protocol) -> Option<(u64, Timestamp)> {
        let edges = targets.iter().flat_map(|target| self.edges_of(target, protocol));
        let own = edges.filter(|edge| *edge.client.peer == *client).flat_map(|edge| &edge.sources);
        let at_server = own.filter(|source| source.side == Side::Server && source.counts.established() > 0);
        let arrived = at_server.map(|source| (source.counts.established(), source.last_seen));
        arrived.reduce(|(a, first), (b, second)| (a.saturating_add(b), first.max(second)))
    }

    /// What policies say of a connection; `None`: it cannot be judged.
    pub(super) fn verdict(&self, client: &Peer, target: &Target, protocol: Protocol) -> Option<EdgeVerdict> {
        let evaluator = self.evidence.evaluator;
        let edge = self.edges_of(target, protocol).iter().find(|edge| *edge.client.peer == *client);
        match edge {
            Some(edge) => evaluator.evaluate_edge(edge).ok(),
            None => evaluator.evaluate_peers(client, &target.peer, protocol, target.port).ok(),
        }
    }

    /// Who but this client was seen at the servers since then.
    pub(super) fn at(&self, client: &Peer, targets: &[Target], protocol: Protocol, since: Timestamp) -> Seen {
        let mut seen = Seen::default();
        let edges = targets.iter().flat_map(|target| self.edges_of(target, protocol));
        for edge in edges.filter(|edge| *edge.client.peer != *client && edge.last_seen >= since) {
            let through = if protocol.has_connections() { edge.supported } else { edge.counts.bytes_received > 0 };
            seen.passes |= through;
            let refused = edge.counts.refused > 0 || edge.counts.unreachable > 0;
            let silent = !through && (edge.counts.unanswered > 0 || !protocol.has_connections());
            if !refused && !silent {
                continue;
            }
            let allowed = self.evidence.evaluator.evaluate_edge(edge).is_ok_and(|verdict| verdict.allowed());
            seen.allowed_refused |= refused && allowed;
            seen.allowed_unanswered |= silent && allowed;
        }
        seen
    }

    /// Whether everything that reached this server would be known: all its nodes were observed, and
    /// nothing that concerns it was lost.
    pub(super) fn is_watched(&self, server: &Peer) -> bool {
        if let Some(known) = self.watched.borrow().get(server) {
            return *known;
        }
        let observed = &self.evidence.snapshot.body.coverage.nodes.observed;
        let watched = !self.incomplete.contains(server)
            && match server {
                Peer::External { .. } => false,
                Peer::Node { name } => observed.contains(name),
                Peer::Workload(workload) => self.workloads.get(workload).is_some_and(|entry| {
                    let nodes: Vec<&String> =
                        entry.pods.keys().chain(entry.ran_on.keys()).filter(|node| !node.is_empty()).collect();
                    !nodes.is_empty() && nodes.into_iter().all(|node| observed.contains(node))
                }),
            };
        self.watched.borrow_mut().insert(server.clone(), watched);
        watched
    }
}
