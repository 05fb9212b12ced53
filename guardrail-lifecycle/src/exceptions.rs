//! The exceptions of a plan: what is open, until when, whether it is in force, and whether anybody
//! uses it.

use std::collections::BTreeSet;

use guardrail_graph::{Snapshot, Timestamp};
use guardrail_policy::{exception::PREFIX, generate::edge_name, model::Direction};
use serde::Serialize;

use crate::{
    export::opening,
    plan::{Exception, ExceptionEnd, Plan},
    status::ExceptionStatus,
};

/// One exception.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExceptionRow {
    /// Id, end, reason, owner.
    #[serde(flatten)]
    pub status: ExceptionStatus,
    /// Who connects, to whom, on which ports.
    pub allows: String,
    /// Its policies in force, `NAMESPACE/NAME`; `None` if nobody has told which are.
    pub in_force: Option<BTreeSet<String>>,
    /// Connections that it is about; `None` if nobody has looked.
    pub used: Option<ExceptionUse>,
}

/// What was seen of an exception's connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExceptionUse {
    /// How many came about.
    pub connections: u64,
    /// The last time; `None`: never.
    pub last_seen: Option<Timestamp>,
    /// Between whom.
    pub flows: BTreeSet<String>,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExceptionList {
    /// Those of the plan, by end and id.
    pub exceptions: Vec<ExceptionRow>,
    /// Policies of exceptions in force that the plan does not have, or no longer.
    pub unplanned: BTreeSet<String>,
}

impl ExceptionList {
    /// Whether something is in force that has ended, or that the plan does not have.
    #[must_use]
    pub fn has_leftovers(&self) -> bool {
        let is_left =
            |row: &ExceptionRow| row.status.is_over && row.in_force.as_ref().is_some_and(|all| !all.is_empty());
        !self.unplanned.is_empty() || self.exceptions.iter().any(is_left)
    }
}

/// Lists the exceptions of an environment, or of all. `in_force` has the names (namespace, name) of
/// the policies in force.
#[must_use]
pub fn list(
    plan: &Plan,
    environment: Option<&str>,
    in_force: Option<&BTreeSet<(String, String)>>,
    snapshot: Option<&Snapshot>,
    now: Timestamp,
) -> ExceptionList {
    let mut planned = BTreeSet::new();
    let applies = |exception: &&Exception| environment.is_none_or(|name| exception.applies_in(name));
    let mut exceptions: Vec<ExceptionRow> = plan
        .exceptions
        .iter()
        .filter(applies)
        .map(|exception| {
            let own = policies(exception);
            let in_force = in_force.map(|all| all.intersection(&own).map(full).collect());
            planned.extend(own);
            ExceptionRow {
                status: ExceptionStatus::new(exception, now),
                allows: opening(exception).to_string(),
                in_force,
                used: snapshot.map(|snapshot| used(exception, snapshot)),
            }
        })
        .collect();
    exceptions.sort_by(|a, b| (a.status.expires, &a.status.id).cmp(&(b.status.expires, &b.status.id)));
    let others = in_force.into_iter().flatten().filter(|(_, name)| name.starts_with(PREFIX));
    let unplanned = others.filter(|name| !planned.contains(*name)).map(full).collect();
    ExceptionList { exceptions, unplanned }
}

fn full((namespace, name): &(String, String)) -> String {
    format!("{namespace}/{name}")
}

/// Namespace and name of the policies that an exception may have.
fn policies(exception: &Exception) -> BTreeSet<(String, String)> {
    let ends = [(Direction::Egress, &exception.from), (Direction::Ingress, &exception.to)];
    let name = |(direction, end): (Direction, &ExceptionEnd)| match end {
        ExceptionEnd::Workload(workload) => {
            Some((workload.namespace.clone(), opening(exception).policy_name(direction)))
        }
        ExceptionEnd::Range(_) => None,
    };
    ends.into_iter().filter_map(name).collect()
}

fn used(exception: &Exception, snapshot: &Snapshot) -> ExceptionUse {
    let opening = opening(exception);
    let edges = snapshot.body.edges.iter().filter(|edge| edge.supported && opening.is_for(edge));
    let mut found = ExceptionUse { connections: 0, last_seen: None, flows: BTreeSet::new() };
    for edge in edges {
        found.connections = found.connections.saturating_add(edge.counts.established());
        found.last_seen = found.last_seen.max(Some(edge.last_seen));
        found.flows.insert(edge_name(edge));
    }
    found
}
