//! When epochs end. Pure: both clocks are arguments.

pub mod bytes;
pub(crate) mod facts;
pub mod file;
pub(crate) mod flows;
pub mod log;
pub(crate) mod nodes;
pub mod state;

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

const DAY: Duration = Duration::from_secs(86_400);
/// Nodes end their epochs at most this long after midnight, each at its own time.
const MAX_OFFSET: Duration = Duration::from_secs(600);
/// A step of the wall clock against boot time by more than this ends the epoch.
const STEP: Duration = Duration::from_secs(60);
/// So many epochs may begin in [`DAY`].
const MAX_PER_DAY: usize = 48;

/// Two clocks, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// The wall clock.
    pub wall: Timestamp,
    /// Time since the system booted, suspension included: it never steps.
    pub boot: Duration,
}

impl Clocks {
    /// How far the wall clock is ahead of boot time, ns.
    fn ahead(&self) -> i64 {
        let boot = i64::try_from(self.boot.as_nanos()).unwrap_or(i64::MAX);
        self.wall.as_unix_ns().saturating_sub(boot)
    }
}

/// Why an epoch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The day is over.
    Day,
    /// The wall clock stepped against boot time.
    ClockStep,
}

impl End {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Day, Self::ClockStep];

    /// How it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::ClockStep => "clock-step",
        }
    }
}

/// Says when the epochs of a node end.
#[derive(Debug)]
pub struct Calendar {
    offset: Duration,
    /// Day of the open epoch.
    day: i64,
    /// [`Clocks::ahead`] as the epoch began, or at the last step that was counted only.
    ahead: i64,
    /// Until when each epoch that began counts, which is for a day, by boot time.
    count_until: VecDeque<Duration>,
    steps: u64,
}

/// What of a calendar outlives its agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Which boot this is of.
    pub boot: String,
    /// How far the wall clock was ahead of boot time as the open epoch began, ns.
    pub ahead_ns: i64,
    /// When epochs of the last day began, by boot time, ns; sorted.
    pub begun_ns: Vec<u64>,
}

impl Calendar {
    /// The calendar of a node whose open epoch began then.
    #[must_use]
    pub fn new(node: &str, begun: Timestamp, clocks: Clocks) -> Self {
        let offset = offset(node);
        Self { offset, day: day(begun, offset), ahead: clocks.ahead(), count_until: VecDeque::new(), steps: 0 }
    }

    /// Whether the epoch ends now, and why. Ask at each sweep. If it does end, tell
    /// [`Calendar::turned`].
    pub fn due(&mut self, clocks: Clocks) -> Option<End> {
        while self.count_until.front().is_some_and(|until| *until <= clocks.boot) {
            self.count_until.pop_front();
        }
        let has_room = self.count_until.len() < MAX_PER_DAY;
        if self.has_stepped(clocks) {
            if has_room {
                return Some(End::ClockStep);
            }
            (self.ahead, self.steps) = (clocks.ahead(), self.steps.saturating_add(1));
        }
        (has_room && day(clocks.wall, self.offset) != self.day).then_some(End::Day)
    }

