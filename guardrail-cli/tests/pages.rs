//! The pages about plans and pipelines: each command that they show is one that the command takes,
//! and what they give to copy is what YAML and a shell read.

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use guardrail_lifecycle::drift::DRIFT_RULES;
use serde_json::Value;

const PAGES: [&str; 3] = ["lifecycle.md", "gitops.md", "getting-started.md"];

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).unwrap()
}

/// The blocks of a language, whole.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(&*fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// The words of a command of a shell, without what it is piped into or writes.
fn words(line: &str) -> Vec<String> {
    let (mut all, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    for letter in line.chars() {
        match (quote, letter) {
            (None, '\'' | '"') => (quote, begun) = (Some(letter), true),
            (Some(open), _) if open == letter => quote = None,
            (None, '|' | '>' | ';' | '&' | '#') if !begun => break,
            (None, ' ' | '\t') => {
                if std::mem::take(&mut begun) {
                    all.push(std::mem::take(&mut word));
                }
            }
            _ => {
                word.push(letter);
                begun = true;
            }
        }
    }
    if begun {
        all.push(word);
    }
    all
}

/// What a text calls `guardrail` with.
fn commands(text: &str) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    let parts = joined
        .lines()
        .flat_map(|line| line.split(" | "))
        .flat_map(|line| line.split("&& "))
        .flat_map(|line| line.split("; "));
    let calls = parts.map(|part| words(part.trim().trim_start_matches("$ ")));
    calls.filter(|words| words.first().is_some_and(|word| word.ends_with("guardrail")) && words.len() > 1).collect()
}

/// What stands in the sentences of a text as a whole command.
fn inline(text: &str) -> Vec<Vec<String>> {
    let outside_blocks: String = text.split("```").step_by(2).collect();
    let spans = outside_blocks.split('`').skip(1).step_by(2);
    spans.filter(|span| span.starts_with("guardrail ")).flat_map(commands).collect()
}

#[track_caller]
fn is_taken(page: &str, call: &[String]) {
    let nowhere = tempfile::tempdir().unwrap();
    // What is not there is told; what is misspelt, too, and with the usage.
    let output = Command::new(env!("CARGO_BIN_EXE_guardrail"))
        .args(&call[1..])
        .args((call[1] == "ui").then_some("--help"))
        .current_dir(nowhere.path())
        .env("KUBECONFIG", "nowhere")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("Usage:"), "{page}: {}\n{said}", call.join(" "));
}

#[test]
fn every_command_of_the_pages_is_one_that_is_taken() {
    let mut seen = 0;
    for name in PAGES {
        let text = page(name);
        for call in blocks(&text, "console").into_iter().flat_map(commands) {
            is_taken(name, &call);
            seen += 1;
        }
    }
    assert!(seen > 25, "{seen} commands");
}

#[test]
fn every_command_in_a_sentence_of_the_first_page_is_one_that_is_taken() {
    let all = inline(&page("getting-started.md"));
    all.iter().for_each(|call| is_taken("getting-started.md", call));
    assert!(all.len() >= 5, "{all:?}");
}

#[test]
fn the_jobs_for_github_and_gitlab_are_yaml_and_their_scripts_are_a_shells() {
    let text = page("gitops.md");
    let documents: Vec<Value> =
        blocks(&text, "yaml").into_iter().map(|block| serde_saphyr::from_str(block).expect(block)).collect();
    let github = documents.iter().find(|document| document.get("jobs").is_some()).expect("a workflow");
    let gitlab = documents.iter().find(|document| document.get(".guardrail").is_some()).expect("a pipeline");
    let mut scripts: Vec<String> = Vec::new();
    for (name, job) in github["jobs"].as_object().unwrap() {
        assert!(job["runs-on"].is_string() || job["runs-on"].is_array(), "{name}");
        for step in job["steps"].as_array().unwrap() {
            assert!(step.get("uses").is_some() != step.get("run").is_some(), "{name}: {step}");
            scripts.extend(step["run"].as_str().map(str::to_owned));
        }
    }
    for trigger in ["pull_request", "schedule"] {
        assert!(github["on"].get(trigger).is_some(), "{trigger}");
    }
    for (name, job) in gitlab.as_object().unwrap() {
        let lines = ["before_script", "script"].iter().flat_map(|key| job[key].as_array().into_iter().flatten());
        scripts
            .extend(lines.map(|line| line.as_str().unwrap_or_else(|| panic!("{name}: {line} is no text")).to_owned()));
        assert!(job.get("script").is_some() || name.starts_with('.'), "{name}");
    }
    let mut called = Vec::new();
    for script in &scripts {
        let checked = Command::new("bash").args(["-n", "-c", script]).output().unwrap();
        assert!(checked.status.success(), "{script}\n{}", String::from_utf8_lossy(&checked.stderr));
        for call in commands(&script.replace(" || ", "\n")) {
            is_taken("gitops.md", &call);
            called.push(call[1].clone());
        }
    }
    for command in ["lint", "diff", "drift"] {
        assert_eq!(called.iter().filter(|name| *name == command).count(), 2, "{command}: {called:?}");
    }
}

#[test]
fn every_kind_of_drift_has_its_line() {
    let text = page("lifecycle.md");
    for rule in DRIFT_RULES {
        assert!(text.contains(&format!("| `{}` {} | ", rule.id, rule.name)), "{}", rule.id);
    }
}
