//! A small Kubernetes API server: it replays recordings of a real one (lists, watches with their
//! real order) and misbehaves on demand.
//!
//! It speaks HTTP/1.1 over plain TCP, one thread per connection, every connection for one request.
//! What it knows of the API is what the recordings show: lists (whole and paged), watches (from a
//! version, or with the list first), bookmarks, metadata alone, field selectors on pods, tokens,
//! permissions, TokenReviews and SubjectAccessReviews, and port-forwards to pods.

mod forward;
pub mod generated;
mod http;
mod serve;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
pub use forward::{Connect, Forward};
use serde_json::{Value, json};
use store::Store;

/// How the next request for a resource goes wrong. Each fault is used up by one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An error status, with `Retry-After` if given.
    Status {
        /// Status code.
        code: u16,
        /// Seconds.
        retry_after: Option<u32>,
    },
    /// The watch is answered with 200 and an ERROR event of code 410, as a real server does it for
    /// a version that etcd has forgotten.
    Expired,
    /// After so many events the stream ends in the middle of the next object, without an end of the
    /// body.
    CutMidObject {
        /// Whole events before the cut.
        after: usize,
    },
    /// After so many events nothing comes any more, and the connection stays open.
    Stall {
        /// Events before the silence.
        after: usize,
    },
    /// After so many events a line that is no JSON.
    Garbage {
        /// Events before it.
        after: usize,
    },
    /// The connection is closed before an answer.
    Disconnect,
    /// The next page of a list that is not the first is refused with 410, as a server does whose
    /// storage has forgotten the version of the list. Other requests pass.
    ExpiredPage,
}

/// How streaming lists (watches with `sendInitialEvents`) go wrong, each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoStreaming {
    /// They are refused with this status: 422 from servers without the feature.
    Status(u16),
    /// They are answered with 200 and an ERROR event of this code: 500 where the storage cannot
    /// report its progress (etcd 3.4).
    Event(u16),
    /// They are answered with 200 and the end of the stream.
    Cut,
}

/// What the server does all the time.
#[derive(Clone, Debug)]
pub struct Manners {
    /// How often a watch without events says that there were none.
    pub bookmarks: Duration,
    /// Resources whose lists cannot be streamed.
    pub no_streaming: BTreeMap<String, NoStreaming>,
    /// Every event is sent twice.
    pub duplicates: bool,
    /// Neighbouring events of a watch are swapped.
    pub reorder: bool,
    /// Accepted bearer tokens; `None` accepts everybody.
    pub tokens: Option<BTreeSet<String>>,
    /// (verb, resource) that are forbidden.
    pub denied: BTreeSet<(String, String)>,
    /// Inside a namespace only these (verb, resource) are permitted, and nothing outside; `None`
    /// permits everything that is not denied.
    pub granted: Option<(String, BTreeSet<(String, String)>)>,
    /// Users by token, for TokenReviews.
    pub users: BTreeMap<String, String>,
    /// (user, non-resource path) that SubjectAccessReviews allow.
    pub allowed: BTreeSet<(String, String)>,
    /// Audience that tokens are for.
    pub audience: String,
    /// TokenReviews take no notice of audiences, as servers before 1.13 did.
    pub no_audiences: bool,
    /// What is answered at other paths: API groups, lists of kinds of their own, single objects.
    pub documents: BTreeMap<String, Value>,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            bookmarks: Duration::from_secs(10),
            no_streaming: BTreeMap::new(),
            duplicates: false,
            reorder: false,
            tokens: None,
            denied: BTreeSet::new(),
            granted: None,
            users: BTreeMap::new(),
            allowed: BTreeSet::new(),
            audience: String::new(),
            no_audiences: false,
            documents: BTreeMap::new(),
        }
    }
}

impl Manners {
    /// No list of any resource can be streamed.
    pub fn stream_no_lists(&mut self, how: NoStreaming) {
        self.no_streaming = store::RESOURCES.iter().map(|r| (r.plural.to_owned(), how)).collect();
    }
}

pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) faults: BTreeMap<String, VecDeque<Fault>>,
    pub(crate) manners: Manners,
    /// `METHOD path?query` of every request, in order.
    pub(crate) requests: Vec<String>,
    /// Where port-forwards lead, by (namespace, pod).
    pub(crate) forwards: BTreeMap<(String, String), Arc<Forward>>,
    /// Per resource: open watches that have been sent everything.
    pub(crate) idle: BTreeMap<String, usize>,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change of the state, at most so long.
    pub(crate) fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// One recorded event.
