//! From raw fields to [`crate::inventory::types`].

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::Deserialize;

use super::fields::*;
use crate::{
    inventory::{
        complaint::mismatch,
        types::{
            ContainerPort, Controller, Endpoint, EndpointPort, EndpointSlice, Node, OwnerRef, Pod, Service,
            ServicePort, TargetPort,
        },
    },
    selector::LabelSelector,
};

/// Annotations that hold a node address (Calico, flannel, Cilium): tunnel ends, and interfaces of
/// the node inside the pod network.
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

/// What Multus notes of a pod's networks.
const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
/// A pod with more interfaces than this is none.
const MAX_SECONDARY_ADDRESSES: usize = 64;

/// The controller among the owners. The API server does not look at kind and name of a reference,
/// and whoever may create a pod may write one: what cannot be the name of an object is none, so
/// that no text of any length becomes the name of a workload.
fn owner(references: Vec<RawOwner>) -> Option<OwnerRef> {
    let is_kind = |kind: &str| (1..=63).contains(&kind.len()) && kind.bytes().all(|b| b.is_ascii_alphanumeric());
    let is_name = |name: &str| {
        (1..=253).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b))
    };
    let controller = references.into_iter().find(|o| o.controller)?;
    (is_kind(&controller.kind) && is_name(&controller.name)).then_some(OwnerRef {
        kind: controller.kind,
        name: controller.name,
        uid: controller.uid,
    })
}

fn protocol(text: Option<String>) -> String {
    text.filter(|p| !p.is_empty()).unwrap_or_else(|| "TCP".to_owned())
}

