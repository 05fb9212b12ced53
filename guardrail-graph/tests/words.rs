//! What the API server said of an address holds until its watch was last heard: a flow after that
//! is named when the watch has spoken past it, by whoever had the address then.

mod common;

use common::{CLUSTER, Lab, apply_text, edge_text, edges, lists, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observer, ObserverConfig, Snapshot,
    epoch::{
        log::{Recorder, Write},
        state::State,
    },
    inventory::{Change, Kind},
    snapshot::merge,
};

const ADDRESS: &str = "10.244.2.4";

fn owner(name: &str) -> String {
    pod("shop", name, 0, "node-b", ADDRESS, &["http:8080"])
}

fn callers() -> String {
    pod("shop", "web", 0, "node-a", "10.244.1.2", &["http:8080"])
}

/// A pod that started, and had its address, at these times.
fn since(pod: &str, started: i64, networked: i64) -> String {
    let condition = format!(
        "conditions: [{{type: PodReadyToStartContainers, status: \"True\", lastTransitionTime: \"{}\"}}], ",
        t(networked)
    );
    let with = pod.replace("status: {", &format!("status: {{startTime: \"{}\", {condition}", t(started)));
    assert_ne!(with, pod, "{pod}");
    with
}

/// An agent whose watches have told of these pods.
fn watched(pods: &[String]) -> Lab {
    watching(pods, |_| ())
}

fn watching(pods: &[String], change: impl FnOnce(&mut ObserverConfig)) -> Lab {
    let mut config = ObserverConfig::new("node-a", "instance", t(0));
    config.watched = true;
    config.awaited = vec![Kind::Node, Kind::Service, Kind::Pod];
    change(&mut config);
    let mut lab = Lab { observer: Observer::new(config), now: t(0) };
    for change in lists(&format!("{CLUSTER}{}{}", callers(), pods.concat())) {
        lab.observer.apply(change, t(0));
    }
    lab.pod_cgroup(1, "web", 0);
    heard(&mut lab, 1);
    lab
}

/// A bookmark of both watches.
fn heard(lab: &mut Lab, second: i64) {
    lab.at(second);
    for kind in [Kind::Node, Kind::Pod] {
        lab.observer.apply(Change::Heard { kind, at: t(second) }, t(second));
    }
}

fn interrupted(lab: &mut Lab) {
    for kind in [Kind::Node, Kind::Pod] {
        lab.observer.apply(Change::Interrupted { kind }, lab.now);
    }
}

fn calls(lab: &mut Lab, second: i64) {
    lab.at(second).flow(tcp_client(1, "10.244.1.2", ADDRESS, 8080, t(second)));
}

/// Who had the address before is gone, and `next` has it, by a list that comes then.
fn listed_anew(lab: &mut Lab, before: &str, next: &str, second: i64) {
    lab.at(second).delete_pod("shop", &format!("{before}-5d9c-0"));
    lab.apply(next);
    heard(lab, second);
    lab.at(second + 6);
}

fn opened(snapshot: &Snapshot) -> Vec<(String, u64)> {
    snapshot.body.edges.iter().map(|edge| (edge_text(edge), edge.counts.opened)).collect()
}

fn edge(server: &str, opened: u64) -> (String, u64) {
    (format!("web -> {server} TCP/8080"), opened)
}

#[test]
fn an_address_that_passes_on_in_an_outage_of_90_s_is_its_new_owner_s_from_then_on() {
    let mut lab = watched(&[owner("billing")]);
    for second in [20, 59] {
        calls(&mut lab, second);
    }
    heard(&mut lab, 60);
    lab.at(66);
    assert_eq!(opened(&lab.snapshot()), [edge("billing", 2)]);
    interrupted(&mut lab);
    // billing goes at 80, admin starts at 85 and has the address by 90.
    for second in [95, 110, 149] {
        calls(&mut lab, second);
    }
    let meanwhile = lab.snapshot();
    assert_eq!(meanwhile.body.remote_flows.len(), 1, "{:?}", meanwhile.body.remote_flows);
    assert!(!meanwhile.body.coverage.complete, "nobody has told who is called: {:?}", opened(&meanwhile));
    listed_anew(&mut lab, "billing", &since(&owner("admin"), 85, 90), 150);
    let after = lab.snapshot();
    assert_eq!(opened(&after), [edge("admin", 3), edge("billing", 2)]);
    assert_eq!((after.body.remote_flows.len(), after.body.coverage.complete), (0, false), "two nodes, one agent");
    assert_eq!(lab.unresolved("ip_reuse"), 0);
}

