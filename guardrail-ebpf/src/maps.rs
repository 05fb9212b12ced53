//! Every map. Sizes are defaults; the loader sets those that are configurable.

use aya_ebpf::{
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use guardrail_common::{
    counter::{self, LossKey},
    flow::{FlowKey, FlowValue},
    record::CgroupRecord,
    redirect::{Connection, Dialled, REMEMBERED},
};

/// The truth: preallocated, so an insert never allocates in softirq.
#[map]
pub(crate) static FLOWS: HashMap<FlowKey, FlowValue> = HashMap::with_max_entries(65_536, 0);
/// New keys, as hints.
#[map]
pub(crate) static FLOW_RING: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// cgroups and listening sockets: a ring of its own, so that a flood of flows cannot cost a
/// short-lived pod its name.
#[map]
pub(crate) static CGROUP_RING: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// DNS answers.
#[map]
pub(crate) static DNS_RING: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// Paths of recent cgroups, for when their ring was full.
#[map]
pub(crate) static CGROUPS: LruHashMap<u64, CgroupRecord> = LruHashMap::with_max_entries(2_048, 0);
/// `counter::*`.
#[map]
pub(crate) static COUNTERS: Array<u64> = Array::with_max_entries(counter::COUNT, 0);
/// Losses of class edge, by cgroup.
#[map]
pub(crate) static CGROUP_LOSSES: LruHashMap<LossKey, u64> = LruHashMap::with_max_entries(8_192, 0);
/// Keys put into FLOWS, by cgroup: written by the kernel only (user space deletes entries of
/// removed cgroups).
#[map]
pub(crate) static KEYS_INSERTED: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16_384, 0);
/// Keys taken out of FLOWS, by cgroup: written by user space only.
#[map]
pub(crate) static KEYS_REMOVED: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16_384, 0);
/// Room to build a [`CgroupRecord`], which does not fit the stack.
#[map]
pub(crate) static SCRATCH: PerCpuArray<CgroupRecord> = PerCpuArray::with_max_entries(1, 0);
/// Connections of which a proxy was told what they dialled, until their end.
#[map]
pub(crate) static DIALLED: LruHashMap<Connection, Dialled> = LruHashMap::with_max_entries(REMEMBERED, 0);
/// A value of zeros, the first of every entry of FLOWS. Nobody writes it.
#[map]
pub(crate) static ZERO: Array<FlowValue> = Array::with_max_entries(1, 0);
/// What is known of a UDP socket beyond its own state.
#[btf_map]
pub(crate) static UDP_SOCKETS: SkStorage<UdpSocket> = SkStorage::new();

/// [`UdpSocket::flags`]: the application bound a port of its choice.
pub(crate) const UDP_SERVED: u32 = 1;
/// [`UdpSocket::flags`]: we saw it bind, or try to.
pub(crate) const UDP_BIND_SEEN: u32 = 2;
/// [`UdpSocket::flags`]: `UDP_SERVED` was read from the socket.
pub(crate) const UDP_PROBED: u32 = 4;
/// Remotes that a socket remembers: as many bits of a hash as [`UdpSocket::heard`] has room for.
pub(crate) const HEARD: usize = 16;

/// Per UDP socket that had a packet, binds explicitly, or sends unconnected. What every packet
/// reads stands first.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct UdpSocket {
    /// `UDP_*`.
    pub(crate) flags: u32,
    /// Port that `sendmsg` asked for, host order.
    pub(crate) asked_port: u32,
    /// cgroup v2 id of the socket, which never changes; 0 until `flags` were read.
    pub(crate) cgroup_id: u64,
    /// The task that asked, until its packet has passed; 0: none.
    pub(crate) asked_by: u64,
    /// Address that `sendmsg` asked for.
    pub(crate) asked: [u64; 2],
    /// Local address on which something arrived last: under NAT the other direction shows another
    /// one.
    pub(crate) local: [u64; 2],
    /// Hashes of the last remotes whose packets made, or would have made, a server record; 0: none.
    pub(crate) heard: [u32; HEARD],
}

/// Adds without a result, so that the compiler emits the plain atomic add (arm64 before 5.18 has no
/// fetching one).
///
/// # Safety
/// `counter` points to a valid `u64` that is only changed atomically.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, n: u64) {
    // SAFETY: the caller's; map values are 8-byte aligned.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, n) };
}

/// The same for a `u32`.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn add_half(counter: *mut u32, n: u32) {
    // SAFETY: the caller's; the members of map values are aligned.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(counter, n) };
}

/// Counts one in COUNTERS.
#[inline(always)]
pub(crate) fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a value of an array map lives as long as the program runs.
        unsafe { add(counter, 1) };
    }
}
