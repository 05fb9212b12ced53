//! What stands against using an export, and which namespaces it stops.

use std::collections::BTreeSet;

use serde::Serialize;

/// What kind of thing stands against using the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// A gate: the evidence is incomplete.
    Incomplete,
    /// A gate: the nodes of a namespace were not observed together for long enough.
    ShortWindow,
    /// Policies in force there are of kinds that nobody evaluates.
    Unproven,
    /// A gate of a plan: the namespace is not ready for the phase that is wanted.
    Held,
    /// A person asked for other namespaces of the plan only.
    LeftAlone,
    /// No label names a workload alone: no policy can close it, or leave it in where others are
    /// left out.
    Unselectable,
    /// An established flow cannot be written as a rule: it would be denied.
    Inexpressible,
    /// An established flow supports no rule until a person says so: it would be denied.
    Unallowed,
    /// A policy that exists already denies an established flow.
    Conflict,
    /// The proof failed: an established flow for which rules were written would be denied.
    Denied,
    /// The proof failed: something beyond the phase would be allowed.
    Excess,
}

impl ProblemKind {
    /// Whether `--force` accepts it. It passes gates, never a flow that would be denied and never a
    /// failed proof.
    #[must_use]
    pub const fn can_be_forced(self) -> bool {
        matches!(self, Self::Incomplete | Self::ShortWindow | Self::Unproven | Self::Held)
    }
}

/// Something that stops namespaces: their policies are not written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Its kind.
    pub kind: ProblemKind,
    /// The namespaces that it stops.
    pub namespaces: BTreeSet<String>,
    /// One sentence: what, where, what to do.
    pub message: String,
}

impl Problem {
    /// A problem that stops these namespaces.
    #[must_use]
    pub fn new(
        kind: ProblemKind,
        namespaces: impl IntoIterator<Item = impl Into<String>>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, namespaces: namespaces.into_iter().map(Into::into).collect(), message: message.into() }
    }

    /// Whether it stops its namespaces in an export that is forced or not.
    #[must_use]
    pub const fn stops(&self, forced: bool) -> bool {
        !(forced && self.kind.can_be_forced())
    }
}

/// The namespaces that these problems stop.
pub(crate) fn stopped<'a>(problems: impl IntoIterator<Item = &'a Problem>, forced: bool) -> BTreeSet<String> {
    let stopping = problems.into_iter().filter(|problem| problem.stops(forced));
    stopping.flat_map(|problem| problem.namespaces.iter().cloned()).collect()
}
