//! Wires the agent together: one task owns the observer, everything else talks to it over bounded
//! channels.

mod documents;
mod epochs;
mod signals;
mod start;

use std::{collections::BTreeMap, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use guardrail_graph::{Observation, Observer, inventory::Change, observe::LossReason, observer::EdgeCounters};
use guardrail_kernel::{
    Batch, Checkpoint, Kernel, KernelError, Mark,
    clock::{self, now},
};
use guardrail_kube::{
    ConnectError, Resource,
    watch::{ListState, Policies, Report, Status},
};
use guardrail_policy::{
    export,
    generate::{self, Phase},
    model::NetworkPolicy,
};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use documents::Documents;
use epochs::Turning;
use signals::Signals;

use crate::{
    answer::{Answer, Asked},
    auth::tls::TlsError,
    config::Config,
    files::{self, FileError},
    http::{Query, Readiness},
    inventory::{Failures, FileInventoryError},
    memory,
    metrics::{self, DaemonStats, EdgeSeries, Scrape},
    serve::thread::ServerThread,
    state::{Kept, StateFile},
};

/// Entries of a graph, or changes of it or of the inventory, whose memory is worth giving back to
/// the system.
const LARGE: usize = 500;
/// Ticks after such a graph or such changes on which free memory goes back.
const TRIMS: u8 = 4;
/// The thread that reads the kernel's maps, when it has ended.
const READER: &str = "the kernel reader";
/// How long a thread that ends may say nothing before it is taken for one that hangs: the last
/// files must be written before the kubelet's patience is over.
const SILENCE: Duration = Duration::from_secs(8);
/// How often waits are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Why the agent did not start: one sentence each, exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No inventory, outside a cluster.
    #[error("no inventory: give a file that `kubectl get … -A -o yaml` wrote, or `kube`, with --inventory")]
    NoInventory,
    /// `--inventory kube`.
    #[error(transparent)]
    Kube(#[from] ConnectError),
    /// The inventory file.
    #[error(transparent)]
    Inventory(#[from] FileInventoryError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The listen address.
    #[error("cannot listen on {address}: {source}; choose another address with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// `--export-dir`.
    #[error("--export-dir: {0}")]
    ExportDir(FileError),
    /// `--state-dir`.
    #[error("--state-dir: {0}")]
    StateDir(FileError),
    /// The node's name.
    #[error("cannot tell this node's name from the host name: give it with --node")]
    NodeName,
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The runtime.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// `--log`.
    #[error("--log: {0}")]
    Log(String),
}

/// Why a running agent ended by itself: exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A part ended that must not end.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
    /// A part did not end when it had to.
    #[error("{0} hangs")]
    Hangs(&'static str),
    /// The last state or export could not be written.
    #[error("stopped, but {0}")]
    LastWrite(FileError),
}

/// Runs the agent until SIGTERM, SIGINT or `--duration`.
///
/// # Errors
/// [`RunError::Start`] before anything was observed, the others afterwards.
pub fn run(config: Config) -> Result<(), RunError> {
    // One thread is enough for the observer. The listeners and blocking work have their own
    // threads.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)?;
    let outcome = runtime.block_on(async {
        let (daemon, signals) = Daemon::start(config).await?;
        daemon.run(signals).await
    });
    // Everything was waited for that may be; a thread that hangs must not keep the process.
    runtime.shutdown_background();
    outcome
}

struct Daemon {
    config: Config,
    observer: Observer,
    kernel: Kernel,
    batches: mpsc::Receiver<Batch>,
    changes: mpsc::Receiver<Vec<Change>>,
    /// What is followed of the API server, with `--inventory kube`.
    kube: Option<Followed>,
    /// How often the inventory's file could not be taken, with a file.
    file: Option<Arc<Failures>>,
    lists: Option<Lists>,
    queries: mpsc::Receiver<Query>,
    readiness: watch::Sender<Readiness>,
    tasks: JoinSet<&'static str>,
    /// Runs the listeners, as long as it is held.
    _server: ServerThread,
    stop: CancellationToken,
    state: Option<StateFile>,
    /// With a state: its epochs.
    turning: Option<Turning>,
    series: EdgeSeries,
    stats: DaemonStats,
    writes: JoinSet<Written>,
    /// State and export that were due while something else was written.
    waits: Waits,
    /// Sweeps of the kernel's table of flows, as of the last tick.
    sweeps: u64,
    /// A checkpoint is on its way here. It is as large as FLOWS, so there is one at a time.
    is_checkpoint_due: bool,
    /// Documents on their way out.
    documents: Documents,
    /// Entries of the graph when free memory last went back, and changes of the inventory since
    /// then.
    trimmed_at: usize,
    changes_taken: usize,
    trims_due: u8,
}

/// What the watches of the API server leave here, beside the changes.
struct Followed {
    status: Arc<Status>,
    policies: Arc<Policies<NetworkPolicy>>,
}

type Lists = watch::Receiver<BTreeMap<Resource, ListState>>;

/// Waits for the state of a list to change; for ever without an API server.
async fn changed(lists: &mut Option<Lists>) {
    if let Some(lists) = lists
        && lists.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn is_of_what_was_not_read(observation: &Observation) -> bool {
    matches!(observation, Observation::Lost { reason: LossReason::Unread, .. })
}

/// Writes that wait for the one that is going on.
#[derive(Clone, Copy, Debug, Default)]
struct Waits {
    state: bool,
    export: bool,
}

/// The outcome of a write in the background.
enum Written {
    State(Result<(u64, Option<Mark>, Option<Kept>), FileError>),
    Export(Result<bool, FileError>),
}

impl Daemon {
    async fn run(mut self, mut signals: Signals) -> Result<(), RunError> {
        if self.readiness.borrow().inventory {
            self.check_node();
        }
        // What is awaited is named from the start, not only when some of it came.
        self.update_readiness();
        let deadline = self.config.duration.map(|d| Instant::now() + d.duration());
        let mut tick = interval(TICK);
        let mut state_due = interval(self.config.state_interval.duration());
        let mut export_due = interval(self.config.export_interval.duration());
        for timer in [&mut tick, &mut state_due, &mut export_due] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            timer.reset();
        }
        if self.turning.as_ref().and_then(Turning::ended).is_some() {
            // That of the state.
            self.state_is_due();
        }
        let failed = loop {
            tokio::select! {
                batch = self.batches.recv() => match batch {
                    Some(Batch::Observations(batch)) => self.observe(batch),
                    Some(Batch::Checkpoint(checkpoint, mark)) => {
                        self.is_checkpoint_due = false;
                        self.write_state(Some((*checkpoint, mark)));
                    }
                    Some(Batch::Turn { open, checkpoint }) => self.turn(&open, checkpoint),
                    None => break Some(READER),
                },
                Some(changes) = self.changes.recv() => self.apply(changes),
                () = changed(&mut self.lists) => self.update_readiness(),
                Some(query) = self.queries.recv() => self.answer(query),
                _ = tick.tick() => self.tick(),
                _ = state_due.tick() => self.state_is_due(),
                _ = export_due.tick() => self.export(),
                Some(written) = self.writes.join_next() => self.written(written.ok()),
                Some(ended) = self.tasks.join_next() => break Some(ended.unwrap_or("a task")),
                name = signals.received() => {
                    tracing::info!("{name}: final sweep, then the last files");
                    break None;
                }
                () = at(deadline) => {
                    tracing::info!("--duration is over: final sweep, then the last files");
                    break None;
                }
            }
        };
        let finished = self.finish().await;
        failed.map_or(finished, |part| Err(RunError::Ended(part)))
    }

    /// Detaches, folds what the kernel still holds, and writes the last files.
    async fn finish(mut self) -> Result<(), RunError> {
        self.readiness.send_modify(|ready| ready.hooks = false);
        let swept = self.readiness.borrow().swept.unwrap_or_else(Instant::now);
        let options = self.export_options();
        let ended = self.turning.as_ref().and_then(Turning::ended);
        let calendar = self.turning.as_ref().map(Turning::calendar);
        let answer = self.answering();
        let (kernel, mut batches, mut observer) = (self.kernel, self.batches, self.observer);
        let kernel = spawn_blocking(move || kernel.shutdown());
        let (mut last, mut is_unread) = (None, false);
        let hangs = loop {
            let batch = match timeout(SILENCE, batches.recv()).await {
                Ok(Some(batch)) => batch,
                Ok(None) => break false,
                Err(_) => break true,
            };
            let now = now();
            match batch {
                Batch::Observations(batch) => {
                    let (unread, read): (Vec<_>, _) = batch.into_iter().partition(is_of_what_was_not_read);
                    is_unread |= !unread.is_empty();
                    read.into_iter().for_each(|o| observer.observe(o, now));
                }
                Batch::Checkpoint(checkpoint, _) => last = Some(checkpoint),
                // The epoch ends with the next agent.
                Batch::Turn { .. } => {}
            }
        };
        let is_whole = !hangs && matches!(kernel.await, Ok(Ok(_)));
        let now = now();
        if !is_whole {
            // What came after the last one cannot be told from what did not.
            last = None;
            is_unread = true;
        }
        if is_unread {
            observer.unread(now.before(swept.elapsed() + TICK), now);
        }
        if last.is_none() {
            // Flows that still wait for their pod are counted, not forgotten. With pins they wait
            // for the next agent.
            observer.flush(now);
        }
        while let Some(written) = self.writes.join_next().await {
            if let (Ok(Written::State(written)), Some(state)) = (written, &mut self.state) {
                state.done(written.ok().map(|(number, ..)| number));
            }
        }
        let document = Arc::new(observer.document(now));
        self.stop.cancel();
        let state = match &mut self.state {
            // The stored graph fits the maps that stay. One without its checkpoint would make the
            // next agent count everything once more.
            Some(_) if self.config.pin.is_some() && last.is_none() => Ok(()),
            Some(state) => {
                calendar.iter().for_each(|calendar| state.remember(calendar));
                state.begin(&mut observer, last.as_deref(), ended, now).run().map(drop)
            }
            None => Ok(()),
        };
        let export = match &self.config.export_dir {
            Some(dir) => files::replace_set(dir, &allow_lists(&answer(document), &options)).map(drop),
            None => Ok(()),
        };
        // A client that keeps its connection open must not keep the agent from stopping.
        let _ = timeout(Duration::from_secs(1), async { while self.tasks.join_next().await.is_some() {} }).await;
        if hangs {
            return Err(RunError::Hangs(READER));
        }
        if !is_whole {
            return Err(RunError::Ended(READER));
        }
        state.and(export).map_err(RunError::LastWrite)
    }

    fn observe(&mut self, batch: Vec<Observation>) {
        let now = now();
        for observation in batch {
            self.observer.observe(observation, now);
        }
        self.evict();
    }

    fn apply(&mut self, changes: Vec<Change>) {
        let now = now();
        for change in changes {
            self.changes_taken += match &change {
                Change::Replace { objects, .. } => objects.len(),
                Change::Apply(_) | Change::Delete(_) => 1,
                Change::Heard { .. } | Change::Interrupted { .. } => 0,
            };
            self.observer.apply(change, now);
        }
        self.evict();
    }

    /// A list came, or will not come: `/readyz` says so.
    fn update_readiness(&mut self) {
        let Some(lists) = &mut self.lists else { return };
        let lists = lists.borrow_and_update().clone();
        let pending: Vec<_> =
            lists.iter().filter(|(_, s)| **s == ListState::Pending).map(|(r, _)| r.as_str()).collect();
        for (resource, _) in lists.iter().filter(|(_, state)| matches!(state, ListState::Denied(_))) {
            self.observer.list_unavailable(&resource.kind());
        }
        let nothing_heard = !lists.values().any(ListState::was_heard);
        let missing = lists.into_values().filter_map(|state| match state {
            ListState::GivenUp(reason) | ListState::Denied(reason) => Some(reason),
            ListState::Outdated(reason) => Some(format!("news of {reason}")),
            ListState::Pending | ListState::Synced => None,
        });
        let given_up = self.kernel.warnings().iter().cloned().chain(missing).collect();
        let was_ready = self.readiness.borrow().inventory;
        let is_ready = pending.is_empty();
        self.readiness.send_modify(|ready| {
            ready.inventory = is_ready;
            ready.pending_lists = pending;
            ready.nothing_heard = is_ready && nothing_heard;
            ready.given_up = given_up;
        });
        if is_ready && !was_ready {
            self.check_node();
        }
    }

    /// An address that changed its owner must not go on under one kernel entry.
    fn evict(&mut self) {
        let addresses = self.observer.take_reassigned_addresses();
        if !addresses.is_empty() {
            self.kernel.evict(addresses);
        }
    }

    fn answer(&mut self, query: Query) {
        // A receiver that is gone asked and went away: nothing to do.
        match query {
            Query::Graph(reply) => {
                let observer = &mut self.observer;
                let open = self.documents.get(|| observer.document(now()));
                drop(reply.send(open.map(|open| self.answering()(open))));
                if self.entries() > LARGE {
                    self.trims_due = TRIMS;
                }
            }
            Query::Epochs(reply) => {
                drop(reply.send(self.turning.as_ref().map(|turning| turning.kept().to_vec()).unwrap_or_default()));
            }
            Query::Metrics(reply) => {
                if let Ok(page) = self.scrape() {
                    drop(reply.send(page));
                }
            }
        }
    }

    /// What the graph holds, in all.
    fn entries(&self) -> usize {
        let stats = self.observer.stats();
        stats.edges + stats.identity_entries.iter().map(|(_, entries)| entries).sum::<usize>()
    }

    /// Pods are told apart by their node's name: under a wrong one every local pod is somebody
    /// else's.
    fn check_node(&self) {
        let node = &self.observer.config().node;
        let inventory = self.observer.inventory();
        if inventory.nodes().next().is_some() && inventory.node(node).is_none() {
            tracing::warn!("the inventory has no node {node}: no pod will be this node's; give its name with --node");
        }
    }

    fn tick(&mut self) {
        self.observer.tick(now());
        self.end_epoch_if_due();
        let sweeps = self.kernel.stats().sweeps;
        if sweeps != self.sweeps {
            self.sweeps = sweeps;
            self.readiness.send_modify(|ready| ready.swept = Some(Instant::now()));
        }
        let entries = self.entries();
        if self.changes_taken + entries.abs_diff(self.trimmed_at) > LARGE {
            (self.trimmed_at, self.changes_taken, self.trims_due) = (entries, 0, TRIMS);
        }
        // Also once the last reader of an answer is done, however slow it is, and more than once:
        // what it holds besides the document goes later.
        if self.trims_due > 0 {
            self.trims_due = if self.documents.are_read() { TRIMS } else { self.trims_due - 1 };
            memory::trim();
        }
    }

    fn scrape(&mut self) -> Result<String, fmt::Error> {
        let EdgeCounters { edges, complete } = self.observer.edge_counters(now());
        self.stats.complete = complete;
        let edges = self.series.bound(edges);
        metrics::encode(Scrape {
            observer: self.observer.stats(),
            kernel: self.kernel.stats(),
            inventory: match (&self.kube, &self.file) {
                (Some(kube), _) => kube.status.report(),
                (None, Some(failures)) => failures.report(),
                (None, None) => Report::default(),
            },
            daemon: self.stats.clone(),
            edges,
            bpf_stats_enabled: std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled")
                .is_ok_and(|enabled| enabled.trim() == "1"),
        })
    }

    /// NetworkPolicies in force, as far as they are watched.
    fn policies(&self) -> Vec<NetworkPolicy> {
        self.kube.as_ref().map(|kube| kube.policies.all()).unwrap_or_default()
    }

    /// With pins the state is written where the stream of observations says how far it is.
    fn state_is_due(&mut self) {
        if self.config.pin.is_none() {
            self.write_state(None);
        } else if !std::mem::replace(&mut self.is_checkpoint_due, true) {
            self.kernel.checkpoint();
        }
    }

    /// The writes are done elsewhere, one at a time: a slow disk must not stop the observer, nor
    /// pile up writes. What finds another write going on comes right after it: the two timers meet
    /// again and again.
    fn write_state(&mut self, checkpoint: Option<(Checkpoint, Mark)>) {
        if !self.writes.is_empty() {
            self.waits.state = true;
        } else if let Some(state) = &mut self.state {
            let (checkpoint, mark) = checkpoint.unzip();
            let ended = self.turning.as_ref().and_then(Turning::ended);
            self.turning.iter().for_each(|turning| state.remember(&turning.calendar()));
            let job = state.begin(&mut self.observer, checkpoint.as_ref(), ended, now());
            self.writes.spawn_blocking(move || Written::State(job.run().map(|kept| (job.number(), mark, kept))));
        }
    }

    /// How `--export-dir` is written. What is generated adds to the policies in force; the pod
    /// ranges keep the cluster's own pods out of rules for "any external address".
    fn export_options(&self) -> generate::Options {
        let mut options = generate::Options { existing: self.policies(), ..generate::Options::new(Phase::DefaultDeny) };
        // The files are for reading and say what they rest on.
        options.stopped_too = true;
        options.min_window = options.phase.min_window();
        let nodes = self.observer.inventory().nodes();
        options.cluster.pod_ranges = nodes.flat_map(|node| node.pod_cidrs.iter().copied()).collect();
        options
    }

    fn export(&mut self) {
        if !self.writes.is_empty() {
            self.waits.export = true;
        } else if let Some(dir) = self.config.export_dir.clone() {
            let answer = self.answering()(Arc::new(self.observer.document(now())));
            let options = self.export_options();
            self.writes
                .spawn_blocking(move || Written::Export(files::replace_set(&dir, &allow_lists(&answer, &options))));
        }
    }

    fn written(&mut self, written: Option<Written>) {
        self.trims_due = TRIMS;
        let seconds = clock::wall_seconds();
        if let (Some(state), Some(Written::State(_)) | None) = (&mut self.state, &written) {
            let number = written.as_ref().and_then(|written| match written {
                Written::State(Ok((number, ..))) => Some(*number),
                _ => None,
            });
            state.done(number);
        }
        match &written {
            Some(Written::State(Ok((_, mark, kept)))) => {
                self.stored(kept.as_ref());
                self.stats.state_last_success_seconds = seconds;
                if let Some(mark) = mark {
                    self.kernel.stored(*mark);
                }
            }
            Some(Written::State(Err(e))) => {
                self.stats.state_failures += 1;
                let next = self.config.state_interval.duration().as_secs();
                tracing::warn!("the state was not written, next try in {next} s: {e}");
            }
            Some(Written::Export(Ok(changed))) => {
                self.stats.export_last_success_seconds = seconds;
                if *changed {
                    tracing::debug!("allow-lists changed");
                }
            }
            Some(Written::Export(Err(e))) => {
                self.stats.export_failures += 1;
                let next = self.config.export_interval.duration().as_secs();
                tracing::warn!("the allow-lists were not written, next try in {next} s: {e}");
            }
            None => tracing::error!("a write in the background panicked"),
        }
        // The other one first, so that neither keeps the other from being written.
        let was_export = matches!(written, Some(Written::Export(_)));
        if self.waits.state && (was_export || !self.waits.export) {
            self.waits.state = false;
            self.state_is_due();
        } else if self.waits.export {
            self.waits.export = false;
            self.export();
        }
    }
}

/// The files of `--export-dir`. Problems stand in the files themselves: what is incomplete says so,
/// one node's view is marked.
fn allow_lists(answer: &Answer, options: &generate::Options) -> BTreeMap<String, String> {
    let joined = answer.joined(&Asked::default()).map(|joined| joined.document).unwrap_or_else(|why| {
        tracing::warn!("the allow-lists are without the evidence of an epoch: {why}");
        Arc::clone(&answer.open)
    });
    export::export(&joined.snapshot(), options).all_files()
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
