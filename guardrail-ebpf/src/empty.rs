//! Programs that do nothing, on the hooks of the others: what `bench-kernel` measures beside them,
//! because under bpf_stats even these show ≈ 60 ns a run. The agent never loads them.

use aya_ebpf::{
    macros::{btf_tracepoint, cgroup_skb, cgroup_sock_addr, cgroup_sockopt},
    programs::{BtfTracePointContext, SkBuffContext, SockAddrContext, SockoptContext},
};

/// Beside `tcp_state`.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn empty_tp(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// Beside `tcp_missed`.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn empty_second_tp(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// Beside `udp_egress`.
#[cgroup_skb(egress)]
pub(crate) fn empty_egress(_ctx: SkBuffContext) -> i32 {
    1
}

/// Beside `udp_ingress`.
#[cgroup_skb(ingress)]
pub(crate) fn empty_ingress(_ctx: SkBuffContext) -> i32 {
    1
}

/// Beside `sendmsg4`.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn empty_sendmsg4(_ctx: SockAddrContext) -> i32 {
    1
}

/// Beside `original_dst`.
#[cgroup_sockopt(getsockopt)]
pub(crate) fn empty_getsockopt(_ctx: SockoptContext) -> i32 {
    1
}
