//! Atomic writing of a set of files: a reader sees each file old or new, never a part of one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead as _};
use std::path::{Component, Path, PathBuf};
use std::{panic, thread};

use anyhow::Context as _;
use guardrail_policy::{
    emit::{self, KUSTOMIZATION_FILE},
    exception::ExceptionMark,
};
use tempfile::TempPath;

use crate::place::{self, Place};

/// Names what we wrote, so that a later export removes its own stale files and nobody else's. The
/// agent keeps the same list.
const MANIFEST: &str = ".guardrail-files";

/// A file that is written piece by piece: its name, and what writes it.
pub(crate) type Streamed<'a> = (&'static str, &'a (dyn Fn(&mut dyn io::Write) -> io::Result<()> + Sync));

/// Makes `files` (relative path → content) and those that are `streamed` the export in `directory`.
/// Every file is written beside its place before the first one is renamed, so a full disk changes
/// nothing. What an earlier export wrote and `stays` says of stays as it is, and the kustomization
/// goes on to list it.
pub(crate) fn replace_set(
    directory: &Path,
    files: &BTreeMap<String, String>,
    streamed: &[Streamed<'_>],
    stays: impl Fn(&str) -> bool,
) -> anyhow::Result<()> {
    // File names hold names from the snapshot, and those are whatever its author wrote.
    if let Some(name) = files.keys().find(|name| !is_below(name)) {
        anyhow::bail!("{name:?} is no file name: the snapshot names a namespace as Kubernetes allows none");
    }
    fs::create_dir_all(directory)?;
    let before = read_manifest(directory)?;
    let kept: BTreeSet<&str> = before
        .iter()
        .map(String::as_str)
        .filter(|name| {
            is_below(name) && emit::namespace_of_file(name).is_some() && stays(name) && directory.join(name).is_file()
        })
        .collect();
    let now = files.keys().map(String::as_str).chain(streamed.iter().map(|(name, _)| *name));
    let now: BTreeSet<&str> = now.chain(kept.iter().copied()).collect();
    let listed = emit::kustomization(now.iter().copied().filter(|name| emit::namespace_of_file(name).is_some()));
    let mut staged = Vec::with_capacity(files.len());
    let (mut streams, mut poured) = (Vec::new(), Vec::new());
    thread::scope(|scope| -> anyhow::Result<()> {
        // What is long takes as long as all the others.
        let long: Vec<_> = streamed.iter().map(|file| scope.spawn(|| stage_streamed(directory, file))).collect();
        for (name, content) in files {
            let content = if name == KUSTOMIZATION_FILE && !kept.is_empty() { &listed } else { content };
            let cannot = || format!("cannot write {name}");
            match place::place(&directory.join(name)).with_context(cannot)? {
                Place::File(path) if fs::read(&path).is_ok_and(|old| old == content.as_bytes()) => {}
                Place::File(path) => staged.push((stage(&path, content).with_context(cannot)?, path)),
                Place::Stream(path) => streams.push((path, content)),
            }
        }
        for (long, (name, fill)) in long.into_iter().zip(streamed) {
            let long = long.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked));
            match long.with_context(|| format!("cannot write {name}"))? {
                Staged::New(new, path) => staged.push((new, path)),
                Staged::Same => {}
                Staged::Stream(path) => poured.push((path, fill)),
            }
        }
        Ok(())
    })?;
    // Listed first, so that a crash forgets none.
    write_manifest(directory, before.iter().map(String::as_str).chain(now.iter().copied()).collect())?;
    place::persist(staged)?;
    for (path, content) in streams {
        place::pour(&path, content.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for (path, fill) in poured {
        place::pour_with(&path, fill).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for stale in before.iter().filter(|name| !now.contains(name.as_str()) && is_below(name)) {
        let path = directory.join(stale);
        // What has become a device, a FIFO or a directory meanwhile is not what we wrote.
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file() && !found.is_symlink()) {
            continue;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {stale}"));
            }
            _ => {}
        }
    }
    write_manifest(directory, now)?;
    fs::File::open(directory)?.sync_all()?;
    Ok(())
}

/// What has become of a file that is streamed.
enum Staged {
    /// It lies beside its place.
    New(TempPath, PathBuf),
    /// It is there already.
    Same,
    /// It is to be poured there.
    Stream(PathBuf),
}

fn stage_streamed(directory: &Path, (name, fill): &Streamed<'_>) -> io::Result<Staged> {
    Ok(match place::place(&directory.join(name))? {
        Place::File(path) => {
            let new = place::stage_with(&path, 0o644, fill)?;
            if is_same(&new, &path)? { Staged::Same } else { Staged::New(new, path) }
        }
        Place::Stream(path) => Staged::Stream(path),
    })
}

