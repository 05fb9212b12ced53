//! The kernel side's user-space half: load and attach the programs, then turn maps and rings into [`Observation`]s.
//!
//! In: the running kernel. Out: [`Batch`]es of observations on a bounded channel, and [`KernelStats`]. One thread owns every map and ring.
//! A slow receiver makes that thread wait, so rings fill (a counted *hint* loss); no edge is lost, because the sweep reads the FLOWS map.
//!
//! ```no_run
//! # use guardrail_agent::kernel::{Kernel, KernelConfig, find_cgroup2_root};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = KernelConfig::new(find_cgroup2_root()?);
//! // Blocking: load, attach, walk the cgroups, list the sockets. When it returns, everything needed for readiness is done.
//! let (kernel, mut batches) = Kernel::start(config, None)?;
//! for warning in kernel.warnings() { eprintln!("{warning}"); }
//! let reader = std::thread::spawn(move || while let Some(batch) = batches.blocking_recv() { drop(batch); });
//! // Blocking: the final sweep goes through the channel, so something must keep receiving until `None`.
//! let last = kernel.shutdown()?;
//! # drop((last, reader));
//! # Ok(()) }
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use guardrail_graph::observe::{LossReason, Observation};
use tokio::sync::mpsc;

pub(crate) mod btf;
mod cgroup;
mod checkpoint;
pub(crate) mod dns;
mod error;
mod fold;
pub(crate) mod inventory;
mod journal;
mod load;
mod offsets;
mod pin;
mod preflight;
mod reader;
mod start;
mod sys;

pub use self::{
    cgroup::find_cgroup2_root,
    checkpoint::{Checkpoint, CheckpointError},
    error::{KernelError, ReaderDied},
    load::OBJECT,
    pin::unpin,
};
use self::{
    pin::Pins,
    reader::{BATCH, BATCH_TEXT, Command, Out, Reader, State},
    start::Started,
};

/// How much the programs write through aya-log. A load-time constant: what is off is removed by the verifier and costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum BpfLogLevel {
    /// Nothing; the log ring is not even read.
    #[default]
    Off,
    /// What should never happen.
    Error,
    /// And what is lost.
    Warn,
    /// And new keys.
    Info,
    /// And every TCP state change that counts.
    Debug,
}

impl BpfLogLevel {
    /// Every level, as written on the command line.
    pub const NAMES: [&'static str; 5] = ["off", "error", "warn", "info", "debug"];
}

impl fmt::Display for BpfLogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

impl FromStr for BpfLogLevel {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "off" => Ok(Self::Off),
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            _ => Err(format!("'{s}' is no log level: use one of {}", Self::NAMES.join(", "))),
        }
    }
}

/// What to load, and with which bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    /// The cgroup v2 directory whose subtree is observed: the mount point ([`find_cgroup2_root`]), or a directory below it. Everything else belongs to
    /// somebody else and is ignored in the kernel: two agents with disjoint subtrees on one machine see nothing of each other. Paths of cgroups
    /// begin at the hierarchy's root all the same.
    pub cgroup_root: PathBuf,
    /// Observe UDP and DNS answers (per-packet hooks). Off: nothing runs per packet.
    pub udp: bool,
    /// Size of the ring for new-flow hints, bytes. Rounded up to a power of two of at least one page.
    pub ring_bytes: u32,
    /// Entries of the FLOWS map (preallocated kernel memory, 192 bytes each).
    pub flow_entries: u32,
    /// Live keys that one cgroup may have before new ones become the coarse key with many remotes.
    pub new_keys_per_cgroup: u32,
    /// Log level of the programs.
    pub bpf_log_level: BpfLogLevel,
    /// Time between two sweeps of the FLOWS map.
    pub sweep_interval: Duration,
    /// A FLOWS entry without open connections that gained nothing for this long is folded and deleted.
    pub idle: Duration,
    /// Batches that the channel to the observer holds before the reader waits: each of at most 1,024 observations and 64 KiB of text (paths, DNS names).
    pub channel_batches: usize,
}

/// The default of [`KernelConfig::channel_batches`].
const CHANNEL_BATCHES: usize = 64;

// What may wait for the observer, as ARCHITECTURE.md and the pod's memory limit have it: 65,536 observations in 15 MiB.
const _: () = assert!(CHANNEL_BATCHES * (BATCH * size_of::<Observation>() + BATCH_TEXT) <= 15 << 20);

