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
        None if message.starts_with("mapping values are not allowed") => {
            "a key stands where none can: correct the indentation, or put a value with `: ` in it or `:` at its end in quotes"
                .to_owned()
        }
        None if message.starts_with("tabs disallowed") => "a tab in the indentation: write blanks".to_owned(),
        None => format!("not valid YAML: {message}"),
    }
}

/// What a reader complains of when a value is of another type, in the same words: `invalid type:
/// integer `1`, expected a string`, `invalid i64`, `expected sequence start`.
pub(super) fn mismatch(message: &str) -> String {
    let expected = |what: &str| match what {
        "i64" | "u64" | "i32" | "u16" => "a whole number".to_owned(),
        "a sequence" | "sequence start" => "a list".to_owned(),
        "a map" | "mapping start" => "a mapping".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" | "string scalar" => "text (a number or true in quotes)".to_owned(),
        other => other.to_owned(),
    };
    let found = |what: &str| match what.split_once(' ') {
        Some(("integer" | "floating", rest)) => {
            format!("the number {}", rest.trim_start_matches("point ").replace('`', ""))
        }
        Some(("boolean", rest)) => rest.replace('`', ""),
        Some(("string", rest)) => format!("the text {rest}"),
        _ => match what {
            "sequence" => "a list".to_owned(),
            "map" => "a mapping".to_owned(),
            "unit value" | "null" => "null".to_owned(),
            other => other.to_owned(),
        },
    };
    let wrong = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    if let Some((is, wanted)) = wrong.and_then(|rest| rest.split_once(", expected ")) {
        return format!("{} belongs here, this is {}", expected(wanted), found(is));
    }
    let number = message.strip_prefix("invalid ").filter(|t| ["i64", "u64", "i32", "u16"].contains(t));
    let started = message.strip_prefix("expected ").filter(|t| t.ends_with(" start") || t.ends_with(" scalar"));
    if let Some(wanted) = number.or(started) {
        return format!("{} belongs here", expected(wanted));
    }
    match message.strip_prefix("unknown variant ").and_then(|rest| rest.split_once(", expected ")) {
        Some((is, wanted)) => {
            format!("{is} stands where {} belongs", wanted.trim_start_matches("one of ").replace(", `", " or `"))
        }
        None => message.to_owned(),
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
    use super::{complaint, mismatch};

    #[test]
    fn messages_speak_of_the_file_and_not_of_a_library() {
        let text = "metadata:\n  labels:\n    a: 1\n    \"b\": 2\n    b: 3\n";
        let said = "duplicate mapping key: b, set DuplicateKeyPolicy in Options if acceptable";
        assert_eq!(
            complaint(said, text, 5, None),
            "the key b stands twice in this mapping (lines 4 and 5); keep one of them"
        );
        let told = complaint("mapping values are not allowed in this context", text, 5, None);
        assert!(told.contains("correct the indentation"), "{told}");
        let told = complaint("tabs disallowed within this context (block indentation)", text, 5, None);
        assert_eq!(told, "a tab in the indentation: write blanks");
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

    #[test]
    fn types_are_told_in_the_words_of_manifests() {
        for (said, expected) in [
            (
                "invalid type: integer `1`, expected a string",
                "text (a number or true in quotes) belongs here, this is the number 1",
            ),
            ("invalid type: string \"8080\", expected i64", "a whole number belongs here, this is the text \"8080\""),
            (
                "invalid type: floating point `80.5`, expected i64",
                "a whole number belongs here, this is the number 80.5",
            ),
            ("invalid type: sequence, expected a map", "a mapping belongs here, this is a list"),
            ("invalid type: boolean `true`, expected a port number", "a port number belongs here, this is true"),
            ("invalid i64", "a whole number belongs here"),
            ("expected sequence start", "a list belongs here"),
            ("expected string scalar", "text (a number or true in quotes) belongs here"),
            ("unknown variant `Is`, expected one of `In`, `NotIn`", "`Is` stands where `In` or `NotIn` belongs"),
            ("70000 is not a port", "70000 is not a port"),
        ] {
            assert_eq!(mismatch(said), expected);
        }
    }
}
