//! Policies compiled against a cluster: classes of pods, sets of classes, rules as bit tests.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use guardrail_graph::snapshot::LabelSelector;

use super::{Cluster, RuleRef, Side};
use crate::model::{
    Direction, IpBlock, Labels, NetworkPolicy, PeerKind, PolicyPort, PortMatch, Protocol, Rule, selector_matches,
};

/// A set of small numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct BitSet(Vec<u64>);

impl BitSet {
    fn with_len(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    fn contains(&self, index: u32) -> bool {
        let index = index as usize;
        self.0.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    fn union(&mut self, other: &Self) {
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            *a |= b;
        }
    }
}

/// Pods that no policy can tell apart by labels or named ports.
#[derive(Debug)]
struct Class {
    namespace: u32,
    labels: Labels,
    pods: u32,
    /// Policies that select it and isolate it, per direction (ingress, egress), ascending.
    policies: [Vec<u32>; 2],
}

#[derive(Debug)]
struct CompiledRule {
    ports: Vec<(Protocol, CompiledPort)>,
    any_peer: bool,
    classes: Option<BitSet>,
    /// Ranges that are more than one address.
    blocks: Vec<IpBlock>,
    /// Single addresses: a rule for the nodes of a large cluster has thousands.
    singles: HashSet<IpAddr>,
}

impl CompiledRule {
    fn has_address(&self, address: IpAddr) -> bool {
        self.singles.contains(&address) || self.blocks.iter().any(|block| block.contains(address))
    }
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
    classes: Vec<Class>,
    /// Class per pod; `None`: finished or on the host network.
    pods: Vec<Option<u32>>,
    /// Classes that each policy selects, whatever its types.
    selected: Vec<BitSet>,
    /// Rules per policy and direction (ingress, egress).
    rules: Vec<[Vec<CompiledRule>; 2]>,
    /// Per named port of the policies: the numbers it has, per class.
    named: Vec<Vec<Vec<u16>>>,
    nodes: HashMap<String, u32>,
}

const fn slot(direction: Direction) -> usize {
    match direction {
        Direction::Ingress => 0,
        Direction::Egress => 1,
    }
}

/// What distinguishes peers: where they look for namespaces, and for pods.
type PeerKey<'a> = (Option<&'a str>, Option<&'a LabelSelector>, Option<&'a LabelSelector>);

struct Builder<'a> {
    namespaces: &'a [(String, Labels)],
    classes: &'a [Class],
    class_ports: &'a [Vec<(String, Protocol, u16)>],
    sets: HashMap<PeerKey<'a>, BitSet>,
    named_ids: HashMap<(&'a str, Protocol), u32>,
    named: Vec<Vec<Vec<u16>>>,
}

impl Compiled {
    pub(super) fn new(cluster: &Cluster, policies: &[NetworkPolicy]) -> Self {
        let namespaces: Vec<(String, Labels)> =
            cluster.namespaces().map(|n| (n.to_owned(), cluster.namespace_labels(n))).collect();
        let (mut classes, class_ports, pods) = classify(cluster, &namespaces);
        let selected: Vec<BitSet> = policies
            .iter()
            .map(|policy| {
                let mut set = BitSet::with_len(classes.len());
                for (index, class) in classes.iter().enumerate() {
                    if namespaces[class.namespace as usize].0 == policy.namespace
                        && selector_matches(&policy.pod_selector, &class.labels)
                    {
                        set.insert(index);
                    }
                }
                set
            })
            .collect();
        for ((policy, set), index) in policies.iter().zip(&selected).zip(0..) {
            for direction in Direction::BOTH.into_iter().filter(|d| policy.isolates(*d)) {
                for (class, number) in classes.iter_mut().zip(0..) {
                    if set.contains(number) {
                        class.policies[slot(direction)].push(index);
                    }
                }
            }
        }
        let mut builder = Builder {
            namespaces: &namespaces,
            classes: &classes,
            class_ports: &class_ports,
            sets: HashMap::new(),
            named_ids: HashMap::new(),
            named: Vec::new(),
        };
        let rules = policies
            .iter()
            .map(|policy| {
                let ingress = policy.ingress.iter().map(|r| builder_rule(&mut builder, policy, r)).collect();
                let egress = policy.egress.iter().map(|r| builder_rule(&mut builder, policy, r)).collect();
                [ingress, egress]
            })
            .collect();
        let named = builder.named;
        let mut nodes = HashMap::new();
        let names = cluster.nodes.iter().map(|n| &n.name).chain(cluster.pods.iter().filter_map(|p| p.node.as_ref()));
        for name in names {
            let next = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
            nodes.entry(name.clone()).or_insert(next);
        }
        Self { namespaces, classes, pods, selected, rules, named, nodes }
    }

