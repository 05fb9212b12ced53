//! The thread that owns every map and ring: polls, sweeps, folds, and sends observations.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use aya_log::EbpfLogger;
use guardrail_common::{
    counter,
    decode::{self, Decoded},
    encode,
    flow::{FlowKey, FlowValue},
    record::{CgroupRecord, ListenRecord},
};
use guardrail_graph::{
    observe::{CgroupId, FlowCounts, LossReason, NetnsId, Observation, OpenFlow},
    time::Timestamp,
};
use tracing::{info, warn};

use crate::{
    batch::Mark,
    bpf::Table,
    cgroup,
    checkpoint::{Checkpoint, ReportedLosses},
    clock,
    fold::{Fold, counts, ip},
    journal::{Journal, Note},
    load::{Programs, Ring},
    sockets::{OpenSockets, backing::Suspects},
    stats::{KernelStats, NO_SOCKET, NOT_COUNTED},
    sys,
};

mod event;
mod found;
mod handover;
mod out;
mod recheck;
mod sweep;

use event::{Event, next};
use out::RETRY;
pub(crate) use {
    handover::{FoundJournal, Owned, Predecessor, carry},
    out::{BATCH, BATCH_TEXT, Out},
};

const KEY: usize = size_of::<FlowKey>();
const VALUE: usize = size_of::<FlowValue>();

/// What the thread is asked to do.
pub(crate) enum Command {
    /// Fold and delete entries with these remotes.
    Evict(Vec<IpAddr>),
    /// Say how far the stream of observations is.
    Checkpoint,
    /// Compare FLOWS with the sockets that are open, read all of it, then say what is open and how
    /// far the stream of observations is.
    Turn,
    /// Everything up to this mark is stored.
    Stored(Mark),
    /// Final sweep, then end.
    Shutdown,
}

/// FLOWS.
pub(crate) type Flows = Table<KEY, VALUE>;

impl Flows {
    /// Calls `each` for every entry, as [`Table::for_each`] does. Gives how many did not decode,
    /// and whether the reading broke off after that.
    pub(crate) fn entries(&mut self, mut each: impl FnMut(&FlowKey, &FlowValue)) -> (u64, io::Result<()>) {
        let mut broken = 0;
        let result = self.for_each(|key, value| match (decode::key(key), decode::value(value)) {
            (Ok(key), Ok(value)) => each(&key, &value),
            _ => broken += 1,
        });
        (broken, result)
    }
}

/// Maps and rings, taken out of the loaded object.
pub(crate) struct Maps {
    pub(crate) flow_ring: Ring,
    pub(crate) cgroup_ring: Ring,
    pub(crate) dns_ring: Ring,
    pub(crate) flows: Flows,
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
    /// With pins: what was taken out of FLOWS and is in no stored graph yet.
    pub(crate) journal: Option<Journal>,
    /// With pins: what else is ours.
    pub(crate) pinned: Option<Owned>,
}

/// What the thread begins with.
pub(crate) struct Begin {
    /// Sockets that were open; of maps that were taken over only the listening ones.
    pub(crate) sockets: OpenSockets,
    /// When they were listed, boot time, ns: the programs had just been attached.
    pub(crate) listed_at: u64,
    /// When the list was whole, boot time, ns.
    pub(crate) listed_until: u64,
    /// Our own maps are an earlier agent's: its notes, those that did not decode, and what was
    /// reported of them.
    pub(crate) taken_over: Option<(Vec<Note>, u64, Checkpoint)>,
    /// Detached maps, oldest first.
    pub(crate) older: Vec<Predecessor>,
    /// Their entries that were made in ours before anything was attached.
    pub(crate) carried: HashMap<FlowKey, FlowValue>,
}

