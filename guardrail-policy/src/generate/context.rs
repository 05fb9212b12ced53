//! Indexes over a snapshot: what generation looks up again and again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use guardrail_graph::{
    Peer, Protocol, Snapshot, WorkloadRef,
    snapshot::{
        Body, EdgeRecord, LabelSelector, ServiceEntry, ServicePortEntry, Side, SourceCounts, WorkloadEntry, marks,
    },
};
use ipnet::IpNet;

use crate::{
    evaluate::{ClusterPod, facts},
    model::{selector_matches, tier::Entity},
};

use super::{
    Options, PortRef, RulePeer, RulePort,
    reach::{Reach, is_link_local},
    subjects::{Subject, subjects},
};

/// A snapshot with its indexes.
pub(crate) struct Context<'a> {
    pub(crate) body: &'a Body,
    pub(crate) options: &'a Options,
    /// What rules can name beside pods.
    pub(crate) reach: Reach,
    /// The API server's own addresses, as far as known.
    api_servers: BTreeSet<IpAddr>,
    pub(crate) workloads: HashMap<&'a WorkloadRef, &'a WorkloadEntry>,
    /// Workloads that a policy can apply to (not host-network), in the snapshot's order.
    by_namespace: BTreeMap<&'a str, Vec<&'a WorkloadEntry>>,
    /// Sorted by namespace.
    subjects: Vec<Subject<'a>>,
    /// Index of each workload's subject.
    subject_of: HashMap<&'a WorkloadRef, usize>,
    nodes: BTreeMap<&'a str, NodeAddresses>,
    /// The last addresses of nodes that are gone. They may be others' by now: no rule names them by
    /// themselves.
    former_nodes: BTreeMap<&'a str, BTreeSet<IpAddr>>,
    /// Nodes of each host-network workload (`namespace/Owner/name`).
    host_workloads: BTreeMap<String, BTreeSet<&'a str>>,
    node_ranges: BTreeMap<IpNet, DeclaredRange>,
    control_plane_ranges: BTreeMap<IpNet, DeclaredRange>,
    /// Addresses of nodes that the API does not list, and whose they are.
    unlisted: BTreeMap<IpAddr, &'a str>,
    /// Addresses that an `ipBlock` must never name: live pods and Services.
    inside: BTreeSet<IpAddr>,
    /// Pod ports behind a Service port that has a node port or a load balancer: address translation
    /// may hide who calls them.
    reachable_from_outside: BTreeSet<(&'a WorkloadRef, Protocol, u16)>,
    pod_ranges: Vec<IpNet>,
    all_pods_in_ranges: bool,
    declared: BTreeMap<&'a str, BTreeMap<IpNet, DeclaredRange>>,
    /// The same of [`Options::external`].
    external: BTreeMap<&'a str, BTreeMap<IpNet, DeclaredRange>>,
}

/// Addresses of a node.
#[derive(Default)]
struct NodeAddresses {
    /// What the API lists, or all that is known where nobody knows what it lists.
    listed: BTreeSet<IpAddr>,
    /// What only sockets of the node were seen with.
    unlisted: BTreeSet<IpAddr>,
}

/// A range that a person declared.
pub(crate) struct DeclaredRange {
    /// The range without those where pods live.
    pub(crate) peer: RulePeer,
    /// It holds pods all the same: their range is not known.
    pub(crate) holds_pods: bool,
}

impl DeclaredRange {
    fn new(range: IpNet, pod_ranges: &[IpNet], body: &Body) -> Self {
        let inside = |r: &&IpNet| range != **r && range.contains(*r);
        let except: BTreeSet<IpNet> = pod_ranges.iter().filter(inside).copied().collect();
        let pods = body.workloads.iter().filter(|w| !w.host_network).flat_map(|w| w.pods.values().flatten());
        let mut addresses = pods.flat_map(|pod| &pod.addresses);
        let holds_pods = addresses.any(|a| range.contains(a) && !except.iter().any(|e| e.contains(a)));
        Self { peer: RulePeer::Block { cidr: range, except }, holds_pods }
    }

