//! The sweep of FLOWS, and what was lost.

use std::{collections::HashSet, io, net::IpAddr, time::Duration};

use guardrail_common::{
    counter::{self, LossKind},
    decode, encode,
    flow::{FlowKey, FlowValue},
};
use guardrail_graph::observe::{CgroupId, FlowCounts, LossReason, Observation};
use tracing::{debug, warn};

use super::{Reader, State, VALUE};
use crate::{
    bpf, clock,
    fold::{self, Fold, counts, ip},
    load::SECOND,
    stats::ProgramStats,
};

impl State {
    /// FLOWS was read. A reading that breaks off does not count, so that one that always does shows
    /// like a thread that hangs.
    fn was_read(&mut self, result: &io::Result<()>) {
        match result {
            Ok(()) => {
                self.count("sweep", 1);
                self.published.sweeps += 1;
            }
            Err(error) => warn!("reading the FLOWS map failed: {error}"),
        }
    }
}

impl Reader {
    /// Folds a value as the map gave it.
    pub(super) fn value(&mut self, key: &FlowKey, value: &[u8; VALUE]) {
        // A value of the map's size always decodes.
        if let Ok(value) = decode::value(value) {
            self.emit(key, &value);
        }
    }

    pub(super) fn emit(&mut self, key: &FlowKey, value: &FlowValue) {
        let line = self.state.line;
        let mut deltas = 0;
        let out = &mut self.out;
        self.state.fold.fold(key, value, |boot| line.at(boot), &mut |delta| {
            deltas += 1;
            out.push(Observation::Flow(delta));
        });
        self.state.count("flow_delta", deltas);
    }

    /// Reports a value of which the map keeps nothing.
    pub(super) fn report(&mut self, key: &FlowKey, value: &FlowValue) {
        let mut deltas = Vec::new();
        Fold::default().fold(key, value, |boot| self.state.wall(boot), &mut |delta| deltas.push(delta));
        for delta in deltas {
            self.out.push(Observation::Flow(delta));
        }
    }

    pub(super) fn evict(&mut self, addresses: &HashSet<IpAddr>) {
        self.read_flow_ring();
        self.sweep(addresses);
        self.out.send();
    }

    /// Reads every entry, folds it, deletes it if it has been idle for long (or its remote is to be
    /// evicted) and has no open connections. Gives whether the whole map could be read.
    pub(super) fn sweep(&mut self, evicted: &HashSet<IpAddr>) -> bool {
        self.state.line = clock::line();
        self.state.fold.next_sweep(clock::boot_ns());
        let mut longest = self.idle;
        if self.state.fold.len() as u64 > self.state.capacity / 2 {
            // Room is worth more than the memory of who was here: a flow that comes again is a new
            // key again.
            longest = longest.min(2 * self.sweep_interval);
        }
        let longest = longest.max(Duration::from_millis(1));
        let mut doomed = Vec::new();
        let Self { maps, state, out, .. } = self;
        let line = state.line;
        let mut deltas = 0;
        let (fold, open) = (&mut state.fold, &mut state.open);
        let (broken, result) = maps.flows.entries(|key, value| {
            let idle = fold.fold(key, value, |boot| line.at(boot), &mut |delta| {
                deltas += 1;
                out.push(Observation::Flow(delta));
            });
            if let Some(open) = open {
                open.extend(fold::open(key, value, |boot| line.at(boot)));
            }
            // Not while the program that puts it in has not counted on it yet.
            let is_evicted = !evicted.is_empty()
                && evicted.contains(&ip(&key.remote))
                && counts(key.protocol, value) != FlowCounts::default();
            if (idle >= longest || is_evicted) && value.open_connections(key.protocol) == 0 {
                doomed.push(*key);
            }
        });
        self.state.was_read(&result);
        self.state.count("flow_delta", deltas);
        for key in doomed {
            self.delete(&key);
        }
        if broken > 0 {
            self.lose(LossReason::Decode, None, broken);
        }
        self.read_losses();
        self.read_programs();
        self.state.publish();
        debug!(entries = self.state.fold.len(), "swept");
        result.is_ok()
    }

    pub(super) fn delete(&mut self, key: &FlowKey) {
        let bytes = encode::key(key);
        let noted = self.note(key);
        match self.maps.flows.take(&bytes) {
            Ok(Some(last)) => {
                if let (Some(journal), Some(noted)) = (&mut self.journal, noted)
                    && noted != last
                {
                    journal.correct(key, &last);
                }
                self.value(key, &last);
                self.removed(key.cgroup_id, 1);
            }
            Ok(None) => {}
            Err(error) => {
                warn!("deleting an idle entry failed: {error}");
                return;
            }
        }
        self.state.fold.forget(key);
        if self.state.undecided.remove(key) {
            self.tell_undecided();
        }
    }

    /// With pins, notes an entry before it is taken out. Gives the value noted.
    fn note(&mut self, key: &FlowKey) -> Option<[u8; VALUE]> {
        let journal = self.journal.as_mut()?;
        let value = self.maps.flows.get(&encode::key(key)).ok().flatten()?;
        if journal.note(key, &value) {
            return Some(value);
        }
        self.state.unjournalled += 1;
        self.write_unjournalled();
        None
    }

    /// Says to the kernel side how many undecided entries of open sockets there are.
    pub(super) fn tell_undecided(&mut self) {
        let count = self.state.undecided.len() as u64;
        if let Err(error) = self.maps.counters.set(&counter::UNDECIDED.to_ne_bytes(), &count.to_ne_bytes(), 0) {
            warn!("writing the number of undecided connections failed: {error}");
        }
    }

