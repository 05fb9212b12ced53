//! `guardrail export` where Cilium is the data plane: what it writes, what it refuses, exit codes.

#[path = "../../guardrail-policy/tests/generate_support/mod.rs"]
mod generate_support;

mod common;

use std::fs;
use std::path::Path;

use common::run;
use generate_support::Scenario;
use tempfile::TempDir;

/// `shop` has a client that is a node and forty addresses behind one name; `pay` has neither.
fn snapshot() -> String {
    let pod = |address: &str| serde_json::json!({"node": "node-a", "addresses": [address]});
    let scenario: Scenario = serde_json::from_value(serde_json::json!({
        "about": "what NetworkPolicy cannot say under Cilium",
        "export": {"phase": "default-deny"},
        "nodes": {"node-a": ["192.0.2.1"], "node-b": ["192.0.2.2"]},
        "workloads": {
            "kube-system/Deployment/coredns": {"labels": {"k8s-app": "kube-dns"}, "pods": {"coredns-1": pod("10.244.0.2")}},
            "shop/Deployment/web": {"labels": {"app": "web"}, "pods": {"web-1": pod("10.244.0.5")}},
            "pay/Deployment/api": {"labels": {"app": "api"}, "pods": {"api-1": pod("10.244.0.6")}},
        },
        "edges": [
            {"edge": "node/node-b -> shop/Deployment/web 8080", "seen": ["server@node-a", "client@node-b"]},
            {"edge": "shop/Deployment/web -> kube-system/Deployment/coredns 53/UDP"},
            {"edge": "shop/Deployment/web -> 203.0.113.1 443", "names": ["cdn.example.com"], "addresses": 40},
            {"edge": "shop/Deployment/web -> pay/Deployment/api 8443"},
        ],
    }))
    .unwrap();
    scenario.snapshot().to_json()
}

const CONFIG: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cilium-config, namespace: kube-system}\ndata: {ipam: kubernetes}\n";

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("s.json"), snapshot()).unwrap();
    fs::write(directory.path().join("inventory.yaml"), CONFIG).unwrap();
    directory
}

fn guardrail(directory: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let (code, stdout, stderr) = run(directory, args, "");
    (Some(code), stdout, stderr)
}

fn export(directory: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let common = ["export", "s.json", "--phase", "default-deny", "--egress", "--min-window", "0s"];
    guardrail(directory, &[&common[..], args].concat())
}

#[test]
fn ciliums_form_says_nodes_by_entity_and_forty_addresses_by_name_and_check_agrees() {
    let directory = directory();
    let (code, _, said) = export(directory.path(), &["--format", "cilium", "-d", "out"]);
    assert_eq!(code, Some(0), "{said}");
    let read = |name: &str| fs::read_to_string(directory.path().join("out").join(name)).unwrap();
    let web = read("shop.guardrail-allow-deployment-web.yaml");
    for expected in
        ["kind: CiliumNetworkPolicy", "- remote-node", "- matchName: cdn.example.com", "matchPattern: \"*\""]
    {
        assert!(web.contains(expected), "no `{expected}`:\n{web}");
    }
    assert!(!web.contains("203.0.113.") && !web.contains("192.0.2."), "{web}");
    assert!(web.contains("# CiliumNetworkPolicy, for Cilium 1.7 or later."), "{web}");
    assert!(read("REPORT.md").contains("Format: CiliumNetworkPolicy, for Cilium 1.7 or later."));
    let evidence: serde_json::Value = serde_json::from_str(&read("evidence.json")).unwrap();
    assert_eq!((&evidence["format"], &evidence["lowest_cilium_version"]), (&"cilium".into(), &"1.7".into()));
    // The other half of the tool reads what this half wrote.
    let (code, table, said) = guardrail(directory.path(), &["check", "s.json", "--policies", "out"]);
    assert_eq!(code, Some(0), "{said}{table}");
    // Applied, they are in force: another export replaces them, and says the same.
    let (code, _, said) = export(directory.path(), &["--format", "cilium", "-d", "again", "--policies", "out"]);
    assert_eq!(code, Some(0), "{said}");
    let again = fs::read_to_string(directory.path().join("again/shop.guardrail-allow-deployment-web.yaml")).unwrap();
    assert_eq!(again, web);
}

