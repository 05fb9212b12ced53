//! What is in force against what the plan wants.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use guardrail_graph::Timestamp;
use guardrail_policy::{
    evaluate::{Evaluator, RuleRef},
    generate::Phase,
    model::{Direction, Location},
    words::duration,
};

use super::{
    Evidence, PlanEvidence, Report,
    rules::{BELOW, OVER, SENSITIVE, UNSELECTED, UNUSED},
};
use crate::in_force;

pub(super) fn find(evidence: &Evidence<'_>, report: &mut Report) {
    if let Some(plan) = &evidence.plan {
        standing(plan, report);
        exceptions(plan, evidence.now, report);
        unused(evidence, plan, report);
    }
    unselected(evidence, report);
}

fn standing(plan: &PlanEvidence<'_>, report: &mut Report) {
    for status in plan.status {
        let namespace = &status.namespace;
        if let Some(wanted) = status.wanted.filter(|_| !status.phase_in_force) {
            let side = &status.in_force.ingress;
            let phase = side.phase.unwrap_or(Phase::Observe);
            let egress = if wanted.egress { " with egress" } else { "" };
            let message = format!(
                "namespace {namespace} is meant to be at {}{egress} and is at {phase}: {} of {} pods are isolated for ingress, {} for egress",
                wanted.phase, side.isolated, status.in_force.pods, status.in_force.egress.isolated
            );
            report.add(&BELOW, namespace, message, None);
        }
        for sensitive in status.sensitive.iter().filter(|sensitive| sensitive.closed < sensitive.pods) {
            let name = sensitive.workload.to_string();
            let message = format!(
                "sensitive workload {name} is open: {} of {} pods are closed",
                sensitive.closed, sensitive.pods
            );
            report.add(&SENSITIVE, &name, message, None);
        }
    }
}

fn exceptions(plan: &PlanEvidence<'_>, now: Timestamp, report: &mut Report) {
    let over = plan.plan.exceptions.iter().filter(|e| e.applies_in(plan.environment) && e.is_over(now));
    for exception in over {
        let location = Location { file: plan.file.into(), line: exception.line };
        let (id, owner) = (&exception.id, &exception.owner);
        let ago = duration(now.since(exception.expires));
        report.add(&OVER, id, format!("exception {id} of {owner} ended {ago} ago"), Some(location));
    }
}

/// Workloads that nothing isolates, in namespaces where something is isolated. Where nothing is,
/// the namespace itself is what is missing.
fn unselected(evidence: &Evidence<'_>, report: &mut Report) {
    let pods = &evidence.evaluator.cluster().pods;
    let mut open: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut closed: BTreeSet<&str> = BTreeSet::new();
    for (index, phase) in in_force::pods(evidence.evaluator) {
        let pod = &pods[index as usize];
        if phase.isolated[0] {
            closed.insert(&pod.namespace);
        } else {
            open.entry(&pod.namespace).or_default().insert(pod.workload_name());
        }
    }
    let left_open = |namespace: &str| {
        let status = evidence.plan.as_ref().and_then(|p| p.status.iter().find(|s| s.namespace == namespace));
        status.and_then(|status| status.wanted).is_some_and(|wanted| wanted.phase == Phase::Observe)
    };
    for (namespace, workloads) in open.into_iter().filter(|(ns, _)| closed.contains(ns) && !left_open(ns)) {
        for workload in workloads {
            let message = format!("no policy isolates {workload} for ingress, and others of {namespace} are isolated");
            report.add(&UNSELECTED, &workload, message, None);
        }
    }
}

/// Rules whose last use is too long ago. What was not observed for that long says nothing.
fn unused(evidence: &Evidence<'_>, plan: &PlanEvidence<'_>, report: &mut Report) {
    let Some(limit) = plan.plan.unused else { return };
    let since = evidence.now.before(limit);
    if evidence.snapshot.body.window.from.is_none_or(|from| from > since) {
        report.not_looked_at.push(format!("rules that nobody uses: that needs an observation of {}", duration(limit)));
        return;
    }
    let mut used: HashMap<(Direction, RuleRef), Timestamp> = HashMap::new();
    for edge in evidence.snapshot.body.edges.iter().filter(|edge| edge.supported) {
        let Ok(verdict) = evidence.evaluator.evaluate_edge(edge) else { continue };
        let sides = [(Direction::Egress, verdict.egress_rules), (Direction::Ingress, verdict.ingress_rules)];
        for (direction, rules) in sides {
            for rule in rules {
                let last = used.entry((direction, rule)).or_insert(edge.last_seen);
                *last = (*last).max(edge.last_seen);
            }
        }
    }
    for (direction, rule) in rules(evidence.evaluator) {
        let last = used.get(&(direction, rule)).copied();
        if last.is_some_and(|last| last >= since) {
            continue;
        }
        let name = evidence.evaluator.rule_name(direction, rule);
        let form = evidence.evaluator.form(rule);
        let told = match last {
            Some(last) => format!("was last used {} ago", duration(evidence.now.since(last))),
            None => format!("was never used in {}", duration(limit)),
        };
        let line = evidence.evaluator.rule(direction, rule).line;
        report.add(&UNUSED, &format!("{name} {direction}"), format!("{direction} rule {name} {told}"), form.at(line));
    }
}

/// Every rule of the policies that select somebody.
fn rules(evaluator: &Evaluator) -> Vec<(Direction, RuleRef)> {
    let mut all = Vec::new();
    for (form, policy) in evaluator.forms().iter().zip(0..) {
        if evaluator.selected_pods(policy).is_empty() {
            continue;
        }
        for direction in Direction::BOTH {
            let count = u32::try_from(form.rules(direction).len()).unwrap_or(u32::MAX);
            all.extend((0..count).map(|rule| (direction, RuleRef { policy, rule })));
        }
    }
    all
}
