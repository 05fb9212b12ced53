//! What earlier exports allowed. A rule is never removed because its evidence grew old
//! (docs/design.md#policy, 8).
//!
//! An export writes down every edge, and which of them support it, in `evidence.json`. The next one
//! reads that back ([`Memory`]), and an edge that its own snapshot no longer shows is put
//! beside those that it shows, marked [`REMEMBERED`]: from there on plan, proof and report treat it
//! as any other. It is forgotten if one of its ends is gone, or if a person says after how long.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet, btree_map::Entry};
use std::fmt;
use std::sync::Arc;

use guardrail_graph::{
    Peer, Protocol, Snapshot, Timestamp, WorkloadRef,
    snapshot::{Body, EachEdge, EdgeRecord, InventoryState, LabelSelector, Side, WorkloadEntry},
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};

use crate::generate::{EdgeUse, Options, is_established};

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

/// The edges that a snapshot shows to be used: nothing has to be remembered of them.
#[derive(Debug, Default)]
pub struct Shown(HashSet<EdgeKey>);

impl Shown {
    /// Those of a snapshot.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        Self(snapshot.body.edges.iter().filter(|edge| is_established(edge)).map(key).collect())
    }

    fn holds(&self, edge: &EdgeRecord) -> bool {
        self.0.contains(&key(edge))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(peer) => write!(f, "{peer} is gone"),
            Self::Unused => f.write_str("not used for longer than --drop-unused says"),
        }
    }
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

/// A workload as it is written down: what names its pods in a rule.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeptWorkload<'a> {
    #[serde(flatten)]
    workload: Cow<'a, WorkloadRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<Cow<'a, LabelSelector>>,
    #[serde(default)]
    labels: Cow<'a, BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    host_network: bool,
}

impl Memory {
    /// Reads what an export wrote down.
    ///
    /// # Errors
    /// If the text is no `evidence.json`.
    pub fn read(text: &str) -> Result<Self, MemoryError> {
        Self::read_unshown(text, &Shown::default())
    }

    /// As [`Memory::read`], without the edges that a snapshot shows: an export of it needs no more,
    /// and they may be all.
    ///
    /// # Errors
    /// If the text is no `evidence.json`.
    pub fn read_unshown(text: &str, shown: &Shown) -> Result<Self, MemoryError> {
        let mut json = serde_json::Deserializer::from_str(text);
        let Document { kind, edges, unused, inexpressible, unexplained, workloads } =
            Reading(shown).deserialize(&mut json)?;
        json.end()?;
        if kind != KIND {
            return Err(MemoryError::WrongKind);
        }
        let edges = edges.ok_or_else(|| serde::de::Error::missing_field("edges")).map_err(MemoryError::Invalid)?;
        let unused: BTreeSet<usize> = unused.into_iter().map(|named| named.edge).collect();
        let mut read = Self::default();
        for (index, mut edge) in edges {
            let was_remembered = edge.marks.remove(REMEMBERED);
            if unused.contains(&index) || inexpressible.contains(&index) && !was_remembered {
                continue;
            }
            if unexplained.contains(&index) {
                edge.seen_by.remove(&Side::Client);
            }
            edge.supported = true;
            read.edges.insert(key(&edge), edge);
        }
        let ends = read.edges.values().flat_map(|edge| [&edge.client.peer, &edge.server.peer]);
        let ends: HashSet<WorkloadRef> = ends.filter_map(|peer| peer.workload()).cloned().collect();
        let asked = workloads.into_iter().filter(|kept| ends.contains(&*kept.workload));
        for KeptWorkload { workload, selector, labels, host_network } in asked {
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
            match self.edges.entry(key) {
                Entry::Vacant(new) => _ = new.insert(edge),
                Entry::Occupied(mut known) if known.get().last_seen < edge.last_seen => _ = known.insert(edge),
                Entry::Occupied(_) => {}
            }
        }
        for (name, workload) in other.workloads {
            self.workloads.entry(name).or_insert(workload);
        }
    }
}

#[derive(Deserialize)]
struct NamedEdge {
    edge: usize,
}

/// What an `evidence.json` says to the next export.
#[derive(Default)]
struct Document<'a> {
    kind: String,
    /// With their places in its list.
    edges: Option<Vec<(usize, EdgeRecord)>>,
    unused: Vec<NamedEdge>,
    inexpressible: BTreeSet<usize>,
    unexplained: BTreeSet<usize>,
    workloads: Vec<KeptWorkload<'a>>,
}

/// Reads a document, but for edges that are shown.
struct Reading<'s>(&'s Shown);

impl<'de> DeserializeSeed<'de> for Reading<'_> {
    type Value = Document<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Document<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Reading<'_> {
    type Value = Document<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an {KIND}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Document<'de>, A::Error> {
        let mut read = Document::default();
        while let Some(field) = fields.next_key::<Cow<'de, str>>()? {
            match &*field {
                "kind" => read.kind = fields.next_value()?,
                "unused" => read.unused = fields.next_value()?,
                "inexpressible" => read.inexpressible = fields.next_value()?,
                "unexplained" => read.unexplained = fields.next_value()?,
                "workloads" => read.workloads = fields.next_value()?,
                "edges" => {
                    let (edges, mut places) = (read.edges.insert(Vec::new()), 0..);
                    let keep = |edge: EdgeRecord| {
                        let place = places.next();
                        edges.extend(place.filter(|_| !self.0.holds(&edge)).map(|place| (place, edge)));
                    };
                    fields.next_value_seed(EachEdge(keep))?;
                }
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(read)
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
    let shown = Shown::of(snapshot);
    let lists = Lists::new(&snapshot.body, options);
    let mut remembered: BTreeMap<EdgeKey, EdgeRecord> = BTreeMap::new();
    for (key, edge) in memory.edges.iter().filter(|(_, edge)| !shown.holds(edge)) {
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
        let known = body.known_nodes();
        let is_gone = |name: &&str| known.get(name).is_some_and(|node| node.is_gone);
        let nodes = body.coverage.nodes.expected.union(&body.coverage.nodes.observed).map(String::as_str);
        let nodes = nodes.filter(|name| !is_gone(name));
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

/// Whether the next export asks who counted: where a node is the client, whose sockets its
/// connections came from.
pub(crate) fn needs_sources(edge: &EdgeRecord) -> bool {
    matches!(*edge.client.peer, Peer::Node { .. })
}

/// The ends of every edge that supports a rule, and of the remembered ones that no rule can name at
/// present.
pub(crate) fn workloads<'a>(
    snapshot: &'a Snapshot,
    uses: &[EdgeUse],
    inexpressible: &BTreeSet<usize>,
) -> Vec<KeptWorkload<'a>> {
    let is_kept = |(index, (edge, used)): &(usize, (&EdgeRecord, &EdgeUse))| {
        **used == EdgeUse::Supports && (!inexpressible.contains(index) || edge.marks.contains(REMEMBERED))
    };
    let kept = snapshot.body.edges.iter().zip(uses).enumerate().filter(is_kept);
    let ends = kept.flat_map(|(_, (edge, _))| [&*edge.client.peer, &*edge.server.peer]).filter_map(Peer::workload);
    let ends: HashSet<&WorkloadRef> = ends.collect();
    let workloads = snapshot.body.workloads.iter().filter(|entry| ends.contains(&entry.workload));
    let written = workloads.map(|entry| KeptWorkload {
        workload: Cow::Borrowed(&entry.workload),
        selector: entry.selector.as_ref().map(Cow::Borrowed),
        labels: Cow::Borrowed(&entry.labels),
        host_network: entry.host_network,
    });
    written.collect()
}
