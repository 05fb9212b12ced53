//! Which of two programs on one tracepoint takes an event, so that none is lost.
//!
//! A tracing program that an interrupt finds running is not run again on that CPU (`prog->active`
//! in `__bpf_trace_run`, for raw tracepoints since Linux 6.1): the interrupt's event would be lost,
//! and nobody could say whose it was. So a second program stands behind the first on the
//! tracepoint, and the first leaves word of every event it sees. TCP states change in process and
//! in softirq context only, and neither interrupts itself: an event that finds the first program
//! running never finds the second one running as well.
//!
//! The converse happens: the second one misses an event that the first took, and the word of it
//! stays. It must not pass for a later event of the same socket. Therefore a softirq's word has a
//! place of its own, which the next event of a process empties.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{helpers::generated::bpf_get_current_task_btf, macros::map, maps::PerCpuArray};

use crate::{
    offsets as o,
    socket::{Memory as _, Typed},
};

/// What the first program took on this CPU and the second has not passed by yet. Sockets are 0
/// where there is nothing.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    /// Socket in the event of a process, or of a softirq that interrupted none.
    outer: u64,
    /// Its new state.
    outer_state: i32,
    /// New state in the event of a softirq.
    inner_state: i32,
    /// Socket in the event of a softirq.
    inner: u64,
    /// Where on the stack the outer event stands.
    outer_at: u64,
}

#[map]
static TURNS: PerCpuArray<Turn> = PerCpuArray::with_max_entries(1, 0);

/// The first program takes the event that these arguments on the stack tell.
#[inline(always)]
pub(crate) fn take(arguments: *mut c_void, socket: *const c_void, state: i32) {
    if o::STACK_BYTES.load() == 0 {
        return;
    }
    let Some(turn) = TURNS.get_ptr_mut(0) else { return };
    // SAFETY: a value of this CPU; volatile and in this order, because an interrupt between two
    // accesses has some of its own.
    unsafe {
        let (outer, outer_at) = (&raw mut (*turn).outer, &raw mut (*turn).outer_at);
        let inner = &raw mut (*turn).inner;
        if is_softirq(arguments, outer.read_volatile(), outer_at.read_volatile()) {
            (&raw mut (*turn).inner_state).write_volatile(state);
            inner.write_volatile(socket as u64);
        } else {
            inner.write_volatile(0);
            outer_at.write_volatile(arguments as u64);
            (&raw mut (*turn).outer_state).write_volatile(state);
            outer.write_volatile(socket as u64);
        }
    }
}

/// Whether the first program took this event: asked once, by the second program.
#[inline(always)]
pub(crate) fn is_taken(socket: *const c_void, state: i32) -> bool {
    let Some(turn) = TURNS.get_ptr_mut(0) else { return true };
    // SAFETY: as above.
    unsafe {
        let (outer, inner) = (&raw mut (*turn).outer, &raw mut (*turn).inner);
        if inner.read_volatile() == socket as u64 && (*turn).inner_state == state {
            inner.write_volatile(0);
            return true;
        }
        if outer.read_volatile() == socket as u64 && (*turn).outer_state == state {
            outer.write_volatile(0);
            return true;
        }
    }
    false
}

/// Whether the event at this place on the stack is that of a softirq which may have interrupted the
/// outer one. Softirqs have a stack of their own; where they do not (arm64 before Linux 6.2), they
/// are deeper in the same one.
#[inline(always)]
fn is_softirq(at: *mut c_void, outer: u64, outer_at: u64) -> bool {
    // SAFETY: a helper without arguments.
    let task = Typed(unsafe { bpf_get_current_task_btf() }.cast());
    let begin: u64 = task.read(o::TASK_STACK.load());
    let mut end = begin;
    // SAFETY: adds. Could the compiler see this, it would subtract to compare with both bounds at
    // once, which the verifier forbids for this pointer.
    unsafe {
        asm!("{0} += {1}", inout(reg) end, in(reg) u64::from(o::STACK_BYTES.load()), options(pure, nomem, nostack));
    }
    let at = at as u64;
    at < begin || at >= end || (outer != 0 && at < outer_at && outer_at < end)
}
