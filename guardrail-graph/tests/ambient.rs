//! An ambient mesh: the node's proxy has sockets in the pods' network namespaces. The network sees
//! its tunnels and what callers outside the mesh dialled; what it hands on to applications stays
//! inside.

mod common;

use common::{Lab, delta, edges, failed, ip, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Protocol, Snapshot,
    observe::{CgroupId, FlowCounts, FlowDelta, NetnsId, Role},
    snapshot::{Side, merge},
};

const WEB: &str = "10.244.1.2";
const API: &str = "10.244.1.3";
const SERVICE: &str = "---\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.96.0.7, selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}\n";
/// Cgroups and network namespaces of the pods, and of the node's proxy.
const OF_WEB: u64 = 1;
const OF_API: u64 = 2;
const PROXY: u64 = 3;

fn mesh(web_node: &str, web: &str) -> Lab {
    let pods = [
        pod("shop", "web", 0, web_node, web, &[]),
        pod("shop", "api", 0, "node-a", API, &["http:8080"]),
        pod("istio-system", "ztunnel", 0, "node-a", "10.244.1.9", &[]),
        SERVICE.to_owned(),
    ];
    let mut lab = Lab::new("node-a", &pods);
    lab.pod_cgroup(OF_WEB, "web", 0);
    lab.pod_cgroup(OF_API, "api", 0);
    lab.pod_cgroup(PROXY, "ztunnel", 0);
    for netns in [OF_WEB, OF_API] {
        for port in [15001, 15006, 15008] {
            let netns = NetnsId(u32::try_from(netns).unwrap());
            let at = lab.now;
            let listening =
                Observation::Listening { cgroup: CgroupId(PROXY), netns, address: ip("::"), port, listening: true, at };
            lab.observer.observe(listening, at);
        }
    }
    lab
}

fn times(flow: FlowDelta, opened: u64) -> FlowDelta {
    let counts = FlowCounts { opened, ..flow.counts };
    failed(flow, counts)
}

/// A socket of the node's proxy in a pod's namespace.
fn proxys(flow: FlowDelta, netns: u64) -> FlowDelta {
    FlowDelta { cgroup: CgroupId(PROXY), netns: Some(NetnsId(u32::try_from(netns).unwrap())), ..flow }
}

fn told(flow: FlowDelta, proxy: u16) -> FlowDelta {
    FlowDelta { local_port: Some(proxy), ..flow }
}

/// What the kernel shows of `n` calls of `web` that go through the tunnel, in this order.
fn tunnelled(n: u64, web: &str) -> Vec<FlowDelta> {
    vec![
        times(tcp_client(OF_WEB, web, "10.96.0.7", 80, t(5)), n),
        proxys(told(times(tcp_client(PROXY, web, "10.96.0.7", 80, t(5)), n), 15001), OF_WEB),
        proxys(tcp_client(PROXY, web, API, 15008, t(5)), OF_WEB),
        proxys(tcp_server(PROXY, API, web, 15008, t(5)), OF_API),
        proxys(times(tcp_client(PROXY, web, API, 8080, t(6)), n), OF_API),
        times(tcp_server(OF_API, API, web, 8080, t(6)), n),
    ]
}

const TUNNEL: &str = "web -> api TCP/15008 via shop/api:80 [proxied,tunnel]";
const INSIDE: &str = "web -> api TCP/8080 [inside] unsupported";

#[test]
fn between_pods_of_the_mesh_there_is_the_tunnel_and_what_the_applications_see_is_inside_it() {
    for turn in 0..6 {
        let mut lab = mesh("node-a", WEB);
        let mut all = tunnelled(4, WEB);
        all.rotate_left(turn);
        all.into_iter().for_each(|flow| lab.flow(flow));
        lab.at(15).at(30);
        let snapshot = lab.snapshot();
        assert_eq!(edges(&snapshot), [INSIDE, TUNNEL], "{turn}");
        assert_eq!(snapshot.body.edges[0].counts.opened, 4);
        assert!(snapshot.body.coverage.unresolved.is_empty(), "{:?}", snapshot.body.coverage.unresolved);
        assert!(lab.observer.waiting().is_empty());
    }
}

#[test]
fn a_caller_on_another_node_is_known_by_the_address_that_the_proxy_took_over() {
    let mut lab = mesh("node-b", "10.244.2.2");
    tunnelled(2, "10.244.2.2").into_iter().skip(3).for_each(|flow| lab.flow(flow));
    lab.at(30);
    let snapshot = lab.snapshot();
    assert_eq!(edges(&snapshot), [INSIDE, "web -> api TCP/15008 [proxied,tunnel]"]);
    assert_eq!(lab.unresolved("other_node"), 0);
}

