//! `--since` and `--until` as a user meets them.

mod common;

use common::{file, guardrail};
use guardrail_graph::Snapshot;

/// The shop's edges in a span; it was observed on 2026-03-01 from 10:00 to 10:30.
fn graph(args: &[&str]) -> (i32, String, String) {
    guardrail(&[&["graph", "shop.json", "-o", "json"], args].concat())
}

fn read(text: &str) -> Snapshot {
    Snapshot::from_json(text, "stdout").unwrap()
}

#[test]
fn a_time_is_rfc_3339_a_date_or_a_time_ago() {
    let now = ["--now", "2026-03-03T00:00:00Z"];
    for (args, edges) in [
        (&["--since", "2026-03-01T10:20:00Z"][..], 11),
        (&["--since", "2026-03-01T12:20:00+02:00"], 11),
        (&["--since", "2026-03-01T10:20:01Z"], 0),
        (&["--until", "2026-03-01T10:00:01Z"], 0),
        (&["--since", "2026-03-01", "--until", "2026-03-01"], 11),
        (&["--since", "2d"], 11),
        (&["--since", "3d", "--until", "36h"], 11),
        (&["--since", "2d", "--until", "2260m"], 11),
    ] {
        let (code, stdout, stderr) = graph(&[args, &now].concat());
        assert_eq!(code, 0, "{args:?}: {stderr}");
        assert_eq!(read(&stdout).body.edges.len(), edges, "{args:?}: {stderr}");
    }
}

#[test]
fn the_window_is_cut_to_the_span() {
    let (_, stdout, stderr) = graph(&["--since", "2026-03-01T10:15:00Z", "--until", "2026-03-01T10:20:00Z"]);
    let window = read(&stdout).body.window;
    assert_eq!(stderr, "");
    let text = |time: Option<guardrail_graph::Timestamp>| time.unwrap().to_string();
    assert_eq!((text(window.from), text(window.to)), ("2026-03-01T10:15:00Z".into(), "2026-03-01T10:20:00Z".into()));
}

#[test]
fn a_span_that_reaches_back_further_than_the_observation_is_answered_with_a_warning() {
    let (code, stdout, stderr) = graph(&["--since", "2026-02-01"]);
    assert_eq!((code, read(&stdout).body.edges.len()), (0, 11));
    assert_eq!(
        stderr,
        "warning: --since reaches back further than what was observed, which begins 2026-03-01 10:00:00 UTC\n"
    );
}

#[test]
fn a_span_that_has_no_answer_is_one_sentence_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let now = ["--now", "2026-03-03T00:00:00Z"];
    for (args, said) in [
        (
            &["--since", "2026-03-01T10:20:00Z", "--until", "2026-03-01T10:20:00Z"][..],
            "is empty: it has to end after it begins",
        ),
        (&["--since", "1d", "--until", "2d"], "is empty: it has to end after it begins"),
        (
            &["--since", "1d"],
            "nothing was observed since 2026-03-02T00:00:00Z: the snapshots are of 2026-03-01 10:00:00 to 2026-03-01 10:30:00 UTC",
        ),
        (&["--until", "2026-02-28"], "nothing was observed until 2026-03-01T00:00:00Z: "),
    ] {
        let export = ["export", "shop.json", "--phase", "observe", "-d", out.to_str().unwrap()];
        for command in [&["graph", "shop.json"][..], &["merge", "shop.json"], &["status", "shop.json"], &export] {
            let (code, stdout, stderr) = guardrail(&[command, args, &now].concat());
            assert_eq!((code, stdout.as_str()), (2, ""), "{command:?} {args:?}");
            assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
            assert!(stderr.contains(said), "{stderr}");
        }
        assert!(!out.exists());
    }
    let (code, _, stderr) = graph(&["--since", "yesterday"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("`yesterday` is no time: write one like 2026-11-29T10:00:00Z"), "{stderr}");
}

#[test]
fn times_that_run_backwards_are_refused_whatever_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let shop = std::fs::read_to_string(common::data().join("shop.json")).unwrap();
    let backwards = shop.replace("\"last_seen\": \"2026-03-01T10:20:00Z\"", "\"last_seen\": \"2026-03-01T09:00:00Z\"");
    assert_ne!(shop, backwards);
    let name = file(&directory, "s.json", backwards);
    let (code, stdout, stderr) = guardrail(&["graph", &name]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("s.json: times run backwards: the edge shop/Deployment/frontend -> "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn every_command_that_reads_snapshots_takes_a_span() {
    for command in ["init", "graph", "merge", "status", "export", "diff", "drift", "check"] {
        let (_, help, _) = guardrail(&[command, "--help"]);
        assert!(help.contains("--since <TIME>") && help.contains("--until <TIME>"), "{command}: {help}");
        assert!(help.contains("--unobservable-nodes <SELECTOR>"), "{command}: {help}");
    }
}

#[test]
fn only_commands_that_read_snapshots_take_a_span() {
    let asks_of = |command: &str| {
        let (code, stdout, stderr) = guardrail(&[command, "--help"]);
        assert_eq!(code, 0, "{command}: {stderr}");
        (stdout.contains("--since") && stdout.contains("--until"), stdout.contains("SNAPSHOT"))
    };
    let all = guardrail(&["--help"]).1;
    let commands = all.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut seen = 0;
    for command in commands.lines().filter_map(|line| line.split_whitespace().next()) {
        let (span, snapshots) = asks_of(command);
        assert_eq!(span, snapshots || command == "diff", "{command}");
        seen += usize::from(!span);
    }
    assert!(seen >= 4, "explain, lint, prune, completions");
}
