//! The policies of the cluster against those of the files, by meaning.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use guardrail_graph::snapshot::LabelSelector;
use guardrail_policy::{
    model::tier::{PodSelector, Subject, Tier, TierPeer, TierPolicy, TierRule},
    read::PolicySet,
};

use super::{
    Evidence, Report,
    rules::{EDITED, MISSING, UNMANAGED},
};

pub(super) fn find(evidence: &Evidence<'_>, report: &mut Report) {
    let Some([files, cluster]) = evidence.policies else { return };
    let (files, cluster) = (by_key(files), by_key(cluster));
    for (key, file) in &files {
        let location = file[0].location.clone();
        match cluster.get(key) {
            None => report.add(&MISSING, key, format!("{key} is in the files and not in the cluster"), location),
            Some(there) if !same(file, there) => {
                let message = format!("{key} means something else in the cluster than in its file");
                report.add(&EDITED, key, message, location);
            }
            Some(_) => {}
        }
    }
    for key in cluster.keys().filter(|key| !files.contains_key(*key)) {
        report.add(&UNMANAGED, key, format!("{key} is in the cluster and in no file"), None);
    }
}

/// Every policy by kind and name; one object of Cilium's kinds may have several parts.
fn by_key(set: &PolicySet) -> BTreeMap<String, Vec<TierPolicy>> {
    let mut all: BTreeMap<String, Vec<TierPolicy>> = BTreeMap::new();
    let forms = set.policies.iter().map(TierPolicy::from).chain(set.forms.iter().cloned());
    for form in forms {
        let slash = if form.namespace.is_empty() { "" } else { "/" };
        all.entry(format!("{} {}{slash}{}", form.kind.as_str(), form.namespace, form.name)).or_default().push(form);
    }
    all
}

fn same(a: &[TierPolicy], b: &[TierPolicy]) -> bool {
    // What is written alike means the same, and mostly the cluster has what the files have.
    if a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.section == b.section && a.same_spec(b)) {
        return true;
    }
    let meanings = |all: &[TierPolicy]| all.iter().map(meaning).collect::<BTreeSet<_>>();
    meanings(a) == meanings(b)
}

/// Whether two policies of one name select the same pods and allow the same, whatever the order of
/// their lists and however their rules are split.
#[must_use]
pub fn same_meaning(a: &TierPolicy, b: &TierPolicy) -> bool {
    meaning(a) == meaning(b)
}

/// Equal for policies of equal meaning: in a tier whose rules are a union, each pair of one peer
/// and one port that they name; in an ordered tier the rules in their order.
fn meaning(policy: &TierPolicy) -> String {
    let mut policy = policy.plain();
    policy.section = None;
    match &mut policy.subject {
        Subject::Pods(selector) => sort_pods(selector),
        Subject::Nodes(selector) => sort(selector),
    }
    let ordered = policy.tier != Tier::Normal;
    let directions = [std::mem::take(&mut policy.ingress), std::mem::take(&mut policy.egress)];
    let rules = directions.map(|rules| {
        let rules: Vec<Vec<String>> = rules.into_iter().map(pairs).collect();
        if ordered {
            rules.into_iter().map(|rule| rule.join("\n")).collect::<Vec<_>>()
        } else {
            rules.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect()
        }
    });
    format!("{policy:?}\n{rules:?}")
}

/// The pairs of one peer and one port that a rule names, sorted.
fn pairs(rule: TierRule) -> Vec<String> {
    let what = format!("{:?} l7 {}", rule.action, rule.l7);
    let peers = match rule.peers {
        None => vec!["anybody".to_owned()],
        Some(peers) => peers
            .into_iter()
            .map(|peer| {
                let mut peer = Arc::unwrap_or_clone(peer);
                match &mut peer {
                    TierPeer::Pods(selector) => sort_pods(selector),
                    TierPeer::Nodes { selector, .. } => sort(selector),
                    TierPeer::Addresses { block, .. } => block.except.sort(),
                    _ => {}
                }
                format!("{peer:?}")
            })
            .collect(),
    };
    let ports = if rule.ports.is_empty() {
        vec!["every port".to_owned()]
    } else {
        rule.ports.iter().map(|port| format!("{:?} {:?}", port.protocol, port.port)).collect()
    };
    let mut pairs = BTreeSet::new();
    for peer in &peers {
        pairs.extend(ports.iter().map(|port| format!("{what} {peer} {port}")));
    }
    pairs.into_iter().collect()
}

fn sort_pods(selector: &mut PodSelector) {
    match selector {
        PodSelector::Kubernetes { namespaces, pods, .. } => {
            [namespaces, pods].into_iter().flatten().for_each(sort);
        }
        PodSelector::Cilium { selector, .. } => sort(selector),
    }
}

fn sort(selector: &mut LabelSelector) {
    for requirement in &mut selector.match_expressions {
        requirement.values.sort();
        requirement.values.dedup();
    }
    selector.match_expressions.sort();
    selector.match_expressions.dedup();
}
