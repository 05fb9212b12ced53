//! Evidence has time: what an epoch's end keeps, what it begins anew, and what both give together.

mod common;

use std::collections::BTreeMap;

use common::{CLUSTER, Lab, delta, edges, failed, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Peer, Protocol, Snapshot, Timestamp,
    observe::{FlowCounts, FlowDelta, LossReason, OpenFlow, Remote, Role},
    snapshot::{Counts, EdgeRecord, merge},
};
use proptest::prelude::*;

const DAY: i64 = 86_400;
const SERVICE: &str = "---\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.96.0.7, selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}\n";

fn cluster() -> [String; 4] {
    [
        pod("shop", "web", 0, "node-a", "10.244.1.2", &[]),
        pod("shop", "api", 0, "node-a", "10.244.1.3", &["http:8080"]),
        pod("shop", "db", 0, "node-b", "10.244.2.3", &[]),
        SERVICE.to_owned(),
    ]
}

fn lab() -> Lab {
    let mut lab = Lab::new("node-a", &cluster());
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "api", 0);
    lab
}

/// Ends the epoch, through the text of its document, as it would lie in a file.
fn turn(lab: &mut Lab, open: &[OpenFlow]) -> Snapshot {
    let document = lab.observer.turn(open, lab.now);
    Snapshot::from_json(&document.snapshot().to_json(), "epoch").unwrap()
}

fn open(flow: FlowDelta, open: u64) -> OpenFlow {
    OpenFlow { flow, open }
}

fn closed(mut flow: FlowDelta) -> FlowDelta {
    (flow.first_open, flow.last_open) = (None, None);
    flow.counts = FlowCounts { closed: 1, bytes_sent: 5, bytes_received: 6, ..FlowCounts::default() };
    flow
}

fn edge(snapshot: &Snapshot, server: &str) -> EdgeRecord {
    let is_it = |e: &&EdgeRecord| e.server.peer.workload().is_some_and(|w| w.name == server);
    snapshot.body.edges.iter().find(is_it).unwrap_or_else(|| panic!("{:?}", edges(snapshot))).clone()
}

#[test]
fn a_pool_opened_on_day_1_is_evidence_of_every_epoch_until_it_ends_and_counted_once() {
    let mut lab = lab();
    let pool = tcp_client(1, "10.244.1.2", "10.244.2.3", 5432, t(100));
    lab.at(100).flow(pool.clone());
    let mut epochs = Vec::new();
    for day in 1..=40 {
        lab.at(day * DAY);
        epochs.push(turn(&mut lab, &[open(pool.clone(), 1)]));
    }
    for (day, epoch) in (0..).zip(&epochs).skip(1) {
        let edge = edge(epoch, "db");
        assert!(edge.supported, "day {day}: {edge:?}");
        assert_eq!((edge.first_seen, edge.last_seen), (t(day * DAY), t((day + 1) * DAY)));
        assert_eq!((edge.counts.opened, edge.counts.open), (0, 1), "day {day}");
    }
    lab.at(40 * DAY + 50).flow(closed(pool));
    lab.at(41 * DAY);
    let last = turn(&mut lab, &[]);
    assert_eq!(edge(&last, "db").last_seen, t(40 * DAY + 50), "its end");
    lab.at(42 * DAY);
    assert_eq!(edges(&turn(&mut lab, &[])), [""; 0]);
    epochs.push(last);
    let all = edge(&merge(epochs), "db");
    assert_eq!((all.counts.opened, all.counts.open, all.counts.bytes_sent), (1, 1, 15), "{all:?}");
    assert_eq!((all.first_seen, all.last_seen), (t(100), t(40 * DAY + 50)));
}

#[test]
fn a_use_of_a_service_that_is_open_goes_on_in_the_next_epoch_too() {
    let mut lab = lab();
    let client = tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(100));
    let server = tcp_server(2, "10.244.1.3", "10.244.1.2", 8080, t(100));
    lab.at(101).flow(client.clone());
    lab.flow(server.clone());
    lab.at(DAY);
    let first = turn(&mut lab, &[open(client.clone(), 1), open(server.clone(), 1)]);
    lab.at(2 * DAY);
    let second = turn(&mut lab, &[open(client, 1), open(server, 1)]);
    for epoch in [&first, &second, &merge(vec![first.clone(), second.clone()])] {
        assert_eq!(edges(epoch), ["web -> api TCP/8080 via shop/api:80"], "{epoch:?}");
    }
    assert_eq!(second.body.service_flows[0].sources[0].counts, Counts { open: 1, ..Counts::default() });
}

