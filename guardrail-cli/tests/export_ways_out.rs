//! Nothing blocks for ever: what a problem names as the way out works when it is typed as printed,
//! in a shell.

#[path = "../../guardrail-policy/tests/generate_support/mod.rs"]
mod generate_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use generate_support::{Scenario, peer};
use guardrail_graph::{
    Protocol, Snapshot, Timestamp,
    snapshot::{FlowTime, Source, UnresolvedEntry, UnresolvedFlow},
};

/// Exit code and standard error of an export with these arguments, as a shell takes them.
fn export(directory: &Path, args: &str) -> (Option<i32>, String) {
    let guardrail = env!("CARGO_BIN_EXE_guardrail");
    let always = "--phase default-deny --min-window 0s -d out";
    let line = format!("rm -rf out; exec '{guardrail}' export s.json {always} {args}");
    let output = Command::new("sh").current_dir(directory).args(["-c", &line]).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Every `OPTION 'VALUE'` in what was said, as printed.
fn printed(said: &str, option: &str) -> Vec<String> {
    let option = format!("{option} '");
    let one = |(at, _): (usize, &str)| {
        let mut end = at + option.len();
        loop {
            end += said[end..].find('\'').unwrap() + 1;
            // A quote that stands for itself is written as '\''.
            match said[end..].starts_with("\\''") {
                true => end += 3,
                false => return said[at..end].to_owned(),
            }
        }
    };
    said.match_indices(&option).map(one).collect()
}

fn scenario(edges: &[&str]) -> Snapshot {
    let pod = |node: &str, address: &str| serde_json::json!({"node": node, "addresses": [address]});
    let edges: Vec<_> = edges.iter().map(|edge| serde_json::json!({"edge": edge, "seen": ["server@node-a"]})).collect();
    let scenario: Scenario = serde_json::from_value(serde_json::json!({
        "about": "flows that no rule can name",
        "export": {"phase": "default-deny"},
        "nodes": {"node-a": ["192.0.2.1"]},
        "workloads": {
            "shop/Deployment/api": {"labels": {"app": "api"}, "pods": {"api-1": pod("node-a", "10.244.0.6")}},
            "shop/Pod/odd:name.x": {"pods": {"odd": pod("node-a", "10.244.0.7")}},
            "shop/Pod/it's $(touch pwned) `touch pwned`": {"pods": {"odder": pod("node-a", "10.244.0.8")}},
            "ops/Deployment/ui": {"labels": {"app": "ui"}, "pods": {"ui-1": pod("node-a", "10.244.0.9")}},
        },
        "edges": edges,
    }))
    .unwrap();
    scenario.snapshot()
}

const INVENTORY: &str = "kind: Node\nmetadata: {name: node-a}\nspec: {podCIDRs: [10.244.0.0/24, 'fd00:244::/64']}\n\
                         status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n";

/// One flow of each kind of end that no rule can name.
const NAMELESS: [&str; 6] = [
    "node/ip-10-0-0-9.ec2.internal -> shop/Deployment/api 8080",
    "10.244.0.99 -> shop/Deployment/api 8080",
    "fd00:244::99 -> shop/Deployment/api 8080/UDP",
    "shop/Pod/odd:name.x -> shop/Deployment/api 8080",
    "gone/TaskRun/once -> shop/Deployment/api 8080",
    "shop/Pod/it's $(touch pwned) `touch pwned` -> shop/Deployment/api 8080",
];

#[test]
fn a_flow_of_every_kind_of_end_is_accepted_as_its_problem_prints_it() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("i.yaml"), INVENTORY).unwrap();
    for edge in NAMELESS {
        fs::write(directory.path().join("s.json"), scenario(&[edge]).to_json()).unwrap();
        let (code, said) = export(directory.path(), "--inventory i.yaml");
        assert_eq!(code, Some(1), "{edge}: {said}");
        let accept = printed(&said, "--accept");
        assert_eq!(accept.len(), 1, "{edge}: {said}");
        let (code, said) = export(directory.path(), &format!("--inventory i.yaml {}", accept[0]));
        assert_eq!(code, Some(0), "{edge}, {}: {said}", accept[0]);
    }
    assert!(!directory.path().join("pwned").exists());
}

