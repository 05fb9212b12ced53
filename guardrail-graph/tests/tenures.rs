//! Who had an address when, over agents that did not observe at the same time
//! (`--inventory-scope node`): nobody's word reaches beyond what it observed.

mod common;

use common::{CLUSTER, Lab, apply_text, edge_text, pod, t, tcp_client};
use guardrail_graph::{
    Observer, ObserverConfig, Snapshot,
    snapshot::{Interval, merge},
};

const ADDRESS: &str = "10.244.2.4";
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// An agent that knows its own node's pods, and began at `began`.
fn agent(node: &str, began: i64, pods: &str) -> Lab {
    let config =
        ObserverConfig { own_pods_only: true, ..ObserverConfig::new(node, format!("{node} at {began}"), t(began)) };
    let mut observer = Observer::new(config);
    apply_text(&mut observer, &format!("{CLUSTER}{pods}"), t(began));
    Lab { observer, now: t(began) }
}

/// The agent of node-a, with a client that calls the address at these times.
fn caller(began: i64, calls: &[i64]) -> Lab {
    let mut a = agent("node-a", began, &pod("shop", "web", 0, "node-a", "10.244.1.2", &[]));
    a.pod_cgroup(1, "web", 0);
    for at in calls {
        a.at(*at).flow(tcp_client(1, "10.244.1.2", ADDRESS, 8080, t(*at)));
    }
    a
}

fn owner(name: &str) -> String {
    pod("shop", name, 0, "node-b", ADDRESS, &[])
}

/// The same pod, with the time of its start.
fn started(pod: &str, at: i64) -> String {
    let with = pod.replace("status: {", &format!("status: {{startTime: \"{}\", ", t(at)));
    assert_ne!(with, pod, "{pod}");
    with
}

/// Edges with their number of connections, how many are nobody's, and whether that is complete.
fn answer(snapshots: &[Snapshot]) -> (Vec<(String, u64)>, u64, bool) {
    let merged = merge(snapshots.to_vec());
    let mut reversed = snapshots.to_vec();
    reversed.reverse();
    assert_eq!(merge(reversed).to_json(), merged.to_json(), "in any order");
    let one_by_one = snapshots.iter().fold(Snapshot::empty(), |sum, next| merge(vec![sum, next.clone()]));
    assert_eq!(one_by_one.to_json(), merged.to_json(), "one by one");
    assert_eq!(merge(vec![merged.clone(), snapshots[0].clone()]).to_json(), merged.to_json(), "again");
    let edges = merged.body.edges.iter().map(|e| (edge_text(e), e.counts.opened)).collect();
    let left = merged.body.coverage.unresolved.iter().filter(|u| u.reason == "remote_pod").map(|u| u.count).sum();
    (edges, left, merged.body.coverage.complete)
}

fn edge(server: &str, opened: u64) -> (String, u64) {
    (format!("web -> {server} TCP/8080"), opened)
}

#[test]
fn calls_of_months_do_not_go_to_the_owner_of_the_last_week() {
    let calls: Vec<i64> = (1..=90).map(|day| day * DAY).collect();
    let a = caller(0, &calls).at(91 * DAY).snapshot();
    let b = agent("node-b", 84 * DAY, &owner("admin")).at(91 * DAY).snapshot();
    assert_eq!(answer(&[a, b]), (vec![edge("admin", 1)], 89, false));
}

#[test]
fn a_flow_that_ended_before_an_agent_began_is_not_named_by_it() {
    let a = caller(0, &[5, HOUR]).at(91 * DAY).snapshot();
    let b = agent("node-b", 90 * DAY, &owner("admin")).at(91 * DAY).snapshot();
    assert_eq!(answer(&[a, b]), (vec![], 2, false));
}

#[test]
fn a_flow_is_not_named_by_a_snapshot_that_ended_before_it() {
    let a = caller(0, &[89 * DAY]).at(91 * DAY).snapshot();
    let b = agent("node-b", 0, &owner("billing")).at(DAY).snapshot();
    assert_eq!(answer(&[a, b]), (vec![], 1, false));
}

#[test]
fn two_snapshots_of_a_node_leave_what_was_between_them_open() {
    let a = caller(0, &[5, 30 * DAY, 90 * DAY]).at(91 * DAY).snapshot();
    let early = agent("node-b", 0, &owner("billing")).at(DAY).snapshot();
    let late = agent("node-b", 89 * DAY, &owner("admin")).at(91 * DAY).snapshot();
    let (edges, left, complete) = answer(&[a.clone(), early.clone(), late]);
    assert_eq!((edges, left, complete), (vec![edge("admin", 1), edge("billing", 1)], 1, false));
    // The same workload before and after, by another pod: somebody else may have been in between.
    let other_pod = pod("shop", "billing", 1, "node-b", ADDRESS, &[]);
    let late = agent("node-b", 89 * DAY, &other_pod).at(91 * DAY).snapshot();
    assert_eq!(answer(&[a.clone(), early.clone(), late]), (vec![edge("billing", 2)], 1, false));
    // The same pod had it all the time.
    let late = agent("node-b", 89 * DAY, &owner("billing")).at(91 * DAY).snapshot();
    assert_eq!(answer(&[a, early, late]).0, [edge("billing", 3)]);
}

