//! Observations in, edges out: the cases in which others name the wrong peer.

mod common;

use common::{Lab, delta, edges, failed, ip, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Peer, Protocol, Snapshot,
    observe::{CgroupId, FlowCounts, LossReason, Remote, Role},
    snapshot::merge,
};

fn web(index: u32, node: &str, address: &str) -> String {
    pod("shop", "web", index, node, address, &[])
}

fn api(index: u32, node: &str, address: &str) -> String {
    pod("shop", "api", index, node, address, &["http:8080"])
}

const API_SERVICE: &str = "---\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {type: NodePort, clusterIP: 10.96.0.7, selector: {app: api}, ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]}\n";

#[test]
fn a_connection_is_one_edge_seen_from_both_sides_at_the_pod_port_with_its_name() {
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), api(0, "node-a", "10.244.1.3")]);
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "api", 0);
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.3", 8080, t(5)));
    let mut served = tcp_server(2, "10.244.1.3", "10.244.1.2", 8080, t(5));
    (served.counts.bytes_sent, served.counts.bytes_received) = (20, 10);
    lab.flow(served);
    let snapshot = lab.snapshot();
    let [edge] = &snapshot.body.edges[..] else { panic!("{:?}", edges(&snapshot)) };
    assert_eq!(common::edge_text(edge), "web -> api TCP/8080");
    assert_eq!(
        (edge.counts.opened, edge.counts.bytes_sent, edge.counts.bytes_received),
        (1, 10, 20),
        "the greater side, as the client sees it"
    );
    assert_eq!((edge.port_name.as_deref(), edge.seen_by.len()), (Some("http"), 2));
    assert_eq!(edge.first_seen, t(5));
}

#[test]
fn a_flow_before_pod_ip_reuse_keeps_the_old_owner() {
    let mut lab =
        Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), pod("shop", "old", 0, "node-b", "10.244.2.9", &[])]);
    lab.pod_cgroup(1, "web", 0);
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.2.9", 80, t(10)));
    lab.at(100).delete_pod("shop", "old-5d9c-0");
    lab.at(200).apply(&pod("shop", "new", 0, "node-b", "10.244.2.9", &[]));
    assert_eq!(lab.observer.take_reassigned_addresses(), [ip("10.244.2.9")]);
    // The kernel entry was not folded in time: one entry, two owners, each proven at one end.
    let mut both = tcp_client(1, "10.244.1.2", "10.244.2.9", 81, t(20));
    both.last_open = Some(t(300));
    both.counts.opened = 7;
    lab.at(301).flow(both);
    // Folded: the next connection was a new key.
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.2.9", 82, t(300)));
    let snapshot = lab.snapshot();
    assert_eq!(edges(&snapshot), ["web -> new TCP/81", "web -> new TCP/82", "web -> old TCP/80", "web -> old TCP/81"]);
    let opened: Vec<u64> = snapshot.body.edges.iter().map(|e| e.counts.opened).collect();
    assert_eq!(opened, [6, 1, 1, 1]);
}

fn cgroup_gone(lab: &mut Lab, id: u64, at: i64) {
    lab.observer.observe(Observation::CgroupRemoved { id: CgroupId(id), at: t(at) }, t(at));
}

/// `old` had the address; its cgroup 2 is gone at 20, `new` has the address and cgroup 3 since 22,
/// and the API server knows nothing of it.
fn recycled_behind_the_api_servers_back() -> Lab {
    let mut lab = Lab::new(
        "node-a",
        &[
            web(0, "node-a", "10.244.1.2"),
            api(0, "node-a", "10.244.1.3"),
            pod("shop", "old", 0, "node-a", "10.244.1.9", &[]),
        ],
    );
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(4, "api", 0);
    lab.pod_cgroup(2, "old", 0);
    lab.at(10).flow(tcp_client(1, "10.244.1.2", "10.244.1.9", 80, t(10)));
    cgroup_gone(lab.at(20), 2, 20);
    lab.at(22).pod_cgroup(3, "new", 0);
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.9", 81, t(23)));
    lab.flow(tcp_server(4, "10.244.1.3", "10.244.1.9", 8080, t(23)));
    lab
}

