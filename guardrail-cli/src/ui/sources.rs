//! What the page is read from, each source by itself: one that fails keeps what it last gave.

use guardrail_graph::{Snapshot, Timestamp};
use guardrail_lifecycle::page::PageSource;

use crate::input::{self, KubeArgs};

/// All of them.
#[derive(Debug)]
pub(super) struct Sources(Vec<Source>);

#[derive(Debug)]
struct Source {
    name: String,
    /// What it last gave.
    last: Vec<Snapshot>,
    /// When that was; `None`: nothing yet.
    read: Option<Timestamp>,
    /// Why it gave nothing since.
    problem: Option<String>,
}

impl Sources {
    /// Of the SNAPSHOT arguments; nothing is read yet.
    pub(super) fn new(names: &[String]) -> Self {
        let source = |name: &String| Source { name: name.clone(), last: Vec::new(), read: None, problem: None };
        Self(names.iter().map(source).collect())
    }

    /// Reads what can be read again.
    pub(super) fn read(&mut self, cluster: &KubeArgs, now: Timestamp) {
        for source in &mut self.0 {
            // Standard input gives what it has once.
            if source.name == "-" && source.read.is_some() {
                continue;
            }
            match input::source(&source.name, cluster) {
                Ok(snapshots) => {
                    (source.last, source.read, source.problem) = (snapshots, Some(now), None);
                }
                Err(error) => source.problem = Some(format!("{error:#}")),
            }
        }
    }

    /// Why the first of those that gave nothing so far did not.
    pub(super) fn failed(&self) -> Option<&str> {
        self.0.iter().filter(|source| source.read.is_none()).find_map(|source| source.problem.as_deref())
    }

    /// What they last gave.
    pub(super) fn last(&self) -> Vec<Snapshot> {
        self.0.iter().flat_map(|source| source.last.iter().cloned()).collect()
    }

    /// What the page says of them.
    pub(super) fn told(&self) -> Vec<PageSource> {
        let told = |source: &Source| {
            let read = source.read?;
            Some(PageSource { name: input::shown(&source.name).to_owned(), read, problem: source.problem.clone() })
        };
        self.0.iter().filter_map(told).collect()
    }
}
