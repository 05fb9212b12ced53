//! What a person declares (`--declare`, `--ignore-client`) holds, or the export says why it does
//! not.

mod generate_support;

use std::collections::BTreeSet;

use generate_support::Scenario;
use guardrail_policy::export::{self, Exported};

/// `web` calls `addresses` outside, each under `names`; `export` and `rest` are more of the
/// scenario.
fn scenario(addresses: u32, names: &[&str], export: serde_json::Value, rest: serde_json::Value) -> Scenario {
    let mut all = serde_json::json!({
        "about": "a shop that calls a payment provider",
        "export": {"phase": "default-deny", "egress": true},
        "nodes": {"node-a": ["192.0.2.1"]},
        "workloads": {
            "shop/Deployment/web": {
                "labels": {"app": "web"}, "pods": {"web-1": {"node": "node-a", "addresses": ["10.244.0.5"]}},
            },
            "shop/Deployment/search": {
                "labels": {"app": "search"}, "pods": {"search-1": {"node": "node-a", "addresses": ["10.244.0.6"]}},
            },
            "shop/DaemonSet/agent": {
                "labels": {"app": "agent"}, "host_network": true,
                "pods": {"agent-1": {"node": "node-a", "addresses": ["192.0.2.1"]}},
            },
        },
        "edges": [
            {"edge": "shop/Deployment/web -> 203.0.113.10 443", "names": names, "addresses": addresses},
            {"edge": "shop/Deployment/search -> shop/Deployment/web 80"},
        ],
    });
    for (into, more) in [("export", export), ("", rest)] {
        let place = if into.is_empty() { &mut all } else { &mut all[into] };
        place.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    }
    serde_json::from_value(all).unwrap()
}

fn export(scenario: &Scenario) -> Exported<'static> {
    let generated = export::export(&scenario.snapshot(), &scenario.options()).into_owned();
    assert!(generated.problems.is_empty(), "{:?}", generated.problems);
    for warning in &generated.warnings {
        assert!(generated.all_files()["REPORT.md"].contains(warning), "in the report too: {warning}");
    }
    generated
}

fn blocks(generated: &Exported<'_>) -> BTreeSet<String> {
    let text = &generated.files["shop.guardrail-allow-deployment-web.yaml"];
    let (_, egress) = text.split_once("egress:").unwrap();
    egress
        .lines()
        .filter_map(|line| line.split_once("cidr: "))
        .map(|(_, cidr)| cidr.trim_matches('"').to_owned())
        .collect()
}

fn set<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(str::to_owned).into()
}

/// Warnings that speak of an option.
fn said<'a>(generated: &'a Exported<'_>) -> Vec<&'a str> {
    let said = ["in the snapshot", "declare", "--ignore-client"];
    generated.warnings.iter().map(String::as_str).filter(|w| said.iter().any(|part| w.contains(part))).collect()
}

#[test]
fn a_declared_range_holds_for_any_number_of_addresses_and_any_name_of_theirs() {
    for addresses in [1, 2, 8, 9, 200] {
        for names in [&["payments.example.com"][..], &["a.cdn.example.net", "payments.example.com", "z.example.org"]] {
            let declare =
                serde_json::json!({"declare": {"payments.example.com": ["203.0.113.0/24", "2001:db8:9::/48"]}});
            let generated = export(&scenario(addresses, names, declare, serde_json::json!({})));
            let expected = set(["203.0.113.0/24", "2001:db8:9::/48"]);
            assert_eq!(blocks(&generated), expected, "{addresses} addresses of {names:?}");
            assert_eq!(said(&generated), [] as [&str; 0]);
        }
    }
}

