//! Masquerading: the server sees a node's address where a pod called (docs/data-planes.md).

mod common;

use common::{Lab, edges, failed, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Snapshot,
    observe::{FlowCounts, FlowDelta},
    snapshot::merge,
};

const WEB: &str = "10.244.1.2";
const API: &str = "10.244.2.3";
const VIP: &str = "10.96.0.7";
const NODE_A: &str = "192.0.2.11";
const KUBELET: u64 = 5;

fn service(name: &str, vip: &str, app: &str) -> String {
    format!(
        "---\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: {vip}, selector: {{app: {app}}}, ports: [{{port: 80, targetPort: 8080}}]}}\n"
    )
}

/// `web` on one node, `api` on the other.
fn nodes() -> [Lab; 2] {
    let inventory = [
        pod("shop", "web", 0, "node-a", WEB, &[]),
        pod("shop", "api", 0, "node-b", API, &["http:8080"]),
        service("api", VIP, "api"),
    ];
    let [mut a, mut b] = ["node-a", "node-b"].map(|node| Lab::new(node, &inventory));
    a.pod_cgroup(1, "web", 0);
    b.pod_cgroup(2, "api", 0);
    a.cgroup(KUBELET, "/system.slice/agent.service");
    [a, b]
}

fn times(flow: FlowDelta, opened: u64) -> FlowDelta {
    let counts = FlowCounts { opened, ..flow.counts };
    failed(flow, counts)
}

fn together([mut a, mut b]: [Lab; 2]) -> Snapshot {
    let (a, b) = (a.snapshot(), b.snapshot());
    let merged = merge(vec![a.clone(), b.clone()]);
    assert_eq!(merge(vec![b, a]).to_json(), merged.to_json());
    merged
}

fn reasons(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.body.coverage.unresolved.iter().map(|entry| entry.reason.as_str()).collect()
}

const MASQUERADED: &str = "web -> api TCP/8080 via shop/api:80 [inferred,masqueraded]";
const NODE: &str = "node/node-a -> api TCP/8080";

#[test]
fn a_call_for_which_a_nodes_address_arrived_is_told_as_masqueraded() {
    let [mut a, mut b] = nodes();
    a.flow(times(tcp_client(1, WEB, VIP, 80, t(5)), 3));
    b.flow(times(tcp_server(2, API, NODE_A, 8080, t(5)), 3));
    let snapshot = together([a, b]);
    assert_eq!(edges(&snapshot), [MASQUERADED, NODE]);
    assert_eq!(reasons(&snapshot), [""; 0]);
}

#[test]
fn what_the_node_itself_opened_stands_in_for_nobody() {
    for through_service in [false, true] {
        for (arrived, expected) in [(3, None), (4, Some(MASQUERADED))] {
            let [mut a, mut b] = nodes();
            a.flow(times(tcp_client(1, WEB, VIP, 80, t(5)), 1));
            let (to, port) = if through_service { (VIP, 80) } else { (API, 8080) };
            a.flow(times(tcp_client(KUBELET, NODE_A, to, port, t(5)), 3));
            b.flow(times(tcp_server(2, API, NODE_A, 8080, t(5)), arrived));
            let snapshot = together([a, b]);
            let of_web: Vec<String> = edges(&snapshot).into_iter().filter(|e| e.starts_with("web")).collect();
            assert_eq!(of_web, Vec::from_iter(expected.map(str::to_owned)), "{through_service}, {arrived}");
            // Never silence: whoever answered is not known.
            let unknown = if expected.is_some() { vec![] } else { vec!["service_backend_unknown"] };
            assert_eq!(reasons(&snapshot), unknown);
        }
    }
}

#[test]
fn what_arrived_at_another_time_explains_nothing() {
    let [mut a, mut b] = nodes();
    b.flow(tcp_server(2, API, NODE_A, 8080, t(5)));
    a.flow(tcp_client(1, WEB, VIP, 80, t(3600)));
    a.at(3601);
    let snapshot = together([a, b]);
    assert_eq!(edges(&snapshot), [NODE]);
    assert_eq!(reasons(&snapshot), ["service_backend_unknown"]);
}

#[test]
fn of_two_workloads_behind_a_service_only_the_one_at_which_a_node_arrived_is_named() {
    let inventory = [
        pod("shop", "web", 0, "node-a", WEB, &[]),
        pod("shop", "api", 0, "node-b", API, &["http:8080"]),
        pod("shop", "old", 0, "node-b", "10.244.2.4", &["http:8080"]).replace("app: old", "app: api"),
        service("api", VIP, "api"),
    ];
    let [mut a, mut b] = ["node-a", "node-b"].map(|node| Lab::new(node, &inventory));
    a.pod_cgroup(1, "web", 0);
    b.pod_cgroup(2, "api", 0);
    a.flow(times(tcp_client(1, WEB, VIP, 80, t(5)), 3));
    b.flow(times(tcp_server(2, API, NODE_A, 8080, t(5)), 3));
    assert_eq!(edges(&together([a, b])), [MASQUERADED, NODE]);
}

#[test]
fn a_pod_without_siblings_that_calls_its_own_service_reached_itself_and_with_siblings_perhaps_them() {
    const SIBLING: &str = "10.244.1.9";
    for (siblings, expected) in [
        (false, &["web -> web TCP/8080 via shop/own:80 [via-service]", "node/node-a -> web TCP/8080"][..]),
        (true, &["web -> web TCP/8080 via shop/own:80 [inferred,masqueraded]", "node/node-a -> web TCP/8080"]),
    ] {
        let mut inventory =
            vec![pod("shop", "web", 0, "node-a", WEB, &["http:8080"]), service("own", "10.96.0.8", "web")];
        if siblings {
            inventory.push(pod("shop", "web", 1, "node-a", SIBLING, &["http:8080"]));
        }
        let [mut a, b] = ["node-a", "node-b"].map(|node| Lab::new(node, &inventory));
        a.pod_cgroup(1, "web", 0);
        a.flow(times(tcp_client(1, WEB, "10.96.0.8", 80, t(5)), 3));
        // The way back leads through the translation: the caller has its node's address.
        a.flow(times(tcp_server(1, WEB, NODE_A, 8080, t(5)), 3));
        let snapshot = together([a, b]);
        assert_eq!(edges(&snapshot), expected);
        assert_eq!(reasons(&snapshot), [""; 0]);
    }
}
