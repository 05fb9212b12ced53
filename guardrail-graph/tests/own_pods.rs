//! Agents that know the pods of their own node only (`--inventory-scope node`): `merge` gives the
//! same graph as if each knew all.

mod common;

use common::{CLUSTER, Lab, SERVICE, apply_text, edge_text, edges, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observer, ObserverConfig, Snapshot,
    snapshot::{NodeView, merge},
};

/// (Deployment, index, node, address, ports).
const PODS: [(&str, u32, &str, &str, &[&str]); 4] = [
    ("web", 0, "node-a", "10.244.1.2", &[]),
    ("web", 1, "node-b", "10.244.2.2", &[]),
    ("db", 0, "node-a", "10.244.1.3", &["sql:5432"]),
    ("api", 0, "node-b", "10.244.2.4", &["http:8080"]),
];

fn lab(node: &str, own_pods_only: bool) -> Lab {
    let config = ObserverConfig { own_pods_only, ..ObserverConfig::new(node, format!("instance-{node}"), t(0)) };
    let mut observer = Observer::new(config);
    let known = PODS.iter().filter(|(_, _, on, ..)| !own_pods_only || *on == node);
    let pods: String = known.map(|(name, index, on, ip, ports)| pod("shop", name, *index, on, ip, ports)).collect();
    apply_text(&mut observer, &format!("{CLUSTER}{SERVICE}{pods}"), t(0));
    let mut lab = Lab { observer, now: t(1) };
    for ((name, index, ..), id) in PODS.iter().filter(|(_, _, on, ..)| *on == node).zip(1..) {
        lab.pod_cgroup(id, name, *index);
    }
    lab
}

/// What both nodes saw of the same traffic.
fn nodes(own_pods_only: bool) -> [Snapshot; 2] {
    let (mut a, mut b) = (lab("node-a", own_pods_only), lab("node-b", own_pods_only));
    // web on a, straight to api, and through its Service.
    a.flow(tcp_client(1, "10.244.1.2", "10.244.2.4", 8080, t(5)));
    b.flow(tcp_server(2, "10.244.2.4", "10.244.1.2", 8080, t(5)));
    a.flow(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(6)));
    b.flow(tcp_server(2, "10.244.2.4", "10.244.1.2", 8080, t(6)));
    // web on b through the Service, both ends on b.
    b.flow(tcp_client(1, "10.244.2.2", "10.96.0.7", 80, t(7)));
    b.flow(tcp_server(2, "10.244.2.4", "10.244.2.2", 8080, t(7)));
    // api to db, and back to nobody.
    b.flow(tcp_client(2, "10.244.2.4", "10.244.1.3", 5432, t(8)));
    a.flow(tcp_server(2, "10.244.1.3", "10.244.2.4", 5432, t(8)));
    // Beyond the cluster, and to a node.
    a.flow(tcp_client(1, "10.244.1.2", "203.0.113.1", 443, t(9)));
    a.flow(tcp_client(1, "10.244.1.2", "192.0.2.12", 10250, t(9)));
    [a.at(40).snapshot(), b.at(40).snapshot()]
}

#[test]
fn merged_they_give_the_edges_of_agents_that_know_every_pod() {
    let whole = merge(nodes(false).to_vec());
    let own = merge(nodes(true).to_vec());
    let words = |s: &Snapshot| -> Vec<_> {
        let edge = |e: &guardrail_graph::snapshot::EdgeRecord| {
            (edge_text(e), e.counts, e.seen_by.clone(), e.port_name.clone(), e.first_seen, e.last_seen)
        };
        s.body.edges.iter().map(edge).collect()
    };
    assert_eq!(words(&own), words(&whole));
    assert!(own.body.coverage.complete && whole.body.coverage.complete, "{:#?}", own.body.coverage);
    assert_eq!(own.body.coverage, whole.body.coverage);
    let pods = |s: &Snapshot| s.body.workloads.iter().map(|w| (w.workload.clone(), w.pods.clone())).collect::<Vec<_>>();
    assert_eq!(pods(&own), pods(&whole));
}

#[test]
fn alone_one_of_them_says_what_it_cannot_name() {
    let [a, _] = nodes(true);
    assert_eq!(edges(&a), ["web -> node/node-b TCP/10250", "web -> external/203.0.113.1 TCP/443"]);
    assert!(!a.body.coverage.complete);
    let left = a.body.coverage.unresolved.iter().find(|u| u.reason == "remote_pod").unwrap();
    assert_eq!(left.count, 2, "one flow as client, one as server: {left:?}");
    for entry in &a.body.workloads {
        assert!(matches!(a.node_view(&entry.workload), NodeView::Partial { .. }), "{:?}", entry.workload);
    }
    let whole = merge(nodes(true).to_vec());
    for entry in &whole.body.workloads {
        assert_eq!(whole.node_view(&entry.workload), NodeView::Whole, "{:?}", entry.workload);
    }
}

#[test]
fn joining_them_is_commutative_associative_and_idempotent() {
    let [a, b] = nodes(true);
    let both = merge(vec![a.clone(), b.clone()]).to_json();
    assert_eq!(merge(vec![b.clone(), a.clone()]).to_json(), both);
    let joined = merge(vec![a.clone(), b.clone()]);
    assert_eq!(merge(vec![joined.clone()]).to_json(), both);
    assert_eq!(merge(vec![joined.clone(), a.clone(), b.clone(), joined]).to_json(), both);
    let alone = merge(vec![a.clone()]);
    assert_eq!(alone.to_json(), a.to_json(), "one node's snapshot stays what it is");
    assert_eq!(merge(vec![alone, merge(vec![b])]).to_json(), both);
    // It survives the file.
    assert_eq!(merge(vec![Snapshot::from_json(&both, "both").unwrap()]).to_json(), both);
}

#[test]
fn an_address_that_changed_hands_names_each_owner_at_its_own_time_only() {
    let mut a = lab("node-a", true);
    let mut b = lab("node-b", true);
    b.flow(tcp_server(2, "10.244.2.4", "10.244.1.2", 8080, t(5)));
    // Seven connections: the first was api's, the last its successor's.
    for at in [5, 6, 7, 8, 200, 201, 300] {
        a.at(at).flow(tcp_client(1, "10.244.1.2", "10.244.2.4", 8080, t(at)));
    }
    b.at(100).delete_pod("shop", "api-5d9c-0");
    b.at(150).apply(&pod("shop", "next", 0, "node-b", "10.244.2.4", &[]));
    let merged = merge(vec![a.at(310).snapshot(), b.at(310).snapshot()]);
    let counts: Vec<_> = merged.body.edges.iter().map(|e| (edge_text(e), e.counts.opened)).collect();
    assert_eq!(counts, [("web -> api TCP/8080".to_owned(), 1), ("web -> next TCP/8080".to_owned(), 1)]);
    let left = merged.body.coverage.unresolved.iter().find(|u| u.reason == "remote_pod").unwrap();
    assert_eq!(left.count, 5, "what lies between is nobody's");
}

#[test]
fn a_restart_keeps_what_has_no_name_yet() {
    let [a, b] = nodes(true);
    let config = ObserverConfig { own_pods_only: true, ..ObserverConfig::new("node-a", "other", t(41)) };
    let mut restored = Observer::restore(config, &a, false).unwrap();
    let again = restored.snapshot(t(42));
    assert_eq!(again.body.remote_flows, a.body.remote_flows);
    let before: Vec<_> = edges(&merge(vec![a, b.clone()]));
    assert_eq!(edges(&merge(vec![again, b])), before);
}
