//! Exceptions from the plan to the files, to the list, and to their end.

mod common;

use std::{collections::BTreeSet, fs};

use common::{Scratch, guardrail};

const PLAN: &str = "apiVersion: guardrail.dev/v1alpha1
kind: Plan
spec:
  environments:
    production:
      phase: constrain
      namespaces:
        kube-system: {phase: observe}
        monitoring: {phase: observe}
        data: {phase: default-deny}
      gates: {window: 10m}
    staging: {}
  exceptions:
  - {id: inc-1, from: shop/Deployment/mailer, to: data/StatefulSet/postgres, ports: [5432], expires: 2026-03-04, reason: old driver, owner: team-shop}
  - {id: inc-2, from: shop/Deployment/mailer, to: data/StatefulSet/postgres, ports: [22], expires: 2026-02-28T12:00:00Z, reason: test, owner: team-shop}
  - {id: inc-3, from: shop/Deployment/mailer, to: data/StatefulSet/postgres, ports: [23], expires: 2026-03-04, reason: test, owner: team-shop, environments: [staging]}
";
const BEFORE: &str = "2026-03-01T12:00:00Z";
const AFTER: &str = "2026-03-04T00:00:00Z";
const FILE: &str = "data.guardrail-exception-inc-1-20260304t000000z.yaml";

impl Scratch {
    fn export(&self, plan: &str, now: &str) -> (i32, String) {
        self.export_of("shop.json", plan, &["--now", now])
    }

    fn exceptions(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path("out")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains(".guardrail-exception-")).collect()
    }

    /// The list of exceptions.
    fn list(&self, now: &str, more: &[&str]) -> (i32, String, String) {
        let plan = self.text("guardrail.yaml");
        guardrail(&[&["exceptions", "--plan", &plan, "--now", now][..], more].concat())
    }
}

#[test]
fn an_exception_is_written_where_its_pods_are_isolated_and_goes_when_it_ends() {
    let scratch = Scratch::new();
    let (code, stderr) = scratch.export(PLAN, BEFORE);
    assert_eq!(code, 0, "{stderr}");
    // Egress of the mailer is open; the second has ended; the third is another environment's.
    assert!(
        stderr.contains("exception inc-1: egress of shop/Deployment/mailer: not needed, no policy isolates its pods"),
        "{stderr}"
    );
    assert_eq!(scratch.exceptions(), BTreeSet::from([FILE.to_owned()]));
    let out = scratch.path("out");
    let text = fs::read_to_string(out.join(FILE)).unwrap();
    insta::assert_snapshot!("policy", text);
    assert!(fs::read_to_string(out.join("kustomization.yaml")).unwrap().contains(FILE));
    let report = fs::read_to_string(out.join("REPORT.md")).unwrap();
    assert!(
        report.contains("- inc-1: shop/Deployment/mailer -> data/StatefulSet/postgres 5432/TCP until 2026-03-04T00:00:00Z (team-shop: old driver); ingress of data/StatefulSet/postgres: data/guardrail-exception-inc-1-20260304t000000z; egress"),
        "{report}"
    );
    let before = fs::read(out.join(FILE)).unwrap();
    assert_eq!(scratch.export(PLAN, BEFORE).0, 0);
    assert_eq!(fs::read(out.join(FILE)).unwrap(), before);

    let (code, stderr) = scratch.export(PLAN, AFTER);
    assert_eq!((code, scratch.exceptions()), (0, BTreeSet::new()), "{stderr}");
}

#[test]
fn whoever_renews_an_exception_says_anew_why() {
    let scratch = Scratch::new();
    assert_eq!(scratch.export(PLAN, BEFORE).0, 0);
    let before = scratch.exceptions();
    let longer = PLAN.replace("expires: 2026-03-04, reason: old driver", "expires: 2026-03-09, reason: old driver");
    let (code, stderr) = scratch.export(&longer, BEFORE);
    assert_eq!((code, scratch.exceptions()), (2, before), "{stderr}");
    assert!(
        stderr.contains(
            "guardrail.yaml:14: exception inc-1 was to end 2026-03-04T00:00:00Z and is to go on until 2026-03-09T00:00:00Z: a new end needs a new reason"
        ),
        "{stderr}"
    );
    // With another reason it is another object. The same again is no renewal, nor an earlier end.
    let explained = longer.replace("reason: old driver", "reason: the new driver fails with TLS 1.3");
    let renewed = BTreeSet::from([FILE.replace("20260304", "20260309")]);
    for _ in 0..2 {
        let (code, stderr) = scratch.export(&explained, BEFORE);
        assert_eq!((code, scratch.exceptions()), (0, renewed.clone()), "{stderr}");
    }
    let shorter = explained.replace("2026-03-09", "2026-03-03");
    assert_eq!(scratch.export(&shorter, BEFORE).0, 0);
    assert_eq!(scratch.exceptions(), BTreeSet::from([FILE.replace("20260304", "20260303")]));
}

