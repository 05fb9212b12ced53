//! Start of the agent: everything that can refuse, then everything that leaves a trace.

use std::{io, net::SocketAddr, sync::Arc};

use guardrail_graph::{
    Observer, ObserverConfig, Snapshot,
    inventory::{Change, Kind},
};
use guardrail_kernel::{
    Kernel, KernelConfig, Pinned,
    clock::{self, clocks, now},
    find_cgroup2_root,
};
use guardrail_kube::{
    Api, Source,
    watch::{Options, Policies, follow},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Daemon, Followed, Signals, StartError, Waits, documents::Documents, epochs, epochs::Turning};
use crate::{
    auth::{self, Guard, tls::Tls},
    config::{AuthMode, Config, InventorySource, Redirects, Scope, Switch},
    files,
    http::{self, Readiness},
    inventory::InventoryFile,
    memory,
    metrics::{DaemonStats, EdgeSeries},
    policies,
    serve::{self, thread::ServerThread},
    state::{Epochs, StateFile, Stored},
};

/// As the API server logs it.
const USER_AGENT: &str = concat!("guardrail-agent/", env!("CARGO_PKG_VERSION"));

/// Where changes of the inventory come from.
enum Feed {
    File(InventoryFile),
    Kube(Arc<Api>),
}

impl Feed {
    /// Starts the task that follows it.
    fn start(
        self,
        config: &Config,
        node: &str,
        tasks: &mut JoinSet<&'static str>,
        stop: &CancellationToken,
    ) -> (mpsc::Receiver<Vec<Change>>, Option<Followed>) {
        match self {
            Self::File(file) => {
                let (change, changes) = mpsc::channel(1);
                tasks.spawn(async move {
                    file.follow(change).await;
                    "the inventory reader"
                });
                (changes, None)
            }
            Self::Kube(api) => {
                let (change, changes) = mpsc::channel(16);
                let followed = Followed { status: Arc::default(), policies: Arc::new(Policies::new(policies::read)) };
                let Followed { status, policies } = &followed;
                let options = Options {
                    pods_of_node: (config.inventory_scope == Scope::Node).then(|| node.to_owned()),
                    ..Options::default()
                };
                let following = follow(api, options, change, Arc::clone(status), Arc::clone(policies), stop.clone());
                tasks.spawn(async move {
                    following.await;
                    "the inventory reader"
                });
                (changes, Some(followed))
            }
        }
    }
}

fn api_source(config: &Config) -> Source {
    Source { kubeconfig: config.kubeconfig.clone(), ..Source::default() }
}

/// Who may read, and with which certificate.
async fn access(
    config: &Config,
    server: &ServerThread,
    node: &str,
) -> Result<(Option<Arc<Guard>>, Option<Arc<Tls>>), StartError> {
    let tls = match (&config.tls_cert, &config.tls_key) {
        (Some(cert), Some(key)) => Some(Tls::from_files(cert.clone(), key.clone())?),
        _ if config.auth == AuthMode::Kube && !config.auth_insecure => {
            Some(Tls::self_signed(vec![node.to_owned(), "guardrail-agent".to_owned(), "localhost".to_owned()])?)
        }
        _ => None,
    };
    let guard = match config.auth {
        AuthMode::None => None,
        AuthMode::Kube => {
            // Not the client of the watches: a client belongs to the runtime that made it.
            let api = server.run(Api::new(api_source(config), USER_AGENT)).await.map_err(StartError::Runtime)??;
            Some(Arc::new(Guard::new(Arc::new(api), config.auth_audience.clone(), auth::ReviewLimits::default())))
        }
    };
    Ok((guard, tls.map(Arc::new)))
}

async fn bind(server: &ServerThread, address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = server.run(TcpListener::bind(address)).await.and_then(|bound| bound);
    bound.map_err(|source| StartError::Listen { address, source })
}

