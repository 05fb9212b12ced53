//! `guardrail blocked` as a user meets it: attempts that failed and that a policy denies.

mod common;

use std::fs;

use common::{data, file, run};

use guardrail_graph::{Snapshot, snapshot::Side};

/// The shop, and its frontend that tries to reach the database and gets no answer.
fn snapshot() -> String {
    let text = fs::read_to_string(data().join("shop.json")).unwrap();
    let mut snapshot = Snapshot::from_json(&text, "shop.json").unwrap();
    let edges = &mut snapshot.body.edges;
    let silent = edges.iter().find(|edge| edge.counts.unanswered > 0).unwrap().clone();
    let used = edges.iter().find(|edge| edge.port == 5432).unwrap().clone();
    let frontend = edges.iter().find(|edge| edge.port == 8080).unwrap().client.clone();
    let mut blocked = silent.clone();
    (blocked.client, blocked.server, blocked.port) = (frontend, used.server, used.port);
    blocked.counts.unanswered = 21;
    blocked.sources.iter_mut().for_each(|source| source.counts.unanswered = 21);
    assert!(blocked.sources.iter().all(|source| source.side == Side::Client));
    edges.push(blocked);
    snapshot.to_json()
}

/// The database takes connections from the cart and the reports only, `since` that time.
fn policy(metadata: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: postgres, namespace: data{metadata}}}
spec:
  podSelector: {{matchLabels: {{app: postgres}}}}
  ingress:
  - from:
    - namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: shop}}}}
      podSelector: {{matchExpressions: [{{key: app, operator: In, values: [cart]}}]}}
    - namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: shop}}}}
      podSelector: {{matchLabels: {{job: report}}}}
    ports: [{{port: 5432}}]
"
    )
}

const IN_FORCE: &str = ", generation: 1, creationTimestamp: \"2026-03-01T09:00:00Z\"";

fn blocked(metadata: &str, more: &[&str]) -> (i32, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let policies = file(&directory, "policies.yaml", policy(metadata));
    run(&data(), &[&["blocked", "-", "--policies", &policies], more].concat(), &snapshot())
}

#[test]
fn who_is_cut_off_by_which_policy_and_how_sure_that_is() {
    let (code, stdout, stderr) = blocked(IN_FORCE, &[]);
    assert_eq!((code, stderr.as_str()), (1, ""));
    insta::assert_snapshot!("shop", stdout);
    let (code, json, _) = blocked(IN_FORCE, &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let first = &json["blocked"][0];
    assert_eq!((code, &first["confidence"]), (1, &"certain".into()));
    assert_eq!(first["flow"], "shop/Deployment/frontend->data/StatefulSet/postgres:5432/TCP");
    assert_eq!(first["denied_by"], serde_json::json!(["data/postgres"]));
    assert_eq!(first["denied_since"], "2026-03-01T09:00:00Z");
}

#[test]
fn without_a_time_nothing_is_more_than_possible_and_an_option_gives_one() {
    let confidences = |metadata: &str, more: &[&str]| {
        let (code, json, _) = blocked(metadata, &[more, &["-o", "json"]].concat());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let found = json["blocked"].as_array().unwrap();
        assert_eq!(code, i32::from(!found.is_empty()));
        found.iter().map(|found| found["confidence"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(confidences("", &[]), ["possible", "possible"]);
    assert_eq!(confidences("", &["--policies-since", "2026-03-01T09:00:00Z"]), ["certain", "likely"]);
    assert_eq!(confidences("", &["--policies-since", "2026-03-01"]), ["certain", "likely"]);
    // The attempts are older than the policy.
    assert!(confidences("", &["--policies-since", "2026-03-02"]).is_empty());
    assert_eq!(confidences(IN_FORCE, &["-n", "monitoring"]), ["likely"]);
    assert!(confidences(IN_FORCE, &["-n", "kube-system"]).is_empty());
}

/// Somebody else got an exception, later than the attempts.
#[test]
fn an_exception_beside_other_policies_is_not_to_blame() {
    let directory = tempfile::tempdir().unwrap();
    let exception = policy("").replace("name: postgres, namespace: data", "name: guardrail-exception-inc-1-20260309t000000z, namespace: data, generation: 1, creationTimestamp: \"2026-03-02T09:00:00Z\"");
    let found = |policies: String| {
        let policies = file(&directory, "policies.yaml", policies);
        let (_, json, stderr) = run(&data(), &["blocked", "-", "--policies", &policies, "-o", "json"], &snapshot());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {stderr}"));
        json["blocked"].as_array().unwrap().clone()
    };
    let both = found(format!("{}---\n{exception}", policy(IN_FORCE)));
    assert_eq!(both, found(policy(IN_FORCE)));
    assert_eq!(both.len(), 2);
    // Alone it closes the database, since then.
    assert_eq!(found(exception.replace("2026-03-02T09", "2026-03-01T09")).len(), 2);
    assert_eq!(found(exception.clone()), [serde_json::Value::Null; 0]);
}

#[test]
fn an_incomplete_observation_finds_what_it_finds_and_its_silence_says_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let policies = file(&directory, "policies.yaml", policy(IN_FORCE));
    let incomplete = snapshot().replacen("\"expected\": [", "\"expected\": [\"node-z\", ", 1);
    let incomplete = if incomplete.contains("node-z") {
        incomplete
    } else {
        snapshot().replacen("\"expected\":[", "\"expected\":[\"node-z\",", 1)
    };
    assert!(incomplete.contains("node-z"));
    let ask = |more: &[&str]| {
        let args = ["blocked", "-", "--policies", &policies];
        run(&data(), &[&args[..], more].concat(), &incomplete)
    };
    let (code, _, stderr) = ask(&[]);
    assert!(code == 1 && stderr.contains("the observation is incomplete: nodes not observed: node-z"), "{stderr}");
    let (code, stdout, _) = ask(&["-n", "kube-system"]);
    assert_eq!((code, stdout.as_str()), (2, "Nothing blocked.\n"));
    assert_eq!(ask(&["-n", "kube-system", "--allow-partial"]).0, 0);
}

#[test]
fn bad_input_is_one_sentence() {
    for (args, said) in [
        (&["--policies-since", "soon"][..], "`soon` is no time: write one like 2026-12-15T08:00:00Z, or a date"),
        (&["--policies", "no-such-file"], "error: cannot read no-such-file"),
    ] {
        let (code, stdout, stderr) = blocked("", args);
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert!(stderr.contains(said), "{stderr}");
    }
}