#[test]
fn an_address_is_nobodys_once_its_pods_last_cgroup_is_gone_until_its_new_owner_is_known() {
    let mut lab = recycled_behind_the_api_servers_back();
    assert_eq!(lab.observer.take_reassigned_addresses(), [ip("10.244.1.9")]);
    assert_eq!(lab.edges(), ["web -> old TCP/80"], "the others wait");
    // What the API server repeats of the old one changes nothing, however late it is.
    lab.at(26).apply(&pod("shop", "old", 0, "node-a", "10.244.1.9", &[]));
    assert_eq!(lab.edges(), ["web -> old TCP/80"]);
    lab.at(28).apply(&pod("shop", "new", 0, "node-a", "10.244.1.9", &[]));
    lab.delete_pod("shop", "old-5d9c-0");
    let expected = ["new -> api TCP/8080", "web -> new TCP/81", "web -> old TCP/80"];
    assert_eq!(lab.edges(), expected);
    // Between the two it was nobody's, though the new owner's first word may come long after its
    // first traffic.
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.9", 82, t(21)));
    lab.at(60);
    assert_eq!(lab.edges(), expected);
    assert_eq!(lab.unresolved("pod_range_no_owner"), 1);
}

#[test]
fn a_flow_to_an_address_whose_new_owner_never_becomes_known_is_counted() {
    let mut lab = recycled_behind_the_api_servers_back();
    lab.at(60);
    assert_eq!(lab.edges(), ["web -> old TCP/80"]);
    assert_eq!(lab.unresolved("pod_range_no_owner"), 2);
    // A record of the new owner itself settles it, before the word of its address.
    let mut lab = recycled_behind_the_api_servers_back();
    lab.at(24).apply(&pod("shop", "new", 0, "node-a", "", &[]));
    lab.flow(tcp_server(3, "10.244.1.9", "10.244.1.2", 81, t(23)));
    lab.at(25);
    assert_eq!(lab.edges(), ["new -> api TCP/8080", "web -> new TCP/81", "web -> old TCP/80"]);
}

#[test]
fn a_record_of_another_pod_with_the_address_ends_its_old_owners_time_though_that_ones_cgroup_is_still_there() {
    let mut lab =
        Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), pod("shop", "old", 0, "node-a", "10.244.1.9", &[])]);
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "old", 0);
    lab.at(20).pod_cgroup(3, "new", 0);
    // The API server has not told of the new pod at all.
    lab.flow(tcp_server(3, "10.244.1.9", "10.244.1.2", 80, t(22)));
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.9", 80, t(22)));
    lab.at(24).apply(&pod("shop", "old", 0, "node-a", "10.244.1.9", &[]));
    assert_eq!(lab.edges(), [] as [&str; 0]);
    lab.at(26).apply(&pod("shop", "new", 0, "node-a", "10.244.1.9", &[]));
    lab.apply(&pod("shop", "old", 0, "node-a", "10.244.1.9", &[]));
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.9", 81, t(40)));
    assert_eq!(lab.edges(), ["web -> new TCP/80", "web -> new TCP/81"]);
}

#[test]
fn a_restarted_container_and_a_cgroup_that_comes_again_leave_a_pod_its_address() {
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), api(0, "node-a", "10.244.1.3")]);
    lab.pod_cgroup(1, "web", 0);
    let pod_level = common::cgroup_path("api", 0).replace("/0123456789abcdef", "");
    lab.cgroup(2, &pod_level);
    lab.pod_cgroup(3, "api", 0);
    cgroup_gone(lab.at(20), 3, 20);
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.3", 80, t(21)));
    lab.at(22).pod_cgroup(4, "api", 0);
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.3", 81, t(23)));
    assert_eq!(lab.edges(), ["web -> api TCP/80", "web -> api TCP/81"]);
    // All of them gone, and there again.
    cgroup_gone(lab.at(30), 4, 30);
    cgroup_gone(&mut lab, 2, 30);
    lab.at(32).cgroup(5, &pod_level);
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.3", 82, t(33)));
    assert_eq!(lab.edges().len(), 3);
    // What is folded after the end shows the address up to the end only.
    cgroup_gone(lab.at(40), 5, 40);
    let mut folded = tcp_server(5, "10.244.1.3", "10.244.1.2", 80, t(39));
    (folded.first_open, folded.last_open, folded.counts.opened) = (None, None, 0);
    lab.at(50).flow(folded);
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.3", 83, t(45)));
    assert_eq!(lab.edges().len(), 3, "{:?}", lab.edges());
}

