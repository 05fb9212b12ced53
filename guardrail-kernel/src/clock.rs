//! The agent's one clock: wall time that never runs backwards.
//!
//! Kernel events carry boot time, words of the API server the time at which they came, and identity
//! compares the two. So both are read off one line: boot time, which nobody can set, plus an
//! offset. When the wall clock is set forward, the line jumps with it. When it is set back, the
//! line goes on at half speed until the wall clock has caught up: who had an address when stays in
//! order, and every wait ends.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use guardrail_graph::{Timestamp, epoch::Clocks};

/// Two readings of unchanged clocks differ by the time between them; what differs more than this
/// was set.
const STEP_NS: i64 = 20_000_000;

static CURRENT: Mutex<Option<Line>> = Mutex::new(None);

/// Which wall time belongs to which boot time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Boot time, ns, from which this holds.
    from: i64,
    /// The wall clock minus boot time, ns.
    offset: i64,
    /// How far the line is ahead of the wall clock at `from`, ns; not negative.
    ahead: i64,
}

impl Line {
    /// The time at which the boot clock showed `boot_ns`.
    #[must_use]
    pub fn at(&self, boot_ns: u64) -> Timestamp {
        self.wall(boot_ns.cast_signed())
    }

    fn wall(&self, boot: i64) -> Timestamp {
        Timestamp::from_unix_ns(boot.saturating_add(self.offset).saturating_add(self.ahead_at(boot)))
    }

    fn ahead_at(&self, boot: i64) -> i64 {
        let passed = boot.saturating_sub(self.from).max(0);
        self.ahead.saturating_sub(passed / 2).max(0)
    }

    /// This line, going on from `boot` now that the wall clock is there.
    fn follow(self, boot: i64, wall: i64) -> Self {
        let offset = wall.saturating_sub(boot);
        if offset.abs_diff(self.offset) < STEP_NS.unsigned_abs() {
            return self;
        }
        let here = self.wall(boot).as_unix_ns();
        Self { from: boot, offset, ahead: here.saturating_sub(wall).max(0) }
    }
}

/// The line as of now. Follows the wall clock, and says so when that was set.
#[must_use]
pub fn line() -> Line {
    let (boot, wall) = (read(libc::CLOCK_BOOTTIME), read(libc::CLOCK_REALTIME));
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let before = current.unwrap_or(Line { from: boot, offset: wall.saturating_sub(boot), ahead: 0 });
    let line = before.follow(boot, wall);
    *current = Some(line);
    drop(current);
    if line != before {
        let seconds = line.offset.saturating_sub(before.offset) as f64 / 1e9;
        if line.ahead > 0 {
            tracing::warn!(
                "the wall clock was set by {seconds:+.3} s: times in the graph run at half speed until it has caught up"
            );
        } else {
            tracing::warn!("the wall clock was set by {seconds:+.3} s");
        }
    }
    line
}

/// The time.
#[must_use]
pub fn now() -> Timestamp {
    line().wall(read(libc::CLOCK_BOOTTIME))
}

/// How far the line is ahead of the wall clock, because that was set back.
#[must_use]
pub fn ahead() -> Duration {
    Duration::from_nanos(line().ahead_at(read(libc::CLOCK_BOOTTIME)).unsigned_abs())
}

/// What the wall clock shows, seconds since the epoch: for figures that are held against another
/// wall clock.
#[must_use]
pub fn wall_seconds() -> f64 {
    read(libc::CLOCK_REALTIME) as f64 / 1e9
}

/// Wall clock and boot time, read together.
#[must_use]
pub fn clocks() -> Clocks {
    Clocks { wall: Timestamp::from_unix_ns(read(libc::CLOCK_REALTIME)), boot: Duration::from_nanos(boot_ns()) }
}

/// Boot time, ns.
#[must_use]
pub fn boot_ns() -> u64 {
    read(libc::CLOCK_BOOTTIME).unsigned_abs()
}

fn read(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is written by the kernel.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    /// Reads the line every second while the wall clock is what `wall` says, and gives the times.
    fn times(seconds: i64, wall: impl Fn(i64) -> i64) -> Vec<i64> {
        let mut line = Line { from: 0, offset: wall(0), ahead: 0 };
        let mut times = Vec::new();
        for boot in (0..seconds).map(|s| s * SECOND) {
            line = line.follow(boot, wall(boot));
            times.push(line.wall(boot).as_unix_ns());
        }
        times
    }

    #[test]
    fn a_clock_that_is_not_set_is_followed_exactly_whatever_the_jitter_of_its_reading() {
        let times = times(100, |boot| boot + 1000 * SECOND + boot % 7_000_000);
        let expected: Vec<_> = (0..100).map(|s| (1000 + s) * SECOND).collect();
        assert_eq!(times, expected);
    }

    #[test]
    fn a_step_forward_is_followed_at_once() {
        let times = times(20, |boot| boot + if boot < 10 * SECOND { 0 } else { 3600 * SECOND });
        assert_eq!((times[9], times[10]), (9 * SECOND, 3610 * SECOND));
    }

    #[test]
    fn a_step_back_never_turns_time_and_is_caught_up_at_half_speed() {
        let times = times(400, |boot| boot + if boot < 10 * SECOND { 1000 * SECOND } else { 900 * SECOND });
        assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
        assert_eq!(times[11] - times[10], SECOND / 2);
        assert_eq!(times[10], 1010 * SECOND, "it goes on from where it was");
        assert_eq!(times[209], (900 + 209) * SECOND + SECOND / 2);
        assert_eq!(times[399], (900 + 399) * SECOND);
    }

    #[test]
    fn one_boot_time_is_one_time_before_and_after_a_step_back() {
        let before = Line { from: 0, offset: 1000 * SECOND, ahead: 0 };
        let after = before.follow(10 * SECOND, 910 * SECOND);
        for seconds in [0, 5, 10] {
            assert_eq!(before.at(seconds * 1_000_000_000), after.at(seconds * 1_000_000_000));
        }
    }
}
