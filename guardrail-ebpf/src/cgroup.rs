//! cgroup v2 directories made and removed: `tp_btf/cgroup_mkdir`, `tp_btf/cgroup_rmdir`. They fire
//! before any process is inside.
//!
//! Kernel prototypes: `void (*btf_trace_cgroup_mkdir)(void *, struct cgroup *cgrp, const char
//! *path)`, `…_rmdir` the same.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_probe_read_kernel_str},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use guardrail_common::{
    counter,
    record::{CgroupRecord, PATH_BYTES, RecordKind},
};

use crate::{
    flows::WAKE,
    maps::{CGROUP_RING, CGROUPS, SCRATCH, count},
    offsets as o,
    socket::{Memory as _, Typed, is_foreign_cgroup},
};

/// Entry.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub(crate) fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    let _: Option<()> = try_record(&ctx, RecordKind::CgroupCreated);
    0
}

/// Entry.
#[btf_tracepoint(function = "cgroup_rmdir")]
pub(crate) fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    let _: Option<()> = try_record(&ctx, RecordKind::CgroupRemoved);
    0
}

#[inline(always)]
fn try_record(ctx: &BtfTracePointContext, kind: RecordKind) -> Option<()> {
    let cgroup = Typed(ctx.arg::<*const c_void>(0));
    if cgroup.follow(o::CGROUP_ROOT.load()).read::<i32>(o::CGROUP_ROOT_ID.load()) != 0 || is_foreign_cgroup(cgroup) {
        return None;
    }
    let record = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the scratch entry belongs to this CPU while the program runs; both tracepoints run
    // under cgroup_mutex.
    unsafe {
        (*record).kind = kind as u8;
        (*record).pad = [0; 5];
        (*record).cgroup_id = cgroup.follow(o::CGROUP_KN.load()).read(o::KN_ID.load());
        (*record).at = bpf_ktime_get_boot_ns();
        (*record).ended = 0;
        let length =
            bpf_probe_read_kernel_str((&raw mut (*record).path).cast(), PATH_BYTES as u32, ctx.arg::<*const c_void>(1));
        (*record).path_len = if length > 0 { (length - 1) as u16 } else { 0 };
        if kind as u8 == RecordKind::CgroupCreated as u8 {
            let _ = CGROUPS.insert(&(*record).cgroup_id, &*record, u64::from(BPF_ANY));
        } else if let Some(known) = CGROUPS.get_ptr_mut((*record).cgroup_id) {
            (*known).ended = (*record).at;
        }
        if CGROUP_RING.output::<CgroupRecord>(&*record, WAKE).is_err() {
            count(counter::CGROUP_RING_FULL);
        }
    }
    Some(())
}
