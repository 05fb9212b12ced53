//! How long is long enough: `guardrail export` compares the windows of nodes, says them in words,
//! and asks for a minimum.

#[path = "../../guardrail-policy/tests/generate_support/mod.rs"]
mod generate_support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use generate_support::Scenario;
use guardrail_graph::{
    Snapshot,
    snapshot::{Interval, InventoryState},
};

/// Namespace `shop` has pods on both nodes, `ops` on node-a alone.
fn cluster(windows: [(&str, &str, &str); 2]) -> Snapshot {
    let mut snapshot = Scenario::on_two_nodes().snapshot();
    let window = &mut snapshot.body.window;
    window.nodes = windows
        .iter()
        .map(|(node, from, to)| {
            ((*node).to_owned(), vec![Interval { from: from.parse().unwrap(), to: to.parse().unwrap() }])
        })
        .collect();
    window.from = window.nodes.values().flatten().map(|i| i.from).min();
    window.to = window.nodes.values().flatten().map(|i| i.to).max();
    let to = window.to.unwrap();
    for workload in &mut snapshot.body.workloads {
        workload.as_of = to;
    }
    snapshot
}

/// Exit code, standard error, and whether the directory has a file of the namespace.
struct Exported {
    code: Option<i32>,
    said: String,
    files: Vec<String>,
}

impl Exported {
    fn wrote(&self, namespace: &str) -> bool {
        self.files.iter().any(|file| file.starts_with(&format!("{namespace}.")))
    }
}

fn export(directory: &Path, snapshot: &Snapshot, args: &[&str]) -> Exported {
    fs::write(directory.join("s.json"), snapshot.to_json()).unwrap();
    let out = directory.join("out");
    let _ = fs::remove_dir_all(&out);
    let output: Output = Command::new(env!("CARGO_BIN_EXE_guardrail"))
        .current_dir(directory)
        .args(["export", "s.json", "-d", "out"])
        .args(args)
        .output()
        .unwrap();
    let files = fs::read_dir(&out).map_or_else(
        |_| Vec::new(),
        |entries| entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect(),
    );
    Exported { code: output.status.code(), said: String::from_utf8(output.stderr).unwrap(), files }
}

const DAY: (&str, &str) = ("2026-11-01T00:00:00Z", "2026-11-03T00:00:00Z");

#[test]
fn a_namespace_whose_nodes_were_observed_together_too_briefly_is_stopped_and_the_message_names_the_option() {
    let directory = tempfile::tempdir().unwrap();
    let late = ("node-b", "2026-11-02T21:00:00Z", DAY.1);
    let snapshot = cluster([("node-a", DAY.0, DAY.1), late]);

    let default = export(directory.path(), &snapshot, &["--phase", "default-deny"]);
    assert_eq!(default.code, Some(1), "{}", default.said);
    assert!(default.wrote("ops") && !default.wrote("shop"), "{:?}", default.files);
    let first = default.said.lines().next().unwrap();
    assert_eq!(
        first,
        "observed 2 days (2026-11-01 00:00 to 2026-11-03 00:00 UTC), 2 of 2 nodes; common to all nodes: 3 hours"
    );
    assert!(
        default.said.contains(
            "the nodes of namespace shop were observed together for 3 hours (node-a, node-b), and default-deny needs \
             1 day (--min-window 24h)"
        ),
        "{}",
        default.said
    );
    let report = fs::read_to_string(directory.path().join("out/REPORT.md")).unwrap();
    assert!(report.contains(first.strip_prefix("observed ").unwrap()), "{report}");
    let evidence = fs::read_to_string(directory.path().join("out/evidence.json")).unwrap();
    let evidence: serde_json::Value = serde_json::from_str(&evidence).unwrap();
    assert_eq!(evidence["observed"], first);

    for enough in [&["--min-window", "3h"][..], &["--min-window", "0s"], &["--force"]] {
        let accepted = export(directory.path(), &snapshot, &[&["--phase", "default-deny"], enough].concat());
        assert_eq!(accepted.code, Some(0), "{enough:?}: {}", accepted.said);
        assert!(accepted.wrote("ops") && accepted.wrote("shop"));
    }
    // Three hours are enough for a boundary, and a preview asks for nothing.
    for phase in ["constrain", "observe"] {
        let other = export(directory.path(), &snapshot, &["--phase", phase]);
        assert_eq!(other.code, Some(0), "{phase}: {}", other.said);
    }
    let more = export(directory.path(), &snapshot, &["--phase", "default-deny", "--min-window", "3d"]);
    assert_eq!(more.code, Some(2), "{}", more.said);
    assert!(more.files.is_empty(), "{:?}", more.files);
}

