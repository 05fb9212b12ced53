//! Which workload was answered which address for which name, over epochs and restarts.

mod common;

use common::{Lab, ip, pod, t, tcp_client};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Snapshot,
    epoch::{
        log::{Recorder, Write},
        state::State,
    },
    observe::{CgroupId, OpenFlow},
    snapshot::merge,
};

const DAY: i64 = 86_400;
const SERVER: &str = "203.0.113.9";

fn pods() -> [String; 2] {
    [pod("shop", "web", 0, "node-a", "10.244.1.2", &[]), pod("shop", "other", 0, "node-a", "10.244.1.3", &[])]
}

fn cgroups(lab: &mut Lab) {
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "other", 0);
}

fn lab() -> Lab {
    let mut lab = Lab::new("node-a", &pods());
    cgroups(&mut lab);
    lab
}

fn told(lab: &mut Lab, cgroup: u64, name: &str) {
    let (cgroup, addresses) = (CgroupId(cgroup), vec![ip(SERVER)]);
    let answer = Observation::DnsAnswer { cgroup, name: name.into(), addresses, at: lab.now };
    lab.observer.observe(answer, lab.now);
}

fn call(lab: &mut Lab) {
    let now = lab.now;
    lab.flow(tcp_client(1, "10.244.1.2", SERVER, 443, now));
}

/// The names of the server that web called; none: it did not.
fn names(snapshot: &Snapshot) -> Vec<&str> {
    let of_web = |e: &&guardrail_graph::snapshot::EdgeRecord| e.client.peer.workload().is_some_and(|w| w.name == "web");
    let edges = snapshot.body.edges.iter().filter(of_web);
    edges.flat_map(|edge| edge.server.names.iter().map(String::as_str)).collect()
}

fn turn(lab: &mut Lab, open: &[OpenFlow]) -> Snapshot {
    lab.observer.turn(open, lab.now).snapshot()
}

/// The next agent, with what is on disk.
fn restarted(mut lab: Lab) -> Lab {
    let Write::Base(base) = lab.observer.store(&mut Recorder::default(), lab.now, |_| ()) else { panic!("no base") };
    let state = State::read(&base, &[]).unwrap();
    let started = lab.now.after(std::time::Duration::from_secs(60));
    let config = ObserverConfig::new("node-a", "next", started);
    let mut observer = Observer::restore(config, &state.facts(lab.now).unwrap(), false).unwrap();
    observer.continue_with(&state).unwrap();
    common::apply_text(&mut observer, &format!("{}{}", common::CLUSTER, pods().concat()), started);
    let mut lab = Lab { observer, now: started };
    cgroups(&mut lab);
    lab
}

#[test]
fn a_name_holds_for_later_flows_until_another_answer_contradicts_it() {
    let mut lab = lab();
    told(lab.at(10), 1, "a.example.org");
    call(&mut lab);
    let mut epochs = vec![turn(lab.at(DAY), &[])];
    // Nobody asks for days: the answer is cached.
    for day in 1..5 {
        call(lab.at(day * DAY + 100));
        epochs.push(turn(lab.at((day + 1) * DAY), &[]));
        assert_eq!(names(&epochs[epochs.len() - 1]), ["a.example.org"], "day {day}");
    }
    // By now the address is somebody else's, which says nothing of what another workload was told.
    call(lab.at(5 * DAY + 100));
    told(&mut lab, 2, "elsewhere.example.org");
    told(lab.at(5 * DAY + 200), 1, "b.example.org");
    call(&mut lab);
    epochs.push(turn(lab.at(6 * DAY), &[]));
    assert_eq!(names(&epochs[5]), ["a.example.org", "b.example.org"], "each at its time");
    call(lab.at(6 * DAY + 100));
    epochs.push(turn(lab.at(7 * DAY), &[]));
    assert_eq!(names(&epochs[6]), ["b.example.org"]);
    assert_eq!(names(&merge(epochs)), ["a.example.org", "b.example.org"]);
}

#[test]
fn names_that_are_answered_beside_each_other_contradict_none() {
    let mut lab = lab();
    for day in 0..3 {
        told(lab.at(day * DAY + 10), 1, "a.example.org");
        told(&mut lab, 1, "b.example.org");
        told(&mut lab, 1, "a.example.org");
        call(&mut lab);
        let epoch = turn(lab.at((day + 1) * DAY), &[]);
        assert_eq!(names(&epoch), ["a.example.org", "b.example.org"], "day {day}");
    }
}

#[test]
fn a_connection_that_goes_on_takes_the_name_along_under_which_it_was_opened() {
    let mut lab = lab();
    told(lab.at(10), 1, "a.example.org");
    call(&mut lab);
    let pool = [OpenFlow { flow: tcp_client(1, "10.244.1.2", SERVER, 443, t(10)), open: 1 }];
    turn(lab.at(DAY), &pool);
    told(lab.at(DAY + 10), 1, "b.example.org");
    turn(lab.at(2 * DAY), &pool);
    assert_eq!(names(&turn(lab.at(3 * DAY), &pool)), ["a.example.org", "b.example.org"]);
    told(lab.at(3 * DAY + 10), 1, "b.example.org");
    turn(lab.at(4 * DAY), &[]);
    call(lab.at(4 * DAY + 10));
    assert_eq!(names(&turn(lab.at(5 * DAY), &[])), ["b.example.org"], "it has ended");
}

#[test]
fn of_more_names_of_an_address_than_are_kept_those_that_were_answered_last_are() {
    let mut lab = lab();
    for i in 0..20 {
        told(lab.at(10 + i), 1, &format!("n{i:02}.example.org"));
        told(&mut lab, 1, "always.example.org");
    }
    call(&mut lab);
    let shown = lab.snapshot();
    let expected: Vec<String> = (13..20).map(|i| format!("n{i:02}.example.org")).collect();
    assert_eq!(names(&shown)[0], "always.example.org");
    assert_eq!(names(&shown)[1..], expected);
    assert_eq!(lab.observer.stats().names_forgotten, 13);
    assert_eq!(lab.entries("name"), 8);
}

#[test]
fn a_restart_forgets_no_name_of_what_is_called_later() {
    let mut lab = lab();
    told(lab.at(10), 1, "a.example.org");
    call(&mut lab);
    turn(lab.at(DAY), &[]);
    // The edge is the closed epoch's, and the open one has none yet.
    let mut lab = restarted(restarted(lab));
    call(&mut lab);
    assert_eq!(names(&lab.snapshot()), ["a.example.org"]);
    let mut lab = restarted(lab);
    let now = lab.now.after(std::time::Duration::from_secs(86_400));
    (lab.now, _) = (now, lab.observer.tick(now));
    told(&mut lab, 1, "b.example.org");
    turn(&mut lab, &[]);
    told(&mut lab, 1, "b.example.org");
    turn(&mut lab, &[]);
    call(&mut lab);
    assert_eq!(names(&lab.snapshot()), ["b.example.org"]);
}
