//! The loaded, attached and read kernel side, as its user sees it.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use guardrail_graph::{Timestamp, observe::Observation};
use tokio::sync::mpsc;

use crate::{
    batch::{Batch, Mark},
    checkpoint::Checkpoint,
    clock,
    config::{BpfLogLevel, CHANNEL_BATCHES, KernelConfig},
    error::{KernelError, ReaderDied},
    pin::Pins,
    preflight,
    reader::{BATCH, BATCH_TEXT, Command, Out, Reader, State},
    start::{self, Started},
    stats::KernelStats,
    sys,
};

// What may wait for the observer, as ARCHITECTURE.md and the pod's memory limit have it: 65,536
// observations in 15 MiB.
const _: () = assert!(CHANNEL_BATCHES * (BATCH * size_of::<Observation>() + BATCH_TEXT) <= 15 << 20);

/// Where the kernel's side lives on while no agent is there (`--pin`).
#[derive(Clone, Debug)]
pub struct Pinned {
    /// A directory on a BPF file system, made if need be.
    pub dir: PathBuf,
    /// What the stored graph already holds; `None` if there is no such graph.
    pub checkpoint: Option<Checkpoint>,
}

/// The loaded, attached and read kernel side. Dropping it without [`Kernel::shutdown`] detaches
/// everything too, but what the final sweep finds may be lost. With pins nothing is detached, and
/// nothing lost.
#[derive(Debug)]
pub struct Kernel {
    stats: Arc<Mutex<KernelStats>>,
    warnings: Vec<String>,
    commands: std::sync::mpsc::Sender<Command>,
    wake: Arc<OwnedFd>,
    abandoned: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    is_seamless: bool,
    attached_at: Timestamp,
    sees_redirects: bool,
    /// Held until the thread has ended.
    _pins: Option<Pins>,
}

impl Kernel {
    /// Check, load, attach, walk the cgroup tree, list the open sockets, then start the reading
    /// thread. Blocking (tens of milliseconds).
    ///
    /// When it returns the hooks are attached and the list of open sockets is done; the first
    /// batches in the channel are the existing cgroups, then which sockets are open. With `pinned`,
    /// what an earlier agent left attached is taken over, and the first batches are what it counted
    /// since.
    ///
    /// # Errors
    /// [`KernelError`], one sentence each: missing privilege, BTF, cgroup v2, kernel member, or a
    /// refusal of the kernel. Nothing stays attached, but for what was pinned before.
    pub fn start(
        mut config: KernelConfig,
        pinned: Option<Pinned>,
    ) -> Result<(Self, mpsc::Receiver<Batch>), KernelError> {
        preflight::capabilities(config.udp)?;
        let root_cgroup = preflight::cgroup2(&config.cgroup_root)?;
        let (pins, checkpoint) = match pinned {
            Some(Pinned { dir, checkpoint }) => (Some(Pins::hold(&dir)?), checkpoint),
            None => (None, None),
        };
        let lacks_redirects = config.redirects && !preflight::may_attach_to_cgroups();
        config.redirects &= !lacks_redirects;
        let Started { maps, mut programs, begin, journal, pinned, mut warnings, is_seamless } = match &pins {
            Some(pins) => start::pinned(&config, root_cgroup, pins, checkpoint)?,
            None => start::alone(&config, root_cgroup, None, &mut [])?,
        };
        if lacks_redirects {
            warnings.push(
                "what connections dialled that are redirected to proxies is not seen: it needs CAP_NET_ADMIN, or say --redirects=off".to_owned(),
            );
        }
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
        let sees_redirects = config.redirects;
        let attached_at = clock::line().at(begin.listed_at);
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
        let kernel = Self {
            stats,
            warnings,
            commands,
            wake,
            abandoned,
            thread: Some(thread),
            is_seamless,
            attached_at,
            sees_redirects,
            _pins: pins,
        };
        Ok((kernel, batches))
    }

    /// Whether the hooks were attached all the time since the graph of the given checkpoint was
    /// stored: then its window has no gap.
    #[must_use]
    pub fn is_seamless(&self) -> bool {
        self.is_seamless
    }

    /// When every hook was attached, or those that an earlier agent left were taken over: what
    /// happened before may have been missed.
    #[must_use]
    pub fn attached_at(&self) -> Timestamp {
        self.attached_at
    }

    /// Whether it is seen what redirected connections dialled, once a proxy listens.
    #[must_use]
    pub fn sees_redirects(&self) -> bool {
        self.sees_redirects
    }

    /// With pins, asks for a [`Batch::Checkpoint`]. Returns at once. One is as large as FLOWS: ask
    /// for the next when this one has come.
    pub fn checkpoint(&self) {
        self.command(Command::Checkpoint);
    }

    /// Asks for a [`Batch::Turn`]: a sweep, and what is open then. Returns at once. It is as large
    /// as FLOWS.
    pub fn turn(&self) {
        self.command(Command::Turn);
    }

    /// A graph with everything up to this mark is stored, with its checkpoint. Returns at once.
    pub fn stored(&self, mark: Mark) {
        self.command(Command::Stored(mark));
    }

    /// What is not as it should be but did not stop the start (no hostPID, a kernel without an
    /// optional hook).
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Figures as of the last sweep. Cheap; call it at scrape time.
    #[must_use]
    pub fn stats(&self) -> KernelStats {
        self.stats.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// These addresses changed owner: fold every entry with such a remote and delete it, so that
    /// the next connection is a new key with a time of its own. An entry with open connections is
    /// folded, not deleted. Returns at once; the deltas come through the channel.
    pub fn evict(&self, addresses: Vec<IpAddr>) {
        self.command(Command::Evict(addresses));
    }

    /// Detach, sweep once more, drain the rings, send what came of it, end the thread. Blocking:
    /// receive until the channel gives `None`, or drop the receiver. Nothing stays in the kernel;
    /// with pins everything does, and the last batch is a checkpoint.
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
