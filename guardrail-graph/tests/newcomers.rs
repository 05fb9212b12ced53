//! Pods, nodes and Services that are heard of after their first traffic: what was taken for an
//! external peer is named when the word comes.

mod common;

use common::{Lab, edges, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Snapshot,
    inventory::{Change, Kind},
    snapshot::merge,
};

/// Where pods have addresses outside their nodes' `spec.podCIDR`, nothing tells at first that they
/// are no external peers.
#[test]
fn traffic_from_before_the_word_of_a_pod_of_a_node_or_of_a_service_is_named_when_the_word_comes() {
    let api = pod("shop", "api", 0, "node-a", "10.99.0.3", &["http:8080"]);
    let mut lab = Lab::new("node-a", &[api]);
    lab.pod_cgroup(2, "api", 0);
    let asks = |lab: &mut Lab, remote, second| lab.flow(tcp_server(2, "10.99.0.3", remote, 8080, t(second)));
    let calls = |lab: &mut Lab, remote, port, second| lab.flow(tcp_client(2, "10.99.0.3", remote, port, t(second)));
    // Long there under an address that a pod gets later on.
    lab.at(5);
    asks(&mut lab, "10.99.0.8", 5);
    lab.at(100);
    for remote in ["10.99.0.7", "10.99.0.7", "192.0.2.13", "10.244.3.1", "198.51.100.1"] {
        asks(&mut lab, remote, 100);
    }
    calls(&mut lab, "10.99.0.9", 5432, 100);
    calls(&mut lab, "10.96.0.7", 80, 100);
    calls(&mut lab, "10.96.0.7", 81, 100);
    assert_eq!(lab.edges().len(), 8);
    lab.at(101);
    let node = "---\nkind: Node\nmetadata: {name: node-c}\nspec: {podCIDR: 10.244.3.0/24}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.13}]}\n";
    let service = "---\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.7, selector: {app: web}, ports: [{port: 80}]}\n";
    let pods = [("web", "10.99.0.7", "x:1"), ("old", "10.99.0.8", "x:1"), ("db", "10.99.0.9", "sql:5432")]
        .map(|(name, address, port)| pod("shop", name, 0, "node-b", address, &[port]));
    lab.apply(&[node, service, &pods.concat()].concat());
    let snapshot = lab.snapshot();
    assert_eq!(
        edges(&snapshot),
        [
            "api -> db TCP/5432",
            "api -> web TCP/80 via shop/web:80 [inferred]",
            "web -> api TCP/8080",
            "node/node-c -> api TCP/8080",
            "external/10.99.0.8 -> api TCP/8080",
            "external/198.51.100.1 -> api TCP/8080",
        ]
    );
    let opened: Vec<_> = snapshot.body.edges.iter().map(|edge| edge.counts.opened).collect();
    assert_eq!(opened, [1, 1, 2, 2, 1, 1]);
    let names: Vec<_> = snapshot.body.edges.iter().map(|edge| edge.port_name.as_deref()).collect();
    assert_eq!(names, [Some("sql"), None, Some("http"), Some("http"), Some("http"), Some("http")]);
    assert_eq!(lab.unresolved("service_port_unknown"), 1);
}

#[test]
fn a_late_word_of_a_pod_whose_owner_is_not_known_yet_names_it_when_the_owner_is_or_the_wait_is_over() {
    let mut lab = Lab::new("node-a", &[pod("shop", "api", 0, "node-a", "10.99.0.3", &[])]);
    lab.pod_cgroup(2, "api", 0);
    lab.at(100);
    for remote in ["10.99.0.7", "10.99.0.8"] {
        lab.flow(tcp_server(2, "10.99.0.3", remote, 8080, t(100)));
    }
    let of_job = |name: &str, address: &str| {
        pod("shop", name, 0, "node-b", address, &[]).replace("kind: ReplicaSet", "kind: Job")
    };
    lab.apply(&[of_job("report", "10.99.0.7"), of_job("once", "10.99.0.8")].concat());
    lab.at(102);
    assert_eq!(lab.edges(), ["external/10.99.0.7 -> api TCP/8080", "external/10.99.0.8 -> api TCP/8080"]);
    lab.apply(
        "---\nkind: Job\nmetadata: {name: report-5d9c, namespace: shop, uid: rs, ownerReferences: [{kind: CronJob, name: report, uid: c, controller: true}]}\n",
    );
    lab.at(103);
    assert_eq!(lab.edges(), ["report -> api TCP/8080", "external/10.99.0.8 -> api TCP/8080"]);
    lab.at(111);
    assert_eq!(lab.edges(), ["report -> api TCP/8080", "once-5d9c -> api TCP/8080"]);
}

