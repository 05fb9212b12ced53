//! Which of several words of one epoch counts: of one key the higher revision, whole.
//!
//! While an epoch is open its facts move: an edge with a bare address becomes a pod's. Two
//! documents of one epoch must not be added up or joined then, so each says its revision: the run
//! of the agent, raised on disk before anything leaves the process, and a number within it.
//!
//! What has no source of its own (who was there, who had an address, which nodes there were, how a
//! workload is described, marks and names of edges) is joined as over any sources: a later word of
//! it wins by its own time. It cannot be taken back from what was joined, so the documents of
//! epochs are kept apart ([`super::parts`]).

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    Body, Counts, Document, Interval, Side, Snapshot, Source,
    facts::Facts,
    intervals::{cut_to, joined},
    marks,
};
use crate::{peer::Protocol, time::Timestamp, unresolved::UnresolvedReason};

/// How far a document of an epoch is: the greater of two of one epoch replaces the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision {
    /// Run of the agent: raised with each start. 0: of a document that knows no revisions.
    pub run: u32,
    /// Number of the document within the run.
    pub n: u32,
}

impl Revision {
    /// Whether a document said so.
    #[must_use]
    pub fn is_known(self) -> bool {
        self != Self::default()
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.run, self.n)
    }
}

/// The revision of an epoch in a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRevision {
    /// The epoch.
    pub source: Source,
    /// Its revision.
    #[serde(flatten)]
    pub revision: Revision,
}

/// Two documents say that they are the same revision of an epoch, and differ.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "two snapshots differ in revision {revision} of one epoch of node {node} (agent {instance}): one of them was changed, or two agents share one state; leave one out"
)]
pub struct RevisionError {
    /// Node of the epoch.
    pub node: String,
    /// Agent of the epoch.
    pub instance: String,
    /// The revision.
    pub revision: Revision,
}

/// A counted fact of an epoch, and what was counted.
type Counted<'a> = BTreeMap<(String, &'a str, Protocol, u16, Side), (Counts, Timestamp, Timestamp)>;

/// Leaves of when a node was watched what others than a source did, if all of them say when.
fn leave_others<'a>(
    watched: &mut BTreeMap<String, Vec<Interval>>,
    source: &Source,
    windows: impl Iterator<Item = (&'a Source, &'a Interval)>,
) {
    let others = windows.filter(|(other, _)| other.node == source.node && *other != source);
    let others: Vec<Interval> = others.map(|(_, window)| *window).collect();
    if others.iter().all(|window| window.from <= window.to)
        && let Some(intervals) = watched.get_mut(&source.node)
    {
        *intervals = joined(std::mem::take(intervals));
        cut_to(intervals, &joined(others));
        if intervals.is_empty() {
            watched.remove(&source.node);
        }
    }
}

impl Body {
    pub(super) fn revision(&self, source: &Source) -> Revision {
        self.revisions.iter().find(|known| known.source == *source).map(|known| known.revision).unwrap_or_default()
    }

    /// Takes out what this epoch counted; everything, if there is nothing else.
    fn forget(&mut self, source: &Source) {
        if self.sources.len() == 1 {
            *self = Self::default();
            return;
        }
        self.edges.retain_mut(|edge| {
            let came_without = edge.sources.is_empty();
            edge.sources.retain(|counts| *counts.source != *source);
            came_without || !edge.sources.is_empty()
        });
        self.service_flows.retain_mut(|flow| {
            flow.sources.retain(|counts| *counts.source != *source);
            !flow.sources.is_empty()
        });
        self.remote_flows.retain_mut(|flow| {
            flow.sources.retain(|counts| *counts.source != *source);
            !flow.sources.is_empty()
        });
        self.coverage.losses.retain(|loss| loss.source != *source);
        self.coverage.unresolved.retain(|entry| entry.source != *source);
        let windows = self.windows_of_sources();
        leave_others(&mut self.window.nodes, source, windows.iter());
        self.source_windows.retain(|known| known.source != *source);
        self.witnesses.retain(|witness| witness.source != *source);
        self.sources.remove(source);
    }

    /// Whether both say the same of one epoch, beside what was counted.
    fn says_the_same(&self, other: &Self) -> bool {
        // One of them may have been joined before, which has a form of its own.
        let own = |body: &Self| {
            let Body { coverage, workloads, label_changes, services, addresses, presence, nodes, .. } =
                Document::joined([Snapshot { body: body.clone(), ..Snapshot::empty() }]).snapshot().body;
            let derived = |reason: &str| UnresolvedReason::DERIVED.iter().any(|derived| derived.as_str() == reason);
            let unresolved: Vec<_> = coverage.unresolved.into_iter().filter(|entry| !derived(&entry.reason)).collect();
            (coverage.losses, unresolved, workloads, label_changes, services, addresses, presence, nodes)
        };
        self == other || own(self) == own(other)
    }

