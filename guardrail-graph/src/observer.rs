//! The observer: observations and inventory changes in, a snapshot out.
//!
//! One task owns it. It reads no clock: each call takes the time. Every table is bounded, and what
//! does not fit is counted. What is counted comes from kernel state; who is behind it is decided
//! here, as of the event's time (`ends`); the edges behind Services follow when the snapshot is
//! made (`snapshot::derive`).

mod catalogue;
mod config;
mod counters;
mod doubts;
mod edge;
mod edges;
mod expire;
mod flows;
mod former;
mod graph;
mod held;
mod history;
mod identity;
mod inside;
mod ledger;
mod lookups;
mod names;
mod nodes;
mod own_pods;
mod peers;
mod presence;
mod publish;
mod reclassify;
mod redirects;
mod restore;
mod settle;
mod stats;
mod store;
mod turn;
mod unnamed;
mod waiting;
mod watch;
mod words;

use std::{net::IpAddr, sync::Arc, time::Duration};

use catalogue::Catalogue;
pub use config::ObserverConfig;
use flows::{Last, Step};
use former::Former;
use graph::Graph;
use held::Held;
use history::History;
use identity::{AddressOwner, Identity, Resolution};
use ledger::Ledger;
pub use names::MAX_NAMES_PER_ADDRESS;
pub use own_pods::OwnPod;
use peers::Peers;
use presence::Presence;
use reclassify::Reclassify;
pub use restore::RestoreError;
use restore::Restored;
pub use stats::Stats;
use unnamed::Unnamed;
use waiting::{Pending, Waiting};
use words::Words;

use crate::{
    interner::Interner,
    inventory::{Inventory, VirtualTarget},
    observe::{FlowDelta, LossClass, LossReason, Observation},
    peer::{Peer, Protocol},
    time::Timestamp,
};
pub use crate::{
    snapshot::{EdgeCounter, EdgeCounters, OUTCOMES},
    unresolved::UnresolvedReason,
};

/// Tables are swept of what is too old this often.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(30);

/// Names flows and keeps the graph.
#[derive(Debug)]
pub struct Observer {
    config: ObserverConfig,
    catalogue: Catalogue,
    identity: Identity,
    peers: Peers,
    graph: Graph,
    texts: Interner<str>,
    reclassify: Reclassify,
    waiting: Waiting,
    unnamed: Unnamed,
    words: Words,
    held: Held,
    former: Former,
    ledger: Ledger,
    history: History,
    presence: Presence,
    nodes: nodes::Nodes,
    restored: Option<Restored>,
    /// Documents made so far.
    documents: u32,
    last_expire: Timestamp,
}

impl Observer {
    /// An empty graph.
    #[must_use]
    pub fn new(config: ObserverConfig) -> Self {
        let mut peers = Peers::default();
        let this_node = peers.id(Peer::Node { name: config.node.clone() });
        let many = peers.id(Peer::many());
        Self {
            identity: Identity::new(this_node, &config),
            catalogue: Catalogue::new(&config),
            graph: Graph::new(many, &config),
            waiting: Waiting::new(config.max_pending, config.started),
            unnamed: Unnamed::default(),
            words: Words::new(config.watched),
            held: Held::new(config.max_held),
            former: Former::default(),
            last_expire: config.started,
            history: History::new(config.started),
            presence: Presence::default(),
            nodes: nodes::Nodes::default(),
            config,
            peers,
            texts: Interner::default(),
            reclassify: Reclassify::default(),
            ledger: Ledger::default(),
            restored: None,
            documents: 0,
        }
    }