impl Daemon {
    /// Everything that can refuse comes before everything that leaves a trace.
    pub(super) async fn start(config: Config) -> Result<(Self, Signals), StartError> {
        let node = match &config.node {
            Some(node) if !node.is_empty() => node.clone(),
            _ => host_name().ok_or(StartError::NodeName)?,
        };
        let (mut inventory, source) = match config.inventory.clone().ok_or(StartError::NoInventory)? {
            InventorySource::File(file) => {
                let (file, inventory) = InventoryFile::open(file)?;
                (inventory, Feed::File(file))
            }
            InventorySource::Kube => {
                (Vec::new(), Feed::Kube(Arc::new(Api::new(api_source(&config), USER_AGENT).await?)))
            }
        };
        let server = ServerThread::start().map_err(StartError::Runtime)?;
        let (guard, tls) = access(&config, &server, &node).await?;
        let listener = bind(&server, config.listen).await?;
        let local = match config.local_listen {
            Some(address) => Some(bind(&server, address).await?),
            None => None,
        };
        if let Some(dir) = &config.export_dir {
            files::require_writable_dir(dir).map_err(StartError::ExportDir)?;
        }
        let state = match &config.state_dir {
            Some(dir) => Some(StateFile::open(dir).map_err(StartError::StateDir)?),
            None => None,
        };

        let cgroup_root = match &config.cgroup_root {
            Some(dir) => dir.clone(),
            None => find_cgroup2_root()?,
        };
        let kernel_config = KernelConfig {
            udp: config.udp == Switch::On,
            redirects: config.redirects == Redirects::Auto,
            ring_bytes: config.ring_bytes,
            flow_entries: config.flow_entries,
            new_keys_per_cgroup: config.new_keys_per_cgroup,
            bpf_log_level: config.bpf_log_level,
            ..KernelConfig::new(cgroup_root)
        };
        let epochs = state.as_ref().map(|state| Epochs::open(state.dir(), &node)).unwrap_or_default();
        let stored = match &state {
            Some(state) => state.load(&epochs, now()).map_err(StartError::StateDir)?,
            None => Stored::default(),
        };
        if config.pin.is_some()
            && let Some(ahead) = stored.calendar.as_ref().and_then(epochs::ahead_in_this_boot)
        {
            clock::resume(ahead);
        }
        let pinned = config.pin.clone().map(|dir| Pinned { dir, checkpoint: stored.checkpoint.clone() });
        let (kernel, batches) = spawn_blocking(move || Kernel::start(kernel_config, pinned))
            .await
            .map_err(|e| StartError::Runtime(io::Error::other(e)))??;
        // Not before: what happens while programs are loaded is seen by nobody.
        let started = kernel.attached_at();
        // The type information of the kernel took some tens of megabytes while the programs were
        // loaded.
        memory::trim();

        let run = match &state {
            Some(state) => state.raise_run(&stored, &epochs).map_err(StartError::StateDir)?,
            // Nobody served anything under the name of this instance.
            None => 1,
        };
        let mut observer_config = ObserverConfig::new(node, instance_id(), started);
        observer_config.run = run;
        observer_config.own_pods_only = matches!(source, Feed::Kube(_)) && config.inventory_scope == Scope::Node;
        observer_config.unobservable.clone_from(&config.unobservable_nodes);
        observer_config.redirects = kernel.sees_redirects();
        if matches!(source, Feed::Kube(_)) {
            observer_config.awaited = vec![Kind::Node, Kind::Service, Kind::Pod];
            observer_config.watched = true;
        }
        let (is_seamless, known, clocks) = (kernel.is_seamless(), stored.calendar.clone(), clocks());
        // A large one is copied only where it is needed twice.
        let is_needed = |stored: &&Snapshot| !is_seamless && Turning::is_over(stored, known.as_ref(), clocks);
        let before = stored.snapshot.as_ref().filter(is_needed).cloned();
        let mut observer = match &state {
            Some(state) => state.restore(stored, observer_config, is_seamless),
            None => Observer::new(observer_config),
        };
        // Before anybody is served: who is told that the agent is ready may tell it to end, or set
        // the clock, which ends the epoch.
        let begun = observer.epoch().unwrap_or(started);
        let mut turning =
            state.is_some().then(|| Turning::new(epochs, (&observer.config().node, begun), known.as_ref(), clocks));
        if let (Some(turning), Some(before)) = (&mut turning, before) {
            turning.end_stored(before, run, &mut observer, clocks);
        }
        for change in inventory.drain(..) {
            observer.apply(change, started);
        }
        let signals = Signals::new().map_err(StartError::Runtime)?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let readiness = watch::Sender::new(Readiness {
            hooks: true,
            sockets: true,
            inventory: matches!(source, Feed::File(_)),
            pending_lists: Vec::new(),
            nothing_heard: false,
            given_up: kernel.warnings().to_vec(),
            swept: Some(Instant::now()),
        });
        for warning in kernel.warnings() {
            tracing::warn!("{warning}");
        }
        let (query, queries) = mpsc::channel(16);
        let limits = serve::Limits::default();
        if let Some(listener) = local {
            let open = http::router(query.clone(), readiness.subscribe(), None);
            let serving = server.spawn(serve::serve(listener, None, open, limits, stop.clone()));
            tasks.spawn(async move {
                drop(serving.await);
                "the local HTTP server"
            });
        }
        let guarded = http::router(query, readiness.subscribe(), guard);
        let serving = server.spawn(serve::serve(listener, tls, guarded, limits, stop.clone()));
        tasks.spawn(async move {
            if let Err(e) = serving.await.map_err(io::Error::other).and_then(|served| served) {
                tracing::error!("the HTTP server failed: {e}");
            }
            "the HTTP server"
        });
        let file = match &source {
            Feed::File(file) => Some(file.failures()),
            Feed::Kube(_) => None,
        };
        let (changes, kube) = source.start(&config, &observer.config().node, &mut tasks, &stop);
        tracing::info!(
            node = observer.config().node,
            listen = %config.listen,
            udp = ?config.udp,
            "observing"
        );
        let daemon = Self {
            turning,
            series: EdgeSeries::new(config.metrics_max_edges),
            stats: DaemonStats { complete: true, ..DaemonStats::default() },
            writes: JoinSet::new(),
            waits: Waits::default(),
            sweeps: 0,
            is_checkpoint_due: false,
            documents: Documents::default(),
            trimmed_at: 0,
            changes_taken: 0,
            trims_due: 0,
            config,
            observer,
            kernel,
            batches,
            changes,
            lists: kube.as_ref().map(|kube| kube.status.subscribe()),
            kube,
            file,
            queries,
            readiness,
            tasks,
            _server: server,
            stop,
            state,
        };
        Ok((daemon, signals))
    }
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Random, so that counts of two states of one node are never taken for one.
fn instance_id() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    format!("{:016x}", RandomState::new().hash_one(now().as_unix_ns()))
}
