//! What an evaluator has to know of a cluster: pods, namespaces, nodes, virtual addresses; from an
//! inventory, a snapshot, or both.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use guardrail_graph::{
    Peer, Snapshot, WorkloadRef,
    inventory::{ContainerPort, Namespace, Node, Object, Pod, Service},
    snapshot::{Body, KnownNode, WorkloadEntry, range_addresses},
};
use ipnet::IpNet;

use super::{
    facts::{ClusterService, api_servers_in},
    virtuals::DeclaredPort,
};
use crate::model::{Labels, NAMESPACE_NAME_LABEL, Protocol, job_label, selector_matches};

/// A pod as policies see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterPod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `status.podIPs`, IPv4-mapped addresses as IPv4.
    pub addresses: Vec<IpAddr>,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `spec.hostNetwork`: counts as its node's address (A30).
    pub host_network: bool,
    /// Succeeded or Failed: no live endpoint (A32).
    pub finished: bool,
    /// Named container ports: name, protocol, number; the same name may stand here twice.
    pub ports: Vec<(String, Protocol, u16)>,
    /// Every container port, named or not; declaring none does not mean listening on none.
    pub declared_ports: Vec<DeclaredPort>,
    /// What controls it, if that is known.
    pub workload: Option<WorkloadRef>,
    /// `spec.serviceAccountName`, if it is known.
    pub service_account: Option<String>,
}

impl ClusterPod {
    /// `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// `namespace/Kind/name` of its workload; `namespace/name` of a pod without one.
    #[must_use]
    pub fn workload_name(&self) -> String {
        self.workload.as_ref().map_or_else(|| self.full_name(), ToString::to_string)
    }

    /// No pod of the inventory, but what its workload's template would make.
    #[must_use]
    pub fn is_stand_in(&self) -> bool {
        self.name.starts_with('(')
    }
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterNode {
    /// `metadata.name`.
    pub name: String,
    /// Addresses that are the node's own, tunnel addresses included.
    pub addresses: BTreeSet<IpAddr>,
    /// `metadata.labels`.
    pub labels: Labels,
}

/// The cluster that policies are judged against.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Pods. Names are unique per namespace.
    pub pods: Vec<ClusterPod>,
    /// Nodes.
    pub nodes: Vec<ClusterNode>,
    /// Nodes that are gone, as they were last: only flows of their time are judged with them.
    pub former_nodes: Vec<ClusterNode>,
    /// Labels per namespace, the name label included; `None`: the namespace was seen, its labels
    /// were not.
    namespaces: BTreeMap<String, Option<Labels>>,
    /// Virtual addresses and the Service (`namespace/name`) that owns them.
    pub virtual_addresses: BTreeMap<IpAddr, String>,
    /// Which Service answers at a port of a virtual address. Such an address may be a node's own
    /// (`externalIPs`, a load balancer on the nodes).
    pub service_ports: BTreeMap<(IpAddr, Protocol, u16), String>,
    /// The Service (`namespace/name`) behind a port of every node.
    pub node_ports: BTreeMap<(Protocol, u16), String>,
    /// Addresses with which only sockets of a node were seen, and whose they are: the API does not
    /// list them, and rules do not name them.
    pub unlisted_addresses: BTreeMap<IpAddr, String>,
    /// Ranges that pods get their addresses from (`spec.podCIDRs` of the nodes).
    pub pod_ranges: BTreeSet<IpNet>,
    /// Which pods (indices) belong to a workload of the snapshot.
    pub workloads: BTreeMap<WorkloadRef, Vec<u32>>,
    /// Selectors of controllers, where they are labels alone.
    pub selectors: BTreeMap<WorkloadRef, Labels>,
    /// Services by namespace and name.
    pub services: BTreeMap<(String, String), ClusterService>,
    /// `CiliumCIDRGroup`s: labels and ranges by name.
    pub cidr_groups: BTreeMap<String, (Labels, Vec<IpNet>)>,
    /// DNS names and the addresses that they stand for, as far as known.
    pub names: BTreeMap<String, BTreeSet<IpAddr>>,
    /// There are no other names: an address that is not among `names` was learnt by none.
    pub all_names: bool,
}

impl Cluster {
    /// From Kubernetes objects; order does not matter.
    #[must_use]
    pub fn from_objects<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Self {
        let mut cluster = Self::default();
        for object in objects {
            match object {
                Object::Namespace(n) => cluster.add_namespace(n),
                Object::Node(n) => cluster.add_node(n),
                Object::Pod(p) => cluster.add_pod(p),
                Object::Service(s) => cluster.add_service(s),
                Object::EndpointSlice(s) => cluster.add_slice(s),
                Object::Controller(_) => {}
            }
        }
        cluster.sort();
        cluster
    }

