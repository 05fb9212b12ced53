//! Networks beside the pods' first one.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::{super::netns::Netns, DataPlane, KubeProxy};
use crate::cluster::{Cluster, Pod};

/// Each pod has one more interface (Multus), on a bridge of its node that leads nowhere else.
#[derive(Clone, Copy, Debug)]
pub struct SecondNetwork;

impl SecondNetwork {
    /// The pod's address there.
    ///
    /// # Panics
    /// The pod is none of this cluster.
    #[must_use]
    pub fn address(cluster: &Cluster, key: &str) -> Ipv4Addr {
        let number = cluster.pods.iter().position(|pod| pod.key() == key).expect("a pod of this cluster");
        Ipv4Addr::new(192, 168, 99, u8::try_from(number).expect("a lab has few pods") + 2)
    }

    /// Notes it on the pod, as Multus does.
    pub fn annotate(cluster: &mut Cluster, key: &str) {
        let (first, beside) = (cluster.pod(key).addresses.0, Self::address(cluster, key));
        let status = format!(
            r#"[{{"name":"cbr0","interface":"eth0","ips":["{first}"],"default":true,"dns":{{}}}},{{"name":"lab/beside","interface":"net1","ips":["{beside}"],"dns":{{}}}}]"#
        );
        let pod = cluster.pods.iter_mut().find(|pod| pod.key() == key).expect("a pod of this cluster");
        pod.annotations.insert("k8s.v1.cni.cncf.io/network-status".to_owned(), status);
    }
}

impl DataPlane for SecondNetwork {
    fn node(&self, cluster: &Cluster, node: usize, netns: &Netns) -> Result<()> {
        KubeProxy.node(cluster, node, netns)
    }

    fn pod(&self, cluster: &Cluster, pod: &Pod, netns: &Netns, node: &Netns) -> Result<()> {
        let own = |other: &&Pod| other.node == pod.node && !cluster.workloads[other.workload].host_network;
        if cluster.pods.iter().find(own).is_some_and(|first| first.uid == pod.uid) {
            node.ip("link add beside type bridge\nlink set beside up\n")?;
        }
        let address = Self::address(cluster, &pod.key());
        let port = address.octets()[3];
        node.ip(&format!(
            "link add beside{port} type veth peer name net1 netns {}\nlink set beside{port} master beside up\n",
            netns.path().display()
        ))?;
        netns.ip(&format!("link set net1 up\naddr add {address}/24 dev net1\n"))
    }
}
