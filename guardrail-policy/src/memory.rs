//! What earlier exports allowed. A rule is never removed because its evidence grew old
//! (docs/design.md#policy, 8).
//!
//! An export writes down every edge that supports it, in `evidence.json` ([`Written`]). The next
//! one reads that back ([`Memory`]), and an edge that its own snapshot no longer shows is put
//! beside those that it shows, marked [`REMEMBERED`]: from there on plan, proof and report treat it
//! as any other. It is forgotten if one of its ends is gone, or if a person says after how long.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use guardrail_graph::{
    Peer, Protocol, Snapshot, Timestamp, WorkloadRef,
    snapshot::{Body, Counts, EdgePeer, EdgeRecord, InventoryState, LabelSelector, Side, SourceCounts, WorkloadEntry},
};
use serde::{Deserialize, Serialize};

use crate::generate::{Decision, EdgeUse, Options, is_established};

/// Mark of an edge that an earlier export allowed and the snapshot does not show.
pub const REMEMBERED: &str = "remembered";
/// `kind` of `evidence.json`.
pub const KIND: &str = "ExportEvidence";

/// Kinds of controllers that the API server lists to agents, beside pods themselves: one that is in
/// no list is gone.
const LISTED: [&str; 7] =
    ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job", "Pod"];

/// Edges that earlier exports allowed, and what has to be known of their ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    edges: BTreeMap<EdgeKey, EdgeRecord>,
    workloads: BTreeMap<WorkloadRef, WorkloadEntry>,
}

/// Client, server, protocol, port.
type EdgeKey = (Arc<Peer>, Arc<Peer>, Protocol, u16);

fn key(edge: &EdgeRecord) -> EdgeKey {
    (Arc::clone(&edge.client.peer), Arc::clone(&edge.server.peer), edge.protocol, edge.port)
}

/// Why an edge of an earlier export supports no rule any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// This end is in no list of the cluster.
    Gone(Peer),
    /// It was last seen before the time that a person named.
    Unused,
}

/// An edge that an earlier export allowed and this one does not.
#[derive(Clone, Debug, PartialEq)]
pub struct Forgotten {
    /// As it was seen then.
    pub edge: EdgeRecord,
    /// Why.
    pub why: Why,
}

/// The text is no evidence of an export.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Not JSON, or not of the right shape.
    #[error("{0}")]
    Invalid(#[from] serde_json::Error),
    /// Another document.
    #[error("this is no {KIND}")]
    WrongKind,
}

/// An edge as it is written down: what a rule for it needs.
#[derive(Debug, Serialize, Deserialize)]
struct KeptEdge<'a> {
    client: Cow<'a, EdgePeer>,
    server: Cow<'a, EdgePeer>,
    protocol: Protocol,
    port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port_name: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "is_empty")]
    via: Cow<'a, BTreeSet<String>>,
    #[serde(default, skip_serializing_if = "is_empty")]
    marks: Cow<'a, BTreeSet<String>>,
    #[serde(default, skip_serializing_if = "is_empty")]
    node_workloads: Cow<'a, BTreeSet<String>>,
    #[serde(default)]
    seen_by: BTreeSet<Side>,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// Where a node is the client: whose sockets the node's connections came from.
    #[serde(default, skip_serializing_if = "<[SourceCounts]>::is_empty")]
    sources: Cow<'a, [SourceCounts]>,
    #[serde(flatten)]
    counts: Counts,
}

fn is_empty(set: &BTreeSet<String>) -> bool {
    set.is_empty()
}

/// A workload as it is written down: what names its pods in a rule.
#[derive(Debug, Serialize, Deserialize)]
struct KeptWorkload<'a> {
    #[serde(flatten)]
    workload: Cow<'a, WorkloadRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<Cow<'a, LabelSelector>>,
    #[serde(default)]
    labels: Cow<'a, BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    host_network: bool,
}

/// What an export writes down for the next one.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Written<'a> {
    edges: Vec<KeptEdge<'a>>,
    workloads: Vec<KeptWorkload<'a>>,
}

