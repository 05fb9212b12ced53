//! `guardrail drift` as a user meets it: what is found, what a baseline knows, exit codes.

mod common;

use std::{fs, path::Path};

use common::{data, file, run};

use guardrail_graph::Snapshot;

const NOW: [&str; 2] = ["--now", "2026-03-01T12:00:00Z"];

fn guardrail(args: &[&str], stdin: &str) -> (i32, String, String) {
    run(&data(), args, stdin)
}

fn drift(more: &[&str]) -> (i32, String, String) {
    guardrail(&[&["drift", "shop.json", "--policies", "shop-policies.yaml"], &NOW[..], more].concat(), "")
}

/// Rule and subject of each finding.
fn fingerprints(stdout: &str) -> Vec<String> {
    let json: serde_json::Value = serde_json::from_str(stdout).unwrap();
    let findings = json["findings"].as_array().unwrap();
    findings.iter().map(|finding| finding["fingerprint"].as_str().unwrap().to_owned()).collect()
}

fn policies() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shop-policies.yaml")).unwrap()
}

const DENIED: [&str; 2] = [
    "GD001 monitoring/StatefulSet/prometheus->shop/Deployment/cart:9090/TCP",
    "GD001 shop/Deployment/mailer->198.51.100.9:514/UDP",
];

#[test]
fn traffic_that_the_policies_deny() {
    let (code, stdout, stderr) = drift(&[]);
    assert_eq!((code, stderr.as_str()), (1, ""));
    insta::assert_snapshot!("traffic", stdout);
    insta::assert_snapshot!("traffic_markdown", drift(&["-o", "markdown"]).1);
    assert_eq!(fingerprints(&drift(&["-o", "json"]).1)[..2], DENIED);
    for (kinds, code) in [(&["traffic"][..], 1), (&["policies"], 0), (&["policies", "traffic"], 1)] {
        let args: Vec<&str> = kinds.iter().flat_map(|kind| ["--fail-on", *kind]).collect();
        assert_eq!(drift(&args).0, code, "{kinds:?}");
    }
    let sarif: serde_json::Value = serde_json::from_str(&drift(&["-o", "sarif"]).1).unwrap();
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!(result["partialFingerprints"]["guardrail/v1"], DENIED[0]);
    let rule = result["ruleIndex"].as_u64().unwrap() as usize;
    assert_eq!(sarif["runs"][0]["tool"]["driver"]["rules"][rule]["id"], "GD001");
}

/// GitHub refuses the whole log if any result is in no file.
#[test]
fn every_result_of_sarif_is_in_a_file_of_the_repository() {
    let directory = tempfile::tempdir().unwrap();
    let text =
        "apiVersion: guardrail.dev/v1alpha1\nkind: Plan\nspec: {environments: {production: {phase: default-deny}}}\n";
    let plan = file(&directory, "guardrail.yaml", text);
    let empty = file(&directory, "empty.yaml", "apiVersion: v1\nkind: List\nitems: []\n");
    let cluster =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shop-policies.yaml")).unwrap();
    let places = |args: &[&str]| -> Vec<(String, String)> {
        let args =
            [&["drift", "shop.json", "--against", "-", "-o", "sarif", "--now", "2026-03-01T12:00:00Z"], args].concat();
        let (_, stdout, stderr) = guardrail(&args, &cluster);
        let sarif: serde_json::Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"));
        let place = |result: &serde_json::Value| {
            let physical = &result["locations"][0]["physicalLocation"];
            assert!(physical["region"]["startLine"].as_u64() >= Some(1), "{result}");
            let uri = physical["artifactLocation"]["uri"].as_str().unwrap_or_else(|| panic!("{result}"));
            (result["ruleId"].as_str().unwrap().to_owned(), uri.to_owned())
        };
        sarif["runs"][0]["results"].as_array().unwrap().iter().map(place).collect()
    };
    let all = places(&["--policies", &empty]);
    assert!(all.iter().any(|(rule, _)| rule == "GD012") && all.iter().any(|(rule, _)| rule == "GD001"), "{all:?}");
    assert!(all.iter().all(|(_, uri)| uri.ends_with("/empty.yaml")), "{all:?}");
    let all = places(&["--policies", &empty, "--plan", &plan, "--environment", "production"]);
    assert!(all.len() > 3 && all.iter().all(|(_, uri)| uri.ends_with("/guardrail.yaml")), "{all:?}");
}

