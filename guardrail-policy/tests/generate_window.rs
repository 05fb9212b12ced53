//! How long is long enough, where nodes come and go.

mod generate_support;

use std::sync::Arc;

use generate_support::Scenario;
use guardrail_graph::{
    Snapshot, Timestamp,
    snapshot::{Interval, NodeDescription, NodeTime},
};
use guardrail_policy::{
    export::export,
    generate::{Options, Phase},
};

const HOUR: i64 = 3_600;

fn t(hours: i64) -> Timestamp {
    Timestamp::from_unix_seconds(1_700_000_000 + hours * HOUR)
}

/// When the cluster had a node, and when its agent observed it, in hours.
type Node = (&'static str, [i64; 2], [i64; 2]);

/// Pods of shop are on node-a and node-b. All of their time was observed.
fn cluster(nodes: &[Node]) -> Snapshot {
    let mut snapshot = Scenario::on_two_nodes().snapshot();
    let body = &mut snapshot.body;
    body.coverage.coverage = Some(1.0);
    let hours = |[from, to]: [i64; 2]| Interval { from: t(from), to: t(to) };
    body.window.nodes = nodes.iter().map(|(name, _, observed)| ((*name).to_owned(), vec![hours(*observed)])).collect();
    body.window.from = body.window.nodes.values().flatten().map(|i| i.from).min();
    body.window.to = body.window.nodes.values().flatten().map(|i| i.to).max();
    let of = |name: &str| {
        let described = NodeDescription { addresses: [name.parse().unwrap()].into(), ..NodeDescription::default() };
        Arc::new(described)
    };
    let told = |(name, there, _): &Node| NodeTime {
        name: (*name).to_owned(),
        unobservable: None,
        described: of(if *name == "node-a" { "192.0.2.1" } else { "192.0.2.2" }),
        time: hours(*there),
    };
    body.nodes = nodes.iter().map(told).collect();
    snapshot
}

/// How long shop was observed by the gate's measure, in hours, and whether a day is enough.
fn window(snapshot: &Snapshot) -> (u64, bool) {
    let options = Options { min_window: Phase::DefaultDeny.min_window(), ..Options::new(Phase::DefaultDeny) };
    let exported = export(snapshot, &options);
    let verdict = exported.verdicts.iter().find(|verdict| verdict.namespace == "shop").unwrap();
    let is_short =
        exported.problems.iter().any(|p| p.message.contains("--min-window") && p.namespaces.contains("shop"));
    (verdict.common_window_seconds / HOUR.unsigned_abs(), !is_short)
}

#[test]
fn a_node_that_joins_shortens_nothing_of_what_was_observed_before_it_was_there() {
    let all = ("node-a", [0, 300], [0, 300]);
    assert_eq!(window(&cluster(&[all, ("node-b", [0, 300], [0, 300])])), (300, true));
    // Joined an hour ago.
    assert_eq!(window(&cluster(&[all, ("node-b", [299, 300], [299, 300])])), (300, true));
    // It was there all the time, and its agent was not.
    assert_eq!(window(&cluster(&[all, ("node-b", [0, 300], [299, 300])])), (1, false));
}

#[test]
fn nodes_that_replaced_each_other_were_observed_from_the_first_to_the_last() {
    // Each lives for a hundred hours.
    let gone = cluster(&[("node-a", [0, 100], [0, 100]), ("node-b", [101, 300], [101, 300])]);
    assert_eq!(window(&gone), (300, true));
    // Nobody knows that they were not there at one time.
    let mut unknown = gone.clone();
    unknown.body.nodes.clear();
    assert_eq!(window(&unknown), (0, false));
    let mut unjudged = gone;
    unjudged.body.coverage.coverage = None;
    assert_eq!(window(&unjudged), (0, false));
}