#[derive(Clone, Debug)]
struct Recorded {
    after_ms: u64,
    resource: String,
    event: Value,
}

/// The server. It stops when it is dropped.
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    recording: Vec<Recorded>,
    accepting: Option<thread::JoinHandle<()>>,
}

/// A pod of the DaemonSet of deploy/base in the namespace `guardrail`.
#[must_use]
pub fn agent_pod(name: &str, node: &str, ready: bool) -> Value {
    let status = if ready { "True" } else { "False" };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "guardrail", "uid": format!("uid-{name}"),
            "labels": {"app.kubernetes.io/name": "guardrail-agent", "app.kubernetes.io/part-of": "guardrail", "controller-revision-hash": "7d9c5b8f66"}},
        "spec": {"nodeName": node, "containers": [{"name": "agent", "image": "guardrail"}]},
        "status": {"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": status}],
            "containerStatuses": [{"name": "agent", "ready": ready, "restartCount": 0, "state": {"running": {}}}]},
    })
}

/// Where the recordings are.
#[must_use]
pub fn recordings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kube")
}

impl ApiServer {
    /// Serves the recorded lists on a loopback port.
    ///
    /// # Errors
    /// If the recordings cannot be read or no port is to be had.
    pub fn start() -> anyhow::Result<Self> {
        Self::on(TcpListener::bind("127.0.0.1:0")?)
    }

    /// The same on a listener that is there already (a port that must be known before).
    ///
    /// # Errors
    /// If the recordings cannot be read.
    pub fn on(listener: TcpListener) -> anyhow::Result<Self> {
        let dir = recordings();
        let mut recording = Vec::new();
        let mut store = Store::default();
        for resource in store::RESOURCES {
            let path = dir.join(format!("list/{}.json", resource.plural));
            let list: Value =
                serde_json::from_slice(&std::fs::read(&path).with_context(|| path.display().to_string())?)?;
            store.load(resource, &list).with_context(|| path.display().to_string())?;
            let path = dir.join(format!("watch/{}.jsonl", resource.plural));
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            for line in text.lines().filter(|l| !l.trim().is_empty()) {
                let mut line: Value = serde_json::from_str(line).with_context(|| path.display().to_string())?;
                recording.push(Recorded {
                    after_ms: line["after_ms"].as_u64().context("after_ms")?,
                    resource: resource.plural.to_owned(),
                    event: line["event"].take(),
                });
            }
        }
        Ok(Self::with(listener, store, recording)?)
    }

