//! Key and value of the FLOWS map, the truth about what was observed.

use crate::address::{Address, UNSPECIFIED};

/// `IPPROTO_TCP`.
pub const PROTOCOL_TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const PROTOCOL_UDP: u8 = 17;
/// `IPPROTO_MPTCP`: the protocol of an MPTCP socket (its subflows are TCP sockets).
pub const PROTOCOL_MPTCP: u16 = 262;

/// Role of the local socket.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowRole {
    /// Opened the connection, or sent first.
    Client = 1,
    /// Accepted the connection, or was sent to on a port that it serves.
    Server = 2,
    /// The socket's state does not tell.
    Undecided = 3,
}

impl TryFrom<u8> for FlowRole {
    type Error = u8;

    fn try_from(role: u8) -> Result<Self, u8> {
        match role {
            1 => Ok(Self::Client),
            2 => Ok(Self::Server),
            3 => Ok(Self::Undecided),
            other => Err(other),
        }
    }
}

/// Key of FLOWS. The client's ephemeral port is not in it: a million connections to one server are
/// one entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// cgroup v2 id of the local socket (`sk_cgrp_data.cgroup->kn->id`).
    pub cgroup_id: u64,
    /// Local address.
    pub local: Address,
    /// Remote address; unspecified in a coarse key ("many peers").
    pub remote: Address,
    /// Port of the server: local port if the role is server, else remote port. Host byte order.
    pub server_port: u16,
    /// 0, or: the port that the application chose for a UDP client's socket; the local port of an
    /// undecided socket; TCP: the port of the proxy that was told that `server_port` was dialled,
    /// and then, at a client, `remote` ([`crate::redirect`]). Host byte order.
    pub local_port: u16,
    /// [`PROTOCOL_TCP`] or [`PROTOCOL_UDP`].
    pub protocol: u8,
    /// [`FlowRole`].
    pub role: u8,
    /// Zero.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<FlowKey>() == 48 && align_of::<FlowKey>() == 8);

impl FlowKey {
    /// Whether the socket's state did not tell its role.
    #[inline(always)]
    #[must_use]
    pub const fn is_undecided(&self) -> bool {
        self.role == FlowRole::Undecided as u8
    }

    /// Whether a proxy was told of these connections what they dialled ([`crate::redirect`]).
    #[inline(always)]
    #[must_use]
    pub const fn is_answer(&self) -> bool {
        self.protocol == PROTOCOL_TCP && self.local_port != 0 && !self.is_undecided()
    }

    /// This key with many remotes instead of one. It keeps workload, port and role.
    #[inline(always)]
    #[must_use]
    pub const fn coarse(mut self) -> Self {
        self.remote = UNSPECIFIED;
        self
    }
}

/// [`FlowValue::by_protocol`] of UDP: the bind of this UDP socket was seen, so nothing it received
/// before is unknown.
pub const FLAG_BIND_SEEN: u32 = 1;

/// Value of FLOWS. Counters only grow; user space folds differences.
///
/// The order is that of cache lines. An element of the kernel's hash is its header (48 bytes), the
/// key (48) and this, 192 bytes in all: three lines of 64. What rarely changes shares a line with
/// the end of the key, which every lookup on every CPU reads; what each connection changes has the
/// third line to itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowValue {
    /// First open, boot time, ns; exact. 0: none yet.
    pub first_open: u64,
    /// Last failed attempt, boot time, ns.
    pub last_failed: u64,
    /// Attempts answered by a reset or ICMP port unreachable.
    pub refused: u64,
    /// Attempts nobody answered.
    pub unanswered: u64,
    /// TCP: connections established. UDP: datagrams sent (client) or received (server).
    pub opened: u64,
    /// Established connections that ended.
    pub closed: u64,
    /// Payload bytes sent by the local socket (TCP: known at the end of a connection).
    pub bytes_sent: u64,
    /// Payload bytes received by the local socket.
    pub bytes_received: u64,
    /// Last open, boot time, ns; up to one tick (1/HZ) early.
    pub last_open: u64,
    /// Attempts that failed for another reason (no route, ICMP unreachable).
    pub unreachable: u64,
    /// Kernel's own: the low half of `jiffies` when `last_open` was last set, so that the clock is
    /// read once a tick.
    pub jiffies: u32,
    /// UDP: `FLAG_*`. TCP: how many of `closed` broke off ([`FlowValue::broken`]).
    pub by_protocol: u32,
    /// Inode of the network namespace; 0 if unknown (UDP).
    pub netns: u32,
    /// Connections that were established before they could be seen (open at the start, or found at
    /// their end).
    pub found: u32,
}

