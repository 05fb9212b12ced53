//! The thread that owns every map and ring: polls, sweeps, folds, and sends observations.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use aya_log::EbpfLogger;
use guardrail_common::{
    counter::{self, LossKind},
    decode::{self, DecodeError, Decoded},
    flow::{FlowKey, FlowRole, FlowValue},
    record::{CgroupRecord, ListenRecord},
};
use guardrail_graph::{
    observe::{CgroupId, LossReason, NetnsId, Observation},
    time::Timestamp,
};
use tokio::sync::mpsc::{Sender, error::TrySendError};
use tracing::{debug, warn};

use super::{
    KernelStats, ProgramStats, cgroup, dns,
    fold::{Fold, ip},
    inventory::{Found, Inventory, bytes_of},
    load::{Programs, Ring},
    sys::{self, Table},
};

/// Observations per batch, about.
const BATCH: usize = 1024;
/// How often a full channel is tried again.
const RETRY: Duration = Duration::from_millis(2);

const KEY: usize = size_of::<FlowKey>();
const VALUE: usize = size_of::<FlowValue>();

/// What the thread is asked to do.
pub(crate) enum Command {
    /// Fold and delete entries with these remotes.
    Evict(Vec<IpAddr>),
    /// Final sweep, then end.
    Shutdown,
}

/// Maps and rings, taken out of the loaded object.
pub(crate) struct Maps {
    pub(crate) flow_ring: Ring,
    pub(crate) cgroup_ring: Ring,
    pub(crate) dns_ring: Ring,
    pub(crate) flows: Table<KEY, VALUE>,
    pub(crate) counters: Table<4, 8>,
    pub(crate) cgroup_losses: Table<16, 8>,
    pub(crate) cgroups: Table<8, { size_of::<CgroupRecord>() }>,
    pub(crate) keys_inserted: Table<8, 8>,
    pub(crate) keys_removed: Table<8, 8>,
}

/// The thread's state.
pub(crate) struct Reader {
    pub(crate) programs: Option<Programs>,
    pub(crate) logger: Option<EbpfLogger<&'static dyn log::Log>>,
    pub(crate) maps: Maps,
    pub(crate) cgroup_root: PathBuf,
    pub(crate) sweep_interval: Duration,
    pub(crate) idle: Duration,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) wake: Arc<OwnedFd>,
    pub(crate) out: Out,
    pub(crate) state: State,
}

/// Where observations go.
pub(crate) struct Out {
    pub(crate) channel: Sender<Vec<Observation>>,
    pub(crate) batch: Vec<Observation>,
    /// Nobody will receive any more: do not wait for room.
    pub(crate) abandoned: Arc<AtomicBool>,
}

impl Out {
    fn push(&mut self, observation: Observation) {
        self.batch.push(observation);
        if self.batch.len() >= BATCH {
            self.send();
        }
    }

    /// Waits while the channel is full: rings fill meanwhile, which is a counted loss of hints only.
    fn send(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        while !batch.is_empty() {
            match self.channel.try_send(batch) {
                Ok(()) | Err(TrySendError::Closed(_)) => return,
                Err(TrySendError::Full(_)) if self.abandoned.load(Ordering::Acquire) => return,
                Err(TrySendError::Full(again)) => {
                    batch = again;
                    std::thread::sleep(RETRY);
                }
            }
        }
    }
}

/// What the thread remembers.
pub(crate) struct State {
    fold: Fold,
    /// Wall time minus boot time, ns.
    wall_offset: i64,
    /// Live cgroups that were told.
    known: HashSet<u64>,
    /// Counters as of the last sweep.
    counters: [u64; counter::COUNT as usize],
    cgroup_losses: BTreeMap<[u8; 16], u64>,
    /// Losses of class edge told with and without their cgroup's name.
    told: u64,
    /// Keys removed, in all.
    removed: u64,
    /// Undecided entries that the inventory put into FLOWS.
    undecided: HashSet<FlowKey>,
    recursion: u64,
    capacity: u64,
    published: KernelStats,
    stats: Arc<Mutex<KernelStats>>,
}

