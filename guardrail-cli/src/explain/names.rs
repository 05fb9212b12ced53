//! How people write the ends of a connection: with a kind as kubectl takes it, or with the DNS name
//! of a Service.

use std::{borrow::Cow, collections::BTreeSet};

use guardrail_graph::inventory::Inventory;
use guardrail_policy::{
    evaluate::{ClusterPod, Evaluator},
    words,
};

/// Kinds by their names for kubectl, in lower case.
const KINDS: [(&str, &[&str]); 9] = [
    ("CronJob", &["cronjob", "cronjobs", "cj"]),
    ("DaemonSet", &["daemonset", "daemonsets", "ds"]),
    ("Deployment", &["deployment", "deployments", "deploy"]),
    ("Job", &["job", "jobs"]),
    ("Pod", &["pod", "pods", "po"]),
    ("ReplicaSet", &["replicaset", "replicasets", "rs"]),
    ("ReplicationController", &["replicationcontroller", "replicationcontrollers", "rc"]),
    ("Service", &["service", "services", "svc"]),
    ("StatefulSet", &["statefulset", "statefulsets", "sts"]),
];

/// `namespace/name`, or `namespace/Kind/name` of a kind other than Pod; what is not understood
/// stays as it is.
pub(super) fn canonical(text: &str) -> Cow<'_, str> {
    if let Some((service, rest)) = text.trim_end_matches('.').split_once(".svc")
        && (rest.is_empty() || rest.starts_with('.'))
        && let Some((name, namespace)) = service.split_once('.')
        && !namespace.contains('.')
    {
        return format!("{namespace}/Service/{name}").into();
    }
    let parts: Vec<&str> = text.split('/').collect();
    let [namespace, kind, name] = parts[..] else { return text.into() };
    let lower = kind.to_ascii_lowercase();
    match KINDS.iter().find(|(_, names)| names.contains(&lower.as_str())) {
        Some(("Pod", _)) => format!("{namespace}/{name}").into(),
        Some((kind, _)) => format!("{namespace}/{kind}/{name}").into(),
        None => text.into(),
    }
}

/// What to write in place of a text that names no end.
pub(super) fn instead(text: &str, evaluator: &Evaluator, inventory: &Inventory) -> String {
    let cluster = evaluator.cluster();
    if let Some(node) = cluster.nodes.iter().find(|node| node.name == text) {
        let addresses: Vec<String> = node.addresses.iter().take(2).map(ToString::to_string).collect();
        return format!("it is a node: write its address ({})", addresses.join(", "));
    }
    if cluster.namespaces().any(|namespace| namespace == text) {
        return format!("it is a namespace: write one of its pods or workloads, like {text}/NAME");
    }
    let name = text.rsplit('/').next().unwrap_or(text);
    let pods = cluster.pods.iter().filter(|pod| pod.name == name).map(|pod| pod.namespace.clone());
    let workloads = cluster.pods.iter().filter_map(|pod| pod.workload.as_ref());
    let workloads = workloads.filter(|workload| workload.name == name).map(|workload| workload.namespace.clone());
    let services = inventory.services().filter(|service| service.name == name).map(|service| service.namespace.clone());
    if let Some(namespace) = pods.chain(workloads).chain(services).next() {
        return format!("did you mean {namespace}/{name}?");
    }
    if text.contains('.') && text.bytes().any(|b| b.is_ascii_alphabetic()) {
        return "policies are asked about addresses: write one that the name stands for".to_owned();
    }
    "write it like shop/web or 10.244.1.7".to_owned()
}

/// The pod, workload or Service of the same namespace and kind whose name is nearest.
pub(super) fn nearest(text: &str, evaluator: &Evaluator, inventory: &Inventory) -> Option<String> {
    let pods = || evaluator.cluster().pods.iter();
    let mut known: BTreeSet<String> = pods().filter_map(|pod| Some(pod.workload.as_ref()?.to_string())).collect();
    known.extend(pods().map(ClusterPod::full_name));
    known.extend(inventory.services().map(|service| format!("{}/Service/{}", service.namespace, service.name)));
    let (place, name) = text.rsplit_once('/')?;
    let beside = known.iter().filter_map(|other| other.rsplit_once('/').filter(|(there, _)| *there == place));
    words::nearest(name, beside.map(|(_, name)| name)).map(|near| format!("{place}/{near}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_names_are_taken_as_kubectl_and_dns_have_them() {
        for (text, expected) in [
            ("shop/deploy/web", "shop/Deployment/web"),
            ("shop/StatefulSet/db", "shop/StatefulSet/db"),
            ("shop/pod/web-1", "shop/web-1"),
            ("shop/svc/web", "shop/Service/web"),
            ("web.shop.svc", "shop/Service/web"),
            ("web.shop.svc.cluster.local", "shop/Service/web"),
            ("web.shop.svc.cluster.local.", "shop/Service/web"),
            ("db-0.db.shop.svc", "db-0.db.shop.svc"),
            ("web.shop", "web.shop"),
            ("shop/Rollout/web", "shop/Rollout/web"),
            ("shop/web", "shop/web"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(canonical(text), expected, "{text}");
        }
    }
}