#[test]
fn an_exception_that_is_taken_out_of_the_plan_goes_with_the_next_export_of_its_namespace() {
    let scratch = Scratch::new();
    let none = PLAN.split("  exceptions:").next().unwrap();
    assert_eq!(scratch.export(PLAN, BEFORE).0, 0);
    let kustomization = || fs::read_to_string(scratch.path("out/kustomization.yaml")).unwrap();
    // Another namespace's export leaves it, its end or not.
    for (plan, now) in [(none, BEFORE), (PLAN, AFTER)] {
        let (code, stderr) = scratch.export_of("shop.json", plan, &["--now", now, "-n", "shop"]);
        assert_eq!((code, scratch.exceptions()), (0, BTreeSet::from([FILE.to_owned()])), "{stderr}");
        assert!(kustomization().contains(FILE));
    }
    let (code, stderr) = scratch.export_of("shop.json", none, &["--now", BEFORE, "-n", "data"]);
    assert_eq!((code, scratch.exceptions()), (0, BTreeSet::new()), "{stderr}");
    assert!(!kustomization().contains(FILE));
    // It comes alone, too, beside what its namespace has.
    let (code, stderr) = scratch.export_of("shop.json", PLAN, &["--now", BEFORE, "-n", "shop"]);
    assert_eq!((code, scratch.exceptions()), (0, BTreeSet::new()), "{stderr}");
    assert_eq!((scratch.export(PLAN, BEFORE).0, scratch.exceptions()), (0, BTreeSet::from([FILE.to_owned()])));
    assert_eq!((scratch.export(none, BEFORE).0, scratch.exceptions()), (0, BTreeSet::new()));
}

#[test]
fn the_end_comes_in_a_namespace_that_is_not_ready_too() {
    let scratch = Scratch::new();
    let none = PLAN.split("  exceptions:").next().unwrap();
    assert_eq!(scratch.export(none, BEFORE).0, 0);
    let held = PLAN.replace("window: 10m", "window: 9d");
    // What the namespace has in the directory is in force, and isolates.
    let (code, stderr) = scratch.export(&held, BEFORE);
    assert_eq!((code, scratch.exceptions()), (1, BTreeSet::from([FILE.to_owned()])), "{stderr}");
    let files = || -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(scratch.path("out")).unwrap().map(|entry| entry.unwrap());
        let mut all: Vec<_> =
            entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect();
        all.sort();
        all
    };
    let before = files();
    let (code, stderr) = scratch.export(&held, "2026-03-02T12:00:00Z");
    assert_eq!((code, files()), (1, before), "nothing changed: {stderr}");
    assert_eq!((scratch.export(&held, AFTER).0, scratch.exceptions()), (1, BTreeSet::new()));
}

#[test]
fn a_namespace_that_goes_back_loses_its_exceptions() {
    let scratch = Scratch::new();
    assert_eq!(scratch.export(PLAN, BEFORE).0, 0);
    let back = PLAN.replace("data: {phase: default-deny}", "data: {phase: observe}");
    let (code, stderr) = scratch.export(&back, BEFORE);
    assert_eq!((code, scratch.exceptions()), (0, BTreeSet::new()), "{stderr}");
    assert!(stderr.contains("exception inc-1: ingress of data/StatefulSet/postgres: not needed"), "{stderr}");
    // One that cannot be said is loud.
    let gone = PLAN.replace(
        "from: shop/Deployment/mailer, to: data/StatefulSet/postgres, ports: [5432]",
        "from: shop/Deployment/gone, to: data/StatefulSet/postgres, ports: [5432]",
    );
    let (code, stderr) = scratch.export(&gone, BEFORE);
    assert_eq!((code, scratch.exceptions()), (1, BTreeSet::new()), "{stderr}");
    assert!(stderr.contains("error: exception inc-1: ingress of data/StatefulSet/postgres: not written, nothing is known of shop/Deployment/gone"), "{stderr}");
    let long = format!("{PLAN}  admission: {{maxDuration: 1d}}\n");
    let (code, stderr) = scratch.export(&long, BEFORE);
    assert!(code == 2 && stderr.contains("exception inc-1 ends in 2 days"), "{stderr}");
}

/// Every flow to the database, and whether a file but for exceptions allows it.
fn allows_mailer_by_evidence(scratch: &Scratch) -> bool {
    let entries = fs::read_dir(scratch.path("out")).unwrap().map(|entry| entry.unwrap().path());
    let of_database = |path: &std::path::PathBuf| path.to_str().unwrap().contains("data.guardrail-allow-");
    entries.filter(of_database).any(|path| fs::read_to_string(path).unwrap().contains("app: mailer"))
}

