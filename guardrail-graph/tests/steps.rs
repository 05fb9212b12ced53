//! The wall clock is set forward: what lies between never was, so nobody observed it, and nobody
//! was there.

mod common;

use common::{CLUSTER, Lab, apply_text, edges, t, tcp_client};
use guardrail_graph::{
    Observer, ObserverConfig, Snapshot,
    epoch::{
        log::{Recorder, Write},
        state::State,
    },
    inventory::{Change, Kind, read},
    observe::OpenFlow,
    snapshot::{Interval, Starts, merge, merge_within, span::Span},
};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// A pod of node-a that started then.
fn pod(name: &str, address: &str, started: i64) -> String {
    let pod = common::pod("shop", name, 0, "node-a", address, &[]);
    pod.replace("status: {", &format!("status: {{startTime: \"{}\", ", t(started)))
}

fn config() -> ObserverConfig {
    ObserverConfig { run: 1, ..ObserverConfig::new("node-a", "i".to_owned(), t(0)) }
}

/// The agent of the only node, which heard these pods when it began.
fn alone(observer: Observer, at: i64, pods: &[String]) -> Lab {
    let mut lab = Lab { observer, now: t(at) };
    let node_b = CLUSTER.rfind("---").unwrap();
    apply_text(&mut lab.observer, &CLUSTER[..node_b], t(at));
    let objects = read::objects(&pods.concat(), "pods").unwrap().objects;
    lab.observer.apply(Change::Replace { kind: Kind::Pod, objects }, t(at));
    lab
}

fn windows(snapshot: &Snapshot) -> Vec<(i64, i64)> {
    let seconds = |at: guardrail_graph::Timestamp| (at.as_unix_ns() - t(0).as_unix_ns()) / 1_000_000_000;
    snapshot.body.window.nodes["node-a"].iter().map(|Interval { from, to }| (seconds(*from), seconds(*to))).collect()
}

/// What a state on disk says.
fn through_disk(lab: &mut Lab) -> Snapshot {
    let Write::Base(base) = lab.observer.store(&mut Recorder::default(), lab.now, |_| ()) else { panic!("no base") };
    let state = State::read(&base, &[]).unwrap();
    merge(vec![state.facts(lab.now).unwrap()])
}

/// Completeness: the share of time, and starts.
fn judged(snapshot: &Snapshot) -> (Option<f64>, Option<Starts>) {
    (snapshot.body.coverage.coverage, snapshot.body.coverage.starts)
}

#[test]
fn an_epoch_that_a_step_forward_ends_ends_where_the_clock_was_and_the_next_begins_where_it_is() {
    let pods = [pod("web", "10.244.1.2", -HOUR), pod("api", "10.244.1.3", 100)];
    let mut lab = alone(Observer::new(config()), 0, &pods);
    lab.pod_cgroup(1, "web", 0);
    let pool = tcp_client(1, "10.244.1.2", "10.244.1.3", 8080, t(500));
    lab.at(501).flow(pool.clone());
    let first = lab.observer.turn_over(&[OpenFlow { flow: pool, open: 1 }], t(1_000), t(DAY)).snapshot();
    assert_eq!(windows(&first), [(0, 1_000)]);
    assert!(first.body.presence.iter().all(|pod| pod.to == t(1_000)), "{:?}", first.body.presence);
    assert!(first.body.edges[0].last_seen <= t(1_000));
    // What is heard of a pod again is nothing new of its start.
    lab.at(DAY + 10).apply(&pods[0]);
    lab.apply(&pod("late", "10.244.1.4", DAY + 20));
    let second = lab.at(DAY + 1_000).snapshot();
    assert_eq!(windows(&second), [(DAY, DAY + 1_000)]);
    assert_eq!(edges(&second), ["web -> api TCP/8080"], "the pool");
    assert_eq!(second.body.edges[0].first_seen, t(DAY));
    let both = merge(vec![first.clone(), second.clone()]);
    assert!(first.body.coverage.complete && second.body.coverage.complete && both.body.coverage.complete);
    assert!(lab.observer.edge_counters(t(DAY + 1_000)).complete);
    let late = Span::new(Some(t(500)), None).unwrap();
    assert!(merge_within(vec![both.clone()], &late).body.coverage.complete, "nothing is missing");
    assert_eq!(judged(&both), (Some(1.0), Some(Starts { covered: 2, all: 2 })), "{:#?}", both.body.presence);
    // Nor for an agent that goes on from there, and hears of all of them again.
    let mut known = pods.to_vec();
    known.push(pod("late", "10.244.1.4", DAY + 20));
    let restored = Observer::restore(ObserverConfig { started: t(DAY + 1_000), ..config() }, &second, true).unwrap();
    let mut lab = alone(restored, DAY + 1_001, &known);
    let third = lab.at(DAY + 2_000).snapshot();
    assert_eq!(windows(&third), [(DAY, DAY + 2_000)]);
    let all = merge(vec![first, through_disk(&mut lab), third]);
    assert!(all.body.coverage.complete);
    assert_eq!(judged(&all), judged(&both), "{:#?}", all.body.presence);
}

#[test]
fn an_epoch_that_goes_on_over_a_step_forward_observed_nothing_in_between() {
    let pods = [pod("web", "10.244.1.2", -HOUR), pod("api", "10.244.1.3", 100)];
    let mut lab = alone(Observer::new(config()), 0, &pods);
    lab.observer.step(t(1_000), t(HOUR));
    lab.at(HOUR + 5).apply(&pods[0]);
    lab.observer.step(t(HOUR + 1_000), t(2 * HOUR));
    let snapshot = lab.at(2 * HOUR + 1_000).snapshot();
    assert_eq!(windows(&snapshot), [(0, 1_000), (HOUR, HOUR + 1_000), (2 * HOUR, 2 * HOUR + 1_000)]);
    assert_eq!(judged(&snapshot), (Some(1.0), Some(Starts { covered: 1, all: 1 })), "{:#?}", snapshot.body.presence);
    assert!(snapshot.body.coverage.complete && lab.observer.edge_counters(lab.now).complete);
    assert!(through_disk(&mut lab).body.coverage.complete);
    // An agent that goes on from there.
    let at = 2 * HOUR + 1_000;
    let restored = Observer::restore(ObserverConfig { started: t(at), ..config() }, &snapshot, true).unwrap();
    let mut lab = alone(restored, at + 1, &pods);
    let later = lab.at(2 * HOUR + 2_000).snapshot();
    assert_eq!(windows(&later), [(0, 1_000), (HOUR, HOUR + 1_000), (2 * HOUR, 2 * HOUR + 2_000)]);
    assert_eq!(judged(&later), judged(&snapshot), "{:#?}", later.body.presence);
}

#[test]
fn what_an_agent_missed_before_it_began_is_missed_whatever_the_clock_does_later() {
    let mut lab = alone(Observer::new(config()), 0, &[pod("web", "10.244.1.2", -HOUR)]);
    lab.observer.step(t(HOUR), t(DAY));
    let coverage = lab.at(DAY + HOUR).snapshot().body.coverage;
    assert_eq!((coverage.coverage, coverage.starts), (Some(1.0), Some(Starts::default())));
    let pods = lab.snapshot().body.presence;
    assert_eq!(pods.iter().map(|pod| (pod.from, pod.to)).collect::<Vec<_>>(), [(t(-HOUR), t(HOUR)), (t(DAY), lab.now)]);
}
