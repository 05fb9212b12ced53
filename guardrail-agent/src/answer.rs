//! What the agent answers for a span of time: the epochs that meet it, joined.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use guardrail_graph::{
    Timestamp,
    snapshot::{Document, span::Span},
};
use guardrail_policy::words::PointInTime;

use crate::state::{Ended, Kept};

/// How far an answer reaches back for whoever names no span.
const UNASKED: Duration = Duration::from_secs(24 * 60 * 60);

/// The span that the query of an URL asks for (`since=14d&until=2026-11-01`): without one, the last
/// 24 hours.
///
/// # Errors
/// One sentence.
pub fn span_of(query: &str, now: Timestamp) -> Result<Span, String> {
    let (mut since, mut until) = (None, None);
    for (name, value) in
        query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, "")))
    {
        let point = value.replace("%3A", ":").replace("%3a", ":").replace("%2B", "+");
        let point = || point.parse::<PointInTime>();
        match name {
            "since" => since = Some(point()?.begin(now)),
            "until" => until = Some(point()?.end(now)),
            _ => return Err(format!("there is no parameter `{name}`: there are since and until")),
        }
    }
    if since.is_none() && until.is_none() {
        since = Some(now.before(UNASKED));
    }
    Span::new(since, until).map_err(|error| error.to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_the_span_that_the_command_would_ask_for() {
        let now: Timestamp = "2026-11-29T10:00:00Z".parse().unwrap();
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        for (query, since, until) in [
            ("", at("2026-11-28T10:00:00Z"), None),
            ("since=14d", at("2026-11-15T10:00:00Z"), None),
            ("since=2026-11-01&until=2026-11-08", at("2026-11-01T00:00:00Z"), at("2026-11-09T00:00:00Z")),
            ("&until=2026-11-08T12%3A00%3A00Z", None, at("2026-11-08T12:00:00Z")),
        ] {
            assert_eq!(span_of(query, now), Ok(Span::new(since, until).unwrap()), "{query}");
        }
        for wrong in ["since=soon", "since", "from=1d", "since=1h&until=2h", "since=1h&until=1h"] {
            let said = span_of(wrong, now).unwrap_err();
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}
