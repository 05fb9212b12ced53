//! TCP: `tp_btf/inet_sock_set_state`. Nothing runs per packet.
//!
//! Kernel prototype: `void (*btf_trace_inet_sock_set_state)(void *, const struct sock *sk, const
//! int oldstate, const int newstate)`.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_skc_to_tcp_sock},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use aya_log_ebpf::{debug, info};
use guardrail_common::{
    address::{is_local_talk, is_loopback},
    counter,
    flow::{FlowKey, FlowRole, PROTOCOL_TCP},
    record::{ListenRecord, RecordKind},
};

use crate::{
    flows::{self, ETIMEDOUT, is_broken},
    maps::{CGROUP_RING, add, add_half, count},
    offsets as o, redirect,
    socket::{Memory as _, SOCK_BINDPORT_LOCK, Typed, addresses, cgroup_id, is_foreign, netns, userlocks},
    turn,
};

const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_SYN_RECV: i32 = 3;
const TCP_CLOSE: i32 = 7;
const TCP_LISTEN: i32 = 10;

const ECONNABORTED: i32 = 103;
const ECONNRESET: i32 = 104;
const ECONNREFUSED: i32 = 111;

/// `RCV_SHUTDOWN` in `sk_shutdown`: the peer's FIN arrived, and was counted as a received byte.
const RCV_SHUTDOWN: u8 = 1;

/// Entry.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn tcp_state(ctx: BtfTracePointContext) -> i32 {
    turn::take(ctx.as_ptr(), ctx.arg(0), ctx.arg(2));
    count_transition(&ctx)
}

/// Entry behind [`tcp_state`], attached after it: takes what that one missed because an interrupt
/// found it running.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn tcp_missed(ctx: BtfTracePointContext) -> i32 {
    if o::STACK_BYTES.load() == 0 || turn::is_taken(ctx.arg(0), ctx.arg(2)) {
        return 0;
    }
    count(counter::TAKEN_OVER);
    count_transition(&ctx)
}

/// Most transitions do not count and leave here. What the others need stands in functions of its
/// own, so that these save no register and need no stack; what is rare stands apart from what is
/// frequent, because most of a run's cost is fetching its instructions.
#[inline(always)]
fn count_transition(ctx: &BtfTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let at = ctx.as_ptr();
    match (old, new) {
        (TCP_SYN_SENT, TCP_ESTABLISHED) => opened(at, FlowRole::Client as u8),
        (TCP_SYN_RECV, TCP_ESTABLISHED) => opened(at, FlowRole::Server as u8),
        (TCP_LISTEN, TCP_CLOSE) => listens(at, false),
        (_, TCP_LISTEN) => listens(at, true),
        (TCP_SYN_RECV | TCP_CLOSE, TCP_CLOSE) => 0,
        (TCP_SYN_SENT, TCP_CLOSE) => failed(at),
        (_, TCP_CLOSE) => closed(at),
        _ => 0,
    }
}

/// The socket of the transition.
#[inline(always)]
fn socket(ctx: &BtfTracePointContext) -> Typed {
    Typed(ctx.arg::<*const c_void>(0))
}

#[inline(never)]
fn opened(ctx: *mut c_void, role: u8) -> i32 {
    let _: Option<()> = try_open(ctx, role);
    0
}

#[inline(never)]
fn closed(ctx: *mut c_void) -> i32 {
    let _: Option<()> = try_closed(ctx);
    0
}

#[cold]
#[inline(never)]
fn failed(ctx: *mut c_void) -> i32 {
    let _: Option<()> = try_failed(&BtfTracePointContext::new(ctx));
    0
}

#[cold]
#[inline(never)]
fn listens(ctx: *mut c_void, listening: bool) -> i32 {
    let _: Option<()> = try_listen(socket(&BtfTracePointContext::new(ctx)), listening);
    0
}

/// The key with `server_port` and `role` still open; `None` if this is no TCP, or of no interest.
#[inline(always)]
fn key(sk: Typed) -> Option<FlowKey> {
    if sk.read::<u16>(o::SK_PROTOCOL.load()) != u16::from(PROTOCOL_TCP) {
        return None;
    }
    let (local, remote) = addresses(sk)?;
    if is_local_talk(&local, &remote) {
        return None;
    }
    Some(FlowKey {
        cgroup_id: cgroup_id(sk),
        local,
        remote,
        server_port: 0,
        local_port: 0,
        protocol: PROTOCOL_TCP,
        role: 0,
        pad: [0; 2],
    })
}

#[inline(always)]
fn remote_port(sk: Typed) -> u16 {
    u16::from_be(sk.read(o::SKC_DPORT.load()))
}