    /// Whether the wall clock stepped against boot time since the epoch began, or since the last
    /// step that was counted only.
    #[must_use]
    pub fn has_stepped(&self, clocks: Clocks) -> bool {
        clocks.ahead().abs_diff(self.ahead) > u64::try_from(STEP.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Another epoch began.
    pub fn turned(&mut self, clocks: Clocks) {
        (self.day, self.ahead) = (day(clocks.wall, self.offset), clocks.ahead());
        self.count_until.push_back(clocks.boot.saturating_add(DAY));
    }

    /// What the next agent of this node has to know. `boot`: which boot this is.
    #[must_use]
    pub fn remembered(&self, boot: String) -> Remembered {
        let ns = |until: &Duration| u64::try_from(until.saturating_sub(DAY).as_nanos()).unwrap_or(u64::MAX);
        Remembered { boot, ahead_ns: self.ahead, begun_ns: self.count_until.iter().map(ns).collect() }
    }

    /// Goes on from what an earlier agent of this node knew. After another boot nobody knows how
    /// much time has passed: the last epoch counts as if it began now.
    pub fn recall(&mut self, known: &Remembered, boot: &str, clocks: Clocks) {
        let begun = known.begun_ns.iter().copied().map(Duration::from_nanos);
        let last = begun.clone().max().unwrap_or_default();
        let is_same = known.boot == boot && !boot.is_empty() && last <= clocks.boot;
        if is_same {
            self.ahead = known.ahead_ns;
        }
        let now = if is_same { last } else { clocks.boot };
        let mut until: Vec<Duration> =
            begun.map(|at| now.saturating_add(DAY).saturating_sub(last.saturating_sub(at))).collect();
        until.sort_unstable();
        self.count_until = until.into();
    }

    /// Steps of the wall clock that ended no epoch, because too many had begun within a day.
    #[must_use]
    pub const fn steps_counted_only(&self) -> u64 {
        self.steps
    }
}

/// FNV-1a: the same on every node and in every version.
fn offset(node: &str) -> Duration {
    let hash = node
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    // FNV's low bits alone differ little between names that end alike.
    Duration::from_secs((hash ^ (hash >> 32)) % (MAX_OFFSET.as_secs() + 1))
}

fn day(at: Timestamp, offset: Duration) -> i64 {
    let day = i64::try_from(DAY.as_nanos()).unwrap_or(i64::MAX);
    at.before(offset).as_unix_ns().div_euclid(day)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDNIGHT: i64 = 1_700_006_400;

    /// The wall clock at this many seconds after a midnight, `ahead` of where it would be.
    fn clocks(seconds: i64, ahead: i64) -> Clocks {
        let boot = Duration::from_secs(u64::try_from(seconds + 200_000).unwrap());
        Clocks { wall: Timestamp::from_unix_seconds(MIDNIGHT + seconds + ahead), boot }
    }

    #[test]
    fn an_epoch_ends_with_the_first_sweep_after_midnight_and_the_node_s_own_offset() {
        assert_eq!(MIDNIGHT % 86_400, 0);
        let own = i64::try_from(offset("node-a").as_secs()).unwrap();
        assert!((0..=600).contains(&own));
        let mut calendar = Calendar::new("node-a", clocks(-40_000, 0).wall, clocks(-40_000, 0));
        for quiet in [-39_999, -1, 0, own - 1] {
            assert_eq!(calendar.due(clocks(quiet, 0)), None, "{quiet}");
        }
        assert_eq!(calendar.due(clocks(own, 0)), Some(End::Day));
        assert_eq!(calendar.due(clocks(own + 7, 0)), Some(End::Day), "until it did");
        calendar.turned(clocks(own + 7, 0));
        assert_eq!(calendar.due(clocks(own + 22, 0)), None);
        assert_eq!(calendar.due(clocks(own + 86_399, 0)), None);
        assert_eq!(calendar.due(clocks(own + 86_400, 0)), Some(End::Day));
    }

    #[test]
    fn nodes_do_not_all_end_their_epochs_at_once() {
        let offsets: std::collections::BTreeSet<_> = (0..200).map(|i| offset(&format!("node-{i}"))).collect();
        assert!(offsets.len() > 100, "{}", offsets.len());
        assert!(offsets.iter().all(|offset| *offset <= MAX_OFFSET));
    }

    #[test]
    fn an_epoch_of_yesterday_that_is_continued_ends_at_once() {
        let now = clocks(40_000, 0);
        let mut calendar = Calendar::new("node-a", clocks(-40_000, 0).wall, now);
        assert_eq!(calendar.due(now), Some(End::Day));
    }

    #[test]
    fn a_step_of_the_wall_clock_of_more_than_a_minute_ends_the_epoch_whatever_its_direction() {
        for (step, expected) in [(60, None), (-60, None), (61, Some(End::ClockStep)), (-61, Some(End::ClockStep))] {
            let mut calendar = Calendar::new("node-a", clocks(40_000, 0).wall, clocks(40_000, 0));
            assert_eq!(calendar.due(clocks(40_015, step)), expected, "{step}");
        }
        let mut calendar = Calendar::new("node-a", clocks(40_000, 0).wall, clocks(40_000, 0));
        assert_eq!(calendar.due(clocks(40_015, -300_000)), Some(End::ClockStep));
        calendar.turned(clocks(40_015, -300_000));
        assert_eq!(calendar.due(clocks(40_030, -300_000)), None, "it counts from there");
    }

    #[test]
    fn a_clock_that_jumps_for_ever_begins_48_epochs_a_day_and_then_steps_are_counted_only() {
        let mut calendar = Calendar::new("node-a", clocks(20_000, 0).wall, clocks(20_000, 0));
        let (mut begun, mut ahead) = (0, 0);
        for seconds in (20_000..60_000).step_by(15) {
            ahead = 1_000 - ahead;
            if calendar.due(clocks(seconds, ahead)).is_some() {
                calendar.turned(clocks(seconds, ahead));
                begun += 1;
            }
        }
        assert_eq!(begun, MAX_PER_DAY);
        assert!(calendar.steps_counted_only() > 1_000);
        let next_day = clocks(20_000 + 86_400 + 15, ahead);
        assert_eq!(calendar.due(next_day), Some(End::Day), "when the first are a day old there is room");
    }

    #[test]
    fn restarts_open_no_more_epochs_than_one_agent_does_nor_hide_a_step_of_the_clock() {
        let day = 86_400;
        for (is_rebooted, expected) in [(false, 2 * MAX_PER_DAY), (true, MAX_PER_DAY)] {
            let mut known = Remembered::default();
            let mut begun = Vec::new();
            for restart in 0..2_000i64 {
                // A step each time, while no agent runs.
                let (seconds, ahead) = (restart * 60 + 20_000, restart % 2 * 1_000);
                let mut now = clocks(seconds, ahead);
                let boot = if is_rebooted { restart } else { 0 };
                if is_rebooted {
                    now.boot = Duration::from_secs(30);
                }
                let mut calendar = Calendar::new("node-a", clocks(seconds, ahead).wall, now);
                calendar.recall(&known, &boot.to_string(), now);
                // After a boot the clocks say nothing of each other; it is set a little later.
                let later = Clocks {
                    wall: now.wall.after(Duration::from_secs(if is_rebooted { 500 } else { 1 })),
                    boot: now.boot + Duration::from_secs(1),
                };
                if calendar.due(later).is_some() {
                    calendar.turned(later);
                    begun.push(seconds);
                }
                known = calendar.remembered(boot.to_string());
            }
            let most = begun.iter().map(|at| begun.iter().filter(|b| (*at..at + day).contains(b)).count()).max();
            assert_eq!((most, begun.len()), (Some(MAX_PER_DAY), expected), "{is_rebooted}");
        }
    }
}
