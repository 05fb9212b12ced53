//! `--state-dir`: the observed graph over restarts.

use std::{fs, io, path::PathBuf};

use guardrail_graph::{Observer, ObserverConfig, Snapshot, Timestamp};

use crate::files::{self, FileError};

/// The state file of one agent.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The state kept in `dir`.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn open(dir: &std::path::Path) -> Result<Self, FileError> {
        files::require_writable_dir(dir)?;
        Ok(Self { path: dir.join("state.json") })
    }

    /// The observer that continues what the file holds, or a new one. A file that cannot be used is set aside, never overwritten: it may be somebody's
    /// only evidence.
    #[must_use]
    pub fn restore(&self, config: ObserverConfig) -> Observer {
        let name = self.path.display().to_string();
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Observer::new(config),
            Err(e) => {
                self.set_aside(config.started, &format!("cannot read {name}: {e}"));
                return Observer::new(config);
            }
        };
        let restored = Snapshot::from_json(&text, &name)
            .map_err(|e| e.to_string())
            .and_then(|state| Observer::restore(config.clone(), &state).map_err(|e| format!("{name}: {e}")));
        match restored {
            Ok(observer) => {
                tracing::info!(file = name, edges = observer.stats().edges, "continuing the graph of an earlier run");
                observer
            }
            Err(why) => {
                self.set_aside(config.started, &why);
                Observer::new(config)
            }
        }
    }

    fn set_aside(&self, now: Timestamp, why: &str) {
        let aside = self.path.with_extension(format!("unusable-{}.json", now.as_unix_ns() / 1_000_000));
        match fs::rename(&self.path, &aside) {
            Ok(()) => {
                tracing::warn!("starting with an empty graph, the state was set aside as {}: {why}", aside.display())
            }
            Err(e) => tracing::warn!("starting with an empty graph, and cannot set the state aside ({e}): {why}"),
        }
    }

    /// Replaces the state.
    ///
    /// # Errors
    /// If it cannot be written; then the earlier one is whole.
    pub fn write(&self, snapshot: &[u8]) -> Result<(), FileError> {
        files::replace(&self.path, snapshot)
    }
}