    /// Where no range matches pods, there is none to leave out.
    fn without_pods(range: IpNet) -> Self {
        Self { peer: RulePeer::Block { cidr: range, except: BTreeSet::new() }, holds_pods: false }
    }

    fn contains(&self, address: IpAddr) -> bool {
        let RulePeer::Block { cidr, except } = &self.peer else { return false };
        cidr.contains(&address) && !except.iter().any(|e| e.contains(&address))
    }
}

/// What a container port's name means in a workload.
enum NameInPods {
    /// Every pod defines it and the numbers differ.
    Varies,
    /// One number everywhere, or not defined everywhere.
    Plain,
}

impl<'a> Context<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, options: &'a Options) -> Self {
        let body = &snapshot.body;
        let reach = Reach::new(options);
        let mut api_servers = facts::api_servers_in(body);
        api_servers.extend(options.cluster.api_servers().into_iter().flatten());
        let workloads: HashMap<_, _> = body.workloads.iter().map(|w| (&w.workload, w)).collect();

        let mut by_namespace: BTreeMap<&str, Vec<&WorkloadEntry>> = BTreeMap::new();
        for entry in body.workloads.iter().filter(|w| !w.host_network) {
            by_namespace.entry(&entry.workload.namespace).or_default().push(entry);
        }
        let had: BTreeSet<(&WorkloadRef, &str)> = body
            .label_changes
            .iter()
            .flat_map(|changes| changes.labels.keys().map(|key| (&changes.workload, key.as_str())))
            .collect();
        let may_have = |workload: &WorkloadRef, key: &str| had.contains(&(workload, key));
        let subjects: Vec<Subject<'a>> =
            by_namespace.values().flat_map(|entries| subjects(entries, may_have)).collect();
        let members = |(index, subject): (usize, &Subject<'a>)| {
            subject.members.iter().map(move |member| (*member, index)).collect::<Vec<_>>()
        };
        let subject_of = subjects.iter().enumerate().flat_map(members).collect();
        let mut nodes: BTreeMap<&str, NodeAddresses> = BTreeMap::new();
        let told = body.known_nodes();
        for (name, entry) in body.lasting_addresses(&told) {
            let known = nodes.entry(name).or_default();
            let kind = if entry.listed == Some(false) { &mut known.unlisted } else { &mut known.listed };
            kind.insert(entry.address);
        }
        for node in &options.cluster.nodes {
            nodes.entry(&node.name).or_default().listed.extend(&node.addresses);
        }
        let gone = told.into_iter().filter(|(name, node)| node.is_gone && !nodes.contains_key(name));
        let former =
            gone.map(|(name, node)| (name, node.described.iter().flat_map(|d| d.addresses.iter().copied()).collect()));
        let former: BTreeMap<&str, BTreeSet<IpAddr>> = former.collect();
        let usable = |a: &IpAddr| !a.is_loopback() && !a.is_unspecified();
        let mut unlisted = BTreeMap::new();
        for (name, known) in &mut nodes {
            known.listed.retain(usable);
            known.unlisted.retain(|a| usable(a) && !known.listed.contains(a));
            unlisted.extend(known.unlisted.iter().map(|a| (*a, *name)));
        }
        let mut host_workloads: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for entry in body.workloads.iter().filter(|w| w.host_network) {
            let hosts = entry.pods.keys().map(String::as_str).filter(|node| !node.is_empty());
            host_workloads.insert(entry.workload.to_string(), hosts.collect());
        }

