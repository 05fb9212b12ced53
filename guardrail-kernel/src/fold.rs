//! From values of FLOWS, whose counters only grow, to what each entry gained since it was last
//! looked at.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use guardrail_common::{
    address::{Address, UNSPECIFIED},
    flow::{FlowKey, FlowRole, FlowValue, PROTOCOL_TCP},
};
use guardrail_graph::{
    observe::{CgroupId, FlowCounts, FlowDelta, NetnsId, OpenFlow, Remote, Role},
    peer::Protocol,
    time::Timestamp,
};
use indexmap::IndexMap;

/// Two CPUs that count the first opens of one entry at once may both set its time: such times
/// belong to one life of the key.
const SAME_LIFE_NS: u64 = 1_000_000_000;

/// As [`FlowCounts`]; what the programs count as a short number is one here: 100,000 entries have
/// it.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    opened: u64,
    refused: u64,
    unanswered: u64,
    unreachable: u64,
    closed: u64,
    bytes_sent: u64,
    bytes_received: u64,
    found: u32,
    broken: u32,
}

impl From<FlowCounts> for Counted {
    fn from(counts: FlowCounts) -> Self {
        let FlowCounts { opened, found, refused, unanswered, unreachable, closed, broken, .. } = counts;
        let FlowCounts { bytes_sent, bytes_received, .. } = counts;
        let [found, broken] = [found, broken].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        Self { opened, refused, unanswered, unreachable, closed, bytes_sent, bytes_received, found, broken }
    }
}

/// What was reported of one entry.
#[derive(Clone, Copy, Debug, Default)]
struct Reported {
    counts: Counted,
    /// `first_open` as it was reported, boot time, ns; 0: not yet.
    first_open: u64,
    /// When a gain was found last, ms on the fold's clock.
    gained_at: u32,
    /// Number of the last sweep that found the entry in the map.
    found_in: u32,
}

/// What was reported of every live entry.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    /// Its entries lie close together and grow in place, other than those of a hash table.
    reported: IndexMap<FlowKey, Reported>,
    sweep: u32,
    /// Time of the last sweep, ms; begins anew after 49 days.
    now: u32,
}

impl Fold {
    /// Begins at this boot time.
    pub(crate) fn new(boot_ns: u64) -> Self {
        let mut fold = Self::default();
        fold.next_sweep(boot_ns);
        fold
    }

    /// A new sweep begins, at this boot time.
    pub(crate) fn next_sweep(&mut self, boot_ns: u64) {
        self.sweep = self.sweep.wrapping_add(1);
        self.now = (boot_ns / 1_000_000) as u32;
        if self.reported.capacity() > 4 * self.reported.len().max(1024) {
            self.reported.shrink_to(2 * self.reported.len());
        }
    }

    /// Live entries.
    pub(crate) fn len(&self) -> usize {
        self.reported.len()
    }

    /// Folds a value: up to two deltas go to `out` (what was opened; what failed, which has a time
    /// of its own). Gives the time since the last gain, up to 49 days.
    pub(crate) fn fold(
        &mut self,
        key: &FlowKey,
        value: &FlowValue,
        wall: impl Fn(u64) -> Timestamp,
        out: &mut impl FnMut(FlowDelta),
    ) -> Duration {
        let (sweep, now) = (self.sweep, self.now);
        let new = Reported { gained_at: now, found_in: sweep, ..Reported::default() };
        let reported = self.reported.entry(*key).or_insert(new);
        reported.found_in = sweep;
        if reported.first_open != 0 && reported.first_open.abs_diff(value.first_open) > SAME_LIFE_NS {
            // Another life of the key than the one that an earlier agent reported.
            *reported = new;
        }
        let counted = counts(key.protocol, value);
        let gain = difference(&counted, &reported.counts);
        if gain == FlowCounts::default() {
            return Duration::from_millis(now.wrapping_sub(reported.gained_at).into());
        }
        reported.gained_at = now;
        reported.counts = counted.into();
        let failed = FlowCounts {
            refused: gain.refused,
            unanswered: gain.unanswered,
            unreachable: gain.unreachable,
            ..FlowCounts::default()
        };
        let rest = FlowCounts { refused: 0, unanswered: 0, unreachable: 0, ..gain };
        if rest != FlowCounts::default() {
            let opened = rest.opened > 0 || rest.found > 0;
            let first_open =
                (opened && reported.first_open == 0 && value.first_open != 0).then(|| wall(value.first_open));
            if opened {
                reported.first_open = value.first_open;
            }
            let last_open = (opened && value.last_open != 0).then(|| wall(value.last_open));
            out(delta(key, value, Gain { counts: rest, first_open, last_open }));
        }
        if failed != FlowCounts::default() {
            let last = (value.last_failed != 0).then(|| wall(value.last_failed));
            out(delta(key, value, Gain { counts: failed, first_open: None, last_open: last }));
        }
        Duration::ZERO
    }

