//! `--state-dir`: the observed graph over restarts.

mod epochs;
mod open;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use epochs::{Ended, Epochs, Kept, remove};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Snapshot, Timestamp,
    epoch::{
        Remembered,
        file::key_of,
        log::{Recorder, Recording, Write},
        state::{State, section},
    },
    observe::LossReason,
};
use guardrail_kernel::Checkpoint;
pub use open::Job;

use crate::files::{self, FileError};

/// With pins: how much of the kernel's counters is in the state, but for entries of FLOWS, and
/// those.
const CHECKPOINT: u8 = section::CALLER;
const FLOWS: u8 = section::CALLER + 1;
/// When epochs began.
const CALENDAR: u8 = section::CALLER + 2;
/// Files of a state before there were bases and logs.
const FORMER: [&str; 2] = ["state.json", "state.next.json"];
const FORMER_PROGRESS: &str = "state.progress-";

/// What an earlier agent stored.
#[derive(Debug, Default)]
pub struct Stored {
    /// Its graph.
    pub snapshot: Option<Snapshot>,
    /// With `--pin`, how much of the kernel's counters is in it.
    pub checkpoint: Option<Checkpoint>,
    /// When epochs began.
    pub calendar: Option<Remembered>,
    /// What else it knew.
    rest: Option<State>,
    /// Some of what was stored is no more.
    is_damaged: bool,
}

/// The state of one agent.
#[derive(Debug)]
pub struct StateFile {
    dir: PathBuf,
    recorder: Recorder,
    calendar: Vec<u8>,
    /// Of the base that this agent wrote.
    base: Option<u64>,
    /// Two agents that write one state would each undo what the other has seen.
    _lock: fs::File,
}

