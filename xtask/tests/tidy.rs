//! House rules that hold for every file of the repository: width of comments, citations, length of
//! files, names of public types.
//!
//! What broke a rule before the rule came stands in `tidy/*.txt`. These lists only shrink: an entry
//! whose file keeps the rule by now is an error, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Columns of a comment, its indentation included.
const COMMENT_WIDTH: usize = 100;
/// Lines of a source file.
const FILE_LINES: usize = 600;
/// This file has examples of what is wrong.
const THIS: &str = "xtask/tests/tidy.rs";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

/// Every file that git knows or would add and whose path is accepted: its path from the root, and
/// its text.
fn files(accept: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let listed = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(listed.status.success(), "git: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("paths are text");
    let files: Vec<_> = names
        .split('\0')
        .filter(|name| !name.is_empty() && accept(name))
        // A file that was removed, and not yet from the index, has no text.
        .filter_map(|name| Some((name.to_owned(), fs::read_to_string(root().join(name)).ok()?)))
        .collect();
    assert!(!files.is_empty(), "no file is read");
    files
}

fn is_rust(name: &str) -> bool {
    name.ends_with(".rs")
}

/// Holds what breaks a rule, by key, against the list of what did so before: nothing new, and
/// nothing that is over.
fn ratchet(list: &str, broken: &BTreeMap<String, String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tidy").join(list);
    let text = fs::read_to_string(&path).expect("the list is there");
    let known: BTreeSet<&str> = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let mut complaints: Vec<String> =
        broken.iter().filter(|(name, _)| !known.contains(name.as_str())).map(|(_, why)| why.clone()).collect();
    for over in known.iter().filter(|name| !broken.contains_key(**name)) {
        complaints.push(format!("{over} keeps the rule: take it out of xtask/tests/tidy/{list}"));
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Holds that nothing breaks a rule.
fn none(broken: &BTreeMap<String, String>) {
    let complaints: Vec<&str> = broken.values().map(String::as_str).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// The text of a line comment; `None` for code.
fn comment(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("//")
}

/// The number of the first line whose comment is too wide. A line without a blank to break at (an
/// address, a path) may be as long as it must.
fn wide_comment(text: &str) -> Option<usize> {
    let is_wide = |line: &str| {
        comment(line).is_some_and(|words| {
            line.chars().count() > COMMENT_WIDTH && words.trim_start_matches(['/', '!', ' ']).contains(' ')
        })
    };
    text.lines().position(is_wide).map(|index| index + 1)
}

#[test]
fn comments_are_at_most_100_columns_wide() {
    let broken = files(is_rust)
        .into_iter()
        .filter_map(|(name, text)| {
            let line = wide_comment(&text)?;
            let why = format!("{name}:{line}: a comment of more than {COMMENT_WIDTH} columns");
            Some((name, why))
        })
        .collect();
    none(&broken);
}

#[test]
fn source_files_are_at_most_600_lines_long() {
    let broken = files(is_rust)
        .into_iter()
        .filter_map(|(name, text)| {
            let lines = text.lines().count();
            let why = format!("{name}: {lines} lines, more than {FILE_LINES}: split it");
            (lines > FILE_LINES).then_some((name, why))
        })
        .collect();
    none(&broken);
}

/// The name of a public type that a line at the level of a module defines.
fn public_type(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix("pub ")?.split(|c: char| !c.is_alphanumeric() && c != '_');
    let kind = words.find(|word| *word != "unsafe")?;
    let name = words.next().filter(|name| !name.is_empty())?;
    ["struct", "enum", "trait", "type", "union"].contains(&kind).then_some(name)
}

#[test]
fn a_crate_has_no_two_public_types_of_one_name() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, text) in files(|name| is_rust(name) && name.contains("/src/")) {
        let folder = name.split("/src/").next().unwrap_or_default().to_owned();
        for defined in text.lines().filter_map(public_type) {
            places.entry(format!("{folder} {defined}")).or_default().push(name.clone());
        }
    }
    let broken = places
        .into_iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(key, places)| {
            let why = format!("{key}: one word, several meanings: {}", places.join(", "));
            (key, why)
        })
        .collect();
    ratchet("double-types.txt", &broken);
}

/// Every place that a document can be cited by: the anchor of a headline, or one that is written.
fn anchors(text: &str) -> BTreeSet<String> {
    let headline = |line: &str| -> String {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    let mut anchors: BTreeSet<String> = text.lines().filter(|line| line.starts_with('#')).map(headline).collect();
    for (index, opening) in text.match_indices("<a id=\"") {
        anchors.extend(text[index + opening.len()..].split('"').next().map(str::to_owned));
    }
    anchors
}

/// The documents of `docs/` that a text cites, with the place if it names one: `docs/x.md#place`,
/// or a row that follows, as in `docs/semantics.md B23`.
fn citations(text: &str) -> Vec<(String, Option<String>)> {
    let word =
        |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || ['-', '_'].contains(c)).collect() };
    let mut found = Vec::new();
    for (index, _) in text.match_indices("docs/") {
        let Some(end) = text[index..].find(".md").map(|length| index + length + ".md".len()) else { continue };
        let (path, behind) = (&text[index..end], &text[end..]);
        if path.contains(|c: char| !(c.is_alphanumeric() || ['/', '.', '-', '_'].contains(&c))) {
            continue;
        }
        let row = || {
            let row = word(behind.strip_prefix(' ')?);
            is_row(&row).then(|| row.to_lowercase())
        };
        found.push((path.to_owned(), behind.strip_prefix('#').map(word).or_else(row)));
    }
    found
}

