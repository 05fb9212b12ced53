//! Where a file that we write really goes: never over a device, a FIFO or a link.
//!
//! The agent has the same rules for its own directories (`guardrail-agent/src/files/place.rs`); no
//! crate that both may use writes files.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
};

use anyhow::Context as _;
use tempfile::TempPath;

/// Most links that are followed, as the kernel has it.
const MAX_LINKS: usize = 40;
/// Files that wait for the disk at once; each is open then.
const SYNCED_AT_ONCE: usize = 4;
/// How much is written with one call, bytes.
const WRITTEN_AT_ONCE: usize = 256 << 10;

/// Where what is written under a name goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A regular file, or nothing yet: a new file is renamed over it. Links are followed, so this
    /// is no link.
    File(PathBuf),
    /// A device, a FIFO, or an open file of a process (`/dev/stdout`): it takes bytes and stays
    /// what it is.
    Stream(PathBuf),
}

/// The place of `path`.
///
/// # Errors
/// If it is a directory or a socket, links lead in a circle, or it cannot be looked at.
pub(crate) fn place(path: &Path) -> io::Result<Place> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a socket"));
        }
        Ok(found) if !found.is_file() => return Ok(Place::Stream(path.to_owned())),
        // A link may lead to a file that is not there yet.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&file) {
            Ok(found) if found.is_symlink() => {}
            Ok(_) => return Ok(Place::File(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Place::File(file)),
            Err(error) => return Err(error),
        }
        // The links of /proc lead to what a process has open: what they read as may be the name of
        // another file by now.
        if file.starts_with("/proc") {
            return Ok(Place::Stream(path.to_owned()));
        }
        let target = fs::read_link(&file)?;
        file = file.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "its links lead in a circle"))
}

/// Writes what `fill` writes under this name: a file is replaced as a whole or not at all.
///
/// # Errors
/// If a step fails; then a file is as it was before.
fn write_with(path: &Path, fill: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> io::Result<()> {
    match place(path)? {
        Place::File(file) => persist(vec![(stage_with(&file, 0o666, fill)?, file)]),
        Place::Stream(stream) => pour_with(&stream, fill),
    }
}

/// Writes a new file beside `file`, for [`persist`]. `mode` is subject to the umask.
pub(crate) fn stage(file: &Path, bytes: &[u8], mode: u32) -> io::Result<TempPath> {
    stage_with(file, mode, |out| out.write_all(bytes))
}

/// As [`stage`], of what `fill` writes piece by piece.
pub(crate) fn stage_with(
    file: &Path,
    mode: u32,
    fill: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
) -> io::Result<TempPath> {
    let staged = tempfile::Builder::new()
        .prefix(".guardrail-")
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(directory(file));
    // The name of a file that nobody asked for says nothing.
    let mut staged = staged.map_err(|error| match error.to_string().split_once(" at path ") {
        Some((what, _)) => io::Error::new(error.kind(), what),
        None => error,
    })?;
    let mut out = io::BufWriter::with_capacity(WRITTEN_AT_ONCE, &mut staged);
    fill(&mut out)?;
    out.flush()?;
    drop(out);
    // Closed: a set may have more files than a process may have open.
    Ok(staged.into_temp_path())
}

/// Renames staged files over these, once the bytes of all are on disk: whatever ends the program,
/// a file is as before or whole. A disk takes many files at once much faster than one by one.
///
/// # Errors
/// If a step fails; the message names the file.
pub(crate) fn persist(staged: Vec<(TempPath, PathBuf)>) -> io::Result<()> {
    let cannot = |file: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("cannot replace {}: {error}", file.display()))
    };
    // Each waits for the disk, which takes what waits together at once.
    let sync = |files: &[(TempPath, PathBuf)]| {
        files.iter().try_for_each(|(new, file)| {
            fs::File::open(new).and_then(|new| new.sync_all()).map_err(|error| cannot(file, error))
        })
    };
    let share = staged.len().div_ceil(SYNCED_AT_ONCE).max(1);
    thread::scope(|scope| {
        let waiting: Vec<_> = staged.chunks(share).map(|files| scope.spawn(move || sync(files))).collect();
        waiting.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
    })?;
    let mut directories = BTreeSet::new();
    for (new, file) in staged {
        new.persist(&file).map_err(|failed| cannot(&file, failed.error))?;
        directories.insert(directory(&file).to_owned());
    }
    directories.iter().try_for_each(|directory| fs::File::open(directory)?.sync_all())
}

/// Writes to the file that `--output` names, as [`write_with`] does, or to stdout.
pub(crate) fn deliver(output: Option<&Path>, bytes: &[u8]) -> anyhow::Result<()> {
    deliver_with(output, |out| out.write_all(bytes))
}

/// As [`deliver`], of what `fill` writes piece by piece: what is large is never in memory as a
/// whole.
pub(crate) fn deliver_with(
    output: Option<&Path>,
    fill: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
) -> anyhow::Result<()> {
    let Some(file) = output else {
        let mut out = io::BufWriter::with_capacity(WRITTEN_AT_ONCE, io::stdout().lock());
        fill(&mut out)?;
        return Ok(out.flush()?);
    };
    write_with(file, fill).with_context(|| format!("cannot write {}", file.display()))
}

/// Writes into what is there; waits for the reader of a FIFO.
pub(crate) fn pour(stream: &Path, bytes: &[u8]) -> io::Result<()> {
    pour_with(stream, |out| out.write_all(bytes))
}

/// As [`pour`], of what `fill` writes piece by piece.
pub(crate) fn pour_with(stream: &Path, fill: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> io::Result<()> {
    // What stdout was redirected to with `>>` keeps what it has.
    let stream = fs::OpenOptions::new().append(true).open(stream)?;
    let mut stream = io::BufWriter::with_capacity(WRITTEN_AT_ONCE, stream);
    fill(&mut stream)?;
    stream.flush()
}

fn directory(file: &Path) -> &Path {
    file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
        write_with(path, |out| out.write_all(bytes))
    }

    #[test]
    fn links_are_followed_also_to_a_file_that_is_not_there_yet() {
        let outer = tempfile::tempdir().unwrap();
        let (real, link, second) = (outer.path().join("real"), outer.path().join("link"), outer.path().join("second"));
        std::os::unix::fs::symlink("real", &link).unwrap();
        std::os::unix::fs::symlink(&link, &second).unwrap();
        for content in ["first", "second"] {
            write(&second, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&real).unwrap(), content);
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert!(fs::symlink_metadata(&second).unwrap().is_symlink());
        }
        assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 3, "no temporary file is left");
    }

    #[test]
    fn a_circle_of_links_and_a_directory_are_refused() {
        let outer = tempfile::tempdir().unwrap();
        let (a, b) = (outer.path().join("a"), outer.path().join("b"));
        std::os::unix::fs::symlink(&a, &b).unwrap();
        std::os::unix::fs::symlink(&b, &a).unwrap();
        assert!(write(&a, b"x").is_err());
        assert!(write(outer.path(), b"x").is_err());
        assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
    }
}
