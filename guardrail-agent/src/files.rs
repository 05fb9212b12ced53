//! Atomic writes: a reader sees the old file or the new one, never a part, also after a crash.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

mod place;

use place::{Place, place, pour};

/// A file operation that failed, with the path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { action, path, source }
}

impl FileError {
    /// A file could not be written.
    pub fn writing(path: &Path, source: io::Error) -> Self {
        failed("write", path)(source)
    }

    /// A file could not be read.
    pub fn reading(path: &Path, source: io::Error) -> Self {
        failed("read", path)(source)
    }
}

/// The process or the node has no descriptor or no memory left: this says nothing of the file.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// Creates the directory if needed and proves that files can be written, renamed and removed in it.
///
/// # Errors
/// If they cannot.
pub fn require_writable_dir(dir: &Path) -> Result<(), FileError> {
    fs::create_dir_all(dir).map_err(failed("create the directory", dir))?;
    let probe = tempfile::Builder::new()
        .prefix(".guardrail-probe-")
        .tempfile_in(dir)
        .map_err(failed("write in the directory", dir))?;
    probe.close().map_err(failed("remove a file in the directory", dir))
}

/// Takes the directory for this process alone, until what is returned is dropped.
///
/// # Errors
/// Another process has it, or it cannot be opened. A file system without locks gives one that holds
/// nothing.
pub fn lock_dir(dir: &Path) -> Result<fs::File, FileError> {
    // The lock lies on the directory itself: a file for it would be one more to leave behind.
    let handle = fs::File::open(dir).map_err(failed("open the directory", dir))?;
    match handle.try_lock() {
        Err(fs::TryLockError::WouldBlock) => {
            let source = io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another agent uses it; end that one, or give another directory",
            );
            Err(failed("use", dir)(source))
        }
        Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(handle),
    }
}

/// Writes the pieces of a content beside `path`, syncs them, and renames them over `path`. A
/// directory that is gone is made again. A link is followed and the file behind it replaced; a
/// device or a FIFO is written to and stays.
///
/// # Errors
/// If a step fails; then a file at `path` is as it was before.
pub fn replace<T: AsRef<[u8]>>(path: &Path, content: impl IntoIterator<Item = T>) -> Result<(), FileError> {
    replace_file(path, content, None)
}

/// As [`replace`]; the file is as of a time: it says so as the time of its last change.
///
/// # Errors
/// As [`replace`].
pub fn replace_as_of<T: AsRef<[u8]>>(
    path: &Path,
    content: impl IntoIterator<Item = T>,
    at: SystemTime,
) -> Result<(), FileError> {
    replace_file(path, content, Some(at))
}

fn replace_file<T: AsRef<[u8]>>(
    path: &Path,
    content: impl IntoIterator<Item = T>,
    at: Option<SystemTime>,
) -> Result<(), FileError> {
    let path = match place(path).map_err(failed("replace", path))? {
        Place::File(path) => path,
        Place::Stream(path) => return pour(&path, content).map_err(failed("write", &path)),
    };
    let path = path.as_path();
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(failed("create the directory", dir))?;
    let mut file = tempfile::Builder::new()
        .prefix(".guardrail-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)
        .map_err(failed("create a temporary file for", path))?;
    content
        .into_iter()
        .try_for_each(|piece| file.write_all(piece.as_ref()))
        .and_then(|()| at.map_or(Ok(()), |at| file.as_file().set_modified(at)))
        .and_then(|()| file.as_file().sync_all())
        .map_err(failed("write", path))?;
    file.persist(path).map_err(|e| failed("replace", path)(e.error))?;
    sync_dir(dir)
}

/// Makes the `.yaml`, `.json` and `.md` files below `dir` equal to `files` (relative path →
/// content). Every file is replaced atomically and only if it differs; files that an earlier call
/// wrote and this one does not are removed afterwards, other people's files are left alone. What an
/// earlier call wrote stands in `.guardrail-files`, written before the first file so that a crash
/// forgets none.
///
/// # Errors
/// At the first step that fails. Files replaced before it are new and whole, the rest is old and
/// whole; the next call completes the set.
pub fn replace_set(dir: &Path, files: &BTreeMap<String, String>) -> Result<bool, FileError> {
    if let Some(name) = files.keys().find(|name| !is_below(name)) {
        let elsewhere = io::Error::new(io::ErrorKind::InvalidInput, "it does not lie below the directory");
        return Err(failed("write", &dir.join(name))(elsewhere));
    }
    let manifest = dir.join(".guardrail-files");
    if is_stream(&manifest) {
        let special = io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file; remove it");
        return Err(failed("read", &manifest)(special));
    }
    let before: BTreeSet<String> = match fs::read_to_string(&manifest) {
        Ok(text) => text.lines().map(str::to_owned).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
        Err(e) => return Err(failed("read", &manifest)(e)),
    };
    let now: BTreeSet<String> = files.keys().cloned().collect();
    let write_manifest = |names: &BTreeSet<String>| {
        let text: String = names.iter().map(|name| format!("{name}\n")).collect();
        replace(&manifest, [text])
    };
    if !now.is_subset(&before) {
        write_manifest(&now.union(&before).cloned().collect())?;
    }
    let mut changed = false;
    for (name, content) in files {
        let path = dir.join(name);
        if !is_stream(&path) && fs::read(&path).is_ok_and(|old| old == content.as_bytes()) {
            continue;
        }
        replace(&path, [content])?;
        changed = true;
    }
    for stale in before.difference(&now).filter(|name| is_below(name)) {
        let path = dir.join(stale);
        // What has become a device, a FIFO or a directory meanwhile is not what we wrote.
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file() && !found.is_symlink()) {
            continue;
        }
        match fs::remove_file(&path) {
            Ok(()) => changed = true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed("remove", &path)(e)),
        }
    }
    if before != now && (!before.is_empty() || !now.is_empty()) {
        write_manifest(&now)?;
    }
    Ok(changed)
}