#[test]
fn the_end_of_a_host_network_pod_leaves_the_node_its_address() {
    let exporter =
        pod("shop", "agent", 0, "node-a", "192.0.2.11", &[]).replace("nodeName:", "hostNetwork: true\n  nodeName:");
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), exporter]);
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "agent", 0);
    cgroup_gone(lab.at(20), 2, 20);
    lab.flow(tcp_client(1, "10.244.1.2", "192.0.2.11", 9100, t(21)));
    assert_eq!(lab.edges(), ["web -> node/node-a TCP/9100"]);
}

#[test]
fn an_owner_between_two_proven_ones_is_counted_and_never_invented() {
    let mut lab =
        Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), pod("shop", "one", 0, "node-b", "10.244.2.9", &[])]);
    lab.pod_cgroup(1, "web", 0);
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.2.9", 80, t(1)));
    lab.at(100).delete_pod("shop", "one-5d9c-0");
    lab.at(200).apply(&pod("shop", "two", 0, "node-b", "10.244.2.9", &[]));
    lab.at(300).delete_pod("shop", "two-5d9c-0");
    lab.at(400).apply(&pod("shop", "three", 0, "node-b", "10.244.2.9", &[]));
    let mut delta = tcp_client(1, "10.244.1.2", "10.244.2.9", 80, t(50));
    delta.last_open = Some(t(500));
    delta.counts.opened = 10;
    lab.at(501).flow(delta);
    assert_eq!(lab.edges(), ["web -> one TCP/80", "web -> three TCP/80"]);
    assert_eq!(lab.unresolved("ip_reuse"), 8);
    assert!(!lab.snapshot().body.coverage.complete);
}

#[test]
fn a_flow_at_the_moment_of_a_change_waits_for_a_record_and_is_counted_if_none_comes() {
    let inventory = [web(0, "node-a", "10.244.1.2"), pod("shop", "old", 0, "node-a", "10.244.1.9", &[])];
    let change = |lab: &mut Lab| {
        lab.pod_cgroup(1, "web", 0);
        lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.2", 1, t(1)));
        lab.at(100).apply(&pod("shop", "new", 0, "node-a", "10.244.1.9", &[]));
        lab.at(101).flow(tcp_client(1, "10.244.1.2", "10.244.1.9", 80, t(101)));
    };
    let mut settled = Lab::new("node-a", &inventory);
    change(&mut settled);
    assert_eq!(settled.edges(), [] as [&str; 0]);
    settled.pod_cgroup(3, "new", 0);
    settled.flow(tcp_client(3, "10.244.1.9", "203.0.113.1", 443, t(99)));
    settled.at(102);
    assert_eq!(settled.edges(), ["new -> external/203.0.113.1 TCP/443", "web -> new TCP/80"]);

    let mut open = Lab::new("node-a", &inventory);
    change(&mut open);
    open.at(120);
    assert_eq!(open.edges(), [] as [&str; 0]);
    assert_eq!(open.unresolved("ip_reuse"), 1);
}

#[test]
fn a_one_second_pod_whose_object_comes_after_its_flow_is_named_at_both_ends() {
    let mut lab = Lab::new("node-a", &[api(0, "node-a", "10.244.1.3")]);
    lab.pod_cgroup(2, "api", 0);
    lab.at(10).pod_cgroup(9, "job", 0);
    lab.flow(tcp_client(9, "10.244.1.77", "10.244.1.3", 8080, t(10)));
    lab.flow(tcp_server(2, "10.244.1.3", "10.244.1.77", 8080, t(10)));
    lab.observer.observe(Observation::CgroupRemoved { id: CgroupId(9), at: t(11) }, t(11));
    assert_eq!(lab.edges(), [] as [&str; 0], "it waits instead of becoming an address");
    lab.at(13).apply(&pod("shop", "job", 0, "node-a", "10.244.1.77", &[]));
    assert_eq!(lab.edges(), ["job -> api TCP/8080"]);
    assert_eq!(lab.snapshot().body.edges[0].seen_by.len(), 2);
    assert!(lab.observer.stats().pending == 0);
}

#[test]
fn a_pod_that_is_first_heard_of_as_finished_is_named_at_the_server_too() {
    let mut lab = Lab::new("node-b", &[api(0, "node-b", "10.244.2.3")]);
    lab.pod_cgroup(2, "api", 0);
    lab.at(10).flow(tcp_server(2, "10.244.2.3", "10.244.1.77", 8080, t(10)));
    let finished = pod("shop", "job", 0, "node-a", "10.244.1.77", &[]).replace("Running", "Succeeded");
    lab.at(14).apply(&finished);
    assert_eq!(lab.edges(), ["job -> api TCP/8080"]);
}

