//! Once around: what was observed is exported, enforced on real packets, and happens again.
//!
//! A test's own words: a wrong answer is a panic that says what differed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    agent::{self, Agent, guardrail},
    app::log::now_ns,
    compare::{edges, number},
    enforce::{AskedPlace, Judge, Memory, enforce},
    lab::{Lab, process::AppProcess, wait_until},
    small::eventually,
    tries::{self, Try},
    truth::{Edge, Truth},
};

/// What judges remember.
pub const MEMORIES: [Memory; 2] = [Memory::Connection, Memory::Packet];
/// Options of `guardrail export` and `check` for the AWS VPC CNI.
pub const AWS: [&str; 2] = ["--dataplane", "aws-vpc-cni"];
/// In the names of processes that make tries.
const TRY: &str = "try-";

/// Merges what the agents have.
pub fn merge(lab: &Lab, agents: &[Agent], into: &Path) -> Result<Value> {
    let mut files = Vec::new();
    for (index, agent) in agents.iter().enumerate() {
        let file = lab.directory.join(format!("graph-{index}.json"));
        fs::write(&file, agent.get("/v1/graph")?.1)?;
        files.push(file);
    }
    agent::merge(&files, into)
}

/// Edges of a snapshot as text, with what makes them this or that.
///
/// # Panics
/// It is no snapshot.
#[must_use]
pub fn told(snapshot: &Value) -> Vec<String> {
    let all = edges(snapshot).into_iter().map(|(edge, value)| {
        let marks: Vec<&str> = value["marks"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let support = if value["supported"] == true { "" } else { ", no rule" };
        format!("{edge} x{} {marks:?}{support}", number(&value, "opened"))
    });
    all.collect()
}

/// The merged graph of agents once it reads so, complete and with nothing unresolved or waiting.
pub fn settled(lab: &Lab, agents: &[Agent], wanted: &[&str]) -> Value {
    let merged = lab.directory.join("merged.json");
    let is_so = |snapshot: &Value| {
        let told = told(snapshot);
        let waiting: f64 = agents.iter().map(|agent| agent.metric("guardrail_flows_pending").unwrap_or(1.0)).sum();
        let (complete, unresolved) = (&snapshot["coverage"]["complete"], &snapshot["coverage"]["unresolved"]);
        if told == wanted && waiting == 0.0 && *complete == true && *unresolved == json!([]) {
            Ok(())
        } else {
            Err(format!("waiting {waiting}\n{}", told.join("\n")))
        }
    };
    eventually(Duration::from_secs(60), || merge(lab, agents, &merged), is_so).unwrap()
}

/// Waits until processes are ready.
pub fn ready(processes: &[AppProcess]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    processes.iter().for_each(|process| process.wait_for("ready", deadline).unwrap());
}

/// Exports policies from a snapshot and gives their directory.
pub fn export(lab: &Lab, snapshot: &Path, name: &str, extra: &[&str]) -> PathBuf {
    let to = lab.directory.join(name);
    let inventory = lab.inventory();
    let mut args = vec!["export".as_ref(), snapshot.as_os_str(), "--min-window=0s".as_ref(), "-d".as_ref()];
    args.extend([to.as_os_str(), "--inventory".as_ref(), inventory.as_os_str()]);
    args.extend(extra.iter().map(std::ffi::OsStr::new));
    let output = guardrail(args).unwrap();
    assert_eq!(output.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    to
}

/// What happened since a time, once both ends' logs agree.
pub fn truth_since(lab: &Lab, since_ns: u64) -> Truth {
    let mut last = String::new();
    let truth = wait_until(Duration::from_secs(10), "the logs of both ends agree", || {
        let mut records = lab.records().ok()?;
        // A try that its server took after all, too late for its client, is no part of it.
        let of_try = |name: &str| name.contains(TRY);
        records.retain(|r| r.at_ns >= since_ns && !of_try(&r.process) && !r.id.as_deref().is_some_and(of_try));
        Truth::from_records(&lab.cluster, &records).inspect_err(|error| last = format!("{error:#}")).ok()
    });
    truth.unwrap_or_else(|error| panic!("{error}: {last}"))
}

/// Every edge that was opened before was opened again, and no other attempt failed.
pub fn happened_again(before: &Truth, again: &Truth, what: &str) {
    let opened = |truth: &Truth| -> BTreeSet<Edge> {
        truth.edges.iter().filter(|(_, evidence)| evidence.opened > 0).map(|(edge, _)| edge.clone()).collect()
    };
    let show = |edges: Vec<&Edge>| edges.iter().map(|e| format!("\n  {e}")).collect::<String>();
    let (before_edges, edges) = (opened(before), opened(again));
    let missing: Vec<_> = before_edges.difference(&edges).collect();
    let more: Vec<_> = edges.difference(&before_edges).collect();
    assert!(missing.is_empty() && more.is_empty(), "{what}: cut:{}\nnew:{}", show(missing), show(more));
    let failed: Vec<_> = again.failed.keys().filter(|edge| !before.failed.contains_key(edge)).collect();
    assert!(failed.is_empty(), "{what}: failed, and did not before:{}", show(failed));
}

/// How often a try that was dropped and should have passed is made by itself.
const AGAIN: usize = 3;

/// Makes the tries, which must end as expected. A server with a short backlog drops, too, when many
/// call at once: what was dropped and should have passed is tried again, one after the other.
pub fn try_all(lab: &Lab, what: &str, tries: &[Try], expected: &[bool]) {
    let mut reached = tries::run(lab, &format!("{TRY}{what}"), tries).unwrap();
    let lost: Vec<usize> = (0..tries.len()).filter(|&index| expected[index] && !reached[index]).collect();
    for index in lost {
        let alone = std::slice::from_ref(&tries[index]);
        reached[index] =
            (0..AGAIN).any(|round| tries::run(lab, &format!("{TRY}{what}-{index}-{round}"), alone).unwrap()[0]);
    }
    let different = tries::differences(tries, &reached, expected);
    assert!(different.is_empty(), "{what}: packets against what is expected:\n{different}");
}

/// Makes the tries under a policy, holds them against `guardrail check`, and gives its verdicts.
pub fn tried(lab: &Lab, what: &str, directory: &Path, tries: &[Try], extra: &[&str]) -> Vec<bool> {
    let verdicts = tries::verdicts(lab, directory, tries, extra).unwrap();
    try_all(lab, what, tries, &verdicts);
    verdicts
}

/// Exports constrain, and default-deny with egress, from a graph, and holds them: default-deny
/// under every judge, by connection and by packet, after address translation and before it. Each
/// try comes with whether it must pass then; that all pass without policies is tried first.
pub fn hold_under_every_judge(lab: &Lab, observed: (&Value, &Truth), tries: &[(Try, bool)], again: impl FnMut(usize)) {
    hold(lab, observed, tries, &[], again);
}

/// As [`hold_under_every_judge`], with more options of `guardrail export`.
pub fn hold(
    lab: &Lab,
    (snapshot, before): (&Value, &Truth),
    tries: &[(Try, bool)],
    more: &[&str],
    mut again: impl FnMut(usize),
) {
    let file = lab.directory.join("observed.json");
    fs::write(&file, snapshot.to_string()).unwrap();
    let (tries, passes): (Vec<_>, Vec<_>) = tries.iter().cloned().unzip();
    try_all(lab, "open", &tries, &vec![true; tries.len()]);
    let deny = [&["--phase=default-deny", "--egress"], more].concat();
    let constrain = export(lab, &file, "constrain", &[&["--phase=constrain"], more].concat());
    let plain = export(lab, &file, "default-deny", &deny);
    let aws = export(lab, &file, "default-deny-aws", &[&deny[..], &AWS].concat());
    let mut rounds = 0;
    for (directory, egress, extra, closes_all) in [
        (&constrain, AskedPlace::Backend, &[][..], false),
        (&plain, AskedPlace::Backend, &[], true),
        (&aws, AskedPlace::Asked, &AWS, true),
    ] {
        for memory in MEMORIES {
            rounds += 1;
            let judge = Judge { egress, memory };
            enforce(lab, judge, directory).unwrap();
            let since = now_ns();
            again(rounds);
            happened_again(before, &truth_since(lab, since), &format!("{} {judge:?}", directory.display()));
            let verdicts = tried(lab, &rounds.to_string(), directory, &tries, extra);
            let (verdicts, passes): (Vec<bool>, Vec<bool>) = match closes_all {
                true => (verdicts, passes.clone()),
                // Within a boundary everybody calls everybody: what must pass does.
                false => verdicts.into_iter().zip(&passes).filter(|(_, passes)| **passes).unzip(),
            };
            assert_eq!(verdicts, passes, "{} {judge:?}: {tries:?}", directory.display());
        }
    }
}
