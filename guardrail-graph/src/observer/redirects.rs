//! Connections that a proxy in the pod takes (docs/data-planes.md): what arrives at its port
//! dialled another one, and what the pod's application calls ends at the proxy.
//!
//! The kernel counts a connection when it is established, and once more when the proxy is told what
//! it dialled, which follows within moments. So a flow that may be a proxy's waits, and each answer
//! takes one connection off it. What is left over after a while was not told to anybody.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use super::{
    Observer,
    edge::Gain,
    flows::{Last, as_client},
    identity::{LocalEnd, PodId, RemoteEnd, Resolution},
    peers::PeerId,
};
use crate::{
    observe::{FlowDelta, LossReason, Observation, PROXY_PORTS, Remote, Role},
    peer::Protocol,
    snapshot::{Counts, Side, facts::Seen},
    time::Timestamp,
};

/// How long an answer may come after the connection: a proxy asks as soon as it accepts, and both
/// are in the kernel's map at the next sweep but one.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long answers wait for connections that they can be taken off.
const MEMORY: Duration = Duration::from_secs(60);

/// Clients outside of the cluster that are kept apart, of those whose port nobody was told.
const MAX_OUTSIDE: usize = 1_000;
/// The address that stands for the others.
pub(super) const MANY_OUTSIDE: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Which connections answers are taken off: those of one pod, one remote and one port (a server's:
/// the proxy's).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) pod: PodId,
    pub(super) side: Side,
    pub(super) local: IpAddr,
    pub(super) remote: Remote,
    pub(super) port: u16,
}

/// Connections without an answer yet, oldest first, and answers without a connection.
#[derive(Debug, Default)]
struct Account {
    held: VecDeque<(FlowDelta, Timestamp)>,
    answers: u64,
    touched: Timestamp,
}

impl Account {
    /// Takes answers off connections.
    fn settle(&mut self) {
        while self.answers > 0
            && let Some((oldest, _)) = self.held.front_mut()
        {
            let taken = oldest.counts.opened.min(self.answers);
            oldest.counts.opened -= taken;
            self.answers -= taken;
            // Those that were found are older than the program that sees answers.
            if oldest.counts.opened > 0 || oldest.counts.found > 0 {
                break;
            }
            self.held.pop_front();
        }
    }
}

/// What waits for answers.
#[derive(Debug, Default)]
pub(super) struct Redirects {
    accounts: BTreeMap<Key, Account>,
    held: usize,
    /// Addresses outside of the cluster of which nobody has a record: kept apart up to a bound
    /// in each epoch.
    outside: BTreeSet<IpAddr>,
}

impl Redirects {
    /// The flows that wait.
    pub(super) fn flows(&self) -> impl Iterator<Item = &FlowDelta> {
        self.accounts.values().flat_map(|account| account.held.iter().map(|(delta, _)| delta))
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.held
    }

    /// Takes answers for so many connections. False: there is no room for another account.
    fn answer(&mut self, key: Key, connections: u64, now: Timestamp, max: usize) -> bool {
        self.change(key, now, max, |account| account.answers += connections)
    }

    /// Another epoch begins: it has room for others.
    pub(super) fn turn(&mut self) {
        self.outside.clear();
    }

    /// The address under which a client outside of the cluster is kept: its own, or that of many.
    fn outside(&mut self, address: IpAddr) -> IpAddr {
        if self.outside.len() < MAX_OUTSIDE {
            self.outside.insert(address);
        }
        if self.outside.contains(&address) { address } else { MANY_OUTSIDE }
    }

    /// False: there is no room for another account.
    fn change(&mut self, key: Key, now: Timestamp, max: usize, change: impl FnOnce(&mut Account)) -> bool {
        if self.accounts.len() >= max && !self.accounts.contains_key(&key) {
            return false;
        }
        let account = self.accounts.entry(key).or_default();
        let before = account.held.len();
        account.touched = now;
        change(account);
        account.settle();
        self.held = self.held + account.held.len() - before;
        true
    }

    /// Takes out what has waited long enough, or everything.
    fn take_due(&mut self, now: Timestamp, all: bool) -> Vec<FlowDelta> {
        let mut due = Vec::new();
        self.accounts.retain(|_, account| {
            while account.held.front().is_some_and(|(_, since)| all || now.since(*since) >= PATIENCE) {
                due.extend(account.held.pop_front().map(|(delta, _)| delta));
            }
            !account.held.is_empty() || now.since(account.touched) < MEMORY
        });
        self.held -= due.len();
        due
    }
}

impl Observer {
    /// Takes an answer, for a peer of this node.
    pub(super) fn take_answer(&mut self, key: Key, delta: &FlowDelta, local: PeerId, now: Timestamp) {
        if self.waiting.redirects.answer(key, delta.counts.opened, now, self.config.max_pending) {
            return;
        }
        // What it would have been taken off is taken for what it was not.
        self.ledger.count_loss(LossReason::PendingOverflow, 1);
        let first = delta.first_open.or(delta.last_open).unwrap_or(now);
        self.ledger.incomplete_peer_since(local, LossReason::PendingOverflow.as_str(), first);
    }

