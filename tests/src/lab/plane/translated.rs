//! Other ways of kube-proxy.

use std::{net::IpAddr, process::Command};

use anyhow::Result;

use super::{super::netns::Netns, DataPlane, KubeProxy};
use crate::cluster::{Cluster, node_addresses};

/// Whoever calls a Service comes from the node's address (`masqueradeAll`, a cluster without a
/// cluster CIDR).
#[derive(Clone, Copy, Debug)]
pub struct Masquerade;

impl DataPlane for Masquerade {
    fn node(&self, cluster: &Cluster, node: usize, netns: &Netns) -> Result<()> {
        KubeProxy.node(cluster, node, netns)?;
        let (v4, v6) = node_addresses(node);
        for (restore, source) in [("iptables-restore", IpAddr::from(v4)), ("ip6tables-restore", v6.into())] {
            let rules =
                format!("*nat\n-A POSTROUTING -m conntrack --ctstate DNAT -j SNAT --to-source {source}\nCOMMIT\n");
            netns.feed(Command::new(restore).arg("--noflush"), &rules)?;
        }
        Ok(())
    }
}

/// A pod that calls its own Service and is chosen itself comes from its node's address, or the
/// answer would never pass the translation (kube-proxy's hairpin rule).
#[derive(Clone, Copy, Debug)]
pub struct Hairpin;

impl DataPlane for Hairpin {
    fn node(&self, cluster: &Cluster, node: usize, netns: &Netns) -> Result<()> {
        KubeProxy.node(cluster, node, netns)?;
        let (own4, own6) = node_addresses(node);
        let mut rules = ["*nat\n".to_owned(), "*nat\n".to_owned()];
        for pod in cluster.pods.iter().filter(|pod| pod.node == node) {
            let (v4, v6) = pod.addresses;
            rules[0] += &format!("-A POSTROUTING -s {v4}/32 -d {v4}/32 -j SNAT --to-source {own4}\n");
            rules[1] += &format!("-A POSTROUTING -s {v6}/128 -d {v6}/128 -j SNAT --to-source {own6}\n");
        }
        for (restore, rules) in ["iptables-restore", "ip6tables-restore"].iter().zip(rules) {
            netns.feed(Command::new(restore).arg("--noflush"), &(rules + "COMMIT\n"))?;
        }
        Ok(())
    }
}

/// Every address of a Service is one of every node, as on the interface `kube-ipvs0`. What IPVS
/// does when packets come in, address translation does here.
#[derive(Clone, Copy, Debug)]
pub struct Ipvs;

impl DataPlane for Ipvs {
    fn node(&self, cluster: &Cluster, node: usize, netns: &Netns) -> Result<()> {
        KubeProxy.node(cluster, node, netns)?;
        let (own4, own6) = node_addresses(node);
        let mut rules = ["*nat\n".to_owned(), "*nat\n".to_owned()];
        for service in cluster.services.iter().filter(|service| !service.headless) {
            let (v4, v6) = service.addresses;
            netns.ip(&format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n"))?;
            // The node's own calls have the Service's address as their source, too.
            rules[0] += &format!("-A POSTROUTING -s {v4}/32 -j SNAT --to-source {own4}\n");
            rules[1] += &format!("-A POSTROUTING -s {v6}/128 -j SNAT --to-source {own6}\n");
        }
        for (restore, rules) in ["iptables-restore", "ip6tables-restore"].iter().zip(rules) {
            netns.feed(Command::new(restore).arg("--noflush"), &(rules + "COMMIT\n"))?;
        }
        Ok(())
    }
}