#[test]
fn what_was_called_between_the_last_word_and_the_next_owner_s_network_is_nobody_s() {
    let mut lab = watched(&[owner("billing")]);
    heard(&mut lab, 60);
    interrupted(&mut lab);
    // billing's still, or somebody's who came and went: the list does not tell.
    calls(&mut lab, 70);
    listed_anew(&mut lab, "billing", &since(&owner("admin"), 85, 90), 150);
    assert_eq!(opened(&lab.snapshot()), []);
    assert_eq!(lab.unresolved("ip_reuse"), 1);
    // Without times of its own the next owner is sure since the list alone.
    let mut lab = watched(&[owner("billing")]);
    heard(&mut lab, 60);
    interrupted(&mut lab);
    for second in [70, 140] {
        calls(&mut lab, second);
    }
    listed_anew(&mut lab, "billing", &owner("admin"), 150);
    calls(&mut lab, 160);
    heard(&mut lab, 200);
    lab.at(206);
    assert_eq!(opened(&lab.snapshot()), [edge("admin", 1)]);
    assert_eq!(lab.unresolved("ip_reuse"), 2);
}

#[test]
fn an_owner_that_stays_through_an_outage_is_named_when_the_watch_speaks_again() {
    let mut lab = watched(&[owner("billing")]);
    heard(&mut lab, 60);
    interrupted(&mut lab);
    for second in [70, 140] {
        calls(&mut lab, second);
    }
    heard(&mut lab, 150);
    lab.at(156);
    let snapshot = lab.snapshot();
    assert_eq!(opened(&snapshot), [edge("billing", 2)]);
    assert_eq!((snapshot.body.remote_flows.len(), lab.unresolved("ip_reuse")), (0, 0));
    let times = (snapshot.body.edges[0].first_seen, snapshot.body.edges[0].last_seen);
    assert_eq!(times, (t(70), t(140)));
    assert_eq!(snapshot.body.edges[0].port_name.as_deref(), Some("http"));
}

/// Packets are lost, and nothing breaks: the watch is silent for longer than one that follows.
#[test]
fn a_watch_that_is_silent_without_an_error_is_believed_no_longer_than_a_bookmark_takes() {
    let mut lab = watched(&[owner("billing")]);
    heard(&mut lab, 60);
    calls(&mut lab, 100);
    assert_eq!(opened(&lab.snapshot()), [edge("billing", 1)], "believed, as long as a bookmark is not overdue");
    lab.at(140);
    assert_eq!(lab.snapshot().body.remote_flows.len(), 1);
    // Then all that was sent comes at once.
    listed_anew(&mut lab, "billing", &since(&owner("admin"), 80, 85), 150);
    assert_eq!(opened(&lab.snapshot()), [edge("admin", 1)], "what was believed is taken back whole");
    assert_eq!(lab.unresolved("ip_reuse"), 0);
}

#[test]
fn both_ends_hold_what_they_saw_until_the_watch_speaks() {
    let mut lab = watched(&[owner("billing")]);
    heard(&mut lab, 60);
    interrupted(&mut lab);
    lab.at(100).flow(tcp_server(1, "10.244.1.2", ADDRESS, 8080, t(100)));
    lab.at(101);
    assert_eq!(lab.snapshot().body.remote_flows.len(), 1);
    listed_anew(&mut lab, "billing", &since(&owner("admin"), 70, 75), 150);
    assert_eq!(lab.edges(), ["admin -> web TCP/8080"]);
    assert_eq!(lab.snapshot().body.edges[0].port_name.as_deref(), Some("http"));
}

#[test]
fn what_a_record_of_the_node_shows_waits_for_no_word() {
    let api = pod("shop", "api", 0, "node-a", "10.244.1.3", &[]);
    let mut lab = watched(&[api]);
    lab.pod_cgroup(2, "api", 0);
    heard(&mut lab, 60);
    interrupted(&mut lab);
    lab.at(100).flow(tcp_client(1, "10.244.1.2", "10.244.1.3", 8080, t(100)));
    lab.at(200).flow(tcp_server(2, "10.244.1.3", "10.244.1.2", 8080, t(200)));
    let snapshot = lab.snapshot();
    assert_eq!((edges(&snapshot), snapshot.body.remote_flows.len()), (vec!["web -> api TCP/8080".to_owned()], 0));
}

#[test]
fn a_held_flow_moves_to_the_next_epoch_and_stands_in_one_of_them() {
    let mut lab = watched(&[owner("billing")]);
    heard(&mut lab, 60);
    interrupted(&mut lab);
    calls(&mut lab, 100);
    let closed = lab.observer.turn(&[], t(101)).snapshot();
    assert_eq!((edges(&closed).len(), closed.body.remote_flows.len()), (0, 0));
    listed_anew(&mut lab, "billing", &since(&owner("admin"), 70, 75), 150);
    let both = merge(vec![closed, lab.snapshot()]);
    assert_eq!(opened(&both), [edge("admin", 1)]);
}

