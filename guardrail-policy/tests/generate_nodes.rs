//! Nodes as clients: whose connections a node's address stands for, and which addresses a rule
//! names for it.

#[path = "../../guardrail-graph/tests/common/mod.rs"]
mod common;

use common::{Lab, delta, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Protocol, Snapshot,
    inventory::{Change, Kind, ObjectKey, read},
    observe::Role,
    snapshot::merge,
};
use guardrail_policy::{
    evaluate::{Cluster, ClusterNode},
    export::{Exported, export},
    generate::{Options, Phase},
};

const NODE_PORT: &str = "type: NodePort, ";
const KUBELET: u64 = 5;

fn api(index: u32, node: &str, address: &str) -> String {
    pod("shop", "api", index, node, address, &["http:8080"])
}

/// `spec` is more of the Service's spec.
fn service(spec: &str) -> String {
    let node_port = if spec == NODE_PORT { ", nodePort: 30080" } else { "" };
    format!(
        "---\nkind: Service\nmetadata: {{name: api, namespace: shop}}\nspec: {{{spec}clusterIP: 10.96.0.7, \
         selector: {{app: api}}, ports: [{{name: http, port: 80, targetPort: http{node_port}}}]}}\n"
    )
}

/// One pod of `api` on each of two nodes, whose kubelets probe them.
struct Probed {
    a: Lab,
    b: Lab,
}

const ON_A: &str = "10.244.1.3";
const ON_B: &str = "10.244.2.3";

impl Probed {
    fn new(spec: &str) -> Self {
        let inventory = [api(0, "node-a", ON_A), api(1, "node-b", ON_B), service(spec), ingress()];
        let [mut a, mut b] = ["node-a", "node-b"].map(|node| Lab::new(node, &inventory));
        for (lab, index) in [(&mut a, 0), (&mut b, 1)] {
            lab.cgroup(KUBELET, "/system.slice/kubelet.service");
            lab.pod_cgroup(2, "api", index);
            lab.at(2);
        }
        Self { a, b }
    }

    /// Every kubelet probes the pod on its node, at its bridge's address.
    fn probe(&mut self) -> &mut Self {
        for (lab, bridge, pod) in [(&mut self.a, "10.244.1.1", ON_A), (&mut self.b, "10.244.2.1", ON_B)] {
            for second in 3..6 {
                lab.flow(tcp_client(KUBELET, bridge, pod, 8080, t(second)));
                lab.flow(tcp_server(2, pod, bridge, 8080, t(second)));
            }
        }
        self
    }

    fn snapshot(&mut self) -> Snapshot {
        merge(vec![self.a.snapshot(), self.b.snapshot()])
    }
}

fn ingress() -> String {
    pod("edge", "ingress", 0, "node-b", "192.0.2.12", &[]).replace("spec:\n", "spec:\n  hostNetwork: true\n")
}

fn options() -> Options {
    let mut options = Options::new(Phase::DefaultDeny);
    options.cluster = Cluster::from_objects(&read::objects(common::CLUSTER, "cluster").unwrap().objects);
    options
}

fn proven(snapshot: &Snapshot, options: &Options) -> Exported<'static> {
    let generated = export(snapshot, options);
    let bugs = generated.problems.iter().filter(|p| !p.kind.can_be_forced()).collect::<Vec<_>>();
    assert!(bugs.is_empty(), "{bugs:?}");
    generated.into_owned()
}

/// The addresses that the one allow policy of `api` lets in.
fn callers(snapshot: &Snapshot, options: &Options) -> Vec<String> {
    let file = "shop.guardrail-allow-deployment-api.yaml";
    let generated = proven(snapshot, options);
    let text = generated.files.get(file).map_or("", String::as_str);
    text.lines()
        .filter_map(|line| line.split_once("cidr: "))
        .map(|(_, cidr)| cidr.trim_matches('"').to_owned())
        .collect()
}

const ANYBODY: [&str; 2] = ["0.0.0.0/0", "::/0"];
const NODE_B: [&str; 3] = ["10.244.2.0/32", "10.244.2.1/32", "192.0.2.12/32"];
const NOBODY: [&str; 0] = [];

