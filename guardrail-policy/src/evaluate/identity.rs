//! Cilium's identity labels of a pod.

use crate::model::Labels;

/// Key of the derived label that holds the pod's namespace.
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Key of the derived label that holds the pod's service account.
pub(crate) const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
/// Key of the derived label that holds the cluster's name.
pub(crate) const CLUSTER: &str = "io.cilium.k8s.policy.cluster";
/// What stands before the keys of the namespace's own labels.
pub(crate) const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";

/// Keys that the agent's default filter leaves out of identities.
const LEFT_OUT: [&str; 6] = [
    "pod-template-hash",
    "pod-template-generation",
    "controller-revision-hash",
    "controller-uid",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
];
/// Beginnings of such keys.
const LEFT_OUT_PREFIXES: [&str; 7] = [
    "batch.kubernetes.io/",
    "kubernetes.io",
    "io.kubernetes",
    "beta.kubernetes.io",
    "k8s.io",
    "annotation",
    "etcd_node",
];

/// What a pod's identity is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) namespace_labels: &'a Labels,
    pub(crate) labels: &'a Labels,
    pub(crate) account: Option<&'a str>,
    pub(crate) cluster: &'a str,
}

impl<'a> Identity<'a> {
    /// The value of a label, by its key without source.
    pub(crate) fn label(&self, key: &str) -> Option<&'a str> {
        match key {
            POD_NAMESPACE => Some(self.namespace),
            SERVICE_ACCOUNT => self.account,
            CLUSTER => Some(self.cluster),
            _ => match key.strip_prefix(NAMESPACE_LABELS) {
                Some(key) => self.namespace_labels.get(key).map(String::as_str),
                None if is_left_out(key) => None,
                None => self.labels.get(key).map(String::as_str),
            },
        }
    }
}

/// Whether the agent's default filter keeps this label out of identities: no selector matches by
/// it.
#[must_use]
pub(crate) fn is_left_out(key: &str) -> bool {
    LEFT_OUT.contains(&key) || LEFT_OUT_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}
