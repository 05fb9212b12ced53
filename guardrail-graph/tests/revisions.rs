//! Several words of one epoch: while it is open its facts move, and of two documents the higher
//! revision counts, whole.

mod common;

use common::{Lab, edges, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Snapshot,
    epoch::{End, file},
    observe::{FlowCounts, LossClass, LossReason},
    snapshot::{Body, LossEntry, Revision, check_revisions, merge, merge_within, span::Span},
};

/// A pod that is asked from an address of which nobody has told yet.
fn lab(node: &str) -> Lab {
    let api = pod("shop", "api", 0, node, "10.99.0.3", &[]);
    let mut lab = Lab::with(node, &[api], |config| config.run = 1);
    lab.pod_cgroup(2, "api", 0);
    lab
}

fn ask(lab: &mut Lab, remote: &str, second: i64) {
    lab.at(second).flow(tcp_server(2, "10.99.0.3", remote, 8080, t(second)));
}

/// The same in every order, at once or one by one, and again.
fn merged(snapshots: &[&Snapshot]) -> Snapshot {
    let all: Vec<Snapshot> = snapshots.iter().copied().cloned().collect();
    let once = merge(all.clone());
    let mut reversed = all.clone();
    reversed.reverse();
    assert_eq!(merge(reversed.clone()), once, "in any order");
    for order in [&all, &reversed] {
        let one_by_one = order.iter().fold(Snapshot::empty(), |sum, next| merge(vec![sum, next.clone()]));
        assert_eq!(one_by_one, once, "one by one");
    }
    for again in &all {
        assert_eq!(merge(vec![once.clone(), again.clone()]), once, "again");
    }
    once
}

#[test]
fn two_pulls_of_one_open_epoch_never_stand_twice_when_a_flow_is_named_between_them() {
    let mut a = lab("node-a");
    ask(&mut a, "10.99.0.44", 100);
    let early = a.at(101).snapshot();
    assert_eq!(edges(&early), ["external/10.99.0.44 -> api TCP/8080"]);
    a.apply(&pod("shop", "web", 0, "node-b", "10.99.0.44", &[]));
    let late = a.at(102).snapshot();
    assert_eq!(edges(&late), ["web -> api TCP/8080"]);
    let both = merged(&[&early, &late]);
    assert_eq!(both, merge(vec![late.clone()]), "the later word, whole");
    // With what another node's agent saw, and after a join that had the earlier word in it.
    let mut b = Lab::with("node-b", &[], |config| config.run = 7);
    let other = b.at(103).snapshot();
    let all = merged(&[&early, &other, &late]);
    assert_eq!(edges(&all), ["web -> api TCP/8080"]);
    assert_eq!(all, merge(vec![late, other]));
}

#[test]
fn a_run_that_goes_on_from_an_older_state_replaces_what_the_one_before_served() {
    let mut a = lab("node-a");
    ask(&mut a, "10.99.0.44", 100);
    let state = a.at(110).snapshot();
    ask(&mut a, "10.99.0.44", 120);
    let served = a.at(130).snapshot();
    assert_eq!(served.body.edges[0].counts.opened, 2);
    let config = ObserverConfig { run: 2, ..ObserverConfig::new("node-a", "another", t(140)) };
    let mut next = Lab { observer: Observer::restore(config, &state, false).unwrap(), now: t(140) };
    let after = next.at(150).snapshot();
    let both = merged(&[&state, &served, &after]);
    assert_eq!(both.body.edges[0].counts.opened, 1);
    let window = &both.body.window.nodes["node-a"];
    assert_eq!(window.len(), 2, "what counts no more was not watched either: {window:?}");
}

#[test]
fn the_number_rises_with_each_document_and_the_file_of_an_epoch_has_its_last() {
    let mut a = lab("node-a");
    let numbers: Vec<Revision> = (1..4).map(|second| a.at(second).observer.document(t(second)).revision()).collect();
    assert_eq!(numbers, [1, 2, 3].map(|n| Revision { run: 1, n }));
    let document = a.observer.turn(&[], t(5));
    let header = file::Header::of(&document, End::Day).unwrap();
    assert_eq!(header.revision, (1, 4));
    let (header, snapshot) = file::decode(&file::encode(&header, &document)).unwrap();
    assert_eq!((header.revision, snapshot.body.revisions[0].revision), ((1, 4), Revision { run: 1, n: 4 }));
    let next = a.at(6).snapshot();
    let both = merged(&[&snapshot, &next]);
    assert_eq!(both.body.revisions.len(), 2, "another epoch is another key");
}

