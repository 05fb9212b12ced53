//! External servers by the names that were asked for, as far as these are known.

mod generate_support;

use generate_support::Scenario;
use guardrail_policy::export::export;

/// What web may call outside, after it called an address by so many names.
fn allowed(names: usize) -> (Vec<String>, bool) {
    let pod = |address: &str| serde_json::json!({"node": "node-a", "addresses": [address]});
    let names: Vec<String> = (0..names).map(|n| format!("n{n}.example.com")).collect();
    let scenario: Scenario = serde_json::from_value(serde_json::json!({
        "about": "names",
        "export": {"phase": "default-deny", "format": "cilium", "cilium": {}, "egress": true},
        "nodes": {"node-a": ["192.0.2.1"]},
        "workloads": {
            "shop/Deployment/web": {"labels": {"app": "web"}, "pods": {"web-1": pod("10.244.0.5")}},
            "kube-system/Deployment/dns": {"labels": {"app": "dns"}, "pods": {"dns-1": pod("10.244.0.6")}},
        },
        "edges": [
            {"edge": "shop/Deployment/web -> kube-system/Deployment/dns 53/UDP"},
            {"edge": "shop/Deployment/web -> 203.0.113.9 443", "names": names},
        ],
    }))
    .unwrap();
    let (snapshot, options) = (scenario.snapshot(), scenario.options());
    let exported = export(&snapshot, &options);
    let text = &exported.files["shop.guardrail-allow-deployment-web.yaml"];
    let named = text.lines().filter_map(|line| line.split_once("matchName: ")).map(|(_, name)| name.to_owned());
    (named.collect(), text.contains("203.0.113.9/32"))
}

#[test]
fn an_address_of_which_some_names_may_be_forgotten_is_allowed_itself_too() {
    for (names, by_address) in [(1, false), (7, false), (8, true), (20, true)] {
        let (named, is_allowed) = allowed(names);
        assert_eq!((named.len(), is_allowed), (names, by_address), "{named:?}");
    }
}
