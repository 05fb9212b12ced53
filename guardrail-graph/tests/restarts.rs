//! What a restored state says of the cluster stands until the inventory says otherwise.

mod common;

use common::{CLUSTER, Lab, delta, edges, ip, lists, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Peer, Protocol, Snapshot, Timestamp,
    inventory::Kind,
    observe::{CgroupId, FlowDelta, Role},
    snapshot::{AddressEntry, merge_within, span::Span},
};

const SERVICE: &str = "---\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.96.0.7, selector: {app: api}, ports: [{port: 80, targetPort: http}]}\n";

fn pods() -> [String; 3] {
    [
        pod("shop", "web", 0, "node-a", "10.244.1.2", &[]),
        pod("shop", "api", 0, "node-a", "10.244.1.3", &["http:8080"]),
        pod("shop", "api", 1, "node-b", "10.244.2.3", &["http:8080"]),
    ]
}

/// A node's agent that saw some traffic.
fn before() -> Lab {
    let mut lab = Lab::new("node-a", &[&pods()[..], &[SERVICE.to_owned()]].concat());
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "api", 0);
    lab.cgroup(9, "/system.slice/kubelet.service");
    lab.flow(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(5)));
    lab.flow(tcp_server(2, "10.244.1.3", "10.244.1.2", 8080, t(5)));
    // The node's own: its tunnel's address, a bridge that Kubernetes does not know, and its end of
    // a pod's link.
    for (local, remote) in
        [("10.244.1.0", "10.244.2.3"), ("172.17.0.1", "203.0.113.1"), ("169.254.20.10", "10.244.1.2")]
    {
        lab.flow(tcp_client(9, local, remote, 8080, t(6)));
    }
    lab.at(50);
    lab
}

/// Restores at `seconds`, a minute after the state was written; what the API server says comes
/// later.
fn restart(lab: &mut Lab, seconds: i64, is_seamless: bool) -> Lab {
    let state = Snapshot::from_json(&lab.snapshot().to_json(), "state").unwrap();
    let mut config = ObserverConfig::new("node-a", "next", t(seconds));
    config.awaited = vec![Kind::Node, Kind::Service, Kind::Pod];
    let observer = Observer::restore(config, &state, is_seamless).unwrap();
    let mut lab = Lab { observer, now: t(seconds) };
    lab.at(seconds + 40);
    lab
}

fn hear(lab: &mut Lab, parts: &[String]) {
    for list in lists(&format!("{CLUSTER}{}", parts.concat())) {
        lab.observer.apply(list, lab.now);
    }
    lab.observer.tick(lab.now);
}

/// What names addresses: owner, address, from, to.
fn addresses(snapshot: &Snapshot) -> Vec<AddressEntry> {
    let mut all = snapshot.body.addresses.clone();
    // Whether a record showed it is told anew.
    all.iter_mut().for_each(|entry| entry.proven = false);
    all
}

#[test]
fn a_restart_changes_nothing_of_what_still_stands() {
    let mut lab = before();
    let old = lab.snapshot();
    let of_node = |s: &Snapshot, node: &str| -> Vec<_> {
        let owned = s.body.addresses.iter().filter(|a| a.peer == Peer::Node { name: node.into() });
        owned.filter(|a| a.to.is_none()).map(|a| a.address.to_string()).collect()
    };
    assert_eq!(of_node(&old, "node-b"), ["10.244.2.0", "10.244.2.1", "192.0.2.12"]);
    assert_eq!(of_node(&old, "node-a"), ["10.244.1.0", "10.244.1.1", "169.254.20.10", "172.17.0.1", "192.0.2.11"]);
    for round in 1..=3 {
        let mut next = restart(&mut lab, round * 1_000, false);
        let unheard = next.snapshot();
        assert_eq!(addresses(&unheard), addresses(&old), "before any list, restart {round}");
        let ports = |s: &Snapshot| s.body.services.iter().map(|s| s.ports.clone()).collect::<Vec<_>>();
        assert_eq!(ports(&unheard), ports(&old));
        assert_eq!(unheard.body.coverage.nodes, old.body.coverage.nodes);
        let pods = |s: &Snapshot| s.body.workloads.iter().map(|w| w.pods.clone()).collect::<Vec<_>>();
        assert_eq!(pods(&unheard), pods(&old));
        hear(&mut next, &pods_and_service());
        let heard = next.snapshot();
        assert_eq!(addresses(&heard), addresses(&old), "after the lists, restart {round}");
        assert_eq!(ports(&heard), ports(&old));
        assert_eq!(edges(&heard), edges(&old));
        lab = next;
    }
}

