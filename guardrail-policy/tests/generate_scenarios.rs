//! Scenario goldens of the generator: `generate_scenarios/CASE/scenario.yaml` in, `expected/` out.
//! `UPDATE_GOLDENS=1` rewrites `expected/`.
//!
//! A golden says what the files look like; `allowed` and `denied` in the scenario say what they
//! must do, judged by the evaluator on the written text.

mod generate_support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use generate_support::{Scenario, parse_edge};
use guardrail_policy::{
    emit::{EVIDENCE_FILE, REPORT_FILE},
    export::{self, Exported},
    generate::{Format, Options, ProblemKind},
};

fn scenarios() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/generate_scenarios");
    let mut found: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .collect();
    found.sort();
    assert!(found.len() >= 46, "only {} scenarios", found.len());
    found
}

fn load(path: &Path) -> Scenario {
    let text = fs::read_to_string(path.join("scenario.yaml")).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Everything that a golden holds: the policies, and what was said.
fn rendered(scenario: &Scenario, generated: &Exported<'_>) -> BTreeMap<String, String> {
    let mut files = generated.all_files();
    files.remove(EVIDENCE_FILE);
    if !scenario.about.contains("report") {
        files.remove(REPORT_FILE);
    }
    let mut said = String::new();
    for problem in &generated.problems {
        said += &format!("{:?}: {}\n", problem.kind, problem.message);
    }
    for warning in &generated.warnings {
        said += &format!("warning: {warning}\n");
    }
    if !said.is_empty() {
        files.insert("said.txt".to_owned(), said);
    }
    files
}

fn read_golden(directory: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeMap::new() };
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap()))
        .collect()
}

#[test]
fn every_scenario_gives_its_golden_files() {
    let update = std::env::var_os("UPDATE_GOLDENS").is_some();
    let mut wrong = Vec::new();
    for (name, path) in scenarios() {
        let scenario = load(&path);
        let actual = rendered(&scenario, &export::export(&scenario.snapshot(), &scenario.options()));
        let directory = path.join("expected");
        let expected = read_golden(&directory);
        if actual == expected {
            continue;
        }
        if update {
            let _ = fs::remove_dir_all(&directory);
            fs::create_dir_all(&directory).unwrap();
            for (file, text) in &actual {
                fs::write(directory.join(file), text).unwrap();
            }
            continue;
        }
        for file in expected.keys().chain(actual.keys()).collect::<BTreeSet<_>>() {
            if expected.get(file) != actual.get(file) {
                wrong.push(format!(
                    "{name}/{file}\n--- expected\n{}\n--- actual\n{}",
                    expected.get(file).map_or("(no such file)", String::as_str),
                    actual.get(file).map_or("(no such file)", String::as_str)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n\nUPDATE_GOLDENS=1 rewrites them; read the difference first", wrong.join("\n\n"));
}

#[test]
fn every_scenario_allows_and_denies_what_it_says() {
    let mut wrong = Vec::new();
    let mut judged = 0;
    for (name, path) in scenarios() {
        let scenario = load(&path);
        let snapshot = scenario.snapshot();
        let options = scenario.options();
        let generated = export::export(&snapshot, &options);
        let cluster = options.cluster.clone().with_snapshot(&snapshot);
        let evaluator = generate_support::evaluator(&options, cluster, &generated.files);
        for (list, expected) in [(&scenario.allowed, true), (&scenario.denied, false)] {
            for line in list {
                let (client, server, protocol, port) = parse_edge(line);
                let verdict = evaluator
                    .evaluate_peers(&client, &server, protocol, port)
                    .unwrap_or_else(|e| panic!("{name}: {e}"));
                judged += 1;
                let fine = if expected { verdict.allowed() } else { !verdict.any_allowed() };
                if !fine {
                    wrong.push(format!(
                        "{name}: `{line}` should be {}: {verdict:?}",
                        if expected { "allowed" } else { "denied" }
                    ));
                }
            }
        }
        assert!(
            !(scenario.allowed.is_empty() && scenario.denied.is_empty()),
            "{name}: a scenario says at least one connection that its policies allow or deny"
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(judged > 100, "only {judged} connections judged");
}

/// What a scenario says of connections holds in Cilium's form, too.
#[test]
fn every_scenario_holds_in_ciliums_form() {
    let mut wrong = Vec::new();
    let mut judged = 0;
    for (name, path) in scenarios() {
        let scenario = load(&path);
        let snapshot = scenario.snapshot();
        let options = Options { format: Format::Cilium, ..scenario.options() };
        let generated = export::export(&snapshot, &options);
        for problem in &generated.problems {
            if matches!(problem.kind, ProblemKind::Denied | ProblemKind::Excess) {
                wrong.push(format!("{name}: {}", problem.message));
            }
        }
        let policies = generated.files.iter().filter(|(file, _)| file.contains(".guardrail-"));
        for (file, text) in policies {
            assert!(text.contains("\nkind: CiliumNetworkPolicy\n"), "{name}/{file}:\n{text}");
        }
        let mut cluster = options.cluster.clone().with_snapshot(&snapshot);
        // Of other addresses than those seen, it is known that they are of no name.
        cluster.all_names = true;
        let evaluator = generate_support::evaluator(&options, cluster, &generated.files);
        for (list, expected) in [(&scenario.allowed, true), (&scenario.denied, false)] {
            for line in list {
                let (client, server, protocol, port) = parse_edge(line);
                let verdict = evaluator.evaluate_peers(&client, &server, protocol, port).unwrap();
                judged += 1;
                if expected != verdict.allowed() || expected != verdict.any_allowed() {
                    wrong.push(format!("{name}: `{line}`: {verdict:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(judged > 100, "only {judged} connections judged");
}

#[test]
fn generating_twice_and_from_shuffled_records_gives_the_same_bytes() {
    for (name, path) in scenarios() {
        let scenario = load(&path);
        let snapshot = scenario.snapshot();
        let mut shuffled = snapshot.clone();
        shuffled.body.workloads.reverse();
        shuffled.body.services.reverse();
        shuffled.body.addresses.reverse();
        let files = |s| export::export(s, &scenario.options()).files;
        assert_eq!(files(&snapshot), files(&snapshot), "{name}");
        assert_eq!(files(&snapshot), files(&shuffled), "{name}");
    }
}
