//! The agent's one clock: wall time that never runs backwards.
//!
//! Kernel events carry boot time, words of the API server the time at which they came, and identity
//! compares the two. So both are read off one line: boot time, which nobody can set, plus an
//! offset. When the wall clock is set forward by more than a minute, the line goes on as before
//! until the epoch has ended ([`jump`]), and then is where the wall clock is: the time in between
//! never was, and belongs to no epoch. When it is set back, the line goes on at half speed until
//! the wall clock has caught up: who had an address when stays in order, and every wait ends.
//! A boot time before the last step has the time that it had then.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use guardrail_graph::{Timestamp, epoch::Clocks};

/// Two readings of unchanged clocks differ by the time between them; what differs more than this
/// was set.
const STEP_NS: i64 = 20_000_000;
/// A step forward of more than this ends the epoch; the line waits for that.
const LEAP_NS: i64 = 60_000_000_000;

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
    /// The line minus boot time just before `from`, ns.
    before: i64,
}

impl Line {
    /// The time at which the boot clock showed `boot_ns`.
    #[must_use]
    pub fn at(&self, boot_ns: u64) -> Timestamp {
        self.wall(boot_ns.cast_signed())
    }

    /// One that begins now.
    const fn begin(boot: i64, offset: i64) -> Self {
        Self { from: boot, offset, ahead: 0, before: offset }
    }

    fn wall(&self, boot: i64) -> Timestamp {
        let plus = if boot < self.from { self.before } else { self.offset.saturating_add(self.ahead_at(boot)) };
        Timestamp::from_unix_ns(boot.saturating_add(plus))
    }

    fn ahead_at(&self, boot: i64) -> i64 {
        let passed = boot.saturating_sub(self.from).max(0);
        self.ahead.saturating_sub(passed / 2).max(0)
    }

    /// Whether the wall clock is so far before it that it may not follow yet.
    fn is_held(&self, boot: i64, wall: i64) -> bool {
        wall.saturating_sub(self.wall(boot).as_unix_ns()) > LEAP_NS
    }

    /// This line, going on from `boot` now that the wall clock is there.
    fn follow(self, boot: i64, wall: i64) -> Self {
        if self.is_held(boot, wall) { self } else { self.leap(boot, wall) }
    }

    /// The same, however far that is.
    fn leap(self, boot: i64, wall: i64) -> Self {
        let offset = wall.saturating_sub(boot);
        if offset.abs_diff(self.offset) < STEP_NS.unsigned_abs() {
            return self;
        }
        let here = self.wall(boot).as_unix_ns();
        Self { from: boot, offset, ahead: here.saturating_sub(wall).max(0), before: here.saturating_sub(boot) }
    }
}

/// The line as of now. Follows the wall clock, and says so when that was set.
#[must_use]
pub fn line() -> Line {
    change(Line::follow)
}

/// An epoch has ended, or goes on over the step: where the wall clock was set forward, the line is
/// there from now on. Gives the time, if it was not there yet.
pub fn jump() -> Option<Timestamp> {
    is_held().then(|| change(Line::leap).wall(read(libc::CLOCK_BOOTTIME)))
}

/// Whether the wall clock was set forward, and the line waits for [`jump`].
#[must_use]
pub fn is_held() -> bool {
    let line = line();
    line.is_held(read(libc::CLOCK_BOOTTIME), read(libc::CLOCK_REALTIME))
}

/// Goes on with the line of an earlier agent of this boot, for which the wall clock was so far
/// ahead of boot time, if it was set forward since. Call it before anything is observed.
pub fn resume(ahead_ns: i64) {
    let before = Line::begin(read(libc::CLOCK_BOOTTIME), ahead_ns);
    if before.is_held(read(libc::CLOCK_BOOTTIME), read(libc::CLOCK_REALTIME)) {
        *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
    }
}

fn change(follow: impl FnOnce(Line, i64, i64) -> Line) -> Line {
    let (boot, wall) = (read(libc::CLOCK_BOOTTIME), read(libc::CLOCK_REALTIME));
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let before = current.unwrap_or(Line::begin(boot, wall.saturating_sub(boot)));
    let line = follow(before, boot, wall);
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
        let mut line = Line::begin(0, wall(0));
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
    fn a_step_forward_of_a_minute_is_followed_at_once() {
        let times = times(20, |boot| boot + if boot < 10 * SECOND { 0 } else { 60 * SECOND });
        assert_eq!((times[9], times[10]), (9 * SECOND, 70 * SECOND));
    }

    #[test]
    fn a_step_forward_of_more_than_a_minute_is_followed_when_the_epoch_has_ended() {
        let set = |boot: i64| boot + if boot < 10 * SECOND { 0 } else { 3600 * SECOND };
        let held = times(20, set);
        assert_eq!((held[9], held[10], held[19]), (9 * SECOND, 10 * SECOND, 19 * SECOND), "it goes on as before");
        let line = Line::begin(0, 0).follow(15 * SECOND, set(15 * SECOND));
        let after = line.leap(20 * SECOND, set(20 * SECOND));
        let seconds = |boot: i64| after.wall(boot * SECOND).as_unix_ns() / SECOND;
        assert_eq!((seconds(20), seconds(21)), (3620, 3621));
        assert_eq!((seconds(5), seconds(19)), (5, 19), "what was before has the time that it had");
        assert!(line.is_held(20 * SECOND, set(20 * SECOND)) && !after.is_held(20 * SECOND, set(20 * SECOND)));
    }

    #[test]
    fn a_step_forward_that_is_taken_back_before_the_epoch_has_ended_never_was() {
        let times = times(30, |boot| boot + if (10..20).contains(&(boot / SECOND)) { 3600 * SECOND } else { 0 });
        assert_eq!(times, (0..30).map(|s| s * SECOND).collect::<Vec<_>>());
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
        let before = Line::begin(0, 1000 * SECOND);
        let after = before.follow(10 * SECOND, 910 * SECOND);
        for seconds in [0, 5, 10] {
            assert_eq!(before.at(seconds * 1_000_000_000), after.at(seconds * 1_000_000_000));
        }
    }
}
