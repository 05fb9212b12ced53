//! Hand-written cases beside the truth tables, by docs/semantics.md number.

use super::*;
use crate::{evaluate::cluster::ClusterPod, model::Labels, read};

fn labels(text: &str) -> Labels {
    text.split_whitespace().filter_map(|l| l.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn pod(name: &str, own: &str, addresses: &[&str], node: &str) -> ClusterPod {
    let (namespace, name) = name.split_once('/').unwrap();
    ClusterPod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        labels: labels(own),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        node: Some(node.to_owned()).filter(|n| !n.is_empty()),
        ..ClusterPod::default()
    }
}

/// Namespaces a and b; a/web and a/db with different numbers for the port `http`, b/client of both
/// families, a/host on node n1.
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.set_namespace("a", labels("team=x"));
    cluster.set_namespace("b", Labels::new());
    let port = |name: &str, protocol, number| (name.to_owned(), protocol, number);
    let web = pod("a/web", "app=web", &["10.0.0.1", "fd00::1"], "n1");
    cluster
        .push_pod(ClusterPod { ports: vec![port("http", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)], ..web });
    let db = pod("a/db", "app=db", &["10.0.0.2"], "n2");
    cluster.push_pod(ClusterPod { ports: vec![port("http", Protocol::Tcp, 8080)], ..db });
    cluster.push_pod(pod("b/client", "app=client", &["10.0.1.1", "fd00::2"], "n2"));
    cluster.push_pod(ClusterPod { host_network: true, ..pod("a/host", "app=web", &["192.168.0.1"], "n1") });
    cluster.push_pod(ClusterPod { finished: true, ..pod("a/done", "app=web", &["10.0.0.9"], "n1") });
    for (name, addresses) in [("n1", ["192.168.0.1", "10.0.0.0"]), ("n2", ["192.168.0.2", "10.0.1.0"])] {
        let addresses = addresses.map(|a| a.parse().unwrap()).into();
        cluster.nodes.push(ClusterNode { name: name.to_owned(), addresses, ..ClusterNode::default() });
    }
    cluster.virtual_addresses.insert("10.96.0.1".parse().unwrap(), "a/web".to_owned());
    cluster
}

