//! A generated cluster of any size, made of recorded objects: as large as real ones, managed fields
//! and all.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::recordings;

/// Pods per node.
pub const PODS_PER_NODE: u32 = 100;

fn first(plural: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let path = recordings().join(format!("list/{plural}.json"));
    let list: Value = serde_json::from_slice(&std::fs::read(&path).with_context(|| path.display().to_string())?)?;
    let items = list["items"].as_array().context("a list without items")?;
    items.iter().find(|o| wanted(o)).cloned().with_context(|| format!("no such object in {}", path.display()))
}

fn named(mut object: Value, kind: &str, namespace: &str, name: &str, number: u32) -> Value {
    object["kind"] = kind.into();
    let metadata = &mut object["metadata"];
    metadata["namespace"] = namespace.into();
    metadata["name"] = name.into();
    metadata["uid"] = format!("{:08x}-0000-4000-8000-{number:012x}", name.len()).into();
    object
}

/// The name of pod `n`: (namespace, name).
#[must_use]
pub fn pod_name(n: u32, services: u32) -> (String, String) {
    let service = n % services;
    (format!("team-{}", service % 20), format!("service-{service}-7d9c5b8f6d-{n:05x}"))
}

/// Namespaces, nodes, Deployments with their ReplicaSets, Services with their EndpointSlices, and
/// `pods` pods in turn behind `services` Services.
///
/// # Errors
/// The recordings cannot be read.
pub fn cluster(pods: u32, services: u32) -> anyhow::Result<Vec<Value>> {
    let of_replica_set = |o: &Value| o["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet";
    let owned = |o: &Value| o["metadata"]["ownerReferences"][0].is_object();
    let running = |o: &Value| of_replica_set(o) && o["status"]["podIP"].is_string();
    let pod = first("pods", running)?;
    let (service, slice) = (first("services", |_| true)?, first("endpointslices", |_| true)?);
    let (deployment, replica_set) = (first("deployments", |_| true)?, first("replicasets", owned)?);
    let node = first("nodes", |_| true)?;
    let mut all = Vec::new();
    for n in 0..20 {
        all.push(json!({"kind": "Namespace", "metadata": {"name": format!("team-{n}")}}));
    }
    for n in 0..pods.div_ceil(PODS_PER_NODE) {
        let mut node = named(node.clone(), "Node", "", &format!("node-{n}"), n);
        let range = Ipv4Addr::from(0x0a40_0000 + n * 256);
        node["spec"]["podCIDR"] = format!("{range}/24").into();
        node["spec"]["podCIDRs"] = json!([format!("{range}/24")]);
        let address = Ipv4Addr::from(0xac1e_0000 + n + 1).to_string();
        node["status"]["addresses"] = json!([{"type": "InternalIP", "address": address}]);
        all.push(node);
    }
    let mut endpoints: Vec<Vec<Value>> = vec![Vec::new(); services as usize];
    for n in 0..pods {
        let of = n % services;
        let (namespace, name) = pod_name(n, services);
        let mut pod = named(pod.clone(), "Pod", &namespace, &name, n);
        let (on, place) = (n / PODS_PER_NODE, n % PODS_PER_NODE);
        let address = Ipv4Addr::from(0x0a40_0000 + on * 256 + place + 2).to_string();
        pod["metadata"]["labels"] =
            json!({"app.kubernetes.io/name": format!("service-{of}"), "pod-template-hash": "7d9c5b8f6d"});
        pod["metadata"]["ownerReferences"][0]["name"] = format!("service-{of}-7d9c5b8f6d").into();
        pod["spec"]["nodeName"] = format!("node-{on}").into();
        pod["status"]["podIP"] = address.as_str().into();
        pod["status"]["podIPs"] = json!([{"ip": address}]);
        endpoints[of as usize].push(json!({
            "addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{on}"), "targetRef": {"kind": "Pod", "namespace": namespace, "name": name},
        }));
        all.push(pod);
    }
    for (n, endpoints) in (0u32..).zip(endpoints) {
        let (namespace, name) = (format!("team-{}", n % 20), format!("service-{n}"));
        let labels = json!({"app.kubernetes.io/name": name});
        let mut deployment = named(deployment.clone(), "Deployment", &namespace, &name, n);
        deployment["spec"]["selector"] = json!({"matchLabels": labels});
        deployment["spec"]["template"]["metadata"]["labels"] = labels.clone();
        all.push(deployment);
        let mut set = named(replica_set.clone(), "ReplicaSet", &namespace, &format!("{name}-7d9c5b8f6d"), n);
        set["metadata"]["ownerReferences"][0]["name"] = name.as_str().into();
        all.push(set);
        let mut service = named(service.clone(), "Service", &namespace, &name, n);
        let address = Ipv4Addr::from(0x0a60_0000 + n + 1).to_string();
        service["spec"]["clusterIP"] = address.as_str().into();
        service["spec"]["clusterIPs"] = json!([address]);
        service["spec"]["selector"] = labels;
        service["spec"]["ports"] = json!([{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]);
        all.push(service);
        let mut slice = named(slice.clone(), "EndpointSlice", &namespace, &format!("{name}-x7k2p"), n);
        slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": name});
        slice["endpoints"] = endpoints.into();
        slice["ports"] = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
        all.push(slice);
    }
    Ok(all)
}