    pub(super) fn class_of_pod(&self, pod: u32) -> Option<u32> {
        self.pods[pod as usize]
    }

    pub(super) fn node_id(&self, name: &str) -> Option<u32> {
        self.nodes.get(name).copied()
    }

    pub(super) fn isolating(&self, class: Option<u32>, direction: Direction) -> impl Iterator<Item = u32> + '_ {
        class.into_iter().flat_map(move |c| self.classes[c as usize].policies[slot(direction)].iter().copied())
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

    pub(super) fn peer_pods(&self, cluster: &Cluster, policy: &NetworkPolicy, peer: &PeerKind) -> Option<usize> {
        let PeerKind::Pods { namespaces, pods } = peer else { return None };
        debug_assert_eq!(cluster.pods.len(), self.pods.len());
        let set = peer_set(&self.namespaces, &self.classes, (&policy.namespace, namespaces.as_ref(), pods.as_ref()));
        Some(self.classes.iter().zip(0..).filter(|(_, c)| set.contains(*c)).map(|(class, _)| class.pods as usize).sum())
    }

    /// What the policies that isolate `own` in `direction` say about `other`; the port is `server`'s.
    #[expect(clippy::too_many_arguments, reason = "the hot path takes the ends apart once")]
    pub(super) fn side(
        &self,
        direction: Direction,
        own: Option<u32>,
        other: Option<u32>,
        other_address: Option<IpAddr>,
        server: Option<u32>,
        protocol: Protocol,
        port: u16,
    ) -> Side {
        let Some(own) = own else { return Side::NotIsolated };
        let policies = &self.classes[own as usize].policies[slot(direction)];
        if policies.is_empty() {
            return Side::NotIsolated;
        }
        let mut matching = Vec::new();
        for &policy in policies {
            for (rule, index) in self.rules[policy as usize][slot(direction)].iter().zip(0..) {
                if self.ports_match(rule, server, protocol, port) && peers_match(rule, other, other_address) {
                    matching.push(RuleRef { policy, rule: index });
                }
            }
        }
        if matching.is_empty() { Side::Denied } else { Side::AllowedBy(matching) }
    }

    /// Who may call `server` on this port, as far as its ingress goes.
    pub(super) fn admission(&self, server: Option<u32>, protocol: Protocol, port: u16) -> Admission<'_> {
        let mut admission =
            Admission { everyone: false, classes: BitSet::with_len(self.classes.len()), by_address: Vec::new() };
        let policies = server.map(|class| &self.classes[class as usize].policies[slot(Direction::Ingress)]);
        let Some(policies) = policies.filter(|p| !p.is_empty()) else {
            admission.everyone = true;
            return admission;
        };
        for rule in policies.iter().flat_map(|p| &self.rules[*p as usize][slot(Direction::Ingress)]) {
            if self.ports_match(rule, server, protocol, port) {
                admission.everyone |= rule.any_peer;
                if !(rule.blocks.is_empty() && rule.singles.is_empty()) {
                    admission.by_address.push(rule);
                }
                if let Some(classes) = &rule.classes {
                    admission.classes.union(classes);
                }
            }
        }
        admission
    }

    fn ports_match(&self, rule: &CompiledRule, server: Option<u32>, protocol: Protocol, port: u16) -> bool {
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

/// Whom the ingress rules of one server let in on one port: many clients are asked about one server at the cost of a bit test each.
#[derive(Debug)]
pub struct Admission<'a> {
    everyone: bool,
    classes: BitSet,
    by_address: Vec<&'a CompiledRule>,
}

