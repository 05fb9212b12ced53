//! Connections that were open before the programs: put into FLOWS, and what ends meanwhile.

use std::time::{Duration, Instant};

use guardrail_common::{
    decode, encode,
    flow::{FlowKey, FlowValue, PROTOCOL_TCP},
};
use guardrail_graph::observe::FlowCounts;

use super::{Flows, Reader};
use crate::{
    bpf, clock,
    fold::counts,
    sockets::{FoundConnections, OpenSockets},
};

/// The longest that an entry may stand in the map before the program that puts it in has counted on
/// it: microseconds, but its CPU may be a virtual one that has to wait.
const MAKING: Duration = Duration::from_millis(100);
/// The longest that a program may take from looking for an entry in vain to having put in another.
const LOOKING: Duration = Duration::from_millis(5);

impl Flows {
    /// An entry's value once `is_counted`; `None`: there is none, or not in time. A program puts an
    /// entry in as zeros and counts on it then: who takes it out in between takes nothing, and the
    /// count is lost.
    fn counted(&self, key: &FlowKey, is_counted: impl Fn(&FlowValue) -> bool) -> Option<FlowValue> {
        let (bytes, patience) = (encode::key(key), Instant::now() + MAKING);
        loop {
            let value = decode::value(&self.get(&bytes).ok()??).ok()?;
            if is_counted(&value) {
                return Some(value);
            }
            if Instant::now() > patience {
                return None;
            }
            std::thread::sleep(MAKING / 1000);
        }
    }
}

impl FoundConnections {
    /// An entry that has them, found now.
    pub(super) fn value(&self) -> FlowValue {
        let (at, found) = (clock::boot_ns(), u32::try_from(self.count).unwrap_or(u32::MAX));
        FlowValue { netns: self.netns, first_open: at, last_open: at, found, ..FlowValue::default() }
    }
}

impl Reader {
    /// Reports the connections that were open at the start, and puts them into the map.
    pub(super) fn report_found(&mut self, sockets: &OpenSockets) {
        self.state.undecided.extend(sockets.connections.values().map(|found| found.key).filter(FlowKey::is_undecided));
        // Before the entries: from now on the ends of connections are looked for among them.
        self.tell_undecided();
        for found in sockets.connections.values() {
            self.state.count("socket_found", found.count);
            self.found(found);
        }
        if sockets.connections.values().all(|found| found.if_ended.is_empty()) {
            return;
        }
        // Ends are counted at those entries now, but for programs that had looked for them before.
        std::thread::sleep(LOOKING);
        for found in sockets.connections.values() {
            for FlowValue { closed, by_protocol, bytes_sent, bytes_received, .. } in self.take_ended(found) {
                let ended = FlowValue { closed, by_protocol, bytes_sent, bytes_received, ..FlowValue::default() };
                self.report(&found.key, &ended);
            }
        }
    }

    /// Puts a found connection into the map, so that its end is counted there; less what the live
    /// hook has already seen open.
    fn found(&mut self, found: &FoundConnections) {
        let mut value = found.value();
        // Those that ended after the iterator had passed: the end belongs to this find.
        for ended in self.take_ended(found) {
            value.closed += ended.closed;
            value.by_protocol += ended.by_protocol;
            value.bytes_sent += ended.bytes_sent;
            value.bytes_received += ended.bytes_received;
        }
        if self.put_in(found, &value) {
            return;
        }
        let live = self.maps.flows.counted(&found.key, |live| counts(PROTOCOL_TCP, live) != FlowCounts::default());
        let live = live.unwrap_or_default();
        // What the hook found at its end is reported by the entry itself; so is what it saw open
        // and is open still. An entry whose first open is newer than the list has nothing of what
        // was listed.
        let open = if live.first_open > self.state.listed_until {
            0
        } else {
            live.opened.saturating_sub(live.closed.saturating_sub(live.found.into()))
        };
        let missed = u64::from(value.found.saturating_sub(live.found)).saturating_sub(open);
        if missed > 0 {
            // The map's entry is the live hook's, or there is no room: reported, but not kept.
            self.report(&found.key, &FlowValue { found: u32::try_from(missed).unwrap_or(u32::MAX), ..value });
        }
    }

    /// Puts an entry for found connections into the map, and reports it. False: there is one, or no
    /// room.
    pub(super) fn put_in(&mut self, found: &FoundConnections, value: &FlowValue) -> bool {
        let is_new = self.maps.flows.set(&encode::key(&found.key), &encode::value(value), bpf::NOEXIST).is_ok();
        if is_new {
            // Put in from this side: as if one fewer had been removed.
            self.removed(found.key.cgroup_id, 1u64.wrapping_neg());
            self.emit(&found.key, value);
        }
        is_new
    }

    /// Takes out the entries of found connections that ended before their own entry stood in the
    /// map.
    fn take_ended(&mut self, found: &FoundConnections) -> Vec<FlowValue> {
        let mut all = Vec::new();
        for key in &found.if_ended {
            if self.maps.flows.counted(key, |ended| ended.closed > 0).is_none() {
                continue;
            }
            let ended = self.maps.flows.take(&encode::key(key)).ok().flatten();
            if let Some(ended) = ended.and_then(|bytes| decode::value(&bytes).ok()) {
                self.removed(key.cgroup_id, 1);
                all.push(ended);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::{
        VALUE,
        tests::{KEY_OF_ALL, flows},
    };

    #[test]
    fn who_takes_an_entry_out_waits_for_what_its_maker_counts() {
        let Some(flows) = flows(8) else { return };
        let is_ended = |value: &FlowValue| value.closed > 0;
        assert_eq!(flows.counted(&KEY_OF_ALL, is_ended), None);
        let bytes = encode::key(&KEY_OF_ALL);
        flows.set(&bytes, &[0; VALUE], 0).expect("set");
        assert_eq!(flows.counted(&KEY_OF_ALL, is_ended), None, "not for ever");
        let ended = FlowValue { found: 1, closed: 1, bytes_sent: 7, ..FlowValue::default() };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(MAKING / 10);
                flows.set(&bytes, &encode::value(&ended), 0).expect("set");
            });
            assert_eq!(flows.counted(&KEY_OF_ALL, is_ended), Some(ended));
        });
    }
}
