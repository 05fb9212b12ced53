//! The observed graph as a document: what `/v1/graph` serves, what files hold, what `merge` joins.
//!
//! `apiVersion: guardrail.dev/v2`, `kind: GraphSnapshot`. Everything is sorted, so equal graphs are
//! equal bytes. Fields are added freely and renamed never. Numbers are kept per source and side;
//! the numbers that stand directly in an edge are computed from those ([`EdgeRecord::sources`]) so
//! that `merge` can take the maximum per source and stay commutative, associative and idempotent.

pub(crate) mod behind;
pub(crate) mod counters;
mod coverage;
pub(crate) mod derive;
mod document;
pub(crate) mod facts;
pub(crate) mod intervals;
pub mod marks;
mod merge;
pub(crate) mod nodes;
pub(crate) mod owners;
mod parts;
mod places;
pub(crate) mod presence;
mod read;
mod records;
mod redirected;
mod remote;
mod revisions;
mod services;
pub mod span;
pub(crate) mod unresolved;
mod view;
pub(crate) mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use counters::{EdgeCounter, EdgeCounters, OUTCOMES};
pub use coverage::{NotRun, Starts, WorkloadTime};
pub use document::{Chunks, Document};
pub use merge::{answer_within, merge, merge_within};
pub use nodes::{KnownNode, NodeCoverage, NodeDescription, NodeTime, range_addresses};
pub use parts::{FactsError, Packed};
pub use places::Window;
pub use presence::{LossTime, PodPresence, Witness};
pub use read::{SnapshotError, write_lines};
pub use records::EachEdge;
pub use revisions::{Revision, RevisionError, SourceRevision, check_revisions};
use serde::{Deserialize, Serialize};
pub use services::{BackendEntry, ServiceEntry, ServicePortEntry};
pub use unresolved::{FlowTime, UnresolvedEntry, UnresolvedFlow};
pub use view::NodeView;

pub use crate::selector::{BadSelector, LabelSelector, SelectorOperator, SelectorRequirement};
use crate::{
    observe::LossClass,
    peer::{Peer, Protocol, WorkloadRef},
    time::Timestamp,
};

/// `apiVersion` of a snapshot.
pub const API_VERSION: &str = "guardrail.dev/v2";
/// `kind` of a snapshot.
pub const KIND: &str = "GraphSnapshot";

/// The observed graph over a window, with what is known about its completeness.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KIND`].
    pub kind: String,
    /// What follows uses snake_case names (docs/design.md#field-names).
    #[serde(flatten)]
    pub body: Body,
}

/// The content of a [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Body {
    /// What the rest follows from, where that is of several epochs: the document of each, and one
    /// of all that has no revision. Without it, the rest is all there is.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "parts::packed")]
    pub facts: Vec<Packed>,
    /// Whose counts are in here, also of those that saw nothing.
    #[serde(default)]
    pub sources: BTreeSet<Source>,
    /// When was observed, by whom.
    pub window: Window,
    /// When a source observed, where that is not all of its node's window: one of several sources
    /// on that node. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_windows: Vec<SourceWindow>,
    /// Revisions of the sources that have one, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<SourceRevision>,
    /// How complete it is.
    pub coverage: Coverage,
    /// Workloads known in the window, sorted.
    pub workloads: Vec<WorkloadEntry>,
    /// Labels of which `workloads` does not say all: those that not every generation of a workload
    /// had, or not with the same value. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub label_changes: Vec<LabelChanges>,
    /// Services known in the window, sorted.
    pub services: Vec<ServiceEntry>,
    /// Who owned which address when, sorted.
    pub addresses: Vec<AddressEntry>,
    /// Client-side records of virtual addresses, from which edges with `via` follow, sorted.
    pub service_flows: Vec<ServiceFlow>,
    /// Flows with pods of other nodes, of agents that know only the pods of their own node: `merge`
    /// makes edges of them. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote_flows: Vec<RemoteFlow>,
    /// Nodes whose agent knows only the pods of its own node, with the time of that word. Empty:
    /// every source knows all pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub own_pods_as_of: BTreeMap<String, Timestamp>,
    /// Which sources say which pods were there. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub witnesses: Vec<Witness>,
    /// Which pods were there when. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub presence: Vec<PodPresence>,
    /// Which nodes there were when. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeTime>,
    /// The edges, sorted by key.
    #[serde(deserialize_with = "records::edges")]
    pub edges: Vec<EdgeRecord>,
}

