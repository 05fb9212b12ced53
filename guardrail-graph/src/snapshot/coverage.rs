//! How much of the time in which pods were there somebody watched: completeness over a span, where
//! workloads really ran.
//!
//! Pod-time is the union of what nodes say of their own pods and of what others tell of pods on
//! nodes without a Ready agent, from the first instant at which any node was observed. Covered is
//! the part in which the pod's node was observed and no event of it was lost. Nodes that nobody can
//! observe are left out: what is known there rests on the other end. Beside time, starts
//! are counted: a pod whose first minute is covered was seen as it began.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Interval, Source,
    facts::Facts,
    intervals::{common, holds, hull, joined, length_ns, without},
    presence::Present,
    workloads::WorkloadFacts,
};
use crate::{
    observe::LossClass,
    peer::{Peer, WorkloadRef},
    time::Timestamp,
};

/// A pod whose first minute is covered was seen as it began.
const START: Duration = Duration::from_secs(60);
/// What others tell of a node's pods so near to what the node's own agent observed is the agent's
/// to say: agents do not begin, and are not asked, at one instant.
const NEAR: Duration = Duration::from_secs(60);
/// Parts of a whole share: six digits.
const PARTS: u128 = 1_000_000;

/// Pods that started, and those of them whose first minute is covered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starts {
    /// Whose first minute is covered.
    pub covered: u64,
    /// All that started.
    pub all: u64,
}

impl Starts {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { covered: self.covered.saturating_add(other.covered), all: self.all.saturating_add(other.all) }
    }

    /// Whether none started.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.all == 0
    }

    /// Whether all are covered.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        self.covered == self.all
    }
}

/// How much of a workload's pod-time is covered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadTime {
    /// The workload.
    #[serde(flatten)]
    pub workload: WorkloadRef,
    /// The share of its pods' time, 0 to 1, rounded down: 1 if and only if all is covered.
    pub coverage: f64,
    /// Its pods that started.
    pub starts: Starts,
}

/// A workload of which no pod was there in the span: a CronJob between two runs, or one with zero
/// replicas. Nothing can be said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotRun {
    /// The workload.
    #[serde(flatten)]
    pub workload: WorkloadRef,
    /// When a CronJob runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
}

/// Completeness as it is judged over pod-time.
#[derive(Clone, Debug, Default)]
pub(super) struct Judged {
    /// As [`super::Coverage::coverage`].
    pub(super) coverage: Option<f64>,
    pub(super) starts: Starts,
    pub(super) by_workload: Vec<WorkloadTime>,
    pub(super) not_run: Vec<NotRun>,
}

impl Judged {
    /// Whether everything that can be judged is covered.
    pub(super) fn is_complete(&self) -> bool {
        self.coverage.is_none_or(|share| share >= 1.0) && self.starts.is_complete()
    }
}

/// Time that is covered, of all.
#[derive(Clone, Copy, Default)]
struct Time {
    covered: u128,
    all: u128,
}

impl Time {
    #[expect(clippy::cast_precision_loss, reason = "at most a million")]
    fn share(self) -> Option<f64> {
        Some((self.covered * PARTS).checked_div(self.all)? as f64 / PARTS as f64)
    }
}

/// Where and when anything of a workload could have been missed.
struct Watch<'a> {
    observed: HashMap<&'a str, Vec<Interval>>,
    /// What others tell of a node is not asked within this.
    near: HashMap<&'a str, Vec<Interval>>,
    lost: HashMap<(&'a str, Option<&'a WorkloadRef>), Vec<Interval>>,
}

impl<'a> Watch<'a> {
    fn new(facts: &'a Facts) -> Self {
        let observed: HashMap<&str, Vec<Interval>> =
            facts.window.iter().map(|(node, intervals)| (&**node, joined(intervals.clone()))).collect();
        let wider = |i: &Interval| Interval { from: i.from.before(NEAR), to: i.to.after(NEAR) };
        let near = observed.iter().map(|(node, set)| (*node, joined(set.iter().map(wider).collect()))).collect();
        let mut lost: HashMap<(&str, Option<&WorkloadRef>), Vec<Interval>> = HashMap::new();
        for (key, (class, count)) in &facts.losses {
            if *class != LossClass::Edge || *count == 0 {
                continue;
            }
            let node = key.0.node.as_str();
            match facts.loss_times.get(key).and_then(Option::as_ref) {
                Some(times) => {
                    for (peer, intervals) in times {
                        let whom = match peer.as_deref() {
                            None => None,
                            Some(Peer::Workload(workload)) => Some(workload),
                            Some(_) => continue,
                        };
                        lost.entry((node, whom)).or_default().extend(intervals);
                    }
                }
                None => lost.entry((node, None)).or_default().push(facts.window_of(&key.0)),
            }
        }
        for intervals in lost.values_mut() {
            *intervals = joined(std::mem::take(intervals));
        }
        Self { observed, near, lost }
    }

