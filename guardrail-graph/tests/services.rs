//! Which endpoints are known, as Services come, change and go.

mod common;

use common::{Lab, delta, edges, ip, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Protocol,
    inventory::{Change, Kind, ObjectKey},
    observe::{LossReason, Role},
    snapshot::merge,
};

/// A Service of the namespace `shop` with the endpoints of its one slice.
fn service(name: &str, endpoints: &[&str]) -> String {
    format!(
        "---\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n\
         ---\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         ports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: {endpoints:?}}}]\n"
    )
}

fn knows(lab: &Lab, address: &str) -> bool {
    lab.observer.is_server_address(ip(address), 8080, Protocol::Tcp)
}

#[test]
fn an_endpoint_is_known_as_long_as_any_service_has_it() {
    let (one, two) = ("198.51.100.1", "198.51.100.2");
    let mut lab = Lab::new("node-a", &[service("a", &[one, two]), service("b", &[two])]);
    lab.at(1);
    assert!(knows(&lab, one) && knows(&lab, two));
    lab.apply(&service("a", &[]));
    lab.at(2);
    assert!(!knows(&lab, one) && knows(&lab, two));
    lab.apply(&service("a", &[two]));
    lab.apply(&service("b", &[one]));
    lab.at(3);
    assert!(knows(&lab, one) && knows(&lab, two));
    let key = ObjectKey { kind: Kind::Service, namespace: "shop".into(), name: "a".into() };
    lab.observer.apply(Change::Delete(key), lab.now);
    lab.at(4);
    assert!(knows(&lab, one) && !knows(&lab, two));
    lab.at(4_000);
    lab.apply(&service("a", &[one]));
    lab.at(4_001);
    lab.apply(&service("b", &[]));
    lab.at(4_002);
    assert!(knows(&lab, one), "after the Service that was gone was forgotten");
}

#[test]
fn endpoints_follow_their_pods() {
    let service = "---\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n";
    let web = |address| pod("shop", "web", 0, "node-b", address, &[]);
    let mut lab = Lab::new("node-a", &[web("10.244.2.2"), service.into()]);
    lab.at(1);
    assert!(knows(&lab, "10.244.2.2"));
    lab.apply(
        &web("10.244.2.2").replace("phase: Running", "phase: Running, conditions: [{type: Ready, status: \"True\"}]"),
    );
    lab.at(2);
    assert!(knows(&lab, "10.244.2.2"), "it is ready, and that is all");
    lab.apply(&web("10.244.2.3"));
    lab.at(3);
    assert!(!knows(&lab, "10.244.2.2") && knows(&lab, "10.244.2.3"));
    lab.apply(&web("10.244.2.3").replace("app: web", "app: old"));
    lab.at(4);
    assert!(!knows(&lab, "10.244.2.3"));
}

#[test]
fn an_address_outside_that_is_reached_directly_and_through_a_service_keeps_both() {
    let mut lab = Lab::new(
        "node-a",
        &[pod("shop", "web", 0, "node-a", "10.244.1.2", &[]), service("pay", &["198.51.100.1", "198.51.100.2"])],
    );
    lab.apply(&service("pay", &["198.51.100.1", "198.51.100.2"]).replace("spec: {", "spec: {clusterIP: 10.96.0.9, "));
    lab.pod_cgroup(1, "web", 0);
    lab.at(5);
    let direct = tcp_client(1, "10.244.1.2", "198.51.100.1", 8080, t(5));
    lab.flow(direct.clone());
    assert_eq!(lab.edges(), ["web -> external/198.51.100.1 TCP/8080"]);
    for _ in 0..3 {
        lab.flow(tcp_client(1, "10.244.1.2", "10.96.0.9", 80, t(6)));
    }
    let snapshot = lab.snapshot();
    let both = [
        "web -> external/198.51.100.1 TCP/8080 via shop/pay:80",
        "web -> external/198.51.100.2 TCP/8080 via shop/pay:80 [via-service]",
    ];
    let merged = merge(vec![snapshot.clone()]);
    for snapshot in [&snapshot, &merged, &merge(vec![merged.clone(), snapshot.clone()])] {
        assert_eq!(edges(snapshot), both);
        let edge = &snapshot.body.edges[0];
        let (opened, counts) = (edge.counts.opened, &edge.sources);
        assert_eq!((opened, counts.len(), counts[0].counts.opened), (4, 1, 1), "three of the four through the Service");
    }
    // A state is continued, and the flow through the Service is known no longer: so is what
    // followed from it.
    let mut without = snapshot;
    without.body.services.clear();
    assert_eq!(edges(&merge(vec![without])), ["web -> external/198.51.100.1 TCP/8080"]);
}

#[test]
fn a_pod_on_an_unobserved_node_that_is_reached_directly_and_through_a_service_keeps_both() {
    let service = "---\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.96.0.7, selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}\n";
    let pods = |node: &str| {
        Lab::new(
            node,
            &[
                pod("shop", "web", 0, "node-a", "10.244.1.2", &[]),
                pod("shop", "api", 0, "node-b", "10.244.2.2", &["http:8080"]),
                service.into(),
            ],
        )
    };
    let mut lab = pods("node-a");
    lab.pod_cgroup(1, "web", 0);
    lab.at(5);
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.2.2", 8080, t(5)));
    lab.flow(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(6)));
    let here = lab.snapshot();
    assert_eq!(edges(&here), ["web -> api TCP/8080 via shop/api:80"]);
    assert_eq!(here.body.edges[0].counts.opened, 2);
    // The server's own node saw both: what was inferred is certain now, and counted once.
    let mut there = pods("node-b");
    there.pod_cgroup(2, "api", 0);
    there.at(5);
    there.flow(tcp_server(2, "10.244.2.2", "10.244.1.2", 8080, t(5)));
    there.flow(tcp_server(2, "10.244.2.2", "10.244.1.2", 8080, t(6)));
    let merged = merge(vec![here, there.snapshot()]);
    assert_eq!(edges(&merged), ["web -> api TCP/8080 via shop/api:80"]);
    assert_eq!(merged.body.edges[0].counts.opened, 2);
}

