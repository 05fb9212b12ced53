//! UDP and DNS answers: `cgroup_skb` at the root of cgroup v2. TCP returns after a few loads.
//! Always 1: no packet is ever dropped.
//!
//! The role comes from the socket (table in ARCHITECTURE.md). Egress packets are seen after NAT,
//! ingress packets after un-NAT, so the remote is taken from what the application asked for:
//! `sendmsg`'s address, else the connected socket's, else the packet's.

use core::{arch::asm, hint::cold_path, mem::offset_of};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::{
        bpf_ktime_get_boot_ns, bpf_probe_read_kernel,
        generated::{bpf_get_current_task, bpf_sk_storage_get, bpf_skb_cgroup_id, bpf_skb_load_bytes},
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use aya_log_ebpf::info;
use guardrail_common::{
    address::{Address, is_local_talk},
    counter,
    flow::{FLAG_BIND_SEEN, FlowKey, FlowRole, FlowValue, PROTOCOL_UDP},
    record::{DNS_BYTES, DnsRecord, RecordKind},
};

use crate::{
    flows,
    maps::{DNS_RING, HEARD, UDP_BIND_SEEN, UDP_PROBED, UDP_SERVED, UDP_SOCKETS, UdpSocket, add, count},
    offsets as o,
    packet::{Packet, may_be_udp, packet},
    socket::{AF_INET6, Raw, SOCK_BINDPORT_LOCK, address, map_v4, userlocks, words},
};

/// Where DNS servers answer from.
const DNS_PORT: u16 = 53;

/// Entry. The rest stands in a function of its own, so that for TCP no register is saved and no
/// stack is needed.
#[cgroup_skb(egress)]
pub(crate) fn udp_egress(ctx: SkBuffContext) -> i32 {
    if may_be_udp(ctx.skb.skb) { egress(ctx.skb.skb) } else { 1 }
}

/// Entry.
#[cgroup_skb(ingress)]
pub(crate) fn udp_ingress(ctx: SkBuffContext) -> i32 {
    if may_be_udp(ctx.skb.skb) { ingress(ctx.skb.skb) } else { 1 }
}

#[inline(never)]
fn egress(skb: *mut __sk_buff) -> i32 {
    let _: Option<()> = try_egress(skb);
    1
}

#[inline(never)]
fn ingress(skb: *mut __sk_buff) -> i32 {
    let _: Option<()> = try_ingress(skb);
    1
}

/// Both ends as the local socket means them.
struct Ends {
    local: Address,
    remote: Address,
    local_port: u16,
    remote_port: u16,
}

/// Reads a four-byte member of a socket that the verifier knows. Written out, because the register
/// must be the very pointer that the kernel gave: the compiler likes to share the address of an
/// array's beginning between its elements, and the verifier prohibits that arithmetic.
macro_rules! member {
    ($sk:expr, $member:ident $(, $index:literal)?) => {{
        let value: u64;
        // SAFETY: the verifier checks the access; a u32 load clears the upper half.
        unsafe {
            asm!(
                "{value} = *(u32 *)({sk} + {offset})",
                value = out(reg) value,
                sk = in(reg) $sk,
                offset = const offset_of!(bpf_sock, $member) $(+ 4 * $index)?,
                options(readonly, nostack, pure),
            );
        }
        value
    }};
}

/// The ends of a connected socket; `None` if it is not connected.
#[inline(always)]
fn connected(sk: *const bpf_sock) -> Option<Ends> {
    // SAFETY: the verifier checks accesses to the socket. Two bytes: the member has been that wide
    // since 5.18, and before it the upper half was zero.
    let remote_port = u16::from_be(unsafe { (&raw const (*sk).dst_port).read_volatile() });
    if remote_port == 0 {
        return None;
    }
    let (local, remote) = if member!(sk, family) == u64::from(AF_INET6) {
        (
            address([
                member!(sk, src_ip6, 0) | member!(sk, src_ip6, 1) << 32,
                member!(sk, src_ip6, 2) | member!(sk, src_ip6, 3) << 32,
            ]),
            address([
                member!(sk, dst_ip6, 0) | member!(sk, dst_ip6, 1) << 32,
                member!(sk, dst_ip6, 2) | member!(sk, dst_ip6, 3) << 32,
            ]),
        )
    } else {
        (map_v4(member!(sk, src_ip4) as u32), map_v4(member!(sk, dst_ip4) as u32))
    };
    Some(Ends { local, remote, local_port: member!(sk, src_port) as u16, remote_port })
}

/// What we keep of the socket, if anything.
#[inline(always)]
fn storage(sk: *mut bpf_sock, flags: u64) -> Option<*mut UdpSocket> {
    // SAFETY: the socket is the packet's.
    let socket = unsafe {
        bpf_sk_storage_get((&raw const UDP_SOCKETS).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), flags)
    };
    (!socket.is_null()).then_some(socket.cast())
}