/// Judges flows `src dst PROTOCOL/port verdict` by policies whose `spec`s are given, all in
/// namespace a.
#[track_caller]
fn check(specs: &[&str], flows: &[&str]) {
    let text: String = specs
        .iter()
        .zip(1..)
        .map(|(spec, n)| format!("---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p{n}, namespace: a}}, spec: {spec}}}\n"))
        .collect();
    let set = read::policies("t.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let evaluator = Evaluator::new(cluster(), set.policies);
    for flow in flows {
        let [src, dst, port, expected] = flow.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
        let (protocol, port) = port.split_once('/').unwrap();
        let (src, dst) = (evaluator.end(src).unwrap(), evaluator.end(dst).unwrap());
        let verdict = evaluator.evaluate(&src, &dst, protocol.parse().unwrap(), port.parse().unwrap());
        assert_eq!(if verdict.allowed() { "allowed" } else { "denied" }, expected, "{flow}\n{text}{verdict:?}");
    }
}

#[test]
fn a1_no_pod_selector_in_any_spelling_means_all_pods_of_the_namespace() {
    for spec in ["{}", "{podSelector: {}}", "{podSelector: null}", "{podSelector: {matchLabels: null}}", "null"] {
        check(
            &[spec],
            &["b/client a/web TCP/80 denied", "b/client a/db TCP/80 denied", "a/web b/client TCP/80 allowed"],
        );
    }
}

#[test]
fn a2_a3_egress_is_isolated_by_default_only_if_it_has_a_rule() {
    for spec in ["{egress: []}", "{egress: null}", "{policyTypes: [], egress: []}", "{policyTypes: null}"] {
        check(&[spec], &["a/web b/client TCP/80 allowed", "b/client a/web TCP/80 denied"]);
    }
    let spec = "{egress: [{ports: [{port: 443}]}]}";
    check(
        &[spec],
        &["a/web b/client TCP/80 denied", "a/web b/client TCP/443 allowed", "b/client a/web TCP/443 denied"],
    );
}

#[test]
fn a4_rules_of_a_direction_that_is_not_listed_are_ignored() {
    let spec = "{policyTypes: [Egress], ingress: [], egress: [{}]}";
    check(&[spec], &["b/client a/web TCP/80 allowed", "a/web b/client TCP/80 allowed"]);
}

#[test]
fn a7_an_empty_rule_allows_external_addresses_too() {
    check(&["{ingress: [{}]}"], &["203.0.113.1 a/web SCTP/9 allowed"]);
    check(&["{ingress: [null]}"], &["203.0.113.1 a/web TCP/9 allowed"]);
    check(&["{ingress: [{from: null, ports: []}]}"], &["203.0.113.1 a/web TCP/9 allowed"]);
}

#[test]
fn a13_to_a16_peers_mean_what_the_api_says() {
    check(&["{ingress: [{from: [{podSelector: {}}]}]}"], &["a/db a/web TCP/1 allowed", "b/client a/web TCP/1 denied"]);
    check(
        &["{ingress: [{from: [{namespaceSelector: {}}]}]}"],
        &["b/client a/web TCP/1 allowed", "203.0.113.1 a/web TCP/1 denied"],
    );
    let both = "{ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: b}}, podSelector: {matchLabels: {app: db}}}]}]}";
    check(&[both], &["b/client a/web TCP/1 denied", "a/db a/web TCP/1 denied"]);
    let either = "{ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: b}}}, {podSelector: {matchLabels: {app: db}}}]}]}";
    check(&[either], &["b/client a/web TCP/1 allowed", "a/db a/web TCP/1 allowed"]);
    // null is absent, not empty
    let null = "{ingress: [{from: [{namespaceSelector: null, podSelector: {}}]}]}";
    check(&[null], &["b/client a/web TCP/1 denied", "a/db a/web TCP/1 allowed"]);
}

#[test]
fn a18_another_rule_may_allow_what_a_block_excepts() {
    let block = "{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.0.0/24]}}";
    check(
        &[&format!("{{ingress: [{{from: [{block}]}}]}}")],
        &["a/db a/web TCP/1 denied", "b/client a/web TCP/1 allowed"],
    );
    let other = "{ipBlock: {cidr: 10.0.0.2/32}}";
    check(&[&format!("{{ingress: [{{from: [{block}, {other}]}}]}}")], &["a/db a/web TCP/1 allowed"]);
}

#[test]
fn a19_families_never_match_each_other_and_dual_stack_pods_are_judged_by_the_family_in_use() {
    let six = "{ingress: [{from: [{ipBlock: {cidr: \"::/0\"}}]}]}";
    check(
        &[six],
        &[
            "10.0.1.1 a/web TCP/1 denied",
            "fd00::2 a/web TCP/1 allowed",
            "b/client fd00::1 TCP/1 allowed",
            "b/client 10.0.0.1 TCP/1 denied",
            // by name: the destination's first address is IPv4
            "b/client a/web TCP/1 denied",
            "::ffff:10.0.1.1 a/web TCP/1 denied",
            "2001:db8::1 a/web TCP/1 allowed",
        ],
    );
    // host bits are cleared, as older API servers do
    check(
        &["{ingress: [{from: [{ipBlock: {cidr: 10.0.1.77/24}}]}]}"],
        &["10.0.1.1 a/web TCP/1 allowed", "10.0.2.1 a/web TCP/1 denied"],
    );
}

#[test]
fn a21_selector_operators_treat_absent_keys_as_documented() {
    let from = |e: &str| {
        format!(
            "{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{podSelector: {{matchExpressions: [{e}]}}}}]}}]}}"
        )
    };
    check(&[&from("{key: zone, operator: NotIn, values: [x]}")], &["a/db a/web TCP/1 allowed"]);
    check(&[&from("{key: zone, operator: DoesNotExist}")], &["a/db a/web TCP/1 allowed"]);
    check(&[&from("{key: zone, operator: In, values: [x]}")], &["a/db a/web TCP/1 denied"]);
    check(&[&from("{key: app, operator: Exists}")], &["a/db a/web TCP/1 allowed"]);
    check(
        &[&from("{key: app, operator: Exists}, {key: app, operator: NotIn, values: [db]}")],
        &["a/db a/web TCP/1 denied"],
    );
}

#[test]
fn a23_to_a25_ports_have_a_protocol_and_ranges_are_inclusive() {
    check(&["{ingress: [{ports: [{port: 53}]}]}"], &["b/client a/web TCP/53 allowed", "b/client a/web UDP/53 denied"]);
    check(
        &["{ingress: [{ports: [{protocol: UDP}]}]}"],
        &["b/client a/web UDP/9 allowed", "b/client a/web TCP/9 denied"],
    );
    check(
        &["{ingress: [{ports: [{port: 100, endPort: 200}]}]}"],
        &[
            "b/client a/web TCP/99 denied",
            "b/client a/web TCP/100 allowed",
            "b/client a/web TCP/150 allowed",
            "b/client a/web TCP/200 allowed",
            "b/client a/web TCP/201 denied",
            "b/client a/web UDP/150 denied",
        ],
    );
}

#[test]
fn a26_one_port_name_has_each_destination_pods_own_number() {
    check(
        &["{ingress: [{ports: [{port: http}]}]}", "{egress: [{ports: [{port: http}]}], policyTypes: [Egress]}"],
        &[
            "b/client a/web TCP/80 allowed",
            "b/client a/web TCP/8080 denied",
            "b/client a/db TCP/8080 allowed",
            "b/client a/db TCP/80 denied",
            // egress: the name is the destination's, who may have none, or be no pod
            "a/db a/web TCP/80 allowed",
            "a/web b/client TCP/80 denied",
            "a/web 203.0.113.1 TCP/80 denied",
            "a/web 192.168.0.2 TCP/80 denied",
        ],
    );
    check(&["{ingress: [{ports: [{port: dns}]}]}"], &["b/client a/web UDP/53 denied", "b/client a/web TCP/53 denied"]);
    check(&["{ingress: [{ports: [{port: dns, protocol: UDP}]}]}"], &["b/client a/web UDP/53 allowed"]);
}

#[test]
fn a27_a_service_address_is_no_destination_of_a_policy() {
    let evaluator = Evaluator::new(cluster(), Vec::new());
    let error = evaluator.end("10.96.0.1").unwrap_err();
    assert!(error.is_unproven());
    assert_eq!(
        error.to_string(),
        "10.96.0.1 is the virtual address of Service a/web: policies are judged at the pod behind it"
    );
}

#[test]
fn a28_a_pod_reaches_itself_whatever_the_policies_say() {
    let deny = "{policyTypes: [Ingress, Egress]}";
    check(
        &[deny],
        &[
            "a/web a/web TCP/80 allowed",
            "a/web 10.0.0.1 TCP/80 allowed",
            "fd00::1 a/web TCP/80 allowed",
            "a/web a/db TCP/80 denied",
        ],
    );
}

#[test]
fn a29_a_pod_and_its_own_node_talk_and_other_nodes_are_judged() {
    let deny = "{policyTypes: [Ingress, Egress]}";
    check(
        &[deny],
        &[
            "192.168.0.1 a/web TCP/80 allowed",
            "a/web 192.168.0.1 TCP/10250 allowed",
            "10.0.0.0 a/web TCP/80 allowed",
            "a/host a/web TCP/80 allowed",
            "a/web a/host TCP/80 allowed",
            "192.168.0.2 a/web TCP/80 denied",
            "10.0.1.0 a/web TCP/80 denied",
            "a/web 192.168.0.2 TCP/80 denied",
            // NodeLocal DNSCache
            "a/web 169.254.20.10 UDP/53 allowed",
            "a/web 169.254.169.254 TCP/80 denied",
        ],
    );
}

#[test]
fn a30_host_network_pods_are_neither_subject_nor_peer_by_labels() {
    // a/host bears app=web: it is not isolated, and it does not count as a pod of namespace a
    check(
        &["{podSelector: {matchLabels: {app: web}}}"],
        &["b/client a/host TCP/80 allowed", "b/client a/web TCP/80 denied"],
    );
    check(
        &["{ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}"],
        &["a/host a/db TCP/80 denied", "a/web a/db TCP/80 allowed"],
    );
    check(&["{ingress: [{from: [{ipBlock: {cidr: 192.168.0.0/16}}]}]}"], &["a/host a/db TCP/80 allowed"]);
    check(&["{ingress: [{}]}"], &["a/host a/db TCP/80 allowed"]);
}

#[test]
fn a32_finished_pods_have_no_live_endpoint() {
    let evaluator = Evaluator::new(cluster(), Vec::new());
    assert_eq!(evaluator.end("a/done").unwrap_err(), UnknownEnd::Finished("a/done".to_owned()));
    assert!(!evaluator.end("10.0.0.9").unwrap().is_pod(), "its address belongs to nobody");
}

#[test]
fn deciding_rules_of_all_policies_are_named_and_counted_from_one() {
    let text = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: a}, spec: {ingress: [{ports: [{port: 1}]}, {ports: [{port: 2}]}, {}]}}";
    let evaluator = Evaluator::new(cluster(), read::policies("t.yaml", text.as_bytes()).unwrap().policies);
    let (src, dst) = (evaluator.end("b/client").unwrap(), evaluator.end("a/web").unwrap());
    let verdict = evaluator.evaluate(&src, &dst, Protocol::Tcp, 2);
    let names: Vec<String> =
        verdict.ingress.rules().iter().map(|r| evaluator.rule_name(Direction::Ingress, *r)).collect();
    assert_eq!(names, ["a/p#2", "a/p#3"]);
    assert_eq!(verdict.egress, SideVerdict::NotIsolated);
}

