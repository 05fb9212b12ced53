//! Options that name something which the snapshot does not have: mostly a slip of the pen, which
//! must not pass in silence.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{Peer, WorkloadRef};
use ipnet::IpNet;

use super::{WorkloadPattern, context::Context, edges::external_address};
use crate::words::did_you_mean;

/// One sentence for each `--ignore-client` and `--declare` that has no effect.
pub(crate) fn warnings(context: &Context<'_>) -> BTreeSet<String> {
    let clients = clients(context);
    let ignored = context.options.ignore_clients.iter().filter_map(|pattern| ignored(context, pattern, &clients));
    let servers = servers(context);
    let declared = context.options.declared_ranges.iter();
    let declared = declared.filter_map(|(name, ranges)| declaration(context, name, ranges, &servers));
    let nodes = context.node_ranges().filter_map(|(range, declared, covers)| match (declared.holds_pods, covers) {
        (true, _) => Some(format!(
            "the declared range of node addresses {range} holds addresses of pods: rules for nodes let them in"
        )),
        // A plan's ranges are for shared services, too.
        (false, false) if context.options.goals.is_empty() => {
            Some(format!("no node in the snapshot has an address in {range}: --node-range has no effect"))
        }
        (false, _) => None,
    });
    ignored.chain(declared).chain(nodes).collect()
}

fn clients<'a>(context: &Context<'a>) -> BTreeSet<&'a WorkloadRef> {
    let of_edges = context.body.edges.iter().map(|edge| &*edge.client.peer);
    let of_flows = context.body.service_flows.iter().map(|flow| &flow.client);
    of_edges.chain(of_flows).filter_map(Peer::workload).collect()
}

/// External names and the addresses behind them.
fn servers<'a>(context: &Context<'a>) -> BTreeMap<&'a str, BTreeSet<std::net::IpAddr>> {
    let mut servers: BTreeMap<&str, BTreeSet<std::net::IpAddr>> = BTreeMap::new();
    for edge in &context.body.edges {
        for name in &edge.server.names {
            servers.entry(name).or_default().extend(external_address(&edge.server.peer));
        }
    }
    servers
}

fn ignored(context: &Context<'_>, pattern: &WorkloadPattern, clients: &BTreeSet<&WorkloadRef>) -> Option<String> {
    if clients.iter().any(|client| pattern.matches(client)) {
        return None;
    }
    match context.body.workloads.iter().find(|entry| pattern.matches(&entry.workload)) {
        Some(entry) if entry.host_network => {
            return Some(format!(
                "{pattern} uses the host's network, so its connections are those of its nodes: --ignore-client leaves none of them out"
            ));
        }
        Some(_) => return Some(format!("{pattern} called nobody in the snapshot: --ignore-client has no effect")),
        None => {}
    }
    let known = clients.iter().copied().chain(context.body.workloads.iter().map(|w| &w.workload));
    let known: BTreeSet<String> = known.map(|w| pattern.like(w)).collect();
    Some(format!(
        "no client {pattern} in the snapshot{}",
        did_you_mean(&pattern.to_string(), known.iter().map(String::as_str))
    ))
}

fn declaration(
    context: &Context<'_>,
    name: &str,
    ranges: &BTreeSet<IpNet>,
    servers: &BTreeMap<&str, BTreeSet<std::net::IpAddr>>,
) -> Option<String> {
    let Some(addresses) = servers.get(name) else {
        return Some(format!("no external name {name} in the snapshot{}", did_you_mean(name, servers.keys().copied())));
    };
    let outside: Vec<String> = addresses
        .iter()
        .filter(|address| !ranges.iter().any(|range| range.contains(*address)))
        .map(ToString::to_string)
        .collect();
    if !outside.is_empty() {
        let more = outside.len().saturating_sub(3);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let shown = outside.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        return Some(format!("{name} was reached at {shown}{more}, outside of the ranges declared for it"));
    }
    (!context.options.closes_egress())
        .then(|| format!("the ranges declared for {name} have no effect without --egress"))
}
