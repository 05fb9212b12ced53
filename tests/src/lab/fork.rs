//! Forked processes that allocate nothing.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    path::Path,
};

use super::netns::Netns;

/// A forked process. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Forked(libc::pid_t);

impl Forked {
    /// Forks. The child joins the cgroup and the namespace, then runs `body` and ends.
    ///
    /// `body` runs in the copy of a process with many threads: it must make system calls only (no
    /// allocation, no locks). All descriptors but `keep` are closed, so that the child holds
    /// nothing open that the test closes.
    pub fn fork(cgroup: &Path, netns: Option<&Netns>, keep: RawFd, body: impl FnOnce()) -> Self {
        let procs = File::options().write(true).open(cgroup.join("cgroup.procs")).expect("the cgroup is there");
        let netns = netns.map_or(-1, |netns| netns.as_fd().as_raw_fd());
        // SAFETY: the child only makes system calls before it ends.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
        if pid == 0 {
            // SAFETY: system calls on descriptors of ours; nothing is allocated.
            unsafe {
                // First of all: what another thread of the test closes meanwhile must be closed.
                close_all_but(&mut [keep, netns, procs.as_raw_fd()]);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // 0 is the writer itself.
                let joined = libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) == 1
                    && (netns < 0 || libc::setns(netns, libc::CLONE_NEWNET) == 0);
                close_all_but(&mut [keep]);
                if joined {
                    body();
                }
                libc::_exit(0);
            }
        }
        Self(pid)
    }
}

/// Closes every descriptor from 3 on but these (-1: none).
fn close_all_but(keep: &mut [RawFd]) {
    keep.sort_unstable();
    let mut from = 3;
    for kept in keep.iter().filter_map(|fd| libc::c_uint::try_from(*fd).ok()) {
        if kept >= from {
            close_range(from, kept.saturating_sub(1));
            from = kept + 1;
        }
    }
    close_range(from, libc::c_uint::MAX);
}

fn close_range(from: libc::c_uint, to: libc::c_uint) {
    if from <= to {
        // SAFETY: no pointers. Linux ≥ 5.9.
        unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        // SAFETY: our own child, which nobody else waits for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}