#[test]
fn the_endpoints_of_services_are_known_before_and_after_the_lists() {
    let service = "---\nkind: Service\nmetadata: {name: pay, namespace: shop}\nspec: {clusterIP: 10.96.0.8, ports: [{name: http, port: 80}]}\n\
        ---\nkind: EndpointSlice\nmetadata: {name: pay, namespace: shop, labels: {kubernetes.io/service-name: pay}}\n\
        ports: [{name: http, port: 8443}]\nendpoints: [{addresses: [198.51.100.7]}]\n";
    let mut lab = Lab::new("node-a", &[service.to_owned()]);
    lab.at(50);
    let known = |lab: &Lab| lab.observer.is_server_address(ip("198.51.100.7"), 8443, Protocol::Tcp);
    assert!(known(&lab));
    let mut next = restart(&mut lab, 1_000, false);
    assert!(known(&next), "before any list");
    hear(&mut next, &[service.to_owned()]);
    assert!(known(&next), "after the lists");
    hear(&mut next, &[]);
    assert!(!known(&next), "gone");
}

/// Nodes that a span from then on expects.
fn expected_since(snapshot: &Snapshot, since: i64) -> Vec<String> {
    let span = Span::new(Some(t(since)), None).unwrap();
    merge_within(vec![snapshot.clone()], &span).body.coverage.nodes.expected.into_iter().collect()
}

fn pods_and_service() -> Vec<String> {
    [&pods()[..], &[SERVICE.to_owned()]].concat()
}

#[test]
fn what_is_gone_when_the_lists_come_ended_with_the_state() {
    let mut lab = before();
    let mut next = restart(&mut lab, 1_000, false);
    // api-1 is gone, and so are the Service and node-b.
    let cluster = CLUSTER.split("---").take(2).collect::<Vec<_>>().join("---");
    for list in lists(&format!("{cluster}{}{}", pods()[0], pods()[1])) {
        next.observer.apply(list, next.now);
    }
    next.observer.tick(next.now);
    let heard = next.snapshot();
    let ended = |address: &str| -> Vec<Option<Timestamp>> {
        heard.body.addresses.iter().filter(|a| a.address == ip(address)).map(|a| a.to).collect()
    };
    for gone in ["10.244.2.3", "10.244.2.0", "192.0.2.12"] {
        assert_eq!(ended(gone), [Some(t(50))], "{gone}");
    }
    assert_eq!(ended("10.244.1.3"), [None]);
    let backends = heard.body.services.iter().flat_map(|s| &s.ports).flat_map(|p| &p.backends);
    assert!(backends.clone().count() == 2 && backends.clone().all(|b| b.to.is_some()), "{:?}", heard.body.services);
    assert_eq!(expected_since(&heard, 0), ["node-a", "node-b"], "it was there before");
    assert_eq!(expected_since(&heard, 500), ["node-a"]);
    // Pods that are gone are nowhere, also of workloads that were.
    let api = heard.body.workloads.iter().find(|w| w.workload.name == "api").unwrap();
    assert_eq!(api.pods.keys().collect::<Vec<_>>(), ["node-a"]);
}

#[test]
fn an_address_that_changed_hands_meanwhile_is_the_new_owner_s() {
    let shop = |owner: &str| pod("shop", owner, 7, "node-b", "10.244.2.3", &[]);
    for is_seamless in [false, true] {
        let mut lab = before();
        let mut next = restart(&mut lab, 1_000, is_seamless);
        hear(&mut next, &[pods()[0].clone(), pods()[1].clone(), shop("other"), SERVICE.to_owned()]);
        next.pod_cgroup(11, "web", 0);
        next.at(1_100).flow(tcp_client(11, "10.244.1.2", "10.244.2.3", 9000, t(1_090)));
        let found = edges(&next.snapshot());
        assert!(found.contains(&"web -> other TCP/9000".to_owned()), "{found:?}");
        assert!(!found.iter().any(|e| e.contains("api TCP/9000")), "{found:?}");
        // What the kernel counted in between may have been either's.
        next.flow(tcp_client(11, "10.244.1.2", "10.244.2.3", 9001, t(500)));
        next.at(1_200);
        let found = edges(&next.snapshot());
        let in_between = found.iter().find(|e| e.contains("9001"));
        if is_seamless {
            assert_eq!(in_between, None);
            assert_eq!(next.unresolved("ip_reuse"), 1);
        }
    }
}

#[test]
fn the_virtual_address_of_a_service_that_is_gone_stays_one_for_its_time() {
    let mut lab = before();
    let mut next = restart(&mut lab, 1_000, true);
    next.pod_cgroup(11, "web", 0);
    hear(&mut next, &pods());
    // Counted before the Service went, told after.
    next.flow(tcp_client(11, "10.244.1.2", "10.96.0.7", 80, t(60)));
    let snapshot = next.snapshot();
    let external: Vec<_> = edges(&snapshot).into_iter().filter(|e| e.contains("10.96.0.7")).collect();
    assert_eq!(external, [""; 0]);
    assert_eq!(snapshot.body.service_flows[0].sources[0].counts.opened, 2);
    // Once it is long gone the address may be anything.
    next.at(6_000).flow(tcp_client(11, "10.244.1.2", "10.96.0.7", 80, t(6_000)));
    assert!(edges(&next.snapshot()).contains(&"web -> external/10.96.0.7 TCP/80".to_owned()));
}

