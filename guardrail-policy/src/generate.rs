//! From the observed graph to policies that allow exactly what was observed.
//!
//! Input: a [`Snapshot`] and [`Options`]. Output: [`Generated`]: the [`Plan`] (policies as data), the files as text, and what stands against
//! using them, as data. Nothing here stops: the command line refuses on [`Problem`]s, the agent writes files that carry their marks.
//!
//! Invariants (DESIGN §6): supported edges are allowed, nothing else between covered workloads is; pod ports only; no generated label, no
//! address of a pod or Service in an `ipBlock`; equal graphs are equal bytes.

mod completeness;
mod context;
mod dns;
mod edges;
mod names;
mod phases;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use guardrail_graph::{Snapshot, WorkloadRef};
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    evaluate::Cluster,
    model::{NetworkPolicy, Protocol},
    prove::Proof,
};

pub use completeness::{NamespaceVerdict, edge_name};
pub use edges::{EdgeUse, Unused};
pub use phases::{Direction, RuleEvidence};
pub use plan::{Plan, PlannedPolicy, PlannedRule, PortRef, Purpose, RulePeer, RulePort};

/// How far to go (POLICY-SEMANTICS part C).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// A preview of [`Phase::Constrain`], and the report.
    Observe,
    /// Namespace boundaries.
    Constrain,
    /// Every pod closed but for what was observed.
    DefaultDeny,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Observe => "observe",
            Self::Constrain => "constrain",
            Self::DefaultDeny => "default-deny",
        })
    }
}

/// The text names no phase.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no phase: use observe, constrain or default-deny")]
pub struct UnknownPhase(String);

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "observe" => Ok(Self::Observe),
            "constrain" => Ok(Self::Constrain),
            "default-deny" => Ok(Self::DefaultDeny),
            other => Err(UnknownPhase(other.to_owned())),
        }
    }
}

/// `NS/NAME` or `NS/OWNER/NAME`: a workload as a person writes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkloadPattern {
    namespace: String,
    owner: Option<String>,
    name: String,
}

impl WorkloadPattern {
    /// Whether this is the workload that is meant.
    #[must_use]
    pub fn matches(&self, workload: &WorkloadRef) -> bool {
        self.namespace == workload.namespace
            && self.name == workload.name
            && self.owner.as_ref().is_none_or(|owner| owner.eq_ignore_ascii_case(&workload.owner))
    }
}

/// The text names no workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no workload: write NAMESPACE/NAME or NAMESPACE/KIND/NAME")]
pub struct BadWorkloadPattern(String);

impl FromStr for WorkloadPattern {
    type Err = BadWorkloadPattern;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = s.split('/').collect();
        let (namespace, owner, name) = match parts.as_slice() {
            [namespace, name] => (*namespace, None, *name),
            [namespace, owner, name] => (*namespace, Some((*owner).to_owned()), *name),
            _ => return Err(BadWorkloadPattern(s.to_owned())),
        };
        if namespace.is_empty() || name.is_empty() || owner.as_deref() == Some("") {
            return Err(BadWorkloadPattern(s.to_owned()));
        }
        Ok(Self { namespace: namespace.to_owned(), owner, name: name.to_owned() })
    }
}

/// How to generate.
#[derive(Clone, Debug)]
pub struct Options {
    /// The phase.
    pub phase: Phase,
    /// Close egress too.
    pub egress: bool,
    /// Only these namespaces; empty means all that have workloads.
    pub namespaces: BTreeSet<String>,
    /// Edges marked `inferred` support rules.
    pub accept_inferred: bool,
    /// Also allow the Service's port, for networks that judge before address translation (B1).
    pub also_service_ports: bool,
    /// Clients whose flows support no rule (B36).
    pub ignore_clients: BTreeSet<WorkloadPattern>,
    /// How many external addresses one port gets as single addresses; with more it is "any external address" (B20, B35).
    pub max_external_addresses: usize,
    /// Ranges behind external names, declared by a person (B20).
    pub declared_ranges: BTreeMap<String, BTreeSet<IpNet>>,
    /// Somebody accepted the problems: the files say so.
    pub forced: bool,
    /// What an inventory knows of the cluster ([`Cluster::from_objects`]), above all the ranges where pods get their addresses: without them,
    /// "any external address" includes the cluster's pods. Empty if there is no inventory.
    pub cluster: Cluster,
    /// Policies that are in force already. What is generated is proven together with them.
    pub existing: Vec<NetworkPolicy>,
}

impl Options {
    /// Ingress only, every namespace, nothing accepted.
    #[must_use]
    pub fn new(phase: Phase) -> Self {
        Self {
            phase,
            egress: false,
            namespaces: BTreeSet::new(),
            accept_inferred: false,
            also_service_ports: false,
            ignore_clients: BTreeSet::new(),
            max_external_addresses: 8,
            declared_ranges: BTreeMap::new(),
            forced: false,
            cluster: Cluster::default(),
            existing: Vec::new(),
        }
    }
}

