//! `--pin DIR`: maps, programs and links keep their names in a BPF file system, so that the kernel
//! counts on while no agent is there.
//!
//! Below DIR each set of maps has a directory, a *generation*, named by the boot time at which it
//! was made:
//!
//! ```text
//! DIR/0000001a2b3c4d5e/maps/FLOWS …   programs/tcp_state …   links/tcp_state …   manifest
//! ```
//!
//! The manifest is pinned last: without it the generation was never whole, and is removed. One
//! agent at a time holds DIR (`flock`). A reboot empties a BPF file system, so what is found is
//! always this kernel's.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use guardrail_common::LAYOUT;

use crate::{bpf, clock, config::KernelConfig, error::KernelError, object::OBJECT, preflight};

/// How long the agent before may take to end.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the kernel may take to let go of a link whose name is removed: lazy callbacks run
/// within 10 s.
const DETACHED_WITHIN: Duration = Duration::from_secs(12);
/// How long the kernel may take between giving up the number of a link and detaching its
/// program.
const AFTER_THE_NUMBER: Duration = Duration::from_millis(50);
/// Layout, then build.
const MANIFEST_BYTES: usize = 16;
const MANIFEST: &str = "manifest";
const MAPS: &str = "maps";
const PROGRAMS: &str = "programs";
const LINKS: &str = "links";

/// What must be the same for an agent to take over programs, and not only what they counted: the
/// object, and what was set in it at load time.
pub(crate) fn build(config: &KernelConfig, root_cgroup: u64) -> u64 {
    let KernelConfig {
        cgroup_root: _,
        udp,
        redirects,
        ring_bytes,
        flow_entries,
        new_keys_per_cgroup,
        bpf_log_level,
        sweep_interval: _,
        idle: _,
        channel_batches: _,
    } = config;
    let mut hasher = DefaultHasher::new();
    OBJECT.hash(&mut hasher);
    (udp, redirects, ring_bytes, flow_entries, new_keys_per_cgroup, *bpf_log_level as u8, root_cgroup)
        .hash(&mut hasher);
    hasher.finish()
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let what = format!("--pin: {what} {}", path.display());
    move |source| KernelError::System { what, source }
}

/// DIR, held.
#[derive(Debug)]
pub(crate) struct Pins {
    dir: PathBuf,
    _lock: File,
}

/// One set of maps, programs and links.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) id: u64,
    path: PathBuf,
}

impl Pins {
    /// Makes DIR if need be, and holds it: waits a while for an agent that is about to end.
    pub(crate) fn hold(dir: &Path) -> Result<Self, KernelError> {
        if !dir.is_dir() {
            fs::create_dir_all(dir).map_err(failed("creating", dir))?;
        }
        Self::hold_for(dir, PATIENCE)
    }

    fn hold_for(dir: &Path, patience: Duration) -> Result<Self, KernelError> {
        if preflight::file_system(dir).map_err(failed("looking at", dir))? != preflight::BPF_FS_MAGIC {
            return Err(KernelError::NotBpfFs { path: dir.to_owned() });
        }
        let lock = File::open(dir).map_err(failed("opening", dir))?;
        let end = Instant::now() + patience;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { dir: dir.to_owned(), _lock: lock }),
                Err(fs::TryLockError::Error(error)) => return Err(failed("locking", dir)(error)),
                Err(fs::TryLockError::WouldBlock) if Instant::now() >= end => {
                    return Err(KernelError::PinsHeld { path: dir.to_owned() });
                }
                // flock has no deadline of its own.
                Err(fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// A new, empty generation.
    pub(crate) fn create(&self) -> Result<Generation, KernelError> {
        let id = clock::boot_ns();
        let path = self.dir.join(format!("{id:016x}"));
        for part in ["", MAPS, PROGRAMS, LINKS] {
            let path = path.join(part);
            fs::create_dir(&path).map_err(failed("creating", &path))?;
        }
        Ok(Generation { id, path })
    }

    /// The generations that are whole, oldest first. What an agent left half made is removed.
    pub(crate) fn generations(&self) -> Result<Vec<Generation>, KernelError> {
        let mut whole = Vec::new();
        for generation in self.all()? {
            if generation.path.join(MANIFEST).exists() {
                whole.push(generation);
            } else {
                generation.remove()?;
            }
        }
        whole.sort_unstable_by_key(|generation| generation.id);
        Ok(whole)
    }

    /// Every generation, whole or not.
    fn all(&self) -> Result<Vec<Generation>, KernelError> {
        let entries = fs::read_dir(&self.dir).map_err(failed("reading", &self.dir))?.flatten();
        Ok(entries
            .filter_map(|entry| {
                Some(Generation { id: generation_id(entry.file_name().to_str()?)?, path: entry.path() })
            })
            .collect())
    }
}

/// The name of a generation is sixteen hexadecimal digits; everything else in DIR is somebody
/// else's.
fn generation_id(name: &str) -> Option<u64> {
    let digits = name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u64::from_str_radix(name, 16).ok()).flatten()
}

impl Generation {
    pub(crate) fn pin_map(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.pin(MAPS, name, fd)
    }

    pub(crate) fn pin_program(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.pin(PROGRAMS, name, fd)
    }

    /// Where a link's name belongs.
    pub(crate) fn link_path(&self, name: &str) -> PathBuf {
        self.path.join(LINKS).join(name)
    }

    fn pin(&self, part: &str, name: &str, fd: BorrowedFd<'_>) -> Result<(), KernelError> {
        let path = self.path.join(part).join(name);
        bpf::pin(fd, &path).map_err(failed("pinning", &path))
    }

    pub(crate) fn map(&self, name: &str) -> Result<OwnedFd, KernelError> {
        self.pinned(MAPS, name)
    }

