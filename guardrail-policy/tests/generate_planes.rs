//! Data planes on which applications see another thing than the network judges: what is written
//! for them (docs/data-planes.md).

#[path = "../../guardrail-graph/tests/common/mod.rs"]
mod common;

use common::{Lab, delta, ip, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Protocol,
    inventory::read,
    observe::{CgroupId, FlowDelta, NetnsId, Role},
    snapshot::merge,
};
use guardrail_policy::{
    evaluate::Cluster,
    export::{Exported, export},
    generate::{Options, Phase},
};

const WEB: &str = "10.244.1.2";
const API: &str = "10.244.1.3";

fn pods() -> [String; 3] {
    [
        pod("shop", "web", 0, "node-a", WEB, &[]),
        pod("shop", "api", 0, "node-a", API, &["http:8080"]),
        pod("mesh", "ztunnel", 0, "node-a", "10.244.1.9", &[]),
    ]
}

fn lab() -> Lab {
    let mut lab = Lab::new("node-a", &pods());
    for (cgroup, deployment) in [(1, "web"), (2, "api"), (3, "ztunnel")] {
        lab.pod_cgroup(cgroup, deployment, 0);
    }
    lab
}

fn options() -> Options {
    let mut options = Options::new(Phase::DefaultDeny);
    options.egress = true;
    options.cluster = Cluster::from_objects(&read::objects(common::CLUSTER, "cluster").unwrap().objects);
    options
}

/// What is exported when the other node has seen nothing.
fn exported(lab: &mut Lab) -> Exported<'static> {
    let options = options();
    let mut other = Lab::new("node-b", &pods());
    other.now = lab.now;
    export(&merge(vec![lab.snapshot(), other.snapshot()]), &options).into_owned()
}