pub(super) fn node(meta: Meta, spec: NodeSpec, status: NodeStatus) -> Result<Node, String> {
    let mut addresses = Vec::new();
    for entry in status.addresses.iter().filter(|a| matches!(a.r#type.as_str(), "InternalIP" | "ExternalIP")) {
        // Free text as well: the API server does not look at it, and a name is no address.
        addresses.extend(parse_sloppy(&entry.address).map(canonical));
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
    let os = status.node_info.operating_system.filter(|os| !os.is_empty());
    Ok(Node { name: meta.name, labels: meta.labels, os, addresses, pod_cidrs })
}

/// Ports of regular and restartable init containers.
fn container_ports(regular: Vec<Container>, init: Vec<Container>) -> Result<Arc<[ContainerPort]>, String> {
    let restartable = init.into_iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = Vec::new();
    for raw in regular.into_iter().chain(restartable).flat_map(|c| c.ports) {
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
    Ok(if ports.is_empty() { Arc::default() } else { ports.into() })
}

/// One network of a pod, as Multus notes it.
#[derive(Deserialize)]
struct NetworkStatus {
    #[serde(default)]
    ips: Vec<String>,
}

/// Addresses that the annotation of Multus tells beside `first`, those of the first network. It is
/// nobody's contract: what does not parse is no address.
fn secondary_addresses(annotation: Option<&str>, first: &[IpAddr]) -> Box<[IpAddr]> {
    let networks: Vec<NetworkStatus> = annotation.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let all = networks.iter().flat_map(|network| &network.ips).filter_map(|ip| ip.parse::<IpAddr>().ok());
    let own: BTreeSet<IpAddr> = all.map(canonical).filter(|address| !first.contains(address)).collect();
    own.into_iter().take(MAX_SECONDARY_ADDRESSES).collect()
}

pub(super) fn pod(namespace: String, meta: Meta, spec: PodSpec, status: PodStatus) -> Result<Pod, String> {
    let ports = container_ports(spec.containers, spec.init_containers)?;
    let mut addresses: Vec<IpAddr> = status.pod_ips.into_iter().filter_map(|i| i.ip?.0).collect();
    if let Some(MaybeIp(Some(address))) = status.pod_ip
        && !addresses.contains(&address)
    {
        addresses.insert(0, address);
    }
    // There may be tens of thousands of pods, and a list that grows has room for four.
    addresses.shrink_to_fit();
    let annotation = |key: &str| meta.annotations.get(key).map(str::to_owned);
    Ok(Pod {
        // The kubelet writes the hash under this name into mirror objects only.
        config_hash: annotation("kubernetes.io/config.mirror"),
        namespace,
        name: meta.name,
        uid: meta.uid,
        labels: meta.labels,
        controller: owner(meta.owner_references).map(Arc::new),
        node: spec.node_name.filter(|n| !n.is_empty()),
        host_network: spec.host_network,
        secondary_addresses: secondary_addresses(meta.annotations.get(NETWORK_STATUS), &addresses),
        addresses,
        started: status.start_time.and_then(|at| at.parse().ok()),
        networked: status
            .conditions
            .iter()
            .find(|c| c.r#type == "PodReadyToStartContainers" && c.status == "True")
            .and_then(|c| c.last_transition_time.as_ref()?.parse().ok()),
        finished: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        terminating: meta.deletion_timestamp.is_some(),
        ready: status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True"),
        ports,
    })
}

pub(super) fn service(
    namespace: String,
    meta: Meta,
    spec: ServiceSpec,
    status: ServiceStatus,
) -> Result<Service, String> {
    let mut cluster_ips: Vec<IpAddr> = spec.cluster_ips.into_iter().filter_map(|i| i.0).collect();
    if let Some(ServiceIp(Some(address))) = spec.cluster_ip
        && !cluster_ips.contains(&address)
    {
        cluster_ips.insert(0, address);
    }
    let mut external_ips: Vec<IpAddr> = spec.external_ips.into_iter().filter_map(|i| i.0).collect();
    // Free text: the API server does not look at it (KEP-4858), and controllers that do write the
    // address into the status.
    external_ips.extend(spec.load_balancer_ip.and_then(|ip| ip.0));
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
        keeps_client_address: spec.external_traffic_policy.as_deref() == Some("Local"),
        selector: spec.selector,
        ports,
    })
}

pub(super) fn slice(
    namespace: String,
    meta: Meta,
    endpoints: Vec<RawEndpoint>,
    ports: Vec<RawEndpointPort>,
) -> Result<EndpointSlice, String> {
    let mut converted = Vec::with_capacity(endpoints.len());
    for raw in endpoints {
        // addressType FQDN: names are no addresses, and kube-proxy ignores them as well.
        let mut addresses: Vec<IpAddr> = raw.addresses.iter().filter_map(|a| parse_sloppy(a)).map(canonical).collect();
        addresses.shrink_to_fit();
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
        service: meta.labels.get("kubernetes.io/service-name").map(str::to_owned),
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

pub(super) fn controller(
    kind: &str,
    namespace: String,
    meta: Meta,
    spec: ControllerSpec,
) -> Result<Controller, String> {
    // A Job's selector names its uid. Those of the older kinds are plain maps of labels.
    let selector = match (kind, spec.selector) {
        ("Job" | "CronJob", _) | (_, None) => None,
        ("ReplicationController" | "DeploymentConfig", Some(value)) => Some(LabelSelector::of_labels(
            serde_json::from_value(value).map_err(|e| format!("spec.selector: {}", mismatch(&e.to_string())))?,
        )),
        (_, Some(value)) => Some(
            serde_json::from_value::<LabelSelector>(value)
                .map_err(|e| format!("spec.selector: {}", mismatch(&e.to_string())))?,
        ),
    };
    // It is shown to people: what is longer, or steers a terminal, is no schedule.
    let is_schedule = |text: &String| text.len() <= 200 && !text.chars().any(char::is_control);
    let schedule = spec.schedule.filter(|text| kind == "CronJob" && is_schedule(text));
    let template = if kind == "CronJob" { spec.job_template.spec.template } else { spec.template.unwrap_or_default() };
    let outer = owner(meta.owner_references);
    let template_ports = match &outer {
        // Ten old ReplicaSets of each Deployment would repeat them.
        Some(_) => Arc::default(),
        None => container_ports(template.spec.containers, template.spec.init_containers)?,
    };
    Ok(Controller {
        kind: kind.to_owned(),
        namespace,
        name: meta.name,
        uid: meta.uid,
        controller: outer,
        selector,
        template_labels: template.metadata.labels,
        template_ports,
        template_host_network: template.spec.host_network,
        schedule,
    })
}
