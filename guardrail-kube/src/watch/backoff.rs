//! Waits between attempts: they grow exponentially and have jitter, so that agents that failed
//! together do not retry together.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// A fraction in `0..1` that differs from call to call and from process to process. Not for
/// secrets.
fn fraction() -> f64 {
    // The system seeds `RandomState` once for each thread; each instance gets the next key.
    let random = RandomState::new().hash_one(0_u8);
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// `base` plus up to half of it.
pub(super) fn spread(base: Duration) -> Duration {
    base.mul_f64(1.0 + fraction() / 2.0)
}

/// Counts failures in a row.
#[derive(Debug)]
pub(super) struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: 0 }
    }

    /// The next wait: between half and all of `base · 2^failures`, at most `max`.
    pub(super) fn next(&mut self) -> Duration {
        let full = self.base.saturating_mul(1 << self.failures.min(16)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + fraction() / 2.0)
    }

    /// Something worked.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Waits before a new list, after the version of a watch was of no use.
#[derive(Debug)]
pub(super) struct Relists {
    /// No watch has gone on since the last list that was asked for at once.
    is_repeated: bool,
    backoff: Backoff,
}

impl Relists {
    pub(super) fn new(base: Duration, max: Duration) -> Self {
        Self { is_repeated: false, backoff: Backoff::new(base, max) }
    }

    /// The version is too old. The server works, so the list is asked for at once; but only once,
    /// as long as no watch goes on from it.
    pub(super) fn expired(&mut self) -> Duration {
        if std::mem::replace(&mut self.is_repeated, true) { self.next() } else { Duration::ZERO }
    }

    /// What the server sent made no sense.
    pub(super) fn next(&mut self) -> Duration {
        self.backoff.next()
    }

    /// A watch goes on.
    pub(super) fn reset(&mut self) {
        self.is_repeated = false;
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_version_costs_no_wait_and_one_after_another_costs_more_each_time() {
        let (base, max) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut relists = Relists::new(base, max);
        for _ in 0..2 {
            assert_eq!(relists.expired(), Duration::ZERO);
            for expected in [100, 200, 400, 800, 1000, 1000] {
                let wait = relists.expired().as_millis();
                assert!((expected / 2..=expected).contains(&wait), "{wait} ms, not {expected}");
            }
            relists.reset();
        }
        assert!(relists.next() >= base / 2, "what makes no sense always waits");
    }

    #[test]
    fn waits_grow_to_the_limit_and_start_again_after_a_success() {
        let (base, max) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(base, max);
        for expected in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.next().as_millis();
            assert!((expected / 2..=expected).contains(&wait), "{wait} ms, not {expected}");
        }
        for _ in 0..100 {
            assert!(backoff.next() <= max);
        }
        backoff.reset();
        assert!(backoff.next() <= base);
    }

    #[test]
    fn two_agents_do_not_wait_equally_long() {
        let waits: std::collections::BTreeSet<_> = (0..32).map(|_| spread(Duration::from_secs(60))).collect();
        assert!(waits.len() > 16, "{waits:?}");
        assert!(waits.iter().all(|w| (60..=90).contains(&w.as_secs())));
    }
}
