//! Each rule finds what it is for, at its line, and stays silent beside it.

use super::*;
use crate::read::Reader;

fn context() -> Context {
    let text = "
kind: Namespace
metadata: {name: a}
---
kind: Node
metadata: {name: n}
spec: {podCIDRs: [10.0.0.0/16]}
---
kind: Pod
metadata: {name: web, namespace: a, labels: {app: web}}
spec: {nodeName: n, containers: [{ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.0.0.1}
---
kind: Service
metadata: {name: web, namespace: a}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 81, targetPort: http, nodePort: 30080}]}
";
    Context::from_objects(&guardrail_graph::inventory::read::objects(text, "inventory.yaml").unwrap().objects)
}

fn rules_of(spec: &str, context: &Context) -> Vec<&'static str> {
    let text =
        format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: a}}\n{spec}\n");
    let mut reader = Reader::new();
    reader.add("p.yaml", text.as_bytes(), crate::read::Expect::Policies);
    let (set, problems) = reader.finish_lenient();
    let findings = lint(&set, &problems, context);
    assert!(findings.iter().all(|f| f.location.as_ref().is_some_and(|l| l.line > 0)), "{findings:?}");
    // Notes are for whoever wants them, and stand beside much that is meant.
    findings.iter().filter(|f| f.severity != Severity::Note).map(|f| f.rule).collect()
}

/// Specs that give exactly this finding, and specs that give none.
#[track_caller]
fn check(rule: &LintRule, found: &[&str], silent: &[&str]) {
    let context = context();
    for spec in found {
        assert_eq!(rules_of(spec, &context), [rule.id], "{spec}");
    }
    for spec in silent {
        assert_eq!(rules_of(spec, &context), [""; 0], "{spec}");
    }
}

fn ingress(rule: &str) -> String {
    format!("spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Ingress], ingress: [{rule}]}}")
}

fn egress(rule: &str) -> String {
    format!("spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{rule}]}}")
}

#[test]
fn rules_about_fields() {
    check(&INVALID, &[&ingress("{ports: [{port: 0}]}")], &[]);
    check(&QUOTED_PORT, &[&ingress("{ports: [{port: \"80\"}]}")], &[&ingress("{ports: [{port: 80}]}")]);
    check(&UNKNOWN_FIELD, &[&ingress("{prots: [], ports: [{port: 80}]}")], &[]);
    check(&MISSING_POLICY_TYPES, &["spec: {podSelector: {matchLabels: {app: web}}}"], &[]);
    check(&EMPTY_SPEC, &["", "spec: null", "spec: {}"], &[]);
    let ignored = "spec: {podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 1}]}]}";
    check(&IGNORED_RULES, &[ignored], &["spec: {podSelector: {}, policyTypes: [Ingress], egress: []}"]);
}

#[test]
fn rules_about_selectors() {
    let generated = "spec: {podSelector: {matchLabels: {pod-template-hash: x}}, policyTypes: [Ingress]}";
    assert_eq!(rules_of(generated, &Context::default()), [GENERATED_LABEL.id]);
    check(&SELECTS_NOTHING, &["spec: {podSelector: {matchLabels: {app: old}}, policyTypes: [Ingress]}"], &[]);
    let peer = |peer: &str| ingress(&format!("{{from: [{peer}], ports: [{{port: 80}}]}}"));
    check(
        &PEER_MATCHES_NOTHING,
        &[&peer("{podSelector: {matchLabels: {app: old}}}")],
        &[&peer("{podSelector: {matchLabels: {app: web}}}")],
    );
    check(
        &WIDE_PEER,
        &[
            &peer("{podSelector: {}}"),
            &ingress("{from: [{namespaceSelector: {}}]}"),
            &ingress("{from: [{namespaceSelector: {}, podSelector: {}}]}"),
            &peer("{ipBlock: {cidr: 0.0.0.0/0}}"),
            &peer(
                "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: a}}}, {podSelector: {matchLabels: {app: web}}}",
            ),
        ],
        &[
            &peer("{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}"),
            &peer(
                "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: a}}, podSelector: {matchLabels: {app: web}}}",
            ),
        ],
    );
    check(
        &CLUSTER_IP_BLOCK,
        &[
            &peer("{ipBlock: {cidr: 10.0.0.1/32}}"),
            &peer("{ipBlock: {cidr: 10.0.0.0/8}}"),
            &peer("{ipBlock: {cidr: 10.96.0.1/32}}"),
        ],
        &[&peer("{ipBlock: {cidr: 203.0.113.0/24}}")],
    );
}

