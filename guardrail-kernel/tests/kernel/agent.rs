//! The kernel module under test, and all that it said.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use guardrail_graph::{
    observe::{CgroupId, FlowCounts, FlowDelta, LossReason, Observation, OpenFlow, Remote, Role},
    peer::Protocol,
};
use guardrail_kernel::{Batch, Checkpoint, Kernel, KernelConfig, KernelStats, Mark, Pinned};
use tokio::sync::mpsc::Receiver;

use super::{Pair, SocketPod, until};

/// The cgroup of a pod.
pub(crate) fn cgroup_of(pod: &SocketPod) -> CgroupId {
    CgroupId(pod.cgroup_id)
}

/// What makes a flow this flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) cgroup: CgroupId,
    pub(crate) protocol: Protocol,
    pub(crate) role: Role,
    pub(crate) local: IpAddr,
    pub(crate) remote: Remote,
    pub(crate) server_port: u16,
    pub(crate) local_port: Option<u16>,
}

impl Key {
    fn of(delta: &FlowDelta) -> Self {
        Self {
            cgroup: delta.cgroup,
            protocol: delta.protocol,
            role: delta.role,
            local: delta.local,
            remote: delta.remote,
            server_port: delta.server_port,
            local_port: delta.local_port,
        }
    }
}

/// A client's flow.
pub(crate) fn client(pod: &SocketPod, protocol: Protocol, local: &str, remote: &str, port: u16) -> Key {
    Key {
        cgroup: cgroup_of(pod),
        protocol,
        role: Role::Client,
        local: local.parse().expect("an address"),
        remote: Remote::Addr(remote.parse().expect("an address")),
        server_port: port,
        local_port: None,
    }
}

/// A server's flow.
pub(crate) fn server(pod: &SocketPod, protocol: Protocol, local: &str, remote: &str, port: u16) -> Key {
    Key { role: Role::Server, ..client(pod, protocol, local, remote, port) }
}

/// All observations so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed(pub(crate) Vec<Observation>);

impl Observed {
    /// Every delta of a flow.
    pub(crate) fn deltas(&self) -> impl Iterator<Item = (Key, &FlowDelta)> {
        self.0.iter().filter_map(|observation| match observation {
            Observation::Flow(delta) => Some((Key::of(delta), delta)),
            _ => None,
        })
    }

    /// Every flow with its sum.
    pub(crate) fn flows(&self) -> BTreeMap<Key, FlowCounts> {
        let mut flows: BTreeMap<Key, FlowCounts> = BTreeMap::new();
        for (key, delta) in self.deltas() {
            let sum = flows.entry(key).or_default();
            let gain = &delta.counts;
            for (sum, gain) in [
                (&mut sum.opened, gain.opened),
                (&mut sum.found, gain.found),
                (&mut sum.refused, gain.refused),
                (&mut sum.unanswered, gain.unanswered),
                (&mut sum.unreachable, gain.unreachable),
                (&mut sum.closed, gain.closed),
                (&mut sum.broken, gain.broken),
                (&mut sum.bytes_sent, gain.bytes_sent),
                (&mut sum.bytes_received, gain.bytes_received),
            ] {
                *sum += gain;
            }
        }
        flows
    }

    /// How often a flow's entry began anew.
    pub(crate) fn first_opens(&self, of: &Key) -> usize {
        self.deltas().filter(|(key, delta)| key == of && delta.first_open.is_some()).count()
    }

    /// Every loss: reason, whose, how many in all.
    pub(crate) fn losses(&self) -> BTreeMap<(LossReason, Option<CgroupId>), u64> {
        let mut losses = BTreeMap::new();
        for observation in &self.0 {
            if let Observation::Lost { reason, cgroup, count, .. } = observation {
                *losses.entry((*reason, *cgroup)).or_default() += count;
            }
        }
        losses
    }

    /// Every cgroup that anything was said of.
    pub(crate) fn cgroups(&self) -> BTreeSet<CgroupId> {
        self.0
            .iter()
            .filter_map(|observation| match observation {
                Observation::Flow(FlowDelta { cgroup, .. })
                | Observation::Listening { cgroup, .. }
                | Observation::DnsAnswer { cgroup, .. } => Some(*cgroup),
                Observation::CgroupCreated { id, .. } | Observation::CgroupRemoved { id, .. } => Some(*id),
                Observation::Lost { cgroup, .. } => *cgroup,
            })
            .collect()
    }
}

/// How far the observations were at one instant, and what they had reported by then: what a state
/// file would hold.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) mark: Mark,
    pub(crate) seen: Observed,
}

/// The kernel module, observing a lab's cgroup.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Under test.
    pub(crate) kernel: Kernel,
    seen: Arc<Mutex<Observed>>,
    stored: Arc<Mutex<Vec<Stored>>>,
    turns: Arc<Mutex<Vec<Vec<OpenFlow>>>>,
    held: Option<Receiver<Batch>>,
    reader: Option<JoinHandle<()>>,
}

impl Agent {
    /// Starts with a short time between sweeps.
    pub(crate) fn start(lab: &Pair) -> Self {
        Self::with(lab, |_| ())
    }

    /// Starts with other settings.
    pub(crate) fn with(lab: &Pair, change: impl FnOnce(&mut KernelConfig)) -> Self {
        let mut agent = Self::held(lab, change);
        agent.receive();
        agent
    }

