//! The end of an epoch, and the beginning of the next.
//!
//! What is counted belongs to an epoch. What is known of the cluster, of sockets and names, and
//! what waits for a name goes on.

use std::{collections::HashMap, time::Duration};

use super::{
    Observer,
    flows::{Decided, Last},
    graph::Standing,
    identity::{LocalEnd, PodId, RemoteEnd, Resolution},
    peers::PeerId,
    redirects::MANY_OUTSIDE,
};
use crate::{
    observe::{OpenFlow, Remote, Role},
    peer::Protocol,
    snapshot::{Document, Side},
    time::Timestamp,
};

/// So long after its first traffic an address may turn out to be a pod's.
const LATE: Duration = Duration::from_secs(300);

/// Connections of a pod's proxy: those it was told of by the kernel are others' too.
type AtProxy = (Option<PodId>, Side, std::net::IpAddr, Remote, u16);

/// What is open, where.
struct Opening {
    at: Standing,
    local: PeerId,
    proxy: AtProxy,
    /// A proxy was told what this dialled.
    is_answer: bool,
    /// A proxy may have been told.
    is_at_a_proxy: bool,
    open: u64,
}

impl Observer {
    /// When the open epoch began; `None`: the state that was continued knows no epochs.
    #[must_use]
    pub fn epoch(&self) -> Option<Timestamp> {
        self.history.epoch()
    }

    /// Ends the epoch and begins the next. Gives what was counted in the one that ended, and all
    /// that was known then: it never changes.
    ///
    /// `open`: every connection that is open now. Each is evidence of the next epoch, if both ends
    /// are known now and the epoch that ended has it. An edge with an address that may turn out to
    /// be the cluster's own moves to the next epoch whole, and so does a flow that has no name yet.
    pub fn turn(&mut self, open: &[OpenFlow], now: Timestamp) -> Document {
        self.turn_over(open, now, now)
    }

    /// The same where the clock was set forward: the epoch ends at `now`, as it was before, and the
    /// next one `begins` where the clock is. What lies between never was, and is in neither.
    pub fn turn_over(&mut self, open: &[OpenFlow], now: Timestamp, begins: Timestamp) -> Document {
        self.reclassify_due(now);
        let open = self.standings(open, now);
        self.graph.set_open(&open);
        let since = now.before(LATE);
        let young = self.graph.take_young(since, &self.peers);
        let (unnamed, held) = (self.take_unnamed(), self.take_held());
        let document = self.document(now);
        let closed = self.graph.turn(&self.config, &open, &self.peers);
        self.ledger.turn();
        self.presence.turn();
        self.catalogue.turn();
        self.nodes.turn();
        self.former.turn();
        self.waiting.redirects.turn();
        self.history.turn(begins);
        if begins > now {
            self.history.begins_with_step(now);
            self.presence.resume(begins);
        }
        for (key, edge) in young {
            self.graph.restore_edge(key, edge, &self.peers);
        }
        self.put_unnamed(unnamed);
        self.held = held;
        for (at, count) in open {
            self.graph.open(at, count, begins, &closed, &self.peers);
        }
        document
    }

    /// The clock was set forward from `now`, and the epoch goes on where it `begins` anew: nothing
    /// was observed in between, and nobody was there.
    pub fn step(&mut self, now: Timestamp, begins: Timestamp) {
        self.step_presence(now, begins);
        self.history.step(now, begins);
    }

    /// Begins an epoch with this run of observation: the one of the state that was continued had
    /// ended before, and has everything that the state has. For an observer that observed nothing
    /// yet.
    pub fn turn_back(&mut self) {
        let ended = self.restored.as_ref().map_or(self.config.started, |restored| restored.ended);
        self.graph.turn(&self.config, &HashMap::new(), &self.peers);
        self.ledger.turn();
        self.presence.turn_back(&self.config.node, ended);
        self.catalogue.turn();
        self.nodes.turn();
        self.former.turn();
        self.history.turn_back();
    }

