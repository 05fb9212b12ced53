//! Pods, nodes and Services that are heard of after their first traffic: what was taken for an
//! external peer is named when the word comes.

mod common;

use common::{Lab, edges, pod, t, tcp_client, tcp_server};

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
