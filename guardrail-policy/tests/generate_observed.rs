//! From what the kernel reports to rules: the cases of docs/semantics.md part B that are decided
//! before the generator, carried through to the policies. A line of `rules` reads `subject <- peer
//! ports` for ingress and `subject -> peer ports` for egress.

#[path = "../../guardrail-graph/tests/common/mod.rs"]
mod common;

use common::{Lab, delta, failed, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Protocol, Snapshot,
    inventory::read,
    observe::{CgroupId, FlowCounts, Remote, Role},
    snapshot::{LabelSelector, merge},
};
use guardrail_policy::{
    evaluate::Cluster,
    export::{self, Exported},
    generate::{Options, Phase, PlannedRule, PortRef, ProblemKind, RulePeer},
};

fn web(index: u32, node: &str, address: &str) -> String {
    pod("shop", "web", index, node, address, &[])
}

fn api(index: u32, node: &str, address: &str) -> String {
    pod("shop", "api", index, node, address, &["http:8080"])
}

/// Port 80 by the name `http`; `spec` is more of the Service's spec.
fn service(spec: &str) -> String {
    format!(
        "---\nkind: Service\nmetadata: {{name: api, namespace: shop}}\n\
         spec: {{{spec}clusterIP: 10.96.0.7, selector: {{app: api}}, ports: [{{name: http, port: 80, targetPort: http}}]}}\n"
    )
}

const NODE_PORT_SERVICE: &str = "---\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {type: NodePort, clusterIP: 10.96.0.7, selector: {app: api}, ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]}\n";

fn export(snapshot: &Snapshot, egress: bool) -> Exported<'static> {
    let generated = export_with_problems(snapshot, egress);
    let bugs = generated.problems.iter().filter(|p| !p.kind.can_be_forced()).collect::<Vec<_>>();
    assert!(bugs.is_empty(), "{bugs:?}");
    generated
}

/// One of whose flows some have no name: each is a problem, and nothing else is.
fn export_of_unnamed(snapshot: &Snapshot, flow: &str) -> Exported<'static> {
    let generated = export_with_problems(snapshot, false);
    for problem in generated.problems.iter().filter(|p| !p.kind.can_be_forced()) {
        assert_eq!(problem.kind, ProblemKind::Unallowed, "{problem:?}");
        assert_eq!(problem.namespaces.iter().collect::<Vec<_>>(), ["shop"], "{problem:?}");
    }
    let way_out = format!("--accept '{flow}'");
    assert!(generated.problems.iter().any(|p| p.message.contains(&way_out)), "{:?}", generated.problems);
    generated
}

fn export_with_problems(snapshot: &Snapshot, egress: bool) -> Exported<'static> {
    let mut options = Options::new(Phase::DefaultDeny);
    options.stopped_too = true;
    options.egress = egress;
    options.cluster = Cluster::from_objects(&read::objects(common::CLUSTER, "cluster").unwrap().objects);
    export::export(snapshot, &options).into_owned()
}

fn rules(generated: &Exported<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    for policy in &generated.plan.policies {
        let subject = labels(&policy.subject);
        for (arrow, list) in [("<-", &policy.ingress), ("->", &policy.egress)] {
            lines.extend(list.iter().flatten().map(|rule| format!("{subject} {arrow} {}", rule_text(rule))));
        }
    }
    lines
}

fn labels(selector: &LabelSelector) -> String {
    let labels: Vec<String> = selector.match_labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    if labels.is_empty() { "*".to_owned() } else { labels.join(",") }
}

