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

use guardrail_graph::{Snapshot, Timestamp, WorkloadRef};
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    evaluate::{CiliumOptions, Cluster, Dataplane},
    exception::opening::{ExceptionSide, Opening},
    memory::Memory,
    model::{NetworkPolicy, Protocol, tier::TierPolicy},
};

pub use completeness::{NamespaceVerdict, edge_name};
pub(crate) use context::Context;
pub(crate) use edges::is_established;
pub use edges::{EdgeUse, Unused, asks_who_counted};
pub use flow::{Accepted, BadFlowName, FlowName};
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

/// How far one namespace goes, where a plan says so for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// Its phase. [`Phase::Observe`] is no preview here: nothing is written but what closes
    /// sensitive workloads.
    pub phase: Phase,
    /// Close egress too.
    pub egress: bool,
    /// What holds it back, one sentence each; empty: it may go on. Whoever sets a goal has judged
    /// the evidence, so the generator's own gates are not asked.
    pub held: Vec<String>,
}

/// Servers outside of the cluster, as a person declares them: where one of them was reached, a rule
/// names its ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct External {
    /// DNS names in lower case; empty: any, or none.
    pub names: BTreeSet<String>,
    /// The addresses behind them.
    pub ranges: BTreeSet<IpNet>,
    /// The ports on which they serve.
    pub ports: BTreeSet<(Protocol, u16)>,
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