    /// Takes an entry's value for reported.
    pub(crate) fn mark_reported(&mut self, key: FlowKey, value: &FlowValue) {
        let reported = Reported {
            counts: counts(key.protocol, value).into(),
            first_open: value.first_open,
            gained_at: self.now,
            found_in: self.sweep,
        };
        self.reported.insert(key, reported);
    }

    /// Every live entry as it was reported, for [`Fold::mark_reported`].
    pub(crate) fn reported(&self) -> Vec<(FlowKey, FlowValue)> {
        let entry = |(key, reported): (&FlowKey, &Reported)| {
            let Counted { opened, refused, unanswered, unreachable, closed, .. } = reported.counts;
            let Counted { bytes_sent, bytes_received, found, broken, .. } = reported.counts;
            let value = FlowValue {
                first_open: reported.first_open,
                opened,
                found,
                refused,
                unanswered,
                unreachable,
                closed,
                by_protocol: broken,
                bytes_sent,
                bytes_received,
                ..FlowValue::default()
            };
            (*key, value)
        };
        self.reported.iter().map(entry).collect()
    }

    /// Every live entry.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &FlowKey> {
        self.reported.keys()
    }

    /// Forgets the entries that the last sweep did not find. It must have read the whole map.
    pub(crate) fn forget_missing(&mut self) {
        self.reported.retain(|_, reported| reported.found_in == self.sweep);
    }

    /// The entry is gone from the map.
    pub(crate) fn forget(&mut self, key: &FlowKey) {
        self.reported.swap_remove(key);
    }
}

/// What an entry gained, and when.
struct Gain {
    counts: FlowCounts,
    first_open: Option<Timestamp>,
    last_open: Option<Timestamp>,
}

/// What of an entry is open.
pub(crate) fn open(key: &FlowKey, value: &FlowValue, wall: impl Fn(u64) -> Timestamp) -> Option<OpenFlow> {
    let open = value.open_connections(key.protocol);
    let first_open = (value.first_open != 0).then(|| wall(value.first_open));
    let flow = || delta(key, value, Gain { counts: FlowCounts::default(), first_open, last_open: None });
    (open > 0).then(|| OpenFlow { flow: flow(), open })
}

fn delta(key: &FlowKey, value: &FlowValue, gain: Gain) -> FlowDelta {
    let role = match FlowRole::try_from(key.role) {
        Ok(FlowRole::Client) => Role::Client,
        Ok(FlowRole::Server) => Role::Server,
        // The decoder admits no other byte.
        Ok(FlowRole::Undecided) | Err(_) => Role::Undecided,
    };
    FlowDelta {
        cgroup: CgroupId(key.cgroup_id),
        netns: (value.netns != 0).then_some(NetnsId(value.netns)),
        local: ip(&key.local),
        remote: if key.remote == UNSPECIFIED { Remote::Many } else { Remote::Addr(ip(&key.remote)) },
        protocol: if key.protocol == PROTOCOL_TCP { Protocol::Tcp } else { Protocol::Udp },
        role,
        server_port: key.server_port,
        local_port: (key.local_port != 0).then_some(key.local_port),
        bind_seen: value.bind_seen(key.protocol),
        first_open: gain.first_open,
        last_open: gain.last_open,
        counts: gain.counts,
    }
}

