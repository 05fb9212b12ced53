//! The scenario file of one application process: what it serves, whom it calls, how and how often.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// Everything that one process does.
///
/// Life of a process: serve everything in `serve`, run `before`, print `ready`; on the line `go`
/// from standard input run `after` (all calls at once) and print `done`; on `enough` end repeated
/// calls after their current round; on `stop` or the end of standard input exit, which closes what
/// was held open.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Scenario {
    /// Unique name of the process in the lab: the pod (`namespace/name`) and, if a pod has several,
    /// a suffix.
    pub process: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Log of connections, JSON lines ([`super::log::Record`]).
    pub log: PathBuf,
    /// DNS server for names, as in `/etc/resolv.conf`.
    pub resolver: Option<SocketAddr>,
    /// Sockets to serve.
    pub serve: Vec<Serve>,
    /// Calls made before `ready`, one after the other.
    pub before: Vec<Call>,
    /// Calls made after `go`, concurrently.
    pub after: Vec<Call>,
    /// Stay on this CPU.
    pub cpu: Option<usize>,
    /// Burn CPU time until the end, from `ready` on.
    pub spin: bool,
    /// Exit after `done` instead of waiting for `stop` (a Job).
    pub exit_when_done: bool,
}

/// A served socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Serve {
    /// Echo server over TCP.
    Tcp {
        /// Address to bind; `[::]` serves both families unless `v6_only`.
        bind: SocketAddr,
        /// Argument of `listen`.
        backlog: i32,
        /// Multipath TCP, as Go servers use it.
        mptcp: bool,
        /// Set `SO_REUSEPORT`.
        reuse_port: bool,
        /// Set `IPV6_V6ONLY`.
        v6_only: bool,
    },
    /// TCP server that answers JSON documents, one connection after the other, without a record:
    /// for measuring only.
    Measured {
        /// Address to bind.
        bind: SocketAddr,
    },
    /// Transparent proxy: takes what is redirected to it, asks the kernel what was dialled
    /// (`SO_ORIGINAL_DST`), connects on, and carries bytes both ways. It writes no records: it is
    /// no end of anything. Its own connections carry [`super::proxy::MARK`].
    Proxy {
        /// Port, on every address.
        port: u16,
        /// Where connections go on to.
        on: Onward,
    },
    /// UDP server.
    Udp {
        /// Address to bind.
        bind: SocketAddr,
        /// Echo what arrives; else only log it.
        reply: bool,
        /// Do not read what arrives (a peer that is silent).
        ignore: bool,
    },
    /// DNS server over UDP and TCP.
    Dns {
        /// Address to bind.
        bind: SocketAddr,
        /// Lower-case names without trailing dot. Other names get NXDOMAIN.
        records: BTreeMap<String, Vec<IpAddr>>,
    },
}

/// Where a proxy connects to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Onward {
    /// The port that was dialled, over loopback (a sidecar's inbound half). One dialled to the
    /// proxy's own port goes to `inner`.
    Inside {
        /// The port that stands inside of such a connection.
        inner: u16,
    },
    /// What was dialled, or what these lead to (a sidecar's outbound half).
    Outside {
        /// Endpoints that the proxy chooses itself.
        endpoints: BTreeMap<SocketAddr, SocketAddr>,
    },
    /// The port of its own end, over loopback, without a question to the kernel: the proxy has what
    /// was dialled as its own address (`TPROXY`).
    Transparent,
    /// The pod behind what was dialled, through a tunnel to the proxy of its node; what leads
    /// nowhere here is dialled itself (the outbound half of an ambient mesh's proxy).
    Tunnel {
        /// Ends of tunnels by what was dialled.
        ends: BTreeMap<SocketAddr, SocketAddr>,
    },
    /// What stands inside of a tunnel, in the name of whoever opened it (where tunnels end).
    Unpack,
    /// What was dialled, in the name of whoever called (the inbound half for who has no tunnel).
    InTheNameOf,
    /// A fixed port over loopback, without a question to the kernel.
    Unasked {
        /// The port.
        port: u16,
    },
}

