//! The end of an epoch: asked for at a sweep, closed in the observer, and stored with the next
//! state.

use std::{sync::Arc, time::Duration};

use guardrail_graph::{
    Observer, Snapshot, Timestamp,
    epoch::{Calendar, Clocks, End, Remembered, file::key_of},
    observe::OpenFlow,
    snapshot::{Document, Revision},
};
use guardrail_kernel::{
    Checkpoint, Mark,
    clock::{self, clocks, now},
};

use super::Daemon;
use crate::{
    answer::Answer,
    state::{Ended, Epochs, Kept, remove},
};

/// Nothing is past its retention before both clocks have agreed for so long.
const CALM: Duration = Duration::from_secs(3_600);

/// See random(4).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The epochs of the state.
pub(super) struct Turning {
    epochs: Epochs,
    calendar: Calendar,
    /// Which boot of the machine this is.
    boot: String,
    /// An end was asked for.
    asked: Option<End>,
    /// It ended, and is in no file yet.
    ended: Option<Arc<Ended>>,
    /// It was over, by the clock, as the agent started: nobody saw that come.
    over_at_start: Option<End>,
    /// Since when the clocks agree, by boot time.
    calm_since: Duration,
}

impl Turning {
    /// The epochs that are stored, and one that began then. `known`: what an earlier agent knew.
    pub(super) fn new(
        epochs: Epochs,
        (node, begun): (&str, Timestamp),
        known: Option<&Remembered>,
        clocks: Clocks,
    ) -> Self {
        let boot = boot();
        let mut calendar = calendar((node, begun), known, &boot, clocks);
        let over_at_start = calendar.due(clocks);
        let calm_since = clocks.boot;
        Self { epochs, calendar, boot, asked: None, ended: None, over_at_start, calm_since }
    }

    /// Whether the epoch of a state is over, by the clock.
    pub(super) fn is_over(stored: &Snapshot, known: Option<&Remembered>, clocks: Clocks) -> bool {
        let begun = key_of(stored).and_then(|key| Some((key.start?, key.node)));
        begun.is_some_and(|(begun, node)| calendar((&node, begun), known, &boot(), clocks).due(clocks).is_some())
    }

    /// When epochs began, for the next agent.
    pub(super) fn calendar(&self) -> Remembered {
        self.calendar.remembered(self.boot.clone())
    }

    /// Ends the epoch of the state that the observer continues, if it is over: with what is stored,
    /// as nobody watched since. What the clock shows now may be wrong. `run`: of this agent.
    pub(super) fn end_stored(&mut self, stored: Snapshot, run: u32, observer: &mut Observer, clocks: Clocks) {
        let Some(end) = self.over_at_start else { return };
        let Some(source) = key_of(&stored).filter(|key| key.start == observer.epoch()) else { return };
        let mut document = stored;
        for known in &mut document.body.revisions {
            // An earlier run may have served more of it than is stored.
            known.revision = Revision { run, n: 1 };
        }
        let Some(ended) = Ended::of(Arc::new(Document::joined([document])), end) else { return };
        let begun = source.start.unwrap_or_default();
        tracing::info!(why = end.as_str(), %begun, "the epoch of the state ends, as of that state");
        observer.turn_back();
        self.ended = Some(Arc::new(ended));
        self.begins(clocks);
    }

    fn begins(&mut self, clocks: Clocks) {
        self.calendar.turned(clocks);
        self.over_at_start = None;
    }

    /// The epoch has ended, as was asked for.
    fn ends(&mut self, document: Arc<Document>, end: End, clocks: Clocks) {
        // The clock may have been set since.
        let has_stepped = self.calendar.has_stepped(clocks);
        let end = if has_stepped { End::ClockStep } else { end };
        self.ended = Ended::of(document, end).map(Arc::new);
        if end == End::ClockStep {
            self.calm_since = clocks.boot;
        }
        self.begins(clocks);
    }

