//! `guardrail diff` as a user meets it: two snapshots, two sets of policies.

mod common;

use std::fs;

use common::{data, file, guardrail};

use guardrail_graph::{Peer, Snapshot};

fn shown(args: &[&str]) -> String {
    let (code, stdout, stderr) = guardrail(args);
    assert!(stdout.lines().all(|line| line.chars().count() <= 100 || line.starts_with('|')), "{stdout}");
    format!("exit {code}\n--- stdout\n{stdout}--- stderr\n{stderr}")
}

/// shop.json after a release: an edge less, one of another Service, one more.
fn later() -> Snapshot {
    let mut snapshot =
        Snapshot::from_json(&fs::read_to_string(data().join("shop.json")).unwrap(), "shop.json").unwrap();
    let edges = &mut snapshot.body.edges;
    let named = |peer: &Peer, name: &str| peer.workload().is_some_and(|w| w.name == name);
    edges.retain(|edge| !(named(&edge.client.peer, "frontend") && named(&edge.server.peer, "mailer")));
    for edge in edges.iter_mut().filter(|edge| named(&edge.client.peer, "frontend") && edge.port == 8080) {
        edge.via = ["shop/cart-v2:80".to_owned()].into();
    }
    let mut new = edges.iter().find(|edge| edge.port == 587).unwrap().clone();
    new.port = 465;
    edges.push(new);
    snapshot
}

#[test]
fn two_snapshots() {
    let directory = tempfile::tempdir().unwrap();
    let new = file(&directory, "new.json", later().to_json());
    insta::assert_snapshot!("snapshots_table", shown(&["diff", "shop.json", &new]));
    insta::assert_snapshot!("snapshots_markdown", shown(&["diff", "shop.json", &new, "-o", "markdown"]));
    let (code, stdout, _) = guardrail(&["diff", "shop.json", &new, "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, 1);
    assert_eq!(json["came"][0]["server"], "smtp.example.org");
    assert_eq!((json["came"].as_array().unwrap().len(), json["went"].as_array().unwrap().len()), (1, 1));
    assert_eq!(json["changed"][0]["before"]["established"], true);
    assert_eq!(shown(&["diff", "shop.json", "shop.json"]), "exit 0\n--- stdout\nNo difference.\n--- stderr\n");
}

#[test]
fn environments_are_compared_with_their_namespaces_mapped_and_their_nodes_as_one() {
    let directory = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(data().join("shop.json")).unwrap();
    let staging =
        text.replace("\"shop\"", "\"shop-staging\"").replace("shop/", "shop-staging/").replace("node-a", "other");
    let staging = file(&directory, "staging.json", staging);
    let (code, stdout, stderr) = guardrail(&["diff", &staging, "shop.json", "--map", "shop-staging=shop"]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "No difference.\n", ""));
    assert_eq!(guardrail(&["diff", &staging, "shop.json"]).0, 1);
    let (_, _, stderr) = guardrail(&["diff", "shop.json", "shop.json", "--map", "shopp=shop"]);
    assert_eq!(stderr, "warning: --map: neither snapshot has namespace shopp\n");
}

#[test]
fn two_sets_of_policies() {
    let directory = tempfile::tempdir().unwrap();
    let none = directory.path().join("none");
    fs::create_dir(&none).unwrap();
    let none = none.to_str().unwrap();
    let args = |more: &[&'static str]| -> Vec<&str> {
        let fixed =
            ["diff", "--inventory", "cluster.yaml", "--from-policies", none, "--to-policies", "shop-policies.yaml"];
        fixed.into_iter().chain(more.iter().copied()).collect()
    };
    insta::assert_snapshot!("policies_table", shown(&args(&["shop.json"])));
    insta::assert_snapshot!("policies_markdown", shown(&args(&["shop.json", "-o", "markdown"])));
    let (code, stdout, _) = guardrail(&args(&["-o", "json"]));
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &json["touched"]), (1, &serde_json::Value::Null));
    assert!(json["changes"].as_array().unwrap().iter().all(|change| change["allowed"] == ""), "policies close only");
}

#[test]
fn other_files_with_the_same_meaning_are_no_difference() {
    let directory = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(data().join("shop-policies.yaml")).unwrap();
    let mut parts: Vec<&str> = text.split("---\n").collect();
    parts.reverse();
    let turned = parts.join("\n---\n").replace("name: stale", "name: other").replace("name: mailer, ", "name: mail, ");
    let turned = file(&directory, "turned.yaml", turned);
    let args = [
        "diff",
        "shop.json",
        "--inventory",
        "cluster.yaml",
        "--from-policies",
        "shop-policies.yaml",
        "--to-policies",
        &turned,
    ];
    let (code, stdout, _) = guardrail(&args);
    assert_eq!(code, 0, "{stdout}");
    assert_eq!(stdout, "No difference: both allow the same connections; 0 observed flows become denied, 0 allowed.\n");
}

#[test]
fn manifests_without_pods_are_enough() {
    let directory = tempfile::tempdir().unwrap();
    let deployment = |name: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  selector: {{matchLabels: {{app: {name}}}}}\n  template: {{metadata: {{labels: {{app: {name}}}}}, spec: {{containers: [{{name: c}}]}}}}\n"
        )
    };
    let manifests = file(&directory, "chart.yaml", format!("{}---\n{}", deployment("web"), deployment("api")));
    let policy = |from: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: api, namespace: shop}}\nspec:\n  podSelector: {{matchLabels: {{app: api}}}}\n  ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {from}}}}}}}], ports: [{{port: 8080}}]}}]\n"
        )
    };
    let (old, new) = (file(&directory, "old.yaml", policy("web")), file(&directory, "new.yaml", policy("gone")));
    let (code, stdout, stderr) =
        guardrail(&["diff", "--inventory", &manifests, "--from-policies", &old, "--to-policies", &new]);
    assert_eq!(code, 1, "{stderr}");
    assert_eq!(
        stdout,
        "NOW     FROM                 TO                   PORTS\ndenied  shop/Deployment/web  shop/Deployment/api  TCP/8080\n\n1 pair of ends lose connections, 0 gain some.\n"
    );
}

#[test]
fn what_cannot_be_compared_is_one_sentence_and_exit_2() {
    for (args, says) in [
        (&["diff", "shop.json"][..], "two snapshots are compared, OLD and NEW, and one is named"),
        (&["diff", "a", "b", "c"], "and 3 are named; `guardrail merge` makes one of several"),
        (&["diff", "--from-policies", "shop-policies.yaml"], "--to-policies"),
        (
            &["diff", "--from-policies", "shop-policies.yaml", "--to-policies", "shop-policies.yaml"],
            "there is nobody to compare the policies for: give --inventory or snapshots",
        ),
        (&["diff", "shop.json", "shop.json", "--map", "shop"], "write OLD=NEW, like shop-staging=shop"),
        (&["diff"], "required"),
    ] {
        let (code, stdout, stderr) = guardrail(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?} {stderr}");
        assert!(stderr.contains(says), "{args:?}: {stderr}");
    }
}
