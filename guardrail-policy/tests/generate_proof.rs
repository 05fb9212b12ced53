//! The proof must fail when the export is wrong: policies of a small shop are tampered with, one
//! way at a time.

mod generate_support;

use std::collections::BTreeMap;

use generate_support::Scenario;
use guardrail_policy::{
    export,
    generate::{self, Options, ProblemKind},
    prove::{Proof, prove},
};

const SHOP: &str = r#"
about: a shop
export: {phase: default-deny, egress: true}
nodes: {node-a: [192.0.2.1]}
pod_ranges: [10.244.0.0/16]
workloads:
  shop/Deployment/web:
    labels: {app: web}
    pods: {web-1: {node: node-a, addresses: [10.244.0.5]}}
  shop/Deployment/idle:
    labels: {app: idle}
    pods: {idle-1: {node: node-a, addresses: [10.244.0.7]}}
  pay/Deployment/api:
    labels: {app: api}
    pods: {api-1: {node: node-a, addresses: [10.244.0.6]}}
edges:
  - {edge: shop/Deployment/web -> pay/Deployment/api 8080}
  - {edge: "* -> shop/Deployment/web 8443"}
"#;

const API: &str = "pay.guardrail-allow-deployment-api.yaml";
const WEB: &str = "shop.guardrail-allow-deployment-web.yaml";

fn scenario() -> Scenario {
    serde_saphyr::from_str(SHOP).unwrap()
}

/// Proves the shop's export after `tamper`.
fn proof(options: &Options, tamper: impl FnOnce(&mut BTreeMap<String, String>)) -> Proof {
    let snapshot = scenario().snapshot();
    let decision = generate::plan_for(&snapshot, options);
    let mut files = guardrail_policy::emit::policies(&decision.plan, options, &decision.stopped);
    tamper(&mut files);
    prove(&snapshot, options, &decision, files.iter().map(|(name, text)| (name.as_str(), text.as_str())))
}

fn replaced(file: &str, from: &str, to: &str) -> Vec<(ProblemKind, String)> {
    let proof = proof(&scenario().options(), |files| {
        let text = files.get_mut(file).unwrap();
        assert!(text.contains(from), "{file} has no `{from}`:\n{text}");
        *text = text.replace(from, to);
    });
    proof.problems.into_iter().map(|p| (p.kind, p.message)).collect()
}

#[test]
fn the_untouched_export_is_proven() {
    let proof = proof(&scenario().options(), |_| {});
    assert!(proof.problems.is_empty(), "{:?}", proof.problems);
    assert_eq!(proof.edges_judged, 2);
    assert!(proof.pairs_judged > 30, "{}", proof.pairs_judged);
}

#[test]
fn a_rule_that_denies_an_observed_flow_is_found_and_the_flow_is_named() {
    for (file, from, to) in [
        (API, "port: 8080", "port: 8081"),
        (API, "protocol: TCP", "protocol: UDP"),
        (API, "app: web", "app: idle"),
        (API, "kubernetes.io/metadata.name: shop", "kubernetes.io/metadata.name: pay"),
        (WEB, "app: api", "app: other"),
    ] {
        let problems = replaced(file, from, to);
        assert!(
            problems.iter().any(|(kind, text)| *kind == ProblemKind::Denied
                && text.contains("shop/Deployment/web -> pay/Deployment/api 8080/TCP")),
            "{from} -> {to}: {problems:?}"
        );
    }
    let problems = replaced(WEB, "cidr: 0.0.0.0/0", "cidr: 0.0.0.0/1");
    assert!(
        problems.iter().any(|(kind, text)| *kind == ProblemKind::Denied && text.contains("external/*")),
        "{problems:?}"
    );
}

#[test]
fn a_rule_that_allows_more_than_was_observed_is_found_and_the_pair_is_named() {
    let ports = "    ports:\n    - protocol: TCP\n      port: 8080\n";
    for (from, to) in [
        ("      podSelector:\n        matchLabels:\n          app: web\n", "      podSelector: {}\n"),
        (ports, ""),
        (ports, "    ports:\n    - protocol: TCP\n      port: 8000\n      endPort: 9000\n"),
        ("  ingress:\n  - from:", "  ingress:\n  - {}\n  - from:"),
    ] {
        // The client's egress would hide what the server's ingress lets in: prove ingress alone.
        let mut options = scenario().options();
        options.egress = false;
        let proof = proof(&options, |files| {
            let text = files.get_mut(API).unwrap();
            assert!(text.contains(from), "no `{from}`:\n{text}");
            *text = text.replacen(from, to, 1);
        });
        assert!(
            proof.problems.iter().any(|p| p.kind == ProblemKind::Excess && p.message.contains("pay/Deployment/api")),
            "{from} -> {to}: {:?}",
            proof.problems
        );
    }
}

#[test]
fn an_external_rule_that_lets_pods_in_is_found() {
    let mut options = scenario().options();
    options.egress = false;
    let proof = proof(&options, |files| {
        let text = files.get_mut(WEB).unwrap();
        let except = "        except:\n        - 10.244.0.0/16\n";
        assert!(text.contains(except), "{text}");
        *text = text.replace(except, "");
    });
    let found: Vec<_> = proof.problems.iter().map(|p| (p.kind, p.message.as_str())).collect();
    assert!(
        found.iter().any(|(kind, text)| *kind == ProblemKind::Excess && text.contains("shop/Deployment/idle")),
        "{found:?}"
    );
}

