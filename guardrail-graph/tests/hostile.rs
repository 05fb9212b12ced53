//! What a hostile pod, tenant or agent can make of the graph: every table stays bounded, and what
//! one does costs the others nothing.

mod common;

use std::net::{IpAddr, Ipv4Addr};

use common::{Lab, apply_text, edges, failed, ip, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Snapshot,
    observe::{CgroupId, FlowCounts, LossReason},
    snapshot::merge,
};

/// An observer of `node-a` with a noisy and a quiet pod, and small bounds.
fn small(change: impl FnOnce(&mut ObserverConfig)) -> Lab {
    let mut config = ObserverConfig::new("node-a", "instance", t(0));
    change(&mut config);
    let mut observer = Observer::new(config);
    let inventory = [
        common::CLUSTER.to_owned(),
        pod("shop", "scanner", 0, "node-a", "10.244.1.2", &[]),
        pod("shop", "quiet", 0, "node-a", "10.244.1.3", &[]),
        pod("shop", "target", 0, "node-b", "10.244.2.2", &["http:8080"]),
    ];
    apply_text(&mut observer, &inventory.concat(), t(0));
    let mut lab = Lab { observer, now: t(1) };
    lab.pod_cgroup(1, "scanner", 0);
    lab.pod_cgroup(2, "quiet", 0);
    lab
}

#[test]
#[cfg_attr(miri, ignore = "a flood takes minutes under Miri")]
fn a_scan_of_ever_new_addresses_and_ports_grows_nothing_once_its_share_is_full_and_others_go_on() {
    let mut lab = small(|c| (c.max_edges, c.max_edges_per_peer) = (400, 200));
    let scan = |lab: &mut Lab, from: u32, to: u32| {
        for i in from..to {
            let remote = Ipv4Addr::from(0xc612_0000 + i).to_string();
            let port = u16::try_from(1 + i % 60_000).unwrap();
            lab.flow(tcp_client(1, "10.244.1.2", &remote, port, t(5)));
            let refused = FlowCounts { refused: 1, ..FlowCounts::default() };
            lab.flow(failed(tcp_client(1, "10.244.1.2", &remote, port.wrapping_add(7), t(5)), refused));
            lab.flow(tcp_client(1, "10.244.1.2", "10.244.2.2", port, t(5)));
        }
    };
    scan(&mut lab, 0, 1_000);
    let (edges_then, peers_then) = (lab.observer.stats().edges, lab.entries("peer"));
    assert_eq!(edges_then, 200, "its share");
    scan(&mut lab, 1_000, 20_000);
    assert_eq!((lab.observer.stats().edges, lab.entries("peer")), (edges_then, peers_then));
    assert!(lab.lost(LossReason::GraphFull) > 0);

    lab.flow(tcp_client(2, "10.244.1.3", "203.0.113.9", 443, t(6)));
    let snapshot = lab.snapshot();
    assert!(
        edges(&snapshot).iter().any(|e| e.contains("quiet") && e.contains("203.0.113.9")),
        "{:?}",
        edges(&snapshot)
    );
    let incomplete: Vec<String> = snapshot.body.coverage.workloads.iter().map(|w| w.peer.to_string()).collect();
    // The target's own node is not observed.
    assert_eq!(incomplete, ["shop/Deployment/scanner", "shop/Deployment/target"], "nobody else is");
}

#[test]
fn a_client_with_spoofed_source_addresses_is_one_external_peer() {
    let mut lab = small(|_| ());
    for i in 0..5_000 {
        lab.flow(tcp_server(2, "10.244.1.3", &Ipv4Addr::from(0xc612_0000 + i).to_string(), 8080, t(5)));
    }
    assert_eq!(edges(&lab.snapshot()).len(), 1);
    assert!(lab.entries("peer") < 100, "{} peers", lab.entries("peer"));
}

#[test]
#[cfg_attr(miri, ignore = "a flood takes minutes under Miri")]
fn names_are_believed_for_the_client_that_was_told_them_and_for_nobody_else() {
    let mut lab = small(|_| ());
    let answer = |lab: &mut Lab, cgroup, name: &str, address: IpAddr| {
        let answer =
            Observation::DnsAnswer { cgroup: CgroupId(cgroup), name: name.into(), addresses: vec![address], at: t(2) };
        lab.observer.observe(answer, t(2));
    };
    // The scanner's own resolver says that the attacker's server is the bank, and floods.
    answer(&mut lab, 2, "pay.bank.example", ip("203.0.113.7"));
    answer(&mut lab, 1, "pay.bank.example", ip("203.0.113.66"));
    for i in 0..100_000 {
        answer(&mut lab, 1, &format!("n{i}.example"), Ipv4Addr::from(0xc612_0000 + i).into());
    }
    for (cgroup, local) in [(1, "10.244.1.2"), (2, "10.244.1.3")] {
        for remote in ["203.0.113.7", "203.0.113.66"] {
            lab.flow(tcp_client(cgroup, local, remote, 443, t(5)));
        }
    }
    assert!(lab.entries("name") <= lab.observer.config().max_names);
    let snapshot = lab.snapshot();
    let named: Vec<(String, String)> = snapshot
        .body
        .edges
        .iter()
        .filter(|e| !e.server.names.is_empty())
        .map(|e| (e.client.peer.to_string(), e.server.peer.to_string()))
        .collect();
    // The flood cost the scanner its own name, and the quiet pod nothing.
    assert_eq!(named, [("shop/Deployment/quiet".to_owned(), "external/203.0.113.7".to_owned())]);
}

