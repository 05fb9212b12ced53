//! Lists recorded from a real Kubernetes 1.36 API server over `fixtures/kube/platform.yaml`:
//! owners, selectors, Services.

use std::collections::BTreeMap;

use guardrail_graph::inventory::{Inventory, Object, VirtualTarget, read};
use guardrail_graph::{Observer, ObserverConfig, Protocol, Timestamp, inventory::Change};

const LISTS: [(&str, &str); 11] = [
    ("cronjobs", include_str!("fixtures/kube/cronjobs.json")),
    ("daemonsets", include_str!("fixtures/kube/daemonsets.json")),
    ("deployments", include_str!("fixtures/kube/deployments.json")),
    ("endpointslices", include_str!("fixtures/kube/endpointslices.json")),
    ("jobs", include_str!("fixtures/kube/jobs.json")),
    ("namespaces", include_str!("fixtures/kube/namespaces.json")),
    ("nodes", include_str!("fixtures/kube/nodes.json")),
    ("pods", include_str!("fixtures/kube/pods.json")),
    ("replicasets", include_str!("fixtures/kube/replicasets.json")),
    ("services", include_str!("fixtures/kube/services.json")),
    ("statefulsets", include_str!("fixtures/kube/statefulsets.json")),
];

fn objects(leave_out: &[&str]) -> Vec<Object> {
    LISTS
        .iter()
        .filter(|(name, _)| !leave_out.contains(name))
        .flat_map(|(name, text)| read::objects(text, name).unwrap().objects)
        .collect()
}

fn cluster() -> Inventory {
    Inventory::from_objects(objects(&[]))
}

#[test]
fn every_item_of_every_list_is_read() {
    for (name, text) in LISTS {
        let items = serde_json::from_str::<serde_json::Value>(text).unwrap()["items"].as_array().unwrap().len();
        let read = read::objects(text, name).unwrap();
        assert_eq!((read.objects.len(), &read.warnings[..]), (items, &[][..]), "{name}");
    }
    let policies = read::objects(include_str!("fixtures/kube/networkpolicies.json"), "np").unwrap();
    assert!(policies.objects.is_empty() && policies.warnings.is_empty(), "policies are read elsewhere");
    let platform = read::objects(include_str!("fixtures/kube/platform.yaml"), "platform.yaml").unwrap();
    assert!(platform.warnings.is_empty());
    assert_eq!(platform.objects.len(), 27);
}

#[test]
fn yaml_and_json_of_one_list_give_equal_objects() {
    for (name, text) in LISTS {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let yaml = serde_saphyr::to_string(&value).unwrap();
        assert_eq!(read::objects(&yaml, name).unwrap(), read::objects(text, name).unwrap(), "{name}");
    }
}

#[test]
fn pods_belong_to_their_outermost_controller() {
    let inventory = cluster();
    let owners: BTreeMap<String, String> =
        inventory.pods().map(|p| (p.name.clone(), inventory.owner_of(p).workload.to_string())).collect();
    for (pod, workload) in [
        ("postgres-0", "data/StatefulSet/postgres"),
        ("gateway-lvngh", "edge/DaemonSet/gateway"),
        ("coredns-684959879c-sfg4j", "kube-system/Deployment/coredns"),
        ("cart-cleanup-29923002-xh6hh", "storefront/CronJob/cart-cleanup"),
        ("debug-shell", "storefront/Pod/debug-shell"),
        ("web-c97dfb7d7-zcpb8", "storefront/Deployment/web"),
    ] {
        assert_eq!(owners[pod], workload);
    }
    assert!(inventory.pods().all(|p| !inventory.owner_of(p).provisional));
}

