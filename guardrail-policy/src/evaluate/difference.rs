//! What changes from one set of policies to another, by meaning: which connections become allowed
//! or denied, whatever the files look like.
//!
//! Both evaluators are over the same pods. Every pair of workloads is compared at one port of each
//! interval between the ports that the policies of either set name, and every workload with one
//! address of each interval between the addresses that they name: the answer is empty exactly if
//! the two agree.
//! Nodes as subjects of policies, and ICMP, are left out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::Serialize;

use super::{
    End, Evaluator,
    connections::{Party, Ports},
};
use crate::model::{Direction, tier::TierPeer};

pub(super) mod spans;

use spans::{Span, Spans};

/// Connections that one set of policies allows and the other does not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Change {
    /// Who opens them.
    pub src: Party,
    /// Who accepts them.
    pub dst: Party,
    /// Ports that were denied and are allowed.
    pub allowed: Ports,
    /// Ports that were allowed and are denied.
    pub denied: Ports,
    /// It does not hold for all pods of the two workloads.
    pub some_pods: bool,
}

/// What changes for one pair of ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Delta {
    allowed: Ports,
    denied: Ports,
}

impl Delta {
    fn new(before: &Ports, after: &Ports) -> Self {
        Self { allowed: after.without(before), denied: before.without(after) }
    }

    fn is_empty(&self) -> bool {
        self.allowed.is_empty() && self.denied.is_empty()
    }
}

/// The differences of the pods of one pair of ends, as they come in.
#[derive(Clone, Debug, Default)]
struct Sum {
    delta: Delta,
    /// How many differ, and whether all that do so do it in the same way.
    count: usize,
    mixed: bool,
}

impl Sum {
    fn add(&mut self, delta: &Delta) {
        self.mixed |= self.count > 0 && self.delta != *delta;
        self.count += 1;
        self.delta.allowed = self.delta.allowed.with(&delta.allowed);
        self.delta.denied = self.delta.denied.with(&delta.denied);
    }

    /// The whole difference, and whether it holds for some of so many only.
    fn of(self, all: usize) -> (Delta, bool) {
        (self.delta, self.mixed || self.count < all)
    }
}

/// Pods that neither set of policies tells apart.
struct Kind {
    /// As each set sees them.
    ends: [End; 2],
    /// Whether the policies about them differ, per direction: ingress, egress.
    differs: [bool; 2],
}

/// Compares what two evaluators over the same pods say.
///
/// # Panics
/// If the evaluators have other pods.
#[must_use]
pub fn difference(before: &Evaluator, after: &Evaluator) -> Vec<Change> {
    assert_eq!(before.cluster().pods.len(), after.cluster().pods.len(), "both are over the same pods");
    let comparison = Comparison::new([before, after]);
    let mut changes = comparison.between_workloads();
    changes.extend(comparison.with_addresses(Direction::Ingress));
    changes.extend(comparison.with_addresses(Direction::Egress));
    changes.sort();
    changes
}

struct Comparison<'a> {
    sets: [&'a Evaluator; 2],
    kinds: Vec<Kind>,
    /// Names and kinds of the workloads, sorted.
    workloads: Vec<(String, BTreeSet<usize>)>,
    /// The workloads of each namespace, by their place.
    namespaces: BTreeMap<String, BTreeSet<usize>>,
    /// Intervals of addresses that no block of either set divides, with an end in each.
    spans: Spans<[End; 2]>,
}

