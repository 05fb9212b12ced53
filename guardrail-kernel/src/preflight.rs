//! Checks before anything is loaded, so that each refusal is one clear sentence.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
};

use crate::error::KernelError;

/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// `BPF_FS_MAGIC`.
pub(crate) const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Inode of the initial PID namespace (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Names the first capability that is missing. Only UDP needs programs at a cgroup's network hooks.
pub(crate) fn capabilities(udp: bool) -> Result<(), KernelError> {
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|source| KernelError::System { what: "reading /proc/self/status".to_owned(), source })?;
    match missing_capability(effective(&status).unwrap_or(0), udp) {
        None => Ok(()),
        Some((capability, why)) => Err(KernelError::MissingCapability { capability, why }),
    }
}

/// Whether programs may be attached to a cgroup's network hooks.
pub(crate) fn may_attach_to_cgroups() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    missing_capability(effective(&status).unwrap_or(0), true).is_none()
}

/// The effective set of a `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// What is missing first, and what needs it. `CAP_SYS_ADMIN` stands for BPF and PERFMON
/// (capabilities(7)).
fn missing_capability(set: u64, udp: bool) -> Option<(&'static str, &'static str)> {
    let has = |bit: u32| set >> bit & 1 == 1;
    let needed = [
        (has(CAP_BPF) || has(CAP_SYS_ADMIN), "CAP_BPF", "to load programs and maps"),
        (has(CAP_PERFMON) || has(CAP_SYS_ADMIN), "CAP_PERFMON", "to attach tracing programs"),
        (
            has(CAP_NET_ADMIN) || !udp,
            "CAP_NET_ADMIN",
            "to attach programs to a cgroup's network hooks; not with --udp=off",
        ),
    ];
    needed.into_iter().find_map(|(there, name, why)| (!there).then_some((name, why)))
}

/// The magic number of a path's file system (statfs(2)).
pub(crate) fn file_system(path: &Path) -> io::Result<i64> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated path, and room for the answer.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    #[expect(clippy::allow_attributes, reason = "the type of f_type differs between platforms")]
    #[allow(clippy::unnecessary_cast, reason = "the type of f_type differs between platforms")]
    Ok(stat.f_type as i64)
}

/// Checks that the path is a cgroup v2 directory; gives its inode, which is its id.
pub(crate) fn cgroup2(path: &Path) -> Result<u64, KernelError> {
    let not = |reason: String| KernelError::NotCgroup2 { path: path.to_owned(), reason };
    let metadata = fs::metadata(path).map_err(|error| not(error.to_string()))?;
    if file_system(path).map_err(|error| not(error.to_string()))? != CGROUP2_MAGIC {
        return Err(not("its file system is another".to_owned()));
    }
    Ok(metadata.ino())
}

/// Whether this process sees the processes of the whole node (hostPID). `None`: cannot tell.
pub(crate) fn in_host_pid_namespace() -> Option<bool> {
    fs::metadata("/proc/self/ns/pid").ok().map(|metadata| metadata.ino() == INITIAL_PID_NAMESPACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_missing_capability_is_named() {
        let all = 1 << CAP_NET_ADMIN | 1 << CAP_BPF | 1 << CAP_PERFMON;
        let name = |set: u64| missing_capability(set, true).map(|(name, _)| name);
        assert_eq!(name(all), None);
        assert_eq!(name(0), Some("CAP_BPF"));
        assert_eq!(name(all & !(1 << CAP_PERFMON)), Some("CAP_PERFMON"));
        assert_eq!(name(all & !(1 << CAP_NET_ADMIN)), Some("CAP_NET_ADMIN"));
        assert_eq!(name(1 << CAP_SYS_ADMIN | 1 << CAP_NET_ADMIN), None);
        assert_eq!(missing_capability(all & !(1 << CAP_NET_ADMIN), false), None);
    }

    #[test]
    fn the_effective_set_is_read_from_the_status_file() {
        assert_eq!(effective("Name:\tx\nCapPrm:\tff\nCapEff:\t000001fffeffffff\n"), Some(0x01ff_feff_ffff));
        assert_eq!(effective("Name:\tx\n"), None);
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_refused_with_its_path() {
        let error = cgroup2(Path::new("/proc")).expect_err("not a cgroup").to_string();
        assert!(error.contains("/proc") && error.contains("--cgroup-root"), "{error}");
        assert!(cgroup2(Path::new("/no/such/place")).is_err());
    }
}
