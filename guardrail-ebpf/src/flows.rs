//! Entries of FLOWS: find, make, count. The known key is the hot path and has no event.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, BPF_RB_FORCE_WAKEUP},
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_jiffies64},
};
use guardrail_common::{
    budget::{Tally, must_be_coarse},
    counter::{self, LossKey, LossKind},
    flow::{FlowKey, FlowRole, FlowValue},
    record::{FlowHint, RecordKind},
};

use crate::{
    maps::{CGROUP_LOSSES, COUNTERS, FLOW_RING, FLOWS, KEYS_INSERTED, KEYS_REMOVED, ZERO, add, add_half, count},
    offsets as o,
};

const ENETUNREACH: i32 = 101;
pub(crate) const ETIMEDOUT: i32 = 110;
const EHOSTUNREACH: i32 = 113;
/// `EEXIST`, as map helpers return it.
const EEXIST: i32 = -17;

/// The entry of a key.
#[inline(always)]
pub(crate) fn find(key: &FlowKey) -> Option<*mut FlowValue> {
    FLOWS.get_ptr_mut(key)
}

/// Counts one open. The clock is read once a tick: a read costs more than all the rest.
///
/// # Safety
/// `value` comes from FLOWS in this run.
#[inline(always)]
pub(crate) unsafe fn open(value: *mut FlowValue) {
    // SAFETY: the caller's.
    unsafe {
        stamp(value);
        add(&raw mut (*value).opened, 1);
    }
}

/// Notes the time of an open.
///
/// # Safety
/// `value` comes from FLOWS in this run.
#[inline(always)]
pub(crate) unsafe fn stamp(value: *mut FlowValue) {
    // SAFETY: the caller's; the plain stores race only with others of the same tick.
    unsafe {
        let jiffies = bpf_jiffies64() as u32;
        if (*value).jiffies != jiffies {
            core::hint::cold_path();
            let now = bpf_ktime_get_boot_ns();
            (*value).jiffies = jiffies;
            (*value).last_open = now;
            if (*value).first_open == 0 {
                (*value).first_open = now;
            }
        }
    }
}

/// Whether an established connection that ends with this error broke off: what was sent, or asked
/// to keep it alive, was never answered. An error that ICMP had told meanwhile then stands for the
/// time-out (`tcp_write_err`).
#[inline(always)]
pub(crate) fn is_broken(error: i32) -> bool {
    matches!(error, ETIMEDOUT | EHOSTUNREACH | ENETUNREACH)
}

/// Counts an end, what belongs to it first: who sees the end has that.
///
/// # Safety
/// `value` comes from FLOWS in this run, and is TCP's.
#[inline(always)]
pub(crate) unsafe fn close(value: *mut FlowValue, sent: u64, received: u64, broken: bool) {
    // SAFETY: the caller's.
    unsafe {
        add(&raw mut (*value).bytes_sent, sent);
        add(&raw mut (*value).bytes_received, received);
        close_without_bytes(value, broken);
    }
}

/// Counts an end whose bytes stand elsewhere. Never an addition of a constant zero: it would become
/// an atomic or, which 5.10 has not.
///
/// # Safety
/// `value` comes from FLOWS in this run, and is TCP's.
#[inline(always)]
pub(crate) unsafe fn close_without_bytes(value: *mut FlowValue, broken: bool) {
    // SAFETY: the caller's.
    unsafe {
        if broken {
            core::hint::cold_path();
            add_half(&raw mut (*value).by_protocol, 1);
        }
        add(&raw mut (*value).closed, 1);
    }
}

