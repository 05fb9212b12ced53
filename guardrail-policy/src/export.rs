//! An export, step by step: plan → print → read back → prove → report.
//!
//! Input: a [`Snapshot`] and [`Options`]. Output: an [`Exported`]. Each step is a module that knows
//! nothing of those after it: [`crate::generate`] decides the plan, [`crate::emit`] prints it,
//! [`crate::prove`] reads the text back and judges it against everything that was observed, and
//! [`crate::report`] tells what it rests on. Namespaces that a [`Problem`] stops are left out, or,
//! for readers ([`Options::stopped_too`]), carry a mark.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::Snapshot;

use crate::{
    emit::{self, REPORT_FILE},
    exception::{self, ExceptionOutcome, ExceptionSide, Opening},
    generate::{self, NamespaceVerdict, Options, Plan, Problem, identities, plan_for, stable},
    memory::{self, REMEMBERED},
    prove::{self, Proof},
    report,
};

/// What an export is.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The policies as data.
    pub plan: Plan,
    /// Text of every file, by its path relative to the export directory: one `NAMESPACE.NAME.yaml`
    /// per policy, `kustomization.yaml`, `evidence.json`, `REPORT.md`.
    pub files: BTreeMap<String, String>,
    /// What stands against using them, sorted.
    pub problems: Vec<Problem>,
    /// Namespaces that problems stop: no file of theirs is in `files`, unless
    /// [`Options::stopped_too`].
    pub stopped: BTreeSet<String>,
    /// What a person should know, sorted.
    pub warnings: Vec<String>,
    /// The completeness verdict per namespace.
    pub verdicts: Vec<NamespaceVerdict>,
    /// What became of each exception.
    pub exceptions: Vec<ExceptionSide>,
    /// What was proven.
    pub proof: Proof,
}

/// Makes every file of an export, and proves it.
///
/// A problem stops the namespaces that it names. What is left is proven anew without their
/// policies, until the proof stops no other: so it holds for what is written, beside namespaces
/// that stay as they are.
///
/// An exception stands for its connections, however often they were seen. One that cannot be
/// written stands for none: who was observed is not cut off for it.
#[must_use]
pub fn export(snapshot: &Snapshot, options: &Options) -> Exported {
    let exported = export_once(snapshot, options);
    let is_unwritten = |side: &&ExceptionSide| {
        matches!(side.outcome, ExceptionOutcome::SomeOpen { .. } | ExceptionOutcome::Impossible(_))
    };
    let unwritten: BTreeSet<&str> = exported.exceptions.iter().filter(is_unwritten).map(|s| s.id.as_str()).collect();
    let concerns = |opening: &&Opening| {
        unwritten.contains(opening.mark.id.as_str()) && snapshot.body.edges.iter().any(|edge| opening.is_for(edge))
    };
    if !options.excepted.iter().any(|opening| concerns(&opening)) {
        return exported;
    }
    let mut options = options.clone();
    options.excepted.retain(|opening| !unwritten.contains(opening.mark.id.as_str()));
    export_once(snapshot, &options)
}

fn export_once(snapshot: &Snapshot, options: &Options) -> Exported {
    let (snapshot, forgotten) = memory::recall(snapshot, options);
    let snapshot = &*stable(&snapshot);
    let snapshot = &*identities(snapshot, &options.enforcer());
    let mut decision = plan_for(snapshot, options);
    // For readers gates are no reason to leave anything out.
    let stopped_by = |problems: &BTreeSet<Problem>| generate::stopped(problems, options.forced || options.stopped_too);
    // First everything, so that each namespace hears of all that stops it.
    let mut stopped = BTreeSet::new();
    let proof = loop {
        let files = emit::policies(&decision.plan, options, &stopped);
        let texts = files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let proof = prove::prove(snapshot, options, &decision, texts);
        decision.problems.extend(proof.problems.iter().cloned());
        let now = stopped_by(&decision.problems);
        if now == stopped {
            break proof;
        }
        stopped = now;
    };
    decision.warnings.extend(proof.warnings.iter().cloned());
    let remembered = snapshot.body.edges.iter().filter(|edge| edge.marks.contains(REMEMBERED)).count();
    let edges = |count: usize| if count == 1 { "1 edge".to_owned() } else { format!("{count} edges") };
    if remembered > 0 {
        let text = "allowed as before, although the snapshot does not show it any more";
        decision.warnings.insert(format!("{} of an earlier export: {text} ({REPORT_FILE})", edges(remembered)));
    }
    if !forgotten.is_empty() {
        let text = "not allowed any more, an end is gone or it was not used for too long";
        decision.warnings.insert(format!("{} of an earlier export: {text} ({REPORT_FILE})", edges(forgotten.len())));
    }
    if let Some(lowest) = emit::lowest_version(decision.plan.format, &decision.plan.policies)
        && let Some(known) = options.enforcer().cilium().and_then(|cilium| cilium.version).filter(|v| *v < lowest)
    {
        let (known, lowest) = (format!("{}.{}", known.0, known.1), format!("{}.{}", lowest.0, lowest.1));
        decision.warnings.insert(format!("the files need Cilium {lowest}, and the agents are of {known}"));
    }
    decision.stopped = stopped;
    if !options.exceptions.is_empty() {
        let files = emit::policies(&decision.plan, options, &decision.stopped);
        let texts = files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let in_force = prove::in_force(snapshot, options, &decision, texts);
        let exceptions = exception::decide(snapshot, options, &options.exceptions, &in_force);
        // After the others: what rests on evidence is known by its place.
        decision.plan.policies.extend(exceptions.policies.into_iter().filter(|p| !options.leaves(&p.namespace)));
        decision.exceptions = exceptions.sides;
        decision.exceptions.retain(|side| !options.leaves(&side.workload.namespace));
    }
    let files = if options.stopped_too {
        for policy in decision.plan.policies.iter_mut().filter(|p| decision.stopped.contains(&p.namespace)) {
            policy.notes.insert(format!("stopped, not for applying: {REPORT_FILE} says why"));
        }
        emit::files(&decision.plan, options, &BTreeSet::new())
    } else {
        emit::files(&decision.plan, options, &decision.stopped)
    };
    let sidecars = report::files(snapshot, options, &decision, &proof, &forgotten);
    Exported {
        files: files.into_iter().chain(sidecars).collect(),
        problems: decision.problems.into_iter().collect(),
        stopped: decision.stopped,
        warnings: decision.warnings.into_iter().collect(),
        verdicts: decision.verdicts,
        exceptions: decision.exceptions,
        plan: decision.plan,
        proof,
    }
}
