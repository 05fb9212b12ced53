//! Policies and cluster, ready to be judged by: what `check` and `explain` have in common.

use std::path::PathBuf;

use guardrail_graph::{Snapshot, inventory::Object};
use guardrail_policy::{
    evaluate::{Cluster, Evaluator},
    model::NetworkPolicy,
};

use crate::input::{self, tell};

/// Everything that verdicts follow from.
pub(crate) struct Loaded {
    /// The policies of `--policies`, and those of the inventory that they do not replace.
    pub(crate) evaluator: Evaluator,
    /// The inventory's own policies: what is in force already.
    pub(crate) before: Evaluator,
    /// The objects of the inventory.
    pub(crate) objects: Vec<Object>,
    /// Why verdicts are not proven (A34).
    pub(crate) unproven: Vec<Unproven>,
}

/// Why some verdicts are not proven.
pub(crate) struct Unproven {
    /// One sentence without a full stop.
    pub(crate) because: String,
    /// Only verdicts with an end in this namespace; `None`: all.
    pub(crate) namespace: Option<String>,
}

impl Unproven {
    /// Whether it concerns a connection between ends in these namespaces (`None`: outside of all).
    pub(crate) fn concerns(&self, ends: [Option<&str>; 2]) -> bool {
        self.namespace.as_deref().is_none_or(|own| ends.contains(&Some(own)))
    }
}

/// Reads policies and inventory.
pub(crate) fn load(policies: &[PathBuf], inventory: &[PathBuf], snapshot: Option<&Snapshot>) -> anyhow::Result<Loaded> {
    let mut proposed = input::policies(policies)?;
    let inventory = input::inventory(inventory)?;
    let in_force = inventory.policies.policies;
    let mut unevaluated = std::mem::take(&mut proposed.unevaluated);
    unevaluated.extend(inventory.policies.unevaluated);

    let replaced = |old: &NetworkPolicy| {
        proposed.policies.iter().any(|new| new.namespace == old.namespace && new.name == old.name)
    };
    let kept: Vec<NetworkPolicy> = in_force.iter().filter(|old| !replaced(old)).cloned().collect();
    if !kept.is_empty() {
        let policies = if kept.len() == 1 { "NetworkPolicy" } else { "NetworkPolicies" };
        tell("note", &format!("{} {policies} of the inventory apply too, being not in --policies", kept.len()));
    }
    let mut cluster = Cluster::with_templates(&inventory.objects);
    if let Some(snapshot) = snapshot {
        cluster = cluster.with_snapshot(snapshot);
    }
    let before = Evaluator::new(cluster.clone(), in_force);
    let evaluator = Evaluator::new(cluster, proposed.policies.into_iter().chain(kept).collect());

    let mut unproven: Vec<Unproven> = unevaluated
        .iter()
        .map(|u| Unproven { because: u.sentence(), namespace: u.concerns().map(str::to_owned) })
        .collect();
    let namespaces = evaluator.cluster().namespaces_without_labels().take(3).collect::<Vec<_>>().join(", ");
    for policy in evaluator.needs_namespace_labels() {
        let key = policy.key();
        let because = format!(
            "{key} selects namespaces by label, and the labels of {namespaces} are not known: add these Namespaces to --inventory"
        );
        unproven.push(Unproven { because, namespace: Some(policy.namespace.clone()) });
    }
    Ok(Loaded { evaluator, before, objects: inventory.objects, unproven })
}
