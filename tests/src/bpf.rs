//! Somebody else's BPF programs, loaded with bpf(2) itself: each counts how often it ran and lets everything pass.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const MAP_TYPE_ARRAY: u32 = 2;

/// Where a program is attached, with its `bpf_prog_type` and `bpf_attach_type` (`include/uapi/linux/bpf.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrive.
    Ingress,
    /// Packets that leave.
    Egress,
    /// What happens to TCP sockets.
    SockOps,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 3] = [Self::Ingress, Self::Egress, Self::SockOps];

    const fn types(self) -> (u32, u32) {
        match self {
            Self::Ingress => (8, 0),
            Self::Egress => (8, 1),
            Self::SockOps => (13, 3),
        }
    }
}

/// Whether others may attach beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// `BPF_F_ALLOW_MULTI`.
    Multi,
    /// `BPF_F_ALLOW_OVERRIDE`: below this cgroup others may take its place.
    Override,
    /// Nobody.
    None,
}

/// An attached program. Dropping it detaches it.
#[derive(Debug)]
pub struct Program {
    hook: Hook,
    cgroup: File,
    program: OwnedFd,
    runs: OwnedFd,
}

#[repr(C)]
#[derive(Default)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
struct Lookup {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// # Safety
/// `attr` is the form that `command` expects, and every address in it is valid.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: bpf(2) has just given us this descriptor.
    unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }
}

fn number(fd: &impl std::os::fd::AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// One instruction: opcode, destination and source register, offset, immediate.
const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (off.cast_unsigned() as u64) << 16
        | (imm.cast_unsigned() as u64) << 32
}

impl Program {
    /// Loads the program and attaches it to a cgroup.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn attach(hook: Hook, cgroup: &Path, sharing: Sharing) -> Result<Self> {
        let mut create =
            Create { map_type: MAP_TYPE_ARRAY, key_size: 4, value_size: 8, max_entries: 1, ..Create::default() };
        // SAFETY: numbers only.
        let runs = owned(unsafe { bpf(MAP_CREATE, &mut create) }.context("cannot make a map")?);
        let code: [u64; 11] = [
            insn(0x62, 10, 0, -4, 0),              // *(u32 *)(r10 - 4) = 0
            insn(0xbf, 2, 10, 0, 0),               // r2 = r10
            insn(0x07, 2, 0, 0, -4),               // r2 += -4
            insn(0x18, 1, 1, 0, runs.as_raw_fd()), // r1 = the map
            0,                                     // (second half of it)
            insn(0x85, 0, 0, 0, 1),                // r0 = map_lookup_elem(r1, r2)
            insn(0x15, 0, 0, 2, 0),                // if r0 == 0, over the next two
            insn(0xb7, 1, 0, 0, 1),                // r1 = 1
            insn(0xdb, 0, 1, 0, 0),                // *(u64 *)r0 += r1, atomically
            insn(0xb7, 0, 0, 0, 1),                // r0 = 1: pass
            insn(0x95, 0, 0, 0, 0),                // return r0
        ];
        let (prog_type, attach_type) = hook.types();
        let mut load = Load {
            prog_type,
            insn_cnt: code.len() as u32,
            insns: code.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: 0,
            prog_name: *b"somebody_elses\0\0",
            prog_ifindex: 0,
            expected_attach_type: attach_type,
        };
        // SAFETY: code and licence live over the call.
        let program = owned(unsafe { bpf(PROG_LOAD, &mut load) }.context("cannot load a program")?);
        let cgroup = File::open(cgroup).with_context(|| format!("cannot open {}", cgroup.display()))?;
        let mut attach = Attach {
            target_fd: number(&cgroup),
            attach_bpf_fd: number(&program),
            attach_type,
            attach_flags: match sharing {
                Sharing::Multi => 2,
                Sharing::Override => 1,
                Sharing::None => 0,
            },
            replace_bpf_fd: 0,
        };
        // SAFETY: numbers only.
        unsafe { bpf(PROG_ATTACH, &mut attach) }.with_context(|| format!("cannot attach to {hook:?}"))?;
        Ok(Self { hook, cgroup, program, runs })
    }

    /// How often it ran.
    ///
    /// # Panics
    /// The kernel does not read its own map.
    #[must_use]
    pub fn runs(&self) -> u64 {
        let (key, mut value) = (0u32, 0u64);
        let mut lookup = Lookup {
            map_fd: number(&self.runs),
            pad: 0,
            key: (&raw const key) as u64,
            value: (&raw mut value) as u64,
            flags: 0,
        };
        // SAFETY: key and value are as long as the map's.
        unsafe { bpf(MAP_LOOKUP_ELEM, &mut lookup) }.expect("an array has its element");
        value
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let mut detach = Attach {
            target_fd: number(&self.cgroup),
            attach_bpf_fd: number(&self.program),
            attach_type: self.hook.types().1,
            attach_flags: 0,
            replace_bpf_fd: 0,
        };
        // SAFETY: numbers only. A cgroup that is gone has detached it already.
        let _ = unsafe { bpf(PROG_DETACH, &mut detach) };
    }
}
