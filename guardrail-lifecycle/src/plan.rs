//! The plan file (`guardrail.yaml`): what a team wants of its namespaces, environment by
//! environment, and whom it trusts beyond what was observed.
//!
//! [`read()`] takes text in and gives a valid [`Plan`] or every problem with its line.
//! [`schema()`] is the same structure as JSON Schema, for editors; both rest on one table of
//! fields.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use guardrail_graph::{Timestamp, WorkloadRef};
use guardrail_policy::{
    exception::ExceptionMark,
    generate::{FlowName, Phase},
    model::{Location, Protocol},
    words::{did_you_mean, duration, nearest},
};
use ipnet::IpNet;
use serde::Serialize;

mod append;
mod fields;
mod glob;
mod read;
mod schema;
mod value;

pub use append::{AppendError, with_exception};
pub use guardrail_policy::exception::ExceptionEnd;

pub use glob::{Glob, WorkloadGlob};
pub use read::{MAX_ID, PlanError, PlanProblem, is_exception_id, read};
pub use schema::schema;

/// `apiVersion` of a plan.
pub const API_VERSION: &str = "guardrail.dev/v1alpha1";
/// `kind` of a plan.
pub const KIND: &str = "Plan";

/// A plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The environments by name.
    pub environments: BTreeMap<String, Environment>,
    /// Services that are meant for everybody.
    pub shared: Vec<SharedService>,
    /// Clients that are meant to reach everybody on the ports seen.
    pub callers: Vec<Caller>,
    /// Ranges of node addresses.
    pub node_ranges: BTreeSet<IpNet>,
    /// Ranges of the control plane's addresses.
    pub control_plane_ranges: BTreeSet<IpNet>,
    /// What lies outside of the cluster, by a name of the plan's own.
    pub external: BTreeMap<String, ExternalService>,
    /// What is allowed for a while.
    pub exceptions: Vec<Exception>,
    /// Observed flows that stay without a rule.
    pub accepted: Vec<AcceptedFlow>,
    /// A rule whose evidence is older is dropped; `None`: never.
    pub unused: Option<Duration>,
    /// Who may change policies.
    pub admission: Admission,
}

/// One cluster, or a group of namespaces.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Environment {
    /// The kubeconfig context that `kube` means.
    pub context: Option<String>,
    /// What its namespaces are meant to be, unless said otherwise.
    pub default: Wanted,
    /// Namespaces, or patterns of them, that differ.
    pub namespaces: Vec<NamespacePlan>,
    /// Workloads that are closed whatever their namespace's phase is.
    pub sensitive: Vec<WorkloadGlob>,
    /// What a namespace needs before it may go on.
    pub gates: Gates,
}

/// What a namespace is meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Wanted {
    /// Its phase.
    pub phase: Phase,
    /// Whether egress is closed, too.
    pub egress: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { phase: Phase::Observe, egress: false }
    }
}

/// Some namespaces of an environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespacePlan {
    /// Which.
    pub glob: Glob,
    /// What they are meant to be.
    pub wanted: Wanted,
}

/// What a namespace needs before it may take the next step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gates {
    /// How long its nodes were observed; `None`: what the phase asks for.
    pub window: Option<Duration>,
    /// Share of its pods' time that was observed, percent; `None`: all of it.
    pub coverage: Option<f64>,
    /// For how long no new connection appeared.
    pub quiet: Option<Duration>,
}

impl Gates {
    /// For how long a namespace has to be observed before it may enter the phase.
    #[must_use]
    pub fn window_for(&self, phase: Phase) -> Duration {
        self.window.unwrap_or_else(|| phase.min_window())
    }
}

/// A port of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlanPort {
    /// The pod's port.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

impl fmt::Display for PlanPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

/// A workload that every pod and node may reach on some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedService {
    /// Which.
    pub workload: WorkloadRef,
    /// On which ports.
    pub ports: BTreeSet<PlanPort>,
    /// Where it stands in the file.
    pub line: u32,
}

/// A client that may reach everybody on the ports on which it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Which.
    pub workload: WorkloadRef,
    /// Where it stands in the file.
    pub line: u32,
}

/// Something outside of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExternalService {
    /// DNS names, in lower case.
    pub names: BTreeSet<String>,
    /// The addresses behind them.
    pub ranges: BTreeSet<IpNet>,
    /// On which ports.
    pub ports: BTreeSet<PlanPort>,
}

/// A connection that is allowed until a certain time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Names it in messages and objects; unique in the plan.
    pub id: String,
    /// Who connects.
    pub from: ExceptionEnd,
    /// Who accepts.
    pub to: ExceptionEnd,
    /// On which ports.
    pub ports: BTreeSet<PlanPort>,
    /// Its end.
    pub expires: Timestamp,
    /// Why.
    pub reason: String,
    /// Who answers for it.
    pub owner: String,
    /// Where it applies; empty: everywhere.
    pub environments: BTreeSet<String>,
    /// Where it stands in the file.
    pub line: u32,
}

impl Exception {
    /// Whether it has ended.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.expires <= now
    }

    /// Whether it goes on for longer than what was written of it, and nobody has said anew why.
    #[must_use]
    pub fn goes_on_unexplained(&self, written: &ExceptionMark) -> bool {
        written.id == self.id && written.expires < self.expires && written.reason.trim() == self.reason.trim()
    }

    /// Whether it applies in this environment.
    #[must_use]
    pub fn applies_in(&self, environment: &str) -> bool {
        self.environments.is_empty() || self.environments.contains(environment)
    }
}

