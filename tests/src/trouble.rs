//! Troubles that a test makes for one agent, and for nobody else on the machine: a small disk, few
//! descriptors, little memory, a clock that steps.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::AsRawFd as _,
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::lab;

/// Lets the process start in a mount namespace of its own, where each of `directories` is a file
/// system in memory of `kib` KiB with mount `options` (as in `ro`). It ends with the process.
///
/// # Errors
/// A directory cannot be made.
pub fn small_disk(command: &mut Command, directories: &[&Path], kib: u32, options: &str) -> Result<()> {
    let data = CString::new(format!("size={kib}k"))?;
    let flags = if options == "ro" { libc::MS_RDONLY } else { 0 };
    let mut points = Vec::new();
    for directory in directories {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        points.push(CString::new(directory.as_os_str().as_bytes())?);
    }
    let mount = move || {
        let null = std::ptr::null();
        // SAFETY: system calls with terminated strings that live as long as the closure; what they
        // concern is this process alone, which left the machine's mount namespace first.
        unsafe {
            if libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(null, c"/".as_ptr(), null, libc::MS_REC | libc::MS_PRIVATE, null.cast()) != 0
            {
                return Err(io::Error::last_os_error());
            }
            for point in &points {
                if libc::mount(null, point.as_ptr(), c"tmpfs".as_ptr(), flags, data.as_ptr().cast()) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    };
    // SAFETY: unshare(2) and mount(2) are async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(mount) };
    Ok(())
}

/// Fills the file system that `directory` is on to the last byte with a file of this name; removing
/// it gives the room back.
///
/// # Errors
/// Something else than a full file system ends it.
pub fn fill_disk(directory: &Path, name: &str) -> Result<PathBuf> {
    use io::Write as _;
    let path = directory.join(name);
    let mut file = fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    loop {
        match file.write(&[b'x'; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(path),
            Err(error) => return Err(error).with_context(|| format!("cannot fill {}", path.display())),
        }
    }
}

/// Lets the process have at most `limit` file descriptors.
pub fn few_descriptors(command: &mut Command, limit: u64) {
    let set = move || {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: the structure is read only.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: setrlimit(2) is async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(set) };
}

/// A memory cgroup (v1) of the test's own for one process: beyond its limit the kernel kills.
/// Dropping it removes it; the process must have ended.
#[derive(Debug)]
pub struct MemoryLimit(PathBuf);

impl MemoryLimit {
    /// Where the hierarchy is mounted, if the memory controller is one of cgroup v1.
    const HIERARCHY: &str = "/sys/fs/cgroup/memory";

    /// Lets the process be born in a memory cgroup without a limit. `None`: this machine has no
    /// such hierarchy.
    ///
    /// # Errors
    /// The cgroup cannot be made.
    pub fn give(command: &mut Command) -> Result<Option<Self>> {
        let hierarchy = Path::new(Self::HIERARCHY);
        if !hierarchy.join("memory.limit_in_bytes").exists() {
            return Ok(None);
        }
        let limit = Self(hierarchy.join(format!("guardrail-test-{}", std::process::id())));
        fs::create_dir(&limit.0).with_context(|| format!("cannot make {}", limit.0.display()))?;
        let procs = fs::File::options().write(true).open(limit.0.join("cgroup.procs"))?;
        // SAFETY: write(2) is async-signal-safe; the buffer is static and the descriptor open.
        let join = move || match unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) } {
            1 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        // SAFETY: the closure makes that one call.
        unsafe { command.pre_exec(join) };
        Ok(Some(limit))
    }

    /// Lets the process take so many bytes more than it has, and no more: its own, the kernel's for
    /// it, and cached files.
    ///
    /// # Errors
    /// The limit cannot be set.
    pub fn leave(&self, bytes: u64) -> Result<()> {
        let used: u64 = fs::read_to_string(self.0.join("memory.usage_in_bytes"))?.trim().parse()?;
        fs::write(self.0.join("memory.limit_in_bytes"), (used + bytes).to_string()).context("cannot set the limit")
    }

    /// How many processes the kernel has killed in it.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn kills(&self) -> Result<u64> {
        let control = fs::read_to_string(self.0.join("memory.oom_control"))?;
        let kills = control.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(kills.context("memory.oom_control has no oom_kill")?.trim().parse()?)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let gone = lab::wait_until(Duration::from_secs(10), "the memory cgroup goes", || fs::remove_dir(&self.0).ok());
        if gone.is_err() && !std::thread::panicking() {
            panic!("{} cannot be removed", self.0.display());
        }
    }
}

/// A wall clock (`CLOCK_REALTIME`) of one process's own, made by Debian's libfaketime; no other
/// clock is touched.
#[derive(Debug)]
pub struct WallClock(PathBuf);

impl WallClock {
    /// Where Debian's `libfaketime` has the library for programs with threads.
    const LIBRARY: &str = "/usr/lib/*/faketime/libfaketimeMT.so.1";

    /// Gives the process a clock that is right until it is set. `file` is what sets it.
    ///
    /// # Errors
    /// libfaketime is not there: `cargo xtask setup` installs it.
    pub fn give(command: &mut Command, file: PathBuf) -> Result<Self> {
        let multiarch = fs::read_dir("/usr/lib")?.flatten().map(|e| e.path().join("faketime/libfaketimeMT.so.1"));
        let library = multiarch
            .into_iter()
            .find(|path| path.exists())
            .with_context(|| format!("no {}: run `cargo xtask setup`", Self::LIBRARY))?;
        let clock = Self(file);
        clock.set("+0")?;
        command
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", &clock.0)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DISABLE_SHM", "1");
        Ok(clock)
    }

    /// Steps it to this distance from the true time, in seconds: `-3600`, `+3600`, `+0`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, distance: &str) -> Result<()> {
        let next = self.0.with_extension("next");
        fs::write(&next, format!("{distance}\n"))?;
        fs::rename(next, &self.0).context("cannot set the clock")
    }
}
