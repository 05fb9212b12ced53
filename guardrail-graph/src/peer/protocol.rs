//! The transport protocol of edges, policy ports and flows.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};

/// Transport protocol. Edges are TCP or UDP: nothing else is observed, and a snapshot with another
/// one is refused. Policies speak of SCTP too, Cilium's also of ICMP.
///
/// Its text, in JSON too, is the name that Kubernetes gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP (and MPTCP, which looks like TCP on the wire). A policy port without a protocol means
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP (docs/semantics.md A23).
    #[serde(skip_deserializing)]
    Sctp,
    /// Any other, by its IP protocol number as IANA assigns it. The "port" of ICMP is a message
    /// type.
    #[serde(skip_deserializing)]
    Other(u8),
}

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self::Other(1);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self::Other(58);

    /// The protocol of a flow: those of policy ports, and `ICMP`, `ICMPv6`.
    #[must_use]
    pub fn of_flow(text: &str) -> Option<Self> {
        match text {
            "ICMP" => Some(Self::ICMP),
            "ICMPv6" => Some(Self::ICMPV6),
            _ => text.parse().ok(),
        }
    }

    /// Its "port" is a message type, from 0.
    #[must_use]
    pub const fn is_icmp(self) -> bool {
        matches!(self, Self::ICMP | Self::ICMPV6)
    }

    /// The protocol of an edge: one of those that are observed.
    #[must_use]
    pub fn of_edge(text: &str) -> Option<Self> {
        text.parse().ok().filter(|protocol| matches!(protocol, Self::Tcp | Self::Udp))
    }

    /// It has connections: one that was opened shows that the server answered. Of all others only
    /// the bytes that came back show it.
    #[must_use]
    pub const fn has_connections(self) -> bool {
        matches!(self, Self::Tcp | Self::Sctp)
    }

    /// Whether a port's `protocol`, as it stands in an object of the API, means this one.
    #[must_use]
    pub fn is_named(self, text: &str) -> bool {
        text.parse() == Ok(self)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("TCP"),
            Self::Udp => f.write_str("UDP"),
            Self::Sctp => f.write_str("SCTP"),
            &Self::ICMP => f.write_str("ICMP"),
            &Self::ICMPV6 => f.write_str("ICMPv6"),
            Self::Other(number) => write!(f, "{number}"),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is not `TCP`, `UDP` or `SCTP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a protocol is TCP, UDP or SCTP")]
pub struct UnknownProtocol;

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(s: &str) -> Result<Self, UnknownProtocol> {
        match s {
            "TCP" => Ok(Self::Tcp),
            "UDP" => Ok(Self::Udp),
            "SCTP" => Ok(Self::Sctp),
            _ => Err(UnknownProtocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protocol_has_the_name_of_the_api_but_a_snapshot_holds_tcp_and_udp_only() {
        let named = [
            (Protocol::Tcp, "TCP"),
            (Protocol::Udp, "UDP"),
            (Protocol::Sctp, "SCTP"),
            (Protocol::ICMP, "ICMP"),
            (Protocol::ICMPV6, "ICMPv6"),
        ];
        for (protocol, name) in named {
            assert_eq!(protocol.to_string(), name);
            assert_eq!(Protocol::of_flow(name), Some(protocol));
            let json = serde_json::to_string(&protocol).unwrap();
            assert_eq!(json, format!("{name:?}"));
            let read = serde_json::from_str::<Protocol>(&json);
            if Protocol::of_edge(name).is_some() {
                assert_eq!(read.unwrap(), protocol);
            } else {
                let refused = read.unwrap_err().to_string();
                assert!(refused.contains(&format!("unknown variant `{name}`, expected `TCP` or `UDP`")), "{refused}");
            }
        }
        assert_eq!(Protocol::Other(47).to_string(), "47");
        assert_eq!(Protocol::of_flow("tcp"), None);
    }
}