#[test]
fn a_port_that_the_list_may_still_tell_of_waits_for_it() {
    let mut lab = before();
    let mut next = restart(&mut lab, 1_000, false);
    next.pod_cgroup(11, "web", 0);
    next.flow(tcp_client(11, "10.244.1.2", "10.96.0.7", 81, t(1_041)));
    assert_eq!(next.unresolved("service_port_unknown"), 0);
    hear(&mut next, &[&pods()[..], &[SERVICE.replace("port: 80", "port: 81")]].concat());
    assert_eq!(next.snapshot().body.service_flows.len(), 2);
}

#[test]
fn lists_that_will_not_come_end_the_wait_for_them() {
    let mut lab = before();
    let mut next = restart(&mut lab, 1_000, false);
    for kind in [Kind::Node, Kind::Pod, Kind::Service, Kind::EndpointSlice] {
        next.observer.list_unavailable(&kind);
    }
    next.at(1_050);
    let snapshot = next.snapshot();
    let open: Vec<_> = snapshot.body.addresses.iter().filter(|a| a.to.is_none()).map(|a| a.address).collect();
    assert_eq!(open, [ip("10.244.1.0"), ip("169.254.20.10"), ip("172.17.0.1")], "what this node's own records showed");
    assert_eq!(expected_since(&snapshot, 500), ["node-a"]);
}

#[test]
fn link_local_addresses_of_pods_links_go_with_them() {
    let mut lab = Lab::new("node-a", &pods());
    lab.cgroup(9, "/system.slice/kubelet.service");
    let link = |i: i64| -> FlowDelta {
        let local = format!("fe80::{:x}", 0x1000 + i);
        delta(9, Role::Server, &local, "fe80::1", Protocol::Tcp, 10_250, t(i * 100))
    };
    for i in 1..1_000 {
        lab.at(i * 100).flow(link(i));
    }
    assert!(lab.entries("address") < 60, "{}", lab.entries("address"));
}

/// What the kernel's own list of recent cgroups tells the next agent of a pod that came and went.
fn vanished(lab: &mut Lab, id: u64, deployment: &str, index: u32, ended: i64) {
    let (id, path) = (CgroupId(id), common::cgroup_path(deployment, index));
    lab.observer.observe(Observation::CgroupCreated { id, path, at: t(1) }, lab.now);
    lab.observer.observe(Observation::CgroupRemoved { id, at: t(ended) }, lab.now);
}

/// With pins the kernel counts on while no agent is there; the API server has forgotten these pods
/// when the next one asks.
#[test]
fn what_pods_did_that_vanished_during_an_agent_s_rollout_is_theirs() {
    let job = pod("shop", "job", 0, "node-a", "10.244.1.7", &[]);
    // Its address was not published yet.
    let young = pod("shop", "young", 0, "node-a", "", &[]);
    let host =
        pod("kube-system", "proxy", 0, "node-a", "192.0.2.11", &[]).replace("spec:\n", "spec:\n  hostNetwork: true\n");
    let mut lab = Lab::new("node-a", &[&pods()[..], &[job, young, host]].concat());
    for (id, deployment) in [(2, "api"), (5, "job"), (6, "young"), (7, "proxy")] {
        lab.pod_cgroup(id, deployment, 0);
    }
    lab.flow(tcp_client(2, "10.244.1.3", "203.0.113.9", 443, t(5)));
    lab.at(50);
    let (state, known) = (Snapshot::from_json(&lab.snapshot().to_json(), "state").unwrap(), lab.observer.own_pods());
    assert_eq!(known.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>().len(), 5, "{known:?}");
    let config = ObserverConfig {
        awaited: vec![Kind::Node, Kind::Service, Kind::Pod],
        ..ObserverConfig::new("node-a", "next", t(100))
    };
    let mut observer = Observer::restore(config, &state, true).unwrap();
    observer.know_pods(known);
    let mut lab = Lab { observer, now: t(100) };
    for (id, deployment) in [(5, "job"), (6, "young"), (7, "proxy")] {
        vanished(&mut lab, id, deployment, 0, 80);
    }
    lab.pod_cgroup(2, "api", 0);
    for (id, local) in [(5, "10.244.1.7"), (6, "10.244.1.8"), (7, "192.0.2.11")] {
        lab.flow(tcp_client(id, local, "10.244.1.3", 8080, t(70)));
        lab.flow(tcp_server(2, "10.244.1.3", local, 8080, t(70)));
    }
    hear(&mut lab, &pods());
    lab.at(130);
    let snapshot = lab.snapshot();
    let expected = [
        "job -> api TCP/8080",
        "young -> api TCP/8080",
        "node/node-a -> api TCP/8080",
        "api -> external/203.0.113.9 TCP/443",
    ];
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    let mut seen = edges(&snapshot);
    seen.sort_unstable();
    assert_eq!(seen, expected);
    assert!(snapshot.body.edges.iter().any(|e| e.node_workloads.contains("kube-system/Deployment/proxy")));
    for reason in ["pod_unknown", "pod_range_no_owner"] {
        assert_eq!(lab.unresolved(reason), 0, "{reason}");
    }
    // After an hour nothing of them is left.
    lab.at(130 + 3_700);
    lab.at(130 + 3_800);
    assert_eq!(lab.entries("pod"), 3);
}