#[test]
fn a_pod_that_never_becomes_known_is_counted_and_no_address_peer() {
    let mut lab = Lab::new("node-a", &[api(0, "node-a", "10.244.1.3")]);
    lab.pod_cgroup(2, "api", 0);
    lab.at(10).pod_cgroup(9, "ghost", 0);
    lab.flow(tcp_client(9, "10.244.1.77", "10.244.1.3", 8080, t(10)));
    lab.at(30);
    assert_eq!(lab.edges(), [] as [&str; 0]);
    assert_eq!(lab.unresolved("pod_unknown"), 1);
    let snapshot = lab.snapshot();
    assert!(!snapshot.body.coverage.complete);
    let incomplete: Vec<String> = snapshot.body.coverage.workloads.iter().map(|w| w.peer.to_string()).collect();
    assert!(incomplete.contains(&"shop/Deployment/api".to_owned()), "{incomplete:?}");
}

#[test]
fn an_address_in_the_pod_range_that_nobody_has_is_never_external() {
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2")]);
    lab.pod_cgroup(1, "web", 0);
    lab.at(10).flow(tcp_client(1, "10.244.1.2", "10.244.2.99", 80, t(10)));
    lab.at(30);
    assert_eq!(lab.edges(), [] as [&str; 0]);
    assert_eq!(lab.unresolved("pod_range_no_owner"), 1);
    // A scan that reaches nobody leaves the evidence complete.
    let mut scan = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2")]);
    scan.pod_cgroup(1, "web", 0);
    let unanswered = FlowCounts { unanswered: 3, ..FlowCounts::default() };
    scan.at(10).flow(failed(tcp_client(1, "10.244.1.2", "10.244.2.99", 80, t(10)), unanswered));
    scan.at(30);
    assert_eq!(scan.unresolved("pod_range_no_owner"), 3);
    let reasons: Vec<_> = scan.snapshot().body.coverage.workloads.into_iter().flat_map(|w| w.reasons).collect();
    assert!(reasons.iter().all(|r| r.starts_with("node_unobserved")), "{reasons:?}");
}

#[test]
fn a_recycled_cgroup_id_names_the_pod_of_its_time() {
    let mut lab = Lab::new(
        "node-a",
        &[
            web(0, "node-a", "10.244.1.2"),
            pod("shop", "cron", 0, "node-a", "10.244.1.4", &[]),
            api(0, "node-a", "10.244.1.3"),
        ],
    );
    lab.pod_cgroup(7, "web", 0);
    lab.observer.observe(Observation::CgroupRemoved { id: CgroupId(7), at: t(20) }, t(20));
    lab.at(30).pod_cgroup(7, "cron", 0);
    lab.flow(tcp_client(7, "10.244.1.2", "10.244.1.3", 8080, t(10)));
    lab.flow(tcp_client(7, "10.244.1.4", "10.244.1.3", 8080, t(40)));
    assert_eq!(lab.edges(), ["cron -> api TCP/8080", "web -> api TCP/8080"]);
}

#[test]
fn of_two_workloads_behind_a_service_only_the_one_that_was_reached_is_an_edge() {
    let green = pod("shop", "green", 0, "node-a", "10.244.1.4", &["http:9090"])
        .replace("app: green", "app: green, role: front");
    let blue =
        pod("shop", "blue", 0, "node-a", "10.244.1.3", &["http:8080"]).replace("app: blue", "app: blue, role: front");
    let service = API_SERVICE.replace("app: api", "role: front");
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), blue, green, service]);
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "blue", 0);
    lab.pod_cgroup(3, "green", 0);
    lab.flow(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(5)));
    assert_eq!(lab.edges(), [] as [&str; 0]);
    assert_eq!(lab.unresolved("service_backend_unknown"), 1, "nobody answered for it yet");
    lab.flow(tcp_server(2, "10.244.1.3", "10.244.1.2", 8080, t(5)));
    assert_eq!(lab.edges(), ["web -> blue TCP/8080 via shop/api:80"]);
    assert_eq!(lab.unresolved("service_backend_unknown"), 0);
    // Failed attempts cannot be told apart between the two.
    let refused = FlowCounts { refused: 4, ..FlowCounts::default() };
    lab.flow(failed(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(6)), refused));
    let snapshot = lab.snapshot();
    assert_eq!(snapshot.body.edges[0].counts.refused, 0);
    assert_eq!(lab.unresolved("service_attempt_failed"), 4);
}

