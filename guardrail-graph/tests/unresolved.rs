//! What could not be named: counted once, under its own reason, and shown from client to server.

mod common;

use std::collections::BTreeSet;

use common::{Lab, delta, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Protocol,
    observe::{LossReason, Remote, Role},
};

fn examples(lab: &mut Lab, reason: &str) -> BTreeSet<String> {
    let entries = lab.snapshot().body.coverage.unresolved;
    entries.into_iter().filter(|u| u.reason == reason).flat_map(|u| u.examples).collect()
}

fn set<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(str::to_owned).into()
}

#[test]
fn an_example_stands_from_client_to_server_whichever_end_was_seen() {
    let mut lab = Lab::new("node-a", &[pod("shop", "api", 0, "node-a", "10.244.1.3", &[])]);
    lab.pod_cgroup(1, "api", 0);
    lab.at(10);
    // The other end is in the nodes' pod ranges, and nobody has it.
    lab.flow(tcp_server(1, "10.244.1.3", "10.244.2.9", 8080, t(10)));
    lab.flow(tcp_client(1, "10.244.1.3", "10.244.2.8", 5432, t(10)));
    // The local pod never becomes known.
    lab.flow(tcp_server(2, "10.244.1.7", "10.244.1.3", 9090, t(10)));
    lab.flow(tcp_client(2, "10.244.1.7", "10.244.1.3", 8080, t(10)));
    let mut many = tcp_server(2, "10.244.1.7", "10.244.1.3", 9091, t(10));
    many.remote = Remote::Many;
    lab.flow(many);
    // Nothing tells the role.
    lab.flow(delta(1, Role::Undecided, "10.244.1.3", "198.51.100.1", Protocol::Tcp, 700, t(10)));
    lab.at(2_000);
    assert_eq!(
        examples(&mut lab, "pod_range_no_owner"),
        set(["10.244.2.9 -> shop/Deployment/api:8080/TCP", "shop/Deployment/api -> 10.244.2.8:5432/TCP"])
    );
    assert_eq!(
        examples(&mut lab, "pod_unknown"),
        set([
            "10.244.1.3 -> cgroup 2 (10.244.1.7):9090/TCP",
            "cgroup 2 (10.244.1.7) -> 10.244.1.3:8080/TCP",
            "many -> cgroup 2 (10.244.1.7):9091/TCP"
        ])
    );
    assert_eq!(examples(&mut lab, "role_unknown"), set(["shop/Deployment/api -> 198.51.100.1:700/TCP"]));
}

#[test]
fn a_flow_of_another_nodes_process_stands_from_client_to_server_too() {
    let mut lab = Lab::new("node-a", &[pod("shop", "far", 0, "node-b", "10.244.2.3", &[])]);
    lab.pod_cgroup(1, "far", 0);
    lab.at(10);
    lab.flow(tcp_server(1, "10.244.2.3", "10.244.1.9", 8080, t(10)));
    assert_eq!(examples(&mut lab, "other_node"), set(["10.244.1.9 -> 10.244.2.3:8080/TCP"]));
}

#[test]
fn a_wait_that_ends_in_vain_is_unresolved_and_no_overflow() {
    let mut lab = Lab::new("node-a", &[pod("shop", "api", 0, "node-a", "10.244.1.3", &[])]);
    lab.at(10);
    lab.flow(tcp_client(2, "10.244.1.7", "10.244.1.3", 8080, t(10)));
    lab.at(2_000);
    lab.flow(tcp_client(3, "10.244.1.8", "10.244.1.3", 8080, t(2_000)));
    let now = lab.now;
    lab.observer.flush(now);
    assert_eq!(lab.unresolved("pod_unknown"), 2);
    assert_eq!(lab.lost(LossReason::PendingOverflow), 0, "there was room");
    let coverage = lab.snapshot().body.coverage;
    assert!(!coverage.complete, "an edge is missing all the same");
    assert!(coverage.losses.is_empty(), "{:?}", coverage.losses);
}

#[test]
fn an_overflow_is_counted_once() {
    let mut lab = Lab::with("node-a", &[], |config| config.max_pending = 8);
    lab.at(10);
    // A cgroup has room for one of the eight.
    for _ in 0..3 {
        lab.flow(tcp_client(2, "10.244.1.7", "10.244.1.3", 8080, t(10)));
    }
    assert_eq!(lab.lost(LossReason::PendingOverflow), 2);
    assert_eq!(lab.unresolved("pod_unknown"), 2);
    lab.at(2_000);
    assert_eq!(lab.lost(LossReason::PendingOverflow), 2, "the third waited in vain");
    assert_eq!(lab.unresolved("pod_unknown"), 3);
}
