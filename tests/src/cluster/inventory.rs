//! The cluster's inventory as `kubectl get … -A -o yaml` would print it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Cluster, Kind, Pod, Target, Workload, node_addresses};

/// Multi-document YAML with every object.
///
/// # Panics
/// Never: the objects are plain data.
#[must_use]
pub fn yaml(cluster: &Cluster) -> String {
    serde_saphyr::to_string_multiple(&objects(cluster)).expect("plain data can be written")
}

/// The objects themselves.
#[must_use]
pub fn objects(cluster: &Cluster) -> Vec<Value> {
    let mut out = Vec::new();
    let mut namespaces: Vec<_> = cluster.workloads.iter().map(|w| w.namespace.clone()).collect();
    namespaces.sort();
    namespaces.dedup();
    for name in namespaces {
        out.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}}));
    }
    for (index, name) in cluster.nodes.iter().enumerate() {
        out.push(node(index, name));
    }
    for (index, workload) in cluster.workloads.iter().enumerate() {
        controllers(cluster, index, workload, &mut out);
    }
    for entry in cluster.pods.iter().filter(|p| p.present) {
        out.push(pod(cluster, entry));
    }
    for service in &cluster.services {
        services(cluster, service, &mut out);
    }
    out
}

fn node(index: usize, name: &str) -> Value {
    let (v4, v6) = node_addresses(index);
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": format!("10.244.{index}.0/24"), "podCIDRs": [format!("10.244.{index}.0/24"), format!("fd00:10:244:{index:x}::/64")]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": v4}, {"type": "InternalIP", "address": v6}, {"type": "Hostname", "address": name},
        ]},
    })
}

fn controllers(cluster: &Cluster, index: usize, workload: &Workload, out: &mut Vec<Value>) {
    let Workload { namespace, name, kind, .. } = workload;
    let labels = cluster.labels(workload);
    let uid = controller_uid(cluster, index, 0);
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [container(workload)]}});
    let selector = json!({"matchLabels": {"app": name}});
    let metadata = json!({"name": name, "namespace": namespace, "uid": uid});
    match kind {
        Kind::Deployment => {
            out.push(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {"selector": selector, "template": template}}));
            let hash = cluster.template_hash(index);
            let mut hashed = labels.clone();
            hashed.insert("pod-template-hash".into(), hash.clone());
            out.push(json!({
                "apiVersion": "apps/v1", "kind": "ReplicaSet",
                "metadata": {"name": cluster.replica_set(index), "namespace": namespace, "uid": controller_uid(cluster, index, 1), "labels": hashed,
                    "ownerReferences": [owner("apps/v1", "Deployment", name, &uid)]},
                "spec": {"selector": {"matchLabels": {"app": name, "pod-template-hash": hash}}, "template": {"metadata": {"labels": hashed}}},
            }));
        }
        Kind::StatefulSet | Kind::DaemonSet => {
            out.push(json!({"apiVersion": "apps/v1", "kind": kind.as_str(), "metadata": metadata, "spec": {"selector": selector, "template": template}}));
        }
        Kind::CronJob => {
            out.push(json!({
                "apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata,
                "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": template}}},
            }));
            let job_uid = controller_uid(cluster, index, 1);
            out.push(json!({
                "apiVersion": "batch/v1", "kind": "Job",
                "metadata": {"name": cluster.job(index), "namespace": namespace, "uid": job_uid,
                    "ownerReferences": [owner("batch/v1", "CronJob", name, &uid)]},
                "spec": {"selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": job_uid}}, "template": template},
            }));
        }
    }
}

/// Labels of a pod, those included that its controller generates.
#[must_use]
pub fn labels(cluster: &Cluster, pod: &Pod) -> BTreeMap<String, String> {
    let workload = &cluster.workloads[pod.workload];
    let mut labels = cluster.labels(workload);
    let generated: Vec<(&str, String)> = match workload.kind {
        Kind::Deployment => vec![("pod-template-hash", cluster.template_hash(pod.workload))],
        Kind::StatefulSet => vec![
            ("statefulset.kubernetes.io/pod-name", pod.name.clone()),
            ("controller-revision-hash", format!("{}-5c6b7d8f9", workload.name)),
        ],
        Kind::DaemonSet => vec![("controller-revision-hash", "7f9c6d5b8".into())],
        Kind::CronJob => {
            let (controller, job) = (controller_uid(cluster, pod.workload, 1), cluster.job(pod.workload));
            vec![
                ("batch.kubernetes.io/controller-uid", controller.clone()),
                ("batch.kubernetes.io/job-name", job.clone()),
                ("controller-uid", controller),
                ("job-name", job),
            ]
        }
    };
    labels.extend(generated.into_iter().map(|(key, value)| (key.to_owned(), value)));
    labels
}