impl<'a> Comparison<'a> {
    fn new(sets: [&'a Evaluator; 2]) -> Self {
        let blocks = sets.map(Evaluator::ip_blocks);
        let mut specs = Specs::default();
        let same_facts = sets[0].cluster().cidr_groups == sets[1].cluster().cidr_groups
            && sets[0].cluster().names == sets[1].cluster().names
            && sets[0].is_cilium() == sets[1].is_cilium();
        let mut known = HashMap::new();
        let mut kinds = Vec::new();
        let mut workloads: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        let pods = &sets[0].cluster().pods;
        for (pod, index) in pods.iter().zip(0..).filter(|(pod, _)| !pod.finished && !pod.host_network) {
            let ends = sets.map(|set| set.end_of_pod(index).any_replica());
            let families: Vec<bool> = ends[0].addresses().map(|address| address.is_ipv6()).collect();
            let within: Vec<bool> = blocks
                .iter()
                .flatten()
                .map(|block| ends[0].addresses().any(|address| block.contains(address)))
                .collect();
            let kind = *known.entry((ends.map(|end| end.class), families, within)).or_insert_with(|| {
                let differs = [Direction::Ingress, Direction::Egress].map(|direction| {
                    let [a, b] = [0, 1].map(|set| specs.of(sets[set], &ends[set], direction));
                    !same_facts || a != b
                });
                kinds.push(Kind { ends, differs });
                kinds.len() - 1
            });
            workloads.entry(pod.workload_name()).or_default().insert(kind);
        }
        let spans = spans(sets);
        let mut namespaces: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for (name, index) in workloads.keys().zip(0..) {
            let namespace = name.split('/').next().unwrap_or_default();
            namespaces.entry(namespace.to_owned()).or_default().insert(index);
        }
        Self { sets, kinds, workloads: workloads.into_iter().collect(), namespaces, spans }
    }

    /// What changes between two ends, each as both sets see it.
    fn delta(&self, client: &[End; 2], server: &[End; 2]) -> Delta {
        let [before, after] = [0, 1].map(|set| self.sets[set].allowed(&client[set], &server[set]));
        Delta::new(&before, &after)
    }

    /// Server by server, so that no more than one row of the table of all pairs is held; what is
    /// alike becomes one change.
    fn between_workloads(&self) -> Vec<Change> {
        let mut rows: BTreeMap<(Party, (Delta, bool)), BTreeSet<usize>> = BTreeMap::new();
        for (to, (_, servers)) in self.workloads.iter().enumerate() {
            let deltas: Vec<Vec<Delta>> = self.kinds.iter().map(|client| self.deltas(client, servers)).collect();
            let mut alike: BTreeMap<(Delta, bool), BTreeSet<usize>> = BTreeMap::new();
            for (from, (_, clients)) in self.workloads.iter().enumerate() {
                let mut sum = Sum::default();
                clients.iter().flat_map(|client| &deltas[*client]).for_each(|delta| sum.add(delta));
                if sum.count > 0 {
                    alike.entry(sum.of(clients.len() * servers.len())).or_default().insert(from);
                }
            }
            for (what, clients) in alike {
                for src in self.parties(&clients) {
                    rows.entry((src, what.clone())).or_default().insert(to);
                }
            }
        }
        let mut changes = Vec::new();
        for ((src, (Delta { allowed, denied }, some_pods)), servers) in rows {
            for dst in self.parties(&servers) {
                let (src, allowed, denied) = (src.clone(), allowed.clone(), denied.clone());
                changes.push(Change { src, dst, allowed, denied, some_pods });
            }
        }
        changes
    }

    /// What changes between pods of one kind and those of each of the others.
    fn deltas(&self, client: &Kind, servers: &BTreeSet<usize>) -> Vec<Delta> {
        let servers = servers.iter().map(|server| &self.kinds[*server]);
        let differing = servers.filter(|server| client.differs[1] || server.differs[0]);
        let delta = |server: &Kind| self.delta(&client.ends, &server.ends);
        differing.map(delta).filter(|delta| !delta.is_empty()).collect()
    }

    /// These workloads in as few words as possible.
    fn parties(&self, chosen: &BTreeSet<usize>) -> Vec<Party> {
        let all = self.workloads.len();
        let is_whole = |own: &&BTreeSet<usize>| own.is_subset(chosen);
        let left_out: Vec<&String> =
            self.namespaces.iter().filter(|(_, own)| own.is_disjoint(chosen)).map(|(name, _)| name).collect();
        let whole: usize = self.namespaces.values().filter(is_whole).map(BTreeSet::len).sum();
        // No namespace is divided.
        if whole == chosen.len() && all > 1 {
            match left_out[..] {
                [] => return vec![Party::EveryPod],
                [namespace] if chosen.len() > 1 && self.namespaces.len() > 2 => {
                    return vec![Party::EveryPodBut(namespace.clone())];
                }
                _ => {}
            }
        }
        let mut parties = Vec::new();
        for (namespace, own) in &self.namespaces {
            if own.len() > 1 && own.is_subset(chosen) {
                parties.push(Party::EveryPodOf(namespace.clone()));
            } else {
                let single =
                    own.intersection(chosen).map(|index| Party::Workload(self.workloads[*index].0.as_str().into()));
                parties.extend(single);
            }
        }
        parties
    }

    /// Changes between workloads and addresses: `Ingress` towards the workloads.
    fn with_addresses(&self, direction: Direction) -> Vec<Change> {
        let into = direction == Direction::Ingress;
        let deltas: Vec<Option<Vec<Delta>>> = self
            .kinds
            .iter()
            .map(|kind| {
                kind.differs[usize::from(!into)].then(|| {
                    let delta = |there: &[End; 2]| {
                        if into { self.delta(there, &kind.ends) } else { self.delta(&kind.ends, there) }
                    };
                    self.spans.ends().map(delta).collect()
                })
            })
            .collect();
        let mut rows: BTreeMap<(Party, (Delta, bool)), BTreeSet<usize>> = BTreeMap::new();
        for (index, (_, kinds)) in self.workloads.iter().enumerate() {
            if kinds.iter().all(|kind| deltas[*kind].is_none()) {
                continue;
            }
            let mut alike: BTreeMap<(Delta, bool), Vec<usize>> = BTreeMap::new();
            for span in 0..self.spans.len() {
                let mut sum = Sum::default();
                let found = kinds.iter().filter_map(|kind| deltas[*kind].as_ref().map(|all| &all[span]));
                found.filter(|delta| !delta.is_empty()).for_each(|delta| sum.add(delta));
                if sum.count > 0 {
                    alike.entry(sum.of(kinds.len())).or_default().push(span);
                }
            }
            for (what, spans) in alike {
                let there = self.spans.name(&spans).map_or(Party::Outside, Party::Block);
                rows.entry((there, what)).or_default().insert(index);
            }
        }
        let mut changes = Vec::new();
        for ((there, (Delta { allowed, denied }, some_pods)), workloads) in rows {
            for own in self.parties(&workloads) {
                let (src, dst) = if into { (there.clone(), own) } else { (own, there.clone()) };
                let (allowed, denied) = (allowed.clone(), denied.clone());
                changes.push(Change { src, dst, allowed, denied, some_pods });
            }
        }
        changes
    }
}

/// The intervals of addresses that no policy of the two divides. Where only pods live there is
/// none: they are compared as pods.
fn spans(sets: [&Evaluator; 2]) -> Spans<[End; 2]> {
    let mut blocks: BTreeSet<IpNet> = BTreeSet::new();
    for set in sets {
        for block in set.ip_blocks() {
            blocks.insert(block.cidr);
            blocks.extend(&block.except);
        }
        let peers = set.forms().iter().flat_map(|form| form.ingress.iter().chain(&form.egress));
        let peers = peers.flat_map(|rule| rule.peers.iter().flatten());
        // Peers that stand for addresses that the cluster knows, and exceptions of such.
        let mut by_facts = false;
        for peer in peers {
            match &**peer {
                TierPeer::Pods(_) | TierPeer::Addresses { .. } | TierPeer::Undecidable(_) => {}
                TierPeer::CidrGroup { except, .. } | TierPeer::CidrGroups { except, .. } => {
                    by_facts = true;
                    blocks.extend(except);
                }
                TierPeer::Nodes { .. } | TierPeer::Entity(_) | TierPeer::Name(_) | TierPeer::Service { .. } => {
                    by_facts = true;
                }
            }
        }
        if by_facts {
            let cluster = set.cluster();
            let nodes = cluster.nodes.iter().flat_map(|node| &node.addresses);
            let services = cluster.services.values().flat_map(|service| &service.addresses);
            let single = nodes.chain(services).chain(cluster.names.values().flatten());
            blocks.extend(single.map(|address| IpNet::from(*address)));
            blocks.extend(cluster.api_servers().into_iter().flatten().map(|address| IpNet::from(*address)));
            blocks.extend(cluster.cidr_groups.values().flat_map(|(_, ranges)| ranges));
        }
    }
    let is_pod = |address: IpAddr| sets[0].end_of_address(address).pod().is_some();
    Spans::between(&blocks, sets[0].cluster().pods.len(), |span: &Span| {
        let address = span.find(|address| !is_pod(address))?;
        Some(sets.map(|set| set.end_of_address(address)))
    })
}

/// What policies say, as numbers: equal for equal policies of both sets.
#[derive(Default)]
struct Specs {
    known: HashMap<String, usize>,
    /// Per set, by its address, and form.
    of_forms: HashMap<(usize, u32), usize>,
}

impl Specs {
    /// The policies that have a say about the end, and whether it is isolated.
    fn of(&mut self, set: &Evaluator, end: &End, direction: Direction) -> (bool, Vec<usize>) {
        let forms = set.asked(end, direction).into_iter().map(|form| {
            let key = (std::ptr::from_ref(set).addr(), form);
            *self.of_forms.entry(key).or_insert_with(|| {
                let next = self.known.len();
                *self.known.entry(format!("{:?}", set.forms()[form as usize].plain())).or_insert(next)
            })
        });
        (set.isolated(end, direction), forms.collect())
    }
}
