//! Policies compiled against a cluster: classes of pods, sets of classes, rules as bit tests.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use guardrail_graph::snapshot::LabelSelector;
use ipnet::IpNet;

use super::{
    Cluster,
    bitset::BitSet,
    dataplane::{CiliumOptions, Dataplane, Enforcement},
    identity::{Identity, is_left_out},
    kinds::Kinds,
    stages::Stages,
};
use crate::model::{
    Direction, IpBlock, Labels, PolicyPort, PortMatch, Protocol, selector_matches, selector_matches_by,
    tier::{
        Action, Entity, NamePattern, PodSelector, Reach, Requires, Scope, ServiceBy, Stars, Subject, TierPeer,
        TierPolicy, TierRule,
    },
};

/// Pods that no policy can tell apart by labels, named ports or service account.
#[derive(Debug)]
pub(super) struct Class {
    namespace: u32,
    labels: Labels,
    account: Option<String>,
    pods: u32,
}

#[derive(Debug)]
pub(super) struct CompiledRule {
    pub(super) action: Action,
    ports: Vec<(Protocol, CompiledPort)>,
    pub(super) any_peer: bool,
    pub(super) classes: Option<BitSet>,
    /// Ranges that are more than one address, and the kinds of ends that each matches.
    blocks: Vec<(IpBlock, Kinds)>,
    /// Single addresses, likewise: a rule for the nodes of a large cluster has thousands.
    singles: HashMap<IpAddr, Kinds>,
    pub(super) entities: Kinds,
    /// Nodes by index, and the kinds that are meant: the own node may be left out.
    pub(super) nodes: Vec<(BitSet, Kinds)>,
    /// Ends of these kinds may match, and nothing here tells.
    pub(super) unknown: Kinds,
}

#[derive(Clone, Copy, Debug)]
enum CompiledPort {
    Any,
    Range(u16, u16),
    /// Index into [`Compiled::named`].
    Named(u32),
}

#[derive(Debug)]
pub(super) struct Compiled {
    namespaces: Vec<(String, Labels)>,
    pub(super) classes: Vec<Class>,
    /// Class per pod; `None`: finished or on the host network.
    pods: Vec<Option<u32>>,
    /// Classes that each policy selects, whatever it says.
    selected: Vec<BitSet>,
    /// Rules per policy and direction (ingress, egress).
    pub(super) rules: Vec<[Vec<CompiledRule>; 2]>,
    /// Priority per policy; only those of ordered tiers mean something.
    pub(super) priorities: Vec<u16>,
    /// Per named port of the policies: the numbers it has, per class.
    named: Vec<Vec<Vec<u16>>>,
    nodes: HashMap<String, u32>,
    /// Who has a say, per subject and direction (ingress, egress): classes first, then nodes, if
    /// policies can select nodes.
    pub(super) stages: Vec<[Stages; 2]>,
    /// Nodes are subjects.
    host_subjects: bool,
    /// Options of Cilium, if that is the data plane.
    pub(super) cilium: Option<CiliumOptions>,
}

struct Builder<'a> {
    cluster: &'a Cluster,
    namespaces: &'a [(String, Labels)],
    classes: &'a [Class],
    class_ports: &'a [Vec<(String, Protocol, u16)>],
    nodes: &'a HashMap<String, u32>,
    cilium: Option<&'a CiliumOptions>,
    sets: HashMap<PodSelector, BitSet>,
    named_ids: HashMap<(&'a str, Protocol), u32>,
    named: Vec<Vec<Vec<u16>>>,
}

