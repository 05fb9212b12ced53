//! What was observed when and where, and what follows for completeness.

mod common;

use common::{Lab, apply_text, pod, t};
use guardrail_graph::{
    Observer, ObserverConfig, Peer, Snapshot,
    inventory::{Change, Kind, ObjectKey},
    snapshot::{Interval, InventoryState, merge},
};

const WEB_ON_A: [&str; 4] = ["shop", "web", "node-a", "10.244.1.2"];

fn web(node: &str, address: &str) -> String {
    pod("shop", "web", 0, node, address, &[])
}

/// A snapshot of a node that was observed over these times.
fn observed(node: &str, from: i64, to: i64) -> Snapshot {
    let inventory = [web("node-a", "10.244.1.2"), pod("shop", "api", 0, "node-b", "10.244.2.3", &[])];
    let mut observer = Observer::new(ObserverConfig::new(node, format!("instance-{node}"), t(from)));
    apply_text(&mut observer, &format!("{}{}", common::CLUSTER, inventory.concat()), t(from));
    observer.snapshot(t(to))
}

fn reasons(snapshot: &Snapshot, peer: &str) -> Vec<String> {
    let found = snapshot.body.coverage.workloads.iter().find(|w| w.peer.to_string() == peer);
    found.map(|w| w.reasons.iter().cloned().collect()).unwrap_or_default()
}

const MONTHS: i64 = 90 * 86_400;

#[test]
fn nodes_that_were_never_observed_together_are_not_complete() {
    let apart = merge(vec![observed("node-a", 0, 3), observed("node-b", MONTHS, MONTHS + 3)]);
    assert!(!apart.body.coverage.complete);
    assert_eq!(reasons(&apart, "shop/Deployment/web"), ["window_apart:node-a"]);
    assert_eq!(reasons(&apart, "shop/Deployment/api"), ["window_apart:node-b"]);
    // One after the other is not together either.
    assert!(!merge(vec![observed("node-a", 0, 3), observed("node-b", 3, 6)]).body.coverage.complete);
    // What is computed is computed again: the missing middle makes it whole.
    let middle = merge(vec![apart, observed("node-a", 3, MONTHS + 3)]);
    assert!(middle.body.coverage.complete, "{:?}", middle.body.coverage);
}

#[test]
fn windows_that_overlap_in_part_are_judged_over_the_common_part() {
    // The agents of a rollout start minutes apart, and a node may join later.
    let joined = merge(vec![observed("node-a", 0, MONTHS), observed("node-b", MONTHS - 600, MONTHS + 5)]);
    assert!(joined.body.coverage.complete, "{:?}", joined.body.coverage);
    let common = joined.body.window.common(["node-a", "node-b"]);
    assert_eq!(common, Some(Interval { from: t(MONTHS - 600), to: t(MONTHS) }));
    assert_eq!(joined.body.window.common(["node-a", "node-c"]), None);
}

#[test]
fn only_nodes_without_a_common_time_are_apart() {
    let mut whole = observed("node-a", 0, MONTHS);
    whole.body.workloads.clear();
    let gone = merge(vec![whole, observed("node-b", 0, 9), {
        let mut late = observed("node-b", MONTHS - 9, MONTHS);
        let text = late.to_json().replace("node-b", "node-c");
        late = Snapshot::from_json(&text, "late").unwrap();
        late.body.workloads.clear();
        late
    }]);
    let listed: Vec<_> = gone.body.coverage.workloads.iter().map(|w| w.peer.to_string()).collect();
    assert!(listed.iter().any(|p| p.contains("node-b")) && listed.iter().any(|p| p.contains("node-c")), "{listed:?}");
    assert!(!listed.contains(&Peer::Node { name: "node-a".into() }.to_string()), "{listed:?}");
    assert_eq!(reasons(&gone, "shop/Deployment/web"), Vec::<String>::new());
}

#[test]
fn two_snapshots_of_one_node_with_a_gap_are_not_complete() {
    let gap =
        merge(vec![observed("node-a", 0, 3), observed("node-a", MONTHS, MONTHS + 3), observed("node-b", 0, MONTHS)]);
    assert!(!gap.body.coverage.complete);
    assert_eq!(reasons(&gap, "shop/Deployment/web"), ["window_gap:node-a"]);
}