#[test]
fn failed_attempts_through_a_service_belong_to_its_only_workload_and_support_nothing() {
    let mut lab =
        Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), api(0, "node-a", "10.244.1.3"), API_SERVICE.into()]);
    lab.pod_cgroup(1, "web", 0);
    lab.flow(failed(
        tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(5)),
        FlowCounts { refused: 2, ..FlowCounts::default() },
    ));
    assert_eq!(lab.edges(), ["web -> api TCP/8080 via shop/api:80 [via-service] unsupported"]);
    assert_eq!(lab.snapshot().body.edges[0].counts.refused, 2);
}

#[test]
fn a_backend_on_a_node_that_nobody_observes_is_inferred_and_certain_after_merge() {
    let inventory = [web(0, "node-a", "10.244.1.2"), api(0, "node-b", "10.244.2.3"), API_SERVICE.into()];
    let mut a = Lab::new("node-a", &inventory);
    a.pod_cgroup(1, "web", 0);
    a.flow(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(5)));
    assert_eq!(a.edges(), ["web -> api TCP/8080 via shop/api:80 [inferred]"]);
    let mut b = Lab::new("node-b", &inventory);
    b.pod_cgroup(2, "api", 0);
    b.flow(tcp_server(2, "10.244.2.3", "10.244.1.2", 8080, t(5)));
    assert_eq!(b.edges(), ["web -> api TCP/8080"]);
    let merged = merge(vec![a.snapshot(), b.snapshot()]);
    assert_eq!(edges(&merged), ["web -> api TCP/8080 via shop/api:80"]);
    assert!(merged.body.coverage.complete, "{:?}", merged.body.coverage);
    assert_eq!(merged.body.edges[0].seen_by.len(), 2);
}

#[test]
fn a_node_port_leads_to_the_pods_behind_it() {
    // Another node than the client's translates; the client's network sees that node.
    for (address, marks) in [("192.0.2.11", ""), ("192.0.2.12", "host-port"), ("10.244.2.1", "host-port")] {
        let seen_as = |client: &str| {
            let pods = [web(0, "node-a", "10.244.1.2"), api(0, "node-a", "10.244.1.3"), API_SERVICE.into()];
            let mut lab = Lab::new("node-a", &pods);
            lab.pod_cgroup(1, "web", 0);
            lab.pod_cgroup(2, "api", 0);
            lab.flow(tcp_client(1, "10.244.1.2", address, 30080, t(5)));
            lab.flow(tcp_server(2, "10.244.1.3", client, 8080, t(5)));
            lab.edges()
        };
        let edge = "web -> api TCP/8080 via shop/api:80";
        let direct = if marks.is_empty() { edge.to_owned() } else { format!("{edge} [{marks}]") };
        assert_eq!(seen_as("10.244.1.2"), [direct], "{address}");
        // Masqueraded: the server saw a node.
        let marks = if marks.is_empty() { String::new() } else { format!("{marks},") };
        let masqueraded = format!("{edge} [{marks}inferred,masqueraded]");
        assert_eq!(seen_as("192.0.2.12"), [&*masqueraded, "node/node-b -> api TCP/8080"], "{address}");
    }
}

#[test]
fn a_host_network_client_through_a_cluster_ip_is_its_node_with_its_workload_beside_it() {
    let exporter =
        pod("shop", "agent", 0, "node-a", "192.0.2.11", &[]).replace("nodeName:", "hostNetwork: true\n  nodeName:");
    let dns = pod("shop", "dns", 0, "node-a", "10.244.1.3", &["dns:53/UDP"]);
    let service = "---\nkind: Service\nmetadata: {name: dns, namespace: shop}\nspec: {clusterIP: 10.96.0.10, selector: {app: dns}, ports: [{port: 53, protocol: UDP, targetPort: dns}]}\n";
    let mut lab = Lab::new("node-a", &[exporter, dns, service.into()]);
    lab.pod_cgroup(1, "agent", 0);
    lab.pod_cgroup(2, "dns", 0);
    lab.flow(delta(1, Role::Client, "192.0.2.11", "10.96.0.10", Protocol::Udp, 53, t(5)));
    lab.flow(delta(2, Role::Server, "10.244.1.3", "192.0.2.11", Protocol::Udp, 53, t(5)));
    let snapshot = lab.snapshot();
    assert_eq!(edges(&snapshot), ["node/node-a -> dns UDP/53 via shop/dns:53"]);
    assert!(snapshot.body.edges[0].node_workloads.contains("shop/Deployment/agent"));
    // The source address may be the node's end of the pod network (10.244.1.1), which is the node's
    // as well.
    lab.flow(delta(2, Role::Server, "10.244.1.3", "10.244.1.1", Protocol::Udp, 53, t(6)));
    assert_eq!(lab.edges().len(), 1);
}