#[test]
fn rules_about_ports() {
    check(&NODE_PORT, &[&ingress("{ports: [{port: 30080}]}")], &[&ingress("{ports: [{port: 30081}]}")]);
    assert_eq!(rules_of(&ingress("{ports: [{port: 31000}]}"), &Context::default()), [NODE_PORT.id]);
    check(
        &UNKNOWN_PORT_NAME,
        &[&ingress("{ports: [{port: grpc}]}"), &ingress("{ports: [{port: http, protocol: UDP}]}")],
        &[&ingress("{ports: [{port: http}]}")],
    );
    let beside = "{ports: [{port: 8080}]}, {}";
    check(&ALLOW_ALL, &[&ingress(beside), &egress(beside)], &[&ingress("{ports: [{}]}")]);
}

#[test]
fn closed_egress_needs_dns_from_some_policy() {
    check(
        &NO_DNS,
        &[&egress(""), &egress("{ports: [{port: 443}]}"), &egress("{ports: [{port: 53}]}")],
        &[
            &egress("{ports: [{port: 53, protocol: UDP}]}"),
            &egress("{ports: [{port: 1, endPort: 100, protocol: UDP}]}"),
        ],
    );
    let dns = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: dns, namespace: a}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}";
    let both = format!("{}\n---\n{dns}", egress("{ports: [{port: 443}]}"));
    for context in [context(), Context::default()] {
        assert_eq!(rules_of(&both, &context), [""; 0]);
    }
}

#[test]
fn rule_ids_are_unique_and_sorted() {
    assert!(RULES.windows(2).all(|pair| pair[0].id < pair[1].id));
    let names: BTreeSet<&str> = RULES.iter().map(|r| r.name).collect();
    assert_eq!(names.len(), RULES.len());
}

/// The rules that a Cilium policy for pods `app: web` of namespace a breaks.
#[track_caller]
fn cilium(spec: &str, expected: &[&LintRule]) {
    let subject = if spec.contains("endpointSelector") { "" } else { "endpointSelector: {matchLabels: {app: web}}, " };
    let text = format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {{{subject}{spec}}}\n"
    );
    let mut reader = Reader::new();
    reader.add("p.yaml", text.as_bytes(), crate::read::Expect::Policies);
    let (set, problems) = reader.finish_lenient();
    let found = lint(&set, &problems, &context());
    assert!(found.iter().all(|f| f.location.as_ref().is_some_and(|l| l.line > 0)), "{found:?}");
    let found: Vec<&str> = found.iter().filter(|f| f.severity != Severity::Note).map(|f| f.rule).collect();
    assert_eq!(found, expected.iter().map(|r| r.id).collect::<Vec<_>>(), "{spec}");
}

#[test]
fn what_holds_for_every_kind_is_found_in_ciliums_too() {
    cilium("endpointSelector: {matchLabels: {app: old}}, ingress: [{}]", &[&SELECTS_NOTHING]);
    cilium(
        "endpointSelector: {matchLabels: {pod-template-hash: x}}, ingress: [{}]",
        &[&GENERATED_LABEL, &SELECTS_NOTHING],
    );
    cilium("ingress: [{fromEndpoints: [{matchLabels: {app: old}}]}]", &[&PEER_MATCHES_NOTHING]);
    cilium("ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]", &[]);
    cilium("ingress: [{fromCIDR: [10.0.0.0/24]}]", &[&CLUSTER_IP_BLOCK]);
    cilium("ingress: [{fromCIDR: [203.0.113.0/24]}]", &[]);
    cilium("ingress: [{fromEntities: [all]}]", &[&WIDE_PEER, &ALLOW_ALL]);
    cilium("ingressDeny: [{fromEntities: [all]}]", &[&DENY_CLOSES]);
    let port = |name: &str| format!("ingress: [{{fromEndpoints: [{{}}], toPorts: [{{ports: [{{port: {name}}}]}}]}}]");
    cilium(&port("grpc"), &[&UNKNOWN_PORT_NAME]);
    cilium(&port("http"), &[]);
    cilium("ingress: [{toPorts: [{ports: [{port: \"80\"}], rules: {dns: [{}]}}]}]", &[&INVALID]);
    cilium(
        "ingress: [{fromEndpoints: [{}]}], ingressDeny: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{}]}}]}]",
        &[&INVALID],
    );
}

