//! What the agent tells the observer: the seam between the kernel side (IO) and the pure graph.
//!
//! Everything here is already decoded, in host byte order, with IPv4-mapped addresses shown as
//! IPv4, and with wall-clock times.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{peer::Protocol, time::Timestamp};

/// Ports on which proxies take what is redirected to them: Istio outbound and inbound, Linkerd
/// outbound and inbound, Consul inbound.
pub const PROXY_PORTS: [u16; 5] = [15001, 15006, 4140, 4143, 20000];

/// cgroup v2 id: the inode of the cgroup's directory; `kernfs_node.id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CgroupId(pub u64);

/// Inode of a network namespace (`ns_common.inum`, the number in `/proc/PID/ns/net`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NetnsId(pub u32);

/// Role of the *local* socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// It opened the connection (TCP), or sent first from this port (UDP).
    Client,
    /// It accepted the connection (TCP), or was sent to on a port that it serves (UDP).
    Server,
    /// The socket's own state does not tell: `server_port` is the remote port, `local_port` the
    /// local one. The observer decides from what it knows, or counts `role_unknown`; it never
    /// guesses from port numbers.
    Undecided,
}

/// The other end of a flow as the kernel map keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Remote {
    /// One address.
    Addr(IpAddr),
    /// The coarse key: many peers, their addresses were not kept (the cgroup was over its budget,
    /// or the map nearly full).
    Many,
}

/// What was counted. Bytes are payload bytes as the *local* socket sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCounts {
    /// TCP: connections established. UDP: datagrams sent by the client (client role) or received
    /// (server role).
    pub opened: u64,
    /// TCP connections that were already established when the agent looked (socket inventory at
    /// start).
    pub found: u64,
    /// Attempts answered by a reset (ECONNREFUSED), or an ICMP port unreachable for UDP.
    pub refused: u64,
    /// Attempts that nobody answered: timed out, or given up by the application.
    pub unanswered: u64,
    /// Attempts that failed with no route or an ICMP unreachable.
    pub unreachable: u64,
    /// Established connections that ended.
    pub closed: u64,
    /// Of these, those that broke off: what was sent was never answered any more (ETIMEDOUT).
    #[serde(default)]
    pub broken: u64,
    /// Payload bytes sent by the local socket.
    pub bytes_sent: u64,
    /// Payload bytes received by the local socket.
    pub bytes_received: u64,
}

/// What one FLOWS entry gained since it was last folded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowDelta {
    /// cgroup of the local socket.
    pub cgroup: CgroupId,
    /// Network namespace of the local socket; unknown for UDP.
    pub netns: Option<NetnsId>,
    /// Local address.
    pub local: IpAddr,
    /// Remote address: what the application asked for (a ClusterIP stays a ClusterIP).
    pub remote: Remote,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Role of the local socket.
    pub role: Role,
    /// The server's port: the local port for [`Role::Server`], else the remote port.
    pub server_port: u16,
    /// UDP client whose socket is bound to a port the application chose, or the local port of an
    /// undecided socket. TCP: the port of a proxy that was told what this connection dialled
    /// (`SO_ORIGINAL_DST`). Of a server that is `server_port`; of a client it is `remote` and
    /// `server_port`, and nothing of this connection left the pod. Beside such a delta there is
    /// always one without it, of the same connection as the kernel saw it: at the proxy's port, or
    /// to what was dialled.
    pub local_port: Option<u16>,
    /// With `local_port`, UDP: the bind was seen, so nothing that this socket received before is
    /// unknown to us. If false, an exchange that began before the agent may look like the local
    /// side's initiative.
    pub bind_seen: bool,
    /// Time of the first open in this entry's life; only set in the entry's first delta.
    pub first_open: Option<Timestamp>,
    /// Time of the last open, if opens (or failed attempts) were counted in this delta.
    pub last_open: Option<Timestamp>,
    /// The gain.
    pub counts: FlowCounts,
}

/// Connections of one FLOWS entry that are open at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFlow {
    /// The entry. Its counts play no part.
    pub flow: FlowDelta,
    /// How many: opened and found, less those that ended.
    pub open: u64,
}

/// What a loss costs (docs/design.md#losses).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossClass {
    /// Repaired by the sweep, or counted where it matters: does not touch completeness.
    Hint,
    /// An edge may be missing: the affected workload is incomplete.
    Edge,
}