impl Admission<'_> {
    /// Whether a client might be let in: true if a rule names its class, or one of its addresses whichever the connection would use. A client of
    /// whom this is false is denied; of whom it is true, [`super::Evaluator::evaluate`] tells.
    #[must_use]
    pub fn may_admit(&self, client: &super::End) -> bool {
        self.everyone
            || client.class.is_some_and(|class| self.classes.contains(class))
            || (!self.by_address.is_empty()
                && client.addresses().any(|address| self.by_address.iter().any(|rule| rule.has_address(address))))
    }
}

fn peers_match(rule: &CompiledRule, class: Option<u32>, address: Option<IpAddr>) -> bool {
    rule.any_peer
        || rule.classes.as_ref().zip(class).is_some_and(|(set, class)| set.contains(class))
        || address.is_some_and(|address| rule.has_address(address))
}

/// Classes, their named ports, and the class of each pod.
type Classes = (Vec<Class>, Vec<Vec<(String, Protocol, u16)>>, Vec<Option<u32>>);

fn classify(cluster: &Cluster, namespaces: &[(String, Labels)]) -> Classes {
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
            let key = (pod.namespace.as_str(), &pod.labels, ports.clone());
            let class = *known.entry(key).or_insert_with(|| {
                classes.push(Class {
                    namespace: numbers[pod.namespace.as_str()],
                    labels: pod.labels.clone(),
                    pods: 0,
                    policies: [Vec::new(), Vec::new()],
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

fn peer_set(
    namespaces: &[(String, Labels)],
    classes: &[Class],
    peer: (&str, Option<&LabelSelector>, Option<&LabelSelector>),
) -> BitSet {
    let (own, namespace_selector, pod_selector) = peer;
    let wanted: Vec<bool> = namespaces
        .iter()
        .map(|(name, labels)| match namespace_selector {
            Some(selector) => selector_matches(selector, labels),
            None => name == own,
        })
        .collect();
    let mut set = BitSet::with_len(classes.len());
    for (index, class) in classes.iter().enumerate() {
        if wanted[class.namespace as usize] && pod_selector.is_none_or(|s| selector_matches(s, &class.labels)) {
            set.insert(index);
        }
    }
    set
}

fn builder_rule<'a>(builder: &mut Builder<'a>, policy: &'a NetworkPolicy, rule: &'a Rule) -> CompiledRule {
    let mut classes: Option<BitSet> = None;
    let (mut blocks, mut singles) = (Vec::new(), HashSet::new());
    for peer in &rule.peers {
        match &peer.kind {
            PeerKind::IpBlock(block) if block.cidr.prefix_len() == block.cidr.max_prefix_len() => {
                singles.insert(block.cidr.addr());
            }
            PeerKind::IpBlock(block) => blocks.push(block.clone()),
            PeerKind::Pods { namespaces, pods } => {
                let own = if namespaces.is_none() { Some(policy.namespace.as_str()) } else { None };
                let set = builder.sets.entry((own, namespaces.as_ref(), pods.as_ref())).or_insert_with(|| {
                    peer_set(
                        builder.namespaces,
                        builder.classes,
                        (&policy.namespace, namespaces.as_ref(), pods.as_ref()),
                    )
                });
                match &mut classes {
                    Some(classes) => classes.union(set),
                    None => classes = Some(set.clone()),
                }
            }
        }
    }
    let ports = rule.ports.iter().map(|port| (port.protocol, builder_port(builder, port))).collect();
    CompiledRule { ports, any_peer: rule.peers.is_empty(), classes, blocks, singles }
}

fn builder_port<'a>(builder: &mut Builder<'a>, port: &'a PolicyPort) -> CompiledPort {
    match &port.port {
        PortMatch::Any => CompiledPort::Any,
        PortMatch::Range { first, last } => CompiledPort::Range(*first, *last),
        PortMatch::Named(name) => {
            let Builder { named_ids, named, class_ports, .. } = builder;
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