/// `web` moves from node-a to node-b while node-b's agent watches.
fn moved() -> Lab {
    let [.., node, address] = WEB_ON_A;
    let mut lab = Lab::new("node-b", &[web(node, address)]);
    let key = ObjectKey { kind: Kind::Pod, namespace: "shop".into(), name: "web-abc-0".into() };
    let name = lab.observer.inventory().pods().next().unwrap().name.clone();
    lab.observer.apply(Change::Delete(ObjectKey { name, ..key }), t(40));
    lab.apply(&pod("shop", "web", 1, "node-b", "10.244.2.9", &[]));
    lab
}

fn ran_on(snapshot: &Snapshot) -> Vec<(String, i64)> {
    let web = snapshot.body.workloads.iter().find(|w| w.workload.name == "web").unwrap();
    web.ran_on.iter().map(|(node, at)| (node.clone(), at.as_unix_ns() - t(0).as_unix_ns())).collect()
}

#[test]
fn a_workload_is_judged_where_it_ran_too() {
    let moved = moved().observer.snapshot(t(50));
    assert_eq!(ran_on(&moved), [("node-a".to_owned(), 40_000_000_000)]);
    assert_eq!(reasons(&moved, "shop/Deployment/web"), ["node_unobserved:node-a"]);

    let gap = merge(vec![moved.clone(), observed("node-a", 0, 10), observed("node-a", 20, 50)]);
    assert_eq!(reasons(&gap, "shop/Deployment/web"), ["window_gap:node-a"]);

    let mut lossy = observed("node-a", 0, 50);
    lossy.body.coverage.losses = serde_json::from_str(
        r#"[{"source": {"node": "node-a", "instance": "instance-node-a"}, "reason": "map_full", "class": "edge", "count": 100000}]"#,
    )
    .unwrap();
    assert_eq!(reasons(&merge(vec![moved.clone(), lossy]), "shop/Deployment/web"), ["losses:node-a"]);

    let fine = merge(vec![moved, observed("node-a", 0, 50)]);
    assert_eq!(reasons(&fine, "shop/Deployment/web"), Vec::<String>::new());
}

#[test]
fn where_a_workload_ran_is_kept_over_restarts_and_merges() {
    let state = moved().observer.snapshot(t(50));
    let mut restored = Observer::restore(ObserverConfig::new("node-b", "x", t(60)), &state, true).unwrap();
    assert_eq!(ran_on(&restored.snapshot(t(61)))[0].0, "node-a");
    apply_text(&mut restored, &pod("shop", "web", 2, "node-c", "10.244.3.9", &[]), t(62));
    let nodes: Vec<_> = ran_on(&restored.snapshot(t(63))).into_iter().map(|(node, _)| node).collect();
    assert_eq!(nodes, ["node-a", "node-b"]);

    // An agent that was away when it moved: the snapshots together show it.
    let mut before = Lab::new("node-a", &[web("node-a", "10.244.1.2")]);
    let mut after = Lab::new("node-b", &[web("node-b", "10.244.2.9")]);
    let (before, after) = (before.observer.snapshot(t(10)), after.observer.snapshot(t(20)));
    let both = merge(vec![before.clone(), after.clone()]);
    assert_eq!(ran_on(&both), [("node-a".to_owned(), 10_000_000_000)]);
    assert_eq!(both, merge(vec![after, both.clone(), before]));
}

#[test]
fn an_agent_that_never_heard_of_the_cluster_says_so() {
    let mut deaf = Observer::new(ObserverConfig::new("node-b", "deaf", t(0)));
    let nothing = deaf.snapshot(t(50));
    assert_eq!(nothing.body.coverage.inventory, Some(InventoryState::Missing));
    assert!(!nothing.body.coverage.complete);
    // Another's word about the cluster does not name what this one saw.
    let whole = observed("node-a", 0, 50);
    assert_eq!(whole.body.coverage.inventory, Some(InventoryState::Partial));
    let both = merge(vec![nothing, whole]);
    assert_eq!(both.body.coverage.inventory, Some(InventoryState::Partial));
    assert!(!both.body.coverage.complete);
    deaf.apply(Change::Replace { kind: Kind::Pod, objects: Vec::new() }, t(51));
    deaf.apply(Change::Replace { kind: Kind::Node, objects: Vec::new() }, t(51));
    deaf.apply(Change::Replace { kind: Kind::Service, objects: Vec::new() }, t(51));
    let snapshot = deaf.snapshot(t(52));
    assert_eq!(snapshot.body.coverage.inventory, Some(InventoryState::Complete));
    assert!(snapshot.body.coverage.complete);
}
