//! From pods to workloads, and the selectors that name them (docs/design.md#owner).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Inventory, Labels, Pod,
    selectors::{is_generated_label, stable_labels},
};
use crate::{peer::WorkloadRef, selector::LabelSelector};

/// The workload of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub workload: WorkloadRef,
    /// The controller that may itself be controlled (a Job, a ReplicaSet) is not in the inventory
    /// yet, so the name may still change.
    pub provisional: bool,
}

/// What selects the pods of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadSelector {
    /// Selects this workload's pods and no other's in the namespace; `None` if no stable selector
    /// does.
    pub selector: Option<LabelSelector>,
    /// Why not, and what to do.
    pub advice: Option<String>,
    /// Labels that all its pods share, without generated ones.
    pub labels: Labels,
}

impl Inventory {
    /// The workload of a pod: its outermost known controller; ReplicaSet → Deployment, Job →
    /// CronJob, a custom kind → its immediate controller, no controller → the pod itself. A
    /// ReplicaSet that is not in the inventory stands for its Deployment if the pod carries its
    /// hash.
    #[must_use]
    pub fn owner_of(&self, pod: &Pod) -> Owner {
        let named = |kind: &str, name: &str| WorkloadRef {
            namespace: pod.namespace.clone(),
            owner: kind.to_owned(),
            name: name.to_owned(),
        };
        let Some(controller) = &pod.controller else {
            return Owner { workload: named("Pod", &pod.name), provisional: false };
        };
        let known = self.controller(&pod.namespace, &controller.kind, &controller.name);
        match (controller.kind.as_str(), known) {
            // The mirror object of a static pod is "controlled" by its Node: no workload stands
            // behind it.
            ("Node", _) => Owner { workload: named("Pod", &pod.name), provisional: false },
            (_, Some(found)) => match &found.controller {
                Some(outer) => Owner { workload: named(&outer.kind, &outer.name), provisional: false },
                None => Owner { workload: named(&controller.kind, &controller.name), provisional: false },
            },
            ("ReplicaSet", None) => {
                let hash = pod.labels.get("pod-template-hash");
                let deployment = hash
                    .and_then(|hash| controller.name.strip_suffix(hash)?.strip_suffix('-'))
                    .filter(|n| !n.is_empty());
                match deployment {
                    Some(deployment) => Owner { workload: named("Deployment", deployment), provisional: false },
                    None => Owner { workload: named("ReplicaSet", &controller.name), provisional: true },
                }
            }
            ("Job", None) => Owner { workload: named("Job", &controller.name), provisional: true },
            _ => Owner { workload: named(&controller.kind, &controller.name), provisional: false },
        }
    }

    /// Every workload: those of live pods, and controllers that stand for themselves (a CronJob
    /// between two runs, a Deployment at 0 replicas).
    #[must_use]
    pub fn workloads(&self) -> BTreeMap<WorkloadRef, WorkloadSelector> {
        self.pods
            .keys()
            .chain(self.controllers.keys())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .flat_map(|ns| self.workloads_in(ns))
            .collect()
    }

    /// The workloads of one namespace with their selectors.
    #[must_use]
    pub fn workloads_in(&self, namespace: &str) -> BTreeMap<WorkloadRef, WorkloadSelector> {
        // Label sets per workload: what its pods carry now, and what its template will put on the
        // next ones. Pods differ in generated labels, which no selector may use, so few distinct
        // sets remain and the check against every other workload stays cheap.
        let mut sets: BTreeMap<WorkloadRef, BTreeSet<Labels>> = BTreeMap::new();
        for pod in self.pods_in(namespace).filter(|p| !p.finished) {
            sets.entry(self.owner_of(pod).workload).or_default().insert(stable_labels(&pod.labels));
        }
        for pod in self.pods_in(namespace).filter(|p| p.finished) {
            let owner = self.owner_of(pod).workload;
            sets.entry(owner).or_insert_with(|| BTreeSet::from([stable_labels(&pod.labels)]));
        }
        for controller in
            self.controllers.get(namespace).into_iter().flat_map(BTreeMap::values).filter(|c| c.controller.is_none())
        {
            let workload = WorkloadRef {
                namespace: namespace.to_owned(),
                owner: controller.kind.clone(),
                name: controller.name.clone(),
            };
            // An old ReplicaSet without pods whose Deployment is missing would be a workload of
            // nobody.
            if controller.kind != "ReplicaSet" || sets.contains_key(&workload) {
                sets.entry(workload).or_default().insert(stable_labels(&controller.template_labels));
            }
        }
        sets.iter().map(|(workload, own)| (workload.clone(), self.select(workload, own, &sets))).collect()
    }