#[test]
fn what_an_exception_let_through_is_no_evidence_for_a_rule_that_stays() {
    let scratch = Scratch::new();
    // While it holds, the mailer connects: the same snapshot with one edge more.
    let text = fs::read_to_string(common::data().join("shop.json")).unwrap();
    let mut snapshot = guardrail_graph::Snapshot::from_json(&text, "shop.json").unwrap();
    let is_known = |edge: &&guardrail_graph::snapshot::EdgeRecord| {
        edge.port == 5432 && edge.client.peer.to_string().ends_with("cart") && edge.supported
    };
    let mut edge = snapshot.body.edges.iter().find(is_known).unwrap().clone();
    let mailer = snapshot.body.edges.iter().find(|e| e.client.peer.to_string().ends_with("/mailer")).unwrap();
    edge.client = mailer.client.clone();
    snapshot.body.edges.push(edge);
    let used = scratch.text("used.json");
    fs::write(&used, snapshot.to_json()).unwrap();

    // Without an exception it is a rule like any other.
    let none = PLAN.split("  exceptions:").next().unwrap();
    let (code, stderr) = scratch.export_of(&used, none, &["--now", BEFORE]);
    assert!(code == 0 && allows_mailer_by_evidence(&scratch), "{stderr}");
    fs::remove_dir_all(scratch.path("out")).unwrap();
    // With one it is the exception's, as long as this stands in the plan: open or over.
    let (code, stderr) = scratch.export_of(&used, PLAN, &["--now", BEFORE]);
    assert_eq!((code, scratch.exceptions()), (0, BTreeSet::from([FILE.to_owned()])), "{stderr}");
    assert!(!allows_mailer_by_evidence(&scratch));
    let (code, stderr) = scratch.export_of(&used, PLAN, &["--now", AFTER]);
    assert_eq!((code, scratch.exceptions()), (0, BTreeSet::new()), "{stderr}");
    assert!(!allows_mailer_by_evidence(&scratch), "the end is an end");
    let report = fs::read_to_string(scratch.path("out/REPORT.md")).unwrap();
    assert!(
        report.contains(
            "| an exception of the plan is for it | shop/Deployment/mailer → data/StatefulSet/postgres 5432/TCP"
        ),
        "{report}"
    );
    // An exception that cannot be written keeps nobody out who was observed.
    let both = PLAN.replace(
        "id: inc-1, from: shop/Deployment/mailer, to: data/StatefulSet/postgres, ports: [5432]",
        "id: inc-1, from: shop/Deployment/mailer, to: data/StatefulSet/postgres, ports: [5432], environments: [staging]",
    );
    let (code, stderr) = scratch.export_of(&used, &both, &["--now", BEFORE]);
    assert!(code == 0 && allows_mailer_by_evidence(&scratch), "another environment's: {stderr}");
}

#[test]
fn a_directory_of_an_export_is_policies_however_large_its_evidence_is() {
    let scratch = Scratch::new();
    assert_eq!(scratch.export(PLAN, BEFORE).0, 0);
    let evidence = fs::OpenOptions::new().append(true).open(scratch.path("out/evidence.json")).unwrap();
    evidence.set_len(65 << 20).unwrap();
    let out = scratch.text("out");
    let (code, _, stderr) = scratch.list(BEFORE, &["--policies", &out]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    // A file of that name that no export wrote is read.
    fs::write(scratch.path("out/evidence.json"), "{\"kind\": \"NetworkPolicy\"}").unwrap();
    let (code, _, stderr) = scratch.list(BEFORE, &["--policies", &out]);
    assert!(code == 0 && stderr.contains("1 file holds no Kubernetes object"), "{stderr}");
}

#[test]
fn the_list_says_what_is_open_and_whether_anybody_uses_it() {
    let scratch = Scratch::new();
    assert_eq!(scratch.export(PLAN, BEFORE).0, 0);
    let out = scratch.text("out");
    let (code, stdout, stderr) =
        scratch.list(BEFORE, &["shop.json", "--environment", "production", "--policies", &out]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    insta::assert_snapshot!("list", stdout);
    let (_, stdout, _) = scratch.list(BEFORE, &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let ids: Vec<_> = json["exceptions"].as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["inc-2", "inc-1", "inc-3"]);
    assert_eq!(json["exceptions"][1]["in_force"], serde_json::Value::Null);

    // Ended and still in force, or in force and not of the plan: findings.
    let (code, stdout, _) = scratch.list(AFTER, &["--policies", &out]);
    assert!(code == 1 && stdout.contains("ended 0 seconds ago"), "{stdout}");
    let renewed = PLAN.replace("expires: 2026-03-04, reason: old driver", "expires: 2026-03-09, reason: older driver");
    fs::write(scratch.path("guardrail.yaml"), renewed).unwrap();
    let (code, stdout, _) = scratch.list(BEFORE, &["--policies", &out]);
    assert!(
        code == 1
            && stdout.contains(
                "data/guardrail-exception-inc-1-20260304t000000z is in force, and the plan does not have it."
            ),
        "{stdout}"
    );
    let (code, _, stderr) = scratch.list(BEFORE, &["--environment", "prod"]);
    assert!(code == 2 && stderr.contains("the plan has no environment prod"), "{stderr}");
}
