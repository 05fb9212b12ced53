//! `guardrail status` as a user meets it: from a plan to policies in force.

#[path = "../../guardrail-policy/tests/generate_support/mod.rs"]
mod generate_support;

mod common;

use std::fs;

use common::guardrail;

use generate_support::Scenario;

const PLAN: &str = "apiVersion: guardrail.dev/v1alpha1
kind: Plan
spec:
  environments:
    production:
      context: prod-eu
      phase: constrain
      namespaces:
        kube-system: {phase: observe}
        monitoring: {phase: observe}
        data: {phase: default-deny}
      sensitive: [shop/Deployment/cart]
      gates: {window: 10m, quiet: 5m}
    relaxed: {}
  exceptions:
  - {id: inc-4711, from: shop/Deployment/mailer, to: data/StatefulSet/postgres, ports: [5432], expires: 2026-03-04, reason: old driver, owner: team-shop, environments: [production]}
  - {id: inc-4712, from: shop/Deployment/frontend, to: data/StatefulSet/postgres, ports: [5432], expires: 2026-02-28T12:00:00Z, reason: test, owner: team-shop}
";
const NOW: [&str; 2] = ["--now", "2026-03-01T12:00:00Z"];

struct Scratch {
    directory: tempfile::TempDir,
    plan: String,
}

impl Scratch {
    fn new(plan: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("guardrail.yaml");
        fs::write(&file, plan).unwrap();
        Self { plan: file.to_str().unwrap().to_owned(), directory }
    }

    /// The policies of an export.
    fn export(&self, more: &[&str]) -> String {
        let to = self.directory.path().join("policies");
        let to = to.to_str().unwrap();
        let args = ["export", "shop.json", "--min-window", "0s", "--accept-inferred", "-d", to];
        let (code, _, stderr) = guardrail(&[&args[..], more].concat());
        assert_eq!(code, 0, "{stderr}");
        to.to_owned()
    }

    /// Status of production with the plan.
    fn status(&self, more: &[&str]) -> (i32, String, String) {
        let args = ["status", "shop.json", "--plan", &self.plan, "--environment", "production"];
        guardrail(&[&args[..], &NOW, more].concat())
    }
}

fn shown((code, stdout, stderr): (i32, String, String)) -> String {
    assert!(stdout.lines().all(|line| line.chars().count() <= 100), "{stdout}");
    format!("exit {code}\n--- stdout\n{stdout}--- stderr\n{stderr}")
}

#[test]
fn nothing_is_in_force_at_first_and_the_plan_says_what_is_missing() {
    let scratch = Scratch::new(PLAN);
    insta::assert_snapshot!("first_day", shown(scratch.status(&[])));
    insta::assert_snapshot!("first_day_story", shown(scratch.status(&["-n", "data"])));
}

#[test]
fn what_the_export_closes_is_in_force() {
    let scratch = Scratch::new(PLAN);
    let constrain = scratch.export(&["--phase", "constrain", "-n", "shop", "-n", "data"]);
    let (code, stdout, stderr) = scratch.status(&["--policies", &constrain, "-o", "json"]);
    assert_eq!(code, 1, "{stderr}");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let of = |name: &str| {
        let all = json["namespaces"].as_array().unwrap();
        all.iter().find(|status| status["namespace"] == name).unwrap().clone()
    };
    assert_eq!(of("shop")["in_force"]["ingress"]["phase"], "constrain");
    assert_eq!(of("shop")["next"], serde_json::Value::Null, "it is where it is meant to be");
    assert_eq!(of("shop")["as_wanted"], false, "a sensitive workload is open to its namespace");
    assert_eq!(of("shop")["sensitive"][0]["closed"], 0);
    assert_eq!(of("data")["next"]["phase"], "default-deny");
    assert_eq!(of("kube-system")["as_wanted"], true);
    assert_eq!(of("data")["denied_now"], serde_json::json!([]));

    let closed = scratch.export(&["--phase", "default-deny", "-n", "shop", "-n", "data"]);
    let answer = scratch.status(&["--policies", &closed]);
    assert_eq!(answer.0, 0, "{}{}", answer.1, answer.2);
    insta::assert_snapshot!("closed", shown(answer));
}

#[test]
fn a_namespace_is_as_far_as_the_pod_that_is_closed_least() {
    let scratch = Scratch::new(PLAN);
    let (code, stdout, _) =
        scratch.status(&["--policies", "shop-policies.yaml", "--inventory", "cluster.yaml", "-n", "shop"]);
    assert_eq!(code, 1);
    insta::assert_snapshot!("some_pods", stdout);
}

