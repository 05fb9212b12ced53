//! Forked processes that allocate nothing, and threads in another network namespace.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    path::Path,
};

/// A forked process. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub(crate) struct Child(libc::pid_t);

impl Child {
    /// Forks. The child joins the cgroup and the namespace, then runs `body` and ends.
    ///
    /// `body` runs in the copy of a process with many threads: it must make system calls only (no allocation, no locks). All descriptors but `keep` are closed, so
    /// that the child holds nothing open that the test closes.
    pub(crate) fn fork(cgroup: &Path, netns: Option<&OwnedFd>, keep: RawFd, body: impl FnOnce()) -> Self {
        let procs = File::options().write(true).open(cgroup.join("cgroup.procs")).expect("the cgroup is there");
        let netns = netns.map_or(-1, |netns| netns.as_raw_fd());
        // SAFETY: the child only makes system calls before it ends.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
        if pid == 0 {
            // SAFETY: system calls on descriptors of ours; nothing is allocated.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // 0 is the writer itself.
                let joined = libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) == 1
                    && (netns < 0 || libc::setns(netns, libc::CLONE_NEWNET) == 0);
                close_all_but(keep);
                if joined {
                    body();
                }
                libc::_exit(0);
            }
        }
        Self(pid)
    }
}

/// Closes every descriptor from 3 on but one.
fn close_all_but(keep: RawFd) {
    let close = |from: libc::c_uint, to: libc::c_uint| {
        if from <= to {
            // SAFETY: no pointers. Linux ≥ 5.9.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        }
    };
    match libc::c_uint::try_from(keep) {
        Ok(keep) => {
            close(3, keep.saturating_sub(1));
            close(keep.max(2) + 1, libc::c_uint::MAX);
        }
        Err(_) => close(3, libc::c_uint::MAX),
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child, which nobody else waits for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// Makes the calling thread (or process) run on this CPU only.
pub(crate) fn pin(cpu: usize) {
    // SAFETY: a set on the stack; 0 is the caller.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// Whether the running kernel is older than this version.
pub(crate) fn is_linux_before(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc");
    let version: Vec<u32> = release.split(['.', '-']).map_while(|part| part.parse().ok()).take(2).collect();
    version < vec![major, minor]
}

/// Runs `work` on a thread in this network namespace.
pub(crate) fn in_netns<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no pointers; the thread ends with the work.
            let result = unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "setns: {}", io::Error::last_os_error());
            work()
        });
        thread.join().expect("the thread in the namespace")
    })
}

/// A new network namespace.
pub(crate) fn new_netns() -> OwnedFd {
    let thread = std::thread::spawn(|| {
        // SAFETY: no pointers; only this thread, which ends, leaves the namespace it was in.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "unshare: {}", io::Error::last_os_error());
        File::open("/proc/thread-self/ns/net").expect("the thread's namespace").into()
    });
    thread.join().expect("the thread that made the namespace")
}