#[test]
fn endpoints_that_found_no_room_are_counted_and_their_clients_are_incomplete() {
    let mut lab = Lab::with("node-a", &[pod("shop", "web", 0, "node-a", "10.244.1.2", &[])], |config| {
        config.max_ended_endpoints = 5;
    });
    lab.pod_cgroup(1, "web", 0);
    let at_port = |endpoint: u32| {
        let text = service("a", &[&format!("198.51.100.{endpoint}")]);
        text.replace("spec: {ports", "spec: {clusterIP: 10.96.0.9, ports")
    };
    for endpoint in 1..=20 {
        let at = i64::from(endpoint) * 100;
        lab.apply(&at_port(endpoint));
        lab.at(at).flow(tcp_client(1, "10.244.1.2", "10.96.0.9", 80, t(at + 50)));
    }
    lab.at(2_100);
    assert_eq!(lab.lost(LossReason::GraphFull), 14, "nineteen ended, and five have room");
    let snapshot = lab.snapshot();
    let kept: usize = snapshot.body.services.iter().flat_map(|s| &s.ports).map(|p| p.backends.len()).sum();
    assert_eq!(kept, 6);
    let web = snapshot.body.coverage.workloads.iter().find(|w| w.peer.to_string() == "shop/Deployment/web").unwrap();
    assert!(web.reasons.contains("graph_full"), "{web:?}");
    // What nobody used goes without a loss.
    let mut idle = Lab::with("node-a", &[], |config| config.max_ended_endpoints = 5);
    for endpoint in 1..=20 {
        idle.apply(&at_port(endpoint));
        idle.at(i64::from(endpoint) * 100);
    }
    idle.at(2_100);
    assert_eq!(idle.lost(LossReason::GraphFull), 0);
}

#[test]
fn what_a_node_answers_at_a_services_own_address_is_the_nodes_and_no_pods() {
    let dns = "---\nkind: Service\nmetadata: {name: dns, namespace: shop}\nspec: {clusterIP: 10.96.0.10, selector: {app: far}, ports: [{port: 53, protocol: UDP}]}\n";
    let far = pod("shop", "far", 0, "node-b", "10.244.2.3", &["dns:53/UDP"]);
    let mut lab = Lab::new("node-a", &[pod("shop", "web", 0, "node-a", "10.244.1.2", &[]), far, dns.to_owned()]);
    lab.pod_cgroup(1, "web", 0);
    lab.cgroup(5, "/system.slice/node-cache.service");
    let udp = |cgroup, role, local, remote| delta(cgroup, role, local, remote, Protocol::Udp, 53, t(5));
    // The client's records come first.
    for address in ["10.96.0.10", "169.254.20.10"] {
        lab.flow(udp(1, Role::Client, "10.244.1.2", address));
    }
    assert_eq!(
        lab.edges(),
        ["web -> far UDP/53 via shop/dns:53 [inferred]", "web -> external/169.254.20.10 UDP/53 [link-local]"]
    );
    for address in ["10.96.0.10", "169.254.20.10"] {
        lab.flow(udp(5, Role::Server, address, "10.244.1.2"));
    }
    lab.at(6);
    assert_eq!(lab.edges(), ["web -> node/node-a UDP/53 via shop/dns:53 [link-local]"]);
}

#[test]
fn a_service_that_is_gone_takes_no_port_of_a_node_with_it_whose_address_it_had() {
    for address in ["192.0.2.11", "192.0.2.12"] {
        for gone in [
            format!("spec: {{clusterIP: 10.96.0.8, externalIPs: [{address}], ports: [{{port: 8443}}]}}"),
            format!(
                "spec: {{type: LoadBalancer, clusterIP: 10.96.0.8, ports: [{{port: 8443}}]}}\n\
                 status: {{loadBalancer: {{ingress: [{{ip: {address}}}]}}}}"
            ),
        ] {
            let gone = format!("---\nkind: Service\nmetadata: {{name: gone, namespace: shop}}\n{gone}\n");
            let mut lab = Lab::new("node-a", &[pod("shop", "cli", 0, "node-a", "10.244.1.2", &[]), gone]);
            lab.pod_cgroup(1, "cli", 0);
            let key = ObjectKey { kind: Kind::Service, namespace: "shop".into(), name: "gone".into() };
            let now = lab.now;
            lab.observer.apply(Change::Delete(key), now);
            lab.flow(tcp_client(1, "10.244.1.2", address, 22, t(5)));
            lab.flow(tcp_client(1, "10.244.1.2", address, 8443, t(5)));
            let edges = lab.edges();
            assert!(edges.iter().any(|e| e.starts_with("cli -> node/") && e.contains("TCP/22")), "{edges:?}");
            assert_eq!(lab.unresolved("service_port_unknown"), 0);
            assert_eq!(lab.observer.stats().service_flows, 1, "its own port stays its own for its time");
        }
    }
}