#[test]
fn callers_without_the_mesh_are_edges_at_the_port_that_they_dialled_and_open_a_tunnelled_one_too() {
    for caller in ["10.244.2.7", "203.0.113.9"] {
        for tunnel_first in [true, false] {
            let mut lab = mesh("node-a", WEB);
            let tunnel = tunnelled(4, WEB);
            let plain = [
                proxys(times(tcp_server(PROXY, API, caller, 15006, t(5)), 3), OF_API),
                proxys(told(times(tcp_server(PROXY, API, caller, 8080, t(5)), 3), 15006), OF_API),
                proxys(times(tcp_client(PROXY, caller, API, 8080, t(5)), 3), OF_API),
                times(tcp_server(OF_API, API, caller, 8080, t(5)), 3),
            ];
            lab.apply(&pod("shop", "web", 1, "node-b", "10.244.2.7", &[]));
            let (first, second) = if tunnel_first { (&tunnel[..], &plain[..]) } else { (&plain[..], &tunnel[..]) };
            first.iter().chain(second).cloned().for_each(|flow| lab.flow(flow));
            lab.at(15).at(30);
            let snapshot = lab.snapshot();
            let (expected, plain) = if caller == "203.0.113.9" {
                (vec![INSIDE, TUNNEL, "external/203.0.113.9 -> api TCP/8080 [proxied]"], 2)
            } else {
                // A pod of the same workload outside the mesh: its calls need the rule.
                (vec!["web -> api TCP/8080 via shop/api:80 [proxied]", TUNNEL], 0)
            };
            assert_eq!(edges(&snapshot), expected, "{tunnel_first}");
            assert_eq!(snapshot.body.edges[plain].counts.opened, 3, "each once");
        }
    }
}

#[test]
fn probes_come_from_the_address_that_the_mesh_gives_them_and_reach_the_application_itself() {
    let mut lab = mesh("node-a", WEB);
    tunnelled(1, WEB).into_iter().for_each(|flow| lab.flow(flow));
    lab.flow(times(tcp_server(OF_API, API, "169.254.7.127", 8080, t(7)), 2));
    lab.at(15).at(30);
    let probes = "external/169.254.7.127 -> api TCP/8080 [link-local]";
    assert_eq!(lab.edges(), [INSIDE, TUNNEL, probes]);
}

#[test]
fn what_is_inside_gives_way_to_what_another_node_saw_whichever_snapshot_comes_first() {
    let mut server = mesh("node-b", "10.244.2.2");
    tunnelled(2, "10.244.2.2").into_iter().skip(3).for_each(|flow| server.flow(flow));
    server.at(30);
    // Another pod of the same workload called without the mesh.
    let pods = [pod("shop", "web", 0, "node-b", "10.244.2.2", &[]), pod("shop", "api", 0, "node-a", API, &[])];
    let mut client = Lab::new("node-b", &pods);
    client.pod_cgroup(OF_WEB, "web", 0);
    client.flow(tcp_client(OF_WEB, "10.244.2.2", API, 8080, t(9)));
    let (server, client) = (server.snapshot(), client.snapshot());
    let merged = merge(vec![server.clone(), client.clone()]);
    assert_eq!(edges(&merged), ["web -> api TCP/8080", "web -> api TCP/15008 [proxied,tunnel]"]);
    assert_eq!(merge(vec![client.clone(), server.clone()]).to_json(), merged.to_json());
    assert_eq!(merge(vec![merged.clone(), server, client]).to_json(), merged.to_json());
    let sides: Vec<Side> = merged.body.edges[0].sources.iter().map(|s| s.side).collect();
    assert_eq!(sides, [Side::Client]);
}

#[test]
fn a_state_that_is_read_again_keeps_what_is_inside_apart() {
    let mut lab = mesh("node-a", WEB);
    tunnelled(4, WEB).into_iter().for_each(|flow| lab.flow(flow));
    lab.at(30);
    let text = lab.snapshot().to_json();
    let again = Snapshot::from_json(&text, "state").unwrap();
    assert_eq!(merge(vec![again.clone(), again]).to_json(), merge(vec![lab.snapshot()]).to_json());
    lab.flow(tcp_server(OF_API, API, WEB, 8080, t(31)));
    lab.at(60);
    let left = lab.edges();
    assert_eq!(
        left,
        ["web -> api TCP/8080 via shop/api:80", TUNNEL],
        "one that nobody handed on came by the pod's link"
    );
}

#[test]
fn without_the_mesh_nothing_waits() {
    let pods = [pod("shop", "web", 0, "node-a", WEB, &[]), pod("shop", "api", 0, "node-a", API, &[])];
    let mut lab = Lab::new("node-a", &pods);
    lab.pod_cgroup(OF_API, "api", 0);
    lab.flow(delta(OF_API, Role::Server, API, WEB, Protocol::Tcp, 8080, t(5)));
    assert!(lab.observer.waiting().is_empty());
    assert_eq!(lab.edges(), ["web -> api TCP/8080"]);
}