#[test]
fn host_processes_are_their_node() {
    let mut lab = Lab::new("node-a", &[api(0, "node-a", "10.244.1.3")]);
    lab.cgroup(5, "/system.slice/kubelet.service");
    lab.flow(tcp_client(5, "10.244.1.1", "10.244.1.3", 8080, t(5)));
    assert_eq!(lab.edges(), ["node/node-a -> api TCP/8080"]);
}

#[test]
fn the_nodes_end_of_a_pods_link_is_the_node_though_its_address_is_link_local() {
    let mut lab = Lab::new("node-a", &[api(0, "node-a", "10.244.1.3")]);
    lab.pod_cgroup(2, "api", 0);
    lab.cgroup(5, "/system.slice/kubelet.service");
    // The server's record comes first, and waits for the proof.
    lab.flow(tcp_server(2, "10.244.1.3", "169.254.1.1", 8080, t(5)));
    assert_eq!(lab.edges(), [] as [&str; 0]);
    lab.flow(tcp_client(5, "169.254.1.1", "10.244.1.3", 8080, t(5)));
    lab.at(6);
    assert_eq!(lab.edges(), ["node/node-a -> api TCP/8080"]);
    assert_eq!(lab.snapshot().body.edges[0].seen_by.len(), 2);
    // As a server it is the node, too. Others are services of the cloud.
    lab.flow(tcp_client(2, "10.244.1.3", "169.254.1.1", 53, t(7)));
    lab.flow(tcp_client(2, "10.244.1.3", "169.254.169.254", 80, t(7)));
    let edges = lab.edges();
    assert!(edges.contains(&"api -> node/node-a TCP/53 [link-local]".to_owned()), "{edges:?}");
    assert!(edges.contains(&"api -> external/169.254.169.254 TCP/80 [link-local]".to_owned()), "{edges:?}");
}

#[test]
fn what_another_node_on_the_same_kernel_does_is_left_to_that_nodes_agent() {
    let far = pod("shop", "far", 0, "node-b", "10.244.2.3", &[]);
    let mut lab = Lab::new("node-a", &[api(0, "node-a", "10.244.1.3"), far]);
    lab.pod_cgroup(2, "far", 0);
    lab.cgroup(5, "/system.slice/kubelet.service");
    // By its cgroup, by its address alone (the cgroup is not known here), and a host process of
    // that node.
    lab.flow(tcp_client(2, "10.244.2.3", "10.244.1.3", 8080, t(5)));
    lab.flow(tcp_client(99, "10.244.2.3", "10.244.1.3", 8080, t(5)));
    lab.flow(tcp_client(5, "192.0.2.12", "10.244.1.3", 8080, t(5)));
    lab.observer.flush(t(6));
    assert_eq!(lab.edges(), [] as [&str; 0]);
    assert_eq!((lab.unresolved("other_node"), lab.unresolved("pod_unknown")), (3, 0));
    let reasons: Vec<_> = lab.snapshot().body.coverage.workloads.into_iter().flat_map(|w| w.reasons).collect();
    assert!(reasons.iter().all(|r| r == "node_unobserved:node-b"), "{reasons:?}");
}

#[test]
fn a_socket_of_a_node_proxy_in_a_pods_namespace_stands_for_that_pod() {
    let mut lab = Lab::new(
        "node-a",
        &[
            web(0, "node-a", "10.244.1.2"),
            pod("mesh", "ztunnel", 0, "node-a", "10.244.1.8", &[]),
            api(0, "node-a", "10.244.1.3"),
        ],
    );
    lab.pod_cgroup(8, "ztunnel", 0);
    lab.flow(tcp_client(8, "10.244.1.2", "10.244.1.3", 15008, t(5)));
    assert_eq!(lab.edges(), ["web -> api TCP/15008 [proxied,tunnel]"]);
}

