//! Where a file that we write really goes: never over a device, a FIFO or a link.
//!
//! The command has the same rules (`guardrail-cli/src/place.rs`); no crate that both may use does
//! IO. The agent runs as root and its directories may be shared, so here a link that another user
//! made is refused instead of followed.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Most links that are followed, as the kernel has it.
const MAX_LINKS: usize = 40;

/// Where what is written under a name goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A regular file, or nothing yet: a new file is renamed over it. Links are followed, so this
    /// is no link.
    File(PathBuf),
    /// A device or a FIFO: it takes bytes and stays what it is.
    Stream(PathBuf),
}

/// The place of `path`.
///
/// # Errors
/// If it is a directory or a socket, links lead in a circle or belong to another user, or it cannot
/// be looked at.
pub(super) fn place(path: &Path) -> io::Result<Place> {
    place_for(path, fs::metadata("/proc/self")?.uid())
}

fn place_for(path: &Path, user: u32) -> io::Result<Place> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why);
    let mut file = path.to_owned();
    for _ in 0..MAX_LINKS {
        let found = match fs::symlink_metadata(&file) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Place::File(file)),
            Err(error) => return Err(error),
        };
        if !found.is_symlink() {
            return match found.file_type() {
                kind if kind.is_file() => Ok(Place::File(file)),
                kind if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
                kind if kind.is_socket() => Err(wrong("it is a socket")),
                _ => Ok(Place::Stream(file)),
            };
        }
        if ![0, user].contains(&found.uid()) {
            return Err(wrong("it is a link that another user made; remove it"));
        }
        let target = fs::read_link(&file)?;
        file = file.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(wrong("its links lead in a circle"))
}

/// Writes into what is there.
///
/// # Errors
/// If nobody reads a FIFO: an agent that waits for a reader would do nothing else.
pub(super) fn pour<T: AsRef<[u8]>>(stream: &Path, content: impl IntoIterator<Item = T>) -> io::Result<()> {
    let ready = fs::OpenOptions::new().append(true).custom_flags(libc::O_NONBLOCK).open(stream)?;
    // Kept open until the second one is, else the reader would see the end between them.
    let mut stream = fs::OpenOptions::new().append(true).open(stream)?;
    drop(ready);
    content.into_iter().try_for_each(|piece| stream.write_all(piece.as_ref()))?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_followed_if_the_agent_or_root_made_it_and_refused_else() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        let owner = fs::symlink_metadata(&link).unwrap().uid();
        assert_eq!(place_for(&link, owner).unwrap(), Place::File(dir.path().join("real")));
        if owner != 0 {
            assert!(place_for(&link, owner + 1).is_err());
            return;
        }
        // A test that runs as root can make a link of another user.
        std::os::unix::fs::lchown(&link, Some(65_534), None).unwrap();
        assert!(place_for(&link, 0).unwrap_err().to_string().contains("another user"));
        assert_eq!(place_for(&link, 65_534).unwrap(), Place::File(dir.path().join("real")));
    }

    #[test]
    fn a_circle_of_links_and_a_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::os::unix::fs::symlink(&a, &b).unwrap();
        std::os::unix::fs::symlink(&b, &a).unwrap();
        assert!(place(&a).is_err());
        assert!(place(dir.path()).is_err());
    }
}
