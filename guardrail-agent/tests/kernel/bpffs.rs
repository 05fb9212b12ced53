//! A BPF file system for pins.

use std::{ffi::CString, fs, os::unix::ffi::OsStrExt as _, path::PathBuf};

/// A BPF file system of the test's own. Unmounting it lets go of everything that was pinned in it.
pub(crate) struct BpfFs(tempfile::TempDir);

impl BpfFs {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let target = CString::new(dir.path().as_os_str().as_bytes()).expect("a path");
        // SAFETY: terminated strings.
        let result = unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) };
        assert_eq!(result, 0, "a BPF file system is mounted: {}", std::io::Error::last_os_error());
        Self(dir)
    }

    /// A directory for pins, not made yet.
    pub(crate) fn pins(&self) -> PathBuf {
        self.0.path().join("guardrail")
    }

    /// Names of the generations.
    pub(crate) fn generations(&self) -> Vec<PathBuf> {
        let mut all: Vec<_> =
            fs::read_dir(self.pins()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        all.sort();
        all
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let target = CString::new(self.0.path().as_os_str().as_bytes()).expect("a path");
        // SAFETY: a terminated string.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}
