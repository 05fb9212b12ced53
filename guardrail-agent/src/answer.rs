//! What the agent answers for a span of time: the epochs that meet it, joined.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use guardrail_graph::{
    Timestamp,
    snapshot::{Document, Packed, span::Span},
};
use guardrail_policy::words::PointInTime;

use crate::state::{Ended, Kept};

/// How far an answer reaches back for whoever names no span.
const UNASKED: Duration = Duration::from_secs(24 * 60 * 60);

/// So long after it a flow may still wait for its name, and then for a sweep.
const WAIT: Duration = Duration::from_secs(20 * 60);

/// What a request asks for: the graph of all time, unless it says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Which time.
    pub span: Span,
    /// Also what the graph follows from, apart by epoch.
    pub facts: bool,
}

/// What the query of an URL asks for (`since=14d&until=2026-11-01&facts`): without a span, the last
/// 24 hours.
///
/// # Errors
/// One sentence.
pub fn asked(query: &str, now: Timestamp) -> Result<Asked, String> {
    let (mut since, mut until, mut facts) = (None, None, false);
    for (name, value) in
        query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, "")))
    {
        let point = value.replace("%3A", ":").replace("%3a", ":").replace("%2B", "+");
        let point = || point.parse::<PointInTime>();
        match name {
            "since" => since = Some(point()?.begin(now)),
            "until" => until = Some(point()?.end(now)),
            "facts" if value.is_empty() => facts = true,
            "facts" => return Err("the parameter `facts` has no value".to_owned()),
            _ => return Err(format!("there is no parameter `{name}`: there are since, until and facts")),
        }
    }
    if since.is_none() && until.is_none() {
        since = Some(now.before(UNASKED));
    }
    let span = Span::new(since, until).map_err(|error| error.to_string())?;
    Ok(Asked { span, facts })
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

/// A document, and what it was joined of.
#[derive(Debug)]
pub struct Joined {
    /// The document.
    pub document: Arc<Document>,
    /// For [`guardrail_graph::snapshot::Chunks::with_facts`].
    pub facts: Vec<Vec<u8>>,
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

    /// What all epochs say of the span that meet it, or have a flow that does: one that waited for
    /// a name may be of an epoch that began after it. Cut as the commands cut it; where nothing is
    /// beyond the span, nothing is copied. With facts, what it was joined of, uncut, where that is
    /// more than the document itself. Blocking: it reads their files.
    ///
    /// # Errors
    /// [`NoAnswer`]
    pub fn joined(&self, Asked { span, facts }: &Asked) -> Result<Joined, NoAnswer> {
        let has_any = |document: &Document| {
            let window = document.window();
            window.from.zip(window.to).is_none_or(|(from, to)| span.meets(from, to)) || document.has_flow_within(span)
        };
        let documents = [Some(&self.open), self.ended.as_ref().map(|ended| &ended.document)];
        let documents: Vec<&Arc<Document>> = documents.into_iter().flatten().filter(|d| has_any(d)).collect();
        let kept =
            self.kept.iter().filter(|kept| span.meets(kept.header.from, kept.header.to)).map(|kept| (kept, true));
        let mut kept = kept.chain(self.next(span).map(|kept| (kept, false))).peekable();
        if kept.peek().is_none()
            && let [only] = documents[..]
            && only.is_within(span)
        {
            return Ok(Joined { document: Arc::clone(only), facts: Vec::new() });
        }
        let (mut failed, mut number, mut packed) = (None, 0, Vec::new());
        let stored = kept.map_while(|(kept, meets)| match kept.unpacked() {
            Ok((bytes, snapshot)) => Some((meets || snapshot.has_flow_within(span)).then_some((Some(bytes), snapshot))),
            Err(why) => {
                failed = Some(why);
                None
            }
        });
        let of_document = |document: &Arc<Document>| (facts.then(|| Packed::of(document).into()), document.snapshot());
        let all = documents.into_iter().map(of_document).chain(stored.flatten()).map(|(bytes, snapshot)| {
            number += 1;
            packed.extend(bytes.filter(|_| *facts));
            snapshot
        });
        let is_whole = self.is_within(span);
        let document = Arc::new(if is_whole { Document::joined(all) } else { Document::joined_within(all, span) });
        if number == 1 && is_whole {
            packed.clear();
        }
        match failed {
            Some(why) => Err(NoAnswer::Epoch(why)),
            None if number == 0 => Err(NoAnswer::NothingObserved),
            None => Ok(Joined { document, facts: packed }),
        }
    }

    /// Whether there is nothing beyond the span.
    fn is_within(&self, span: &Span) -> bool {
        let documents = [Some(&self.open), self.ended.as_ref().map(|ended| &ended.document)];
        documents.into_iter().flatten().all(|document| document.is_within(span))
            && self.kept.iter().all(|kept| span.holds(kept.header.from, kept.header.to))
    }

    /// Epochs in files that began after the span, and so soon that a flow of the span may have
    /// waited for them.
    fn next(&self, span: &Span) -> impl Iterator<Item = &Kept> {
        let until = span.until().unwrap_or(Timestamp::MAX);
        let mut later: Vec<&Kept> = self.kept.iter().filter(|kept| kept.header.from >= until).collect();
        later.sort_by_key(|kept| kept.header.from);
        let soon = later.first().map_or(Timestamp::MIN, |next| next.header.from).max(until.after(WAIT));
        later.into_iter().take_while(move |kept| kept.header.from <= soon)
    }
}

#[cfg(test)]
mod tests {
    use guardrail_graph::{Observation, Observer, ObserverConfig, epoch::End, snapshot::merge_within};

    use super::*;
    use crate::state::{
        Epochs,
        tests::{flow, is_told, starts},
    };

