//! What is behind a client's use of a Service (docs/design.md#virtual-addresses): one decision for
//! documents, `merge` and counters.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    BackendEntry, Counts, Interval, Side,
    facts::{EdgeKey, FlowKey, Seen, ServiceFacts, Services},
    marks,
};
use crate::{
    peer::{Peer, Protocol},
    time::Timestamp,
};

/// An endpoint counts for a flow if it was one within this much of the flow's time: the API
/// server's word comes late, and a terminating endpoint still serves.
pub(crate) const ENDPOINT_SLACK: std::time::Duration = std::time::Duration::from_secs(30);

/// Ports at which proxies take what other proxies tunnel to them (docs/data-planes.md).
const TUNNELS: [u16; 3] = [4143, marks::HBONE, 20000];

/// What the decision rests on.
pub(crate) trait Evidence {
    /// Services and their endpoints over time.
    fn services(&self) -> &Services;
    /// Whether the server's own node recorded a connection of this edge.
    fn server_saw(&self, key: &EdgeKey) -> bool {
        self.seen_at(key, Side::Server).is_some_and(|seen| seen.counts.is_established())
    }
    /// Whether the client's own node recorded a connection of this edge.
    fn client_saw(&self, key: &EdgeKey) -> bool {
        self.seen_at(key, Side::Client).is_some_and(|seen| seen.counts.is_established())
    }
    /// Whether that node's agent contributed.
    fn is_node_observed(&self, node: &str) -> bool;
    /// Whether a server's own side would have been seen.
    fn is_observed(&self, peer: &Peer) -> bool;
    /// Nodes that have this address of a Service themselves.
    fn nodes_at(&self, address: IpAddr) -> Vec<Arc<Peer>>;
    /// Whether `wanted` holds for a node that is known to exist.
    fn any_node(&self, wanted: impl FnMut(&str) -> bool) -> bool;
    /// What a side recorded of this edge, and policies judge.
    fn seen_at(&self, key: &EdgeKey, side: Side) -> Option<Seen>;
    /// The uses of Services by processes of this node: which Service, and what was counted.
    fn services_used_by(&self, node: &Arc<Peer>) -> Vec<(Arc<str>, Seen)>;
    /// Who may have been an endpoint at the time of the flow: the peer that it is known as, unless
    /// more is known of its address.
    fn backend(&self, _address: IpAddr, peer: &Arc<Peer>, _has_node: bool, _flow: &Seen) -> BTreeSet<Arc<Peer>> {
        BTreeSet::from([Arc::clone(peer)])
    }
}

/// What a service flow adds to one edge.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The edge.
    pub(crate) key: EdgeKey,
    /// Counts of the flow that can only be this edge's.
    pub(crate) extra: Option<Seen>,
    /// How the flow came to be this edge's; none: a server-side record shows it. More facts never
    /// take that back.
    pub(crate) marks: &'static [&'static str],
}

/// What is behind a service flow.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    /// The edges it is part of.
    pub(crate) attached: Vec<Attached>,
    /// It had answers, and nobody knows from whom: its established connections are unresolved, and
    /// its client is incomplete.
    pub(crate) backend_unknown: bool,
    /// Failed attempts of which nobody knows whom they were for.
    pub(crate) attempts_unknown: bool,
}

/// Where a Service port leads, as far as it concerns a flow.
struct Target {
    peer: Arc<Peer>,
    port: u16,
    /// Some endpoint of it is on a node that nobody observed.
    unobserved: bool,
    /// It was an endpoint at the time of the flow.
    current: bool,
    /// At least two of its pods were.
    many: bool,
}

/// Endpoints of one workload.
#[derive(Default)]
struct Endpoints {
    /// As [`Target::unobserved`].
    unobserved: bool,
    /// Addresses at the time of the flow, of IPv4 and of IPv6.
    current: [BTreeSet<IpAddr>; 2],
}

