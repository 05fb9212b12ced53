//! Connections that a proxy was given by address translation (`REDIRECT`): what they dialled.
//!
//! The kernel tells it to whoever asks for `SO_ORIGINAL_DST`, which proxies do for each connection
//! that they accept. An answer is one more entry of FLOWS, a TCP entry with
//! [`crate::flow::FlowKey::local_port`] set to the proxy's port, beside the one that was counted
//! when the connection was established; user space takes the one off the other.

use crate::address::Address;

/// Connections that are remembered with what they dialled until they end: of more, the oldest end
/// where the proxy's port was counted.
pub const REMEMBERED: u32 = 16_384;

/// Key of DIALLED: a connection as the socket at its end in a pod sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// Inode of the network namespace.
    pub netns: u32,
    /// Local port, host byte order.
    pub local_port: u16,
    /// Remote port, host byte order.
    pub remote_port: u16,
    /// Local address.
    pub local: Address,
    /// Remote address.
    pub remote: Address,
}

const _: () = assert!(size_of::<Connection>() == 40);

/// Value of DIALLED: the rest of the key in FLOWS of the entry on which its answer was counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialled {
    /// cgroup v2 id of the socket that asked.
    pub cgroup_id: u64,
    /// An opaque number that is equal for two questions of one socket.
    pub socket: u64,
    /// The port that was dialled, host byte order.
    pub port: u16,
    /// The port of the socket that asked, host byte order.
    pub proxy_port: u16,
    /// [`crate::flow::FlowRole`] of the end in the pod: server (inbound), client (outbound).
    pub role: u8,
    /// Zero.
    pub pad: [u8; 3],
}

const _: () = assert!(size_of::<Dialled>() == 24);
