//! A small Kubernetes cluster as data: who runs where, with which addresses, behind which Services.
//!
//! Addresses: node `i` has 172.18.0.(10+i) and fd00:172:18::(10+i); its pods live in 10.244.i.0/24
//! and fd00:10:244:i::/64; Services in 10.96.0.0/16 and fd00:10:96::/112. Every lab uses the same
//! addresses, each in network namespaces of its own.

pub mod inventory;
pub mod nat;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Kind of a workload's controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// apps/v1 Deployment, with a ReplicaSet between it and its pods.
    Deployment,
    /// apps/v1 StatefulSet.
    StatefulSet,
    /// apps/v1 DaemonSet.
    DaemonSet,
    /// batch/v1 CronJob, with a Job between it and its pod.
    CronJob,
}

impl Kind {
    /// As in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::CronJob => "CronJob",
        }
    }
}

/// A named container port.
#[derive(Clone, Debug)]
pub struct Port {
    /// Name.
    pub name: &'static str,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// Number.
    pub number: u16,
}

/// A workload; its pods carry the label `app: NAME` and `labels`.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Controller.
    pub kind: Kind,
    /// Pods share the node's network.
    pub host_network: bool,
    /// Container ports.
    pub ports: Vec<Port>,
    /// More pod labels.
    pub labels: BTreeMap<String, String>,
    /// Ports of the node that lead to its pod's ports, by those.
    pub host_ports: BTreeMap<u16, u16>,
}

impl Workload {
    /// The peer that policies see, in the lab's own spelling: `namespace/Kind/name`.
    #[must_use]
    pub fn peer(&self) -> String {
        format!("{}/{}/{}", self.namespace, self.kind.as_str(), self.name)
    }
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Container id, 64 hex digits.
    pub container: String,
    /// Index in [`Cluster::workloads`].
    pub workload: usize,
    /// Index in [`Cluster::nodes`].
    pub node: usize,
    /// `status.podIPs`: IPv4, then IPv6.
    pub addresses: (Ipv4Addr, Ipv6Addr),
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// It exists now: the inventory shows it, and the lab gives it a namespace.
    pub present: bool,
}

impl Pod {
    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// `targetPort`.
#[derive(Clone, Debug)]
pub enum Target {
    /// By container port name.
    Name(&'static str),
    /// By number.
    Number(u16),
}

/// A port of a Service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Name.
    pub name: &'static str,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// Service port.
    pub port: u16,
    /// Pod port.
    pub target: Target,
    /// Node port.
    pub node_port: Option<u16>,
}

/// A Service that selects pods by one label.
#[derive(Clone, Debug)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// No cluster address: its name has the pods' addresses.
    pub headless: bool,
    /// The label it selects by.
    pub selector: (String, String),
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Cluster addresses.
    pub addresses: (Ipv4Addr, Ipv6Addr),
    /// Addresses for clients outside (`spec.externalIPs`, `status.loadBalancer`), of which clients
    /// inside may ask as well: every node translates them for its own pods.
    pub external_ips: Vec<IpAddr>,
    /// The lab's address translation sends everything to this workload, though others are endpoints
    /// as well (traffic distribution).
    pub only_reached: Option<String>,
    /// Node ports lead to pods of every node, from the node's own address (`externalTrafficPolicy:
    /// Cluster`).
    pub hides_clients: bool,
}

/// The whole cluster.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Node names.
    pub nodes: Vec<String>,
    /// Workloads.
    pub workloads: Vec<Workload>,
    /// Pods.
    pub pods: Vec<Pod>,
    /// Services.
    pub services: Vec<Service>,
    /// DNS names outside the cluster.
    pub external_names: BTreeMap<String, Vec<IpAddr>>,
    salt: u64,
}

impl Cluster {
    /// An empty cluster with these nodes. `salt` goes into every uid, so that two labs share none.
    #[must_use]
    pub fn new(nodes: &[&str], salt: u64) -> Self {
        Self { nodes: nodes.iter().map(|&n| n.to_owned()).collect(), salt, ..Self::default() }
    }

    /// Adds a workload with one pod on each of `on` (node indices) and returns the pods' keys.
    pub fn workload(&mut self, namespace: &str, kind: Kind, name: &str, ports: &[Port], on: &[usize]) -> Vec<String> {
        self.add(namespace, kind, name, ports, on, false)
    }

    /// The same with pods that share their node's network.
    pub fn host_workload(
        &mut self,
        namespace: &str,
        kind: Kind,
        name: &str,
        ports: &[Port],
        on: &[usize],
    ) -> Vec<String> {
        self.add(namespace, kind, name, ports, on, true)
    }

    fn add(
        &mut self,
        namespace: &str,
        kind: Kind,
        name: &str,
        ports: &[Port],
        on: &[usize],
        host_network: bool,
    ) -> Vec<String> {
        let workload = self.workloads.len();
        self.workloads.push(Workload {
            namespace: namespace.into(),
            name: name.into(),
            kind,
            host_network,
            ports: ports.to_vec(),
            labels: BTreeMap::new(),
            host_ports: BTreeMap::new(),
        });
        let mut keys = Vec::new();
        for (ordinal, &node) in on.iter().enumerate() {
            let number = self.pods.len();
            let unique = scramble(self.salt ^ number as u64);
            let suffix = letters(unique, 5);
            let pod_name = match kind {
                Kind::Deployment => format!("{}-{suffix}", self.replica_set(workload)),
                Kind::StatefulSet => format!("{name}-{ordinal}"),
                Kind::DaemonSet => format!("{name}-{suffix}"),
                Kind::CronJob => format!("{}-{suffix}", self.job(workload)),
            };
            let addresses = if host_network { node_addresses(node) } else { pod_addresses(node, number) };
            let pod = Pod {
                namespace: namespace.into(),
                name: pod_name,
                uid: uid(unique),
                container: format!(
                    "{:016x}{:016x}{:016x}{:016x}",
                    unique,
                    scramble(unique),
                    scramble(unique + 1),
                    scramble(unique + 2)
                ),
                workload,
                node,
                addresses,
                annotations: BTreeMap::new(),
                present: true,
            };
            keys.push(pod.key());
            self.pods.push(pod);
        }
        keys
    }

