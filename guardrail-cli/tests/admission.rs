//! `guardrail admission` as a user meets it: what is written, audit before deny, exit codes.

mod common;

use std::fs;

use common::{Scratch, guardrail};

const PLAN: &str = "apiVersion: guardrail.dev/v1alpha1
kind: Plan
spec:
  environments:
    production: {phase: constrain}
  admission:
    deployers: [\"system:serviceaccount:argocd:argocd-application-controller\"]
    breakGlass: [alice@example.org]
    controllers: [\"system:serviceaccount:argo-rollouts:argo-rollouts\"]
    maxDuration: 720h
";

impl Scratch {
    fn admission(&self, plan: &str, more: &[&str]) -> (i32, String, String) {
        fs::write(self.path("guardrail.yaml"), plan).unwrap();
        let plan = self.text("guardrail.yaml");
        guardrail(&[&["admission", "--plan", &plan, "--environment", "production"], more].concat())
    }
}

/// The shop's policies, and who has the labels that they trust.
const SHOP: [&str; 3] = ["shop.json", "--policies", "shop-policies.yaml"];

/// `kind/name` of each object, and what the bindings do.
fn objects(yaml: &str) -> (Vec<String>, Vec<String>) {
    let value = |line: &str, key: &str| line.strip_prefix(key).map(str::to_owned);
    let (mut names, mut actions) = (Vec::new(), Vec::new());
    for document in yaml.split("---\n").filter(|document| document.contains("kind: ")) {
        let kind = document.lines().find_map(|line| value(line, "kind: ")).unwrap();
        let name = document.lines().find_map(|line| value(line, "  name: ")).unwrap();
        names.push(format!("{kind}/{name}"));
        let lines: Vec<&str> = document.lines().collect();
        let at = lines.iter().position(|line| *line == "  validationActions:");
        actions.extend(at.map(|at| lines[at + 1].trim_start_matches("  - ").to_owned()));
    }
    (names, actions)
}

#[test]
fn labels_policies_and_ends_of_exceptions_are_looked_after_first_by_the_audit_log_alone() {
    let scratch = Scratch::new();
    let (code, stdout, stderr) = scratch.admission(PLAN, &SHOP);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let (names, actions) = objects(&stdout);
    for name in ["guardrail-pods-shop", "guardrail-templates-shop", "guardrail-policies", "guardrail-exceptions"] {
        for kind in ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] {
            assert!(names.contains(&format!("{kind}/{name}")), "{kind}/{name}: {names:?}");
        }
    }
    assert_eq!(actions.len() * 2, names.len(), "each policy has a binding: {names:?}");
    assert!(actions.iter().all(|action| action == "Audit"), "{actions:?}");
    for user in ["argocd-application-controller", "alice@example.org", "argo-rollouts:argo-rollouts"] {
        assert!(stdout.contains(user), "{user}");
    }
    let (code, enforced, _) = scratch.admission(PLAN, &[&SHOP[..], &["--enforce"]].concat());
    let (same, actions) = objects(&enforced);
    assert_eq!((code, same), (0, names));
    assert!(actions.iter().all(|action| action == "Deny"), "{actions:?}");
    // Nothing else differs: what is refused is told, too.
    assert!(enforced.replace("  - Deny\n", "") == stdout, "{enforced}");
}

#[test]
fn a_directory_gets_one_file_which_is_the_same_every_time() {
    let scratch = Scratch::new();
    let out = scratch.text("admission");
    let (code, stdout, stderr) = scratch.admission(PLAN, &[&SHOP[..], &["-d", &out]].concat());
    assert_eq!((code, stdout.as_str()), (0, ""));
    assert!(stderr.starts_with("wrote ") && stderr.contains("guardrail-admission.yaml"), "{stderr}");
    let read = || fs::read_to_string(scratch.path("admission/guardrail-admission.yaml")).unwrap();
    let first = read();
    assert_eq!(scratch.admission(PLAN, &[&SHOP[..], &["-d", &out]].concat()).0, 0);
    assert_eq!(read(), first);
    assert_eq!(scratch.admission(PLAN, &SHOP).1, first, "stdout has the same");
}

#[test]
fn what_the_plan_does_not_ask_for_is_not_written() {
    let scratch = Scratch::new();
    // Without deployers and breakGlass nobody is kept from the policies; without policies no label
    // is trusted.
    let none = PLAN.split("  admission:").next().unwrap();
    let (code, stdout, _) = scratch.admission(none, &[]);
    let (names, _) = objects(&stdout);
    assert_eq!(code, 0);
    assert_eq!(
        names,
        ["ValidatingAdmissionPolicy/guardrail-exceptions", "ValidatingAdmissionPolicyBinding/guardrail-exceptions"]
    );
}

#[test]
fn what_cannot_be_answered_is_one_sentence_and_exit_2_and_nothing_is_written() {
    let scratch = Scratch::new();
    let out = scratch.text("admission");
    for (plan, more, said) in [
        (
            PLAN,
            &["--policies", "shop-policies.yaml"][..],
            "whose the labels are is not known: add --inventory, or a snapshot",
        ),
        (&PLAN.replace("production:", "prod:"), &SHOP, "the plan has no environment production; it has prod"),
        (&PLAN.replace("720h", "long"), &SHOP, "spec.admission.maxDuration"),
        (&PLAN.replace("deployers", "deployer"), &SHOP, "did you mean deployers?"),
    ] {
        let (code, stdout, stderr) = scratch.admission(plan, &[more, &["-d", &out]].concat());
        assert!(code == 2 && stdout.is_empty() && stderr.contains(said), "{stderr}");
        assert!(!scratch.path("admission").exists());
    }
    let (code, _, stderr) = guardrail(&["admission"]);
    assert!(code == 2 && stderr.contains("name the plan and its environment"), "{stderr}");
}