#[test]
fn ports_of_services_and_halves_of_rules_are_found_in_ciliums_too() {
    let ports = |ports: &str| format!("toPorts: [{{ports: [{ports}]}}]");
    let number = |number: &str| ports(&format!("{{port: \"{number}\", protocol: TCP}}"));
    let from_web = "fromEndpoints: [{matchLabels: {app: web}}]";
    let ingress = |number: String| format!("ingress: [{{{from_web}, {number}}}]");
    cilium(&ingress(number("8080")), &[]);
    cilium(&ingress(number("81")), &[&SERVICE_PORT]);
    cilium(&ingress(number("30080")), &[&NODE_PORT]);
    cilium(&ingress(ports("{port: \"8080\"}")), &[]);
    let egress = |to: &str, number: String| format!("egress: [{{{to}, {number}}}]");
    cilium(&egress("toEndpoints: [{matchLabels: {app: web}}]", number("81")), &[&SERVICE_PORT]);
    cilium(&egress("toEndpoints: [{matchLabels: {app: web}}]", number("30080")), &[&NODE_PORT]);
    // A node is reached at its node ports.
    cilium(&egress("toEntities: [remote-node]", number("30080")), &[]);
    cilium(&format!("ingress: [{{{from_web}}}, {{{}}}]", number("8080")), &[&SPLIT_RULE]);
    cilium(&format!("ingress: [{{{}}}, {{{from_web}}}]", number("8080")), &[&SPLIT_RULE]);
    cilium(&format!("ingress: [{{{from_web}, {}}}, {{{from_web}}}]", number("8080")), &[]);
    let dns = ports("{port: \"53\", protocol: ANY}");
    cilium(&format!("egress: [{{toEndpoints: [{{matchLabels: {{app: web}}}}]}}, {{{dns}}}]"), &[]);
}

#[test]
fn an_empty_rule_is_default_deny_alone_and_a_mistake_beside_others() {
    cilium("ingress: [{}]", &[]);
    cilium("ingress: [{fromEndpoints: [{}]}, {}]", &[&MATCHES_NOBODY]);
    cilium("ingress: [{fromEndpoints: [], toPorts: [{ports: [{port: \"80\"}]}]}]", &[&MATCHES_NOBODY]);
}

/// Rules and severities of what a policy file gives beside an inventory.
fn told(policies: &str, inventory: &str) -> Vec<(&'static str, Severity)> {
    let mut reader = Reader::new();
    reader.add("p.yaml", policies.as_bytes(), crate::read::Expect::Policies);
    let (set, problems) = reader.finish_lenient();
    let objects = || guardrail_graph::inventory::read::objects(inventory, "inventory.yaml").unwrap().objects;
    let context = if inventory.is_empty() { Context::default() } else { Context::from_objects(&objects()) };
    lint(&set, &problems, &context).iter().map(|f| (f.rule, f.severity)).collect()
}

fn spec_of(spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: a}}\n{spec}\n")
}

/// As kube-prometheus, argo-cd and kyverno publish them.
#[test]
fn what_is_left_open_by_itself_is_a_note() {
    let open = |spec: &str| told(&spec_of(spec), "");
    assert_eq!(open(&egress("{}")), [(ALLOW_ALL.id, Severity::Note)]);
    assert_eq!(open(&ingress("{}")), [(ALLOW_ALL.id, Severity::Note)]);
    let every_namespace = |ports: &str| open(&ingress(&format!("{{from: [{{namespaceSelector: {{}}}}]{ports}}}")));
    assert_eq!(every_namespace(", ports: [{port: 9402}]"), [(WIDE_PEER.id, Severity::Note)]);
    assert_eq!(every_namespace(""), [(WIDE_PEER.id, Severity::Warning)]);
    let dns = "{to: [{namespaceSelector: {}}], ports: [{port: 53, protocol: UDP}, {port: 53}]}";
    assert_eq!(open(&egress(dns)), []);
}

