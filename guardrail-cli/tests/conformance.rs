//! The truth tables of `tests/conformance`, through the `guardrail` binary: Kubernetes' own
//! end-to-end tests and the network policy recipes.

mod tables;

use std::{fs, path::Path, process::Command};

use tables::cases;

/// What is wrong with one case; nothing if every row agrees.
fn judge(case: &Path) -> Vec<String> {
    let expected = fs::read_to_string(case.join("expected.csv")).unwrap();
    let expected: Vec<Vec<&str>> = expected.lines().skip(1).map(|l| l.split(',').collect()).collect();
    let output = Command::new(env!("CARGO_BIN_EXE_guardrail"))
        .arg("check")
        .arg("--flows")
        .arg(case.join("expected.csv"))
        .arg("--policies")
        .arg(case.join("policies.yaml"))
        .arg("--inventory")
        .arg(case.join("cluster.yaml"))
        .args(["-o", "csv"])
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let mut lines = stdout.lines();
    if lines.next() != Some("src,dst,protocol,port,verdict,ingress_by,egress_by") {
        return vec![format!("no CSV header; stderr: {stderr}")];
    }
    let actual: Vec<Vec<&str>> = lines.map(|l| l.split(',').collect()).collect();
    if actual.len() != expected.len() {
        return vec![format!("{} rows in, {} rows out", expected.len(), actual.len())];
    }
    let mut wrong = Vec::new();
    for (expected, actual) in expected.iter().zip(&actual) {
        let verdict = if expected[4] == "true" { "allowed" } else { "denied" };
        if expected[..4] != actual[..4] || actual[4] != verdict {
            wrong.push(format!("{}: expected {verdict}, got {}", expected[..4].join(","), actual.join(",")));
        }
        let denies = actual[5..].contains(&"deny");
        if denies != (verdict == "denied") {
            wrong.push(format!(
                "{}: who decided contradicts the verdict: {}",
                expected[..4].join(","),
                actual.join(",")
            ));
        }
    }
    let denied = expected.iter().any(|e| e[4] != "true");
    if output.status.code() != Some(i32::from(denied)) {
        wrong.push(format!("exit code {:?} although denied = {denied}; stderr: {stderr}", output.status.code()));
    }
    wrong
}

#[test]
fn every_row_of_the_truth_tables_is_judged_as_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let mut found = Vec::new();
    cases(&root, &mut found);
    assert_eq!(found.len(), 44, "steps in {}", root.display());
    let mut failures = Vec::new();
    for case in &found {
        let name = case.strip_prefix(&root).unwrap().display();
        failures.extend(judge(case).into_iter().map(|f| format!("{name}: {f}")));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
