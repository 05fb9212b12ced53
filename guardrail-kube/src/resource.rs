//! The resources of the API that are watched.

use guardrail_graph::inventory::Kind;

/// One resource of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// core/v1 Namespaces.
    Namespaces,
    /// core/v1 Nodes.
    Nodes,
    /// apps/v1 Deployments.
    Deployments,
    /// apps/v1 StatefulSets.
    StatefulSets,
    /// apps/v1 DaemonSets.
    DaemonSets,
    /// apps/v1 ReplicaSets: of those that belong to a Deployment only the metadata is read.
    ReplicaSets,
    /// batch/v1 CronJobs.
    CronJobs,
    /// batch/v1 Jobs.
    Jobs,
    /// core/v1 Services.
    Services,
    /// discovery.k8s.io/v1 EndpointSlices.
    EndpointSlices,
    /// networking.k8s.io/v1 NetworkPolicies.
    NetworkPolicies,
    /// core/v1 Pods.
    Pods,
}

impl Resource {
    /// All, in the order in which their first lists are requested. Pods come last, after the
    /// objects that name them.
    pub const ALL: [Self; 12] = [
        Self::Namespaces,
        Self::Nodes,
        Self::Deployments,
        Self::StatefulSets,
        Self::DaemonSets,
        Self::ReplicaSets,
        Self::CronJobs,
        Self::Jobs,
        Self::Services,
        Self::EndpointSlices,
        Self::NetworkPolicies,
        Self::Pods,
    ];

    /// The resource's name in paths and in RBAC rules.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Nodes => "nodes",
            Self::Deployments => "deployments",
            Self::StatefulSets => "statefulsets",
            Self::DaemonSets => "daemonsets",
            Self::ReplicaSets => "replicasets",
            Self::CronJobs => "cronjobs",
            Self::Jobs => "jobs",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::NetworkPolicies => "networkpolicies",
            Self::Pods => "pods",
        }
    }

    /// The API group as RBAC rules name it: empty for core.
    #[must_use]
    pub const fn group(self) -> &'static str {
        match self {
            Self::Namespaces | Self::Nodes | Self::Services | Self::Pods => "",
            Self::Deployments | Self::StatefulSets | Self::DaemonSets | Self::ReplicaSets => "apps",
            Self::CronJobs | Self::Jobs => "batch",
            Self::EndpointSlices => "discovery.k8s.io",
            Self::NetworkPolicies => "networking.k8s.io",
        }
    }

    /// Path of the collection over all namespaces.
    pub(crate) fn path(self) -> String {
        match self.group() {
            "" => format!("/api/v1/{}", self.as_str()),
            group => format!("/apis/{group}/v1/{}", self.as_str()),
        }
    }

    /// The kind of its objects.
    #[must_use]
    pub fn kind(self) -> Kind {
        let controller = |kind: &str| Kind::Controller(kind.to_owned());
        match self {
            Self::Namespaces => Kind::Namespace,
            Self::Nodes => Kind::Node,
            Self::Deployments => controller("Deployment"),
            Self::StatefulSets => controller("StatefulSet"),
            Self::DaemonSets => controller("DaemonSet"),
            Self::ReplicaSets => controller("ReplicaSet"),
            Self::CronJobs => controller("CronJob"),
            Self::Jobs => controller("Job"),
            Self::Services => Kind::Service,
            Self::EndpointSlices => Kind::EndpointSlice,
            Self::NetworkPolicies => Kind::NetworkPolicy,
            Self::Pods => Kind::Pod,
        }
    }

    /// Whether the metadata alone is enough to name the owner: a Deployment's own selector counts,
    /// never that of its ReplicaSets.
    pub(crate) const fn metadata_first(self) -> bool {
        matches!(self, Self::ReplicaSets)
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_has_its_place_its_path_and_its_kind() {
        for (i, resource) in Resource::ALL.into_iter().enumerate() {
            assert_eq!(resource.index(), i);
            let plural = format!("{}s", resource.kind().as_str().to_lowercase());
            let plural = plural.strip_suffix("ys").map_or(plural.clone(), |stem| format!("{stem}ies"));
            assert_eq!(resource.as_str(), plural);
        }
        assert_eq!(Resource::Pods.path(), "/api/v1/pods");
        assert_eq!(Resource::EndpointSlices.path(), "/apis/discovery.k8s.io/v1/endpointslices");
    }
}
