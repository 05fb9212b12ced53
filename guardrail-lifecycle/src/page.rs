//! The document that the page shows (`ui/`): one JSON value, whether it stands in a file, is served
//! by the command, or by a collector. The page judges nothing: what it says follows from here.
//!
//! Peers are numbered, so that 10,000 edges stay small; what one client alone was told of an
//! address (its DNS names) makes a peer of its own, because it holds for that client only.

mod answers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use answers::{PageSide, PageSideState, PageVerdict, PeerPolicies, Preview};

use guardrail_graph::{
    Peer, Snapshot, Timestamp,
    peer::Protocol,
    snapshot::{Counts, EdgePeer, Side, WorkloadEntry},
};
use serde::Serialize;

use crate::{blocked::BlockedAttempts, drift::Report, status::NamespaceStatus};

/// `kind` of the document.
pub const KIND: &str = "Page";
/// `apiVersion` of the document.
pub const API_VERSION: &str = "guardrail.dev/v1";

/// Everything that the page shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Page<'a> {
    /// [`API_VERSION`].
    #[serde(rename = "apiVersion")]
    pub api_version: &'static str,
    /// [`KIND`].
    pub kind: &'static str,
    /// Start of the observation; `None`: nothing was observed.
    pub from: Option<Timestamp>,
    /// End of the observation.
    pub to: Option<Timestamp>,
    /// How many nodes were observed.
    pub nodes: usize,
    /// Why the observation is incomplete, one sentence each; empty if it is complete.
    pub incomplete: Vec<String>,
    /// Both ends of edges, and workloads without an edge, sorted.
    pub peers: Vec<PagePeer<'a>>,
    /// The edges, sorted as in the snapshot.
    pub edges: Vec<PageEdge<'a>>,
    /// What the page was read from, and when; empty: it stands in a file and does not change.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<PageSource>,
    /// Why what is said of policies may be wrong, one sentence each.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub unproven_because: BTreeSet<String>,
    /// Namespaces whose default-deny could not be written; `None`: nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_deny: Option<Preview>,
    /// The environment of the plan; `None` without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// What `guardrail status` answers; `None`: nothing is known of policies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Vec<NamespaceStatus>>,
    /// What `guardrail blocked` answers; `None`: nothing is known of policies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked: Option<Vec<BlockedAttempts>>,
    /// What `guardrail drift` answers; `None`: there are no policies to compare with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<Report>,
}

/// Something that the page was read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageSource {
    /// As the command line names it.
    pub name: String,
    /// When it was read as it is shown.
    pub read: Timestamp,
    /// Why it could not be read again since; `None`: it could.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One end of edges.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PagePeer<'a> {
    /// Who it is, with the DNS names that the client had asked for.
    #[serde(flatten)]
    pub peer: EdgePeer,
    /// What is known of the workload; `None`: it is none, or nothing is known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<About<'a>>,
    /// Why its edges may be incomplete; empty: they are complete.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub incomplete: BTreeSet<&'a str>,
    /// Which policies in force isolate its pods; `None`: it has none, or no policies are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies: Option<PeerPolicies>,
}

/// What is known of a workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct About<'a> {
    /// Live pods.
    pub pods: usize,
    /// On how many nodes.
    pub nodes: usize,
    /// Labels that all its pods share.
    pub labels: &'a BTreeMap<String, String>,
    /// Policies do not apply to it.
    pub host_network: bool,
    /// Why no policy can select it, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector_advice: Option<&'a str>,
}

/// An edge with its evidence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PageEdge<'a> {
    /// Index of the client in [`Page::peers`].
    pub client: usize,
    /// Index of the server in [`Page::peers`].
    pub server: usize,
    /// Protocol.
    pub protocol: Protocol,
    /// The pod port (or the port of the external server).
    pub port: u16,
    /// Name of that port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_name: Option<&'a str>,
    /// Services through which the client reached it: `namespace/name:port`.
    pub via: &'a BTreeSet<String>,
    /// Which ends saw it.
    pub seen_by: &'a BTreeSet<Side>,
    /// The evidence in numbers.
    #[serde(flatten)]
    pub counts: Counts,
    /// First open or attempt.
    pub first_seen: Timestamp,
    /// Last open or attempt.
    pub last_seen: Timestamp,
    /// Whether the evidence supports an allow rule.
    pub supported: bool,
    /// `inferred`, `one-way`, `tunnel`, …
    pub marks: &'a BTreeSet<String>,
    /// Workloads of host-network pods behind a node: `namespace/Owner/name`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub node_workloads: &'a BTreeSet<String>,
    /// What the policies in force say of it; `None`: no policies are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<PageVerdict>,
    /// Whether it would pass once default-deny is in force; `None`: nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_default_deny: Option<bool>,
}

impl<'a> Page<'a> {
    /// The document of a snapshot; `incomplete` says in sentences why it is incomplete.
    #[must_use]
    pub fn new(snapshot: &'a Snapshot, incomplete: Vec<String>) -> Self {
        let body = &snapshot.body;
        let mut peers: BTreeSet<EdgePeer> =
            body.edges.iter().flat_map(|edge| [&edge.client, &edge.server]).cloned().collect();
        let known: BTreeMap<Arc<Peer>, &WorkloadEntry> =
            body.workloads.iter().map(|entry| (Arc::new(Peer::Workload(entry.workload.clone())), entry)).collect();
        peers.extend(known.keys().map(|peer| EdgePeer { peer: Arc::clone(peer), names: BTreeSet::new() }));
        let numbers: BTreeMap<EdgePeer, usize> = peers.iter().cloned().zip(0..).collect();
        let reasons: BTreeMap<&Peer, &'a BTreeSet<String>> =
            body.coverage.workloads.iter().map(|workload| (&workload.peer, &workload.reasons)).collect();
        let edges = body.edges.iter().map(|edge| PageEdge {
            client: numbers[&edge.client],
            server: numbers[&edge.server],
            protocol: edge.protocol,
            port: edge.port,
            port_name: edge.port_name.as_deref(),
            via: &edge.via,
            seen_by: &edge.seen_by,
            counts: edge.counts,
            first_seen: edge.first_seen,
            last_seen: edge.last_seen,
            supported: edge.supported,
            marks: &edge.marks,
            node_workloads: &edge.node_workloads,
            verdict: None,
            after_default_deny: None,
        });
        let edges = edges.collect();
        let peers = peers.into_iter().map(|peer| PagePeer {
            about: known.get(&peer.peer).map(|entry| about(entry)),
            incomplete: reasons.get(&*peer.peer).into_iter().flat_map(|r| r.iter().map(String::as_str)).collect(),
            policies: None,
            peer,
        });
        Self {
            api_version: API_VERSION,
            kind: KIND,
            from: body.window.from,
            to: body.window.to,
            nodes: body.window.nodes.len(),
            incomplete,
            peers: peers.collect(),
            edges,
            sources: Vec::new(),
            unproven_because: BTreeSet::new(),
            default_deny: None,
            environment: None,
            status: None,
            drift: None,
            blocked: None,
        }
    }
}

fn about(entry: &WorkloadEntry) -> About<'_> {
    About {
        pods: entry.pods.values().map(Vec::len).sum(),
        nodes: entry.pods.iter().filter(|(node, pods)| !node.is_empty() && !pods.is_empty()).count(),
        labels: &entry.labels,
        host_network: entry.host_network,
        selector_advice: entry.selector_advice.as_deref(),
    }
}
