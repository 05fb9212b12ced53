//! When this node was observed, and since when the cluster is known.

use std::time::Duration;

use crate::{snapshot::Interval, time::Timestamp};

/// Intervals of observation that a state may bring along. A node that restarts for ever keeps the
/// latest.
const MAX_INTERVALS: usize = 1_000;

/// This run of observation and those before it.
#[derive(Debug)]
pub(super) struct History {
    started: Timestamp,
    /// Since when this run goes on without a step of the clock.
    going: Timestamp,
    /// When the open epoch began; `None`: a state that knows no epochs is continued.
    epoch: Option<Timestamp>,
    /// Those of the restored state, and of this run before a step of the clock.
    earlier: Vec<Interval>,
    /// Times that never were: the clock was set forward over them.
    steps: Vec<Interval>,
    /// Since when nobody had watched as this run began.
    unwatched: Option<Timestamp>,
    saw_flow: bool,
    /// When what is known without a time was known at latest: the end of the restored state, if
    /// there is one.
    heard_since: Timestamp,
    /// When this run went on from a state.
    resumed: Option<Timestamp>,
}

impl History {
    /// Observation begins.
    pub(super) fn new(started: Timestamp) -> Self {
        Self {
            started,
            going: started,
            epoch: Some(started),
            earlier: Vec::new(),
            steps: Vec::new(),
            unwatched: None,
            saw_flow: false,
            heard_since: Timestamp::MIN,
            resumed: None,
        }
    }

    /// When the open epoch began; `None`: a state that knows no epochs is continued.
    pub(super) fn epoch(&self) -> Option<Timestamp> {
        self.epoch
    }

    /// When this run of observation began.
    pub(super) fn started(&self) -> Timestamp {
        self.started
    }

    /// When nobody watched, before this run of observation.
    pub(super) fn gap(&self) -> Option<Interval> {
        let from = self.unwatched?;
        (from < self.started).then_some(Interval { from, to: self.started })
    }

    /// Since when may have been what is noticed in a sweep which began then: the first one after a
    /// restart has all that the kernel counted since the state that is continued.
    pub(super) fn noticed_since(&self, sweep: Timestamp) -> Timestamp {
        match self.resumed {
            Some(at) if sweep <= at => sweep.min(self.heard_since),
            _ => sweep,
        }
    }

    /// The epoch of a state is continued.
    pub(super) fn continue_epoch(&mut self, begun: Option<Timestamp>) {
        self.epoch = begun;
    }

    /// Observation goes on after `earlier`; what the state holds was known at `ended`.
    /// With the times that never were.
    pub(super) fn restore(&mut self, (mut earlier, steps): (Vec<Interval>, Vec<Interval>), ended: Timestamp) {
        self.steps = steps;
        let excess = earlier.len().saturating_sub(MAX_INTERVALS);
        earlier.drain(..excess);
        (self.unwatched, self.earlier, self.heard_since) = (earlier.last().map(|run| run.to), earlier, ended);
        self.resumed = Some(self.started);
    }

    /// The hooks were attached all the time: this run is the last one, continued. Returns its
    /// beginning, if there was one.
    pub(super) fn join_last(&mut self) -> Option<Timestamp> {
        self.started = self.earlier.pop()?.from;
        self.going = self.started;
        self.unwatched = self.earlier.last().map(|run| run.to);
        Some(self.started)
    }

    /// Another epoch begins; of one instance no two begin at the same instant.
    pub(super) fn turn(&mut self, at: Timestamp) {
        self.earlier.clear();
        self.steps.clear();
        self.unwatched = None;
        (self.started, self.going) = (at, at);
        let is_taken = self.epoch == Some(at);
        self.epoch = Some(if is_taken { at.after(Duration::from_nanos(1)) } else { at });
    }

    /// Another epoch begins with this run, which goes on.
    pub(super) fn turn_back(&mut self) {
        let unwatched = self.unwatched;
        self.turn(self.started);
        self.unwatched = unwatched;
    }

    /// The clock was set forward: what lies between never was.
    pub(super) fn step(&mut self, ended: Timestamp, begins: Timestamp) {
        for times in [&mut self.earlier, &mut self.steps] {
            if times.len() >= MAX_INTERVALS {
                times.remove(0);
            }
        }
        self.steps.push(Interval { from: ended, to: begins });
        self.earlier.push(Interval { from: self.going, to: ended.max(self.going) });
        self.going = begins;
    }

    /// The clock was set forward as the epoch before had ended then.
    pub(super) fn begins_with_step(&mut self, ended: Timestamp) {
        self.steps.push(Interval { from: ended, to: self.started });
    }

    /// Times that never were, sorted.
    pub(super) fn steps(&self) -> &[Interval] {
        &self.steps
    }

    /// Traffic was seen.
    pub(super) fn saw_flow(&mut self) {
        self.saw_flow = true;
    }

    /// Since when an endpoint is one that becomes known now; `None`: before the window, as nothing
    /// was observed yet.
    pub(super) fn since(&self, now: Timestamp) -> Option<Timestamp> {
        (self.saw_flow && now > self.started).then_some(now)
    }

    /// Since when an owner that becomes known now may have had its address: before anything was
    /// observed that is before the window, or the end of the restored state.
    pub(super) fn owned_since(&self, now: Timestamp) -> Timestamp {
        self.since(now).unwrap_or(self.heard_since)
    }

    /// When this node was watched, this run last.
    pub(super) fn intervals(&self, now: Timestamp) -> Vec<Interval> {
        let mut intervals = self.earlier.clone();
        intervals.push(Interval { from: self.going, to: now.max(self.going) });
        intervals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    #[test]
    fn what_is_known_before_any_traffic_was_so_before_the_window() {
        let mut history = History::new(t(10));
        assert_eq!((history.since(t(11)), history.owned_since(t(11))), (None, Timestamp::MIN));
        history.saw_flow();
        assert_eq!((history.since(t(10)), history.since(t(11))), (None, Some(t(11))));
        assert_eq!(history.owned_since(t(11)), t(11));
    }

    #[test]
    fn a_restart_leaves_a_gap_unless_the_hooks_were_attached() {
        let mut history = History::new(t(60));
        history.restore((vec![Interval { from: t(0), to: t(50) }], Vec::new()), t(50));
        assert_eq!(history.intervals(t(70)).len(), 2);
        assert_eq!(history.owned_since(t(61)), t(50));
        assert_eq!(history.join_last(), Some(t(0)));
        assert_eq!(history.intervals(t(70)), [Interval { from: t(0), to: t(70) }]);
    }

    #[test]
    fn a_clock_that_steps_for_ever_does_not_grow_the_state_either() {
        let mut history = History::new(t(0));
        history.step(t(10), t(100));
        assert_eq!(
            history.intervals(t(110)),
            [(0, 10), (100, 110)].map(|(from, to)| Interval { from: t(from), to: t(to) })
        );
        (1..5_000).for_each(|i| history.step(t(100 * i + 10), t(100 * i + 100)));
        assert_eq!((history.intervals(t(999_999)).len(), history.gap()), (MAX_INTERVALS + 1, None));
    }

    #[test]
    fn a_crash_loop_does_not_grow_the_state() {
        let mut history = History::new(t(9_000));
        let earlier = (0..5_000).map(|i| Interval { from: t(i), to: t(i) }).collect();
        history.restore((earlier, Vec::new()), t(5_000));
        assert_eq!(history.intervals(t(9_001)).len(), MAX_INTERVALS + 1);
    }
}