/// What Cilium, with these options, makes of a connection from each of `froms` to `to`.
#[track_caller]
fn under_cilium(policies: &str, options: &str, objects: &str, froms: &[(&str, &str)], to: &str) {
    let mut reader = read::Reader::new();
    reader.add("p.yaml", policies.as_bytes(), read::Expect::Policies);
    reader.add("objects.yaml", objects.as_bytes(), read::Expect::Anything);
    let set = reader.finish().unwrap();
    let keys = options.split_whitespace().filter_map(|o| o.split_once('='));
    let options = CiliumOptions::from_keys(&keys.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()).unwrap();
    let objects = guardrail_graph::inventory::read::objects(objects, "objects.yaml").unwrap().objects;
    let cluster = Cluster::from_objects(&objects).with_facts(&set.facts).with_names(None, true);
    let evaluator = Evaluator::mixed(cluster, set.policies, set.forms, &Dataplane::Cilium(options));
    for (from, expected) in froms {
        let verdict = evaluator.evaluate(&evaluator.end(from).unwrap(), &evaluator.end(to).unwrap(), Protocol::Tcp, 81);
        let answer = if verdict.allowed() {
            "allowed"
        } else if verdict.denied() {
            "denied"
        } else {
            "unproven"
        };
        let why = evaluator.why_unproven(Direction::Ingress, &verdict.ingress);
        assert_eq!(answer, *expected, "{from}: {verdict:?} {why:?}");
        assert_eq!(why.is_empty(), answer != "unproven", "{from}: {why:?}");
    }
}