impl Compiled {
    pub(super) fn new(cluster: &Cluster, policies: &[TierPolicy], dataplane: &Dataplane) -> Self {
        let cilium = dataplane.cilium();
        let namespaces: Vec<(String, Labels)> =
            cluster.namespaces().map(|n| (n.to_owned(), cluster.namespace_labels(n))).collect();
        let by_account = policies.iter().any(|p| p.kind.is_cilium());
        let (classes, class_ports, pods) = classify(cluster, &namespaces, by_account);
        let mut nodes = HashMap::new();
        let names = cluster.nodes.iter().map(|n| &n.name).chain(cluster.pods.iter().filter_map(|p| p.node.as_ref()));
        for name in names {
            let next = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
            nodes.entry(name.clone()).or_insert(next);
        }
        let mut builder = Builder {
            cluster,
            namespaces: &namespaces,
            classes: &classes,
            class_ports: &class_ports,
            nodes: &nodes,
            cilium,
            sets: HashMap::new(),
            named_ids: HashMap::new(),
            named: Vec::new(),
        };
        let rules: Vec<[Vec<CompiledRule>; 2]> = policies
            .iter()
            .map(|policy| {
                Direction::BOTH.map(|d| policy.rules(d).iter().map(|r| builder.rule(policy, r)).collect::<Vec<_>>())
            })
            .collect();
        let selected: Vec<BitSet> = policies
            .iter()
            .map(|policy| match &policy.subject {
                Subject::Pods(selector) => builder.set(selector),
                Subject::Nodes(_) => BitSet::with_len(classes.len()),
            })
            .collect();
        let host_subjects =
            cilium.is_some_and(|o| o.host_firewall) && policies.iter().any(|p| matches!(p.subject, Subject::Nodes(_)));
        let hosts: Vec<Option<BitSet>> = policies
            .iter()
            .map(|policy| match &policy.subject {
                Subject::Nodes(selector) if host_subjects => Some(builder.nodes_by_label(selector)),
                _ => None,
            })
            .collect();
        let subjects = classes.len() + if host_subjects { nodes.len() } else { 0 };
        let enforcement = cilium.map_or(Enforcement::Default, |o| o.enforcement);
        let mut stages: Vec<[Stages; 2]> = (0..subjects).map(|_| <[Stages; 2]>::default()).collect();
        if enforcement != Enforcement::Never {
            for (index, policy) in policies.iter().enumerate() {
                for direction in Direction::BOTH {
                    let Requires { accept, deny } = &policy.requires[direction.slot()];
                    let requires = [accept, deny]
                        .map(|conditions| conditions.iter().map(|s| builder.set(s)).collect::<Vec<BitSet>>());
                    let has_rules = !policy.rules(direction).is_empty();
                    if !has_rules && !policy.isolates(direction) && requires.iter().all(Vec::is_empty) {
                        continue;
                    }
                    for (subject, stages) in stages.iter_mut().enumerate() {
                        let number = u32::try_from(subject).unwrap_or(u32::MAX);
                        let is = match &hosts[index] {
                            Some(hosts) => {
                                subject >= classes.len()
                                    && hosts.contains(number - u32::try_from(classes.len()).unwrap_or(0))
                            }
                            None => subject < classes.len() && selected[index].contains(number),
                        };
                        if is {
                            let isolates = policy.isolates(direction);
                            stages[direction.slot()].add(policy.tier, index, isolates, &requires);
                        }
                    }
                }
            }
            for stage in stages.iter_mut().flatten() {
                stage.sort(policies);
            }
        }
        if enforcement == Enforcement::Always {
            // Every endpoint; the host firewall has its own posture.
            stages.iter_mut().take(classes.len()).flatten().for_each(|s| s.isolated = true);
        }
        let named = builder.named;
        let cilium = cilium.cloned();
        let priorities = policies.iter().map(|policy| policy.priority).collect();
        Self { namespaces, classes, pods, selected, rules, priorities, named, nodes, stages, host_subjects, cilium }
    }

    pub(super) fn class_of_pod(&self, pod: u32) -> Option<u32> {
        self.pods[pod as usize]
    }

    pub(super) fn node_id(&self, name: &str) -> Option<u32> {
        self.nodes.get(name).copied()
    }

    /// The subject that a node is, if policies can select it.
    pub(super) fn subject_of_node(&self, node: u32) -> Option<u32> {
        let known = self.host_subjects && (node as usize) < self.nodes.len();
        known.then(|| u32::try_from(self.classes.len()).unwrap_or(u32::MAX) + node)
    }

    pub(super) fn selected(&self, policy: u32) -> Vec<u32> {
        let set = &self.selected[policy as usize];
        self.pods
            .iter()
            .zip(0..)
            .filter(|(class, _)| class.is_some_and(|c| set.contains(c)))
            .map(|(_, pod)| pod)
            .collect()
    }