/// Whether two files hold the same, of which the second may not be there.
fn is_same(new: &Path, old: &Path) -> io::Result<bool> {
    let Ok(old) = fs::File::open(old) else { return Ok(false) };
    let new = fs::File::open(new)?;
    if new.metadata()?.len() != old.metadata()?.len() {
        return Ok(false);
    }
    let [mut new, mut old] = [new, old].map(io::BufReader::new);
    loop {
        let same = {
            let (a, b) = (new.fill_buf()?, old.fill_buf()?);
            let length = a.len().min(b.len());
            if a.is_empty() || b.is_empty() {
                return Ok(a.is_empty() && b.is_empty());
            }
            (a[..length] == b[..length]).then_some(length)
        };
        let Some(length) = same else { return Ok(false) };
        new.consume(length);
        old.consume(length);
    }
}

/// The names of the policies that an earlier export has written to the directory.
pub(crate) fn earlier(directory: &Path) -> anyhow::Result<BTreeSet<String>> {
    let before = if directory.is_dir() { read_manifest(directory)? } else { BTreeSet::new() };
    let is_there =
        |name: &String| emit::namespace_of_file(name).is_some() && is_below(name) && directory.join(name).is_file();
    Ok(before.into_iter().filter(is_there).collect())
}

/// Where those are that are no exceptions.
pub(crate) fn policy_files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let policies = earlier(directory)?.into_iter().filter(|name| !emit::is_exception_file(name));
    Ok(policies.map(|name| directory.join(name)).collect())
}

/// What the exceptions say of themselves that an earlier export has written to the directory.
pub(crate) fn exceptions(directory: &Path) -> anyhow::Result<Vec<ExceptionMark>> {
    let files = earlier(directory)?.into_iter().filter(|name| emit::is_exception_file(name));
    let read =
        files.map(|name| fs::read_to_string(directory.join(&name)).with_context(|| format!("cannot read {name}")));
    Ok(read.collect::<anyhow::Result<Vec<_>>>()?.iter().filter_map(|text| ExceptionMark::read(text)).collect())
}

fn stage(path: &Path, content: &str) -> io::Result<TempPath> {
    place::stage(path, content.as_bytes(), 0o644)
}

fn read_manifest(directory: &Path) -> anyhow::Result<BTreeSet<String>> {
    let path = manifest(directory)?;
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {MANIFEST}")),
    }
}

fn write_manifest(directory: &Path, names: BTreeSet<&str>) -> anyhow::Result<()> {
    let text: String = names.iter().map(|name| format!("{name}\n")).collect();
    let path = manifest(directory)?;
    place::persist(vec![(stage(&path, &text)?, path)])?;
    Ok(())
}

fn manifest(directory: &Path) -> anyhow::Result<PathBuf> {
    match place::place(&directory.join(MANIFEST)).with_context(|| format!("cannot read {MANIFEST}"))? {
        Place::File(path) => Ok(path),
        Place::Stream(_) => anyhow::bail!("{MANIFEST} is no regular file; remove it"),
    }
}