/// `UDP_*` and the cgroup of a packet's socket: remembered, because neither changes once the socket
/// has a port.
#[inline(always)]
fn known(skb: *mut __sk_buff, sk: *mut bpf_sock, socket: &mut Option<*mut UdpSocket>) -> (u32, u64) {
    if let Some(socket) = *socket {
        // SAFETY: from the socket's storage, in this run.
        let (flags, cgroup_id) = unsafe { ((*socket).flags, (*socket).cgroup_id) };
        // Another CPU may be writing them: both, or none.
        if flags & UDP_PROBED != 0 && cgroup_id != 0 {
            return (flags, cgroup_id);
        }
    }
    cold_path();
    let flags = probe(skb);
    *socket = storage(sk, 0);
    // SAFETY: the context is the packet's.
    (flags, unsafe { bpf_skb_cgroup_id(skb) })
}

/// Reads `UDP_*` from the socket and keeps it there.
#[cold]
#[inline(never)]
fn probe(skb: *mut __sk_buff) -> u32 {
    // The typed pointer may not be offset; the context's address may, and the kernel's sk_buff is
    // what it really is. SAFETY: the helper checks the address.
    let raw = unsafe { bpf_probe_read_kernel::<u64>(skb.byte_add(o::SKB_SK.load() as usize).cast()) }.unwrap_or(0);
    let is_locked = userlocks(Raw(raw)) & SOCK_BINDPORT_LOCK != 0;
    // SAFETY: the verifier checks accesses to the context.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return UDP_PROBED;
    }
    let Some(socket) = storage(sk, u64::from(BPF_SK_STORAGE_GET_F_CREATE)) else {
        return if is_locked { UDP_PROBED | UDP_SERVED } else { UDP_PROBED };
    };
    // SAFETY: from the socket's storage, in this run; the context is the packet's.
    unsafe {
        let seen = (*socket).flags & UDP_BIND_SEEN;
        let flags = seen
            | if is_locked {
                UDP_PROBED | UDP_SERVED
            } else if seen != 0 {
                // The bind failed, or is not at its end: the kernel gives out the port before it
                // sets the lock. The next packet asks again.
                0
            } else {
                UDP_PROBED
            };
        (*socket).cgroup_id = bpf_skb_cgroup_id(skb);
        (*socket).flags = flags;
        flags
    }
}

/// # Safety
/// `value` comes from FLOWS in this run.
#[inline(always)]
unsafe fn sent(value: *mut FlowValue, bytes: u32) {
    // SAFETY: the caller's.
    unsafe { add(&raw mut (*value).bytes_sent, u64::from(bytes)) };
}

/// # Safety
/// `value` comes from FLOWS in this run.
#[inline(always)]
unsafe fn received(value: *mut FlowValue, bytes: u32) {
    // SAFETY: the caller's.
    unsafe { add(&raw mut (*value).bytes_received, u64::from(bytes)) };
}

/// The first packet of a key.
///
/// No branch behind the call of `flows::make` may depend on a number from before it that is a
/// constant on some way here. Older verifiers lose track of which of a caller's numbers matter
/// while they prune inside a called function: they take the constant for the only value, and drop
/// the other branch as dead code. Seen on Debian's 5.10.223 and 6.1.176, where the flag below was
/// never set; not on 6.12 and 6.18. `cargo xtask vm-test` compares what is left of the programs.
#[cold]
#[inline(never)]
fn begin(skb: *mut __sk_buff, key: &FlowKey, flags: u32, bytes_sent: u32, bytes_received: u32) -> i32 {
    info!(
        &SkBuffContext::new(skb),
        "new UDP flow of cgroup {}: port {}, role {}", key.cgroup_id, key.server_port, key.role
    );
    let value = flows::make(key);
    if value.is_null() {
        return 0;
    }
    // SAFETY: from FLOWS, in this run.
    unsafe {
        (*value).by_protocol |= flags / UDP_BIND_SEEN & FLAG_BIND_SEEN;
        flows::open(value);
        // Never an addition of a constant zero: it would become an atomic or, which 5.10 has not.
        if bytes_sent != 0 {
            sent(value, bytes_sent);
        }
        if bytes_received != 0 {
            received(value, bytes_received);
        }
    }
    0
}

