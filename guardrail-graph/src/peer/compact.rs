//! Peers in large tables.

use std::{cmp::Ordering, net::IpAddr, sync::Arc};

use super::Peer;

/// A peer as it is kept. There may be 100,000 external ones: their text is made when it is asked
/// for. Equal, hashed and sorted as the peer itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CompactPeer(Kept);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kept {
    /// Any but those that are an address.
    Named(Arc<Peer>),
    Address(IpAddr),
}

/// The address that an external peer's text is, if it is written as guardrail writes it: another
/// spelling is another peer.
fn address(peer: &Peer) -> Option<IpAddr> {
    match peer {
        Peer::External { address: text } => text.parse().ok().filter(|address: &IpAddr| address.to_string() == *text),
        _ => None,
    }
}

impl From<&Arc<Peer>> for CompactPeer {
    fn from(peer: &Arc<Peer>) -> Self {
        Self(address(peer).map_or_else(|| Kept::Named(Arc::clone(peer)), Kept::Address))
    }
}

impl From<IpAddr> for CompactPeer {
    fn from(address: IpAddr) -> Self {
        Self(Kept::Address(address))
    }
}

impl CompactPeer {
    /// Spelled out.
    pub(crate) fn peer(&self) -> Arc<Peer> {
        match &self.0 {
            Kept::Named(peer) => Arc::clone(peer),
            Kept::Address(address) => Arc::new(Peer::External { address: address.to_string() }),
        }
    }

    /// The address, if it is one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        match &self.0 {
            Kept::Named(_) => None,
            Kept::Address(address) => Some(*address),
        }
    }

    /// The peer, unless it is an address.
    pub(crate) fn named(&self) -> Option<&Arc<Peer>> {
        match &self.0 {
            Kept::Named(peer) => Some(peer),
            Kept::Address(_) => None,
        }
    }
}

impl Ord for CompactPeer {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Kept::Named(a), Kept::Named(b)) => a.cmp(b),
            (Kept::Address(a), Kept::Address(b)) => by_text(a, b),
            (Kept::Address(a), Kept::Named(b)) => to_named(a, b),
            (Kept::Named(a), Kept::Address(b)) => to_named(b, a).reverse(),
        }
    }
}

impl PartialOrd for CompactPeer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn to_named(address: &IpAddr, peer: &Peer) -> Ordering {
    match peer {
        Peer::External { address: text } => address.to_string().cmp(text),
        Peer::Workload(_) | Peer::Node { .. } => Ordering::Greater,
    }
}

/// Compares addresses as texts, without making them where that is easy.
fn by_text(a: &IpAddr, b: &IpAddr) -> Ordering {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets().map(octet_as_text).cmp(&b.octets().map(octet_as_text)),
        _ if a == b => Ordering::Equal,
        _ => a.to_string().cmp(&b.to_string()),
    }
}

/// A number that sorts as the octet's decimal text does, whose end comes before any digit, as a dot
/// does.
fn octet_as_text(octet: u8) -> u16 {
    let octet = u16::from(octet);
    let place = |digit: u16| digit + 1;
    match octet {
        0..=9 => place(octet) * 121,
        10..=99 => place(octet / 10) * 121 + place(octet % 10) * 11,
        _ => place(octet / 100) * 121 + place(octet / 10 % 10) * 11 + place(octet % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::WorkloadRef;

    fn external(text: impl Into<String>) -> Arc<Peer> {
        Arc::new(Peer::External { address: text.into() })
    }

    #[test]
    fn compact_peers_sort_as_the_peers_that_they_stand_for() {
        let octets: &[u8] = if cfg!(miri) {
            // All pairs of more than these take a quarter of an hour there.
            &[1, 10, 19, 100]
        } else {
            &[0, 1, 2, 9, 10, 11, 19, 20, 25, 99, 100, 101, 110, 199, 200, 250, 255]
        };
        let v4 = octets.iter().flat_map(|o| [format!("{o}.0.2.1"), format!("10.{o}.1.1"), format!("10.1.1.{o}")]);
        let other =
            ["::1", "fd00::10", "fd00::2", "2001:db8::7", "::ffff:10.1.1.1", "*", "", "10.01.1.1", "FD00::2", "10"];
        let workload = |name: &str| {
            Arc::new(Peer::Workload(WorkloadRef { namespace: "a".into(), owner: "Pod".into(), name: name.into() }))
        };
        let mut peers: Vec<Arc<Peer>> = v4.chain(other.map(str::to_owned)).map(external).collect();
        peers.extend([workload("a"), workload("b"), Arc::new(Peer::Node { name: "n".into() })]);
        let short: Vec<CompactPeer> = peers.iter().map(CompactPeer::from).collect();
        for (a, short_a) in peers.iter().zip(&short) {
            assert_eq!(short_a.peer(), *a);
            for (b, short_b) in peers.iter().zip(&short) {
                assert_eq!(short_a.cmp(short_b), a.cmp(b), "{a} and {b}");
                assert_eq!(short_a == short_b, a == b, "{a} and {b}");
            }
        }
        assert!(CompactPeer::from(&external("*")).address().is_none());
        assert!(CompactPeer::from(&external("10.1.1.1")).named().is_none());
    }
}
