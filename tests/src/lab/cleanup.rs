//! Nothing stays behind: not after a panic, not after Ctrl-C, not after a crash.
//!
//! A lab is a cgroup directory and a temporary directory named `guardrail-lab-PID-START-NUMBER`,
//! where PID and START (clock ticks since boot, proc_pid_stat(5)) name the owning process.
//! Namespaces have no names and children die with their owner, so those two directories are all
//! that a crash can leave; the next lab removes them when their owner is dead.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Mutex, Once,
        atomic::{AtomicI32, AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};

use super::cgroup;

/// Prefix of everything that a lab creates by name.
pub const PREFIX: &str = "guardrail-lab-";

static LIVE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A name that is unique on this machine and tells its owner.
///
/// # Errors
/// `/proc` cannot be read.
pub fn claim_name() -> Result<String> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let pid = std::process::id();
    let start = start_time(pid).context("cannot read our own start time from /proc")?;
    let name = format!("{PREFIX}{pid}-{start}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    LIVE.lock().expect("no holder panics").insert(name.clone());
    install_signal_handler();
    Ok(name)
}

/// Removes what has this name.
///
/// # Errors
/// A process cannot be killed or a directory not removed.
pub fn remove(name: &str) -> Result<()> {
    let removed = cgroup::remove(&cgroup_directory(name)?);
    let temporary = temporary_directory(name);
    if temporary.exists() {
        unmount_below(&temporary);
        fs::remove_dir_all(&temporary).with_context(|| format!("cannot remove {}", temporary.display()))?;
    }
    LIVE.lock().expect("no holder panics").remove(name);
    removed
}

/// Removes what dead owners left.
///
/// # Errors
/// As [`remove`].
pub fn remove_leftovers() -> Result<()> {
    let mut names = BTreeSet::new();
    for parent in [cgroup::mount()?, std::env::temp_dir()] {
        for entry in fs::read_dir(&parent).with_context(|| format!("cannot read {}", parent.display()))?.flatten() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    for name in names.iter().filter(|n| owner_is_dead(n) == Some(true)) {
        remove(name)?;
    }
    Ok(())
}

/// The lab's cgroup.
///
/// # Errors
/// No cgroup v2.
pub fn cgroup_directory(name: &str) -> Result<PathBuf> {
    Ok(cgroup::mount()?.join(name))
}

/// The lab's files.
#[must_use]
pub fn temporary_directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

fn owner_is_dead(name: &str) -> Option<bool> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let pid: u32 = parts.next()?.parse().ok()?;
    let start: u64 = parts.next()?.parse().ok()?;
    Some(start_time(pid) != Some(start))
}

/// Field 22 of `/proc/PID/stat`, counted after the command's closing parenthesis.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<_> =
        mounts.lines().filter_map(|l| l.split(' ').nth(4)).filter(|p| Path::new(p).starts_with(directory)).collect();
    points.sort_unstable();
    for point in points.into_iter().rev() {
        if let Ok(point) = std::ffi::CString::new(point) {
            // SAFETY: plain system call with a valid string.
            unsafe { libc::umount2(point.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(signal: libc::c_int) {
    let byte = u8::try_from(signal).unwrap_or(0);
    // SAFETY: write(2) is async-signal-safe; the pipe is open as long as we live.
    unsafe { libc::write(SIGNAL_PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

/// On SIGINT, SIGTERM or SIGHUP: remove every live lab, then end as the signal would have ended us.
fn install_signal_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for two descriptors.
        let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
        assert_eq!(made, 0, "cannot make a pipe");
        SIGNAL_PIPE.store(ends[1], Ordering::Relaxed);
        // SAFETY: pipe2 just gave us this descriptor and nobody else has it.
        let reader = unsafe { OwnedFd::from_raw_fd(ends[0]) };
        thread::spawn(move || {
            use std::io::Read as _;
            let mut signal = [0];
            if fs::File::from(reader).read_exact(&mut signal).is_ok() {
                let names: Vec<_> = LIVE.lock().expect("no holder panics").iter().cloned().collect();
                for name in names {
                    let _ = remove(&name);
                }
                // SAFETY: ends this process at once, which is the point.
                unsafe { libc::_exit(128 + i32::from(signal[0])) };
            }
        });
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: the handler only writes to a pipe.
            unsafe { libc::signal(signal, on_signal as *const () as libc::sighandler_t) };
        }
    });
}