#[test]
fn what_is_half_open_to_or_from_a_pod_that_is_gone_is_no_evidence() {
    // Nothing tells that the address is a pod's once it is gone: no node has a range.
    let ranges = CLUSTER.replace("{podCIDR: 10.244.1.0/24}", "{}").replace("{podCIDR: 10.244.2.0/24}", "{}");
    for cluster_text in [CLUSTER, &ranges] {
        let mut observer = Observer::new(ObserverConfig::new("node-a", "i", t(0)));
        common::apply_text(&mut observer, &format!("{cluster_text}\n{}", cluster().concat()), t(0));
        let mut lab = Lab { observer, now: t(1) };
        lab.pod_cgroup(1, "web", 0);
        lab.pod_cgroup(2, "api", 0);
        let to_gone = tcp_client(1, "10.244.1.2", "10.244.2.3", 5432, t(100));
        let of_gone = tcp_client(2, "10.244.1.3", "203.0.113.9", 443, t(100));
        lab.at(101).flow(to_gone.clone());
        lab.flow(of_gone.clone());
        lab.at(500).delete_pod("shop", "db-5d9c-0");
        lab.delete_pod("shop", "api-5d9c-0");
        lab.observer
            .observe(Observation::CgroupRemoved { id: guardrail_graph::observe::CgroupId(2), at: t(500) }, lab.now);
        let still = [open(to_gone, 1), open(of_gone, 1)];
        for day in 1..4 {
            lab.at(day * DAY);
            let epoch = turn(&mut lab, &still);
            assert_eq!(epoch.body.edges.is_empty(), day > 1, "day {day}: {:?}", edges(&epoch));
            assert_eq!(epoch.body.coverage.unresolved, []);
            assert_eq!(epoch.body.coverage.workloads, []);
        }
    }
}

#[test]
fn what_was_lost_or_unresolved_leaves_with_its_epoch_and_no_counter_goes_back() {
    let mut lab = lab();
    lab.at(10).flow(tcp_client(77, "10.244.1.77", "10.244.1.3", 8080, t(10)));
    lab.observer.observe(Observation::Lost { reason: LossReason::MapFull, cgroup: None, count: 3, at: t(11) }, t(11));
    let mut coarse = tcp_client(1, "10.244.1.2", "10.244.2.3", 80, t(12));
    (coarse.remote, coarse.counts.opened) = (Remote::Many, 5);
    lab.flow(coarse);
    lab.at(DAY);
    let first = turn(&mut lab, &[]);
    assert!(!first.body.coverage.complete);
    let before = lab.observer.stats();
    assert_eq!((lab.lost(LossReason::MapFull), lab.lost(LossReason::CoarseClient)), (3, 5));
    assert!(lab.unresolved("pod_unknown") > 0);
    // What the kernel reports late of the epoch before is no loss of this one.
    lab.observer
        .observe(Observation::Lost { reason: LossReason::CoarseClient, cgroup: None, count: 5, at: t(DAY) }, lab.now);
    assert_eq!(lab.lost(LossReason::CoarseClient), 5);
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.2.3", 5432, t(DAY)));
    lab.at(2 * DAY);
    let after = lab.observer.stats();
    assert_eq!((after.unresolved, after.losses), (before.unresolved, before.losses));
    let second = turn(&mut lab, &[]);
    assert_eq!(second.body.coverage.losses, []);
    assert_eq!(second.body.coverage.unresolved, []);
    assert!(!merge(vec![first, second]).body.coverage.complete);
}

#[test]
fn where_pods_ran_before_an_epoch_is_no_part_of_it() {
    let mut lab = Lab::new("node-a", &[cluster().concat(), pod("shop", "web", 1, "node-b", "10.244.2.9", &[])]);
    let ran_on = |epoch: &Snapshot| -> Vec<String> {
        let web = epoch.body.workloads.iter().find(|w| w.workload.name == "web").unwrap();
        web.ran_on.keys().cloned().collect()
    };
    lab.at(10).delete_pod("shop", "web-5d9c-1");
    lab.at(DAY);
    let first = turn(&mut lab, &[]);
    lab.at(2 * DAY);
    let second = turn(&mut lab, &[]);
    assert_eq!((ran_on(&first), ran_on(&second)), (vec!["node-b".to_owned()], vec![]));
    assert_eq!(ran_on(&merge(vec![second, first])), ["node-b"]);
}

