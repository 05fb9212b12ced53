//! Where the running kernel keeps what we read: byte offsets that the loader takes from the
//! kernel's BTF and writes into these read-only globals.
//!
//! Rust cannot emit CO-RE relocations. The verifier sees a frozen read-only global as a constant,
//! and a typed kernel pointer plus a constant is checked like a member access. The names are the
//! contract with `guardrail-kernel/src/offsets.rs`.

use aya_ebpf::Global;

macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr;)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub(crate) static $name: Global<$type> = Global::new($default);)*
    };
}

globals! {
    /// `sock.__sk_common.skc_family`.
    SKC_FAMILY: u32 = 0;
    /// `sock.__sk_common.skc_state`.
    SKC_STATE: u32 = 0;
    /// `sock.__sk_common.skc_daddr`.
    SKC_DADDR: u32 = 0;
    /// `sock.__sk_common.skc_rcv_saddr`.
    SKC_RCV_SADDR: u32 = 0;
    /// `sock.__sk_common.skc_v6_daddr`.
    SKC_V6_DADDR: u32 = 0;
    /// `sock.__sk_common.skc_v6_rcv_saddr`.
    SKC_V6_RCV_SADDR: u32 = 0;
    /// `sock.__sk_common.skc_dport`, big endian.
    SKC_DPORT: u32 = 0;
    /// `sock.__sk_common.skc_num`, host order.
    SKC_NUM: u32 = 0;
    /// `sock.__sk_common.skc_net.net`.
    SKC_NET: u32 = 0;
    /// `net.ns.inum`.
    NET_INUM: u32 = 0;
    /// `sock.sk_protocol`.
    SK_PROTOCOL: u32 = 0;
    /// `sock.sk_err`.
    SK_ERR: u32 = 0;
    /// `sock.sk_shutdown`.
    SK_SHUTDOWN: u32 = 0;
    /// `sock.sk_max_ack_backlog`.
    SK_MAX_ACK_BACKLOG: u32 = 0;
    /// The byte that holds `sock.sk_userlocks`.
    SK_USERLOCKS: u32 = 0;
    /// How far `sk_userlocks` must be shifted right in that byte (a bit field before 5.12).
    SK_USERLOCKS_SHIFT: u32 = 0;
    /// `sock.sk_cgrp_data.cgroup` (`.val` before 5.15).
    SK_CGROUP: u32 = 0;
    /// 1: the above is a tagged word; low bits set mean "root".
    SK_CGROUP_TAGGED: u32 = 0;
    /// `cgroup.kn`.
    CGROUP_KN: u32 = 0;
    /// `cgroup.root`.
    CGROUP_ROOT: u32 = 0;
    /// `cgroup_root.hierarchy_id`; 0 is the v2 hierarchy.
    CGROUP_ROOT_ID: u32 = 0;
    /// `kernfs_node.id`.
    KN_ID: u32 = 0;
    /// `inet_sock.inet_sport`, big endian.
    INET_SPORT: u32 = 0;
    /// `tcp_sock.bytes_received`.
    TCP_BYTES_RECEIVED: u32 = 0;
    /// `tcp_sock.bytes_sent`.
    TCP_BYTES_SENT: u32 = 0;
    /// `tcp_sock.bytes_retrans`.
    TCP_BYTES_RETRANS: u32 = 0;
    /// `inet_connection_sock.icsk_bind_hash`.
    ICSK_BIND_HASH: u32 = 0;
    /// `inet_bind_bucket.fastreuse`.
    BUCKET_FASTREUSE: u32 = 0;
    /// `file.f_inode`.
    FILE_INODE: u32 = 0;
    /// `file.private_data`.
    FILE_PRIVATE_DATA: u32 = 0;
    /// `inode.i_sb`.
    INODE_SB: u32 = 0;
    /// `super_block.s_magic`.
    SB_MAGIC: u32 = 0;
    /// `socket.sk`.
    SOCKET_SK: u32 = 0;
    /// `sk_buff.sk`.
    SKB_SK: u32 = 0;
    /// `cgroup.self` + `cgroup_subsys_state.parent`: the parent's state.
    CGROUP_PARENT: u32 = 0;
    /// `cgroup_subsys_state.cgroup`.
    CSS_CGROUP: u32 = 0;
    /// `task_struct.stack`.
    TASK_STACK: u32 = 0;
    /// Bytes of a task's stack; 0: the kernel runs a tracing program that it finds running once
    /// more.
    STACK_BYTES: u32 = 0;
    /// Id of the observed cgroup; 1 is the root of the hierarchy. Sockets and cgroups that are not
    /// below it are somebody else's.
    ROOT_CGROUP: u64 = 1;
    /// Live keys one cgroup may have.
    KEYS_PER_CGROUP: u32 = 4096;
    /// Entries of FLOWS.
    FLOW_ENTRIES: u32 = 65536;
}
