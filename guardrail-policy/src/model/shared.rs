//! Equal labels and equal peers once: policies name the same pods again and again.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use guardrail_graph::snapshot::LabelSelector;

use super::{
    NetworkPolicy, PeerKind,
    tier::{PodSelector, Subject, TierPeer, TierPolicy},
};

/// What is equal in several policies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    /// Labels that selectors ask for.
    labels: HashSet<Arc<BTreeMap<String, String>>>,
    peers: HashSet<Arc<TierPeer>>,
}

impl Shared {
    fn share(&mut self, selector: &mut LabelSelector) {
        match self.labels.get(&selector.match_labels) {
            Some(known) => selector.match_labels = Arc::clone(known),
            None => _ = self.labels.insert(Arc::clone(&selector.match_labels)),
        }
    }

    /// Has a policy's selectors share theirs with those before.
    pub(crate) fn policy(&mut self, policy: &mut NetworkPolicy) {
        self.share(&mut policy.pod_selector);
        for rule in policy.ingress.iter_mut().chain(&mut policy.egress) {
            for peer in &mut rule.peers {
                if let PeerKind::Pods { namespaces, pods } = &mut peer.kind {
                    namespaces.iter_mut().chain(pods).for_each(|selector| self.share(selector));
                }
            }
            rule.peers.shrink_to_fit();
            rule.ports.shrink_to_fit();
        }
    }

    /// The same for a policy in the form that is judged.
    pub(crate) fn form(&mut self, form: &mut TierPolicy) {
        if let Subject::Pods(selector) = &mut form.subject {
            self.pods(selector);
        }
        for rule in form.ingress.iter_mut().chain(&mut form.egress) {
            for peer in rule.peers.iter_mut().flatten() {
                if let Some(known) = self.peers.get(peer) {
                    *peer = Arc::clone(known);
                    continue;
                }
                if let TierPeer::Pods(selector) = Arc::make_mut(peer) {
                    self.pods(selector);
                }
                self.peers.insert(Arc::clone(peer));
            }
        }
    }

    fn pods(&mut self, selector: &mut PodSelector) {
        match selector {
            PodSelector::Kubernetes { namespaces, pods, .. } => {
                namespaces.iter_mut().chain(pods).for_each(|selector| self.share(selector));
            }
            PodSelector::Cilium { selector, .. } => self.share(selector),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read;

    #[test]
    fn selectors_of_one_policy_share_equal_labels_with_those_of_another() {
        let policy = |name: &str| {
            let text = format!(
                "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}}}, spec: {{podSelector: {{matchLabels: {{app: web}}}}, \
                 ingress: [{{from: [{{podSelector: {{matchLabels: {{app: web}}}}}}]}}]}}}}"
            );
            read::policies(name, text.as_bytes()).unwrap().policies.remove(0)
        };
        let (mut one, mut two) = (policy("one"), policy("two"));
        let before = (one.clone(), two.clone());
        let mut shared = Shared::default();
        shared.policy(&mut one);
        shared.policy(&mut two);
        assert_eq!((&one, &two), (&before.0, &before.1));
        assert!(Arc::ptr_eq(&one.pod_selector.match_labels, &two.pod_selector.match_labels));
        let PeerKind::Pods { pods: Some(pods), .. } = &two.ingress[0].peers[0].kind else { panic!("{two:?}") };
        assert!(Arc::ptr_eq(&one.pod_selector.match_labels, &pods.match_labels));

        let forms = [&one, &two].map(|policy| {
            let mut form = TierPolicy::from(policy);
            shared.form(&mut form);
            assert_eq!(form, TierPolicy::from(policy));
            form
        });
        let [one, two] = forms.map(|form| form.ingress.into_iter().find_map(|rule| rule.peers?.pop()).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
    }
}
