//! `--inventory FILE`: reads the cluster's objects from a file, and again when the file changes.
//!
//! The live API server will sit behind the same interface: a channel of [`Change`]s.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use guardrail_graph::inventory::{Change, InventoryError, Kind, Object, read};
use guardrail_kube::watch::Report;
use tokio::sync::mpsc;

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(500);

/// Why the file gave no inventory.
#[derive(Debug, thiserror::Error)]
pub enum FileInventoryError {
    /// It cannot be read.
    #[error("cannot read the inventory {}: {source}; give the file that `kubectl get … -A -o yaml` wrote", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its content is not an inventory.
    #[error(transparent)]
    Malformed(#[from] InventoryError),
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint(u64, u64, i64, i64);

impl Fingerprint {
    fn of(path: &Path) -> io::Result<Self> {
        let m = fs::metadata(path)?;
        Ok(Self(m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
    }
}

/// How often the file could not be taken.
#[derive(Debug, Default)]
pub struct Failures {
    unreadable: AtomicU64,
    malformed: AtomicU64,
}

impl Failures {
    fn count(&self, error: &FileInventoryError) {
        let counter = match error {
            FileInventoryError::Unreadable { .. } => &self.unreadable,
            FileInventoryError::Malformed(_) => &self.malformed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// For `/metrics`, beside those of the API server.
    #[must_use]
    pub fn report(&self) -> Report {
        let failures = [("unreadable", &self.unreadable), ("malformed", &self.malformed)];
        Report {
            failures: failures.into_iter().map(|(why, n)| ("file", why, n.load(Ordering::Relaxed))).collect(),
            ..Report::default()
        }
    }
}

/// The file with the state in which it was last read.
#[derive(Debug)]
pub struct InventoryFile {
    path: PathBuf,
    read: Option<Fingerprint>,
    failures: Arc<Failures>,
}

impl InventoryFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// If it cannot be read or is not an inventory.
    pub fn open(path: PathBuf) -> Result<(Self, Vec<Change>), FileInventoryError> {
        // Before reading: a change during the read is then seen by the next look.
        let read = Fingerprint::of(&path).ok();
        let file = Self { path, read, failures: Arc::default() };
        let changes = file.load()?;
        Ok((file, changes))
    }

    /// How often it could not be taken since.
    #[must_use]
    pub fn failures(&self) -> Arc<Failures> {
        Arc::clone(&self.failures)
    }

    fn load(&self) -> Result<Vec<Change>, FileInventoryError> {
        let unreadable = |source| FileInventoryError::Unreadable { path: self.path.clone(), source };
        let text = fs::read_to_string(&self.path).map_err(unreadable)?;
        let objects = read::objects(&text, &self.path.display().to_string())?;
        for warning in &objects.warnings {
            tracing::warn!("{warning}");
        }
        Ok(replace_everything(objects.objects))
    }

    /// Sends the whole inventory each time the file changed. What was known before stays while the
    /// file is no inventory, or cannot be read; the first is said once and waits for another
    /// content, the second is tried again.
    pub async fn follow(mut self, changes: mpsc::Sender<Vec<Change>>) {
        let mut said = None;
        loop {
            tokio::time::sleep(POLL).await;
            let path = self.path.clone();
            let now = tokio::task::spawn_blocking(move || Fingerprint::of(&path).ok()).await.ok().flatten();
            if now == self.read {
                continue;
            }
            let Ok((file, loaded)) = tokio::task::spawn_blocking(move || {
                let loaded = self.load();
                (self, loaded)
            })
            .await
            else {
                return;
            };
            self = file;
            if let Err(e) = &loaded {
                self.failures.count(e);
                let why = e.to_string();
                if said.as_ref() != Some(&why) {
                    tracing::warn!("keeping the inventory known before: {why}");
                    said = Some(why);
                }
                if matches!(e, FileInventoryError::Malformed(_)) {
                    self.read = now;
                }
                continue;
            }
            (self.read, said) = (now, None);
            tracing::info!(file = %self.path.display(), "inventory changed");
            if changes.send(loaded.unwrap_or_default()).await.is_err() {
                return;
            }
        }
    }
}

/// A file is the complete list of every kind: what is not in it is gone. Pods come last, when what
/// names them is known.
fn replace_everything(objects: Vec<Object>) -> Vec<Change> {
    let controllers = Kind::CONTROLLERS.iter().map(|kind| Kind::Controller((*kind).to_owned()));
    let mut kinds: Vec<(Kind, Vec<Object>)> = [Kind::Namespace, Kind::Node]
        .into_iter()
        .chain(controllers)
        .chain([Kind::Service, Kind::EndpointSlice, Kind::Pod])
        .map(|kind| (kind, Vec::new()))
        .collect();
    for object in objects {
        let kind = object.key().kind;
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, list)) => list.push(object),
            None => kinds.push((kind, vec![object])),
        }
    }
    kinds.into_iter().map(|(kind, objects)| Change::Replace { kind, objects }).collect()
}
