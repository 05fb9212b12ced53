//! From one flow delta to edges.

use std::{fmt, net::IpAddr, sync::Arc};

use super::{
    Observer, UnresolvedReason,
    edge::{Gain, is_set_aside, mark_bit},
    edges::Ref,
    identity::{LocalEnd, PodId, RemoteEnd, Resolution, address_class},
    ledger::{End, Ends},
    lookups::is_beside_first_network,
    peers::PeerId,
};
use crate::{
    observe::{self, FlowCounts, FlowDelta, Role},
    peer::Protocol,
    snapshot::{Counts, Side, facts::Seen, marks},
    time::Timestamp,
};

/// What became of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Done,
    WaitPod,
    WaitRole,
}

/// What is no longer waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) pod: bool,
    pub(super) role: bool,
    /// What a proxy may have been told of it.
    pub(super) is_settled: bool,
}

impl Last {
    /// Nothing.
    pub(super) const ALL: Self = Self { pod: true, role: true, is_settled: true };
}

/// What the evidence says of a UDP or undecided flow.
pub(super) enum Decided {
    Client,
    Server(u16),
    /// An answer to an exchange that began before the agent: no edge.
    Reply,
    Wait,
    Unknown,
}

/// A flow whose local end has a role.
#[derive(Clone, Copy)]
pub(super) struct DecidedFlow<'a> {
    pub(super) delta: &'a FlowDelta,
    pub(super) role: Role,
    /// The server's port.
    pub(super) port: u16,
    /// The remote address.
    pub(super) address: IpAddr,
}

pub(super) fn weight(counts: &FlowCounts) -> u64 {
    counts
        .opened
        .saturating_add(counts.found)
        .saturating_add(counts.refused)
        .saturating_add(counts.unanswered)
        .saturating_add(counts.unreachable)
}

/// Counts as the client sees them.
pub(super) fn as_client(counts: &FlowCounts, role: Role) -> Counts {
    let (bytes_sent, bytes_received) = match role {
        Role::Server => (counts.bytes_received, counts.bytes_sent),
        _ => (counts.bytes_sent, counts.bytes_received),
    };
    let short = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    Counts {
        opened: counts.opened,
        found: short(counts.found),
        open: 0,
        refused: counts.refused,
        unanswered: counts.unanswered,
        unreachable: short(counts.unreachable),
        broken: short(counts.broken),
        bytes_sent,
        bytes_received,
    }
}

/// The mark of a connection that dialled the port of the proxy which took it: the proxy was told
/// so, or it is one of the node's (ambient mesh), between two of which there is nothing to ask.
fn tunnel_mark(delta: &FlowDelta, local: &LocalEnd) -> u8 {
    let is_told = delta.role == Role::Server && delta.local_port == Some(delta.server_port);
    let is_of_nodes = delta.server_port == marks::HBONE && local.marks & mark_bit(marks::PROXIED) != 0;
    if delta.protocol == Protocol::Tcp && (is_told || is_of_nodes) { mark_bit(marks::TUNNEL) } else { 0 }
}

/// Marks of the address that the client asked for, which is the local one at its server. Of a link
/// only IPv4 has such that pods ask for.
fn asked_marks(role: Role, local: IpAddr, remote: IpAddr) -> u8 {
    let link_local = mark_bit(marks::LINK_LOCAL);
    let asked = if role == Role::Server { local } else { remote };
    let of_link = if asked.is_ipv4() { address_class(asked) & link_local } else { 0 };
    // A group's address is the local one at its receivers.
    (address_class(local) & !link_local) | of_link
}

/// Whether two remote ends make one edge: replicas of a workload do.
pub(super) fn is_same(a: &Resolution<RemoteEnd>, b: &Resolution<RemoteEnd>) -> bool {
    match (a, b) {
        (Resolution::Known(RemoteEnd::Peer { peer: a, .. }), Resolution::Known(RemoteEnd::Peer { peer: b, .. })) => {
            a == b
        }
        _ => a == b,
    }
}

