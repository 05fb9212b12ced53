//! `guardrail export --plan`: each namespace as far as the plan wants it and its gates let it.

#[path = "../../guardrail-policy/tests/generate_support/mod.rs"]
mod generate_support;

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{Scratch, guardrail};
use generate_support::Scenario;

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
      sensitive: [shop/Deployment/cart]
      gates: {window: 10m, quiet: 5m}
";

impl Scratch {
    /// An export of the shop to `out`, by this plan.
    fn export(&self, plan: &str, more: &[&str]) -> (i32, String) {
        self.export_of("shop.json", plan, more)
    }

    /// Everything in `out`, by name.
    fn written(&self) -> BTreeMap<String, String> {
        files(&self.path("out"))
    }

    fn policies(&self) -> Vec<String> {
        self.written().into_keys().filter(|name| name.contains(".guardrail-") && name.ends_with(".yaml")).collect()
    }
}

fn files(directory: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeMap::new() };
    let entry =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap());
    entries.map(|found| entry(found.unwrap())).collect()
}

#[test]
fn each_namespace_goes_as_far_as_the_plan_says() {
    let scratch = Scratch::new();
    let (code, stderr) = scratch.export(PLAN, &[]);
    assert_eq!(code, 0, "{stderr}");
    let policies = scratch.policies();
    assert!(policies.contains(&"data.guardrail-default-deny-ingress.yaml".to_owned()), "{policies:?}");
    assert!(policies.contains(&"shop.guardrail-namespace-boundary.yaml".to_owned()), "{policies:?}");
    assert!(policies.contains(&"shop.guardrail-allow-deployment-cart.yaml".to_owned()), "{policies:?}");
    assert!(policies.iter().all(|name| name.starts_with("data.") || name.starts_with("shop.")), "{policies:?}");
    let report = &scratch.written()["REPORT.md"];
    assert!(report.contains("Phases of the plan: constrain for shop; default-deny for data; observe for "), "{report}");
    assert!(
        report.contains("## Sensitive workloads: closed to all but their callers\n\n- shop/Deployment/cart\n"),
        "{report}"
    );
    assert!(report.contains("kube-system/Deployment/coredns on 53/TCP, 53/UDP"), "DNS is shared: {report}");

    // The same again changes nothing, and what was written is what the plan wants.
    let before = scratch.written();
    assert_eq!(scratch.export(PLAN, &[]).0, 0);
    assert_eq!(scratch.written(), before);
    let (plan, out) = (scratch.text("guardrail.yaml"), scratch.text("out"));
    let status = ["status", "shop.json", "--plan", &plan, "--environment", "production", "--policies", &out];
    let (code, stdout, stderr) = guardrail(&status);
    assert_eq!(code, 0, "{stdout}{stderr}");

    // Back to observe: what an earlier export wrote goes, but for the sensitive workload.
    let open = PLAN.replace("phase: constrain", "phase: observe").replace("{phase: default-deny}", "{phase: observe}");
    assert_eq!(scratch.export(&open, &[]).0, 0);
    assert_eq!(scratch.policies(), ["shop.guardrail-allow-deployment-cart.yaml"]);
    assert_eq!(scratch.export(&open.replace("[shop/Deployment/cart]", "[]"), &[]).0, 0);
    assert_eq!(scratch.policies(), [""; 0]);
}

#[test]
fn a_namespace_that_is_not_ready_stays_byte_for_byte_and_is_named() {
    let scratch = Scratch::new();
    assert_eq!(scratch.export(PLAN, &[]).0, 0);
    let before = scratch.written();
    // What is meant to be sensitive in data is nowhere; shop is open to its own now.
    let data_only = PLAN.replace("[shop/Deployment/cart]", "[data/Job/ledger-of-2019]");
    let (code, stderr) = scratch.export(&data_only, &[]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("not written: namespaces data: their files stay as they were"), "{stderr}");
    assert!(!scratch.path("out/shop.guardrail-allow-deployment-cart.yaml").exists());
    let after = scratch.written();
    for (name, text) in before.iter().filter(|(name, _)| name.starts_with("data.")) {
        assert_eq!(after.get(name), Some(text), "{name}");
    }
}