/// A half-open interval of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Interval {
    /// Start (inclusive).
    pub from: Timestamp,
    /// End (exclusive).
    pub to: Timestamp,
}

/// When a source observed: from its first to its last moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceWindow {
    /// The source.
    pub source: Source,
    /// When it observed. Backwards: nobody knows.
    #[serde(flatten)]
    pub window: Interval,
}

/// How complete the observation is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// No loss of class `edge`, no gap, every expected node observed, and, where it is known which
    /// pods were there, all of their time and their starts covered.
    pub complete: bool,
    /// The share of pod-time that is covered, 0 to 1, rounded down: 1 if and only if all is.
    /// `None`: it is not known which pods were there.
    #[serde(default)]
    pub coverage: Option<f64>,
    /// Pods that started; `None` as `coverage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts: Option<Starts>,
    /// Nodes observed and expected.
    pub nodes: NodeCoverage,
    /// What the agents heard of the cluster; `None` in snapshots of agents that did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<InventoryState>,
    /// Workloads whose pods were there, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_workload: Vec<WorkloadTime>,
    /// Workloads none of whose pods was there, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_run: Vec<NotRun>,
    /// Losses per source and reason, sorted; only reasons with a count.
    pub losses: Vec<LossEntry>,
    /// Unresolved flows per source and reason, sorted; only reasons with a count.
    pub unresolved: Vec<UnresolvedEntry>,
    /// Workloads that are incomplete, with the reasons, sorted. A workload that is not here is
    /// complete if every node that hosts it is observed.
    pub workloads: Vec<WorkloadCoverage>,
}

/// Which of the lists that name flows (nodes, pods, Services) were heard, at least once since the
/// agent started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InventoryState {
    /// None, by any agent: nothing is known of the cluster.
    Missing,
    /// Some, or not by every agent.
    Partial,
    /// All, by every agent.
    Complete,
}

impl InventoryState {
    /// What two agents heard together.
    pub(crate) fn joined(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if a == b { a } else { Self::Partial }),
            (a, b) => a.or(b),
        }
    }
}

/// A number of losses of one kind at one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossEntry {
    /// Who counted.
    pub source: Source,
    /// [`crate::observe::LossReason::as_str`].
    pub reason: String,
    /// `hint` or `edge`.
    pub class: LossClass,
    /// How many.
    pub count: u64,
    /// When, sorted; `None`: nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<Vec<LossTime>>,
}

/// Why a workload's edges may be incomplete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadCoverage {
    /// The workload, or the node for host processes.
    pub peer: Peer,
    /// Always false here.
    pub complete: bool,
    /// Reasons: a loss reason, an unresolved reason, `inventory_missing`, or one with the node it
    /// is about: `node_unobserved:NAME`, `window_gap:NAME`, `window_apart:NAME` (another node was
    /// watched at no time that this one was), `losses:NAME` (events were lost there, where pods of
    /// the workload ran earlier).
    pub reasons: BTreeSet<String>,
}

/// One epoch of one agent's observation on one node: what it counts belongs to exactly one. A
/// restored state continues its instance, and the epoch that was open.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Source {
    /// Node name.
    pub node: String,
    /// Agent instance: random, kept with the state.
    pub instance: String,
    /// When the epoch began: no two of an instance have the same. `None`: of a snapshot that knows
    /// no epochs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Timestamp>,
}

