//! The window in words.

use std::time::Duration;

use guardrail_graph::{Snapshot, Timestamp};

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

/// A duration in its two largest units, rounded down: `13 days 23 hours`.
pub(crate) fn duration(duration: Duration) -> String {
    let units = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let seconds = duration.as_secs();
    let Some(largest) = units.iter().position(|(unit, _)| seconds >= *unit) else {
        return if duration.is_zero() { "0 seconds" } else { "less than a second" }.to_owned();
    };
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (unit, name) in units.iter().skip(largest).take(2) {
        let count = rest / unit;
        rest %= unit;
        if count > 0 {
            parts.push(format!("{count} {name}{}", if count == 1 { "" } else { "s" }));
        }
    }
    parts.join(" ")
}

/// The first of many names.
pub(crate) fn few(names: &[&str]) -> String {
    let shown = names[..names.len().min(5)].join(", ");
    if names.len() > 5 { format!("{shown} and {} more", names.len() - 5) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_in_their_two_largest_units() {
        for (seconds, text) in [
            (0, "0 seconds"),
            (3, "3 seconds"),
            (61, "1 minute 1 second"),
            (3_600, "1 hour"),
            (3_605, "1 hour"),
            (86_400 + 3_600, "1 day 1 hour"),
            (14 * 86_400 - 1, "13 days 23 hours"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(duration(Duration::from_millis(3)), "less than a second");
    }
}
