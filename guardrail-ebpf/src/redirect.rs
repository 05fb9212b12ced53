//! What a redirected connection dialled: `cgroup/getsockopt` sees the kernel's answer to
//! `SO_ORIGINAL_DST`, for which a proxy asks about each connection that it accepts.
//!
//! Every getsockopt below the observed cgroup passes here, so the rules are strict: the result and
//! the bytes of the answer are never written, and what is of no interest leaves first. The kernel
//! hands such a program at most a page of the answer; on Linux 5.10 it replaces the result of calls
//! that failed or have more unless the program says `optlen = 0` ("keep what the kernel did"),
//! which elsewhere would discard another program's edit. That an answer is not there (`optval` at
//! its end) happens to calls that were under way when this was attached.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sockopt},
    helpers::generated::bpf_probe_read_kernel,
    macros::cgroup_sockopt,
    programs::SockoptContext,
};
use guardrail_common::{
    address::{Address, is_local_talk, is_loopback},
    flow::{FlowKey, FlowRole, PROTOCOL_MPTCP, PROTOCOL_TCP},
    redirect::{Connection, Dialled},
};

use crate::{
    flows,
    maps::DIALLED,
    offsets as o,
    socket::{AF_INET, AF_INET6, Memory as _, Raw, address, addresses, cgroup_id, map_v4, netns},
};

