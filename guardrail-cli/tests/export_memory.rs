//! `guardrail export -d DIR` and what the export before it allowed.

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::guardrail;

/// Every file of the directory but the sidecars.
fn policies(directory: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let yaml = files.filter(|path| path.extension().is_some_and(|e| e == "yaml"));
    yaml.map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap())).collect()
}

/// Exports the shop, which was seen until 10:20 and observed until 10:30.
fn export(directory: &Path, args: &[&str]) -> (i32, String) {
    let directory = directory.to_str().unwrap();
    let fixed = ["export", "shop.json", "--phase", "default-deny", "--egress", "--min-window", "0s", "-d", directory];
    let (code, stdout, stderr) = guardrail(&[&fixed, args].concat());
    assert_eq!(stdout, "");
    (code, stderr)
}

const LATER: [&str; 4] = ["--since", "2026-03-01T10:25:00Z", "--now", "2026-03-02T10:30:00Z"];

#[test]
fn a_later_export_into_the_same_directory_takes_no_rule_away() {
    let outer = tempfile::tempdir().unwrap();
    let directory = outer.path().join("out");
    let (code, stderr) = export(&directory, &[]);
    assert_eq!(code, 0, "{stderr}");
    let before = policies(&directory);
    let (code, stderr) = export(&directory, &LATER);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(policies(&directory), before);
    assert!(
        stderr.contains("of an earlier export: allowed as before, although the snapshot does not show it"),
        "{stderr}"
    );
    let report = fs::read_to_string(directory.join("REPORT.md")).unwrap();
    assert!(report.contains("[remembered, last seen 2026-03-01]"), "{report}");
    // Elsewhere nobody remembers; with the policies in force that lie beside their evidence, it
    // does.
    let elsewhere = outer.path().join("elsewhere");
    export(&elsewhere, &LATER);
    assert!(!fs::read_to_string(elsewhere.join("REPORT.md")).unwrap().contains("remembered"));
    let beside = outer.path().join("beside");
    let (code, stderr) = export(&beside, &[&LATER[..], &["--policies", directory.to_str().unwrap()]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(fs::read_to_string(beside.join("REPORT.md")).unwrap().contains("[remembered, last seen 2026-03-01]"));

    let (code, stderr) = export(&directory, &[&LATER[..], &["--drop-unused", "1d"]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("not allowed any more"), "{stderr}");
    assert_ne!(policies(&directory), before);
    let report = fs::read_to_string(directory.join("REPORT.md")).unwrap();
    assert!(report.contains("last seen 2026-03-01: not used for longer than --drop-unused says"), "{report}");
}

#[test]
fn evidence_that_cannot_be_read_stops_the_export_before_it_writes() {
    let directory = tempfile::tempdir().unwrap();
    for (text, said) in
        [("{\"kind\": \"Exp", "EOF while parsing"), ("{\"kind\": \"List\"}", "this is no ExportEvidence")]
    {
        fs::write(directory.path().join("evidence.json"), text).unwrap();
        let (code, stderr) = export(directory.path(), &[]);
        assert_eq!((code, stderr.lines().count()), (2, 1), "{stderr}");
        assert!(stderr.contains(said) && stderr.contains("evidence.json: "), "{stderr}");
        assert!(stderr.contains("restore it, or remove it"), "{stderr}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