/// What kind of thing stands against using the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The evidence is incomplete.
    Incomplete,
    /// A supported flow cannot be written as a rule: it would be denied.
    Inexpressible,
    /// A policy that exists already denies a supported flow.
    Conflict,
    /// The proof failed: a supported flow would be denied. A bug of the generator.
    Denied,
    /// The proof failed: something beyond the phase would be allowed. A bug of the generator.
    Excess,
}

impl ProblemKind {
    /// Whether a person may accept it (`--force`). What the proof finds may never be.
    #[must_use]
    pub const fn can_be_forced(self) -> bool {
        matches!(self, Self::Incomplete | Self::Inexpressible | Self::Conflict)
    }
}

/// Something that stands against using the files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Its kind.
    pub kind: ProblemKind,
    /// One sentence: what, where, what to do.
    pub message: String,
}

/// The result.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The policies as data.
    pub plan: Plan,
    /// Text of every file, by its path relative to the export directory: one `NAMESPACE.NAME.yaml` per policy, `kustomization.yaml`,
    /// `evidence.json`, `REPORT.md`.
    pub files: BTreeMap<String, String>,
    /// What stands against using them, sorted.
    pub problems: Vec<Problem>,
    /// What a person should know, sorted.
    pub warnings: Vec<String>,
    /// The completeness verdict per namespace.
    pub verdicts: Vec<NamespaceVerdict>,
    /// What was proven.
    pub proof: Proof,
}

/// Name of the machine-readable sidecar.
pub const EVIDENCE_FILE: &str = "evidence.json";
/// Name of the readable sidecar.
pub const REPORT_FILE: &str = "REPORT.md";
/// Name of the file that `kubectl kustomize` and `kubectl apply -k` read.
pub const KUSTOMIZATION_FILE: &str = "kustomization.yaml";

/// What is decided before any text is written.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The policies.
    pub plan: Plan,
    /// Which edges each rule rests on.
    pub evidence: Vec<RuleEvidence>,
    /// What became of every edge, in the snapshot's order.
    pub uses: Vec<EdgeUse>,
    /// The completeness verdict per namespace in scope.
    pub verdicts: Vec<NamespaceVerdict>,
    /// Workloads that a policy closes although nobody was seen to call them.
    pub closed_without_evidence: BTreeSet<WorkloadRef>,
    /// Supported edges (indices) that no rule can allow, each with a problem.
    pub inexpressible: BTreeSet<usize>,
    /// What is opened wider than observed.
    pub announced: Announced,
    /// What stands against the plan, sorted.
    pub problems: BTreeSet<Problem>,
    /// What a person should know, sorted.
    pub warnings: BTreeSet<String>,
}

/// What the plan opens wider than observed, and says so in warnings: port by port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Server ports that any address may call, pods included.
    pub from_anywhere: BTreeSet<(WorkloadRef, Protocol, u16)>,
    /// Clients that may call any address on a port, pods included.
    pub to_anywhere: BTreeSet<(WorkloadRef, Protocol, u16)>,
    /// DNS ports that every pod with closed egress may ask.
    pub dns: BTreeSet<(WorkloadRef, Protocol, u16)>,
}

/// Decides which policies to write.
#[must_use]
pub fn plan_for(snapshot: &Snapshot, options: &Options) -> Decision {
    phases::decide(&context::Context::new(snapshot, options))
}

/// Generates every file of an export, and proves it.
#[must_use]
pub fn generate(snapshot: &Snapshot, options: &Options) -> Generated {
    let mut decision = plan_for(snapshot, options);
    let mut files = crate::emit::files(&decision.plan, options);
    let policies =
        files.iter().filter(|(name, _)| *name != KUSTOMIZATION_FILE).map(|(name, text)| (name.as_str(), text.as_str()));
    let proof = crate::prove::prove(snapshot, options, &decision, policies);
    decision.problems.extend(proof.problems.iter().cloned());
    decision.warnings.extend(proof.warnings.iter().cloned());
    if proof.problems.iter().any(|problem| !problem.kind.can_be_forced()) {
        // Whoever writes the files all the same (the agent does) writes them with this mark.
        for policy in &mut decision.plan.policies {
            policy.notes.insert(format!("not proven, not for applying: {REPORT_FILE} says why"));
        }
        files = crate::emit::files(&decision.plan, options);
    }
    files.extend(crate::report::files(snapshot, options, &decision, &proof));
    Generated {
        files,
        problems: decision.problems.into_iter().collect(),
        warnings: decision.warnings.into_iter().collect(),
        verdicts: decision.verdicts,
        plan: decision.plan,
        proof,
    }
}
