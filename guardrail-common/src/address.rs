//! Addresses as both sides see them: 16 bytes in network order, IPv4 mapped into IPv6.

/// 16 bytes in network order; IPv4 as `::ffff:a.b.c.d`.
pub type Address = [u8; 16];

/// The unspecified IPv6 address: the remote of a coarse key, and "any" of a listening socket.
pub const UNSPECIFIED: Address = [0; 16];

/// What kind of address this is, as far as flows are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressClass {
    /// `0.0.0.0`, `::`.
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// `169.254.0.0/16`, `fe80::/10`.
    LinkLocal,
    /// `224.0.0.0/4`, `ff00::/8`.
    Multicast,
    /// `255.255.255.255`. (A subnet's directed broadcast cannot be told without its prefix.)
    Broadcast,
    /// Anything else.
    Unicast,
}

/// An IPv4 address, its four bytes in network order read as one native integer (as the kernel's
/// `__be32` loads), mapped into IPv6.
#[inline(always)]
#[must_use]
pub const fn map_v4(be: u32) -> Address {
    let b = be.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, b[0], b[1], b[2], b[3]]
}

/// Whether this is an IPv4 address mapped into IPv6.
#[inline(always)]
#[must_use]
pub const fn is_v4(a: &Address) -> bool {
    high(a) == 0
        && low(a) & u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0])
            == u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0])
}

/// The first eight bytes, native order. A whole word: byte by byte the kernel programs would not
/// fit their stack.
#[inline(always)]
const fn high(a: &Address) -> u64 {
    match a.first_chunk() {
        Some(bytes) => u64::from_ne_bytes(*bytes),
        None => 0,
    }
}

/// The last eight bytes, native order.
#[inline(always)]
const fn low(a: &Address) -> u64 {
    match a.last_chunk() {
        Some(bytes) => u64::from_ne_bytes(*bytes),
        None => 0,
    }
}

/// Whether nothing to or from this address leaves the host's loopback: `127.0.0.0/8` or `::1`. The
/// kernel side drops such flows.
#[inline(always)]
#[must_use]
pub const fn is_loopback(a: &Address) -> bool {
    high(a) == 0
        && (low(a) & u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0])
            == u64::from_ne_bytes([0, 0, 0xff, 0xff, 127, 0, 0, 0])
            || low(a) == u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, 1]))
}

/// Whether a flow between these two is of no interest: loopback, or a host that talks to itself.
/// What a host's own proxy takes has loopback at one end alone.
#[inline(always)]
#[must_use]
pub const fn is_local_talk(local: &Address, remote: &Address) -> bool {
    is_loopback(remote) || is_loopback(local) || (high(local) == high(remote) && low(local) == low(remote))
}

/// The class of an address.
#[must_use]
pub const fn classify(a: &Address) -> AddressClass {
    if is_v4(a) {
        return match (a[12], a[13], a[14], a[15]) {
            (0, 0, 0, 0) => AddressClass::Unspecified,
            (127, ..) => AddressClass::Loopback,
            (169, 254, ..) => AddressClass::LinkLocal,
            (224..=239, ..) => AddressClass::Multicast,
            (255, 255, 255, 255) => AddressClass::Broadcast,
            _ => AddressClass::Unicast,
        };
    }
    if is_loopback(a) {
        return AddressClass::Loopback;
    }
    match (a[0], a[1]) {
        (0xff, _) => AddressClass::Multicast,
        (0xfe, 0x80..=0xbf) => AddressClass::LinkLocal,
        (0, 0) if high(a) == 0 && low(a) == 0 => AddressClass::Unspecified,
        _ => AddressClass::Unicast,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn address(s: &str) -> Address {
        match s.parse::<IpAddr>().expect("an address") {
            IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
            IpAddr::V6(a) => a.octets(),
        }
    }

    #[test]
    fn every_class_has_its_borders() {
        for (text, class) in [
            ("0.0.0.0", AddressClass::Unspecified),
            ("0.0.0.1", AddressClass::Unicast),
            ("126.255.255.255", AddressClass::Unicast),
            ("127.0.0.1", AddressClass::Loopback),
            ("127.255.255.255", AddressClass::Loopback),
            ("128.0.0.0", AddressClass::Unicast),
            ("169.254.169.254", AddressClass::LinkLocal),
            ("169.253.255.255", AddressClass::Unicast),
            ("223.255.255.255", AddressClass::Unicast),
            ("224.0.0.1", AddressClass::Multicast),
            ("239.255.255.250", AddressClass::Multicast),
            ("240.0.0.0", AddressClass::Unicast),
            ("255.255.255.255", AddressClass::Broadcast),
            ("::", AddressClass::Unspecified),
            ("::1", AddressClass::Loopback),
            ("::2", AddressClass::Unicast),
            ("::127.0.0.1", AddressClass::Unicast),
            ("fe80::1", AddressClass::LinkLocal),
            ("febf::1", AddressClass::LinkLocal),
            ("fec0::1", AddressClass::Unicast),
            ("ff02::1", AddressClass::Multicast),
            ("fd00::1", AddressClass::Unicast),
            ("2001:db8::1", AddressClass::Unicast),
        ] {
            assert_eq!(classify(&address(text)), class, "{text}");
        }
    }

    #[test]
    fn a_host_that_talks_to_itself_is_local_talk() {
        assert!(is_local_talk(&address("10.0.0.1"), &address("10.0.0.1")));
        assert!(is_local_talk(&address("10.0.0.1"), &address("127.0.0.53")));
        assert!(is_local_talk(&address("127.0.0.1"), &address("10.0.0.1")));
        assert!(!is_local_talk(&address("10.0.0.1"), &address("10.0.0.2")));
        assert!(!is_local_talk(&address("2001:db8::1"), &address("2001:db8::2")));
    }

    proptest! {
        #[test]
        fn the_classes_agree_with_the_standard_library(octets: [u8; 16], v4: bool) {
            let mut a = octets;
            if v4 {
                a[..12].copy_from_slice(&map_v4(0)[..12]);
            }
            let std: std::net::Ipv6Addr = a.into();
            let expected = match std.to_ipv4_mapped() {
                Some(ip) => (ip.is_loopback(), ip.is_multicast(), ip.is_link_local()),
                None => (std.is_loopback(), std.is_multicast(), std.is_unicast_link_local()),
            };
            let class = classify(&a);
            prop_assert_eq!(
                (class == AddressClass::Loopback, class == AddressClass::Multicast, class == AddressClass::LinkLocal),
                expected
            );
            prop_assert_eq!(is_loopback(&a), expected.0);
            prop_assert_eq!(is_v4(&a), std.to_ipv4_mapped().is_some());
        }

        #[test]
        fn mapping_keeps_the_bytes_in_network_order(octets: [u8; 4]) {
            prop_assert_eq!(map_v4(u32::from_ne_bytes(octets)), std::net::Ipv4Addr::from(octets).to_ipv6_mapped().octets());
        }
    }
}
