//! What a plan asks of an export: how far each namespace goes, whether its gates let it, which
//! workloads are closed, what a person has declared or accepted.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{Snapshot, Timestamp, WorkloadRef};
use guardrail_policy::{
    evaluate::Cluster,
    exception::{ExceptionMark, Opening},
    generate::{External, Goal, Options, Phase},
    model::Protocol,
    words::few,
};

use crate::{
    plan::{Environment, Exception, Plan, PlanPort},
    status::{gates, verdicts, workloads_of},
};

/// What a person has said of the whole cluster: who is meant for everybody, flows that stay without
/// a rule (until their word ends), addresses of nodes and of what lies outside.
pub fn declare(options: &mut Options, plan: &Plan, now: Timestamp) {
    let accepted = plan.accepted.iter().filter(|flow| flow.until.is_none_or(|until| until > now));
    options.accepted.extend(accepted.map(|accepted| accepted.flow.clone()));
    options.node_ranges.extend(&plan.node_ranges);
    options.control_plane_ranges.extend(&plan.control_plane_ranges);
    for (label, external) in &plan.external {
        let external = External {
            names: external.names.clone(),
            ranges: external.ranges.clone(),
            ports: ports(&external.ports).collect(),
        };
        options.external.insert(label.clone(), external);
    }
    for service in &plan.shared {
        options.shared.entry(service.workload.clone()).or_default().extend(ports(&service.ports));
    }
    options.share_dns = true;
    options.drop_unused = options.drop_unused.or(plan.unused);
    options.callers.extend(plan.callers.iter().map(|caller| caller.workload.clone()));
}

fn ports(all: &BTreeSet<PlanPort>) -> impl Iterator<Item = (Protocol, u16)> {
    all.iter().map(|port| (port.protocol, port.port))
}

/// Sets the goal of each namespace, and what holds it back; and the sensitive workloads.
///
/// A namespace goes to the phase that the plan wants, at once, if its gates for that phase pass.
/// One with sensitive workloads needs what default-deny needs: those are at default-deny. What an
/// earlier export wrote for a namespace that goes on is replaced, so it is not in force beside the
/// new policies. A sensitive workload that nobody knows holds its namespace: something may be open
/// that a person believes to be closed.
pub fn aim(options: &mut Options, snapshot: &Snapshot, environment: &Environment) {
    options.sensitive = snapshot
        .body
        .workloads
        .iter()
        .map(|entry| &entry.workload)
        .filter(|workload| environment.is_sensitive(workload))
        .cloned()
        .collect();
    let closed: BTreeSet<&str> = options.sensitive.iter().map(|workload| workload.namespace.as_str()).collect();
    let known = known_workloads(snapshot, &options.cluster);
    let unmatched: Vec<_> = environment.unmatched(&known).into_iter().filter(|u| u.glob.is_exact()).collect();
    let mut goals = BTreeMap::new();
    for (namespace, verdict) in verdicts(snapshot, options, &environment.gates) {
        let wanted = environment.wanted(&namespace);
        let reached = if closed.contains(namespace.as_str()) { Phase::DefaultDeny } else { wanted.phase };
        let of_it = unmatched.iter().filter(|unmatched| unmatched.glob.is_of(&namespace));
        let mut held: Vec<String> =
            of_it.map(|unmatched| {
                format!(
                    "{} is meant to be sensitive and exists nowhere: take it out of the plan if it is gone, or accept it with --force",
                    unmatched.glob
                )
            })
            .collect();
        if reached != Phase::Observe {
            let workloads = workloads_of(snapshot, &namespace);
            for gate in gates(&environment.gates, reached, &verdict, workloads).iter().filter(|gate| !gate.passed) {
                let reasons: Vec<&str> = verdict.reasons.iter().map(String::as_str).collect();
                let why = match gate.name {
                    "coverage" if !reasons.is_empty() => format!("; {}", few(&reasons)),
                    _ => String::new(),
                };
                held.push(format!(
                    "namespace {namespace} is not ready for {reached} ({}: {}, needs {}{why}): observe longer, or accept it with --force",
                    gate.name, gate.is, gate.needs
                ));
            }
        }
        goals.insert(
            namespace,
            Goal { phase: wanted.phase, egress: wanted.egress && wanted.phase != Phase::Observe, held },
        );
    }
    options.goals = goals;
}

/// Every workload that the snapshot or the inventory has.
#[must_use]
pub fn known_workloads(snapshot: &Snapshot, cluster: &Cluster) -> BTreeSet<WorkloadRef> {
    let pods = cluster.pods.iter().filter_map(|pod| pod.workload.clone());
    snapshot.body.workloads.iter().map(|entry| entry.workload.clone()).chain(pods).collect()
}

/// Sets what the plan allows for a while in this environment; what has ended is allowed no more,
/// and no reason for a rule either.
pub fn open(options: &mut Options, plan: &Plan, environment: &str, now: Timestamp) {
    let here = || plan.exceptions.iter().filter(|exception| exception.applies_in(environment));
    options.excepted = here().map(opening).collect();
    options.exceptions = here().filter(|exception| !exception.is_over(now)).map(opening).collect();
}

/// An exception of the plan as policies see it.
#[must_use]
pub fn opening(exception: &Exception) -> Opening {
    let Exception { id, from, to, ports: open, expires, reason, owner, .. } = exception;
    let mark = ExceptionMark { id: id.clone(), expires: *expires, reason: reason.clone(), owner: owner.clone() };
    Opening { mark, from: from.clone(), to: to.clone(), ports: ports(open).collect() }
}