#[test]
fn a_restart_is_a_gap_of_its_own_epoch_only() {
    let mut lab = lab();
    lab.at(50);
    let state = lab.snapshot();
    let observer = Observer::restore(ObserverConfig::new("node-a", "next", t(1_000)), &state, false).unwrap();
    let mut lab = Lab { observer, now: t(1_000) };
    assert_eq!(lab.observer.epoch(), Some(t(0)), "the open epoch is continued");
    lab.at(DAY);
    let first = turn(&mut lab, &[]);
    assert_eq!(first.body.window.nodes["node-a"].len(), 2);
    lab.at(2 * DAY);
    let second = turn(&mut lab, &[]);
    assert_eq!(second.body.window.nodes["node-a"].len(), 1);
    assert_eq!(merge(vec![first, second]).body.window.nodes["node-a"].len(), 2);
}

#[test]
fn an_address_that_turns_out_to_be_a_pod_s_just_after_an_epoch_s_end_stands_once() {
    let no_ranges = CLUSTER.replace("{podCIDR: 10.244.2.0/24}", "{}");
    let mut observer = Observer::new(ObserverConfig::new("node-a", "i", t(0)));
    let web = pod("shop", "web", 0, "node-a", "10.244.1.2", &[]);
    common::apply_text(&mut observer, &format!("{no_ranges}\n{web}"), t(0));
    let mut lab = Lab { observer, now: t(1) };
    lab.pod_cgroup(1, "web", 0);
    lab.at(100).flow(tcp_client(1, "10.244.1.2", "10.244.9.9", 80, t(100)));
    lab.flow(tcp_client(1, "10.244.1.2", "203.0.113.9", 443, t(100)));
    lab.at(110);
    let first = turn(&mut lab, &[]);
    assert_eq!(edges(&first), [""; 0], "both may turn out to be the cluster's own");
    lab.at(120).apply(&pod("shop", "late", 0, "node-b", "10.244.9.9", &[]));
    lab.at(DAY);
    let second = turn(&mut lab, &[]);
    assert_eq!(edges(&second), ["web -> late TCP/80", "web -> external/203.0.113.9 TCP/443"]);
    lab.at(2 * DAY);
    assert_eq!(edges(&turn(&mut lab, &[])), [""; 0]);
}

#[test]
fn an_answer_after_an_epoch_s_end_still_supports_what_was_asked_before() {
    let mut lab = lab();
    let mut asked = delta(1, Role::Client, "10.244.1.2", "10.244.2.3", Protocol::Udp, 53, t(100));
    asked.counts.bytes_received = 0;
    lab.at(101).flow(asked.clone());
    let first = turn(&mut lab, &[]);
    (asked.first_open, asked.last_open) = (None, None);
    asked.counts = FlowCounts { bytes_received: 90, ..FlowCounts::default() };
    lab.at(115).flow(asked);
    let second = turn(&mut lab, &[]);
    let both = edge(&merge(vec![first, second]), "db");
    assert!(both.supported, "{both:?}");
    assert_eq!((both.first_seen, both.last_seen, both.counts.bytes_received), (t(100), t(100), 90));
}

#[test]
fn a_reply_is_no_edge_of_its_own_because_an_epoch_ended() {
    let mut lab = lab();
    lab.flow(delta(2, Role::Server, "10.244.1.3", "10.244.2.3", Protocol::Udp, 9999, t(10)));
    lab.at(DAY);
    turn(&mut lab, &[]);
    // The kernel no longer has the server's record: its answer looks like an initiative.
    let mut reply = delta(2, Role::Client, "10.244.1.3", "10.244.2.3", Protocol::Udp, 41_000, t(DAY + 5));
    reply.local_port = Some(9999);
    lab.at(DAY + 5).flow(reply);
    lab.at(DAY + 500);
    assert_eq!(lab.edges(), [""; 0]);
}

#[test]
fn two_ends_at_one_instant_make_two_epochs() {
    let mut lab = lab();
    lab.at(10);
    let sources: std::collections::BTreeSet<_> =
        (0..3).flat_map(|_| turn(&mut lab, &[]).body.sources).map(|source| source.start).collect();
    assert_eq!(sources.len(), 3, "{sources:?}");
}

// ---- ending an epoch anywhere gives, merged, what never ending it gives ----