    /// What this epoch counted, by what it was counted of.
    fn counted(&self, source: &Source) -> Counted<'_> {
        let mut all = Counted::new();
        for edge in &self.edges {
            for counts in edge.sources.iter().filter(|counts| *counts.source == *source && !counts.by_merge) {
                let ends = format!("{} -> {}", edge.client.peer, edge.server.peer);
                let key = (ends, "", edge.protocol, edge.port, counts.side);
                all.insert(key, (counts.counts, counts.first_seen, counts.last_seen));
            }
        }
        for flow in &self.service_flows {
            for counts in flow.sources.iter().filter(|counts| *counts.source == *source) {
                let key = (flow.client.to_string(), &*flow.service, flow.protocol, flow.port, counts.side);
                all.insert(key, (counts.counts, counts.first_seen, counts.last_seen));
            }
        }
        for flow in &self.remote_flows {
            for counts in flow.sources.iter().filter(|counts| *counts.source == *source) {
                let ends = format!("{} <-> {}", flow.local, flow.address);
                // Those that a proxy took stand beside those to the same port that it did not.
                let what = if flow.marks.contains(marks::REDIRECTED) { "redirected" } else { "remote" };
                let key = (ends, what, flow.protocol, flow.port, counts.side);
                all.insert(key, (counts.counts, counts.first_seen, counts.last_seen));
            }
        }
        all
    }
}

/// Leaves of each epoch the highest revision that there is, whole: in whichever order they are
/// joined, nothing of the others counts.
pub(super) fn leave_newest(snapshots: &mut [Snapshot]) {
    let mut newest: BTreeMap<Source, Revision> = BTreeMap::new();
    for SourceRevision { source, revision } in snapshots.iter().flat_map(|snapshot| &snapshot.body.revisions) {
        let known = newest.entry(source.clone()).or_default();
        *known = (*known).max(*revision);
    }
    for body in snapshots.iter_mut().map(|snapshot| &mut snapshot.body) {
        let known: BTreeMap<&Source, Revision> = body.revisions.iter().map(|of| (&of.source, of.revision)).collect();
        let is_old = |source: &&Source| newest.get(*source) > Some(&known.get(*source).copied().unwrap_or_default());
        let old: Vec<Source> = body.sources.iter().filter(is_old).cloned().collect();
        old.iter().for_each(|source| body.forget(source));
    }
}

impl Facts {
    /// Makes room for what a snapshot says of epochs that are known already, or leaves that out of
    /// it: of each the higher revision stays, whole.
    pub(super) fn settle_revisions(&mut self, body: &mut Body) {
        let sources: Vec<Source> = body.sources.iter().cloned().collect();
        for source in sources {
            let (new, source) = (body.revision(&source), Arc::new(source));
            let known =
                self.sources.contains(&source).then(|| self.revisions.get(&source).copied().unwrap_or_default());
            match known {
                Some(known) if known > new => body.forget(&source),
                Some(known) if known < new => {
                    self.forget(&source);
                    self.revisions.insert(source, new);
                }
                Some(_) => {}
                None if new.is_known() => drop(self.revisions.insert(source, new)),
                None => {}
            }
        }
    }

    /// Takes out what this epoch counted; everything, if there is nothing else.
    fn forget(&mut self, source: &Arc<Source>) {
        if self.sources.len() == 1 {
            let (span, uncut_nodes) = (self.span, std::mem::take(&mut self.uncut_nodes));
            *self = Self { span, uncut_nodes, ..Self::default() };
            return;
        }
        self.edges.retain(|_, edge| {
            edge.sources.forget(source);
            !edge.sources.is_empty() || edge.rare().without_sources.is_some()
        });
        self.service_flows.retain(|_, flow| {
            flow.sources.forget(source);
            !flow.sources.is_empty()
        });
        self.remote_flows.retain(|_, remote| {
            remote.flow.sources.forget(source);
            !remote.flow.sources.is_empty()
        });
        self.losses.retain(|(of, _), _| of != source);
        self.loss_times.retain(|(of, _), _| of != source);
        self.witnesses.remove(source);
        self.unresolved.retain(|(of, _), _| of != source);
        let windows = self.source_windows.iter().map(|(source, window)| (&**source, window));
        leave_others(&mut self.window, source, windows);
        self.source_windows.remove(source);
        self.observed_by.remove(source);
    }
}

/// Whether the revisions of snapshots agree: two of one epoch that are equal hold the same.
///
/// # Errors
/// The first two that do not.
pub fn check_revisions(snapshots: &[Snapshot]) -> Result<(), RevisionError> {
    let mut said: BTreeMap<(&Source, Revision), Vec<&Body>> = BTreeMap::new();
    for body in snapshots.iter().map(|snapshot| &snapshot.body) {
        for SourceRevision { source, revision } in &body.revisions {
            said.entry((source, *revision)).or_default().push(body);
        }
    }
    let is_alone = |body: &Body| body.sources.len() == 1;
    for ((source, revision), bodies) in said.into_iter().filter(|(_, bodies)| bodies.len() > 1) {
        let bodies: Vec<Cow<'_, Body>> = bodies.into_iter().map(Body::opened).collect();
        let [first, others @ ..] = &bodies[..] else { continue };
        let counted = first.counted(source);
        for other in others {
            let there = other.counted(source);
            // What a span left out is missing on one side only.
            let is_whole = is_alone(first) && is_alone(other) && first.window == other.window;
            let differs = counted.iter().any(|(key, was)| there.get(key).is_some_and(|is| is != was));
            if differs || is_whole && (!counted.keys().eq(there.keys()) || !first.says_the_same(other)) {
                let Source { node, instance, .. } = source.clone();
                return Err(RevisionError { node, instance, revision });
            }
        }
    }
    Ok(())
}
