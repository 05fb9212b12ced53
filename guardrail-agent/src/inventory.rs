//! `--inventory FILE`: reads the cluster's objects from a file, and again when the file changes.
//!
//! The live API server will sit behind the same interface: a channel of [`Change`]s.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use guardrail_graph::inventory::{Change, InventoryError, Kind, Object, read};
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

/// The file with the state in which it was last read.
#[derive(Debug)]
pub struct InventoryFile {
    path: PathBuf,
    read: Option<Fingerprint>,
}

impl InventoryFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// If it cannot be read or is not an inventory.
    pub fn open(path: PathBuf) -> Result<(Self, Vec<Change>), FileInventoryError> {
        let mut file = Self { path, read: None };
        let changes = file.load()?;
        Ok((file, changes))
    }

    fn load(&mut self) -> Result<Vec<Change>, FileInventoryError> {
        let unreadable = |source| FileInventoryError::Unreadable { path: self.path.clone(), source };
        // Before reading: a change during the read is then seen by the next look.
        self.read = Some(Fingerprint::of(&self.path).map_err(unreadable)?);
        let text = fs::read_to_string(&self.path).map_err(unreadable)?;
        let objects = read::objects(&text, &self.path.display().to_string())?;
        for warning in &objects.warnings {
            tracing::warn!("{warning}");
        }
        Ok(replace_everything(objects.objects))
    }

    /// Sends the whole inventory each time the file changed. A state that cannot be read is said once, and what was known before stays.
    pub async fn follow(mut self, changes: mpsc::Sender<Vec<Change>>) {
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
            match loaded {
                Ok(batch) => {
                    tracing::info!(file = %self.path.display(), "inventory changed");
                    if changes.send(batch).await.is_err() {
                        return;
                    }
                }
                Err(e) => {
                    self.read = now;
                    tracing::warn!("keeping the inventory known before: {e}");
                }
            }
        }
    }
}

/// A file is the complete list of every kind: what is not in it is gone. Pods come last, when what names them is known.
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