#[test]
fn a_held_flow_of_a_state_is_named_by_the_lists_of_the_next_agent() {
    let mut lab = watched(&[owner("billing")]);
    heard(&mut lab, 60);
    interrupted(&mut lab);
    calls(&mut lab, 100);
    let state = Snapshot::from_json(&lab.at(101).snapshot().to_json(), "state").unwrap();
    let mut config = ObserverConfig::new("node-a", "next", t(110));
    config.watched = true;
    config.awaited = vec![Kind::Node, Kind::Service, Kind::Pod];
    let mut next = Lab { observer: Observer::restore(config, &state, true).unwrap(), now: t(110) };
    let cluster = format!("{CLUSTER}{}{}", callers(), since(&owner("admin"), 70, 75));
    for change in lists(&cluster) {
        next.observer.apply(change, t(150));
    }
    heard(&mut next, 150);
    next.at(156);
    assert_eq!(opened(&next.snapshot()), [edge("admin", 1)]);
    assert_eq!(next.snapshot().body.remote_flows.len(), 0);
}

/// On disk it stands under its address: an agent that continues believes nothing, and names it once
/// it has lists. The state's word reaches to its end, so who comes before that is in doubt.
#[test]
fn a_held_flow_on_disk_is_named_by_the_lists_of_the_next_agent() {
    for (heir, named, in_doubt) in
        [(owner("billing"), vec![edge("billing", 1)], 0), (since(&owner("admin"), 62, 64), vec![], 1)]
    {
        let mut lab = watched(&[owner("billing")]);
        heard(&mut lab, 60);
        calls(&mut lab, 70);
        assert_eq!(opened(&lab.snapshot()), [edge("billing", 1)], "believed");
        let Write::Base(base) = lab.observer.store(&mut Recorder::default(), t(71), |_| ()) else { panic!("no base") };
        let state = State::read(&base, &[]).unwrap().document(t(71)).unwrap().snapshot();
        assert_eq!(state.body.remote_flows.len(), 1);
        let mut config = ObserverConfig::new("node-a", "next", t(80));
        config.watched = true;
        config.awaited = vec![Kind::Node, Kind::Service, Kind::Pod];
        let mut next = Lab { observer: Observer::restore(config, &state, true).unwrap(), now: t(80) };
        for change in lists(&format!("{CLUSTER}{}{heir}", callers())) {
            next.observer.apply(change, t(150));
        }
        heard(&mut next, 150);
        next.at(156);
        assert_eq!((opened(&next.snapshot()), next.unresolved("ip_reuse")), (named, in_doubt));
        assert_eq!(next.snapshot().body.remote_flows.len(), 0);
    }
}

/// Across a restart with the API server away: the state's word ends with the state.
#[test]
fn what_a_state_says_of_an_address_does_not_name_flows_after_it() {
    let mut lab = watched(&[owner("billing")]);
    heard(&mut lab, 60);
    let state = Snapshot::from_json(&lab.at(61).snapshot().to_json(), "state").unwrap();
    let mut config = ObserverConfig::new("node-a", "next", t(70));
    config.watched = true;
    config.awaited = vec![Kind::Node, Kind::Service, Kind::Pod];
    let mut next = Lab { observer: Observer::restore(config, &state, false).unwrap(), now: t(70) };
    next.pod_cgroup(1, "web", 0);
    calls(&mut next, 120);
    next.at(140);
    let meanwhile = next.snapshot();
    assert!(opened(&meanwhile).iter().all(|(edge, _)| !edge.contains("billing")), "{:?}", opened(&meanwhile));
    for change in lists(&format!("{CLUSTER}{}{}", callers(), since(&owner("admin"), 80, 85))) {
        next.observer.apply(change, t(150));
    }
    heard(&mut next, 150);
    next.at(156);
    assert_eq!(opened(&next.snapshot()), [edge("admin", 1)]);
}

#[test]
fn held_flows_have_bounded_room_and_more_of_them_wait_as_remote_flows() {
    let mut lab = watching(&[owner("billing")], |config| config.max_held = 3);
    heard(&mut lab, 60);
    for port in 0..10 {
        lab.at(70).flow(tcp_client(1, "10.244.1.2", ADDRESS, 9_000 + port, t(70)));
    }
    let snapshot = lab.snapshot();
    assert_eq!(snapshot.body.remote_flows.len(), 7);
    heard(&mut lab, 120);
    lab.at(126);
    let snapshot = lab.snapshot();
    assert_eq!((snapshot.body.edges.len(), snapshot.body.remote_flows.len()), (10, 0));
    assert!(snapshot.body.edges.iter().all(|edge| edge.counts.opened == 1));
}

