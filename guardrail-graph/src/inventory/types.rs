//! Trimmed Kubernetes objects. Field meanings are those of the API (core/v1, apps/v1, batch/v1,
//! discovery.k8s.io/v1).

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

pub use super::labels::Labels;
use crate::{peer::Protocol, selector::LabelSelector, time::Timestamp};

/// Kinds that are understood.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Namespace.
    Namespace,
    /// core/v1 Node.
    Node,
    /// core/v1 Pod.
    Pod,
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// A workload controller by its kind: `ReplicaSet`, `Deployment`, `StatefulSet`, `DaemonSet`,
    /// `Job`, `CronJob`, `ReplicationController`.
    Controller(String),
    /// networking.k8s.io/v1 NetworkPolicy. guardrail-graph keeps only that it exists;
    /// guardrail-policy reads policies.
    NetworkPolicy,
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// `namespace/name`, or the name of a cluster-scoped object.
    #[must_use]
    pub fn full_name(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }
}

/// One trimmed object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// Namespace.
    Namespace(Arc<Namespace>),
    /// Node.
    Node(Arc<Node>),
    /// Pod.
    Pod(Arc<Pod>),
    /// Service.
    Service(Arc<Service>),
    /// EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// Workload controller.
    Controller(Arc<Controller>),
}

/// core/v1 Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`, with `kubernetes.io/metadata.name` added if the input lacks it
    /// (docs/semantics.md A22).
    pub labels: Labels,
}

/// core/v1 Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `status.nodeInfo.operatingSystem`: the kubelet's own word.
    pub os: Option<String>,
    /// `status.addresses` that are IPs, and tunnel addresses from annotations (Calico, flannel,
    /// Cilium).
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs` (or `podCIDR`).
    pub pod_cidrs: Vec<IpNet>,
}

/// core/v1 Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.namespace`, `default` if missing.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; for static pods this differs from the uid in the cgroup path, see
    /// `config_hash`.
    pub uid: String,
    /// Annotation `kubernetes.io/config.mirror`: the uid that a static pod's cgroup shows. Not to
    /// be trusted alone: whoever may create a pod may write it.
    pub config_hash: Option<String>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// The owner reference with `controller: true`.
    pub controller: Option<Arc<OwnerRef>>,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `status.podIPs` (or `podIP`).
    pub addresses: Vec<IpAddr>,
    /// Addresses on networks beside the first one, by the annotation
    /// `k8s.v1.cni.cncf.io/network-status` (Multus): none of [`Pod::addresses`].
    pub secondary_addresses: Box<[IpAddr]>,
    /// `status.startTime`: the pod had no address before.
    pub started: Option<Timestamp>,
    /// When the condition `PodReadyToStartContainers` became true: the pod has had its address
    /// since then at latest. `None`: it is not, or the cluster (before 1.29) does not say so.
    pub networked: Option<Timestamp>,
    /// `status.phase` is `Succeeded` or `Failed` (docs/semantics.md A32).
    pub finished: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// The `Ready` condition is true.
    pub ready: bool,
    /// Container ports, of regular and restartable init containers.
    pub ports: Arc<[ContainerPort]>,
}

/// A container port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPort {
    /// `name`.
    pub name: Option<String>,
    /// `containerPort`.
    pub port: u16,
    /// `protocol`, default `TCP`. The text as it was read: a snapshot repeats it, whatever it is.
    pub protocol: String,
    /// `hostPort`.
    pub host_port: Option<u16>,
}

/// A controlling owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerRef {
    /// `kind`.
    pub kind: String,
    /// `name`.
    pub name: String,
    /// `uid`.
    pub uid: String,
}

/// A workload controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controller {
    /// `kind`.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Its own controlling owner (ReplicaSet → Deployment, Job → CronJob).
    pub controller: Option<OwnerRef>,
    /// `spec.selector`, if this kind has one that a policy can use (not for Job: it names
    /// `controller-uid`).
    pub selector: Option<LabelSelector>,
    /// `spec.template.metadata.labels` (CronJob: of the job template's pod template).
    pub template_labels: Labels,
    /// The template's container ports, as [`Pod::ports`]; empty for a controller that another one
    /// controls: that one has them.
    pub template_ports: Arc<[ContainerPort]>,
    /// `spec.template.spec.hostNetwork`.
    pub template_host_network: bool,
    /// `spec.schedule` of a CronJob.
    pub schedule: Option<String>,
}

/// core/v1 Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `spec.type`.
    pub service_type: String,
    /// `spec.clusterIPs` that are addresses (`None` for headless).
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, `spec.loadBalancerIP` and `status.loadBalancer.ingress[].ip`.
    pub external_ips: Vec<IpAddr>,
    /// `spec.externalName`.
    pub external_name: Option<String>,
    /// `spec.selector`; empty means selector-less.
    pub selector: Labels,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.externalTrafficPolicy` is `Local`: clients outside keep their address.
    pub keeps_client_address: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`.
    pub name: Option<String>,
    /// `port`.
    pub port: u16,
    /// `protocol`, default `TCP`. The text as it was read: a snapshot repeats it, whatever it is.
    pub protocol: String,
    /// `targetPort`, default `port`.
    pub target_port: TargetPort,
    /// `nodePort`.
    pub node_port: Option<u16>,
}