    /// How many live pods a selector matches.
    pub(super) fn pods_of(&self, selector: &PodSelector) -> usize {
        let set = pod_set(&self.namespaces, &self.classes, self.cilium.as_ref(), selector);
        self.classes.iter().zip(0..).filter(|(_, c)| set.contains(*c)).map(|(class, _)| class.pods as usize).sum()
    }

    #[inline]
    pub(super) fn ports_match(&self, rule: &CompiledRule, server: Option<u32>, protocol: Protocol, port: u16) -> bool {
        rule.ports.is_empty()
            || rule.ports.iter().any(|(p, wanted)| {
                *p == protocol
                    && match *wanted {
                        CompiledPort::Any => true,
                        CompiledPort::Range(first, last) => (first..=last).contains(&port),
                        CompiledPort::Named(id) => {
                            server.is_some_and(|class| self.named[id as usize][class as usize].contains(&port))
                        }
                    }
            })
    }
}

/// Classes, their named ports, and the class of each pod.
type Classes = (Vec<Class>, Vec<Vec<(String, Protocol, u16)>>, Vec<Option<u32>>);

fn classify(cluster: &Cluster, namespaces: &[(String, Labels)], by_account: bool) -> Classes {
    let numbers: HashMap<&str, u32> = namespaces.iter().zip(0..).map(|((name, _), n)| (name.as_str(), n)).collect();
    let mut classes: Vec<Class> = Vec::new();
    let mut class_ports = Vec::new();
    let mut known = BTreeMap::new();
    let pods = cluster
        .pods
        .iter()
        .map(|pod| {
            if pod.finished || pod.host_network {
                return None;
            }
            let mut ports = pod.ports.clone();
            ports.sort();
            let account = pod.service_account.as_ref().filter(|_| by_account);
            let key = (pod.namespace.as_str(), &pod.labels, ports.clone(), account);
            let class = *known.entry(key).or_insert_with(|| {
                classes.push(Class {
                    namespace: numbers[pod.namespace.as_str()],
                    labels: pod.labels.clone(),
                    account: account.cloned(),
                    pods: 0,
                });
                class_ports.push(ports);
                u32::try_from(classes.len() - 1).unwrap_or(u32::MAX)
            });
            classes[class as usize].pods += 1;
            Some(class)
        })
        .collect();
    (classes, class_ports, pods)
}

fn pod_set(
    namespaces: &[(String, Labels)],
    classes: &[Class],
    cilium: Option<&CiliumOptions>,
    selector: &PodSelector,
) -> BitSet {
    let cluster = cilium.map_or("default", |o| &o.cluster);
    let wanted: Vec<bool> = namespaces
        .iter()
        .map(|(name, labels)| match selector {
            PodSelector::Kubernetes { namespace, namespaces, .. } => {
                namespace.as_ref().is_none_or(|n| n == name)
                    && namespaces.as_ref().is_none_or(|s| selector_matches(s, labels))
            }
            PodSelector::Cilium { scope: Scope::Namespace(own), .. } => own == name,
            PodSelector::Cilium { .. } => true,
        })
        .collect();
    let mut set = BitSet::with_len(classes.len());
    for (index, class) in classes.iter().enumerate().filter(|(_, c)| wanted[c.namespace as usize]) {
        let matches = match selector {
            // Cilium knows a pod by its identity, whoever asks.
            PodSelector::Kubernetes { pods, .. } if cilium.is_some() => pods.as_ref().is_none_or(|s| {
                selector_matches_by(s, |key| class.labels.get(key).map(String::as_str).filter(|_| !is_left_out(key)))
            }),
            PodSelector::Kubernetes { pods, .. } => pods.as_ref().is_none_or(|s| selector_matches(s, &class.labels)),
            PodSelector::Cilium { selector, .. } => {
                let (namespace, namespace_labels) = &namespaces[class.namespace as usize];
                let account = class.account.as_deref();
                let identity = Identity { namespace, namespace_labels, labels: &class.labels, account, cluster };
                selector_matches_by(selector, |key| identity.label(key))
            }
        };
        if matches {
            set.insert(index);
        }
    }
    set
}

impl<'a> Builder<'a> {
    fn set(&mut self, selector: &PodSelector) -> BitSet {
        if let Some(known) = self.sets.get(selector) {
            return known.clone();
        }
        let set = pod_set(self.namespaces, self.classes, self.cilium, selector);
        self.sets.insert(selector.clone(), set.clone());
        set
    }

