//! The state of the watches, for readiness and for metrics.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use guardrail_graph::Timestamp;
use tokio::sync::watch;

use super::outage::Outage;
use crate::{Failure, Resource};

/// The time by the node's wall clock.
pub(super) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ns(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// Where the list of one resource stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListState {
    /// The first list is awaited.
    #[default]
    Pending,
    /// A list came, and changes since.
    Synced,
    /// A list came, but now the server refuses it. What was known stays known.
    Outdated(String),
    /// No list came yet, and readiness no longer waits for it.
    GivenUp(String),
    /// The server refuses the list, or does not serve it. No list comes before a person changes
    /// that.
    Denied(String),
}

/// What was done with an object that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Applied,
    Deleted,
    Unchanged,
    Stale,
    Invalid,
}

impl Outcome {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Applied, "applied"),
        (Self::Deleted, "deleted"),
        (Self::Unchanged, "unchanged"),
        (Self::Stale, "stale"),
        (Self::Invalid, "invalid"),
    ];
}

#[derive(Debug, Default)]
struct Counters {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    failures: [AtomicU64; Failure::REASONS.len()],
    lists: AtomicU64,
    /// When the server last sent something about this resource, in milliseconds since `started`; 0
    /// for never.
    heard: AtomicU64,
}

/// Shared by the watchers (who write) and the daemon (which reads).
#[derive(Debug)]
pub struct Status {
    started: Instant,
    lists: watch::Sender<BTreeMap<Resource, ListState>>,
    counters: [Counters; Resource::ALL.len()],
    outage: Mutex<Outage>,
}

/// A copy for one scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// (resource, outcome, objects).
    pub events: Vec<(&'static str, &'static str, u64)>,
    /// (resource, reason, failed requests and streams).
    pub failures: Vec<(&'static str, &'static str, u64)>,
    /// (resource, complete lists taken).
    pub lists: Vec<(&'static str, u64)>,
    /// (resource, whether its list is in and followed).
    pub synced: Vec<(&'static str, bool)>,
    /// (resource, seconds since the API server last sent something about it).
    pub age_seconds: Vec<(&'static str, f64)>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            lists: watch::Sender::new(Resource::ALL.into_iter().map(|r| (r, ListState::default())).collect()),
            counters: std::array::from_fn(|_| Counters::default()),
            outage: Mutex::default(),
        }
    }
}

impl ListState {
    /// Whether a whole list of this resource came at any time.
    #[must_use]
    pub const fn was_heard(&self) -> bool {
        matches!(self, Self::Synced | Self::Outdated(_))
    }
}

impl Status {
    /// Follows the state of the lists.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<Resource, ListState>> {
        self.lists.subscribe()
    }

    /// Figures for `/metrics`.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut report = Report::default();
        let lists = self.lists.borrow().clone();
        let now = self.now();
        for resource in Resource::ALL {
            let counters = &self.counters[resource.index()];
            let name = resource.as_str();
            for ((_, outcome), n) in Outcome::ALL.iter().zip(&counters.outcomes) {
                report.events.push((name, outcome, n.load(Ordering::Relaxed)));
            }
            for (reason, n) in Failure::REASONS.iter().zip(&counters.failures) {
                report.failures.push((name, reason, n.load(Ordering::Relaxed)));
            }
            report.lists.push((name, counters.lists.load(Ordering::Relaxed)));
            report.synced.push((name, lists.get(&resource) == Some(&ListState::Synced)));
            let heard = counters.heard.load(Ordering::Relaxed);
            report.age_seconds.push((name, now.saturating_sub(heard) as f64 / 1000.0));
        }
        report
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn count(&self, resource: Resource, outcome: Outcome) {
        self.counters[resource.index()].outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, resource: Resource, failure: &Failure) {
        self.counters[resource.index()].failures[failure.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Logs a failure, or leaves it out because others were logged a short time ago.
    pub(super) fn log_failure(&self, resource: Resource, reason: &str) {
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = outage.failed(resource, reason, Instant::now()) {
            tracing::warn!("{line}");
        }
    }

    /// Logs the end of failures, once all resources are followed again.
    pub(super) fn log_success(&self, resource: Resource) {
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = outage.worked(resource) {
            tracing::info!("{line}");
        }
    }

    pub(super) fn listed(&self, resource: Resource) {
        self.counters[resource.index()].lists.fetch_add(1, Ordering::Relaxed);
        self.set(resource, ListState::Synced);
    }

    pub(super) fn heard(&self, resource: Resource) {
        self.counters[resource.index()].heard.store(self.now(), Ordering::Relaxed);
    }

    /// Changes the state; wakes nobody if it is what it was.
    pub(super) fn set(&self, resource: Resource, state: ListState) {
        self.lists.send_if_modified(|lists| lists.insert(resource, state.clone()) != Some(state));
    }

    pub(super) fn state(&self, resource: Resource) -> ListState {
        self.lists.borrow().get(&resource).cloned().unwrap_or_default()
    }
}