/// An address as the observer sees it: IPv4 unmapped.
pub(crate) fn ip(address: &Address) -> IpAddr {
    Ipv6Addr::from(*address).to_canonical()
}

/// An address as the kernel side keeps it: IPv4 mapped.
#[cfg(test)]
pub(crate) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// What the programs have counted.
pub(crate) fn counts(protocol: u8, value: &FlowValue) -> FlowCounts {
    FlowCounts {
        opened: value.opened,
        found: u64::from(value.found),
        refused: value.refused,
        unanswered: value.unanswered,
        unreachable: value.unreachable,
        closed: value.closed,
        broken: value.broken(protocol),
        bytes_sent: value.bytes_sent,
        bytes_received: value.bytes_received,
    }
}

/// Saturating: a value read while it changes, or twice, must not become a huge gain.
fn difference(now: &FlowCounts, before: &Counted) -> FlowCounts {
    FlowCounts {
        opened: now.opened.saturating_sub(before.opened),
        found: now.found.saturating_sub(before.found.into()),
        refused: now.refused.saturating_sub(before.refused),
        unanswered: now.unanswered.saturating_sub(before.unanswered),
        unreachable: now.unreachable.saturating_sub(before.unreachable),
        closed: now.closed.saturating_sub(before.closed),
        broken: now.broken.saturating_sub(before.broken.into()),
        bytes_sent: now.bytes_sent.saturating_sub(before.bytes_sent),
        bytes_received: now.bytes_received.saturating_sub(before.bytes_received),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> FlowKey {
        FlowKey {
            cgroup_id: 9,
            local: address("10.0.0.1".parse().expect("ip")),
            remote: address("10.0.0.2".parse().expect("ip")),
            server_port: 80,
            local_port: 0,
            protocol: PROTOCOL_TCP,
            role: FlowRole::Client as u8,
            pad: [0; 2],
        }
    }

    fn wall(boot: u64) -> Timestamp {
        Timestamp::from_unix_ns(boot.cast_signed())
    }

    fn fold(fold: &mut Fold, value: &FlowValue) -> Vec<FlowDelta> {
        let mut out = Vec::new();
        fold.fold(&key(), value, wall, &mut |delta| out.push(delta));
        out
    }

    #[test]
    fn only_the_gain_is_told_and_the_first_open_once() {
        let mut f = Fold::default();
        let mut value = FlowValue { netns: 5, first_open: 10, last_open: 20, opened: 2, ..FlowValue::default() };
        let first = fold(&mut f, &value);
        assert_eq!(first.len(), 1);
        assert_eq!(
            (first[0].first_open, first[0].last_open, first[0].counts.opened),
            (Some(wall(10)), Some(wall(20)), 2)
        );
        assert_eq!((first[0].netns, first[0].local.to_string()), (Some(NetnsId(5)), "10.0.0.1".to_owned()));
        assert!(fold(&mut f, &value).is_empty());
        value.closed = 1;
        value.bytes_sent = 7;
        let closed = fold(&mut f, &value);
        assert_eq!(
            (closed[0].first_open, closed[0].last_open, closed[0].counts.closed, closed[0].counts.bytes_sent),
            (None, None, 1, 7)
        );
        value.opened = 3;
        value.last_open = 30;
        let again = fold(&mut f, &value);
        assert_eq!((again[0].first_open, again[0].last_open, again[0].counts.opened), (None, Some(wall(30)), 1));
    }

    #[test]
    fn failed_attempts_have_a_delta_and_a_time_of_their_own() {
        let mut f = Fold::default();
        let value =
            FlowValue { refused: 2, last_failed: 40, first_open: 10, last_open: 10, opened: 1, ..FlowValue::default() };
        let deltas = fold(&mut f, &value);
        assert_eq!(deltas.len(), 2);
        assert_eq!((deltas[0].counts.opened, deltas[0].counts.refused), (1, 0));
        assert_eq!(
            (deltas[1].counts.opened, deltas[1].counts.refused, deltas[1].last_open, deltas[1].first_open),
            (0, 2, Some(wall(40)), None)
        );
    }

    #[test]
    fn a_first_open_after_failures_is_still_the_first_open() {
        let mut f = Fold::default();
        let mut value = FlowValue { unanswered: 1, last_failed: 5, ..FlowValue::default() };
        assert_eq!(fold(&mut f, &value)[0].first_open, None);
        value.opened = 1;
        (value.first_open, value.last_open) = (8, 8);
        assert_eq!(fold(&mut f, &value)[0].first_open, Some(wall(8)));
    }

    #[test]
    fn an_agent_that_continues_tells_only_what_the_earlier_one_did_not() {
        let mut before = Fold::default();
        let mut value = FlowValue { first_open: 10, last_open: 20, opened: 2, refused: 1, ..FlowValue::default() };
        fold(&mut before, &value);
        let mut f = Fold::default();
        for (key, value) in before.reported() {
            f.mark_reported(key, &value);
        }
        assert!(fold(&mut f, &value).is_empty());
        (value.opened, value.last_open) = (3, 30);
        let gain = fold(&mut f, &value);
        assert_eq!((gain[0].counts.opened, gain[0].first_open, gain.len()), (1, None, 1));
        // The entry was taken out and made anew meanwhile: its counters began at 0 again.
        let later = 40 + SAME_LIFE_NS;
        let anew = FlowValue { first_open: later, last_open: later, opened: 2, ..FlowValue::default() };
        let gain = fold(&mut f, &anew);
        assert_eq!((gain[0].counts.opened, gain[0].first_open), (2, Some(wall(later))));
    }

    #[test]
    fn what_was_told_and_is_not_in_the_map_any_more_is_forgotten_and_nothing_else_is() {
        let mut f = Fold::default();
        let value = FlowValue { first_open: 10, last_open: 20, opened: 2, ..FlowValue::default() };
        let gone = FlowKey { server_port: 81, ..key() };
        f.mark_reported(gone, &value);
        f.mark_reported(key(), &value);
        f.next_sweep(1_000_000);
        assert!(fold(&mut f, &value).is_empty());
        f.forget_missing();
        assert_eq!(f.keys().collect::<Vec<_>>(), [&key()]);
        assert!(fold(&mut f, &value).is_empty(), "its counts are still known");
    }

    #[test]
    fn an_entry_that_gains_nothing_grows_idle_with_time_however_often_it_is_looked_at() {
        const SECOND: u64 = 1_000_000_000;
        let mut f = Fold::default();
        let mut value = FlowValue { opened: 1, ..FlowValue::default() };
        // Over the end of the milliseconds that fit in 32 bits.
        let begin = u64::from(u32::MAX) * 1_000_000 - SECOND;
        f.next_sweep(begin);
        assert_eq!(f.fold(&key(), &value, wall, &mut |_| ()), Duration::ZERO);
        for _ in 0..100 {
            f.next_sweep(begin + 3 * SECOND);
            assert_eq!(f.fold(&key(), &value, wall, &mut |_| ()), Duration::from_secs(3));
        }
        value.opened = 2;
        assert_eq!(f.fold(&key(), &value, wall, &mut |_| ()), Duration::ZERO);
        f.forget(&key());
        assert_eq!((f.len(), f.fold(&key(), &value, wall, &mut |_| ())), (0, Duration::ZERO));
    }
}