fn rule_text(rule: &PlannedRule) -> String {
    let peers: Vec<String> = rule
        .peers
        .iter()
        .map(|peer| match peer {
            RulePeer::Pods { namespace, selector } => {
                namespace.as_ref().map(|n| format!("{n}:")).unwrap_or_default() + &labels(selector)
            }
            RulePeer::EveryPod => "every pod".to_owned(),
            RulePeer::Block { cidr, except } if except.is_empty() => cidr.to_string(),
            RulePeer::Block { cidr, except } => {
                format!("{cidr} but {}", except.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
            }
            RulePeer::Entity(entity) => entity.as_str().to_owned(),
            RulePeer::Name(name) => name.clone(),
        })
        .collect();
    let ports: Vec<String> = rule
        .ports
        .iter()
        .map(|port| match &port.port {
            PortRef::Number(number) => format!("{}/{number}", port.protocol),
            PortRef::Name(name) => format!("{}/{name}", port.protocol),
        })
        .collect();
    format!("{} {}", peers.join(" "), ports.join(" "))
}

const NOTHING: [&str; 0] = [];

#[test]
fn b1_a_call_to_a_cluster_ip_is_a_rule_on_the_pod_port() {
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), api(0, "node-a", "10.244.1.3"), service("")]);
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "api", 0);
    lab.flow(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(5)));
    lab.flow(tcp_server(2, "10.244.1.3", "10.244.1.2", 8080, t(5)));
    let generated = export(&lab.snapshot(), true);
    assert_eq!(rules(&generated), ["app=api <- app=web TCP/8080", "app=web -> app=api TCP/8080"]);
}

#[test]
fn b2_a_port_name_with_two_numbers_is_the_name_and_one_that_a_pod_lacks_is_the_numbers() {
    for (second, expected) in [(&["http:9090"][..], "TCP/http"), (&[][..], "TCP/8080 TCP/9090")] {
        let inventory = [
            web(0, "node-a", "10.244.1.2"),
            api(0, "node-a", "10.244.1.3"),
            pod("shop", "api", 1, "node-a", "10.244.1.4", second),
        ];
        let mut lab = Lab::new("node-a", &inventory);
        lab.pod_cgroup(1, "web", 0);
        lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.3", 8080, t(5)));
        lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.4", 9090, t(5)));
        assert_eq!(rules(&export(&lab.snapshot(), false)), [format!("app=api <- app=web {expected}")]);
    }
}

#[test]
fn b3_b16_an_answer_to_an_ephemeral_port_is_no_rule_over_tcp_or_udp() {
    let dns = pod("kube-system", "dns", 0, "node-a", "10.244.1.3", &["dns:53/UDP"]);
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), dns]);
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "dns", 0);
    // sendto without connect, and the answer as the server's socket sees it.
    lab.flow(delta(1, Role::Client, "10.244.1.2", "10.244.1.3", Protocol::Udp, 53, t(5)));
    lab.flow(delta(2, Role::Server, "10.244.1.3", "10.244.1.2", Protocol::Udp, 53, t(5)));
    let mut answer = delta(2, Role::Client, "10.244.1.3", "10.244.1.2", Protocol::Udp, 40_001, t(6));
    (answer.local_port, answer.bind_seen) = (Some(53), false);
    lab.flow(answer);
    assert_eq!(rules(&export(&lab.snapshot(), false)), ["app=dns <- shop:app=web UDP/53"]);
    assert_eq!(
        rules(&export(&lab.snapshot(), true)),
        [
            "app=dns <- shop:app=web TCP/53 UDP/53",
            "* -> app=dns TCP/53 UDP/53",
            "* -> kube-system:app=dns TCP/53 UDP/53",
        ]
    );
}

#[test]
fn b9_a_flow_to_a_reused_address_belongs_to_its_owner_of_that_time_and_an_ambiguous_one_to_nobody() {
    let inventory = [web(0, "node-a", "10.244.1.2"), pod("shop", "old", 0, "node-b", "10.244.2.9", &[])];
    let mut lab = Lab::new("node-a", &inventory);
    lab.pod_cgroup(1, "web", 0);
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.2.9", 80, t(10)));
    // The agent makes snapshots all the time; a workload that was in one is remembered when it is
    // gone.
    lab.snapshot();
    lab.at(100).delete_pod("shop", "old-5d9c-0");
    lab.at(200).apply(&pod("shop", "new", 0, "node-b", "10.244.2.9", &[]));
    lab.at(300).flow(tcp_client(1, "10.244.1.2", "10.244.2.9", 81, t(300)));
    assert_eq!(rules(&export(&lab.snapshot(), false)), ["app=new <- app=web TCP/81", "app=old <- app=web TCP/80"]);

    let inventory = [web(0, "node-a", "10.244.1.2"), pod("shop", "old", 0, "node-a", "10.244.1.9", &[])];
    let mut lab = Lab::new("node-a", &inventory);
    lab.pod_cgroup(1, "web", 0);
    lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.2", 1, t(1)));
    lab.at(100).apply(&pod("shop", "new", 0, "node-a", "10.244.1.9", &[]));
    lab.at(101).flow(tcp_client(1, "10.244.1.2", "10.244.1.9", 80, t(101)));
    lab.at(150);
    let generated = export_of_unnamed(&lab.snapshot(), "shop/Deployment/web->10.244.1.9:80/TCP");
    assert_eq!(rules(&generated), NOTHING);
    assert!(generated.problems.iter().any(|p| p.kind == ProblemKind::Incomplete), "{:?}", generated.problems);
}

