//! Where workloads ran, and whether somebody watched there: a policy rests on all of a window, not
//! on where the pods are at its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Interval, Side, WorkloadEntry,
    derive::Deriver,
    facts::{Facts, LOSSES, NODE_UNOBSERVED, WINDOW_APART, WINDOW_GAP},
    intervals::joined,
    workloads::WorkloadFacts,
};
use crate::{
    observe::LossClass,
    peer::{Peer, WorkloadRef},
    time::Timestamp,
};

/// The observation window: a set of intervals per node. A gap between two intervals of a node is a
/// time nobody watched it, but for its steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Start of the earliest interval.
    pub from: Option<Timestamp>,
    /// End of the latest interval.
    pub to: Option<Timestamp>,
    /// Intervals per node, sorted, disjoint.
    pub nodes: BTreeMap<String, Vec<Interval>>,
    /// Times that never were on a node, whose clock was set forward over them: sorted, disjoint.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub steps: BTreeMap<String, Vec<Interval>>,
}

impl Window {
    /// The time in which every one of these nodes was observed, from the last that began to the
    /// first that ended; `None` if there is none, or if one of them has no window. Gaps in between
    /// are another matter.
    #[must_use]
    pub fn common<'a>(&self, nodes: impl IntoIterator<Item = &'a str>) -> Option<Interval> {
        let spans = nodes.into_iter().map(|node| self.nodes.get(node).and_then(|intervals| span(intervals)));
        let joined = spans.reduce(|a, b| Some(a?.both(b?)));
        joined.flatten().filter(|common| common.from <= common.to)
    }
}

/// From the first to the last moment.
fn span(intervals: &[Interval]) -> Option<Interval> {
    Some(Interval { from: intervals.first()?.from, to: intervals.iter().map(|i| i.to).max()? })
}

impl Facts {
    /// Notes that a node hosted a pod of a workload.
    pub(crate) fn ran_on(&mut self, workload: &WorkloadRef, node: String, at: Timestamp) {
        if !self.ran_on.contains_key(workload) {
            self.ran_on.insert(workload.clone(), BTreeMap::new());
        }
        let last = self.ran_on.get_mut(workload).map(|nodes| nodes.entry(node).or_insert(at));
        if let Some(last) = last {
            *last = (*last).max(at);
        }
    }

    /// Leaves those places apart that follow from where the pods are now.
    pub(super) fn settle_places(&mut self) {
        let Self { ran_on, workloads, own_pods, .. } = self;
        ran_on.retain(|name, nodes| {
            let Some(workload) = workloads.get(name) else { return false };
            let here: BTreeSet<&str> = workload.nodes().collect();
            nodes.retain(|node, at| {
                let implied = match own_pods.get(node) {
                    Some((as_of, pods)) => pods.contains_key(name).then_some(*as_of),
                    None => here.contains(&**node).then_some(workload.as_of),
                };
                implied.is_none_or(|implied| *at > implied)
            });
            !nodes.is_empty()
        });
    }

    /// A workload as it stands in a snapshot.
    pub(super) fn workload(&self, name: &WorkloadRef, facts: &WorkloadFacts) -> WorkloadEntry {
        WorkloadEntry { ran_on: self.ran_on.get(name).cloned().unwrap_or_default(), ..facts.entry() }
    }

    /// Observed nodes that another observed node was never observed together with.
    fn apart(&self) -> BTreeSet<&str> {
        if self.observed.len() < 2 {
            return BTreeSet::new();
        }
        // What was observed at all was observed for an instant.
        let spans: Vec<(&str, Option<Interval>)> = self
            .observed
            .iter()
            .map(|node| {
                let span = self.window.get(node).and_then(|intervals| span(intervals));
                let instant = Duration::from_nanos(1);
                (&**node, span.map(|s| Interval { from: s.from, to: s.to.max(s.from.after(instant)) }))
            })
            .collect();
        let known = || spans.iter().filter_map(|(_, span)| *span);
        let (Some(first_end), Some(last_start)) = (known().map(|s| s.to).min(), known().map(|s| s.from).max()) else {
            return BTreeSet::new();
        };
        let is_apart = |span: &Option<Interval>| span.is_none_or(|s| s.from >= first_end || s.to <= last_start);
        spans.iter().filter(|(_, span)| is_apart(span)).map(|(node, _)| *node).collect()
    }