#[test]
fn agents_that_start_and_are_asked_one_after_another_name_each_others_pods() {
    let a = caller(0, &[5, 30, 130, 195]).at(200).snapshot();
    let b = agent("node-b", 60, &owner("api")).at(140).snapshot();
    assert_eq!(answer(&[a, b]), (vec![edge("api", 4)], 0, true));
}

#[test]
fn a_pod_that_was_there_before_its_nodes_agent_is_named_since_its_start() {
    let a = caller(0, &[600, 2 * HOUR]).at(3 * HOUR).snapshot();
    let b = agent("node-b", HOUR, &started(&owner("api"), 0)).at(3 * HOUR).snapshot();
    // Named, but for an hour nobody watched who else called that pod.
    assert_eq!(answer(&[a.clone(), b]), (vec![edge("api", 2)], 0, false));
    let b = agent("node-b", HOUR, &started(&owner("api"), HOUR - 600)).at(3 * HOUR).snapshot();
    assert_eq!(answer(&[a, b]), (vec![edge("api", 1)], 1, false));
}

#[test]
fn whose_word_it_is_stands_where_it_is_not_all_of_the_window() {
    let a = caller(0, &[5]).at(100).snapshot();
    let b = agent("node-b", 40, &owner("api")).at(200).snapshot();
    let heard = |s: &Snapshot| {
        let mut all = s.body.addresses.iter().filter(|entry| entry.pod.is_some());
        all.find(|entry| entry.address.to_string() == ADDRESS).unwrap().heard
    };
    assert_eq!(heard(&b), None);
    assert_eq!(heard(&merge(vec![a, b])), Some(Interval { from: t(40), to: t(200) }));
}

/// Within one flow of one node: what was seen in between may have been the other's.
#[test]
fn an_address_that_comes_back_to_its_first_owner_proves_two_connections_and_no_more() {
    let mut lab = Lab::new("node-a", &[pod("shop", "web", 0, "node-a", "10.244.1.2", &[]), owner("billing")]);
    lab.pod_cgroup(1, "web", 0);
    lab.flow(tcp_client(1, "10.244.1.2", ADDRESS, 80, t(2)));
    lab.at(100).delete_pod("shop", "billing-5d9c-0");
    lab.at(110).apply(&owner("admin"));
    lab.at(200).delete_pod("shop", "admin-5d9c-0");
    lab.at(210).apply(&pod("shop", "billing", 1, "node-b", ADDRESS, &[]));
    let mut calls = tcp_client(1, "10.244.1.2", ADDRESS, 8080, t(50));
    (calls.last_open, calls.counts.opened) = (Some(t(400)), 5);
    lab.at(401).flow(calls);
    assert_eq!(lab.edges(), ["web -> billing TCP/80", "web -> billing TCP/8080"]);
    assert_eq!(lab.snapshot().body.edges[1].counts.opened, 2);
    assert_eq!(lab.unresolved("ip_reuse"), 3);
    // Replicas of one workload may pass an address among themselves.
    let mut lab = Lab::new("node-a", &[pod("shop", "web", 0, "node-a", "10.244.1.2", &[]), owner("billing")]);
    lab.pod_cgroup(1, "web", 0);
    lab.flow(tcp_client(1, "10.244.1.2", ADDRESS, 80, t(2)));
    for (replica, second) in [(1, 100), (2, 200)] {
        lab.at(second).delete_pod("shop", &format!("billing-5d9c-{}", replica - 1));
        lab.at(second + 10).apply(&pod("shop", "billing", replica, "node-b", ADDRESS, &[]));
    }
    let mut calls = tcp_client(1, "10.244.1.2", ADDRESS, 8080, t(50));
    (calls.last_open, calls.counts.opened) = (Some(t(400)), 5);
    lab.at(401).flow(calls);
    assert_eq!(lab.snapshot().body.edges[1].counts.opened, 5);
    assert_eq!(lab.unresolved("ip_reuse"), 0);
}

/// Rollouts end pods all day long; at the end of the day their flows still have names.
#[test]
fn who_had_an_address_hours_ago_stays_known_until_the_epoch_ends() {
    for (asked, restarts) in [(HOUR + 1_800, false), (4 * HOUR, false), (20 * HOUR, false), (20 * HOUR, true)] {
        let a = caller(0, &[5, 600]).at(asked).snapshot();
        let mut b = agent("node-b", 0, &owner("billing"));
        b.pod_cgroup(7, "billing", 0);
        b.at(HOUR).delete_pod("shop", "billing-5d9c-0");
        (HOUR..asked / 2).step_by(60).for_each(|at| {
            b.at(at);
        });
        if restarts {
            let state = b.snapshot();
            let config = ObserverConfig { own_pods_only: true, ..ObserverConfig::new("node-b", "another", b.now) };
            b.observer = Observer::restore(config, &state, true).unwrap();
            apply_text(&mut b.observer, CLUSTER, b.now);
        }
        (asked / 2..asked).step_by(60).for_each(|at| {
            b.at(at);
        });
        let b = b.at(asked).snapshot();
        assert_eq!(answer(&[a, b]), (vec![edge("billing", 2)], 0, true), "asked at {asked}, {restarts}");
    }
}
