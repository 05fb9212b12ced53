//! A BPF file system of the lab's own, for pins.

use std::{
    ffi::CString,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// A mounted BPF file system. It is unmounted with the lab's directory, which lets go of everything
/// pinned in it.
#[derive(Debug)]
pub struct BpfFs(PathBuf);

impl BpfFs {
    /// Mounts one below the directory of a lab.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn mount(directory: &Path) -> Result<Self> {
        let point = directory.join("bpf");
        fs::create_dir(&point).with_context(|| format!("cannot make {}", point.display()))?;
        let target = CString::new(point.as_os_str().as_bytes())?;
        // SAFETY: terminated strings.
        match unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) } {
            0 => Ok(Self(point)),
            _ => Err(io::Error::last_os_error()).context("cannot mount a BPF file system"),
        }
    }

    /// A directory for pins, not made yet.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.0.join("guardrail")
    }

    /// Directories of the generations that are pinned, sorted.
    #[must_use]
    pub fn generations(&self) -> Vec<PathBuf> {
        let mut all: Vec<_> =
            fs::read_dir(self.pins()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        all.sort();
        all
    }
}
