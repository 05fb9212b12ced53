//! The messages of a YAML library, which speak of its options, as messages about a file.

/// What a reader of YAML complains of, in the words of people who write manifests; `line` is where
/// (from 1), `deepest` how deep it reads.
#[must_use]
pub fn complaint(message: &str, text: &str, line: u32, deepest: Option<usize>) -> String {
    let budget = message.strip_prefix("budget breached: ");
    if let Some(key) = message.strip_prefix("duplicate mapping key: ") {
        let key = key.split(", set ").next().unwrap_or(key);
        let lines = earlier(text, key, line).map_or_else(String::new, |first| format!(" (lines {first} and {line})"));
        let outermost =
            line.checked_sub(1).and_then(|at| text.lines().nth(at as usize)).is_some_and(|l| l.starts_with(key));
        if outermost && matches!(key, "apiVersion" | "kind" | "metadata" | "spec") {
            return format!(
                "the key {key} stands twice in this object{lines}; separate two objects by a line `---`, or keep one of them"
            );
        }
        return format!("the key {key} stands twice in this mapping{lines}; keep one of them");
    }
    let budget = if message == "recursion limit exceeded" { Some("Depth") } else { budget };
    match budget.map(|what| what.split([' ', '{']).next().unwrap_or(what)) {
        Some("Depth") => match deepest {
            Some(levels) => format!("nested deeper than {levels} levels; no Kubernetes object is"),
            None => "nested deeper than any Kubernetes object".to_owned(),
        },
        Some(_) => "more values than a file of this kind has; split the file".to_owned(),
        None => format!("not valid YAML: {message}"),
    }
}

/// Whether a sentence of [`complaint`] is about a key that stands twice.
#[must_use]
pub fn is_duplicate(complaint: &str) -> bool {
    complaint.starts_with("the key ") && complaint.contains(" stands twice in this mapping")
}

/// The line of the same key, with the same indentation, before this one.
fn earlier(text: &str, key: &str, line: u32) -> Option<u32> {
    let lines: Vec<&str> = text.lines().take(line as usize).collect();
    let (last, before) = lines.split_last()?;
    let indent = |line: &str| line.len() - line.trim_start().len();
    let is = |line: &&str| {
        let own = line.trim_start().trim_start_matches(['"', '\'']);
        own.strip_prefix(key).is_some_and(|rest| rest.trim_start_matches(['"', '\'']).starts_with(':'))
    };
    let at = before.iter().rposition(|line| indent(line) == indent(last) && is(line))?;
    u32::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::complaint;

    #[test]
    fn messages_speak_of_the_file_and_not_of_a_library() {
        let text = "metadata:\n  labels:\n    a: 1\n    \"b\": 2\n    b: 3\n";
        let said = "duplicate mapping key: b, set DuplicateKeyPolicy in Options if acceptable";
        assert_eq!(
            complaint(said, text, 5, None),
            "the key b stands twice in this mapping (lines 4 and 5); keep one of them"
        );
        assert_eq!(complaint(said, "b: 1", 1, None), "the key b stands twice in this mapping; keep one of them");
        let two = "kind: A\nspec: {}\nkind: B\n";
        assert_eq!(
            complaint("duplicate mapping key: kind", two, 3, None),
            "the key kind stands twice in this object (lines 1 and 3); separate two objects by a line `---`, or keep one of them"
        );
        let deep = "budget breached: Depth { depth: 49 }";
        assert_eq!(complaint(deep, "", 1, Some(48)), "nested deeper than 48 levels; no Kubernetes object is");
        assert_eq!(complaint("did not find expected key", "", 1, None), "not valid YAML: did not find expected key");
    }
}