/// Whether a served socket over its budget sends this as a reply. 1: it does, or so it is taken,
/// and counted. 0: there is no coarse entry.
///
/// Which of the many remotes had asked is not in FLOWS any more; the socket remembers the last few.
/// To any other the socket may have turned by itself: then an edge is missing, so the cgroup's loss
/// is counted, even if the remote was in truth one that asked long ago. A graph that says
/// "incomplete" too often is better than one that is.
#[cold]
#[inline(never)]
fn reply_of_many(client: &FlowKey, socket: Option<*mut UdpSocket>, local_port: u16, bytes: u32) -> i32 {
    let mut key = client.coarse();
    key.server_port = local_port;
    key.local_port = 0;
    key.role = FlowRole::Server as u8;
    let Some(value) = flows::find(&key) else { return 0 };
    // SAFETY: from FLOWS, in this run.
    unsafe { sent(value, bytes) };
    if !socket.is_some_and(|socket| hear(socket, &client.remote, client.server_port)) {
        flows::lose_client(client.cgroup_id);
    }
    1
}

/// Remembers a remote as heard, in place of another. Whether it was.
#[inline(always)]
fn hear(socket: *mut UdpSocket, remote: &Address, port: u16) -> bool {
    // 2^64 divided by the golden ratio spreads the bits upwards.
    const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
    let [high, low] = words(*remote);
    let hash = ((high.wrapping_mul(SPREAD) ^ low).wrapping_add(u64::from(port))).wrapping_mul(SPREAD);
    // An empty slot is 0.
    let tag = (hash >> 32) as u32 | 1;
    let slot = (hash >> 60) as usize % HEARD;
    // SAFETY: from the socket's storage, in this run; the slot is inside.
    unsafe {
        let slot = (&raw mut (*socket).heard).cast::<u32>().add(slot);
        let was = slot.read() == tag;
        slot.write(tag);
        was
    }
}

#[inline(always)]
fn client(cgroup_id: u64, ends: &Ends, served: bool) -> FlowKey {
    FlowKey {
        cgroup_id,
        local: ends.local,
        remote: ends.remote,
        server_port: ends.remote_port,
        local_port: if served { ends.local_port } else { 0 },
        protocol: PROTOCOL_UDP,
        role: FlowRole::Client as u8,
        pad: [0; 2],
    }
}

#[inline(always)]
fn into_server(key: &mut FlowKey, ends: &Ends) {
    key.server_port = ends.local_port;
    key.local_port = 0;
    key.role = FlowRole::Server as u8;
}

#[inline(always)]
fn into_client(key: &mut FlowKey, ends: &Ends) {
    key.server_port = ends.remote_port;
    key.local_port = ends.local_port;
    key.role = FlowRole::Client as u8;
}

/// The packet's ends for a socket that is not connected, or asked otherwise in `sendmsg`.
#[inline(always)]
fn sender_ends(packet: &Packet, sk: *const bpf_sock, socket: Option<*mut UdpSocket>) -> Ends {
    if let Some(socket) = socket {
        // SAFETY: from the socket's storage, in this run.
        unsafe {
            // Another thread's question on the same socket is not ours: then the packet itself is
            // the better witness.
            if (*socket).asked_by != 0 && (*socket).asked_by == bpf_get_current_task() {
                (*socket).asked_by = 0;
                return Ends {
                    local: packet.source,
                    remote: address((*socket).asked),
                    local_port: packet.source_port,
                    remote_port: (*socket).asked_port as u16,
                };
            }
        }
    }
    connected(sk).unwrap_or(Ends {
        local: packet.source,
        remote: packet.destination,
        local_port: packet.source_port,
        remote_port: packet.destination_port,
    })
}

#[inline(always)]
fn try_egress(skb: *mut __sk_buff) -> Option<()> {
    let packet = packet(skb)?;
    // SAFETY: the verifier checks accesses to the context.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    let mut socket = storage(sk, 0);
    let ends = sender_ends(&packet, sk, socket);
    if is_local_talk(&ends.local, &ends.remote) {
        return None;
    }
    let (flags, cgroup_id) = known(skb, sk, &mut socket);
    let served = flags & UDP_SERVED != 0;
    let mut key = client(cgroup_id, &ends, served);
    if served && ends.local_port != ends.remote_port {
        into_server(&mut key, &ends);
        if let Some(value) = flows::find(&key) {
            // SAFETY: from FLOWS, in this run.
            unsafe { sent(value, packet.payload) };
            return Some(());
        }
        if let Some(value) = reply_from_elsewhere(&key, socket) {
            // SAFETY: from FLOWS, in this run.
            unsafe { sent(value, packet.payload) };
            return Some(());
        }
        into_client(&mut key, &ends);
        if let Some(value) = flows::find(&key) {
            // SAFETY: from FLOWS, in this run.
            unsafe {
                sent(value, packet.payload);
                flows::open(value);
            }
            return Some(());
        }
        if reply_of_many(&key, socket, ends.local_port, packet.payload) != 0 {
            return Some(());
        }
    } else if let Some(value) = flows::find(&key) {
        // SAFETY: from FLOWS, in this run.
        unsafe {
            sent(value, packet.payload);
            flows::open(value);
        }
        return Some(());
    }
    if !served && let Some(socket) = socket {
        // SAFETY: from the socket's storage, in this run.
        unsafe { (*socket).local = words(ends.local) };
    }
    begin(skb, &key, flags, packet.payload, 0);
    Some(())
}

