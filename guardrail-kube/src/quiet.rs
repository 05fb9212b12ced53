//! A limit on log lines about something that goes on.

use std::time::{Duration, Instant};

/// Shortest time between two lines.
const QUIET: Duration = Duration::from_secs(60);

/// Lets one line through a minute.
#[derive(Debug, Default)]
pub struct Quiet {
    last: Option<Instant>,
}

impl Quiet {
    /// Whether a line may be written at `now`; it counts as written.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.last.is_none_or(|last| now.saturating_duration_since(last) >= QUIET);
        if is_due {
            self.last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_and_the_first_at_once() {
        let (mut quiet, begin) = (Quiet::default(), Instant::now());
        let due = (0..180).filter(|s| quiet.is_due(begin + Duration::from_secs(*s)));
        assert_eq!(due.collect::<Vec<_>>(), [0, 60, 120]);
    }
}