impl Observer {
    /// Names a flow and adds it to the graph, or says what it waits for.
    pub(super) fn flow(&mut self, delta: &FlowDelta, now: Timestamp, last: Last) -> Step {
        let at = delta.last_open.or(delta.first_open).unwrap_or(now);
        let remote = match delta.remote {
            observe::Remote::Addr(address) if address.is_loopback() => return Step::Done,
            remote => remote,
        };
        if let Some(step) = self.inside(delta, at, now, last) {
            return step;
        }
        let local = match self.local_end(delta.cgroup, delta.local, at, last.pod) {
            Resolution::Known(local) => local,
            Resolution::Wait => return Step::WaitPod,
            Resolution::Unresolved(reason) => {
                self.lost_local(delta, reason, at);
                return Step::Done;
            }
        };
        let (role, port) = match self.role(delta, &local, at, last.role) {
            Decided::Client => (Role::Client, delta.server_port),
            Decided::Server(port) => (Role::Server, port),
            Decided::Reply => return Step::Done,
            Decided::Wait => return Step::WaitRole,
            Decided::Unknown => {
                let undecided = (Role::Undecided, &local);
                self.unresolved_flow(UnresolvedReason::RoleUnknown, delta, undecided, weight(&delta.counts));
                return Step::Done;
            }
        };
        if role == Role::Server {
            self.learn_served(delta, port, at);
        }
        if self.divert(delta, &local, role, now, last) {
            return Step::Done;
        }
        let address = match remote {
            observe::Remote::Addr(address) => address,
            observe::Remote::Many => {
                self.many_peers(delta, &local, (role, port), at);
                return Step::Done;
            }
        };
        self.instants(DecidedFlow { delta, role, port, address }, local, at, now, last)
    }

    /// `first_open` and `last_open` each prove an edge to the owner at that instant.
    pub(super) fn instants(
        &mut self,
        flow: DecidedFlow<'_>,
        local: LocalEnd,
        at: Timestamp,
        now: Timestamp,
        last: Last,
    ) -> Step {
        let DecidedFlow { delta, role, port, address } = flow;
        let beside = is_beside_first_network(local.marks);
        let end = |this: &mut Self, at| match role {
            _ if beside => this.identity.peer_beside(address, at, last.pod),
            Role::Server => this.remote_peer(address, at, last.pod),
            _ => this.remote_server((address, port, delta.protocol), at, last.pod),
        };
        let remote = end(self, at);
        if remote == Resolution::Wait {
            return Step::WaitPod;
        }
        let counts = as_client(&delta.counts, role);
        let total = weight(&delta.counts);
        if let Some(first) = delta.first_open.filter(|f| *f < at)
            && (self.identity.changed_between(address, first, at)
                || self.identity.changed_between(delta.local, first, at))
        {
            let first_local = match self.local_end(delta.cgroup, delta.local, first, last.pod) {
                Resolution::Wait => return Step::WaitPod,
                Resolution::Known(found) => found,
                Resolution::Unresolved(_) => local.clone(),
            };
            let first_remote = end(self, first);
            if first_remote == Resolution::Wait {
                return Step::WaitPod;
            }
            // It may have come back to its first owner.
            let others = || self.identity.other_peers_between(address, first, at);
            if !is_same(&first_remote, &remote) || first_local.peer != local.peer || others() {
                self.split(flow, [(first_local, first_remote, first), (local, remote, at)], counts);
                return Step::Done;
            }
        } else if delta.first_open.is_none() && total > 1 {
            // All but the last of these came some time since the last sweep, and the address may
            // have been another's then.
            let since = at.before(self.config.sweep_interval);
            if self.identity.changed_between(address, since, at) && !self.identity.is_same_peer(address, since, at) {
                let one = Counts {
                    opened: counts.opened.min(1),
                    found: 0,
                    refused: 0,
                    unanswered: 0,
                    unreachable: 0,
                    ..counts
                };
                self.unresolved_flow(UnresolvedReason::IpReuse, delta, (role, &local), total - one.opened);
                self.record(flow, &local, remote, Seen { counts: one, first: at, last: at });
                return Step::Done;
            }
        }
        if remote == Resolution::Unresolved(UnresolvedReason::PodRangeNoOwner) {
            self.keep_unnamed(flow, &local, now);
            return Step::Done;
        }
        let first = delta.first_open.unwrap_or(at).min(at);
        self.record(flow, &local, remote, Seen { counts, first, last: at });
        Step::Done
    }

