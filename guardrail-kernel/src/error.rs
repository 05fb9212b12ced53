//! Why the kernel side cannot start: one sentence each, with what to do.

use std::{io, path::PathBuf};

/// Why the kernel side cannot start.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The build skipped the eBPF programs (`AYA_BUILD_SKIP=1`).
    #[error(
        "this build of guardrail-agent has no eBPF programs (it was built with AYA_BUILD_SKIP=1): build it again without that variable"
    )]
    NoPrograms,
    /// A capability is missing.
    #[error(
        "guardrail-agent lacks {capability} ({why}): run it as root, or add {capability} to the container's securityContext.capabilities"
    )]
    MissingCapability {
        /// `CAP_BPF`, `CAP_PERFMON`, `CAP_NET_ADMIN` or `CAP_SYS_ADMIN`.
        capability: &'static str,
        /// What needs it.
        why: &'static str,
    },
    /// The kernel has no BTF.
    #[error("{path} cannot be read ({source}): guardrail needs a kernel built with CONFIG_DEBUG_INFO_BTF=y", path = path.display())]
    NoBtf {
        /// Where BTF was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel's BTF does not parse.
    #[error("the kernel's type information is not usable: {reason}")]
    BadBtf {
        /// What is wrong.
        reason: String,
    },
    /// A structure member that a hook reads does not exist in this kernel.
    #[error(
        "this kernel has no {member}, which the hook {hook} reads: guardrail does not support this kernel; please report its version (uname -r)"
    )]
    MissingMember {
        /// `struct.member`.
        member: String,
        /// Hook.
        hook: &'static str,
    },
    /// No cgroup v2 is mounted.
    #[error(
        "no cgroup v2 file system is mounted ({reason}): mount one (mount -t cgroup2 none DIR) and pass it as --cgroup-root"
    )]
    NoCgroup2 {
        /// What was looked at.
        reason: String,
    },
    /// The path given is not the root of a cgroup v2 file system.
    #[error("{path} is not a cgroup v2 directory ({reason}): pass the cgroup2 mount point as --cgroup-root", path = path.display())]
    NotCgroup2 {
        /// Path given.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// `--pin` names a directory of another file system.
    #[error("--pin: {path} is not on a BPF file system: mount one (mount -t bpf bpf DIR), or use a directory below /sys/fs/bpf", path = path.display())]
    NotBpfFs {
        /// Path given.
        path: PathBuf,
    },
    /// Another agent holds the pins.
    #[error("--pin: another agent uses {path}: stop it, or give each its own directory", path = path.display())]
    PinsHeld {
        /// The directory.
        path: PathBuf,
    },
    /// bpf() said EPERM although the capabilities are there.
    #[error(
        "the kernel refused {what} with EPERM although the capabilities are there: check the seccomp profile, the memlock limit (kernels before 5.11), \
         kernel lockdown, and that the capabilities hold in the initial user namespace"
    )]
    Denied {
        /// What was refused.
        what: String,
    },
    /// Attaching to the cgroup root said EPERM.
    #[error("the kernel refused to attach {program} to {path} with EPERM: another program holds that cgroup without BPF_F_ALLOW_MULTI; detach it (bpftool cgroup tree)", path = path.display())]
    CgroupHeld {
        /// Our program.
        program: &'static str,
        /// cgroup root.
        path: PathBuf,
    },
    /// The verifier or the kernel refused a program or map.
    #[error("{what} failed: {reason}")]
    Refused {
        /// Which step, with the hook's name.
        what: String,
        /// The kernel's or the library's answer.
        reason: String,
    },
    /// A system call failed.
    #[error("{what} failed: {source}")]
    System {
        /// Which.
        what: String,
        /// Why.
        source: io::Error,
    },
}

/// The thread that reads the kernel's maps ended by itself. What it had read and not reported is
/// lost; with pins it is not, because the maps stay, and only a checkpoint says that it was
/// reported.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the thread that reads the kernel's maps panicked")]
pub struct ReaderDied;