/// Neither a name in a snapshot nor a manifest that somebody edited must make us write or remove
/// files elsewhere, or hide a file name.
fn is_below(name: &str) -> bool {
    if name.starts_with('.') || name.contains(char::is_control) {
        return false;
    }
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(files: &[(&str, &str)]) -> BTreeMap<String, String> {
        files.iter().map(|(n, c)| ((*n).to_owned(), (*c).to_owned())).collect()
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_second_export_removes_its_own_stale_files_and_nobody_elses() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("mine.yaml"), "kept").unwrap();
        replace_set(directory.path(), &set(&[("a.yaml", "1"), ("b.yaml", "1")]), &[], |_| false).unwrap();
        replace_set(directory.path(), &set(&[("b.yaml", "2"), ("c.yaml", "1")]), &[], |_| false).unwrap();
        assert_eq!(names(directory.path()), [MANIFEST, "b.yaml", "c.yaml", "mine.yaml"]);
        assert_eq!(fs::read_to_string(directory.path().join("b.yaml")).unwrap(), "2");
    }

    #[test]
    fn files_of_stopped_namespaces_stay_as_they_are_and_listed() {
        let directory = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        let first = set(&[("a.p.yaml", "1"), ("b.p.yaml", "1"), ("b.q.yaml", "1"), (KUSTOMIZATION_FILE, "all")]);
        replace_set(directory.path(), &first, &[], |_| false).unwrap();
        fs::remove_file(directory.path().join("b.q.yaml")).unwrap();
        let second = set(&[("a.p.yaml", "2"), (KUSTOMIZATION_FILE, "a alone")]);
        replace_set(directory.path(), &second, &[], |name| name.starts_with("b.")).unwrap();
        assert_eq!((read("a.p.yaml").as_str(), read("b.p.yaml").as_str()), ("2", "1"));
        let listed = read(KUSTOMIZATION_FILE);
        assert!(listed.contains("- a.p.yaml\n- b.p.yaml\n") && !listed.contains("b.q"), "{listed}");
        // Still ours: the export that no longer stops it may take it away.
        replace_set(directory.path(), &second, &[], |_| false).unwrap();
        assert_eq!(names(directory.path()), [MANIFEST, "a.p.yaml", KUSTOMIZATION_FILE]);
    }

    #[test]
    fn a_manifest_that_points_elsewhere_removes_nothing_there() {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("export");
        fs::create_dir(&directory).unwrap();
        fs::write(outer.path().join("precious"), "kept").unwrap();
        fs::write(directory.join(MANIFEST), "../precious\n/etc/hostname\n").unwrap();
        replace_set(&directory, &set(&[("a.yaml", "1")]), &[], |_| false).unwrap();
        assert!(outer.path().join("precious").exists());
        assert_eq!(names(&directory), [MANIFEST, "a.yaml"]);
    }

    #[test]
    fn a_name_that_is_a_path_or_hides_writes_nothing_at_all() {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("export");
        let absolute = outer.path().join("absolute.yaml").display().to_string();
        for name in ["../up.yaml", "a/b.yaml", &absolute, "", ".hidden.yaml", "a\nb.yaml"] {
            let error = replace_set(&directory, &set(&[("good.yaml", "1"), (name, "2")]), &[], |_| false)
                .unwrap_err()
                .to_string();
            assert!(error.contains("is no file name"), "{error}");
        }
        assert!(names(outer.path()).is_empty());
    }

    #[test]
    fn a_fifo_is_written_to_a_link_is_followed_and_a_stale_fifo_stays() {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("export");
        fs::create_dir(&directory).unwrap();
        let fifo = directory.join("a.yaml");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        std::os::unix::fs::symlink("../report", directory.join("b.yaml")).unwrap();
        let reader = thread::spawn({
            let fifo = fifo.clone();
            move || fs::read_to_string(fifo).unwrap()
        });
        replace_set(&directory, &set(&[("a.yaml", "1"), ("b.yaml", "2")]), &[], |_| false).unwrap();
        assert_eq!(reader.join().unwrap(), "1");
        assert_eq!(fs::read_to_string(outer.path().join("report")).unwrap(), "2");
        assert!(fs::symlink_metadata(directory.join("b.yaml")).unwrap().is_symlink());
        replace_set(&directory, &set(&[("c.yaml", "3")]), &[], |_| false).unwrap();
        assert_eq!(names(&directory), [MANIFEST, "a.yaml", "c.yaml"]);
        assert!(std::os::unix::fs::FileTypeExt::is_fifo(&fs::metadata(fifo).unwrap().file_type()));
    }

    #[test]
    fn an_unchanged_file_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        replace_set(directory.path(), &set(&[("a.yaml", "1")]), &[], |_| false).unwrap();
        let before = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
        replace_set(directory.path(), &set(&[("a.yaml", "1")]), &[], |_| false).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap()), before);
    }

    #[test]
    fn a_streamed_file_is_replaced_where_it_differs_and_is_removed_with_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("long");
        let ino = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
        let write = |text: &str| {
            let fill = |out: &mut dyn io::Write| out.write_all(text.as_bytes());
            replace_set(directory.path(), &set(&[("a.yaml", "1")]), &[("long", &fill)], |_| false).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        };
        let long = "x".repeat(100_000);
        write(&long);
        let first = ino();
        write(&long);
        assert_eq!(ino(), first);
        let other = format!("{}y", &long[1..]);
        write(&other);
        assert_ne!(ino(), first);
        write("short");
        let fails = |_: &mut dyn io::Write| Err(io::ErrorKind::StorageFull.into());
        let failed = replace_set(directory.path(), &set(&[("a.yaml", "2")]), &[("long", &fails)], |_| false);
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(directory.path().join("a.yaml")).unwrap(), "1");
        replace_set(directory.path(), &set(&[("a.yaml", "1")]), &[], |_| false).unwrap();
        assert_eq!(names(directory.path()), [MANIFEST, "a.yaml"]);
    }

    #[test]
    fn a_file_in_the_way_of_the_directory_changes_nothing() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("export");
        fs::write(&path, "a file").unwrap();
        assert!(replace_set(&path, &set(&[("a.yaml", "1")]), &[], |_| false).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
    }
}