#[test]
fn b10_a_pod_of_one_second_is_named_and_an_unknown_one_is_no_address_in_the_pod_range() {
    for known in [true, false] {
        let mut lab = Lab::new("node-a", &[api(0, "node-a", "10.244.1.3")]);
        lab.pod_cgroup(2, "api", 0);
        lab.at(10).pod_cgroup(9, "job", 0);
        lab.flow(tcp_client(9, "10.244.1.77", "10.244.1.3", 8080, t(10)));
        lab.flow(tcp_server(2, "10.244.1.3", "10.244.1.77", 8080, t(10)));
        lab.observer.observe(Observation::CgroupRemoved { id: CgroupId(9), at: t(11) }, t(11));
        if known {
            lab.at(13).apply(&pod("shop", "job", 0, "node-a", "10.244.1.77", &[]));
        }
        lab.at(60);
        if known {
            assert_eq!(rules(&export(&lab.snapshot(), false)), ["app=api <- app=job TCP/8080"]);
        } else {
            let generated = export_of_unnamed(&lab.snapshot(), "10.244.1.77->shop/Deployment/api:8080/TCP");
            assert_eq!(rules(&generated), NOTHING);
            assert!(generated.problems.iter().any(|p| p.kind == ProblemKind::Incomplete), "{:?}", generated.problems);
        }
    }
}

#[test]
fn b11_a_recycled_cgroup_id_names_the_pod_of_its_time() {
    let inventory = [
        web(0, "node-a", "10.244.1.2"),
        pod("shop", "late", 0, "node-a", "10.244.1.5", &[]),
        api(0, "node-b", "10.244.2.3"),
    ];
    let mut lab = Lab::new("node-a", &inventory);
    lab.pod_cgroup(7, "web", 0);
    lab.flow(tcp_client(7, "10.244.1.2", "10.244.2.3", 8080, t(5)));
    lab.at(20).observer.observe(Observation::CgroupRemoved { id: CgroupId(7), at: t(20) }, t(20));
    lab.at(30).pod_cgroup(7, "late", 0);
    lab.flow(tcp_client(7, "10.244.1.5", "10.244.2.3", 9090, t(31)));
    assert_eq!(rules(&export(&lab.snapshot(), false)), ["app=api <- app=late TCP/9090", "app=api <- app=web TCP/8080"]);
}

#[test]
fn b13_the_api_server_is_its_endpoints_address_and_port() {
    let kubernetes = "---\nkind: Service\nmetadata: {name: kubernetes, namespace: default}\nspec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443, targetPort: 6443}]}\n\
        ---\nkind: EndpointSlice\nmetadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}\nports: [{name: https, port: 6443}]\nendpoints: [{addresses: [\"198.51.100.6\"]}]\n";
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), kubernetes.into()]);
    lab.pod_cgroup(1, "web", 0);
    lab.flow(tcp_client(1, "10.244.1.2", "10.96.0.1", 443, t(5)));
    assert_eq!(rules(&export(&lab.snapshot(), true)), ["app=web -> 198.51.100.6/32 TCP/6443"]);
}

