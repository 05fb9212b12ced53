//! An export, step by step: plan → print → read back → prove → report.
//!
//! Input: a [`Snapshot`] and [`Options`]. Output: an [`Exported`]. Each step is a module that knows
//! nothing of those after it: [`crate::generate`] decides the plan, [`crate::emit`] prints it,
//! [`crate::prove`] reads the text back and judges it against everything that was observed, and
//! [`crate::report`] tells what it rests on. Namespaces that a [`Problem`] stops are left out, or,
//! for readers ([`Options::stopped_too`]), carry a mark.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use guardrail_graph::Snapshot;

use crate::{
    emit::{self, EVIDENCE_FILE, REPORT_FILE},
    exception::{self, ExceptionOutcome, ExceptionSide, Opening},
    generate::{self, NamespaceVerdict, Options, Plan, Problem, Purpose, identities, plan_for, stable},
    memory::{self, REMEMBERED},
    prove::{self, Proof},
    report::{self, Told},
};

/// What an export is.
#[derive(Clone, Debug)]
pub struct Exported<'a> {
    /// The policies as data.
    pub plan: Plan,
    /// Text of every file but the sidecars, by its path relative to the export directory: one
    /// `NAMESPACE.NAME.yaml` per policy, and `kustomization.yaml`.
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
    pub(crate) told: Told<'a>,
}

/// A file beside the policies, which is as long as the graph: it is written piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sidecar {
    /// `evidence.json`.
    Evidence,
    /// `REPORT.md`.
    Report,
}

impl Sidecar {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Evidence, Self::Report];

    /// Its name in the export directory.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Evidence => EVIDENCE_FILE,
            Self::Report => REPORT_FILE,
        }
    }
}

impl Exported<'_> {
    /// The same, with a copy of the snapshot where it is not its own.
    #[must_use]
    pub fn into_owned(self) -> Exported<'static> {
        let told = self.told.into_owned();
        let Self { plan, files, problems, stopped, warnings, verdicts, exceptions, proof, .. } = self;
        Exported { plan, files, problems, stopped, warnings, verdicts, exceptions, proof, told }
    }

    /// Writes a sidecar.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, sidecar: Sidecar, out: &mut dyn io::Write) -> io::Result<()> {
        match sidecar {
            Sidecar::Evidence => report::write_evidence(self, out),
            Sidecar::Report => report::write_report(self, out),
        }
    }

    /// Text of every file, the sidecars included: for small graphs.
    #[must_use]
    pub fn all_files(&self) -> BTreeMap<String, String> {
        let mut files = self.files.clone();
        for sidecar in Sidecar::ALL {
            let mut bytes = Vec::new();
            self.write(sidecar, &mut bytes).expect("memory takes everything");
            files.insert(sidecar.file().to_owned(), String::from_utf8(bytes).expect("what is written is text"));
        }
        files
    }
}

/// A snapshot after another change, if it changes anything.
fn then<'a>(
    snapshot: Cow<'a, Snapshot>,
    change: impl for<'s> FnOnce(&'s Snapshot) -> Cow<'s, Snapshot>,
) -> Cow<'a, Snapshot> {
    match snapshot {
        Cow::Borrowed(snapshot) => change(snapshot),
        Cow::Owned(snapshot) => {
            let changed = match change(&snapshot) {
                Cow::Owned(changed) => Some(changed),
                Cow::Borrowed(_) => None,
            };
            Cow::Owned(changed.unwrap_or(snapshot))
        }
    }
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
pub fn export<'a>(snapshot: &'a Snapshot, options: &Options) -> Exported<'a> {
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

fn export_once<'a>(snapshot: &'a Snapshot, options: &Options) -> Exported<'a> {
    let (recalled, forgotten) = memory::recall(snapshot, options);
    let as_exported = then(then(recalled, stable), |snapshot| identities(snapshot, &options.enforcer()));
    let snapshot = &*as_exported;
    let mut decision = plan_for(snapshot, options);
    // For readers gates are no reason to leave anything out.
    let stopped_by = |problems: &BTreeSet<Problem>| generate::stopped(problems, options.forced || options.stopped_too);
    // First everything, so that each namespace hears of all that stops it.
    let mut stopped = BTreeSet::new();
    let cluster = Arc::new(options.cluster.clone().with_snapshot(snapshot));
    let (proof, in_force, proven) = loop {
        let files = emit::policies(&decision.plan, options, &stopped);
        let texts = files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let (proof, in_force) = prove::prove_in(&cluster, snapshot, options, &decision, texts);
        decision.problems.extend(proof.problems.iter().cloned());
        let now = stopped_by(&decision.problems);
        if now == stopped {
            break (proof, in_force, files);
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
        let exceptions = exception::decide(snapshot, options, &options.exceptions, &in_force);
        // After the others: what rests on evidence is known by its place.
        decision.plan.policies.extend(exceptions.policies.into_iter().filter(|p| !options.leaves(&p.namespace)));
        decision.exceptions = exceptions.sides;
        decision.exceptions.retain(|side| !options.leaves(&side.workload.namespace));
    }
    drop(in_force);
    // What was proven is what is written.
    let mut files = proven;
    if options.stopped_too && !decision.stopped.is_empty() {
        for policy in decision.plan.policies.iter_mut().filter(|p| decision.stopped.contains(&p.namespace)) {
            policy.notes.insert(format!("stopped, not for applying: {REPORT_FILE} says why"));
        }
        files = emit::policies(&decision.plan, options, &BTreeSet::new());
    } else {
        let exceptions = decision.plan.policies.iter().filter(|policy| matches!(policy.purpose, Purpose::Exception(_)));
        files.extend(exceptions.map(|p| (emit::file_name(p), emit::policy_file(p, &decision.plan, options))));
    }
    let files = emit::listed(files);
    let told = Told::new(as_exported, options, &mut decision, forgotten);
    Exported {
        files,
        problems: decision.problems.into_iter().collect(),
        stopped: decision.stopped,
        warnings: decision.warnings.into_iter().collect(),
        verdicts: decision.verdicts,
        exceptions: decision.exceptions,
        plan: decision.plan,
        proof,
        told,
    }
}