impl KernelConfig {
    /// The defaults, for this cgroup v2 root.
    #[must_use]
    pub fn new(cgroup_root: PathBuf) -> Self {
        Self {
            cgroup_root,
            udp: true,
            ring_bytes: 256 * 1024,
            flow_entries: 65_536,
            new_keys_per_cgroup: 4_096,
            bpf_log_level: BpfLogLevel::Off,
            sweep_interval: Duration::from_secs(2),
            idle: Duration::from_secs(120),
            channel_batches: CHANNEL_BATCHES,
        }
    }
}

/// What one program has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramStats {
    /// Runs (0 unless `kernel.bpf_stats_enabled=1`).
    pub runs: u64,
    /// Time spent in it, ns (0 unless `kernel.bpf_stats_enabled=1`).
    pub run_ns: u64,
    /// Runs that the kernel skipped because the program was already running on that CPU (`recursion_misses`, Linux ≥ 5.12).
    pub recursion_misses: u64,
}

/// Figures of the kernel side, as of the last sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelStats {
    /// Live entries in the FLOWS map.
    pub map_entries: u64,
    /// Capacity of the FLOWS map.
    pub map_capacity: u64,
    /// Per program name.
    pub programs: BTreeMap<String, ProgramStats>,
    /// What was read, by kind: `flow_hint`, `flow_delta`, `cgroup_created`, `cgroup_removed`, `listen`, `dns_answer`, `socket_found`, `sweep`. Every
    /// kind exists from the start at 0.
    pub events: BTreeMap<&'static str, u64>,
    /// What was lost, by reason; every reason of [`LossReason::ALL`] that this side can meet exists from the start at 0. The same losses also travel as
    /// [`Observation::Lost`]: count them in one of the two places.
    pub losses: BTreeMap<LossReason, u64>,
    /// Sweeps done.
    pub sweeps: u64,
}

/// What comes out of the channel.
#[derive(Debug)]
pub enum Batch {
    /// What was seen.
    Observations(Vec<Observation>),
    /// With pins, when asked ([`Kernel::checkpoint`]) and at the end: how far the observations before this one reach. Store it with the graph that they made, then
    /// say so ([`Kernel::stored`]).
    Checkpoint(Box<Checkpoint>, Mark),
}

/// An instant of the stream of observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Last note of the journal before it.
    journal: u64,
    /// Entries taken out without a note before it.
    unjournalled: u64,
}

/// Where the kernel's side lives on while no agent is there (`--pin`).
#[derive(Clone, Debug)]
pub struct Pinned {
    /// A directory on a BPF file system, made if need be.
    pub dir: PathBuf,
    /// What the stored graph already holds; `None` if there is no such graph.
    pub checkpoint: Option<Checkpoint>,
}

/// The loaded, attached and read kernel side. Dropping it without [`Kernel::shutdown`] detaches everything too, but what the final sweep finds may be lost. With
/// pins nothing is detached, and nothing lost.
#[derive(Debug)]
pub struct Kernel {
    stats: Arc<Mutex<KernelStats>>,
    warnings: Vec<String>,
    commands: std::sync::mpsc::Sender<Command>,
    wake: Arc<OwnedFd>,
    abandoned: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    is_seamless: bool,
    /// Held until the thread has ended.
    _pins: Option<Pins>,
}