#[test]
fn what_a_baseline_has_is_no_news_and_a_new_flow_is() {
    let directory = tempfile::tempdir().unwrap();
    let known = file(&directory, "known.json", drift(&["-o", "json"]).1);
    let (code, stdout, _) = drift(&["--baseline", &known]);
    assert!(code == 0 && stdout.starts_with("No drift, ") && stdout.ends_with(" known.\n"), "{stdout}");
    // Later: other counts, other times, and a connection more.
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shop.json");
    let mut snapshot = Snapshot::from_json(&fs::read_to_string(data).unwrap(), "shop.json").unwrap();
    let edges = &mut snapshot.body.edges;
    let mut new = edges.iter().find(|edge| edge.port == 8025).unwrap().clone();
    for edge in edges.iter_mut() {
        edge.last_seen = edge.last_seen.after(std::time::Duration::from_secs(60));
    }
    new.port = 8026;
    edges.push(new);
    let later = file(&directory, "later.json", snapshot.to_json());
    let args = ["drift", &later, "--policies", "shop-policies.yaml", "--baseline", &known, "-o", "json"];
    let (code, stdout, _) = guardrail(&args, "");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let news: Vec<&serde_json::Value> =
        json["findings"].as_array().unwrap().iter().filter(|finding| finding["known"] == false).collect();
    assert_eq!((code, news.len()), (1, 1), "{news:?}");
    assert_eq!(news[0]["fingerprint"], "GD002 shop/Deployment/frontend->shop/Deployment/mailer:8026/TCP");
    assert_eq!(drift(&["-o", "json"]).1.matches("GD002").count(), 0, "without a baseline nothing is new");
}

#[test]
fn the_cluster_is_compared_with_the_files_by_meaning() {
    let directory = tempfile::tempdir().unwrap();
    let of = |text: &str, against: &str| {
        let files = file(&directory, "files.yaml", text);
        let args = ["drift", "shop.json", "--policies", &files, "--against", "-", "-o", "json"];
        let (code, stdout, stderr) = guardrail(&[&args[..], &NOW].concat(), against);
        assert!(code < 2, "{stderr}");
        fingerprints(&stdout).into_iter().filter(|print| print.starts_with("GD01")).collect::<Vec<_>>()
    };
    let files = policies();
    let mut turned: Vec<&str> = files.split("---\n").collect();
    turned.reverse();
    let turned = turned.join("\n---\n");
    assert_eq!(of(&files, &turned), Vec::<String>::new(), "another order is no drift");
    let edited = files.replace("port: 587", "port: 465").replace("name: stale", "name: by-hand");
    assert_eq!(
        of(&files, &edited),
        ["GD010 NetworkPolicy shop/stale", "GD011 NetworkPolicy shop/mailer", "GD012 NetworkPolicy shop/by-hand"]
    );
    // What is in force are the cluster's policies: the files alone deny two flows.
    let harmless = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: mailer, namespace: shop}\nspec: {podSelector: {matchLabels: {app: nobody}}}\n";
    let args = ["drift", "shop.json", "--policies", "shop-policies.yaml", "--against", "-", "--fail-on", "traffic"];
    assert_eq!(guardrail(&[&args[..], &NOW].concat(), harmless).0, 0);
}

#[test]
fn what_the_plan_wants_and_is_not_so() {
    let directory = tempfile::tempdir().unwrap();
    let plan = "apiVersion: guardrail.dev/v1alpha1
kind: Plan
spec:
  environments:
    production:
      phase: observe
      namespaces: {data: {phase: constrain}, shop: {phase: constrain}}
      sensitive: [data/StatefulSet/postgres]
  exceptions:
  - {id: over, from: shop/Deployment/mailer, to: data/StatefulSet/postgres, ports: [5432], expires: 2026-02-28, reason: r, owner: team-shop}
  - {id: open, from: shop/Deployment/mailer, to: data/StatefulSet/postgres, ports: [5432], expires: 2026-03-28, reason: r, owner: team-shop}
  unused: 1h
";
    let path = file(&directory, "guardrail.yaml", plan);
    let args = ["--plan", &path, "--environment", "production", "--fail-on", "intent"];
    let (code, stdout, stderr) = drift(&[&args[..], &["-o", "json"]].concat());
    assert_eq!(code, 1, "{stderr}");
    let found: Vec<String> = fingerprints(&stdout).into_iter().filter(|print| print.starts_with("GD02")).collect();
    assert_eq!(
        found,
        [
            "GD020 data",
            "GD020 shop",
            "GD021 data/StatefulSet/postgres",
            "GD022 shop/CronJob/nightly-report-generator",
            "GD022 shop/Deployment/mailer",
            "GD023 over",
            "GD024 shop/cart#1 ingress",
            "GD024 shop/cart#2 ingress",
            "GD024 shop/cart#1 egress",
            "GD024 shop/frontend#1 ingress",
            "GD024 shop/mailer#1 egress",
        ]
        .into_iter()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    );
    for message in [
        "namespace shop is meant to be at constrain and is at observe: 3 of 5 pods are isolated for ingress, 2 for egress",
        "sensitive workload data/StatefulSet/postgres is open: 0 of 1 pods are closed",
        "exception over of team-shop ended 1 day 12 hours ago",
        "ingress rule shop/cart#2 was never used in 1 hour",
        "egress rule shop/mailer#1 was last used 1 hour 40 minutes ago",
    ] {
        assert!(stdout.contains(message), "{message}\n{stdout}");
    }
    // A rule that was used within the time is none of them, and too short an observation says so.
    let long = file(&directory, "long.yaml", plan.replace("unused: 1h", "unused: 90d"));
    let args = ["--plan", &long, "--environment", "production", "-o", "json"];
    let (_, stdout, stderr) = drift(&args);
    assert!(!stdout.contains("GD024"));
    assert_eq!(stderr, "note: not looked at: rules that nobody uses: that needs an observation of 90 days\n");
    let recent = file(&directory, "recent.yaml", plan.replace("unused: 1h", "unused: 110m"));
    let args = ["--plan", &recent, "--environment", "production", "-o", "json"];
    let unused: Vec<String> =
        fingerprints(&drift(&args).1).into_iter().filter(|print| print.starts_with("GD024")).collect();
    assert_eq!(unused, ["GD024 shop/cart#2 ingress"], "only the rule that nobody ever used");
}

