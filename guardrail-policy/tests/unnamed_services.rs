//! Uses of a Service of which nobody knows who answered, beside others of which that is known.

#[path = "../../guardrail-graph/tests/common/mod.rs"]
mod common;

use std::collections::BTreeSet;

use common::{CLUSTER, Lab, apply_text, pod, t, tcp_client, tcp_server};
use guardrail_graph::{Observer, ObserverConfig, Snapshot, snapshot::merge};
use guardrail_policy::{
    export,
    generate::{Options, Phase},
};

const DAY: i64 = 86_400;

fn service(pod: &str, address: &str) -> String {
    format!("---
kind: Service
metadata: {{name: api, namespace: shop}}
spec: {{clusterIP: 10.96.0.7, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
kind: EndpointSlice
apiVersion: discovery.k8s.io/v1
addressType: IPv4
metadata: {{name: api-1, namespace: shop, labels: {{kubernetes.io/service-name: api}}}}
ports: [{{name: http, protocol: TCP, port: 8080}}]
endpoints:
- {{addresses: [{address}], nodeName: node-b, conditions: {{ready: true}}, targetRef: {{kind: Pod, name: {pod}-5d9c-0, namespace: shop}}}}
")
}

/// What is said of an export of two days: on the first `blue` is behind the Service, and its record
/// names the client; on the second this pod is.
fn said(of_second_day: &str, is_on_record: bool) -> BTreeSet<String> {
    let address = if of_second_day == "green" { "10.244.2.5" } else { "10.244.2.4" };
    let pods = [("web", "node-a", "10.244.1.2"), ("blue", "node-b", "10.244.2.4"), ("green", "node-b", "10.244.2.5")];
    let pods = pods.map(|(name, node, address)| pod("shop", name, 0, node, address, &[])).concat();
    let mut labs = ["node-a", "node-b"].map(|node| {
        let mut observer = Observer::new(ObserverConfig::new(node, node, t(0)));
        apply_text(&mut observer, &format!("{CLUSTER}{pods}{}", service("blue", "10.244.2.4")), t(0));
        Lab { observer, now: t(0) }
    });
    labs[0].pod_cgroup(1, "web", 0);
    labs[1].pod_cgroup(2, "blue", 0);
    labs[1].pod_cgroup(3, "green", 0);
    labs[0].at(100).flow(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(100)));
    labs[1].at(100).flow(tcp_server(2, "10.244.2.4", "10.244.1.2", 8080, t(100)));
    let mut all: Vec<Snapshot> = labs.iter_mut().map(|lab| lab.observer.turn(&[], t(DAY)).snapshot()).collect();
    let at = DAY + 3_600;
    for lab in &mut labs {
        lab.at(DAY + 10).apply(&service(of_second_day, address));
        lab.at(at);
    }
    labs[0].flow(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(at)));
    if is_on_record {
        labs[1].flow(tcp_server(3, address, "10.244.1.2", 8080, t(at)));
    }
    all.extend(labs.iter_mut().map(|lab| lab.at(2 * DAY).snapshot()));
    let options = Options { egress: true, ..Options::new(Phase::DefaultDeny) };
    export::export(&merge(all), &options).problems.iter().map(|problem| problem.message.clone()).collect()
}

#[test]
fn a_use_of_a_service_is_named_by_records_of_its_time_and_by_no_others() {
    let problems = said("green", false);
    let named = problems.iter().any(|said| said.contains("--accept 'shop/Deployment/web->shop/svc/api:80/TCP'"));
    assert!(named, "{problems:?}");
    assert_eq!(said("green", true), BTreeSet::new());
    // Whoever it was, it is allowed.
    assert_eq!(said("blue", false), BTreeSet::new());
}