/// Why something was lost. Each reason exists from the start at 0 in
/// `guardrail_events_lost_total{reason,class}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LossReason {
    /// The flow ring was full: the sweep finds the entry.
    RingFull,
    /// The DNS ring was full: an external peer may lack its name.
    DnsRingFull,
    /// The cgroup ring was full: the cgroup map and the directory walk repair it.
    CgroupRingFull,
    /// A client was over its key budget or the map nearly full: its remote addresses are not known.
    CoarseClient,
    /// The FLOWS map refused an entry.
    MapFull,
    /// A program did not run because it would have recursed (`recursion_misses`).
    Recursion,
    /// A ring record did not decode.
    Decode,
    /// Flows that waited for their pod or their role were decided too soon, for want of room. Those
    /// whose wait ended in vain are unresolved, not lost.
    PendingOverflow,
    /// The observer's table of edges was full, or that of endpoints which Services had.
    GraphFull,
    /// The observer's table of listening sockets, or of served UDP ports, was full: a role that
    /// cannot be told for want of it is counted as `role_unknown`.
    ListenersFull,
    /// An agent that was killed had taken entries out of the kernel's map that neither its state
    /// nor its journal holds.
    JournalFull,
    /// The kernel's maps went without being read to their end: the reading broke off, or the thread
    /// that reads them died with observations in hand.
    Unread,
}

impl LossReason {
    /// Every reason, in the order in which they are shown.
    pub const ALL: [Self; 12] = [
        Self::RingFull,
        Self::DnsRingFull,
        Self::CgroupRingFull,
        Self::CoarseClient,
        Self::MapFull,
        Self::Recursion,
        Self::Decode,
        Self::PendingOverflow,
        Self::GraphFull,
        Self::ListenersFull,
        Self::JournalFull,
        Self::Unread,
    ];

    /// Label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::DnsRingFull => "dns_ring_full",
            Self::CgroupRingFull => "cgroup_ring_full",
            Self::CoarseClient => "coarse_client",
            Self::MapFull => "map_full",
            Self::Recursion => "recursion",
            Self::Decode => "decode",
            Self::PendingOverflow => "pending_overflow",
            Self::GraphFull => "graph_full",
            Self::ListenersFull => "listeners_full",
            Self::JournalFull => "journal_full",
            Self::Unread => "unread",
        }
    }

    /// What it costs.
    #[must_use]
    pub const fn class(self) -> LossClass {
        match self {
            Self::RingFull | Self::DnsRingFull | Self::CgroupRingFull | Self::ListenersFull => LossClass::Hint,
            _ => LossClass::Edge,
        }
    }
}

/// One thing that the agent saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Traffic.
    Flow(FlowDelta),
    /// A cgroup exists since (at latest) `at`.
    CgroupCreated {
        /// Its id.
        id: CgroupId,
        /// Path below the cgroup v2 root, starting with `/`.
        path: String,
        /// When.
        at: Timestamp,
    },
    /// A cgroup was removed. Its id may be used again later; what was observed before stays with
    /// the old owner.
    CgroupRemoved {
        /// Its id.
        id: CgroupId,
        /// When.
        at: Timestamp,
    },
    /// A socket listens (TCP), or stopped listening.
    Listening {
        /// cgroup of the socket.
        cgroup: CgroupId,
        /// Its network namespace.
        netns: NetnsId,
        /// Local address; unspecified for "any".
        address: IpAddr,
        /// Port.
        port: u16,
        /// Started (true) or stopped.
        listening: bool,
        /// When.
        at: Timestamp,
    },
    /// A DNS answer that a local socket received: `name` (as asked, lower case, no trailing dot)
    /// has these addresses.
    DnsAnswer {
        /// cgroup of the socket that had asked.
        cgroup: CgroupId,
        /// Question name.
        name: String,
        /// A and AAAA records of the answer.
        addresses: Vec<IpAddr>,
        /// When.
        at: Timestamp,
    },
    /// Something was lost.
    Lost {
        /// Why.
        reason: LossReason,
        /// Whose edges may be missing; `None`: anyone's on this node.
        cgroup: Option<CgroupId>,
        /// How many.
        count: u64,
        /// When it was noticed.
        at: Timestamp,
    },
}
