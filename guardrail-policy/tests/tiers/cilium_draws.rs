//! Random policies of Cilium's kinds.

use super::*;

/// A selector with sources, derived labels, or a namespace.
fn cilium_selector(draw: &mut Choices<'_>) -> Value {
    let mut selector = selector_of(draw, &["app", "k8s:tier", "any:app.kubernetes.io/name", "pod-template-hash"]);
    let mut label = |key: &str, value: &str| selector["matchLabels"][key] = json!(value);
    match draw.below(12) {
        0 => label("k8s:io.kubernetes.pod.namespace", draw.one(&NAMESPACES)),
        1 => label("io.cilium.k8s.policy.serviceaccount", draw.one(&ACCOUNTS)),
        2 => label("k8s:io.cilium.k8s.namespace.labels.app", draw.one(&VALUES)),
        3 => label("io.cilium.k8s.policy.cluster", draw.one(&["default", "mesh"])),
        4 => {
            let key = ["k8s:io.kubernetes.pod.namespace", "io.cilium.k8s.namespace.labels.tier"];
            let expression = expression(draw, &key, &["blue", "a", "green"]);
            selector["matchExpressions"] = json!([expression]);
        }
        _ => {}
    }
    selector
}

pub(super) fn cilium_policy(
    draw: &mut Choices<'_>,
    name: &str,
    namespaced: bool,
    options: &BTreeMap<String, String>,
) -> Value {
    let version = options.get("version").map_or("", String::as_str);
    let mut metadata = object(vec![("name", json!(name))]);
    if namespaced {
        metadata["namespace"] = json!(draw.one(&NAMESPACES));
    }
    let kind = if namespaced { "CiliumNetworkPolicy" } else { "CiliumClusterwideNetworkPolicy" };
    let mut policy = object(vec![("apiVersion", json!("cilium.io/v2")), ("kind", json!(kind)), ("metadata", metadata)]);
    if draw.rarely(5) {
        policy["specs"] = json!(draw.some(2, |d| cilium_spec(d, namespaced, version)));
    }
    if policy.get("specs").is_none() || draw.rarely(2) {
        policy["spec"] = cilium_spec(draw, namespaced, version);
    }
    policy
}

fn cilium_spec(draw: &mut Choices<'_>, namespaced: bool, version: &str) -> Value {
    let nodes = !namespaced && draw.rarely(3);
    let mut spec = if nodes {
        object(vec![("nodeSelector", selector_of(draw, &KEYS[..2]))])
    } else {
        object(vec![("endpointSelector", cilium_selector(draw))])
    };
    let mut any = false;
    for (list, direction, deny) in
        [("ingress", "from", false), ("ingressDeny", "from", true), ("egress", "to", false), ("egressDeny", "to", true)]
    {
        if draw.below(if deny { 3 } else { 4 }) < if deny { 1 } else { 3 } {
            let rules = draw.few(|d| cilium_rule(d, direction, deny, version));
            any |= !rules.is_empty();
            spec[list] = json!(rules);
        }
    }
    if !any {
        spec["ingress"] = json!([cilium_rule(draw, "from", false, version)]);
    }
    if draw.rarely(3) {
        spec["enableDefaultDeny"] = draw.one(&[
            json!({"ingress": false}),
            json!({"egress": false}),
            json!({"ingress": false, "egress": false}),
            json!({"ingress": true, "egress": true}),
        ]);
    }
    spec
}

fn cilium_rule(draw: &mut Choices<'_>, word: &str, deny: bool, version: &str) -> Value {
    let mut rule = Map::new();
    let egress = word == "to";
    if version == "1.18" && draw.rarely(8) {
        // It allows nothing alone, and holds for the other rules of the subject.
        return json!({format!("{word}Requires"): [cilium_selector(draw)]});
    }
    let kind = draw.below(12);
    let (field, peers) = match kind {
        0..4 => ("Endpoints", draw.few(cilium_peer)),
        4 => ("CIDR", draw.few(|d| json!(d.one(&BLOCKS).0))),
        5 => ("CIDRSet", draw.few(cidr_set)),
        6 | 7 => ("Entities", draw.few(|d| json!(d.one(&ENTITIES)))),
        8 if draw.rarely(2) => ("Nodes", draw.list(2, |d| selector_of(d, &KEYS[..2]))),
        8 if !deny => ("Groups", vec![json!({"aws": {"securityGroupsIds": ["sg-1"]}})]),
        9 if egress => ("Services", draw.some(2, service)),
        10 if egress && !deny => (
            "FQDNs",
            draw.some(2, |d| {
                if d.rarely(2) {
                    json!({"matchName": d.one(&HOST_NAMES)})
                } else {
                    json!({"matchPattern": d.one(&PATTERNS)})
                }
            }),
        ),
        _ => ("", Vec::new()),
    };
    if !field.is_empty() {
        rule.insert(format!("{word}{field}"), json!(peers));
    }
    match draw.below(8) {
        0..4 => {
            let mut item = object(vec![("ports", json!(draw.some(2, cilium_port)))]);
            if !deny && draw.rarely(5) {
                item = json!({
                    "ports": [{"port": draw.one(&PORTS).to_string(), "protocol": "TCP"}],
                    "rules": {"http": [{"method": "GET"}]},
                });
            }
            rule.insert("toPorts".to_owned(), json!([item]));
        }
        4 => {
            let field = draw.one(&[
                json!({"type": 8}),
                json!({"type": 128, "family": "IPv6"}),
                json!({"type": 0, "family": "IPv4"}),
            ]);
            rule.insert("icmps".to_owned(), json!([{"fields": [field]}]));
        }
        _ => {}
    }
    Value::Object(rule)
}

fn cilium_peer(draw: &mut Choices<'_>) -> Value {
    if draw.rarely(10) {
        return json!({"matchLabels": {format!("reserved:{}", draw.one(&["host", "world", "health"])): ""}});
    }
    cilium_selector(draw)
}

fn cidr_set(draw: &mut Choices<'_>) -> Value {
    let (cidr, except) = draw.one(&BLOCKS);
    match draw.below(5) {
        0 => json!({"cidrGroupRef": draw.one(&["one", "two", "none"]), "except": except}),
        1 => json!({"cidrGroupSelector": selector_of(draw, &KEYS[..2])}),
        2 => json!({"cidr": cidr}),
        _ => json!({"cidr": cidr, "except": except}),
    }
}

fn service(draw: &mut Choices<'_>) -> Value {
    let (namespace, name) =
        draw.one(&[("blue", "web"), ("green", "outer"), ("default", "kubernetes"), ("blue", "none")]);
    match draw.below(3) {
        0 => json!({"k8sServiceSelector": {"selector": selector_of(draw, &KEYS[..2])}}),
        1 => json!({"k8sServiceSelector": {"selector": selector_of(draw, &KEYS[..2]), "namespace": namespace}}),
        _ => json!({"k8sService": {"serviceName": name, "namespace": namespace}}),
    }
}

fn cilium_port(draw: &mut Choices<'_>) -> Value {
    let mut port = match draw.below(6) {
        0..3 => json!({"port": draw.one(&PORTS).to_string()}),
        3 => json!({"port": draw.one(&PORT_NAMES)}),
        4 => {
            let start = draw.one(&PORTS[..4]);
            json!({"port": start.to_string(), "endPort": start + draw.one(&[1, 500])})
        }
        _ => json!({"port": "0"}),
    };
    if draw.rarely(2) {
        port["protocol"] = json!(draw.one(&["TCP", "UDP", "SCTP", "ANY"]));
    }
    port
}