/// Pods a/web and a/db, the API server on the host network of node n1; all on nodes of their own.
const OBJECTS: &str = "
{kind: Node, apiVersion: v1, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: web, namespace: a, labels: {app: web}}, spec: {nodeName: n2}, status: {podIP: 10.0.0.1}}
---
{kind: Pod, apiVersion: v1, metadata: {name: db, namespace: a, labels: {app: db, tier: back}}, spec: {nodeName: n3}, status: {podIP: 10.0.0.2}}
---
{kind: Pod, apiVersion: v1, metadata: {name: apiserver, namespace: kube-system}, spec: {nodeName: n1, hostNetwork: true}, status: {podIP: 192.168.0.1}}
---
{kind: Service, apiVersion: v1, metadata: {name: kubernetes, namespace: default}, spec: {clusterIP: 10.96.0.1, ports: [{port: 443}]}}
---
{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, addressType: IPv4, metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}, endpoints: [{addresses: [192.168.0.1]}]}
";

fn cnp(spec: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: p, namespace: a}}, spec: {{endpointSelector: {{matchLabels: {{app: web}}}}, {spec}}}}}"
    )
}

#[test]
fn the_api_server_is_one_by_the_name_of_its_pod_as_by_its_address() {
    let froms = [("192.168.0.1", "allowed"), ("kube-system/apiserver", "allowed"), ("a/db", "denied")];
    under_cilium(&cnp("ingress: [{fromEntities: [kube-apiserver]}]"), "", OBJECTS, &froms, "a/web");
}