    /// Adds what a snapshot knows: workloads, and pods, nodes and Services that the inventory does
    /// not have.
    ///
    /// A workload's pods are the inventory's pods that its selector matches or that the snapshot
    /// names. If there is none, the snapshot's own pods stand for it, or one pod that bears the
    /// workload's labels: a CronJob's next pod is judged like its last.
    #[must_use]
    pub fn with_snapshot(mut self, snapshot: &Snapshot) -> Self {
        let body = &snapshot.body;
        // Stand-ins of one workload are not pods that another one's selector may claim, nor is a
        // pod that is another's by name.
        let mut by_namespace: HashMap<String, Vec<u32>> = HashMap::new();
        for (pod, index) in self.pods.iter().zip(0..).filter(|(pod, _)| !pod.finished) {
            by_namespace.entry(pod.namespace.clone()).or_default().push(index);
        }
        let mut named: BTreeMap<(&str, &str), &WorkloadRef> = BTreeMap::new();
        for entry in &body.workloads {
            let pods = entry.pods.values().flatten();
            named.extend(pods.map(|p| ((entry.workload.namespace.as_str(), p.name.as_str()), &entry.workload)));
        }
        for entry in &body.workloads {
            self.namespaces.entry(entry.workload.namespace.clone()).or_default();
            let listed = by_namespace.get(&entry.workload.namespace).map_or(&[][..], Vec::as_slice);
            let pods = self.pods_of(entry, listed, &named);
            let pods = if pods.is_empty() { self.add_stand_ins(entry) } else { pods };
            self.workloads.insert(entry.workload.clone(), pods);
        }
        self.pods.shrink_to_fit();
        self.add_nodes_of(body);
        for peer in body.edges.iter().map(|edge| &edge.server) {
            if let Peer::External { address } = &*peer.peer
                && let Ok(address) = address.parse::<IpAddr>()
            {
                self = self.with_names(peer.names.iter().map(|name| (name.clone(), address)), false);
            }
        }
        let api_servers = api_servers_in(body);
        if !api_servers.is_empty() {
            let kubernetes = self.services.entry(("default".to_owned(), "kubernetes".to_owned())).or_default();
            kubernetes.addresses.extend(api_servers);
        }
        for service in &body.services {
            for address in &service.addresses {
                self.virtual_addresses
                    .entry(address.to_canonical())
                    .or_insert_with(|| format!("{}/{}", service.namespace, service.name));
            }
        }
        self
    }

    /// Adds the nodes of a snapshot, those that are gone by themselves, and all ranges from which
    /// pods had their addresses.
    fn add_nodes_of(&mut self, body: &Body) {
        let known = body.known_nodes();
        let mut listed: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
        for (name, entry) in body.lasting_addresses(&known) {
            let address = entry.address.to_canonical();
            if entry.listed == Some(false) {
                self.unlisted_addresses.insert(address, name.to_owned());
            } else {
                listed.entry(name).or_default().insert(address);
            }
        }
        for node in &mut self.nodes {
            node.addresses.extend(listed.remove(node.name.as_str()).into_iter().flatten());
        }
        let listed_here: BTreeSet<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        for (name, KnownNode { described, is_gone, .. }) in known {
            if listed_here.contains(name) {
                continue;
            }
            let told = described.iter().flat_map(|described| described.addresses.iter().map(IpAddr::to_canonical));
            let addresses = listed.remove(name).into_iter().flatten().chain(told).collect();
            let labels = described.first().map(|described| described.labels.to_map()).unwrap_or_default();
            let node = ClusterNode { name: name.to_owned(), addresses, labels };
            if is_gone { &mut self.former_nodes } else { &mut self.nodes }.push(node);
        }
        let more = listed.into_iter().map(|(name, addresses)| ClusterNode {
            name: name.to_owned(),
            addresses,
            labels: Labels::new(),
        });
        self.nodes.extend(more);
        self.pod_ranges.extend(body.pod_ranges());
    }

