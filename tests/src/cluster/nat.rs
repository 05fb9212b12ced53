//! Services as address translation, the way kube-proxy does it with iptables.
//!
//! Node ports lead to pods of the same node only (`externalTrafficPolicy: Local`), so answers find
//! their way back and servers see who called; where a Service hides its clients (`Cluster`), to
//! pods of all nodes, from the node's address. Nothing else is masqueraded. Host ports lead to the
//! pods of the node that have them.

use std::{fmt::Write as _, net::SocketAddr};

use super::{Cluster, node_addresses};

/// Input of `iptables-restore` (or `ip6tables-restore` with `v6`) for one node.
#[must_use]
pub fn rules(cluster: &Cluster, node: usize, v6: bool) -> String {
    let mut out = String::from("*nat\n:SERVICES - [0:0]\n-A PREROUTING -j SERVICES\n-A OUTPUT -j SERVICES\n");
    let bits = if v6 { 128 } else { 32 };
    let own = pick(node_addresses(node), v6);
    for pod in cluster.pods.iter().filter(|pod| pod.node == node && pod.present) {
        let workload = &cluster.workloads[pod.workload];
        for port in &workload.ports {
            let Some(host_port) = workload.host_ports.get(&port.number) else { continue };
            let (protocol, backend) =
                (port.protocol.to_lowercase(), SocketAddr::new(pick(pod.addresses, v6), port.number));
            writeln!(
                out,
                "-A SERVICES -d {own}/{bits} -p {protocol} --dport {host_port} -j DNAT --to-destination {backend}"
            )
            .expect("a String takes everything");
        }
    }
    for service in cluster.services.iter().filter(|s| !s.headless) {
        for port in &service.ports {
            let backends: Vec<_> = cluster
                .endpoints(service)
                .filter(|pod| {
                    service.only_reached.as_ref().is_none_or(|only| cluster.workloads[pod.workload].name == *only)
                })
                .filter_map(|pod| {
                    let target = cluster.target_port(port, pod)?;
                    let backend = if v6 {
                        format!("[{}]:{target}", pod.addresses.1)
                    } else {
                        format!("{}:{target}", pod.addresses.0)
                    };
                    Some((pod.node, backend))
                })
                .collect();
            let mut fronts = vec![(pick(service.addresses, v6), port.port, backends.clone())];
            let external = service.external_ips.iter().filter(|address| address.is_ipv6() == v6);
            fronts.extend(external.map(|address| (*address, port.port, backends.clone())));
            if let Some(node_port) = port.node_port {
                let reached = backends.into_iter().filter(|(on, _)| service.hides_clients || *on == node).collect();
                fronts.push((own, node_port, reached));
                if service.hides_clients {
                    let protocol = port.protocol.to_lowercase();
                    writeln!(out, "-A POSTROUTING -p {protocol} -m conntrack --ctstate DNAT --ctorigdst {own} --ctorigdstport {node_port} -j SNAT --to-source {own}")
                        .expect("a String takes everything");
                }
            }
            for (address, number, backends) in fronts {
                let protocol = port.protocol.to_lowercase();
                for (index, (_, backend)) in backends.iter().enumerate() {
                    let left = backends.len() - index;
                    let choose = if left > 1 {
                        #[expect(clippy::cast_precision_loss, reason = "a handful of backends")]
                        let probability = 1.0 / left as f64;
                        format!("-m statistic --mode random --probability {probability:.6} ")
                    } else {
                        String::new()
                    };
                    writeln!(out, "-A SERVICES -d {address}/{bits} -p {protocol} --dport {number} {choose}-j DNAT --to-destination {backend}")
                        .expect("a String takes everything");
                }
            }
        }
    }
    out.push_str("COMMIT\n");
    out
}

fn pick(addresses: (std::net::Ipv4Addr, std::net::Ipv6Addr), v6: bool) -> std::net::IpAddr {
    if v6 { addresses.1.into() } else { addresses.0.into() }
}