#[test]
fn without_its_endpoints_an_api_server_outside_may_be_of_the_cluster() {
    let objects = OBJECTS.split("---\n{kind: EndpointSlice").next().unwrap();
    let froms = [("203.0.113.1", "unproven"), ("a/db", "allowed"), ("reserved:health", "allowed")];
    under_cilium(&cnp("ingress: [{fromEntities: [cluster]}]"), "", objects, &froms, "a/web");
}

#[test]
fn the_world_without_an_address_may_be_in_every_range() {
    let open = "ingress: [{fromEntities: [world]}], ingressDeny: [{fromCIDR: [203.0.113.0/24]}]";
    let froms = [("reserved:world", "unproven"), ("203.0.113.1", "denied"), ("198.51.100.1", "allowed")];
    under_cilium(&cnp(open), "", OBJECTS, &froms, "a/web");
    under_cilium(&cnp("ingress: [{fromEntities: [world]}]"), "", OBJECTS, &[("reserved:world", "allowed")], "a/web");
}

#[test]
fn groups_that_nobody_listed_are_unproven_and_one_that_is_missing_is_nobody() {
    let policy = cnp("ingress: [{fromCIDRSet: [{cidrGroupRef: offices}]}]");
    under_cilium(&policy, "", OBJECTS, &[("203.0.113.1", "unproven"), ("a/db", "denied")], "a/web");
    let listed = |name: &str| {
        format!(
            "{OBJECTS}---\n{{kind: CiliumCIDRGroup, apiVersion: cilium.io/v2, metadata: {{name: {name}}}, spec: {{externalCIDRs: [203.0.113.0/24]}}}}\n"
        )
    };
    under_cilium(&policy, "", &listed("others"), &[("203.0.113.1", "denied")], "a/web");
    under_cilium(&policy, "", &listed("offices"), &[("203.0.113.1", "allowed")], "a/web");
}

#[test]
fn conditions_on_peers_that_are_allowed_do_not_narrow_a_deny() {
    let db = "matchLabels: {app: db}";
    let rules = |list: &str| {
        format!(
            "ingress: [{{fromEntities: [cluster]}}, {{fromEndpoints: [{{{db}}}]}}], ingressDeny: [{{fromEndpoints: [{{{db}}}]}}], {list}"
        )
    };
    let requires = "fromRequires: [{matchLabels: {tier: front}}]";
    // The deny holds for a/db, which the condition leaves out.
    let narrow = rules("").replace("ingress: [", &format!("ingress: [{{{requires}}}, "));
    under_cilium(&cnp(narrow.trim_end_matches(", ")), "version=1.18", OBJECTS, &[("a/db", "denied")], "a/web");
    let deny = rules("").replace("ingressDeny: [", &format!("ingressDeny: [{{{requires}}}, "));
    under_cilium(&cnp(deny.trim_end_matches(", ")), "version=1.18", OBJECTS, &[("a/db", "allowed")], "a/web");
}

#[test]
fn releases_before_1_16_know_no_ranges_of_ports() {
    let range = cnp("ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: \"80\", endPort: 90}]}]}]");
    for (version, expected) in [("version=1.15", "denied"), ("version=1.16", "allowed"), ("", "allowed")] {
        under_cilium(&range, version, OBJECTS, &[("a/db", expected)], "a/web");
    }
}

