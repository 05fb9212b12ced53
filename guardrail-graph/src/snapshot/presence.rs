//! Which pods were there when, and when events were lost: the facts over which completeness is
//! judged ([`super::coverage`]).

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Body, Interval, Source, facts::Facts, intervals::joined, span::Span};
use crate::{
    peer::{Peer, WorkloadRef},
    time::Timestamp,
};

/// That a source says which pods were there: those of its node, from their own start, which may lie
/// before its observation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Witness {
    /// Who.
    pub source: Source,
    /// It knows which nodes have a Ready agent, and tells of pods on those that have none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tells: bool,
    /// There were more pods than are kept: some are missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
}

/// When a pod was there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodPresence {
    /// Whose pod.
    #[serde(flatten)]
    pub workload: WorkloadRef,
    /// Its name.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// From here on.
    pub from: Timestamp,
    /// Until then: its end, or how long this is known.
    pub to: Timestamp,
    /// `status.startTime`; `None`: it began at a time that nobody knows, or outside of the span.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// On the word of other nodes' agents: its own node had no Ready one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told: bool,
}

/// When events were lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossTime {
    /// The sweeps that noticed it, to the minute.
    #[serde(flatten)]
    pub time: Interval,
    /// Whom it concerns; `None`: anyone on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
}

/// `(namespace, pod, node, from, told)`.
pub(crate) type PodKey = (Arc<str>, Arc<str>, Arc<str>, Timestamp, bool);

/// What is known of a pod that was there. Of several words the greatest counts, which is the one
/// that reaches furthest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Present {
    pub(crate) to: Timestamp,
    pub(crate) started: Option<Timestamp>,
    pub(crate) workload: Arc<WorkloadRef>,
}

/// Pods that were there.
pub(crate) type Pods = BTreeMap<PodKey, Present>;

/// Adds what somebody knows of a pod.
pub(crate) fn add_pod(pods: &mut Pods, key: PodKey, present: Present) {
    match pods.get_mut(&key) {
        Some(known) if *known < present => *known = present,
        Some(_) => {}
        None => {
            pods.insert(key, present);
        }
    }
}

/// Who says so, and whether it `(tells, is full)`.
pub(crate) type Witnesses = BTreeMap<Arc<Source>, (bool, bool)>;

/// When events of one source and reason were lost, by whom they concern.
pub(crate) type LossTimes = BTreeMap<Option<Arc<Peer>>, Vec<Interval>>;

impl Facts {
    /// Joins who was there.
    pub(super) fn add_presence(&mut self, witnesses: Vec<Witness>, pods: Vec<PodPresence>) {
        for Witness { source, tells, full } in witnesses {
            let known = self.witnesses.entry(self.counters.intern(source)).or_default();
            *known = (known.0 | tells, known.1 | full);
        }
        for PodPresence { workload, pod, node, from, to, started, told } in pods {
            let key = (self.words.intern(&*workload.namespace), pod.into(), self.words.intern(&*node), from, told);
            let present = Present { to, started, workload: self.workload_names.intern(workload) };
            add_pod(&mut self.pods, key, present);
        }
    }

    /// Joins when a source lost events for a reason. `None`: nobody knows when, so all of the time.
    pub(super) fn add_loss_times(&mut self, source: &Source, reason: &str, times: Option<Vec<LossTime>>) {
        let key = (Arc::new(source.clone()), reason.to_owned());
        let known = self.loss_times.entry(key).or_insert_with(|| Some(LossTimes::new()));
        match (known, times) {
            (Some(known), Some(times)) => {
                for LossTime { time, peer } in times {
                    let peer = peer.map(|peer| self.peers.intern(peer));
                    known.entry(peer).or_default().push(time);
                }
            }
            (known, _) => *known = None,
        }
    }

    /// Joins intervals that touch.
    pub(super) fn settle_losses(&mut self) {
        for intervals in self.loss_times.values_mut().flatten().flat_map(BTreeMap::values_mut) {
            *intervals = joined(std::mem::take(intervals));
        }
    }

    /// When a source lost events for a reason, as it stands in a snapshot.
    pub(super) fn loss_times_of(&self, key: &(Arc<Source>, String)) -> Option<Vec<LossTime>> {
        let times = self.loss_times.get(key)?.as_ref()?;
        let of_peer = |(peer, intervals): (&Option<Arc<Peer>>, &Vec<Interval>)| {
            let peer = peer.as_deref().cloned();
            intervals.iter().map(move |time| LossTime { time: *time, peer: peer.clone() }).collect::<Vec<_>>()
        };
        Some(times.iter().flat_map(of_peer).collect())
    }

    /// Who says which pods were there.
    pub(super) fn witness_list(&self) -> Vec<Witness> {
        let known = self.witnesses.iter();
        known
            .map(|(source, (tells, full))| Witness { source: Source::clone(source), tells: *tells, full: *full })
            .collect()
    }
}

/// A pod that was there as it stands in a snapshot.
pub(super) fn pod_presence((_, pod, node, from, told): &PodKey, present: &Present) -> PodPresence {
    PodPresence {
        workload: WorkloadRef::clone(&present.workload),
        pod: pod.to_string(),
        node: node.to_string(),
        from: *from,
        to: present.to,
        started: present.started,
        told: *told,
    }
}

/// Leaves what was in the span.
pub(super) fn cut_presence(body: &mut Body, span: &Span) {
    body.witnesses.retain(|witness| body.sources.contains(&witness.source));
    body.presence.retain_mut(|pod| match span.cut(Interval { from: pod.from, to: pod.to }) {
        Some(part) => {
            (pod.from, pod.to) = (part.from, part.to);
            pod.started = pod.started.filter(|at| span.meets(*at, *at));
            true
        }
        None => false,
    });
    for loss in &mut body.coverage.losses {
        if let Some(times) = &mut loss.times {
            times.retain_mut(|loss| span.cut(loss.time).map(|part| loss.time = part).is_some());
        }
    }
}