/// `0.0.0.0/0` is to addresses what `namespaceSelector: {}` is to pods.
#[test]
fn every_address_is_told_once_a_rule_and_is_meant_for_dns() {
    let to = |blocks: &str, ports: &str| {
        told(&spec_of(&egress(&format!("{{to: [{blocks}]{ports}}}, {{ports: [{{port: 53, protocol: UDP}}]}}"))), "")
    };
    let (v4, both) = ("{ipBlock: {cidr: 0.0.0.0/0}}", "{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}");
    let (wide, metadata) = (WIDE_PEER.id, (METADATA_ADDRESS.id, Severity::Note));
    assert_eq!(to(v4, ""), [(wide, Severity::Warning), metadata]);
    assert_eq!(to(both, ""), [(wide, Severity::Warning), metadata]);
    assert_eq!(to(both, ", ports: [{port: 443}]"), [(wide, Severity::Note)]);
    assert_eq!(to(both, ", ports: [{port: 443}, {port: 80}]"), [(wide, Severity::Note), metadata]);
    assert_eq!(to(both, ", ports: [{port: 53, protocol: UDP}, {port: 53}]"), []);
}

/// Metadata services speak HTTP at port 80.
#[test]
fn a_rule_that_leaves_port_80_out_opens_no_metadata_service() {
    let except = |ports: &str| {
        let block = "{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}]";
        told(&spec_of(&egress(&format!("{block}{ports}}}, {{ports: [{{port: 53, protocol: UDP}}]}}"))), "")
    };
    let metadata = [(METADATA_ADDRESS.id, Severity::Note)];
    for open in ["", ", ports: [{port: 80}]", ", ports: [{port: 1, endPort: 1024}]", ", ports: [{protocol: TCP}]"] {
        assert_eq!(except(open), metadata, "{open}");
    }
    for closed in
        [", ports: [{port: 443}]", ", ports: [{port: 80, protocol: UDP}]", ", ports: [{port: 81, endPort: 99}]"]
    {
        assert_eq!(except(closed), [], "{closed}");
    }
}

/// Argo CD's policy for Dex has such a pair.
#[test]
fn a_protocol_in_an_item_of_its_own_opens_every_port() {
    let ports = |ports: &str| {
        told(
            &spec_of(&ingress(&format!("{{from: [{{podSelector: {{matchLabels: {{app: b}}}}}}], ports: [{ports}]}}"))),
            "",
        )
    };
    let every = [(EVERY_PORT.id, Severity::Warning)];
    assert_eq!(ports("{port: 5558}, {protocol: TCP}"), every);
    assert_eq!(ports("{protocol: UDP}, {port: 1, endPort: 9, protocol: UDP}"), every);
    assert_eq!(ports("{port: http}, {}"), every);
    for meant in ["{protocol: TCP}", "{protocol: TCP}, {protocol: UDP}", "{port: 53, protocol: UDP}, {protocol: TCP}"] {
        assert_eq!(ports(meant), [], "{meant}");
    }
    assert_eq!(ports("{port: 80}, {port: null}"), [(EMPTY_FIELD.id, Severity::Warning)]);
    let text = said(
        &ingress("{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}, {protocol: TCP}]}"),
        &context(),
    );
    assert!(text.contains("an item without `port` is every TCP port, so TCP/8080 beside it does nothing"), "{text}");
}

/// Without pods of the API server in it, namespace `default` is where people look for it.
#[test]
fn the_namespace_of_the_api_servers_service_is_told_as_that() {
    let to = |name: &str| {
        let rule = format!(
            "{{to: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {name}}}}}}}], ports: [{{port: 443}}]}}"
        );
        said(&egress(&format!("{rule}, {{ports: [{{port: 53, protocol: UDP}}]}}")), &context())
    };
    let text = to("default");
    assert!(text.contains("the API server is none. If it is meant, write an ipBlock of its endpoints"), "{text}");
    assert!(to("kube-public").contains("matches no live pod"), "{}", to("kube-public"));
    assert!(to("shopp").contains("no namespace is called shopp"), "{}", to("shopp"));
}

