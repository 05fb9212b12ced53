//! What arrived at a proxy's port while nobody was told what it dialled (docs/data-planes.md). The
//! client's own record says it, which another node's agent may have: so this is decided over the
//! joined facts, anew each time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Counts, Interval, Side, Source,
    behind::workloads_behind,
    derive::{Deriver, Known},
    facts::{Facts, RemoteKey, Seen},
    intervals::hull,
    owners::{GUARD, LEAD, Owners},
    unresolved::FlowEnds,
};
use crate::{
    peer::{CompactPeer, Peer, Protocol},
    time::Timestamp,
    unresolved::UnresolvedReason,
};

/// Until so long before the end of a client's record both ends have counted the same.
const SKEW: Duration = Duration::from_secs(30);

/// Connections that no record explains.
#[derive(Debug)]
pub(super) struct Untold {
    source: Arc<Source>,
    /// The client by its address: whoever had it needs a rule for the port.
    ends: FlowEnds,
    /// The client, if it has a name.
    client: Option<Arc<Peer>>,
    time: Interval,
    connections: u64,
}

/// What one source saw arrive from one client at one proxy.
struct Arrived<'a> {
    key: &'a RemoteKey,
    source: &'a Arc<Source>,
    seen: Seen,
}

impl Arrived<'_> {
    fn untold(&self, client: Option<&Arc<Peer>>, connections: u64) -> Untold {
        let (local, _, address, protocol, port, _) = self.key;
        let address = if address.is_unspecified() { "*".to_owned() } else { address.to_string() };
        Untold {
            source: Arc::clone(self.source),
            ends: (Arc::new(Peer::External { address }), Arc::clone(local), *protocol, *port),
            client: client.cloned(),
            time: Interval { from: self.seen.first, to: self.seen.last },
            connections,
        }
    }
}

/// What a client's own record says of one port of a server.
#[derive(Clone, Copy, Debug)]
struct Dialled {
    time: Interval,
    connections: u64,
    /// Of these, so many arrived at that very port, or the server's proxy was told of them.
    told: u64,
    /// Asked for as a Service behind which there is this server alone.
    is_only_backend: bool,
}

impl Dialled {
    /// Connections that may have arrived unseen.
    fn left(&self) -> u64 {
        self.connections.saturating_sub(self.told)
    }
}

/// Ports of a server that a client dialled by its own record.
type Ports = BTreeMap<u16, Dialled>;

/// A client and a server.
type Pair = (Arc<Peer>, Arc<Peer>);

/// Connections of any time.
fn connections(counts: &Counts) -> u64 {
    counts.established().saturating_add(counts.open.into())
}

impl Facts {
    /// Adds what arrived at proxies to the edges of the ports that were dialled. Gives what nothing
    /// explains.
    pub(super) fn tell_redirected(&mut self) -> Vec<Untold> {
        if !self.remote_flows.keys().any(|key| key.5) {
            return Vec::new();
        }
        let (mut untold, mut told) = (Vec::new(), Vec::new());
        let owners = Owners::of(self);
        let mut pairs: BTreeMap<Pair, Vec<Arrived<'_>>> = BTreeMap::new();
        for (key, facts) in self.remote_flows.iter().filter(|(key, _)| key.5) {
            for (source, _, seen) in facts.flow.sources.iter() {
                let (shares, left) = owners.shares(key.2, seen);
                if left > 0 {
                    untold.push(Arrived { key, source, seen: *seen }.untold(None, left));
                }
                for (client, seen) in shares {
                    let pair = (Arc::clone(client), Arc::clone(&key.0));
                    pairs.entry(pair).or_default().push(Arrived { key, source, seen });
                }
            }
        }
        let dialled = self.dialled(&pairs, &owners);
        for (pair, arrived) in &pairs {
            let (client, server) = pair;
            let nothing = Ports::new();
            let ports = dialled.get(pair).unwrap_or(&nothing);
            // Of each connection that was opened both ends know, once both were asked.
            let mut left = ports.values().map(Dialled::left).fold(0, u64::saturating_add);
            for one in arrived {
                let Arrived { key, source, seen } = one;
                let Some(until) = self.explains(ports, key, client, seen) else {
                    untold.push(one.untold(Some(client), connections(&seen.counts)));
                    continue;
                };
                let mut seen = *seen;
                if seen.last.after(SKEW) <= until && seen.counts.opened > left {
                    untold.push(one.untold(Some(client), seen.counts.opened - left));
                    seen.counts.opened = left;
                }
                left = left.saturating_sub(seen.counts.opened);
                if connections(&seen.counts) > 0 {
                    for (port, seen) in at_ports(ports, &seen) {
                        let edge = (client.into(), CompactPeer::from(server), key.3, port);
                        told.push((edge, Arc::clone(source), seen, RemoteKey::clone(key)));
                    }
                }
            }
        }
        for (edge, source, seen, key) in told {
            let facts = self.edges.entry(edge).or_default();
            facts.gives_way(false);
            let by_merge = &mut facts.rare_mut().by_merge;
            by_merge.sources.plus(source, Side::Server, &Arc::new(seen));
            if let Some(remote) = self.remote_flows.get(&key) {
                by_merge.marks.extend(remote.flow.marks.iter().cloned());
                by_merge.node_workloads.extend(remote.flow.node_workloads.iter().cloned());
            }
        }
        untold
    }

