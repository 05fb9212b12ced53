//! `guardrail prune kube`: what it deletes of a cluster, and what it never does.

use std::{
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use guardrail_tests::{apiserver::ApiServer, bins};
use serde_json::{Value, json};

/// A policy with the label of an exception.
fn policy(namespace: &str, name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({
        "kind": "NetworkPolicy",
        "metadata": {
            "namespace": namespace, "name": name, "uid": format!("uid-{name}"),
            "labels": {"app.kubernetes.io/managed-by": "guardrail", "guardrail.dev/exception": "inc"},
            "annotations": {"guardrail.dev/expires": "2026-03-01T00:00:00Z"},
        },
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    });
    change(&mut object["metadata"]);
    object
}

fn cluster() -> ApiServer {
    let objects = [
        policy("data", "guardrail-exception-over-20260301t000000z", |_| {}),
        policy("data", "guardrail-exception-open-20270301t000000z", |m| {
            m["annotations"]["guardrail.dev/expires"] = "2027-03-01T00:00:00Z".into();
        }),
        policy("shop", "guardrail-exception-argo-20260301t000000z", |m| {
            m["annotations"]["argocd.argoproj.io/tracking-id"] = "shop:networking.k8s.io/NetworkPolicy:shop/x".into();
        }),
        policy("shop", "guardrail-exception-flux-20260301t000000z", |m| {
            m["labels"]["kustomize.toolkit.fluxcd.io/name"] = "apps".into();
        }),
        policy("shop", "guardrail-exception-helm-20260301t000000z", |m| {
            m["labels"]["helm.toolkit.fluxcd.io/name"] = "apps".into();
        }),
        policy("shop", "theirs", |_| {}),
        policy("shop", "guardrail-exception-not-ours-20260301t000000z", |m| {
            m["labels"]["app.kubernetes.io/managed-by"] = "helm".into();
        }),
        policy("shop", "guardrail-exception-endless", |m| m["annotations"] = json!({"guardrail.dev/expires": "soon"})),
        policy("shop", "guardrail-allow-deployment-web", |m| {
            m["labels"].as_object_mut().unwrap().remove("guardrail.dev/exception");
        }),
    ];
    ApiServer::serving(TcpListener::bind("127.0.0.1:0").unwrap(), &objects).unwrap()
}

fn prune(server: &ApiServer, args: &[&str]) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    std::fs::write(&config, server.kubeconfig(None)).unwrap();
    let output: Output = Command::new(bins::find("guardrail"))
        .args(["prune", "kube", "--now", "2026-03-02T00:00:00Z", "--agent-timeout", "5"])
        .args(args)
        .env("KUBECONFIG", &config)
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn names(server: &ApiServer) -> Vec<String> {
    let objects: Value = serde_json::from_str(&server.objects()).unwrap();
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    objects["items"].as_array().unwrap().iter().map(name).collect()
}

const OVER: &str = "networkpolicies data/guardrail-exception-over-20260301t000000z, ended 1 day ago\n";

#[test]
fn a_dry_run_deletes_nothing_and_says_what_it_would() {
    let server = cluster();
    let before = names(&server);
    let (code, stdout, stderr) = prune(&server, &[]);
    assert_eq!((code, stdout), (1, format!("would delete {OVER}")), "{stderr}");
    assert_eq!(names(&server), before);
    assert_eq!(server.requests("DELETE "), 0);
}

#[test]
fn what_has_ended_goes_and_nothing_else() {
    let server = cluster();
    let before = names(&server);
    let (code, stdout, stderr) = prune(&server, &["--yes"]);
    assert_eq!((code, stdout), (1, format!("deleted {OVER}")), "{stderr}");
    let after = names(&server);
    let gone: Vec<&String> = before.iter().filter(|name| !after.contains(name)).collect();
    assert_eq!(gone, ["guardrail-exception-over-20260301t000000z"]);
    for (tool, name) in [("Argo CD", "argo"), ("Flux", "flux"), ("Flux", "helm")] {
        let file = format!("shop.guardrail-exception-{name}-20260301t000000z.yaml");
        assert!(stderr.contains(&format!("{tool} applies it: remove the file {file}")), "{stderr}");
    }
    assert!(stderr.contains("guardrail-exception-endless says no end that can be read"), "{stderr}");
    for foreign in ["shop/theirs has the label", "guardrail-exception-not-ours-20260301t000000z has the label"] {
        assert!(stderr.contains(foreign), "{stderr}");
    }
    assert!(!stderr.contains("guardrail-allow-deployment-web") && !stderr.contains("-open-"), "{stderr}");
    // Each namespace's kind is listed once, deleted is what was listed.
    assert_eq!(server.requests("DELETE "), 1);
}

#[test]
fn where_nothing_has_ended_all_is_well() {
    let objects = [policy("data", "guardrail-exception-open-20270301t000000z", |m| {
        m["annotations"]["guardrail.dev/expires"] = "2027-03-01T00:00:00Z".into();
    })];
    let server = ApiServer::serving(TcpListener::bind("127.0.0.1:0").unwrap(), &objects).unwrap();
    assert_eq!(prune(&server, &["--yes"]), (0, String::new(), String::new()));
    assert_eq!(names(&server).len(), 1);
}

#[test]
fn a_missing_right_is_named_and_nothing_is_half_done() {
    for (verb, says) in
        [("list", "grant the verb list on them"), ("delete", "grant the verb delete on networkpolicies")]
    {
        let server = cluster();
        let before = names(&server);
        server.manners(|m| {
            m.denied.insert((verb.to_owned(), "networkpolicies".to_owned()));
        });
        let (code, stdout, stderr) = prune(&server, &["--yes"]);
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
        assert_eq!(names(&server), before);
    }
    let server = cluster();
    let (code, _, stderr) = prune(&server, &["--context", "elsewhere"]);
    assert_eq!(code, 2, "{stderr}");
}