#[test]
fn probes_alone_are_no_rule_whatever_the_service_is() {
    for spec in [NODE_PORT, ""] {
        let snapshot = Probed::new(spec).probe().snapshot();
        assert_eq!(callers(&snapshot, &options()), NOBODY, "{spec}");
    }
}

#[test]
fn probes_do_not_hide_clients_from_outside_that_come_through_another_node() {
    let mut lab = Probed::new(NODE_PORT);
    lab.probe().a.flow(tcp_server(2, ON_A, "192.0.2.12", 8080, t(7)));
    assert_eq!(callers(&lab.snapshot(), &options()), ANYBODY);
}

#[test]
fn probes_do_not_hide_clients_from_outside_that_come_through_the_pods_own_node() {
    for address in ["192.0.2.11", "10.244.1.1"] {
        let mut lab = Probed::new(NODE_PORT);
        lab.probe().a.flow(tcp_server(2, ON_A, address, 8080, t(7)));
        assert_eq!(callers(&lab.snapshot(), &options()), ANYBODY, "{address}");
    }
}

#[test]
fn behind_a_cluster_ip_a_nodes_address_is_the_node_with_probes_and_without() {
    for probes in [true, false] {
        let mut lab = Probed::new("");
        if probes {
            lab.probe();
        }
        lab.a.flow(tcp_server(2, ON_A, "192.0.2.12", 8080, t(7)));
        assert_eq!(callers(&lab.snapshot(), &options()), NODE_B, "{probes}");
    }
}

#[test]
fn a_client_on_the_hosts_network_is_its_node_behind_a_node_port_too() {
    for (probes, through_service) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut lab = Probed::new(NODE_PORT);
        if probes {
            lab.probe();
        }
        lab.b.pod_cgroup(9, "ingress", 0);
        let (target, port) = if through_service { ("10.96.0.7", 80) } else { (ON_A, 8080) };
        lab.b.flow(tcp_client(9, "192.0.2.12", target, port, t(7)));
        lab.a.flow(tcp_server(2, ON_A, "192.0.2.12", 8080, t(7)));
        let case = format!("probes: {probes}, through the Service: {through_service}");
        assert_eq!(callers(&lab.snapshot(), &options()), NODE_B, "{case}");
        // One more than the host's own sockets opened.
        lab.a.flow(tcp_server(2, ON_A, "192.0.2.12", 8080, t(8)));
        assert_eq!(callers(&lab.snapshot(), &options()), ANYBODY, "{case}");
    }
}

#[test]
fn clients_from_outside_without_probes_are_anybody() {
    let mut lab = Probed::new(NODE_PORT);
    lab.a.flow(tcp_server(2, ON_A, "192.0.2.12", 8080, t(7)));
    assert_eq!(callers(&lab.snapshot(), &options()), ANYBODY);
}

/// `node-b` calls the pod on `node-a` at its listed address, and has spoken from so many others.
fn spoken_from(others: u16) -> Snapshot {
    let mut lab = Probed::new("");
    for number in 0..others {
        let [high, low] = number.to_be_bytes();
        let address = format!("172.20.{high}.{low}");
        lab.b.flow(tcp_client(KUBELET, &address, "198.51.100.1", 443, t(4)));
    }
    lab.b.flow(tcp_client(KUBELET, "192.0.2.12", ON_A, 8080, t(7)));
    lab.a.flow(tcp_server(2, ON_A, "192.0.2.12", 8080, t(7)));
    lab.snapshot()
}

#[test]
fn a_rule_names_what_the_api_lists_of_a_node_and_not_all_that_it_ever_spoke_from() {
    let few = export(&spoken_from(0), &options()).into_owned();
    let many = spoken_from(3_000);
    let listed = |listed| many.body.addresses.iter().filter(|a| a.listed == Some(listed)).count();
    assert_eq!((listed(false), listed(true)), (3_000, 6), "the snapshot tells them apart");
    assert_eq!(callers(&many, &options()), NODE_B);
    let many = proven(&many, &options());
    for (name, text) in few.files.iter().filter(|(name, _)| name.ends_with(".yaml")) {
        assert_eq!(&many.files[name], text, "{name}");
    }
}

