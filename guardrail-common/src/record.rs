//! Ring records and the records of the socket iterator. Each begins with a kind byte.

use crate::{address::Address, flow::FlowKey};

/// Longest cgroup path kept, bytes. Nested clusters exceed 300; what is longer is cut and marked.
pub const PATH_BYTES: usize = 512;
/// Longest DNS answer kept, bytes: the EDNS buffer size that resolvers agreed on.
pub const DNS_BYTES: usize = 1232;

/// Kinds of records.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// [`FlowHint`].
    Flow = 1,
    /// [`CgroupRecord`], created.
    CgroupCreated = 2,
    /// [`CgroupRecord`], removed.
    CgroupRemoved = 3,
    /// [`ListenRecord`].
    Listen = 4,
    /// [`DnsRecord`].
    Dns = 5,
    /// [`SocketRecord`].
    Socket = 6,
}

impl TryFrom<u8> for RecordKind {
    type Error = u8;

    fn try_from(kind: u8) -> Result<Self, u8> {
        match kind {
            1 => Ok(Self::Flow),
            2 => Ok(Self::CgroupCreated),
            3 => Ok(Self::CgroupRemoved),
            4 => Ok(Self::Listen),
            5 => Ok(Self::Dns),
            6 => Ok(Self::Socket),
            other => Err(other),
        }
    }
}

/// A key is new in FLOWS: look there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowHint {
    /// [`RecordKind::Flow`].
    pub kind: u8,
    /// Zero.
    pub pad: [u8; 7],
    /// The key.
    pub key: FlowKey,
}

const _: () = assert!(size_of::<FlowHint>() == 56);

/// A cgroup of the v2 hierarchy was made or removed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupRecord {
    /// [`RecordKind::CgroupCreated`] or [`RecordKind::CgroupRemoved`].
    pub kind: u8,
    /// Zero.
    pub pad: [u8; 5],
    /// Bytes of `path` used, without a terminator; [`PATH_BYTES`] - 1 may mean that the path was
    /// cut.
    pub path_len: u16,
    /// Its id: the inode of its directory.
    pub cgroup_id: u64,
    /// Boot time, ns.
    pub at: u64,
    /// In CGROUPS only: boot time of its removal, ns; 0: it was not removed.
    pub ended: u64,
    /// Path below the hierarchy's root, starting with `/`.
    pub path: [u8; PATH_BYTES],
}

const _: () = assert!(size_of::<CgroupRecord>() == 32 + PATH_BYTES);

/// A TCP socket began or ceased to listen.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenRecord {
    /// [`RecordKind::Listen`].
    pub kind: u8,
    /// 1: began; 0: ceased.
    pub listening: u8,
    /// Port, host byte order.
    pub port: u16,
    /// Inode of the network namespace.
    pub netns: u32,
    /// cgroup v2 id of the socket.
    pub cgroup_id: u64,
    /// Boot time, ns.
    pub at: u64,
    /// Local address; unspecified for "any".
    pub local: Address,
}

const _: () = assert!(size_of::<ListenRecord>() == 40);

/// A DNS answer that a client socket received from port 53. Variable length on the ring: `payload`
/// is cut after `payload_len` bytes, rounded up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsRecord {
    /// [`RecordKind::Dns`].
    pub kind: u8,
    /// Zero.
    pub pad: [u8; 5],
    /// Bytes of `payload` used.
    pub payload_len: u16,
    /// cgroup v2 id of the socket that had asked.
    pub cgroup_id: u64,
    /// Boot time, ns.
    pub at: u64,
    /// The DNS message.
    pub payload: [u8; DNS_BYTES],
}

const _: () = assert!(size_of::<DnsRecord>() == 24 + DNS_BYTES);

/// A TCP, MPTCP or UDP socket that a process has open: what the iterator read, undigested.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketRecord {
    /// [`RecordKind::Socket`].
    pub kind: u8,
    /// `skc_state` (1 ESTABLISHED, 10 LISTEN, …).
    pub state: u8,
    /// `sk_userlocks`; bit 3 is SOCK_BINDPORT_LOCK.
    pub userlocks: u8,
    /// `inet_bind_bucket.fastreuse` of the port, if it has one: -1 says that connect() chose the
    /// port (Linux ≥ 6.1), so this is a client.
    pub fastreuse: i8,
    /// `sk_protocol`: 6, 17 or 262.
    pub protocol: u16,
    /// `skc_family`: 2 or 10.
    pub family: u16,
    /// Local port, host byte order.
    pub local_port: u16,
    /// Remote port, host byte order.
    pub remote_port: u16,
    /// Inode of the network namespace.
    pub netns: u32,
    /// `sk_max_ack_backlog`.
    pub backlog: u32,
    /// 1 if `fastreuse` was read.
    pub has_bucket: u32,
    /// An opaque number that is equal for two descriptors of one socket.
    pub socket: u64,
    /// cgroup v2 id of the socket.
    pub cgroup_id: u64,
    /// Local address.
    pub local: Address,
    /// Remote address.
    pub remote: Address,
}

const _: () = assert!(size_of::<SocketRecord>() == 72);
