//! Policies compiled against a cluster: classes of pods, sets of classes, rules as bit tests.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{Hash, Hasher},
    sync::Arc,
};

use guardrail_graph::snapshot::LabelSelector;
use ipnet::IpNet;

use super::{
    Cluster, End,
    bitset::{BitSet, SetId},
    dataplane::{CiliumOptions, Dataplane, Enforcement},
    identity::Identity,
    kinds::Kinds,
    rules::{Peers, Port, Rules, RulesBuilder},
    stages::{Subjects, SubjectsBuilder},
};
use crate::model::{
    Direction, IpBlock, Labels, NAMESPACE_NAME_LABEL, PolicyPort, PortMatch, Protocol, selector_matches,
    selector_matches_by,
    tier::{
        Entity, NamePattern, PodSelector, Reach, Requires, Scope, ServiceBy, Stars, Subject, TierPeer, TierPolicy,
        TierRule,
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

/// A namespace with the classes of its pods.
#[derive(Debug)]
struct Namespace {
    name: String,
    labels: Labels,
    classes: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Compiled {
    namespaces: Vec<Namespace>,
    pub(super) classes: Vec<Class>,
    /// Class per pod; `None`: finished or on the host network.
    pods: Vec<Option<u32>>,
    /// Classes that each policy selects, whatever it says.
    selected: Vec<SetId>,
    pub(super) rules: Rules,
    /// Priority per policy; only those of ordered tiers mean something.
    pub(super) priorities: Vec<u16>,
    nodes: HashMap<String, u32>,
    /// Who has a say, per subject: classes first, then nodes, if policies can select nodes.
    pub(super) subjects: Subjects,
    /// Nodes are subjects.
    host_subjects: bool,
    /// Options of Cilium, if that is the data plane.
    pub(super) cilium: Option<CiliumOptions>,
}

struct Builder<'a> {
    cluster: &'a Cluster,
    namespaces: &'a [Namespace],
    classes: &'a [Class],
    class_ports: &'a [Vec<(String, Protocol, u16)>],
    nodes: &'a HashMap<String, u32>,
    cilium: Option<&'a CiliumOptions>,
    sets: HashMap<Asked<'a>, SetId>,
    named_ids: HashMap<(&'a str, Protocol), u32>,
    rules: RulesBuilder,
}

impl Compiled {
    pub(super) fn new(cluster: &Cluster, policies: &[TierPolicy], dataplane: &Dataplane) -> Self {
        let cilium = dataplane.cilium();
        let namespace = |name: &str| Namespace {
            name: name.to_owned(),
            labels: cluster.namespace_labels(name),
            classes: Vec::new(),
        };
        let mut namespaces: Vec<Namespace> = cluster.namespaces().map(namespace).collect();
        let by_account = policies.iter().any(|p| p.kind.is_cilium());
        let (classes, class_ports, pods) = classify(cluster, &namespaces, by_account);
        for (class, index) in classes.iter().zip(0..) {
            namespaces[class.namespace as usize].classes.push(index);
        }
        let mut nodes = HashMap::new();
        let all = cluster.nodes.iter().chain(&cluster.former_nodes);
        let names = all.map(|n| &n.name).chain(cluster.pods.iter().filter_map(|p| p.node.as_ref()));
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
            rules: RulesBuilder::new(policies.len(), classes.len()),
        };
        // A pod is mostly selected by policies of its namespace.
        let mut by_namespace: Vec<(&TierPolicy, u32)> = policies.iter().zip(0..).collect();
        by_namespace.sort_by_key(|(policy, _)| &policy.namespace);
        for (policy, index) in by_namespace {
            for direction in Direction::BOTH {
                for rule in policy.rules(direction) {
                    builder.rule(policy, index, direction, rule);
                }
            }
        }
        let nobody = BitSet::default();
        let selected: Vec<SetId> = policies
            .iter()
            .map(|policy| match &policy.subject {
                Subject::Pods(selector) => builder.set(selector),
                Subject::Nodes(_) => builder.rules.sets().push(&nobody),
            })
            .collect();
        let host_subjects =
            cilium.is_some_and(|o| o.host_firewall) && policies.iter().any(|p| matches!(p.subject, Subject::Nodes(_)));
        let hosts: Vec<SetId> = policies
            .iter()
            .map(|policy| match &policy.subject {
                Subject::Nodes(selector) if host_subjects => {
                    let nodes = builder.nodes_by_label(selector);
                    builder.rules.sets().push(&nodes)
                }
                _ => builder.rules.sets().push(&nobody),
            })
            .collect();
        let requires = policies
            .iter()
            .map(|policy| {
                policy.requires.each_ref().map(|Requires { accept, deny }| {
                    [accept, deny].map(|conditions| conditions.iter().map(|s| builder.pod_set(s)).collect())
                })
            })
            .collect::<Vec<_>>();
        let rules = builder.rules.build();
        let enforcement = cilium.map_or(Enforcement::Default, |o| o.enforcement);
        let subjects = if enforcement == Enforcement::Never {
            Subjects::default()
        } else {
            // Where every endpoint is isolated, nodes are not: the host firewall has its own
            // posture.
            let always = enforcement == Enforcement::Always;
            let mut subjects =
                SubjectsBuilder { policies, rules: &rules, requires: &requires, subjects: Subjects::default() };
            subjects.add(classes.len(), &selected, always);
            subjects.add(if host_subjects { nodes.len() } else { 0 }, &hosts, false);
            subjects.subjects
        };
        let cilium = cilium.cloned();
        let priorities = policies.iter().map(|policy| policy.priority).collect();
        Self { namespaces, classes, pods, selected, rules, priorities, nodes, subjects, host_subjects, cilium }
    }

    pub(super) fn class_of_pod(&self, pod: u32) -> Option<u32> {
        self.pods[pod as usize]
    }

    pub(super) fn node_id(&self, name: &str) -> Option<u32> {
        self.nodes.get(name).copied()
    }

    /// Whose policies are asked; `None`: nothing that policies can select.
    #[inline]
    pub(super) fn subject(&self, end: &End) -> Option<u32> {
        if end.class.is_some() || !self.host_subjects {
            return end.class;
        }
        let node = end.node_index().filter(|node| (*node as usize) < self.nodes.len());
        node.map(|node| u32::try_from(self.classes.len()).unwrap_or(u32::MAX) + node)
    }

    pub(super) fn selected(&self, policy: u32) -> Vec<u32> {
        let selected = self.selected[policy as usize];
        self.pods_in(|class| self.rules.sets.contains(selected, class))
    }

    pub(super) fn pods_selected_by(&self, selector: &PodSelector) -> Vec<u32> {
        let set = pod_set(&self.namespaces, &self.classes, self.cilium.as_ref(), selector);
        self.pods_in(|class| set.contains(class))
    }

    fn pods_in(&self, holds: impl Fn(u32) -> bool) -> Vec<u32> {
        self.pods.iter().zip(0..).filter(|(class, _)| class.is_some_and(&holds)).map(|(_, pod)| pod).collect()
    }

    /// How many live pods a selector matches.
    pub(super) fn pods_of(&self, selector: &PodSelector) -> usize {
        let set = pod_set(&self.namespaces, &self.classes, self.cilium.as_ref(), selector);
        self.classes.iter().zip(0..).filter(|(_, c)| set.contains(*c)).map(|(class, _)| class.pods as usize).sum()
    }
}

/// Classes, their named ports, and the class of each pod.
type Classes = (Vec<Class>, Vec<Vec<(String, Protocol, u16)>>, Vec<Option<u32>>);

fn classify(cluster: &Cluster, namespaces: &[Namespace], by_account: bool) -> Classes {
    let numbers: HashMap<&str, u32> = namespaces.iter().zip(0..).map(|(ns, n)| (ns.name.as_str(), n)).collect();
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
    namespaces: &[Namespace],
    classes: &[Class],
    cilium: Option<&CiliumOptions>,
    selector: &PodSelector,
) -> BitSet {
    let without = CiliumOptions::default();
    let CiliumOptions { cluster, labels: filter, .. } = cilium.unwrap_or(&without);
    let wanted = |ns: &&Namespace| match selector {
        PodSelector::Kubernetes { namespace, namespaces, .. } => {
            namespace.as_ref().is_none_or(|name| *name == ns.name)
                && namespaces.as_ref().is_none_or(|s| selector_matches(s, &ns.labels))
        }
        PodSelector::Cilium { scope: Scope::Namespace(own), .. } => *own == ns.name,
        PodSelector::Cilium { .. } => true,
    };
    // Most selectors name one namespace, and each has its name for a label.
    let named = match selector {
        PodSelector::Kubernetes { namespace: Some(name), .. } => Some(name),
        PodSelector::Kubernetes { namespaces: Some(labels), .. } => labels.match_labels.get(NAMESPACE_NAME_LABEL),
        PodSelector::Cilium { scope: Scope::Namespace(own), .. } => Some(own),
        _ => None,
    };
    let among = match named {
        Some(name) => match namespaces.binary_search_by(|ns| ns.name.cmp(name)) {
            Ok(at) => &namespaces[at..=at],
            Err(_) => &[],
        },
        None => namespaces,
    };
    let mut set = BitSet::with_len(classes.len());
    for index in among.iter().filter(wanted).flat_map(|ns| &ns.classes) {
        let class = &classes[*index as usize];
        let matches = match selector {
            // Cilium knows a pod by its identity, whoever asks.
            PodSelector::Kubernetes { pods, .. } if cilium.is_some() => pods.as_ref().is_none_or(|s| {
                selector_matches_by(s, |key| {
                    class.labels.get(key).map(String::as_str).filter(|_| !filter.leaves_out(key))
                })
            }),
            PodSelector::Kubernetes { pods, .. } => pods.as_ref().is_none_or(|s| selector_matches(s, &class.labels)),
            PodSelector::Cilium { selector, .. } => {
                let Namespace { name: namespace, labels: namespace_labels, .. } = &namespaces[class.namespace as usize];
                let account = class.account.as_deref();
                let identity =
                    Identity { namespace, namespace_labels, labels: &class.labels, account, cluster, filter };
                selector_matches_by(selector, |key| identity.label(key))
            }
        };
        if matches {
            set.insert(*index as usize);
        }
    }
    set
}

/// A selector that was asked for. Policies that are read together share their labels
/// ([`crate::model::Shared`]): where a selector lies says enough, and its labels need not be
/// looked at. Equal ones in two places are two.
struct Asked<'a>(&'a PodSelector);

impl<'a> Asked<'a> {
    /// The namespace's name or cluster, and the selectors.
    fn parts(&self) -> (Option<&'a Scope>, Option<&'a String>, [Option<&'a LabelSelector>; 2]) {
        match self.0 {
            PodSelector::Kubernetes { namespace, namespaces, pods } => {
                (None, namespace.as_ref(), [namespaces.as_ref(), pods.as_ref()])
            }
            PodSelector::Cilium { scope, selector } => (Some(scope), None, [None, Some(selector)]),
        }
    }
}

impl Hash for Asked<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (_, namespace, selectors) = self.parts();
        namespace.hash(state);
        selectors.map(|selector| selector.map(|s| Arc::as_ptr(&s.match_labels))).hash(state);
    }
}

