//! Joins snapshots: commutative, associative, idempotent.

use super::Snapshot;

/// Joins snapshots of several nodes or times into one.
#[must_use]
pub fn merge(snapshots: Vec<Snapshot>) -> Snapshot {
    let mut joined = super::facts::Facts::default();
    for snapshot in snapshots {
        joined.add(snapshot);
    }
    joined.document().snapshot()
}
