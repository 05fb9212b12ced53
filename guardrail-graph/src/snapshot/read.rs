//! Text to snapshot and back.

mod lines;

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer as _,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use thiserror::Error;

use super::{API_VERSION, Body, KIND, Snapshot, parts::OnlyFacts};
pub use lines::write_lines;

/// The format before epochs: one sum without times.
const FORMER_VERSION: &str = "guardrail.dev/v1";

/// Characters of the text that an error shows.
const MAX_SHOWN: usize = 200;

/// Why a text is not a snapshot, in one sentence with what to do.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum SnapshotError {
    /// Nothing in it.
    #[error("{file}: the file is empty: expected a {KIND} as `/v1/graph` serves it")]
    Empty {
        /// The file.
        file: String,
    },
    /// The JSON ends early.
    #[error("{file}: the file ends in the middle (line {line}): it was cut off, fetch or write it again")]
    Truncated {
        /// The file.
        file: String,
        /// Line of the end.
        line: usize,
    },
    /// Not JSON, or not of the right shape.
    #[error("{file}: line {line}: {message}")]
    Invalid {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A snapshot of a format that is not read any more: it holds no time of pods.
    #[error(
        "{file}: this is a snapshot of an earlier guardrail ({FORMER_VERSION}), which cannot say when it saw what: fetch it again from agents of this version; their evidence begins anew"
    )]
    Former {
        /// The file.
        file: String,
    },
    /// Another document.
    #[error(
        "{file}: this is {found}, not {API_VERSION} {KIND}: give a file that `/v1/graph` or `guardrail merge` wrote"
    )]
    WrongKind {
        /// The file.
        file: String,
        /// `apiVersion` and `kind` as found.
        found: String,
    },
}

/// What a text says, as an error may show it: short, and without characters that steer a terminal.
fn shown(text: &str) -> String {
    let mut shown: String =
        text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// What says which document it is.
#[derive(Default)]
struct Head {
    api_version: Option<Value>,
    kind: Option<Value>,
    /// Right behind these stands what the rest follows from.
    has_facts: bool,
}

impl Head {
    /// Reads no further than behind the second of them: they come first, and the rest may be long.
    fn of(text: &str) -> Result<Self, serde_json::Error> {
        let mut head = Self::default();
        let read = serde_json::Deserializer::from_str(text).deserialize_any(&mut head);
        if head.is_whole() { Ok(head) } else { read.map(|()| head) }
    }

    fn is_whole(&self) -> bool {
        self.api_version.is_some() && self.kind.is_some()
    }
}

impl<'de> Visitor<'de> for &mut Head {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(field) = fields.next_key::<Cow<'de, str>>()? {
            if self.is_whole() {
                self.has_facts = field == "facts";
                break;
            }
            match &*field {
                "apiVersion" => self.api_version = Some(fields.next_value()?),
                "kind" => self.kind = Some(fields.next_value()?),
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Why a text with this name cannot be read.
fn unreadable(file: &str, error: &serde_json::Error) -> SnapshotError {
    let (file, line) = (file.to_owned(), error.line());
    if error.is_eof() {
        return SnapshotError::Truncated { file, line };
    }
    if error.is_syntax() {
        let message = "this is no JSON; give a file that `/v1/graph` or `guardrail merge` wrote".to_owned();
        return SnapshotError::Invalid { file, line, message };
    }
    let text = error.to_string();
    let message = shown(text.rfind(" at line ").map_or(text.as_str(), |at| &text[..at]));
    SnapshotError::Invalid { file, line, message }
}

/// Checks that a text is a snapshot of this version.
fn head(text: &str, file: &str) -> Result<Head, SnapshotError> {
    if text.trim().is_empty() {
        return Err(SnapshotError::Empty { file: file.to_owned() });
    }
    let mut head = Head::of(text).map_err(|error| unreadable(file, &error))?;
    let (version, kind) = (head.api_version.take().unwrap_or_default(), head.kind.take().unwrap_or_default());
    if version == FORMER_VERSION && kind == KIND {
        return Err(SnapshotError::Former { file: file.to_owned() });
    }
    if version != API_VERSION || kind != KIND {
        let found = match (version.as_str(), kind.as_str()) {
            (Some(version), Some(kind)) => format!("{} {}", shown(version), shown(kind)),
            (Some(version), None) => format!("{} without kind", shown(version)),
            (None, Some(kind)) => format!("{} without apiVersion", shown(kind)),
            (None, None) => "a document without apiVersion and kind".to_owned(),
        };
        return Err(SnapshotError::WrongKind { file: file.to_owned(), found });
    }
    Ok(head)
}

impl Snapshot {
    /// Reads a snapshot. `file` is how errors call it.
    ///
    /// # Errors
    /// If the text is empty, cut off, not JSON, of an earlier format, or another kind of document.
    pub fn from_json(text: &str, file: &str) -> Result<Self, SnapshotError> {
        head(text, file)?;
        // As two documents: a flattened one would be kept whole in a tree of serde's own first.
        let body: Body = serde_json::from_str(text).map_err(|error| unreadable(file, &error))?;
        Ok(Self { body, ..Self::empty() })
    }

    /// Reads the documents that a snapshot was joined of, as far as they are apart in it, and
    /// nothing that follows from them. Of one that is of one epoch stands there which and when; the
    /// rest is unpacked when it is joined, or by [`Snapshot::parts`].
    ///
    /// # Errors
    /// Those of [`Snapshot::from_json`], and if times of facts run backwards.
    pub fn parts_from_json(text: &str, file: &str) -> Result<Vec<Self>, SnapshotError> {
        if head(text, file)?.has_facts {
            let OnlyFacts { facts } = serde_json::from_str(text).map_err(|error| unreadable(file, &error))?;
            if !facts.is_empty() {
                return Ok(facts);
            }
        }
        Self::from_json(text, file).map(Self::closed_parts)
    }

    /// The document as commands write it: a line for each record, as [`write_lines`] has it. Equal
    /// graphs give equal bytes.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = Vec::new();
        // Serialising these types cannot fail: every map key is a string and no number is a float.
        write_lines(&mut text, self).ok().and_then(|()| String::from_utf8(text).ok()).unwrap_or_default()
    }
}