/// A numeric or named port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By container port name.
    Name(String),
}

/// discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Label `kubernetes.io/service-name`.
    pub service: Option<String>,
    /// `endpoints`.
    pub endpoints: Vec<Endpoint>,
    /// `ports`: `(name, protocol, port)`; a null port means all ports and is left out.
    pub ports: Vec<EndpointPort>,
}

/// One endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses`.
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready` (null counts as true) or `conditions.serving` while terminating.
    pub ready: bool,
    /// `nodeName`.
    pub node: Option<String>,
    /// `targetRef` of kind Pod: its name.
    pub pod: Option<String>,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// `name`, matching the Service port's name; empty means unnamed.
    pub name: String,
    /// `protocol`.
    pub protocol: String,
    /// `port`.
    pub port: u16,
}

impl Kind {
    /// Kinds of workload controllers that are read.
    pub const CONTROLLERS: [&'static str; 10] = [
        "CloneSet",
        "CronJob",
        "DaemonSet",
        "Deployment",
        "DeploymentConfig",
        "Job",
        "ReplicaSet",
        "ReplicationController",
        "Rollout",
        "StatefulSet",
    ];

    /// The kind's name in the API.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Controller(kind) => kind,
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    /// The kind of that name in an API group, if it is understood; without a group, as in the items
    /// of a list, by the name alone. Others use the names too: Knative's Service, Volcano's Job.
    #[must_use]
    pub fn from_name(group: Option<&str>, name: &str) -> Option<Self> {
        let groups: &[&str] = match name {
            "Namespace" | "Node" | "Pod" | "ReplicationController" | "Service" => &[""],
            "EndpointSlice" => &["discovery.k8s.io"],
            "NetworkPolicy" => &["networking.k8s.io", "extensions"],
            "CronJob" | "Job" => &["batch"],
            "Deployment" | "ReplicaSet" => &["apps", "extensions"],
            // OpenKruise's have templates like those of Kubernetes.
            "DaemonSet" | "StatefulSet" => &["apps", "extensions", "apps.kruise.io"],
            "CloneSet" => &["apps.kruise.io"],
            "DeploymentConfig" => &["apps.openshift.io", ""],
            "Rollout" => &["argoproj.io"],
            _ => return None,
        };
        if group.is_some_and(|group| !groups.contains(&group)) {
            return None;
        }
        Some(match name {
            "Namespace" => Self::Namespace,
            "Node" => Self::Node,
            "Pod" => Self::Pod,
            "Service" => Self::Service,
            "EndpointSlice" => Self::EndpointSlice,
            "NetworkPolicy" => Self::NetworkPolicy,
            _ => Self::Controller(name.to_owned()),
        })
    }
}

impl Object {
    /// What it is called.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        let key = |kind, namespace: &str, name: &str| ObjectKey {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        match self {
            Self::Namespace(o) => key(Kind::Namespace, "", &o.name),
            Self::Node(o) => key(Kind::Node, "", &o.name),
            Self::Pod(o) => key(Kind::Pod, &o.namespace, &o.name),
            Self::Service(o) => key(Kind::Service, &o.namespace, &o.name),
            Self::EndpointSlice(o) => key(Kind::EndpointSlice, &o.namespace, &o.name),
            Self::Controller(o) => key(Kind::Controller(o.kind.clone()), &o.namespace, &o.name),
        }
    }
}

impl Node {
    /// Why no agent can run on it, if so: another operating system, a virtual kubelet, Fargate.
    #[must_use]
    pub fn unobservable(&self) -> Option<String> {
        if self.labels.get("type") == Some("virtual-kubelet") {
            return Some("virtual kubelet".to_owned());
        }
        if self.labels.get("eks.amazonaws.com/compute-type") == Some("fargate") {
            return Some("Fargate".to_owned());
        }
        let os = self.os().filter(|os| *os != "linux")?;
        Some(format!("{os} node"))
    }

    /// Its operating system: what its kubelet says, else the label.
    #[must_use]
    pub fn os(&self) -> Option<&str> {
        let label = || self.labels.get("kubernetes.io/os").filter(|os| !os.is_empty());
        self.os.as_deref().or_else(label)
    }
}

impl Pod {
    /// The name of container port `port`, if a container names it.
    #[must_use]
    pub fn port_name(&self, port: u16, protocol: Protocol) -> Option<&str> {
        self.ports
            .iter()
            .find(|p| p.port == port && protocol.is_named(&p.protocol) && p.name.is_some())
            .and_then(|p| p.name.as_deref())
    }
}