#[test]
fn equal_revisions_that_differ_are_refused_and_parts_of_one_are_not() {
    let mut a = lab("node-a");
    ask(&mut a, "10.99.0.44", 100);
    ask(&mut a, "198.51.100.1", 5_000);
    let whole = a.at(5_001).snapshot();
    let within = |since| Span::new(Some(t(since)), None).unwrap();
    let part = merge_within(vec![whole.clone()], &within(4_000));
    assert_eq!(edges(&part).len(), 1);
    assert_eq!(check_revisions(&[whole.clone(), part, whole.clone()]), Ok(()));
    let mut edited = whole.clone();
    edited.body.edges[0].sources[0].counts.opened = 7;
    let mut shorter = whole.clone();
    shorter.body.edges.pop();
    for other in [edited, shorter] {
        let error = check_revisions(&[whole.clone(), other]).unwrap_err();
        assert_eq!((error.node.as_str(), error.revision), ("node-a", whole.body.revisions[0].revision));
        assert_eq!(error.to_string().lines().count(), 1);
    }
    // Without revisions nobody says that they are the same.
    let mut a = Lab::new("node-a", &[]);
    let (first, second) = (a.at(1).snapshot(), a.at(2).snapshot());
    assert_eq!(check_revisions(&[first, second]), Ok(()));
}

#[test]
fn a_connection_that_broke_off_is_counted_and_was_there_until_then() {
    let mut a = Lab::new("node-a", &[pod("shop", "web", 0, "node-a", "10.244.1.2", &[])]);
    a.pod_cgroup(1, "web", 0);
    let pool = tcp_client(1, "10.244.1.2", "203.0.113.9", 443, t(100));
    a.at(100).flow(pool.clone());
    let mut broken = pool;
    (broken.first_open, broken.last_open) = (None, None);
    broken.counts = FlowCounts { closed: 1, broken: 1, ..Default::default() };
    a.at(500).flow(broken.clone());
    let snapshot = a.snapshot();
    let edge = &snapshot.body.edges[0];
    assert_eq!((edge.counts.opened, edge.counts.broken, edge.last_seen), (1, 1, t(500)));
    assert!(edge.supported);
    let text = snapshot.to_json();
    assert_eq!(text.matches("\"broken\":1").count(), 2, "of the edge and of its source: {text}");
    let last = snapshot.edge_counters()[0].outcomes;
    assert_eq!(last, [1, 0, 0, 0, 1]);
    // What broke off alone supports nothing.
    broken.remote = guardrail_graph::observe::Remote::Addr([203, 0, 113, 7].into());
    a.flow(broken);
    assert_eq!(a.snapshot().body.edges.len(), 1);
}

#[test]
fn nothing_of_a_replaced_revision_counts_beside_another_node_s_word_in_any_order() {
    let mut a = lab("node-a");
    ask(&mut a, "10.99.0.44", 100);
    let state = a.at(110).snapshot();
    ask(&mut a, "10.99.0.44", 120);
    let served = a.at(130).snapshot();
    let config = ObserverConfig { run: 2, ..ObserverConfig::new("node-a", "another", t(140)) };
    let mut next = Lab { observer: Observer::restore(config, &state, false).unwrap(), now: t(140) };
    let after = next.at(150).snapshot();
    let other = Lab::with("node-b", &[], |config| config.run = 7).at(160).snapshot();
    let expected = merge(vec![after.clone(), other.clone()]);
    assert_eq!(expected.body.window.nodes["node-a"].len(), 2);
    for order in [[&served, &other, &after], [&served, &after, &other], [&other, &served, &after]] {
        for [first, second, third] in [order, [order[2], order[1], order[0]]] {
            let all = vec![first.clone(), second.clone(), third.clone()];
            assert_eq!(merge(all.clone()), expected);
            let span = Span::new(Some(t(50)), None).unwrap();
            let within = merge_within(vec![after.clone(), other.clone()], &span);
            assert_eq!(merge_within(all, &span), within);
        }
    }
}

#[test]
fn equal_revisions_that_differ_in_anything_that_was_not_counted_are_refused() {
    let pods = [pod("shop", "api", 0, "node-a", "10.99.0.3", &[])];
    let mut a = Lab::with("node-a", &pods, |config| (config.run, config.own_pods_only) = (1, true));
    a.pod_cgroup(2, "api", 0);
    ask(&mut a, "10.244.2.44", 100);
    let whole = a.at(5_001).snapshot();
    assert_eq!(whole.body.remote_flows.len(), 1);
    assert_eq!(check_revisions(&[whole.clone(), merge(vec![whole.clone()]), whole.clone()]), Ok(()));
    let [mut presence, mut tenures, mut nodes, mut flows, mut lost] = [(); 5].map(|()| whole.clone());
    presence.body.presence[0].to = t(4_000);
    tenures.body.addresses.retain(|entry| entry.pod.is_none());
    nodes.body.nodes.clear();
    flows.body.remote_flows[0].sources[0].counts.opened = 7;
    lost.body.coverage.losses.push(LossEntry {
        source: lost.body.sources.first().unwrap().clone(),
        reason: "flows_map_full".to_owned(),
        class: LossClass::Edge,
        count: 3,
        times: None,
    });
    for (what, other) in
        [("presence", presence), ("tenures", tenures), ("nodes", nodes), ("flows", flows), ("losses", lost)]
    {
        assert_ne!(other, whole, "{what}");
        for pair in [[&whole, &other], [&other, &whole]] {
            assert!(check_revisions(&pair.map(Clone::clone)).is_err(), "{what}");
        }
    }
}

