//! Flows that wait: who floods loses, and nobody else; and what nobody can name yet is no external
//! peer.

mod common;

use common::{Lab, delta, pod, t, tcp_client};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Protocol,
    inventory::{Change, Kind, read},
    observe::{CgroupId, FlowCounts, Role},
};

fn web_and_scanner() -> Lab {
    let pods = [
        pod("shop", "web", 0, "node-a", "10.244.1.2", &[]),
        pod("shop", "api", 0, "node-a", "10.244.1.3", &[]),
        pod("shop", "scanner", 0, "node-a", "10.244.1.4", &[]),
    ];
    let mut lab = Lab::new("node-a", &pods);
    for (id, name) in [(1, "web"), (2, "api"), (3, "scanner")] {
        lab.pod_cgroup(id, name, 0);
    }
    lab.at(10);
    lab
}

/// A flow to one of 65,000 addresses in the cluster's ranges that nobody has.
fn to_nobody(number: u16, counts: FlowCounts) -> guardrail_graph::observe::FlowDelta {
    let [high, low] = number.to_be_bytes();
    // Only the second node's range has room for none of the pods.
    let remote = format!("10.244.2.{}", low.max(2));
    let mut flow = tcp_client(3, "10.244.1.4", &remote, 1000 + u16::from(high), t(10));
    flow.counts = counts;
    flow
}

fn reasons(lab: &mut Lab) -> Vec<String> {
    let entries = lab.snapshot().body.coverage.workloads;
    let mut all: Vec<_> = entries
        .into_iter()
        .flat_map(|w| w.reasons.into_iter().map(move |r| format!("{} {r}", w.peer)))
        .filter(|r| !r.contains("node_unobserved"))
        .collect();
    all.sort();
    all
}

#[test]
fn a_pod_that_floods_the_room_for_waiting_flows_makes_itself_incomplete_and_pushes_nobody_out() {
    let mut lab = web_and_scanner();
    // This one waits for its pod, which the API server tells of in a moment.
    lab.pod_cgroup(4, "young", 0);
    lab.flow(tcp_client(4, "10.244.1.5", "10.244.1.3", 80, t(10)));
    let opened = FlowCounts { opened: 1, ..FlowCounts::default() };
    for number in 0..40_000 {
        lab.flow(to_nobody(number, opened));
    }
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.3", 80, t(10)));
    let waiting = lab.observer.stats().pending;
    assert!(waiting < 4_000, "{waiting} flows of one pod wait");
    lab.at(12).apply(&pod("shop", "young", 0, "node-a", "10.244.1.5", &[]));
    lab.at(40);
    assert_eq!(lab.edges(), ["web -> api TCP/80", "young -> api TCP/80"]);
    assert_eq!(lab.unresolved("pod_range_no_owner"), 40_000, "each is counted");
    assert_eq!(
        reasons(&mut lab),
        ["shop/Deployment/scanner pending_overflow", "shop/Deployment/scanner pod_range_no_owner"]
    );
}

#[test]
fn a_flood_of_attempts_that_reach_nobody_is_counted_and_leaves_everybody_complete() {
    let mut lab = web_and_scanner();
    let unanswered = FlowCounts { unanswered: 1, ..FlowCounts::default() };
    for number in 0..40_000 {
        lab.flow(to_nobody(number, unanswered));
    }
    lab.at(40);
    assert_eq!(lab.unresolved("pod_range_no_owner"), 40_000);
    assert_eq!(reasons(&mut lab), [] as [&str; 0]);
}