/// What the thread remembers.
pub(crate) struct State {
    fold: Fold,
    /// Which time belongs to the kernel's boot times.
    line: clock::Line,
    /// Live cgroups that were reported.
    known: HashSet<u64>,
    /// Ends of cgroups that were reported, `(id, boot time in ns)`, newest last.
    ended: VecDeque<(u64, u64)>,
    /// Losses as of the last sweep.
    reported_losses: ReportedLosses,
    /// Entries taken out without a note since the last stored graph.
    unjournalled: u64,
    /// Listening sockets are known as of then, boot time, ns.
    listed_at: u64,
    /// No socket that is newer was listed, boot time, ns.
    listed_until: u64,
    /// Keys removed, in all.
    removed: u64,
    /// Undecided entries of open sockets that were put into FLOWS.
    undecided: HashSet<FlowKey>,
    /// Keys that were read before the program that made them had counted, and when: to be read
    /// again.
    early: Vec<(FlowKey, Instant)>,
    /// Entries behind whose open connections no socket stood.
    suspects: Suspects,
    /// A turn was asked for.
    is_turn_due: bool,
    /// What is open, while a sweep gathers it.
    open: Option<Vec<OpenFlow>>,
    capacity: u64,
    published: KernelStats,
    stats: Arc<Mutex<KernelStats>>,
}

/// A program counts within microseconds of making an entry. What it has not counted by then, the
/// next sweep finds.
const EARLY: Duration = Duration::from_millis(1);
/// Kinds of events, all shown from the start.
const EVENTS: [&str; 8] =
    ["flow_hint", "flow_delta", "cgroup_created", "cgroup_removed", "listen", "dns_answer", "socket_found", "sweep"];
/// Losses that this side can meet.
const LOSSES: [LossReason; 9] = [
    LossReason::RingFull,
    LossReason::DnsRingFull,
    LossReason::CgroupRingFull,
    LossReason::CoarseClient,
    LossReason::MapFull,
    LossReason::Recursion,
    LossReason::Decode,
    LossReason::JournalFull,
    LossReason::Unread,
];
/// Ends of cgroups that are remembered: more than the kernel's map of recent cgroups holds.
const MAX_ENDED: usize = 4_096;

impl State {
    pub(crate) fn new(capacity: u32, stats: Arc<Mutex<KernelStats>>) -> Self {
        let published = KernelStats {
            map_capacity: u64::from(capacity),
            events: EVENTS.into_iter().map(|kind| (kind, 0)).collect(),
            losses: LOSSES.into_iter().map(|reason| (reason, 0)).collect(),
            open_repaired: [NO_SOCKET, NOT_COUNTED].into_iter().map(|reason| (reason, 0)).collect(),
            socket_lists: [false, true].into_iter().map(|complete| (complete, 0)).collect(),
            ..KernelStats::default()
        };
        let mut state = Self {
            fold: Fold::new(clock::boot_ns()),
            line: clock::line(),
            known: HashSet::new(),
            ended: VecDeque::new(),
            reported_losses: ReportedLosses::default(),
            unjournalled: 0,
            listed_at: 0,
            listed_until: 0,
            removed: 0,
            undecided: HashSet::new(),
            early: Vec::new(),
            suspects: Suspects::default(),
            is_turn_due: false,
            open: None,
            capacity: u64::from(capacity),
            published,
            stats,
        };
        state.publish();
        state
    }

    fn wall(&self, boot_ns: u64) -> Timestamp {
        self.line.at(boot_ns)
    }