/// `SOL_IP`.
const SOL_IP: i32 = 0;
/// `SOL_IPV6`.
const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST`.
const ORIGINAL_DST: i32 = 80;
/// The most bytes of an answer that the kernel hands over.
const PAGE: i32 = 4096;
/// `struct sockaddr_in`, as far as it says something.
const SOCKADDR_IN: usize = 8;
/// `struct sockaddr_in6`, as far as it says something.
const SOCKADDR_IN6: usize = 24;

/// Entry.
#[cgroup_sockopt(getsockopt)]
pub(crate) fn original_dst(ctx: SockoptContext) -> i32 {
    let at = ctx.sockopt;
    // SAFETY: the verifier checks accesses to the context.
    unsafe {
        let optval = (&raw const (*at).__bindgen_anon_2.optval).read_volatile().cast::<u8>();
        let end = (&raw const (*at).__bindgen_anon_3.optval_end).read_volatile().cast::<u8>();
        if (&raw const (*at).retval).read_volatile() < 0
            || (&raw const (*at).optlen).read_volatile() > PAGE
            || optval.byte_add(1) > end
        {
            (&raw mut (*at).optlen).write_volatile(0);
            return 1;
        }
        if (&raw const (*at).optname).read_volatile() != ORIGINAL_DST {
            return 1;
        }
        match (&raw const (*at).level).read_volatile() {
            SOL_IP => {
                if optval.byte_add(SOCKADDR_IN) > end {
                    return 1;
                }
                let family = optval.cast::<u16>().read_volatile();
                let port = u16::from_be(optval.byte_add(2).cast::<u16>().read_volatile());
                let dialled = map_v4(optval.byte_add(4).cast::<u32>().read_volatile());
                if family == AF_INET {
                    answered(&ctx, &dialled, port);
                }
            }
            SOL_IPV6 => {
                if optval.byte_add(SOCKADDR_IN6) > end {
                    return 1;
                }
                let family = optval.cast::<u16>().read_volatile();
                let port = u16::from_be(optval.byte_add(2).cast::<u16>().read_volatile());
                let word = |at: usize| u64::from(optval.byte_add(at).cast::<u32>().read_volatile());
                let dialled = address([word(8) | word(12) << 32, word(16) | word(20) << 32]);
                if family == AF_INET6 {
                    answered(&ctx, &dialled, port);
                }
            }
            _ => {}
        }
    }
    1
}

/// The socket that asked, as an address that may be read but means nothing to the verifier: it
/// forbids arithmetic on the pointer itself.
#[inline(always)]
fn socket(ctx: &SockoptContext) -> Raw {
    let at: *mut bpf_sockopt = ctx.as_ptr().cast();
    let mut number = 0u64;
    // SAFETY: the context's socket is a pointer on the stack then, and eight bytes are read there.
    unsafe {
        let mut sk: *mut bpf_sock = core::ptr::null_mut();
        (&raw mut sk).write_volatile((&raw const (*at).__bindgen_anon_1.sk).read_volatile());
        bpf_probe_read_kernel((&raw mut number).cast(), 8, (&raw const sk).cast());
        Raw((&raw const number).read_volatile())
    }
}

#[inline(always)]
fn answered(ctx: &SockoptContext, dialled: &Address, port: u16) {
    let _: Option<()> = try_answered(socket(ctx), dialled, port);
}

#[inline(always)]
fn try_answered(sk: Raw, dialled: &Address, port: u16) -> Option<()> {
    let protocol: u16 = sk.read(o::SK_PROTOCOL.load());
    if protocol != u16::from(PROTOCOL_TCP) && protocol != PROTOCOL_MPTCP {
        return None;
    }
    let (local, remote) = addresses(sk)?;
    let own: u16 = sk.read(o::SKC_NUM.load());
    let remote_port = u16::from_be(sk.read(o::SKC_DPORT.load()));
    let netns = netns(sk);
    let cgroup_id = cgroup_id(sk);
    let mut key = FlowKey {
        cgroup_id,
        local,
        remote,
        server_port: port,
        local_port: own,
        protocol: PROTOCOL_TCP,
        role: FlowRole::Server as u8,
        pad: [0; 2],
    };
    let mut connection = Connection { netns, local_port: own, remote_port, local, remote };
    if is_local_talk(&local, &remote) {
        // Outbound: the other end is a socket of this pod, which sees what it dialled.
        if is_loopback(dialled) || is_local_talk(&remote, dialled) {
            return None;
        }
        key.role = FlowRole::Client as u8;
        (key.local, key.remote) = (remote, *dialled);
        connection = Connection { netns, local_port: remote_port, remote_port: port, local: remote, remote: *dialled };
    }
    if let Some(known) = DIALLED.get_ptr(&connection) {
        // SAFETY: one aligned word of a map's value.
        if unsafe { (&raw const (*known).socket).read_volatile() } == sk.0 {
            return None;
        }
    }
    let value = Dialled { cgroup_id, socket: sk.0, port, proxy_port: own, role: key.role, pad: [0; 3] };
    DIALLED.insert(&connection, &value, 0).ok()?;
    let entry = match flows::find(&key) {
        Some(entry) => entry,
        None => flows::make(&key),
    };
    if !entry.is_null() {
        // SAFETY: from FLOWS, in this run.
        unsafe {
            (*entry).netns = netns;
            flows::open(entry);
        }
    }
    Some(())
}

/// Counts an end where the answer was counted, and at the `raw` key of its establishment without
/// bytes. `ports`: the socket's error in the upper half; the local port, the remote port. 0: nobody
/// asked about this connection.
#[cold]
#[inline(never)]
pub(crate) fn close(raw: &mut FlowKey, netns: u32, ports: u64, sent: u64, received: u64) -> i32 {
    let (local_port, remote_port) = ((ports >> 16) as u16, ports as u16);
    let broken = flows::is_broken(((ports >> 32) as u32).cast_signed());
    let connection = Connection { netns, local_port, remote_port, local: raw.local, remote: raw.remote };
    let Some(known) = DIALLED.get_ptr(&connection) else { return 0 };
    // SAFETY: a value of the map, which this run reads once.
    let known = unsafe { known.read_volatile() };
    let _ = DIALLED.remove(&connection);
    let own = raw.cgroup_id;
    raw.role = known.role;
    (raw.cgroup_id, raw.server_port, raw.local_port) = (known.cgroup_id, known.port, known.proxy_port);
    end(raw, Some((sent, received)), broken);
    raw.cgroup_id = own;
    raw.server_port = if known.role == FlowRole::Server as u8 { local_port } else { remote_port };
    raw.local_port = 0;
    end(raw, None, broken);
    1
}

#[inline(always)]
fn end(key: &FlowKey, bytes: Option<(u64, u64)>, broken: bool) {
    let entry = match flows::find(key) {
        Some(entry) => entry,
        None => match flows::find(&key.coarse()) {
            Some(entry) => entry,
            None => return,
        },
    };
    // SAFETY: from FLOWS, in this run.
    unsafe {
        match bytes {
            Some((sent, received)) => flows::close(entry, sent, received, broken),
            None => flows::close_without_bytes(entry, broken),
        }
    }
}
