//! The inverse of [`crate::decode`] for what user space writes: keys and values of FLOWS.

use crate::flow::{FlowKey, FlowValue};

/// A key of FLOWS as the map takes it.
#[must_use]
pub fn key(key: &FlowKey) -> [u8; size_of::<FlowKey>()] {
    let FlowKey { cgroup_id, local, remote, server_port, local_port, protocol, role, pad } = key;
    let mut bytes = [0; size_of::<FlowKey>()];
    bytes[0..8].copy_from_slice(&cgroup_id.to_ne_bytes());
    bytes[8..24].copy_from_slice(local);
    bytes[24..40].copy_from_slice(remote);
    bytes[40..42].copy_from_slice(&server_port.to_ne_bytes());
    bytes[42..44].copy_from_slice(&local_port.to_ne_bytes());
    (bytes[44], bytes[45]) = (*protocol, *role);
    bytes[46..].copy_from_slice(pad);
    bytes
}

/// A value of FLOWS as the map takes it.
#[must_use]
pub fn value(value: &FlowValue) -> [u8; size_of::<FlowValue>()] {
    let FlowValue {
        first_open,
        last_failed,
        refused,
        unanswered,
        opened,
        closed,
        bytes_sent,
        bytes_received,
        last_open,
        unreachable,
        jiffies,
        by_protocol,
        netns,
        found,
    } = value;
    let mut bytes = [0; size_of::<FlowValue>()];
    let words = [
        first_open,
        last_failed,
        refused,
        unanswered,
        opened,
        closed,
        bytes_sent,
        bytes_received,
        last_open,
        unreachable,
    ];
    let (long, short) = bytes.split_at_mut(80);
    for (at, word) in long.chunks_exact_mut(8).zip(words) {
        at.copy_from_slice(&word.to_ne_bytes());
    }
    for (at, half) in short.chunks_exact_mut(4).zip([jiffies, by_protocol, netns, found]) {
        at.copy_from_slice(&half.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;

    #[test]
    fn keys_and_values_come_back_from_their_bytes() {
        let all = FlowValue {
            netns: 1,
            by_protocol: 2,
            jiffies: 3,
            first_open: 4,
            last_open: 5,
            last_failed: 6,
            opened: 7,
            found: 8,
            refused: 9,
            unanswered: 10,
            unreachable: 11,
            closed: 12,
            bytes_sent: 13,
            bytes_received: 14,
        };
        assert_eq!(decode::value(&value(&all)), Ok(all));
        let one = FlowKey {
            cgroup_id: 1,
            local: [2; 16],
            remote: [3; 16],
            server_port: 4,
            local_port: 5,
            protocol: 6,
            role: 1,
            pad: [0; 2],
        };
        assert_eq!(decode::key(&key(&one)), Ok(one));
    }
}