/// The ports and ranges of a namespace's policies.
fn opened(exported: &Exported<'_>, workload: &str) -> Vec<String> {
    let file = format!("shop.guardrail-allow-deployment-{workload}.yaml");
    let text = exported.files.get(&file).map_or("", String::as_str);
    let lines = text.lines().map(str::trim).filter_map(|line| line.trim_start_matches("- ").split_once(": "));
    let mut all: Vec<String> = lines
        .filter(|(key, _)| ["port", "cidr"].contains(key))
        .map(|(_, value)| value.trim_matches('"').to_owned())
        .collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn in_an_ambient_mesh_the_tunnels_and_probes_have_rules_and_what_is_inside_has_none() {
    let mut lab = lab();
    for netns in [NetnsId(1), NetnsId(2)] {
        let (cgroup, at) = (CgroupId(3), lab.now);
        let listening = Observation::Listening { cgroup, netns, address: ip("::"), port: 15008, listening: true, at };
        lab.observer.observe(listening, at);
    }
    let proxys = |flow: FlowDelta, netns| FlowDelta { cgroup: CgroupId(3), netns: Some(NetnsId(netns)), ..flow };
    lab.flow(proxys(tcp_client(3, WEB, API, 15008, t(5)), 1));
    lab.flow(proxys(tcp_server(3, API, WEB, 15008, t(5)), 2));
    lab.flow(proxys(tcp_client(3, WEB, API, 8080, t(5)), 2));
    lab.flow(tcp_server(2, API, WEB, 8080, t(5)));
    lab.flow(tcp_server(2, API, "169.254.7.127", 8080, t(5)));
    // The application called its way out itself: that shows whose the namespace is.
    lab.flow(FlowDelta { local_port: Some(15001), ..tcp_client(1, WEB, API, 8080, t(5)) });
    lab.at(15).at(30).at(70);
    let exported = exported(&mut lab);
    assert!(exported.stopped.is_empty(), "{:?}", exported.problems);
    assert_eq!(opened(&exported, "api"), ["15008", "169.254.7.127/32", "8080"]);
    assert_eq!(opened(&exported, "web"), ["15008"]);
    let report = exported.all_files().into_values().collect::<String>();
    assert!(report.contains("opens every port of the server that its proxy serves"), "{report}");
    assert!(report.contains("| inside a tunnel, or on a secondary network: no policy judges it |"), "{report}");
}

#[test]
fn on_a_network_beside_the_first_nothing_is_written_nothing_stops_and_the_report_says_so() {
    let mut lab = lab();
    lab.flow(tcp_client(1, "192.168.99.2", "192.168.99.3", 8080, t(5)));
    lab.flow(tcp_server(2, "192.168.99.3", "192.168.99.2", 8080, t(5)));
    lab.at(30);
    let exported = exported(&mut lab);
    assert!(exported.stopped.is_empty(), "{:?}", exported.problems);
    assert_eq!([opened(&exported, "api"), opened(&exported, "web")], [[""; 0]; 2]);
    let report = exported.all_files().into_values().collect::<String>();
    assert!(report.contains("| inside a tunnel, or on a secondary network: no policy judges it |"), "{report}");
}

#[test]
fn masqueraded_calls_stop_their_namespace_until_somebody_accepts_that_nodes_may_call() {
    let service = "---\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.96.0.7, selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}\n";
    let inventory = [
        pod("shop", "web", 0, "node-a", WEB, &[]),
        pod("shop", "web", 1, "node-b", "10.244.2.2", &[]),
        pod("shop", "api", 0, "node-b", "10.244.2.3", &["http:8080"]),
        service.to_owned(),
    ];
    let [mut a, mut b] = ["node-a", "node-b"].map(|node| Lab::new(node, &inventory));
    a.pod_cgroup(1, "web", 0);
    b.pod_cgroup(2, "api", 0);
    a.flow(tcp_client(1, WEB, "10.96.0.7", 80, t(5)));
    b.flow(tcp_server(2, "10.244.2.3", "192.0.2.11", 8080, t(5)));
    let snapshot = merge(vec![a.snapshot(), b.snapshot()]);
    let mut options = options();
    let stopped = export(&snapshot, &options);
    assert!(stopped.stopped.contains("shop"), "{:?}", stopped.problems);
    let named = |p: &guardrail_policy::generate::Problem| {
        p.message.contains("masqueraded")
            && p.message.contains("--accept 'shop/Deployment/web->shop/Deployment/api:8080/TCP'")
    };
    assert!(stopped.problems.iter().any(named), "{:?}", stopped.problems);
    options.accept_inferred = true;
    let accepted = export(&snapshot, &options);
    assert!(accepted.stopped.is_empty(), "{:?}", accepted.problems);
    let of_nodes =
        ["10.244.1.0/32", "10.244.1.1/32", "10.244.2.0/32", "10.244.2.1/32", "192.0.2.11/32", "192.0.2.12/32"];
    let mut expected = of_nodes.map(str::to_owned).to_vec();
    expected.push("8080".to_owned());
    assert_eq!(opened(&accepted, "api"), expected, "where one replica ran the next may call, too");
    assert_eq!(opened(&accepted, "web"), ["8080"], "egress is to the pods");
    assert!(
        accepted.warnings.iter().any(|w| w.contains("identity of shop/Deployment/web was lost")),
        "{:?}",
        accepted.warnings
    );
}

/// `default/kubernetes` with two API servers: one on a node, one outside.
const KUBERNETES: &str = "---\nkind: Service\nmetadata: {name: kubernetes, namespace: default}\nspec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443, targetPort: 6443}]}\n---\n\
    kind: EndpointSlice\napiVersion: discovery.k8s.io/v1\naddressType: IPv4\nmetadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}\n\
    ports: [{name: https, protocol: TCP, port: 6443}]\nendpoints: [{addresses: [192.0.2.12]}, {addresses: [203.0.113.5]}]\n";

#[test]
fn whoever_calls_the_api_server_may_call_all_of_them_and_all_of_them_may_call_its_webhooks() {
    for (reached, caller) in
        [("203.0.113.5", "192.0.2.12"), ("192.0.2.12", "203.0.113.5"), ("203.0.113.5", "203.0.113.77")]
    {
        let inventory = [pods().concat(), KUBERNETES.to_owned()];
        let [mut a, mut b] = ["node-a", "node-b"].map(|node| Lab::new(node, &inventory));
        a.pod_cgroup(1, "web", 0);
        a.pod_cgroup(2, "api", 0);
        b.cgroup(9, "/system.slice/apiserver.service");
        a.flow(tcp_client(1, WEB, "10.96.0.1", 443, t(5)));
        if reached == "192.0.2.12" {
            b.flow(tcp_server(9, reached, WEB, 6443, t(5)));
        }
        a.flow(tcp_server(2, API, caller, 8080, t(5)));
        let snapshot = merge(vec![a.snapshot(), b.snapshot()]);
        let mut options = options();
        options.accept_inferred = true;
        options.control_plane_ranges = ["203.0.113.64/28".parse().unwrap()].into();
        let exported = export(&snapshot, &options);
        assert!(exported.stopped.is_empty(), "{:?}", exported.problems);
        let servers = ["192.0.2.12/32", "203.0.113.5/32", "203.0.113.64/28"];
        assert_eq!(opened(&exported, "web"), [&servers[..], &["6443"]].concat(), "{reached}");
        let callers: Vec<String> =
            opened(&exported, "api").into_iter().filter(|one| !one.starts_with("10.244.")).collect();
        assert_eq!(callers, [&servers[..], &["8080"]].concat(), "{caller}");
    }
}

#[test]
fn where_nodes_answer_for_dns_its_pods_are_open_to_everybody_for_when_the_cache_is_down() {
    let dns = "---\nkind: Service\nmetadata: {name: dns, namespace: kube-system}\nspec: {clusterIP: 10.96.0.10, selector: {app: coredns}, ports: [{port: 53, protocol: UDP}]}\n";
    let coredns = pod("kube-system", "coredns", 0, "node-b", "10.244.2.9", &["dns:53/UDP"]);
    let inventory = [pods().concat(), coredns, dns.to_owned()];
    let [mut a, mut b] = ["node-a", "node-b"].map(|node| Lab::new(node, &inventory));
    a.cgroup(5, "/system.slice/node-cache.service");
    a.pod_cgroup(1, "web", 0);
    a.at(2);
    a.flow(delta(1, Role::Client, WEB, "169.254.20.10", Protocol::Udp, 53, t(3)));
    a.flow(delta(5, Role::Server, "169.254.20.10", WEB, Protocol::Udp, 53, t(3)));
    a.at(5);
    for phase in [Phase::DefaultDeny, Phase::Constrain] {
        let options = Options { phase, ..options() };
        let exported = export(&merge(vec![a.snapshot(), b.snapshot()]), &options).into_owned();
        assert!(exported.stopped.is_empty(), "{:?}", exported.problems);
        let ingress = &exported.files["kube-system.guardrail-allow-deployment-coredns.yaml"];
        assert!(ingress.contains("namespaceSelector: {}") && ingress.contains("port: 53"), "{ingress}");
        assert!(exported.warnings.iter().any(|w| w.contains("when their caches are down")), "{:?}", exported.warnings);
    }
}
