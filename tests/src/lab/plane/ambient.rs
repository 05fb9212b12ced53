//! An ambient mesh.

use std::{fmt::Write as _, process::Command};

use anyhow::Result;

use super::{super::netns::Netns, DataPlane, KubeProxy, Sidecar};
use crate::{
    app::proxy,
    cluster::{Cluster, Pod, node_addresses},
};

/// A proxy of the node takes what pods call and what arrives at them, with sockets in the pods' own
/// namespaces; between pods of the mesh it has tunnels. The rules are those of Istio's node agent
/// (`cni/pkg/iptables`), over IPv4. The proxies are processes of the test.
#[derive(Clone, Copy, Debug)]
pub struct Ambient;

impl Ambient {
    /// From which the node's probes arrive at pods of the mesh.
    pub const PROBES: &str = "169.254.7.127";
    /// Where the proxy takes what pods call, what arrives without the mesh, and tunnels.
    pub const PORTS: [u16; 3] = [15001, 15006, 15008];

    fn pods(cluster: &Cluster, node: usize) -> impl Iterator<Item = &Pod> {
        let outside = |pod: &&Pod| cluster.workloads[pod.workload].labels.contains_key(Sidecar::OUTSIDE);
        cluster.pods.iter().filter(move |pod| pod.node == node && !outside(pod))
    }
}

impl DataPlane for Ambient {
    fn node(&self, cluster: &Cluster, node: usize, netns: &Netns) -> Result<()> {
        KubeProxy.node(cluster, node, netns)?;
        let mut rules = "*nat\n".to_owned();
        for pod in Self::pods(cluster, node) {
            // The node's own sockets: what it forwards has other sources.
            for source in [node_addresses(node).0.to_string(), "169.254.1.1".to_owned()] {
                writeln!(
                    rules,
                    "-A POSTROUTING -p tcp -s {source}/32 -d {}/32 -j SNAT --to-source {}",
                    pod.addresses.0,
                    Self::PROBES
                )?;
            }
        }
        netns.feed(Command::new("iptables-restore").arg("--noflush"), &(rules + "COMMIT\n"))
    }

    fn pod(&self, cluster: &Cluster, pod: &Pod, netns: &Netns, _: &Netns) -> Result<()> {
        if !Self::pods(cluster, pod.node).any(|member| member.uid == pod.uid) {
            return Ok(());
        }
        netns.ip("rule add fwmark 0x111/0xfff lookup 100\nroute add local 0.0.0.0/0 dev lo table 100\n")?;
        let [outbound, inbound, tunnels] = Self::PORTS;
        let (mark, probes) = (proxy::MARK, Self::PROBES);
        let rules = format!(
            "*mangle\n\
             -A PREROUTING -m mark --mark {mark:#x}/0xfff -j CONNMARK --set-xmark 0x111/0xfff\n\
             -A OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n\
             COMMIT\n\
             *nat\n\
             -A PREROUTING -s {probes}/32 -p tcp -j ACCEPT\n\
             -A PREROUTING ! -d 127.0.0.1/32 -p tcp ! --dport {tunnels} -m mark ! --mark {mark:#x}/0xfff -j REDIRECT --to-ports {inbound}\n\
             -A OUTPUT -d {probes}/32 -p tcp -j ACCEPT\n\
             -A OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT\n\
             -A OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT\n\
             -A OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark {mark:#x}/0xfff -j REDIRECT --to-ports {outbound}\n\
             COMMIT\n"
        );
        netns.feed(&mut Command::new("iptables-restore"), &rules)
    }
}
