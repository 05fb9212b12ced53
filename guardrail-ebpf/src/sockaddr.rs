//! What an application asks of a UDP socket: `cgroup/bind4`, `bind6` (it chose a port, so the port
//! may be *served*) and `sendmsg4`, `sendmsg6` (the address it asked for, before NAT). Always
//! allow.

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    helpers::generated::{bpf_get_current_task, bpf_sk_storage_get},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use guardrail_common::flow::PROTOCOL_UDP;

use crate::{
    maps::{UDP_BIND_SEEN, UDP_SOCKETS, UdpSocket},
    socket::{address, map_v4, words},
};

/// Entry.
#[cgroup_sock_addr(bind4)]
pub(crate) fn bind4(ctx: SockAddrContext) -> i32 {
    bind(&ctx)
}

/// Entry.
#[cgroup_sock_addr(bind6)]
pub(crate) fn bind6(ctx: SockAddrContext) -> i32 {
    bind(&ctx)
}

/// Entry.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the verifier checks accesses to the context.
    let asked = unsafe { map_v4((*ctx.sock_addr).user_ip4) };
    sendmsg(&ctx, words(asked))
}

/// Entry.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the verifier checks accesses to the context.
    let w = unsafe {
        let ip = &raw const (*ctx.sock_addr).user_ip6;
        [
            (&raw const (*ip)[0]).read_volatile(),
            (&raw const (*ip)[1]).read_volatile(),
            (&raw const (*ip)[2]).read_volatile(),
            (&raw const (*ip)[3]).read_volatile(),
        ]
    };
    let asked = [u64::from(w[0]) | u64::from(w[1]) << 32, u64::from(w[2]) | u64::from(w[3]) << 32];
    sendmsg(&ctx, words(address(asked)))
}

/// What we keep of the socket.
#[inline(always)]
fn storage(ctx: &SockAddrContext, create: bool) -> Option<*mut UdpSocket> {
    // SAFETY: the context's socket is valid while the program runs.
    let socket = unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        let flags = if create { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
        bpf_sk_storage_get((&raw const UDP_SOCKETS).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), flags)
    };
    (!socket.is_null()).then_some(socket.cast())
}

/// The hook runs before the bind, which may fail: it only says that nothing of this socket's past
/// is unknown. Whether the port is served, the first packet reads from the socket (`probe` in
/// `udp.rs`). A socket that has a port already is refused by the kernel, and its past may be.
#[inline(always)]
fn bind(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the verifier checks accesses to the context.
    let (protocol, port, sk) =
        unsafe { ((*ctx.sock_addr).protocol, (*ctx.sock_addr).user_port, (*ctx.sock_addr).__bindgen_anon_1.sk) };
    if protocol != u32::from(PROTOCOL_UDP) || port == 0 || sk.is_null() {
        return 1;
    }
    // SAFETY: the verifier checks accesses to the socket.
    if unsafe { (&raw const (*sk).src_port).read_volatile() } != 0 {
        return 1;
    }
    if let Some(socket) = storage(ctx, true) {
        // SAFETY: from the socket's storage, in this run.
        unsafe { (*socket).flags = UDP_BIND_SEEN };
    }
    1
}

#[inline(always)]
fn sendmsg(ctx: &SockAddrContext, asked: [u64; 2]) -> i32 {
    if let Some(socket) = storage(ctx, true) {
        // SAFETY: from the socket's storage, in this run.
        unsafe {
            (*socket).asked = asked;
            (*socket).asked_port = u32::from(u16::from_be((*ctx.sock_addr).user_port as u16));
            (*socket).asked_by = bpf_get_current_task();
        }
    }
    1
}
