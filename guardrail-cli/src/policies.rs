//! Policies and cluster, ready to be judged by: what `check` and `explain` have in common.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use anyhow::bail;
use guardrail_graph::{Snapshot, Timestamp, inventory::Object};
use guardrail_lifecycle::blocked::PolicyName;
use guardrail_policy::{
    evaluate::{Cluster, Dataplane, Evaluator},
    model::{NetworkPolicy, tier::TierPolicy},
    read::{Flow, PolicySet, Refused},
};

use crate::{
    dataplane::{DataplaneArgs, not_enforced, refusals},
    input::{self, Inventory, KubeArgs, tell},
};

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
    /// Pods that a log alone knows, and whose named ports are not known.
    pub(crate) without_ports: BTreeSet<String>,
    /// When policies were changed last, as far as that is known.
    pub(crate) changed: BTreeMap<PolicyName, Timestamp>,
}

impl Loaded {
    /// Why anything at all is not proven: what was read, and what no rule decides.
    pub(crate) fn doubts(&self) -> BTreeSet<String> {
        let read = self.unproven.iter().map(|Unproven { because, .. }| because.clone());
        read.chain(self.evaluator.undecided()).collect()
    }
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

/// Reads policies and inventory, and compiles them for the data plane.
pub(crate) fn load(
    policies: &[PathBuf],
    inventory: &[PathBuf],
    snapshot: Option<&Snapshot>,
    dataplane: &DataplaneArgs,
    cluster: &KubeArgs,
) -> anyhow::Result<Loaded> {
    load_set(input::policies(policies, cluster)?, inventory, snapshot, (dataplane, cluster), &[])
}

/// As [`load`], for policies that were read; the pods of the log exist, whether or not the
/// inventory has them.
pub(crate) fn load_set(
    proposed: PolicySet,
    inventory: &[PathBuf],
    snapshot: Option<&Snapshot>,
    (dataplane, cluster): (&DataplaneArgs, &KubeArgs),
    log: &[Flow<'_>],
) -> anyhow::Result<Loaded> {
    let inventory = input::inventory(inventory, cluster, dataplane.wants_facts(&proposed))?;
    let enforcer = dataplane.find(&proposed, &inventory)?;
    combine(proposed, inventory, snapshot, (dataplane, &enforcer), log)
}

/// Two sets of policies over one cluster. Policies of the inventory apply on both sides, unless one
/// of the sets has one of the same name: then it is that set's to have it or not.
pub(crate) fn load_pair(
    policies: [&[PathBuf]; 2],
    inventory: &[PathBuf],
    snapshot: Option<&Snapshot>,
    dataplane: &DataplaneArgs,
    cluster: &KubeArgs,
) -> anyhow::Result<[Loaded; 2]> {
    let [before, after] = [input::policies(policies[0], cluster)?, input::policies(policies[1], cluster)?];
    let facts = dataplane.wants_facts(&before) || dataplane.wants_facts(&after);
    let mut inventory = input::inventory(inventory, cluster, facts)?;
    let named: BTreeSet<String> =
        [&before, &after].iter().flat_map(|set| &set.policies).map(NetworkPolicy::key).collect();
    let forms: BTreeSet<String> = [&before, &after].iter().flat_map(|set| &set.forms).map(TierPolicy::key).collect();
    inventory.policies.policies.retain(|policy| !named.contains(&policy.key()));
    inventory.policies.forms.retain(|form| !forms.contains(&form.key()));
    // One cluster has one data plane, whichever of the two has Cilium's policies.
    let forms = before.forms.iter().chain(&after.forms).cloned().collect();
    let enforcer = dataplane.find(&PolicySet { forms, ..PolicySet::default() }, &inventory)?;
    let copy = Inventory { objects: inventory.objects.clone(), policies: inventory.policies.clone() };
    let network = (dataplane, &enforcer);
    Ok([combine(before, copy, snapshot, network, &[])?, combine(after, inventory, snapshot, network, &[])?])
}

/// Policies and inventory as one cluster.
fn combine(
    mut proposed: PolicySet,
    mut inventory: Inventory,
    snapshot: Option<&Snapshot>,
    (dataplane, enforcer): (&DataplaneArgs, &Dataplane),
    log: &[Flow<'_>],
) -> anyhow::Result<Loaded> {
    let mut unevaluated = std::mem::take(&mut proposed.unevaluated);
    unevaluated.append(&mut inventory.policies.unevaluated);
    let mut unproven: Vec<Unproven> = unevaluated
        .iter()
        .map(|u| Unproven { because: u.sentence(), namespace: u.concerns().map(str::to_owned) })
        .collect();
    unproven.extend(set_aside(&mut proposed.forms, enforcer));
    unproven.extend(set_aside(&mut inventory.policies.forms, enforcer));
    let unknown = |refused: Refused| Unproven {
        because: refused.to_string(),
        namespace: Some(refused.namespace).filter(|n| !n.is_empty()),
    };
    unproven.extend(refused(&mut inventory.policies, enforcer).into_iter().map(unknown));
    if proposed.live {
        unproven.extend(refused(&mut proposed, enforcer).into_iter().map(unknown));
    }
    let refused: Vec<String> = proposed.forms.iter().flat_map(|form| refusals(form, enforcer)).collect();
    if !refused.is_empty() {
        bail!("{}", refused.join("\n"));
    }
    let changed = changes(&mut proposed, &mut inventory.policies);
    let (in_force, forms_in_force) = (inventory.policies.policies, inventory.policies.forms);

    let replaced = |old: &NetworkPolicy| {
        proposed.policies.iter().any(|new| new.namespace == old.namespace && new.name == old.name)
    };
    let kept: Vec<NetworkPolicy> = in_force.iter().filter(|old| !replaced(old)).cloned().collect();
    let replaced = |old: &TierPolicy| proposed.forms.iter().any(|new| new.object() == old.object());
    let kept_forms: Vec<TierPolicy> = forms_in_force.iter().filter(|old| !replaced(old)).cloned().collect();
    if !kept.is_empty() {
        let policies = if kept.len() == 1 { "NetworkPolicy" } else { "NetworkPolicies" };
        tell("note", &format!("{} {policies} of the inventory apply too, being not in --policies", kept.len()));
    }
    if !kept_forms.is_empty() {
        let names: BTreeSet<String> = kept_forms.iter().map(TierPolicy::key).collect();
        let names: Vec<&str> = names.iter().take(5).map(String::as_str).collect();
        let more = if kept_forms.len() > names.len() { ", …" } else { "" };
        tell("note", &format!("these of the inventory apply too, being not in --policies: {}{more}", names.join(", ")));
    }
    let mut facts = inventory.policies.facts;
    facts.cidr_groups.append(&mut proposed.facts.cidr_groups);
    let mut cluster = Cluster::with_templates(&inventory.objects).with_facts(&facts);
    if let Some(snapshot) = snapshot {
        cluster = cluster.with_snapshot(snapshot);
    }
    let logged = log.iter().filter_map(|flow| flow.logged.as_deref()).flat_map(|l| [&l.src, &l.dst]);
    let (cluster, without_ports) = dataplane.with_names(cluster)?.with_logged(logged);
    let cluster = Arc::new(cluster);
    let before = Evaluator::mixed(Arc::clone(&cluster), in_force, forms_in_force, enforcer);
    let policies = proposed.policies.into_iter().chain(kept).collect();
    let forms = proposed.forms.into_iter().chain(kept_forms).collect();
    let evaluator = Evaluator::mixed(cluster, policies, forms, enforcer);

    for missing in evaluator.missing_groups() {
        tell("warning", &missing);
    }
    let namespaces = evaluator.cluster().namespaces_without_labels().take(3).collect::<Vec<_>>().join(", ");
    let concerned = |policy: &TierPolicy| (!policy.namespace.is_empty()).then(|| policy.namespace.clone());
    for policy in evaluator.needs_namespace_labels() {
        let key = policy.key();
        let because = format!(
            "{key} selects namespaces by label, and the labels of {namespaces} are not known: add these Namespaces to --inventory"
        );
        unproven.push(Unproven { because, namespace: concerned(policy) });
    }
    for policy in evaluator.needs_service_accounts() {
        let because = format!(
            "{} selects pods by service account, and those of some pods are not known: add the Pods to --inventory",
            policy.key()
        );
        unproven.push(Unproven { because, namespace: concerned(policy) });
    }
    Ok(Loaded { evaluator, before, objects: inventory.objects, unproven, without_ports, changed })
}

/// When policies were changed: of one that is proposed its own word counts, or none.
fn changes(proposed: &mut PolicySet, in_force: &mut PolicySet) -> BTreeMap<PolicyName, Timestamp> {
    let mut changed = std::mem::take(&mut in_force.changed);
    for policy in proposed.policies.iter().map(TierPolicy::from).chain(proposed.forms.iter().cloned()) {
        changed.remove(&policy.object());
    }
    changed.append(&mut proposed.changed);
    changed
}

/// Takes out what the data plane does not enforce: its verdicts are not proven.
fn set_aside(forms: &mut Vec<TierPolicy>, enforcer: &Dataplane) -> Vec<Unproven> {
    let sentence = |form: TierPolicy| Unproven {
        because: format!("{} is enforced by Cilium only, which is not the data plane", form.key()),
        namespace: (!form.namespace.is_empty()).then_some(form.namespace),
    };
    not_enforced(forms, enforcer).into_iter().map(sentence).collect()
}

/// Takes out what stands in the cluster and Cilium does not enforce, and names it; what it may
/// enforce is returned: it makes verdicts unproven.
pub(crate) fn refused(in_force: &mut PolicySet, enforcer: &Dataplane) -> Vec<Refused> {
    if enforcer.cilium().is_none() {
        return Vec::new();
    }
    let mut objects = BTreeSet::new();
    for form in &in_force.forms {
        for because in refusals(form, enforcer) {
            tell("warning", &format!("{because}: it is left out, having no effect"));
            objects.insert(form.object());
        }
    }
    in_force.forms.retain(|form| !objects.contains(&form.object()));
    let (certain, unknown): (Vec<_>, Vec<_>) =
        std::mem::take(&mut in_force.refused).into_iter().partition(|r| r.certain);
    for refused in certain {
        tell("warning", &refused);
    }
    unknown
}