/// How much of the time of a workload's pods must have been observed, unless a person says
/// otherwise, percent.
pub const MIN_COVERAGE: f64 = 99.9;

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
    /// Namespaces that go another way than `phase`, `egress` and the gates say.
    pub goals: BTreeMap<String, Goal>,
    /// Workloads whose ingress is closed to all but their callers whatever the phase of their
    /// namespace.
    pub sensitive: BTreeSet<WorkloadRef>,
    /// Services that every pod of the cluster and the nodes of `node_ranges` may reach, with their
    /// pod ports.
    pub shared: BTreeMap<WorkloadRef, BTreeSet<(Protocol, u16)>>,
    /// So are the cluster's DNS pods, unless `shared` or `sensitive` names them.
    pub share_dns: bool,
    /// Clients that may reach everybody but sensitive workloads, on the ports on which they were
    /// seen.
    pub callers: BTreeSet<WorkloadRef>,
    /// What lies outside of the cluster, by a name of a person's own.
    pub external: BTreeMap<String, External>,
    /// What is to be allowed for a while and has not ended, wherever policies isolate.
    pub exceptions: Vec<Opening>,
    /// All exceptions that stand in the plan, those that have ended, too. Their connections support
    /// no rule: what is allowed for a while does not stay because it was used.
    pub excepted: Vec<Opening>,
    /// An edge that was last seen so long before the end of the window supports no rule; `None`:
    /// each does, however old.
    pub drop_unused: Option<Duration>,
    /// Only these namespaces; empty means all that have workloads. With goals the others are
    /// decided too, and stay as they are ([`Options::leaves`]).
    pub namespaces: BTreeSet<String>,
    /// Flows that a person leaves without a rule, by name.
    pub accepted: BTreeSet<FlowName>,
    /// Workloads that did not run, and whose policies a person accepts all the same.
    pub accepted_workloads: BTreeSet<WorkloadRef>,
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
    /// Ranges of the control plane's addresses, declared by a person: whoever calls the API server
    /// may reach all of them, and where it was seen to call a pod (a webhook) all of them may.
    pub control_plane_ranges: BTreeSet<IpNet>,
    /// For how long the nodes of a namespace must have been observed together;
    /// [`Phase::min_window`] is what to ask for.
    pub min_window: Duration,
    /// How much of the time of each workload's pods must have been observed, percent.
    pub min_coverage: f64,
    /// Somebody accepted what can be forced: the files say so.
    pub forced: bool,
    /// Also make the files of stopped namespaces, for reading, with a mark. Gates stop none then:
    /// each file says what it rests on.
    pub stopped_too: bool,
    /// What an inventory knows of the cluster ([`Cluster::from_objects`]), above all the ranges
    /// where pods get their addresses: without them, "any external address" includes the cluster's
    /// pods. Empty if there is no inventory.
    pub cluster: Cluster,
    /// What earlier exports allowed: it stays allowed, unless one of its ends is gone.
    pub memory: Memory,
    /// What earlier exports allowed and was last seen before this time is forgotten.
    pub forget_before: Option<Timestamp>,
    /// Workloads that an inventory lists, beside those known by their pods: of a kind and namespace
    /// with one, there is no other.
    pub listed: BTreeSet<WorkloadRef>,
    /// Policies that are in force already. What is generated is proven together with them.
    pub existing: Vec<NetworkPolicy>,
    /// The same, of other kinds.
    pub existing_forms: Vec<TierPolicy>,
    /// Policies that are in force and that nobody evaluates, by the namespace to whose pods alone
    /// they apply.
    pub unproven: BTreeMap<String, BTreeSet<String>>,
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
            goals: BTreeMap::new(),
            sensitive: BTreeSet::new(),
            shared: BTreeMap::new(),
            share_dns: false,
            callers: BTreeSet::new(),
            external: BTreeMap::new(),
            exceptions: Vec::new(),
            excepted: Vec::new(),
            drop_unused: None,
            namespaces: BTreeSet::new(),
            accepted: BTreeSet::new(),
            accepted_workloads: BTreeSet::new(),
            accept_inferred: false,
            also_service_ports: false,
            ignore_clients: BTreeSet::new(),
            max_external_addresses: 8,
            declared_ranges: BTreeMap::new(),
            node_ranges: BTreeSet::new(),
            control_plane_ranges: BTreeSet::new(),
            min_window: Duration::ZERO,
            min_coverage: MIN_COVERAGE,
            forced: false,
            stopped_too: false,
            cluster: Cluster::default(),
            memory: Memory::default(),
            forget_before: None,
            listed: BTreeSet::new(),
            existing: Vec::new(),
            existing_forms: Vec::new(),
            unproven: BTreeMap::new(),
        }
    }

    /// Whether this namespace stays as it is, whatever the plan wants of it: a person asked for
    /// others only.
    #[must_use]
    pub fn leaves(&self, namespace: &str) -> bool {
        !self.goals.is_empty() && !self.namespaces.is_empty() && !self.namespaces.contains(namespace)
    }

    /// How far this namespace goes.
    #[must_use]
    pub fn phase_of(&self, namespace: &str) -> Phase {
        self.goals.get(namespace).map_or(self.phase, |goal| goal.phase)
    }

    /// Whether egress of this namespace is closed, too.
    #[must_use]
    pub fn closes_egress_of(&self, namespace: &str) -> bool {
        self.goals.get(namespace).map_or(self.egress, |goal| goal.egress)
    }

    /// Whether egress of any namespace is closed.
    #[must_use]
    pub fn closes_egress(&self) -> bool {
        self.egress || self.goals.values().any(|goal| goal.egress)
    }

    /// Whether a server is open to all of its namespace, and to whoever enters that.
    #[must_use]
    pub(crate) fn is_inside_a_boundary(&self, server: &WorkloadRef) -> bool {
        self.phase_of(&server.namespace) != Phase::DefaultDeny && !self.sensitive.contains(server)
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
    /// Edges (indices) from nodes that stand for clients of which their own sockets know nothing.
    pub unexplained: BTreeSet<usize>,
    /// Workloads that no label tells apart: one policy allows what any of them needs.
    pub subjects: Vec<BTreeSet<WorkloadRef>>,
    /// What is opened wider than observed.
    pub announced: Announced,
    /// What became of each exception.
    pub exceptions: Vec<ExceptionSide>,
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
    /// Server ports that every pod may call, because they are shared.
    pub shared: BTreeSet<(WorkloadRef, Protocol, u16)>,
    /// Ports on which these clients may call everybody but sensitive workloads.
    pub callers: BTreeSet<(WorkloadRef, Protocol, u16)>,
}

/// How good the evidence is, per namespace in scope: [`Decision::verdicts`] without the rest.
#[must_use]
pub fn verdicts(snapshot: &Snapshot, options: &Options) -> Vec<NamespaceVerdict> {
    let context = Context::new(snapshot, options);
    let uses: Vec<EdgeUse> = context.body.edges.iter().map(|edge| edges::classify(edge, &context)).collect();
    completeness::Completeness::new(&context).verdicts(&uses)
}

/// Decides which policies to write.
#[must_use]
pub fn plan_for(snapshot: &Snapshot, options: &Options) -> Decision {
    phases::decide(&Context::new(snapshot, options))
}
