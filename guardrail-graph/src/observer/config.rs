//! Bounds and names of an observer.

use std::time::Duration;

use crate::{inventory::Kind, selector::LabelSelector, time::Timestamp};

/// Who observes, since when, and the bounds of everything that could grow.
#[derive(Clone, Debug)]
pub struct ObserverConfig {
    /// This node's name (`metadata.name`).
    pub node: String,
    /// This agent's instance: random per state; a restored state keeps its own.
    pub instance: String,
    /// Run of the agent, raised with each start: first half of the revision of each document. 0:
    /// its documents have none.
    pub run: u32,
    /// Only the pods of this node are known (`--inventory-scope node`): what goes to or comes from
    /// another node's pod range is kept by its address, and `merge` names it.
    pub own_pods_only: bool,
    /// Nodes with labels that one of these selects have no agent, as a person says.
    pub unobservable: Vec<LabelSelector>,
    /// Kinds whose first lists ([`crate::inventory::Change::Replace`]) are still to come. Until
    /// each is in or unavailable ([`super::Observer::list_unavailable`]), an address that nobody is
    /// known to own may be anybody's, and none passes for an external peer.
    pub awaited: Vec<Kind>,
    /// The inventory comes from watches, which say how far they have told
    /// ([`crate::inventory::Change::Heard`]): what they said of an address holds no longer than
    /// that. A file stands for itself at any time.
    pub watched: bool,
    /// When the hooks were attached: the start of the window.
    pub started: Timestamp,
    /// How long a flow waits for its pod before it is counted as `pod_unknown`.
    pub pod_timeout: Duration,
    /// How long a UDP exchange of unknown role waits for evidence before it is counted as
    /// `role_unknown`.
    pub role_timeout: Duration,
    /// Whether proxies are seen being told what redirected connections dialled; then what arrives
    /// at a proxy's port, and what a pod with a proxy calls, waits for that.
    pub redirects: bool,
    /// Half-width of the doubt around a change of an address's owner that only the API server
    /// reported.
    pub guard: Duration,
    /// At most this long may pass between two sweeps of the kernel's map: opens of one delta are no
    /// older than this.
    pub sweep_interval: Duration,
    /// How long a deleted pod, and who owned an address, are remembered.
    pub tombstone_ttl: Duration,
    /// Flows that may wait for the next word of who has which address. More of them become remote
    /// flows.
    pub max_held: usize,
    /// Flows that may wait.
    pub max_pending: usize,
    /// Edges (and service flows) that are kept apart. Beyond it a flow to a new edge is counted as
    /// lost.
    pub max_edges: usize,
    /// Of these at most so many for one workload (or node) at the end that is observed here.
    pub max_edges_per_peer: usize,
    /// External client addresses that are kept apart per server port.
    pub max_external_clients: usize,
    /// External server addresses that are kept apart per client and port.
    pub max_external_servers: usize,
    /// Of those that were only tried in vain (a scan) at most so many are kept apart.
    pub max_failed_servers: usize,
    /// DNS names kept, over all clients.
    pub max_names: usize,
    /// Ended endpoints of Services that flows may have reached. Of more, those that ended first are
    /// forgotten and counted.
    pub max_ended_endpoints: usize,
    /// cgroups remembered, removed ones included.
    pub max_cgroups: usize,
    /// Listening sockets and served UDP ports remembered.
    pub max_listeners: usize,
}

impl ObserverConfig {
    /// The defaults for an agent on `node`.
    #[must_use]
    pub fn new(node: impl Into<String>, instance: impl Into<String>, started: Timestamp) -> Self {
        Self {
            node: node.into(),
            instance: instance.into(),
            started,
            run: 0,
            own_pods_only: false,
            unobservable: Vec::new(),
            awaited: Vec::new(),
            watched: false,
            pod_timeout: Duration::from_secs(10),
            role_timeout: Duration::from_secs(60),
            redirects: true,
            guard: Duration::from_secs(5),
            sweep_interval: Duration::from_secs(15),
            tombstone_ttl: Duration::from_secs(3600),
            max_held: 16_384,
            max_pending: 16_384,
            max_edges: 100_000,
            max_edges_per_peer: 50_000,
            max_external_clients: 64,
            max_external_servers: 32_768,
            max_failed_servers: 512,
            max_names: 32_768,
            max_ended_endpoints: 16_384,
            max_cgroups: 32_768,
            max_listeners: 65_536,
        }
    }
}
