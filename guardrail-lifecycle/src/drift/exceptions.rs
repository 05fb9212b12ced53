//! Exceptions among the policies in force: those that isolate by themselves, and those that have
//! ended. Both are known by the name that guardrail gives them, so no plan is needed.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_policy::{
    exception,
    model::{Direction, tier::TierPolicy},
    words::duration,
};

use super::{
    Evidence, Report,
    rules::{ISOLATES, LEFT},
};

pub(super) fn find(evidence: &Evidence<'_>, report: &mut Report) {
    isolating(evidence, report);
    left(evidence, report);
}

/// Pods at which nothing but exceptions isolates: whoever else may call them no longer can.
fn isolating(evidence: &Evidence<'_>, report: &mut Report) {
    let evaluator = evidence.evaluator;
    let forms = evaluator.forms();
    let is_exception = |policy: u32| exception::named(&forms[policy as usize].name).is_some();
    let mut found: BTreeMap<(String, Direction), (BTreeSet<u32>, BTreeSet<u32>)> = BTreeMap::new();
    for policy in (0..forms.len()).filter_map(|index| u32::try_from(index).ok()).filter(|index| is_exception(*index)) {
        for pod in evaluator.selected_pods(policy) {
            for direction in Direction::BOTH {
                let isolating = evaluator.isolating(&evaluator.end_of_pod(pod), direction);
                if isolating.contains(&policy) && isolating.iter().all(|other| is_exception(*other)) {
                    let workload = evaluator.cluster().pods[pod as usize].workload_name();
                    let (pods, policies) = found.entry((workload, direction)).or_default();
                    pods.insert(pod);
                    policies.insert(policy);
                }
            }
        }
    }
    for ((workload, direction), (pods, policies)) in found {
        let names: Vec<String> = policies.iter().map(|policy| full(&forms[*policy as usize])).collect();
        let location = policies.first().and_then(|policy| forms[*policy as usize].location.clone());
        let all = evaluator.pods_of_workload(&workload).len();
        let message = format!(
            "only {} isolates {} of {all} pods of {workload} for {direction}, and closes them to everybody else",
            names.join(" and "),
            pods.len(),
        );
        report.add(&ISOLATES, &format!("{workload} {direction}"), message, location);
    }
}

/// Exceptions whose time is over.
fn left(evidence: &Evidence<'_>, report: &mut Report) {
    for form in evidence.evaluator.forms() {
        let Some((id, expires)) = exception::named(&form.name).filter(|(_, expires)| *expires <= evidence.now) else {
            continue;
        };
        let name = full(form);
        let ago = duration(evidence.now.since(expires));
        let message = format!("{name} of exception {id} is in force, and ended {ago} ago");
        report.add(&LEFT, &name, message, form.location.clone());
    }
}

fn full(form: &TierPolicy) -> String {
    format!("{}/{}", form.namespace, form.name)
}