    fn nodes_by_label(&self, selector: &LabelSelector) -> BitSet {
        let mut set = BitSet::with_len(self.nodes.len());
        for node in self.cluster.nodes.iter().filter(|n| selector_matches(selector, &n.labels)) {
            if let Some(index) = self.nodes.get(&node.name) {
                set.insert(*index as usize);
            }
        }
        set
    }

    /// The kinds of ends that ranges match.
    fn reach(&self, reach: Reach) -> Kinds {
        match (reach, self.cilium) {
            (Reach::Everybody, _) | (_, None) => Kinds::ALL,
            (Reach::Dataplane, Some(options)) => {
                let nodes = if options.cidr_nodes { Kinds::NODES } else { Kinds::NONE };
                let pods = if options.cidr_pods { Kinds::POD } else { Kinds::NONE };
                Kinds::WORLD.with(nodes).with(pods)
            }
        }
    }

    fn rule(&mut self, policy: &TierPolicy, rule: &'a TierRule) -> CompiledRule {
        let ports = rule.ports.iter().map(|port| (port.protocol, self.port(port))).collect();
        let mut compiled = CompiledRule {
            action: rule.action,
            ports,
            any_peer: rule.peers.is_none(),
            classes: None,
            blocks: Vec::new(),
            singles: HashMap::new(),
            entities: Kinds::NONE,
            nodes: Vec::new(),
            unknown: Kinds::NONE,
        };
        for peer in rule.peers.iter().flatten() {
            self.peer(policy, peer, &mut compiled);
        }
        compiled
    }

    fn peer(&mut self, policy: &TierPolicy, peer: &TierPeer, rule: &mut CompiledRule) {
        match peer {
            TierPeer::Pods(selector) => {
                let set = self.set(selector);
                rule.add_classes(&set);
                if let PodSelector::Cilium { scope: Scope::Written, selector } = selector
                    && selector_matches_by(selector, |_| None)
                {
                    // It asks for absent labels only, and what is no pod has none of them.
                    rule.unknown = rule.unknown.with(Kinds::ALL.without(Kinds::POD));
                }
            }
            TierPeer::Addresses { block, reach } => rule.add_block(block.clone(), self.reach(*reach)),
            TierPeer::Nodes { selector, remote_only } => {
                let kinds = if *remote_only { Kinds::REMOTE } else { Kinds::NODES };
                rule.nodes.push((self.nodes_by_label(selector), kinds));
            }
            TierPeer::Entity(entity) => {
                rule.entities = rule.entities.with(Kinds::of_entity(*entity));
                // An API server outside is of the cluster, too.
                if matches!(entity, Entity::KubeApiserver | Entity::Cluster) && self.cluster.api_servers().is_none() {
                    rule.unknown = rule.unknown.with(Kinds::NODES).with(Kinds::WORLD);
                }
            }
            TierPeer::Name(pattern) => {
                let pattern = self.pattern(pattern);
                let known = self.cluster.names.iter().filter(|(name, _)| pattern.matches(name)).flat_map(|(_, a)| a);
                known.for_each(|a| rule.add_address(*a, Kinds::WORLD));
                if !self.cluster.all_names {
                    rule.unknown = rule.unknown.with(Kinds::WORLD);
                }
            }
            TierPeer::CidrGroup { name, except } => {
                let kinds = self.reach(Reach::Dataplane);
                let ranges = self.cluster.cidr_groups.get(name).into_iter().flat_map(|(_, ranges)| ranges);
                ranges.for_each(|r| rule.add_block(within(*r, except), kinds));
            }
            TierPeer::CidrGroups { selector, except } => {
                let kinds = self.reach(Reach::Dataplane);
                let groups = self.cluster.cidr_groups.values().filter(|(labels, _)| selector_matches(selector, labels));
                groups.flat_map(|(_, ranges)| ranges).for_each(|r| rule.add_block(within(*r, except), kinds));
            }
            TierPeer::Service { namespace, by } => self.service(policy, namespace.as_ref(), by, rule),
            TierPeer::Undecidable(_) => rule.unknown = rule.unknown.with(Kinds::WORLD),
        }
        let by_group = matches!(peer, TierPeer::CidrGroup { .. } | TierPeer::CidrGroups { .. });
        if by_group && self.cluster.cidr_groups.is_empty() {
            rule.unknown = rule.unknown.with(self.reach(Reach::Dataplane));
        }
    }