    /// One kernel entry whose remote (or local) address had two owners: one connection is proven
    /// for each, the rest belongs to the later one unless a third owner came between.
    fn split(
        &mut self,
        flow: DecidedFlow<'_>,
        ends: [(LocalEnd, Resolution<RemoteEnd>, Timestamp); 2],
        counts: Counts,
    ) {
        let DecidedFlow { delta, role, address, .. } = flow;
        let [(first_local, first_remote, first), (last_local, last_remote, at)] = ends;
        if counts.opened < 2 || counts.found > 0 {
            // One connection and one failed attempt: which of the two owners was reached cannot be
            // told.
            self.unresolved_flow(UnresolvedReason::IpReuse, delta, (role, &last_local), weight(&delta.counts));
            return;
        }
        let one = Counts { opened: 1, ..Counts::default() };
        let mut rest = Counts { opened: counts.opened - 1, ..counts };
        if rest.opened > 1 && self.identity.others_between(address, first, at) {
            self.unresolved_flow(UnresolvedReason::IpReuse, delta, (role, &last_local), rest.opened - 1);
            rest.opened = 1;
        }
        self.record(flow, &first_local, first_remote, Seen { counts: one, first, last: first });
        self.record(flow, &last_local, last_remote, Seen { counts: rest, first: at, last: at });
    }

    fn record(&mut self, flow: DecidedFlow<'_>, local: &LocalEnd, remote: Resolution<RemoteEnd>, seen: Seen) {
        let DecidedFlow { delta, role, port, address } = flow;
        let remote = match remote {
            Resolution::Known(remote) => remote,
            Resolution::Wait => return,
            Resolution::Unresolved(reason) => {
                let counts = &seen.counts;
                self.unresolved_flow(
                    reason,
                    delta,
                    (role, local),
                    counts.established().saturating_add(counts.failed()),
                );
                return;
            }
        };
        let asked = if role == Role::Server { 0 } else { self.host_port_mark(&remote, address, seen.last) };
        let gain = Gain {
            side: if role == Role::Server { Side::Server } else { Side::Client },
            seen,
            closed: delta.counts.closed,
            marks: local.marks | asked_marks(role, delta.local, address) | tunnel_mark(delta, local) | asked,
            node_workload: local.node_workload.clone(),
            port_name: None,
        };
        self.place(local, (address, port, delta.protocol), remote, gain);
    }

    /// The name of the server's port.
    pub(super) fn name_port(
        &mut self,
        local: &LocalEnd,
        remote: &RemoteEnd,
        (port, protocol): (u16, Protocol),
        gain: &mut Gain,
    ) {
        let pod = match (gain.side, remote) {
            (Side::Server, _) if gain.port_name.is_none() => local.pod,
            (Side::Client, RemoteEnd::Peer { pod, .. }) => *pod,
            _ => return,
        };
        gain.port_name = pod.and_then(|id| self.port_name(id, port, protocol));
    }

