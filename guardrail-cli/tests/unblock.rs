//! `guardrail unblock` as a user meets it: why it is denied, what opens it, the exception in the
//! plan.

mod common;

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _};

use common::{data, file, run};

/// On one line, wherever it was wrapped.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The database takes connections from the cart only, in a namespace that is closed.
const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: postgres, namespace: data}
spec:
  podSelector: {matchLabels: {app: postgres}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}
      podSelector: {matchLabels: {app: cart}}
    ports: [{port: 5432}]
";

const PLAN: &str = "# What we want.
apiVersion: guardrail.dev/v1alpha1
kind: Plan
spec:
  environments:
    production:
      context: prod-eu
      phase: constrain  # soon default-deny
      sensitive: [data/StatefulSet/postgres]
  admission: {maxDuration: 720h}
";

const NOW: &str = "2026-03-01T12:00:00.5Z";

struct Files {
    directory: tempfile::TempDir,
    policies: String,
    plan: String,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (policies, plan) = (file(&directory, "p.yaml", POLICY), file(&directory, "guardrail.yaml", PLAN));
        Self { directory, policies, plan }
    }

    /// Exit code, stdout and stderr, with the directory's name left out.
    fn ask(&self, from: &str, to: &str, port: &str, more: &[&str]) -> (i32, String, String) {
        let args = ["unblock", "shop.json", "--policies", &self.policies, "--from", from, "--to", to, "--port", port];
        let (code, stdout, stderr) = run(&data(), &[&args[..], more].concat(), "");
        let here = format!("{}/", self.directory.path().display());
        (code, stdout.replace(&here, ""), stderr.replace(&here, ""))
    }

    /// The frontend, which may not.
    fn frontend(&self, more: &[&str]) -> (i32, String, String) {
        let now = if more.contains(&"--now") { &[][..] } else { &["--now", NOW] };
        self.ask("shop/Deployment/frontend", "data/StatefulSet/postgres", "5432", &[more, now].concat())
    }

    fn exception<'a>(&'a self, more: &[&'a str]) -> (i32, String, String) {
        let args = ["--plan", &self.plan, "--reason", "INC-4711: old driver", "--owner", "team-shop"];
        self.frontend(&[&args[..], more].concat())
    }

    fn written(&self) -> String {
        fs::read_to_string(&self.plan).unwrap()
    }
}