/// NodeLocal DNS is no pod of an inventory that somebody cut down.
#[test]
fn dns_at_a_link_local_address_is_a_way_to_dns() {
    let dns = "
---
kind: Pod
metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec: {containers: [{ports: [{containerPort: 53, protocol: UDP}]}]}
status: {podIP: 10.0.0.9}
---
kind: Pod
metadata: {name: web, namespace: a, labels: {app: web}}
spec: {containers: [{}]}
status: {podIP: 10.0.0.1}
";
    let to = |cidr: &str| {
        told(
            &spec_of(&egress(&format!(
                "{{to: [{{ipBlock: {{cidr: {cidr}}}}}], ports: [{{port: 53, protocol: UDP}}]}}"
            ))),
            dns,
        )
    };
    assert_eq!(to("169.254.20.10/32"), []);
    assert_eq!(to("192.0.2.7/32"), [(NO_DNS.id, Severity::Warning)]);
}

/// Istio's charts write `from: []`.
#[test]
fn an_empty_list_of_peers_is_told_once() {
    let spec = spec_of(&ingress("{from: [], ports: [{port: 8080}]}"));
    assert_eq!(told(&spec, ""), [(EMPTY_FIELD.id, Severity::Warning)]);
    let silenced = spec.replace("spec:", "# guardrail: ignore GR036 everybody is meant\nspec:");
    assert_eq!(told(&silenced, ""), []);
}

/// Labels of the Service were taken for those of its pods, mostly.
#[test]
fn what_a_selector_nearly_matches_is_named() {
    let context = context();
    let from =
        |labels: &str| said(&ingress(&format!("{{from: [{{podSelector: {{matchLabels: {{{labels}}}}}}}]}}")), &context);
    let text = from("app: web, tier: front");
    assert!(text.contains("matches no live pod: a/web has all of it but tier=front. Correct the labels"), "{text}");
    let text = from("app: wbe");
    assert!(text.contains("matches no live pod: a/web has app=web. Correct the labels"), "{text}");
    let text = from("app: something-else");
    assert!(text.contains("matches no live pod. Correct the labels"), "{text}");
    let text = said("spec: {podSelector: {matchLabels: {app: web, tier: front}}, policyTypes: [Ingress]}", &context);
    assert!(text.contains("matches no live pod in a: a/web has all of it but tier=front."), "{text}");
}

/// Without an inventory, too, a podSelector alone looks in the policy's own namespace.
#[test]
fn the_label_of_dns_pods_alone_is_told_as_what_it_means() {
    let rule = "{to: [{podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]}";
    let text = said(&egress(rule), &Context::default());
    assert!(
        text.contains("podSelector k8s-app=kube-dns without a namespaceSelector means pods of a. Add a namespaceSelector in the same item (kubernetes.io/metadata.name: kube-system)"),
        "{text}"
    );
    let there = spec_of(&egress(rule)).replace("namespace: a", "namespace: kube-system");
    assert_eq!(told(&there, ""), []);
}

/// Istio's charts select `istio.io/rev: default`.
#[test]
fn a_tag_of_revisions_is_no_revision() {
    let rev = |value: &str| {
        let spec = "spec: {podSelector: {matchLabels: {app: istiod, istio.io/rev: VALUE}}, policyTypes: [Ingress]}";
        told(&spec_of(&spec.replace("VALUE", value)), "")
    };
    assert_eq!(rev("default"), []);
    assert_eq!(rev("1-26-1"), [(RELEASE_LABEL.id, Severity::Warning)]);
}

