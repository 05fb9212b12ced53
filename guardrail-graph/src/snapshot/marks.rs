//! Marks of edges. Those of [`DERIVED`] follow from the other facts of a snapshot and are computed
//! anew by `merge`.

use std::collections::BTreeSet;

/// The edge follows from a client's use of a Service and the endpoints behind it; no server-side
/// record names the client.
pub const INFERRED: &str = "inferred";
/// The edge follows from a client's use of a Service that leads to this server alone, or to
/// addresses outside the cluster.
pub const VIA_SERVICE: &str = "via-service";
/// As inferred, and a node's address stood in for the client's at the server (masquerading).
pub const MASQUERADED: &str = "masqueraded";
/// UDP that was sent repeatedly, never answered and never refused, to a server that nobody
/// observed.
pub const ONE_WAY: &str = "one-way";
/// A connection was open already when an agent started.
pub const FOUND_AT_START: &str = "found-at-start";
/// A node proxy's socket in the pod's network namespace stood for the pod.
pub const PROXIED: &str = "proxied";
/// The server's address is a multicast group: reported, never a rule.
pub const MULTICAST: &str = "multicast";
/// The server's address is a broadcast address: reported, never a rule.
pub const BROADCAST: &str = "broadcast";
/// The address asked for is link-local: a service of the cloud or of the node. One of IPv6
/// (`fe80::/10`) means something on one link alone: reported, never a rule.
pub const LINK_LOCAL: &str = "link-local";
/// The client dialled a proxy's own port: which port of the server is meant stands inside the
/// connection, where the network does not see it.
pub const TUNNEL: &str = "tunnel";
/// The client asked for the address of another node than its own, at a port that leads to the
/// server: a node port or a host port. That node translates it, so the client's own network sees
/// the node.
pub const HOST_PORT: &str = "host-port";
/// The server saw the node at the client's end speak from an address that the API does not list as
/// that node's.
pub const UNLISTED_ADDRESS: &str = "unlisted-address";

/// The connection was one of two sockets in the server's own network namespace: the proxy of a node
/// (ambient mesh) handed on to the application what had come through a tunnel, or by redirection.
/// The network sees the tunnel, or what the client dialled. Reported, never a rule.
pub const INSIDE: &str = "inside";
/// The pod spoke from an address that is none of its `podIPs`: on a network beside the first one,
/// which alone NetworkPolicy judges. Reported, never a rule.
pub const SECONDARY_NETWORK: &str = "secondary-network";

/// Of a remote flow, never of an edge: it arrived at this port of a proxy, and nobody here knows
/// which port was dialled.
pub const REDIRECTED: &str = "redirected";

/// The port at which proxies of an ambient mesh take tunnels.
pub const HBONE: u16 = 15008;

/// Marks that are computed from other facts.
pub const DERIVED: [&str; 6] = [INFERRED, VIA_SERVICE, MASQUERADED, ONE_WAY, FOUND_AT_START, UNLISTED_ADDRESS];
/// Marks of traffic that never supports a rule.
pub const NEVER_SUPPORTED: [&str; 4] = [MULTICAST, BROADCAST, INSIDE, SECONDARY_NETWORK];
/// Marks of traffic that NetworkPolicy does not judge, between peers that may have other traffic at
/// the same port. An edge has one of them only as long as nothing else is known of it.
pub const SET_ASIDE: [&str; 2] = [INSIDE, SECONDARY_NETWORK];

/// Whether one of these marks is of [`SET_ASIDE`].
#[must_use]
pub fn set_aside(marks: &BTreeSet<String>) -> bool {
    SET_ASIDE.iter().any(|mark| marks.contains(*mark))
}
