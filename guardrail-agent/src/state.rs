//! `--state-dir`: the observed graph over restarts.

mod epochs;
mod progress;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use epochs::{Ended, Epochs, Kept, remove};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Snapshot, Timestamp, epoch::file::key_of, snapshot::Document,
};
pub use progress::{Progress, Rest};

use crate::files::{self, FileError};

/// Pieces in which the state is written.
const PIECE_BYTES: usize = 256 << 10;

/// What an earlier agent stored.
#[derive(Debug, Default)]
pub struct Stored {
    /// Its graph.
    pub snapshot: Option<Snapshot>,
    /// With `--pin`, what belongs to that graph.
    pub progress: Option<Progress>,
}

/// The state file of one agent.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
    /// Two agents that write one state would each undo what the other has seen.
    _lock: Arc<fs::File>,
}

impl StateFile {
    /// The state kept in `dir`.
    ///
    /// # Errors
    /// If the directory cannot be written, or another agent uses it.
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        files::require_writable_dir(dir)?;
        Ok(Self { path: dir.join("state.json"), _lock: Arc::new(files::lock_dir(dir)?) })
    }

    /// What is stored. A file that cannot be used is set aside, never overwritten: it may be
    /// somebody's only evidence.
    ///
    /// # Errors
    /// Whether it can be used is not known: this process has no descriptor or no memory left.
    pub fn load(&self, epochs: &Epochs, now: Timestamp) -> Result<Stored, FileError> {
        let name = self.path.display().to_string();
        if files::is_stream(&self.path) {
            tracing::warn!("starting with an empty graph: {name} is no regular file, nothing can be read back from it");
            return Ok(Stored::default());
        }
        let snapshot = match read(&self.path)? {
            Ok(Some(snapshot)) => snapshot,
            Ok(None) => return Ok(Stored::default()),
            Err(why) => {
                self.set_aside(now, &why);
                return Ok(Stored::default());
            }
        };
        // Killed after the epoch of this state was closed, and before the next one's was in its
        // place.
        let snapshot = match key_of(&snapshot).filter(|key| epochs.has(key)) {
            None => snapshot,
            Some(ended) => match read(&self.next())? {
                Ok(Some(next)) if key_of(&next).is_some_and(|key| key != ended) => next,
                found => {
                    let why = found.err().unwrap_or_else(|| "there is none of the next".to_owned());
                    self.set_aside(now, &format!("its epoch is closed, and {why}"));
                    return Ok(Stored::default());
                }
            },
        };
        let progress = snapshot.body.window.to.map_or(Ok(None), |at| Progress::read(self.dir(), at));
        let progress = progress.unwrap_or_else(|why| {
            tracing::warn!("what was counted since the state was written may be counted twice: {why}");
            None
        });
        Ok(Stored { snapshot: Some(snapshot), progress })
    }

    /// The observer that continues what is stored, or a new one. `is_seamless`: the hooks were
    /// attached all the time since.
    #[must_use]
    pub fn restore(&self, stored: Stored, config: ObserverConfig, is_seamless: bool) -> Observer {
        let Stored { snapshot: Some(snapshot), progress } = stored else { return Observer::new(config) };
        let name = self.path.display().to_string();
        match Observer::restore(config.clone(), &snapshot, is_seamless) {
            Ok(mut observer) => {
                let Rest { waiting, pods } = progress.unwrap_or_default().rest;
                observer.know_pods(pods);
                for waiting in waiting {
                    observer.observe(Observation::Flow(waiting), config.started);
                }
                tracing::info!(file = name, edges = observer.stats().edges, "continuing the graph of an earlier run");
                observer
            }
            Err(why) => {
                self.set_aside(config.started, &format!("{name}: {why}"));
                Observer::new(config)
            }
        }
    }

    /// The number of this run of the agent on this state, higher than any before it, and on disk
    /// when this returns: what is served next replaces what an earlier run served of the same
    /// epoch.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn raise_run(&self, stored: &Stored, epochs: &Epochs) -> Result<u32, FileError> {
        let path = self.path.with_extension("run");
        let noted = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        // Somebody may have removed the one and not the other.
        let of_state = stored.snapshot.iter().flat_map(|snapshot| &snapshot.body.revisions).map(|r| r.revision.run);
        let of_epochs = epochs.kept().iter().map(|kept| kept.header.revision.0);
        let run = of_state.chain(of_epochs).chain(noted).max().unwrap_or(0).saturating_add(1);
        files::replace(&path, [format!("{run}\n")])?;
        Ok(run)
    }

    /// Where the next epoch's state waits until the file of the one that ended is written.
    fn next(&self) -> PathBuf {
        self.path.with_extension("next.json")
    }

    /// The state's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    fn set_aside(&self, now: Timestamp, why: &str) {
        if files::is_stream(&self.path) {
            return tracing::warn!("starting with an empty graph: {why}");
        }
        let aside = self.path.with_extension(format!("unusable-{}.json", now.as_unix_ns() / 1_000_000));
        match fs::rename(&self.path, &aside) {
            Ok(()) => {
                tracing::warn!("starting with an empty graph, the state was set aside as {}: {why}", aside.display())
            }
            Err(e) => tracing::warn!("starting with an empty graph, and cannot set the state aside ({e}): {why}"),
        }
    }

    /// Replaces the state with a document as of `at`; with pins also what belongs to it. If an
    /// epoch `ended` before, its file is written, too: the state is the next one's from then on,
    /// also if this ends anywhere in between.
    ///
    /// # Errors
    /// If it cannot be written; then the earlier one is whole.
    pub fn write(
        &self,
        document: Arc<Document>,
        at: Timestamp,
        progress: Option<&Progress>,
        ended: Option<&Ended>,
    ) -> Result<Option<Kept>, FileError> {
        if let Some(progress) = progress {
            progress.write(self.dir(), at)?;
        }
        let kept = match ended {
            None => None,
            Some(ended) => {
                files::replace(&self.next(), Arc::clone(&document).chunks(PIECE_BYTES))?;
                Some(Epochs::write(self.dir(), ended)?)
            }
        };
        files::replace(&self.path, document.chunks(PIECE_BYTES))?;
        if kept.is_some() {
            // One that stays is not read: the state is of another epoch by now.
            let _ = fs::remove_file(self.next());
        }
        Progress::remove_others(self.dir(), at);
        Ok(kept)
    }
}