/// Decides what is behind a service flow with these counts.
pub(crate) fn behind(evidence: &impl Evidence, flow: &FlowKey, total: &Seen) -> Behind {
    let (client, service, protocol, port) = flow;
    let targets = targets(evidence, service, *protocol, *port, total);
    let edge_key = |t: &Target| (client.into(), (&t.peer).into(), *protocol, t.port);
    let mut found = Behind::default();
    let mut attach = |key, extra, marks| found.attached.push(Attached { key, extra, marks });
    let answered =
        if protocol.has_connections() { total.counts.is_established() } else { total.counts.bytes_received > 0 };
    // Nothing was counted: the client's proxy took the connections, and made its own to whom it
    // chose.
    let captured = total.counts == Counts::default();
    let single = !captured && targets.iter().filter(|t| t.current).count() == 1;
    let mut resolved = false;
    // Answered on a node itself (NodeLocal DNS): nothing went to the pods behind the Service, but
    // for those whose own records say so.
    for node in answering_nodes(evidence, service) {
        let key = (client.into(), (&node).into(), *protocol, *port);
        if evidence.server_saw(&key) {
            attach(key, None, &[]);
            resolved = true;
        }
    }
    let on_node = resolved;
    for target in &targets {
        if captured {
            // Its proxy may have gone to the proxy of the server.
            for port in TUNNELS {
                let key = (client.into(), (&target.peer).into(), *protocol, port);
                if evidence.client_saw(&key) {
                    attach(key, None, &[]);
                    resolved = true;
                }
            }
        }
        let key = edge_key(target);
        let external = matches!(*target.peer, Peer::External { .. });
        if evidence.server_saw(&key) || (captured && evidence.client_saw(&key)) {
            attach(key, (single && target.current).then_some(*total), &[]);
            resolved = true;
        } else if !on_node && target.current && total.counts.is_established() && (external || target.unobserved) {
            let marks: &[&str] = if external { &[marks::VIA_SERVICE] } else { &[marks::INFERRED] };
            attach(key, Some(*total), marks);
            resolved = true;
        }
    }
    let targets: Vec<&Target> = targets.iter().filter(|t| t.current).collect();
    if !resolved && answered {
        // The server's node may have seen a node's address in the client's place. A pod without
        // siblings that calls its own workload reaches itself, whatever address that then has.
        let is_itself = |t: &Target| t.peer == *client && !t.many;
        let mut masqueraded = false;
        let others = targets.iter().filter(|t| !is_itself(t));
        for target in others.filter(|t| a_node_stands_in(evidence, t, *protocol, total)) {
            attach(edge_key(target), Some(*total), &[marks::INFERRED, marks::MASQUERADED]);
            masqueraded = true;
        }
        let hairpin = targets.iter().any(|t| t.peer == *client);
        // Its own link shows nothing of it that a rule would need, but networks that judge the
        // Service's address do.
        if let [only] = &targets[..]
            && is_itself(only)
        {
            attach(edge_key(only), Some(*total), &[marks::VIA_SERVICE]);
        }
        found.backend_unknown = !masqueraded && !hairpin;
    }
    if total.counts.failed() > 0 && !(single && resolved) {
        // Only where one workload stands behind the port is it known whom the attempt was for.
        match &targets[..] {
            [only] if only.peer != *client => {
                let counts = Counts { opened: 0, found: 0, open: 0, bytes_sent: 0, bytes_received: 0, ..total.counts };
                attach(edge_key(only), Some(Seen { counts, ..*total }), &[marks::VIA_SERVICE]);
            }
            _ => found.attempts_unknown = true,
        }
    }
    found
}

/// Nodes that have an address of a Service themselves.
fn answering_nodes(evidence: &impl Evidence, service: &str) -> BTreeSet<Arc<Peer>> {
    let addresses = facts_of(evidence, service).into_iter().flat_map(|facts| &facts.base.addresses);
    addresses.flat_map(|address| evidence.nodes_at(*address)).collect()
}

/// What is known of a Service (`namespace/name:port`).
fn facts_of<'a>(evidence: &'a impl Evidence, service: &str) -> Option<&'a ServiceFacts> {
    let name = service.rsplit_once(':').map_or(service, |(name, _)| name);
    let (namespace, name) = name.split_once('/')?;
    evidence.services().get(&(namespace.to_owned(), name.to_owned())).map(|facts| &**facts)
}

