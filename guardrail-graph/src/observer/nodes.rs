//! Which nodes there are, and were in this epoch, as the API server told.

use std::collections::{BTreeMap, BTreeSet};

use super::Observer;
use crate::{
    snapshot::{
        Body, Interval,
        facts::Facts,
        nodes::{NodeTime, Nodes as Times},
    },
    time::Timestamp,
};

/// Nodes kept of one epoch that are no more. Of more of them the end is not taken.
const MAX_GONE: usize = 10_000;

/// Since when, and why nobody can observe it.
type Since = (Timestamp, Option<String>);

/// Nodes over time.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    there: BTreeMap<String, Since>,
    /// Those that ended in this epoch, or became others.
    gone: Vec<NodeTime>,
    is_listed: bool,
}

impl Nodes {
    fn end(&mut self, name: &str, now: Timestamp) {
        if self.gone.len() < MAX_GONE
            && let Some((from, unobservable)) = self.there.remove(name)
            && from < now
        {
            self.gone.push(NodeTime { name: name.to_owned(), unobservable, time: Interval { from, to: now } });
        }
    }

    /// A node was added or changed. `since`: when it was there at latest, if it is in the first
    /// list.
    pub(super) fn is_there(&mut self, name: &str, unobservable: Option<String>, since: Timestamp, now: Timestamp) {
        let before = self.there.get(name);
        if before.is_some_and(|(_, why)| *why == unobservable) {
            return;
        }
        let from = if before.is_some() || self.is_listed { now } else { since.min(now) };
        self.end(name, now);
        self.there.entry(name.to_owned()).or_insert((from, None)).1 = unobservable;
    }

    /// A node was deleted.
    pub(super) fn is_gone(&mut self, name: &str, now: Timestamp) {
        self.end(name, now);
    }

    /// The list of nodes has come.
    pub(super) fn are_listed(&mut self) {
        self.is_listed = true;
    }

    /// Takes back what a stored state has: what goes on is heard of again.
    pub(super) fn restore(&mut self, body: &Body) {
        self.gone.clone_from(&body.nodes);
    }

    /// Another epoch begins.
    pub(super) fn turn(&mut self) {
        self.gone.clear();
    }

    /// When they were there; those that are there, until `end`.
    pub(super) fn times(&self, end: Timestamp) -> Times {
        let mut times = Times::new();
        for NodeTime { name, unobservable, time } in &self.gone {
            times.entry((name.clone(), unobservable.clone())).or_default().push(*time);
        }
        for (name, (from, unobservable)) in &self.there {
            times
                .entry((name.clone(), unobservable.clone()))
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
