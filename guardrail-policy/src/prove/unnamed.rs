//! Established flows of which one end has no name: uses of a Service whose backend nobody knows,
//! and flows with an address of another node that no snapshot names. No edge stands for them, so
//! they are judged here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use guardrail_graph::{
    Peer, Protocol, Snapshot, WorkloadRef,
    snapshot::{BackendEntry, Body, Interval, RemoteFlow, ServiceFlow, Side, SourceCounts, UnresolvedFlow, marks},
};

use super::{Evaluator, Proof, denied_sides};
use crate::{
    generate::{FlowName, Options, Problem, ProblemKind},
    model::Direction,
};

/// Judges them under the generated policies.
pub(super) fn flows_are_allowed(snapshot: &Snapshot, options: &Options, alone: &Evaluator, proof: &mut Proof) {
    let body = &snapshot.body;
    let via: BTreeSet<(&Peer, &str)> =
        body.edges.iter().flat_map(|e| e.via.iter().map(|via| (&*e.client.peer, via.as_str()))).collect();
    let mut owners: BTreeMap<IpAddr, BTreeSet<&Peer>> = BTreeMap::new();
    let kept =
        || body.coverage.unresolved.iter().flat_map(|entry| entry.flows.iter().flatten().map(move |f| (entry, f)));
    let nodes: Vec<Peer> = body.nodes.iter().map(|node| Peer::Node { name: node.name.clone() }).collect();
    if kept().next().is_some() {
        for entry in &body.addresses {
            owners.entry(entry.address).or_default().insert(&entry.peer);
        }
        // Agents forget who had an address sooner than what nodes were.
        for (node, peer) in body.nodes.iter().zip(&nodes) {
            node.described.addresses.iter().for_each(|address| _ = owners.entry(*address).or_default().insert(peer));
        }
    }
    // An edge that stands for a use of a Service is judged by itself; so are those that `merge`
    // made of a flow with another node.
    let has_edge = |f: &ServiceFlow| via.contains(&(&f.client, f.service.as_str()));
    for flow in body.service_flows.iter().filter(|f| established(f.protocol, &f.sources)) {
        // Of other times nothing is asked where an edge stands for the use.
        let asked = if has_edge(flow) { Some(flow.backend_unknown) } else { None };
        if asked == Some(None) {
            continue;
        }
        let server = service_peer(&flow.service);
        let name = FlowName::new(&flow.client, &server, flow.port, flow.protocol);
        let backends = backends(flow, asked.flatten(), body);
        if backends.iter().any(|(peer, _)| **peer == flow.client) {
            // A pod that reached itself leaves no edge.
            continue;
        }
        let what = format!("{} -> {} {}/{}", flow.client, flow.service, flow.port, flow.protocol);
        let why = "nobody knows which backend answered";
        let judge = Judge { options, alone, name, client: &flow.client, what, why };
        if backends.is_empty() {
            judge.client_alone(proof);
        }
        for (backend, port) in backends {
            judge.pair([&flow.client, backend], (flow.protocol, port), proof);
        }
    }
    // Those that a proxy took stand below, as far as nothing explains them.
    let is_untold = |f: &RemoteFlow| f.marks.contains(marks::REDIRECTED);
    let remote = body.remote_flows.iter().filter(|f| established(f.protocol, &f.sources) && !is_untold(f));
    for (flow, may_be) in remote.filter_map(|flow| Some((flow, flow.may_be.as_ref()?))) {
        let other = Peer::External { address: flow.address.to_string() };
        let (client, server) = match flow.side {
            Side::Client => (&flow.local, &other),
            Side::Server => (&other, &flow.local),
        };
        let name = FlowName::new(client, server, flow.port, flow.protocol);
        let what = format!("{client} -> {server} {}/{}", flow.port, flow.protocol);
        let why = "nobody knows whose address that is: merge the snapshot of its node";
        let judge = Judge { options, alone, name, client, what, why };
        for whose in may_be {
            let pair = if flow.side == Side::Client { [client, whose] } else { [whose, server] };
            judge.pair(pair, (flow.protocol, flow.port), proof);
        }
    }
    for (entry, UnresolvedFlow { client, server, protocol, port, .. }) in kept() {
        let name = FlowName::new(client, server, *port, *protocol);
        let what = format!("{client} -> {server} {port}/{protocol}");
        let judge = Judge { options, alone, name, client, what, why: why(&entry.reason) };
        for client in candidates(client, &owners) {
            for server in candidates(server, &owners) {
                judge.pair([client, server], (*protocol, *port), proof);
            }
        }
    }
}