    /// Nodes with lost events that are not told to concern certain workloads alone.
    fn lossy(&self, incomplete: &BTreeMap<Arc<Peer>, BTreeSet<String>>) -> BTreeSet<&str> {
        let lost = self.losses.iter().filter(|(_, (class, count))| *class == LossClass::Edge && *count > 0);
        lost.filter(|((source, reason), _)| {
            let node = Peer::Node { name: source.node.clone() };
            incomplete.get(&node).is_some_and(|reasons| reasons.contains(reason))
                || !incomplete.values().any(|reasons| reasons.contains(reason))
        })
        .map(|((source, _), _)| &*source.node)
        .collect()
    }

    /// Where workloads were seen: an agent counts at the end that is on its node.
    fn seen_on(&self) -> BTreeMap<&WorkloadRef, BTreeSet<&str>> {
        let mut seen: BTreeMap<&WorkloadRef, BTreeSet<&str>> = BTreeMap::new();
        for ((client, server, ..), edge) in &self.edges {
            for (source, side, _) in edge.seen() {
                let end = if side == Side::Client { client } else { server };
                if let Some(workload) = end.named().and_then(|peer| peer.workload()) {
                    seen.entry(workload).or_default().insert(&source.node);
                }
            }
        }
        for ((client, ..), flow) in &self.service_flows {
            for (source, ..) in flow.sources.iter() {
                if let Some(workload) = client.workload() {
                    seen.entry(workload).or_default().insert(&source.node);
                }
            }
        }
        seen
    }
}

impl Facts {
    /// Nodes that were not observed all the time, as far as that ever was.
    pub(super) fn with_gaps(&self) -> impl Iterator<Item = &str> {
        let has_gap = |node: &str, intervals: &[Interval]| match self.steps.get(node) {
            Some(steps) if intervals.len() > 1 => joined([intervals, steps].concat()).len() > 1,
            _ => intervals.len() > 1,
        };
        self.window.iter().filter(move |(node, intervals)| has_gap(node, intervals)).map(|(node, _)| &**node)
    }
}

impl Deriver {
    /// Workloads that are, or were, on nodes that nobody watched, or not all the time.
    pub(super) fn coverage_of_nodes(&mut self, facts: &Facts) {
        let gaps: BTreeSet<&str> = facts.with_gaps().collect();
        let apart = facts.apart();
        let lossy = facts.lossy(&self.incomplete);
        let all_well = gaps.is_empty() && apart.is_empty() && lossy.is_empty();
        // Whoever counted was observed, so without any of these there is nothing to find.
        let mut seen = if all_well { BTreeMap::new() } else { facts.seen_on() };
        let begin = facts.window.values().flatten().map(|i| i.from).min().unwrap_or(Timestamp::MIN);
        for (name, workload) in &facts.workloads {
            let now: BTreeSet<&str> = workload.nodes().filter(|n| !n.is_empty()).collect();
            let mut all = seen.remove(name).unwrap_or_default();
            let ran_on = facts.ran_on.get(name).into_iter().flatten();
            all.extend(ran_on.filter(|(_, last)| **last > begin).map(|(node, _)| &**node));
            all.extend(&now);
            let mut reasons = BTreeSet::new();
            for node in &all {
                if facts.unobservable.contains_key(*node) {
                    continue;
                }
                if !facts.observed.contains(*node) {
                    reasons.insert(format!("{NODE_UNOBSERVED}{node}"));
                    continue;
                }
                for (nodes, reason) in [(&gaps, WINDOW_GAP), (&apart, WINDOW_APART)] {
                    if nodes.contains(node) {
                        reasons.insert(format!("{reason}{node}"));
                    }
                }
                // Of what is on a node now, its agent says itself which losses concern it.
                if lossy.contains(node) && !now.contains(node) {
                    reasons.insert(format!("{LOSSES}{node}"));
                }
            }
            if all.is_empty() {
                // It may have run anywhere.
                reasons.extend(apart.iter().map(|node| format!("{WINDOW_APART}{node}")));
            }
            if !reasons.is_empty() {
                self.incomplete.entry(Arc::new(Peer::Workload(name.clone()))).or_default().extend(reasons);
            }
        }
        for (nodes, reason) in [(gaps, WINDOW_GAP), (apart, WINDOW_APART)] {
            for node in nodes {
                let peer = Arc::new(Peer::Node { name: node.to_owned() });
                self.incomplete.entry(peer).or_default().insert(format!("{reason}{node}"));
            }
        }
    }
}
