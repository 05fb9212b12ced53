//! Runs a program as a container runtime would: a root of its own that is read-only, mounts,
//! exactly these capabilities, no new privileges, a seccomp filter.
//!
//! Nothing stays: mounts live in the process's own mount namespace.

use std::{
    ffi::CString,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    ptr,
};

use anyhow::{Context as _, Result};

/// Capabilities by their numbers in capability.h.
pub const CAPABILITIES: [(&str, u32); 4] = [("NET_ADMIN", 12), ("SYS_RESOURCE", 24), ("PERFMON", 38), ("BPF", 39)];

/// What the default seccomp profiles of containerd and docker refuse to the agent. Their list names
/// what is allowed; these are the calls of x86-64 that it leaves out or gives to other capabilities
/// only. `bpf` and `perf_event_open` are allowed with `CAP_BPF` and `CAP_PERFMON`.
pub const REFUSED_BY_DEFAULT: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_chroot,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mbind,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// A container to be.
#[derive(Clone, Debug)]
pub struct Container {
    root: PathBuf,
    mounts: Vec<(PathBuf, PathBuf, bool)>,
    /// Numbers of the capabilities that it keeps.
    pub capabilities: Vec<u32>,
    /// Whether it sees the node's processes (`hostPID`).
    pub host_pid: bool,
    /// System calls that give EPERM.
    pub refused: Vec<libc::c_long>,
}

impl Container {
    /// A container whose root is this directory, without capabilities, refused what runtimes refuse
    /// by default. `/proc` and `/sys` are mounted as in any container.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            mounts: Vec::new(),
            capabilities: Vec::new(),
            host_pid: true,
            refused: REFUSED_BY_DEFAULT.to_vec(),
        }
    }

    /// A root with this program of the machine's, as `/usr/bin/NAME`, and the libraries that it
    /// needs.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn of_program(root: PathBuf, program: &Path) -> Result<Self> {
        let name = program.file_name().context("a program has a name")?;
        fs::create_dir_all(&root)?;
        let mut container = Self::new(root);
        for library in ["lib", "lib64"] {
            let library = Path::new("/").join(library);
            if library.exists() {
                container = container.mount(&library.canonicalize()?, &library, true);
            }
        }
        container = container.mount(Path::new("/usr/lib"), Path::new("/usr/lib"), true);
        Ok(container.mount(program, &Path::new("/usr/bin").join(name), true))
    }

    /// Shows a directory or file of the machine inside.
    #[must_use]
    pub fn mount(mut self, outside: &Path, inside: &Path, read_only: bool) -> Self {
        self.mounts.push((outside.to_owned(), inside.to_owned(), read_only));
        self
    }

    /// Makes the mount points, and gives what turns a process into the container: to be called
    /// between fork and exec, in the network namespace where it is to live.
    ///
    /// # Errors
    /// A mount point cannot be made.
    pub fn prepare(&self) -> Result<impl FnMut() -> io::Result<()> + Send + Sync + 'static> {
        let inside = |path: &Path| self.root.join(path.strip_prefix("/").unwrap_or(path));
        for point in ["proc", "sys"] {
            fs::create_dir_all(self.root.join(point))?;
        }
        for (outside, point, _) in &self.mounts {
            let point = inside(point);
            if outside.is_dir() {
                fs::create_dir_all(&point)?;
            } else {
                fs::create_dir_all(point.parent().context("a file lies in a directory")?)?;
                fs::File::create(&point)?;
            }
        }
        let c = |path: &Path| CString::new(path.as_os_str().as_bytes()).context("no path has a zero byte");
        let root = c(&self.root)?;
        let (proc, sys) = (c(&self.root.join("proc"))?, c(&self.root.join("sys"))?);
        let mounts = self
            .mounts
            .iter()
            .map(|(outside, point, read_only)| Ok((c(outside)?, c(&inside(point))?, *read_only)))
            .collect::<Result<Vec<_>>>()?;
        let keep = self.capabilities.clone();
        let own_pids = !self.host_pid;
        let filter = seccomp(&self.refused);
        // Only system calls and memory that is there already: this runs after fork in a process
        // that had threads.
        Ok(move || {
            let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP | if own_pids { libc::CLONE_NEWPID } else { 0 };
            // SAFETY: no pointers.
            check(unsafe { libc::unshare(namespaces) })?;
            if own_pids {
                first_of_new_pids()?;
            }
            mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
            bind(&root, &root, false)?;
            for (outside, point, read_only) in &mounts {
                bind(outside, point, *read_only)?;
            }
            mount(Some(c"proc"), &proc, Some(c"proc"), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC)?;
            mount(Some(c"sysfs"), &sys, Some(c"sysfs"), libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV)?;
            mount(None, &root, None, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY)?;
            // SAFETY: terminated strings, numbers, and a filter that outlives the calls.
            unsafe {
                check(libc::chroot(root.as_ptr()))?;
                check(libc::chdir(c"/".as_ptr()))?;
                // At exec a process of uid 0 gets what the bounding set still has.
                for capability in (0..64).filter(|c| !keep.contains(c)) {
                    if libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) == 1 {
                        check(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0))?;
                    }
                }
                check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
                let program =
                    libc::sock_fprog { len: filter.len().try_into().unwrap_or(0), filter: filter.as_ptr().cast_mut() };
                check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0))
            }
        })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn mount(
    source: Option<&std::ffi::CStr>,
    target: &std::ffi::CStr,
    kind: Option<&std::ffi::CStr>,
    flags: libc::c_ulong,
) -> io::Result<()> {
    let pointer = |s: Option<&std::ffi::CStr>| s.map_or(ptr::null(), std::ffi::CStr::as_ptr);
    // SAFETY: terminated strings or null, as mount(2) takes them.
    check(unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, ptr::null()) })
}