/// What only the kubelet writes into mirror objects of static pods, and what nobody keeps others
/// from writing.
fn claims(name: &str, hash: &str) -> String {
    format!(
        "---\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: evil\n  uid: uid-of-{name}\n  \
         annotations: {{kubernetes.io/config.hash: {hash}, kubernetes.io/config.mirror: {hash}}}\nspec: {{}}\n"
    )
}

#[test]
fn an_annotation_takes_no_pod_its_identity() {
    let mut lab = small(|_| ());
    // Never scheduled, without an address: its author wants the quiet pod's connections to support
    // rules for it.
    lab.apply(&claims("thief", &common::uid("quiet", 0)));
    lab.flow(tcp_client(2, "10.244.1.3", "10.244.2.2", 8080, t(5)));
    lab.flow(tcp_client(2, "10.244.1.3", "203.0.113.9", 443, t(5)));
    lab.apply(&pod("shop", "quiet", 0, "node-a", "10.244.1.3", &[]));
    lab.flow(tcp_client(2, "10.244.1.3", "203.0.113.10", 443, t(6)));
    assert_eq!(
        lab.edges(),
        ["quiet -> target TCP/8080", "quiet -> external/203.0.113.10 TCP/443", "quiet -> external/203.0.113.9 TCP/443"]
    );
}

#[test]
fn an_owner_that_cannot_exist_gives_no_workload_its_name() {
    let mut lab = small(|_| ());
    let long = "x".repeat(100_000);
    for (i, (kind, name)) in
        [("Evil\\e[2J", "web"), (&long, "web"), ("Job", "a\\n\\e[2J"), ("Job", &long), ("Job", "../../up"), ("", "web")]
            .into_iter()
            .enumerate()
    {
        let address = format!("10.244.1.{}", 20 + i);
        lab.apply(&format!(
            "---\nkind: Pod\nmetadata:\n  name: p{i}\n  namespace: evil\n  uid: uid-of-p{i}\n  \
             ownerReferences: [{{kind: \"{kind}\", name: \"{name}\", uid: u, controller: true}}]\n\
             spec: {{nodeName: node-a}}\nstatus: {{podIP: {address}}}\n"
        ));
        let cgroup = 30 + u64::try_from(i).unwrap();
        lab.cgroup(cgroup, &format!("/kubepods/poduid-of-p{i}/0123456789abcdef"));
        lab.flow(tcp_client(cgroup, &address, "203.0.113.9", 443, t(5)));
    }
    let expected: Vec<String> = (0..6).map(|i| format!("p{i} -> external/203.0.113.9 TCP/443")).collect();
    assert_eq!(lab.edges(), expected);
}

#[test]
fn a_config_hash_that_two_pods_claim_is_neither_s() {
    let mut lab = small(|_| ());
    let hash = "0123456789abcdef0123456789abcdef";
    lab.cgroup(7, &format!("/kubepods/burstable/pod{hash}/0123456789abcdef"));
    lab.apply(&claims("static-one", hash));
    lab.apply(&claims("thief", hash));
    lab.flow(tcp_client(7, "10.244.1.9", "203.0.113.9", 443, t(5)));
    lab.at(60);
    assert_eq!((lab.edges(), lab.unresolved("pod_unknown")), (Vec::new(), 1));
}

#[test]
fn an_error_shows_no_control_characters_of_the_text_and_not_all_of_it() {
    let long = "x".repeat(100_000);
    for text in [
        "{\"kind\": \"Pod\\u001b[2J\\n\", \"apiVersion\": \"v1\"}".to_owned(),
        format!("{{\"kind\": \"{long}\", \"apiVersion\": \"v1\"}}"),
        Snapshot::empty().to_json().replace("\"edges\": []", "\"edges\": [{\"client\": {\"kind\": \"\\u001b[2J\"}}]"),
    ] {
        let message = Snapshot::from_json(&text, "s.json").unwrap_err().to_string();
        assert!(!message.contains(char::is_control) && message.len() < 1_000, "{message:?}");
    }
}

#[test]
fn numbers_at_their_limit_join_without_wrapping() {
    let mut lab = small(|_| ());
    let huge = FlowCounts { opened: u64::MAX, bytes_sent: u64::MAX, bytes_received: u64::MAX, ..FlowCounts::default() };
    for _ in 0..2 {
        lab.flow(failed(tcp_client(2, "10.244.1.3", "203.0.113.9", 443, t(5)), huge));
    }
    let one = lab.snapshot();
    let text = one.to_json();
    let other = Snapshot::from_json(&text.replace("\"node\": \"node-a\"", "\"node\": \"node-b\""), "b").unwrap();
    let joined = merge(vec![one, other]);
    assert_eq!(joined.body.edges[0].counts.opened, u64::MAX);
    assert!(!joined.edge_counters().is_empty());
}