#[test]
fn candidates_are_the_clients_that_may_be_admitted() {
    let pods = [("web", 1), ("db", 2), ("job", 3)].map(|(app, last)| {
        format!("{{kind: Pod, apiVersion: v1, metadata: {{name: {app}, namespace: a, labels: {{app: {app}}}}}, status: {{podIP: 10.0.0.{last}}}}}\n"
        )
    });
    let objects = guardrail_graph::inventory::read::objects(&pods.join("---\n"), "objects.yaml").unwrap().objects;
    let peers = |peers: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: a}}, spec: {{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{peers}], ports: [{{port: 1}}]}}]}}}}"
        )
    };
    for (policy, expected) in [
        (peers("{podSelector: {matchLabels: {app: web}}}"), vec![0]),
        (peers("{podSelector: {matchLabels: {app: web}}}, {podSelector: {matchLabels: {app: job}}}"), vec![0, 2, 3]),
        (peers("{ipBlock: {cidr: 10.0.0.2/31}}"), vec![1, 2, 3]),
        (peers("{ipBlock: {cidr: 192.0.2.0/24}}"), vec![3]),
        (peers(""), vec![0, 1, 2, 3]),
    ] {
        let set = read::policies("p.yaml", policy.as_bytes()).unwrap();
        let evaluator = Evaluator::new(Cluster::from_objects(&objects), set.policies);
        let end = |name: &str| evaluator.end(name).unwrap();
        // The last one has an end that is no pod.
        let ends = [vec![end("a/web")], vec![end("a/db")], vec![end("a/job")], vec![end("192.0.2.7"), end("a/job")]];
        let admission = evaluator.admission(&end("a/db"), Protocol::Tcp, 1);
        let admitted = |ends: &Vec<End>| ends.iter().any(|end| admission.may_admit(end));
        let asked: Vec<usize> = (0..ends.len()).filter(|index| admitted(&ends[*index])).collect();
        let clients = Clients::new(ends.iter().map(Vec::as_slice));
        let mut candidates = admission.candidates(&clients);
        candidates.sort_unstable();
        assert_eq!((&candidates, &asked), (&expected, &expected), "{policy}");
    }
}

#[test]
fn all_connections_hold_the_ranges_behind_names_and_groups() {
    let policy = cnp(
        "ingress: [{fromCIDRSet: [{cidrGroupRef: offices, except: [198.51.100.128/25]}]}], egress: [{toFQDNs: [{matchName: api.example.com}]}]",
    );
    let objects = format!(
        "{OBJECTS}---\n{{kind: CiliumCIDRGroup, apiVersion: cilium.io/v2, metadata: {{name: offices}}, spec: {{externalCIDRs: [198.51.100.0/24]}}}}\n"
    );
    let mut reader = read::Reader::new();
    reader.add("p.yaml", policy.as_bytes(), read::Expect::Policies);
    reader.add("objects.yaml", objects.as_bytes(), read::Expect::Anything);
    let set = reader.finish().unwrap();
    let names = [("api.example.com".to_owned(), "203.0.113.7".parse().unwrap())];
    let objects = guardrail_graph::inventory::read::objects(&objects, "objects.yaml").unwrap().objects;
    let cluster = Cluster::from_objects(&objects).with_facts(&set.facts).with_names(names, true);
    let options = CiliumOptions::from_keys(&std::collections::BTreeMap::new()).unwrap();
    let evaluator = Evaluator::mixed(cluster, set.policies, set.forms, &Dataplane::Cilium(options));
    let connections = evaluator.connections();
    let with_blocks: Vec<String> = connections
        .iter()
        .filter(|c| [&c.src, &c.dst].into_iter().any(|party| matches!(party, connections::Party::Block(_))))
        .map(|c| format!("{} -> {}", c.src, c.dst))
        .collect();
    assert_eq!(with_blocks, ["198.51.100.0/24 -> a/web", "a/web -> 203.0.113.7/32"]);
}

#[test]
fn a_node_has_the_first_addresses_of_its_pod_range_as_far_as_they_lie_in_it() {
    for (range, expected) in [("10.0.0.4/30", &["10.0.0.4", "10.0.0.5"][..]), ("10.0.0.5/32", &["10.0.0.5"])] {
        let node = format!("kind: Node\nmetadata: {{name: a}}\nspec: {{podCIDR: {range}}}\n");
        let objects = guardrail_graph::inventory::read::objects(&node, "objects.yaml").unwrap().objects;
        let cluster = Cluster::from_objects(&objects);
        let addresses: Vec<String> = cluster.nodes[0].addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, expected, "{range}");
    }
}
