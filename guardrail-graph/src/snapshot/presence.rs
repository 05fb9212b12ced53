//! Which pods were there when, and when events were lost: the facts over which completeness is
//! judged ([`super::coverage`]).

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Interval, Source};
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