/// Whether a node's address was seen at this server at the time of the flow, for connections that
/// the node's own sockets do not explain: they may be anybody's whose address was translated.
fn a_node_stands_in(evidence: &impl Evidence, target: &Target, protocol: Protocol, flow: &Seen) -> bool {
    evidence.any_node(|node| {
        let node = Arc::new(Peer::Node { name: node.to_owned() });
        let key = ((&node).into(), (&target.peer).into(), protocol, target.port);
        let Some(arrived) = evidence.seen_at(&key, Side::Server).filter(|seen| seen.counts.is_established()) else {
            return false;
        };
        if arrived.first.before(ENDPOINT_SLACK) > flow.last || arrived.last.after(ENDPOINT_SLACK) < flow.first {
            return false;
        }
        // Of those that are open as an epoch begins, both sides tell.
        let connections = |seen: &Seen| seen.counts.established().saturating_add(seen.counts.open.into());
        let direct = evidence.seen_at(&key, Side::Client).map_or(0, |seen| connections(&seen));
        let used = evidence.services_used_by(&node).into_iter();
        let through =
            used.filter(|(service, _)| leads_to(evidence, service, target)).map(|(_, seen)| connections(&seen));
        connections(&arrived) > through.fold(direct, u64::saturating_add)
    })
}

/// Who was ever behind a Service that was used, and at which port.
pub(crate) fn workloads_behind(evidence: &impl Evidence, flow: &FlowKey, seen: &Seen) -> BTreeSet<(Arc<Peer>, u16)> {
    let (_, service, protocol, port) = flow;
    let all = targets(evidence, service, *protocol, *port, seen).into_iter();
    all.map(|target| (target.peer, target.port)).collect()
}

/// Whether this workload and port are behind a Service.
fn leads_to(evidence: &impl Evidence, service: &str, target: &Target) -> bool {
    let ports = facts_of(evidence, service).into_iter().flat_map(|facts| facts.ports.values());
    ports.flat_map(|backends| backends.keys()).any(|(_, port, peer, ..)| *port == target.port && *peer == target.peer)
}

impl BackendEntry {
    /// Whether it may have answered at some moment of this time.
    #[must_use]
    pub fn was_there(&self, time: Interval) -> bool {
        was_there(self.from, self.to, time)
    }
}

fn was_there(from: Option<Timestamp>, to: Option<Timestamp>, time: Interval) -> bool {
    from.is_none_or(|from| from.before(ENDPOINT_SLACK) <= time.to)
        && to.is_none_or(|to| to.after(ENDPOINT_SLACK) >= time.from)
}

fn targets(evidence: &impl Evidence, service: &str, protocol: Protocol, port: u16, flow: &Seen) -> Vec<Target> {
    let Some(facts) = facts_of(evidence, service) else { return Vec::new() };
    let all = facts
        .ports
        .iter()
        .filter(|((p, proto, ..), _)| *p == port && protocol.is_named(proto))
        .flat_map(|(_, backends)| backends);
    let time = Interval { from: flow.first, to: flow.last };
    let at_that_time = |from: &Option<Timestamp>, to: &Option<Timestamp>| was_there(*from, *to, time);
    let mut targets: BTreeMap<(Arc<Peer>, u16), Endpoints> = BTreeMap::new();
    for ((address, port, peer, node, from), to) in all {
        for peer in evidence.backend(*address, peer, node.is_some(), flow) {
            let unobserved = match (node, &*peer) {
                (Some(node), Peer::Workload(_)) => !evidence.is_node_observed(node),
                _ => !evidence.is_observed(&peer),
            };
            let current = at_that_time(from, to);
            let target = targets.entry((peer, *port)).or_default();
            target.unobserved |= unobserved && current;
            if current {
                target.current[usize::from(address.is_ipv6())].insert(*address);
            }
        }
    }
    targets
        .into_iter()
        .map(|((peer, port), Endpoints { unobserved, current })| {
            // A pod has one address of a family.
            let pods = current.iter().map(BTreeSet::len).max().unwrap_or(0);
            Target { peer, port, unobserved, current: pods > 0, many: pods > 1 }
        })
        .collect()
}