    /// Counts `n` keys (wrapping) as taken out, for the kernel's budget. Only this thread writes
    /// these.
    pub(super) fn removed(&mut self, cgroup_id: u64, n: u64) {
        self.state.removed = self.state.removed.wrapping_add(n);
        let _ = self.maps.counters.set(&counter::KEYS_REMOVED.to_ne_bytes(), &self.state.removed.to_ne_bytes(), 0);
        let id = cgroup_id.to_ne_bytes();
        let before = self.maps.keys_removed.get(&id).ok().flatten().map_or(0, u64::from_ne_bytes);
        let _ = self.maps.keys_removed.set(&id, &before.wrapping_add(n).to_ne_bytes(), 0);
    }

    pub(super) fn lose(&mut self, reason: LossReason, cgroup: Option<CgroupId>, count: u64) {
        *self.state.published.losses.entry(reason).or_insert(0) += count;
        self.out.push(Observation::Lost { reason, cgroup, count, at: clock::now() });
    }

    /// One of COUNTERS.
    pub(super) fn counter(&self, index: u32) -> Option<u64> {
        self.maps.counters.get(&index.to_ne_bytes()).ok().flatten().map(u64::from_ne_bytes)
    }

    pub(super) fn read_losses(&mut self) {
        // Totals first: the programs count a cgroup's loss before the total, so no named loss is
        // missing from what follows.
        let mut totals = [0u64; counter::COUNT as usize];
        for (index, total) in (0u32..).zip(&mut totals) {
            *total = self.counter(index).unwrap_or(self.state.reported_losses.counters[index as usize]);
        }
        let mut named = Vec::new();
        if let Err(error) =
            self.maps.cgroup_losses.for_each(|key, count| named.push((*key, u64::from_ne_bytes(*count))))
        {
            warn!("reading the losses of cgroups failed: {error}");
        }
        for (key, count) in named {
            let before = self.state.reported_losses.cgroup_losses.insert(key, count).unwrap_or(0);
            // A smaller count is a new entry after the old one was pushed out.
            let gain = if count >= before { count - before } else { count };
            if gain == 0 {
                continue;
            }
            match decode::loss_key(&key) {
                Ok((id, kind)) => {
                    let reason = match kind {
                        LossKind::CoarseClient => LossReason::CoarseClient,
                        LossKind::MapFull => LossReason::MapFull,
                    };
                    self.state.reported_losses.edge += gain;
                    self.lose(reason, Some(CgroupId(id)), gain);
                }
                Err(_) => self.lose(LossReason::Decode, None, 1),
            }
        }
        let at = |index: u32| (totals[index as usize], self.state.reported_losses.counters[index as usize]);
        let gain = |index: u32| at(index).0.saturating_sub(at(index).1);
        let hints = [
            (LossReason::RingFull, gain(counter::RING_FULL)),
            (LossReason::DnsRingFull, gain(counter::DNS_RING_FULL)),
            (LossReason::CgroupRingFull, gain(counter::CGROUP_RING_FULL)),
        ];
        let edge_total = totals[counter::COARSE_CLIENT as usize] + totals[counter::MAP_FULL as usize];
        for (reason, count) in hints {
            if count > 0 {
                self.lose(reason, None, count);
                if reason == LossReason::CgroupRingFull {
                    self.repair_cgroups();
                }
            }
        }
        // What no cgroup accounts for (its entry was pushed out): it may be anyone's.
        let unnamed = edge_total.saturating_sub(self.state.reported_losses.edge);
        if unnamed > 0 {
            self.state.reported_losses.edge += unnamed;
            self.lose(LossReason::MapFull, None, unnamed);
        }
        self.state.reported_losses.counters = totals;
    }

    pub(super) fn read_programs(&mut self) {
        let Some(programs) = &self.programs else { return };
        let mut recursion = 0;
        let published = &mut self.state.published.programs;
        programs.for_each(|name, fd| match bpf::program_info(fd) {
            Ok(info) => {
                // What the second program misses, the first has taken.
                if name != SECOND {
                    recursion += info.recursion_misses;
                }
                let entry = ProgramStats {
                    runs: info.run_cnt,
                    run_ns: info.run_time_ns,
                    recursion_misses: info.recursion_misses,
                };
                published.insert(name.to_owned(), entry);
            }
            Err(error) => warn!("reading the statistics of {name} failed: {error}"),
        });
        // Read after the misses, so that each of them that was taken over is in it.
        let taken_over = self.counter(counter::TAKEN_OVER).unwrap_or(0);
        let lost = recursion.saturating_sub(taken_over);
        let gain = lost.saturating_sub(self.state.reported_losses.recursion);
        self.state.reported_losses.recursion += gain;
        if gain > 0 {
            self.lose(LossReason::Recursion, None, gain);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::stats::KernelStats;

    #[test]
    fn a_reading_that_breaks_off_is_none_for_who_watches_the_thread() {
        let stats = Arc::new(Mutex::new(KernelStats::default()));
        let mut state = State::new(8, Arc::clone(&stats));
        for (result, whole) in [(Ok(()), 1), (Err(io::Error::other("no map")), 1), (Ok(()), 2)] {
            state.was_read(&result);
            state.publish();
            let stats = stats.lock().expect("a lock");
            assert_eq!((stats.sweeps, stats.events["sweep"]), (whole, whole), "{result:?}");
        }
    }
}