#[test]
fn a_declared_range_stands_for_every_address_of_a_node_in_it() {
    let mut options = options();
    options.node_ranges = ["192.0.2.0/24", "172.20.0.0/16"].map(|range| range.parse().unwrap()).into();
    let expected = ["10.244.2.0/32", "10.244.2.1/32", "172.20.0.0/16", "192.0.2.0/24"];
    assert_eq!(callers(&spoken_from(50), &options), expected);
    options.node_ranges = ["10.99.0.0/16"].map(|range| range.parse().unwrap()).into();
    let generated = proven(&spoken_from(50), &options);
    let warning = "no node in the snapshot has an address in 10.99.0.0/16: --node-range has no effect";
    assert!(generated.warnings.iter().any(|w| w == warning), "{:?}", generated.warnings);
}

#[test]
fn a_node_that_a_pod_saw_at_an_address_nobody_lists_stops_its_namespace_until_the_range_is_declared() {
    let inventory = [api(0, "node-a", ON_A)];
    let [mut a, mut b] = ["node-a", "node-b"].map(|node| Lab::with(node, &inventory, |c| c.own_pods_only = true));
    a.pod_cgroup(2, "api", 0);
    b.cgroup(KUBELET, "/system.slice/kubelet.service");
    // An address of the other node inside its pod range, of which only that node's own agent knows.
    b.flow(tcp_client(KUBELET, "10.244.2.77", ON_A, 8080, t(7)));
    a.flow(tcp_server(2, ON_A, "10.244.2.77", 8080, t(7)));
    let snapshot = merge(vec![a.snapshot(), b.snapshot()]);
    let again = merge(vec![snapshot.clone(), snapshot.clone()]);
    assert_eq!(again.to_json(), snapshot.to_json());
    let generated = export(&snapshot, &options());
    let said: Vec<&str> = generated.problems.iter().map(|p| p.message.as_str()).collect();
    assert!(
        said.iter().any(|p| p.contains("node/node-b -> shop/Deployment/api 8080/TCP")
            && p.contains("(10.244.2.77)")
            && p.contains("--node-range")),
        "{said:?}"
    );
    let mut options = options();
    options.node_ranges = ["10.244.2.77/32".parse().unwrap()].into();
    assert!(callers(&snapshot, &options).contains(&"10.244.2.77/32".to_owned()));
    assert!(export(&snapshot, &options).problems.is_empty());
}

#[test]
fn a_client_from_outside_that_is_a_nodes_second_address_is_said_and_a_declared_range_stands_for_it() {
    let mut lab = Probed::new("");
    lab.b.flow(tcp_client(KUBELET, "172.20.0.5", ON_A, 8080, t(7)));
    lab.a.flow(tcp_server(2, ON_A, "172.20.0.5", 8080, t(7)));
    let snapshot = lab.snapshot();
    assert!(callers(&snapshot, &options()).contains(&"172.20.0.5/32".to_owned()), "what was seen is allowed");
    let generated = proven(&snapshot, &options());
    let said = generated
        .warnings
        .iter()
        .any(|w| w.contains("172.20.0.5 is an address of node node-b") && w.contains("--node-range"));
    assert!(said, "{:?}", generated.warnings);
    let mut options = options();
    options.node_ranges = ["172.20.0.0/24".parse().unwrap()].into();
    let callers = callers(&snapshot, &options);
    assert!(
        callers.contains(&"172.20.0.0/24".to_owned()) && !callers.contains(&"172.20.0.5/32".to_owned()),
        "{callers:?}"
    );
}

#[test]
fn what_a_node_answers_itself_is_named_by_the_address_that_pods_ask_for() {
    let dns = "---\nkind: Service\nmetadata: {name: dns, namespace: kube-system}\nspec: {clusterIP: 10.96.0.10, selector: {app: coredns}, ports: [{port: 53, protocol: UDP}]}\n";
    let coredns = pod("kube-system", "coredns", 0, "node-b", "10.244.2.9", &["dns:53/UDP"]);
    let inventory = [api(0, "node-a", ON_A), coredns, dns.to_owned()];
    let [mut a, b] = ["node-a", "node-b"].map(|node| Lab::new(node, &inventory));
    a.cgroup(KUBELET, "/system.slice/node-services.service");
    a.pod_cgroup(2, "api", 0);
    a.at(2);
    let asked = [
        ("10.96.0.10", Protocol::Udp, 53),
        ("169.254.20.10", Protocol::Udp, 53),
        ("169.254.170.23", Protocol::Tcp, 80),
    ];
    for (address, protocol, port) in asked {
        a.flow(delta(2, Role::Client, ON_A, address, protocol, port, t(3)));
        a.flow(delta(KUBELET, Role::Server, address, ON_A, protocol, port, t(3)));
    }
    // Answered by the cloud.
    a.flow(tcp_client(2, ON_A, "169.254.169.254", 80, t(3)));
    a.at(5);
    let mut b = b;
    let mut options = options();
    options.egress = true;
    let generated = proven(&merge(vec![a.snapshot(), b.snapshot()]), &options);
    let text: String = generated.all_files().into_values().collect();
    for address in asked.map(|(address, ..)| address).into_iter().chain(["169.254.169.254"]) {
        assert!(text.contains(&format!("{address}/32")), "{address} in {text}");
    }
    assert!(text.contains("app: coredns"), "what the node's cache asks, pods may ask as well: {text}");
}