impl Memory {
    /// Reads what an export wrote down.
    ///
    /// # Errors
    /// If the text is no `evidence.json`.
    pub fn read(text: &str) -> Result<Self, MemoryError> {
        #[derive(Deserialize)]
        struct Document<'a> {
            #[serde(default)]
            kind: String,
            #[serde(default)]
            memory: Written<'a>,
        }
        let Document { kind, memory } = serde_json::from_str(text)?;
        if kind != KIND {
            return Err(MemoryError::WrongKind);
        }
        let mut read = Self::default();
        for kept in memory.edges {
            let edge = EdgeRecord::from(kept);
            read.edges.insert(key(&edge), edge);
        }
        for KeptWorkload { workload, selector, labels, host_network } in memory.workloads {
            let workload = workload.into_owned();
            let entry = WorkloadEntry {
                workload: workload.clone(),
                selector: selector.map(Cow::into_owned),
                selector_advice: None,
                labels: labels.into_owned(),
                schedule: None,
                host_network,
                pods: BTreeMap::new(),
                ran_on: BTreeMap::new(),
                as_of: Timestamp::default(),
            };
            read.workloads.insert(workload, entry);
        }
        Ok(read)
    }

    /// Adds what another export wrote down: of one edge the later word counts.
    pub fn join(&mut self, other: Self) {
        for (key, edge) in other.edges {
            let known = self.edges.entry(key).or_insert_with(|| edge.clone());
            if known.last_seen < edge.last_seen {
                *known = edge;
            }
        }
        for (name, workload) in other.workloads {
            self.workloads.entry(name).or_insert(workload);
        }
    }
}

impl From<KeptEdge<'_>> for EdgeRecord {
    fn from(kept: KeptEdge<'_>) -> Self {
        Self {
            client: kept.client.into_owned(),
            server: kept.server.into_owned(),
            protocol: kept.protocol,
            port: kept.port,
            port_name: kept.port_name.map(Cow::into_owned),
            via: kept.via.into_owned(),
            seen_by: kept.seen_by,
            counts: kept.counts,
            first_seen: kept.first_seen,
            last_seen: kept.last_seen,
            supported: true,
            marks: kept.marks.into_owned(),
            node_workloads: kept.node_workloads.into_owned(),
            sources: kept.sources.into_owned(),
        }
    }
}

/// Puts the edges of the memory that the snapshot does not show beside those that it shows, and
/// says which are forgotten.
pub(crate) fn recall<'a>(snapshot: &'a Snapshot, options: &Options) -> (Cow<'a, Snapshot>, Vec<Forgotten>) {
    let memory = &options.memory;
    let mut forgotten = Vec::new();
    if memory.edges.is_empty() {
        return (Cow::Borrowed(snapshot), forgotten);
    }
    let shown: BTreeSet<EdgeKey> = snapshot.body.edges.iter().filter(|e| is_established(e)).map(key).collect();
    let lists = Lists::new(&snapshot.body, options);
    let mut remembered: BTreeMap<EdgeKey, EdgeRecord> = BTreeMap::new();
    for (key, edge) in memory.edges.iter().filter(|(key, _)| !shown.contains(*key)) {
        let gone = [&*edge.client.peer, &*edge.server.peer].into_iter().find(|peer| lists.are_without(peer));
        let why = match gone {
            Some(peer) => Some(Why::Gone(peer.clone())),
            None => options.forget_before.filter(|before| edge.last_seen < *before).map(|_| Why::Unused),
        };
        match why {
            Some(why) => forgotten.push(Forgotten { edge: edge.clone(), why }),
            None => {
                let mut edge = edge.clone();
                edge.marks.insert(REMEMBERED.to_owned());
                remembered.insert(key.clone(), edge);
            }
        }
    }
    if remembered.is_empty() {
        return (Cow::Borrowed(snapshot), forgotten);
    }
    let mut snapshot = snapshot.clone();
    let Body { edges, workloads, .. } = &mut snapshot.body;
    let ends = remembered.values().flat_map(|edge| [&*edge.client.peer, &*edge.server.peer]).filter_map(Peer::workload);
    let described: BTreeSet<&WorkloadRef> = workloads.iter().map(|entry| &entry.workload).collect();
    let missing: BTreeSet<&WorkloadRef> = ends.filter(|end| !described.contains(end)).collect();
    let missing: Vec<_> = missing.into_iter().filter_map(|name| memory.workloads.get(name).cloned()).collect();
    workloads.extend(missing);
    workloads.sort_by(|a, b| a.workload.cmp(&b.workload));
    // Of these only attempts were seen this time.
    edges.retain(|edge| !remembered.contains_key(&key(edge)));
    edges.extend(remembered.into_values());
    edges.sort_by(|a, b| {
        let key = |edge: &EdgeRecord| (edge.protocol, edge.port);
        (&*a.client.peer, &*a.server.peer, key(a)).cmp(&(&*b.client.peer, &*b.server.peer, key(b)))
    });
    (Cow::Owned(snapshot), forgotten)
}

/// What is listed of the cluster.
struct Lists<'a> {
    options: &'a Options,
    /// The snapshot rests on complete lists.
    complete: bool,
    workloads: BTreeMap<&'a WorkloadRef, &'a WorkloadEntry>,
    nodes: BTreeSet<&'a str>,
    /// What was described before this time was in no list at the end of the window.
    end: Option<Timestamp>,
    /// CronJobs are listed themselves, not only known by their pods.
    cron_jobs: bool,
}

