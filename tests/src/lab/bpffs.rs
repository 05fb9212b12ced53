//! A BPF file system of the lab's own, for pins. It is unmounted with the lab's directory, which lets go of everything pinned in it.

use std::{
    ffi::CString,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Mounts one in a directory below `directory`, and gives its path.
///
/// # Errors
/// It cannot be mounted.
pub fn mount(directory: &Path) -> Result<PathBuf> {
    let point = directory.join("bpf");
    fs::create_dir(&point).with_context(|| format!("cannot make {}", point.display()))?;
    let target = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: terminated strings.
    match unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) } {
        0 => Ok(point),
        _ => Err(io::Error::last_os_error()).context("cannot mount a BPF file system"),
    }
}