fn bind(outside: &std::ffi::CStr, point: &std::ffi::CStr, read_only: bool) -> io::Result<()> {
    mount(Some(outside), point, None, libc::MS_BIND | libc::MS_REC)?;
    if read_only {
        mount(None, point, None, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY)?;
    }
    Ok(())
}

/// Forks into the new process id namespace. The parent stays outside, waits, and ends as its child
/// ended; if it is killed, so is the child.
fn first_of_new_pids() -> io::Result<()> {
    // SAFETY: system calls without pointers, but for a status on the stack; the parent never
    // returns.
    unsafe {
        let child = libc::fork();
        check(child)?;
        if child == 0 {
            return check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL));
        }
        // Whoever waits for our exec must not see these open.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
        let mut status = 0;
        while libc::waitpid(child, &raw mut status, 0) < 0 {}
        libc::_exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) })
    }
}

/// A filter that refuses these calls with EPERM, and `clone3` with ENOSYS as runtimes do, so that
/// libraries fall back to `clone`.
fn seccomp(refused: &[libc::c_long]) -> Vec<libc::sock_filter> {
    let code = |class: u32, jt: u8, k: u32| libc::sock_filter { code: u16::try_from(class).unwrap_or(0), jt, jf: 0, k };
    let load = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0);
    let answer = |action: u32| code(libc::BPF_RET | libc::BPF_K, 0, action);
    let error = |errno: i32| answer(libc::SECCOMP_RET_ERRNO | errno.cast_unsigned());
    let mut filter = vec![load];
    for (call, errno) in refused.iter().map(|call| (*call, libc::EPERM)).chain([(libc::SYS_clone3, libc::ENOSYS)]) {
        // Equal: the next instruction; else jump over it.
        filter.push(libc::sock_filter {
            jf: 1,
            ..code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, u32::try_from(call).unwrap_or(u32::MAX))
        });
        filter.push(error(errno));
    }
    filter.push(answer(libc::SECCOMP_RET_ALLOW));
    filter
}