#[test]
fn b14_a_probe_from_the_pods_own_node_is_no_rule() {
    let mut lab = Lab::new("node-a", &[api(0, "node-a", "10.244.1.3")]);
    lab.cgroup(5, "/system.slice/kubelet.service");
    lab.pod_cgroup(2, "api", 0);
    lab.flow(tcp_client(5, "10.244.1.1", "10.244.1.3", 8080, t(5)));
    lab.flow(tcp_server(2, "10.244.1.3", "10.244.1.1", 8080, t(5)));
    assert_eq!(rules(&export(&lab.snapshot(), false)), NOTHING);
}

#[test]
fn b17_a_connection_older_than_the_agent_supports_a_rule() {
    let db = pod("shop", "db", 0, "node-a", "10.244.1.9", &["pg:5432"]);
    let mut lab = Lab::new("node-a", &[api(0, "node-a", "10.244.1.3"), db]);
    lab.pod_cgroup(2, "api", 0);
    let found = FlowCounts { found: 8, ..FlowCounts::default() };
    lab.flow(failed(tcp_client(2, "10.244.1.3", "10.244.1.9", 5432, t(1)), found));
    let generated = export(&lab.snapshot(), false);
    assert_eq!(rules(&generated), ["app=db <- app=api TCP/5432"]);
    assert!(generated.all_files()["REPORT.md"].contains("found-at-start"), "{}", generated.all_files()["REPORT.md"]);
}

#[test]
fn b18_a_hairpin_is_a_self_rule_only_if_another_replica_answered() {
    let inventory = [api(0, "node-a", "10.244.1.3"), api(1, "node-a", "10.244.1.4"), service("")];
    let mut lab = Lab::new("node-a", &inventory);
    lab.pod_cgroup(1, "api", 0);
    lab.pod_cgroup(2, "api", 1);
    lab.flow(tcp_client(1, "10.244.1.3", "10.96.0.7", 80, t(5)));
    lab.flow(tcp_server(1, "10.244.1.3", "10.244.1.3", 8080, t(5)));
    assert_eq!(rules(&export(&lab.snapshot(), false)), NOTHING);
    lab.flow(tcp_server(2, "10.244.1.4", "10.244.1.3", 8080, t(6)));
    assert_eq!(rules(&export(&lab.snapshot(), false)), ["app=api <- app=api TCP/8080"]);
}

#[test]
fn b19_behind_a_node_port_a_nodes_address_means_anybody_and_behind_a_cluster_ip_the_node() {
    for (service, expected) in [
        (NODE_PORT_SERVICE.to_owned(), "app=api <- 0.0.0.0/0 ::/0 TCP/8080"),
        (service(""), "app=api <- 10.244.2.0/32 10.244.2.1/32 192.0.2.12/32 TCP/8080"),
    ] {
        let mut lab = Lab::new("node-a", &[api(0, "node-a", "10.244.1.3"), service]);
        lab.pod_cgroup(2, "api", 0);
        lab.flow(tcp_server(2, "10.244.1.3", "192.0.2.12", 8080, t(5)));
        assert_eq!(rules(&export(&lab.snapshot(), false)), [expected]);
    }
}

#[test]
fn b22_refused_calls_through_a_service_are_no_rule() {
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), api(0, "node-a", "10.244.1.3"), service("")]);
    lab.pod_cgroup(1, "web", 0);
    let refused = FlowCounts { refused: 2, ..FlowCounts::default() };
    lab.flow(failed(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(5)), refused));
    let generated = export(&lab.snapshot(), true);
    assert_eq!(rules(&generated), NOTHING);
    assert!(generated.all_files()["REPORT.md"].contains("failed attempts only"));
}

#[test]
fn b26_a_node_proxys_connection_in_a_pods_namespace_is_the_pods_at_15008() {
    let ztunnel = pod("mesh", "ztunnel", 0, "node-a", "10.244.1.8", &[]);
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), ztunnel, api(0, "node-a", "10.244.1.3")]);
    lab.pod_cgroup(8, "ztunnel", 0);
    lab.flow(tcp_client(8, "10.244.1.2", "10.244.1.3", 15008, t(5)));
    assert_eq!(rules(&export(&lab.snapshot(), false)), ["app=api <- app=web TCP/15008"]);
}