/// The addresses, with their port, that a client of `api` may call beside pods, after it asked for
/// this.
fn called_beside_pods(asked: &str, port: u16) -> Vec<String> {
    let web = pod("shop", "web", 0, "node-b", "10.244.2.7", &["http:8080"]);
    let hosted = api(0, "node-a", ON_A).replace("containerPort: 8080", "containerPort: 8080, hostPort: 8443");
    let inventory = [hosted, web, service(NODE_PORT)];
    let [mut a, mut b] = ["node-a", "node-b"].map(|node| Lab::new(node, &inventory));
    a.pod_cgroup(2, "api", 0);
    b.pod_cgroup(3, "web", 0);
    a.at(2);
    b.at(2);
    b.flow(tcp_client(3, "10.244.2.7", asked, port, t(5)));
    a.flow(tcp_server(2, ON_A, "10.244.2.7", 8080, t(5)));
    a.at(200);
    b.at(200);
    let mut options = options();
    options.egress = true;
    let text = inventory.join("");
    let objects = read::objects(&format!("{}{text}", common::CLUSTER), "cluster").unwrap().objects;
    options.cluster = Cluster::from_objects(&objects);
    let snapshot = merge(vec![a.snapshot(), b.snapshot()]);
    let generated = proven(&snapshot, &options);
    let text = &generated.files["shop.guardrail-allow-deployment-web.yaml"];
    assert!(text.contains("app: api") && text.contains("port: 8080"), "{text}");
    let addresses = text.lines().filter_map(|line| line.split_once("cidr: ")).map(|(_, cidr)| cidr.to_owned());
    let mut found: Vec<String> = addresses.collect();
    let ports = text.lines().filter_map(|line| line.split_once("port: ")).map(|(_, port)| port.to_owned());
    found.extend(ports.filter(|port| port != "8080"));
    found.dedup();
    found
}

#[test]
fn a_port_of_another_node_is_open_at_that_node_and_one_of_the_own_node_needs_no_rule() {
    // Behind a node port every node leads to the same pods.
    assert_eq!(called_beside_pods("192.0.2.11", 30080), ["192.0.2.11/32", "192.0.2.12/32", "30080"]);
    assert_eq!(called_beside_pods("192.0.2.12", 30080), NOBODY);
    assert_eq!(called_beside_pods("10.96.0.7", 80), NOBODY);
    assert_eq!(called_beside_pods("192.0.2.11", 8443), ["192.0.2.11/32", "8443"]);
    assert_eq!(called_beside_pods(ON_A, 8080), NOBODY);
}

/// Node b called the pod on node a, and is gone.
fn left() -> Probed {
    let mut lab = Probed::new("");
    lab.a.flow(tcp_server(2, ON_A, "192.0.2.12", 8080, t(7)));
    lab.b.at(50);
    lab.a.at(100);
    let key = ObjectKey { kind: Kind::Node, namespace: String::new(), name: "node-b".into() };
    lab.a.observer.apply(Change::Delete(key), t(100));
    lab.a.delete_pod("shop", "api-5d9c-1");
    lab.a.delete_pod("edge", "ingress-5d9c-0");
    lab.a.at(4 * 3600);
    lab
}

