//! Addresses and ports behind which somebody else answers: Services, node ports, host ports.
//!
//! Policies are judged at the pod behind them (A27), and on the way the client's address may be
//! replaced by a node's, depending on the Service's traffic policy and the CNI. So a connection to
//! one is never "allowed" because no policy names the node: it is unproven.

use std::net::IpAddr;

use super::{Cluster, End, Evaluator, UnknownEnd};
use crate::model::Protocol;

/// The API server's default for `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// A port that a container declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeclaredPort {
    /// `protocol`.
    pub protocol: Protocol,
    /// `containerPort`.
    pub port: u16,
    /// `hostPort`: the node's port that leads there.
    pub host_port: Option<u16>,
}

impl Evaluator {
    /// The end that is reached at this port of `namespace/pod` or an IP address: the same as
    /// [`Evaluator::end`] unless the port is one behind which somebody else answers.
    ///
    /// # Errors
    /// See [`UnknownEnd`]; the virtual ones are unproven.
    pub fn destination(&self, text: &str, protocol: Protocol, port: u16) -> Result<End, UnknownEnd> {
        let end = self.end(text)?;
        match self.redirected(&end, text, protocol, port) {
            Some(elsewhere) => Err(elsewhere),
            None => Ok(end),
        }
    }

    /// Where a connection to this end goes instead, if it does.
    #[must_use]
    pub fn redirected(&self, end: &End, text: &str, protocol: Protocol, port: u16) -> Option<UnknownEnd> {
        if end.is_pod() {
            return None;
        }
        let cluster = self.cluster();
        let own: Vec<IpAddr> = end.addresses().collect();
        let service = |own: &IpAddr| cluster.service_ports.get(&(*own, protocol, port));
        if let Some((address, service)) = own.iter().find_map(|a| Some((*a, service(a)?))) {
            return Some(UnknownEnd::Virtual { address, service: service.clone() });
        }
        let node_port = cluster.node_ports.get(&(protocol, port));
        if !end.is_node() {
            // Without Node objects no address is a node's, and every one may be.
            let none = cluster.nodes.iter().all(|n| n.addresses.is_empty());
            return node_port.filter(|_| none && !end.is_loopback_of_any()).map(|service| UnknownEnd::NodePort {
                end: text.to_owned(),
                port,
                service: service.clone(),
            });
        }
        if end.is_loopback_of_any() {
            return None;
        }
        if let Some(service) = node_port {
            return Some(UnknownEnd::NodePort { end: text.to_owned(), port, service: service.clone() });
        }
        let mut hosted = cluster.pods.iter().zip(0..).filter(|(pod, _)| !pod.finished);
        let asks = |p: &DeclaredPort| p.protocol == protocol && p.host_port == Some(port);
        let behind = hosted
            .clone()
            .find(|(pod, index)| !pod.host_network && self.runs_on(*index, end) && pod.declared_ports.iter().any(asks));
        if let Some((pod, _)) = behind {
            let pod = format!("{}/{}", pod.namespace, pod.name);
            return Some(UnknownEnd::HostPort { end: text.to_owned(), port, pod });
        }
        // A process of the node itself may listen there, too; then its pod says so.
        let declares = |p: &DeclaredPort| p.protocol == protocol && p.port == port;
        let own_process = hosted.any(|(pod, _)| pod.host_network && pod.declared_ports.iter().any(declares));
        (NODE_PORTS.contains(&port) && !own_process).then(|| UnknownEnd::MaybeNodePort { end: text.to_owned(), port })
    }
}

impl Cluster {
    /// The ports of a Service, as what answers at its addresses and at the nodes.
    pub(super) fn add_service_ports(&mut self, service: &guardrail_graph::inventory::Service) {
        let name = format!("{}/{}", service.namespace, service.name);
        for port in &service.ports {
            let Ok(protocol) = port.protocol.parse::<Protocol>() else { continue };
            if let Some(number) = port.node_port {
                self.node_ports.entry((protocol, number)).or_insert_with(|| name.clone());
            }
            for address in service.cluster_ips.iter().chain(&service.external_ips) {
                let at = (address.to_canonical(), protocol, port.port);
                self.service_ports.entry(at).or_insert_with(|| name.clone());
            }
        }
    }
}
