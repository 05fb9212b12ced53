//! Policies are compared by meaning: order, repetition and the way rules are split are no drift.

use guardrail_lifecycle::drift::{DRIFT_RULES, same_meaning};
use guardrail_policy::{model::tier::TierPolicy, read};

fn policy(spec: &str) -> TierPolicy {
    let text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    );
    TierPolicy::from(&read::policies("p.yaml", text.as_bytes()).unwrap().policies[0])
}

const SPEC: &str = "{podSelector: {matchExpressions: [{key: a, operator: In, values: [x, y]}, {key: b, operator: Exists}]}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}}], ports: [{port: 80}, {port: 443}]}]}";

#[test]
fn another_order_or_another_split_is_the_same() {
    for other in [
        SPEC.to_owned(),
        SPEC.replace("values: [x, y]", "values: [y, x, x]"),
        SPEC.replace("[{key: a, operator: In, values: [x, y]}, {key: b, operator: Exists}]", "[{key: b, operator: Exists}, {key: a, operator: In, values: [x, y]}]"),
        SPEC.replace("[{port: 80}, {port: 443}]", "[{port: 443}, {port: 80, protocol: TCP}, {port: 80, endPort: 80}]"),
        SPEC.replace("except: [10.1.0.0/16, 10.2.0.0/16]", "except: [10.2.0.0/16, 10.1.0.0/16]"),
        // A rule for each port.
        SPEC.replace(
            "ports: [{port: 80}, {port: 443}]}]",
            "ports: [{port: 443}]}, {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}}, {podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}]",
        ),
        SPEC.replace("ingress:", "policyTypes: [Ingress], ingress:"),
        // A rule for nobody.
        SPEC.replace("ingress: [", "ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}, "),
    ] {
        assert!(same_meaning(&policy(SPEC), &policy(&other)), "{other}");
    }
}

#[test]
fn another_peer_port_subject_or_direction_is_not() {
    for other in [
        SPEC.replace("app: web", "app: api"),
        SPEC.replace("{port: 443}", "{port: 444}"),
        SPEC.replace("{port: 443}", "{port: 443, protocol: UDP}"),
        SPEC.replace("{port: 443}", "{port: 443, endPort: 445}"),
        SPEC.replace("values: [x, y]", "values: [x]"),
        SPEC.replace("10.2.0.0/16]", "10.3.0.0/16]"),
        SPEC.replace("ingress:", "policyTypes: [Ingress, Egress], ingress:"),
        SPEC.replace(", ports: [{port: 80}, {port: 443}]", ""),
        SPEC.replace("{podSelector: {matchLabels: {app: web}}}", "{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}"),
        // The ports of one peer are not the other's.
        SPEC.replace(
            "[{from: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}}], ports: [{port: 80}, {port: 443}]}]",
            "[{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}, {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}}], ports: [{port: 443}]}]",
        ),
    ] {
        assert_ne!(other, SPEC);
        assert!(!same_meaning(&policy(SPEC), &policy(&other)), "{other}");
    }
}

#[test]
fn ids_are_in_order_and_each_stands_once() {
    let ids: Vec<&str> = DRIFT_RULES.iter().map(|rule| rule.id).collect();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(ids, sorted);
}