    /// When a CronJob runs.
    #[must_use]
    pub fn schedule(&self, workload: &WorkloadRef) -> Option<&str> {
        self.controller(&workload.namespace, &workload.owner, &workload.name)?.schedule.as_deref()
    }

    fn select(
        &self,
        workload: &WorkloadRef,
        own: &BTreeSet<Labels>,
        all: &BTreeMap<WorkloadRef, BTreeSet<Labels>>,
    ) -> WorkloadSelector {
        let labels = shared(own);
        let controller = self.controller(&workload.namespace, &workload.owner, &workload.name);
        // A Job's or ReplicaSet's own selector may name generated labels: then the template's
        // labels are all there is.
        let from_controller = controller
            .and_then(|c| c.selector.clone())
            .filter(|s| !s.is_empty() && !s.names_generated_label() && own.iter().all(|l| s.matches(l)));
        let from_template = controller.map(|c| stable_labels(&c.template_labels)).filter(|l| !l.is_empty());
        let mut candidates: Vec<LabelSelector> = from_controller.into_iter().collect();
        candidates.extend(from_template.map(|l| LabelSelector::of_labels(l.to_map())));
        candidates.push(LabelSelector::of_labels(labels.to_map()));
        candidates.retain(|s| s.tells_who() && own.iter().all(|l| s.matches(l)));
        let mut clash = None;
        for candidate in candidates {
            match all.iter().find(|(other, sets)| *other != workload && sets.iter().any(|l| candidate.matches(l))) {
                None => return WorkloadSelector { selector: Some(candidate), advice: None, labels },
                Some((other, _)) => clash = Some(other.clone()),
            }
        }
        let advice = match clash {
            Some(other) => format!(
                "no stable label tells {workload} from {other}: add a label to the pod template of {} {} that no other workload of the namespace has, for example app.kubernetes.io/name: {}",
                workload.owner,
                workload.name,
                as_label_value(&workload.name)
            ),
            None => format!(
                "the pods of {workload} share no stable label: add one to the pod template, for example app.kubernetes.io/name: {}",
                as_label_value(&workload.name)
            ),
        };
        WorkloadSelector { selector: None, advice: Some(advice), labels }
    }
}

/// A name as a label may have it for its value: at most 63 letters, digits, `-`, `_` and `.`,
/// beginning and ending with a letter or digit.
#[must_use]
pub fn as_label_value(name: &str) -> String {
    let ends = |c: char| !c.is_ascii_alphanumeric();
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let value: String = name.chars().map(allowed).skip_while(|c| ends(*c)).take(63).collect();
    let value = value.trim_end_matches(ends);
    if value.is_empty() { "x".to_owned() } else { value.to_owned() }
}

/// The labels that all sets have in common.
fn shared(sets: &BTreeSet<Labels>) -> Labels {
    let mut sets = sets.iter();
    let Some(first) = sets.next() else { return Labels::default() };
    let everywhere = |(key, value): &(&str, &str)| sets.clone().all(|set| set.get(key) == Some(value));
    first.iter().filter(|(key, _)| !is_generated_label(key)).filter(everywhere).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_label_cannot_have_is_proposed_as_one_that_it_can() {
        let long = "a".repeat(62);
        for (name, value) in [
            ("api", "api"),
            ("system:node_x.y", "system-node_x.y"),
            ("-.a-", "a"),
            ("it's", "it-s"),
            ("::", "x"),
            (&format!("{long}-b"), &*long),
        ] {
            assert_eq!(as_label_value(name), value, "{name}");
        }
    }
}