impl Kernel {
    /// Check, load, attach, walk the cgroup tree, list the open sockets, then start the reading thread. Blocking (tens of milliseconds).
    ///
    /// When it returns the hooks are attached and the socket inventory is done; the first batches in the channel are the existing cgroups, then
    /// what the inventory found. With `pinned`, what an earlier agent left attached is taken over, and the first batches are what it counted since.
    ///
    /// # Errors
    /// [`KernelError`], one sentence each: missing privilege, BTF, cgroup v2, kernel member, or a refusal of the kernel. Nothing stays attached, but for what
    /// was pinned before.
    pub fn start(config: KernelConfig, pinned: Option<Pinned>) -> Result<(Self, mpsc::Receiver<Batch>), KernelError> {
        preflight::capabilities(config.udp)?;
        let root_cgroup = preflight::cgroup2(&config.cgroup_root)?;
        let (pins, checkpoint) = match pinned {
            Some(Pinned { dir, checkpoint }) => (Some(Pins::hold(&dir)?), checkpoint),
            None => (None, None),
        };
        let Started { maps, mut programs, begin, journal, pinned, mut warnings, is_seamless } = match &pins {
            Some(pins) => start::pinned(&config, root_cgroup, pins, checkpoint)?,
            None => start::alone(&config, root_cgroup, None, &mut [])?,
        };
        if preflight::in_host_pid_namespace() == Some(false) {
            warnings.push(
                "connections older than the agent are seen only when they end, because it does not see the node's processes: set hostPID: true".to_owned(),
            );
        }
        let logger = match (config.bpf_log_level, programs.ebpf_mut()) {
            (BpfLogLevel::Off, _) | (_, None) => None,
            (_, Some(ebpf)) => match aya_log::EbpfLogger::init_with_logger(ebpf, log::logger()) {
                Ok(logger) => Some(logger),
                Err(error) => {
                    warnings.push(format!("the programs' log cannot be read: {error}"));
                    None
                }
            },
        };
        let wake = Arc::new(
            sys::eventfd()
                .map_err(|source| KernelError::System { what: "making an event counter".to_owned(), source })?,
        );
        let (channel, batches) = mpsc::channel(config.channel_batches.max(1));
        let (commands, received) = std::sync::mpsc::channel();
        let stats = Arc::new(Mutex::new(KernelStats::default()));
        let abandoned = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            programs: Some(programs),
            logger,
            maps,
            cgroup_root: config.cgroup_root,
            sweep_interval: config.sweep_interval,
            idle: config.idle,
            commands: received,
            wake: Arc::clone(&wake),
            out: Out::new(channel, Arc::clone(&abandoned)),
            state: State::new(config.flow_entries, Arc::clone(&stats)),
            journal,
            pinned,
        };
        let thread = std::thread::Builder::new()
            .name("kernel-reader".to_owned())
            .spawn(move || reader.run(begin))
            .map_err(|source| KernelError::System { what: "starting the reading thread".to_owned(), source })?;
        // The kernel's type information was some tens of megabytes.
        crate::memory::trim();
        let kernel =
            Self { stats, warnings, commands, wake, abandoned, thread: Some(thread), is_seamless, _pins: pins };
        Ok((kernel, batches))
    }

    /// Whether the hooks were attached all the time since the graph of the given checkpoint was stored: then its window has no gap.
    #[must_use]
    pub fn is_seamless(&self) -> bool {
        self.is_seamless
    }

    /// With pins, asks for a [`Batch::Checkpoint`]. Returns at once. One is as large as FLOWS: ask for the next when this one has come.
    pub fn checkpoint(&self) {
        self.command(Command::Checkpoint);
    }

    /// A graph with everything up to this mark is stored, with its checkpoint. Returns at once.
    pub fn stored(&self, mark: Mark) {
        self.command(Command::Stored(mark));
    }

    /// What is not as it should be but did not stop the start (no hostPID, a kernel without an optional hook).
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Figures as of the last sweep. Cheap; call it at scrape time.
    #[must_use]
    pub fn stats(&self) -> KernelStats {
        self.stats.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// These addresses changed owner: fold every entry with such a remote and delete it, so that the next connection is a new key with a time of its own.
    /// An entry with open connections is folded, not deleted. Returns at once; the deltas come through the channel.
    pub fn evict(&self, addresses: Vec<IpAddr>) {
        self.command(Command::Evict(addresses));
    }

    /// Detach, sweep once more, drain the rings, send what came of it, end the thread. Blocking: receive until the channel gives `None`, or drop the receiver.
    /// Nothing stays in the kernel; with pins everything does, and the last batch is a checkpoint.
    ///
    /// # Errors
    /// The thread had died, or did so now.
    pub fn shutdown(mut self) -> Result<KernelStats, ReaderDied> {
        self.command(Command::Shutdown);
        self.join()?;
        Ok(self.stats())
    }

    fn command(&self, command: Command) {
        // If the thread has ended there is nobody to ask, and nothing left to do.
        if self.commands.send(command).is_ok() {
            sys::notify(self.wake.as_fd());
        }
    }

    fn join(&mut self) -> Result<(), ReaderDied> {
        self.thread.take().map_or(Ok(()), JoinHandle::join).map_err(|_| ReaderDied)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.abandoned.store(true, Ordering::Release);
            self.command(Command::Shutdown);
            if let Err(died) = self.join() {
                tracing::error!("{died}");
            }
        }
    }
}