#[inline(always)]
fn try_open(ctx: *mut c_void, role: u8) -> Option<()> {
    let sk = socket(&BtfTracePointContext::new(ctx));
    let mut key = key(sk)?;
    key.role = role;
    key.server_port = if role == FlowRole::Server as u8 { sk.read(o::SKC_NUM.load()) } else { remote_port(sk) };
    if let Some(value) = flows::find(&key) {
        // SAFETY: from FLOWS, in this run.
        unsafe { flows::open(value) };
        return Some(());
    }
    open_new(ctx, &key);
    Some(())
}

/// The first connection of a key.
#[cold]
#[inline(never)]
fn open_new(ctx: *mut c_void, key: &FlowKey) -> i32 {
    let ctx = BtfTracePointContext::new(ctx);
    let sk = socket(&ctx);
    if is_foreign(sk) {
        return 0;
    }
    info!(&ctx, "new TCP flow of cgroup {}: port {}, role {}", key.cgroup_id, key.server_port, key.role);
    let value = flows::make(key);
    if !value.is_null() {
        // SAFETY: from FLOWS, in this run.
        unsafe {
            (*value).netns = netns(sk);
            flows::open(value);
        }
    }
    0
}

#[inline(always)]
fn try_failed(ctx: &BtfTracePointContext) -> Option<()> {
    let sk = socket(ctx);
    let mut key = key(sk)?;
    key.role = FlowRole::Client as u8;
    key.server_port = remote_port(sk);
    debug!(ctx, "attempt to port {} failed: {}", key.server_port, sk.read::<i32>(o::SK_ERR.load()));
    let value = match flows::find(&key) {
        Some(value) => value,
        None if is_foreign(sk) => return None,
        None => {
            let value = flows::make(&key);
            if value.is_null() {
                return None;
            }
            // SAFETY: from FLOWS, in this run.
            unsafe { (*value).netns = netns(sk) };
            value
        }
    };
    // Read behind the call of `flows::make`, for the reason given at `begin` in `udp.rs`.
    let error: i32 = sk.read(o::SK_ERR.load());
    // SAFETY: from FLOWS, in this run; a helper without arguments.
    unsafe {
        match error {
            ECONNREFUSED => add(&raw mut (*value).refused, 1),
            // Given up by the application, or by us (tcp_abort): nobody had answered.
            0 | ETIMEDOUT | ECONNRESET | ECONNABORTED => add(&raw mut (*value).unanswered, 1),
            _ => add(&raw mut (*value).unreachable, 1),
        }
        (*value).last_failed = bpf_ktime_get_boot_ns();
    }
    Some(())
}

#[inline(always)]
fn try_closed(ctx: *mut c_void) -> Option<()> {
    let sk = socket(&BtfTracePointContext::new(ctx));
    let mut key = key(sk)?;
    // SAFETY: the argument is a socket; the helper checks that it is TCP.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk.0.cast_mut()) };
    if tcp.is_null() {
        return None;
    }
    let tcp = Typed(tcp.cast());
    // `skc_num` is 0 by now.
    let local_port = u16::from_be(tcp.read(o::INET_SPORT.load()));
    let remote_port = remote_port(sk);
    let retransmitted: u64 = tcp.read(o::TCP_BYTES_RETRANS.load());
    let sent = tcp.read::<u64>(o::TCP_BYTES_SENT.load()).saturating_sub(retransmitted);
    let fin = u64::from(sk.read::<u8>(o::SK_SHUTDOWN.load()) & RCV_SHUTDOWN);
    let received = tcp.read::<u64>(o::TCP_BYTES_RECEIVED.load()).saturating_sub(fin);

    // The error as it is, not what follows from it: for the reason given at `begin` in `udp.rs` no
    // constant of one way or the other may go into the functions below.
    let error: i32 = sk.read(o::SK_ERR.load());
    let ports = u64::from(error.cast_unsigned()) << 32 | u64::from(local_port) << 16 | u64::from(remote_port);
    if flows::counter(counter::REDIRECTS) != 0 {
        if redirect::close(&mut key, netns(sk), ports, sent, received) != 0 {
            return Some(());
        }
    }
    if flows::counter(counter::UNDECIDED) != 0 && close_undecided(&mut key, ports, sent, received) != 0 {
        return Some(());
    }
    // An accepted child mostly inherits its listener's backlog: a hint where to look first, no
    // proof.
    let backlog: u32 = sk.read(o::SK_MAX_ACK_BACKLOG.load());
    let roles = if backlog > 0 { [FlowRole::Server, FlowRole::Client] } else { [FlowRole::Client, FlowRole::Server] };
    for role in roles {
        key.role = role as u8;
        key.server_port = if role as u8 == FlowRole::Server as u8 { local_port } else { remote_port };
        if let Some(value) = flows::find(&key) {
            // SAFETY: from FLOWS, in this run.
            unsafe { flows::close(value, sent, received, is_broken(error)) };
            return Some(());
        }
    }
    closed_late(ctx, &mut key, &AtClose { ports, backlog, sent, received });
    Some(())
}

