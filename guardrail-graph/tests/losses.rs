//! When events were lost: the minutes in which the traffic was, not those in which it was noticed.

mod common;

use common::{CLUSTER, Lab, delta, lists, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Protocol, Snapshot,
    observe::{CgroupId, LossReason, Remote, Role},
    snapshot::{LossTime, merge},
};

fn pods() -> String {
    let web = pod("shop", "web", 0, "node-a", "10.244.1.2", &[]);
    web + &pod("shop", "api", 0, "node-a", "10.244.1.3", &["http:8080"])
}

fn lab(change: impl FnOnce(&mut ObserverConfig)) -> Lab {
    let mut lab = Lab::with("node-a", &[pods()], change);
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "api", 0);
    lab
}

/// Times of a reason, by whom it concerns, in seconds.
fn times(snapshot: &Snapshot, reason: LossReason) -> Vec<(String, i64, i64)> {
    let of_reason = snapshot.body.coverage.losses.iter().filter(|loss| loss.reason == reason.as_str());
    let seconds = |at: guardrail_graph::Timestamp| (at.as_unix_ns() - t(0).as_unix_ns()) / 1_000_000_000;
    let one = |LossTime { time, peer }: &LossTime| {
        let whom = peer.as_ref().map_or_else(String::new, ToString::to_string);
        (whom, seconds(time.from), seconds(time.to))
    };
    of_reason.flat_map(|loss| loss.times.iter().flatten().map(one)).collect()
}

const WEB: &str = "shop/Deployment/web";
const API: &str = "shop/Deployment/api";

#[test]
fn what_the_kernel_lost_while_no_agent_was_there_was_lost_in_that_time() {
    let mut lab = lab(|_| ());
    let state = lab.at(1_000).snapshot();
    let mut observer = Observer::restore(ObserverConfig::new("node-a", "next", t(4_000)), &state, true).unwrap();
    for list in lists(&format!("{CLUSTER}{}", pods())) {
        observer.apply(list, t(4_000));
    }
    let mut lab = Lab { observer, now: t(4_001) };
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "api", 0);
    // The first sweep of the maps that were pinned.
    let lost = |cgroup, at| Observation::Lost {
        reason: LossReason::MapFull,
        cgroup: Some(CgroupId(cgroup)),
        count: 1,
        at: t(at),
    };
    lab.observer.observe(lost(1, 4_001), lab.now);
    let mut coarse = tcp_client(1, "10.244.1.2", "10.244.2.3", 80, t(4_001));
    (coarse.remote, coarse.first_open, coarse.counts.opened) = (Remote::Many, Some(t(2_000)), 5);
    lab.flow(coarse);
    // What comes later was noticed when it came.
    lab.at(8_000).observer.observe(lost(2, 8_000), t(8_000));
    let shown = lab.snapshot();
    let expected = [(API.to_owned(), 7_960, 8_020), (WEB.to_owned(), 1_000, 4_060)];
    assert_eq!(times(&shown, LossReason::MapFull), expected);
    assert!(times(&shown, LossReason::CoarseClient)[0].1 <= 2_000, "{shown:#?}");
}

#[test]
fn a_flow_that_waited_for_its_name_is_missing_in_the_minute_in_which_it_was() {
    let mut lab = lab(|config| config.max_edges = 1);
    lab.at(30).flow(tcp_client(1, "10.244.1.2", "10.244.1.3", 8080, t(30)));
    lab.at(38).flow(tcp_server(2, "10.244.1.3", "10.244.1.77", 8080, t(38)));
    for second in 39..92 {
        lab.at(second);
    }
    lab.apply(&pod("shop", "late", 0, "node-a", "10.244.1.77", &[]));
    lab.at(93);
    let shown = lab.snapshot();
    assert_eq!(lab.lost(LossReason::GraphFull), 1, "{:?}", shown.body.coverage);
    assert_eq!(times(&shown, LossReason::GraphFull), [(API.to_owned(), -20, 100)]);
}

#[test]
fn a_flow_that_has_to_stop_waiting_is_missing_in_the_minute_in_which_it_was() {
    let mut lab = lab(|config| config.max_pending = 8);
    // Nobody knows whether it asks or answers.
    let mut unknown = delta(1, Role::Client, "10.244.1.2", "10.244.1.3", Protocol::Udp, 40_001, t(38));
    (unknown.local_port, unknown.bind_seen) = (Some(9999), false);
    lab.at(38).flow(unknown);
    lab.at(95);
    for cgroup in 10..18 {
        lab.flow(tcp_client(cgroup, "10.244.1.9", "10.244.1.3", 8080, t(95)));
    }
    assert_eq!(lab.lost(LossReason::PendingOverflow), 1);
    assert_eq!(times(&lab.snapshot(), LossReason::PendingOverflow), [(WEB.to_owned(), -20, 100)]);
}

#[test]
fn what_is_never_read_is_lost_since_the_last_time_that_all_was_read() {
    let mut lab = lab(|_| ());
    lab.at(1_000);
    lab.observer.unread(t(900), t(1_000));
    assert_eq!(times(&lab.snapshot(), LossReason::Unread), [(String::new(), 880, 1_000)]);
    assert!(lab.snapshot().body.coverage.workloads.iter().any(|w| w.reasons.contains("unread")));
}

#[test]
fn of_two_epochs_one_has_what_was_lost_as_the_first_ended() {
    const DAY: i64 = 86_400;
    let mut lab = lab(|config| config.max_edges = 1);
    lab.at(DAY - 100).flow(tcp_client(1, "10.244.1.2", "10.244.1.3", 8080, t(DAY - 100)));
    lab.at(DAY - 62).flow(tcp_server(2, "10.244.1.3", "10.244.1.77", 8080, t(DAY - 62)));
    for second in DAY - 61..DAY - 10 {
        lab.at(second);
    }
    let first = lab.observer.turn(&[], t(DAY - 10)).snapshot();
    // The table is empty again, and full at once.
    lab.at(DAY - 9).flow(tcp_client(1, "10.244.1.2", "10.244.1.3", 8080, t(DAY - 9)));
    lab.apply(&pod("shop", "late", 0, "node-a", "10.244.1.77", &[]));
    lab.at(DAY - 8);
    let second = lab.observer.turn(&[], t(2 * DAY)).snapshot();
    assert_eq!(times(&first, LossReason::GraphFull), []);
    let all = times(&merge(vec![first, second]), LossReason::GraphFull);
    let [(whom, from, to)] = all.as_slice() else { panic!("{all:?}") };
    assert!(whom == API && *from <= DAY - 62 && *to >= DAY - 62, "{all:?}");
    let third = lab.observer.turn(&[], t(3 * DAY)).snapshot();
    assert_eq!((times(&third, LossReason::GraphFull), third.body.coverage.workloads.len()), (vec![], 0));
}
