//! YAML and JSON text to a tree that knows its lines and tells absent, null and empty apart.

use std::{cell::Cell, fmt, sync::Arc, thread};

use guardrail_graph::inventory::{complaint, is_duplicate};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{
    Error, Spanned,
    options::{AliasLimits, DuplicateKeyPolicy},
};

use super::{MAX_FILE_BYTES, ObjectProblem, ObjectProblemKind, may_concern_policies, text};
use crate::model::Location;

/// Deepest nesting that is read; a NetworkPolicy in a List needs 11, a schema in a
/// CustomResourceDefinition some 50.
const MAX_DEPTH: usize = 128;
/// Bytes of stack for that many levels: without optimisation each takes some 30 KiB.
const STACK_BYTES: usize = 16 << 20;
/// Most nodes that aliases may add.
const MAX_ALIASED: usize = 100_000;

/// A value with the line on which it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// From 1.
    pub line: u32,
    /// The value.
    pub value: Value,
}

/// What a [`Node`] holds.
#[derive(Clone, Debug)]
pub enum Value {
    /// `null`, `~`, or nothing.
    Null,
    /// As YAML 1.1 has booleans.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// A number with a fraction.
    Float(f64),
    /// Everything else that is one value.
    Str(String),
    /// A list.
    Seq(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Clone, Debug)]
pub struct Key {
    /// The key.
    pub name: String,
    /// From 1.
    pub line: u32,
}

impl Node {
    /// What it is, for messages.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "a number",
            Value::Float(_) => "a fraction",
            Value::Str(_) => "a string",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// The same, so many lines further down.
    fn below(mut self, lines: u32) -> Self {
        if lines > 0 {
            self.line += lines;
            match &mut self.value {
                Value::Seq(items) => {
                    items.iter_mut().for_each(|item| *item = std::mem::replace(item, Self::NULL).below(lines))
                }
                Value::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
                    key.line += lines;
                    *value = std::mem::replace(value, Self::NULL).below(lines);
                }),
                _ => {}
            }
        }
        self
    }

    const NULL: Self = Self { line: 0, value: Value::Null };

    /// Whether there is nothing.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// The whole number, however it is written: `80.0` and `1e3` are numbers for the API server.
    #[must_use]
    pub fn as_whole(&self) -> Option<i128> {
        match self.value {
            Value::Int(number) => Some(number),
            #[expect(clippy::cast_possible_truncation, reason = "it has no fraction and is small")]
            Value::Float(number) if number.fract() == 0.0 && number.abs() < 1e15 => Some(number as i128),
            _ => None,
        }
    }

    /// The field of a mapping; null counts as absent, and of two the last one counts.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => {
                entries.iter().rfind(|(k, _)| k.name == name).map(|(_, v)| v).filter(|v| !v.is_null())
            }
            _ => None,
        }
    }

    /// Whether the mapping has the field, and it is null or an empty list.
    #[must_use]
    pub fn has_empty(&self, name: &str) -> bool {
        let Value::Map(entries) = &self.value else { return false };
        let empty = |value: &Value| match value {
            Value::Null => true,
            Value::Seq(items) => items.is_empty(),
            _ => false,
        };
        entries.iter().rfind(|(k, _)| k.name == name).is_some_and(|(_, node)| empty(&node.value))
    }

    /// The string, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Str(s) => Some(s),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let value = match spanned.value {
            // Without quotes these are booleans for kubectl (YAML 1.1); a quoted word is two bytes
            // longer.
            Value::Str(word)
                if is_boolean_word(&word) && spanned.defined.span().byte_len() == Some(word.len() as u64) =>
            {
                Value::Bool(matches!(word.to_ascii_lowercase().as_str(), "yes" | "on"))
            }
            value => value,
        };
        Ok(Self { line: line(spanned.referenced.line()), value })
    }
}

/// The words beside true and false that kubectl's YAML reader takes for booleans (`y` and `n` are
/// strings there).
fn is_boolean_word(word: &str) -> bool {
    matches!(word, "yes" | "Yes" | "YES" | "no" | "No" | "NO" | "on" | "On" | "ON" | "off" | "Off" | "OFF")
}

