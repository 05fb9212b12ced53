//! Log lines about an API server that is away: one when the outage begins, at most one a minute
//! while it goes on, one when it is over. Twelve watches fail together, each many times; the
//! metrics count them all.

use std::{collections::BTreeSet, time::Instant};

use crate::{Resource, quiet::Quiet};

/// The failures of all watches since the last time that all of them worked.
#[derive(Debug, Default)]
pub(super) struct Outage {
    failing: BTreeSet<Resource>,
    /// First and last failure.
    span: Option<(Instant, Instant)>,
    failures: u64,
    /// A line was written of this outage.
    is_logged: bool,
    /// Limits the lines about failures, of this outage and of others.
    quiet: Quiet,
}

impl Outage {
    /// Records a failed request. Returns the line for the log, if one is due.
    pub(super) fn failed(&mut self, resource: Resource, reason: &str, now: Instant) -> Option<String> {
        self.failing.insert(resource);
        self.failures += 1;
        let (began, _) = *self.span.insert((self.span.map_or(now, |(began, _)| began), now));
        if !self.quiet.is_due(now) {
            return None;
        }
        self.is_logged = true;
        if self.failures == 1 {
            return Some(format!("{reason}; trying again"));
        }
        let names: Vec<_> = self.failing.iter().map(|resource| resource.as_str()).collect();
        Some(format!(
            "no news of {} from the API server for {} s, after {} failures; the last: {reason}",
            names.join(", "),
            now.saturating_duration_since(began).as_secs(),
            self.failures
        ))
    }

    /// Records that a watch goes on, or that a list is complete. Returns the line for the log, if
    /// that ends an outage that was logged.
    pub(super) fn worked(&mut self, resource: Resource) -> Option<String> {
        self.failing.remove(&resource);
        if !self.failing.is_empty() {
            return None;
        }
        let (began, last) = self.span.take()?;
        let failures = std::mem::take(&mut self.failures);
        std::mem::take(&mut self.is_logged).then(|| {
            let seconds = last.saturating_duration_since(began).as_secs();
            format!("the API server answers again: {failures} failures within {seconds} s")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Every resource fails each half second for so long, then all work again; the lines.
    fn lines(outage: &mut Outage, from: Instant, seconds: u64) -> Vec<String> {
        let mut lines = Vec::new();
        for i in 0..seconds * 2 {
            let now = from + Duration::from_millis(500 * i);
            let reason = format!("reason {}", i % 7);
            lines.extend(Resource::ALL.into_iter().filter_map(|r| outage.failed(r, &reason, now)));
        }
        lines.extend(Resource::ALL.into_iter().filter_map(|r| outage.worked(r)));
        lines
    }

    #[test]
    fn an_outage_is_a_line_at_its_begin_one_a_minute_and_one_at_its_end() {
        let lines = lines(&mut Outage::default(), Instant::now(), 90);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[0], "reason 0; trying again");
        assert!(lines[1].contains("pods") && lines[1].contains("for 60 s, after 1441 failures"), "{}", lines[1]);
        assert_eq!(lines[2], "the API server answers again: 2160 failures within 89 s");
    }

    #[test]
    fn many_short_failures_are_two_lines_a_minute() {
        let (mut outage, begin) = (Outage::default(), Instant::now());
        let all: Vec<String> =
            (0..60).flat_map(|i| lines(&mut outage, begin + Duration::from_secs(10 * i), 1)).collect();
        assert_eq!(all.len(), 2 * 10, "{all:?}");
    }

    #[test]
    fn it_is_over_when_all_work_and_not_before() {
        let (mut outage, now) = (Outage::default(), Instant::now());
        assert!(outage.worked(Resource::Pods).is_none(), "nothing had failed");
        assert!(outage.failed(Resource::Pods, "p", now).is_some());
        assert!(outage.failed(Resource::Nodes, "n", now).is_none());
        assert!(outage.worked(Resource::Pods).is_none());
        assert!(outage.worked(Resource::Nodes).is_some());
    }
}
