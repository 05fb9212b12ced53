//! Pods of this node that another agent may have to name after this one.
//!
//! With pins the kernel counts on while no agent is there. A pod that vanishes meanwhile is in no
//! list of the API server any more, and of what it did only its cgroup tells, which shows its uid.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Observer;
use crate::{inventory::Pod, peer::Peer};

/// A pod of this node as its cgroup and its sockets show it, and who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnPod {
    /// `metadata.uid`.
    pub uid: String,
    /// A static pod's config hash, which its cgroups show instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<String>,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// It stands for this peer: its workload, or the node.
    pub peer: Peer,
    /// `namespace/Owner/name` of a host-network pod's workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_workload: Option<String>,
    /// It has the node's addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
    /// Its addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

impl Observer {
    /// Pods of this node, with those that went within the tombstones' time, sorted by uid.
    #[must_use]
    pub fn own_pods(&self) -> Vec<OwnPod> {
        let known = |(pod, peer, node_workload): (&Arc<Pod>, _, Option<&Arc<str>>)| OwnPod {
            uid: pod.uid.clone(),
            config_hash: pod.config_hash.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            peer: Peer::clone(&self.peers.get(peer)),
            node_workload: node_workload.map(|name| name.to_string()),
            host_network: pod.host_network,
            addresses: pod.addresses.clone(),
        };
        let mut pods: Vec<OwnPod> = self.identity.own_pods().map(known).collect();
        pods.sort_by(|a, b| a.uid.cmp(&b.uid));
        pods
    }

    /// Takes what an earlier agent knew of this node's pods. They count as gone until a list says
    /// otherwise, and so are forgotten in time. Call it before anything is observed.
    pub fn know_pods(&mut self, pods: Vec<OwnPod>) {
        for OwnPod { uid, config_hash, namespace, name, peer, node_workload, host_network, addresses } in pods {
            let node = Some(self.config.node.clone());
            let pod = Pod { uid, config_hash, namespace, name, node, host_network, addresses, ..Pod::default() };
            let peer = self.peers.id(peer);
            let node_workload = node_workload.map(|name| self.texts.intern(name.as_str()));
            self.identity.know_pod(Arc::new(pod), peer, node_workload, self.config.started);
        }
    }
}
