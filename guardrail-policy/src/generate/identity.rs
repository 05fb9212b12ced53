//! Under Cilium pods are known by their identities, and some labels are left out of those: a
//! selector that asks for one matches nobody.

use std::{borrow::Cow, sync::Arc};

use guardrail_graph::{
    Snapshot,
    snapshot::{LabelSelector, WorkloadEntry},
};

use crate::evaluate::Dataplane;

/// The snapshot as the data plane tells workloads apart: under Cilium without the labels that never
/// enter an identity, neither in pods nor in selectors. Workloads that only such a label told apart
/// are one subject then.
pub(crate) fn identities<'a>(snapshot: &'a Snapshot, dataplane: &Dataplane) -> Cow<'a, Snapshot> {
    let Some(cilium) = dataplane.cilium() else { return Cow::Borrowed(snapshot) };
    let is_left_out = |key: &str| cilium.labels.leaves_out(key);
    let has_left_out = |entry: &WorkloadEntry| {
        let selected = entry
            .selector
            .iter()
            .flat_map(|s| s.match_labels.keys().chain(s.match_expressions.iter().map(|expression| &expression.key)));
        entry.labels.keys().chain(selected).any(|key| is_left_out(key))
    };
    if !snapshot.body.workloads.iter().any(has_left_out) {
        return Cow::Borrowed(snapshot);
    }
    let mut snapshot = snapshot.clone();
    for entry in &mut snapshot.body.workloads {
        entry.labels.retain(|key, _| !is_left_out(key));
        let Some(selector) = &mut entry.selector else { continue };
        if selector.is_empty() {
            continue;
        }
        Arc::make_mut(&mut selector.match_labels).retain(|key, _| !is_left_out(key));
        selector.match_expressions.retain(|expression| !is_left_out(&expression.key));
        if *selector == LabelSelector::default() {
            entry.selector = None;
            entry.selector_advice = Some(format!(
                "Cilium leaves the labels that select {} out of identities: give its pod template a label like app.kubernetes.io/name: {}",
                entry.workload, entry.workload.name
            ));
        }
    }
    Cow::Owned(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::CiliumOptions;

    fn selector(text: &str) -> LabelSelector {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn labels_outside_of_identities_go_from_pods_and_selectors_under_cilium_alone() {
        let entry = |name: &str, text: &str| WorkloadEntry {
            workload: guardrail_graph::WorkloadRef { namespace: "shop".into(), owner: "Job".into(), name: name.into() },
            labels: (*selector(text).match_labels).clone(),
            selector: Some(selector(text)),
            selector_advice: None,
            schedule: None,
            host_network: false,
            pods: Default::default(),
            ran_on: Default::default(),
            as_of: Default::default(),
        };
        let mut snapshot = guardrail_graph::snapshot::merge(Vec::new());
        snapshot.body.workloads = vec![
            entry("import", r#"{"matchLabels": {"app": "import", "k8s.io/run": "7"}}"#),
            entry("bare", r#"{"matchLabels": {"batch.kubernetes.io/controller-uid": "bare"}}"#),
        ];
        let kept = identities(&snapshot, &Dataplane::Kubernetes);
        assert!(matches!(kept, Cow::Borrowed(_)));
        let under_cilium = identities(&snapshot, &Dataplane::Cilium(CiliumOptions::default()));
        let [import, bare] = under_cilium.body.workloads.as_slice() else { panic!() };
        let app = selector(r#"{"matchLabels": {"app": "import"}}"#);
        assert_eq!((&import.selector, &import.labels), (&Some(app.clone()), &*app.match_labels));
        assert!(bare.selector.is_none() && bare.labels.is_empty());
        assert!(bare.selector_advice.as_ref().is_some_and(|advice| advice.contains("identities")));
    }
}
