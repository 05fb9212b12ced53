//! Which nodes there are, and were in this epoch, and what they were, as the API server told.
//!
//! What is kept of an epoch is bounded, in bytes a node and in number, whatever controllers write
//! into labels every minute: what had to be left out is said ([`NodeDescription::more_labels`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::Observer;
use crate::{
    inventory::{Labels, Node},
    snapshot::{
        Body, Interval,
        facts::Facts,
        nodes::{NodeDescription, NodeTime, Nodes as Times},
    },
    time::Timestamp,
};

/// Entries kept of one epoch that are over. Of more of them the end is not taken.
const MAX_GONE: usize = 10_000;
/// Bytes of their descriptions. More of them are kept without one.
const MAX_GONE_BYTES: usize = 4 << 20;
/// Bytes of a node's labels that are kept: the longest are left out first.
const MAX_LABEL_BYTES: usize = 16 << 10;
/// Addresses of a node that are kept, and as many pod ranges.
const MAX_ADDRESSES: usize = 64;
/// A label that changed more often in an epoch is left out for the rest of it.
const MAX_LABEL_CHANGES: u8 = 4;
/// A node that became another more often in an epoch is kept without labels for the rest of it.
const MAX_LABELLED: usize = 32;
/// The same without anything.
const MAX_DESCRIBED: usize = 64;

/// A node that is there.
#[derive(Debug)]
struct There {
    /// Since when it is; `None`: it was in the first list.
    since: Option<Timestamp>,
    /// Since when it is as it is.
    from: Timestamp,
    unobservable: Option<String>,
    described: Arc<NodeDescription>,
    /// All of them.
    labels: Labels,
    changes: Changes,
}

/// How often a node changed in this epoch.
#[derive(Debug, Default)]
struct Changes {
    /// Descriptions that are over.
    all: usize,
    of_labels: BTreeMap<Box<str>, u8>,
}

impl Changes {
    /// Counts labels that came, went or have another value.
    fn count(&mut self, before: &Labels, after: &Labels) {
        if self.all >= MAX_LABELLED || before == after {
            return;
        }
        let keys: BTreeSet<&str> = before.iter().chain(after.iter()).map(|(key, _)| key).collect();
        for key in keys.into_iter().filter(|key| before.get(key) != after.get(key)) {
            let count = self.of_labels.entry(key.into()).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// What is kept of a node that changes so often.
    fn describe(&self, node: &Node) -> NodeDescription {
        let os = node.os().map(str::to_owned);
        if self.all >= MAX_DESCRIBED {
            return NodeDescription { os, more_labels: true, ..NodeDescription::default() };
        }
        let labels = if self.all < MAX_LABELLED { self.labels(node) } else { Labels::default() };
        NodeDescription {
            os,
            more_labels: labels != node.labels,
            labels,
            addresses: lowest(&node.addresses),
            pod_cidrs: lowest(&node.pod_cidrs),
        }
    }

    fn labels(&self, node: &Node) -> Labels {
        let changes = |key: &str| self.of_labels.get(key).is_some_and(|count| *count > MAX_LABEL_CHANGES);
        let bytes = |labels: &[(&str, &str)]| labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        let mut kept: Vec<(&str, &str)> = node.labels.iter().filter(|(key, _)| !changes(key)).collect();
        if bytes(&kept) > MAX_LABEL_BYTES {
            kept.sort_by_key(|(key, value)| (key.len() + value.len(), *key));
            let mut room = MAX_LABEL_BYTES;
            let fits = |(key, value): &&(&str, &str)| {
                let left = room.checked_sub(key.len() + value.len());
                room = left.unwrap_or_default();
                left.is_some()
            };
            let count = kept.iter().take_while(fits).count();
            kept.truncate(count);
        } else if kept.len() == node.labels.iter().count() {
            // The inventory's own: they share the memory.
            return node.labels.clone();
        }
        kept.into_iter().collect()
    }
}

/// The [`MAX_ADDRESSES`] lowest.
fn lowest<T: Copy + Ord>(all: &[T]) -> BTreeSet<T> {
    all.iter().copied().collect::<BTreeSet<_>>().into_iter().take(MAX_ADDRESSES).collect()
}

fn size(described: &NodeDescription) -> usize {
    let labels: usize = described.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    labels + (described.addresses.len() + described.pod_cidrs.len()) * size_of::<IpNet>()
}

/// Nodes over time.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    there: BTreeMap<String, There>,
    /// Those that ended in this epoch, or became others.
    gone: Vec<NodeTime>,
    gone_descriptions: BTreeSet<Arc<NodeDescription>>,
    gone_bytes: usize,
    /// How often those changed that are not there.
    changes: BTreeMap<String, Changes>,
    is_listed: bool,
}

impl Nodes {
    fn keep(&mut self, mut node: NodeTime) {
        let bytes = self.gone_bytes.saturating_add(size(&node.described));
        match self.gone_descriptions.get(&node.described) {
            Some(known) => node.described = Arc::clone(known),
            None if bytes > MAX_GONE_BYTES => {
                node.described = Arc::new(NodeDescription { more_labels: true, ..NodeDescription::default() });
            }
            None => {
                self.gone_bytes = bytes;
                self.gone_descriptions.insert(Arc::clone(&node.described));
            }
        }
        self.gone.push(node);
    }