/// Kinds of events, all shown from the start.
const EVENTS: [&str; 8] =
    ["flow_hint", "flow_delta", "cgroup_created", "cgroup_removed", "listen", "dns_answer", "socket_found", "sweep"];
/// Losses that this side can meet.
const LOSSES: [LossReason; 7] = [
    LossReason::RingFull,
    LossReason::DnsRingFull,
    LossReason::CgroupRingFull,
    LossReason::CoarseClient,
    LossReason::MapFull,
    LossReason::Recursion,
    LossReason::Decode,
];

impl State {
    pub(crate) fn new(capacity: u32, stats: Arc<Mutex<KernelStats>>) -> Self {
        let published = KernelStats {
            map_capacity: u64::from(capacity),
            events: EVENTS.into_iter().map(|kind| (kind, 0)).collect(),
            losses: LOSSES.into_iter().map(|reason| (reason, 0)).collect(),
            ..KernelStats::default()
        };
        let mut state = Self {
            fold: Fold::default(),
            wall_offset: 0,
            known: HashSet::new(),
            counters: [0; counter::COUNT as usize],
            cgroup_losses: BTreeMap::new(),
            told: 0,
            removed: 0,
            undecided: HashSet::new(),
            recursion: 0,
            capacity: u64::from(capacity),
            published,
            stats,
        };
        state.set_clock();
        state.publish();
        state
    }

    /// The wall clock may step; boot time does not.
    fn set_clock(&mut self) {
        self.wall_offset = sys::wall_ns() - sys::boot_ns();
    }

    fn wall(&self, boot_ns: u64) -> Timestamp {
        Timestamp::from_unix_ns(boot_ns.cast_signed().saturating_add(self.wall_offset))
    }

    fn count(&mut self, kind: &'static str, n: u64) {
        *self.published.events.entry(kind).or_insert(0) += n;
    }

    fn publish(&mut self) {
        self.published.map_entries = self.fold.len() as u64;
        let mut stats = self.stats.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        stats.clone_from(&self.published);
    }
}

fn now() -> Timestamp {
    Timestamp::from_unix_ns(sys::wall_ns())
}

impl Reader {
    /// Tells the cgroups that exist and what the inventory found. The programs are attached already, so nothing falls between.
    fn first_observations(&mut self, inventory: &Inventory) {
        self.read_cgroup_ring();
        self.walk_cgroups();
        let at = now();
        if inventory.broken > 0 {
            self.lose(LossReason::Decode, None, inventory.broken);
        }
        for socket in &inventory.listening {
            self.state.count("listen", 1);
            self.out.push(Observation::Listening {
                cgroup: CgroupId(socket.cgroup_id),
                netns: NetnsId(socket.netns),
                address: ip(&socket.local),
                port: socket.local_port,
                listening: true,
                at,
            });
        }
        let is_undecided = |key: &FlowKey| key.role == FlowRole::Undecided as u8;
        self.state.undecided = inventory.connections.values().map(|found| found.key).filter(is_undecided).collect();
        // Before the entries: from now on the ends of connections are looked for among them.
        self.tell_undecided();
        for found in inventory.connections.values() {
            self.state.count("socket_found", found.count);
            self.found(found);
        }
    }

