//! Joins snapshots: commutative, associative, idempotent.

use super::{Document, Snapshot};

/// Joins snapshots of several nodes or times into one.
#[must_use]
pub fn merge(snapshots: Vec<Snapshot>) -> Snapshot {
    Document::joined(snapshots).snapshot()
}
