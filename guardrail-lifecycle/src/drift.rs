//! Drift: what no longer agrees. Traffic with policies, policies in the cluster with their files,
//! and both with what the plan wants.
//!
//! A finding has a fingerprint of its rule, namespace, workloads and port: no counts, no times, no
//! lines. So what is known today ([`Baseline`]) is known tomorrow, too.

use std::collections::BTreeSet;

use guardrail_graph::{Snapshot, Timestamp};
use guardrail_policy::{evaluate::Evaluator, generate::FlowName, model::Location, read::PolicySet};
use serde::{Deserialize, Serialize};

use crate::status::NamespaceStatus;

mod exceptions;
mod intent;
mod policies;
mod rules;
mod sarif;
mod traffic;

pub use policies::same_meaning;
pub use rules::{DRIFT_RULES, DriftKind, DriftRule};
pub use sarif::sarif;

/// Everything that drift is found in.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// What was observed.
    pub snapshot: &'a Snapshot,
    /// The policies in force, over the cluster that was observed.
    pub evaluator: &'a Evaluator,
    /// The policies of the files, and those of the cluster; `None`: the cluster was not asked.
    pub policies: Option<[&'a PolicySet; 2]>,
    /// What is wanted; `None` without a plan.
    pub plan: Option<PlanEvidence<'a>>,
    /// What was known before.
    pub baseline: Option<&'a Baseline>,
    /// The time.
    pub now: Timestamp,
}

/// What the plan says, and where everything stands by it.
#[derive(Debug)]
pub struct PlanEvidence<'a> {
    /// How messages call the file.
    pub file: &'a str,
    /// The plan.
    pub plan: &'a crate::plan::Plan,
    /// The name of its environment.
    pub environment: &'a str,
    /// Where each namespace stands.
    pub status: &'a [NamespaceStatus],
}

/// Something that does not agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DriftFinding {
    /// `GDnnn`.
    pub rule: &'static str,
    /// Which kind of drift.
    pub kind: DriftKind,
    /// What it is about, the same tomorrow: `GD001 shop/Deployment/a->shop/Deployment/b:80/TCP`.
    pub fingerprint: String,
    /// One sentence without a full stop.
    pub message: String,
    /// Where it stands, if it stands in a file.
    pub location: Option<Location>,
    /// The baseline has it.
    pub known: bool,
}

/// What was known at some time: what [`Report`] writes, as far as it is read again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Baseline {
    findings: Vec<KnownFinding>,
    flows: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct KnownFinding {
    fingerprint: String,
}

impl Baseline {
    /// From the JSON of a report.
    ///
    /// # Errors
    /// One sentence, with the line.
    pub fn from_json(file: &str, text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| {
            let what = error.to_string();
            let what = what.rfind(" at line ").map_or(what.as_str(), |at| &what[..at]);
            let what = if error.is_data() { format!(": {what}") } else { " and no JSON".to_owned() };
            format!(
                "{file}:{}: this is no baseline{what}; write one with `guardrail drift -o json`",
                error.line().max(1)
            )
        })
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Sorted by fingerprint.
    pub findings: Vec<DriftFinding>,
    /// Every established flow, by the name that `--accept` takes: as a baseline, these are known.
    pub flows: BTreeSet<String>,
    /// What could not be looked at, and why: one sentence each.
    pub not_looked_at: Vec<String>,
}

/// Looks for drift of every kind.
#[must_use]
pub fn drift(evidence: &Evidence<'_>) -> Report {
    let supported = evidence.snapshot.body.edges.iter().filter(|edge| edge.supported);
    let mut report =
        Report { flows: supported.map(|edge| FlowName::of(edge).to_string()).collect(), ..Report::default() };
    traffic::find(evidence, &mut report);
    policies::find(evidence, &mut report);
    intent::find(evidence, &mut report);
    exceptions::find(evidence, &mut report);
    let known: BTreeSet<&str> =
        evidence.baseline.into_iter().flat_map(|b| &b.findings).map(|f| f.fingerprint.as_str()).collect();
    for finding in &mut report.findings {
        finding.known = known.contains(finding.fingerprint.as_str());
    }
    report.findings.sort_by(|a, b| a.fingerprint.cmp(&b.fingerprint));
    report.findings.dedup_by(|a, b| a.fingerprint == b.fingerprint);
    report
}

impl Report {
    fn add(&mut self, rule: &'static DriftRule, about: &str, message: String, location: Option<Location>) {
        self.findings.push(DriftFinding {
            rule: rule.id,
            kind: rule.kind,
            fingerprint: format!("{} {about}", rule.id),
            message,
            location,
            known: false,
        });
    }

    /// Whether there is drift of one of these kinds that the baseline does not have; of any kind,
    /// if there are none.
    #[must_use]
    pub fn fails(&self, on: &[DriftKind]) -> bool {
        self.findings.iter().any(|finding| !finding.known && (on.is_empty() || on.contains(&finding.kind)))
    }
}