    /// Where connections that are open stand in the graph, and how many they are.
    fn standings(&mut self, open: &[OpenFlow], now: Timestamp) -> HashMap<Standing, u32> {
        let openings: Vec<Opening> = open.iter().filter_map(|open| self.opening(open, now)).collect();
        let mut told: HashMap<AtProxy, u64> = HashMap::new();
        for opening in openings.iter().filter(|opening| opening.is_answer) {
            *told.entry(opening.proxy).or_default() += opening.open;
        }
        let mut standings: HashMap<Standing, u32> = HashMap::new();
        for Opening { mut at, local, proxy, is_answer, is_at_a_proxy, mut open } in openings {
            match (is_answer, proxy.1) {
                // Nothing of it left the pod.
                (true, Side::Client) => continue,
                (true, Side::Server) => {}
                (false, side) => {
                    let taken = told.get_mut(&proxy).map_or(0, |told| {
                        let taken = open.min(*told);
                        *told -= taken;
                        taken
                    });
                    open -= taken;
                    // Nobody said what these dialled.
                    if is_at_a_proxy && side == Side::Server {
                        at = match proxy {
                            (.., Remote::Addr(address), port) => {
                                let of = |address| (local, side, address, Protocol::Tcp, port, true);
                                let is_apart = self.graph.has_remote(&of(address));
                                Standing::Remote(of(if is_apart { address } else { MANY_OUTSIDE }))
                            }
                            _ => continue,
                        };
                    }
                }
            }
            if let (1.., Ok(open)) = (open, u32::try_from(open)) {
                let sum = standings.entry(at).or_default();
                *sum = sum.saturating_add(open);
            }
        }
        standings
    }

    /// Where an open connection stands; `None` if an end of it is not known, or not known any more.
    fn opening(&mut self, OpenFlow { flow, open }: &OpenFlow, now: Timestamp) -> Option<Opening> {
        // What it shows of its address was learned when it was counted.
        let (Resolution::Known(local), _) = self.identity.local_end(flow.cgroup, flow.local, now, false) else {
            return None;
        };
        let (side, port) = match self.role(flow, &local, now, false) {
            Decided::Client => (Side::Client, flow.server_port),
            Decided::Server(port) => (Side::Server, port),
            Decided::Reply | Decided::Wait | Decided::Unknown => return None,
        };
        let proxy = flow.local_port.filter(|_| self.config.redirects && flow.role != Role::Undecided);
        let key = if side == Side::Server { proxy.unwrap_or(port) } else { port };
        Some(Opening {
            at: self.standing(&local, side, (flow.remote, port, flow.protocol), now)?,
            local: local.peer,
            proxy: (local.pod, side, flow.local, flow.remote, key),
            is_answer: proxy.is_some(),
            is_at_a_proxy: self.config.redirects && local.pod.is_some() && self.is_at_a_proxy(flow, side),
            open: *open,
        })
    }

    fn standing(
        &mut self,
        local: &LocalEnd,
        side: Side,
        (remote, port, protocol): (Remote, u16, Protocol),
        now: Timestamp,
    ) -> Option<Standing> {
        let many = self.graph.many();
        let Remote::Addr(address) = remote else {
            return (side == Side::Server).then_some(Standing::Edge((many, local.peer, protocol, port), side));
        };
        let remote = match side {
            Side::Server => self.remote_peer(address, now, Last::default().pod),
            Side::Client => self.remote_server((address, port, protocol), now, Last::default().pod),
        };
        let Resolution::Known(remote) = remote else { return None };
        let edge = |peer, port| {
            let ends = if side == Side::Server { (peer, local.peer) } else { (local.peer, peer) };
            (ends.0, ends.1, protocol, port)
        };
        Some(match remote {
            RemoteEnd::Peer { pod: Some(pod), .. } if local.pod == Some(pod) => return None,
            RemoteEnd::Peer { peer, .. } => Standing::Edge(edge(peer, port), side),
            RemoteEnd::HostPort { peer, port } => Standing::Edge(edge(peer, port), side),
            RemoteEnd::External { .. } => {
                let apart = self.peers.known_external(address).map(|peer| edge(peer, port));
                let apart = apart.filter(|key| self.graph.edges().contains(key));
                Standing::Edge(apart.unwrap_or_else(|| edge(many, port)), side)
            }
            RemoteEnd::RemotePod => Standing::Remote((local.peer, side, address, protocol, port, false)),
            RemoteEnd::Service { service, port } => Standing::Service((local.peer, service, protocol, port)),
        })
    }
}
