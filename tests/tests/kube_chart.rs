//! deploy/helm: what Helm's own engine makes of the chart is what `kubectl kustomize` makes of the
//! overlays.

use std::collections::BTreeMap;

use guardrail_tests::deployed::{chart, lint_chart, overlay, pod, release};
use serde_json::{Value, json};

/// The values that say what an overlay says.
fn overlays() -> Vec<(&'static str, Value)> {
    vec![
        ("plain", json!({})),
        ("audit-only", json!({"auditRole": true})),
        ("drift-check", json!({"driftCheck": true})),
        ("kernel-before-5.11", json!({"kernelBefore511": true})),
        ("pinned", json!({"pinned": true})),
        ("prune-exceptions", json!({"pruneExceptions": true})),
        ("prometheus-operator", json!({"prometheusOperator": {"enabled": true}})),
        ("scope-node", json!({"inventoryScope": "node"})),
        ("seccomp-unconfined", json!({"seccompProfile": "Unconfined"})),
        ("unobservable-nodes", json!({"unobservableNodes": ["guardrail.dev/unobservable"]})),
        ("without-host-pid", json!({"hostPID": false})),
    ]
}

/// Objects by kind and name, without what the two ways cannot have in common: Helm makes the
/// namespace itself, and each has its own way to name the image.
fn comparable(objects: Vec<Value>) -> BTreeMap<(String, String), Value> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut named = BTreeMap::new();
    for mut object in objects.into_iter().filter(|o| o["kind"] != "Namespace") {
        let template = if object["kind"] == "CronJob" { "/spec/jobTemplate/spec/template" } else { "/spec/template" };
        if let Some(image) = object.pointer_mut(&format!("{template}/spec/containers/0/image")) {
            let name = text(image);
            *image = name.split_once(':').map_or(&*name, |(name, _)| name).into();
        }
        let key = (text(&object["kind"]), text(&object["metadata"]["name"]));
        assert!(named.insert(key, object).is_none(), "an object twice");
    }
    named
}

#[test]
fn the_chart_installs_what_the_overlays_install() {
    let mut folders: Vec<_> = std::fs::read_dir(chart().join("../../overlays"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    let mut compared: Vec<_> = overlays().into_iter().map(|(name, _)| name).collect();
    compared.sort_unstable();
    assert_eq!(compared, folders, "every overlay has its values");
    for (name, values) in overlays() {
        let (by_helm, by_kustomize) = (release(&values).unwrap(), overlay(name).unwrap());
        assert_eq!(comparable(by_helm), comparable(by_kustomize), "{name}");
    }
}

#[test]
fn values_change_what_they_name_and_nothing_else() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let values = json!({
        "image": {"repository": "registry.example/guardrail", "digest": digest, "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "extraArgs": ["--udp=off"],
        "unobservableNodes": ["pool=windows", "kubernetes.io/arch in (riscv64)"],
        "resources": {"limits": {"memory": "192Mi"}},
        "podLabels": {"team": "platform", "app.kubernetes.io/name": "theirs"},
        "podAnnotations": {"a.example/b": "c"},
        "nodeSelector": {"pool": "blue"},
        "prometheusOperator": {"enabled": true, "labels": {"release": "prom"}},
    });
    let objects = release(&values).unwrap();
    let pod = pod(&objects).unwrap();
    let agent = &pod["containers"][0];
    assert_eq!(agent["image"], format!("registry.example/guardrail@{digest}"));
    assert_eq!(agent["imagePullPolicy"], "Always");
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}]));
    let args = agent["args"].as_array().unwrap();
    assert_eq!(args.last().unwrap(), "--udp=off");
    for selector in ["pool=windows", "kubernetes.io/arch in (riscv64)"] {
        assert!(args.contains(&json!(format!("--unobservable-nodes={selector}"))), "{args:?}");
    }
    assert_eq!(
        agent["resources"],
        json!({"limits": {"memory": "192Mi"}, "requests": {"cpu": "20m", "memory": "96Mi"}})
    );
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux", "pool": "blue"}));
    let set = objects.iter().find(|o| o["kind"] == "DaemonSet").unwrap();
    let metadata = &set["spec"]["template"]["metadata"];
    assert_eq!(metadata["annotations"], json!({"a.example/b": "c"}));
    // What the DaemonSet selects by is its own.
    assert_eq!(metadata["labels"], json!({"app.kubernetes.io/name": "guardrail-agent", "team": "platform"}));
    for kind in ["PodMonitor", "PrometheusRule"] {
        let object = objects.iter().find(|o| o["kind"] == kind).unwrap();
        assert_eq!(object["metadata"]["labels"]["release"], "prom", "{kind}");
    }
    let tagged = release(&json!({"image": {"tag": "0.2.0"}})).unwrap();
    assert_eq!(self::pod(&tagged).unwrap()["containers"][0]["image"], "guardrail:0.2.0");
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for (values, names) in [
        (json!({"hostPid": false}), "hostPid"),
        (json!({"inventoryScope": "namespace"}), "inventoryScope"),
        (json!({"image": {"digest": "0123"}}), "digest"),
        (json!({"unobservableNodes": "pool=windows"}), "unobservableNodes"),
        (json!({"prometheusOperator": {"enable": true}}), "enable"),
    ] {
        let error = release(&values).expect_err("refused").to_string();
        assert!(error.contains(names), "{values}: {error}");
    }
}

#[test]
fn helm_lints_the_chart_without_a_complaint() {
    let said = lint_chart().unwrap();
    assert_eq!(said["total_charts_linted"], 1, "{said}");
    assert_eq!(said["errors"], json!([]), "{said}");
    let complaints: Vec<_> =
        said["messages"].as_array().unwrap().iter().filter(|m| m["error"] != "icon is recommended").collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}