/// What is rendered from a chart has some of a cluster's workloads only.
#[test]
fn what_a_pipeline_cannot_see_is_no_mistake() {
    let rendered = "
kind: Namespace
metadata: {name: profile, labels: {part-of: profile}}
---
kind: Deployment
apiVersion: apps/v1
metadata: {name: web, namespace: a}
spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{}]}}}
---
kind: Service
metadata: {name: prometheus, namespace: a}
spec: {clusterIP: 10.96.0.1, selector: {app: prometheus, instance: k8s}, ports: [{port: 9090}]}
";
    let live = format!("{rendered}---\nkind: Pod\nmetadata: {{name: x, namespace: b}}\nstatus: {{podIP: 10.0.0.1}}\n");
    let subject = |labels: &str| {
        spec_of(&format!("spec: {{podSelector: {{matchLabels: {{{labels}}}}}, policyTypes: [Ingress]}}"))
    };
    let peer = |peer: &str| spec_of(&ingress(&format!("{{from: [{peer}], ports: [{{port: 80}}]}}")));
    let (nothing, nobody) = (SELECTS_NOTHING.id, PEER_MATCHES_NOTHING.id);
    // A mistake in a label is one with pods and without.
    for inventory in [rendered, &live] {
        assert_eq!(told(&subject("app: wbe"), inventory), [(nothing, Severity::Warning)]);
        assert_eq!(told(&peer("{podSelector: {matchLabels: {app: wbe}}}"), inventory), [(nobody, Severity::Warning)]);
    }
    // An operator makes the pods of this Service; an injector, a controller add these labels.
    for labels in [
        "app: prometheus",
        "service.istio.io/canonical-name: web",
        "linkerd.io/workload-ns: a",
        "statefulset.kubernetes.io/pod-name: db-0",
    ] {
        assert_eq!(told(&subject(labels), rendered), []);
        assert_eq!(told(&subject(labels), &live), [(nothing, Severity::Warning)]);
        assert_eq!(told(&peer(&format!("{{podSelector: {{matchLabels: {{{labels}}}}}}}")), rendered), []);
    }
    // Other namespaces.
    for selector in ["kubernetes.io/metadata.name: kube-system", "part-of: profile"] {
        let there = peer(&format!("{{namespaceSelector: {{matchLabels: {{{selector}}}}}}}"));
        assert_eq!(told(&there, rendered), [(nobody, Severity::Note)]);
        assert_eq!(told(&there, &live)[0].0, nobody);
    }
    let other = subject("app: api").replace("namespace: a", "namespace: elsewhere");
    assert_eq!(told(&other, rendered), [(nothing, Severity::Note)]);
    assert_eq!(told(&other, &live), [(nothing, Severity::Warning)]);
    // Every pod of a namespace that has none yet.
    let all = spec_of("spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}");
    let all = all.replace("namespace: a", "namespace: elsewhere");
    for inventory in [rendered, &live] {
        assert_eq!(told(&all, inventory), [(nothing, Severity::Note)]);
    }
}

/// What the one finding that is no note says and advises.
#[track_caller]
fn said(spec: &str, context: &Context) -> String {
    let text =
        format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: a}}\n{spec}\n");
    let (set, problems) = {
        let mut reader = Reader::new();
        reader.add("p.yaml", text.as_bytes(), crate::read::Expect::Policies);
        reader.finish_lenient()
    };
    let mut findings = lint(&set, &problems, context);
    findings.retain(|f| f.severity != Severity::Note);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    findings[0].text()
}

#[test]
fn labels_in_the_wrong_place_are_told_as_that() {
    let text = "
kind: Namespace
metadata: {name: a}
---
kind: Namespace
metadata: {name: front}
---
kind: Namespace
metadata: {name: other}
---
kind: Pod
metadata: {name: web, namespace: a, labels: {app: web}}
---
kind: Pod
metadata: {name: in, namespace: front, labels: {app: entry, name: entry}}
";
    let context =
        Context::from_objects(&guardrail_graph::inventory::read::objects(text, "inventory.yaml").unwrap().objects);
    let peer = |peer: &str| ingress(&format!("{{from: [{peer}], ports: [{{port: 80}}]}}"));
    for (selectors, words) in [
        (
            "{namespaceSelector: {matchLabels: {name: front}}}",
            "namespace front has no label name=front. Write kubernetes.io/metadata.name: front",
        ),
        (
            "{podSelector: {matchLabels: {kubernetes.io/metadata.name: front}}}",
            "is a label of namespaces, pods do not have it. Write it under namespaceSelector",
        ),
        (
            "{namespaceSelector: {matchLabels: {app: entry}}}",
            "these are labels of pods (front/in), namespaces do not have them. Write them under podSelector",
        ),
        ("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: frnot}}}", "no namespace is called frnot"),
        (
            "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}, podSelector: {matchLabels: {app: entry}}}",
            "pods with these labels are in front, which the namespaceSelector does not match",
        ),
    ] {
        let said = said(&peer(selectors), &context);
        assert!(said.contains(words), "{selectors}: {said}");
    }
}