#[test]
fn flows_between_ends_that_are_known_by_address_alone_are_accepted_as_printed_too() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("i.yaml"), INVENTORY).unwrap();
    for client in ["10.244.0.99", "fd00:244::99", "node/ip-10-0-0-9.ec2.internal", "shop/Pod/odd:name.x", "*"] {
        let mut snapshot = scenario(&[]);
        let at = |seconds: i64| Timestamp::from_unix_seconds(1_700_000_000 + seconds);
        let flow = UnresolvedFlow {
            client: peer(client),
            server: peer("shop/Deployment/api"),
            protocol: Protocol::Tcp,
            port: 8080,
            time: FlowTime { first_seen: at(10), last_seen: at(20) },
        };
        snapshot.body.coverage.unresolved.push(UnresolvedEntry {
            source: Source { node: "node-a".into(), instance: "agent-node-a".into(), start: None },
            reason: "ip_reuse".into(),
            count: 1,
            examples: [].into(),
            flows: Some(vec![flow]),
            more: false,
        });
        fs::write(directory.path().join("s.json"), snapshot.to_json()).unwrap();
        let (code, said) = export(directory.path(), "--inventory i.yaml");
        assert_eq!(code, Some(1), "{client}: {said}");
        let accept = printed(&said, "--accept");
        assert!(!accept.is_empty(), "{client}: {said}");
        let (code, said) = export(directory.path(), &format!("--inventory i.yaml {}", accept[0]));
        assert_eq!(code, Some(0), "{client}, {}: {said}", accept[0]);
    }
}

#[test]
fn an_inventory_that_has_it_ends_what_a_node_without_a_known_address_stops_and_a_range_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("i.yaml"), INVENTORY).unwrap();
    fs::write(path("s.json"), scenario(&NAMELESS[..1]).to_json()).unwrap();
    // Where the node is nobody knows: what a person says of others makes no rule for it.
    for range in ["", "--node-range 10.0.0.0/16"] {
        let (code, said) = export(directory.path(), &format!("--inventory i.yaml {range}"));
        assert!(code == Some(1) && said.contains("an --inventory FILE that has the node; or leave it"), "{said}");
        assert!(!said.contains("--node-range CIDR"), "{said}");
    }
    let node = "kind: Node\nmetadata: {name: ip-10-0-0-9.ec2.internal}\n\
                status: {addresses: [{type: InternalIP, address: 10.0.0.9}]}\n";
    fs::write(path("j.yaml"), node).unwrap();
    let (code, said) = export(directory.path(), "--inventory i.yaml --inventory j.yaml");
    assert_eq!(code, Some(0), "{said}");
    let api = path("out/shop.guardrail-allow-deployment-api.yaml");
    assert!(fs::read_to_string(api).unwrap().contains("10.0.0.9/32"));
}

#[test]
fn a_node_that_nobody_observed_is_named_with_the_option_for_those_that_nobody_can() {
    let directory = tempfile::tempdir().unwrap();
    let mut snapshot = scenario(&["ops/Deployment/ui -> shop/Deployment/api 8080"]);
    let body = &mut snapshot.body;
    body.coverage.nodes.expected.insert("fargate-1".to_owned());
    body.coverage.complete = false;
    let api = body.workloads.iter_mut().find(|w| w.workload.name == "api").unwrap();
    let pods: BTreeMap<_, _> =
        std::mem::take(&mut api.pods).into_values().map(|p| ("fargate-1".to_owned(), p)).collect();
    api.pods = pods;
    body.nodes = serde_json::from_value(serde_json::json!([
        {"name": "fargate-1", "labels": {"compute": "fargate", "kubernetes.io/hostname": "fargate-1"},
         "from": "2023-11-14T22:13:20Z", "to": "2023-11-14T22:15:00Z"},
        {"name": "node-a", "labels": {}, "from": "2023-11-14T22:13:20Z", "to": "2023-11-14T22:15:00Z"},
    ]))
    .unwrap();
    fs::write(directory.path().join("s.json"), snapshot.to_json()).unwrap();
    let (code, said) = export(directory.path(), "");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("node_unobserved:fargate-1") && said.contains("--unobservable-nodes SELECTOR"), "{said}");
    let (code, said) = export(directory.path(), "--unobservable-nodes compute=fargate");
    assert_eq!(code, Some(0), "{said}");
}