    /// Takes out the epochs that are past their retention.
    fn expired(&mut self, retention: Duration, clocks: Clocks) -> Vec<Kept> {
        let is_calm = clocks.boot.saturating_sub(self.calm_since) >= CALM;
        if is_calm { self.epochs.expire(retention) } else { Vec::new() }
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

/// Which boot of the machine this is.
fn boot() -> String {
    std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

/// How far the wall clock was ahead of boot time, ns, if that was in this boot.
pub(super) fn ahead_in_this_boot(known: &Remembered) -> Option<i64> {
    (!known.boot.is_empty() && known.boot == boot()).then_some(known.ahead_ns)
}

/// That of a node whose epoch began then, with what an earlier agent knew.
fn calendar((node, begun): (&str, Timestamp), known: Option<&Remembered>, boot: &str, clocks: Clocks) -> Calendar {
    let mut calendar = Calendar::new(node, begun, clocks);
    if let Some(known) = known {
        calendar.recall(known, boot, clocks);
    }
    calendar
}

impl Daemon {
    /// Not before the lists are in, or given up: a closed epoch says for good how much was known.
    pub(super) fn end_epoch_if_due(&mut self) {
        if !self.readiness.borrow().inventory {
            return;
        }
        if let Some(end) = self.turning.as_mut().and_then(|turning| turning.due(clocks())) {
            tracing::info!(why = end.as_str(), "the epoch ends");
            self.kernel.turn();
        }
        if self.turning.as_ref().is_none_or(|turning| turning.asked.is_none()) {
            // No epoch ends with this step: there is no state, or one has ended just now, or too
            // many began within a day.
            let ended = now();
            if let Some(begins) = clock::jump() {
                self.observer.step(ended, begins);
            }
        }
    }

    /// What comes after this is of the next epoch.
    pub(super) fn turn(&mut self, open: &[OpenFlow], checkpoint: Option<(Box<Checkpoint>, Mark)>) {
        let Some(turning) = &mut self.turning else { return };
        let Some(end) = turning.asked.take() else { return };
        let ended = now();
        // Where the clock was set forward, the next epoch begins there.
        let begins = clock::jump().unwrap_or(ended);
        self.series.turn(self.observer.edge_counters(ended).edges);
        let document = Arc::new(self.observer.turn_over(open, ended, begins));
        turning.ends(document, end, clocks());
        self.write_state(checkpoint.map(|(checkpoint, mark)| (*checkpoint, mark)));
    }

    /// The state is written, with the epoch that had ended.
    pub(super) fn stored(&mut self, kept: Option<&Kept>) {
        let Some(turning) = &mut self.turning else { return };
        if let Some(kept) = kept {
            turning.epochs.add(kept.clone());
            turning.ended = None;
        }
        let old = turning.expired(self.config.retention, clocks());
        if !old.is_empty() {
            // A slow disk must not stop the observer.
            drop(tokio::task::spawn_blocking(move || remove(&old)));
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

    use guardrail_graph::ObserverConfig;

    use crate::state::{StateFile, Stored};

    const NODE: &str = "node-a";
    const HOUR: i64 = 3_600;
    const DAY: i64 = 24 * HOUR;
    const MONTH: Duration = Duration::from_secs(30 * 86_400);

    /// So long after a midnight.
    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(1_700_006_400 + seconds)
    }

    /// Both clocks of a machine that booted then, by its wall clock.
    fn at(wall: i64, booted: i64) -> Clocks {
        Clocks { wall: t(wall), boot: Duration::from_secs((wall - booted).unsigned_abs()) }
    }

    /// A state with an epoch of each of the last forty days, whose open one was last touched at
    /// noon of day 0.
    fn a_state() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for day in -40..0 {
            let config = ObserverConfig::new(NODE, format!("of-{day}"), t(day * DAY));
            let mut observer = Observer::new(ObserverConfig { run: 1, ..config });
            let document = Arc::new(observer.turn(&[], t((day + 1) * DAY)));
            Epochs::write(dir.path(), &Ended::of(document, End::Day).unwrap()).unwrap();
        }
        let config = ObserverConfig { run: 1, ..ObserverConfig::new(NODE, "open".to_owned(), t(HOUR)) };
        let mut state = StateFile::open(dir.path()).unwrap();
        state.begin(&mut Observer::new(config), None, None, t(DAY / 2)).run().unwrap();
        dir
    }

    /// Those after which agents ran for more than a month when day 0 has ended at noon.
    const PAST: usize = 10;

    /// An agent that starts on it without pins.
    fn started(dir: &tempfile::TempDir, clocks: Clocks) -> (Turning, Observer) {
        let (state, epochs) = (StateFile::open(dir.path()).unwrap(), Epochs::open(dir.path(), NODE));
        let stored = state.load(&epochs, clocks.wall).unwrap();
        let (before, known) = (stored.snapshot.clone().unwrap(), stored.calendar.clone());
        let config = ObserverConfig { run: 2, ..ObserverConfig::new(NODE, "new".to_owned(), clocks.wall) };
        let mut observer = state.restore(stored, config, false);
        let begun = observer.epoch().unwrap();
        let mut turning = Turning::new(epochs, (NODE, begun), known.as_ref(), clocks);
        turning.end_stored(before, 2, &mut observer, clocks);
        (turning, observer)
    }

    /// What ended is stored; then how many epochs are past their retention.
    fn expired(dir: &tempfile::TempDir, turning: &mut Turning, clocks: Clocks) -> usize {
        if let Some(ended) = turning.ended.take() {
            turning.epochs.add(Epochs::write(dir.path(), &ended).unwrap());
        }
        turning.expired(MONTH, clocks).len()
    }

    /// The epoch ends by itself, where its own clock was.
    fn ends(turning: &mut Turning, observer: &mut Observer, ended: Timestamp, clocks: Clocks) -> Option<End> {
        let end = turning.due(clocks)?;
        turning.asked = None;
        turning.ends(Arc::new(observer.turn_over(&[], ended, clocks.wall)), end, clocks);
        Some(turning.ended.as_ref().unwrap().header.end)
    }

    #[test]
    fn an_epoch_whose_day_was_over_as_the_agent_started_ends_where_the_disk_does() {
        let dir = a_state();
        let clocks = at(5 * DAY, 5 * DAY - 60);
        let (mut turning, mut observer) = started(&dir, clocks);
        let header = turning.ended.as_ref().unwrap().header.clone();
        assert_eq!((header.from, header.to, header.end), (t(HOUR), t(DAY / 2), End::Day));
        assert_eq!(header.revision, (2, 1), "over all that the earlier run may have served");
        assert_eq!(observer.epoch(), Some(t(5 * DAY)));
        let open = observer.document(t(5 * DAY + 60));
        assert_eq!((open.window().from, open.window().to), (Some(t(5 * DAY)), Some(t(5 * DAY + 60))));
        let next = at(5 * DAY + 2 * HOUR, 5 * DAY - 60);
        assert_eq!(expired(&dir, &mut turning, next), PAST);
        assert_eq!(turning.epochs.kept().len(), 31);
        // Killed before that was in its file, the next agent finds the same.
        let dir = a_state();
        drop(started(&dir, clocks));
        let (again, _) = started(&dir, clocks);
        assert_eq!(again.ended.unwrap().header.key, header.key);
        let Stored { snapshot, .. } =
            StateFile::open(dir.path()).unwrap().load(&Epochs::default(), clocks.wall).unwrap();
        assert_eq!(key_of(&snapshot.unwrap()), Some(header.key));
    }

    #[test]
    fn what_expires_is_as_old_as_agents_ran_since_however_wrong_the_clock_is_from_the_start() {
        // A year ahead, long before, and as it should be.
        for day in [400, -19_000, 1] {
            let dir = a_state();
            let (booted, begun) = (day * DAY + HOUR - 60, day * DAY + HOUR);
            let (mut turning, mut observer) = started(&dir, at(begun, booted));
            let mut old = Vec::new();
            for hour in 1..20 {
                let clocks = at(begun + hour * HOUR, booted);
                assert_eq!(ends(&mut turning, &mut observer, clocks.wall, clocks), None);
                old.push(expired(&dir, &mut turning, clocks));
            }
            assert_eq!((old[0], old.iter().sum::<usize>()), (PAST, PAST), "{day}");
            for later in 1..=31 {
                let clocks = at((day + later) * DAY + 700, booted);
                assert_eq!(ends(&mut turning, &mut observer, clocks.wall, clocks), Some(End::Day));
                old.push(expired(&dir, &mut turning, clocks));
            }
            assert!(old[19..].iter().all(|old| (1..=2).contains(old)), "{day}: a day each day: {old:?}");
            assert_eq!(turning.epochs.kept().len(), 31, "{day}: none of before");
        }
    }

    #[test]
    fn a_clock_that_was_ahead_over_a_midnight_takes_nothing_along() {
        let dir = a_state();
        let booted = DAY / 2 - 60;
        // Day 0 goes on after a restart.
        let (mut turning, mut observer) = started(&dir, at(DAY / 2 + 60, booted));
        assert!(turning.ended.is_none());
        // Set a year ahead, over a midnight, and back.
        let year = 365 * DAY;
        let ahead = |wall: i64| Clocks { wall: t(wall + year), ..at(wall, booted) };
        let noon = DAY / 2 + HOUR;
        assert_eq!(ends(&mut turning, &mut observer, t(noon), ahead(noon)), Some(End::ClockStep));
        assert_eq!(expired(&dir, &mut turning, ahead(noon)), 0, "the clocks do not agree");
        let midnight = ahead(DAY + 600);
        assert_eq!(ends(&mut turning, &mut observer, midnight.wall, midnight), Some(End::Day));
        assert_eq!(
            ends(&mut turning, &mut observer, midnight.wall, at(DAY + 700, booted)),
            None,
            "not before it is stored"
        );
        assert_eq!(expired(&dir, &mut turning, midnight), PAST, "agents ran for a day since noon");
        let back = at(DAY + 720, booted);
        assert_eq!(ends(&mut turning, &mut observer, ahead(DAY + 720).wall, back), Some(End::ClockStep));
        assert_eq!(expired(&dir, &mut turning, back), 0);
        assert_eq!(expired(&dir, &mut turning, at(DAY + 8 * HOUR, booted)), 0);
        assert_eq!(turning.epochs.kept().len(), 40 + 3 - PAST);
    }

    #[test]
    fn a_clock_that_is_set_while_an_epoch_ends_is_a_step() {
        let dir = a_state();
        let booted = DAY / 2 - 60;
        let (mut turning, mut observer) = started(&dir, at(DAY / 2 + 60, booted));
        assert_eq!(turning.due(at(DAY + 600, booted)), Some(End::Day));
        turning.asked = None;
        let set = Clocks { wall: t(400 * DAY), ..at(DAY + 601, booted) };
        turning.ends(Arc::new(observer.turn(&[], set.wall)), End::Day, set);
        assert_eq!(turning.ended.as_ref().unwrap().header.end, End::ClockStep);
        assert_eq!(expired(&dir, &mut turning, Clocks { wall: t(401 * DAY), ..at(DAY + 700, booted) }), 0);
    }

    #[test]
    fn agents_that_find_the_clock_set_at_each_restart_open_48_epochs_a_day_in_all() {
        let dir = a_state();
        for restart in 1..100 {
            let clocks = Clocks { wall: t(DAY / 2 + restart * 60 + restart % 2 * 1_000), ..at(restart * 60, 0) };
            let (mut turning, mut observer) = started(&dir, clocks);
            let mut state = StateFile::open(dir.path()).unwrap();
            state.remember(&turning.calendar());
            state.begin(&mut observer, None, turning.ended.take(), clocks.wall).run().unwrap();
        }
        let epochs = Epochs::open(dir.path(), NODE);
        assert_eq!(epochs.kept().iter().filter(|kept| kept.header.end == End::ClockStep).count(), 48);
    }

    #[test]
    fn a_step_that_ends_no_epoch_is_no_calm_either() {
        let mut turning = Turning::new(Epochs::default(), ("node-a", now()), None, clocks());
        let start = clocks();
        let (mut ahead, mut begun) = (0, 0);
        for second in (15..7_200).step_by(15) {
            ahead = 1_000 - ahead;
            let later = Duration::from_secs(second);
            let clocks =
                Clocks { wall: start.wall.after(later + Duration::from_secs(ahead)), boot: start.boot + later };
            if turning.due(clocks).is_some() {
                turning.asked = None;
                turning.begins(clocks);
                begun += 1;
            }
            assert!(begun < 48 || turning.calm_since + CALM > clocks.boot, "it has stepped all the time");
        }
        assert_eq!(begun, 48);
    }
}