#[test]
fn time_that_a_clock_was_set_over_is_no_gap_and_no_time_that_was_observed() {
    let directory = tempfile::tempdir().unwrap();
    let mut snapshot = cluster([("node-a", DAY.0, DAY.1), ("node-b", DAY.0, DAY.1)]);
    let interval = |from: &str, to: &str| Interval { from: from.parse().unwrap(), to: to.parse().unwrap() };
    let (from, to) = ("2026-11-01T00:20:00Z", "2026-11-02T23:40:00Z");
    snapshot.body.window.nodes.insert("node-b".to_owned(), vec![interval(DAY.0, from), interval(to, DAY.1)]);
    let gap = export(directory.path(), &snapshot, &["--phase", "default-deny", "--min-window", "0s"]);
    assert!(gap.said.contains("window_gap:node-b") && !gap.wrote("shop"), "{}", gap.said);
    snapshot.body.window.steps.insert("node-b".to_owned(), vec![interval(from, to)]);
    let step = export(directory.path(), &snapshot, &["--phase", "default-deny", "--min-window", "40m"]);
    assert!(step.code == Some(0) && step.wrote("shop"), "{}", step.said);
    let short = export(directory.path(), &snapshot, &["--phase", "default-deny", "--min-window", "41m"]);
    let said = "the nodes of namespace shop were observed together for 40 minutes (node-a, node-b)";
    assert!(short.said.contains(said) && short.wrote("ops") && !short.wrote("shop"), "{}", short.said);
}

#[test]
fn nodes_that_were_never_observed_together_are_not_complete() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = cluster([
        ("node-a", "2026-08-01T00:00:00Z", "2026-08-01T00:00:03Z"),
        ("node-b", "2026-11-01T00:00:00Z", "2026-11-01T00:00:03Z"),
    ]);
    let apart = export(directory.path(), &snapshot, &["--phase", "default-deny", "--min-window", "0s"]);
    assert_eq!(apart.code, Some(2), "{}", apart.said);
    assert!(apart.said.contains("window_apart:node-a") && apart.said.contains("window_apart:node-b"), "{}", apart.said);
    assert!(apart.files.is_empty());
}

#[test]
fn a_workload_is_judged_on_the_node_that_it_left_too() {
    let directory = tempfile::tempdir().unwrap();
    let mut snapshot = cluster([("node-a", DAY.0, DAY.1), ("node-b", DAY.0, DAY.1)]);
    // node-b, where shop's api ran until a minute before the end, was not watched for a day.
    let gap = [("2026-11-01T00:00:00Z", "2026-11-01T12:00:00Z"), ("2026-11-02T12:00:00Z", DAY.1)];
    let intervals = gap.map(|(from, to)| Interval { from: from.parse().unwrap(), to: to.parse().unwrap() });
    snapshot.body.window.nodes.insert("node-b".to_owned(), intervals.to_vec());
    let api = snapshot.body.workloads.iter_mut().find(|w| w.workload.name == "api").unwrap();
    let pods = api.pods.remove("node-b").unwrap();
    api.pods.insert("node-a".to_owned(), pods);
    api.ran_on.insert("node-b".to_owned(), "2026-11-02T23:59:00Z".parse().unwrap());
    let moved = export(directory.path(), &snapshot, &["--phase", "default-deny", "--min-window", "0s"]);
    assert_eq!(moved.code, Some(1), "{}", moved.said);
    assert!(moved.said.contains("shop/Deployment/api: window_gap:node-b"), "{}", moved.said);
    assert!(moved.wrote("ops") && !moved.wrote("shop"), "{:?}", moved.files);
}

#[test]
fn what_was_seen_without_any_word_of_the_cluster_is_never_complete() {
    let directory = tempfile::tempdir().unwrap();
    let mut snapshot = cluster([("node-a", DAY.0, DAY.1), ("node-b", DAY.0, DAY.1)]);
    snapshot.body.coverage.inventory = Some(InventoryState::Missing);
    let missing = export(directory.path(), &snapshot, &["--phase", "default-deny"]);
    assert_eq!(missing.code, Some(2), "{}", missing.said);
    assert!(missing.files.is_empty(), "{:?}", missing.files);
}

#[test]
fn a_minimal_window_is_a_number_and_a_unit() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = cluster([("node-a", DAY.0, DAY.1), ("node-b", DAY.0, DAY.1)]);
    for wrong in ["24", "h", "-1h", "1w", "99999999999999999999d", ""] {
        let refused = export(directory.path(), &snapshot, &["--phase", "constrain", "--min-window", wrong]);
        assert_eq!(refused.code, Some(2), "{wrong}: {}", refused.said);
    }
}