    /// Whether the end of this cgroup was told, whose number the kernel gives to no other. What its
    /// map of recent cgroups tells may come out of the ring a moment later.
    fn has_ended(&self, id: u64) -> bool {
        self.ended.iter().any(|(ended, _)| *ended == id)
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

impl Reader {
    /// Reports the cgroups that exist and which sockets are open. The programs are attached
    /// already, so nothing falls between.
    fn first_observations(&mut self, begin: Begin) {
        let Begin { sockets, listed_at, listed_until, taken_over, older, carried } = begin;
        (self.state.listed_at, self.state.listed_until) = (listed_at, listed_until);
        let is_first = taken_over.is_none() && older.is_empty();
        self.drain(older, carried, taken_over.is_none());
        if let Some((notes, broken, checkpoint)) = taken_over {
            self.take_over(notes, broken, checkpoint);
        }
        self.read_cgroup_ring();
        self.walk_cgroups();
        let at = clock::now();
        if sockets.broken > 0 {
            self.lose(LossReason::Decode, None, sockets.broken);
        }
        for socket in &sockets.listening {
            self.state.count("listen", 1);
            self.out.push(Observation::Listening {
                cgroup: CgroupId(socket.cgroup_id),
                netns: NetnsId(socket.netns),
                address: ip(&socket.local),
                port: socket.local_port,
                listening: true,
                at,
            });
            self.redirects_wanted(socket.local_port, socket.netns);
        }
        if !is_first {
            // The programs were attached all the time: what is open stands in the map.
            return;
        }
        self.report_found(&sockets);
    }

    /// The thread's life.
    pub(crate) fn run(mut self, begin: Begin) {
        self.first_observations(begin);
        self.out.send();
        let mut next_sweep = Instant::now() + self.sweep_interval;
        loop {
            let fds = [
                self.wake.as_raw_fd(),
                self.maps.flow_ring.as_raw_fd(),
                self.maps.cgroup_ring.as_raw_fd(),
                self.maps.dns_ring.as_raw_fd(),
            ];
            // The logger has no descriptor to offer; while it is on, it is looked at ten times a
            // second.
            let until_sweep = next_sweep.saturating_duration_since(Instant::now());
            let mut patience =
                if self.logger.is_some() { until_sweep.min(Duration::from_millis(100)) } else { until_sweep };
            if !self.state.early.is_empty() {
                patience = patience.min(EARLY);
            }
            if let Err(error) = sys::wait(&fds, patience) {
                warn!("waiting for the kernel's rings failed: {error}");
                std::thread::sleep(RETRY);
            }
            sys::acknowledge(self.wake.as_fd());
            self.state.line = clock::line();
            self.read_rings();
            let mut end = false;
            // One sweep does for all that came meanwhile.
            let mut evicted = HashSet::new();
            loop {
                match self.commands.try_recv() {
                    Ok(Command::Evict(addresses)) => evicted.extend(addresses),
                    Ok(Command::Checkpoint) => self.checkpoint(),
                    Ok(Command::Turn) => {
                        self.recheck();
                        self.state.is_turn_due = true;
                    }
                    Ok(Command::Stored(mark)) => self.stored(mark),
                    Ok(Command::Shutdown) | Err(mpsc::TryRecvError::Disconnected) => {
                        end = true;
                        break;
                    }
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            if !evicted.is_empty() {
                self.evict(&evicted);
            }
            if end {
                return self.finish();
            }
            if self.state.is_turn_due {
                self.turn();
                next_sweep = Instant::now() + self.sweep_interval;
            } else if Instant::now() >= next_sweep {
                self.sweep(&HashSet::new());
                next_sweep = Instant::now() + self.sweep_interval;
            }
            self.out.send();
        }
    }

    /// Detach first, so that what is swept is final. What is pinned stays attached, for the next
    /// agent.
    fn finish(mut self) {
        self.read_programs();
        self.logger = None;
        self.programs = None;
        self.read_rings();
        let is_whole = self.sweep(&HashSet::new());
        if !is_whole && self.pinned.is_none() {
            self.lose(LossReason::Unread, None, 1);
        }
        self.out.send();
        self.checkpoint();
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
                    if created {
                        let at = self.state.wall(at);
                        self.cgroup_created(id, path, at);
                    } else {
                        self.cgroup_removed(id, at);
                    }
                }
                Ok(Event::Listen(listen)) => self.listening(&listen),
                Ok(Event::Flow(_) | Event::Dns { .. }) | Err(_) => self.lose(LossReason::Decode, None, 1),
            }
        }
    }

    /// A socket listens. Where it may be a proxy's, what is redirected to it is seen from now on.
    fn redirects_wanted(&mut self, port: u16, netns: u32) {
        let redirects = self.programs.as_mut().and_then(Programs::redirects);
        let Some(redirects) = redirects.filter(|redirects| redirects.is_wanted(port, netns)) else { return };
        // Before, so that no end of a connection is missed.
        if let Err(error) = self.maps.counters.set(&counter::REDIRECTS.to_ne_bytes(), &1_u64.to_ne_bytes(), 0) {
            warn!("saying that redirected connections are seen failed: {error}");
        }
        match redirects.attach(&self.cgroup_root) {
            Ok(()) => info!("a proxy may listen on port {port}: redirected connections are seen from now on"),
            Err(error) => warn!("what connections dialled that are redirected to proxies is not seen: {error}"),
        }
    }

    fn listening(&mut self, listen: &ListenRecord) {
        self.state.count("listen", 1);
        if listen.listening != 0 {
            self.redirects_wanted(listen.port, listen.netns);
        }
        if listen.at < self.state.listed_at {
            // The list of open sockets is newer.
            return;
        }
        self.out.push(Observation::Listening {
            cgroup: CgroupId(listen.cgroup_id),
            netns: NetnsId(listen.netns),
            address: ip(&listen.local),
            port: listen.port,
            listening: listen.listening != 0,
            at: self.state.wall(listen.at),
        });
    }

    fn cgroup_created(&mut self, id: u64, path: String, at: Timestamp) {
        if !self.state.has_ended(id) && self.state.known.insert(id) {
            self.state.count("cgroup_created", 1);
            self.out.push(Observation::CgroupCreated { id: CgroupId(id), path, at });
        }
    }

    /// `at`: boot time, ns.
    fn cgroup_removed(&mut self, id: u64, at: u64) {
        if !self.state.known.remove(&id) && self.state.has_ended(id) {
            return;
        }
        self.state.ended.push_back((id, at));
        if self.state.ended.len() > MAX_ENDED {
            self.state.ended.pop_front();
        }
        let at = self.state.wall(at);
        self.state.count("cgroup_removed", 1);
        // The budget of a cgroup that is gone needs no room. Its keys still go out of FLOWS one by
        // one.
        let _ = self.maps.keys_inserted.delete(&id.to_ne_bytes());
        let _ = self.maps.keys_removed.delete(&id.to_ne_bytes());
        self.out.push(Observation::CgroupRemoved { id: CgroupId(id), at });
    }

    /// Reports every cgroup that exists and was not reported, and those that were reported and are
    /// gone.
    fn walk_cgroups(&mut self) {
        let at = clock::now();
        let mut there = HashSet::new();
        let mut new = Vec::new();
        let walked = cgroup::walk(&self.cgroup_root, &mut |id, path| {
            there.insert(id);
            new.push((id, path));
        });
        for (id, path) in new {
            self.cgroup_created(id, path, at);
        }
        if let Err(error) = walked {
            warn!("reading the cgroup tree failed: {error}");
            // What was not seen may be there all the same.
            return;
        }
        let gone: Vec<u64> = self.state.known.difference(&there).copied().collect();
        let at = clock::boot_ns();
        for id in gone {
            self.cgroup_removed(id, at);
        }
    }

    /// The cgroup ring was full: the kernel's own map of recent cgroups, and the directory tree,
    /// say what was missed.
    fn repair_cgroups(&mut self) {
        for (id, at, ended, path) in self.recent_cgroups() {
            if ended != 0 && self.state.ended.contains(&(id, ended)) {
                continue;
            }
            let at = self.state.wall(at);
            self.cgroup_created(id, path, at);
            if ended != 0 {
                self.cgroup_removed(id, ended);
            }
        }
        self.walk_cgroups();
    }

    /// What the kernel's map of recent cgroups holds: id, boot times of its making and its removal
    /// (0: none) in ns, path. Oldest first.
    fn recent_cgroups(&mut self) -> Vec<(u64, u64, u64, String)> {
        let mut recent = Vec::new();
        let result = self.maps.cgroups.for_each(|_, record| {
            if let Ok(Decoded::Cgroup { id, at, ended, path, .. }) = decode::ring(record) {
                recent.push((id, at, ended, String::from_utf8_lossy(path).into_owned()));
            }
        });
        if let Err(error) = result {
            warn!("reading the map of recent cgroups failed: {error}");
        }
        recent.sort_unstable_by_key(|(_, at, ..)| *at);
        recent
    }

    fn read_flow_ring(&mut self) {
        for (key, since) in std::mem::take(&mut self.state.early) {
            self.hinted(key, since);
        }
        while let Some(event) = next(&mut self.maps.flow_ring) {
            let Ok(Event::Flow(key)) = event else {
                self.lose(LossReason::Decode, None, 1);
                continue;
            };
            self.state.count("flow_hint", 1);
            self.hinted(key, Instant::now());
        }
    }

    /// Reads an entry that a hint named then.
    fn hinted(&mut self, key: FlowKey, since: Instant) {
        let Ok(Some(bytes)) = self.maps.flows.get(&encode::key(&key)) else { return };
        // A value of the map's size always decodes.
        let Ok(value) = decode::value(&bytes) else { return };
        self.emit(&key, &value);
        if counts(key.protocol, &value) == FlowCounts::default() && since.elapsed() < EARLY {
            self.state.early.push((key, since));
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
}

#[cfg(test)]
mod tests {
    use guardrail_common::{
        address::UNSPECIFIED,
        flow::{FlowRole, PROTOCOL_TCP},
    };

    use super::*;
    use crate::bpf;

    pub(crate) const KEY_OF_ALL: FlowKey = FlowKey {
        cgroup_id: 0,
        local: UNSPECIFIED,
        remote: UNSPECIFIED,
        server_port: 80,
        local_port: 0,
        protocol: PROTOCOL_TCP,
        role: FlowRole::Client as u8,
        pad: [0; 2],
    };

    /// A map like FLOWS; `None` without the rights.
    pub(crate) fn flows(entries: u32) -> Option<Flows> {
        // SAFETY: geteuid(2) cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("DID NOT RUN: a map needs root");
            return None;
        }
        let map = bpf::create_map(bpf::MAP_TYPE_HASH, KEY, VALUE, entries, 0).expect("a map");
        Some(Flows::new(map.as_fd()).expect("a table"))
    }

    #[test]
    fn what_did_not_decode_before_a_reading_broke_off_is_counted() {
        const ENTRIES: u32 = 4_000;
        let Some(mut flows) = flows(ENTRIES) else { return };
        for number in 0..u64::from(ENTRIES) {
            let role = if number % 2 == 0 { FlowRole::Client as u8 } else { u8::MAX };
            let key = FlowKey { cgroup_id: number, role, ..KEY_OF_ALL };
            flows.set(&encode::key(&key), &[0; VALUE], 0).expect("set");
        }
        let mut decoded = 0;
        let (broken, result) = flows.entries(|_, _| decoded += 1);
        assert!(result.is_ok());
        let half = u64::from(ENTRIES / 2);
        assert_eq!((decoded, broken), (half, half));

        // From the first entry on the table's descriptor is no map any more: the next batch cannot
        // be read.
        let (table, other) = (flows.as_fd().as_raw_fd(), std::fs::File::open("/dev/null").expect("there"));
        // SAFETY: both are open, and the one that is replaced is this test's alone.
        let (broken, result) = flows.entries(|_, _| unsafe { assert_eq!(libc::dup2(other.as_raw_fd(), table), table) });
        assert!(result.is_err());
        assert!(broken > 0 && broken < half, "{broken} of the first batch");
    }
}