    /// Adds what was seen at the local end to where the remote end belongs, which has this address.
    /// The port is the server's.
    pub(super) fn place_now(
        &mut self,
        local: &LocalEnd,
        (address, port, protocol): (IpAddr, u16, Protocol),
        remote: RemoteEnd,
        mut gain: Gain,
    ) {
        let first = gain.seen.first;
        self.name_port(local, &remote, (port, protocol), &mut gain);
        let local_ref = Ref::Peer(local.peer);
        let (remote_ref, port) = match remote {
            // A pod that reaches itself (through its Service, or by its own address) is no edge.
            RemoteEnd::Peer { pod: Some(pod), .. } if local.pod == Some(pod) => return,
            // What `merge` would name takes part in what is judged.
            RemoteEnd::RemotePod | RemoteEnd::Service { .. } if is_set_aside(gain.marks) => return,
            RemoteEnd::Peer { peer, pod } => {
                if gain.side == Side::Client && gain.node_workload.is_none() && pod.is_none() {
                    gain.node_workload = self.host_network_server(peer, port, protocol);
                }
                (Ref::Peer(peer), port)
            }
            RemoteEnd::HostPort { peer, port } => (Ref::Peer(peer), port),
            RemoteEnd::External { marks } => {
                gain.marks |= marks;
                (Ref::External(address), port)
            }
            RemoteEnd::RemotePod => {
                let key = (local.peer, gain.side, address, protocol, port, false);
                if self.graph.gain_remote(key, &gain).is_err() {
                    self.ledger.count_full(local.peer, first);
                }
                return;
            }
            RemoteEnd::Service { service, port } => {
                let key = (local.peer, service, protocol, port);
                if self.graph.gain_service(key, &gain).is_err() {
                    self.ledger.count_full(local.peer, first);
                }
                return;
            }
        };
        let is_server = gain.side == Side::Server;
        let ends = if is_server { [remote_ref, local_ref] } else { [local_ref, remote_ref] };
        if self.graph.gain(ends, (protocol, port), &gain, &mut self.peers).is_err() {
            self.ledger.count_full(local.peer, first);
        }
    }

    fn port_name(&mut self, pod: PodId, port: u16, protocol: Protocol) -> Option<Arc<str>> {
        let name = self.identity.pod(pod)?.pod.port_name(port, protocol)?;
        Some(self.texts.intern(name))
    }

    /// The workload of the one host-network pod of a node that declares a port.
    fn host_network_server(&self, node: PeerId, port: u16, protocol: Protocol) -> Option<Arc<str>> {
        self.peers.node_name(node)?;
        self.identity.host_port(node, port, protocol).cloned().flatten()
    }

    /// The coarse key: whoever they were, a server's clients are "many", and complete; a client's
    /// servers are unknown.
    fn many_peers(&mut self, delta: &FlowDelta, local: &LocalEnd, (role, port): (Role, u16), at: Timestamp) {
        let first = delta.first_open.unwrap_or(at).min(at);
        let seen = Seen { counts: as_client(&delta.counts, role), first, last: at };
        if role == Role::Server {
            let mut gain = Gain {
                side: Side::Server,
                seen,
                closed: delta.counts.closed,
                marks: local.marks,
                node_workload: local.node_workload.clone(),
                port_name: None,
            };
            gain.port_name = local.pod.and_then(|id| self.port_name(id, port, delta.protocol));
            let ends = [Ref::Peer(self.graph.many()), Ref::Peer(local.peer)];
            if self.graph.gain(ends, (delta.protocol, port), &gain, &mut self.peers).is_err() {
                self.ledger.count_full(local.peer, first);
            }
        } else if weight(&delta.counts) > 0 {
            self.ledger.count_coarse_client(local.peer, weight(&delta.counts), first);
        }
    }

