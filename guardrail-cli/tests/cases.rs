//! Small inputs made after what people reported elsewhere, through the `guardrail` binary, with the
//! answer that is right.
//!
//! Each directory of `tests/cases` has its inputs and `case.txt`: `# ` comment, `$ ` arguments,
//! `exit N`, `+ ` what stdout or stderr holds, `- ` what neither holds. White space in the output
//! counts as one blank.

use std::{fmt::Write as _, fs, path::Path, process::Command};

#[derive(Default)]
struct Step {
    arguments: String,
    exit: Option<i32>,
    holds: Vec<String>,
    lacks: Vec<String>,
}

fn steps(text: &str, name: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(arguments) = line.strip_prefix("$ ") {
            steps.push(Step { arguments: arguments.to_owned(), ..Step::default() });
            continue;
        }
        let step = steps.last_mut().unwrap_or_else(|| panic!("{name}: {line} before a command"));
        match line.split_once(' ') {
            Some(("exit", code)) => step.exit = Some(code.parse().unwrap()),
            Some(("+", text)) => step.holds.push(text.to_owned()),
            Some(("-", text)) => step.lacks.push(text.to_owned()),
            _ => panic!("{name}: what is {line:?}?"),
        }
    }
    steps
}

/// What is wrong with one step; empty if nothing is.
fn run(directory: &Path, step: &Step) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_guardrail"))
        .args(step.arguments.split(' '))
        .current_dir(directory)
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let text = format!("{stdout}\n{stderr}");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut wrong = String::new();
    if output.status.code() != step.exit {
        writeln!(wrong, "  exit {:?}, not {:?}", output.status.code(), step.exit).unwrap();
    }
    for missing in step.holds.iter().filter(|t| !text.contains(t.as_str())) {
        writeln!(wrong, "  lacks {missing:?}").unwrap();
    }
    for unwanted in step.lacks.iter().filter(|t| text.contains(t.as_str())) {
        writeln!(wrong, "  holds {unwanted:?}").unwrap();
    }
    if !wrong.is_empty() {
        writeln!(wrong, "--- stdout\n{stdout}--- stderr\n{stderr}").unwrap();
    }
    wrong
}

#[test]
fn every_case_is_answered_as_it_should_be() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut directories: Vec<_> =
        fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    directories.sort();
    assert!(directories.len() >= 3, "cases in {}", root.display());
    let mut failures = String::new();
    for directory in &directories {
        let name = directory.file_name().unwrap().to_string_lossy();
        let text = fs::read_to_string(directory.join("case.txt")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let steps = steps(&text, &name);
        assert!(!steps.is_empty() && steps.iter().all(|s| s.exit.is_some()), "{name}: a command without `exit`");
        for step in &steps {
            let wrong = run(directory, step);
            if !wrong.is_empty() {
                writeln!(failures, "{name}: guardrail {}\n{wrong}", step.arguments).unwrap();
            }
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}