/// A row of docs/semantics.md: `A1` to `B99`.
fn is_row(word: &str) -> bool {
    word.strip_prefix(['A', 'B']).is_some_and(|n| (1..=2).contains(&n.len()) && n.parse::<u8>().is_ok_and(|n| n > 0))
}

/// What a line cites that a reader of the repository cannot open.
fn unreadable(line: &str) -> Option<&'static str> {
    let is_there = |gone: &&str| {
        line.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_' && c != '$').any(|word| word == *gone)
    };
    // In upper case only: a design, a style and a dialect are words.
    ["DESIGN", "POLICY-SEMANTICS", "DIALECTS", "STYLE"].into_iter().find(is_there)
}

#[test]
fn every_document_that_is_cited_is_in_the_repository_with_the_place_that_is_named() {
    let may_cite = |name: &str| name != THIS && [".rs", ".md", ".yaml", ".toml"].iter().any(|end| name.ends_with(end));
    let rows = anchors(&fs::read_to_string(root().join("docs/semantics.md")).expect("docs/semantics.md"));
    let mut complaints = Vec::new();
    for (name, text) in files(may_cite) {
        for (index, line) in text.lines().enumerate() {
            if let Some(gone) = unreadable(line) {
                complaints.push(format!("{name}:{}: cites {gone}, which is not in the repository", index + 1));
            }
            // Rows are cited by their number alone, as in `(A29)`, where everything is about
            // policy.
            let words = comment(line).filter(|_| name.starts_with("guardrail-policy/")).unwrap_or_default();
            for row in words.split(|c: char| !c.is_alphanumeric()).filter(|word| is_row(word)) {
                if !rows.contains(&row.to_lowercase()) {
                    complaints.push(format!("{name}:{}: docs/semantics.md has no {row}", index + 1));
                }
            }
        }
        for (path, place) in citations(&text) {
            let Ok(cited) = fs::read_to_string(root().join(&path)) else {
                complaints.push(format!("{name}: cites {path}, which is not there"));
                continue;
            };
            if let Some(place) = place.filter(|place| !anchors(&cited).contains(place)) {
                complaints.push(format!("{name}: {path} has no place {place}"));
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn the_rules_see_what_breaks_them() {
    let wide = format!("    // {}", "word ".repeat(20));
    assert_eq!(wide_comment(&format!("fn a() {{}}\n{wide}\n")), Some(2));
    assert_eq!(wide_comment(&format!("/// {}", "x".repeat(120))), None, "nothing to break at");
    assert_eq!(wide_comment(&format!("let a = \"{}\";", "word ".repeat(30))), None, "code");
    assert_eq!(public_type("pub struct Pod<'a> {"), Some("Pod"));
    assert_eq!(public_type("pub(crate) struct Pod {"), None);
    assert_eq!(public_type("pub fn pod() {}"), None);
    assert_eq!(unreadable("/// see DESIGN §4"), Some("DESIGN"));
    assert_eq!(unreadable("/// the design of it"), None);
    assert_eq!(
        citations("see docs/a.md, docs/b.md#one-place and docs/semantics.md B23."),
        [
            ("docs/a.md".to_owned(), None),
            ("docs/b.md".to_owned(), Some("one-place".to_owned())),
            ("docs/semantics.md".to_owned(), Some("b23".to_owned())),
        ]
    );
    let places = anchors("## One place\n\n<a id=\"b23\"></a>");
    assert_eq!(places, ["b23", "one-place"].map(str::to_owned).into());
}