    /// The role of the local socket. Socket state has decided already for TCP but for sockets found
    /// at start whose state does not tell.
    pub(super) fn role(&self, delta: &FlowDelta, local: &LocalEnd, at: Timestamp, last: bool) -> Decided {
        let observe::Remote::Addr(remote) = delta.remote else {
            return match delta.role {
                Role::Client => Decided::Client,
                Role::Server => Decided::Server(delta.server_port),
                Role::Undecided => Decided::Unknown,
            };
        };
        match delta.role {
            Role::Server => Decided::Server(delta.server_port),
            Role::Client => match delta.local_port {
                Some(local_port) if delta.protocol == Protocol::Udp => {
                    self.served_udp_client(delta, local, (local_port, remote), at, last)
                }
                _ => Decided::Client,
            },
            Role::Undecided => {
                if let Some(local_port) = delta.local_port
                    && self.listens(delta, local_port)
                {
                    Decided::Server(local_port)
                } else if self.is_server_at(remote, delta.server_port, delta.protocol, at) {
                    Decided::Client
                } else if last {
                    Decided::Unknown
                } else {
                    Decided::Wait
                }
            }
        }
    }

    /// UDP sent from a port that the application chose: its own initiative, or a reply in an
    /// exchange that is older than the agent?
    fn served_udp_client(
        &self,
        delta: &FlowDelta,
        local: &LocalEnd,
        (local_port, remote): (u16, IpAddr),
        at: Timestamp,
        last: bool,
    ) -> Decided {
        let is_server_of_remote = match self.remote_peer(remote, at, true) {
            _ if self.held.contains(&(local.peer, Side::Server, remote, Protocol::Udp, local_port, false)) => true,
            Resolution::Known(RemoteEnd::Peer { peer, .. }) => {
                self.graph.edges().contains(&(peer, local.peer, Protocol::Udp, local_port))
            }
            Resolution::Known(RemoteEnd::RemotePod) => {
                self.graph.has_remote(&(local.peer, Side::Server, remote, Protocol::Udp, local_port, false))
            }
            Resolution::Known(RemoteEnd::External { .. }) => self
                .peers
                .known_external(remote)
                .is_some_and(|peer| self.graph.edges().contains(&(peer, local.peer, Protocol::Udp, local_port))),
            _ => false,
        };
        if delta.bind_seen && !is_server_of_remote {
            return Decided::Client;
        }
        let local_serves =
            self.identity.serves(delta.local, local_port, at) || self.declares(local, local_port, Protocol::Udp);
        let remote_serves = self.is_server_at(remote, delta.server_port, Protocol::Udp, at)
            || self.identity.serves(remote, delta.server_port, at);
        match (local_serves, remote_serves) {
            // Gossip and NTP: both ports are fixed, and each side's own sends make an edge.
            _ if local_port == delta.server_port => Decided::Client,
            (_, true) => Decided::Client,
            // A full table does not tell who serves nothing.
            (true, false) if self.identity.sockets().has_room() => Decided::Reply,
            (_, false) if last => Decided::Unknown,
            (_, false) => Decided::Wait,
        }
    }

    fn declares(&self, local: &LocalEnd, port: u16, protocol: Protocol) -> bool {
        local
            .pod
            .and_then(|id| self.identity.pod(id))
            .is_some_and(|r| r.pod.ports.iter().any(|p| p.port == port && protocol.is_named(&p.protocol)))
    }

    fn listens(&self, delta: &FlowDelta, port: u16) -> bool {
        delta.netns.is_some_and(|netns| self.identity.sockets().listens(netns, port, delta.local))
    }

    fn learn_served(&mut self, delta: &FlowDelta, port: u16, at: Timestamp) {
        if delta.protocol != Protocol::Udp || address_class(delta.local) != 0 {
            return;
        }
        if !self.identity.learn_served(delta.local, port, at) {
            self.ledger.count_loss(observe::LossReason::ListenersFull, 1);
        }
    }