/// The exception of the plan in tests/exceptions.rs, as it is written.
const EXCEPTION: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guardrail-exception-inc-1-20260304t000000z, namespace: data}
spec:
  podSelector: {matchLabels: {app: postgres}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}
      podSelector: {matchLabels: {app: mailer}}
    ports: [{port: 5432}]
";

#[test]
fn an_exception_that_alone_isolates_is_the_first_error() {
    let directory = tempfile::tempdir().unwrap();
    let of = |more: &str| {
        let path = file(&directory, "p.yaml", format!("{}\n---\n{EXCEPTION}{more}", policies()));
        let args = ["drift", "shop.json", "--policies", &path, "--fail-on", "intent"];
        let json = guardrail(&[&args[..], &["-o", "json"], &NOW].concat(), "").1;
        (fingerprints(&json), guardrail(&[&args[..], &NOW].concat(), "").1)
    };
    let (found, table) = of("");
    assert_eq!(found[0], "GD000 data/StatefulSet/postgres ingress", "{found:?}");
    let told = table.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(told.starts_with("KIND RULE AT MESSAGE intent GD000 exception-isolates"), "{table}");
    // Another exception does not help, and a policy that isolates does.
    let second = EXCEPTION.replace("inc-1", "inc-2").replace("mailer", "cart");
    let (found, _) = of(&format!("---\n{second}"));
    assert_eq!(found.iter().filter(|print| print.starts_with("GD000")).count(), 1, "{found:?}");
    let deny = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: data}\nspec: {podSelector: {}}\n";
    let (found, _) = of(deny);
    assert!(!found.iter().any(|print| print.starts_with("GD000")), "{found:?}");
    // One that isolates the other direction only does not.
    let (found, _) = of(&deny.replace("{podSelector: {}}", "{podSelector: {}, policyTypes: [Egress]}"));
    assert_eq!(found[0], "GD000 data/StatefulSet/postgres ingress", "{found:?}");
}

#[test]
fn an_exception_that_has_ended_and_is_still_in_force_needs_no_plan_to_be_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "p.yaml", EXCEPTION);
    let of = |now: &str| {
        let args = ["drift", "shop.json", "--policies", "shop-policies.yaml", "--against", &path, "-o", "json"];
        let (_, stdout, stderr) = guardrail(&[&args[..], &["--now", now]].concat(), "");
        assert_eq!(stderr, "");
        stdout
    };
    let left = "GD025 data/guardrail-exception-inc-1-20260304t000000z";
    assert!(!fingerprints(&of("2026-03-03T23:59:59Z")).contains(&left.to_owned()));
    let stdout = of("2026-03-04T01:00:00Z");
    assert!(fingerprints(&stdout).contains(&left.to_owned()), "{stdout}");
    assert!(
        stdout.contains(
            "data/guardrail-exception-inc-1-20260304t000000z of exception inc-1 is in force, and ended 1 hour ago"
        ),
        "{stdout}"
    );
}

#[test]
fn what_cannot_be_answered_is_exit_2() {
    let directory = tempfile::tempdir().unwrap();
    let bad = file(&directory, "bad.json", "{\n\"findings\": 3}");
    let (code, stdout, stderr) = drift(&["--baseline", &bad]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("bad.json:2: this is no baseline"), "{stderr}");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shop.json");
    let text = fs::read_to_string(data).unwrap();
    let partial = text
        .replace("\"complete\": true", "\"complete\": false")
        .replace("\"expected\": [\n    \"node-a\"\n   ]", "\"expected\": [\"node-a\", \"node-b\"]");
    let partial = file(&directory, "partial.json", partial);
    let args = ["drift", &partial, "--policies", "shop-policies.yaml"];
    let (code, _, stderr) = guardrail(&args, "");
    assert!(code == 2 && stderr.contains("--allow-partial"), "{stderr}");
    assert_eq!(guardrail(&[&args[..], &["--allow-partial"]].concat(), "").0, 1);
}