    /// Serves these objects (each with its `kind`) instead of the recordings.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn serving(listener: TcpListener, objects: &[Value]) -> anyhow::Result<Self> {
        let mut store = Store::default();
        for resource in store::RESOURCES {
            store.load(resource, &serde_json::json!({"metadata": {"resourceVersion": "1"}, "items": []}))?;
        }
        let server = Self::with(listener, store, Vec::new())?;
        server.sync(objects);
        Ok(server)
    }

    /// Makes these the objects that there are: watches see what changed.
    pub fn sync(&self, objects: &[Value]) {
        let mut state = self.shared.lock();
        for resource in store::RESOURCES {
            state.store.sync(resource, objects.iter().filter(|o| o["kind"] == resource.kind));
        }
        drop(state);
        self.shared.notify();
    }

    fn with(listener: TcpListener, store: Store, mut recording: Vec<Recorded>) -> std::io::Result<Self> {
        // Stable: events of one resource keep their order even if they carry the same time.
        recording.sort_by_key(|r| r.after_ms);
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                store,
                faults: BTreeMap::new(),
                manners: Manners::default(),
                requests: Vec::new(),
                forwards: BTreeMap::new(),
                idle: BTreeMap::new(),
            }),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self { address, shared, recording, accepting: Some(accepting) })
    }

    /// `http://ADDRESS`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig for this server: with a token file if one is given.
    #[must_use]
    pub fn kubeconfig(&self, token_file: Option<&Path>) -> String {
        let user = token_file
            .map_or_else(|| "{}".to_owned(), |path| format!("{{tokenFile: {:?}}}", path.display().to_string()));
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\nclusters:\n- name: lab\n  cluster: {{server: {:?}}}\nusers:\n- name: lab\n  user: {user}\ncontexts:\n- name: lab\n  context: {{cluster: lab, user: lab}}\n",
            self.url()
        )
    }

    /// Changes how the server behaves from now on.
    pub fn manners(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.shared.lock().manners);
        self.shared.notify();
    }

    /// Lets a coming request for `resource` go wrong. Faults of one resource are used in order.
    pub fn fault(&self, resource: &str, fault: Fault) {
        self.shared.lock().faults.entry(resource.to_owned()).or_default().push_back(fault);
    }

    /// Where the port-forwards of a pod lead from now on. Those of a pod that has none are refused
    /// with 404, as if it had just gone.
    pub fn forward(&self, namespace: &str, pod: &str, forward: Forward) {
        let key = (namespace.to_owned(), pod.to_owned());
        self.shared.lock().forwards.insert(key, Arc::new(forward));
    }

    /// The pod is gone: its port-forwards are refused, though the last list still had it.
    pub fn forget(&self, namespace: &str, pod: &str) {
        self.shared.lock().forwards.remove(&(namespace.to_owned(), pod.to_owned()));
    }

    /// Whether every fault has happened.
    #[must_use]
    pub fn faults_used(&self) -> bool {
        self.shared.lock().faults.values().all(VecDeque::is_empty)
    }

    /// Applies everything that was recorded, in its real order, `speed` times as fast.
    pub fn replay(&self, speed: u32) {
        self.replay_from(0, u64::MAX, speed);
    }

    /// The part of the recording in which `from <= after_ms < to`.
    pub fn replay_from(&self, from: u64, to: u64, speed: u32) {
        let began = Instant::now();
        for recorded in self.recording.iter().filter(|r| (from..to).contains(&r.after_ms)) {
            let due = Duration::from_millis(recorded.after_ms - from) / speed.max(1);
            thread::sleep(due.saturating_sub(began.elapsed()));
            self.event(&recorded.resource, recorded.event.clone());
        }
    }

    /// One event as a real watch carries it: `{"type", "object"}`.
    pub fn event(&self, resource: &str, event: Value) {
        self.shared.lock().store.event(resource, event);
        self.shared.notify();
    }

    /// Adds or changes an object; the server numbers the version.
    pub fn put(&self, resource: &str, object: Value) {
        self.shared.lock().store.put(resource, object);
        self.shared.notify();
    }

    /// Deletes an object; the server numbers the version.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) {
        self.shared.lock().store.delete(resource, namespace, name);
        self.shared.notify();
    }

    /// Forgets the events so far: a watch from an older version gets 410.
    pub fn compact(&self) {
        self.shared.lock().store.compact();
    }

    /// Closes every stream, as a server does that is restarted.
    pub fn drop_streams(&self) {
        self.shared.lock().store.epoch += 1;
        self.shared.notify();
    }

    /// The objects as they stand, as `kubectl get -o json` prints them.
    #[must_use]
    pub fn objects(&self) -> String {
        self.shared.lock().store.as_list().to_string()
    }

    /// How often a request was made whose `METHOD path?query` contains `part`.
    #[must_use]
    pub fn requests(&self, part: &str) -> usize {
        self.requests_with(&[part])
    }

    /// How often a request was made whose `METHOD path?query` contains all of `parts`.
    #[must_use]
    pub fn requests_with(&self, parts: &[&str]) -> usize {
        let state = self.shared.lock();
        state.requests.iter().filter(|r| parts.iter().all(|part| r.contains(part))).count()
    }

    /// Whether every resource has a watch that has been sent everything.
    #[must_use]
    pub fn all_delivered(&self) -> bool {
        let state = self.shared.lock();
        store::RESOURCES.iter().all(|r| state.idle.get(r.plural).is_some_and(|n| *n > 0))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.notify();
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

/// Polls: the listener may be in another network namespace, where nobody here can connect to wake
/// it.
fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stopped() {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(2));
            continue;
        };
        // Inherited or not, depending on the system.
        if stream.set_nonblocking(false).is_err() {
            continue;
        }
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            // A client that went away is its own affair.
            let _ = serve::connection(stream, &shared);
        });
    }
}
