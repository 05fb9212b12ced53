//! The window in words.

use std::time::Duration;

use guardrail_graph::{Snapshot, Timestamp};

use crate::words::duration;

/// When was observed, on how many nodes, and for how long all of them at once: one line for people.
#[must_use]
pub fn window_in_words(snapshot: &Snapshot) -> String {
    let (window, nodes) = (&snapshot.body.window, &snapshot.body.coverage.nodes);
    let all = nodes.expected.union(&nodes.observed).count();
    let counted = format!("{} of {all} {}", nodes.observed.len(), if all == 1 { "node" } else { "nodes" });
    let Some((from, to)) = window.from.zip(window.to) else {
        return format!("observed at no time, {counted}");
    };
    let whole = to.since(from);
    let which = if nodes.observed.len() == all { "all nodes" } else { "the observed nodes" };
    let common = window.common(nodes.observed.iter().map(String::as_str));
    let common = common.map_or_else(|| "none".to_owned(), |common| duration(common.to.since(common.from)));
    let in_seconds = whole < HOUR;
    format!(
        "observed {} ({} to {} UTC), {counted}; common to {which}: {common}",
        duration(whole),
        moment(from, in_seconds),
        moment(to, in_seconds)
    )
}

const HOUR: Duration = Duration::from_secs(3_600);

/// `2026-11-01 00:00`, with seconds if a minute matters.
fn moment(time: Timestamp, in_seconds: bool) -> String {
    let text = time.to_string();
    text.get(..if in_seconds { 19 } else { 16 }).unwrap_or(&text).replace('T', " ")
}
