//! What proxies in pods are told: the port that was dialled takes the place of the proxy's, and
//! what an application calls through its proxy is the proxy's to answer for.

mod common;

use common::{Lab, delta, edges, failed, ip, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Protocol,
    observe::{CgroupId, FlowCounts, FlowDelta, NetnsId, Role},
};

const WEB: &str = "10.244.1.2";
const API: &str = "10.244.1.3";
const SERVICE: &str = "---\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.96.0.7, selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}\n";

fn mesh() -> Lab {
    let pods = [
        pod("shop", "web", 0, "node-a", WEB, &[]),
        pod("shop", "api", 0, "node-a", API, &["http:8080"]),
        SERVICE.to_owned(),
    ];
    let mut lab = Lab::new("node-a", &pods);
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "api", 0);
    lab
}

fn times(flow: FlowDelta, opened: u64) -> FlowDelta {
    let counts = FlowCounts { opened, ..flow.counts };
    failed(flow, counts)
}

/// The proxy at this port was told what a connection dialled.
fn told(flow: FlowDelta, proxy: u16) -> FlowDelta {
    FlowDelta { local_port: Some(proxy), ..flow }
}

fn proxy_listens(lab: &mut Lab, cgroup: u64, port: u16) {
    let (netns, at) = (NetnsId(u32::try_from(cgroup).unwrap()), lab.now);
    let listening =
        Observation::Listening { cgroup: CgroupId(cgroup), netns, address: ip("::"), port, listening: true, at };
    lab.observer.observe(listening, lab.now);
}

#[test]
fn what_arrives_at_a_proxys_port_waits_for_the_port_that_was_dialled_whichever_comes_first() {
    for answer_first in [false, true] {
        let mut lab = mesh();
        lab.flow(times(tcp_client(1, WEB, API, 8080, t(5)), 3));
        let arrived = times(tcp_server(2, API, WEB, 15006, t(5)), 3);
        let answer = told(times(tcp_server(2, API, WEB, 8080, t(5)), 3), 15006);
        let order = if answer_first { [answer, arrived] } else { [arrived, answer] };
        for flow in order {
            lab.flow(flow);
            assert!(lab.edges().iter().all(|edge| edge == "web -> api TCP/8080"), "{:?}", lab.edges());
        }
        lab.at(30);
        let snapshot = lab.snapshot();
        assert_eq!(edges(&snapshot), ["web -> api TCP/8080"]);
        let edge = &snapshot.body.edges[0];
        assert_eq!((edge.counts.opened, edge.seen_by.len(), lab.unresolved("redirected")), (3, 2, 0));
    }
}

#[test]
fn the_proxys_port_itself_is_a_tunnel_if_it_was_dialled() {
    let mut lab = mesh();
    lab.flow(tcp_client(1, WEB, API, 15006, t(5)));
    lab.flow(tcp_server(2, API, WEB, 15006, t(5)));
    lab.flow(told(tcp_server(2, API, WEB, 15006, t(5)), 15006));
    lab.at(30);
    assert_eq!(lab.edges(), ["web -> api TCP/15006 [tunnel]"]);
}

#[test]
fn without_an_answer_the_clients_record_decides_and_without_both_it_is_unresolved() {
    // Called directly; through a Service; at the proxy's port; by nobody who is known here.
    for (asked, expected, unresolved) in [
        (Some((API, 8080)), "web -> api TCP/8080", 0),
        (Some(("10.96.0.7", 80)), "web -> api TCP/8080 via shop/api:80", 0),
        (Some((API, 15006)), "web -> api TCP/15006", 0),
        (None, "", 2),
    ] {
        let mut lab = mesh();
        if let Some((address, port)) = asked {
            lab.flow(times(tcp_client(1, WEB, address, port, t(5)), 2));
        }
        let found = FlowCounts { found: 1, opened: 1, ..FlowCounts::default() };
        lab.flow(failed(tcp_server(2, API, WEB, 15006, t(5)), found));
        lab.at(30);
        let snapshot = lab.snapshot();
        let all: Vec<_> = edges(&snapshot).iter().map(|edge| edge.replace(" [found-at-start]", "")).collect();
        assert_eq!(all.join(""), expected);
        assert_eq!(lab.unresolved("redirected"), unresolved, "{asked:?}");
        assert_eq!(
            snapshot.body.coverage.workloads.iter().filter(|w| w.peer.to_string().contains("api")).count() > 0,
            unresolved > 0
        );
    }
}

#[test]
fn what_an_application_calls_through_its_proxy_is_no_edge_and_the_service_it_asked_for_stays_on_the_proxys() {
    let mut lab = mesh();
    proxy_listens(&mut lab, 1, 15001);
    // The application asks for a Service and for an address outside; the proxy goes to the pod, and
    // cannot reach the other.
    lab.flow(times(tcp_client(1, WEB, "10.96.0.7", 80, t(5)), 4));
    lab.flow(times(tcp_client(1, WEB, "203.0.113.9", 443, t(5)), 2));
    lab.flow(told(times(tcp_client(1, WEB, "10.96.0.7", 80, t(5)), 4), 15001));
    lab.flow(told(times(tcp_client(1, WEB, "203.0.113.9", 443, t(5)), 2), 15001));
    assert_eq!(lab.edges(), [] as [&str; 0]);
    lab.flow(times(tcp_client(1, WEB, API, 8080, t(6)), 2));
    lab.at(30);
    assert_eq!(lab.edges(), ["web -> api TCP/8080 via shop/api:80"]);
    let snapshot = lab.snapshot();
    assert_eq!(snapshot.body.edges[0].counts.opened, 2, "the proxy's own");
    assert!(snapshot.body.coverage.unresolved.is_empty(), "{:?}", snapshot.body.coverage.unresolved);
}

#[test]
fn of_equal_calls_by_the_application_and_its_proxy_the_proxys_remain() {
    let mut lab = mesh();
    proxy_listens(&mut lab, 1, 15001);
    lab.flow(times(tcp_client(1, WEB, API, 8080, t(5)), 10));
    lab.flow(told(times(tcp_client(1, WEB, API, 8080, t(5)), 4), 15001));
    assert_eq!(lab.observer.waiting().iter().map(|flow| flow.counts.opened).sum::<u64>(), 6);
    lab.observer.flush(t(6));
    let snapshot = lab.snapshot();
    assert_eq!((edges(&snapshot), snapshot.body.edges[0].counts.opened), (vec!["web -> api TCP/8080".to_owned()], 6));
}

#[test]
fn nothing_waits_where_no_proxy_listens_at_a_node_or_where_redirects_are_not_seen() {
    let mut lab = mesh();
    lab.cgroup(5, "/system.slice/registry.service");
    lab.flow(tcp_client(1, WEB, API, 8080, t(5)));
    lab.flow(delta(5, Role::Server, "192.0.2.11", WEB, Protocol::Tcp, 20000, t(5)));
    assert_eq!(lab.edges(), ["web -> api TCP/8080", "web -> node/node-a TCP/20000"]);
    let pods = [pod("shop", "web", 0, "node-a", WEB, &[]), pod("shop", "api", 0, "node-a", API, &[])];
    let mut lab = Lab::with("node-a", &pods, |config| config.redirects = false);
    lab.pod_cgroup(2, "api", 0);
    lab.flow(tcp_server(2, API, WEB, 15006, t(5)));
    assert_eq!(lab.edges(), ["web -> api TCP/15006"]);
}