    /// The inventory as it stands.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        self.catalogue.inventory()
    }

    /// Node and instance under which this observer counts (after a restore: those of the state).
    #[must_use]
    pub fn config(&self) -> &ObserverConfig {
        &self.config
    }

    /// Takes one observation. `now` is the time of the call; events carry their own time.
    pub fn observe(&mut self, observation: Observation, now: Timestamp) {
        self.sweep(now);
        match observation {
            Observation::Flow(_) | Observation::DnsAnswer { .. } => {
                self.history.saw_flow();
                self.observe_flow(observation, now, false);
            }
            Observation::CgroupCreated { id, path, at } => {
                self.identity.cgroup_created(id, &path, at);
                self.retry_soon(now);
            }
            Observation::CgroupRemoved { id, at } => self.identity.cgroup_removed(id, at),
            Observation::Listening { netns, address, port, listening, .. } => {
                let sockets = self.identity.sockets_mut();
                if !listening {
                    sockets.closed(netns, port, address);
                } else if !sockets.opened(netns, port, address) {
                    self.ledger.count_loss(LossReason::ListenersFull, 1);
                }
            }
            Observation::Lost { reason, cgroup, count, at } => {
                self.sweep(at);
                self.ledger.count_loss(reason, count);
                if reason.class() == LossClass::Edge {
                    let local =
                        cgroup.map(|id| self.local_end(id, IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), at, true));
                    match local {
                        Some(Resolution::Known(local)) => self.ledger.incomplete_peer(local.peer, reason.as_str()),
                        Some(Resolution::Unresolved(UnresolvedReason::OtherNode)) => {}
                        _ => self.ledger.incomplete_node(reason.as_str()),
                    }
                }
            }
        }
    }

    /// The kernel's map was read to its end for the last time at `since`, and never will be again:
    /// what it counted from then on is lost.
    pub fn unread(&mut self, since: Timestamp, now: Timestamp) {
        self.sweep(now);
        self.ledger.count_loss(LossReason::Unread, 1);
        self.ledger.incomplete_node_since(LossReason::Unread.as_str(), since);
    }

    /// What comes now was noticed by a sweep that ended then.
    fn sweep(&mut self, at: Timestamp) {
        self.ledger.sweep(self.history.noticed_since(at.before(self.config.sweep_interval)), at);
    }

    /// `is_settled`: what a proxy may have been told of it is no longer waited for.
    fn observe_flow(&mut self, observation: Observation, now: Timestamp, is_settled: bool) {
        let last = Last { is_settled, ..Last::default() };
        if self.try_observation(&observation, now, last) != Step::Done {
            self.wait(Pending { observation, since: now, is_settled }, now);
        }
    }

    fn try_observation(&mut self, observation: &Observation, now: Timestamp, last: Last) -> Step {
        match observation {
            Observation::Flow(delta) => self.flow(delta, now, last),
            Observation::DnsAnswer { cgroup, name, addresses, at } => {
                match self.local_end(*cgroup, IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), *at, last.pod) {
                    Resolution::Wait => return Step::WaitPod,
                    // A name without a client is no loss: the address stands for itself.
                    Resolution::Unresolved(_) => {}
                    Resolution::Known(local) => {
                        let name: Arc<str> = name.as_str().into();
                        for address in addresses {
                            self.graph.learn_name(local.peer, *address, &name);
                        }
                    }
                }
                Step::Done
            }
            _ => Step::Done,
        }
    }

    /// Keeps an observation until more is known. What has to go for it is named as far as it can be
    /// now.
    fn wait(&mut self, pending: Pending, now: Timestamp) {
        if let Some(evicted) = self.waiting.push(pending) {
            self.evict_pending(&evicted, now);
        }
    }

    /// There is no room: what it would have become is not known.
    fn evict_pending(&mut self, pending: &Pending, now: Timestamp) {
        self.ledger.count_loss(LossReason::PendingOverflow, 1);
        let reason = LossReason::PendingOverflow.as_str();
        // Failed attempts support nothing, and an address without its name is no loss.
        if let Observation::Flow(delta) = &pending.observation
            && (delta.counts.opened > 0 || delta.counts.found > 0)
        {
            let at = delta.last_open.or(delta.first_open).unwrap_or(now);
            let since = delta.first_open.unwrap_or(at).min(at);
            match self.local_end(delta.cgroup, delta.local, at, true) {
                Resolution::Known(local) => self.ledger.incomplete_peer_since(local.peer, reason, since),
                Resolution::Unresolved(UnresolvedReason::OtherNode) => {}
                _ => self.ledger.incomplete_node_since(reason, since),
            }
        }
        self.try_observation(&pending.observation, now, Last::ALL);
    }

    /// Tries waiting flows again, but not with every one of thousands of changes.
    fn retry_soon(&mut self, now: Timestamp) {
        if self.waiting.is_due(now) {
            self.retry(now);
        }
    }

    fn retry(&mut self, now: Timestamp) {
        for pending in self.waiting.take(now) {
            let waited = now.since(pending.since);
            let last = Last {
                pod: waited >= self.config.pod_timeout,
                role: waited >= self.config.role_timeout,
                is_settled: pending.is_settled,
            };
            if self.try_observation(&pending.observation, now, last) != Step::Done {
                self.waiting.put_back(pending);
            }
        }
    }

    /// Ends waits that are over and forgets what is too old. Call it about once a second.
    pub fn tick(&mut self, now: Timestamp) {
        self.sweep(now);
        self.reclassify_due(now);
        self.reclassify_waiting(now);
        self.settle_services(now);
        self.retry(now);
        self.settle_redirects(now, false);
        self.name_unnamed(now);
        self.settle_held(now);
        if now.since(self.last_expire) >= EXPIRE_INTERVAL {
            self.last_expire = now;
            self.expire(now);
        }
    }

    /// Flows that wait for their pod, their role or what a proxy was told of them: counted by the
    /// kernel, in no edge yet.
    #[must_use]
    pub fn waiting(&self) -> Vec<FlowDelta> {
        self.waiting.flows().cloned().collect()
    }

    /// Ends every wait: what has no name or role by now is counted. Call it before the last
    /// snapshot.
    pub fn flush(&mut self, now: Timestamp) {
        self.settle_services(now);
        for pending in self.waiting.take(now) {
            self.try_observation(&pending.observation, now, Last { is_settled: pending.is_settled, ..Last::ALL });
        }
        self.settle_redirects(now, true);
        for pending in self.waiting.take(now) {
            self.try_observation(&pending.observation, now, Last::ALL);
        }
    }

    /// Addresses that changed their owner since the last call: fold and delete kernel entries with
    /// these remotes, so that the next connection is a new key with a `first_open` of its own.
    pub fn take_reassigned_addresses(&mut self) -> Vec<IpAddr> {
        self.identity.take_reassigned()
    }

    /// Whether `address:port` is a port that something is known to serve: a Service (cluster,
    /// external, load-balancer address, node port), a host port, a declared container port, an
    /// endpoint's port.
    #[must_use]
    pub fn is_server_address(&self, address: IpAddr, port: u16, protocol: Protocol) -> bool {
        self.is_server_at(address, port, protocol, Timestamp::MAX)
    }

    fn is_server_at(&self, address: IpAddr, port: u16, protocol: Protocol, at: Timestamp) -> bool {
        if self.catalogue.is_endpoint(&(address, port, protocol)) {
            return true;
        }
        if self
            .catalogue
            .inventory()
            .pods_by_address(address)
            .any(|pod| pod.ports.iter().any(|p| p.port == port && protocol.is_named(&p.protocol)))
        {
            return true;
        }
        if self
            .identity
            .node_at(address, at)
            .is_some_and(|node| self.identity.host_port(node, port, protocol).is_some())
        {
            return true;
        }
        matches!(
            self.virtual_target(address, port, protocol, at),
            Some(VirtualTarget::Service { .. } | VirtualTarget::HostPort { .. })
        )
    }

    /// Counters for `/metrics`; for those of edges see [`Observer::edge_counters`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut identity_entries = self.identity.entries().to_vec();
        identity_entries.extend([("name", self.graph.names().len()), ("peer", self.peers.len())]);
        identity_entries.sort_unstable();
        Stats {
            edges: self.graph.edges().len(),
            service_flows: self.graph.service_flows().len(),
            pending: self.waiting.len() + self.waiting.redirects.len(),
            unresolved: self.ledger.unresolved_totals().map(|(reason, count)| (reason.as_str(), count)).collect(),
            losses: self.ledger.loss_totals().map(|(reason, count)| (reason, reason.class(), count)).collect(),
            names_forgotten: self.graph.names().forgotten(),
            identity_entries,
        }
    }
}