    /// Which ports clients dialled of these servers.
    fn dialled(&self, pairs: &BTreeMap<Pair, Vec<Arrived<'_>>>, owners: &Owners<'_>) -> BTreeMap<Pair, Ports> {
        let mut all: BTreeMap<Pair, Ports> = pairs.keys().map(|pair| (pair.clone(), Ports::new())).collect();
        let mut add = |pair: &Pair, port: u16, seen: &Seen, is_only_backend: bool| {
            let Some(ports) = all.get_mut(pair).filter(|_| seen.counts.is_established()) else { return };
            let time = Interval { from: seen.first, to: seen.last };
            let new = Dialled { time, connections: 0, told: 0, is_only_backend };
            let dialled = ports.entry(port).or_insert(new);
            dialled.time = hull([dialled.time, time]);
            dialled.connections = dialled.connections.saturating_add(connections(&seen.counts));
            dialled.is_only_backend |= is_only_backend;
        };
        for ((client, server, protocol, port), edge) in self.edges.iter().filter(|(_, edge)| !edge.is_set_aside()) {
            if *protocol == Protocol::Tcp
                && let Some(seen) = edge.at(Side::Client)
            {
                add(&(client.peer(), server.peer()), *port, &seen, false);
            }
        }
        let known = Known::new(self, owners);
        for (flow, facts) in self.service_flows.iter().filter(|(flow, _)| flow.2 == Protocol::Tcp) {
            let Some(seen) = facts.sources.total() else { continue };
            let behind = workloads_behind(&known, flow, &seen);
            for (server, port) in &behind {
                add(&(Arc::clone(&flow.0), Arc::clone(server)), *port, &seen, behind.len() == 1);
            }
        }
        for ((client, server), ports) in &mut all {
            for (port, dialled) in ports {
                let edge = (client.into(), server.into(), Protocol::Tcp, *port);
                let at_server = self.edges.get(&edge).filter(|edge| !edge.is_set_aside());
                dialled.told = at_server.and_then(|e| e.at(Side::Server)).map_or(0, |seen| connections(&seen.counts));
            }
        }
        all
    }

    /// Whether these ports are all that the connections may have dialled: somebody watched the
    /// client all that time, and it did dial some of them then. Gives how long it was watched.
    fn explains(&self, ports: &Ports, key: &RemoteKey, client: &Arc<Peer>, seen: &Seen) -> Option<Timestamp> {
        let left = || ports.values().filter(|port| port.left() > 0);
        let times = hull(left().map(|port| port.time));
        // Connections that were found, or open as an epoch began, may be of any earlier time.
        let is_in_time =
            times.from.before(GUARD) <= seen.last && (seen.counts.opened == 0 || seen.first.before(GUARD) <= times.to);
        left().next().filter(|_| is_in_time)?;
        self.watched_until(key, client, seen)
    }

    /// Until when the nodes on which the client may have been were observed, if all the time that
    /// matters.
    fn watched_until(&self, key: &RemoteKey, client: &Arc<Peer>, seen: &Seen) -> Option<Timestamp> {
        let from = if seen.counts.opened == 0 { seen.last } else { seen.first };
        let until = |node: &str| {
            let mut known = self.window.get(node).into_iter().flatten();
            known.find(|i| i.from.before(LEAD) <= from && seen.last <= i.to.after(LEAD)).map(|i| i.to)
        };
        if let Peer::Node { name } = &**client {
            return until(name);
        }
        let had_it = |address: &std::net::IpAddr, peer: &Arc<Peer>| *address == key.2 && peer == client;
        let of_address = self.addresses.keys().filter(|(address, _, peer, _)| had_it(address, peer));
        let pods: BTreeSet<&str> = of_address.filter_map(|(.., pod)| pod.as_deref()).collect();
        let is_it = |namespace: &str, pod: &str| pods.iter().any(|name| name.split_once('/') == Some((namespace, pod)));
        let present = self.pods.keys().filter(|(namespace, pod, ..)| is_it(namespace, pod));
        let mut nodes: BTreeSet<&str> = present.map(|(_, _, node, ..)| &**node).collect();
        if nodes.is_empty() {
            let workload = client.workload().and_then(|workload| self.workloads.get(workload));
            nodes.extend(workload.into_iter().flat_map(|workload| workload.nodes()));
        }
        nodes.into_iter().map(until).reduce(|a, b| Some(a?.min(b?)))?
    }
}

/// Which of the connections went to which port, as far as that can be told: to the only one that is
/// left; of several, what was asked of a Service that leads nowhere else.
fn at_ports(ports: &Ports, seen: &Seen) -> Vec<(u16, Seen)> {
    let left: Vec<_> = ports.iter().filter(|(_, dialled)| dialled.left() > 0).collect();
    if let [(port, _)] = left[..] {
        return vec![(*port, *seen)];
    }
    let only = left.into_iter().filter(|(_, dialled)| dialled.is_only_backend);
    only.map(|(port, dialled)| {
        let opened = seen.counts.opened.min(dialled.left());
        (*port, Seen { counts: Counts { opened, bytes_sent: 0, bytes_received: 0, ..seen.counts }, ..*seen })
    })
    .collect()
}

impl Deriver {
    /// Counts what arrived at proxies and nobody can tell what it dialled: the server's ingress and
    /// the client's egress need the port.
    pub(super) fn redirected(&mut self, untold: Vec<Untold>) {
        let reason = UnresolvedReason::Redirected;
        for Untold { source, ends, client, time, connections } in untold {
            let (address, server, protocol, port) = &ends;
            let from = client.as_ref().unwrap_or(address);
            self.count_at(&source, reason, connections, format!("{from} -> {server}:{port}/{protocol}"));
            for peer in [Some(server), client.as_ref()].into_iter().flatten() {
                self.incomplete.entry(Arc::clone(peer)).or_default().insert(reason.as_str().to_owned());
            }
            let entry = self.unresolved.entry((source, reason.as_str().to_owned())).or_default();
            entry.keep(ends, time);
        }
    }
}
