//! The first plan is a valid one, with and without its suggestions, whatever names the snapshot
//! has.

use std::sync::Arc;

use guardrail_graph::{Peer, Snapshot, WorkloadRef};
use guardrail_lifecycle::{
    init::{Images, first_plan},
    plan,
};
use guardrail_policy::generate::Phase;

const SHOP: &str = include_str!("../../guardrail-cli/tests/data/shop.json");

fn shop() -> Snapshot {
    Snapshot::from_json(SHOP, "shop.json").unwrap()
}

/// Every suggestion taken.
fn uncommented(text: &str) -> String {
    let line = |line: &str| match line.split_once("# ") {
        Some((indent, rest)) if indent.trim().is_empty() && !indent.is_empty() => {
            let key = rest.split(':').next().unwrap_or_default();
            let is_key =
                rest.contains(':') && key.chars().all(|c| c.is_ascii_alphabetic()) && !rest.starts_with("Meant");
            if rest.starts_with("- ") || is_key { format!("{indent}{rest}\n") } else { format!("{line}\n") }
        }
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn what_runs_the_cluster_is_left_alone_and_dns_is_for_everybody() {
    let text = first_plan(&shop(), &Images::new(), Some("prod-eu"));
    let plan = plan::read("guardrail.yaml", text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(plan.environments.keys().collect::<Vec<_>>(), ["development", "production", "staging"]);
    for (name, phase) in
        [("development", Phase::DefaultDeny), ("staging", Phase::Constrain), ("production", Phase::Observe)]
    {
        let environment = plan.environment(name).unwrap();
        assert_eq!(environment.wanted("shop").phase, phase);
        assert_eq!(environment.wanted("kube-system").phase, Phase::Observe);
        assert!(environment.sensitive.is_empty(), "sensitive workloads are suggested, not switched on");
    }
    assert_eq!(plan.environment("production").unwrap().context.as_deref(), Some("prod-eu"));
    assert_eq!(plan.shared.len(), 1);
    assert_eq!(plan.shared[0].workload.to_string(), "kube-system/Deployment/coredns");
    assert_eq!(plan.shared[0].ports.iter().map(ToString::to_string).collect::<Vec<_>>(), ["53/TCP", "53/UDP"]);
    assert!(text.contains("# - data/StatefulSet/postgres  # serves PostgreSQL at 5432"), "{text}");
}

#[test]
fn every_suggestion_can_be_taken() {
    let text = uncommented(&first_plan(&shop(), &Images::new(), None));
    let plan = plan::read("guardrail.yaml", text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(plan.environment("production").unwrap().sensitive.len(), 1);
    assert_eq!(plan.environment("staging").unwrap().context.as_deref(), Some("staging"));
}

#[test]
fn who_reads_the_metrics_of_many_is_a_caller_and_who_is_called_by_many_may_be_shared() {
    let mut snapshot = shop();
    let edge = snapshot.body.edges.iter().find(|edge| edge.port == 9090).unwrap().clone();
    let workload = |namespace: &str, name: &str| {
        Peer::Workload(WorkloadRef { namespace: namespace.into(), owner: "Deployment".into(), name: name.into() })
    };
    for (namespace, name) in [("a", "one"), ("b", "two"), ("c", "three")] {
        let mut scrape = edge.clone();
        scrape.server.peer = workload(namespace, name).into();
        let mut call = edge.clone();
        call.client.peer = workload(namespace, name).into();
        call.server.peer = workload("shop", "mailer").into();
        call.port = 8025;
        snapshot.body.edges.extend([scrape, call]);
    }
    let text = first_plan(&snapshot, &Images::new(), None);
    let plan = plan::read("guardrail.yaml", text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(plan.callers.len(), 1);
    assert_eq!(plan.callers[0].workload.to_string(), "monitoring/StatefulSet/prometheus");
    assert!(text.contains("prometheus}  # reads metrics of 4 workloads"), "{text}");
    // Four: the frontend in its own namespace calls it, too.
    assert!(
        text.contains("# - {workload: shop/Deployment/mailer, ports: [8025/TCP]}  # called from 4 namespaces"),
        "{text}"
    );
}

#[test]
fn no_name_breaks_out_of_its_place() {
    for evil in ["a: b", "x\n  callers: []", "y # z", "*alias", "\"", "null", "-", "ä", "[", "1"] {
        let mut snapshot = shop();
        for entry in &mut snapshot.body.workloads {
            entry.workload.name = evil.to_owned();
        }
        for edge in &mut snapshot.body.edges {
            for peer in [&mut edge.client.peer, &mut edge.server.peer] {
                if let Peer::Workload(workload) = Arc::make_mut(peer) {
                    workload.name = evil.to_owned();
                }
            }
        }
        for text in [
            first_plan(&snapshot, &Images::new(), Some(evil)),
            uncommented(&first_plan(&snapshot, &Images::new(), None)),
        ] {
            plan::read("guardrail.yaml", text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"));
        }
    }
}
