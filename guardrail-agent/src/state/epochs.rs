//! Closed epochs of this node: a file each, which never changes, below the state's directory.

use std::{
    cmp::Reverse,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use guardrail_graph::{
    Snapshot,
    epoch::{
        End,
        file::{self, EpochError, Header},
    },
    snapshot::{Document, Source},
};

use crate::files::{self, FileError};

const DIR: &str = "epochs";
const SUFFIX: &str = "epoch";
/// Epochs end daily. One that says that it lasted longer counts for no more: agents of before let
/// one reach over a clock that was set.
const LONGEST: Duration = Duration::from_secs(25 * 3_600);

/// An epoch that ended and is in no file yet.
#[derive(Debug)]
pub struct Ended {
    /// What its file will say.
    pub header: Header,
    /// What it holds.
    pub document: Arc<Document>,
}

impl Ended {
    /// The epoch of this document; `None` if it is not one agent's alone.
    #[must_use]
    pub fn of(document: Arc<Document>, end: End) -> Option<Self> {
        Some(Self { header: Header::of(&document, end)?, document })
    }
}

/// A closed epoch in its file.
#[derive(Clone, Debug)]
pub struct Kept {
    /// How it is asked for.
    pub id: String,
    /// What its file says.
    pub header: Header,
    /// Length of its file.
    pub bytes: u64,
    path: PathBuf,
}

impl Kept {
    /// Its entry in a list.
    #[must_use]
    pub fn entry(&self) -> serde_json::Value {
        let Header { key, revision: (run, n), from, to, end } = &self.header;
        serde_json::json!({
            "id": self.id, "node": key.node, "instance": key.instance, "start": key.start, "run": run, "n": n,
            "from": from, "to": to, "ended": end.as_str(), "bytes": self.bytes,
        })
    }

    /// Its file as it is stored.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self) -> Result<Vec<u8>, FileError> {
        fs::read(&self.path).map_err(|error| FileError::reading(&self.path, error))
    }

    /// Its file as it is stored, and the facts in it: nothing that follows from them.
    ///
    /// # Errors
    /// A sentence with the file's name.
    pub fn unpacked(&self) -> Result<(Vec<u8>, Snapshot), String> {
        let bytes = self.read().map_err(|error| error.to_string())?;
        let (_, snapshot) = file::decode(&bytes).map_err(|error| format!("{}: {error}", self.path.display()))?;
        Ok((bytes, snapshot))
    }
}

/// How an epoch is asked for: unique on a node.
fn id(key: &Source) -> String {
    // What is no part of a name in any file system or URL: nobody but an editor puts it there.
    let instance = key.instance.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    format!("{}-{}", instance.collect::<String>(), key.start.unwrap_or_default().as_unix_ns())
}

/// The closed epochs of a node, by the time of their end.
#[derive(Clone, Debug, Default)]
pub struct Epochs {
    kept: Vec<Kept>,
}

impl Epochs {
    /// Those in the state's directory. A file that cannot be used is set aside with a warning.
    #[must_use]
    pub fn open(state: &Path, node: &str) -> Self {
        let mut epochs = Self::default();
        for entry in fs::read_dir(state.join(DIR)).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|suffix| suffix != SUFFIX) || !entry.file_type().is_ok_and(|t| t.is_file()) {
                continue;
            }
            match fs::read(&path).map_err(|error| error.to_string()).and_then(|bytes| {
                let header = Header::read(&bytes).map_err(|error: EpochError| error.to_string())?;
                Ok((header, bytes.len() as u64))
            }) {
                Ok((header, _)) if header.key.node != node => {
                    tracing::warn!("{}: it is an epoch of node {}: left out", path.display(), header.key.node);
                }
                Ok((header, bytes)) => epochs.add(Kept { id: id(&header.key), header, bytes, path }),
                Err(why) => {
                    let aside = path.with_extension("unusable");
                    tracing::warn!("{}: {why}: left out, and set aside as {}", path.display(), aside.display());
                    if let Err(error) = fs::rename(&path, &aside) {
                        tracing::warn!("cannot set it aside: {error}");
                    }
                }
            }
        }
        epochs
    }

    /// Those that there are, by the time of their end.
    #[must_use]
    pub fn kept(&self) -> &[Kept] {
        &self.kept
    }

    /// Whether there is one of this key.
    #[must_use]
    pub fn has(&self, key: &Source) -> bool {
        self.kept.iter().any(|kept| kept.header.key == *key)
    }

    /// Adds one that was written.
    pub fn add(&mut self, kept: Kept) {
        self.kept.retain(|other| other.header.key != kept.header.key);
        self.kept.push(kept);
        self.sort();
    }

    /// Writes one into the state's directory.
    ///
    /// # Errors
    /// It cannot be written; then there is none of it.
    pub fn write(state: &Path, ended: &Ended) -> Result<Kept, FileError> {
        let id = id(&ended.header.key);
        let path = state.join(DIR).join(format!("{id}.{SUFFIX}"));
        let bytes = file::encode(&ended.header, &ended.document);
        files::replace(&path, [&bytes])?;
        Ok(Kept { id, header: ended.header.clone(), bytes: bytes.len() as u64, path })
    }

    /// Takes out those after whose end agents ran on this node for longer than that, as the epochs
    /// that ended later show, for [`remove`]. When an epoch was, its clock says, which may have
    /// been wrong; in which order they ended, and how long each lasted, no clock can change.
    pub fn expire(&mut self, retention: Duration) -> Vec<Kept> {
        let mut newest_first = std::mem::take(&mut self.kept);
        newest_first.sort_by_key(|kept| Reverse((kept.header.revision, kept.header.to)));
        let mut ran = Duration::ZERO;
        let (old, kept) = newest_first.into_iter().partition(|kept: &Kept| {
            let is_old = ran > retention;
            ran = ran.saturating_add(kept.header.to.since(kept.header.from).min(LONGEST));
            is_old
        });
        self.kept = kept;
        self.sort();
        old
    }

    fn sort(&mut self) {
        self.kept.sort_by_key(|kept| (kept.header.to, kept.header.from, kept.id.clone()));
    }
}

/// Removes the files of epochs.
pub fn remove(old: &[Kept]) {
    for kept in old {
        if let Err(error) = fs::remove_file(&kept.path) {
            tracing::warn!("{}: it is past its retention, and cannot be removed: {error}", kept.path.display());
        }
    }
}