/// The inventory as it is then.
fn options_without_b() -> Options {
    let only_a = common::CLUSTER.rsplit_once("---").unwrap().0;
    let mut options = options();
    options.cluster = Cluster::from_objects(&read::objects(only_a, "cluster").unwrap().objects);
    options
}

#[test]
fn the_addresses_of_a_node_that_is_gone_are_opened_to_nobody() {
    let mut lab = left();
    let (a, b) = (lab.a.snapshot(), lab.b.snapshot());
    // Whether its own agent, which did not see its end, says that it has them or not.
    for snapshot in [merge(vec![a.clone()]), merge(vec![a, b])] {
        assert!(snapshot.body.known_nodes()["node-b"].is_gone);
        for options in [options_without_b(), Options::new(Phase::DefaultDeny)] {
            let generated = export(&snapshot, &options);
            let files: String = generated.files.values().map(String::as_str).collect();
            assert!(!files.contains("192.0.2.12"), "{files}");
            let problems: Vec<String> = generated.problems.iter().map(|p| p.message.clone()).collect();
            let [problem] = &problems.iter().filter(|p| p.contains("no ingress rule")).collect::<Vec<_>>()[..] else {
                panic!("{problems:#?}")
            };
            assert!(problem.contains("node node-b is gone, and 192.0.2.12 may be another's by now"), "{problem}");
            assert!(problem.contains("--node-range") && problem.contains("--accept 'node/node-b->"), "{problem}");
        }
    }
}

#[test]
fn a_declared_range_allows_what_a_node_that_is_gone_did() {
    let mut lab = left();
    let snapshot = merge(vec![lab.a.snapshot(), lab.b.snapshot()]);
    for mut options in [options_without_b(), Options::new(Phase::DefaultDeny)] {
        options.node_ranges.insert("192.0.2.0/24".parse().unwrap());
        assert_eq!(callers(&snapshot, &options), ["192.0.2.0/24"]);
        let generated = proven(&snapshot, &options);
        assert!(generated.problems.is_empty(), "{:?}", generated.problems);
    }
    let mut accepting = options_without_b();
    accepting.accepted.insert("node/node-b->shop/Deployment/api:8080/TCP".parse().unwrap());
    assert!(proven(&snapshot, &accepting).problems.is_empty());
}

#[test]
fn what_nodes_were_tells_where_pods_live_without_an_inventory() {
    let mut lab = left();
    // Somebody outside, through a node port: any address, but for pods.
    let snapshot = merge(vec![lab.a.snapshot(), lab.b.snapshot()]);
    let cluster = Cluster::default().with_snapshot(&snapshot);
    let ranges: Vec<String> = cluster.pod_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.244.1.0/24", "10.244.2.0/24"], "another node will have that of the one that is gone");
    let names = |nodes: &[ClusterNode]| nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
    assert_eq!((names(&cluster.nodes), names(&cluster.former_nodes)), (vec!["node-a".into()], vec!["node-b".into()]));
    let options = Options {
        accepted: ["node/node-b->shop/Deployment/api:8080/TCP".parse().unwrap()].into(),
        ..Options::new(Phase::DefaultDeny)
    };
    let mut open = snapshot;
    let edge = open.body.edges.iter_mut().find(|edge| edge.server.peer.to_string() == "shop/Deployment/api").unwrap();
    edge.client.peer = std::sync::Arc::new(guardrail_graph::Peer::External { address: "*".into() });
    let files = export(&open, &options).into_owned().files;
    let text = &files["shop.guardrail-allow-deployment-api.yaml"];
    assert!(text.contains("10.244.1.0/24") && text.contains("10.244.2.0/24"), "{text}");
}

#[test]
fn labels_of_nodes_are_those_that_were_told() {
    let labelled = "---\nkind: Node\nmetadata: {name: node-b, labels: {pool: edge}}\nspec: {podCIDR: 10.244.2.0/24}\n\
                    status: {addresses: [{type: InternalIP, address: 192.0.2.12}]}\n";
    let mut lab = Probed::new("");
    lab.a.at(10).apply(labelled);
    let cluster = Cluster::default().with_snapshot(&lab.a.at(20).snapshot());
    let labels: Vec<_> = cluster.nodes.iter().map(|node| (&*node.name, node.labels.get("pool").cloned())).collect();
    assert_eq!(labels, [("node-a", None), ("node-b", Some("edge".to_owned()))]);
}
