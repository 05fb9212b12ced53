//! From one agent to the next: taking over the maps that an earlier one pinned, and leaving them so
//! that a later one can.
//!
//! What an earlier agent reported to the observer stands in its checkpoint, beside the graph that
//! holds it. What its maps hold beyond that is reported now: no count is lost while no agent was
//! there, and none is reported twice.

use std::collections::{BTreeMap, HashMap, HashSet};

use guardrail_common::{
    counter, decode, encode,
    flow::{FlowKey, FlowValue, PROTOCOL_UDP},
};
use guardrail_graph::observe::LossReason;
use tracing::{info, warn};

use super::{Event, Flows, Maps, Reader, next};
use crate::{
    batch::{Batch, Mark},
    bpf,
    checkpoint::{Checkpoint, ReportedLosses},
    fold::Fold,
    journal::{Journal, Note},
    pin::Generation,
};

/// The journal as it was found.
pub(crate) struct FoundJournal {
    pub(crate) journal: Journal,
    pub(crate) notes: Vec<Note>,
    /// Notes that did not decode.
    pub(crate) broken: u64,
}

/// Maps that are pinned, and ours.
pub(crate) struct Owned {
    /// Their name.
    pub(crate) generation: u64,
    /// Entries that were carried over from older maps, as they were made: nothing of them is to be
    /// reported.
    pub(crate) carried: Flows,
    /// Older maps that were reported since the last stored graph.
    pub(crate) reported: Vec<Generation>,
}

/// Detached maps whose counts are still to be reported.
pub(crate) struct Predecessor {
    pub(crate) generation: Generation,
    pub(crate) maps: Maps,
    pub(crate) found: FoundJournal,
    /// What was reported them.
    pub(crate) checkpoint: Checkpoint,
}

/// cgroups made and removed, in the order of time: `(boot time in ns, removed, id)` → path.
type CgroupEvents = BTreeMap<(u64, bool, u64), String>;

/// Makes the entries of older maps in new ones, where there are none yet, and in the list of those
/// carried; gives those made. What is open stays open there, all else is reported from the older
/// maps.
pub(crate) fn carry(older: &mut Flows, new: &Flows, list: &Flows) -> HashMap<FlowKey, FlowValue> {
    let mut made = HashMap::new();
    // What does not decode is counted when the older maps are reported.
    let (_, result) = older.entries(|key, value| {
        if key.is_answer() {
            // The new programs do not know what these connections dialled: they end where they
            // arrived.
            return;
        }
        let open = value.open_connections(key.protocol);
        let (opened, found) = match u32::try_from(open) {
            Ok(found) if key.is_undecided() => (0, found),
            _ => (open, 0),
        };
        let FlowValue { netns, first_open, last_open, .. } = *value;
        // Of what broke off only the older maps tell.
        let by_protocol = if key.protocol == PROTOCOL_UDP { value.by_protocol } else { 0 };
        let kept = FlowValue { netns, by_protocol, first_open, last_open, opened, found, ..FlowValue::default() };
        // On the list first: an agent that finds an entry and not its like there would tell it.
        if list.set(&encode::key(key), &encode::value(&kept), bpf::NOEXIST).is_err() {
            // Carried before.
            return;
        }
        // A key that is there has its own beginning; where there is no room, the end of what is
        // open is seen late.
        if new.set(&encode::key(key), &encode::value(&kept), bpf::NOEXIST).is_ok() {
            made.insert(*key, kept);
        } else {
            let _ = list.delete(&encode::key(key));
        }
    });
    if let Err(error) = result {
        warn!("reading the FLOWS map of an earlier agent failed: {error}");
    }
    made
}

impl Reader {
    /// Reports what these maps (our own by now) hold beyond the checkpoint. Gives whether they
    /// could be read to their end.
    pub(super) fn take_over(&mut self, notes: Vec<Note>, broken: u64, checkpoint: Checkpoint) -> bool {
        self.report_cgroups_of_the_gap();
        let Checkpoint { generation: _, journal, reported_losses, flows } = checkpoint;
        self.state.reported_losses = reported_losses;
        for (key, value) in &flows {
            self.state.fold.mark_reported(*key, value);
        }
        self.state.removed = self.counter(counter::KEYS_REMOVED).unwrap_or(0);
        let unjournalled = self.counter(counter::UNJOURNALLED).unwrap_or(0);
        for (reason, count) in [(LossReason::Decode, broken), (LossReason::JournalFull, unjournalled)] {
            if count > 0 {
                self.lose(reason, None, count);
            }
        }
        // They count until a graph is stored that says so.
        self.state.unjournalled = unjournalled;
        if let Some(own) = &mut self.journal {
            own.continue_after(journal);
        }
        for (number, key, value) in notes {
            if number <= journal || self.is_still_there(&key, &value) {
                if let Some(own) = &mut self.journal {
                    own.strike(number, &key);
                }
                continue;
            }
            // The note stays until a state holds what it says.
            self.emit(&key, &value);
            self.state.fold.forget(&key);
        }
        self.read_rings();
        let is_whole = self.sweep(&HashSet::new());
        if is_whole {
            self.state.fold.forget_missing();
        }
        self.state.undecided = self.state.fold.keys().filter(|key| key.is_undecided()).copied().collect();
        self.tell_undecided();
        info!(entries = self.state.fold.len(), "took over what an earlier agent had pinned");
        is_whole
    }

