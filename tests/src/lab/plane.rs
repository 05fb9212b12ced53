//! Data planes: what a node's kernel does to a packet between the pod that sent it and the one that
//! takes it. All else of a lab is the same on each.

use std::{fmt, process::Command};

use anyhow::Result;

use super::netns::Netns;
use crate::cluster::{Cluster, Pod, nat};

/// A data plane, as what it puts into the namespaces of a lab.
pub trait DataPlane: fmt::Debug {
    /// Sets up a node; its pods are there and have their routes.
    ///
    /// # Errors
    /// The kernel refuses.
    fn node(&self, cluster: &Cluster, node: usize, netns: &Netns) -> Result<()>;

    /// Sets up the namespace of a pod, which has its addresses and routes.
    ///
    /// # Errors
    /// The kernel refuses.
    fn pod(&self, _cluster: &Cluster, _pod: &Pod, _netns: &Netns) -> Result<()> {
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