impl StateFile {
    /// The state kept in `dir`.
    ///
    /// # Errors
    /// If the directory cannot be written, or another agent uses it.
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        files::require_writable_dir(dir)?;
        let lock = files::lock_dir(dir)?;
        Ok(Self { dir: dir.to_owned(), recorder: Recorder::default(), calendar: Vec::new(), base: None, _lock: lock })
    }

    /// What is stored. A file that cannot be used is set aside, never overwritten: it may be
    /// somebody's only evidence.
    ///
    /// # Errors
    /// Whether it can be used is not known: this process has no descriptor or no memory left.
    pub fn load(&self, epochs: &Epochs, now: Timestamp) -> Result<Stored, FileError> {
        self.set_former_aside(now);
        let Some((number, stored)) = self.newest(open::BASE, now, |_| true)? else { return Ok(Stored::default()) };
        // Killed after the epoch of this state was closed, and before the next one's was in its
        // place.
        let Some(ended) = stored.snapshot.as_ref().and_then(key_of).filter(|key| epochs.has(key)) else {
            return Ok(stored);
        };
        let is_next = |next: &Snapshot| key_of(next).is_some_and(|key| key != ended);
        if let Some((_, next)) = self.newest(open::NEXT, now, is_next)? {
            return Ok(next);
        }
        self.set_aside(number, open::BASE, now, "its epoch is closed, and there is none of the next");
        Ok(Stored::default())
    }

    /// The newest that can be used and is meant.
    fn newest(
        &self,
        ending: &str,
        now: Timestamp,
        is_meant: impl Fn(&Snapshot) -> bool,
    ) -> Result<Option<(u64, Stored)>, FileError> {
        for (number, _) in open::found(&self.dir).into_iter().filter(|(_, found)| *found == ending) {
            let stored = open::read(&self.dir, number, ending, now)?.and_then(|found| {
                let cut = found.state.cut();
                let stored = stored(found).map_err(|why| format!("state-{number}.{ending}: {why}"))?;
                Ok((stored, cut))
            });
            match stored {
                Ok((stored, cut)) if stored.snapshot.as_ref().is_some_and(&is_meant) => {
                    match cut {
                        Some(cut) if !cut.is_torn => self.tell_damage(number, cut.at, now),
                        Some(_) => tracing::info!("what was being written when the agent ended is left out"),
                        None => {}
                    }
                    return Ok(Some((number, stored)));
                }
                Ok(_) => {}
                Err(why) => self.set_aside(number, ending, now, &why),
            }
        }
        Ok(None)
    }

    fn tell_damage(&self, number: u64, at: u64, now: Timestamp) {
        let log = format!("state-{number}.log");
        match open::copy_aside(&self.dir, number, now) {
            Ok(copy) => tracing::warn!(
                "{log} cannot be used from byte {at} on, what it says before is: a copy is kept as {}",
                copy.display()
            ),
            Err(error) => tracing::warn!(
                "{log} cannot be used from byte {at} on, what it says before is, and no copy can be kept: {error}"
            ),
        }
    }

    /// The observer that continues what is stored, or a new one. `is_seamless`: the hooks were
    /// attached all the time since.
    #[must_use]
    pub fn restore(&self, stored: Stored, config: ObserverConfig, is_seamless: bool) -> Observer {
        let Stored { snapshot: Some(snapshot), rest, is_damaged, .. } = stored else { return Observer::new(config) };
        let started = config.started;
        let restored = Observer::restore(config.clone(), &snapshot, is_seamless)
            .map_err(|why| why.to_string())
            .and_then(|mut observer| {
                let rest = rest.as_ref().map_or(Ok(()), |rest| observer.continue_with(rest));
                rest.map_err(|why| why.to_string()).map(|()| observer)
            });
        match restored {
            Ok(mut observer) => {
                if is_damaged && is_seamless {
                    // What the kernel no longer has was in what is no more.
                    let lost =
                        Observation::Lost { reason: LossReason::JournalFull, cgroup: None, count: 1, at: started };
                    observer.observe(lost, started);
                }
                tracing::info!(edges = observer.stats().edges, "continuing the graph of an earlier run");
                observer
            }
            Err(why) => {
                let files = open::found(&self.dir);
                for (number, ending) in files.into_iter().filter(|(_, ending)| *ending == open::BASE) {
                    self.set_aside(number, ending, started, &why);
                }
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
        let path = self.dir.join("state.run");
        let noted = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        // Somebody may have removed the one and not the other.
        let of_state = stored.snapshot.iter().flat_map(|snapshot| &snapshot.body.revisions).map(|r| r.revision.run);
        let of_epochs = epochs.kept().iter().map(|kept| kept.header.revision.0);
        let run = of_state.chain(of_epochs).chain(noted).max().unwrap_or(0).saturating_add(1);
        files::replace(&path, [format!("{run}\n")])?;
        Ok(run)
    }

    /// The state's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn set_aside(&self, number: u64, ending: &str, now: Timestamp, why: &str) {
        match open::set_aside(&self.dir, number, ending, now) {
            Ok(aside) => {
                tracing::warn!("state-{number}.{ending} is left out, and set aside as {}: {why}", aside.display());
            }
            Err(error) => {
                tracing::warn!("state-{number}.{ending} is left out, and cannot be set aside ({error}): {why}")
            }
        }
    }

    /// A state of the form before: it is a snapshot, which the command reads.
    fn set_former_aside(&self, now: Timestamp) {
        for name in FORMER {
            let (path, ms) = (self.dir.join(name), now.as_unix_ns() / 1_000_000);
            let aside = path.with_extension(format!("former-{ms}.json"));
            match fs::rename(&path, &aside) {
                Ok(()) => tracing::warn!(
                    "{name} is the state of an earlier guardrail: the graph begins anew, and that file is kept as {}, which `guardrail graph` shows",
                    aside.display()
                ),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!("{name} is the state of an earlier guardrail, and cannot be set aside: {error}")
                }
            }
        }
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(FORMER_PROGRESS) {
                // It says nothing without that state.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// What is written from now on says so of when epochs began.
    pub fn remember(&mut self, calendar: &Remembered) {
        self.calendar = serde_json::to_vec(calendar).unwrap_or_default();
    }

    /// What has to be written so that the disk has everything that is known now; with pins, how
    /// much of the kernel's counters that is. If an epoch `ended` before, its file, too. Before
    /// another begins, [`StateFile::done`] is told of this one.
    pub fn begin(
        &mut self,
        observer: &mut Observer,
        checkpoint: Option<&Checkpoint>,
        ended: Option<Arc<Ended>>,
        now: Timestamp,
    ) -> Job {
        let is_there = self.base.is_some_and(|base| open::is_there(&self.dir, base, self.recorder.lengths()));
        if ended.is_some() || !is_there {
            self.recorder.forget();
        }
        let write = observer.store(&mut self.recorder, now, |recording| {
            recording.put(CALENDAR, &[], &self.calendar);
            if let Some(checkpoint) = checkpoint {
                put_checkpoint(recording, checkpoint);
            }
        });
        let next = || open::found(&self.dir).first().map_or(0, |(number, _)| *number).max(self.base.unwrap_or(0)) + 1;
        let number = match (&write, self.base) {
            (Write::Base(_), _) | (_, None) => next(),
            (_, Some(base)) => base,
        };
        Job { dir: self.dir.clone(), number, write, at: now, ended }
    }

    /// That was done, or not.
    pub fn done(&mut self, number: Option<u64>) {
        if number.is_none() {
            self.recorder.forget();
        }
        self.base = number.or(self.base);
    }
}

fn put_checkpoint(recording: &mut Recording<'_>, checkpoint: &Checkpoint) {
    recording.put(CHECKPOINT, &[], &checkpoint.head());
    for (key, value) in checkpoint.entries() {
        recording.put(FLOWS, &key, &value);
    }
}

/// What a base and its log hold, or why it cannot be used.
fn stored(open::Found { state, until }: open::Found) -> Result<Stored, String> {
    let snapshot = state.facts(until).map_err(|why| why.to_string())?;
    let head = state.entries(CHECKPOINT).next().map(|(_, head)| head);
    let checkpoint = head.map(|head| Checkpoint::from_parts(head, state.entries(FLOWS))).transpose();
    let checkpoint = checkpoint.map_err(|why| format!("how much of the kernel's counters it holds: {why}"))?;
    let is_damaged = state.cut().is_some_and(|cut| !cut.is_torn);
    let calendar = state.entries(CALENDAR).next().and_then(|(_, calendar)| serde_json::from_slice(calendar).ok());
    Ok(Stored { snapshot: Some(snapshot), checkpoint, calendar, rest: Some(state), is_damaged })
}

#[cfg(test)]
pub(crate) mod tests;
