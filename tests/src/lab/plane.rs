//! Data planes: what a node's kernel does to a packet between the pod that sent it and the one that
//! takes it. All else of a lab is the same on each.

mod ambient;
mod beside;
mod translated;

use std::{fmt, net::IpAddr, process::Command};

use anyhow::Result;

pub use ambient::Ambient;
pub use beside::SecondNetwork;
pub use translated::{Hairpin, Ipvs, Masquerade};

use super::netns::Netns;
use crate::{
    app::proxy,
    cluster::{Cluster, Pod, nat},
};

/// A data plane, as what it puts into the namespaces of a lab.
pub trait DataPlane: fmt::Debug {
    /// Sets up a node; its pods are there and have their routes.
    ///
    /// # Errors
    /// The kernel refuses.
    fn node(&self, cluster: &Cluster, node: usize, netns: &Netns) -> Result<()>;

    /// Sets up the namespace of a pod, which has its addresses and routes, on its node.
    ///
    /// # Errors
    /// The kernel refuses.
    fn pod(&self, _cluster: &Cluster, _pod: &Pod, _netns: &Netns, _node: &Netns) -> Result<()> {
        Ok(())
    }
}

/// Services by address translation on the client's node, as kube-proxy does it with iptables.
#[derive(Clone, Copy, Debug)]
pub struct KubeProxy;

impl DataPlane for KubeProxy {
    fn node(&self, cluster: &Cluster, node: usize, netns: &Netns) -> Result<()> {
        netns.feed(&mut Command::new("iptables-restore"), &nat::rules(cluster, node, false))?;
        netns.feed(&mut Command::new("ip6tables-restore"), &nat::rules(cluster, node, true))
    }
}

/// Addresses that each node answers itself, before any Service: NodeLocal DNS at its link-local
/// address and at that of the DNS Service, identity and metadata services of clouds.
#[derive(Clone, Debug)]
pub struct NodeAnswers {
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}

impl NodeAnswers {
    /// The node answers no more: it has none of the addresses, and Services lead to their pods.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn take_down(&self, netns: &Netns) -> Result<()> {
        for address in &self.addresses {
            let (bits, iptables) = if address.is_ipv4() { (32, "iptables") } else { (128, "ip6tables") };
            netns.ip(&format!("addr del {address}/{bits} dev lo\n"))?;
            for chain in ["PREROUTING", "OUTPUT"] {
                let target = format!("{address}/{bits}");
                netns
                    .feed(Command::new(iptables).args(["-t", "nat", "-D", chain, "-d", &target, "-j", "ACCEPT"]), "")?;
            }
        }
        Ok(())
    }
}

impl DataPlane for NodeAnswers {
    fn node(&self, cluster: &Cluster, node: usize, netns: &Netns) -> Result<()> {
        KubeProxy.node(cluster, node, netns)?;
        for address in &self.addresses {
            let (bits, restore) = if address.is_ipv4() { (32, "iptables-restore") } else { (128, "ip6tables-restore") };
            netns.ip(&format!("addr add {address}/{bits} dev lo\n"))?;
            let rules = format!(
                "*nat\n-I PREROUTING -d {address}/{bits} -j ACCEPT\n-I OUTPUT -d {address}/{bits} -j ACCEPT\nCOMMIT\n"
            );
            netns.feed(Command::new(restore).arg("--noflush"), &rules)?;
        }
        Ok(())
    }
}

/// Sidecars: a proxy in each pod takes what arrives, and what the pod's processes call, by
/// `REDIRECT` (Istio; Linkerd, Consul and Kuma likewise). The proxies are processes of the test.
#[derive(Clone, Copy, Debug)]
pub struct Sidecar {
    /// Port of the proxies for what arrives.
    pub inbound: u16,
    /// Port of the proxies for what is called; `None`: that goes its own way.
    pub outbound: Option<u16>,
}

impl Sidecar {
    /// Label of workloads without a sidecar.
    pub const OUTSIDE: &'static str = "outside-the-mesh";
}

impl DataPlane for Sidecar {
    fn node(&self, cluster: &Cluster, node: usize, netns: &Netns) -> Result<()> {
        KubeProxy.node(cluster, node, netns)
    }

    fn pod(&self, cluster: &Cluster, pod: &Pod, netns: &Netns, _: &Netns) -> Result<()> {
        if cluster.workloads[pod.workload].labels.contains_key(Self::OUTSIDE) {
            return Ok(());
        }
        for (restore, loopback) in [("iptables-restore", "127.0.0.0/8"), ("ip6tables-restore", "::1/128")] {
            let mut rules = format!("*nat\n-A PREROUTING -p tcp -j REDIRECT --to-ports {}\n", self.inbound);
            if let Some(outbound) = self.outbound {
                rules += &format!(
                    "-A OUTPUT -m mark --mark {:#x} -j RETURN\n-A OUTPUT -d {loopback} -j RETURN\n\
                     -A OUTPUT -p tcp -j REDIRECT --to-ports {outbound}\n",
                    proxy::MARK
                );
            }
            netns.feed(&mut Command::new(restore), &(rules + "COMMIT\n"))?;
        }
        Ok(())
    }
}

/// Sidecars that take what arrives without translation (`TPROXY`): their sockets have the address
/// that was dialled.
#[derive(Clone, Copy, Debug)]
pub struct Transparent {
    /// Port of the proxies.
    pub inbound: u16,
    /// The port of pods that is given to them.
    pub port: u16,
}

impl DataPlane for Transparent {
    fn node(&self, cluster: &Cluster, node: usize, netns: &Netns) -> Result<()> {
        KubeProxy.node(cluster, node, netns)
    }

    fn pod(&self, _: &Cluster, _: &Pod, netns: &Netns, _: &Netns) -> Result<()> {
        let Self { inbound, port } = self;
        netns.ip("rule add fwmark 1 lookup 100\nroute add local 0.0.0.0/0 dev lo table 100\n")?;
        let rules = format!(
            "*mangle\n-A PREROUTING ! -i lo -p tcp --dport {port} -j TPROXY --on-port {inbound} --tproxy-mark 1\nCOMMIT\n"
        );
        netns.feed(&mut Command::new("iptables-restore"), &rules)
    }
}
