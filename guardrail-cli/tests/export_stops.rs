//! What stops a namespace stops no other: exit codes, files that stay, and the options that end it.

#[path = "../../guardrail-policy/tests/generate_support/mod.rs"]
mod generate_support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use generate_support::Scenario;
use guardrail_graph::{
    Protocol,
    snapshot::{ServiceFlow, Side},
};

/// Two namespaces; the client of the flow into `pay` is inferred: it used a Service, and at the
/// backend a node's address stood in its place (masquerading).
fn snapshot() -> String {
    let pod = |address: &str| serde_json::json!({"node": "node-a", "addresses": [address]});
    let scenario: Scenario = serde_json::from_value(serde_json::json!({
        "about": "two namespaces",
        "export": {"phase": "default-deny"},
        "nodes": {"node-a": ["192.0.2.1"]},
        "workloads": {
            "shop/Deployment/web": {"labels": {"app": "web"}, "pods": {"web-1": pod("10.244.0.5")}},
            "shop/Deployment/cart": {"labels": {"app": "cart"}, "pods": {"cart-1": pod("10.244.0.7")}},
            "pay/Deployment/api": {"labels": {"app": "api"}, "pods": {"api-1": pod("10.244.0.6")}},
        },
        "services": {"pay/api": {
            "addresses": ["10.96.0.6"], "port": 80, "backends": ["pay/Deployment/api 10.244.0.6:8080"],
        }},
        "edges": [
            {"edge": "shop/Deployment/web -> shop/Deployment/cart 8080"},
            {"edge": "node/node-a -> pay/Deployment/api 8080", "seen": ["server@node-a"]},
        ],
    }))
    .unwrap();
    let mut snapshot = scenario.snapshot();
    // Who is behind a Service is derived on reading: a mark in an edge would not last.
    let mut seen = snapshot.body.edges[0].sources[0].clone();
    seen.side = Side::Client;
    snapshot.body.service_flows.push(ServiceFlow {
        client: generate_support::peer("shop/Deployment/web"),
        service: "pay/api:80".to_owned(),
        protocol: Protocol::Tcp,
        port: 80,
        marks: BTreeSet::new(),
        node_workloads: BTreeSet::new(),
        backend_unknown: None,
        sources: vec![seen],
    });
    snapshot.to_json()
}

fn export(directory: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_guardrail"))
        .current_dir(directory)
        .arg("export")
        .args(args)
        .args(["--phase", "default-deny", "--min-window", "0s"])
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

const FLOW: &str = "shop/Deployment/web->pay/Deployment/api:8080/TCP";

#[test]
fn a_stopped_namespace_keeps_its_files_and_the_others_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("s.json"), snapshot()).unwrap();
    let (code, said) = export(directory.path(), &["s.json", "-d", "out", "--accept-inferred"]);
    assert_eq!(code, Some(0), "{said}");
    let pay = path("out/pay.guardrail-allow-deployment-api.yaml");
    let before = fs::read_to_string(&pay).unwrap();
    assert!(before.contains("app: web"), "{before}");

    fs::remove_file(path("out/shop.guardrail-allow-deployment-cart.yaml")).unwrap();
    for force in [&[][..], &["--force"]] {
        let (code, said) = export(directory.path(), &[&["s.json", "-d", "out"], force].concat());
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("--accept '{FLOW}'")) && said.contains("--accept-inferred"), "{said}");
        assert!(said.contains("not written: namespaces pay: their files stay"), "{said}");
        assert_eq!(fs::read_to_string(&pay).unwrap(), before);
        assert!(path("out/shop.guardrail-allow-deployment-cart.yaml").exists());
    }
    let read = |name: &str| fs::read_to_string(path(name)).unwrap();
    assert!(read("out/kustomization.yaml").contains("- pay.guardrail-allow-deployment-api.yaml"));
    assert!(read("out/REPORT.md").contains("## Stopped namespaces"), "{}", read("out/REPORT.md"));
    let evidence: serde_json::Value = serde_json::from_str(&read("out/evidence.json")).unwrap();
    assert_eq!((&evidence["stopped"][0], &evidence["complete"]), (&"pay".into(), &false.into()));

    let (code, said) = export(directory.path(), &["s.json", "-d", "out", "--accept", FLOW]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!pay.exists());
}

#[test]
fn when_all_that_is_asked_for_is_stopped_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("s.json"), snapshot()).unwrap();
    let (code, said) = export(directory.path(), &["s.json", "-d", "out", "-n", "pay"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(!directory.path().join("out").exists());
}

/// Agents that know their own node's pods: one says that `app: pay` names the Deployment alone, the
/// other that a `TaskRun` of its node bears the label, too.
#[test]
fn whether_a_selector_is_one_workloads_is_decided_after_the_merge() {
    let directory = tempfile::tempdir().unwrap();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node_scoped");
    let mut written = Vec::new();
    for (index, second) in ["node-b.json", "node-b-later.json"].into_iter().enumerate() {
        let out = format!("out{index}");
        let inputs = [cases.join("node-a.json"), cases.join(second)].map(|p| p.display().to_string());
        let (code, said) = export(directory.path(), &[&inputs[0], &inputs[1], "-d", &out]);
        assert_eq!(code, Some(0), "{said}");
        let policy = directory.path().join(out).join("shop.guardrail-allow-deployment-pay.yaml");
        written.push(fs::read_to_string(policy).unwrap());
    }
    assert_eq!(written[0], written[1]);
    assert!(
        written[0].contains("key: batch.example.com/task") && written[0].contains("operator: DoesNotExist"),
        "{}",
        written[0]
    );
}

/// The same overlap where the label's value is another one at each run, and with a Job, whose own
/// label no snapshot has: what the Deployment is sent does not reach their pods.
#[test]
fn runs_and_jobs_with_the_labels_of_a_deployment_are_kept_apart() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node_scoped");
    let task = |indent: &str| format!(",\n{indent}\"batch.example.com/task\": \"deploy-pay\"");
    let run = |text: String| text.replace("batch.example.com/task", "tekton.dev/taskRun");
    let job = |text: String| text.replace("TaskRun", "Job").replace(&task("     "), "").replace(&task("    "), "");
    let changes: [(&dyn Fn(String) -> String, &str); 2] = [(&run, "tekton.dev/taskRun"), (&job, "job-name")];
    for (change, key) in changes {
        let directory = tempfile::tempdir().unwrap();
        for name in ["node-a.json", "node-b.json"] {
            let text = change(fs::read_to_string(cases.join(name)).unwrap());
            assert!(!text.contains("batch.example.com/task"), "{text}");
            fs::write(directory.path().join(name), text).unwrap();
        }
        let (code, said) = export(directory.path(), &["node-a.json", "node-b.json", "-d", "out"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("no label tells"), "{said}");
        let policy = directory.path().join("out/shop.guardrail-allow-deployment-pay.yaml");
        let policy = fs::read_to_string(policy).unwrap();
        let subject = format!(
            "podSelector:\n    matchLabels:\n      app: pay\n    matchExpressions:\n    - key: {key}\n      operator: DoesNotExist\n"
        );
        assert!(policy.contains(&subject), "{policy}");
    }
}