#[test]
fn one_namespace_of_an_environment_is_exported_and_all_others_stay_byte_for_byte() {
    // Step by step, in any order, gives what all at once gives.
    let whole = Scratch::new();
    assert_eq!(whole.export(PLAN, &[]).0, 0);
    let policies = |scratch: &Scratch| -> BTreeMap<String, String> {
        scratch.written().into_iter().filter(|(name, _)| name != "REPORT.md" && name != "evidence.json").collect()
    };
    for order in [["data", "shop"], ["shop", "data"]] {
        let steps = Scratch::new();
        let (code, stderr) = steps.export(PLAN, &["-n", order[0]]);
        assert_eq!((code, stderr.contains("not written")), (0, false), "{stderr}");
        assert!(!stderr.contains("has no workload") && !stderr.contains("stays as it is"), "{stderr}");
        let first = steps.written();
        let of = |namespace: &str, name: &str| name.starts_with(&format!("{namespace}."));
        assert!(first.keys().any(|name| of(order[0], name)), "{:?}", first.keys());
        assert!(!first.keys().any(|name| of(order[1], name)), "{:?}", first.keys());
        assert!(
            first["REPORT.md"].contains(&format!("namespace {} stays as it is: others were asked for", order[1])),
            "{}",
            first["REPORT.md"]
        );
        // What somebody did to the files of the first is nobody's business now, nor is its gate.
        let name = first.keys().find(|name| of(order[0], name)).unwrap();
        fs::write(steps.path("out").join(name), format!("# by hand\n{}", first[name])).unwrap();
        let before = steps.written();
        assert_eq!(steps.export(PLAN, &["-n", order[1]]).0, 0);
        let after = steps.written();
        for (name, text) in before.iter().filter(|(name, _)| of(order[0], name)) {
            assert_eq!(after.get(name), Some(text), "{name}");
        }
        assert!(after["kustomization.yaml"].contains(&format!("- {name}\n")), "{}", after["kustomization.yaml"]);
        assert_eq!(steps.export(PLAN, &["-n", order[0], "-n", order[1]]).0, 0);
        let different = policies(&steps).into_iter().filter(|(name, text)| policies(&whole).get(name) != Some(text));
        assert_eq!(different.map(|(name, _)| name).collect::<Vec<_>>(), [""; 0]);
        assert_eq!(policies(&steps).len(), policies(&whole).len());
    }
}