#[test]
fn the_policy_group_of_openshift_for_host_networks_is_no_mistake() {
    let context = context();
    let peer = |labels: &str| {
        ingress(&format!("{{from: [{{namespaceSelector: {{matchLabels: {{{labels}}}}}}}], ports: [{{port: 8080}}]}}"))
    };
    for (labels, found) in [
        ("policy-group.network.openshift.io/host-network: \"\"", &[][..]),
        ("kubernetes.io/metadata.name: openshift-host-network", &[]),
        ("policy-group.network.openshift.io/ingress: \"\"", &[PEER_MATCHES_NOTHING.id]),
    ] {
        assert_eq!(rules_of(&peer(labels), &context), found, "{labels}");
    }
}

#[test]
fn an_empty_list_means_everybody_and_an_absent_one_is_meant() {
    check(
        &EMPTY_FIELD,
        &[
            &ingress("{from: [], ports: [{port: 8080}]}"),
            &ingress("{from: null, ports: [{port: 8080}]}"),
            &ingress("{from: [{podSelector: {matchLabels: {app: web}}}], ports: []}"),
            &ingress("{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: null}]}"),
        ],
        &[&ingress("{ports: [{port: 8080}]}"), &ingress("{ports: [{protocol: UDP}]}"), &ingress("{}")],
    );
}

#[test]
fn a_port_with_another_protocol_than_the_pods_declare_is_told() {
    let from =
        |ports: &str| ingress(&format!("{{from: [{{podSelector: {{matchLabels: {{app: web}}}}}}], ports: [{ports}]}}"));
    check(
        &OTHER_PROTOCOL,
        &[&from("{port: 8080, protocol: UDP}")],
        &[&from("{port: 8080, protocol: UDP}, {port: 8080}"), &from("{port: 9, protocol: UDP}"), &from("{port: 8080}")],
    );
}

#[test]
fn the_service_port_beside_the_addresses_of_endpoints_is_told() {
    let text = "
kind: Pod
metadata: {name: web, namespace: a, labels: {app: web}}
---
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {clusterIP: 10.96.0.1, ports: [{port: 443, targetPort: 6443}]}
---
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
endpoints: [{addresses: [192.168.1.11]}]
ports: [{port: 6443}]
";
    let context =
        Context::from_objects(&guardrail_graph::inventory::read::objects(text, "inventory.yaml").unwrap().objects);
    let rules = |cidr: &str, ports: &str| {
        let dns = "{ports: [{port: 53, protocol: UDP}]}";
        rules_of(&egress(&format!("{{to: [{{ipBlock: {{cidr: {cidr}}}}}], ports: [{ports}]}}, {dns}")), &context)
    };
    assert_eq!(rules("192.168.1.11/32", "{port: 443}"), [SERVICE_PORT.id]);
    assert_eq!(rules("192.168.1.0/24", "{port: 443}"), [SERVICE_PORT.id]);
    for (cidr, ports) in [
        ("192.168.1.11/32", "{port: 6443}"),
        ("192.168.1.11/32", "{port: 443}, {port: 6443}"),
        ("192.168.2.0/24", "{port: 443}"),
        ("192.0.0.0/8", "{port: 443}"),
    ] {
        assert_eq!(rules(cidr, ports), [""; 0], "{cidr} {ports}");
    }
}

#[test]
fn a_label_that_only_has_to_be_there_names_no_value() {
    let of = |selector: &str| {
        rules_of(&format!("spec: {{podSelector: {selector}, policyTypes: [Ingress]}}"), &Context::default())
    };
    assert_eq!(of("{matchExpressions: [{key: pod-template-hash, operator: Exists}]}"), [""; 0]);
    assert_eq!(of("{matchExpressions: [{key: pod-template-hash, operator: In, values: [x]}]}"), [GENERATED_LABEL.id]);
    assert_eq!(of("{matchLabels: {app: web, version: 1.4.2}}"), [RELEASE_LABEL.id]);
    assert_eq!(of("{matchLabels: {app: web, version: v1}}"), [""; 0]);
    assert_eq!(of("{matchLabels: {strimzi.io/pod-name: a-0}}"), [""; 0]);
}
