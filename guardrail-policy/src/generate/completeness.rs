//! How much the evidence can be trusted: per workload for the files, per namespace for the verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use guardrail_graph::{
    Peer, Timestamp,
    snapshot::{EdgeRecord, Interval, PodEntry, Side, WorkloadEntry},
};
use serde::Serialize;

use super::{context::Context, edges::EdgeUse, edges::Unused, window::NamespaceWindow};

/// The completeness verdict of one namespace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NamespaceVerdict {
    /// The namespace.
    pub namespace: String,
    /// The evidence supports a policy: no loss, gap, or missing node concerns its workloads.
    pub complete: bool,
    /// Why not: `workload: reason`, sorted.
    pub reasons: BTreeSet<String>,
    /// Workloads whose pods were seen neither as client nor as server of a supported edge.
    pub without_evidence: BTreeSet<String>,
    /// Supported edges of the namespace that only one of two observed ends saw.
    pub one_sided: BTreeSet<String>,
    /// Edges of the namespace that were left out because their backend was inferred.
    pub inferred: usize,
    /// How long the namespace was observed, in seconds: from the first to the last moment of the
    /// window.
    pub window_seconds: Option<u64>,
    /// How long all nodes of its workloads were observed at once, in seconds.
    pub common_window_seconds: u64,
    /// Time since an edge of the namespace was first seen, at the end of the window, in seconds.
    /// Short against the window: new edges still appear, and waiting longer is wise.
    pub since_last_new_edge_seconds: Option<u64>,
}

/// Whether one workload's evidence is complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorkloadCompleteness {
    /// Why not; empty means complete.
    pub(crate) reasons: BTreeSet<String>,
    /// Every node that hosts its pods is observed.
    pub(crate) hosted: bool,
}

/// Judges workloads.
pub(crate) struct Completeness<'a> {
    context: &'a Context<'a>,
    listed: BTreeMap<&'a Peer, &'a BTreeSet<String>>,
    missing: BTreeSet<&'a str>,
    gaps: BTreeMap<&'a str, Duration>,
    /// Incomplete, and nothing says for whom: then for everybody.
    unattributed: bool,
}

impl<'a> Completeness<'a> {
    pub(crate) fn new(context: &'a Context<'a>) -> Self {
        let coverage = &context.body.coverage;
        let listed: BTreeMap<_, _> =
            coverage.workloads.iter().filter(|w| !w.complete).map(|w| (&w.peer, &w.reasons)).collect();
        let missing: BTreeSet<&str> =
            coverage.nodes.expected.difference(&coverage.nodes.observed).map(String::as_str).collect();
        let window = &context.body.window;
        let gaps: BTreeMap<&str, Duration> = window
            .nodes
            .iter()
            .map(|(node, intervals)| (node.as_str(), gap(intervals)))
            .filter(|(_, g)| !g.is_zero())
            .collect();
        let unattributed = !coverage.complete && listed.is_empty() && missing.is_empty() && gaps.is_empty();
        Self { context, listed, missing, gaps, unattributed }
    }

    pub(crate) fn of(&self, entry: &WorkloadEntry) -> WorkloadCompleteness {
        let observed = &self.context.body.coverage.nodes.observed;
        let mut reasons = BTreeSet::new();
        if let Some(listed) = self.listed.get(&Peer::Workload(entry.workload.clone())) {
            reasons.extend(listed.iter().cloned());
            if listed.is_empty() {
                reasons.insert("incomplete".to_owned());
            }
        }
        // A pod without a node that has no address does not run yet.
        let runs =
            |(node, pods): &(&String, &Vec<PodEntry>)| pods.iter().any(|p| !node.is_empty() || !p.addresses.is_empty());
        let hosts: BTreeSet<&str> = entry.pods.iter().filter(runs).map(|(node, _)| node.as_str()).collect();
        let mut hosted = true;
        for node in &hosts {
            if !observed.contains(*node) {
                hosted = false;
                reasons.insert(format!("node_unobserved:{node}"));
            }
            if self.gaps.contains_key(node) {
                reasons.insert(format!("window_gap:{node}"));
            }
        }
        if (hosts.is_empty() || !self.context.body.own_pods_as_of.is_empty()) && !self.missing.is_empty() {
            // A finished job's pod may have run anywhere, and where agents know only their own
            // node's pods, so may any.
            hosted = false;
            reasons.extend(self.missing.iter().map(|node| format!("node_unobserved:{node}")));
        }
        if self.unattributed {
            reasons.insert("unattributed".to_owned());
        }
        WorkloadCompleteness { reasons, hosted }
    }