    /// A namespace's labels; only the name label if nothing else is known (A22).
    #[must_use]
    pub fn namespace_labels(&self, namespace: &str) -> Labels {
        match self.namespaces.get(namespace) {
            Some(Some(labels)) => labels.clone(),
            _ => Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), namespace.to_owned())]),
        }
    }

    /// Whether the labels of this namespace are known.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace).is_some_and(Option::is_some)
    }

    /// Namespaces, sorted.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(String::as_str)
    }

    /// Namespaces of pods whose own object (hence labels) is not known.
    pub fn namespaces_without_labels(&self) -> impl Iterator<Item = &str> {
        self.namespaces.iter().filter(|(_, labels)| labels.is_none()).map(|(name, _)| name.as_str())
    }

    /// Adds or replaces a namespace with its labels.
    pub fn set_namespace(&mut self, name: &str, mut labels: Labels) {
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned());
        self.namespaces.insert(name.to_owned(), Some(labels));
    }

    /// Adds a pod; its index is its place in [`Cluster::pods`].
    pub fn push_pod(&mut self, pod: ClusterPod) -> u32 {
        self.namespaces.entry(pod.namespace.clone()).or_default();
        self.pods.push(pod);
        u32::try_from(self.pods.len() - 1).unwrap_or(u32::MAX)
    }

    fn add_namespace(&mut self, namespace: &Namespace) {
        self.set_namespace(&namespace.name, namespace.labels.to_map());
    }

    fn add_node(&mut self, node: &Node) {
        self.pod_ranges.extend(node.pod_cidrs.iter().copied());
        // The network and the first host address of a node's pod range are its bridge or tunnel
        // (docs/design.md#identity).
        let own: Vec<IpAddr> = node.pod_cidrs.iter().flat_map(|range| range_addresses(*range)).collect();
        let known = self.node_mut(&node.name);
        known.addresses.extend(node.addresses.iter().map(IpAddr::to_canonical));
        known.addresses.extend(own);
        known.labels = node.labels.to_map();
    }

    fn add_pod(&mut self, pod: &Pod) {
        let ports =
            pod.ports.iter().filter_map(|p| Some((p.name.clone()?, p.protocol.parse().ok()?, p.port))).collect();
        let declared = |p: &ContainerPort| {
            Some(DeclaredPort { protocol: p.protocol.parse().ok()?, port: p.port, host_port: p.host_port })
        };
        self.push_pod(ClusterPod {
            declared_ports: pod.ports.iter().filter_map(declared).collect(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            labels: pod.labels.to_map(),
            addresses: pod.addresses.iter().map(IpAddr::to_canonical).collect(),
            node: pod.node.clone(),
            host_network: pod.host_network,
            finished: pod.finished,
            ports,
            workload: None,
            service_account: None,
        });
    }

    fn add_service(&mut self, service: &Service) {
        self.add_service_ports(service);
        self.add_service_facts(service);
        for address in service.cluster_ips.iter().chain(&service.external_ips) {
            self.virtual_addresses.insert(address.to_canonical(), format!("{}/{}", service.namespace, service.name));
        }
    }

    fn node_mut(&mut self, name: &str) -> &mut ClusterNode {
        let index = self.nodes.iter().position(|n| n.name == name).unwrap_or_else(|| {
            self.nodes.push(ClusterNode { name: name.to_owned(), ..ClusterNode::default() });
            self.nodes.len() - 1
        });
        &mut self.nodes[index]
    }

    fn sort(&mut self) {
        self.pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        self.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// Those of the pods of its namespace, as the inventory `listed` them, that are this workload's
    /// by name or by its selector.
    fn pods_of(&self, entry: &WorkloadEntry, listed: &[u32], named: &BTreeMap<(&str, &str), &WorkloadRef>) -> Vec<u32> {
        let belongs = |index: &u32| {
            let pod = &self.pods[*index as usize];
            match named.get(&(pod.namespace.as_str(), pod.name.as_str())) {
                Some(owner) => **owner == entry.workload,
                None => {
                    pod.host_network == entry.host_network
                        && entry.selector.as_ref().is_some_and(|s| selector_matches(s, &pod.labels))
                }
            }
        };
        listed.iter().copied().filter(belongs).collect()
    }

    fn add_stand_ins(&mut self, entry: &WorkloadEntry) -> Vec<u32> {
        let mut labels = entry.labels.clone();
        if let Some(selector) = &entry.selector {
            for (key, value) in selector.match_labels.iter() {
                labels.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        labels.extend(job_label(&entry.workload));
        let template = ClusterPod {
            namespace: entry.workload.namespace.clone(),
            labels,
            host_network: entry.host_network,
            workload: Some(entry.workload.clone()),
            ..ClusterPod::default()
        };
        let mut pods: Vec<ClusterPod> = Vec::new();
        for (node, entries) in &entry.pods {
            for pod in entries {
                pods.push(ClusterPod {
                    name: pod.name.clone(),
                    addresses: pod.addresses.iter().map(IpAddr::to_canonical).collect(),
                    node: Some(node.clone()).filter(|n| !n.is_empty()),
                    ports: pod
                        .ports
                        .iter()
                        .filter_map(|p| Some((p.name.clone(), p.protocol.parse().ok()?, p.port)))
                        .collect(),
                    ..template.clone()
                });
            }
        }
        if pods.is_empty() {
            let name = format!("({} {})", entry.workload.owner, entry.workload.name);
            pods.push(ClusterPod { name, ..template });
        }
        pods.into_iter().map(|pod| self.push_pod(pod)).collect()
    }
}