/// Bytes and ends of a connection that is held go with it; those of one that is named go to it.
#[test]
fn counts_move_with_the_flow() {
    let mut lab = watched(&[owner("billing")]);
    heard(&mut lab, 60);
    calls(&mut lab, 70);
    let mut more = tcp_client(1, "10.244.1.2", ADDRESS, 8080, t(75));
    (more.first_open, more.last_open, more.counts.opened, more.counts.closed) = (None, None, 0, 1);
    lab.at(75).flow(more.clone());
    assert_eq!(lab.snapshot().body.edges[0].counts.bytes_sent, 20);
    heard(&mut lab, 120);
    lab.at(126).flow(more);
    let snapshot = lab.snapshot();
    assert_eq!((opened(&snapshot), snapshot.body.edges[0].counts.bytes_sent), (vec![edge("billing", 1)], 30));
}

#[test]
fn connections_that_go_on_all_the_time_are_named_with_each_word() {
    let mut lab = watched(&[owner("billing")]);
    for second in (2..600).step_by(2) {
        if second % 60 == 0 {
            heard(&mut lab, second);
        }
        calls(&mut lab, second);
    }
    assert_eq!(opened(&lab.snapshot()), [edge("billing", 299)]);
    lab.observer.apply(Change::Interrupted { kind: Kind::Pod }, lab.now);
    let snapshot = lab.snapshot();
    let left: u64 = snapshot.body.remote_flows.iter().flat_map(|f| &f.sources).map(|s| s.counts.opened).sum();
    assert!((25..=35).contains(&left), "{left} of the last minute");
}

/// With its node's own pods alone, an agent leaves other nodes' pods to `merge` as ever.
#[test]
fn an_agent_that_knows_its_own_pods_keeps_remote_flows_as_they_are() {
    let mut config = ObserverConfig::new("node-a", "instance", t(0));
    (config.watched, config.own_pods_only) = (true, true);
    let mut lab = Lab { observer: Observer::new(config), now: t(0) };
    apply_text(&mut lab.observer, &format!("{CLUSTER}{}", callers()), t(0));
    lab.pod_cgroup(1, "web", 0);
    heard(&mut lab, 60);
    calls(&mut lab, 70);
    heard(&mut lab, 120);
    lab.at(126);
    assert_eq!(lab.snapshot().body.remote_flows.len(), 1);
}

/// A pod's address may come late and an outage between: before the outage the watch told of nobody
/// else, in it nobody knows.
#[test]
fn what_was_called_before_an_outage_is_a_late_pod_s_and_what_in_it_nobody_s() {
    let started = format!("status: {{startTime: \"{}\", ", t(30));
    let told = owner("late").replace("status: {", &started);
    let untold = told.replace(&format!("podIP: {ADDRESS:?}"), "reason: none");
    assert_ne!(told, untold);
    let mut lab = watched(&[untold]);
    calls(&mut lab, 70);
    heard(&mut lab, 100);
    lab.at(101);
    assert_eq!((opened(&lab.snapshot()), lab.unresolved("pod_range_no_owner")), (vec![], 1));
    interrupted(&mut lab);
    calls(&mut lab, 120);
    for change in lists(&format!("{CLUSTER}{}{told}", callers())) {
        lab.observer.apply(change, t(150));
    }
    heard(&mut lab, 150);
    lab.at(156);
    let snapshot = lab.snapshot();
    assert_eq!(opened(&snapshot), [edge("late", 1)]);
    let left: Vec<_> = snapshot.body.coverage.unresolved.iter().map(|u| (&*u.reason, u.count)).collect();
    assert_eq!(left, [("pod_range_no_owner", 1)], "the call in the outage");
}

/// An address is another pod's a second after its owner's end, and that pod's word comes late.
#[test]
fn what_is_called_after_an_owner_s_end_waits_for_the_late_word_of_the_next() {
    for is_late in [true, false] {
        let mut lab = watched(&[owner("billing")]);
        lab.at(60).delete_pod("shop", "billing-5d9c-0");
        calls(&mut lab, 63);
        heard(&mut lab, 75);
        lab.at(81);
        assert_eq!(lab.snapshot().body.remote_flows.len(), 1, "it waits");
        if is_late {
            lab.at(90).apply(&since(&owner("admin"), 61, 62));
        }
        heard(&mut lab, 140);
        lab.at(146);
        assert_eq!((opened(&lab.snapshot()), lab.unresolved("ip_reuse")), (vec![], 1), "{is_late}");
    }
}