fn line(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX).max(1)
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v.into()))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Int(v.into()))
    }

    fn visit_i128<E: de::Error>(self, v: i128) -> Result<Value, E> {
        Ok(Value::Int(v))
    }

    fn visit_u128<E: de::Error>(self, v: u128) -> Result<Value, E> {
        Ok(Value::Int(i128::try_from(v).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Str(v.to_owned()))
    }

    fn visit_string<E: de::Error>(self, v: String) -> Result<Value, E> {
        Ok(Value::Str(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let key_line = line(key.referenced.line());
            entries.push((Key { name: key.value, line: key_line }, map.next_value()?));
        }
        Ok(Value::Map(entries))
    }
}

/// The documents of a file; empty documents are left out.
///
/// # Errors
/// It is no YAML or JSON, or larger or deeper than any file that a person writes.
pub fn documents(file: &Arc<str>, bytes: &[u8]) -> Result<Vec<Node>, ObjectProblem> {
    in_a_thread(file, bytes, DuplicateKeyPolicy::Error)
}

/// As [`documents`], of a file that was not named as policies: where a key stands twice kubectl
/// takes the last, and what has nothing to do with policies must not stop the reading of those
/// beside it.
pub(super) fn documents_beside(file: &Arc<str>, bytes: &[u8]) -> Result<Vec<Node>, ObjectProblem> {
    in_a_thread(file, bytes, DuplicateKeyPolicy::LastWins)
}

/// `keys`: in documents that hold no policy.
fn in_a_thread(file: &Arc<str>, bytes: &[u8], keys: DuplicateKeyPolicy) -> Result<Vec<Node>, ObjectProblem> {
    with_room(|| read(file, bytes, keys)).unwrap_or_else(|| {
        let location = Location { file: file.clone(), line: 1 };
        let message = "there is no memory left to read it; end something else".to_owned();
        Err(ObjectProblem { location, kind: ObjectProblemKind::Syntax, policy: None, message })
    })
}

thread_local! {
    /// This thread has [`STACK_BYTES`] of stack.
    static HAS_ROOM: Cell<bool> = const { Cell::new(false) };
}

/// Runs work that reads YAML where there is stack for it: the reader calls itself for each level,
/// and the stack of the caller may be small. What reads many files does so within one call, since
/// each call from outside begins a thread. `None`: there is no memory for one.
pub(crate) fn with_room<R: Send>(work: impl FnOnce() -> R + Send) -> Option<R> {
    if HAS_ROOM.get() {
        return Some(work());
    }
    thread::scope(|scope| {
        let work = || {
            HAS_ROOM.set(true);
            work()
        };
        thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work).ok()?.join().ok()
    })
}

fn read(file: &Arc<str>, bytes: &[u8], keys: DuplicateKeyPolicy) -> Result<Vec<Node>, ObjectProblem> {
    let problem = |line: u32, message: String| ObjectProblem {
        location: Location { file: file.clone(), line },
        kind: ObjectProblemKind::Syntax,
        policy: None,
        message,
    };
    if bytes.len() > MAX_FILE_BYTES {
        let message = format!(
            "the file has more than {} MiB, no policy file is that large; name a smaller file",
            MAX_FILE_BYTES >> 20
        );
        return Err(problem(1, message));
    }
    let text = text::decode(bytes)
        .map_err(|offset| problem(line_of(bytes, offset), text::remedy(bytes, offset).to_owned()))?;
    let control = text.bytes().position(|b| matches!(b, 0..=8 | 11..=12 | 14..=31 | 127));
    if let Some(at) = control {
        return Err(problem(
            line_of(text.as_bytes(), at),
            match text::remedy(bytes, 0) {
                wide if wide.contains("UTF-16 without") => wide.to_owned(),
                _ => "this is no text (a control character); name a YAML or JSON file".to_owned(),
            },
        ));
    }
    let mut nodes = Vec::new();
    for (part, before) in json_parts(&text).unwrap_or_else(|| vec![(&text, 0)]) {
        let read = parse(part, &text, before, DuplicateKeyPolicy::Error);
        let read = match read {
            Err((_, said)) if is_duplicate(&said) => one_by_one(part, &text, before, keys),
            read => read,
        };
        nodes.extend(read.map_err(|(at, said)| problem(at, said))?);
    }
    Ok(nodes)
}

