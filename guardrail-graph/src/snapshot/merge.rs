//! Joins snapshots: commutative, associative, idempotent.

use super::{
    Document, Snapshot,
    facts::Facts,
    revisions::leave_newest,
    span::{Span, cut},
};

/// Joins snapshots of several nodes or times into one.
#[must_use]
pub fn merge(mut snapshots: Vec<Snapshot>) -> Snapshot {
    leave_newest(&mut snapshots);
    Document::joined(snapshots).snapshot()
}

/// Joins what snapshots say of a span.
#[must_use]
pub fn merge_within(mut snapshots: Vec<Snapshot>, span: &Span) -> Snapshot {
    if span.is_all() {
        return merge(snapshots);
    }
    // Before they are cut: what the newest does not say of the span, no other says.
    leave_newest(&mut snapshots);
    Document::joined_within(snapshots, span).snapshot()
}

impl Document {
    /// The document of what snapshots of different epochs say of a span, as [`merge_within`] joins
    /// it. Each is taken when the one before is joined, so that two of them are never in memory.
    #[must_use]
    pub fn joined_within(snapshots: impl IntoIterator<Item = Snapshot>, span: &Span) -> Self {
        let mut joined = Facts { span: *span, ..Facts::default() };
        for mut snapshot in snapshots {
            joined.keep_nodes(&snapshot.body.nodes);
            cut(&mut snapshot.body, span);
            joined.add(snapshot);
        }
        joined.document()
    }
}
