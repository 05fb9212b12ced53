//! The parts of Kubernetes objects that are read, as serde sees them, and their conversion into [`super::types`].
//!
//! Which fields an object has depends on its kind. kubectl and the API server print `kind` before `spec`, so the fields can be read straight
//! into the right type (with the line of an error); only where they come first are they kept as a generic value until the kind is known.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use serde_saphyr::{Location, Spanned};

use super::types::{
    ContainerPort, Controller, Endpoint, EndpointPort, EndpointSlice, Kind, Labels, Namespace, Node, Object, OwnerRef,
    Pod, Service, ServicePort, TargetPort,
};
use crate::snapshot::LabelSelector;

/// Annotations that hold a node address (Calico, flannel, Cilium): tunnel ends, and interfaces of the node inside the pod network.
const NODE_ADDRESS_ANNOTATIONS: [&str; 14] = [
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
    "projectcalico.org/IPv4Address",
    "projectcalico.org/IPv6Address",
    "flannel.alpha.coreos.com/public-ip",
    "flannel.alpha.coreos.com/public-ipv6",
    "network.cilium.io/ipv4-cilium-host",
    "network.cilium.io/ipv6-cilium-host",
    "network.cilium.io/ipv4-health-ip",
    "io.cilium.network.ipv4-cilium-host",
    "io.cilium.network.ipv4-health-ip",
];

/// IPv4-mapped IPv6 addresses are IPv4 addresses.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// An address; empty text and `None` (headless Services) mean there is none.
#[derive(Debug)]
struct MaybeIp(Option<IpAddr>);

impl<'de> Deserialize<'de> for MaybeIp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(Self(None)) };
        if text.is_empty() || text == "None" {
            return Ok(Self(None));
        }
        match IpAddr::from_str(&text) {
            Ok(address) => Ok(Self(Some(canonical(address)))),
            Err(_) => {
                Err(D::Error::custom(format!("`{text}` is not an IP address: write it like 10.244.1.7 or fd00::7")))
            }
        }
    }
}

/// A port number, 1 to 65535.
#[derive(Debug, Clone, Copy)]
struct Port(u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        match u16::try_from(number) {
            Ok(port) if port != 0 => Ok(Self(port)),
            _ => Err(D::Error::custom(format!("{number} is not a port: it must be between 1 and 65535"))),
        }
    }
}

/// `targetPort`: a number or a name.
#[derive(Debug)]
struct RawTarget(TargetPort);

impl<'de> Deserialize<'de> for RawTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Target;
        impl Visitor<'_> for Target {
            type Value = RawTarget;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number or the name of a container port")
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<RawTarget, E> {
                match u16::try_from(v) {
                    Ok(port) if port != 0 => Ok(RawTarget(TargetPort::Number(port))),
                    _ => Err(E::custom(format!("{v} is not a port: it must be between 1 and 65535"))),
                }
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<RawTarget, E> {
                self.visit_u64(u64::try_from(v).unwrap_or(u64::MAX))
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<RawTarget, E> {
                Ok(RawTarget(TargetPort::Name(v.to_owned())))
            }
        }
        deserializer.deserialize_any(Target)
    }
}

/// `null` counts as missing, as the API server treats it.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