    /// When nothing of a workload was missed on a node.
    fn covered(&self, node: &str, workload: &WorkloadRef) -> Vec<Interval> {
        let Some(observed) = self.observed.get(node) else { return Vec::new() };
        let mut covered = observed.clone();
        for whom in [None, Some(workload)] {
            if let Some(lost) = self.lost.get(&(node, whom)) {
                covered = without(&covered, lost);
            }
        }
        covered
    }
}

/// One pod, by all who speak of it.
#[derive(Default)]
struct OnePod {
    own: Vec<Interval>,
    told: Vec<Interval>,
    started: BTreeSet<Timestamp>,
}

impl Facts {
    /// When a source observed.
    fn window_of(&self, source: &Source) -> Interval {
        let of_node = || hull(self.window.get(&source.node).into_iter().flatten().copied());
        self.source_windows.get(source).copied().unwrap_or_else(of_node)
    }

    /// Whether it is known which pods were there: every source says so, and of nodes that nobody
    /// observed another one tells.
    fn presence_is_known(&self) -> bool {
        let all_say = self.sources.iter().all(|source| self.witnesses.get(source).is_some_and(|(_, full)| !full));
        let told = || self.witnesses.values().any(|(tells, _)| *tells);
        !self.sources.is_empty() && all_say && (self.expected.is_subset(&self.observed) || told())
    }

    /// Whether all pods of a workload are on nodes that nobody can observe.
    fn is_only_unobservable(&self, workload: &WorkloadRef) -> bool {
        let mut nodes = self.workloads.get(workload).into_iter().flat_map(WorkloadFacts::nodes).peekable();
        nodes.peek().is_some() && nodes.all(|node| self.unobservable.contains_key(node))
    }

    /// Judges completeness over pod-time.
    pub(super) fn judged(&self) -> Judged {
        let clip = hull(self.window.values().flatten().copied());
        if !self.presence_is_known() || clip.from > clip.to {
            return Judged::default();
        }
        let (watch, unobservable) = (Watch::new(self), self.unobservable_times());
        let mut workloads: BTreeMap<&WorkloadRef, HashMap<(&str, &str), OnePod>> = BTreeMap::new();
        let pods = self.pods.iter().filter(|((_, _, node, ..), _)| !self.unobservable.contains_key(&**node));
        for ((_, pod, node, from, told), Present { to, started, workload }) in pods {
            let of_pod = workloads.entry(workload).or_default().entry((pod, node)).or_default();
            if *told { &mut of_pod.told } else { &mut of_pod.own }.push(Interval { from: *from, to: *to });
            of_pod.started.extend(started.filter(|at| clip.from <= *at && *at < clip.to));
        }
        let (mut total, mut starts, mut by_workload) = (Time::default(), Starts::default(), Vec::new());
        for (workload, pods) in &workloads {
            let mut of_node: HashMap<&str, Vec<Interval>> = HashMap::new();
            let (mut time, mut started) = (Time::default(), Starts::default());
            for ((_, node), pod) in pods {
                let covered = of_node.entry(node).or_insert_with(|| watch.covered(node, workload));
                let near = watch.near.get(node).map_or(&[][..], Vec::as_slice);
                let not = unobservable.get(node).map_or(&[][..], Vec::as_slice);
                let (more, starts) = judge(pod, covered, near, &without(&[clip], not));
                (time.covered, time.all) = (time.covered + more.covered, time.all + more.all);
                started = started.plus(starts);
            }
            if let Some(coverage) = time.share() {
                (total.covered, total.all) = (total.covered + time.covered, total.all + time.all);
                starts = starts.plus(started);
                by_workload.push(WorkloadTime { workload: WorkloadRef::clone(workload), coverage, starts: started });
            }
        }
        let ran: BTreeSet<&WorkloadRef> = by_workload.iter().map(|time| &time.workload).collect();
        // What was gone before the end of the window is described as of then.
        let there = self.workloads.iter().filter(|(_, facts)| facts.as_of >= clip.to.before(NEAR));
        let idle = there.filter(|(name, _)| !ran.contains(name));
        let idle = idle.map(|(name, facts)| NotRun { workload: name.clone(), schedule: facts.schedule() });
        let not_run = idle.filter(|idle| !self.is_only_unobservable(&idle.workload)).collect();
        Judged { coverage: total.share(), starts, by_workload, not_run }
    }
}

/// The time of one pod, and whether its start is covered.
fn judge(pod: &OnePod, covered: &[Interval], near: &[Interval], clip: &[Interval]) -> (Time, Starts) {
    let told = without(&joined(pod.told.clone()), near);
    let there = common(&joined(pod.own.iter().copied().chain(told).collect()), clip);
    let seen = common(&there, covered);
    let time = Time { covered: length_ns(&seen), all: length_ns(&there) };
    let mut starts = Starts::default();
    for from in &pod.started {
        // One that ended sooner was seen to its end.
        let Some(life) = there.iter().find(|life| life.from <= *from && *from < life.to) else { continue };
        starts.all += 1;
        starts.covered += u64::from(holds(covered, Interval { from: *from, to: life.to.min(from.after(START)) }));
    }
    (time, starts)
}
