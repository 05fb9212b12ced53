//! Sets of ports, by protocol.

use std::{borrow::Borrow, collections::HashSet, fmt, sync::Arc};

use serde::{Serialize, Serializer};

use crate::model::Protocol;

pub(super) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Ports of one protocol, from the first to the last.
pub(super) type PortRange = (Protocol, u16, u16);

pub(super) const ALL: [PortRange; 3] =
    [(Protocol::Tcp, 1, u16::MAX), (Protocol::Udp, 1, u16::MAX), (Protocol::Sctp, 1, u16::MAX)];

/// Ports of each protocol, as inclusive ranges in order. Cheap to copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports(Arc<[PortRange]>);

impl Ports {
    pub(super) fn of(ranges: &[PortRange]) -> Self {
        Self(ranges.into())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the port is among them.
    #[must_use]
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.0.iter().any(|(own, first, last)| *own == protocol && (*first..=*last).contains(&port))
    }

    pub(super) fn holds(&self, other: &Self) -> bool {
        other
            .0
            .iter()
            .all(|(protocol, first, last)| self.0.iter().any(|(p, f, l)| p == protocol && f <= first && last <= l))
    }

    /// Those that `other` does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = Vec::new();
        for (protocol, first, last) in self.0.iter() {
            let mut next = u32::from(*first);
            for (_, from, to) in other.0.iter().filter(|(p, from, to)| p == protocol && to >= first && from <= last) {
                let (from, to) = (u32::from(*from), u32::from(*to));
                push_wide(&mut rest, *protocol, next, from.min(u32::from(*last) + 1));
                next = next.max(to + 1);
            }
            push_wide(&mut rest, *protocol, next, u32::from(*last) + 1);
        }
        Self(rest.into())
    }

    /// The union.
    pub(in super::super) fn with(&self, other: &Self) -> Self {
        let mut ranges: Vec<PortRange> = self.0.iter().chain(other.0.iter()).copied().collect();
        ranges.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::new();
        for (protocol, first, last) in ranges {
            match merged.last_mut() {
                Some(before) if before.0 == protocol && first <= before.2.saturating_add(1) => {
                    before.2 = before.2.max(last);
                }
                _ => merged.push((protocol, first, last)),
            }
        }
        Self(merged.into())
    }
}

/// Adds a range that comes after all others.
pub(super) fn push(ranges: &mut Vec<PortRange>, protocol: Protocol, first: u16, last: u16) {
    match ranges.last_mut() {
        Some(before) if before.0 == protocol && before.2 + 1 == first => before.2 = last,
        _ => ranges.push((protocol, first, last)),
    }
}

/// Adds the ports from `first` up to, but not with, `end`.
fn push_wide(ranges: &mut Vec<PortRange>, protocol: Protocol, first: u32, end: u32) {
    if let (true, Ok(first), Ok(last)) = (first < end, u16::try_from(first), u16::try_from(end.wrapping_sub(1))) {
        push(ranges, protocol, first, last);
    }
}

impl Borrow<[PortRange]> for Ports {
    fn borrow(&self) -> &[PortRange] {
        &self.0
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0[..] == ALL {
            return f.write_str("all");
        }
        for (index, (protocol, first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            match (first, last) {
                (1, &u16::MAX) => write!(f, "{comma}{protocol}/all")?,
                _ if first == last => write!(f, "{comma}{protocol}/{first}")?,
                _ => write!(f, "{comma}{protocol}/{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Sets of ports that were met: of a million pairs of workloads most have the same few.
#[derive(Default)]
pub(super) struct Known(HashSet<Ports>);

impl Known {
    pub(super) fn of(&mut self, ranges: &[PortRange]) -> Ports {
        if let Some(known) = self.0.get(ranges) {
            return known.clone();
        }
        let ports = Ports::of(ranges);
        self.0.insert(ports.clone());
        ports
    }

    /// The union.
    pub(super) fn union(&mut self, one: Ports, other: Ports) -> Ports {
        if one == other { one } else { self.of(one.with(&other).borrow()) }
    }
}