/// An observed flow that stays without a rule, on somebody's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedFlow {
    /// Which.
    pub flow: FlowName,
    /// Why.
    pub reason: String,
    /// Until when; `None`: for good.
    pub until: Option<Timestamp>,
    /// Where it stands in the file.
    pub line: u32,
}

/// Who may change what keeps the policies honest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Users and service accounts that apply guardrail's policies.
    pub deployers: Vec<String>,
    /// Who may do so in an emergency.
    pub break_glass: Vec<String>,
    /// Controllers that make pods, beside those of the control plane.
    pub controllers: Vec<String>,
    /// Longest life of an exception; `None`: no limit.
    pub max_duration: Option<Duration>,
}

/// The plan has no environment of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the plan has no environment {name}{near}{known}")]
pub struct UnknownEnvironment {
    name: String,
    near: String,
    known: String,
}

impl Plan {
    /// The environment of this name.
    ///
    /// # Errors
    /// [`UnknownEnvironment`], with the nearest name or all there are.
    pub fn environment(&self, name: &str) -> Result<&Environment, UnknownEnvironment> {
        self.environments.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.environments.keys().map(String::as_str).collect();
            let near = did_you_mean(name, names.iter().copied());
            let known = if near.is_empty() { format!("; it has {}", names.join(", ")) } else { String::new() };
            UnknownEnvironment { name: name.to_owned(), near, known }
        })
    }

    /// Exceptions that end later than the plan allows, as problems of the file.
    #[must_use]
    pub fn too_long(&self, file: &str, now: Timestamp) -> Vec<PlanProblem> {
        let Some(limit) = self.admission.max_duration else { return Vec::new() };
        let long = self.exceptions.iter().filter(|exception| exception.expires > now.after(limit));
        long.map(|exception| PlanProblem {
            location: Location { file: file.into(), line: exception.line },
            message: format!(
                "exception {} ends in {}, and admission.maxDuration allows {}; give it an earlier end",
                exception.id,
                duration(exception.expires.since(now)),
                duration(limit)
            ),
        })
        .collect()
    }

    /// One sentence for each workload of the plan that is not among the known ones, with its line
    /// and the nearest that is. Patterns that match none are among them.
    #[must_use]
    pub fn unknown_workloads(&self, known: &BTreeSet<WorkloadRef>) -> Vec<(u32, String)> {
        let names: Vec<String> = known.iter().map(ToString::to_string).collect();
        let mut unknown = Vec::new();
        let mut look = |line: u32, what: String, workload: &WorkloadRef| {
            if !known.contains(workload) {
                let text = workload.to_string();
                let near = did_you_mean(&text, names.iter().map(String::as_str));
                unknown.push((line, format!("{what} names {text}, which is not in the cluster{near}")));
            }
        };
        for shared in &self.shared {
            look(shared.line, "shared".to_owned(), &shared.workload);
        }
        for caller in &self.callers {
            look(caller.line, "callers".to_owned(), &caller.workload);
        }
        for exception in &self.exceptions {
            for end in [&exception.from, &exception.to] {
                if let ExceptionEnd::Workload(workload) = end {
                    look(exception.line, format!("exception {}", exception.id), workload);
                }
            }
        }
        for (name, environment) in &self.environments {
            let of_environment = environment.unmatched(known).into_iter();
            unknown.extend(of_environment.map(|unmatched| (unmatched.glob.line(), unmatched.told(name))));
        }
        unknown.sort();
        unknown.dedup();
        unknown
    }
}

/// What is meant to be sensitive and matches no known workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched<'a> {
    /// As the plan has it.
    pub glob: &'a WorkloadGlob,
    /// The nearest name that is known.
    pub near: Option<String>,
}

impl Unmatched<'_> {
    /// One sentence.
    #[must_use]
    pub fn told(&self, environment: &str) -> String {
        let near = self.near.as_ref().map_or_else(String::new, |near| format!("; did you mean {near}?"));
        format!("sensitive of {environment} names {}, which matches no workload{near}", self.glob)
    }
}

impl Environment {
    /// What is meant to be sensitive and matches none of these workloads.
    #[must_use]
    pub fn unmatched(&self, known: &BTreeSet<WorkloadRef>) -> Vec<Unmatched<'_>> {
        let without = self.sensitive.iter().filter(|glob| !known.iter().any(|workload| glob.matches(workload)));
        without
            .map(|glob| {
                let like: Vec<String> = known.iter().map(|workload| glob.like(workload)).collect();
                let near = nearest(&glob.to_string(), like.iter().map(String::as_str)).map(str::to_owned);
                Unmatched { glob, near }
            })
            .collect()
    }

    /// What this namespace is meant to be: by its own name, else by the pattern with the longest
    /// literal beginning, else by the environment's default.
    #[must_use]
    pub fn wanted(&self, namespace: &str) -> Wanted {
        let best = self.namespaces.iter().filter(|entry| entry.glob.matches(namespace));
        best.max_by_key(|entry| entry.glob.rank()).map_or(self.default, |entry| entry.wanted)
    }

    /// Whether egress of any namespace is meant to be closed.
    #[must_use]
    pub fn closes_egress(&self) -> bool {
        let mut all = self.namespaces.iter().map(|entry| entry.wanted).chain([self.default]);
        all.any(|wanted| wanted.egress && wanted.phase != Phase::Observe)
    }

    /// Whether the workload is closed whatever its namespace's phase is.
    #[must_use]
    pub fn is_sensitive(&self, workload: &WorkloadRef) -> bool {
        self.sensitive.iter().any(|glob| glob.matches(workload))
    }
}