#[test]
#[cfg_attr(miri, ignore = "a flood takes minutes under Miri")]
fn twenty_thousand_external_clients_are_one_complete_edge() {
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), api(0, "node-a", "10.244.1.3")]);
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "api", 0);
    lab.flow(tcp_server(2, "10.244.1.3", "10.244.1.2", 8080, t(5)));
    for i in 0..20_000u32 {
        let remote = std::net::Ipv4Addr::from(0xc612_0000 + i).to_string();
        lab.flow(tcp_server(2, "10.244.1.3", &remote, 8080, t(5)));
    }
    let mut many = tcp_server(2, "10.244.1.3", "203.0.113.1", 8080, t(6));
    (many.remote, many.counts.opened) = (Remote::Many, 500);
    lab.flow(many);
    let snapshot = lab.snapshot();
    assert_eq!(edges(&snapshot), ["web -> api TCP/8080", "external/* -> api TCP/8080"]);
    assert_eq!(snapshot.body.edges[1].counts.opened, 20_500);
    let reasons: Vec<_> = snapshot.body.coverage.workloads.iter().flat_map(|w| &w.reasons).collect();
    assert!(reasons.is_empty(), "{reasons:?}");
    assert!(lab.entries("peer") < 100, "addresses beyond the bound are never kept");
}

#[test]
#[cfg_attr(miri, ignore = "a flood takes minutes under Miri")]
fn a_scanner_costs_a_bounded_number_of_unsupported_edges_and_no_server_that_was_reached_its_name() {
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2")]);
    lab.pod_cgroup(1, "web", 0);
    let unanswered = FlowCounts { unanswered: 1, ..FlowCounts::default() };
    for i in 0..5_000u32 {
        let remote = std::net::Ipv4Addr::from(0xc612_0000 + i).to_string();
        lab.flow(failed(tcp_client(1, "10.244.1.2", &remote, 22, t(5)), unanswered));
    }
    // What it does reach keeps its name.
    lab.flow(tcp_client(1, "10.244.1.2", "203.0.113.7", 22, t(6)));
    let snapshot = lab.snapshot();
    assert_eq!(snapshot.body.edges.len(), 512 + 1 + 1);
    let supported: Vec<_> = edges(&snapshot).into_iter().filter(|e| !e.ends_with("unsupported")).collect();
    assert_eq!(supported, ["web -> external/203.0.113.7 TCP/22"]);
    let many = snapshot.body.edges.iter().find(|e| *e.server.peer == Peer::many()).unwrap();
    assert_eq!(many.counts.unanswered, 5_000 - 512);
}