    /// Takes a flow that a proxy may have been told of, or an answer. False: it goes on to the
    /// graph.
    pub(super) fn divert(
        &mut self,
        delta: &FlowDelta,
        local: &LocalEnd,
        role: Role,
        now: Timestamp,
        last: Last,
    ) -> bool {
        let Some(pod) = local.pod.filter(|_| delta.protocol == Protocol::Tcp) else { return false };
        let side = if role == Role::Server { Side::Server } else { Side::Client };
        let proxy = delta.local_port.filter(|_| delta.role != Role::Undecided && self.config.redirects);
        let port = if side == Side::Server { proxy.unwrap_or(delta.server_port) } else { delta.server_port };
        let key = Key { pod, side, local: delta.local, remote: delta.remote, port };
        if proxy.is_some() {
            self.take_answer(key, delta, local.peer, now);
            if side == Side::Client {
                self.captured(delta, local, now);
            }
            return side == Side::Client;
        }
        let may_be_told = delta.counts.opened > 0 || delta.counts.found > 0;
        let is_at_a_proxy = self.is_at_a_proxy(delta, side);
        if !may_be_told || !(is_at_a_proxy || self.may_be_inside(delta, local, side)) {
            return false;
        }
        let max = self.config.max_pending;
        let has_room = !last.is_settled && self.waiting.redirects.len() < max;
        if has_room
            && self.waiting.redirects.change(key, now, max, |account| account.held.push_back((delta.clone(), now)))
        {
            return true;
        }
        is_at_a_proxy && side == Side::Server && self.untold(delta, local, now)
    }

    /// Whether a flow may be one that a proxy in its pod takes.
    pub(super) fn is_at_a_proxy(&self, delta: &FlowDelta, side: Side) -> bool {
        match side {
            _ if !self.config.redirects => false,
            Side::Server => PROXY_PORTS.contains(&delta.server_port),
            Side::Client => delta.netns.is_some_and(|netns| {
                let sockets = self.identity.sockets();
                PROXY_PORTS.iter().any(|port| sockets.listens(netns, *port, delta.local))
            }),
        }
    }

    /// Ends waits for answers.
    pub(super) fn settle_redirects(&mut self, now: Timestamp, all: bool) {
        for delta in self.waiting.redirects.take_due(now, all) {
            self.observe_flow(Observation::Flow(delta), now, true);
        }
    }

    /// The pod's application asked for this, and its proxy took the connection. Of a Service that
    /// is remembered, without any count: the proxy's own connections go to the pods behind it.
    fn captured(&mut self, delta: &FlowDelta, local: &LocalEnd, now: Timestamp) {
        let at = delta.last_open.or(delta.first_open).unwrap_or(now);
        let Remote::Addr(address) = delta.remote else { return };
        let asked = self.remote_server((address, delta.server_port, delta.protocol), at, true);
        let Resolution::Known(RemoteEnd::Service { service, port }) = asked else { return };
        let first = delta.first_open.unwrap_or(at).min(at);
        let gain = Gain {
            side: Side::Client,
            seen: Seen { counts: Counts::default(), first, last: at },
            closed: 0,
            marks: 0,
            node_workload: None,
            port_name: None,
        };
        if self.graph.capture_service((local.peer, service, delta.protocol, port), &gain).is_err() {
            self.ledger.count_full(local.peer, first);
        }
    }

    /// Connections that arrived at a proxy's port, and nobody was told what they dialled: the
    /// client's own record of it decides, which may be another node's
    /// ([`crate::snapshot::redirected`]). False: they are counted elsewhere.
    fn untold(&mut self, delta: &FlowDelta, local: &LocalEnd, now: Timestamp) -> bool {
        let at = delta.last_open.or(delta.first_open).unwrap_or(now);
        let Remote::Addr(address) = delta.remote else { return false };
        let from = match self.remote_peer(address, at, true) {
            // A pod that reaches itself is no edge.
            Resolution::Known(RemoteEnd::Peer { pod, .. }) if pod == local.pod => return true,
            Resolution::Known(RemoteEnd::External { .. }) => self.waiting.redirects.outside(address),
            _ => address,
        };
        let counts = as_client(&delta.counts, Role::Server);
        let gain = Gain {
            side: Side::Server,
            seen: Seen { counts, first: delta.first_open.unwrap_or(at).min(at), last: at },
            closed: delta.counts.closed,
            marks: local.marks,
            node_workload: local.node_workload.clone(),
            port_name: None,
        };
        let key = (local.peer, Side::Server, from, delta.protocol, delta.server_port, true);
        if self.graph.gain_remote(key, &gain).is_err() {
            self.ledger.count_full(local.peer, gain.seen.first);
        }
        true
    }
}