/// Kernel entries that a stream may use: (cgroup, role, local, remote, protocol, port).
const KEYS: [(u64, Role, &str, &str, Protocol, u16); 9] = [
    (1, Role::Client, "10.244.1.2", "10.244.1.3", Protocol::Tcp, 8080),
    (2, Role::Server, "10.244.1.3", "10.244.1.2", Protocol::Tcp, 8080),
    (1, Role::Client, "10.244.1.2", "10.96.0.7", Protocol::Tcp, 80),
    (1, Role::Client, "10.244.1.2", "10.244.2.3", Protocol::Tcp, 5432),
    (1, Role::Client, "10.244.1.2", "203.0.113.9", Protocol::Tcp, 443),
    (2, Role::Server, "10.244.1.3", "198.51.100.4", Protocol::Tcp, 8080),
    (1, Role::Client, "10.244.1.2", "10.244.2.3", Protocol::Udp, 53),
    // In a pod range, and nobody has it.
    (1, Role::Client, "10.244.1.2", "10.244.2.99", Protocol::Tcp, 80),
    (2, Role::Client, "10.244.1.3", "192.0.2.12", Protocol::Tcp, 10_250),
];

#[derive(Clone, Debug)]
enum Op {
    Open(usize),
    Close(usize),
    Fail(usize),
    Answer(usize),
    Lose,
    Wait(i64),
    Turn,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..KEYS.len();
    prop_oneof![
        4 => key.clone().prop_map(Op::Open),
        2 => key.clone().prop_map(Op::Close),
        1 => key.clone().prop_map(Op::Fail),
        1 => key.prop_map(Op::Answer),
        1 => Just(Op::Lose),
        2 => (1i64..400).prop_map(Op::Wait),
        2 => Just(Op::Turn),
    ]
}

/// The kernel's table of flows.
#[derive(Default)]
struct Flows {
    open: BTreeMap<usize, u64>,
    known: std::collections::BTreeSet<usize>,
    /// Epochs that ended.
    turns: usize,
    /// As of the last datagram.
    asked: usize,
}

impl Flows {
    fn delta(&mut self, key: usize, now: Timestamp, counts: FlowCounts, attempts: bool) -> FlowDelta {
        let (cgroup, role, local, remote, protocol, port) = KEYS[key];
        let mut flow = delta(cgroup, role, local, remote, protocol, port, now);
        flow.counts = counts;
        flow.last_open = attempts.then_some(now);
        flow.first_open = flow.last_open.filter(|_| self.known.insert(key));
        flow
    }

    /// What the entry gains by this.
    fn step(&mut self, op: &Op, now: Timestamp) -> Option<FlowDelta> {
        let is_tcp = |key: &usize| KEYS[*key].4 == Protocol::Tcp;
        let none = FlowCounts::default();
        Some(match op {
            Op::Open(key) if is_tcp(key) => {
                *self.open.entry(*key).or_default() += 1;
                self.delta(*key, now, FlowCounts { opened: 1, ..none }, true)
            }
            Op::Open(key) => {
                self.asked = self.turns;
                self.delta(*key, now, FlowCounts { opened: 1, bytes_sent: 7, ..none }, true)
            }
            Op::Close(key) if self.open.get(key).is_some_and(|open| *open > 0) => {
                *self.open.entry(*key).or_default() -= 1;
                self.delta(*key, now, FlowCounts { closed: 1, bytes_sent: 3, bytes_received: 4, ..none }, false)
            }
            Op::Fail(key) if KEYS[*key].1 == Role::Client => {
                self.delta(*key, now, FlowCounts { refused: 1, ..none }, true)
            }
            // An answer does not take two days.
            Op::Answer(key) if !is_tcp(key) && self.known.contains(key) && self.turns <= self.asked + 1 => {
                self.delta(*key, now, FlowCounts { bytes_received: 9, ..none }, false)
            }
            _ => return None,
        })
    }

    fn turn(&mut self, now: Timestamp) -> Vec<OpenFlow> {
        self.turns += 1;
        let open: Vec<_> = self.open.iter().filter(|(_, open)| **open > 0).map(|(key, open)| (*key, *open)).collect();
        open.into_iter()
            .map(|(key, open)| OpenFlow { flow: self.delta(key, now, FlowCounts::default(), false), open })
            .collect()
    }
}

