//! The kinds of drift and their rules.

use std::fmt;

use serde::Serialize;

/// What does not agree with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DriftKind {
    /// What is observed with the policies in force.
    Traffic,
    /// The policies of the cluster with those of the files.
    Policies,
    /// What is in force with what the plan wants.
    Intent,
}

impl fmt::Display for DriftKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Traffic => "traffic",
            Self::Policies => "policies",
            Self::Intent => "intent",
        })
    }
}

/// One rule.
#[derive(Debug)]
pub struct DriftRule {
    /// `GDnnn`; never used for something else.
    pub id: &'static str,
    /// Its kind.
    pub kind: DriftKind,
    /// In short, for people and code hosts.
    pub name: &'static str,
    /// What it finds: one sentence.
    pub summary: &'static str,
    /// What to do: one sentence.
    pub fix: &'static str,
}

const fn rule(
    id: &'static str,
    kind: DriftKind,
    name: &'static str,
    summary: &'static str,
    fix: &'static str,
) -> DriftRule {
    DriftRule { id, kind, name, summary, fix }
}

pub(super) static ISOLATES: DriftRule = rule(
    "GD000",
    DriftKind::Intent,
    "exception-isolates",
    "Exceptions alone isolate a workload: they close it to everybody else.",
    "Remove the exception, or export again: it is needed only beside policies that isolate.",
);
pub(super) static DENIED: DriftRule = rule(
    "GD001",
    DriftKind::Traffic,
    "denied-flow",
    "Connections came about that the policies in force deny.",
    "Export again, or find out who should not have connected; explain says which rule is missing.",
);
pub(super) static NEW: DriftRule = rule(
    "GD002",
    DriftKind::Traffic,
    "new-flow",
    "A connection that the baseline does not have.",
    "Look whether it is meant; a new baseline then has it.",
);
pub(super) static MISSING: DriftRule = rule(
    "GD010",
    DriftKind::Policies,
    "missing-policy",
    "A policy of the files is not in the cluster.",
    "Apply the files, or remove the file.",
);
pub(super) static EDITED: DriftRule = rule(
    "GD011",
    DriftKind::Policies,
    "edited-policy",
    "A policy of the cluster means something else than its file.",
    "Apply the file, or take the change over into it.",
);
pub(super) static UNMANAGED: DriftRule = rule(
    "GD012",
    DriftKind::Policies,
    "unmanaged-policy",
    "A policy of the cluster is in no file.",
    "Add it to the files, or delete it.",
);
pub(super) static BELOW: DriftRule = rule(
    "GD020",
    DriftKind::Intent,
    "below-phase",
    "A namespace is not as far as the plan wants it.",
    "guardrail status -n says what holds it back.",
);
pub(super) static SENSITIVE: DriftRule = rule(
    "GD021",
    DriftKind::Intent,
    "sensitive-open",
    "A workload that the plan calls sensitive is open to more than its callers.",
    "Give it a policy of its own, and keep the namespace's boundary from selecting it.",
);
pub(super) static UNSELECTED: DriftRule = rule(
    "GD022",
    DriftKind::Intent,
    "unselected-workload",
    "No policy isolates a workload of a namespace that has policies.",
    "Export again: it may be newer than the policies.",
);
pub(super) static OVER: DriftRule = rule(
    "GD023",
    DriftKind::Intent,
    "exception-over",
    "An exception of the plan has ended.",
    "Remove it, or write a new one with a new reason.",
);
pub(super) static UNUSED: DriftRule = rule(
    "GD024",
    DriftKind::Intent,
    "unused-rule",
    "Nobody used a rule for as long as the plan's `unused` says.",
    "Remove the rule, if what it was for is gone.",
);
pub(super) static LEFT: DriftRule = rule(
    "GD025",
    DriftKind::Intent,
    "exception-left",
    "A policy of an exception that has ended is still in force.",
    "guardrail prune kube deletes it; where a GitOps tool applies it, remove its file: export does.",
);

/// All rules, by id.
pub static DRIFT_RULES: [&DriftRule; 12] =
    [&ISOLATES, &DENIED, &NEW, &MISSING, &EDITED, &UNMANAGED, &BELOW, &SENSITIVE, &UNSELECTED, &OVER, &UNUSED, &LEFT];