#[test]
fn without_its_replica_set_a_pod_is_named_by_its_hash_and_without_its_job_the_name_is_provisional() {
    let inventory = Inventory::from_objects(objects(&["replicasets", "jobs"]));
    let owner = |namespace, pod| inventory.owner_of(inventory.pod(namespace, pod).unwrap());
    let web = owner("storefront", "web-c97dfb7d7-zcpb8");
    assert_eq!((web.workload.to_string().as_str(), web.provisional), ("storefront/Deployment/web", false));
    let job = owner("storefront", "cart-cleanup-29923002-xh6hh");
    assert_eq!((job.workload.owner.as_str(), job.provisional), ("Job", true));
}

#[test]
fn selectors_select_their_workload_and_no_other() {
    let inventory = cluster();
    let workloads = inventory.workloads();
    let text = |name: &str| {
        let (_, found) = workloads.iter().find(|(w, _)| w.to_string() == name).unwrap();
        found.selector.as_ref().map(|s| serde_json::to_string(s).unwrap())
    };
    assert_eq!(text("storefront/Deployment/web").unwrap(), r#"{"matchLabels":{"app":"web"}}"#);
    assert_eq!(
        text("payments/Deployment/charge").unwrap(),
        r#"{"matchExpressions":[{"key":"app","operator":"In","values":["charge"]},{"key":"track","operator":"NotIn","values":["canary"]}]}"#
    );
    assert_eq!(
        text("data/StatefulSet/postgres").unwrap(),
        r#"{"matchLabels":{"app.kubernetes.io/instance":"main","app.kubernetes.io/name":"postgres"}}"#
    );
    assert_eq!(text("storefront/CronJob/cart-cleanup").unwrap(), r#"{"matchLabels":{"app":"cart-cleanup"}}"#);
    for bare in ["storefront/CronJob/unlabelled", "storefront/Pod/debug-shell"] {
        let (_, found) = workloads.iter().find(|(w, _)| w.to_string() == bare).unwrap();
        assert_eq!(found.selector, None, "{bare}");
        assert!(found.advice.as_ref().unwrap().contains("add one to the pod template"), "{found:?}");
    }
    // By the definition, over all pods.
    for (workload, found) in &workloads {
        let Some(selector) = &found.selector else { continue };
        for pod in inventory.pods_in(&workload.namespace) {
            let own = inventory.owner_of(pod).workload == *workload;
            assert_eq!(selector.matches(&pod.labels), own, "{workload} and {}", pod.name);
        }
    }
}

#[test]
fn two_workloads_with_equal_labels_have_no_selector_but_advice() {
    let text = "kind: Pod\nmetadata: {name: a, namespace: n, labels: {app: x}}\n---\nkind: Pod\nmetadata: {name: b, namespace: n, labels: {app: x}}\n";
    let inventory = Inventory::from_objects(read::objects(text, "f").unwrap().objects);
    for found in inventory.workloads().values() {
        assert_eq!(found.selector, None);
        assert!(found.advice.as_ref().unwrap().starts_with("no stable label tells n/Pod/"), "{found:?}");
    }
}

#[test]
fn slices_and_selectors_give_the_same_backends() {
    let (with, without) = (cluster(), Inventory::from_objects(objects(&["endpointslices"])));
    for service in with.services() {
        let backends = with.backends(service);
        let from_pods = without.backends(service);
        if service.selector.is_empty() {
            assert!(from_pods.is_empty());
        } else {
            assert_eq!(backends, from_pods, "{}", service.name);
            assert!(!backends.is_empty(), "{}", service.name);
        }
    }
    let manual = with.backends(with.service("data", "legacy-db").unwrap());
    assert_eq!(
        (manual.len(), manual[0].address.to_string().as_str(), manual[0].port, &manual[0].pod),
        (1, "203.0.113.40", 3306, &None)
    );
    let api = with.backends(with.service("default", "kubernetes").unwrap());
    assert_eq!((api[0].address.to_string().as_str(), api[0].port), ("192.0.2.2", 6443));
}

#[test]
fn virtual_addresses_lead_to_their_service_port() {
    let inventory = cluster();
    let target = |address: &str, port, protocol| match inventory.virtual_target(
        address.parse().unwrap(),
        port,
        protocol,
        None,
    ) {
        Some(VirtualTarget::Service { service, port }) => {
            format!("{}/{} {:?}", service.namespace, service.name, service.ports[port].name)
        }
        Some(VirtualTarget::NoSuchPort { service }) => format!("no port of {}", service.name),
        Some(VirtualTarget::HostPort { .. }) => "host port".to_owned(),
        None => "-".to_owned(),
    };
    for (address, port, protocol, expected) in [
        ("10.96.0.10", 53, Protocol::Udp, "kube-system/kube-dns Some(\"dns\")"),
        ("10.96.0.10", 53, Protocol::Tcp, "kube-system/kube-dns Some(\"dns-tcp\")"),
        ("10.96.0.10", 54, Protocol::Tcp, "no port of kube-dns"),
        ("192.0.2.11", 30443, Protocol::Tcp, "edge/gateway Some(\"https\")"),
        ("192.0.2.12", 30080, Protocol::Tcp, "edge/gateway Some(\"http\")"),
        ("192.0.2.12", 30081, Protocol::Tcp, "-"),
        ("10.244.1.24", 30080, Protocol::Tcp, "-"),
        ("10.96.227.44", 443, Protocol::Tcp, "edge/gateway Some(\"https\")"),
    ] {
        assert_eq!(target(address, port, protocol), expected, "{address}:{port}");
    }
}

#[test]
fn host_ports_lead_to_the_pod_on_that_node() {
    let text = "kind: Node\nmetadata: {name: n}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n---\nkind: Pod\nmetadata: {name: p}\n\
        spec: {nodeName: n, containers: [{ports: [{containerPort: 80, hostPort: 8080}]}]}\nstatus: {podIP: 10.0.0.1}\n";
    let inventory = Inventory::from_objects(read::objects(text, "f").unwrap().objects);
    let found = inventory.virtual_target("192.0.2.1".parse().unwrap(), 8080, Protocol::Tcp, None);
    assert!(matches!(found, Some(VirtualTarget::HostPort { port: 80, .. })), "{found:?}");
    assert_eq!(inventory.virtual_target("192.0.2.1".parse().unwrap(), 80, Protocol::Tcp, None), None);
}

#[test]
fn a_snapshot_of_the_recorded_cluster_lists_workloads_services_and_addresses() {
    let mut observer = Observer::new(ObserverConfig::new("node-a", "i", Timestamp::from_unix_seconds(0)));
    for object in objects(&[]) {
        observer.apply(Change::Apply(object), Timestamp::from_unix_seconds(0));
    }
    let snapshot = observer.snapshot(Timestamp::from_unix_seconds(60));
    let body = &snapshot.body;
    assert_eq!(
        body.workloads.len(),
        12,
        "{:?}",
        body.workloads.iter().map(|w| w.workload.to_string()).collect::<Vec<_>>()
    );
    assert_eq!(body.services.len(), 10);
    assert_eq!(body.coverage.nodes.expected.len(), 2);
    let exporter = body.workloads.iter().find(|w| w.workload.name == "node-exporter").unwrap();
    assert!(exporter.host_network);
    let node = body.addresses.iter().find(|a| a.address.to_string() == "192.0.2.11").unwrap();
    assert_eq!(node.peer.to_string(), "node/node-a");
    let gateway = body.addresses.iter().find(|a| a.address.to_string() == "10.244.1.1").unwrap();
    assert_eq!(gateway.peer.to_string(), "node/node-a", "the first host address of a pod range is the node's");
    assert!(
        observer.is_server_address("192.0.2.11".parse().unwrap(), 9100, Protocol::Tcp),
        "a host-network pod's declared port"
    );
    assert!(
        observer.is_server_address("10.244.1.23".parse().unwrap(), 3001, Protocol::Tcp),
        "an endpoint's port that no container declares"
    );
    assert_eq!(guardrail_graph::Snapshot::from_json(&snapshot.to_json(), "f").unwrap(), snapshot);
}
