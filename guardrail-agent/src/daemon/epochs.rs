//! The end of an epoch: asked for at a sweep, closed in the observer, and stored with the next
//! state.

use std::{sync::Arc, time::Duration};

use guardrail_graph::{
    Timestamp,
    epoch::{Calendar, Clocks, End},
    observe::OpenFlow,
    snapshot::Document,
};
use guardrail_kernel::{
    Checkpoint, Mark,
    clock::{clocks, now},
};

use super::Daemon;
use crate::{
    answer::Answer,
    state::{Ended, Epochs, Kept, remove},
};

/// Nothing is past its retention before both clocks have agreed for so long.
const CALM: Duration = Duration::from_secs(3_600);

/// The epochs of the state.
pub(super) struct Turning {
    epochs: Epochs,
    calendar: Calendar,
    /// An end was asked for.
    asked: Option<End>,
    /// It ended, and is in no file yet.
    ended: Option<Arc<Ended>>,
    /// Since when the clocks agree, by boot time.
    calm_since: Duration,
}

impl Turning {
    /// The epochs that are stored, and one that began then.
    pub(super) fn new(epochs: Epochs, node: &str, begun: Timestamp) -> Self {
        let clocks = clocks();
        Self { epochs, calendar: Calendar::new(node, begun, clocks), asked: None, ended: None, calm_since: clocks.boot }
    }

    /// What ended and is in no file yet.
    pub(super) fn ended(&self) -> Option<Arc<Ended>> {
        self.ended.clone()
    }

    /// Epochs in files.
    pub(super) fn kept(&self) -> &[Kept] {
        self.epochs.kept()
    }

    /// Why the epoch ends now, if it does. Before one is in its file none ends.
    fn due(&mut self, clocks: Clocks) -> Option<End> {
        if self.asked.is_some() || self.ended.is_some() {
            return None;
        }
        let steps = self.calendar.steps_counted_only();
        self.asked = self.calendar.due(clocks);
        if self.calendar.steps_counted_only() != steps {
            self.calm_since = clocks.boot;
        }
        self.asked
    }
}

impl Daemon {
    /// Not before the lists are in, or given up: a closed epoch says for good how much was known.
    pub(super) fn end_epoch_if_due(&mut self) {
        if self.readiness.borrow().inventory
            && let Some(turning) = &mut self.turning
            && let Some(end) = turning.due(clocks())
        {
            tracing::info!(why = end.as_str(), "the epoch ends");
            self.kernel.turn();
        }
    }

    /// What comes after this is of the next epoch.
    pub(super) fn turn(&mut self, open: &[OpenFlow], checkpoint: Option<(Box<Checkpoint>, Mark)>) {
        let Some(turning) = &mut self.turning else { return };
        let Some(end) = turning.asked.take() else { return };
        let now = now();
        self.series.turn(self.observer.edge_counters(now).edges);
        let document = Arc::new(self.observer.turn(open, now));
        turning.ended = Ended::of(document, end).map(Arc::new);
        let clocks = clocks();
        turning.calendar.turned(clocks);
        if end == End::ClockStep {
            turning.calm_since = clocks.boot;
        }
        self.write_state(checkpoint.map(|(checkpoint, mark)| (*checkpoint, mark)));
    }

    /// The state is written, with the epoch that had ended.
    pub(super) fn stored(&mut self, kept: Option<&Kept>) {
        let Some(turning) = &mut self.turning else { return };
        if let Some(kept) = kept {
            turning.epochs.add(kept.clone());
            turning.ended = None;
        }
        if clocks().boot.saturating_sub(turning.calm_since) >= CALM {
            let old = turning.epochs.expire(self.config.retention, now());
            if !old.is_empty() {
                // A slow disk must not stop the observer.
                drop(tokio::task::spawn_blocking(move || remove(&old)));
            }
        }
    }

    /// What is asked of all epochs, given the document of the open one.
    pub(super) fn answering(&self) -> impl FnOnce(Arc<Document>) -> Answer + use<> {
        let (ended, kept) = self.turning.as_ref().map(|t| (t.ended(), t.kept().to_vec())).unwrap_or_default();
        move |open| Answer { open, ended, kept }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_ends_no_epoch_is_no_calm_either() {
        let mut turning = Turning::new(Epochs::default(), "node-a", now());
        let start = clocks();
        let (mut ahead, mut begun) = (0, 0);
        for second in (15..7_200).step_by(15) {
            ahead = 1_000 - ahead;
            let later = Duration::from_secs(second);
            let clocks =
                Clocks { wall: start.wall.after(later + Duration::from_secs(ahead)), boot: start.boot + later };
            if turning.due(clocks).is_some() {
                turning.asked = None;
                turning.calendar.turned(clocks);
                begun += 1;
            }
            assert!(begun < 48 || turning.calm_since + CALM > clocks.boot, "it has stepped all the time");
        }
        assert_eq!(begun, 48);
    }
}