    /// A flow whose local end never became known: the other end, if it is known, misses an edge.
    pub(super) fn lost_local(&mut self, delta: &FlowDelta, reason: UnresolvedReason, at: Timestamp) {
        let count = weight(&delta.counts);
        if count == 0 {
            return;
        }
        let remote = (delta.remote, delta.server_port, delta.protocol);
        if reason == UnresolvedReason::OtherNode {
            self.ledger.count_unresolved(reason, count, || example(delta.local, delta.role, remote));
            return;
        }
        self.ledger.count_unresolved(reason, count, || {
            example(format_args!("cgroup {} ({})", delta.cgroup.0, delta.local), delta.role, remote)
        });
        self.ledger.incomplete_peer(self.identity.this_node(), reason.as_str());
        if delta.counts.opened > 0 || delta.counts.found > 0 {
            let known = match delta.remote {
                observe::Remote::Addr(address) => match self.remote_peer(address, at, true) {
                    Resolution::Known(RemoteEnd::Peer { peer, .. }) => Some(End::Peer(peer)),
                    _ => None,
                },
                observe::Remote::Many => None,
            };
            let ends =
                ends(End::Address(delta.local), delta.role, remote).map(|(client, server, protocol, port)| {
                    match (delta.role, known) {
                        (_, None) => (client, server, protocol, port),
                        (Role::Server, Some(known)) => (known, server, protocol, port),
                        (_, Some(known)) => (client, known, protocol, port),
                    }
                });
            self.ledger.keep_unresolved(reason, ends);
        }
        if let observe::Remote::Addr(address) = delta.remote
            && let Resolution::Known(RemoteEnd::Peer { peer, .. }) = self.remote_peer(address, at, true)
        {
            self.ledger.incomplete_peer(peer, reason.as_str());
        }
    }

    fn unresolved_flow(
        &mut self,
        reason: UnresolvedReason,
        delta: &FlowDelta,
        (role, local): (Role, &LocalEnd),
        count: u64,
    ) {
        let remote = (delta.remote, delta.server_port, delta.protocol);
        let established = delta.counts.opened > 0 || delta.counts.found > 0;
        self.unresolved(reason, (role, local.peer), remote, count, established);
    }

    /// Counts what `peer`, in this role, had with a remote end that has no name. Failed attempts
    /// support nothing, so nothing is missing without them: only if some were `established` is the
    /// peer incomplete.
    pub(super) fn unresolved(
        &mut self,
        reason: UnresolvedReason,
        (role, peer): (Role, PeerId),
        remote: (observe::Remote, u16, Protocol),
        count: u64,
        established: bool,
    ) {
        if count == 0 {
            return;
        }
        let peers = &self.peers;
        self.ledger.count_unresolved(reason, count, || example(peers.get(peer), role, remote));
        if established {
            self.ledger.incomplete_peer(peer, reason.as_str());
            if reason == UnresolvedReason::PodRangeNoOwner {
                self.unnamed.give_up(peer);
            }
            self.ledger.keep_unresolved(reason, ends(End::Peer(peer), role, remote));
        }
    }
}

/// The ends of a flow, whichever of them is the local one; `None` if the other is not one. Where
/// the role could not be told, the local end stands first.
pub(super) fn ends(local: End, role: Role, (remote, port, protocol): (observe::Remote, u16, Protocol)) -> Option<Ends> {
    let observe::Remote::Addr(address) = remote else { return None };
    let remote = End::Address(address);
    Some(match role {
        Role::Server => (remote, local, protocol, port),
        Role::Client | Role::Undecided => (local, remote, protocol, port),
    })
}

/// `client -> server:port/protocol`, whichever of them is the local end. `port` is the server's.
/// Where the role could not be told, the local end stands first.
pub(super) fn example(
    local: impl fmt::Display,
    role: Role,
    (remote, port, protocol): (observe::Remote, u16, Protocol),
) -> String {
    match (role, remote) {
        (Role::Server, observe::Remote::Addr(client)) => format!("{client} -> {local}:{port}/{protocol}"),
        (Role::Server, observe::Remote::Many) => format!("many -> {local}:{port}/{protocol}"),
        (_, observe::Remote::Addr(IpAddr::V6(server))) => format!("{local} -> [{server}]:{port}/{protocol}"),
        (_, observe::Remote::Addr(server)) => format!("{local} -> {server}:{port}/{protocol}"),
        (_, observe::Remote::Many) => format!("{local} -> many:{port}/{protocol}"),
    }
}