/// The shop in Cilium's form, with DNS, a named server and a node as a client.
fn under_cilium(egress: bool, file: &str, tamper: impl FnOnce(&str) -> String) -> Vec<(ProblemKind, String)> {
    let mut scenario = scenario();
    scenario.export.format = Some("cilium".to_owned());
    scenario.export.egress = egress;
    scenario.nodes.insert("node-b".to_owned(), vec!["192.0.2.2".parse().unwrap()]);
    let edges = "
- {edge: shop/Deployment/web -> pay/Deployment/api 53/UDP}
- {edge: shop/Deployment/web -> 203.0.113.7 443, names: [bank.example.com]}
- {edge: node/node-b -> pay/Deployment/api 9090, seen: [server@node-a, client@node-b]}
";
    scenario.edges.extend(serde_saphyr::from_str::<Vec<generate_support::Edge>>(edges).unwrap());
    let (snapshot, options) = (scenario.snapshot(), scenario.options());
    let decision = generate::plan_for(&snapshot, &options);
    let mut files = guardrail_policy::emit::policies(&decision.plan, &options, &decision.stopped);
    let text = files.get_mut(file).unwrap();
    *text = tamper(text);
    let texts = files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    prove(&snapshot, &options, &decision, texts).problems.into_iter().map(|p| (p.kind, p.message)).collect()
}

#[test]
fn a_wrong_export_in_ciliums_form_is_found() {
    assert_eq!(under_cilium(true, API, str::to_owned), []);
    assert_eq!(under_cilium(false, API, str::to_owned), []);
    let web_calls = "shop/Deployment/web -> pay/Deployment/api 8080/TCP";
    let denied: [(&str, &str, &str, &str); 9] = [
        (API, "port: \"8080\"", "port: \"8081\"", web_calls),
        (API, "app: web", "app: idle", web_calls),
        (API, "        \"k8s:io.kubernetes.pod.namespace\": shop\n", "", web_calls),
        (API, "- remote-node", "- world", "node/node-b -> pay/Deployment/api 9090/TCP"),
        (WEB, "- world", "- cluster", "external/* -> shop/Deployment/web 8443/TCP"),
        (WEB, "bank.example.com", "bnak.example.com", "external/203.0.113.7 443/TCP"),
        (WEB, "  egress:\n", "  egressDeny:\n", "does not read back as CiliumNetworkPolicy"),
        (
            WEB,
            "kind: CiliumNetworkPolicy",
            "kind: CiliumClusterwidePolicy",
            "does not read back as CiliumNetworkPolicy",
        ),
        (WEB, "      rules:\n        dns:\n        - matchPattern: \"*\"\n", "", "has their names learnt"),
    ];
    for (file, from, to, expected) in denied {
        let problems = under_cilium(true, file, |text| {
            assert!(text.contains(from), "{file} has no `{from}`:\n{text}");
            text.replace(from, to)
        });
        let found = problems.iter().any(|(kind, text)| *kind == ProblemKind::Denied && text.contains(expected));
        assert!(found, "{from} -> {to}: {problems:?}");
    }
    // The client's egress would hide what the server's ingress lets in: prove ingress alone.
    let deny = "pay.guardrail-default-deny-ingress.yaml";
    for (file, from, to) in [
        (deny, "  - {}\n", "  - fromEntities:\n    - all\n"),
        (API, "    - host\n", "    - host\n    - cluster\n"),
        (API, "        app: web\n", ""),
    ] {
        let problems = under_cilium(false, file, |text| {
            assert!(text.contains(from), "{file} has no `{from}`:\n{text}");
            text.replace(from, to)
        });
        let found =
            problems.iter().any(|(kind, text)| *kind == ProblemKind::Excess && text.contains("pay/Deployment/api"));
        assert!(found, "{from} -> {to}: {problems:?}");
    }
}

#[test]
fn a_file_that_is_no_policy_is_found() {
    let problems = replaced(API, "port: 8080", "port: 80800");
    assert!(problems.iter().any(|(_, text)| text.contains("does not read back")), "{problems:?}");
}

#[test]
fn a_missing_egress_rule_or_a_second_policy_of_the_cluster_cannot_hide_a_wrong_one() {
    // An existing policy that allows everything does not make a wrong export right: it may go any
    // day.
    let mut options = scenario().options();
    let open = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: open, namespace: pay}\nspec: {ingress: [{}]}\n";
    options.existing = guardrail_policy::read::policies("open", open.as_bytes()).unwrap().policies;
    let proof = proof(&options, |files| {
        files.remove(API).unwrap();
    });
    assert!(proof.problems.iter().any(|p| p.kind == ProblemKind::Denied), "{:?}", proof.problems);
}

#[test]
fn a_client_that_reached_unusually_many_servers_is_in_the_report() {
    let mut scenario = scenario();
    let scan = |edge: &str| -> generate_support::Edge {
        serde_saphyr::from_str(&format!("{{edge: {edge}, failed: true, addresses: 30}}")).unwrap()
    };
    scenario.edges.push(scan("shop/Deployment/idle -> 203.0.113.1 22"));
    let generated = export::export(&scenario.snapshot(), &scenario.options()).into_owned();
    let report = &generated.all_files()["REPORT.md"];
    assert!(report.contains("shop/Deployment/idle reached or tried 30 servers and ports"), "{report}");
    assert!(!report.contains("shop/Deployment/web reached"), "{report}");
}