        let mut inside = BTreeSet::new();
        for entry in body.workloads.iter().filter(|w| !w.host_network) {
            inside.extend(entry.pods.values().flatten().flat_map(|pod| pod.addresses.iter().copied()));
        }
        let mut reachable_from_outside = BTreeSet::new();
        for service in &body.services {
            // External and load-balancer addresses are those of the outside world too; only a
            // ClusterIP is surely inside. A snapshot keeps them together, so all of them count: the
            // graph resolves each to the backends and leaves none as an external peer.
            inside.extend(&service.addresses);
            for port in &service.ports {
                let Some(protocol) = Protocol::of_edge(&port.protocol) else { continue };
                if port.node_port.is_none()
                    && service.service_type != "NodePort"
                    && service.service_type != "LoadBalancer"
                {
                    continue;
                }
                for backend in &port.backends {
                    if let Peer::Workload(workload) = &backend.peer {
                        reachable_from_outside.insert((workload, protocol, backend.port));
                    }
                }
            }
        }
        let pod_ranges = options.cluster.pod_ranges.iter().copied().chain(body.pod_ranges());
        let pod_ranges: Vec<IpNet> = IpNet::aggregate(&pod_ranges.map(|range| range.trunc()).collect());
        let pods = body.workloads.iter().filter(|w| !w.host_network).flat_map(|w| w.pods.values().flatten());
        let in_a_range = |address: &IpAddr| pod_ranges.iter().any(|range| range.contains(address));
        let all_pods_in_ranges = !pod_ranges.is_empty() && pods.flat_map(|pod| &pod.addresses).all(in_a_range);
        let declare = |ranges: &BTreeSet<IpNet>| -> BTreeMap<IpNet, DeclaredRange> {
            let declared = |range| match reach.ranges_match_pods {
                true => DeclaredRange::new(range, &pod_ranges, body),
                false => DeclaredRange::without_pods(range),
            };
            ranges.iter().map(IpNet::trunc).map(|range| (range, declared(range))).collect()
        };
        let node_ranges = declare(&options.node_ranges);
        let control_plane_ranges = declare(&options.control_plane_ranges);
        let declared = options.declared_ranges.iter().map(|(name, ranges)| (name.as_str(), declare(ranges))).collect();
        let external = options.external.iter().map(|(label, all)| (label.as_str(), declare(&all.ranges))).collect();
        Self {
            body,
            options,
            reach,
            api_servers,
            workloads,
            by_namespace,
            subjects,
            subject_of,
            nodes,
            former_nodes: former,
            host_workloads,
            node_ranges,
            control_plane_ranges,
            unlisted,
            inside,
            reachable_from_outside,
            pod_ranges,
            all_pods_in_ranges,
            declared,
            external,
        }
    }

    /// Whether policies are wanted for this namespace.
    pub(crate) fn in_scope(&self, namespace: &str) -> bool {
        let Options { namespaces, goals, .. } = self.options;
        namespaces.is_empty() || !goals.is_empty() || namespaces.contains(namespace)
    }

    /// Namespaces in scope that have at least one workload a policy can apply to.
    pub(crate) fn namespaces(&self) -> BTreeSet<&'a str> {
        self.by_namespace.keys().copied().filter(|ns| self.in_scope(ns)).collect()
    }

    /// Workloads of a namespace that a policy can apply to (not host-network).
    pub(crate) fn covered(&self, namespace: &str) -> impl Iterator<Item = &'a WorkloadEntry> {
        self.by_namespace.get(namespace).into_iter().flatten().copied()
    }

    /// The subjects of a namespace, sorted.
    pub(crate) fn subjects(&self, namespace: &str) -> impl Iterator<Item = &Subject<'a>> {
        let start = self.subjects.partition_point(|s| s.members[0].namespace.as_str() < namespace);
        let end = self.subjects.partition_point(|s| s.members[0].namespace.as_str() <= namespace);
        self.subjects[start..end].iter()
    }

    /// The subjects of more than one workload.
    pub(crate) fn shared_subjects(&self) -> impl Iterator<Item = &Subject<'a>> {
        self.subjects.iter().filter(|subject| subject.members.len() > 1)
    }

    /// The workloads that a rule for this one names, too: those of its subject, or all that bear
    /// its labels.
    pub(crate) fn alike(&self, workload: &WorkloadRef) -> BTreeSet<WorkloadRef> {
        let mut alike = BTreeSet::from([workload.clone()]);
        let subject = self.subject_of.get(workload).map(|index| &self.subjects[*index]);
        match (subject, self.workloads.get(workload)) {
            (Some(Subject { members, selector: Some(_) }), _) => alike.extend(members.iter().map(|m| (*m).clone())),
            (_, Some(entry)) if !entry.labels.is_empty() => {
                let selector = LabelSelector::of_labels(entry.labels.clone());
                let others = self.covered(&workload.namespace).filter(|w| selector_matches(&selector, &w.labels));
                alike.extend(others.map(|w| w.workload.clone()));
            }
            _ => {}
        }
        alike
    }

    /// The workloads of the subject that a workload belongs to.
    pub(crate) fn members(&self, workload: &WorkloadRef) -> &[&'a WorkloadRef] {
        self.subject_of.get(workload).map_or(&[], |index| &self.subjects[*index].members)
    }

    /// The selector of the subject that a workload belongs to.
    pub(crate) fn selector(&self, workload: &WorkloadRef) -> Option<&LabelSelector> {
        self.subjects[*self.subject_of.get(workload)?].selector.as_ref()
    }

    /// The pods of a workload as a peer of a policy in `policy_namespace`; `None` if no label names
    /// them. The flag says that the labels may select more than this workload.
    pub(crate) fn pods_peer(&self, workload: &WorkloadRef, policy_namespace: &str) -> Option<(RulePeer, bool)> {
        let entry = self.workloads.get(workload)?;
        let (selector, wider) = match self.selector(workload) {
            Some(selector) => (selector.clone(), false),
            None if entry.labels.is_empty() => return None,
            None => (LabelSelector::of_labels(entry.labels.clone()), true),
        };
        let namespace = (workload.namespace != policy_namespace).then(|| workload.namespace.clone());
        Some((RulePeer::Pods { namespace, selector }, wider))
    }

    /// Link-local addresses of a node: where NodeLocal DNS listens.
    pub(crate) fn link_local_addresses_of_node(&self, name: &str) -> impl Iterator<Item = IpAddr> {
        let known = self.nodes.get(name).into_iter();
        let all = known.flat_map(|node| node.listed.iter().chain(&node.unlisted)).copied();
        all.filter(|a| a.is_ipv4() && is_link_local(*a))
    }

    /// Addresses that pods ask for and that this node answers itself, beside its own: link-local
    /// ones, and those of Services that never reach the pods behind them.
    pub(crate) fn addresses_answered_on(&self, name: &str, edge: &EdgeRecord) -> BTreeSet<IpAddr> {
        let mut answered = BTreeSet::new();
        if edge.marks.contains(marks::LINK_LOCAL) {
            answered.extend(self.link_local_addresses_of_node(name));
        }
        let asked = self.services_asked(edge).flat_map(|(service, _)| &service.addresses);
        let unlisted = self.nodes.get(name).map(|node| &node.unlisted);
        answered.extend(asked.filter(|a| unlisted.is_some_and(|unlisted| unlisted.contains(*a))));
        answered
    }

    /// The ports of nodes that lead to the server of an edge whose client asked another node than
    /// its own, and the nodes that have them.
    pub(crate) fn node_ports_asked(&self, edge: &'a EdgeRecord) -> BTreeMap<u16, BTreeSet<&'a str>> {
        let mut asked: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
        if !edge.marks.contains(marks::HOST_PORT) {
            return asked;
        }
        for (service, number) in self.services_asked(edge) {
            let via = format!("{}/{}:{number}", service.namespace, service.name);
            let mut uses = self.body.service_flows.iter().filter(|f| f.client == *edge.client.peer && f.service == via);
            if !uses.any(|flow| flow.marks.contains(marks::HOST_PORT)) {
                continue;
            }
            let is = |port: &&ServicePortEntry| {
                port.port == number && Protocol::of_edge(&port.protocol) == Some(edge.protocol)
            };
            for port in service.ports.iter().filter(is).filter_map(|port| port.node_port) {
                asked.entry(port).or_default().extend(self.nodes.keys());
            }
        }
        // A host port is asked for without any Service.
        let is_direct = edge.sources.iter().any(|source| source.side == Side::Client);
        let server = edge.server.peer.workload().filter(|_| is_direct);
        let server = server.and_then(|server| self.workloads.get(server)).copied();
        let Some(server) = server else { return asked };
        let of_namespace = self.options.cluster.pods.iter().filter(|pod| pod.namespace == server.workload.namespace);
        let known: HashMap<&str, &ClusterPod> = of_namespace.map(|pod| (&*pod.name, pod)).collect();
        for (node, pods) in &server.pods {
            let declared = pods.iter().filter_map(|pod| known.get(&*pod.name)).flat_map(|pod| &pod.declared_ports);
            let declared = declared.filter(|port| port.protocol == edge.protocol && port.port == edge.port);
            for port in declared.filter_map(|port| port.host_port) {
                asked.entry(port).or_default().insert(node);
            }
        }
        asked
    }

    /// The Services that clients of this edge asked for, as far as they are known, with the port.
    pub(crate) fn services_asked(&self, edge: &'a EdgeRecord) -> impl Iterator<Item = (&'a ServiceEntry, u16)> {
        edge.via.iter().filter_map(|via| {
            let (asked, port) = via.rsplit_once(':')?;
            let (namespace, name) = asked.split_once('/')?;
            let mut all = self.body.services.iter();
            Some((all.find(|s| s.namespace == namespace && s.name == name)?, port.parse().ok()?))
        })
    }

    /// What a rule names for a node: the addresses that the API lists, or the declared ranges where
    /// one covers an address of the node.
    pub(crate) fn peers_of_node(&self, name: &str, called: bool) -> BTreeSet<RulePeer> {
        let Some(node) = self.nodes.get(name) else {
            let former = self.former_addresses(name).into_iter().flatten();
            return former.filter_map(|address| Some(self.node_range(*address)?.peer.clone())).collect();
        };
        let listed: BTreeSet<IpAddr> = node.listed.iter().copied().filter(|a| !is_link_local(*a)).collect();
        // Nobody calls a node at its tunnel addresses, which lie where pods live.
        let outside: BTreeSet<IpAddr> =
            listed.iter().copied().filter(|a| !self.pod_ranges.iter().any(|r| r.contains(a))).collect();
        let used = if called && !outside.is_empty() { outside } else { listed };
        let mut peers: BTreeSet<RulePeer> = used
            .into_iter()
            .map(|a| self.node_range(a).map_or_else(|| single(a), |range| range.peer.clone()))
            .collect();
        peers.extend(node.unlisted.iter().filter_map(|a| Some(self.node_range(*a)?.peer.clone())));
        peers
    }

    /// The last addresses of a node that is gone; `None`: it is not.
    pub(crate) fn former_addresses(&self, name: &str) -> Option<&BTreeSet<IpAddr>> {
        self.former_nodes.get(name)
    }

    /// What a rule names for the nodes on which pods of a workload are.
    pub(crate) fn peers_of_its_nodes(&self, workload: &WorkloadRef) -> BTreeSet<RulePeer> {
        let nodes = self.workloads.get(workload).into_iter().flat_map(|entry| entry.pods.keys());
        nodes.flat_map(|node| self.peers_of_node(node, false)).collect()
    }

    /// The declared ranges that cover addresses of a node which the API does not list: an entity
    /// stands for the listed ones alone.
    pub(crate) fn ranges_of_unlisted(&self, name: &str) -> BTreeSet<RulePeer> {
        let unlisted = self.nodes.get(name).into_iter().flat_map(|node| &node.unlisted);
        unlisted.filter_map(|address| Some(self.node_range(*address)?.peer.clone())).collect()
    }

    /// Whether this is one of the API server's own addresses.
    pub(crate) fn is_api_server(&self, address: IpAddr) -> bool {
        self.api_servers.contains(&address)
    }

    /// Whether the API server runs on this node.
    pub(crate) fn hosts_api_server(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|node| node.listed.iter().any(|a| self.is_api_server(*a)))
    }

    /// The API server's own addresses, and the declared ranges of the control plane.
    pub(crate) fn api_server_peers(&self) -> BTreeSet<RulePeer> {
        let ranges = self.control_plane_ranges.values().map(|range| range.peer.clone());
        self.api_servers.iter().copied().map(single).chain(ranges).collect()
    }

    /// All addresses from which an API server may call: its own, those of the nodes on which one
    /// runs, and the declared ranges.
    pub(crate) fn control_plane_peers(&self) -> BTreeSet<RulePeer> {
        let hosts = self.nodes.keys().filter(|name| self.hosts_api_server(name));
        self.api_server_peers().into_iter().chain(hosts.flat_map(|name| self.peers_of_node(name, false))).collect()
    }

    /// Whether an address is the control plane's: one of an API server, or in a declared range.
    pub(crate) fn is_control_plane(&self, address: IpAddr) -> bool {
        self.is_api_server(address) || self.control_plane_ranges.values().any(|range| range.contains(address))
    }

    /// The declared range of node addresses that covers this one.
    pub(crate) fn node_range(&self, address: IpAddr) -> Option<&DeclaredRange> {
        self.node_ranges.values().find(|range| range.contains(address))
    }

    /// The declared ranges of node addresses, and whether each covers one that is known.
    pub(crate) fn node_ranges(&self) -> impl Iterator<Item = (&IpNet, &DeclaredRange, bool)> {
        self.node_ranges.iter().map(|(cidr, range)| {
            let mut addresses = self.nodes.values().flat_map(|n| n.listed.iter().chain(&n.unlisted));
            (cidr, range, addresses.any(|a| range.contains(*a)))
        })
    }

    /// The node of which only its sockets show that it has this address.
    pub(crate) fn node_with_unlisted(&self, address: IpAddr) -> Option<&'a str> {
        self.unlisted.get(&address).copied()
    }

    /// Addresses of a node that neither the API lists nor a declared range covers.
    pub(crate) fn uncovered_addresses_of_node(&self, name: &str) -> Vec<IpAddr> {
        let unlisted = self.nodes.get(name).into_iter().flat_map(|node| &node.unlisted).copied();
        unlisted.filter(|a| !is_link_local(*a) && self.node_range(*a).is_none()).collect()
    }

    /// Nodes that host a host-network workload (`namespace/Owner/name`).
    pub(crate) fn nodes_of_host_workload(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.host_workloads.get(name).into_iter().flatten().copied()
    }

    /// Whether a pod or Service has this address, or it lies where pods get theirs and no node owns
    /// it.
    pub(crate) fn is_inside_cluster(&self, address: IpAddr) -> bool {
        self.inside.contains(&address) || self.pod_ranges.iter().any(|range| range.contains(&address))
    }

    /// Whether a pod port is behind a node port or a load balancer (B19).
    pub(crate) fn is_reachable_from_outside(&self, workload: &WorkloadRef, protocol: Protocol, port: u16) -> bool {
        self.reachable_from_outside.contains(&(workload, protocol, port))
    }

    /// Whether the sockets of the client, a node, opened as many connections as the server's side
    /// saw from it.
    ///
    /// What it opened through Services counts as a whole, though some of it may have reached other
    /// workloads.
    pub(crate) fn explains_itself(&self, edge: &EdgeRecord) -> bool {
        if edge.sources.is_empty() {
            return edge.seen_by.contains(&Side::Client);
        }
        let established = |sources: &[SourceCounts], side: Side| {
            let counts = sources.iter().filter(|s| s.side == side).map(|s| s.counts.established());
            counts.fold(0, u64::saturating_add)
        };
        let flows: Vec<u64> = self
            .body
            .service_flows
            .iter()
            .filter(|f| f.client == *edge.client.peer && f.protocol == edge.protocol && edge.via.contains(&f.service))
            .map(|flow| established(&flow.sources, Side::Client))
            .collect();
        if flows.is_empty() && !edge.via.is_empty() {
            // Numbers without a record of their own.
            return true;
        }
        let opened = flows.into_iter().fold(established(&edge.sources, Side::Client), u64::saturating_add);
        established(&edge.sources, Side::Server) <= opened
    }

    /// Every external address, of both families. `without_pods` leaves out the ranges where pods
    /// live, if they are known.
    pub(crate) fn anywhere(&self, without_pods: bool) -> Vec<RulePeer> {
        if self.reach.by_entity() {
            return vec![RulePeer::Entity(Entity::World)];
        }
        let without_pods = without_pods && self.reach.ranges_match_pods;
        let ranges = ["0.0.0.0/0", "::/0"].map(|text| {
            let cidr: IpNet = text.parse().expect("a literal range");
            let inside = |range: &&IpNet| without_pods && cidr != **range && cidr.contains(*range);
            RulePeer::Block { cidr, except: self.pod_ranges.iter().filter(inside).copied().collect() }
        });
        ranges.into()
    }

    /// The first name of the server for which a range with its address is declared, and the peers
    /// of all its ranges; else the same of what a person has declared by a name of their own.
    pub(crate) fn declared<'s>(
        &'s self,
        edge: &'s EdgeRecord,
        address: IpAddr,
    ) -> Option<(&'s str, &'s BTreeMap<IpNet, DeclaredRange>)> {
        let names = &edge.server.names;
        let by_name = names.iter().filter_map(|name| Some((name.as_str(), self.declared.get(name.as_str())?)));
        let fits = |label: &str| {
            self.options.external.get(label).is_some_and(|external| {
                let named = external.names.is_empty() || names.is_empty() || !external.names.is_disjoint(names);
                named && external.ports.contains(&(edge.protocol, edge.port))
            })
        };
        let by_label = self.external.iter().filter(|(label, _)| fits(label)).map(|(label, ranges)| (*label, ranges));
        by_name.chain(by_label).find(|(_, ranges)| ranges.keys().any(|range| range.contains(&address)))
    }

    /// Whether [`Context::anywhere`] leaves out the cluster's pods: the ranges where they live are
    /// known, or no range matches them.
    pub(crate) fn anywhere_is_outside(&self) -> bool {
        self.all_pods_in_ranges || !self.reach.ranges_match_pods
    }

    /// How a rule names this port of a workload (B2): by name if every pod defines the name and the
    /// numbers differ, else by number. Where names are no good, by each of those numbers.
    pub(crate) fn ports_of(
        &self,
        workload: &WorkloadRef,
        protocol: Protocol,
        port: u16,
        name: Option<&str>,
    ) -> BTreeSet<RulePort> {
        let rule_port = |port| RulePort { protocol, port };
        let Some(name) = name.filter(|n| matches!(self.name_in_pods(workload, protocol, n), NameInPods::Varies)) else {
            return BTreeSet::from([rule_port(PortRef::Number(port))]);
        };
        let named = rule_port(PortRef::Name(name.to_owned()));
        if !self.reach.ports_by_number {
            return BTreeSet::from([named]);
        }
        let numbers = self.numbers_of(workload, &named).into_iter().chain([port]);
        numbers.map(|number| rule_port(PortRef::Number(number))).collect()
    }

    /// The numbers that this port means at a workload's pods.
    pub(crate) fn numbers_of(&self, workload: &WorkloadRef, port: &RulePort) -> BTreeSet<u16> {
        match &port.port {
            PortRef::Number(number) => BTreeSet::from([*number]),
            PortRef::Name(name) => {
                let pods = self.workloads.get(workload).into_iter().flat_map(|w| w.pods.values().flatten());
                pods.flat_map(|pod| &pod.ports)
                    .filter(|p| p.name == *name && port.protocol.is_named(&p.protocol))
                    .map(|p| p.port)
                    .collect()
            }
        }
    }

    fn name_in_pods(&self, workload: &WorkloadRef, protocol: Protocol, name: &str) -> NameInPods {
        let Some(entry) = self.workloads.get(workload) else { return NameInPods::Plain };
        let mut numbers = BTreeSet::new();
        for pod in entry.pods.values().flatten() {
            match pod.ports.iter().find(|p| p.name == name && protocol.is_named(&p.protocol)) {
                Some(found) => numbers.insert(found.port),
                None => return NameInPods::Plain,
            };
        }
        if numbers.len() > 1 { NameInPods::Varies } else { NameInPods::Plain }
    }
}

/// One address as a range.
pub(crate) fn single(address: IpAddr) -> RulePeer {
    RulePeer::Block { cidr: IpNet::from(address), except: BTreeSet::new() }
}
