//! How much the evidence can be trusted: per workload for the files, per namespace for the verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use guardrail_graph::{
    Peer, Timestamp, WorkloadRef,
    observe::{LossClass, LossReason},
    observer::UnresolvedReason,
    snapshot::{Body, EdgeRecord, Interval, NotRun, PodEntry, Side, Starts, WorkloadEntry, WorkloadTime},
};
use serde::Serialize;

use crate::words::percent;

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
    /// The least share of the time of a workload's pods that was observed, 0 to 1; `None`: it is
    /// not known which pods were there, or none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage: Option<f64>,
    /// Pods of its workloads that started, and those of them whose first minute was observed.
    #[serde(skip_serializing_if = "Starts::is_none")]
    pub starts: Starts,
    /// Workloads none of whose pods was there, with their schedules.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub not_run: BTreeSet<String>,
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

/// Starts of a workload's pods that have to be observed, if there were more: an autoscaled node
/// starts pods before its agent.
const ENOUGH_STARTS: u64 = 3;

/// Why a workload's evidence is not complete, where that is judged over the time of its pods: it
/// says the same, less exactly.
fn is_told_by_time(reason: &str, told: &BTreeSet<&str>, body: &Body) -> bool {
    let of_node = ["window_gap:", "window_apart:", "losses:"];
    let is_loss = |lost: &LossReason| lost.class() == LossClass::Edge && lost.as_str() == reason;
    of_node.iter().any(|prefix| reason.starts_with(prefix))
        || reason.strip_prefix("node_unobserved:").is_some_and(|node| told.contains(node))
        || LossReason::ALL.iter().any(is_loss)
        || is_named_by_flow(reason, body)
}

/// Whether every flow behind this reason is judged by itself, and so a problem if it would be
/// denied.
fn is_named_by_flow(reason: &str, body: &Body) -> bool {
    if UnresolvedReason::DERIVED.iter().any(|derived| derived.as_str() == reason) {
        return true;
    }
    let mut entries = body.coverage.unresolved.iter().filter(|entry| entry.reason == reason).peekable();
    entries.peek().is_some() && entries.all(|entry| entry.flows.is_some() && !entry.more)
}