/// Everything of an edge but whose count it is, and what an epoch's begin adds.
fn evidence(edge: &EdgeRecord) -> EdgeRecord {
    EdgeRecord { counts: Counts { open: 0, ..edge.counts }, sources: Vec::new(), ..edge.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn an_epoch_may_end_anywhere(ops in prop::collection::vec(op(), 1..60)) {
        let (mut never, mut often, mut flows) = (lab(), lab(), Flows::default());
        let (mut epochs, mut seconds) = (Vec::new(), 2);
        let mut stats = often.observer.stats();
        for op in &ops {
            seconds += if let Op::Wait(more) = op { *more } else { 1 };
            never.at(seconds);
            often.at(seconds);
            match op {
                Op::Turn => epochs.push(turn(&mut often, &flows.turn(t(seconds)))),
                Op::Lose => {
                    for lab in [&mut never, &mut often] {
                        let lost = Observation::Lost { reason: LossReason::MapFull, cgroup: None, count: 1, at: t(seconds) };
                        lab.observer.observe(lost, t(seconds));
                    }
                }
                _ => {
                    if let Some(flow) = flows.step(op, t(seconds)) {
                        never.flow(flow.clone());
                        often.flow(flow);
                    }
                }
            }
            let now = often.observer.stats();
            for (before, now) in stats.unresolved.iter().zip(&now.unresolved) {
                prop_assert!(before.1 <= now.1, "{} went back", now.0);
            }
            for (before, now) in stats.losses.iter().zip(&now.losses) {
                prop_assert!(before.2 <= now.2, "{:?} went back", now.0);
            }
            stats = now;
        }
        seconds += 1_000;
        never.at(seconds);
        often.at(seconds);
        let never = never.snapshot();
        epochs.push(often.snapshot());
        let merged = merge(epochs.clone());
        let (mut one, mut many): (Vec<_>, Vec<_>) =
            (never.body.edges.iter().map(evidence).collect(), merged.body.edges.iter().map(evidence).collect());
        for ((one, many), of_epochs) in one.iter_mut().zip(&mut many).zip(&merged.body.edges) {
            if of_epochs.counts.open > 0 || !of_epochs.via.is_empty() {
                // Evidence lasts as long as a connection, or the use of the Service, was open.
                prop_assert!(many.last_seen >= one.last_seen);
                many.last_seen = one.last_seen;
            }
        }
        prop_assert_eq!(one, many);
        let unresolved = |snapshot: &Snapshot| {
            let mut sums: BTreeMap<String, u64> = BTreeMap::new();
            for entry in &snapshot.body.coverage.unresolved {
                *sums.entry(entry.reason.clone()).or_default() += entry.count;
            }
            sums
        };
        // Which record is of the time of a Service's use is known better by epochs.
        let unknown = "service_backend_unknown";
        let (mut at_once, mut by_epochs) = (unresolved(&never), unresolved(&merged));
        prop_assert!(at_once.remove(unknown).unwrap_or(0) <= by_epochs.remove(unknown).unwrap_or(0));
        prop_assert_eq!(at_once, by_epochs);
        let lost = |snapshot: &Snapshot| snapshot.body.coverage.losses.iter().map(|l| l.count).sum::<u64>();
        prop_assert_eq!(lost(&never), lost(&merged));
        let incomplete = |snapshot: &Snapshot| {
            let reasons = snapshot.body.coverage.workloads.iter();
            let reasons = reasons.flat_map(|w| w.reasons.iter().map(|reason| (w.peer.to_string(), reason.clone())));
            reasons.filter(|(_, reason)| reason != unknown).collect::<Vec<_>>()
        };
        prop_assert_eq!(incomplete(&never), incomplete(&merged));
        prop_assert_eq!(&never.body.window, &merged.body.window);
        // In whatever order, and each any number of times: the same bytes.
        let text = merged.to_json();
        epochs.reverse();
        let again = merge(vec![merge(epochs.clone()), epochs[0].clone(), merged]);
        prop_assert_eq!(again.to_json(), text);
    }
}

#[test]
fn a_failed_attempt_supports_nothing_in_whichever_epoch() {
    let mut lab = lab();
    let refused = FlowCounts { refused: 1, ..FlowCounts::default() };
    lab.flow(failed(tcp_client(1, "10.244.1.2", "10.244.2.3", 5432, t(5)), refused));
    lab.at(DAY);
    let first = turn(&mut lab, &[]);
    lab.at(2 * DAY);
    let second = turn(&mut lab, &[]);
    assert_eq!(edges(&first), ["web -> db TCP/5432 unsupported"]);
    assert_eq!(edges(&second), [""; 0]);
    assert!(matches!(*edge(&first, "db").client.peer, Peer::Workload(_)));
}