#[test]
fn pods_that_were_taken_for_external_peers_at_first_leave_nothing_behind() {
    let mut lab = Lab::new("node-a", &[pod("shop", "api", 0, "node-a", "10.99.0.3", &[])]);
    lab.pod_cgroup(2, "api", 0);
    let mut first = None;
    for i in 0..200_u32 {
        lab.at(100 + i64::from(i));
        let address = format!("10.98.{}.{}", i / 100, i % 100);
        lab.flow(tcp_server(2, "10.99.0.3", &address, 8080, lab.now));
        lab.flow(tcp_client(2, "10.99.0.3", &address, 9090, lab.now));
        lab.apply(&pod("shop", "web", i, "node-b", &address, &[]));
        assert_eq!(lab.entries("peer"), *first.get_or_insert(lab.entries("peer")), "after {i}");
    }
    // More than are kept apart as external peers.
    let snapshot = lab.snapshot();
    assert_eq!(edges(&snapshot), ["api -> web TCP/9090", "web -> api TCP/8080"]);
    assert!(snapshot.body.edges.iter().all(|edge| edge.counts.opened == 200));
}

/// How many flows a snapshot says have no name, and why whose edges are incomplete for it.
fn without_a_name(snapshot: &Snapshot) -> (u64, Vec<String>) {
    let coverage = &snapshot.body.coverage;
    let reason = "pod_range_no_owner";
    let count = coverage.unresolved.iter().filter(|entry| entry.reason == reason).map(|entry| entry.count).sum();
    let incomplete = coverage.workloads.iter().filter(|entry| entry.reasons.contains(reason));
    (count, incomplete.map(|entry| entry.peer.to_string()).collect())
}

const API: &str = "shop/Deployment/api";

/// A pod whose address is not published yet has called, and been called.
fn before_its_address_is_published() -> Lab {
    let api = pod("shop", "api", 0, "node-a", "10.244.1.3", &["http:8080"]);
    let mut lab = Lab::new("node-a", &[api, pod("shop", "web", 0, "node-b", "", &[])]);
    lab.pod_cgroup(2, "api", 0);
    lab.at(100).flow(tcp_server(2, "10.244.1.3", "10.244.2.9", 8080, t(100)));
    lab.flow(tcp_client(2, "10.244.1.3", "10.244.2.9", 9090, t(100)));
    lab.at(105).flow(tcp_server(2, "10.244.1.3", "10.244.2.9", 8080, t(104)));
    lab
}

#[test]
fn a_client_whose_address_is_published_40_s_after_its_first_connection_keeps_its_edge() {
    let mut lab = before_its_address_is_published();
    lab.at(120);
    let early = lab.snapshot();
    assert_eq!(edges(&early), [""; 0]);
    assert_eq!(without_a_name(&early), (3, vec![API.to_owned()]), "it is not hidden that they have no name yet");
    assert_eq!(early.body.coverage.unresolved[0].examples.len(), 2, "{:?}", early.body.coverage.unresolved);
    lab.at(140).apply(&pod("shop", "web", 0, "node-b", "10.244.2.9", &[]));
    lab.at(141);
    let late = lab.snapshot();
    assert_eq!(edges(&late), ["api -> web TCP/9090", "web -> api TCP/8080"]);
    let (opened, first) = (late.body.edges[1].counts.opened, late.body.edges[1].first_seen);
    assert_eq!((opened, first), (2, t(100)));
    assert_eq!(without_a_name(&late), (0, vec![]));
    assert_eq!(late.body.coverage.unresolved, []);
    assert_eq!(lab.unresolved("pod_range_no_owner"), 3, "a counter of /metrics never goes back");
    // Nothing of it is left to be counted again.
    lab.at(2_000);
    assert_eq!(edges(&lab.snapshot()), edges(&late));
    assert_eq!(without_a_name(&lab.snapshot()), (0, vec![]));
}

#[test]
fn a_flow_that_nobody_can_name_stays_unresolved_and_what_others_had_before_is_not_the_newcomer_s() {
    let mut lab = before_its_address_is_published();
    lab.at(120);
    // Somebody who came to be long after.
    lab.at(400).apply(&pod("shop", "web", 0, "node-b", "10.244.2.9", &[]));
    lab.at(401);
    assert_eq!(lab.edges(), [""; 0]);
    for second in [700, 1_000] {
        lab.at(second);
        assert_eq!(without_a_name(&lab.snapshot()), (3, vec![API.to_owned()]), "after {second} s");
    }
    // Given up: a later flow that does get its name does not make the workload complete.
    lab.flow(tcp_server(2, "10.244.1.3", "10.244.2.10", 8080, t(1_000)));
    lab.at(1_015);
    assert_eq!(without_a_name(&lab.snapshot()).0, 4);
    lab.apply(&pod("shop", "late", 0, "node-b", "10.244.2.10", &[]));
    lab.at(1_016);
    assert_eq!(lab.edges(), ["late -> api TCP/8080"]);
    assert_eq!(without_a_name(&lab.snapshot()), (3, vec![API.to_owned()]));
}

