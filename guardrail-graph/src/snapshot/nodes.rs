//! Which nodes there were when, and what they were, as agents were told: from that follows, over a
//! span, where an agent is expected, which ranges were pods', and what a rule may name of a node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    AddressEntry, Body, Interval,
    facts::Facts,
    intervals::{holds, joined, without},
    owners::LEAD,
    span::Span,
};
use crate::{inventory::Labels, peer::Peer, selector::LabelSelector, time::Timestamp};

/// Why nobody can observe a node that a person says so of.
pub(crate) const AS_TOLD: &str = "as told";

/// Nodes observed and expected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeCoverage {
    /// Nodes whose agent contributed.
    pub observed: BTreeSet<String>,
    /// Nodes that anybody told of (and those observed), without those that nobody can observe.
    pub expected: BTreeSet<String>,
    /// Nodes that nobody can observe, and why: another operating system, a virtual kubelet,
    /// Fargate, or a person says so.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unobservable: BTreeMap<String, String>,
}

/// What was told of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeDescription {
    /// Its operating system: the kubelet's word, else the label's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Its labels, but for [`NodeDescription::more_labels`].
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// It had others that were not kept: they were too many, too long, or changed all the time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more_labels: bool,
    /// Its addresses, tunnel addresses in annotations included.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub addresses: BTreeSet<IpAddr>,
    /// Ranges from which its pods have their addresses.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub pod_cidrs: BTreeSet<IpNet>,
}

impl NodeDescription {
    /// Whether it has an address, by its status or by its pod ranges.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        let mut by_range = self.pod_cidrs.iter().flat_map(|range| range_addresses(*range));
        self.addresses.contains(&address) || by_range.any(|own| own == address)
    }

    /// Whether a selector surely selects its labels: of labels that were not kept nobody knows.
    #[must_use]
    pub fn is_selected_by(&self, selector: &LabelSelector) -> bool {
        let mut keys = selector.match_expressions.iter().map(|requirement| &*requirement.key);
        selector.matches(&self.labels) && (!self.more_labels || keys.all(|key| self.labels.get(key).is_some()))
    }
}

/// When a node was there, and what it was then, as agents were told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeTime {
    /// Its name.
    pub name: String,
    /// Why nobody can observe it, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unobservable: Option<String>,
    /// What it was.
    #[serde(flatten)]
    pub described: Arc<NodeDescription>,
    /// When. Its end is that of the word, if the node is not known to be gone.
    #[serde(flatten)]
    pub time: Interval,
}

/// So many times of a node are joined before there are all.
const MANY_TIMES: usize = 16;

/// `(name, why nobody can observe it, what it was)`, and when.
pub(crate) type Nodes = BTreeMap<(String, Option<String>, Arc<NodeDescription>), Vec<Interval>>;

/// As they stand in a snapshot.
pub(crate) fn node_times(nodes: &Nodes) -> impl Iterator<Item = NodeTime> + '_ {
    nodes.iter().flat_map(|((name, unobservable, described), times)| {
        times.iter().map(|time| NodeTime {
            name: name.clone(),
            unobservable: unobservable.clone(),
            described: Arc::clone(described),
            time: *time,
        })
    })
}

/// A node as it was last told of.
#[derive(Clone, Debug)]
pub struct KnownNode<'a> {
    /// All that was told of it at the last moment: several agents may differ for a while.
    pub described: Vec<&'a NodeDescription>,
    /// Until when it was told of.
    pub until: Timestamp,
    /// Others were told of later, and it was not: it is gone.
    pub is_gone: bool,
}

impl Body {
    /// The nodes that anybody was told of, by name.
    #[must_use]
    pub fn known_nodes(&self) -> BTreeMap<&str, KnownNode<'_>> {
        let last = self.nodes.iter().map(|node| node.time.to).max().unwrap_or_default();
        let mut known: BTreeMap<&str, KnownNode<'_>> = BTreeMap::new();
        for NodeTime { name, described, time: Interval { to, .. }, .. } in &self.nodes {
            let new = || KnownNode { described: Vec::new(), until: *to, is_gone: *to < last };
            let node = known.entry(name).or_insert_with(new);
            if *to > node.until {
                *node = new();
            }
            if *to == node.until && !node.described.contains(&&**described) {
                node.described.push(described);
            }
        }
        known
    }

    /// Addresses that nodes still have, by name: not what was left open by an agent that was
    /// gone before the node was, or before the node changed. `known`: [`Body::known_nodes`]; where
    /// nobody was told of any, what was left open lasts.
    pub fn lasting_addresses<'a>(
        &'a self,
        known: &BTreeMap<&'a str, KnownNode<'a>>,
    ) -> impl Iterator<Item = (&'a str, &'a AddressEntry)> {
        let lasts = |name: &str, entry: &AddressEntry| match known.get(name) {
            _ if known.is_empty() => true,
            Some(node) => {
                let is_told = || node.described.iter().any(|described| described.has(entry.address));
                let is_late = entry.heard.is_none_or(|heard| heard.to.after(LEAD) >= node.until);
                !node.is_gone && (is_late || is_told())
            }
            None => self.coverage.nodes.observed.contains(name),
        };
        self.addresses.iter().filter_map(move |entry| match (&entry.peer, &entry.pod, entry.to) {
            (Peer::Node { name }, None, None) if lasts(name, entry) => Some((&**name, entry)),
            _ => None,
        })
    }

    /// Ranges from which pods had their addresses, those of nodes that are gone included: the
    /// cluster gives them to other nodes.
    pub fn pod_ranges(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.nodes.iter().flat_map(|node| node.described.pod_cidrs.iter().copied())
    }

    /// A person says that nodes with these labels cannot be observed. Call it before snapshots are
    /// joined. Gives whether there are such nodes.
    pub fn tell_unobservable(&mut self, selector: &LabelSelector) -> bool {
        let mut any = false;
        for node in self.nodes.iter_mut().filter(|node| node.described.is_selected_by(selector)) {
            any = true;
            node.unobservable.get_or_insert_with(|| AS_TOLD.to_owned());
        }
        any
    }
}

