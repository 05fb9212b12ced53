//! Joins snapshots: commutative, associative, idempotent.

use super::{
    Document, Snapshot,
    facts::Facts,
    span::{Span, cut},
};

/// Joins snapshots of several nodes or times into one.
#[must_use]
pub fn merge(snapshots: Vec<Snapshot>) -> Snapshot {
    Document::joined(snapshots).snapshot()
}

/// Joins what snapshots say of a span.
#[must_use]
pub fn merge_within(snapshots: Vec<Snapshot>, span: &Span) -> Snapshot {
    if span.is_all() {
        return merge(snapshots);
    }
    let mut joined = Facts { span: *span, ..Facts::default() };
    for mut snapshot in snapshots {
        cut(&mut snapshot.body, span);
        joined.add(snapshot);
    }
    joined.document().snapshot()
}