    /// An agent notes an entry, then takes it out. Killed in between, it leaves both, and the entry
    /// has gone on counting.
    fn is_still_there(&self, key: &FlowKey, noted: &FlowValue) -> bool {
        let live = self.maps.flows.get(&encode::key(key)).ok().flatten().and_then(|bytes| decode::value(&bytes).ok());
        live.is_some_and(|live| {
            live.first_open == noted.first_open
                && live.opened >= noted.opened
                && live.found >= noted.found
                && live.closed >= noted.closed
                && live.refused >= noted.refused
                && live.unanswered >= noted.unanswered
                && live.unreachable >= noted.unreachable
                && live.by_protocol >= noted.by_protocol
        })
    }

    /// The lives of cgroups that no observer knows: from the kernel's map of recent ones, and from
    /// what nobody read off the ring.
    fn report_cgroups_of_the_gap(&mut self) {
        let mut events = CgroupEvents::new();
        for (id, at, ended, path) in self.recent_cgroups() {
            events.insert((at, false, id), path);
            if ended != 0 {
                events.insert((ended, true, id), String::new());
            }
        }
        while let Some(event) = next(&mut self.maps.cgroup_ring) {
            match event {
                Ok(Event::Cgroup { created, id, at, path }) => drop(events.insert((at, !created, id), path)),
                Ok(Event::Listen(listen)) => self.listening(&listen),
                Ok(Event::Flow(_) | Event::Dns { .. }) | Err(_) => self.lose(LossReason::Decode, None, 1),
            }
        }
        for ((at, removed, id), path) in events {
            if removed {
                self.cgroup_removed(id, at);
            } else {
                let at = self.state.wall(at);
                self.cgroup_created(id, path, at);
            }
        }
        self.walk_cgroups();
    }

    /// Reports what older, detached maps hold; these stay until a graph is stored that has it. In
    /// maps of our own making, their entries are ours from then on: connections that are open end
    /// there. `carried`: entries that were made in ours before anything was attached.
    pub(super) fn drain(
        &mut self,
        older: Vec<Predecessor>,
        mut carried: HashMap<FlowKey, FlowValue>,
        are_maps_new: bool,
    ) {
        for Predecessor { generation, mut maps, found: FoundJournal { journal, notes, broken }, checkpoint } in older {
            std::mem::swap(&mut self.maps, &mut maps);
            let own = self.journal.replace(journal);
            if !self.take_over(notes, broken, checkpoint) {
                // Nobody reads them again.
                self.lose(LossReason::Unread, None, 1);
            }
            std::mem::swap(&mut self.maps, &mut maps);
            self.journal = own;
            self.state.fold = Fold::default();
            (self.state.reported_losses, self.state.removed, self.state.unjournalled) =
                (ReportedLosses::default(), 0, 0);
            self.state.undecided.clear();
            if let Some(pinned) = &mut self.pinned {
                if are_maps_new {
                    carried.extend(carry(&mut maps.flows, &self.maps.flows, &pinned.carried));
                }
                pinned.reported.push(generation);
            }
        }
        for (key, kept) in &carried {
            self.removed(key.cgroup_id, 1u64.wrapping_neg());
            self.state.fold.mark_reported(*key, kept);
        }
        self.state.undecided = carried.into_keys().filter(FlowKey::is_undecided).collect();
        self.tell_undecided();
    }

    /// Says in the stream of observations how far it is, with pins.
    pub(super) fn checkpoint(&mut self) {
        if let Some((checkpoint, mark)) = self.progress() {
            self.out.send();
            self.out.deliver(Batch::Checkpoint(checkpoint, mark));
        }
    }

    /// Says what is open and how far the stream is, once all of FLOWS could be read.
    pub(super) fn turn(&mut self) {
        self.state.open = Some(Vec::new());
        let is_whole = self.sweep(&HashSet::new());
        let open = self.state.open.take().unwrap_or_default();
        self.out.send();
        if is_whole {
            self.state.is_turn_due = false;
            let checkpoint = self.progress();
            self.out.deliver(Batch::Turn { open, checkpoint });
        }
    }

    /// How far the stream of observations is, with what was sent by now; `None` without pins.
    fn progress(&self) -> Option<(Box<Checkpoint>, Mark)> {
        let (Some(journal), Some(Owned { generation, .. })) = (&self.journal, &self.pinned) else { return None };
        let mark = Mark { journal: journal.last(), unjournalled: self.state.unjournalled };
        let checkpoint = Checkpoint {
            generation: *generation,
            journal: mark.journal,
            reported_losses: self.state.reported_losses.clone(),
            flows: self.state.fold.reported(),
        };
        Some((Box::new(checkpoint), mark))
    }

    /// A graph with everything up to this mark is stored.
    pub(super) fn stored(&mut self, mark: Mark) {
        if let Some(journal) = &mut self.journal {
            journal.trim(mark.journal);
            self.state.unjournalled -= mark.unjournalled.min(self.state.unjournalled);
            self.write_unjournalled();
        }
        for generation in self.pinned.iter_mut().flat_map(|pinned| pinned.reported.drain(..)) {
            if let Err(error) = generation.remove() {
                warn!("{error}");
            }
        }
    }

    pub(super) fn write_unjournalled(&mut self) {
        let count = self.state.unjournalled.to_ne_bytes();
        if let Err(error) = self.maps.counters.set(&counter::UNJOURNALLED.to_ne_bytes(), &count, 0) {
            warn!("writing the number of entries without a note failed: {error}");
        }
    }
}
