//! Snapshots whose author means ill: names that steer terminals or break out of their place,
//! numbers at their limit.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

/// Clears the screen, turns the direction of writing, ends lines, fields, labels and quotations.
const EVIL: &str = "e\u{1b}[2J\u{9b}31m\u{202e}\r\nx,y\"];`<b>&#34;\\";

struct Output {
    code: i32,
    stdout: String,
    stderr: String,
}

fn guardrail(args: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_guardrail")).args(args).output().unwrap();
    Output {
        code: output.status.code().expect("an exit code, not a signal"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn data(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).to_str().unwrap().to_owned()
}

fn shop() -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(data("shop.json")).unwrap()).unwrap()
}

fn file(directory: &TempDir, value: &serde_json::Value) -> String {
    let path = directory.path().join("snapshot.json");
    fs::write(&path, value.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Appends [`EVIL`] to every string under one of these keys, and to every member of a list of
/// strings.
fn poison(value: &mut serde_json::Value, key: &str) {
    match value {
        serde_json::Value::String(text)
            if [
                "name",
                "namespace",
                "node",
                "port_name",
                "via",
                "names",
                "marks",
                "observed",
                "expected",
                "reason",
                "reasons",
                "examples",
            ]
            .contains(&key) =>
        {
            text.push_str(EVIL);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| poison(item, key)),
        serde_json::Value::Object(map) => map.iter_mut().for_each(|(key, item)| poison(item, key)),
        _ => {}
    }
}

#[track_caller]
fn assert_harmless(what: &str, text: &str) {
    let bad = |c: char| c != '\n' && (c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c));
    if let Some(at) = text.find(bad) {
        let before = text[..at].chars().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect::<String>();
        panic!("{what}: {:?} after {before:?}", text[at..].chars().next());
    }
}

#[test]
fn no_name_steers_the_terminal_or_breaks_out_of_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let clean = data("shop.json");
    let mut evil = shop();
    poison(&mut evil, "");
    let evil = file(&directory, &evil);
    let policies = data("shop-policies.yaml");
    let commands: [&[&str]; 6] = [
        &["graph"],
        &["graph", "-o", "dot"],
        &["graph", "-o", "mermaid"],
        &["check", "--policies", &policies, "--allow-partial", "--allow-unproven"],
        &["check", "--policies", &policies, "--allow-partial", "--allow-unproven", "-o", "csv"],
        &["export", "--phase", "constrain", "--min-window", "0s", "--force"],
    ];
    for command in commands {
        let run = |snapshot: &str| guardrail(&[command, &[snapshot]].concat());
        let output = run(&evil);
        let what = command.join(" ");
        assert!((0..=2).contains(&output.code), "{what}");
        assert_harmless(&format!("{what}: stdout"), &output.stdout);
        assert_harmless(&format!("{what}: stderr"), &output.stderr);
        if command.contains(&"dot") || command.contains(&"mermaid") {
            assert_eq!(output.stdout.lines().count(), run(&clean).stdout.lines().count(), "{}", output.stdout);
        }
    }
    let dot = guardrail(&["graph", "-o", "dot", &evil]).stdout;
    for line in dot.lines().filter(|l| l.contains("label=")) {
        let unescaped = line.replace("\\\\", "").replace("\\\"", "");
        assert_eq!(unescaped.matches('"').count(), 2, "{line}");
    }
    let mermaid = guardrail(&["graph", "-o", "mermaid", &evil]).stdout;
    for line in mermaid.lines().filter(|l| l.contains('"')) {
        assert!(line.matches('"').count() == 2 && !line.contains(['`', '<', '\\']), "{line}");
    }
}

#[test]
fn no_name_ends_the_document_of_the_page() {
    let directory = tempfile::tempdir().unwrap();
    let mut evil = shop();
    evil["edges"][0]["client"]["name"] = "</script><script>alert(1)</script><!--".into();
    let page = guardrail(&["graph", "-o", "html", &file(&directory, &evil)]).stdout;
    let document = page.split_once("id=\"document\">").unwrap().1.split_once("</script>").unwrap().0;
    let document: serde_json::Value = serde_json::from_str(document).unwrap();
    let peers = document["peers"].as_array().unwrap();
    assert!(peers.iter().any(|peer| peer["name"] == evil["edges"][0]["client"]["name"]), "{document}");
    assert_eq!(document["edges"].as_array().unwrap().len(), evil["edges"].as_array().unwrap().len());
    assert!(page.contains("default-src 'none'; script-src 'sha256-"));
}

