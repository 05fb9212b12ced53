//! Who tried to reach whom, as the clients saw it: directly, and through Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use guardrail_graph::{
    Peer, Protocol, Snapshot, Timestamp, WorkloadRef,
    snapshot::{Counts, EdgeRecord, ServiceFlow, Side, SourceCounts},
};

use super::{Outcome, Target, others::Others};

/// Clocks of two nodes differ by less; and an endpoint still counts so long after it went.
const SLACK: Duration = Duration::from_secs(5);
/// An endpoint counts for an attempt if it was one within this much of the attempt's time.
const ENDPOINT_SLACK: Duration = Duration::from_secs(30);

/// What one client tried at one port.
#[derive(Debug)]
pub(super) struct Attempts<'a> {
    pub(super) client: &'a Peer,
    /// The Service (`namespace/name:port`), if several servers are behind it.
    service: Option<&'a str>,
    /// At least one, sorted.
    pub(super) targets: Vec<Target>,
    pub(super) protocol: Protocol,
    /// The port of the only target, or of the Service.
    pub(super) port: u16,
    pub(super) via: BTreeSet<String>,
    /// What the clients' side saw.
    seen: Seen,
}

/// Counts with their times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    counts: Counts,
    first: Timestamp,
    last: Timestamp,
}

impl Seen {
    fn of<'s>(sources: impl IntoIterator<Item = &'s SourceCounts>) -> Option<Self> {
        let all = sources.into_iter().map(|s| Self { counts: s.counts, first: s.first_seen, last: s.last_seen });
        all.reduce(Self::plus)
    }

    fn plus(self, other: Self) -> Self {
        let counts = self.counts.plus(&other.counts);
        Self { counts, first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}

/// How attempts failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) outcome: Outcome,
    pub(super) count: u64,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
    /// Connections came about, too.
    pub(super) mixed: bool,
    /// They did, and whether an attempt failed after the last of them is not known.
    pub(super) order_unknown: bool,
}

impl Attempts<'_> {
    /// Whom the client tried to reach; a Service is named like a workload of the kind `svc`.
    pub(super) fn server(&self) -> Peer {
        let service = self.service.and_then(|service| service.rsplit_once(':')?.0.split_once('/'));
        match service {
            Some((namespace, name)) => Peer::Workload(WorkloadRef {
                namespace: namespace.to_owned(),
                owner: "svc".to_owned(),
                name: name.to_owned(),
            }),
            None => self.targets[0].peer.clone(),
        }
    }

    pub(super) fn is_of_service(&self) -> bool {
        self.service.is_some()
    }

    /// What failed, unless a success came after it.
    pub(super) fn failure(&self, others: &Others<'_>) -> Option<Failure> {
        let Seen { counts, first, last } = self.seen;
        let rejected = counts.refused.saturating_add(counts.unreachable.into());
        let has_connections = self.protocol.has_connections();
        if has_connections && counts.failed() == 0 && counts.broken == 0
            || !has_connections && counts.bytes_received > 0
        {
            return None;
        }
        let arrived = others.arrived(self.client, &self.targets, self.protocol);
        if !has_connections {
            // Datagrams: what was sent and never answered. Those that came through before say
            // nothing of later ones.
            let sent = counts.established();
            let outcome = if rejected > 0 { Outcome::Refused } else { Outcome::Unanswered };
            let found = Failure { outcome, count: sent.max(rejected), first, last, mixed: false, order_unknown: false };
            return (arrived.is_none() && found.count > 0).then_some(found);
        }
        // Dropped ones decide: a data plane that rejects drops none.
        let outcome = match (counts.unanswered, counts.failed()) {
            (1.., _) => Outcome::Unanswered,
            (0, 1..) => Outcome::Refused,
            (0, 0) => Outcome::Broken,
        };
        let mixed = counts.established() > 0 || arrived.is_some();
        let mut order_unknown = false;
        if let Some((connections, last_success)) = arrived {
            if last_success.after(SLACK) >= last {
                return None;
            }
            // The server's side knows all of them, so the last one was a failure.
            order_unknown = connections < counts.established();
        } else if counts.established() > 0 {
            order_unknown = true;
        }
        let count = if outcome == Outcome::Broken { counts.broken.into() } else { counts.failed() };
        Some(Failure { outcome, count, first, last, mixed, order_unknown })
    }
}