/// Adds a time to those of one node: what overlaps or touches becomes one before it becomes much.
fn add_time(times: &mut Vec<Interval>, time: Interval) {
    times.push(time);
    if times.len() >= MANY_TIMES && times.len().is_power_of_two() {
        *times = joined(std::mem::take(times));
    }
}

impl Facts {
    /// Takes what a snapshot says of nodes. What it expects by these times alone follows from them.
    pub(super) fn add_nodes(&mut self, nodes: Vec<NodeTime>, coverage: NodeCoverage) {
        let NodeCoverage { observed, expected, unobservable } = coverage;
        let told: BTreeSet<&str> = nodes.iter().map(|node| &*node.name).collect();
        self.observed.extend(observed);
        self.expected.extend(expected.into_iter().filter(|node| !told.contains(&**node)));
        for (node, why) in unobservable.into_iter().filter(|(node, _)| !told.contains(&**node)) {
            let known = self.unobservable.entry(node).or_default();
            *known = std::mem::take(known).max(why);
        }
        for NodeTime { name, unobservable, described, time } in nodes {
            add_time(self.nodes.entry((name, unobservable, described)).or_default(), time);
        }
    }

    /// Keeps the times of nodes as they are before they are cut to the span: who had an address
    /// stays known.
    pub(super) fn keep_nodes(&mut self, nodes: &[NodeTime]) {
        for NodeTime { name, unobservable, described, time } in nodes {
            let key = (name.clone(), unobservable.clone(), Arc::clone(described));
            add_time(self.uncut_nodes.entry(key).or_default(), *time);
        }
    }

    /// Nodes at all times.
    pub(super) fn named_nodes(&self) -> &Nodes {
        if self.span.is_all() { &self.nodes } else { &self.uncut_nodes }
    }

    /// When nobody could observe a node, of those that nobody did observe.
    pub(super) fn unobservable_times(&self) -> BTreeMap<&str, Vec<Interval>> {
        let mut times: BTreeMap<&str, Vec<Interval>> = BTreeMap::new();
        for ((name, why, _), intervals) in &self.nodes {
            if why.is_some() && !self.observed.contains(name) {
                times.entry(name).or_default().extend(intervals);
            }
        }
        times.values_mut().for_each(|intervals| *intervals = joined(std::mem::take(intervals)));
        times
    }

    /// Where an agent is expected: wherever there was a node at a time at which one could be
    /// observed.
    pub(crate) fn settle_nodes(&mut self) {
        for times in self.nodes.values_mut().chain(self.uncut_nodes.values_mut()) {
            *times = joined(std::mem::take(times));
        }
        if !self.remote_flows.is_empty() || !self.own_pods.is_empty() {
            let names: BTreeSet<&String> = self.named_nodes().keys().map(|(name, ..)| name).collect();
            let peer = |name: &String| (name.clone(), Arc::new(Peer::Node { name: name.clone() }));
            self.node_peers = names.into_iter().map(peer).collect();
        }
        let times = self.unobservable_times();
        let is_observable = |name: &str, there: &[Interval]| match times.get(name) {
            Some(not) => !without(there, not).is_empty() || there.iter().any(|at| at.from == at.to && !holds(not, *at)),
            None => true,
        };
        let mut expected: BTreeSet<String> = BTreeSet::new();
        let mut unobservable: BTreeMap<String, String> = BTreeMap::new();
        for ((name, why, _), there) in &self.nodes {
            match why {
                None if is_observable(name, there) => drop(expected.insert(name.clone())),
                None => {}
                Some(why) => drop(unobservable.insert(name.clone(), why.clone())),
            }
        }
        unobservable.retain(|name, _| !expected.contains(name));
        self.unobservable.retain(|name, _| !expected.contains(name));
        self.unobservable.extend(unobservable);
        self.expected.extend(expected);
        self.unobservable.retain(|node, _| !self.observed.contains(node));
        self.expected.retain(|node| !self.unobservable.contains_key(node));
        self.expected.extend(self.observed.iter().cloned());
    }
}

/// The network and the first host address of a pod range: those of a tunnel and a bridge.
pub fn range_addresses(range: IpNet) -> impl Iterator<Item = IpAddr> {
    let network = range.network();
    let first = match network {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|next| IpAddr::V6(next.into())),
    };
    [network].into_iter().chain(first.filter(|first| range.contains(first)))
}

/// Leaves the times of nodes that lie in the span; what follows from those times is derived anew.
pub(super) fn cut_nodes(body: &mut Body, span: &Span) {
    let told: BTreeSet<&str> = body.nodes.iter().map(|node| &*node.name).collect();
    let NodeCoverage { expected, unobservable, .. } = &mut body.coverage.nodes;
    expected.retain(|node| !told.contains(&**node));
    unobservable.retain(|node, _| !told.contains(&**node));
    body.nodes.retain_mut(|node| span.cut(node.time).map(|part| node.time = part).is_some());
}
