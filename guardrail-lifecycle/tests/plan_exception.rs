//! An exception is added to the text of a plan: nothing else of it changes.

use guardrail_graph::WorkloadRef;
use guardrail_lifecycle::plan::{self, AppendError, Exception, ExceptionEnd, PlanPort, with_exception};
use guardrail_policy::model::Protocol;
use proptest::prelude::*;

fn workload(namespace: &str, name: &str) -> ExceptionEnd {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    ExceptionEnd::Workload(WorkloadRef { namespace, owner: "Deployment".to_owned(), name })
}

fn exception() -> Exception {
    Exception {
        id: "inc-4711".to_owned(),
        from: workload("shop", "legacy"),
        to: ExceptionEnd::Range("2001:db8::1/128".parse().unwrap()),
        ports: [PlanPort { port: 5432, protocol: Protocol::Tcp }].into(),
        expires: "2026-12-15T08:00:00Z".parse().unwrap(),
        reason: "old driver: # see INC-4711, \"soon\"".to_owned(),
        owner: "team-shop".to_owned(),
        environments: ["production".to_owned()].into(),
        line: 0,
    }
}

const ITEM: &str = "- id: inc-4711
  from: shop/Deployment/legacy
  to: \"2001:db8::1/128\"
  ports: [5432/TCP]
  expires: 2026-12-15T08:00:00Z
  reason: \"old driver: # see INC-4711, \\\"soon\\\"\"
  owner: team-shop
  environments: [production]
";

fn item(pad: usize) -> String {
    ITEM.lines().map(|line| format!("{}{line}\n", " ".repeat(pad))).collect()
}

const HEAD: &str = "# What we want.
apiVersion: guardrail.dev/v1alpha1
kind: Plan   # of the shop
spec:
  environments:
    production: {phase: constrain}   # soon
";

const OTHER: &str =
    "{id: other, from: shop/Deployment/a, to: 10.0.0.1, ports: [80], expires: 2027-01-01, reason: r, owner: o}";

#[test]
fn only_the_lines_of_the_exception_are_new() {
    for (before, after) in [
        // No list yet: at the end of the spec, behind the comments that belong to it.
        (format!("{HEAD}  # shared: []\n"), format!("{HEAD}  # shared: []\n  exceptions:\n{}", item(2))),
        // The last line has no end.
        (HEAD.trim_end().to_owned(), format!("{}\n  exceptions:\n{}", HEAD.trim_end(), item(2))),
        // The spec is not the last, and a comment stands before what follows.
        (
            "spec:\n    environments:\n        production: {}\n\n# The rest.\nkind: Plan\napiVersion: guardrail.dev/v1alpha1\n".to_owned(),
            format!(
                "spec:\n    environments:\n        production: {{}}\n    exceptions:\n{}\n# The rest.\nkind: Plan\napiVersion: guardrail.dev/v1alpha1\n",
                item(4)
            ),
        ),
        // An empty list, with and without brackets.
        (
            format!("{HEAD}  exceptions: []  # none\n  unused: 90d\n"),
            format!("{HEAD}  exceptions:  # none\n{}  unused: 90d\n", item(2)),
        ),
        (
            format!("{HEAD}  exceptions:\n  unused: 90d\n"),
            format!("{HEAD}  exceptions:\n{}  unused: 90d\n", item(2)),
        ),
        // A list, at its own indentation, with comments inside and behind.
        (
            format!("{HEAD}  exceptions:  # ends\n  - {OTHER}  # old\n  # Others follow.\n\n  accepted: []\n"),
            format!("{HEAD}  exceptions:  # ends\n  - {OTHER}  # old\n{}  # Others follow.\n\n  accepted: []\n", item(2)),
        ),
        (
            format!(
                "{HEAD}  exceptions:\n    - id: other\n      from: shop/Deployment/a\n      to: 10.0.0.1\n      ports: [80]\n      expires: 2027-01-01\n      owner: o\n      reason: |\n        a long\n\n        # story\n      # the end\n\n"
            ),
            format!(
                "{HEAD}  exceptions:\n    - id: other\n      from: shop/Deployment/a\n      to: 10.0.0.1\n      ports: [80]\n      expires: 2027-01-01\n      owner: o\n      reason: |\n        a long\n\n        # story\n      # the end\n{}\n",
                item(4)
            ),
        ),
    ] {
        assert_eq!(with_exception("p.yaml", &before, &exception()).unwrap(), after, "{before}");
    }
}

#[test]
fn line_ends_stay_what_they_are() {
    let dos = format!("{HEAD}  exceptions:\n  - {OTHER}\n").replace('\n', "\r\n");
    let after = with_exception("p.yaml", &dos, &exception()).unwrap();
    assert_eq!(after, format!("{dos}{}", item(2).replace('\n', "\r\n")));
}

#[test]
fn what_is_written_in_braces_is_left_alone_and_told() {
    for (text, line, why) in [
        (
            "{apiVersion: guardrail.dev/v1alpha1, kind: Plan, spec: {environments: {production: {}}}}".to_owned(),
            1,
            "the spec stands in braces",
        ),
        (format!("{HEAD}  exceptions: [{OTHER}]\n"), 7, "the list of exceptions stands in brackets"),
        (format!("{HEAD}  exceptions: [\n    ]\n"), 7, "the list of exceptions stands in brackets"),
    ] {
        let error = with_exception("p.yaml", &text, &exception()).unwrap_err();
        assert!(matches!(error, AppendError::Layout { .. }));
        let told = error.to_string();
        assert!(told.starts_with(&format!("p.yaml:{line}: {why}")) && told.ends_with(ITEM), "{told}");
    }
    let broken = with_exception("p.yaml", "kind: Plan", &exception()).unwrap_err();
    assert!(matches!(broken, AppendError::Unreadable(_)), "{broken}");
    // The plan would not be read with it.
    let twice = Exception { id: "other".to_owned(), ..exception() };
    let text = format!("{HEAD}  exceptions:\n  - {OTHER}\n");
    assert!(with_exception("p.yaml", &text, &twice).is_err());
}

proptest! {
    /// Whatever stands in reason and owner, it is read as it was given.
    #[test]
    fn any_text_survives(reason in "[^\\pC\\p{Zl}\\p{Zp}]{0,40}[^\\pC\\s]", owner in "[^\\pC\\p{Zl}\\p{Zp}]{0,9}[^\\pC\\s]") {
        let given = Exception { reason: reason.clone(), owner: owner.clone(), ..exception() };
        let text = with_exception("p.yaml", HEAD, &given).unwrap();
        let read = plan::read("p.yaml", text.as_bytes()).unwrap();
        prop_assert_eq!(&read.exceptions[0].reason, &reason);
        prop_assert_eq!(&read.exceptions[0].owner, &owner);
        prop_assert!(text.starts_with(HEAD));
    }
}