#[test]
fn without_a_plan_it_says_what_is_in_force_and_what_could_come_next() {
    let (code, stdout, stderr) = guardrail(&["status", "shop.json", "--policies", "shop-policies.yaml"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    insta::assert_snapshot!("no_plan", stdout);
    let scratch = Scratch::new(PLAN);
    let args = ["status", "shop.json", "--plan", &scratch.plan, "--environment", "relaxed"];
    assert_eq!(guardrail(&[&args[..], &NOW].concat()).0, 0, "observe wants nothing");
}

#[test]
fn what_is_wrong_with_a_plan_is_one_sentence_and_exit_2() {
    let scratch = Scratch::new(PLAN);
    let plan = scratch.plan.clone();
    let late = Scratch::new(&format!("{PLAN}  admission: {{maxDuration: 24h}}\n"));
    let endless = Scratch::new(&PLAN.replace("expires: 2026-03-04, ", ""));
    let overlap = Scratch::new(&PLAN.replace("        data:", "        d*a: {}\n        d*t*: {}\n        data:"));
    for (plan, environment, more, says) in [
        (&plan, "prodution", &[][..], ": the plan has no environment prodution; did you mean production?"),
        (
            &late.plan,
            "production",
            &[],
            ":16: exception inc-4711 ends in 2 days 12 hours, and admission.maxDuration allows 1 day",
        ),
        (&endless.plan, "production", &[], ":16: spec.exceptions[0] has no `expires`"),
        (&overlap.plan, "production", &[], ":12: `d*t*` and `d*a` of line 11 stand for the same namespaces"),
        (
            &plan,
            "production",
            &["--context", "staging"],
            ": environment production is context prod-eu, and --context says staging",
        ),
        (
            &plan,
            "production",
            &["-n", "shopp"],
            "no pod and no workload of namespace shopp is known; did you mean shop?",
        ),
    ] {
        let args = ["status", "shop.json", "--plan", plan, "--environment", environment];
        let (code, stdout, stderr) = guardrail(&[&args[..], &NOW, more].concat());
        assert_eq!((code, stdout.as_str()), (2, ""), "{says}\n{stderr}");
        assert!(stderr.contains(says), "{says}\n{stderr}");
    }
    let (code, _, stderr) = guardrail(&["status", "shop.json", "--plan", &plan]);
    assert!(code == 2 && stderr.contains("--environment"), "{stderr}");
    // A workload that is not there is a warning, with the nearest that is.
    let misspelt = Scratch::new(&PLAN.replace("[shop/Deployment/cart]", "[shop/Deployment/carts]"));
    let (_, _, stderr) = misspelt.status(&[]);
    assert!(stderr.contains("guardrail.yaml:12: sensitive of production names shop/Deployment/carts, which matches no workload; did you mean shop/Deployment/cart?"), "{stderr}");
}

#[test]
fn a_flow_that_the_next_step_would_deny_is_named_and_holds_it_back() {
    let scenario: Scenario = serde_json::from_value(serde_json::json!({
        "about": "a CronJob without labels calls another workload",
        "export": {"phase": "default-deny"},
        "nodes": {"node-a": ["192.0.2.1"]},
        "workloads": {
            "shop/CronJob/bare": {"no_selector": "add a label"},
            "shop/Deployment/api": {
                "labels": {"app": "api"}, "pods": {"api-1": {"node": "node-a", "addresses": ["10.244.0.6"]}},
            },
        },
        "edges": [{"edge": "shop/CronJob/bare -> shop/Deployment/api 8080", "seen": ["server@node-a"]}],
    }))
    .unwrap();
    let scratch =
        Scratch::new(&PLAN.replace("phase: constrain", "phase: default-deny").replace("[shop/Deployment/cart]", "[]"));
    let path = |name: &str| scratch.directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("s.json"), scenario.snapshot().to_json()).unwrap();
    let boundary = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: boundary, namespace: shop}\nspec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}\n";
    fs::write(path("boundary.yaml"), boundary).unwrap();
    let args = ["status", &path("s.json"), "--plan", &scratch.plan, "--environment", "production", "-o", "json"];
    let policies = path("boundary.yaml");
    let (code, stdout, stderr) = guardrail(&[&args[..], &NOW, &["--policies", &policies]].concat());
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
    let shop = &json["namespaces"][0];
    assert_eq!((code, &shop["namespace"], &shop["next"]["phase"]), (1, &"shop".into(), &"default-deny".into()));
    let breaks = shop["would_break"].as_array().unwrap();
    assert_eq!(breaks.len(), 1, "{shop}");
    assert!(breaks[0].as_str().unwrap().contains("shop/CronJob/bare->shop/Deployment/api:8080/TCP"), "{shop}");
    // The way out that the message names is the plan's, too.
    let accepted = "  accepted: [{flow: shop/CronJob/bare->shop/Deployment/api:8080/TCP, reason: gone soon}]\n";
    let plan = fs::read_to_string(&scratch.plan).unwrap();
    fs::write(&scratch.plan, plan + accepted).unwrap();
    let (_, stdout, _) = guardrail(&[&args[..], &NOW, &["--policies", &policies]].concat());
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["namespaces"][0]["would_break"], serde_json::json!([]), "{stdout}");
}
