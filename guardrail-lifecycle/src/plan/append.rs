//! An exception is added to the text of a plan: comments, order and layout stay as they are, and
//! the new text is read again to see that it says what the old one said, and the exception.

use guardrail_policy::read::yaml::{self, Key, Node, Value};

use super::{Exception, Plan, PlanError, read};

/// Why an exception cannot be added to the text of a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The plan cannot be read.
    #[error(transparent)]
    Unreadable(#[from] PlanError),
    /// It is written in a way in which nothing can be added line by line.
    #[error("{file}:{line}: {why}; write it with one item a line, or add this yourself:\n{item}")]
    Layout {
        /// The file.
        file: String,
        /// Where.
        line: u32,
        /// What is in the way.
        why: &'static str,
        /// The item of the list.
        item: String,
    },
}

/// The text of the plan with the exception at the end of its list. It is written as an item of its
/// own, with everything else untouched byte for byte.
///
/// # Errors
/// [`AppendError`]: the text is no plan, or written in braces where lines are needed.
pub fn with_exception(file: &str, text: &str, exception: &Exception) -> Result<String, AppendError> {
    let before = read(file, text.as_bytes())?;
    let refused = |line: u32, why: &'static str| AppendError::Layout {
        file: file.to_owned(),
        line,
        why,
        item: item(exception, ""),
    };
    let after = place(file, text, exception).map_err(|(line, why)| refused(line, why))?;
    let is_right = read(file, after.as_bytes()).is_ok_and(|plan| {
        let mut wanted = before.clone();
        wanted.exceptions.push(exception.clone());
        without_lines(plan) == without_lines(wanted)
    });
    if is_right { Ok(after) } else { Err(refused(1, "the exception would not stand where it is read")) }
}

/// Where in the text the item goes, and the text with it.
fn place(file: &str, text: &str, exception: &Exception) -> Result<String, (u32, &'static str)> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let documents = yaml::documents(&file.into(), text.as_bytes()).unwrap_or_default();
    let spec = documents.first().and_then(|root| entry(root, "spec")).ok_or((1, "there is no spec"))?;
    let at = |line: u32| lines.get(line as usize - 1).copied().unwrap_or_default();
    let Value::Map(fields) = &spec.1.value else { return Err((spec.0.line, "the spec is no mapping")) };
    let first = fields.first().ok_or((spec.0.line, "the spec is empty"))?;
    if first.0.line == spec.0.line || !begins_with_key(at(spec.0.line), "spec") {
        return Err((spec.0.line, "the spec stands in braces"));
    }
    let child = indentation(at(first.0.line));
    let list = fields.iter().find(|(key, _)| key.name == "exceptions");
    let (end, new) = match list {
        None => {
            let end = end_of_block(&lines, spec.0.line as usize, indentation(at(spec.0.line)));
            let pad = " ".repeat(child);
            (end, format!("{pad}exceptions:\n{}", item(exception, &pad)))
        }
        Some((key, Node { value: Value::Seq(items), .. })) if !items.is_empty() => {
            let (head, tail) = (items[0].line, items[items.len() - 1].line);
            if head == key.line || !at(head).trim_start().starts_with('-') {
                return Err((key.line, "the list of exceptions stands in brackets"));
            }
            let dash = indentation(at(head));
            (end_of_block(&lines, tail as usize, dash), item(exception, &" ".repeat(dash)))
        }
        Some((key, node)) => {
            let own = at(key.line);
            if !begins_with_key(own, "exceptions") {
                return Err((key.line, "the list of exceptions stands in braces"));
            }
            let item = item(exception, &" ".repeat(indentation(own)));
            let Value::Seq(_) = node.value else {
                return Ok(joined(&lines, key.line as usize, &item, newline));
            };
            // The brackets of an empty list go.
            let (name, rest) = own.split_once(':').unwrap_or((own, ""));
            let rest = rest.trim_start().strip_prefix('[').and_then(|rest| rest.trim_start().strip_prefix(']'));
            let rest = rest.ok_or((key.line, "the list of exceptions stands in brackets"))?;
            let mut lines = lines.clone();
            let emptied = format!("{name}:{rest}");
            lines[key.line as usize - 1] = &emptied;
            return Ok(joined(&lines, key.line as usize, &item, newline));
        }
    };
    Ok(joined(&lines, end, &new, newline))
}

