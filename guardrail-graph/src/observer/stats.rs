//! Counters of an observer, as `/metrics` shows them.

use crate::observe::{LossClass, LossReason};

/// A point-in-time copy of the observer's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Edges kept (without inferred ones).
    pub edges: usize,
    /// Service flows kept.
    pub service_flows: usize,
    /// Flows that wait for their pod or their role.
    pub pending: usize,
    /// Unresolved flows by reason, in the order of [`UnresolvedReason::ALL`]; Service reasons as of
    /// the last document or scrape.
    pub unresolved: Vec<(&'static str, u64)>,
    /// Losses by reason, in the order of [`LossReason::ALL`].
    pub losses: Vec<(LossReason, LossClass, u64)>,
    /// DNS names that made room for newer ones.
    pub names_forgotten: u64,
    /// Entries of the identity tables by kind: `pod`, `address`, `cgroup`, `name`, `listener`,
    /// `peer`.
    pub identity_entries: Vec<(&'static str, usize)>,
}