    pub(crate) fn program(&self, name: &str) -> Result<OwnedFd, KernelError> {
        self.pinned(PROGRAMS, name)
    }

    fn pinned(&self, part: &str, name: &str) -> Result<OwnedFd, KernelError> {
        let path = self.path.join(part).join(name);
        bpf::pinned(&path).map_err(failed("opening", &path))
    }

    /// Marks it as whole.
    pub(crate) fn complete(&self, build: u64) -> Result<(), KernelError> {
        let path = self.path.join(MANIFEST);
        let write = || {
            let map = bpf::create_map(bpf::MAP_TYPE_ARRAY, 4, MANIFEST_BYTES, 1, 0)?;
            let mut value = [0; MANIFEST_BYTES];
            value[..8].copy_from_slice(&LAYOUT.to_ne_bytes());
            value[8..].copy_from_slice(&build.to_ne_bytes());
            bpf::Table::<4, MANIFEST_BYTES>::new(map.as_fd())?.set(&[0; 4], &value, 0)?;
            bpf::pin(map.as_fd(), &path)
        };
        write().map_err(failed("pinning", &path))
    }

    /// Layout of its maps, and the build of its programs; `None` if the manifest is of no form that
    /// we know.
    pub(crate) fn manifest(&self) -> Option<(u64, u64)> {
        let map = bpf::pinned(&self.path.join(MANIFEST)).ok()?;
        let table = bpf::Table::<4, MANIFEST_BYTES>::new(map.as_fd()).ok()?;
        let value = table.get(&[0; 4]).ok()??;
        let (layout, build) = value.split_first_chunk()?;
        Some((u64::from_ne_bytes(*layout), u64::from_ne_bytes(build.try_into().ok()?)))
    }

    /// Whether every hook of these is still attached through it.
    pub(crate) fn has_links(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.link_path(name).exists())
    }

    /// Lets go of the links of these programs, in this order, where they are attached.
    pub(crate) fn let_go(&self, names: &[&str], leaving: &mut Leaving) -> Result<(), KernelError> {
        names.iter().try_for_each(|name| leaving.remove(&self.link_path(name)))
    }

    /// Detaches its programs. What they counted stays.
    pub(crate) fn detach(&self) -> Result<(), KernelError> {
        let links = self.path.join(LINKS);
        let entries = match fs::read_dir(&links) {
            Ok(entries) => entries,
            Err(error) => return gone(&links, Err(error)),
        };
        let mut leaving = Leaving::default();
        entries.flatten().try_for_each(|entry| leaving.remove(&entry.path()))?;
        leaving.wait();
        Ok(())
    }

    /// Removes every name, links first; what nobody else holds goes with it.
    pub(crate) fn remove(&self) -> Result<(), KernelError> {
        for part in [LINKS, PROGRAMS, MAPS] {
            let path = self.path.join(part);
            empty(&path)?;
            gone(&path, fs::remove_dir(&path))?;
        }
        empty(&self.path)?;
        gone(&self.path, fs::remove_dir(&self.path))
    }
}

/// Links whose names are removed, by number. The kernel lets go of a name's object after a grace
/// period, which may be lazy (`CONFIG_RCU_LAZY`); until then the program counts beside the one that
/// replaces it.
#[derive(Debug, Default)]
pub(crate) struct Leaving(Vec<u32>);

impl Leaving {
    fn remove(&mut self, link: &Path) -> Result<(), KernelError> {
        self.0.extend(bpf::pinned(link).and_then(|fd| bpf::link_id(fd.as_fd())).ok());
        gone(link, fs::remove_file(link))
    }

    /// Waits until the kernel has detached all of them. Once, when nothing else is left to do:
    /// what waits between two names keeps the old and the new program together for longer.
    pub(crate) fn wait(self) {
        let end = Instant::now() + DETACHED_WITHIN;
        while self.0.iter().any(|id| bpf::link_exists(*id)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !self.0.is_empty() {
            // The kernel gives up a link's number before it detaches the program
            // (`bpf_link_free`).
            std::thread::sleep(AFTER_THE_NUMBER);
        }
    }
}

fn empty(dir: &Path) -> Result<(), KernelError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return gone(dir, Err(error)),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        gone(&path, fs::remove_file(&path))?;
    }
    Ok(())
}

/// What is not there need not be removed.
fn gone(path: &Path, result: io::Result<()>) -> Result<(), KernelError> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(failed("removing", path)),
    }
}

/// Removes what agents pinned below `dir`, and `dir` itself if nothing else is in it. Detaches
/// their programs. Gives how many generations there were.
///
/// # Errors
/// [`KernelError`]: an agent holds it, it is no BPF file system, or a name cannot be removed.
pub fn unpin(dir: &Path) -> Result<usize, KernelError> {
    if !dir.exists() {
        return Ok(0);
    }
    let pins = Pins::hold_for(dir, Duration::ZERO)?;
    let all = pins.all()?;
    all.iter().try_for_each(Generation::remove)?;
    drop(pins);
    // Somebody else's names, or a mount point: then it stays.
    let _ = fs::remove_dir(dir);
    Ok(all.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sixteen_digits_are_a_generation() {
        assert_eq!(generation_id("00000000000000ff"), Some(255));
        for other in ["ff", "maps", "0000000000000000f", "+000000000000001", "00000000000000fg"] {
            assert_eq!(generation_id(other), None, "{other}");
        }
    }

    #[test]
    fn a_directory_of_another_file_system_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = Pins::hold(dir.path()).unwrap_err().to_string();
        assert!(error.contains("mount -t bpf") && error.contains(&dir.path().display().to_string()), "{error}");
    }
}
