//! `guardrail init` as a user meets it.

mod common;

use std::fs;

use common::guardrail;

#[test]
fn a_first_plan_of_the_shop() {
    let (code, stdout, stderr) = guardrail(&["init", "shop.json", "--context", "prod-eu"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    insta::assert_snapshot!(stdout);
}

#[test]
fn a_plan_that_is_there_is_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("guardrail.yaml");
    let name = file.to_str().unwrap();
    let (code, stdout, stderr) = guardrail(&["init", "shop.json", "--output", name]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "", ""));
    let first = fs::read_to_string(&file).unwrap();
    assert!(first.contains("kind: Plan"));
    let (code, stdout, stderr) = guardrail(&["init", "shop.json", "--output", name]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("is there already: remove it, or name another file with --output"), "{stderr}");
    assert_eq!(fs::read_to_string(&file).unwrap(), first);
}
