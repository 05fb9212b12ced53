//! From the observed graph to policies that allow exactly what was observed.
//!
//! Input: a [`Snapshot`] and [`Options`]. Output: a [`Decision`]: the [`Plan`] (policies as data),
//! what it rests on, and what stands against using it, as data. Nothing is printed here: an export
//! ([`crate::export`]) goes on from the plan. A [`Problem`] stops the namespaces that it concerns.
//!
//! Invariants (docs/design.md#policy): supported edges are allowed, nothing else between covered
//! workloads is; pod ports only; no generated label, no address of a pod or Service in an
//! `ipBlock`; equal graphs are equal bytes.

mod completeness;
mod context;
mod dns;
mod edges;
mod flow;
mod format;
mod identity;
mod names;
mod phases;
mod plan;
mod problem;
mod reach;
mod stable;
mod subjects;
mod unmatched;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use guardrail_graph::{Snapshot, WorkloadRef};
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    evaluate::{CiliumOptions, Cluster, Dataplane},
    model::{NetworkPolicy, Protocol, tier::TierPolicy},
};

pub use completeness::{NamespaceVerdict, edge_name};
pub use edges::{EdgeUse, Unused};
pub use flow::{BadFlowName, FlowName};
pub use format::{Format, UnknownFormat};
pub(crate) use identity::identities;
pub use phases::RuleEvidence;
pub use plan::{Plan, PlannedPolicy, PlannedRule, PortRef, Purpose, RulePeer, RulePort};
pub(crate) use problem::stopped;
pub use problem::{Problem, ProblemKind};
pub(crate) use stable::stable;

/// How far to go (docs/semantics.md part C).
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

    /// A workload as this pattern would have it written: with or without its kind.
    fn like(&self, workload: &WorkloadRef) -> String {
        match self.owner {
            Some(_) => workload.to_string(),
            None => format!("{}/{}", workload.namespace, workload.name),
        }
    }
}

impl fmt::Display for WorkloadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Some(owner) => write!(f, "{}/{owner}/{}", self.namespace, self.name),
            None => write!(f, "{}/{}", self.namespace, self.name),
        }
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
    /// The kind of policy that is written.
    pub format: Format,
    /// What enforces the policies. What it would not enforce as written is a problem; the proof
    /// holds for [`Options::enforcer`].
    pub dataplane: Dataplane,
    /// Close egress too.
    pub egress: bool,
    /// Only these namespaces; empty means all that have workloads.
    pub namespaces: BTreeSet<String>,
    /// Flows that a person leaves without a rule, by name.
    pub accepted: BTreeSet<FlowName>,
    /// Edges marked `inferred` support rules.
    pub accept_inferred: bool,
    /// Also allow the Service's port, for networks that judge before address translation (B1).
    pub also_service_ports: bool,
    /// Clients whose flows support no rule (B36).
    pub ignore_clients: BTreeSet<WorkloadPattern>,
    /// How many external addresses one port gets as single addresses; with more it is "any external
    /// address" (B20, B35).
    pub max_external_addresses: usize,
    /// Ranges behind external names (lower case), declared by a person (B20): an address of such a
    /// name that lies in one of them is allowed by the ranges, however many addresses there are.
    pub declared_ranges: BTreeMap<String, BTreeSet<IpNet>>,
    /// Ranges of node addresses, declared by a person: a range stands for every node address in it.
    pub node_ranges: BTreeSet<IpNet>,
    /// For how long the nodes of a namespace must have been observed together;
    /// [`Phase::min_window`] is what to ask for.
    pub min_window: Duration,
    /// Somebody accepted what can be forced: the files say so.
    pub forced: bool,
    /// Also make the files of stopped namespaces, for reading, with a mark. Gates stop none then:
    /// each file says what it rests on.
    pub stopped_too: bool,
    /// What an inventory knows of the cluster ([`Cluster::from_objects`]), above all the ranges
    /// where pods get their addresses: without them, "any external address" includes the cluster's
    /// pods. Empty if there is no inventory.
    pub cluster: Cluster,
    /// Policies that are in force already. What is generated is proven together with them.
    pub existing: Vec<NetworkPolicy>,
    /// The same, of other kinds.
    pub existing_forms: Vec<TierPolicy>,
}

impl Options {
    /// Ingress only, every namespace, nothing accepted, any window.
    #[must_use]
    pub fn new(phase: Phase) -> Self {
        Self {
            phase,
            format: Format::default(),
            dataplane: Dataplane::default(),
            egress: false,
            namespaces: BTreeSet::new(),
            accepted: BTreeSet::new(),
            accept_inferred: false,
            also_service_ports: false,
            ignore_clients: BTreeSet::new(),
            max_external_addresses: 8,
            declared_ranges: BTreeMap::new(),
            node_ranges: BTreeSet::new(),
            min_window: Duration::ZERO,
            forced: false,
            stopped_too: false,
            cluster: Cluster::default(),
            existing: Vec::new(),
            existing_forms: Vec::new(),
        }
    }

    /// The data plane that the export is planned and proven for: nobody but Cilium enforces
    /// [`Format::Cilium`].
    #[must_use]
    pub fn enforcer(&self) -> Dataplane {
        match (self.format, &self.dataplane) {
            (Format::Cilium, Dataplane::Kubernetes | Dataplane::AwsVpcCni) => {
                Dataplane::Cilium(CiliumOptions::default())
            }
            (_, dataplane) => dataplane.clone(),
        }
    }
}

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
    /// Established edges (indices) that no rule can allow, each with a problem.
    pub inexpressible: BTreeSet<usize>,
    /// Workloads that no label tells apart: one policy allows what any of them needs.
    pub subjects: Vec<BTreeSet<WorkloadRef>>,
    /// What is opened wider than observed.
    pub announced: Announced,
    /// What stands against the plan, sorted.
    pub problems: BTreeSet<Problem>,
    /// Namespaces that stay as they are, because problems of the plan or of its proof stop them.
    pub stopped: BTreeSet<String>,
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
