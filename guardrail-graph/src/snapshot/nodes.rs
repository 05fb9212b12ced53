//! Which nodes there were when, as agents were told: from that follows, over a span, where an agent
//! is expected.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    Body, Interval,
    facts::Facts,
    intervals::{holds, joined, without},
    span::Span,
};

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

/// When a node was there, as agents were told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeTime {
    /// Its name.
    pub name: String,
    /// Why nobody can observe it, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unobservable: Option<String>,
    /// When. Its end is that of the word, if the node is not known to be gone.
    #[serde(flatten)]
    pub time: Interval,
}

/// `(name, why nobody can observe it)`, and when.
pub(crate) type Nodes = BTreeMap<(String, Option<String>), Vec<Interval>>;

/// As they stand in a snapshot.
pub(crate) fn node_times(nodes: &Nodes) -> impl Iterator<Item = NodeTime> + '_ {
    nodes.iter().flat_map(|((name, unobservable), times)| {
        times.iter().map(|time| NodeTime { name: name.clone(), unobservable: unobservable.clone(), time: *time })
    })
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
        for NodeTime { name, unobservable, time } in nodes {
            self.nodes.entry((name, unobservable)).or_default().push(time);
        }
    }

    /// When nobody could observe a node, of those that nobody did observe.
    pub(super) fn unobservable_times(&self) -> BTreeMap<&str, Vec<Interval>> {
        let mut times: BTreeMap<&str, Vec<Interval>> = BTreeMap::new();
        for ((name, why), intervals) in &self.nodes {
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
        self.nodes.values_mut().for_each(|times| *times = joined(std::mem::take(times)));
        let times = self.unobservable_times();
        let is_observable = |name: &str, there: &[Interval]| match times.get(name) {
            Some(not) => !without(there, not).is_empty() || there.iter().any(|at| at.from == at.to && !holds(not, *at)),
            None => true,
        };
        let mut expected: BTreeSet<String> = BTreeSet::new();
        let mut unobservable: BTreeMap<String, String> = BTreeMap::new();
        for ((name, why), there) in &self.nodes {
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

/// Leaves the times of nodes that lie in the span; what follows from those times is derived anew.
pub(super) fn cut_nodes(body: &mut Body, span: &Span) {
    let told: BTreeSet<&str> = body.nodes.iter().map(|node| &*node.name).collect();
    let NodeCoverage { expected, unobservable, .. } = &mut body.coverage.nodes;
    expected.retain(|node| !told.contains(&**node));
    unobservable.retain(|node, _| !told.contains(&**node));
    body.nodes.retain_mut(|node| span.cut(node.time).map(|part| node.time = part).is_some());
}
