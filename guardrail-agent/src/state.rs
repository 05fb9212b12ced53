//! `--state-dir`: the observed graph over restarts.

mod progress;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use guardrail_graph::{Observation, Observer, ObserverConfig, Snapshot, Timestamp, snapshot::Document};
pub use progress::Progress;

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
    pub fn load(&self, now: Timestamp) -> Result<Stored, FileError> {
        let name = self.path.display().to_string();
        if files::is_stream(&self.path) {
            tracing::warn!("starting with an empty graph: {name} is no regular file, nothing can be read back from it");
            return Ok(Stored::default());
        }
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Stored::default()),
            Err(e) if files::is_shortage(&e) => return Err(FileError::reading(&self.path, e)),
            Err(e) => {
                self.set_aside(now, &format!("cannot read {name}: {e}"));
                return Ok(Stored::default());
            }
        };
        let snapshot = match Snapshot::from_json(&text, &name) {
            Ok(snapshot) => snapshot,
            Err(e) => {
                self.set_aside(now, &e.to_string());
                return Ok(Stored::default());
            }
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
                for waiting in progress.into_iter().flat_map(|progress| progress.waiting) {
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

    /// Replaces the state with a document as of `at`; with pins also what belongs to it.
    ///
    /// # Errors
    /// If it cannot be written; then the earlier one is whole.
    pub fn write(&self, document: Arc<Document>, at: Timestamp, progress: Option<&Progress>) -> Result<(), FileError> {
        if let Some(progress) = progress {
            progress.write(self.dir(), at)?;
        }
        files::replace(&self.path, document.chunks(PIECE_BYTES))?;
        Progress::remove_others(self.dir(), at);
        Ok(())
    }
}