#[test]
fn a_client_over_its_budget_makes_only_its_workload_incomplete() {
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), api(0, "node-a", "10.244.1.3")]);
    lab.pod_cgroup(1, "web", 0);
    let mut many = tcp_client(1, "10.244.1.2", "203.0.113.1", 443, t(5));
    many.remote = Remote::Many;
    lab.flow(many);
    let lost = |cgroup| Observation::Lost { reason: LossReason::MapFull, cgroup, count: 3, at: t(5) };
    lab.observer.observe(lost(Some(CgroupId(1))), t(5));
    let snapshot = lab.snapshot();
    assert_eq!(edges(&snapshot), [] as [&str; 0]);
    let coarse = lab.observer.stats().losses.into_iter().find(|(r, ..)| *r == LossReason::CoarseClient);
    assert_eq!(coarse.map(|(_, _, n)| n), Some(1));
    let incomplete = |s: &Snapshot| -> Vec<String> {
        s.body.coverage.workloads.iter().map(|w| format!("{} {:?}", w.peer, w.reasons)).collect()
    };
    assert_eq!(incomplete(&snapshot), [r#"shop/Deployment/web {"coarse_client", "map_full"}"#]);
    lab.observer.observe(lost(None), t(5));
    assert_eq!(incomplete(&lab.snapshot()).len(), 3, "without a cgroup it may be anyone's on this node");
    lab.observer.observe(Observation::Lost { reason: LossReason::RingFull, cgroup: None, count: 9, at: t(5) }, t(5));
    let snapshot = lab.snapshot();
    assert!(snapshot.body.coverage.losses.iter().any(|l| l.reason == "ring_full" && l.count == 9));
}

#[test]
fn a_loss_of_class_hint_leaves_the_window_complete() {
    let mut lab = Lab::new("node-a", &[]);
    lab.observer.apply(
        guardrail_graph::inventory::Change::Replace { kind: guardrail_graph::inventory::Kind::Node, objects: vec![] },
        t(0),
    );
    lab.observer.observe(Observation::Lost { reason: LossReason::RingFull, cgroup: None, count: 9, at: t(5) }, t(5));
    assert!(lab.snapshot().body.coverage.complete);
    lab.observer.observe(Observation::Lost { reason: LossReason::MapFull, cgroup: None, count: 1, at: t(5) }, t(5));
    assert!(!lab.snapshot().body.coverage.complete);
}

#[test]
fn a_pod_that_reaches_itself_through_its_service_is_no_edge_and_another_replica_is_a_self_edge() {
    let mut lab =
        Lab::new("node-a", &[api(0, "node-a", "10.244.1.3"), api(1, "node-a", "10.244.1.4"), API_SERVICE.into()]);
    lab.pod_cgroup(1, "api", 0);
    lab.pod_cgroup(2, "api", 1);
    lab.flow(tcp_client(1, "10.244.1.3", "10.96.0.7", 80, t(5)));
    lab.flow(tcp_server(1, "10.244.1.3", "10.244.1.3", 8080, t(5)));
    assert_eq!(lab.edges(), [] as [&str; 0]);
    assert_eq!(lab.unresolved("service_backend_unknown"), 0);
    lab.flow(tcp_server(2, "10.244.1.4", "10.244.1.3", 8080, t(6)));
    assert_eq!(lab.edges(), ["api -> api TCP/8080 via shop/api:80"]);
}

#[test]
fn the_api_server_is_its_endpoints_at_their_port() {
    let kubernetes = "---\nkind: Service\nmetadata: {name: kubernetes, namespace: default}\nspec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443, targetPort: 6443}]}\n\
        ---\nkind: EndpointSlice\nmetadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}\nports: [{name: https, port: 6443}]\nendpoints: [{addresses: [\"198.51.100.6\"]}]\n";
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), kubernetes.into()]);
    lab.pod_cgroup(1, "web", 0);
    lab.flow(tcp_client(1, "10.244.1.2", "10.96.0.1", 443, t(5)));
    assert_eq!(lab.edges(), ["web -> external/198.51.100.6 TCP/6443 via default/kubernetes:443 [via-service]"]);
    assert!(lab.observer.is_server_address(ip("10.96.0.1"), 443, Protocol::Tcp));
    assert!(lab.observer.is_server_address(ip("198.51.100.6"), 6443, Protocol::Tcp));
    assert!(!lab.observer.is_server_address(ip("10.96.0.1"), 444, Protocol::Tcp));
    // A port the Service does not have is nobody's.
    lab.flow(tcp_client(1, "10.244.1.2", "10.96.0.1", 444, t(5)));
    assert_eq!((lab.edges().len(), lab.unresolved("service_port_unknown")), (1, 1));
}

#[test]
fn a_service_that_becomes_known_after_its_flow_takes_the_edge_over() {
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), api(0, "node-a", "10.244.1.3")]);
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "api", 0);
    lab.flow(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(5)));
    lab.flow(tcp_server(2, "10.244.1.3", "10.244.1.2", 8080, t(5)));
    lab.at(6).apply(API_SERVICE);
    assert_eq!(lab.edges(), ["web -> api TCP/8080 via shop/api:80"]);
}

#[test]
fn an_external_server_carries_the_names_that_its_client_had_asked_for() {
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2")]);
    lab.pod_cgroup(1, "web", 0);
    lab.observer.observe(
        Observation::DnsAnswer {
            cgroup: CgroupId(1),
            name: "cdn.example.org".into(),
            addresses: vec![ip("203.0.113.7"), ip("2001:db8::7")],
            at: t(4),
        },
        t(4),
    );
    lab.flow(tcp_client(1, "10.244.1.2", "203.0.113.7", 443, t(5)));
    let snapshot = lab.snapshot();
    assert!(snapshot.body.edges[0].server.names.contains("cdn.example.org"));
    assert_eq!(*snapshot.body.edges[0].server.peer, Peer::External { address: "203.0.113.7".into() });
}