    /// Puts a found connection into the map, so that its end is counted there; less what the live hook has already seen open.
    fn found(&mut self, found: &Found) {
        let bytes = bytes_of(&found.key);
        let at = u64::try_from(sys::boot_ns()).unwrap_or(0);
        let mut value =
            FlowValue { netns: found.netns, first_open: at, last_open: at, found: found.count, ..FlowValue::default() };
        for key in &found.if_ended {
            // It ended after the iterator had passed: the end belongs to this find.
            let ended = self.maps.flows.take(&bytes_of(key)).ok().flatten();
            if let Some(ended) = ended.and_then(|bytes| decode::value(&bytes).ok()) {
                self.removed(key.cgroup_id, 1);
                value.closed += ended.closed;
                value.bytes_sent += ended.bytes_sent;
                value.bytes_received += ended.bytes_received;
            }
        }
        match self.maps.flows.set(&bytes, &value_bytes(&value), sys::NOEXIST) {
            Ok(()) => {
                // Put in from this side: as if one fewer had been removed.
                self.removed(found.key.cgroup_id, 1u64.wrapping_neg());
                self.emit(&found.key, &value);
            }
            Err(_) => {
                let live = self
                    .maps
                    .flows
                    .get(&bytes)
                    .ok()
                    .flatten()
                    .and_then(|bytes| decode::value(&bytes).ok())
                    .unwrap_or_default();
                // What the hook found at its end is told by the entry itself; so is what it saw open and is open still.
                let open = live.opened.saturating_sub(live.closed.saturating_sub(live.found));
                let missed = found.count.saturating_sub(live.found).saturating_sub(open);
                if missed > 0 {
                    // The map's entry is the live hook's, or there is no room: told, but not kept.
                    let mut fold = Fold::default();
                    let mut deltas = Vec::new();
                    let value = FlowValue { found: missed, ..value };
                    fold.fold(&found.key, &value, |boot| self.state.wall(boot), &mut |delta| deltas.push(delta));
                    for delta in deltas {
                        self.out.push(Observation::Flow(delta));
                    }
                }
            }
        }
    }