/// A pod that says when it started.
fn started(pod: &str, at: i64) -> String {
    let with = pod.replace("status: {", &format!("status: {{startTime: \"{}\", ", t(at)));
    assert_ne!(with, pod, "{pod}");
    with
}

/// A postStart hook of minutes, images that take their time: the pod's start says that it was it.
#[test]
fn a_pod_whose_address_is_published_minutes_after_its_first_connection_keeps_its_edges() {
    let mut lab = before_its_address_is_published();
    lab.at(400).apply(&started(&pod("shop", "web", 0, "node-b", "10.244.2.9", &[]), 97));
    lab.at(401);
    let late = lab.snapshot();
    assert_eq!(edges(&late), ["api -> web TCP/9090", "web -> api TCP/8080"]);
    assert_eq!((late.body.edges[1].counts.opened, without_a_name(&late)), (2, (0, vec![])));
    // The same where no range of a node tells that the address is a pod's.
    let mut lab = Lab::new("node-a", &[pod("shop", "api", 0, "node-a", "10.99.0.3", &[])]);
    lab.pod_cgroup(2, "api", 0);
    for (remote, second) in [("10.99.0.7", 100), ("10.99.0.8", 80)] {
        lab.at(second).flow(tcp_server(2, "10.99.0.3", remote, 8080, t(second)));
    }
    let [late, young] = [("web", "10.99.0.7"), ("young", "10.99.0.8")]
        .map(|(name, address)| pod("shop", name, 0, "node-b", address, &[]));
    lab.at(400).apply(&[started(&late, 97), started(&young, 390)].concat());
    lab.at(401);
    assert_eq!(lab.edges(), ["web -> api TCP/8080", "external/10.99.0.8 -> api TCP/8080"]);
}

/// Before the API server has spoken past its time nobody knows whose a flow is, however long that
/// takes.
#[test]
fn a_flow_without_a_name_is_kept_until_the_watches_have_spoken_past_its_time() {
    let mut lab = Lab::with("node-a", &[pod("shop", "api", 0, "node-a", "10.244.1.3", &["http:8080"])], |config| {
        config.watched = true;
    });
    let heard = |lab: &mut Lab, second| {
        for kind in [Kind::Node, Kind::Pod] {
            lab.observer.apply(Change::Heard { kind, at: t(second) }, lab.now);
        }
    };
    heard(&mut lab, 50);
    lab.pod_cgroup(2, "api", 0);
    lab.at(100).flow(tcp_server(2, "10.244.1.3", "10.244.2.9", 8080, t(100)));
    for second in [120, 700, 2_000] {
        lab.at(second);
        assert_eq!(without_a_name(&lab.snapshot()).0, 1, "after {second} s");
    }
    let networked = "conditions: [{type: PodReadyToStartContainers, status: \"True\", lastTransitionTime: ";
    let pod = started(&pod("shop", "web", 0, "node-b", "10.244.2.9", &[]), 90);
    lab.apply(&pod.replace("status: {", &format!("status: {{{networked}\"{}\"}}], ", t(92))));
    heard(&mut lab, 2_000);
    lab.at(2_010);
    assert_eq!(lab.edges(), ["web -> api TCP/8080"]);
    assert_eq!(without_a_name(&lab.snapshot()), (0, vec![]));
}

#[test]
fn a_flow_without_a_name_moves_to_the_next_epoch_and_stands_in_one_of_them() {
    let mut lab = before_its_address_is_published();
    lab.at(120);
    let document = lab.observer.turn(&[], t(120));
    let closed = document.snapshot();
    assert_eq!((edges(&closed), without_a_name(&closed)), (vec![], (0, vec![])));
    let open = lab.at(121).snapshot();
    assert_eq!(without_a_name(&open), (3, vec![API.to_owned()]));
    lab.apply(&pod("shop", "web", 0, "node-b", "10.244.2.9", &[]));
    let open = lab.at(122).snapshot();
    let both = merge(vec![closed, open]);
    assert_eq!(edges(&both), ["api -> web TCP/9090", "web -> api TCP/8080"]);
    assert_eq!((both.body.edges[1].counts.opened, without_a_name(&both)), (2, (0, vec![])));
}

#[test]
fn flows_without_a_name_have_bounded_room_and_more_of_them_are_counted_at_once() {
    let mut lab = before_its_address_is_published();
    for port in 0..2_000 {
        lab.flow(tcp_client(2, "10.244.1.3", "10.244.2.11", 10_000 + port, t(105)));
    }
    lab.at(120);
    assert_eq!(without_a_name(&lab.snapshot()).0, 2_003);
    lab.apply(&pod("shop", "web", 0, "node-b", "10.244.2.11", &[]));
    lab.at(121);
    let named = lab.edges().len();
    assert!((400..=512).contains(&named), "{named}");
    assert_eq!(without_a_name(&lab.snapshot()), (2_003 - named as u64, vec![API.to_owned()]));
}