/// Makes the entry of a new key, all zero, and says so on the ring; the caller counts on it. Over
/// the budget, or if the map is nearly full, the entry of the coarse key instead. Null: FLOWS has
/// no room, and the loss is counted.
///
/// The first value comes from a map, not from here: with it the stacks of the functions on the way
/// would be too large for kernels that round each up. A reader that is quick enough to see the
/// zeros looks again.
#[cold]
#[inline(never)]
pub(crate) fn make(key: &FlowKey) -> *mut FlowValue {
    let cgroup = Tally { inserted: tally(&KEYS_INSERTED, key.cgroup_id), removed: tally(&KEYS_REMOVED, key.cgroup_id) };
    let map = Tally { inserted: counter(counter::KEYS_INSERTED), removed: counter(counter::KEYS_REMOVED) };
    if !must_be_coarse(cgroup, o::KEYS_PER_CGROUP.load(), map, o::FLOW_ENTRIES.load()) {
        let value = put(key);
        if !value.is_null() {
            return value;
        }
    }
    let coarse = key.coarse();
    let value = put(&coarse);
    if value.is_null() {
        lose(key.cgroup_id, LossKind::MapFull, counter::MAP_FULL);
    } else if key.role != FlowRole::Server as u8 {
        // For a server "many peers" is the whole truth; a client's rules need the addresses.
        lose(key.cgroup_id, LossKind::CoarseClient, counter::COARSE_CLIENT);
    }
    value
}

/// The entry of this very key, made if need be. Null: FLOWS has no room.
#[inline(always)]
fn put(key: &FlowKey) -> *mut FlowValue {
    if let Some(there) = find(key) {
        return there;
    }
    let Some(zero) = ZERO.get_ptr(0) else { return core::ptr::null_mut() };
    // SAFETY: a value of an array map lives as long as the program runs, and nobody writes this
    // one.
    match FLOWS.insert(key, unsafe { &*zero }, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            inserted(key.cgroup_id);
            hint(key);
        }
        // Another CPU was first.
        Err(EEXIST) => {}
        Err(_) => return core::ptr::null_mut(),
    }
    find(key).unwrap_or(core::ptr::null_mut())
}

/// Tells user space that a key is new. A full ring is only counted: the sweep finds the entry.
#[inline(always)]
fn hint(key: &FlowKey) {
    match FLOW_RING.reserve::<FlowHint>(0) {
        Some(mut entry) => {
            entry.write(FlowHint { kind: RecordKind::Flow as u8, pad: [0; 7], key: *key });
            entry.submit(0);
        }
        None => count(counter::RING_FULL),
    }
}

fn inserted(cgroup_id: u64) {
    count(counter::KEYS_INSERTED);
    bump(&KEYS_INSERTED, &cgroup_id);
}

/// Counts a client's edge that cannot be told.
pub(crate) fn lose_client(cgroup_id: u64) {
    lose(cgroup_id, LossKind::CoarseClient, counter::COARSE_CLIENT);
}

/// Counts a loss of class edge for its cgroup, and in total.
#[inline(always)]
fn lose(cgroup_id: u64, kind: LossKind, total: u32) {
    // The cgroup's share first: user space takes what the total has beyond the shares for anyone's.
    if !bump(&CGROUP_LOSSES, &LossKey { cgroup_id, kind: kind as u32, pad: 0 }) {
        count(counter::UNNAMED_LOSS);
    }
    count(total);
}

/// Adds one to a counter of a hash, making it if need be. False: no room.
#[inline(always)]
fn bump<K>(map: &aya_ebpf::maps::LruHashMap<K, u64>, key: &K) -> bool {
    if map.get_ptr_mut(key).is_none() {
        // EEXIST: another CPU made it.
        let _ = map.insert(key, &0, u64::from(BPF_NOEXIST));
    }
    let Some(counter) = map.get_ptr_mut(key) else { return false };
    // SAFETY: from the map, in this run.
    unsafe { add(counter, 1) };
    true
}

#[inline(always)]
fn tally(map: &aya_ebpf::maps::LruHashMap<u64, u64>, cgroup_id: u64) -> u64 {
    // SAFETY: one aligned word.
    map.get_ptr(cgroup_id).map_or(0, |n| unsafe { n.read_volatile() })
}

/// A counter of COUNTERS.
#[inline(always)]
pub(crate) fn counter(index: u32) -> u64 {
    // SAFETY: one aligned word.
    COUNTERS.get_ptr(index).map_or(0, |n| unsafe { n.read_volatile() })
}

/// Wake the reader at once: a cgroup's name is wanted before its first flow.
pub(crate) const WAKE: u64 = BPF_RB_FORCE_WAKEUP as u64;