    /// The thread's life.
    pub(crate) fn run(mut self, inventory: &Inventory) {
        self.first_observations(inventory);
        self.out.send();
        let mut next_sweep = Instant::now() + self.sweep_interval;
        loop {
            let fds = [
                self.wake.as_raw_fd(),
                self.maps.flow_ring.as_raw_fd(),
                self.maps.cgroup_ring.as_raw_fd(),
                self.maps.dns_ring.as_raw_fd(),
            ];
            // The logger has no descriptor to offer; while it is on, it is looked at ten times a second.
            let until_sweep = next_sweep.saturating_duration_since(Instant::now());
            let patience =
                if self.logger.is_some() { until_sweep.min(Duration::from_millis(100)) } else { until_sweep };
            if let Err(error) = sys::wait(&fds, patience) {
                warn!("waiting for the kernel's rings failed: {error}");
                std::thread::sleep(RETRY);
            }
            sys::acknowledge(self.wake.as_fd());
            self.read_rings();
            let mut end = false;
            loop {
                match self.commands.try_recv() {
                    Ok(Command::Evict(addresses)) => self.evict(addresses),
                    Ok(Command::Shutdown) | Err(mpsc::TryRecvError::Disconnected) => {
                        end = true;
                        break;
                    }
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            if end {
                return self.finish();
            }
            if Instant::now() >= next_sweep {
                self.sweep(&HashSet::new());
                next_sweep = Instant::now() + self.sweep_interval;
            }
            self.out.send();
        }
    }

    /// Detach first, so that what is swept is final.
    fn finish(mut self) {
        self.read_programs();
        self.logger = None;
        self.programs = None;
        self.read_rings();
        self.sweep(&HashSet::new());
        self.out.send();
    }

    fn read_rings(&mut self) {
        self.read_cgroup_ring();
        self.read_flow_ring();
        self.read_dns_ring();
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    fn read_cgroup_ring(&mut self) {
        while let Some(event) = next(&mut self.maps.cgroup_ring) {
            match event {
                Ok(Event::Cgroup { created, id, at, path }) => {
                    let at = self.state.wall(at);
                    if created {
                        self.cgroup_created(id, path, at);
                    } else {
                        self.cgroup_removed(id, at);
                    }
                }
                Ok(Event::Listen(listen)) => {
                    self.state.count("listen", 1);
                    let at = self.state.wall(listen.at);
                    self.out.push(Observation::Listening {
                        cgroup: CgroupId(listen.cgroup_id),
                        netns: NetnsId(listen.netns),
                        address: ip(&listen.local),
                        port: listen.port,
                        listening: listen.listening != 0,
                        at,
                    });
                }
                Ok(Event::Flow(_) | Event::Dns { .. }) | Err(_) => self.lose(LossReason::Decode, None, 1),
            }
        }
    }

    fn cgroup_created(&mut self, id: u64, path: String, at: Timestamp) {
        if self.state.known.insert(id) {
            self.state.count("cgroup_created", 1);
            self.out.push(Observation::CgroupCreated { id: CgroupId(id), path, at });
        }
    }

    fn cgroup_removed(&mut self, id: u64, at: Timestamp) {
        self.state.known.remove(&id);
        self.state.count("cgroup_removed", 1);
        // The budget of a cgroup that is gone needs no room. Its keys still go out of FLOWS one by one.
        let _ = self.maps.keys_inserted.delete(&id.to_ne_bytes());
        let _ = self.maps.keys_removed.delete(&id.to_ne_bytes());
        self.out.push(Observation::CgroupRemoved { id: CgroupId(id), at });
    }

    /// Tells every cgroup that exists and was not told, and those that were told and are gone.
    fn walk_cgroups(&mut self) {
        let at = now();
        let mut there = HashSet::new();
        let mut new = Vec::new();
        cgroup::walk(&self.cgroup_root, &mut |id, path| {
            there.insert(id);
            new.push((id, path));
        });
        for (id, path) in new {
            self.cgroup_created(id, path, at);
        }
        let gone: Vec<u64> = self.state.known.difference(&there).copied().collect();
        for id in gone {
            self.cgroup_removed(id, at);
        }
    }

    /// The cgroup ring was full: the kernel's own map of recent cgroups, and the directory tree, say what was missed.
    fn repair_cgroups(&mut self) {
        let mut recent = Vec::new();
        let result = self.maps.cgroups.for_each(|_, record| {
            if let Ok(Decoded::Cgroup { id, at, path, .. }) = decode::ring(record) {
                recent.push((id, at, String::from_utf8_lossy(path).into_owned()));
            }
        });
        if let Err(error) = result {
            warn!("reading the map of recent cgroups failed: {error}");
        }
        for (id, at, path) in recent {
            let at = self.state.wall(at);
            self.cgroup_created(id, path, at);
        }
        self.walk_cgroups();
    }

    fn read_flow_ring(&mut self) {
        while let Some(event) = next(&mut self.maps.flow_ring) {
            let Ok(Event::Flow(key)) = event else {
                self.lose(LossReason::Decode, None, 1);
                continue;
            };
            self.state.count("flow_hint", 1);
            if let Ok(Some(value)) = self.maps.flows.get(&bytes_of(&key)) {
                self.value(&key, &value);
            }
        }
    }

    fn read_dns_ring(&mut self) {
        while let Some(event) = next(&mut self.maps.dns_ring) {
            match event {
                Ok(Event::Dns { cgroup_id, at, answer: Some((name, addresses)) }) => {
                    self.state.count("dns_answer", 1);
                    let at = self.state.wall(at);
                    self.out.push(Observation::DnsAnswer { cgroup: CgroupId(cgroup_id), name, addresses, at });
                }
                // Not an answer with addresses: nothing to tell.
                Ok(Event::Dns { answer: None, .. }) => {}
                Ok(_) | Err(_) => self.lose(LossReason::Decode, None, 1),
            }
        }
    }

    /// Folds a value as the map gave it.
    fn value(&mut self, key: &FlowKey, value: &[u8; VALUE]) -> u32 {
        // A value of the map's size always decodes.
        decode::value(value).map_or(0, |value| self.emit(key, &value))
    }

    fn emit(&mut self, key: &FlowKey, value: &FlowValue) -> u32 {
        let offset = self.state.wall_offset;
        let wall = |boot: u64| Timestamp::from_unix_ns(boot.cast_signed().saturating_add(offset));
        let mut told = 0;
        let out = &mut self.out;
        let idle = self.state.fold.fold(key, value, wall, &mut |delta| {
            told += 1;
            out.push(Observation::Flow(delta));
        });
        self.state.count("flow_delta", told);
        idle
    }

    fn evict(&mut self, addresses: Vec<IpAddr>) {
        self.read_flow_ring();
        self.sweep(&addresses.into_iter().collect());
        self.out.send();
    }

    /// Reads every entry, folds it, deletes it if it has been idle for long (or its remote is to be evicted) and has no open connections.
    fn sweep(&mut self, evicted: &HashSet<IpAddr>) {
        self.state.set_clock();
        self.state.fold.next_sweep();
        let interval = self.sweep_interval.as_secs_f64().max(0.001);
        let mut idle_sweeps = (self.idle.as_secs_f64() / interval).ceil() as u32;
        if self.state.fold.len() as u64 > self.state.capacity / 2 {
            // Room is worth more than the memory of who was here: a flow that comes again is a new key again.
            idle_sweeps = idle_sweeps.min(2);
        }
        let idle_sweeps = idle_sweeps.max(1);
        let mut broken = 0;
        let mut doomed = Vec::new();
        let Self { maps, state, out, .. } = self;
        let offset = state.wall_offset;
        let wall = |boot: u64| Timestamp::from_unix_ns(boot.cast_signed().saturating_add(offset));
        let mut told = 0;
        let fold = &mut state.fold;
        let result = maps.flows.for_each(|key, value| {
            let (Ok(key), Ok(value)) = (decode::key(key), decode::value(value)) else {
                broken += 1;
                return;
            };
            let idle = fold.fold(&key, &value, wall, &mut |delta| {
                told += 1;
                out.push(Observation::Flow(delta));
            });
            let is_evicted = !evicted.is_empty() && evicted.contains(&ip(&key.remote));
            if (idle >= idle_sweeps || is_evicted) && value.open_connections(key.protocol) == 0 {
                doomed.push(key);
            }
        });
        if let Err(error) = result {
            warn!("reading the FLOWS map failed: {error}");
        }
        self.state.count("flow_delta", told);
        for key in doomed {
            self.delete(&key);
        }
        if broken > 0 {
            self.lose(LossReason::Decode, None, broken);
        }
        self.read_losses();
        self.read_programs();
        self.state.count("sweep", 1);
        self.state.published.sweeps += 1;
        self.state.publish();
        debug!(entries = self.state.fold.len(), "swept");
    }

    fn delete(&mut self, key: &FlowKey) {
        match self.maps.flows.take(&bytes_of(key)) {
            Ok(Some(last)) => {
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

    /// Says to the kernel side how many undecided entries of the inventory there are.
    fn tell_undecided(&mut self) {
        let count = self.state.undecided.len() as u64;
        if let Err(error) = self.maps.counters.set(&counter::UNDECIDED.to_ne_bytes(), &count.to_ne_bytes(), 0) {
            warn!("writing the number of undecided connections failed: {error}");
        }
    }

    /// Counts `n` keys (wrapping) as taken out, for the kernel's budget. Only this thread writes these.
    fn removed(&mut self, cgroup_id: u64, n: u64) {
        self.state.removed = self.state.removed.wrapping_add(n);
        let _ = self.maps.counters.set(&counter::KEYS_REMOVED.to_ne_bytes(), &self.state.removed.to_ne_bytes(), 0);
        let id = cgroup_id.to_ne_bytes();
        let before = self.maps.keys_removed.get(&id).ok().flatten().map_or(0, u64::from_ne_bytes);
        let _ = self.maps.keys_removed.set(&id, &before.wrapping_add(n).to_ne_bytes(), 0);
    }

    fn lose(&mut self, reason: LossReason, cgroup: Option<CgroupId>, count: u64) {
        *self.state.published.losses.entry(reason).or_insert(0) += count;
        self.out.push(Observation::Lost { reason, cgroup, count, at: now() });
    }

    fn read_losses(&mut self) {
        // Totals first: the programs count a cgroup's loss before the total, so no named loss is missing from what follows.
        let mut totals = [0u64; counter::COUNT as usize];
        for (index, total) in (0u32..).zip(&mut totals) {
            *total = self
                .maps
                .counters
                .get(&index.to_ne_bytes())
                .ok()
                .flatten()
                .map_or(self.state.counters[index as usize], u64::from_ne_bytes);
        }
        let mut named = Vec::new();
        if let Err(error) =
            self.maps.cgroup_losses.for_each(|key, count| named.push((*key, u64::from_ne_bytes(*count))))
        {
            warn!("reading the losses of cgroups failed: {error}");
        }
        for (key, count) in named {
            let before = self.state.cgroup_losses.insert(key, count).unwrap_or(0);
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
                    self.state.told += gain;
                    self.lose(reason, Some(CgroupId(id)), gain);
                }
                Err(_) => self.lose(LossReason::Decode, None, 1),
            }
        }
        let at = |index: u32| (totals[index as usize], self.state.counters[index as usize]);
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
        let unnamed = edge_total.saturating_sub(self.state.told);
        if unnamed > 0 {
            self.state.told += unnamed;
            self.lose(LossReason::MapFull, None, unnamed);
        }
        self.state.counters = totals;
    }

    fn read_programs(&mut self) {
        let Some(programs) = &self.programs else { return };
        let mut recursion = 0;
        let published = &mut self.state.published.programs;
        programs.for_each(|name, fd| match sys::program_info(fd) {
            Ok(info) => {
                recursion += info.recursion_misses;
                let entry = ProgramStats {
                    runs: info.run_cnt,
                    run_ns: info.run_time_ns,
                    recursion_misses: info.recursion_misses,
                };
                published.insert(name.to_owned(), entry);
            }
            Err(error) => warn!("reading the statistics of {name} failed: {error}"),
        });
        let gain = recursion.saturating_sub(self.state.recursion);
        self.state.recursion = recursion;
        if gain > 0 {
            self.lose(LossReason::Recursion, None, gain);
        }
    }
}

/// A ring record, out of the ring.
enum Event {
    Flow(FlowKey),
    Cgroup { created: bool, id: u64, at: u64, path: String },
    Listen(ListenRecord),
    Dns { cgroup_id: u64, at: u64, answer: Option<(String, Vec<IpAddr>)> },
}

/// The ring's next record.
fn next(ring: &mut Ring) -> Option<Result<Event, DecodeError>> {
    let item = ring.next()?;
    Some(decode::ring(&item).map(|decoded| match decoded {
        Decoded::Flow(key) => Event::Flow(key),
        Decoded::Cgroup { created, id, at, path } => {
            Event::Cgroup { created, id, at, path: String::from_utf8_lossy(path).into_owned() }
        }
        Decoded::Listen(listen) => Event::Listen(listen),
        Decoded::Dns { cgroup_id, at, payload } => Event::Dns { cgroup_id, at, answer: dns::answer(payload) },
    }))
}

/// A value as the map takes it.
fn value_bytes(value: &FlowValue) -> [u8; VALUE] {
    let mut bytes = [0; VALUE];
    let words = [
        value.jiffies,
        value.opened,
        value.closed,
        value.bytes_sent,
        value.bytes_received,
        value.last_open,
        value.first_open,
        value.last_failed,
        value.found,
        value.refused,
        value.unanswered,
        value.unreachable,
    ];
    for (at, word) in words.into_iter().enumerate() {
        bytes[8 * at..8 * at + 8].copy_from_slice(&word.to_ne_bytes());
    }
    bytes[VALUE - 8..VALUE - 4].copy_from_slice(&value.netns.to_ne_bytes());
    bytes[VALUE - 4..].copy_from_slice(&value.flags.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_come_back_from_their_bytes() {
        let value = FlowValue {
            netns: 1,
            flags: 2,
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
        assert_eq!(decode::value(&value_bytes(&value)), Ok(value));
        let key = FlowKey {
            cgroup_id: 1,
            local: [2; 16],
            remote: [3; 16],
            server_port: 4,
            local_port: 5,
            protocol: 6,
            role: 1,
            pad: [0; 2],
        };
        assert_eq!(decode::key(&bytes_of(&key)), Ok(key));
    }
}