    /// Ends the time of a node, and gives how often it changed; `None`: there is no room for that,
    /// or it was not there.
    fn end(&mut self, name: &str, now: Timestamp) -> Option<There> {
        if self.gone.len() >= MAX_GONE {
            return None;
        }
        let mut node = self.there.remove(name)?;
        if node.from < now {
            node.changes.all = node.changes.all.saturating_add(1);
            self.keep(NodeTime {
                name: name.to_owned(),
                unobservable: node.unobservable.clone(),
                described: Arc::clone(&node.described),
                time: Interval { from: node.from, to: now },
            });
        }
        Some(node)
    }

    /// A node was added or changed. `since`: when it was there at latest, if it is in the first
    /// list.
    pub(super) fn is_there(&mut self, node: &Node, unobservable: Option<String>, since: Timestamp, now: Timestamp) {
        let name = &*node.name;
        let new = match self.there.get_mut(name) {
            Some(known) => {
                known.changes.count(&known.labels, &node.labels);
                known.labels = node.labels.clone();
                let described = known.changes.describe(node);
                if known.unobservable == unobservable && *known.described == described {
                    return;
                }
                let Some(There { since, changes, .. }) = self.end(name, now) else { return };
                // One more of its times is over, and that may be one too many.
                let described = Arc::new(changes.describe(node));
                There { since, from: now, unobservable, described, labels: node.labels.clone(), changes }
            }
            None => {
                let from = if self.is_listed { now } else { since.min(now) };
                let changes = self.changes.remove(name).unwrap_or_default();
                let described = Arc::new(changes.describe(node));
                let since = self.is_listed.then_some(now);
                There { since, from, unobservable, described, labels: node.labels.clone(), changes }
            }
        };
        self.there.insert(name.to_owned(), new);
    }

    /// A node was deleted.
    pub(super) fn is_gone(&mut self, name: &str, now: Timestamp) {
        if let Some(There { changes, .. }) = self.end(name, now) {
            self.changes.insert(name.to_owned(), changes);
        }
    }

    /// The list of nodes has come.
    pub(super) fn are_listed(&mut self) {
        self.is_listed = true;
    }

    /// Since when a node is there; `None`: it was in the first list, or is not there.
    pub(super) fn since(&self, name: &str) -> Option<Timestamp> {
        self.there.get(name)?.since
    }

    /// Takes back what a stored state has: what goes on is heard of again.
    pub(super) fn restore(&mut self, body: &Body) {
        let mut different: BTreeSet<(&str, &NodeDescription)> = BTreeSet::new();
        for node in &body.nodes {
            // Each agent that goes on begins anew with what was there.
            if different.insert((&node.name, &node.described)) {
                let changes = self.changes.entry(node.name.clone()).or_default();
                changes.all = changes.all.saturating_add(1);
            }
            self.keep(node.clone());
        }
    }

    /// Another epoch begins.
    pub(super) fn turn(&mut self) {
        self.gone.clear();
        self.gone_descriptions.clear();
        self.gone_bytes = 0;
        self.changes.clear();
        self.there.values_mut().for_each(|node| node.changes = Changes::default());
    }

    /// When they were there; those that are there, until `end`.
    pub(super) fn times(&self, end: Timestamp) -> Times {
        let mut times = Times::new();
        for NodeTime { name, unobservable, described, time } in &self.gone {
            times.entry((name.clone(), unobservable.clone(), Arc::clone(described))).or_default().push(*time);
        }
        for (name, There { from, unobservable, described, .. }) in &self.there {
            times
                .entry((name.clone(), unobservable.clone(), Arc::clone(described)))
                .or_default()
                .push(Interval { from: *from, to: end.max(*from) });
        }
        times
    }
}

impl Observer {
    /// Where an agent is expected in this epoch, as its document will say.
    pub(super) fn nodes_of_epoch(&self, now: Timestamp) -> BTreeSet<String> {
        let mut facts = Facts::default();
        facts.observed.insert(self.config.node.clone());
        (facts.expected, facts.nodes) = (self.expected_nodes(), self.nodes.times(now));
        facts.unobservable = self.catalogue.unobservable_nodes(&self.config.unobservable);
        facts.settle_nodes();
        facts.expected
    }
}