#[test]
fn under_cilium_networkpolicy_stops_the_namespaces_with_nodes_alone_and_names_the_format() {
    let directory = directory();
    let cases: [&[&str]; 2] = [&["--dataplane", "cilium"], &["--inventory", "inventory.yaml"]];
    for case in cases {
        let (code, _, said) = export(directory.path(), &[&["-d", "out"], case].concat());
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("--format cilium") && said.contains("not written: namespaces shop"), "{said}");
        assert!(directory.path().join("out/pay.guardrail-allow-deployment-api.yaml").exists());
        assert!(!directory.path().join("out/shop.guardrail-allow-deployment-web.yaml").exists());
        let (code, _, said) = export(directory.path(), &[&["-n", "shop", "-d", "none"], case].concat());
        assert_eq!(code, Some(2), "{said}");
        assert!(!directory.path().join("none").exists());
    }
    // Elsewhere an ipBlock matches nodes, and with this option of Cilium's, too.
    let (code, _, said) = export(directory.path(), &["-d", "elsewhere"]);
    assert_eq!(code, Some(0), "{said}");
    fs::write(directory.path().join("options.yaml"), "policy-cidr-match-mode: nodes\n").unwrap();
    let (code, _, said) = export(directory.path(), &["-d", "matched", "--dataplane-config", "options.yaml"]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn options_that_contradict_the_format_are_bad_input() {
    let directory = directory();
    let option = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    option("always.yaml", "enable-policy: always\n");
    option("old.yaml", "version: \"1.6\"\n");
    let cases: [(&[&str], &str); 4] = [
        (&["--format", "calico"], "possible values: networkpolicy, cilium"),
        (&["--format", "cilium", "--dataplane", "kubernetes"], "--dataplane says kubernetes"),
        (&["--format", "cilium", "--also-service-ports"], "--also-service-ports"),
        (&["--format", "cilium", "--dataplane-config", "missing.yaml"], "missing.yaml"),
    ];
    for (args, expected) in cases {
        let (code, out, said) = export(directory.path(), &[args, &["-d", "out"]].concat());
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
        assert!(!directory.path().join("out").exists(), "{args:?}");
    }
    let (_, script, _) = guardrail(directory.path(), &["completions", "bash"]);
    assert!(script.contains("\"networkpolicy cilium\""), "a shell completes the formats");
    let ingress_alone = ["export", "s.json", "--phase", "default-deny", "--min-window", "0s"];
    let always = [&ingress_alone[..], &["--dataplane", "cilium", "--dataplane-config", "always.yaml"]].concat();
    let (code, _, said) = guardrail(directory.path(), &always);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("export with --egress"), "{said}");
    let (code, _, said) = export(directory.path(), &["--format", "cilium", "--dataplane-config", "old.yaml"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the files need Cilium 1.7, and the agents are of 1.6"), "{said}");
}

#[test]
fn policies_of_other_kinds_that_are_in_force_are_judged_with_the_export() {
    let directory = directory();
    let policy = |name: &str, spec: &str| {
        let text = format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: extra, namespace: pay}}\nspec: {{endpointSelector: {{}}, {spec}}}\n"
        );
        fs::write(directory.path().join(name), text).unwrap();
    };
    policy("open.yaml", "ingress: [{fromEntities: [all]}]");
    policy("deny.yaml", "ingressDeny: [{fromEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': shop}}]}]");
    policy("account.yaml", "ingress: [{fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: web}}]}]");
    let run = |file: &str, more: &[&str]| {
        export(directory.path(), &[&["--format", "cilium", "--policies", file, "-d", "out"], more].concat())
    };
    let (code, _, said) = run("open.yaml", &[]);
    assert_eq!(code, Some(0), "{said}");
    let (code, _, said) = run("deny.yaml", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("CiliumNetworkPolicy/pay/extra#deny1 denies it"), "{said}");
    assert!(said.contains("not written: namespaces pay"), "{said}");
    // Whose service account a pod has, a snapshot does not say.
    let (code, _, said) = run("account.yaml", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error: pay: policies in force are not evaluated"), "{said}");
    assert!(said.contains("CiliumNetworkPolicy pay/extra") && said.contains("unproven"), "{said}");
    assert!(said.contains("not written: namespaces pay"), "one namespace's policy stops no other: {said}");
    let (code, _, said) = run("account.yaml", &["--force"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("warning: pay: policies in force are not evaluated"), "{said}");
    let (code, _, said) = run("account.yaml", &["-n", "pay"]);
    assert_eq!(code, Some(2), "{said}");
    // One that may apply to everybody's pods leaves nothing that is proven.
    let everywhere = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: all}\nspec: {}\n";
    fs::write(directory.path().join("global.yaml"), everywhere).unwrap();
    let (code, _, said) = run("global.yaml", &[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("nothing was written, --force accepts it"), "{said}");
}
