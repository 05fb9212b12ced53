//! The truth tables of `tests/dialects`, through the `guardrail` binary: Cilium's kinds,
//! ClusterNetworkPolicy, AdminNetworkPolicy.

mod tables;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use tables::cases;

fn check(case: &Path, cilium: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_guardrail"));
    command.args(["check", "-o", "csv", "--flows"]).arg(case.join("expected.csv"));
    command.arg("--policies").arg(case.join("policies.yaml"));
    // The cases of one suite share their cluster.
    let shared = case.ancestors().map(|d| d.join("cluster.yaml")).find(|f| f.is_file()).unwrap();
    command.arg("--inventory").arg(shared);
    if cilium {
        command.args(["--dataplane", "cilium"]);
    }
    for (option, file) in [("--dataplane-config", "config.yaml"), ("--names", "dns.csv")] {
        if case.join(file).is_file() {
            command.arg(option).arg(case.join(file));
        }
    }
    command.output().unwrap()
}

/// What is wrong with one case; nothing if every row agrees.
fn judge(case: &Path, cilium: bool) -> Vec<String> {
    let expected = fs::read_to_string(case.join("expected.csv")).unwrap();
    let mut lines = expected.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let verdicts = header.get(5) == Some(&"verdict");
    let expected: Vec<Vec<&str>> = lines.map(|l| l.split(',').collect()).collect();
    let output = check(case, cilium);
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let actual: Vec<Vec<&str>> = stdout.lines().skip(1).map(|l| l.split(',').collect()).collect();
    if actual.len() != expected.len() {
        return vec![format!("{} rows in, {} rows out; {stderr}", expected.len(), actual.len())];
    }
    let mut wrong = Vec::new();
    for (expected, actual) in expected.iter().zip(&actual) {
        let verdict = if expected[4] == "true" { "allowed" } else { "denied" };
        let by = &actual[5..];
        let decided = match expected.get(5).filter(|_| verdicts) {
            Some(&"deny-rule") => by.iter().any(|b| b.starts_with("deny:")),
            Some(&"deny-default") => by.contains(&"deny"),
            Some(&"allow-l4-l7-restricted") => by.iter().any(|b| b.ends_with("+l7")),
            Some(&"allow") => !by.iter().any(|b| b.ends_with("+l7") || b.starts_with("deny")),
            _ => true,
        };
        if expected[..4] != actual[..4] || actual[4] != verdict || !decided {
            wrong.push(format!("{}: got {}; {stderr}", expected.join(","), actual.join(",")));
        }
    }
    let denied = expected.iter().any(|e| e[4] != "true");
    if output.status.code() != Some(i32::from(denied)) {
        wrong.push(format!("exit code {:?} although denied = {denied}; stderr: {stderr}", output.status.code()));
    }
    wrong
}

fn suite(name: &str, cilium: bool, count: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialects").join(name);
    let mut found = Vec::new();
    cases(&root, &mut found);
    found.retain(|case| !case.join("invalid.csv").is_file());
    assert_eq!(found.len(), count, "cases in {}", root.display());
    let mut failures = Vec::new();
    for case in &found {
        let name = case.strip_prefix(&root).unwrap().display();
        failures.extend(judge(case, cilium).into_iter().map(|f| format!("{name}: {f}")));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_row_of_ciliums_tables_is_judged_as_expected() {
    suite("cilium-cnp", true, 45);
}

#[test]
fn every_row_of_admin_network_policys_tables_is_judged_as_expected() {
    suite("anp-banp", false, 10);
}

#[test]
fn every_row_of_cluster_network_policys_tables_is_judged_as_expected() {
    suite("cluster-network-policy", false, 15);
}

#[test]
fn policies_that_the_api_or_the_agent_refuses_are_bad_input_by_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialects");
    let mut found = Vec::new();
    cases(&root, &mut found);
    found.retain(|case| case.join("invalid.csv").is_file());
    assert_eq!(found.len(), 3);
    for case in found {
        let output = check(&case, true);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{}: {stderr}", case.display());
        let names = fs::read_to_string(case.join("invalid.csv")).unwrap();
        let names: Vec<&str> = names.lines().skip(1).collect();
        for name in &names {
            let told = stderr.lines().any(|l| l.contains(&format!("shop/{name}: ")) && l.contains("spec."));
            assert!(told, "{}: nothing is said of {name} and its rule: {stderr}", case.display());
        }
    }
}