    #[test]
    fn a_flow_that_waited_for_its_name_until_the_next_epoch_is_in_the_answer_of_its_own_time() {
        let t = Timestamp::from_unix_seconds;
        let dir = tempfile::tempdir().unwrap();
        let mut observer = Observer::new(ObserverConfig::new("node-a", "i", t(0)));
        starts(&mut observer, t(990), t(990));
        observer.observe(Observation::Flow(flow(443, t(995))), t(996));
        let end = |observer: &mut Observer, at| {
            let ended = Ended::of(Arc::new(observer.turn(&[], t(at))), End::Day).unwrap();
            (Epochs::write(dir.path(), &ended).unwrap(), Arc::new(ended))
        };
        let (first, _) = end(&mut observer, 1_000);
        is_told(&mut observer, t(1_100));
        observer.tick(t(1_101));
        let edges = |answer: &Answer, since, until| {
            let span = Span::new(Some(t(since)), Some(t(until))).unwrap();
            let joined = answer.joined(&Asked { span, facts: true }).ok()?;
            assert!(!joined.facts.is_empty(), "what it is cut from");
            Some(joined.document.snapshot().body.edges.len())
        };
        let open = Arc::new(observer.document(t(1_200)));
        let mut answer = Answer { open, ended: None, kept: vec![first] };
        assert_eq!(edges(&answer, 900, 999), Some(1), "of the open epoch");
        assert_eq!(edges(&answer, 100, 990), Some(0), "no flow of the next one was then");
        let (second, ended) = end(&mut observer, 2_000);
        answer.open = Arc::new(observer.document(t(2_001)));
        answer.ended = Some(ended);
        assert_eq!(edges(&answer, 900, 999), Some(1), "of one that ended");
        answer.ended = None;
        answer.kept.push(second);
        assert_eq!(edges(&answer, 900, 999), Some(1), "of one in a file");
        assert_eq!(edges(&answer, 100, 990), Some(0));
        answer.kept.remove(0);
        assert_eq!((edges(&answer, 100, 990), edges(&answer, 900, 999)), (None, Some(1)));
    }

    #[test]
    fn an_answer_is_cut_to_its_span_as_the_commands_cut_it_and_what_lies_within_it_is_not_copied() {
        let t = Timestamp::from_unix_seconds;
        let dir = tempfile::tempdir().unwrap();
        let mut observer = Observer::new(ObserverConfig::new("node-a", "i", t(0)));
        starts(&mut observer, t(1), t(1));
        is_told(&mut observer, t(1));
        let seen = |observer: &mut Observer, times: &[i64]| {
            for at in times {
                observer.observe(Observation::Flow(flow(u16::try_from(*at).unwrap(), t(*at))), t(*at));
            }
        };
        seen(&mut observer, &[100, 500, 600]);
        let first = Ended::of(Arc::new(observer.turn(&[], t(1_000))), End::Day).unwrap();
        let kept = vec![Epochs::write(dir.path(), &first).unwrap()];
        seen(&mut observer, &[1_100, 1_500, 1_900]);
        let open = Arc::new(observer.document(t(2_000)));
        let all = || vec![kept[0].unpacked().unwrap().1, open.snapshot()];
        let answer = Answer { open: Arc::clone(&open), ended: None, kept: kept.clone() };
        for (since, until, expected) in [
            (None, None, &[100, 500, 600, 1_100, 1_500, 1_900][..]),
            (Some(0), None, &[100, 500, 600, 1_100, 1_500, 1_900]),
            (Some(400), None, &[500, 600, 1_100, 1_500, 1_900]),
            (Some(1_000), None, &[1_100, 1_500, 1_900]),
            (Some(1_200), None, &[1_500, 1_900]),
            (Some(400), Some(600), &[500]),
            (Some(550), Some(1_200), &[600, 1_100]),
            (None, Some(1_500), &[100, 500, 600, 1_100]),
        ] {
            let span = Span::new(since.map(t), until.map(t)).unwrap();
            let asked = |span| Asked { span, facts: false };
            let joined = answer.joined(&asked(span)).unwrap().document.snapshot();
            let ports: Vec<u16> = joined.body.edges.iter().map(|edge| edge.port).collect();
            assert_eq!(ports, expected, "{span}");
            let command = merge_within(all(), &span).body;
            assert_eq!((&joined.body.edges, &joined.body.window), (&command.edges, &command.window), "{span}");
            let (cut, asked) = (&joined.body.coverage, &command.coverage);
            assert_eq!((cut.coverage, &cut.by_workload), (asked.coverage, &asked.by_workload), "{span}");
        }
        // The open epoch is whole in its own time.
        let alone = Answer::of(Arc::clone(&open));
        for (since, is_same) in [(0, true), (1_000, true), (1_001, false)] {
            let span = Span::new(Some(t(since)), None).unwrap();
            let joined = alone.joined(&Asked { span, facts: false }).unwrap().document;
            assert_eq!(Arc::ptr_eq(&joined, &open), is_same, "{since}");
        }
        let today = Span::new(Some(t(1_000)), None).unwrap();
        let today = answer.joined(&Asked { span: today, facts: false }).unwrap().document;
        assert_eq!(today.snapshot().body.edges, open.snapshot().body.edges);
    }

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
            let span = Span::new(since, until).unwrap();
            assert_eq!(asked(query, now), Ok(Asked { span, facts: false }), "{query}");
            assert_eq!(asked(&format!("{query}&facts"), now), Ok(Asked { span, facts: true }), "{query}");
        }
        for wrong in ["since=soon", "since", "from=1d", "since=1h&until=2h", "since=1h&until=1h", "facts=all"] {
            let said = asked(wrong, now).unwrap_err();
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}