    /// Starts with pins, after an agent that had stored this.
    pub(crate) fn pinned(
        lab: &Pair,
        dir: &Path,
        stored: Option<&Stored>,
        change: impl FnOnce(&mut KernelConfig),
    ) -> Self {
        let checkpoint = stored.map(|stored| stored.checkpoint.clone());
        let mut agent = Self::begin(lab, Some(Pinned { dir: dir.to_owned(), checkpoint }), change);
        agent.receive();
        agent
    }

    /// Starts, but takes nothing out of the channel until [`Agent::receive`].
    pub(crate) fn held(lab: &Pair, change: impl FnOnce(&mut KernelConfig)) -> Self {
        let agent = Self::begin(lab, None, change);
        assert_eq!(agent.kernel.warnings(), [] as [String; 0]);
        agent
    }

    fn begin(lab: &Pair, pinned: Option<Pinned>, change: impl FnOnce(&mut KernelConfig)) -> Self {
        let mut config = KernelConfig::new(lab.cgroup().to_owned());
        config.sweep_interval = Duration::from_millis(100);
        config.flow_entries = 4096;
        change(&mut config);
        let (kernel, held) = Kernel::start(config, pinned).expect("the kernel side starts");
        Self {
            kernel,
            seen: Arc::default(),
            stored: Arc::default(),
            turns: Arc::default(),
            held: Some(held),
            reader: None,
        }
    }

    /// Begins to take observations out of the channel.
    pub(crate) fn receive(&mut self) {
        let mut observations = self.held.take().expect("it is held");
        let (seen, stored, turns) = (Arc::clone(&self.seen), Arc::clone(&self.stored), Arc::clone(&self.turns));
        self.reader = Some(std::thread::spawn(move || {
            while let Some(batch) = observations.blocking_recv() {
                let mut seen = seen.lock().expect("no panic while it is locked");
                match batch {
                    Batch::Observations(batch) => seen.0.extend(batch),
                    Batch::Checkpoint(checkpoint, mark) => stored
                        .lock()
                        .expect("no panic while it is locked")
                        .push(Stored { checkpoint: *checkpoint, mark, seen: seen.clone() }),
                    Batch::Turn { open, checkpoint } => {
                        if let Some((checkpoint, mark)) = checkpoint {
                            let mut stored = stored.lock().expect("no panic while it is locked");
                            stored.push(Stored { checkpoint: *checkpoint, mark, seen: seen.clone() });
                        }
                        turns.lock().expect("no panic while it is locked").push(open);
                    }
                }
            }
        }));
    }

    /// What a state file would hold now.
    pub(crate) fn store(&self) -> Stored {
        let count = || self.stored.lock().expect("no panic while it is locked").len();
        let before = count();
        self.kernel.checkpoint();
        assert!(until(|| count() > before), "a checkpoint comes when asked for");
        self.stored.lock().expect("no panic while it is locked").last().cloned().expect("it came")
    }

    /// Ends an epoch; what is open as the next one begins.
    pub(crate) fn turn(&self) -> BTreeMap<Key, u64> {
        let count = || self.turns.lock().expect("no panic while it is locked").len();
        let before = count();
        self.kernel.turn();
        assert!(until(|| count() > before), "a turn comes when asked for");
        let turns = self.turns.lock().expect("no panic while it is locked");
        turns[before].iter().map(|open| (Key::of(&open.flow), open.open)).collect()
    }

    /// What a state file would hold that was written at the last turn.
    pub(crate) fn stored_last(&self) -> Stored {
        self.stored.lock().expect("no panic while it is locked").last().cloned().expect("it came")
    }

    /// Waits until the observations show it.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut shows: impl FnMut(&Observed) -> bool) {
        if !until(|| shows(&self.seen.lock().expect("no panic while it is locked"))) {
            panic!("not observed: {what}; but: {:#?}", self.seen.lock().map(|seen| seen.flows()));
        }
    }

    /// Waits until exactly these flows were observed, with these sums.
    #[track_caller]
    pub(crate) fn wait_flows(&self, expected: &[(Key, FlowCounts)]) {
        let expected: BTreeMap<Key, FlowCounts> = expected.iter().copied().collect();
        if !until(|| self.seen.lock().expect("no panic while it is locked").flows() == expected) {
            let seen = self.seen.lock().expect("no panic while it is locked");
            let (losses, stats) = (seen.losses(), self.kernel.stats());
            assert_eq!(seen.flows(), expected, "lost: {losses:?}; {stats:#?}");
        }
    }

    /// Shuts down; all that was said, and the last figures.
    pub(crate) fn stop(self) -> (Observed, KernelStats) {
        let Self { kernel, seen, stored: _, turns: _, held: _, reader } = self;
        let stats = kernel.shutdown().expect("the reading thread lives");
        if let Some(reader) = reader {
            reader.join().expect("the receiving thread");
        }
        let seen = std::mem::take(&mut *seen.lock().expect("no panic while it is locked"));
        (seen, stats)
    }

    /// Waits for exactly these flows, shuts down, and looks again: nothing more, nothing lost.
    #[track_caller]
    pub(crate) fn finish(self, expected: &[(Key, FlowCounts)]) -> Observed {
        self.wait_flows(expected);
        let (seen, _) = self.stop();
        assert_eq!(seen.flows(), expected.iter().copied().collect());
        assert_eq!(seen.losses(), BTreeMap::new());
        seen
    }
}