macro_rules! raw {
    ($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct $name { $($(#[$attr])* #[serde(deserialize_with = "nullable")] $field: $type,)* }
    };
}

raw!(Meta {
    name: String,
    namespace: Option<String>,
    uid: String,
    labels: Labels,
    annotations: Labels,
    owner_references: Vec<RawOwner>,
    deletion_timestamp: Option<String>,
});
raw!(RawOwner { kind: String, name: String, uid: String, controller: bool });
raw!(PodSpec { node_name: Option<String>, host_network: bool, containers: Vec<Container>, init_containers: Vec<Container> });
raw!(Container { restart_policy: Option<String>, ports: Vec<RawContainerPort> });
raw!(RawContainerPort { name: Option<String>, container_port: Option<Port>, protocol: Option<String>, host_port: Option<HostPort> });
raw!(PodStatus {
    phase: String,
    #[serde(rename = "podIP")] pod_ip: Option<MaybeIp>,
    #[serde(rename = "podIPs")] pod_ips: Vec<RawPodIp>,
    conditions: Vec<Condition>,
});
raw!(RawPodIp { ip: Option<MaybeIp> });
raw!(Condition { r#type: String, status: String });
raw!(NodeSpec { #[serde(rename = "podCIDR")] pod_cidr: Option<String>, #[serde(rename = "podCIDRs")] pod_cidrs: Vec<String> });
raw!(NodeStatus { addresses: Vec<NodeAddress> });
raw!(NodeAddress { r#type: String, address: String });
raw!(ServiceSpec {
    r#type: Option<String>,
    #[serde(rename = "clusterIP")] cluster_ip: Option<MaybeIp>,
    #[serde(rename = "clusterIPs")] cluster_ips: Vec<MaybeIp>,
    #[serde(rename = "externalIPs")] external_ips: Vec<MaybeIp>,
    #[serde(rename = "loadBalancerIP")] load_balancer_ip: Option<MaybeIp>,
    external_name: Option<String>,
    selector: Labels,
    ports: Vec<RawServicePort>,
});
raw!(RawServicePort { name: Option<String>, port: Option<Port>, protocol: Option<String>, target_port: Option<RawTarget>, node_port: Option<HostPort> });
raw!(ServiceStatus { load_balancer: LoadBalancer });
raw!(LoadBalancer { ingress: Vec<Ingress> });
raw!(Ingress { ip: Option<MaybeIp> });
raw!(ControllerSpec { selector: Option<serde_json::Value>, template: Template, job_template: JobTemplate });
raw!(Template { metadata: Meta });
raw!(JobTemplate { spec: JobSpec });
raw!(JobSpec { template: Template });
raw!(RawEndpoint { addresses: Vec<String>, conditions: EndpointConditions, node_name: Option<String>, target_ref: Option<TargetRef> });
raw!(EndpointConditions { ready: Option<bool>, serving: Option<bool>, terminating: Option<bool> });
raw!(TargetRef { kind: String, name: String });
raw!(RawEndpointPort { name: Option<String>, protocol: Option<String>, port: Option<Port> });

/// `hostPort` and `nodePort` may be 0 for "none".
#[derive(Debug)]
struct HostPort(Option<u16>);

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        match u16::try_from(number) {
            Ok(0) => Ok(Self(None)),
            Ok(port) => Ok(Self(Some(port))),
            Err(_) => Err(D::Error::custom(format!("{number} is not a port: it must be between 1 and 65535"))),
        }
    }
}

/// A field whose type depends on the object's kind.
#[derive(Debug)]
enum Late<T> {
    Absent,
    Typed(T),
    /// The kind was not known yet.
    Generic(serde_json::Value),
}

impl<T: DeserializeOwned + Default> Late<T> {
    fn resolve(self) -> Result<T, String> {
        match self {
            Self::Absent => Ok(T::default()),
            Self::Typed(value) => Ok(value),
            Self::Generic(value) => {
                serde_json::from_value::<Option<T>>(value).map(Option::unwrap_or_default).map_err(|e| e.to_string())
            }
        }
    }
}

#[derive(Debug)]
enum Spec {
    Absent,
    Ignored,
    Pod(PodSpec),
    Node(NodeSpec),
    Service(Box<ServiceSpec>),
    Controller(Box<ControllerSpec>),
    Generic(serde_json::Value),
}

#[derive(Debug)]
enum Status {
    Absent,
    Ignored,
    Pod(PodStatus),
    Node(NodeStatus),
    Service(ServiceStatus),
    Generic(serde_json::Value),
}

fn line(location: Location) -> usize {
    usize::try_from(location.line()).unwrap_or(0)
}

/// An object or a `List`, read as far as its kind allowed.
#[derive(Debug)]
pub(super) struct Item {
    kind: Option<String>,
    meta: Meta,
    spec: Spec,
    status: Status,
    endpoints: Late<Vec<RawEndpoint>>,
    ports: Late<Vec<RawEndpointPort>>,
    items: Option<Vec<Item>>,
    /// Line of its kind or metadata, 0 if not known.
    pub(super) line: usize,
}

/// What a list of its kind says of its items, which then lack `kind` (the API server prints lists so).
#[derive(Clone, Copy)]
pub(super) struct ItemSeed<'a> {
    pub(super) kind: Option<&'a str>,
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ItemSeed { kind: None }.deserialize(deserializer)
    }
}

impl<'de> DeserializeSeed<'de> for ItemSeed<'_> {
    type Value = Item;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Item, D::Error> {
        deserializer.deserialize_map(self)
    }
}

struct ItemsSeed<'a> {
    kind: Option<&'a str>,
}

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_> {
    type Value = Vec<Item>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Item>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_> {
    type Value = Vec<Item>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the items of a list of Kubernetes objects")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Vec<Item>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Item>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(ItemSeed { kind: self.kind })? {
            items.push(item);
        }
        Ok(items)
    }
}

impl<'de> Visitor<'de> for ItemSeed<'_> {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object (a mapping with apiVersion, kind and metadata)")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
        let mut item = Item {
            kind: self.kind.map(str::to_owned),
            meta: Meta::default(),
            spec: Spec::Absent,
            status: Status::Absent,
            endpoints: Late::Absent,
            ports: Late::Absent,
            items: None,
            line: 0,
        };
        while let Some(key) = map.next_key::<String>()? {
            let kind = item.kind.as_deref().map(|k| (Kind::from_name(k), k));
            match (key.as_str(), kind) {
                ("kind", _) => {
                    let kind: Option<Spanned<String>> = map.next_value()?;
                    item.line = kind.as_ref().map_or(0, |k| line(k.referenced));
                    item.kind = kind.map(|k| k.value);
                }
                ("metadata", Some((None, _))) => {
                    map.next_value::<IgnoredAny>()?;
                }
                ("metadata", _) => {
                    if let Some(meta) = map.next_value::<Option<Spanned<Meta>>>()? {
                        item.line = line(meta.referenced);
                        item.meta = meta.value;
                    }
                }
                ("spec", Some((kind, _))) => {
                    item.spec = match kind {
                        Some(Kind::Pod) => Spec::Pod(map.next_value::<Option<_>>()?.unwrap_or_default()),
                        Some(Kind::Node) => Spec::Node(map.next_value::<Option<_>>()?.unwrap_or_default()),
                        Some(Kind::Service) => Spec::Service(map.next_value::<Option<_>>()?.unwrap_or_default()),
                        Some(Kind::Controller(_)) => {
                            Spec::Controller(map.next_value::<Option<_>>()?.unwrap_or_default())
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            Spec::Ignored
                        }
                    }
                }
                ("spec", None) => item.spec = Spec::Generic(map.next_value()?),
                ("status", Some((kind, _))) => {
                    item.status = match kind {
                        Some(Kind::Pod) => Status::Pod(map.next_value::<Option<_>>()?.unwrap_or_default()),
                        Some(Kind::Node) => Status::Node(map.next_value::<Option<_>>()?.unwrap_or_default()),
                        Some(Kind::Service) => Status::Service(map.next_value::<Option<_>>()?.unwrap_or_default()),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            Status::Ignored
                        }
                    }
                }
                ("status", None) => item.status = Status::Generic(map.next_value()?),
                ("endpoints", Some((Some(Kind::EndpointSlice), _))) => {
                    item.endpoints = Late::Typed(map.next_value::<Option<_>>()?.unwrap_or_default());
                }
                ("endpoints", None) => item.endpoints = Late::Generic(map.next_value()?),
                ("ports", Some((Some(Kind::EndpointSlice), _))) => {
                    item.ports = Late::Typed(map.next_value::<Option<_>>()?.unwrap_or_default())
                }
                ("ports", None) => item.ports = Late::Generic(map.next_value()?),
                ("items", None) => item.items = Some(map.next_value_seed(ItemsSeed { kind: None })?),
                ("items", Some((None, name))) if name.ends_with("List") => {
                    let of = name.strip_suffix("List").filter(|k| !k.is_empty()).map(str::to_owned);
                    item.items = Some(map.next_value_seed(ItemsSeed { kind: of.as_deref() })?);
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        // The JSON reader tells no lines but with its errors.
        if item.line == 0 {
            item.check().map_err(A::Error::custom)?;
        }
        Ok(item)
    }
}

/// What became of an [`Item`].
pub(super) enum Converted {
    Object(Object),
    List(Vec<Item>),
    /// A kind that is not read: its name.
    Ignored(String),
}

impl Item {
    /// What can be said about the object as soon as it is read, while the line is known.
    fn check(&self) -> Result<(), String> {
        if let Some(kind) = self.kind.as_deref()
            && self.items.is_none()
            && Kind::from_name(kind).is_some()
            && self.meta.name.is_empty()
        {
            return Err(format!("a {kind} without metadata.name: give it its name"));
        }
        Ok(())
    }

    /// The kind that the items of this list have, if it says so.
    pub(super) fn item_kind(&self) -> Option<String> {
        self.kind.as_deref()?.strip_suffix("List").filter(|k| !k.is_empty()).map(str::to_owned)
    }

    pub(super) fn convert(mut self, default_kind: Option<&str>) -> Result<Converted, String> {
        if let Some(items) = self.items.take() {
            return Ok(Converted::List(items));
        }
        let Some(name) = self.kind.take().or_else(|| default_kind.map(str::to_owned)) else {
            return Err(
                "not a Kubernetes object: it has no `kind`; expected what `kubectl get -o yaml` prints".to_owned()
            );
        };
        if name == "List" {
            return Ok(Converted::List(Vec::new()));
        }
        let Some(kind) = Kind::from_name(&name) else { return Ok(Converted::Ignored(name)) };
        self.kind = Some(name.clone());
        self.check()?;
        let subject = match &self.meta.namespace {
            Some(namespace) => format!("{name} {namespace}/{}", self.meta.name),
            None => format!("{name} {}", self.meta.name),
        };
        self.object(&kind)
            .map(|o| o.map_or(Converted::Ignored(name), Converted::Object))
            .map_err(|e| format!("{subject}: {e}"))
    }

    fn object(self, kind: &Kind) -> Result<Option<Object>, String> {
        let Self { meta, spec, status, endpoints, ports, .. } = self;
        let namespace = meta.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned());
        Ok(Some(match kind {
            Kind::Namespace => {
                let mut labels = meta.labels;
                labels.entry("kubernetes.io/metadata.name".to_owned()).or_insert_with(|| meta.name.clone());
                Object::Namespace(Arc::new(Namespace { name: meta.name, labels }))
            }
            Kind::Node => Object::Node(Arc::new(node(meta, node_spec(spec)?, node_status(status)?)?)),
            Kind::Pod => Object::Pod(Arc::new(pod(namespace, meta, pod_spec(spec)?, pod_status(status)?)?)),
            Kind::Service => {
                Object::Service(Arc::new(service(namespace, meta, service_spec(spec)?, service_status(status)?)?))
            }
            Kind::EndpointSlice => {
                Object::EndpointSlice(Arc::new(slice(namespace, meta, endpoints.resolve()?, ports.resolve()?)?))
            }
            Kind::Controller(kind) => {
                Object::Controller(Arc::new(controller(kind, namespace, meta, controller_spec(spec)?)?))
            }
            Kind::NetworkPolicy => return Ok(None),
        }))
    }
}

/// The variants of an enum are boxed where they are large.
trait Unboxed<T> {
    fn unboxed(self) -> T;
}

impl<T> Unboxed<T> for T {
    fn unboxed(self) -> T {
        self
    }
}

impl<T> Unboxed<T> for Box<T> {
    fn unboxed(self) -> T {
        *self
    }
}

macro_rules! late {
    ($name:ident, $from:ident, $variant:ident, $type:ty) => {
        fn $name(value: $from) -> Result<$type, String> {
            match value {
                $from::$variant(v) => Ok(v.unboxed()),
                $from::Generic(v) => {
                    serde_json::from_value::<Option<$type>>(v).map(Option::unwrap_or_default).map_err(|e| e.to_string())
                }
                _ => Ok(<$type>::default()),
            }
        }
    };
}
late!(pod_spec, Spec, Pod, PodSpec);
late!(node_spec, Spec, Node, NodeSpec);
late!(service_spec, Spec, Service, ServiceSpec);
late!(controller_spec, Spec, Controller, ControllerSpec);
late!(pod_status, Status, Pod, PodStatus);
late!(node_status, Status, Node, NodeStatus);
late!(service_status, Status, Service, ServiceStatus);

fn owner(references: Vec<RawOwner>) -> Option<OwnerRef> {
    references.into_iter().find(|o| o.controller).map(|o| OwnerRef { kind: o.kind, name: o.name, uid: o.uid })
}

fn protocol(text: Option<String>) -> String {
    text.filter(|p| !p.is_empty()).unwrap_or_else(|| "TCP".to_owned())
}

fn node(meta: Meta, spec: NodeSpec, status: NodeStatus) -> Result<Node, String> {
    let mut addresses = Vec::new();
    for entry in status.addresses.iter().filter(|a| matches!(a.r#type.as_str(), "InternalIP" | "ExternalIP")) {
        let address: IpAddr =
            entry.address.parse().map_err(|_| format!("status.addresses: `{}` is not an IP address", entry.address))?;
        addresses.push(canonical(address));
    }
    for annotation in NODE_ADDRESS_ANNOTATIONS {
        // An annotation is nobody's contract: what does not parse is not an address.
        if let Some(address) =
            meta.annotations.get(annotation).and_then(|v| v.split('/').next()).and_then(|v| v.parse::<IpAddr>().ok())
        {
            addresses.push(canonical(address));
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    let texts = if spec.pod_cidrs.is_empty() {
        spec.pod_cidr.into_iter().filter(|c| !c.is_empty()).collect()
    } else {
        spec.pod_cidrs
    };
    let pod_cidrs = texts
        .iter()
        .map(|c| {
            c.parse::<IpNet>().map_err(|_| format!("spec.podCIDR: `{c}` is not a range: write it like 10.244.1.0/24"))
        })
        .collect::<Result<_, _>>()?;
    Ok(Node { name: meta.name, labels: meta.labels, addresses, pod_cidrs })
}

fn pod(namespace: String, meta: Meta, spec: PodSpec, status: PodStatus) -> Result<Pod, String> {
    let restartable = spec.init_containers.into_iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = Vec::new();
    for raw in spec.containers.into_iter().chain(restartable).flat_map(|c| c.ports) {
        let Some(Port(port)) = raw.container_port else {
            return Err("a container port without containerPort: give its number".to_owned());
        };
        ports.push(ContainerPort {
            name: raw.name,
            port,
            protocol: protocol(raw.protocol),
            host_port: raw.host_port.and_then(|p| p.0),
        });
    }
    let mut addresses: Vec<IpAddr> = status.pod_ips.into_iter().filter_map(|i| i.ip?.0).collect();
    if let Some(MaybeIp(Some(address))) = status.pod_ip
        && !addresses.contains(&address)
    {
        addresses.insert(0, address);
    }
    let annotation = |key: &str| meta.annotations.get(key).cloned();
    Ok(Pod {
        config_hash: annotation("kubernetes.io/config.hash").or_else(|| annotation("kubernetes.io/config.mirror")),
        namespace,
        name: meta.name,
        uid: meta.uid,
        labels: meta.labels,
        controller: owner(meta.owner_references),
        node: spec.node_name.filter(|n| !n.is_empty()),
        host_network: spec.host_network,
        addresses,
        finished: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        terminating: meta.deletion_timestamp.is_some(),
        ready: status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True"),
        ports,
    })
}

fn service(namespace: String, meta: Meta, spec: ServiceSpec, status: ServiceStatus) -> Result<Service, String> {
    let mut cluster_ips: Vec<IpAddr> = spec.cluster_ips.into_iter().filter_map(|i| i.0).collect();
    if let Some(MaybeIp(Some(address))) = spec.cluster_ip
        && !cluster_ips.contains(&address)
    {
        cluster_ips.insert(0, address);
    }
    let mut external_ips: Vec<IpAddr> =
        spec.external_ips.into_iter().chain(spec.load_balancer_ip).filter_map(|i| i.0).collect();
    external_ips.extend(status.load_balancer.ingress.into_iter().filter_map(|i| i.ip?.0));
    external_ips.sort_unstable();
    external_ips.dedup();
    let mut ports = Vec::new();
    for raw in spec.ports {
        let Some(Port(port)) = raw.port else {
            return Err("a Service port without `port`: give its number".to_owned());
        };
        ports.push(ServicePort {
            name: raw.name.filter(|n| !n.is_empty()),
            port,
            protocol: protocol(raw.protocol),
            target_port: raw.target_port.map_or(TargetPort::Number(port), |t| t.0),
            node_port: raw.node_port.and_then(|p| p.0),
        });
    }
    Ok(Service {
        namespace,
        name: meta.name,
        service_type: spec.r#type.unwrap_or_else(|| "ClusterIP".to_owned()),
        cluster_ips,
        external_ips,
        external_name: spec.external_name,
        selector: spec.selector,
        ports,
    })
}

fn slice(
    namespace: String,
    meta: Meta,
    endpoints: Vec<RawEndpoint>,
    ports: Vec<RawEndpointPort>,
) -> Result<EndpointSlice, String> {
    let mut converted = Vec::new();
    for raw in endpoints {
        // addressType FQDN: names are no addresses, and kube-proxy ignores them as well.
        let addresses = raw.addresses.iter().filter_map(|a| a.parse().ok()).map(canonical).collect();
        let EndpointConditions { ready, serving, terminating } = raw.conditions;
        converted.push(Endpoint {
            addresses,
            ready: ready.unwrap_or(true) || (terminating == Some(true) && serving.unwrap_or(true)),
            node: raw.node_name,
            pod: raw.target_ref.filter(|t| t.kind == "Pod").map(|t| t.name),
        });
    }
    Ok(EndpointSlice {
        namespace,
        service: meta.labels.get("kubernetes.io/service-name").cloned(),
        name: meta.name,
        endpoints: converted,
        ports: ports
            .into_iter()
            .filter_map(|p| {
                Some(EndpointPort { name: p.name.unwrap_or_default(), protocol: protocol(p.protocol), port: p.port?.0 })
            })
            .collect(),
    })
}

fn controller(kind: &str, namespace: String, meta: Meta, spec: ControllerSpec) -> Result<Controller, String> {
    // A Job's selector names its uid. A ReplicationController's is a plain map of labels.
    let selector = match (kind, spec.selector) {
        ("Job" | "CronJob", _) | (_, None) => None,
        ("ReplicationController", Some(value)) => {
            Some(LabelSelector::of_labels(serde_json::from_value(value).map_err(|e| format!("spec.selector: {e}"))?))
        }
        (_, Some(value)) => {
            Some(serde_json::from_value::<LabelSelector>(value).map_err(|e| format!("spec.selector: {e}"))?)
        }
    };
    let template = if kind == "CronJob" { spec.job_template.spec.template } else { spec.template };
    Ok(Controller {
        kind: kind.to_owned(),
        namespace,
        name: meta.name,
        uid: meta.uid,
        controller: owner(meta.owner_references),
        selector,
        template_labels: template.metadata.labels,
    })
}