    /// Adds a Service for the pods with the label `app: selects`.
    pub fn service(&mut self, namespace: &str, name: &str, selects: &str, ports: &[ServicePort]) -> &mut Service {
        let number = u8::try_from(self.services.len()).expect("a lab has few services") + 10;
        self.services.push(Service {
            namespace: namespace.into(),
            name: name.into(),
            headless: false,
            selector: ("app".into(), selects.into()),
            ports: ports.to_vec(),
            addresses: (Ipv4Addr::new(10, 96, 0, number), Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into())),
            external_ips: Vec::new(),
            only_reached: None,
            hides_clients: false,
        });
        self.services.last_mut().expect("just pushed")
    }

    /// The pod with this key.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn pod(&self, key: &str) -> &Pod {
        self.pods.iter().find(|p| p.key() == key).unwrap_or_else(|| panic!("no pod {key} in the lab"))
    }

    /// The peer that a pod is part of: its workload, or its node if it shares the node's network.
    #[must_use]
    pub fn peer_of_pod(&self, pod: &Pod) -> String {
        let workload = &self.workloads[pod.workload];
        if workload.host_network { format!("node/{}", self.nodes[pod.node]) } else { workload.peer() }
    }

    /// Labels of a workload's pods.
    #[must_use]
    pub fn labels(&self, workload: &Workload) -> BTreeMap<String, String> {
        let mut labels = workload.labels.clone();
        labels.insert("app".into(), workload.name.clone());
        labels
    }

    /// Pods behind a Service.
    pub fn endpoints<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(|pod| {
            let workload = &self.workloads[pod.workload];
            pod.present
                && workload.namespace == service.namespace
                && self.labels(workload).get(&service.selector.0) == Some(&service.selector.1)
        })
    }

    /// The pod port behind a Service port at one pod.
    #[must_use]
    pub fn target_port(&self, port: &ServicePort, pod: &Pod) -> Option<u16> {
        match port.target {
            Target::Number(number) => Some(number),
            Target::Name(name) => self.workloads[pod.workload]
                .ports
                .iter()
                .find(|p| p.name == name && p.protocol == port.protocol)
                .map(|p| p.number),
        }
    }

    /// All names that the lab's DNS server knows.
    #[must_use]
    pub fn dns_records(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let mut records = self.external_names.clone();
        for service in &self.services {
            let base = format!("{}.{}.svc.cluster.local", service.name, service.namespace);
            if !service.headless {
                records.insert(base, vec![service.addresses.0.into(), service.addresses.1.into()]);
                continue;
            }
            let mut all = Vec::new();
            for pod in self.endpoints(service) {
                let addresses: Vec<IpAddr> = vec![pod.addresses.0.into(), pod.addresses.1.into()];
                all.extend(addresses.iter().copied());
                if self.workloads[pod.workload].kind == Kind::StatefulSet {
                    records.insert(format!("{}.{base}", pod.name), addresses);
                }
            }
            records.insert(base, all);
        }
        records
    }

    fn replica_set(&self, workload: usize) -> String {
        format!("{}-{}", self.workloads[workload].name, self.template_hash(workload))
    }

    fn job(&self, workload: usize) -> String {
        format!("{}-29387340", self.workloads[workload].name)
    }

    fn template_hash(&self, workload: usize) -> String {
        letters(scramble(workload as u64), 10)
    }
}

/// Addresses of node `index`.
#[must_use]
pub fn node_addresses(index: usize) -> (Ipv4Addr, Ipv6Addr) {
    let last = u8::try_from(index).expect("a lab has few nodes") + 10;
    (Ipv4Addr::new(172, 18, 0, last), Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, last.into()))
}

/// Addresses of pod `number` on a node.
#[must_use]
pub fn pod_addresses(node: usize, number: usize) -> (Ipv4Addr, Ipv6Addr) {
    let node = u8::try_from(node).expect("a lab has few nodes");
    let last = u8::try_from(number).expect("a lab has few pods") + 2;
    (Ipv4Addr::new(10, 244, node, last), Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, last.into()))
}

fn scramble(value: u64) -> u64 {
    crate::app::random::Random::new(value).next()
}

/// Letters and digits as Kubernetes uses them in generated names.
fn letters(mut value: u64, count: usize) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..count)
        .map(|_| {
            let letter = ALPHABET[usize::try_from(value % ALPHABET.len() as u64).unwrap_or(0)];
            value /= ALPHABET.len() as u64;
            char::from(letter)
        })
        .collect()
}

fn uid(unique: u64) -> String {
    let more = scramble(unique);
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        unique >> 32,
        unique >> 16 & 0xffff,
        unique & 0xfff,
        more >> 52,
        more & 0xffff_ffff_ffff
    )
}