impl Serve {
    /// A plain dual-stack TCP server.
    #[must_use]
    pub fn tcp(port: u16) -> Self {
        Self::Tcp {
            bind: SocketAddr::new([0u16; 8].into(), port),
            backlog: 128,
            mptcp: false,
            reuse_port: false,
            v6_only: false,
        }
    }

    /// A plain dual-stack UDP echo server.
    #[must_use]
    pub fn udp(port: u16) -> Self {
        Self::Udp { bind: SocketAddr::new([0u16; 8].into(), port), reply: true, ignore: false }
    }
}

/// A repeated call of one target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// `host:port`; `host` is an address (IPv6 in brackets) or a name for the resolver, which is
    /// asked anew for every call.
    pub to: String,
    /// Pattern.
    pub how: How,
    /// How often (for held connections: how many).
    pub times: u32,
    /// Pause between two calls, from and to, in milliseconds.
    pub pause_ms: (u32, u32),
    /// Payload per request, from and to, in bytes.
    pub payload_bytes: (u32, u32),
    /// Address family to ask the resolver for.
    pub family: Family,
    /// Give up after this many milliseconds.
    pub timeout_ms: u32,
    /// Source addresses to bind in turn (they need not be configured: `IP_FREEBIND`); empty: the
    /// kernel chooses.
    pub sources: Option<AddressRange>,
    /// Call number `n` goes to the address in `to` plus `n` modulo this; 0: always to the same.
    pub spread: u32,
}

impl Call {
    /// Calls `to` `times` times with short pauses.
    #[must_use]
    pub fn new(to: &str, how: How, times: u32) -> Self {
        Self {
            to: to.to_owned(),
            how,
            times,
            pause_ms: (1, 20),
            payload_bytes: (10, 2000),
            family: Family::V4,
            timeout_ms: 3000,
            sources: None,
            spread: 0,
        }
    }

    /// The same over IPv6.
    #[must_use]
    pub fn v6(self) -> Self {
        Self { family: Family::V6, ..self }
    }

    /// The same with another time limit.
    #[must_use]
    pub fn timeout(self, timeout_ms: u32) -> Self {
        Self { timeout_ms, ..self }
    }

    /// The same with these pauses between calls.
    #[must_use]
    pub fn pause(self, from_ms: u32, to_ms: u32) -> Self {
        Self { pause_ms: (from_ms, to_ms), ..self }
    }
}

/// A run of consecutive addresses.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct AddressRange {
    /// First address.
    pub first: IpAddr,
    /// How many; call `n` uses `first + n % count`.
    pub count: u32,
}

/// Address family of a call by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

/// An exchange that is measured. The request is a JSON document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measured {
    /// Connect and reset at once, without any data.
    Reset,
    /// Connect, one request, close.
    Connection,
    /// A request on the connection of the first.
    Kept,
}

/// How a target is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// TCP, a new connection per call, one request on it.
    Tcp,
    /// TCP, opened and kept to the end; with a request now and another one after `go`.
    Held,
    /// The same over Multipath TCP.
    HeldMptcp,
    /// TCP, without a record: for measuring only.
    Measured(Measured),
    /// UDP over a connected socket, with an answer.
    UdpConnected,
    /// UDP with `sendto` on a socket that was never bound or connected, with an answer.
    UdpUnconnected,
    /// UDP like [`How::UdpUnconnected`], but the IPv4 destination is given to an IPv6 socket as an
    /// IPv4-mapped address.
    UdpMapped,
    /// UDP sent from the socket that serves the same port (gossip), without an answer.
    UdpFromServed,
    /// UDP to a multicast group, without an answer.
    Multicast,
    /// A DNS question the way musl asks: one socket, bound to port 0, not connected, A and AAAA at
    /// once. `to` is the name, without a port.
    DnsMusl,
    /// A DNS question over TCP. `to` is the name, without a port.
    DnsTcp,
}