/// Neither a name nor a manifest that somebody edited must make us write or remove files elsewhere.
fn is_below(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(char::is_control)
        && Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)))
}

/// A device or a FIFO, directly or behind a link: it cannot be read back, and a FIFO would keep its
/// reader waiting.
#[must_use]
pub fn is_stream(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Makes names in a directory last.
///
/// # Errors
/// They may not.
pub fn sync_dir(dir: &Path) -> Result<(), FileError> {
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(failed("sync the directory", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(files: &[(&str, &str)]) -> BTreeMap<String, String> {
        files.iter().map(|(n, c)| ((*n).to_owned(), (*c).to_owned())).collect()
    }

    fn listing(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_second_export_removes_what_only_the_first_wrote_and_nothing_of_anybody_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine.yaml"), "hands off").unwrap();
        assert!(replace_set(dir.path(), &set(&[("a.yaml", "1"), ("b/c.yaml", "2")])).unwrap());
        assert!(!replace_set(dir.path(), &set(&[("a.yaml", "1"), ("b/c.yaml", "2")])).unwrap(), "nothing changed");
        assert!(replace_set(dir.path(), &set(&[("b/c.yaml", "3")])).unwrap());
        assert_eq!(listing(dir.path()), [".guardrail-files", "b", "mine.yaml"]);
        assert_eq!(fs::read_to_string(dir.path().join("b/c.yaml")).unwrap(), "3");
    }

    #[test]
    fn an_edited_manifest_cannot_reach_outside_the_directory() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("policies");
        fs::create_dir(&dir).unwrap();
        fs::write(outer.path().join("precious"), "x").unwrap();
        fs::write(dir.join(".guardrail-files"), "../precious\n/etc/hostname\n").unwrap();
        replace_set(&dir, &set(&[("a.yaml", "1")])).unwrap();
        assert!(outer.path().join("precious").exists());
    }

    #[test]
    fn a_name_that_is_a_path_writes_nothing_elsewhere() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("policies");
        fs::create_dir(&dir).unwrap();
        let absolute = outer.path().join("absolute.yaml").display().to_string();
        for name in ["../up.yaml", "a/../../up.yaml", &absolute, "", "a\nb.yaml"] {
            assert!(replace_set(&dir, &set(&[("good.yaml", "1"), (name, "2")])).is_err(), "{name:?}");
        }
        assert_eq!((listing(outer.path()), listing(&dir)), (vec!["policies".to_owned()], Vec::new()));
    }

    #[test]
    fn a_link_is_followed_and_the_file_behind_it_replaced() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("state");
        fs::create_dir(&dir).unwrap();
        fs::write(outer.path().join("real"), "old").unwrap();
        std::os::unix::fs::symlink("../real", dir.join("state.json")).unwrap();
        replace(&dir.join("state.json"), ["new"]).unwrap();
        assert_eq!(fs::read_to_string(outer.path().join("real")).unwrap(), "new");
        assert!(fs::symlink_metadata(dir.join("state.json")).unwrap().is_symlink());
    }

    #[test]
    fn a_fifo_is_written_to_and_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("a.yaml");
        // Not by a process, which would hold the locks of tests beside this one until its exec.
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
        assert!(replace(&fifo, ["nobody reads"]).is_err(), "an agent does not wait for a reader");
        // A reader that is there before the writer: opened for both, it does not wait either.
        let mut reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        assert!(replace_set(dir.path(), &set(&[("a.yaml", "new")])).unwrap());
        let mut read = [0; 3];
        io::Read::read_exact(&mut reader, &mut read).unwrap();
        assert_eq!(&read, b"new");
        replace_set(dir.path(), &set(&[("b.yaml", "1")])).unwrap();
        assert!(std::os::unix::fs::FileTypeExt::is_fifo(&fs::metadata(&fifo).unwrap().file_type()));
        assert_eq!(listing(dir.path()), [".guardrail-files", "a.yaml", "b.yaml"]);
    }

    #[test]
    fn a_failed_replace_leaves_the_old_file_and_no_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("state.json");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("x"), "").unwrap();
        assert!(replace(&target, ["new"]).is_err(), "a directory cannot be replaced by a file");
        assert_eq!(listing(dir.path()), ["state.json"]);
    }

    #[test]
    fn a_directory_that_is_a_file_is_refused_with_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = require_writable_dir(file.path()).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