/// A workload with what a policy needs to know of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadEntry {
    /// Its name.
    #[serde(flatten)]
    pub workload: WorkloadRef,
    /// The selector that selects this workload's pods and no other's in the namespace; `None` if
    /// there is no stable one (see `selector_advice`).
    pub selector: Option<LabelSelector>,
    /// Why there is no usable selector, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector_advice: Option<String>,
    /// Labels that all its pods share, without generated ones.
    pub labels: BTreeMap<String, String>,
    /// When a CronJob runs: `spec.schedule`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Host-network workload: policies do not apply to it (docs/semantics.md A30).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
    /// Live pods per node name (`""`: not scheduled).
    pub pods: BTreeMap<String, Vec<PodEntry>>,
    /// Nodes that hosted a pod of it beside those in `pods`, with the last time this was known. The
    /// name [`MORE_NODES`] stands for nodes that were too many to keep.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ran_on: BTreeMap<String, Timestamp>,
    /// When this was known to be so; `merge` keeps the later word.
    #[serde(default)]
    pub as_of: Timestamp,
}

/// Labels that differ between the generations of a workload, as snapshots of different times or
/// nodes know them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelChanges {
    /// The workload.
    #[serde(flatten)]
    pub workload: WorkloadRef,
    /// The first two values that each such label had; one, if some generation was without it and
    /// all others had this one.
    pub labels: BTreeMap<String, BTreeSet<String>>,
}

impl LabelChanges {
    /// Labels that had several values: versions, charts, runs. They are no identity. A label that
    /// was added or taken away has one.
    pub fn changing(&self) -> impl Iterator<Item = &str> {
        self.labels.iter().filter(|(_, values)| values.len() > 1).map(|(key, _)| key.as_str())
    }
}

/// In [`WorkloadEntry::ran_on`]: further nodes whose names were not kept. It is no node name.
pub const MORE_NODES: &str = "*";

/// A pod of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodEntry {
    /// Pod name.
    pub name: String,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Named container ports: `(name, protocol, number)`, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
}

/// A named container port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedPort {
    /// `containerPort.name`.
    pub name: String,
    /// Protocol as in Kubernetes (`TCP`, `UDP`, `SCTP`): the text as it was read, whatever it is.
    pub protocol: String,
    /// `containerPort.containerPort`.
    pub port: u16,
}

/// Who owned an address when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddressEntry {
    /// The address.
    pub address: IpAddr,
    /// Start of ownership, `None`: before the window.
    pub from: Option<Timestamp>,
    /// End of ownership, `None`: still.
    pub to: Option<Timestamp>,
    /// The owner.
    pub peer: Peer,
    /// The pod, if it is one: `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// From the beginning to the end of the observation of those who say so: `from: null` and
    /// `to: null` reach no further. `None`: all of this snapshot's window. Backwards: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<Interval>,
    /// The agent's own record (a cgroup's socket held the address), not only the API's word.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proven: bool,
    /// Of a node's address: whether the API lists it as the node's (`status.addresses`, a tunnel
    /// address in an annotation, the bridge address of a pod range), or only a socket of the node
    /// was seen with it. `None`: nobody knows. `merge` keeps the greater.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed: Option<bool>,
}

/// A client's use of a virtual address: seen at the client only, before address translation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceFlow {
    /// The client.
    pub client: Peer,
    /// `namespace/name:port` of the Service.
    pub service: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Service port asked for (for a node port: the Service port behind it).
    pub port: u16,
    /// Marks that the edges behind it take over (`proxied`).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub marks: BTreeSet<String>,
    /// As [`EdgeRecord::node_workloads`], of the client.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub node_workloads: BTreeSet<String>,
    /// When those uses were of which nobody knows who answered; computed anew with each snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_unknown: Option<Interval>,
    /// Counts per source, sorted.
    pub sources: Vec<SourceCounts>,
}

/// A flow that takes other nodes' records to be told: its other end is a pod of another node, which
/// the agent does not know (`--inventory-scope node`), or it arrived at a proxy's port, and the
/// client's own record tells what it dialled (mark `redirected`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemoteFlow {
    /// The end on the agent's node.
    pub local: Peer,
    /// Which end that is.
    pub side: Side,
    /// The address of the other end.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// The server's port.
    pub port: u16,
    /// Name of that port, if the server is the end on the agent's node and names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
    /// Marks that the edge behind it takes over.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub marks: BTreeSet<String>,
    /// As [`EdgeRecord::node_workloads`], of the end on the agent's node.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub node_workloads: BTreeSet<String>,
    /// Whose those established connections may be that no edge stands for: all who had the address
    /// at the time, and the address itself, unless nobody else can have had it. `None`: there is
    /// none. It follows from the other facts and is computed anew with each snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_be: Option<BTreeSet<Peer>>,
    /// Counts per source, sorted.
    pub sources: Vec<SourceCounts>,
}