/// Two pulls of one open epoch, between which the agent was killed and went on from an older state,
/// and another node's word: what was there, lost and told in between is no more.
fn pulls_and_another() -> [Snapshot; 3] {
    let pods = |with: &[(&str, &str)]| {
        let with = with.iter().map(|(name, address)| pod("shop", name, 0, "node-a", address, &[]));
        with.collect::<Vec<_>>()
    };
    let mut a = Lab::with("node-a", &pods(&[("api", "10.99.0.3"), ("old", "10.99.0.9")]), |config| config.run = 1);
    a.pod_cgroup(2, "api", 0);
    ask(&mut a, "10.99.0.44", 100);
    let state = a.at(110).snapshot();
    ask(&mut a, "10.99.0.44", 120);
    ask(&mut a, "198.51.100.1", 121);
    a.observer.observe(Observation::Lost { reason: LossReason::MapFull, cgroup: None, count: 3, at: t(125) }, t(125));
    a.at(126).apply(&pod("shop", "brief", 126, "node-a", "10.99.0.8", &[]));
    a.apply("kind: Node\nmetadata: {name: node-z, labels: {pool: brief}}\n");
    let early = a.at(130).snapshot();
    let config = ObserverConfig { run: 2, ..ObserverConfig::new("node-a", "another", t(140)) };
    let mut a = Lab { observer: Observer::restore(config, &state, false).unwrap(), now: t(140) };
    for pod in pods(&[("api", "10.99.0.3"), ("new", "10.99.0.9")]) {
        a.apply(&pod);
    }
    ask(&mut a, "10.99.0.44", 145);
    let late = a.at(150).snapshot();
    let mut b = Lab::with("node-b", &pods(&[("api", "10.99.0.3")]), |config| config.run = 7);
    [early, late, b.at(160).snapshot()]
}

#[test]
fn of_a_revision_that_was_merged_before_nothing_counts_beside_the_next() {
    let [early, late, other] = pulls_and_another();
    let expected = merge(vec![late.clone(), other.clone()]);
    assert_eq!(expected.body.window.nodes["node-a"].len(), 2);
    let both = merge(vec![early.clone(), other.clone()]);
    let told = |snapshot: &Snapshot| {
        let Body { presence, addresses, nodes, .. } = &snapshot.body;
        [presence.len(), addresses.len(), nodes.len()]
    };
    assert_ne!(told(&both), told(&expected), "each was told something that the other was not");
    let file = Snapshot::from_json(&both.to_json(), "file").unwrap();
    assert_eq!(file, both);
    for order in [vec![file.clone(), late.clone()], vec![late.clone(), file], vec![early, other, late]] {
        assert_eq!(merge(order), expected);
    }
}

#[test]
fn when_a_node_was_watched_is_the_last_word_of_each_of_its_epochs() {
    let mut a = lab("node-a");
    let day = a.at(1_000).observer.turn(&[], t(1_000)).snapshot();
    let state = a.at(1_050).snapshot();
    let early = a.at(1_100).snapshot();
    let config = ObserverConfig { run: 2, ..ObserverConfig::new("node-a", "another", t(1_140)) };
    let late = Observer::restore(config, &state, false).unwrap().snapshot(t(1_150));
    let other = Lab::with("node-b", &[], |config| config.run = 7).at(160).snapshot();
    let window = |all: &[&Snapshot]| merge(all.iter().copied().cloned().collect()).body.window;
    let expected = window(&[&day, &late, &other]);
    assert_eq!(expected.nodes["node-a"].iter().map(|run| run.to).collect::<Vec<_>>(), [t(1_050), t(1_150)]);
    let file = merge(vec![day.clone(), early.clone(), other.clone()]);
    for all in [vec![&file, &late], vec![&late, &file], vec![&file, &late, &day], vec![&day, &file, &early, &late]] {
        assert_eq!(window(&all), expected);
    }
}