/// Whoever an end may have been: the address itself, and all who had it at some time.
fn candidates<'a>(end: &'a Peer, owners: &BTreeMap<IpAddr, BTreeSet<&'a Peer>>) -> Vec<&'a Peer> {
    let address = match end {
        Peer::External { address } => address.parse::<IpAddr>().ok(),
        _ => None,
    };
    let known = address.and_then(|address| owners.get(&address)).into_iter().flatten().copied();
    known.chain([end]).collect()
}

/// Why a flow has no edge.
fn why(reason: &str) -> &'static str {
    match reason {
        "ip_reuse" => "its address had changed hands",
        "pod_range_no_owner" => "nobody is known to have had that address",
        "pod_unknown" => "its pod never became known",
        "role_unknown" => "nobody knows who called whom",
        "redirected" => "nobody knows which port was dialled",
        "cluster_unknown" => "nothing was known of the cluster yet",
        _ => "one end of it has no name",
    }
}

fn established(protocol: Protocol, sources: &[SourceCounts]) -> bool {
    sources.iter().any(|s| {
        let opened = s.counts.is_established();
        if protocol.has_connections() {
            opened
        } else {
            s.counts.bytes_received > 0 || (s.side == Side::Server && opened)
        }
    })
}

/// A Service as an end: `NS/svc/NAME`.
fn service_peer(service: &str) -> Peer {
    let name = service.rsplit_once(':').map_or(service, |(name, _)| name);
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Peer::Workload(WorkloadRef { namespace: namespace.to_owned(), owner: "svc".to_owned(), name: name.to_owned() })
}

/// Who was behind it, then or ever.
fn backends<'a>(flow: &ServiceFlow, then: Option<Interval>, body: &'a Body) -> BTreeSet<(&'a Peer, u16)> {
    let was_there = |backend: &BackendEntry| then.is_none_or(|time| backend.was_there(time));
    let Peer::Workload(service) = service_peer(&flow.service) else { return BTreeSet::new() };
    body.services
        .iter()
        .filter(|s| s.namespace == service.namespace && s.name == service.name)
        .flat_map(|s| &s.ports)
        .filter(|p| p.port == flow.port && flow.protocol.is_named(&p.protocol))
        .flat_map(|p| p.backends.iter().filter(|b| was_there(b)).map(|b| (&b.peer, b.port)))
        .collect()
}

/// A flow to be judged, and what to say of it.
struct Judge<'a> {
    options: &'a Options,
    alone: &'a Evaluator,
    name: FlowName,
    client: &'a Peer,
    /// The flow, in words.
    what: String,
    /// Why it is no edge.
    why: &'static str,
}

impl Judge<'_> {
    fn is_accepted(&self) -> bool {
        let ignored = |w: &WorkloadRef| self.options.ignore_clients.iter().any(|p| p.matches(w));
        self.client.workload().is_some_and(ignored) || self.options.accepted.iter().any(|a| a.names(&self.name))
    }

    fn pair(&self, [client, server]: [&Peer; 2], (protocol, port): (Protocol, u16), proof: &mut Proof) {
        let Ok(verdict) = self.alone.evaluate_peers(client, server, protocol, port) else { return };
        if !verdict.allowed() && !self.is_accepted() {
            let (side, mut namespaces) = denied_sides(client, server, &verdict.verdict);
            if namespaces.is_empty() {
                // The end that denies is known by its address alone.
                namespaces.extend([client, server].into_iter().filter_map(|end| Some(&*end.workload()?.namespace)));
            }
            self.problem(side, namespaces, proof);
        }
    }

    /// Where nothing is known of the server, a client whose egress is closed is cut off.
    fn client_alone(&self, proof: &mut Proof) {
        let Some(workload) = self.client.workload() else { return };
        let Ok(ends) = self.alone.peer_ends(self.client, true) else { return };
        let closed = ends.iter().any(|end| !self.alone.isolating(end, Direction::Egress).is_empty());
        if closed && !self.is_accepted() {
            self.problem("egress", BTreeSet::from([workload.namespace.as_str()]), proof);
        }
    }

    fn problem(&self, side: &str, namespaces: BTreeSet<&str>, proof: &mut Proof) {
        let message = format!(
            "{} was observed, {}, and would be denied ({side}): --accept {} leaves it without a rule",
            self.what,
            self.why,
            self.name.quoted()
        );
        proof.problems.insert(Problem::new(ProblemKind::Unallowed, namespaces, message));
    }
}