/// The record under the local address that the other direction shows, when NAT changes it.
#[inline(always)]
fn reply_from_elsewhere(key: &FlowKey, socket: Option<*mut UdpSocket>) -> Option<*mut FlowValue> {
    // SAFETY: from the socket's storage, in this run.
    let local = unsafe { (*socket?).local };
    if local == [0, 0] || local == words(key.local) {
        return None;
    }
    let mut key = *key;
    key.local = address(local);
    flows::find(&key)
}

#[inline(always)]
fn try_ingress(skb: *mut __sk_buff) -> Option<()> {
    let packet = packet(skb)?;
    // SAFETY: the verifier checks accesses to the context.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    let mut socket = storage(sk, 0);
    let ends = connected(sk).unwrap_or(Ends {
        local: packet.destination,
        remote: packet.source,
        local_port: packet.destination_port,
        remote_port: packet.source_port,
    });
    if is_local_talk(&ends.local, &ends.remote) {
        return None;
    }
    let (flags, cgroup_id) = known(skb, sk, &mut socket);
    let served = flags & UDP_SERVED != 0;
    let mut key = client(cgroup_id, &ends, served);
    if !served {
        if ends.remote_port == DNS_PORT {
            dns(skb, key.cgroup_id, &packet);
        }
        let value =
            flows::find(&key).or_else(|| reply_from_elsewhere(&key, socket)).or_else(|| flows::find(&key.coarse()))?;
        // SAFETY: from FLOWS, in this run.
        unsafe { received(value, packet.payload) };
        return Some(());
    }
    if ends.local_port == ends.remote_port {
        if let Some(value) = flows::find(&key) {
            // SAFETY: from FLOWS, in this run.
            unsafe { received(value, packet.payload) };
            return Some(());
        }
        into_server(&mut key, &ends);
    } else {
        into_server(&mut key, &ends);
    }
    if let Some(value) = flows::find(&key) {
        // SAFETY: from FLOWS, in this run.
        unsafe {
            received(value, packet.payload);
            flows::open(value);
        }
        return Some(());
    }
    if ends.local_port != ends.remote_port {
        into_client(&mut key, &ends);
        if let Some(value) = flows::find(&key) {
            // SAFETY: from FLOWS, in this run.
            unsafe { received(value, packet.payload) };
            return Some(());
        }
        into_server(&mut key, &ends);
    }
    if let Some(socket) = socket {
        // SAFETY: from the socket's storage, in this run.
        unsafe { (*socket).local = words(ends.local) };
        hear(socket, &key.remote, ends.remote_port);
    }
    begin(skb, &key, flags, 0, packet.payload);
    Some(())
}

/// Copies a DNS answer to its ring.
#[inline(always)]
fn dns(skb: *mut __sk_buff, cgroup_id: u64, packet: &Packet) {
    // Opaque to the compiler, so that the register that is compared is the one that is used: the
    // verifier must see its bounds at the copy.
    let last: u64;
    // SAFETY: a move.
    unsafe {
        asm!("{0} = {1}", out(reg) last, in(reg) u64::from(packet.payload.wrapping_sub(1)), options(pure, nomem, nostack))
    };
    if last >= DNS_BYTES as u64 {
        return;
    }
    let length = (last + 1) as u32;
    let Some(mut entry) = DNS_RING.reserve::<DnsRecord>(0) else {
        count(counter::DNS_RING_FULL);
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the record lies in the reserved entry; the helper writes at most `length` bytes,
    // which the verifier bounds.
    let copied = unsafe {
        (*record).kind = RecordKind::Dns as u8;
        (*record).pad = [0; 5];
        (*record).payload_len = length as u16;
        (*record).cgroup_id = cgroup_id;
        (*record).at = bpf_ktime_get_boot_ns();
        bpf_skb_load_bytes(skb.cast(), packet.payload_at, (&raw mut (*record).payload).cast(), length)
    };
    if copied == 0 { entry.submit(0) } else { entry.discard(0) }
}