/// The documents of a part of a text that begins behind so many lines; else the line and what is
/// wrong.
fn parse(part: &str, text: &str, before: u32, keys: DuplicateKeyPolicy) -> Result<Vec<Node>, (u32, String)> {
    let read = serde_saphyr::from_multiple_with_options::<Node>(part, options(keys)).map_err(|error| {
        let error = error.without_snippet();
        let at = before + error.location().map_or(1, |l| line(l.line()));
        (at, complaint(&one_line(error), text, at, Some(MAX_DEPTH)))
    })?;
    Ok(read.into_iter().map(|node| node.below(before)).collect())
}

/// As [`parse`], document by document.
fn one_by_one(part: &str, text: &str, before: u32, keys: DuplicateKeyPolicy) -> Result<Vec<Node>, (u32, String)> {
    let mut nodes = Vec::new();
    let (mut start, mut skipped) = (0, 0);
    for (end, lines) in document_ends(part) {
        let document = &part[start..end];
        let other = document.contains("kind") && !may_concern_policies(document);
        let keys = if other { keys } else { DuplicateKeyPolicy::Error };
        nodes.extend(parse(document, text, before + skipped, keys)?);
        (start, skipped) = (end, lines);
    }
    Ok(nodes)
}

/// Where each document ends, and how many lines stand before that.
fn document_ends(text: &str) -> Vec<(usize, u32)> {
    let mut ends = Vec::new();
    let mut offset = 0;
    for (line, number) in text.split_inclusive('\n').zip(0..) {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > 0 {
            ends.push((offset, number));
        }
        offset += line.len();
    }
    ends.push((text.len(), 0));
    ends
}

/// JSON objects one behind the other, which kubectl reads as well: each with the number of lines
/// before it. `None`: it is not that.
fn json_parts(text: &str) -> Option<Vec<(&str, u32)>> {
    let mut significant = text.chars().filter(|c| !c.is_whitespace());
    if significant.next() != Some('{') || !matches!(significant.next(), Some('"' | '}')) {
        return None;
    }
    let mut objects = serde_json::Deserializer::from_str(text).into_iter::<de::IgnoredAny>();
    let mut parts = Vec::new();
    let mut start = 0;
    while let Some(object) = objects.next() {
        object.ok()?;
        let end = objects.byte_offset();
        let before = text[..start].matches('\n').count();
        parts.push((&text[start..end], u32::try_from(before).ok()?));
        start = end;
    }
    (parts.len() > 1).then_some(parts)
}

fn line_of(bytes: &[u8], offset: usize) -> u32 {
    let newlines = bytes[..offset].iter().filter(|b| **b == b'\n').count();
    u32::try_from(newlines + 1).unwrap_or(u32::MAX)
}

/// The parser's message without its own position, which is told in `file:line` form.
fn one_line(error: &Error) -> String {
    let text = error.to_string();
    let text = text.lines().next().unwrap_or_default().trim();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    match text.rfind(" at line ") {
        Some(at) if text[at..].chars().all(|c| c.is_ascii_alphanumeric() || " ,:".contains(c)) => text[..at].to_owned(),
        _ => text.to_owned(),
    }
}

fn options(keys: DuplicateKeyPolicy) -> serde_saphyr::Options {
    let mut limits = AliasLimits::default();
    limits.max_total_replayed_events = MAX_ALIASED;
    let mut budget = serde_saphyr::Budget::default();
    budget.max_depth = MAX_DEPTH;
    budget.max_events = 30_000_000;
    budget.max_nodes = 15_000_000;
    budget.max_documents = 200_000;
    let mut options = serde_saphyr::Options::default();
    options.budget = Some(budget);
    options.alias_limits = limits;
    options.with_snippet = false;
    options.emit_comments = false;
    options.strict_booleans = true;
    options.duplicate_keys = keys;
    // As kubectl's reader of YAML 1.1: 0120 is 80.
    options.legacy_octal_numbers = true;
    options
}