impl PartialEq for Asked<'_> {
    fn eq(&self, other: &Self) -> bool {
        let same = |pair: (Option<&LabelSelector>, Option<&LabelSelector>)| match pair {
            (Some(a), Some(b)) => {
                Arc::ptr_eq(&a.match_labels, &b.match_labels) && a.match_expressions == b.match_expressions
            }
            (a, b) => a.is_none() && b.is_none(),
        };
        let ((scope, namespace, a), (other_scope, other_namespace, b)) = (self.parts(), other.parts());
        scope == other_scope && namespace == other_namespace && a.into_iter().zip(b).all(same)
    }
}

impl Eq for Asked<'_> {}

impl<'a> Builder<'a> {
    fn pod_set(&self, selector: &PodSelector) -> BitSet {
        pod_set(self.namespaces, self.classes, self.cilium, selector)
    }

    fn set(&mut self, selector: &'a PodSelector) -> SetId {
        if let Some(known) = self.sets.get(&Asked(selector)) {
            return *known;
        }
        let pods = self.pod_set(selector);
        let set = self.rules.sets().push(&pods);
        self.sets.insert(Asked(selector), set);
        set
    }

    fn nodes_by_label(&self, selector: &LabelSelector) -> BitSet {
        let mut set = BitSet::with_len(self.nodes.len());
        let nodes = self.cluster.nodes.iter().chain(&self.cluster.former_nodes);
        for node in nodes.filter(|n| selector_matches(selector, &n.labels)) {
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

    fn rule(&mut self, policy: &TierPolicy, index: u32, direction: Direction, rule: &'a TierRule) {
        let ports = rule.ports.iter().map(|port| self.port(port)).collect();
        let mut peers = rule.peers.as_ref().map(|_| Peers::new(self.classes.len()));
        for peer in rule.peers.iter().flatten() {
            if let Some(peers) = &mut peers {
                self.peer(policy, peer, peers);
            }
        }
        self.rules.add(index, direction, rule.action, ports, peers);
    }

    fn peer(&mut self, policy: &TierPolicy, peer: &'a TierPeer, rule: &mut Peers) {
        match peer {
            TierPeer::Pods(selector) => {
                let set = self.set(selector);
                self.rules.sets().add_to(set, &mut rule.classes);
                if selector.may_match_no_pod() {
                    rule.others.unknown = rule.others.unknown.with(Kinds::ALL.without(Kinds::POD));
                }
            }
            TierPeer::Addresses { block, reach } => rule.add_block(block.clone(), self.reach(*reach)),
            TierPeer::Nodes { selector, remote_only } => {
                let kinds = if *remote_only { Kinds::REMOTE } else { Kinds::NODES };
                rule.others.nodes.push((self.nodes_by_label(selector), kinds));
            }
            TierPeer::Entity(entity) => {
                rule.others.entities = rule.others.entities.with(Kinds::of_entity(*entity));
                // An API server outside is of the cluster, too.
                if matches!(entity, Entity::KubeApiserver | Entity::Cluster) && self.cluster.api_servers().is_none() {
                    rule.others.unknown = rule.others.unknown.with(Kinds::NODES).with(Kinds::WORLD);
                }
            }
            TierPeer::Name(pattern) => {
                let pattern = self.pattern(pattern);
                let known = self.cluster.names.iter().filter(|(name, _)| pattern.matches(name)).flat_map(|(_, a)| a);
                known.for_each(|a| rule.add_address(*a, Kinds::WORLD));
                if !self.cluster.all_names {
                    rule.others.unknown = rule.others.unknown.with(Kinds::WORLD);
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
            TierPeer::Undecidable(_) => rule.others.unknown = rule.others.unknown.with(Kinds::WORLD),
        }
        let by_group = matches!(peer, TierPeer::CidrGroup { .. } | TierPeer::CidrGroups { .. });
        if by_group && self.cluster.cidr_groups.is_empty() {
            rule.others.unknown = rule.others.unknown.with(self.reach(Reach::Dataplane));
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
    fn service(&mut self, policy: &TierPolicy, namespace: Option<&String>, by: &ServiceBy, rule: &mut Peers) {
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
                rule.classes.union(&self.pod_set(&PodSelector::Cilium { scope, selector }));
            }
        }
    }

    fn port(&mut self, port: &'a PolicyPort) -> Port {
        let protocol = port.protocol;
        match &port.port {
            PortMatch::Any => Port::Range(protocol, 0, u16::MAX),
            // Cilium knows `endPort` from 1.16 on.
            PortMatch::Range { first, last } => {
                Port::Range(protocol, *first, if self.since((1, 16)) { *last } else { *first })
            }
            PortMatch::Named(name) => {
                let Self { named_ids, rules, class_ports, .. } = self;
                let id = *named_ids.entry((name, protocol)).or_insert_with(|| {
                    rules.name(class_ports.iter().map(|ports| {
                        let named = ports.iter().filter(|(n, p, _)| n == name && *p == protocol);
                        named.map(|(_, _, number)| *number)
                    }))
                });
                Port::Named(protocol, id)
            }
        }
    }
}

/// A range of a group, less those exceptions that lie in it.
fn within(cidr: IpNet, except: &[IpNet]) -> IpBlock {
    IpBlock { cidr, except: except.to_vec() }
}
