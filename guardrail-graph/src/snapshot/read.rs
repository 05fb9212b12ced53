//! Text to snapshot and back.

mod lines;

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer as _,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use thiserror::Error;

use super::{API_VERSION, Body, KIND, Snapshot};
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
}

impl Head {
    /// Reads no further than to the second of them: they come first, and the rest may be long.
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
        while !self.is_whole()
            && let Some(field) = fields.next_key::<Cow<'de, str>>()?
        {
            match &*field {
                "apiVersion" => self.api_version = Some(fields.next_value()?),
                "kind" => self.kind = Some(fields.next_value()?),
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

impl Snapshot {
    /// Reads a snapshot. `file` is how errors call it.
    ///
    /// # Errors
    /// If the text is empty, cut off, not JSON, of an earlier format, or another kind of document.
    pub fn from_json(text: &str, file: &str) -> Result<Self, SnapshotError> {
        let file = || file.to_owned();
        if text.trim().is_empty() {
            return Err(SnapshotError::Empty { file: file() });
        }
        let error = |e: &serde_json::Error| {
            if e.is_eof() {
                return SnapshotError::Truncated { file: file(), line: e.line() };
            }
            if e.is_syntax() {
                let message = "this is no JSON; give a file that `/v1/graph` or `guardrail merge` wrote";
                return SnapshotError::Invalid { file: file(), line: e.line(), message: message.to_owned() };
            }
            let text = e.to_string();
            let message = shown(text.rfind(" at line ").map_or(text.as_str(), |at| &text[..at]));
            SnapshotError::Invalid { file: file(), line: e.line(), message }
        };
        let head = Head::of(text).map_err(|e| error(&e))?;
        let (version, kind) = (head.api_version.unwrap_or_default(), head.kind.unwrap_or_default());
        if version == FORMER_VERSION && kind == KIND {
            return Err(SnapshotError::Former { file: file() });
        }
        if version != API_VERSION || kind != KIND {
            let found = match (version.as_str(), kind.as_str()) {
                (Some(version), Some(kind)) => format!("{} {}", shown(version), shown(kind)),
                (Some(version), None) => format!("{} without kind", shown(version)),
                (None, Some(kind)) => format!("{} without apiVersion", shown(kind)),
                (None, None) => "a document without apiVersion and kind".to_owned(),
            };
            return Err(SnapshotError::WrongKind { file: file(), found });
        }
        // As two documents: a flattened one would be kept whole in a tree of serde's own first.
        let body: Body = serde_json::from_str(text).map_err(|e| error(&e))?;
        Ok(Self { api_version: API_VERSION.to_owned(), kind: KIND.to_owned(), body })
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