/// Judges workloads.
pub(crate) struct Completeness<'a> {
    context: &'a Context<'a>,
    /// How much of the time of workloads' pods was observed; `None`: it is not known which pods
    /// were there.
    times: Option<BTreeMap<&'a WorkloadRef, &'a WorkloadTime>>,
    /// Nodes of whose pods others told.
    told: BTreeSet<&'a str>,
    /// Workloads none of whose pods was there.
    not_run: BTreeMap<&'a WorkloadRef, &'a NotRun>,
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
            .map(|(node, intervals)| (node.as_str(), gap(intervals, window.steps.get(node).map_or(&[], Vec::as_slice))))
            .filter(|(_, g)| !g.is_zero())
            .collect();
        let times = coverage.coverage.map(|_| coverage.by_workload.iter().map(|time| (&time.workload, time)).collect());
        let told = context.body.presence.iter().filter(|pod| pod.told).map(|pod| pod.node.as_str()).collect();
        let unattributed =
            !coverage.complete && times.is_none() && listed.is_empty() && missing.is_empty() && gaps.is_empty();
        let not_run = coverage.not_run.iter().map(|idle| (&idle.workload, idle)).collect();
        Self { context, times, told, not_run, listed, missing, gaps, unattributed }
    }

    /// Whether it is known which pods were there.
    pub(crate) fn is_over_time(&self) -> bool {
        self.times.is_some()
    }

    /// How much of the time of a workload's pods was observed, if any was there.
    pub(crate) fn time(&self, workload: &WorkloadRef) -> Option<&'a WorkloadTime> {
        self.times.as_ref()?.get(workload).copied()
    }

    /// A workload none of whose pods was there, with its schedule; `None`: it ran, or nobody knows.
    pub(crate) fn not_run(&self, workload: &WorkloadRef) -> Option<String> {
        let NotRun { workload, schedule } = self.not_run.get(workload)?;
        Some(match schedule {
            Some(schedule) => format!("{workload} ({schedule})"),
            None => workload.to_string(),
        })
    }

    /// What of the time of a workload's pods was not observed and should have been: what there is,
    /// and what is needed.
    fn uncovered(&self, workload: &WorkloadRef) -> Vec<String> {
        let Some(time) = self.time(workload) else { return Vec::new() };
        let needed = self.context.options.min_coverage;
        let mut short = Vec::new();
        if is_below(time.coverage, needed) {
            let is = percent(time.coverage);
            short.push(format!(
                "{is} of its pods' time was observed, and {needed} % is needed (--min-coverage {needed})"
            ));
        }
        let Starts { covered, all } = time.starts;
        if covered < all.min(ENOUGH_STARTS) {
            let needed = if all > ENOUGH_STARTS { format!("{ENOUGH_STARTS} of them") } else { "all".to_owned() };
            short.push(format!(
                "the first minute of {covered} of {all} pods that started was observed, and {needed} is needed"
            ));
        }
        short
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
        for node in hosts.iter().filter(|node| !self.context.body.coverage.nodes.unobservable.contains_key(**node)) {
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
        if self.is_over_time() {
            reasons.retain(|reason| !is_told_by_time(reason, &self.told, self.context.body));
            reasons.extend(self.uncovered(&entry.workload));
        }
        WorkloadCompleteness { reasons, hosted }
    }

    /// The verdicts of the namespaces in scope.
    pub(crate) fn verdicts(&self, uses: &[EdgeUse]) -> Vec<NamespaceVerdict> {
        let window = &self.context.body.window;
        let mut verdicts: BTreeMap<&str, NamespaceVerdict> = BTreeMap::new();
        let mut seen: BTreeSet<&WorkloadRef> = BTreeSet::new();
        let mut newest: BTreeMap<&str, Timestamp> = BTreeMap::new();
        for namespace in self.context.namespaces() {
            let mut reasons = BTreeSet::new();
            let (mut coverage, mut starts, mut not_run) = (None::<f64>, Starts::default(), BTreeSet::new());
            for entry in self.context.covered(namespace) {
                let found = self.of(entry).reasons;
                reasons.extend(found.iter().map(|r| format!("{}: {r}", entry.workload)));
                if let Some(time) = self.time(&entry.workload) {
                    coverage = Some(coverage.map_or(time.coverage, |least| least.min(time.coverage)));
                    starts = starts.plus(time.starts);
                }
                not_run.extend(self.not_run(&entry.workload));
            }
            let window_seconds = window.from.zip(window.to).map(|(from, to)| to.since(from).as_secs());
            verdicts.insert(
                namespace,
                NamespaceVerdict {
                    namespace: namespace.to_owned(),
                    complete: reasons.is_empty(),
                    reasons,
                    coverage,
                    starts,
                    not_run,
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
            for workload in [&*edge.client.peer, &*edge.server.peer].into_iter().filter_map(Peer::workload) {
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

/// Whether a share is less than so many percent. As binary fractions equal ones may differ in their
/// last digits, and equal is enough.
fn is_below(share: f64, percent: f64) -> bool {
    percent / 100.0 - share > 8.0 * f64::EPSILON
}

/// `client -> server port/protocol`, as messages and reports name an edge.
#[must_use]
pub fn edge_name(edge: &EdgeRecord) -> String {
    format!("{} -> {} {}/{}", edge.client.peer, edge.server.peer, edge.port, edge.protocol)
}

/// The time between a node's intervals during which nobody watched it; `steps`: which never was.
fn gap(intervals: &[Interval], steps: &[Interval]) -> Duration {
    let mut times = [intervals, steps].concat();
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1].from.since(pair[0].to)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_enough_and_a_millionth_less_is_not() {
        for millionths in 0..=1_000_000u32 {
            // As it is read from a snapshot, and from an argument.
            let share = f64::from(millionths) / 1e6;
            let needed: f64 = format!("{}.{:04}", millionths / 10_000, millionths % 10_000).parse().unwrap();
            assert!(!is_below(share, needed), "{share} {needed}");
            assert!(millionths == 0 || is_below(f64::from(millionths - 1) / 1e6, needed), "{share} {needed}");
        }
    }
}
