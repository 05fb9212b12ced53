//! What was merged can be merged again: each epoch's facts stay apart in it.

mod common;

use std::fs;

use common::{file, run};
use guardrail_graph::{
    Observer, ObserverConfig, Snapshot, Timestamp,
    inventory::{Change, read},
};
use tempfile::TempDir;

fn t(second: i64) -> Timestamp {
    Timestamp::from_unix_seconds(1_700_000_000 + second)
}

fn agent(node: &str) -> Observer {
    Observer::new(ObserverConfig { run: 1, ..ObserverConfig::new(node, format!("of-{node}"), t(0)) })
}

fn tell(agent: &mut Observer, text: &str, second: i64) {
    for object in read::objects(text, "test").unwrap().objects {
        agent.apply(Change::Apply(object), t(second));
    }
}

/// Two pulls of one node, between which a node got another label, and one of another node.
fn pulls(directory: &TempDir) -> [String; 3] {
    let labelled = |pool: &str| format!("kind: Node\nmetadata: {{name: node-a, labels: {{pool: {pool}}}}}\n");
    let (mut a, mut b) = (agent("node-a"), agent("node-b"));
    tell(&mut a, &labelled("blue"), 10);
    let early = a.snapshot(t(20));
    tell(&mut a, &labelled("green"), 30);
    let late = a.snapshot(t(40));
    tell(&mut b, &labelled("green"), 30);
    let other = b.snapshot(t(40));
    [("early", early), ("late", late), ("other", other)]
        .map(|(name, pull)| file(directory, &format!("{name}.json"), pull.to_json()))
}

/// What a command that succeeds, or finds the graph incomplete, writes.
fn written(directory: &TempDir, args: &[&str]) -> String {
    let (code, stdout, stderr) = run(directory.path(), args, "");
    assert!(code < 2, "{args:?}: {stderr}");
    stdout
}

#[test]
fn a_pull_in_a_merged_file_gives_way_to_the_next_one_whole() {
    let directory = tempfile::tempdir().unwrap();
    let [early, late, other] = pulls(&directory);
    let expected = written(&directory, &["merge", &late, &other]);
    let before = file(&directory, "before.json", written(&directory, &["merge", &early, &other]));
    for args in [["merge", &before, &late], ["merge", &late, &before]] {
        assert_eq!(written(&directory, &args), expected, "{args:?}");
    }
    let expected = file(&directory, "expected.json", expected);
    assert_eq!(
        written(&directory, &["graph", "-o", "json", &expected]),
        written(&directory, &["graph", "-o", "json", &other, &late]),
    );
    // What the command wrote says all without its facts, too.
    let text = fs::read_to_string(&expected).unwrap();
    let mut read = Snapshot::from_json(&text, "expected").unwrap();
    assert_eq!(std::mem::take(&mut read.body.facts).len(), 2);
    assert_eq!(read.to_json(), written(&directory, &["graph", "-o", "json", &expected]));
}

#[test]
fn facts_that_cannot_be_read_are_one_sentence_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let [early, _, other] = pulls(&directory);
    let merged = written(&directory, &["merge", &early, &other]);
    let text = |value: &serde_json::Value| format!("{value}\n");
    let document: serde_json::Value = serde_json::from_str(&merged).unwrap();
    let packed = document["facts"][0].as_str().unwrap();
    for (what, facts) in [
        ("no base64", serde_json::json!(["!!"])),
        ("no frame", serde_json::json!(["aGVsbG8gd29ybGQ="])),
        ("cut", serde_json::json!([&packed[..packed.len() / 2 / 4 * 4]])),
        ("no list", serde_json::json!("aGVsbG8=")),
        ("no text", serde_json::json!([7])),
    ] {
        let mut broken = document.clone();
        broken["facts"] = facts;
        let broken = file(&directory, "broken.json", text(&broken));
        let out = directory.path().join("out.json");
        let (code, stdout, stderr) = run(directory.path(), &["merge", &broken, "--output", out.to_str().unwrap()], "");
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (2, "", 1), "{what}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains("broken.json"), "{what}: {stderr}");
        assert!(!out.exists(), "{what}");
    }
}