    /// The verdicts of the namespaces in scope.
    pub(crate) fn verdicts(&self, uses: &[EdgeUse]) -> Vec<NamespaceVerdict> {
        let window = &self.context.body.window;
        let mut verdicts: BTreeMap<&str, NamespaceVerdict> = BTreeMap::new();
        let mut seen: BTreeSet<&guardrail_graph::WorkloadRef> = BTreeSet::new();
        let mut newest: BTreeMap<&str, Timestamp> = BTreeMap::new();
        for namespace in self.context.namespaces() {
            let mut reasons = BTreeSet::new();
            for entry in self.context.covered(namespace) {
                let found = self.of(entry).reasons;
                reasons.extend(found.iter().map(|r| format!("{}: {r}", entry.workload)));
            }
            let window_seconds = window.from.zip(window.to).map(|(from, to)| to.since(from).as_secs());
            verdicts.insert(
                namespace,
                NamespaceVerdict {
                    namespace: namespace.to_owned(),
                    complete: reasons.is_empty(),
                    reasons,
                    without_evidence: BTreeSet::new(),
                    one_sided: BTreeSet::new(),
                    inferred: 0,
                    window_seconds,
                    common_window_seconds: NamespaceWindow::new(self.context, namespace).length().as_secs(),
                    since_last_new_edge_seconds: None,
                },
            );
        }
        for (edge, used) in self.context.body.edges.iter().zip(uses) {
            let mut touched = BTreeSet::new();
            for workload in [&edge.client.peer, &edge.server.peer].into_iter().filter_map(Peer::workload) {
                touched.insert(workload.namespace.as_str());
                if used.must_be_allowed() {
                    seen.insert(workload);
                }
            }
            for namespace in touched {
                let Some(verdict) = verdicts.get_mut(namespace) else { continue };
                if *used == EdgeUse::Unused(Unused::Inferred) {
                    verdict.inferred += 1;
                }
                if used.must_be_allowed() {
                    if self.is_one_sided(edge) {
                        verdict.one_sided.insert(edge_name(edge));
                    }
                    let first = newest.entry(namespace).or_insert(edge.first_seen);
                    *first = (*first).max(edge.first_seen);
                }
            }
        }
        for (namespace, verdict) in &mut verdicts {
            verdict.without_evidence = self
                .context
                .covered(namespace)
                .filter(|w| !seen.contains(&w.workload))
                .map(|w| w.workload.to_string())
                .collect();
            verdict.since_last_new_edge_seconds =
                newest.get(namespace).zip(window.to).map(|(first, to)| to.since(*first).as_secs());
        }
        verdicts.into_values().collect()
    }

    /// Both ends live where somebody observed, yet only one of them saw it (B23).
    fn is_one_sided(&self, edge: &EdgeRecord) -> bool {
        let both_are_workloads = edge.client.peer.workload().is_some() && edge.server.peer.workload().is_some();
        both_are_workloads && !(edge.seen_by.contains(&Side::Client) && edge.seen_by.contains(&Side::Server))
    }
}

/// `client -> server port/protocol`, as messages and reports name an edge.
#[must_use]
pub fn edge_name(edge: &EdgeRecord) -> String {
    format!("{} -> {} {}/{}", edge.client.peer, edge.server.peer, edge.port, edge.protocol)
}

/// The time between a node's intervals during which nobody watched it.
fn gap(intervals: &[Interval]) -> Duration {
    intervals.windows(2).map(|pair| pair[1].from.since(pair[0].to)).sum()
}
