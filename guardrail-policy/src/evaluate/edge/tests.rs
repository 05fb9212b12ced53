//! Edges of a snapshot: replicas, own nodes, named ports with several numbers, many clients.

use guardrail_graph::Snapshot;

use super::*;
use crate::{evaluate::Cluster, read};

fn snapshot() -> Snapshot {
    let workload = |ns: &str, owner: &str, name: &str, pods: &str| {
        format!(
            r#"{{"namespace":"{ns}","owner":"{owner}","name":"{name}","selector":{{"matchLabels":{{"app":"{name}"}}}},"labels":{{"app":"{name}"}},"pods":{{{pods}}}}}"#
        )
    };
    let pod = |name: &str, address: &str, port: &str| {
        format!(r#"{{"name":"{name}","addresses":["{address}"],"ports":[{port}]}}"#)
    };
    let http = |n: u16| format!(r#"{{"name":"http","protocol":"TCP","port":{n}}}"#);
    let db = format!(r#""n1":[{}],"n2":[{}]"#, pod("db-0", "10.0.1.1", ""), pod("db-1", "10.0.2.1", ""));
    let web =
        format!(r#""n1":[{}],"n2":[{}]"#, pod("web-1", "10.0.1.2", &http(80)), pod("web-2", "10.0.2.2", &http(8080)));
    let workloads = [
        workload("a", "CronJob", "job", ""),
        workload("a", "Deployment", "web", &web),
        workload("a", "StatefulSet", "db", &db),
    ];
    let text = format!(
        r#"{{"apiVersion":"guardrail.dev/v2","kind":"GraphSnapshot","window":{{"from":null,"to":null,"nodes":{{}}}},
        "coverage":{{"complete":true,"nodes":{{"observed":[],"expected":[]}},"losses":[],"unresolved":[],"workloads":[]}},
        "workloads":[{}],"services":[],"addresses":[{{"address":"192.168.0.1","from":null,"to":null,"peer":{{"kind":"Node","name":"n1"}}}}],
        "service_flows":[],"edges":[]}}"#,
        workloads.join(",")
    );
    Snapshot::from_json(&text, "s.json").unwrap()
}

fn evaluator(spec: &str) -> Evaluator {
    let text = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: a}}, spec: {spec}}}"
    );
    let policies = read::policies("p.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{e}")).policies;
    Evaluator::new(Cluster::default().with_snapshot(&snapshot()), policies)
}

fn peer(owner: &str, name: &str) -> Peer {
    Peer::Workload(WorkloadRef { namespace: "a".to_owned(), owner: owner.to_owned(), name: name.to_owned() })
}

fn edge(client: &Peer, server: &Peer, port: u16, name: Option<&str>, seen: &[(&str, &str)]) -> EdgeRecord {
    let sources: Vec<serde_json::Value> = seen
        .iter()
        .map(|(node, side)| {
            serde_json::json!({"source":{"node":node,"instance":"i"},"side":side,"opened":1,"found":0,"refused":0,"unanswered":0,"unreachable":0,
                "bytes_sent":0,"bytes_received":0,"first_seen":"2026-01-01T00:00:00Z","last_seen":"2026-01-01T00:00:00Z"})
        })
        .collect();
    serde_json::from_value(serde_json::json!({"client":client,"server":server,"protocol":"TCP","port":port,"port_name":name,"via":[],"seen_by":[],
        "opened":1,"found":0,"refused":0,"unanswered":0,"unreachable":0,"bytes_sent":0,"bytes_received":0,"first_seen":"2026-01-01T00:00:00Z",
        "last_seen":"2026-01-01T00:00:00Z","supported":true,"marks":[],"sources":sources}))
    .unwrap()
}

#[test]
fn replicas_of_one_workload_are_judged_and_not_taken_for_one_pod() {
    let db = peer("StatefulSet", "db");
    let closed = evaluator("{}");
    assert!(!closed.evaluate_peers(&db, &db, Protocol::Tcp, 5432).unwrap().any_allowed());
    let open = evaluator("{ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}");
    assert!(open.evaluate_peers(&db, &db, Protocol::Tcp, 5432).unwrap().allowed());
}

#[test]
fn an_edge_is_allowed_only_if_it_is_for_every_replica() {
    let (db, web) = (peer("StatefulSet", "db"), peer("Deployment", "web"));
    let half = evaluator("{ingress: [{from: [{ipBlock: {cidr: 10.0.1.0/24}}]}]}");
    let verdict = half.evaluate_peers(&db, &web, Protocol::Tcp, 80).unwrap();
    assert!(!verdict.allowed() && verdict.any_allowed(), "{verdict:?}");
}

#[test]
fn a_named_port_is_judged_at_the_replicas_that_have_the_observed_number() {
    let (db, web) = (peer("StatefulSet", "db"), peer("Deployment", "web"));
    let named = evaluator("{ingress: [{ports: [{port: http}]}]}");
    for port in [80, 8080] {
        assert!(named.evaluate_edge(&edge(&db, &web, port, Some("http"), &[])).unwrap().allowed(), "{port}");
    }
    assert!(!named.evaluate_edge(&edge(&db, &web, 9090, None, &[])).unwrap().allowed());
}

#[test]
fn a_node_is_exempt_only_towards_pods_that_were_seen_on_it() {
    let (node, web) = (Peer::Node { name: "n1".to_owned() }, peer("Deployment", "web"));
    let closed = evaluator("{policyTypes: [Ingress, Egress]}");
    let allowed = |edge: &EdgeRecord| closed.evaluate_edge(edge).unwrap().allowed();
    assert!(allowed(&edge(&node, &web, 80, None, &[("n1", "server"), ("n1", "client")])));
    assert!(!allowed(&edge(&node, &web, 80, None, &[("n1", "client"), ("n2", "server")])));
    assert!(!allowed(&edge(&node, &web, 80, None, &[("n1", "client")])));
    assert!(allowed(&edge(&web, &node, 10250, None, &[("n1", "client")])));
    let open = evaluator("{ingress: [{from: [{ipBlock: {cidr: 192.168.0.1/32}}]}]}");
    assert!(open.evaluate_peers(&node, &web, Protocol::Tcp, 80).unwrap().allowed());
}

#[test]
fn many_external_clients_need_a_rule_for_the_whole_outside() {
    let web = peer("Deployment", "web");
    let whole = evaluator("{ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}]}]}");
    assert!(whole.evaluate_peers(&Peer::many(), &web, Protocol::Tcp, 80).unwrap().allowed());
    let part = evaluator("{ingress: [{from: [{ipBlock: {cidr: 8.0.0.0/8}}]}]}");
    assert!(!part.evaluate_peers(&Peer::many(), &web, Protocol::Tcp, 80).unwrap().allowed());
}

#[test]
fn a_workload_without_live_pods_is_judged_by_its_labels_and_an_unknown_one_is_not_judged() {
    let web = peer("Deployment", "web");
    let open = evaluator("{ingress: [{from: [{podSelector: {matchLabels: {app: job}}}]}]}");
    assert!(open.evaluate_peers(&peer("CronJob", "job"), &web, Protocol::Tcp, 80).unwrap().allowed());
    assert!(open.evaluate_peers(&peer("CronJob", "other"), &web, Protocol::Tcp, 80).is_err());
}