/// A stored snapshot, or why there is none that can be used.
fn read(path: &Path) -> Result<Result<Option<Snapshot>, String>, FileError> {
    let name = path.display().to_string();
    match fs::read_to_string(path) {
        Ok(text) => Ok(Snapshot::from_json(&text, &name).map(Some).map_err(|error| error.to_string())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Ok(None)),
        Err(e) if files::is_shortage(&e) => Err(FileError::reading(path, e)),
        Err(e) => Ok(Err(format!("cannot read {name}: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use guardrail_graph::{
        epoch::End,
        inventory::{Change, read},
        observe::{CgroupId, FlowCounts, FlowDelta, OpenFlow, Remote, Role},
        peer::Protocol,
        snapshot::merge,
    };

    use super::*;

    const NODE: &str = "node-a";
    const WEB: &str = "kind: Pod\nmetadata: {name: web, namespace: shop, uid: web-00000000-0001, labels: {app: web}}\n\
        spec: {nodeName: node-a, containers: [{name: c}]}\nstatus: {phase: Running, podIP: 10.244.1.2}\n";

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(1_700_000_000 + seconds)
    }

    fn know(observer: &mut Observer, now: Timestamp) {
        let path = "/kubepods/burstable/podweb-00000000-0001/0123456789abcdef".to_owned();
        observer.observe(Observation::CgroupCreated { id: CgroupId(1), path, at: t(0) }, now);
        for object in read::objects(WEB, "test").unwrap().objects {
            observer.apply(Change::Apply(object), now);
        }
    }

    fn flow(port: u16, at: Timestamp) -> FlowDelta {
        FlowDelta {
            cgroup: CgroupId(1),
            netns: None,
            local: [10, 244, 1, 2].into(),
            remote: Remote::Addr([203, 0, 113, 9].into()),
            protocol: Protocol::Tcp,
            role: Role::Client,
            server_port: port,
            local_port: None,
            bind_seen: true,
            first_open: Some(at),
            last_open: Some(at),
            counts: FlowCounts { opened: 1, ..FlowCounts::default() },
        }
    }

    fn config(started: Timestamp) -> ObserverConfig {
        ObserverConfig::new(NODE, format!("instance-{}", started.as_unix_ns()), started)
    }

    /// An agent's first day, written in the evening; what it saw then; the end of the day.
    struct Day {
        observer: Observer,
        ended: Ended,
        now: Timestamp,
    }

    fn a_day(state: &StateFile) -> Day {
        let mut observer = Observer::new(config(t(0)));
        know(&mut observer, t(1));
        observer.observe(Observation::Flow(flow(443, t(100))), t(100));
        state.write(Arc::new(observer.document(t(1_000))), t(1_000), Some(&Progress::default()), None).unwrap();
        observer.observe(Observation::Flow(flow(80, t(1_001))), t(1_001));
        let now = t(2_000);
        let open = OpenFlow { flow: flow(443, t(100)), open: 1 };
        let document = Arc::new(observer.turn(&[open], now));
        Day { observer, ended: Ended::of(document, End::Day).unwrap(), now }
    }

    /// `port: opened open` of everything that the next agent finds, and what is stored of the
    /// kernel's counters.
    fn found(dir: &Path) -> (Vec<String>, usize, bool) {
        let state = StateFile::open(dir).unwrap();
        let epochs = Epochs::open(dir, NODE);
        let Stored { snapshot, progress } = state.load(&epochs, t(9_000)).unwrap();
        let all = epochs.kept().iter().map(|kept| kept.snapshot().unwrap()).chain(snapshot).collect();
        let edges = merge(all).body.edges;
        let text =
            |e: &guardrail_graph::snapshot::EdgeRecord| format!("{}: {} {}", e.port, e.counts.opened, e.counts.open);
        (edges.iter().map(text).collect(), epochs.kept().len(), progress.is_some())
    }

    fn write(state: &StateFile, day: &mut Day) -> Result<Option<Kept>, FileError> {
        let document = Arc::new(day.observer.document(day.now));
        state.write(document, day.now, Some(&Progress::default()), Some(&day.ended))
    }

    #[test]
    fn an_epoch_s_end_leaves_its_file_and_the_next_one_s_state() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::open(dir.path()).unwrap();
        let mut day = a_day(&state);
        let kept = write(&state, &mut day).unwrap().unwrap();
        let bytes = kept.read().unwrap();
        drop(state);
        assert_eq!(found(dir.path()), (vec!["80: 1 0".to_owned(), "443: 1 1".to_owned()], 1, true));
        let state = StateFile::open(dir.path()).unwrap();
        day.observer.observe(Observation::Flow(flow(80, t(2_500))), t(2_500));
        day.now = t(3_000);
        write(&state, &mut day).unwrap();
        drop(state);
        assert_eq!(found(dir.path()).0, ["80: 2 0", "443: 1 1"]);
        assert_eq!(kept.read().unwrap(), bytes, "a closed epoch's file never changes");
    }

    /// Where writing ends in the middle, what is found is the state before or the one after, each
    /// with its checkpoint: never both, never less.
    #[test]
    fn an_agent_that_dies_around_an_epoch_s_end_loses_nothing_and_counts_nothing_twice() {
        let before = (vec!["443: 1 0".to_owned()], 0, true);
        let after = (vec!["80: 1 0".to_owned(), "443: 1 1".to_owned()], 1, true);
        // Each step fails in turn: the state of the next epoch, the file of the closed one, the
        // state itself.
        for (blocked, expected) in [("state.next.json", &before), ("epochs", &before), ("state.json", &after)] {
            let dir = tempfile::tempdir().unwrap();
            let state = StateFile::open(dir.path()).unwrap();
            let mut day = a_day(&state);
            let blocked = dir.path().join(blocked);
            let aside = dir.path().join("aside");
            let stood = fs::rename(&blocked, &aside).is_ok();
            if blocked.ends_with("epochs") {
                fs::write(&blocked, "no directory").unwrap();
            } else {
                fs::create_dir(&blocked).unwrap();
                fs::write(blocked.join("x"), "").unwrap();
            }
            write(&state, &mut day).unwrap_err();
            drop(state);
            if blocked.is_dir() { fs::remove_dir_all(&blocked) } else { fs::remove_file(&blocked) }.unwrap();
            if stood {
                fs::rename(&aside, &blocked).unwrap();
            }
            assert_eq!(found(dir.path()), *expected, "{}", blocked.display());
            // The agent that goes on after a disk that was full for a while.
            let state = StateFile::open(dir.path()).unwrap();
            day.now = t(2_600);
            write(&state, &mut day).unwrap();
            drop(state);
            assert_eq!(found(dir.path()), after, "{}", blocked.display());
        }
    }

    #[test]
    fn without_the_state_of_the_next_epoch_the_closed_one_is_not_counted_on() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::open(dir.path()).unwrap();
        let day = a_day(&state);
        Epochs::write(dir.path(), &day.ended).unwrap();
        drop(state);
        assert_eq!(found(dir.path()), (vec!["80: 1 0".to_owned(), "443: 1 0".to_owned()], 1, false));
        assert!(!dir.path().join("state.json").exists(), "set aside");
    }

    #[test]
    fn epochs_past_their_retention_go_by_the_newest_that_was_reached_whatever_a_clock_said() {
        let dir = tempfile::tempdir().unwrap();
        let day = 86_400;
        for (from, to) in [(0, 1), (1, 2), (20, 21), (31, 32), (20_000, 20_001)] {
            let mut observer = Observer::new(config(t(from * day)));
            let document = Arc::new(observer.turn(&[], t(to * day)));
            Epochs::write(dir.path(), &Ended::of(document, End::Day).unwrap()).unwrap();
        }
        let mut epochs = Epochs::open(dir.path(), NODE);
        assert_eq!(epochs.kept().len(), 5);
        let month = Duration::from_secs(30 * 86_400);
        let old = epochs.expire(month, t(33 * day));
        assert_eq!(old.iter().map(|kept| kept.header.to).collect::<Vec<_>>(), [t(day)], "32 days less 30 is the 2nd");
        remove(&old);
        assert_eq!(Epochs::open(dir.path(), NODE).kept().len(), 4);
    }

    #[test]
    fn a_broken_epoch_is_set_aside_and_another_node_s_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::open(dir.path()).unwrap();
        let day = a_day(&state);
        let kept = Epochs::write(dir.path(), &day.ended).unwrap();
        assert!(Epochs::open(dir.path(), "node-b").kept().is_empty());
        let mut bytes = kept.read().unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let file = dir.path().join("epochs").join(format!("{}.epoch", kept.id));
        fs::write(&file, bytes).unwrap();
        assert!(Epochs::open(dir.path(), NODE).kept().is_empty());
        assert!(file.with_extension("unusable").exists() && !file.exists());
    }
}
