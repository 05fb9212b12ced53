//! The fields of Kubernetes objects that are read, with `null` as missing. Field meanings are those
//! of the API.

use std::{fmt, net::IpAddr};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Visitor},
};

use crate::inventory::types::{Labels, TargetPort};

/// IPv4-mapped IPv6 addresses are IPv4 addresses.
pub(in crate::inventory) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// An address as the API server reads it in objects that are there already (Go's ParseIPSloppy):
/// decimal, leading zeros mean nothing.
#[must_use]
pub fn parse_sloppy(text: &str) -> Option<IpAddr> {
    let without_zeros = |part: &str| {
        let kept = part.trim_start_matches('0');
        if kept.is_empty() && !part.is_empty() { "0".to_owned() } else { kept.to_owned() }
    };
    text.parse().ok().or_else(|| {
        let (front, v4) = text.rsplit_once(':').map_or(("", text), |(front, v4)| (front, v4));
        let v4 = v4.split('.').map(without_zeros).collect::<Vec<_>>().join(".");
        if front.is_empty() { v4.parse().ok() } else { format!("{front}:{v4}").parse().ok() }
    })
}

/// An address; empty text and `None` (headless Services) mean there is none.
#[derive(Debug)]
pub(in crate::inventory) struct MaybeIp(pub(in crate::inventory) Option<IpAddr>);

impl<'de> Deserialize<'de> for MaybeIp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(Self(None)) };
        if text.is_empty() || text == "None" {
            return Ok(Self(None));
        }
        match parse_sloppy(&text) {
            Some(address) => Ok(Self(Some(canonical(address)))),
            None => {
                Err(D::Error::custom(format!("`{text}` is not an IP address: write it like 10.244.1.7 or fd00::7")))
            }
        }
    }
}

/// An address of a Service. Older API servers and controllers of load balancers let other text in
/// (KEP-4858); what is no address is none.
#[derive(Debug)]
pub(in crate::inventory) struct ServiceIp(pub(in crate::inventory) Option<IpAddr>);

impl<'de> Deserialize<'de> for ServiceIp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        Ok(Self(text.as_deref().and_then(parse_sloppy).map(canonical)))
    }
}

/// A port number, 1 to 65535.
#[derive(Debug, Clone, Copy)]
pub(in crate::inventory) struct Port(pub(in crate::inventory) u16);

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
pub(in crate::inventory) struct RawTarget(pub(in crate::inventory) TargetPort);

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
        pub(in crate::inventory) struct $name { $($(#[$attr])* #[serde(deserialize_with = "nullable")] pub(in crate::inventory) $field: $type,)* }
    };
}

raw!(Meta {
    name: String,
    generate_name: String,
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
    start_time: Option<String>,
});
raw!(RawPodIp { ip: Option<MaybeIp> });
raw!(Condition { r#type: String, status: String, last_transition_time: Option<String> });
raw!(NodeSpec { #[serde(rename = "podCIDR")] pod_cidr: Option<String>, #[serde(rename = "podCIDRs")] pod_cidrs: Vec<String> });
raw!(NodeStatus { addresses: Vec<NodeAddress>, node_info: NodeInfo });
raw!(NodeInfo { operating_system: Option<String> });
raw!(NodeAddress { r#type: String, address: String });
raw!(ServiceSpec {
    r#type: Option<String>,
    #[serde(rename = "clusterIP")] cluster_ip: Option<ServiceIp>,
    #[serde(rename = "clusterIPs")] cluster_ips: Vec<ServiceIp>,
    #[serde(rename = "externalIPs")] external_ips: Vec<ServiceIp>,
    #[serde(rename = "loadBalancerIP")] load_balancer_ip: Option<ServiceIp>,
    external_name: Option<String>,
    external_traffic_policy: Option<String>,
    selector: Labels,
    ports: Vec<RawServicePort>,
});
raw!(RawServicePort { name: Option<String>, port: Option<Port>, protocol: Option<String>, target_port: Option<RawTarget>, node_port: Option<HostPort> });
raw!(ServiceStatus { load_balancer: LoadBalancer });
raw!(LoadBalancer { ingress: Vec<Ingress> });
raw!(Ingress { ip: Option<ServiceIp> });
raw!(ControllerSpec { selector: Option<serde_json::Value>, template: Option<Template>, job_template: JobTemplate, schedule: Option<String> });
raw!(Template { metadata: Meta, spec: PodSpec });
raw!(JobTemplate { spec: JobSpec });
raw!(JobSpec { template: Template });
raw!(RawEndpoint { addresses: Vec<String>, conditions: EndpointConditions, node_name: Option<String>, target_ref: Option<TargetRef> });
raw!(EndpointConditions { ready: Option<bool>, serving: Option<bool>, terminating: Option<bool> });
raw!(TargetRef { kind: String, name: String });
raw!(RawEndpointPort { name: Option<String>, protocol: Option<String>, port: Option<Port> });

/// `hostPort` and `nodePort` may be 0 for "none".
#[derive(Debug)]
pub(in crate::inventory) struct HostPort(pub(in crate::inventory) Option<u16>);

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
