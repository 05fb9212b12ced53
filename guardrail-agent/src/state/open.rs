//! The open epoch's files: `state-N.base`, `state-N.log`, and while an epoch ends `state-N.next`.
//!
//! A base is written beside and renamed, a log grows at its end; a new base has a new number, and
//! the others go when it is there. The time of a base's last change is how long all of it is known
//! to have been so: nothing but that is touched while nothing changes.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use guardrail_graph::{
    Timestamp,
    epoch::{log::Write, state::State},
};

use super::epochs::{Ended, Epochs, Kept};
use crate::files::{self, FileError};

/// Endings of the files.
pub(super) const BASE: &str = "base";
pub(super) const NEXT: &str = "next";
const LOG: &str = "log";

/// A file of the open epoch.
pub(super) fn path(dir: &Path, number: u64, ending: &str) -> PathBuf {
    dir.join(format!("state-{number}.{ending}"))
}

/// The files of open epochs: number and ending, the newest first.
pub(super) fn found(dir: &Path) -> Vec<(u64, &'static str)> {
    let of = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let (number, ending) = name.strip_prefix("state-")?.split_once('.')?;
        let ending = [BASE, LOG, NEXT].into_iter().find(|known| *known == ending)?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        Some((number.parse().ok()?, ending)).filter(|_| is_file)
    };
    let mut found: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(of).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

fn wall(at: Timestamp) -> SystemTime {
    let ns = Duration::from_nanos(at.as_unix_ns().unsigned_abs());
    if at.as_unix_ns() < 0 { SystemTime::UNIX_EPOCH - ns } else { SystemTime::UNIX_EPOCH + ns }
}

/// A base and its log, as they lie there.
pub(super) struct Found {
    pub(super) state: State,
    /// Until when all of it is known to have been so.
    pub(super) until: Timestamp,
}

/// Reads a base, and the log behind it.
///
/// # Errors
/// Whether it can be used is not known: this process has no descriptor or no memory left. The inner
/// one: it cannot be used.
pub(super) fn read(dir: &Path, number: u64, ending: &str, now: Timestamp) -> Result<Result<Found, String>, FileError> {
    let base = path(dir, number, ending);
    let bytes = |path: &Path| match fs::read(path) {
        Err(error) if files::is_shortage(&error) => Err(FileError::reading(path, error)),
        read => Ok(read),
    };
    let (whole, log) = (bytes(&base)?, bytes(&path(dir, number, LOG))?);
    let log = match log {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        log => log,
    };
    let name = base.display();
    let state = whole
        .and_then(|whole| Ok((whole, log?)))
        .map_err(|error| format!("cannot read {name}: {error}"))
        .and_then(|(whole, log)| State::read(&whole, &log).map_err(|error| format!("{name}: {error}")));
    Ok(state.map(|state| {
        let touched = fs::metadata(&base).and_then(|found| found.modified()).ok();
        let touched = touched.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let touched = touched.and_then(|at| i64::try_from(at.as_nanos()).ok()).map(Timestamp::from_unix_ns);
        // What was stored and is no more was so after the rest.
        let is_all = state.cut().is_none_or(|cut| cut.is_torn);
        let touched = touched.filter(|_| is_all).unwrap_or(Timestamp::MIN).min(now);
        Found { until: touched.max(state.at()), state }
    }))
}

/// Keeps a copy of a log of which not everything can be used: it may be somebody's only evidence.
/// Gives its name.
pub(super) fn copy_aside(dir: &Path, number: u64, now: Timestamp) -> io::Result<PathBuf> {
    let aside = dir.join(format!("state-{number}.unusable-{}.log", now.as_unix_ns() / 1_000_000));
    fs::copy(path(dir, number, LOG), &aside).map(|_| aside)
}

/// Sets a base that cannot be used aside, and its log. Gives its name.
pub(super) fn set_aside(dir: &Path, number: u64, ending: &str, now: Timestamp) -> io::Result<PathBuf> {
    let aside = |ending: &str| dir.join(format!("state-{number}.unusable-{}.{ending}", now.as_unix_ns() / 1_000_000));
    fs::rename(path(dir, number, ending), aside(ending))?;
    match fs::rename(path(dir, number, LOG), aside(LOG)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(aside(ending)),
    }
}

/// What has to be done so that the disk has everything that was known at a time.
#[derive(Debug)]
pub struct Job {
    pub(super) dir: PathBuf,
    /// Of the base: of the one that is there, or the one that will be.
    pub(super) number: u64,
    pub(super) write: Write,
    pub(super) at: Timestamp,
    pub(super) ended: Option<Arc<Ended>>,
}

impl Job {
    /// Number of the base that is there when it is done.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Does it. Of an epoch that ended before, the file is written, too: the state is the next
    /// one's from then on, also if this ends anywhere in between.
    ///
    /// # Errors
    /// It cannot be written; then what there was is whole.
    pub fn run(&self) -> Result<Option<Kept>, FileError> {
        let Self { dir, number, write, at, ended } = self;
        let (base, log) = (path(dir, *number, BASE), path(dir, *number, LOG));
        match write {
            Write::Nothing => touch(&base, *at).map_err(|error| FileError::writing(&base, error))?,
            Write::Append { after, bytes } => {
                append(&log, *after, bytes).map_err(|error| FileError::writing(&log, error))?;
                if *after == 0 {
                    files::sync_dir(dir)?;
                }
                touch(&base, *at).map_err(|error| FileError::writing(&base, error))?;
            }
            Write::Base(bytes) => {
                let kept = match ended {
                    None => {
                        files::replace_as_of(&base, [bytes], wall(*at))?;
                        None
                    }
                    Some(ended) => {
                        let next = path(dir, *number, NEXT);
                        files::replace_as_of(&next, [bytes], wall(*at))?;
                        let kept = Epochs::write(dir, ended)?;
                        fs::rename(&next, &base).map_err(|error| FileError::writing(&base, error))?;
                        files::sync_dir(dir)?;
                        Some(kept)
                    }
                };
                self.remove_others();
                return Ok(kept);
            }
        }
        Ok(None)
    }

    /// One that stays is not read: the newest is.
    fn remove_others(&self) {
        for (number, ending) in found(&self.dir) {
            if number != self.number {
                let _ = fs::remove_file(path(&self.dir, number, ending));
            }
        }
    }
}

fn touch(base: &Path, at: Timestamp) -> io::Result<()> {
    fs::File::options().write(true).open(base)?.set_modified(wall(at))
}

/// Writes behind what is there, which is so long. What fails leaves nothing behind that could pass
/// for more.
fn append(log: &Path, after: u64, bytes: &[u8]) -> io::Result<()> {
    let mut options = fs::File::options();
    let options = options.append(true).create_new(after == 0).mode(0o644).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(log)?;
    if file.metadata()?.len() != after {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "somebody else has changed it"));
    }
    let written = file.write_all(bytes).and_then(|()| file.sync_data());
    if written.is_err() {
        let _ = file.set_len(after);
    }
    written
}

/// Whether a base and its log are there, as long as they were written.
pub(super) fn is_there(dir: &Path, number: u64, (base, log): (u64, u64)) -> bool {
    let length = |ending| fs::symlink_metadata(path(dir, number, ending)).map_or(0, |found| found.len());
    (length(BASE), length(LOG)) == (base, log)
}