/// By whom, of whom, through what.
type Key<'a> = (&'a Peer, Option<&'a str>, Vec<Target>, Protocol, u16);

/// What every client tried, whether it failed or not.
pub(super) fn all(snapshot: &Snapshot) -> Vec<Attempts<'_>> {
    let mut all: BTreeMap<Key<'_>, (BTreeSet<String>, Seen)> = BTreeMap::new();
    let mut add = |key, via: Option<&str>, more: Seen| {
        let (services, _) =
            all.entry(key).and_modify(|(_, seen)| *seen = seen.plus(more)).or_insert_with(|| (BTreeSet::new(), more));
        services.extend(via.map(str::to_owned));
    };
    for edge in snapshot.body.edges.iter().filter(|edge| !edge.is_set_aside()) {
        if let Some(seen) = direct(snapshot, edge) {
            let target = Target { peer: Peer::clone(&edge.server.peer), port: edge.port };
            add((&*edge.client.peer, None, vec![target], edge.protocol, edge.port), None, seen);
        }
    }
    for flow in &snapshot.body.service_flows {
        let Some(seen) = Seen::of(&flow.sources) else { continue };
        let targets = behind(snapshot, flow, seen.last);
        match &targets[..] {
            // Nobody was behind it, or only the client itself.
            [] => {}
            [only] if only.peer == flow.client => {}
            [only] => {
                let port = only.port;
                add((&flow.client, None, targets, flow.protocol, port), Some(&flow.service), seen);
            }
            _ => add((&flow.client, Some(&flow.service), targets, flow.protocol, flow.port), None, seen),
        }
    }
    let attempts = |((client, service, targets, protocol, port), (via, seen))| Attempts {
        client,
        service,
        targets,
        protocol,
        port,
        via,
        seen,
    };
    all.into_iter().map(attempts).collect()
}

/// What the client's side saw of an edge, but for what it saw of a Service.
fn direct(snapshot: &Snapshot, edge: &EdgeRecord) -> Option<Seen> {
    let own = Seen::of(edge.sources.iter().filter(|source| source.side == Side::Client));
    // Numbers without a source.
    let is_flow = |flow: &ServiceFlow| flow.client == *edge.client.peer && edge.via.contains(&flow.service);
    let bare = edge.sources.is_empty() && !snapshot.body.service_flows.iter().any(is_flow);
    own.or_else(|| bare.then_some(Seen { counts: edge.counts, first: edge.first_seen, last: edge.last_seen }))
}

/// Who was behind a Service's port at that time.
fn behind(snapshot: &Snapshot, flow: &ServiceFlow, at: Timestamp) -> Vec<Target> {
    let name = flow.service.rsplit_once(':').map_or(flow.service.as_str(), |(name, _)| name);
    let services = snapshot.body.services.iter();
    let ports = services
        .filter(|service| name.split_once('/') == Some((&service.namespace, &service.name)))
        .flat_map(|service| &service.ports)
        .filter(|port| port.port == flow.port && flow.protocol.is_named(&port.protocol));
    let backends = ports.flat_map(|port| &port.backends).filter(|backend| {
        backend.from.is_none_or(|from| from.before(ENDPOINT_SLACK) <= at)
            && backend.to.is_none_or(|to| to.after(ENDPOINT_SLACK) >= at)
    });
    let targets: BTreeSet<Target> =
        backends.map(|backend| Target { peer: backend.peer.clone(), port: backend.port }).collect();
    targets.into_iter().collect()
}