#[test]
fn b32_b33_a_node_port_from_inside_opens_the_pod_port_of_the_backend_that_was_reached() {
    for address in ["192.0.2.11", "192.0.2.12", "10.96.0.7"] {
        let canary = pod("shop", "canary", 0, "node-a", "10.244.1.4", &["http:8080"])
            .replace("app: canary", "app: canary, role: front");
        let stable = api(0, "node-a", "10.244.1.3").replace("app: api", "app: api, role: front");
        let service = NODE_PORT_SERVICE.replace("app: api", "role: front");
        let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2"), stable, canary, service]);
        lab.pod_cgroup(1, "web", 0);
        lab.pod_cgroup(2, "api", 0);
        let port = if address == "10.96.0.7" { 80 } else { 30080 };
        lab.flow(tcp_client(1, "10.244.1.2", address, port, t(5)));
        lab.flow(tcp_server(2, "10.244.1.3", "10.244.1.2", 8080, t(5)));
        let generated = export(&lab.snapshot(), true);
        let mut lines = rules(&generated);
        if address == "192.0.2.12" {
            // Another node translates: the client's network sees that node's address and port.
            assert_eq!(lines.pop().as_deref(), Some("app=web -> 192.0.2.11/32 192.0.2.12/32 TCP/30080"));
        }
        assert_eq!(lines.len(), 2, "{address}: {lines:?}");
        assert!(
            lines.iter().all(|l| l.ends_with("TCP/8080") && l.contains("app=api") && !l.contains("canary")),
            "{lines:?}"
        );
    }
}

#[test]
fn b35_a_server_with_many_external_clients_has_one_rule_that_leaves_the_clusters_pods_out() {
    let mut lab = Lab::new("node-a", &[api(0, "node-a", "10.244.1.3")]);
    lab.pod_cgroup(2, "api", 0);
    for i in 0..500u32 {
        let remote = std::net::Ipv4Addr::from(0xc612_0000 + i).to_string();
        lab.flow(tcp_server(2, "10.244.1.3", &remote, 8080, t(5)));
    }
    let mut many = tcp_server(2, "10.244.1.3", "203.0.113.1", 8080, t(6));
    many.remote = Remote::Many;
    lab.flow(many);
    assert_eq!(
        rules(&export(&lab.snapshot(), false)),
        ["app=api <- 0.0.0.0/0 but 10.244.1.0/24 10.244.2.0/24 ::/0 TCP/8080"]
    );
}

#[test]
fn the_view_of_one_node_is_marked_and_the_merge_of_all_is_not() {
    let inventory = [web(0, "node-a", "10.244.1.2"), api(0, "node-b", "10.244.2.3")];
    let mut a = Lab::new("node-a", &inventory);
    a.pod_cgroup(1, "web", 0);
    a.flow(tcp_client(1, "10.244.1.2", "10.244.2.3", 8080, t(5)));
    let mut b = Lab::new("node-b", &inventory);
    b.pod_cgroup(2, "api", 0);
    b.flow(tcp_server(2, "10.244.2.3", "10.244.1.2", 8080, t(5)));
    let (a, b) = (a.snapshot(), b.snapshot());
    let file = |generated: &Exported<'_>| generated.files["shop.guardrail-allow-deployment-api.yaml"].clone();
    let of_a = export(&a, false);
    assert!(file(&of_a).contains("# view: node node-a, not for applying"), "{}", file(&of_a));
    assert!(of_a.problems.iter().any(|p| p.kind == ProblemKind::Incomplete));
    // The server's own node has seen all its callers, but not the whole namespace.
    let of_b = export(&b, false);
    assert!(!file(&of_b).contains("not for applying"), "{}", file(&of_b));
    assert!(of_b.files["shop.guardrail-default-deny-ingress.yaml"].contains("# view: node node-b, not for applying"));
    let both = export(&merge(vec![a, b]), false);
    assert!(both.problems.is_empty(), "{:?}", both.problems);
    assert!(both.files.values().all(|text| !text.contains("not for applying")));
    assert_eq!(rules(&both), ["app=api <- app=web TCP/8080"]);
}