#[test]
fn why_it_is_denied_what_opens_it_and_what_else_that_opens() {
    let files = Files::new();
    let (code, stdout, stderr) = files.frontend(&[]);
    assert_eq!((code, stderr.as_str()), (1, ""));
    insta::assert_snapshot!("denied", stdout);
    let (_, json, _) = files.frontend(&["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["result"]["answer"], "exception");
    assert_eq!(json["result"]["rules"][0]["direction"], "ingress");
    assert_eq!(json["result"]["also"], serde_json::json!([]));
}

#[test]
fn the_exception_is_the_only_thing_that_changes_in_the_plan() {
    let files = Files::new();
    fs::set_permissions(&files.plan, fs::Permissions::from_mode(0o640)).unwrap();
    let (code, stdout, stderr) = files.exception(&["--environment", "production"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let told = flat(&stdout);
    assert!(told.contains("Sensitive: the plan wants data/StatefulSet/postgres closed"), "{stdout}");
    assert!(
        told.contains("Written: exception frontend-postgres-5432 at guardrail.yaml:12, until 2026-03-04T12:00:00Z"),
        "{stdout}"
    );
    let exception = "  exceptions:
  - id: frontend-postgres-5432
    from: shop/Deployment/frontend
    to: data/StatefulSet/postgres
    ports: [5432/TCP]
    expires: 2026-03-04T12:00:00Z
    reason: \"INC-4711: old driver\"
    owner: team-shop
    environments: [production]
";
    assert_eq!(files.written(), format!("{PLAN}{exception}"));
    assert_eq!(fs::metadata(&files.plan).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(files.directory.path()).unwrap().count(), 2, "no temporary file is left");
    // Once is enough, as long as it holds.
    let (code, stdout, _) = files.exception(&["--environment", "production"]);
    assert!(code == 1 && flat(&stdout).contains("guardrail.yaml:12 has exception frontend-postgres-5432"), "{stdout}");
    assert_eq!(files.written(), format!("{PLAN}{exception}"));
    // Later it is a new one, with a name of its own.
    let args = ["--plan", &files.plan, "--reason", "r", "--owner", "o", "--for", "1h", "--now", "2026-03-09T12:00:00Z"];
    let (code, stdout, _) = files.frontend(&args);
    assert!(code == 0 && flat(&stdout).contains("frontend-postgres-5432-2 at"), "{stdout}");
    assert!(files.written().contains("expires: 2026-03-09T13:00:00Z"));
}

/// Every policy that was proposed, by its namespace and name.
fn proposed(json: &str) -> BTreeMap<String, String> {
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    let rules = json["result"]["rules"].as_array().unwrap().iter();
    let texts = rules.map(|rule| rule["yaml"].as_str().unwrap().to_owned());
    let name = |text: &str| {
        let of = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        format!("{}.{}", of("  namespace: "), of("  name: "))
    };
    texts.map(|text| (name(&text), text)).collect()
}

#[test]
fn what_is_proposed_is_what_export_writes() {
    // Egress of the frontend is closed, too: a policy at each side.
    let closed = format!(
        "{POLICY}---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: closed, namespace: shop}}\nspec: {{podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: [{{}}]}}\n"
    );
    for (policies, count) in [(POLICY.to_owned(), 1), (closed, 2)] {
        let files = Files::new();
        fs::write(&files.policies, policies).unwrap();
        let (code, json, stderr) = files.exception(&["--environment", "production", "-o", "json"]);
        assert_eq!((code, stderr.as_str()), (0, ""));
        let proposed = proposed(&json);
        assert_eq!(proposed.len(), count);
        // Asked again, the plan's own exception is shown.
        let (code, json, _) = files.exception(&["--environment", "production", "-o", "json", "--for", "1h"]);
        assert_eq!((code, self::proposed(&json)), (1, proposed.clone()));
        let out = files.directory.path().join("out");
        let args = ["export", "shop.json", "--plan", &files.plan, "--environment", "production", "--now", NOW];
        let to = ["--policies", &files.policies, "--accept-inferred", "--force", "-d", out.to_str().unwrap()];
        let (code, _, stderr) = run(&data(), &[&args[..], &to].concat(), "");
        assert!(code < 2, "{stderr}");
        let entries = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
        let written = entries.filter(|path| path.to_str().unwrap().contains(".guardrail-exception-"));
        let written: BTreeMap<String, String> = written
            .map(|path| {
                let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(path).unwrap())
            })
            .collect();
        assert_eq!(written, proposed, "{stderr}");
    }
}

#[test]
fn a_connection_that_no_policy_denies_gets_another_answer() {
    let files = Files::new();
    let (code, stdout, _) = files.ask("shop/Deployment/cart", "data/StatefulSet/postgres", "5432", &[]);
    assert!(code == 0 && stdout.starts_with("not blocked by policy: shop/Deployment/cart -> "), "{stdout}");
    assert!(stdout.contains("connections come about"), "{stdout}");
    let (code, stdout, _) = files.ask("shop/Deployment/frontend", "shop/Deployment/mailer", "8025", &[]);
    assert!(code == 0 && stdout.contains("3 attempts were refused"), "{stdout}");
    let (_, stdout, _) = files.ask("shop/Deployment/mailer", "shop/Deployment/cart", "8080", &[]);
    let told = flat(&stdout);
    assert!(told.contains("no attempt was observed") && told.contains("others get through there"), "{told}");
    // Nothing is written for it.
    let args = ["--plan", &files.plan, "--reason", "r", "--owner", "o"];
    let (code, ..) = files.ask("shop/Deployment/cart", "data/StatefulSet/postgres", "5432", &args);
    assert_eq!((code, files.written()), (0, PLAN.to_owned()));
}

#[test]
fn bad_input_is_one_sentence_and_leaves_the_plan_alone() {
    let files = Files::new();
    for (more, said) in [
        (
            &["--for", "721h"][..],
            "error: --for 30 days 1 hour is longer than guardrail.yaml allows: admission.maxDuration is 30 days",
        ),
        (
            &["--environment", "prodction"],
            "error: guardrail.yaml: the plan has no environment prodction; did you mean production?",
        ),
        (
            &["--environment", "production", "--context", "staging"],
            "error: guardrail.yaml: environment production is context prod-eu, and --context says staging; name one of them",
        ),
    ] {
        let (code, stdout, stderr) = files.exception(more);
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (2, "", format!("{said}\n").as_str()));
    }
    for (more, said) in [
        (&["--for", "0h"][..], "an exception of no length opens nothing"),
        (&["--id", "INC_1"], "becomes part of an object's name"),
        (&["--reason", "a\nb", "--owner", "o"], "it has more than one line"),
        (&["--plan", "x.yaml"], "--reason <TEXT>"),
    ] {
        let (code, stdout, stderr) = files.frontend(more);
        assert!(code == 2 && stdout.is_empty() && stderr.contains(said), "{stderr}");
    }
    for (from, to, port, said) in [
        ("shop/Deployment/frontend", "data/StatefulSet/postgres", "0", "`0` is no port"),
        ("shop/Deployment/frontend", "data/StatefulSet/postgres", "53/ICMP", "`53/ICMP` is no port"),
        (
            "shop/Deployment/nobody",
            "data/StatefulSet/postgres",
            "5432",
            "--from: the inventory has no pod, workload or Service `shop/Deployment/nobody`",
        ),
        ("192.0.2.1", "192.0.2.2", "443", "neither 192.0.2.1 nor 192.0.2.2 is a pod"),
    ] {
        let (code, stdout, stderr) = files.ask(from, to, port, &[]);
        assert!(code == 2 && stdout.is_empty() && stderr.contains(said), "{stderr}");
    }
    assert_eq!(files.written(), PLAN);
}