/// Which end of the edge counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The client's node.
    Client,
    /// The server's node.
    Server,
}

/// Counts of one source at one side of an edge. Bytes are as the *client* sees them, on both sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceCounts {
    /// Who counted.
    pub source: Arc<Source>,
    /// At which end.
    pub side: Side,
    /// The numbers.
    #[serde(flatten)]
    pub counts: Counts,
    /// First open or attempt.
    pub first_seen: Timestamp,
    /// Last open or attempt.
    pub last_seen: Timestamp,
    /// These are of [`Body::remote_flows`], from which they are computed again when snapshots are
    /// joined.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub by_merge: bool,
}

/// Evidence in numbers. None of them wraps. There are 100,000 of these at once: what stays small is
/// short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Connections established (TCP), datagrams sent by the client (UDP).
    pub opened: u64,
    /// Connections that were open already when an agent started.
    pub found: u32,
    /// Connections that were open when the epoch began, and stand as opened or found in an earlier
    /// one: evidence of this one, too. Never added up over the epochs of a node, of which the
    /// greatest counts.
    #[serde(skip_serializing_if = "is_zero")]
    pub open: u32,
    /// Attempts refused.
    pub refused: u64,
    /// Attempts never answered.
    pub unanswered: u64,
    /// Attempts that failed with "unreachable".
    pub unreachable: u32,
    /// Connections that came about and then broke off: what was sent was never answered any more
    /// (ETIMEDOUT). They stand in `opened` or `found`, too, if they began in this epoch.
    #[serde(skip_serializing_if = "is_zero")]
    pub broken: u32,
    /// Payload bytes from client to server.
    pub bytes_sent: u64,
    /// Payload bytes from server to client.
    pub bytes_received: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// An edge: `(client, server, protocol, port)` with its evidence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EdgeRecord {
    /// The client.
    pub client: EdgePeer,
    /// The server.
    pub server: EdgePeer,
    /// Protocol.
    pub protocol: Protocol,
    /// The pod port (or the port of the external server).
    pub port: u16,
    /// Name of that port at the server's pods, if they name it.
    pub port_name: Option<String>,
    /// Services through which the client reached it: `namespace/name:port`. Where it was reached
    /// directly too, `counts` is the sum of both, and `sources` has what was direct.
    pub via: BTreeSet<String>,
    /// `client`, `server`, or both.
    pub seen_by: BTreeSet<Side>,
    /// The evidence: per side the sum over sources, then the greater of the two sides.
    #[serde(flatten)]
    pub counts: Counts,
    /// First open or attempt.
    pub first_seen: Timestamp,
    /// Last open or attempt.
    pub last_seen: Timestamp,
    /// Whether this evidence supports an allow rule (docs/design.md#support).
    pub supported: bool,
    /// `inferred`, `one-way`, `found-at-start`, `proxied`, `multicast`, … sorted.
    pub marks: BTreeSet<String>,
    /// Workloads of host-network pods behind a `Node` end: `namespace/Owner/name`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub node_workloads: BTreeSet<String>,
    /// Counts per source and side, sorted by (source, side).
    pub sources: Vec<SourceCounts>,
}

impl EdgeRecord {
    /// Whether no policy judges it ([`marks::SET_ASIDE`]).
    #[must_use]
    pub fn is_set_aside(&self) -> bool {
        marks::set_aside(&self.marks)
    }
}

/// A peer with what stands beside it in an edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct EdgePeer {
    /// The canonical peer, shared by the edges of a document.
    #[serde(flatten)]
    pub peer: Arc<Peer>,
    /// DNS names that clients had asked for, for external peers.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub names: BTreeSet<String>,
}

impl Snapshot {
    /// A snapshot of nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self { api_version: API_VERSION.to_owned(), kind: KIND.to_owned(), body: Body::default() }
    }
}