const _: () = assert!(size_of::<FlowValue>() == 96 && align_of::<FlowValue>() == 8);
/// Bytes of a hash element before its key (`struct htab_elem`, kernel/bpf/hashtab.c).
#[cfg(test)]
const ELEMENT_HEADER: usize = 48;

impl FlowValue {
    /// Connections that are open now: such an entry must stay in the map. UDP has none.
    #[must_use]
    pub const fn open_connections(&self, protocol: u8) -> u64 {
        if protocol == PROTOCOL_TCP {
            self.opened.wrapping_add(self.found as u64).saturating_sub(self.closed)
        } else {
            0
        }
    }

    /// Established connections that ended because nobody answered any more. UDP has none.
    #[must_use]
    pub const fn broken(&self, protocol: u8) -> u64 {
        if protocol == PROTOCOL_TCP { self.by_protocol as u64 } else { 0 }
    }

    /// Whether the bind of this socket was seen. TCP's never is.
    #[must_use]
    pub const fn bind_seen(&self, protocol: u8) -> bool {
        protocol == PROTOCOL_UDP && self.by_protocol & FLAG_BIND_SEEN != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_with_every_connection_has_a_cache_line_to_itself() {
        let start = ELEMENT_HEADER + size_of::<FlowKey>();
        assert_eq!((start + core::mem::offset_of!(FlowValue, opened)) % 64, 0);
        assert_eq!((start + size_of::<FlowValue>()) % 64, 0, "so that the next element's begins at one again");
    }

    #[test]
    fn a_coarse_key_keeps_all_but_the_remote() {
        let key = FlowKey {
            cgroup_id: 7,
            local: [1; 16],
            remote: [2; 16],
            server_port: 80,
            local_port: 3,
            protocol: PROTOCOL_UDP,
            role: FlowRole::Client as u8,
            pad: [0; 2],
        };
        assert_eq!(key.coarse(), FlowKey { remote: UNSPECIFIED, ..key });
    }

    #[test]
    fn open_connections_count_what_was_opened_or_found_and_not_closed() {
        let value = FlowValue { opened: 3, found: 2, closed: 4, ..FlowValue::default() };
        assert_eq!(value.open_connections(PROTOCOL_TCP), 1);
        assert_eq!(value.open_connections(PROTOCOL_UDP), 0);
        let more_closed = FlowValue { opened: 1, closed: 4, ..FlowValue::default() };
        assert_eq!(more_closed.open_connections(PROTOCOL_TCP), 0);
    }

    #[test]
    fn what_one_word_says_depends_on_the_protocol() {
        let value = FlowValue { by_protocol: FLAG_BIND_SEEN, ..FlowValue::default() };
        assert_eq!((value.broken(PROTOCOL_TCP), value.broken(PROTOCOL_UDP)), (1, 0));
        assert!(value.bind_seen(PROTOCOL_UDP) && !value.bind_seen(PROTOCOL_TCP));
    }

    #[test]
    fn a_role_comes_back_from_its_byte_and_no_other_byte_is_a_role() {
        for byte in 0..=u8::MAX {
            match FlowRole::try_from(byte) {
                Ok(role) => assert_eq!(role as u8, byte),
                Err(bad) => assert!(bad == byte && !(1..=3).contains(&byte)),
            }
        }
    }
}