/// What a connection shows when it ends.
struct AtClose {
    /// The socket's error in the upper half; the local port, the remote port.
    ports: u64,
    backlog: u32,
    sent: u64,
    received: u64,
}

/// Whether (1) this is the end of a connection that was open at the start and whose role nothing
/// told: it has an entry of its own, with both ports. Asked first, because there may be a client's
/// entry for the same server beside it.
#[cold]
#[inline(never)]
fn close_undecided(key: &mut FlowKey, ports: u64, sent: u64, received: u64) -> i32 {
    let (local_port, remote_port) = ((ports >> 16) as u16, ports as u16);
    let broken = is_broken(((ports >> 32) as u32).cast_signed());
    key.role = FlowRole::Undecided as u8;
    (key.server_port, key.local_port) = (remote_port, local_port);
    let value = flows::find(key);
    key.local_port = 0;
    let Some(value) = value else { return 0 };
    // SAFETY: from FLOWS, in this run.
    unsafe {
        // After its end the port may serve another connection, which was seen from its beginning.
        if (*value).closed >= u64::from((*value).found) {
            return 0;
        }
        flows::close(value, sent, received, broken);
    }
    1
}

/// The entry is coarse, or there is none: the connection is older than the programs and no process
/// had its descriptor at start.
#[cold]
#[inline(never)]
fn closed_late(ctx: *mut c_void, key: &mut FlowKey, end: &AtClose) -> i32 {
    let ctx = BtfTracePointContext::new(ctx);
    let sk = socket(&ctx);
    let AtClose { ports, backlog, sent, received } = *end;
    let (local_port, remote_port) = ((ports >> 16) as u16, ports as u16);
    let broken = is_broken(((ports >> 32) as u32).cast_signed());
    for role in [FlowRole::Client, FlowRole::Server] {
        key.role = role as u8;
        key.server_port = if role as u8 == FlowRole::Server as u8 { local_port } else { remote_port };
        if let Some(value) = flows::find(&key.coarse()) {
            // SAFETY: from FLOWS, in this run.
            unsafe { flows::close(value, sent, received, broken) };
            return 0;
        }
    }
    if is_foreign(sk) {
        return 0;
    }
    let role = if backlog > 0 {
        FlowRole::Server
    } else if userlocks(sk) & SOCK_BINDPORT_LOCK != 0 {
        // Cleared when a child is cloned: so this one connected.
        FlowRole::Client
    } else {
        FlowRole::Undecided
    };
    key.role = role as u8;
    (key.server_port, key.local_port) = match role {
        FlowRole::Server => (local_port, 0),
        FlowRole::Client => (remote_port, 0),
        FlowRole::Undecided => (remote_port, local_port),
    };
    debug!(&ctx, "a connection of cgroup {} is seen at its end only: role {}", key.cgroup_id, key.role);
    let value = flows::make(key);
    if !value.is_null() {
        // SAFETY: from FLOWS, in this run.
        unsafe {
            (*value).netns = netns(sk);
            flows::stamp(value);
            add_half(&raw mut (*value).found, 1);
            flows::close(value, sent, received, broken);
        }
    }
    0
}

#[inline(always)]
fn try_listen(sk: Typed, listening: bool) -> Option<()> {
    if sk.read::<u16>(o::SK_PROTOCOL.load()) != u16::from(PROTOCOL_TCP) {
        return None;
    }
    let (local, _) = addresses(sk)?;
    if is_loopback(&local) || is_foreign(sk) {
        return None;
    }
    let mut port: u16 = sk.read(o::SKC_NUM.load());
    if port == 0 {
        // SAFETY: the argument is a socket; the helper checks that it is TCP.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk.0.cast_mut()) };
        if !tcp.is_null() {
            port = u16::from_be(Typed(tcp.cast()).read(o::INET_SPORT.load()));
        }
    }
    let Some(mut entry) = CGROUP_RING.reserve::<ListenRecord>(0) else {
        count(counter::CGROUP_RING_FULL);
        return None;
    };
    entry.write(ListenRecord {
        kind: RecordKind::Listen as u8,
        listening: u8::from(listening),
        port,
        netns: netns(sk),
        cgroup_id: cgroup_id(sk),
        // SAFETY: a helper without arguments.
        at: unsafe { bpf_ktime_get_boot_ns() },
        local,
    });
    entry.submit(0);
    Some(())
}