#[test]
fn until_every_list_that_is_awaited_came_no_address_is_external_and_no_nodes_port_the_nodes_own() {
    let service = "---\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {type: NodePort, clusterIP: 10.96.0.7, selector: {app: api}, \
         ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}\n";
    let cluster = format!(
        "{}{service}{}{}",
        common::CLUSTER,
        pod("shop", "web", 0, "node-a", "10.244.1.2", &[]),
        pod("shop", "api", 0, "node-b", "10.244.2.9", &["http:8080"])
    );
    let list = |kind: &Kind| Change::Replace {
        kind: kind.clone(),
        objects: read::objects(&cluster, "test")
            .unwrap()
            .objects
            .into_iter()
            .filter(|o| o.key().kind == *kind)
            .collect(),
    };
    let kinds = [Kind::Node, Kind::Service, Kind::Pod];
    let flows: Vec<_> = [("10.244.2.9", 8080), ("10.96.0.7", 80), ("192.0.2.12", 30080), ("198.51.100.1", 443)]
        .into_iter()
        .map(|(remote, port)| tcp_client(1, "10.244.1.2", remote, port, t(5)))
        .collect();
    let blind = || {
        let awaited = kinds.to_vec();
        let observer = Observer::new(ObserverConfig { awaited, ..ObserverConfig::new("node-a", "instance", t(0)) });
        let mut lab = Lab { observer, now: t(1) };
        lab.pod_cgroup(1, "web", 0);
        lab
    };
    // Whatever comes first: the agent's own pods, the nodes, or Services.
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut lab = blind();
        flows.iter().for_each(|flow| lab.flow(flow.clone()));
        for (second, kind) in (6..).zip(order) {
            let early = lab.at(second).edges();
            assert!(early.iter().all(|edge| edge.starts_with("web -> api TCP/8080")), "{order:?}: {early:?}");
            lab.observer.apply(list(&kinds[kind]), lab.now);
        }
        assert_eq!(
            lab.at(9).edges(),
            ["web -> api TCP/8080 via shop/api:80", "web -> external/198.51.100.1 TCP/443"],
            "{order:?}"
        );
        assert_eq!(lab.unresolved("cluster_unknown"), 0, "{order:?}");
    }
    // A list that does not come in time.
    let mut lab = blind();
    lab.observer.apply(list(&Kind::Pod), t(2));
    lab.observer.apply(list(&Kind::Node), t(2));
    flows.iter().for_each(|flow| lab.flow(flow.clone()));
    assert_eq!(lab.at(40).edges(), ["web -> api TCP/8080"]);
    assert_eq!(lab.unresolved("cluster_unknown"), 3);
    // One that is refused is no longer awaited.
    lab.observer.list_unavailable(&Kind::Service);
    flows.iter().for_each(|flow| lab.flow(flow.clone()));
    assert_eq!(lab.at(80).edges().len(), 4);
}

#[test]
fn before_anything_of_the_cluster_is_known_an_address_is_unresolved_and_never_external() {
    let mut observer = Observer::new(ObserverConfig::new("node-a", "instance", t(0)));
    let at = |seconds| t(seconds);
    observer.observe(
        Observation::CgroupCreated { id: CgroupId(9), path: "/system.slice/kubelet.service".into(), at: at(1) },
        at(1),
    );
    let probe =
        |seconds| Observation::Flow(delta(9, Role::Client, "192.0.2.11", "10.244.1.9", Protocol::Tcp, 80, at(seconds)));
    observer.observe(probe(2), at(2));
    observer.tick(at(20));
    let snapshot = observer.snapshot(at(20));
    assert_eq!(common::edges(&snapshot), [] as [&str; 0]);
    let unresolved: Vec<_> = snapshot.body.coverage.unresolved.iter().map(|u| (u.reason.as_str(), u.count)).collect();
    assert_eq!(unresolved, [("cluster_unknown", 1)]);
    // What waits when the cluster becomes known is named by it.
    observer.observe(probe(21), at(21));
    common::apply_text(
        &mut observer,
        &format!("{}{}", common::CLUSTER, pod("shop", "api", 0, "node-a", "10.244.1.9", &[])),
        at(22),
    );
    observer.observe(
        Observation::Flow(delta(9, Role::Client, "192.0.2.11", "198.51.100.1", Protocol::Tcp, 443, at(23))),
        at(23),
    );
    observer.tick(at(24));
    assert_eq!(
        common::edges(&observer.snapshot(at(24))),
        ["node/node-a -> api TCP/80", "node/node-a -> external/198.51.100.1 TCP/443"]
    );
}
