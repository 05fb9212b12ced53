//! What the agent answers for a span of time: the epochs that meet it, joined.

use std::sync::Arc;

use axum::http::StatusCode;
use guardrail_graph::{Timestamp, snapshot::Document};
use guardrail_policy::words::parse_duration;

use crate::state::{Ended, Kept};

/// A span of time. Without a bound, it reaches as far as there is evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Begin.
    pub since: Option<Timestamp>,
    /// End.
    pub until: Option<Timestamp>,
}

impl Span {
    /// The span that the query of an URL asks for (`since=14d&until=2026-11-01`).
    ///
    /// # Errors
    /// One sentence.
    pub fn from_query(query: &str, now: Timestamp) -> Result<Self, String> {
        let mut span = Self::default();
        for (name, value) in
            query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, "")))
        {
            let bound = match name {
                "since" => &mut span.since,
                "until" => &mut span.until,
                _ => return Err(format!("there is no parameter `{name}`: there are since and until")),
            };
            *bound = Some(time(&value.replace("%3A", ":").replace("%3a", ":").replace("%2B", "+"), now)?);
        }
        match span {
            Self { since: Some(since), until: Some(until) } if until <= since => {
                Err(format!("the span is empty: it ends ({until}) before it begins ({since})"))
            }
            _ => Ok(span),
        }
    }

    fn meets(&self, from: Timestamp, to: Timestamp) -> bool {
        self.since.is_none_or(|since| to >= since) && self.until.is_none_or(|until| from <= until)
    }
}

/// A time as people write it: RFC 3339, a date (its first moment, UTC), or how long ago.
fn time(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse().or_else(|_| format!("{text}T00:00:00Z").parse()) {
        return Ok(time);
    }
    let ago = parse_duration(text);
    ago.map(|ago| now.before(ago)).map_err(|_| {
        format!("`{text}` is no time: write 2026-11-01T10:00:00Z, a date like 2026-11-01, or how long ago, like 14d")
    })
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// No epoch meets the span.
    #[error("nothing was observed in this span: /v1/epochs lists what there is")]
    NothingObserved,
    /// An epoch's file cannot be read.
    #[error("{0}")]
    Epoch(String),
}

impl NoAnswer {
    /// As HTTP has it.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NothingObserved => StatusCode::NOT_FOUND,
            Self::Epoch(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The epochs of a node.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The one that is open.
    pub open: Arc<Document>,
    /// One that ended and is in no file yet.
    pub ended: Option<Arc<Ended>>,
    /// Those in files.
    pub kept: Vec<Kept>,
}

impl Answer {
    /// Without closed epochs.
    #[must_use]
    pub fn of(open: Arc<Document>) -> Self {
        Self { open, ended: None, kept: Vec::new() }
    }

    /// The document of all epochs that meet the span. Blocking: it reads their files.
    ///
    /// # Errors
    /// [`NoAnswer`]
    pub fn joined(&self, span: &Span) -> Result<Arc<Document>, NoAnswer> {
        let of_window = |document: &Document| {
            let window = document.window();
            window.from.zip(window.to).is_none_or(|(from, to)| span.meets(from, to))
        };
        let kept: Vec<&Kept> = self.kept.iter().filter(|kept| span.meets(kept.header.from, kept.header.to)).collect();
        let documents = [Some(&self.open), self.ended.as_ref().map(|ended| &ended.document)];
        let mut documents: Vec<&Arc<Document>> = documents.into_iter().flatten().filter(|d| of_window(d)).collect();
        if kept.is_empty() && documents.len() <= 1 {
            return documents.pop().cloned().ok_or(NoAnswer::NothingObserved);
        }
        let mut failed = None;
        let stored = kept.into_iter().map_while(|kept| kept.snapshot().map_err(|why| failed = Some(why)).ok());
        let joined = Document::joined(documents.into_iter().map(|document| document.snapshot()).chain(stored));
        failed.map_or_else(|| Ok(Arc::new(joined)), |why| Err(NoAnswer::Epoch(why)))
    }
}