impl<'a> Lists<'a> {
    fn new(body: &'a Body, options: &'a Options) -> Self {
        let ends = body.coverage.nodes.observed.iter().filter_map(|node| body.window.nodes.get(node));
        let end = ends.filter_map(|intervals| intervals.iter().map(|i| i.to).max()).min();
        let nodes = body.coverage.nodes.expected.union(&body.coverage.nodes.observed).map(String::as_str);
        let mut lists = Self {
            options,
            complete: body.coverage.inventory == Some(InventoryState::Complete),
            workloads: body.workloads.iter().map(|entry| (&entry.workload, entry)).collect(),
            nodes: nodes.chain(options.cluster.nodes.iter().map(|node| &*node.name)).collect(),
            end,
            cron_jobs: false,
        };
        lists.cron_jobs = body
            .workloads
            .iter()
            .any(|entry| entry.workload.owner == "CronJob" && entry.pods.is_empty() && !lists.is_former(entry));
        lists
    }

    /// It was described before the end of the window, and at the end no more.
    fn is_former(&self, entry: &WorkloadEntry) -> bool {
        let known = entry.as_of != Timestamp::default();
        known && entry.pods.values().all(Vec::is_empty) && self.end.is_some_and(|end| entry.as_of < end)
    }

    /// Whether a peer is absent from complete lists of its kind.
    fn are_without(&self, peer: &Peer) -> bool {
        match peer {
            Peer::External { .. } => false,
            Peer::Node { name } => self.complete && !self.nodes.contains(&**name),
            Peer::Workload(workload) => self.are_without_workload(workload),
        }
    }

    fn are_without_workload(&self, workload: &WorkloadRef) -> bool {
        // Somebody may have listed one namespace alone.
        let of_kind = self
            .options
            .listed
            .iter()
            .filter(|listed| (&*listed.namespace, &*listed.owner) == (&*workload.namespace, &*workload.owner));
        let mut of_kind = of_kind.peekable();
        if of_kind.peek().is_some() {
            return !of_kind.any(|listed| listed == workload);
        }
        let kind_is_listed = LISTED.contains(&&*workload.owner) || (workload.owner == "CronJob" && self.cron_jobs);
        self.complete && kind_is_listed && self.workloads.get(workload).is_none_or(|entry| self.is_former(entry))
    }
}

/// What this export writes down: every edge that supports a rule, and the remembered ones that no
/// rule can name at present.
pub(crate) fn written<'a>(snapshot: &'a Snapshot, decision: &Decision) -> Written<'a> {
    let edges = snapshot.body.edges.iter().zip(&decision.uses).enumerate();
    let kept: Vec<(usize, &EdgeRecord)> = edges
        .filter(|(index, (edge, used))| {
            **used == EdgeUse::Supports && (!decision.inexpressible.contains(index) || edge.marks.contains(REMEMBERED))
        })
        .map(|(index, (edge, _))| (index, edge))
        .collect();
    let ends: BTreeSet<&WorkloadRef> =
        kept.iter().flat_map(|(_, edge)| [&*edge.client.peer, &*edge.server.peer]).filter_map(Peer::workload).collect();
    let workloads = snapshot.body.workloads.iter().filter(|entry| ends.contains(&entry.workload));
    let workloads = workloads.map(|entry| KeptWorkload {
        workload: Cow::Borrowed(&entry.workload),
        selector: entry.selector.as_ref().map(Cow::Borrowed),
        labels: Cow::Borrowed(&entry.labels),
        host_network: entry.host_network,
    });
    Written {
        workloads: workloads.collect(),
        edges: kept.into_iter().map(|(index, edge)| kept_edge(edge, decision.unexplained.contains(&index))).collect(),
    }
}

/// `unexplained`: a node stands for clients of which its own sockets know nothing.
fn kept_edge(edge: &EdgeRecord, unexplained: bool) -> KeptEdge<'_> {
    let from_node = matches!(*edge.client.peer, Peer::Node { .. });
    let mut seen_by = edge.seen_by.clone();
    if unexplained {
        seen_by.remove(&Side::Client);
    }
    let mut marks = Cow::Borrowed(&edge.marks);
    if edge.marks.contains(REMEMBERED) {
        marks.to_mut().remove(REMEMBERED);
    }
    KeptEdge {
        client: Cow::Borrowed(&edge.client),
        server: Cow::Borrowed(&edge.server),
        protocol: edge.protocol,
        port: edge.port,
        port_name: edge.port_name.as_deref().map(Cow::Borrowed),
        via: Cow::Borrowed(&edge.via),
        marks,
        node_workloads: Cow::Borrowed(&edge.node_workloads),
        seen_by,
        first_seen: edge.first_seen,
        last_seen: edge.last_seen,
        sources: Cow::Borrowed(if from_node && !unexplained { edge.sources.as_slice() } else { &[] }),
        counts: edge.counts,
    }
}
