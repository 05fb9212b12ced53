//! Numbers and lists in words, as messages and reports say them.

use std::{str::FromStr, time::Duration};

use guardrail_graph::Timestamp;

/// A duration in its two largest units, rounded down: `13 days 23 hours`.
#[must_use]
pub fn duration(duration: Duration) -> String {
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

/// A share as a percentage with at most four digits behind the point, rounded down: `99.97 %`.
#[must_use]
pub fn percent(share: f64) -> String {
    // What was rounded down to six digits may be a little less as a binary fraction.
    let digits = format!("{:.4}", (share * 1e6).round() / 1e4);
    format!("{} %", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// A duration as people write it: a whole number and a unit, `90s`, `30m`, `24h`, `7d`.
///
/// # Errors
/// One sentence.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration: write a whole number and s, m, h or d, like 24h");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number = &text[..text.len() - 1];
    // A sign is no part of it.
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

const DAY: Duration = Duration::from_secs(86_400);

/// A point in time as people write it: RFC 3339, a date (UTC), or how long ago (`14d`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointInTime {
    /// An instant.
    At(Timestamp),
    /// The first instant of a day.
    Day(Timestamp),
    /// So long ago.
    Ago(Duration),
}

impl PointInTime {
    /// The instant at which a span begins that is said to begin then.
    #[must_use]
    pub fn begin(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) | Self::Day(at) => at,
            Self::Ago(ago) => now.before(ago),
        }
    }

    /// The instant at which a span ends that is said to end then: all of a day belongs to it.
    #[must_use]
    pub fn end(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Day(at) => at.after(DAY),
            _ => self.begin(now),
        }
    }
}

impl FromStr for PointInTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ago) = parse_duration(text) {
            return Ok(Self::Ago(ago));
        }
        if let Ok(at) = text.parse() {
            return Ok(Self::At(at));
        }
        format!("{text}T00:00:00Z").parse().map(Self::Day).map_err(|_| {
            format!("`{text}` is no time: write one like 2026-11-29T10:00:00Z, a date like 2026-11-29, or 14d for 14 days ago")
        })
    }
}

/// The nearest of what is known, if it is near enough to be meant: a third of the letters may
/// differ.
#[must_use]
pub fn nearest<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.into_iter().map(|other| (strsim::osa_distance(text, other), other)).min();
    near.filter(|(distance, _)| distance * 3 <= text.chars().count()).map(|(_, other)| other)
}

/// `; did you mean X?`, or nothing if nothing is near.
#[must_use]
pub fn did_you_mean<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(text, known).map_or_else(String::new, |other| format!("; did you mean {other}?"))
}

/// The first of many names.
#[must_use]
pub fn few(names: &[&str]) -> String {
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
