//! Why a flow has no name or no role.

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
    /// It arrived at a port of a proxy to which connections are redirected, and neither the proxy
    /// nor the client's own record, of this node or another, tells which port it dialled.
    Redirected,
    /// The local end is on another node: several nodes share this kernel, and that node's own agent
    /// counts the flow.
    OtherNode,
}

impl UnresolvedReason {
    /// Every reason, in the order in which they are shown.
    pub const ALL: [Self; 11] = [
        Self::IpReuse,
        Self::PodRangeNoOwner,
        Self::RoleUnknown,
        Self::PodUnknown,
        Self::ServiceBackendUnknown,
        Self::ServiceAttemptFailed,
        Self::ServicePortUnknown,
        Self::RemotePod,
        Self::ClusterUnknown,
        Self::Redirected,
        Self::OtherNode,
    ];

    /// Those that follow from the other facts of a snapshot and are computed anew with each.
    pub const DERIVED: [Self; 4] =
        [Self::ServiceBackendUnknown, Self::ServiceAttemptFailed, Self::RemotePod, Self::Redirected];

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
            Self::Redirected => "redirected",
            Self::OtherNode => "other_node",
        }
    }
}