    /// Whether Cilium is of this release or a later one; without a version it is the latest.
    fn since(&self, release: (u16, u16)) -> bool {
        self.cilium.and_then(|o| o.version).is_none_or(|version| version >= release)
    }

    /// Until Cilium 1.18 two stars are one.
    fn pattern(&self, pattern: &NamePattern) -> NamePattern {
        let mut pattern = pattern.clone();
        if pattern.stars == Stars::Label && !self.since((1, 19)) {
            pattern.pattern = pattern.pattern.replacen("**.", "*.", 1);
        }
        pattern
    }

    /// With a selector a Service means its pods, else the addresses of its slices.
    fn service(&mut self, policy: &TierPolicy, namespace: Option<&String>, by: &ServiceBy, rule: &mut CompiledRule) {
        let cluster = self.cluster;
        let own = (!policy.namespace.is_empty()).then_some(&policy.namespace);
        for ((service_namespace, name), service) in &cluster.services {
            let place = match by {
                ServiceBy::Name(_) => namespace.or(own).is_some_and(|n| n == service_namespace),
                ServiceBy::Labels(_) => namespace.is_none_or(|n| n == service_namespace),
            };
            let named = match by {
                ServiceBy::Name(wanted) => wanted == name,
                ServiceBy::Labels(selector) => selector_matches(selector, &service.labels),
            };
            if !place || !named {
                continue;
            }
            if service.selector.is_empty() {
                let kinds = self.reach(Reach::Dataplane);
                service.addresses.iter().for_each(|a| rule.add_address(*a, kinds));
            } else if self.since((1, 17)) {
                let selector = LabelSelector::of_labels(service.selector.clone());
                let scope = Scope::Namespace(service_namespace.clone());
                let set = self.set(&PodSelector::Cilium { scope, selector });
                rule.add_classes(&set);
            }
        }
    }

    fn port(&mut self, port: &'a PolicyPort) -> CompiledPort {
        match &port.port {
            PortMatch::Any => CompiledPort::Any,
            // Cilium knows `endPort` from 1.16 on.
            PortMatch::Range { first, last } => {
                CompiledPort::Range(*first, if self.since((1, 16)) { *last } else { *first })
            }
            PortMatch::Named(name) => {
                let Self { named_ids, named, class_ports, .. } = self;
                let id = *named_ids.entry((name, port.protocol)).or_insert_with(|| {
                    let numbers = class_ports.iter().map(|ports| {
                        ports
                            .iter()
                            .filter(|(n, p, _)| n == name && *p == port.protocol)
                            .map(|(_, _, number)| *number)
                            .collect()
                    });
                    named.push(numbers.collect());
                    u32::try_from(named.len() - 1).unwrap_or(u32::MAX)
                });
                CompiledPort::Named(id)
            }
        }
    }
}

impl CompiledRule {
    /// Whether one of its ranges holds this address, for an end of these kinds.
    pub(super) fn has_address(&self, address: IpAddr, kinds: Kinds) -> bool {
        self.singles.get(&address).is_some_and(|reach| kinds.meets(*reach))
            || self.blocks.iter().any(|(block, reach)| kinds.meets(*reach) && block.contains(address))
    }

    pub(super) fn has_ranges(&self) -> bool {
        !(self.blocks.is_empty() && self.singles.is_empty())
    }

    fn add_block(&mut self, block: IpBlock, kinds: Kinds) {
        if block.cidr.prefix_len() == block.cidr.max_prefix_len() && block.except.is_empty() {
            self.add_address(block.cidr.addr(), kinds);
        } else {
            self.blocks.push((block, kinds));
        }
    }

    fn add_address(&mut self, address: IpAddr, kinds: Kinds) {
        let known = self.singles.entry(address).or_default();
        *known = known.with(kinds);
    }

    fn add_classes(&mut self, set: &BitSet) {
        match &mut self.classes {
            Some(classes) => classes.union(set),
            None => self.classes = Some(set.clone()),
        }
    }
}

/// A range of a group, less those exceptions that lie in it.
fn within(cidr: IpNet, except: &[IpNet]) -> IpBlock {
    IpBlock { cidr, except: except.to_vec() }
}
