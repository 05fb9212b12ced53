//! The cgroup v2 mount, and the cgroups that exist already.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::error::KernelError;

/// The cgroup v2 mount of this process, from `/proc/self/mountinfo`. On a hybrid system that is not
/// `/sys/fs/cgroup`.
///
/// # Errors
/// [`KernelError::NoCgroup2`] if none is mounted.
pub fn find_cgroup2_root() -> Result<PathBuf, KernelError> {
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|source| KernelError::System { what: "reading /proc/self/mountinfo".to_owned(), source })?;
    cgroup2_mount(&table).ok_or_else(|| KernelError::NoCgroup2 { reason: "/proc/self/mountinfo names none".to_owned() })
}

/// Calls `each` with id and path of every cgroup below `root`, itself included. Paths are those
/// that the kernel's tracepoints show: from the hierarchy's root, starting with `/`. A directory
/// that goes away meanwhile is left out.
///
/// # Errors
/// A directory that is there cannot be read (no file descriptor is left, for one): what is below it
/// was not reported.
pub(crate) fn walk(root: &Path, each: &mut impl FnMut(u64, String)) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let above = path_in_hierarchy(&table, root);
    directories(root, &mut |metadata, directory| {
        let below = directory.strip_prefix(root).unwrap_or(directory).to_string_lossy();
        let path = if below.is_empty() { above.clone() } else { format!("{above}/{below}") };
        each(metadata.ino(), if path.is_empty() { "/".to_owned() } else { path });
    })
}

/// Calls `each` with every directory below `root`, itself included, before those below it.
///
/// # Errors
/// As [`walk`].
pub(crate) fn directories(root: &Path, each: &mut impl FnMut(&fs::Metadata, &Path)) -> io::Result<()> {
    let mut outcome = Ok(());
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let Ok(metadata) = fs::metadata(&directory) else { continue };
        each(&metadata, &directory);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                if directory.exists() {
                    outcome = Err(error);
                }
                continue;
            }
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
    outcome
}

/// Path of a cgroup directory from the hierarchy's root, empty for the root itself: what its mount
/// shows of the hierarchy, then the rest.
fn path_in_hierarchy(table: &str, directory: &Path) -> String {
    let deepest = cgroup2_mounts(table)
        .filter_map(|(root, point)| Some((directory.strip_prefix(&point).ok()?, root, point.as_os_str().len())))
        .max_by_key(|(_, _, length)| *length);
    let Some((below, root, _)) = deepest else { return String::new() };
    // `/..` and the like: from within a cgroup namespace, the host's root.
    let root = if root.starts_with("/..") { "" } else { root.trim_end_matches('/') };
    match below.to_string_lossy() {
        below if below.is_empty() => root.to_owned(),
        below => format!("{root}/{below}"),
    }
}

/// The best cgroup2 mount point in a mountinfo table: one whose root is `/` before one that shows
/// only a subtree, then the first.
fn cgroup2_mount(table: &str) -> Option<PathBuf> {
    let mut mounts: Vec<_> = cgroup2_mounts(table).collect();
    mounts.sort_by_key(|(root, _)| root != "/");
    mounts.into_iter().next().map(|(_, point)| point)
}

/// Every cgroup2 mount in a mountinfo table: what it shows of the hierarchy, and where.
fn cgroup2_mounts(table: &str) -> impl Iterator<Item = (String, PathBuf)> {
    table.lines().filter_map(|line| {
        // "ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [FIELDS…] - FSTYPE SOURCE SUPER"
        let (left, right) = line.split_once(" - ")?;
        if right.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = left.split(' ').skip(3);
        Some((unescape(fields.next()?), PathBuf::from(unescape(fields.next()?))))
    })
}

/// mountinfo writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &str) -> String {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes
            .get(i + 1..i + 4)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match (bytes[i], octal) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                i += 4;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_of_a_hybrid_system_is_found() {
        let table = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(table), Some(PathBuf::from("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn a_mount_of_the_whole_tree_is_preferred_and_escapes_are_undone() {
        let table = "1 0 0:1 /kubepods /sub rw - cgroup2 c rw\n2 0 0:1 / /my\\040root rw - cgroup2 c rw\n3 0 0:1 / /late rw - cgroup2 c rw\n";
        assert_eq!(cgroup2_mount(table), Some(PathBuf::from("/my root")));
    }

    #[test]
    fn the_walk_gives_every_directory_its_inode_and_its_path_from_the_root() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("kubepods/pod1")).expect("made");
        fs::write(root.path().join("kubepods/cgroup.procs"), "").expect("made");
        let mut seen = std::collections::BTreeMap::new();
        walk(root.path(), &mut |id, path| {
            seen.insert(path, id);
        })
        .expect("read");
        let inode = |path: &str| fs::metadata(root.path().join(path)).expect("there").ino();
        let expected = [("/", ""), ("/kubepods", "kubepods"), ("/kubepods/pod1", "kubepods/pod1")]
            .map(|(path, below)| (path.to_owned(), inode(below)));
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_path_from_the_root_is_what_the_mount_shows_and_what_is_below_it() {
        let table = "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 c rw\n2 0 0:1 /kubepods/pod1 /sub rw - cgroup2 c rw\n\
                     3 0 0:1 /../.. /host rw - cgroup2 c rw\n";
        for (directory, path) in [
            ("/sys/fs/cgroup", ""),
            ("/sys/fs/cgroup/a/b", "/a/b"),
            ("/sub", "/kubepods/pod1"),
            ("/sub/c", "/kubepods/pod1/c"),
            ("/host/kubepods", "/kubepods"),
            ("/elsewhere", ""),
        ] {
            assert_eq!(path_in_hierarchy(table, Path::new(directory)), path, "{directory}");
        }
    }

    #[test]
    fn a_table_without_cgroup2_or_with_broken_lines_gives_none() {
        assert_eq!(cgroup2_mount("x\n - cgroup2\n1 2 3 - cgroup2 c rw\n"), None);
    }
}
