//! `--since` and `--until`: which time of the snapshots counts; `--unobservable-nodes`: which nodes
//! nobody waits for.

use std::{str::FromStr, time::SystemTime};

use anyhow::bail;
use guardrail_graph::{
    Snapshot, Timestamp,
    snapshot::{BadSelector, Interval, LabelSelector, span::Span},
};
use guardrail_policy::words::PointInTime;

use super::tell;
use crate::output::second;

/// Which time counts.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Which time counts")]
pub(crate) struct SpanArgs {
    /// Only what was seen then or later: RFC 3339, a date (UTC), or a time ago, like 14d or 36h
    #[arg(long, value_name = "TIME")]
    since: Option<PointInTime>,

    /// Only what was seen before then: RFC 3339, a date (UTC, all of that day counts), or a time
    /// ago
    #[arg(long, value_name = "TIME")]
    until: Option<PointInTime>,

    /// Nodes that had these labels cannot have had an agent, whatever the agents were told: nobody
    /// waits for what ran there (repeatable, as in `kubectl get -l`)
    #[arg(long, value_name = "SELECTOR", help_heading = "Which nodes count")]
    unobservable_nodes: Vec<NodesWith>,
}

/// A label selector as it was written.
#[derive(Clone, Debug)]
struct NodesWith {
    text: String,
    selector: LabelSelector,
}

impl FromStr for NodesWith {
    type Err = BadSelector;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self { text: text.to_owned(), selector: text.parse()? })
    }
}

impl SpanArgs {
    /// The span that is asked about, at this time.
    ///
    /// # Errors
    /// If there is no time in it.
    pub(super) fn span(&self, now: Timestamp) -> anyhow::Result<Span> {
        let (since, until) = (self.since.map(|point| point.begin(now)), self.until.map(|point| point.end(now)));
        Span::new(since, until).map_err(|error| anyhow::anyhow!("--since and --until: {error}"))
    }

    /// Says in the snapshots which nodes nobody can observe, at the times at which they had the
    /// labels.
    pub(super) fn tell_unobservable(&self, snapshots: &mut Vec<Snapshot>) {
        if !self.unobservable_nodes.is_empty() {
            *snapshots = std::mem::take(snapshots).into_iter().flat_map(Snapshot::parts).collect();
        }
        for NodesWith { text, selector } in &self.unobservable_nodes {
            let told: Vec<bool> =
                snapshots.iter_mut().map(|snapshot| snapshot.body.tell_unobservable(selector)).collect();
            if !told.contains(&true) {
                let why = "no node of the snapshots had such labels at any time";
                tell("warning", &format!("--unobservable-nodes '{text}' has no effect: {why}"));
            }
        }
    }
}

/// The time by this machine's clock.
pub(crate) fn clock() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ns(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// Checks that something was observed in a span, and says so if it reaches further back than that.
///
/// # Errors
/// If nothing was.
pub(super) fn check(span: &Span, snapshots: &[Snapshot]) -> anyhow::Result<()> {
    if span.is_all() {
        return Ok(());
    }
    let windows = snapshots.iter().filter_map(|snapshot| snapshot.body.window.whole());
    let whole = windows.reduce(Interval::hull);
    let Some(Interval { from, to }) = whole else {
        bail!("nothing was observed {span}, or at any other time: the snapshots have no window");
    };
    if !span.meets(from, to) {
        bail!("nothing was observed {span}: the snapshots are of {} to {} UTC", second(from), second(to));
    }
    if span.since().is_some_and(|since| since < from) {
        let message = format!("--since reaches back further than what was observed, which begins {} UTC", second(from));
        tell("warning", &message);
    }
    Ok(())
}
