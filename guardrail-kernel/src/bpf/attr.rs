//! `union bpf_attr` by command, and the numbers of the commands (`include/uapi/linux/bpf.h`).
//!
//! xtask's `verifier_shim.rs` is compiled alone and includes this file: it names nothing but std.

use std::ffi::c_long;

pub(crate) const MAP_CREATE: c_long = 0;
pub(crate) const MAP_LOOKUP_ELEM: c_long = 1;
pub(crate) const MAP_UPDATE_ELEM: c_long = 2;
pub(crate) const MAP_DELETE_ELEM: c_long = 3;
pub(crate) const MAP_GET_NEXT_KEY: c_long = 4;
pub(crate) const PROG_LOAD: c_long = 5;
pub(crate) const OBJ_PIN: c_long = 6;
pub(crate) const OBJ_GET: c_long = 7;
pub(crate) const PROG_ATTACH: c_long = 8;
pub(crate) const PROG_DETACH: c_long = 9;
pub(crate) const OBJ_GET_INFO_BY_FD: c_long = 15;
pub(crate) const MAP_LOOKUP_AND_DELETE_ELEM: c_long = 21;
pub(crate) const MAP_LOOKUP_BATCH: c_long = 24;
pub(crate) const LINK_CREATE: c_long = 28;
pub(crate) const LINK_GET_FD_BY_ID: c_long = 30;
pub(crate) const ITER_CREATE: c_long = 33;
/// `BPF_TRACE_ITER` of `enum bpf_attach_type`.
pub(crate) const TRACE_ITER: u32 = 28;
/// `BPF_CGROUP_GETSOCKOPT` of the same.
pub(crate) const CGROUP_GETSOCKOPT: u32 = 21;

/// One element of a map.
#[repr(C)]
pub(crate) struct Element {
    pub(crate) map_fd: u32,
    pub(crate) pad: u32,
    pub(crate) key: u64,
    pub(crate) value_or_next: u64,
    pub(crate) flags: u64,
}

/// Many elements of a map.
#[repr(C)]
pub(crate) struct Batch {
    pub(crate) in_batch: u64,
    pub(crate) out_batch: u64,
    pub(crate) keys: u64,
    pub(crate) values: u64,
    pub(crate) count: u32,
    pub(crate) map_fd: u32,
    pub(crate) elem_flags: u64,
    pub(crate) flags: u64,
}

/// What the kernel knows of an object.
#[repr(C)]
pub(crate) struct Info {
    pub(crate) fd: u32,
    pub(crate) len: u32,
    pub(crate) info: u64,
}

/// The name of an object in a BPF file system.
#[repr(C)]
pub(crate) struct Pin {
    pub(crate) path: u64,
    pub(crate) fd: u32,
    pub(crate) flags: u32,
}

/// A program to load, up to what Linux 4.17 reads.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) prog_type: u32,
    pub(crate) insn_cnt: u32,
    pub(crate) insns: u64,
    pub(crate) license: u64,
    pub(crate) log_level: u32,
    pub(crate) log_size: u32,
    pub(crate) log_buf: u64,
    pub(crate) kern_version: u32,
    pub(crate) prog_flags: u32,
    pub(crate) prog_name: [u8; 16],
    pub(crate) prog_ifindex: u32,
    pub(crate) expected_attach_type: u32,
}

/// A program at a cgroup.
#[repr(C)]
pub(crate) struct Attach {
    pub(crate) target_fd: u32,
    pub(crate) attach_bpf_fd: u32,
    pub(crate) attach_type: u32,
    pub(crate) attach_flags: u32,
    pub(crate) replace_bpf_fd: u32,
}