#[test]
fn what_lies_outside_of_the_declared_ranges_is_a_rule_of_its_own_and_is_said() {
    let declare = serde_json::json!({"declare": {"payments.example.com": ["203.0.113.10/31"]}});
    let generated = export(&scenario(6, &["payments.example.com"], declare.clone(), serde_json::json!({})));
    let singles = ["203.0.113.12/32", "203.0.113.13/32", "203.0.113.14/32", "203.0.113.15/32"];
    assert_eq!(blocks(&generated), set(singles).into_iter().chain(set(["203.0.113.10/31"])).collect());
    assert_eq!(
        said(&generated),
        [
            "payments.example.com was reached at 203.0.113.12, 203.0.113.13, 203.0.113.14 and 1 more, outside of the ranges declared for it"
        ]
    );
    let generated = export(&scenario(40, &["payments.example.com"], declare, serde_json::json!({})));
    assert_eq!(blocks(&generated), set(["0.0.0.0/0", "203.0.113.10/31", "::/0"]));
}

#[test]
fn a_declared_range_around_the_pods_leaves_them_out_or_says_that_it_cannot() {
    let declare = serde_json::json!({"declare": {"payments.example.com": ["0.0.0.0/1", "128.0.0.0/1"]}});
    let known = serde_json::json!({"pod_ranges": ["10.244.0.0/16"]});
    let generated = export(&scenario(1, &["payments.example.com"], declare.clone(), known));
    assert!(generated.files["shop.guardrail-allow-deployment-web.yaml"].contains("except"));
    assert_eq!(said(&generated), [] as [&str; 0]);
    let generated = export(&scenario(1, &["payments.example.com"], declare, serde_json::json!({})));
    assert_eq!(
        said(&generated),
        [
            "the ranges declared for payments.example.com hold addresses of pods, whose range is not known: give --inventory"
        ]
    );
}

#[test]
fn a_declared_name_that_nobody_asked_for_is_said_with_the_nearest() {
    for (name, expected) in [
        (
            "paymnets.example.com",
            "no external name paymnets.example.com in the snapshot; did you mean payments.example.com?",
        ),
        ("git.internal", "no external name git.internal in the snapshot"),
    ] {
        let declare = serde_json::json!({"declare": {name: ["203.0.113.0/24"]}});
        let generated = export(&scenario(1, &["payments.example.com"], declare, serde_json::json!({})));
        assert_eq!(said(&generated), [expected]);
    }
    let declare = serde_json::json!({"egress": false, "declare": {"payments.example.com": ["203.0.113.0/24"]}});
    let generated = export(&scenario(1, &["payments.example.com"], declare, serde_json::json!({})));
    assert_eq!(said(&generated), ["the ranges declared for payments.example.com have no effect without --egress"]);
}

#[test]
fn a_client_to_be_ignored_that_is_none_is_said_with_the_nearest() {
    for (client, expected) in [
        ("shop/serach", Some("no client shop/serach in the snapshot; did you mean shop/search?")),
        (
            "shop/deployment/serach",
            Some("no client shop/deployment/serach in the snapshot; did you mean shop/Deployment/search?"),
        ),
        ("shp/search", Some("no client shp/search in the snapshot; did you mean shop/search?")),
        ("shop/StatefulSet/search", Some("no client shop/StatefulSet/search in the snapshot")),
        ("data/worker", Some("no client data/worker in the snapshot")),
        (
            "shop/agent",
            Some(
                "shop/agent uses the host's network, so its connections are those of its nodes: --ignore-client leaves none of them out",
            ),
        ),
        ("shop/search", None),
        ("shop/Deployment/web", None),
    ] {
        let export_options = serde_json::json!({"ignore_clients": [client]});
        let generated = export(&scenario(1, &[], export_options, serde_json::json!({})));
        assert_eq!(said(&generated), expected.into_iter().collect::<Vec<_>>(), "{client}");
    }
    let silent = serde_json::json!({"edges": [{"edge": "shop/Deployment/web -> shop/Deployment/search 80"}]});
    let generated = export(&scenario(1, &[], serde_json::json!({"ignore_clients": ["shop/search"]}), silent));
    assert_eq!(said(&generated), ["shop/search called nobody in the snapshot: --ignore-client has no effect"]);
}
