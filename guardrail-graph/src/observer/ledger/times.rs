//! When events were lost, to the minute.

use std::collections::BTreeMap;

use crate::{
    observe::LossReason,
    observer::peers::PeerId,
    snapshot::{Interval, intervals::hull},
    time::Timestamp,
};

/// Grid of times, seconds.
const GRID: i64 = 60;
/// Times kept of one epoch. Of more, the last grows over what is between.
const MAX_TIMES: usize = 16_384;

/// Times of losses by reason and whom they concern.
#[derive(Debug)]
pub(super) struct Times {
    sweep: Interval,
    times: BTreeMap<(LossReason, Option<PeerId>), Vec<Interval>>,
    kept: usize,
}

impl Default for Times {
    fn default() -> Self {
        let never = Interval { from: Timestamp::MIN, to: Timestamp::MIN };
        Self { sweep: never, times: BTreeMap::new(), kept: 0 }
    }
}

impl Times {
    /// The sweeps that notice what comes next.
    pub(super) fn sweep(&mut self, from: Timestamp, to: Timestamp) {
        self.sweep = Interval { from, to };
    }

    /// Those sweeps.
    pub(super) fn now(&self) -> Interval {
        self.sweep
    }

    /// Nothing is lost yet in another epoch.
    pub(super) fn turned(&self) -> Self {
        Self { sweep: self.sweep, ..Self::default() }
    }

    /// Something was lost that was there at `first`, or since the sweep began; `None`: anyone's.
    pub(super) fn add(&mut self, reason: LossReason, whom: Option<PeerId>, first: Timestamp) {
        let Interval { from, to } = self.sweep;
        let from = from.min(first);
        let (from, next) = (from.floor(GRID), to.floor(GRID));
        let to = if next == to { to } else { next.after(std::time::Duration::from_secs(GRID.unsigned_abs())) };
        // Who it was is no more to be told apart than when.
        let whom = whom.filter(|_| self.kept < MAX_TIMES || self.times.contains_key(&(reason, whom)));
        let times = self.times.entry((reason, whom)).or_default();
        match times.last_mut() {
            Some(last) if from <= last.to || self.kept >= MAX_TIMES => {
                *last = hull([*last, Interval { from, to }]);
            }
            _ => {
                times.push(Interval { from, to });
                self.kept += 1;
            }
        }
    }

    /// Those of a reason.
    pub(super) fn of(&self, reason: LossReason) -> impl Iterator<Item = (Option<PeerId>, Vec<Interval>)> + '_ {
        let of_reason = self.times.iter().filter(move |((of, _), _)| *of == reason);
        of_reason.map(|((_, whom), times)| (*whom, times.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    fn all(times: &Times) -> Vec<Interval> {
        times.of(LossReason::MapFull).flat_map(|(_, times)| times).collect()
    }

    #[test]
    fn what_sweeps_lose_one_after_the_other_is_one_time_to_the_minute() {
        let mut times = Times::default();
        for at in [70, 85, 100, 115, 130, 600] {
            times.sweep(t(at - 15), t(at));
            times.add(LossReason::MapFull, None, Timestamp::MAX);
        }
        assert_eq!(all(&times), [Interval { from: t(0), to: t(180) }, Interval { from: t(540), to: t(600) }]);
        assert!(all(&times.turned()).is_empty());
    }

    #[test]
    fn a_table_that_is_full_loses_no_time() {
        let mut times = Times::default();
        let last = 600 * (i64::try_from(MAX_TIMES).unwrap() + 10);
        for at in (600..=last).step_by(600) {
            times.sweep(t(at - 15), t(at));
            times.add(LossReason::MapFull, None, Timestamp::MAX);
        }
        let all = all(&times);
        assert_eq!((all.len(), all.last().unwrap().to), (MAX_TIMES, t(last)));
    }
}
