//! Counters of an observer, as `/metrics` shows them.

use std::sync::Arc;

use crate::{
    observe::{LossClass, LossReason},
    peer::{Peer, Protocol},
    snapshot::Counts,
};

/// Reasons of `guardrail_flows_unresolved_total`; each exists from the start at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnresolvedReason {
    /// The address changed its owner around the time of the flow, and no record says who had it.
    IpReuse,
    /// An address inside a pod range that nobody owned.
    PodRangeNoOwner,
    /// The role of the local socket could not be told.
    RoleUnknown,
    /// The local pod never became known.
    PodUnknown,
    /// A connection through a Service whose backend could not be told.
    ServiceBackendUnknown,
    /// Failed attempts through a Service with several workloads (or none) behind it.
    ServiceAttemptFailed,
    /// A Service address at a port that the Service does not have.
    ServicePortUnknown,
    /// A pod of another node, while only the pods of this one are known: `merge` gives it its name.
    RemotePod,
    /// Nothing of the cluster was known yet, so the address may have been a pod's.
    ClusterUnknown,
    /// The local end is on another node: several nodes share this kernel, and that node's own agent counts the flow.
    OtherNode,
}

impl UnresolvedReason {
    /// Every reason, in the order in which they are shown.
    pub const ALL: [Self; 10] = [
        Self::IpReuse,
        Self::PodRangeNoOwner,
        Self::RoleUnknown,
        Self::PodUnknown,
        Self::ServiceBackendUnknown,
        Self::ServiceAttemptFailed,
        Self::ServicePortUnknown,
        Self::RemotePod,
        Self::ClusterUnknown,
        Self::OtherNode,
    ];

    /// Those that follow from the other facts of a snapshot and are computed anew with each.
    pub const DERIVED: [Self; 3] = [Self::ServiceBackendUnknown, Self::ServiceAttemptFailed, Self::RemotePod];

    /// Label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IpReuse => "ip_reuse",
            Self::PodRangeNoOwner => "pod_range_no_owner",
            Self::RoleUnknown => "role_unknown",
            Self::PodUnknown => "pod_unknown",
            Self::ServiceBackendUnknown => "service_backend_unknown",
            Self::ServiceAttemptFailed => "service_attempt_failed",
            Self::ServicePortUnknown => "service_port_unknown",
            Self::RemotePod => "remote_pod",
            Self::ClusterUnknown => "cluster_unknown",
            Self::OtherNode => "other_node",
        }
    }
}

/// A point-in-time copy of the observer's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Edges kept (without inferred ones).
    pub edges: usize,
    /// Service flows kept.
    pub service_flows: usize,
    /// Flows that wait for their pod or their role.
    pub pending: usize,
    /// Unresolved flows by reason, in the order of [`UnresolvedReason::ALL`]; Service reasons as of the last document or scrape.
    pub unresolved: Vec<(&'static str, u64)>,
    /// Losses by reason, in the order of [`LossReason::ALL`].
    pub losses: Vec<(LossReason, LossClass, u64)>,
    /// DNS names that made room for newer ones.
    pub names_forgotten: u64,
    /// Entries of the identity tables by kind: `pod`, `address`, `cgroup`, `name`, `listener`, `peer`.
    pub identity_entries: Vec<(&'static str, usize)>,
}

/// Outcomes that [`EdgeCounter::outcomes`] counts: `opened` has those found at start in it.
pub const OUTCOMES: [&str; 4] = ["opened", "refused", "unanswered", "unreachable"];

/// Series of `guardrail_flow_connections_total`: an edge whose external ends are one, and its counts by outcome.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EdgeCounter {
    /// The client; [`Peer::many`] for whatever is outside the cluster.
    pub client: Arc<Peer>,
    /// The server; likewise.
    pub server: Arc<Peer>,
    /// Protocol.
    pub protocol: Protocol,
    /// Pod port.
    pub port: u16,
    /// In the order of [`OUTCOMES`].
    pub outcomes: [u64; 4],
}

/// What `/metrics` shows of the edges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeCounters {
    /// Sorted.
    pub edges: Vec<EdgeCounter>,
    /// As [`crate::snapshot::Coverage::complete`].
    pub complete: bool,
}

/// Adds the counts of an edge.
pub(crate) fn add_outcomes(sums: &mut [u64; 4], counts: &Counts) {
    let gains = [counts.established(), counts.refused, counts.unanswered, counts.unreachable];
    for (sum, gain) in sums.iter_mut().zip(gains) {
        *sum = sum.saturating_add(gain);
    }
}