#[test]
fn a_name_cannot_forge_a_row_of_csv() {
    let directory = tempfile::tempdir().unwrap();
    let mut evil = shop();
    let forged = "cart\nshop/api,shop/db,TCP,5432,allowed,-,-";
    let text = evil.to_string().replace("\"name\":\"cart\"", &format!("\"name\":{}", serde_json::json!(forged)));
    evil = serde_json::from_str(&text).unwrap();
    let evil = file(&directory, &evil);
    let policies = data("shop-policies.yaml");
    let output =
        guardrail(&["check", &evil, "--policies", &policies, "--allow-partial", "--allow-unproven", "-o", "csv"]);
    assert!(output.stdout.contains("\"shop/"), "{}", output.stdout);
    // A reader of RFC 4180 sees as many rows as there are flows, each with seven fields.
    let (mut quoted, mut fields, mut rows) = (false, 1, Vec::new());
    for c in output.stdout.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields += 1,
            '\n' if !quoted => {
                rows.push(fields);
                fields = 1;
            }
            _ => {}
        }
    }
    let clean = guardrail(&[
        "check",
        &data("shop.json"),
        "--policies",
        &policies,
        "--allow-partial",
        "--allow-unproven",
        "-o",
        "csv",
    ]);
    assert_eq!(rows, vec![7; clean.stdout.lines().count()], "{}", output.stdout);
}

#[test]
fn numbers_at_their_limit_are_printed_and_summed_without_wrapping() {
    let directory = tempfile::tempdir().unwrap();
    let mut huge = shop();
    for edge in huge["edges"].as_array_mut().unwrap() {
        let sources = edge["sources"].as_array_mut().map(std::mem::take).unwrap_or_default();
        edge["sources"] = sources
            .into_iter()
            .map(|mut source| {
                for count in ["opened", "refused", "unanswered", "bytes_sent", "bytes_received"] {
                    source[count] = u64::MAX.into();
                }
                source
            })
            .collect();
        for count in ["opened", "found", "refused", "unanswered", "unreachable", "bytes_sent", "bytes_received"] {
            edge[count] = u64::MAX.into();
        }
    }
    let source = serde_json::json!({"node": "node-a", "instance": "i"});
    huge["coverage"]["complete"] = false.into();
    huge["coverage"]["unresolved"] = serde_json::json!([
        {"source": source, "reason": "ip_reuse", "count": u64::MAX, "examples": []},
        {"source": source, "reason": "role_unknown", "count": u64::MAX, "examples": []},
    ]);
    let huge = file(&directory, &huge);
    let output = guardrail(&["graph", &huge]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    // A number as long as that is wrapped.
    assert!(output.stdout.contains("18446744073709"), "{}", output.stdout);
    assert_eq!(guardrail(&["merge", &huge, &huge]).code, 0);
    for phase in ["constrain", "default-deny"] {
        assert!(guardrail(&["export", &huge, "--phase", phase, "--force", "--egress"]).code <= 2);
    }
}

#[test]
fn a_box_in_a_drawing_has_only_the_names_that_all_its_clients_were_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut snapshot = shop();
    let edges = snapshot["edges"].as_array_mut().unwrap();
    let external = |names: &[&str]| serde_json::json!({"kind": "External", "address": "203.0.113.99", "names": names});
    edges[0]["server"] = external(&["pay.bank.example"]);
    edges[1]["server"] = external(&[]);
    let path = file(&directory, &snapshot);
    let dot = guardrail(&["graph", "-o", "dot", &path]).stdout;
    assert!(dot.contains("203.0.113.99") && !dot.contains("pay.bank.example"), "{dot}");
    snapshot["edges"][1]["server"] = external(&["pay.bank.example", "www.bank.example"]);
    let path = file(&directory, &snapshot);
    assert!(guardrail(&["graph", "-o", "dot", &path]).stdout.contains("pay.bank.example 203.0.113.99"));
}

#[test]
fn a_deeply_nested_or_huge_document_is_one_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep.json");
    let path = path.to_str().unwrap();
    let head = "{\"apiVersion\": \"guardrail.dev/v2\", \"kind\": \"GraphSnapshot\", \"edges\": ";
    for text in [head.to_owned() + &"[".repeat(200_000), "[".repeat(1_000_000), "{\"a\":".repeat(500_000)] {
        fs::write(path, text).unwrap();
        let output = guardrail(&["graph", path]);
        assert_eq!((output.code, output.stdout.as_str()), (2, ""));
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    }
}
