//! Joins snapshots: commutative, associative, idempotent.

use super::{
    Document, Snapshot,
    facts::Facts,
    parts::apart,
    revisions::leave_newest,
    span::{Span, cut},
};

/// Joins snapshots of several nodes or times into one that can be joined again: it has the facts of
/// each epoch apart ([`super::Body::facts`]).
#[must_use]
pub fn merge(snapshots: Vec<Snapshot>) -> Snapshot {
    merge_within(snapshots, &Span::default())
}

/// The same of what snapshots say of a span.
#[must_use]
pub fn merge_within(snapshots: Vec<Snapshot>, span: &Span) -> Snapshot {
    let parts = newest(snapshots);
    let facts = apart(&parts, span);
    let mut joined = Document::joined_within(parts.into_iter().flat_map(Snapshot::parts), span).snapshot();
    joined.body.facts = facts;
    joined
}

/// What snapshots together say of a span, once and for all: it has no facts apart.
#[must_use]
pub fn answer_within(snapshots: Vec<Snapshot>, span: &Span) -> Snapshot {
    Document::joined_within(newest(snapshots).into_iter().flat_map(Snapshot::parts), span).snapshot()
}

impl Document {
    /// The document of what snapshots of different epochs say of a span, as [`merge_within`] joins
    /// it. Each is taken when the one before is joined, so that two of them are never in memory.
    #[must_use]
    pub fn joined_within(snapshots: impl IntoIterator<Item = Snapshot>, span: &Span) -> Self {
        let mut joined = Facts { span: *span, ..Facts::default() };
        for mut snapshot in snapshots {
            if !span.is_all() {
                joined.keep_nodes(&snapshot.body.nodes);
                cut(&mut snapshot.body, span);
            }
            joined.add(snapshot);
        }
        joined.document()
    }
}

/// The documents that snapshots were joined of, the highest revision of each epoch alone; some are
/// packed yet.
fn newest(snapshots: Vec<Snapshot>) -> Vec<Snapshot> {
    let mut parts: Vec<Snapshot> = snapshots.into_iter().flat_map(Snapshot::closed_parts).collect();
    // Before they are cut: what the newest does not say of the span, no other says.
    leave_newest(&mut parts);
    parts
}
