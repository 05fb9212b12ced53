//! UDP packets: where they begin behind their IP headers, and what these say. In: the packet's
//! memory. Out: [`Packet`], or nothing if it is not UDP.

use core::hint::cold_path;

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use guardrail_common::{address::Address, flow::PROTOCOL_UDP};

use crate::socket::{address, map_v4};

/// Bytes of an IPv4 header without options, of an IPv6 header, of a UDP header.
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
/// IPv6 extension headers (`include/uapi/linux/in6.h`, RFC 8200, RFC 4302).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Whether UDP, or an IPv6 extension header, comes after the IP header.
#[inline(always)]
pub(crate) fn may_be_udp(skb: *mut __sk_buff) -> bool {
    // SAFETY: both bytes stand behind a comparison with the packet's end, which the verifier
    // checks.
    unsafe {
        let (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
        if data + IPV4_BYTES + UDP_BYTES > end {
            return false;
        }
        if (data as *const u8).read() >> 4 == 4 {
            return ((data + 9) as *const u8).read() == PROTOCOL_UDP;
        }
        let next = ((data + 6) as *const u8).read();
        next == PROTOCOL_UDP || is_extension(next)
    }
}

/// A UDP packet: source and destination as its headers show them.
pub(crate) struct Packet {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// Where the payload begins, from the network header.
    pub(crate) payload_at: u32,
    /// Payload bytes (of all segments, if the packet is to be cut later).
    pub(crate) payload: u32,
}

/// The packet, if it is UDP.
#[inline(always)]
pub(crate) fn packet(skb: *mut __sk_buff) -> Option<Packet> {
    // SAFETY: every access to packet memory stands behind a comparison with its end, which the
    // verifier checks.
    unsafe {
        let (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
        if data + IPV4_BYTES + UDP_BYTES > end {
            return None;
        }
        let first = (data as *const u8).read();
        let (source, destination, header) = if first >> 4 == 4 {
            if ((data + 9) as *const u8).read() != PROTOCOL_UDP {
                return None;
            }
            (map_v4(load::<u32>(data + 12)), map_v4(load::<u32>(data + 16)), usize::from(first & 0xf) << 2)
        } else {
            let next = ((data + 6) as *const u8).read();
            let header = if next == PROTOCOL_UDP { IPV6_BYTES } else { behind_extensions(skb, next)? };
            if data + IPV6_BYTES > end {
                return None;
            }
            (load_v6(data + 8), load_v6(data + 24), header)
        };
        let ports = data + header;
        if ports + UDP_BYTES > end {
            return None;
        }
        let payload_at = (header + UDP_BYTES) as u32;
        Some(Packet {
            source,
            destination,
            source_port: u16::from_be(load(ports)),
            destination_port: u16::from_be(load(ports + 2)),
            payload_at,
            // Never negative, since the headers were in bounds; a saturating subtraction would be a
            // constant zero on one of the verifier's paths (see `udp::begin`).
            payload: (*skb).len.wrapping_sub(payload_at),
        })
    }
}

/// Whether this is an IPv6 extension header that UDP may stand behind.
#[inline(always)]
fn is_extension(next: u8) -> bool {
    // One shift for TCP, which is what mostly comes here.
    const EXTENSIONS: u64 =
        1 << HOP_BY_HOP | 1 << ROUTING | 1 << FRAGMENT | 1 << AUTHENTICATION | 1 << DESTINATION_OPTIONS;
    next < 64 && EXTENSIONS >> next & 1 != 0
}

/// Where the UDP header begins behind IPv6 extension headers; `None` if there is none of these, or
/// no UDP behind them.
#[inline(always)]
fn behind_extensions(skb: *mut __sk_buff, next: u8) -> Option<usize> {
    cold_path();
    if !is_extension(next) {
        return None;
    }
    let at = walk_extensions(skb, next);
    (at != 0).then_some(at as usize)
}

/// The walk itself, out of the way of other packets. 0: no UDP.
#[inline(never)]
fn walk_extensions(skb: *mut __sk_buff, first: u8) -> u32 {
    let mut next = first;
    let mut at = IPV6_BYTES as u32;
    // RFC 8200 (4.1) allows six before the upper layer.
    for _ in 0..8 {
        if next == PROTOCOL_UDP {
            return at;
        }
        let mut header = [0u8; 4];
        // SAFETY: the helper writes four bytes and checks the packet's bounds.
        if unsafe { bpf_skb_load_bytes(skb.cast(), at, header.as_mut_ptr().cast(), 4) } != 0 {
            return 0;
        }
        let length = u32::from(header[1]);
        at += match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (length + 1) * 8,
            // Only the first fragment has the UDP header; whole packets are seen, except in odd
            // places.
            FRAGMENT if u16::from_be_bytes([header[2], header[3]]) & 0xfff8 == 0 => 8,
            AUTHENTICATION => (length + 2) * 4,
            _ => return 0,
        };
        next = header[0];
    }
    0
}

/// A whole word: loads byte by byte would cost registers that spill to the stack.
///
/// # Safety
/// `at` to `at + size_of::<T>()` lies in the packet. BPF loads from packets need no alignment.
#[inline(always)]
unsafe fn load<T>(at: usize) -> T {
    // SAFETY: the caller's.
    unsafe { (at as *const T).read() }
}

/// # Safety
/// The sixteen bytes from `at` lie in the packet.
#[inline(always)]
unsafe fn load_v6(at: usize) -> Address {
    // SAFETY: the caller's.
    unsafe { address([load(at), load(at + 8)]) }
}