#[test]
fn what_holds_another_namespace_is_no_matter_and_what_holds_this_one_is() {
    let scratch = Scratch::new();
    let late =
        PLAN.replace("data: {phase: default-deny}", "data: {phase: observe}\n        shop: {phase: default-deny}");
    let data_only = late.replace("[shop/Deployment/cart]", "[data/Job/ledger-of-2019]");
    let (code, stderr) = scratch.export(&data_only, &["-n", "shop"]);
    // That nobody knows a sensitive workload is said in any case.
    assert_eq!(code, 1, "{stderr}");
    assert!(!stderr.contains("not written") && stderr.contains("ledger-of-2019"), "{stderr}");
    let before = scratch.written();
    let (code, stderr) = scratch.export(&data_only, &["-n", "data"]);
    assert!(code == 2 && scratch.written() == before, "{code}: {stderr}");
    assert!(stderr.contains("nothing was written: namespaces data are not ready"), "{stderr}");
    let (code, stderr) = scratch.export(PLAN, &["-n", "shp"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(
        stderr.ends_with(
            "error: -n shp: neither the snapshots nor the directory have anything of this namespace; did you mean shop?\n"
        ),
        "{stderr}"
    );
}

#[test]
fn what_a_namespace_is_held_for_names_the_workloads_whose_evidence_is_incomplete_and_why() {
    let scratch = Scratch::new();
    let mut snapshot: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(common::data().join("shop.json")).unwrap()).unwrap();
    let cart = serde_json::json!({"kind": "Workload", "namespace": "shop", "owner": "Deployment", "name": "cart"});
    let incomplete = serde_json::json!({"peer": cart, "complete": false, "reasons": ["pod_unknown"]});
    snapshot["coverage"]["workloads"].as_array_mut().unwrap().push(incomplete);
    snapshot["coverage"]["complete"] = false.into();
    let incomplete = common::file(&scratch.directory, "incomplete.json", snapshot.to_string());
    let (code, stderr) = scratch.export_of(&incomplete, PLAN, &[]);
    assert_eq!(code, 1, "{stderr}");
    let held = stderr.lines().find(|line| line.contains("namespace shop is not ready")).unwrap_or_default();
    assert!(held.contains("(coverage: ") && held.contains("shop/Deployment/cart: pod_unknown"), "{stderr}");
    assert!(held.contains("accept it with --force"), "{held}");
    let (code, stderr) = scratch.export_of(&incomplete, PLAN, &["--force"]);
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn when_every_namespace_is_held_nothing_is_written_at_all() {
    let scratch = Scratch::new();
    assert_eq!(scratch.export(PLAN, &[]).0, 0);
    let before = scratch.written();
    let late = PLAN.replace("window: 10m", "window: 9d");
    let (code, stderr) = scratch.export(&late, &[]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("nothing was written: namespaces data, shop are not ready"), "{stderr}");
    assert_eq!(scratch.written(), before, "REPORT.md and evidence.json, too");
    let all = late.replace("        kube-system: {phase: observe}\n        monitoring: {phase: observe}\n", "");
    let (code, stderr) = scratch.export(&all, &[]);
    assert_eq!((code, scratch.written()), (2, before), "{stderr}");
    // A person may pass the gates.
    assert_eq!(scratch.export(&late, &["--force"]).0, 0);
}

#[test]
fn a_closed_namespace_of_which_nothing_was_seen_stays_closed() {
    let scratch = Scratch::new();
    let snapshot = |namespaces: &[&str]| {
        let workloads: serde_json::Map<String, serde_json::Value> = namespaces
            .iter()
            .zip(5..)
            .map(|(namespace, number)| {
                let pod = serde_json::json!({"node": "node-a", "addresses": [format!("10.244.0.{number}")]});
                (
                    format!("{namespace}/Deployment/web"),
                    serde_json::json!({"labels": {"app": "web"}, "pods": {"web-1": pod}}),
                )
            })
            .collect();
        let scenario: Scenario = serde_json::from_value(serde_json::json!({
            "about": "", "export": {"phase": "observe"}, "nodes": {"node-a": ["192.0.2.1"]}, "workloads": workloads,
        }))
        .unwrap();
        let path = scratch.text("s.json");
        fs::write(&path, scenario.snapshot().to_json()).unwrap();
        path
    };
    let plan = PLAN
        .replace("[shop/Deployment/cart]", "[open/Deployment/web]")
        .replace("        data:", "        open: {phase: observe}\n        data:")
        .replace("window: 10m, quiet: 5m", "window: 10s");
    let (code, stderr) = scratch.export_of(&snapshot(&["data", "open", "shop"]), &plan, &[]);
    assert_eq!(code, 0, "{stderr}");
    let before = scratch.policies();
    assert_eq!(before.len(), 3, "{before:?}");
    let (code, stderr) =
        scratch.export_of(&snapshot(&["shop"]), &plan.replace("[open/Deployment/web]", "[\"open/*\"]"), &[]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("data: the snapshot has no workload of it"), "{stderr}");
    assert!(stderr.contains("open: the snapshot has no workload of it"), "sensitive: {stderr}");
    assert_eq!(scratch.policies(), before);
}

#[test]
fn a_sensitive_workload_that_does_not_exist_never_passes_in_silence() {
    // Nearly somebody's name: nothing is written, and the nearest name is said.
    let scratch = Scratch::new();
    for misspelt in ["shop/Deployment/crat", "shop/cat", "shop/Deployment/car*"] {
        let plan = PLAN.replace("shop/Deployment/cart", &format!("\"{misspelt}\""));
        let (code, stderr) = scratch.export(&plan, &[]);
        let matches = misspelt.ends_with('*');
        assert_eq!(code, if matches { 0 } else { 2 }, "{misspelt}: {stderr}");
        if !matches {
            assert!(stderr.contains(&format!("guardrail.yaml:11: sensitive of production names {misspelt}, which matches no workload; did you mean shop/")), "{stderr}");
            assert!(!scratch.path("out").exists());
        }
    }
    // Nobody's name: the namespace that it would lie in stays as it is, the others are written.
    let scratch = Scratch::new();
    let gone = PLAN.replace("shop/Deployment/cart", "shop/StatefulSet/ledger-of-2019");
    let (code, stderr) = scratch.export(&gone, &[]);
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.contains("error: ")
            && stderr.contains("names shop/StatefulSet/ledger-of-2019, which matches no workload"),
        "{stderr}"
    );
    assert!(stderr.contains("not written: namespaces shop"), "{stderr}");
    assert!(scratch.policies().iter().all(|name| name.starts_with("data.")), "{:?}", scratch.policies());
    // The same in a namespace that is not there, and in another environment.
    let scratch = Scratch::new();
    let nowhere = PLAN.replace("shop/Deployment/cart", "treasury/StatefulSet/ledger-of-2019");
    assert_eq!(scratch.export(&nowhere, &[]).0, 1);
    let elsewhere = format!("{PLAN}    staging: {{sensitive: [shop/Deployment/crat]}}\n");
    let (code, stderr) = scratch.export(&elsewhere, &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("warning: ") && stderr.contains("sensitive of staging"), "{stderr}");
}

#[test]
fn what_contradicts_itself_is_one_sentence_and_exit_2() {
    let scratch = Scratch::new();
    fs::write(scratch.path("guardrail.yaml"), PLAN).unwrap();
    let plan = scratch.text("guardrail.yaml");
    for (args, says) in [
        (&["--environment", "production"][..], "--plan <FILE>"),
        (&["--plan", &plan], "--environment <NAME>"),
        (&[], "--phase <PHASE>"),
        (&["--plan", &plan, "--environment", "production", "--phase", "constrain"], "cannot be used with"),
        (&["--plan", &plan, "--environment", "production", "--egress"], "cannot be used with"),
        (&["--plan", &plan, "--environment", "prod"], "the plan has no environment prod"),
    ] {
        let (code, stdout, stderr) = guardrail(&[&["export", "shop.json"][..], args].concat());
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        assert!(stderr.contains(says), "{says}\n{stderr}");
        // One thing is missing, and not what the other way asks for.
        assert!(!args.contains(&"--environment") || !stderr.contains("  --phase <PHASE>\n"), "{stderr}");
    }
}

#[test]
fn webhooks_are_open_to_the_whole_control_plane_of_the_plan() {
    let scratch = Scratch::new();
    let scenario: Scenario = serde_json::from_value(serde_json::json!({
        "about": "a webhook that one address of the control plane called",
        "export": {"phase": "default-deny"},
        "nodes": {"node-a": ["192.0.2.1"]},
        "observed": ["node-a"],
        "workloads": {
            "hooks/Deployment/hook": {
                "labels": {"app": "hook"}, "pods": {"hook-1": {"node": "node-a", "addresses": ["10.244.0.5"]}},
            },
        },
        "edges": [{"edge": "203.0.113.70 -> hooks/Deployment/hook 9443"}],
    }))
    .unwrap();
    fs::write(scratch.path("hooks.json"), scenario.snapshot().to_json()).unwrap();
    let plan = "apiVersion: guardrail.dev/v1alpha1
kind: Plan
spec:
  environments: {production: {phase: default-deny, gates: {window: 1m}}}
";
    let callers = |plan: &str| {
        let (code, stderr) = scratch.export_of(&scratch.text("hooks.json"), plan, &[]);
        assert_eq!(code, 0, "{stderr}");
        let hook = &scratch.written()["hooks.guardrail-allow-deployment-hook.yaml"];
        let cidrs = hook.lines().filter_map(|line| line.trim().strip_prefix("cidr: ").map(str::to_owned));
        cidrs.collect::<Vec<_>>()
    };
    assert_eq!(callers(plan), ["203.0.113.70/32"]);
    assert_eq!(callers(&format!("{plan}  controlPlaneRanges: [203.0.113.64/28]\n")), ["203.0.113.64/28"]);
}
