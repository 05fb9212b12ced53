//! Services as they stand in a snapshot.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{peer::Peer, time::Timestamp};

/// A Service with its backends as last known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalName`; headless Services have no
    /// addresses.
    pub service_type: String,
    /// Cluster, external and load-balancer addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// `spec.externalName`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_name: Option<String>,
    /// Ports, sorted.
    pub ports: Vec<ServicePortEntry>,
    /// When this was known to be so; `merge` keeps the later word.
    #[serde(default)]
    pub as_of: Timestamp,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServicePortEntry {
    /// Service port.
    pub port: u16,
    /// Protocol as in Kubernetes: the text as it was read, whatever it is.
    pub protocol: String,
    /// `ports[].name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Node port, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
    /// Where it leads: endpoints that were ready at some time in the window, sorted.
    pub backends: Vec<BackendEntry>,
}

/// An endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackendEntry {
    /// Endpoint address.
    pub address: IpAddr,
    /// Pod port (or the endpoint's port for a selector-less Service).
    pub port: u16,
    /// Whose address it is.
    pub peer: Peer,
    /// The node that hosts it, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// It was an endpoint from here on; `None`: before the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// It was an endpoint until then; `None`: still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
}