fn pod(cluster: &Cluster, pod: &Pod) -> Value {
    let workload = &cluster.workloads[pod.workload];
    let labels = labels(cluster, pod);
    let controller =
        controller_uid(cluster, pod.workload, u64::from(matches!(workload.kind, Kind::Deployment | Kind::CronJob)));
    let owner = match workload.kind {
        Kind::Deployment => owner("apps/v1", "ReplicaSet", &cluster.replica_set(pod.workload), &controller),
        Kind::StatefulSet | Kind::DaemonSet => owner("apps/v1", workload.kind.as_str(), &workload.name, &controller),
        Kind::CronJob => owner("batch/v1", "Job", &cluster.job(pod.workload), &controller),
    };
    let (v4, v6) = pod.addresses;
    let mut spec = json!({"nodeName": cluster.nodes[pod.node], "containers": [container(workload)]});
    if workload.host_network {
        spec["hostNetwork"] = true.into();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid, "labels": labels, "annotations": pod.annotations, "ownerReferences": [owner]},
        "spec": spec,
        "status": {"phase": "Running", "hostIP": node_addresses(pod.node).0, "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "main", "containerID": format!("containerd://{}", pod.container), "ready": true, "restartCount": 0}]},
    })
}

fn services(cluster: &Cluster, service: &super::Service, out: &mut Vec<Value>) {
    let (v4, v6) = service.addresses;
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|p| {
            let mut port = json!({"name": p.name, "protocol": p.protocol, "port": p.port, "targetPort": match p.target {
                Target::Name(name) => json!(name),
                Target::Number(number) => json!(number),
            }});
            if let Some(node_port) = p.node_port {
                port["nodePort"] = node_port.into();
            }
            port
        })
        .collect();
    let node_port = service.ports.iter().any(|p| p.node_port.is_some());
    let mut spec = json!({
        "type": if node_port { "NodePort" } else { "ClusterIP" }, "selector": {&service.selector.0: &service.selector.1},
        "ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"], "ports": ports,
    });
    if node_port {
        spec["externalTrafficPolicy"] = if service.hides_clients { "Cluster" } else { "Local" }.into();
    }
    let mut status = json!({});
    if let [external @ .., balanced] = &service.external_ips[..] {
        spec["externalIPs"] = json!(external);
        status["loadBalancer"]["ingress"] = json!([{"ip": balanced}]);
    }
    let addresses = if service.headless { json!(["None"]) } else { json!([v4, v6]) };
    spec["clusterIP"] = addresses[0].clone();
    spec["clusterIPs"] = addresses;
    out.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": service.name, "namespace": service.namespace}, "spec": spec, "status": status}));
    for v6 in [false, true] {
        out.push(slice(cluster, service, v6));
    }
}

fn slice(cluster: &Cluster, service: &super::Service, v6: bool) -> Value {
    let pods: Vec<_> = cluster.endpoints(service).collect();
    let endpoints: Vec<_> = pods
        .iter()
        .map(|pod| {
            let address = if v6 { json!(pod.addresses.1) } else { json!(pod.addresses.0) };
            json!({
                "addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": cluster.nodes[pod.node], "targetRef": {"kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid},
            })
        })
        .collect();
    let ports: Vec<_> = service
        .ports
        .iter()
        .filter_map(|p| {
            let number = pods.iter().find_map(|pod| cluster.target_port(p, pod))?;
            Some(json!({"name": p.name, "protocol": p.protocol, "port": number}))
        })
        .collect();
    let family = if v6 { "IPv6" } else { "IPv4" };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {"name": format!("{}-{}", service.name, family.to_lowercase()), "namespace": service.namespace,
            "labels": {"kubernetes.io/service-name": service.name, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "endpoints": endpoints, "ports": ports,
    })
}

fn container(workload: &Workload) -> Value {
    let ports: Vec<_> = workload
        .ports
        .iter()
        .map(|p| {
            let mut port = json!({"name": p.name, "protocol": p.protocol, "containerPort": p.number});
            if let Some(host_port) = workload.host_ports.get(&p.number) {
                port["hostPort"] = (*host_port).into();
            }
            port
        })
        .collect();
    json!({"name": "main", "image": "registry.example/lab:1", "ports": ports})
}

fn owner(api_version: &str, kind: &str, name: &str, uid: &str) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true})
}

fn controller_uid(cluster: &Cluster, workload: usize, level: u64) -> String {
    super::uid(super::scramble(cluster.salt ^ ((workload as u64) << 20) ^ (level << 40) ^ 0xc0))
}