/// The lines with new ones behind the first `before` of them.
fn joined(lines: &[&str], before: usize, new: &str, newline: &str) -> String {
    let (head, tail) = lines.split_at(before.min(lines.len()));
    let mut text = head.concat();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push_str(newline);
    }
    text.push_str(&new.replace('\n', newline));
    text.push_str(&tail.concat());
    text
}

/// How many lines there are until the block ends in which `line` (from 1) stands: until something
/// stands as far left as `left`. Comments as far left as that, and empty lines before them, belong
/// to what follows.
fn end_of_block(lines: &[&str], line: usize, left: usize) -> usize {
    let is_note = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    let is_outside = |line: &str| indentation(line) <= left;
    let next = (line..lines.len()).find(|index| !is_note(lines[*index]) && is_outside(lines[*index]));
    let mut end = next.unwrap_or(lines.len());
    while end > line && is_note(lines[end - 1]) && (is_outside(lines[end - 1]) || lines[end - 1].trim().is_empty()) {
        end -= 1;
    }
    end
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn begins_with_key(line: &str, key: &str) -> bool {
    let line = line.trim_start_matches('\u{feff}').trim_start();
    let bare =
        line.strip_prefix(key).or_else(|| line.strip_prefix(['"', '\''])?.strip_prefix(key)?.strip_prefix(['"', '\'']));
    bare.is_some_and(|rest| rest.trim_start().starts_with(':'))
}

fn entry<'n>(node: &'n Node, name: &str) -> Option<&'n (Key, Node)> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|(key, _)| key.name == name)
}

/// The exception as an item of the list.
fn item(exception: &Exception, pad: &str) -> String {
    let Exception { id, from, to, ports, expires, reason, owner, environments, .. } = exception;
    let list = |all: &mut dyn Iterator<Item = String>| all.collect::<Vec<_>>().join(", ");
    let mut fields = vec![
        format!("id: {}", scalar(id)),
        format!("from: {}", scalar(&from.to_string())),
        format!("to: {}", scalar(&to.to_string())),
        format!("ports: [{}]", list(&mut ports.iter().map(ToString::to_string))),
        format!("expires: {expires}"),
        format!("reason: {}", scalar(reason)),
        format!("owner: {}", scalar(owner)),
    ];
    if !environments.is_empty() {
        fields.push(format!("environments: [{}]", list(&mut environments.iter().map(|name| scalar(name)))));
    }
    let mut text = String::new();
    for (field, number) in fields.iter().zip(0..) {
        text.push_str(pad);
        text.push_str(if number == 0 { "- " } else { "  " });
        text.push_str(field);
        text.push('\n');
    }
    text
}

/// A string that every YAML reader takes for one: in quotes unless it is made of words that have no
/// meaning of their own.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = text.bytes().next().is_some_and(|first| first.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b" /._-".contains(&b))
        && text.trim_end() == text
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word));
    // What JSON puts in quotes, YAML reads as the same.
    if plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// The plan as it is wherever its parts stand.
fn without_lines(mut plan: Plan) -> Plan {
    plan.shared.iter_mut().for_each(|shared| shared.line = 0);
    plan.callers.iter_mut().for_each(|caller| caller.line = 0);
    plan.exceptions.iter_mut().for_each(|exception| exception.line = 0);
    plan.accepted.iter_mut().for_each(|accepted| accepted.line = 0);
    for environment in plan.environments.values_mut() {
        environment.sensitive.iter_mut().for_each(super::WorkloadGlob::forget_line);
    }
    plan
}
