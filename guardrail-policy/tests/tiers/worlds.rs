//! Random clusters and policies of all dialects, as objects. They are drawn from a list of numbers,
//! so that a failing one shrinks to a short list.

mod cilium_draws;

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::{Map, Value, json};

use self::cilium_draws::cilium_policy;
use super::naive::World;

/// Numbers to draw from; when they are used up, the first choice is taken everywhere.
pub(crate) struct Choices<'a> {
    rest: std::slice::Iter<'a, u16>,
}

impl<'a> Choices<'a> {
    pub(crate) fn new(numbers: &'a [u16]) -> Self {
        Self { rest: numbers.iter() }
    }

    /// From 0, less than `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::from(*self.rest.next().unwrap_or(&0)) % limit
    }

    pub(crate) fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// One time in `of`.
    fn rarely(&mut self, of: usize) -> bool {
        self.below(of) == of - 1
    }

    fn list<T>(&mut self, limit: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.below(limit);
        (0..count).map(|_| item(self)).collect()
    }

    /// Mostly not empty.
    fn few<T>(&mut self, item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        if self.rarely(10) { Vec::new() } else { self.some(2, item) }
    }

    fn some<T>(&mut self, limit: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = 1 + self.below(limit);
        (0..count).map(|_| item(self)).collect()
    }
}

const NAMESPACES: [&str; 2] = ["blue", "green"];
const NODES: [(&str, &str); 2] = [("n1", "192.168.0.1"), ("n2", "192.168.0.2")];
const KEYS: [&str; 4] = ["app", "tier", "app.kubernetes.io/name", "pod-template-hash"];
const VALUES: [&str; 2] = ["a", "b"];
const ACCOUNTS: [&str; 2] = ["default", "robot"];
pub(crate) const PORTS: [u16; 4] = [80, 81, 53, 8080];
pub(crate) const PROTOCOLS: [&str; 8] = ["TCP", "UDP", "SCTP", "TCP", "TCP", "UDP", "ICMP", "ICMPv6"];
pub(crate) const TYPES: [u16; 4] = [8, 0, 128, 3];
const PORT_NAMES: [&str; 2] = ["http", "dns"];
const OUTSIDE: [&str; 5] = ["203.0.113.9", "203.0.113.10", "198.51.100.1", "2001:db8::7", "192.168.9.9"];
const HOST_NAMES: [&str; 4] = ["example.org", "a.example.org", "b.a.example.org", "api.other.net"];
const PATTERNS: [&str; 5] = ["*.example.org", "**.example.org", "*", "a*.example.org", "api.*.net"];
const BLOCKS: [(&str, &[&str]); 8] = [
    ("0.0.0.0/0", &["203.0.113.0/24"]),
    ("203.0.113.0/24", &["203.0.113.9/32"]),
    ("203.0.113.8/30", &["203.0.113.10/32"]),
    ("10.0.0.0/24", &["10.0.0.2/32"]),
    ("192.168.0.0/16", &["192.168.0.2/32"]),
    ("2001:db8::/32", &["2001:db8::/64"]),
    ("::/0", &["2001:db8::7/128"]),
    ("198.51.100.1/32", &[]),
];
const ENTITIES: [&str; 11] = [
    "all",
    "world",
    "cluster",
    "host",
    "remote-node",
    "kube-apiserver",
    "ingress",
    "init",
    "health",
    "unmanaged",
    "none",
];

fn object(fields: Vec<(&str, Value)>) -> Value {
    Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())
}

/// A cluster and its policies, and the names of ends that can be asked about.
pub(crate) fn world(draw: &mut Choices<'_>) -> (World, Vec<String>) {
    let mut world = World { cilium: options(draw), ..World::default() };
    let mut ends: Vec<String> = Vec::new();
    objects(draw, &mut world, &mut ends);
    for index in 0..2 + draw.below(7) {
        let name = format!("p{index}");
        let policy = match draw.below(if world.cilium.is_some() { 10 } else { 5 }) {
            0 | 1 => network_policy(draw, &name),
            2 => cluster_policy(draw, &name),
            3 => admin_policy(draw, &name),
            4 if world.policies.iter().any(|p| p["kind"] == "BaselineAdminNetworkPolicy") => {
                cluster_policy(draw, &name)
            }
            4 => baseline_policy(draw),
            kind => cilium_policy(draw, &name, kind < 8, world.cilium.as_ref().unwrap()),
        };
        world.policies.push(policy);
    }
    world.all_names = !draw.rarely(4);
    if draw.below(4) > 0 {
        let names = draw.list(5, |d| (d.one(&HOST_NAMES).to_owned(), d.one(&OUTSIDE[..4]).parse::<IpAddr>().unwrap()));
        world.names = names;
    }
    ends.extend(OUTSIDE.iter().chain(NODES.iter().map(|(_, address)| address)).map(|e| (*e).to_owned()));
    ends.extend(["reserved:world", "reserved:health", "reserved:ingress"].map(str::to_owned));
    (world, ends)
}

/// Options of Cilium's agent, or none: a data plane that follows the API.
fn options(draw: &mut Choices<'_>) -> Option<BTreeMap<String, String>> {
    if draw.rarely(3) {
        return None;
    }
    let mut options = BTreeMap::new();
    let mut set = |key: &str, value: &str| options.insert(key.to_owned(), value.to_owned());
    if draw.rarely(3) {
        set("enable-policy", draw.one(&["default", "default", "default", "always", "always", "never"]));
    } else if draw.rarely(3) {
        set("enable-host-firewall", "true");
    }
    if draw.rarely(5) {
        set("allow-localhost", "policy");
    }
    if draw.rarely(4) {
        set("policy-cidr-match-mode", draw.one(&["nodes", "pods", "nodes,pods"]));
    }
    if draw.rarely(3) {
        set("version", draw.one(&["1.18", "1.16", "1.19"]));
    }
    if draw.rarely(5) {
        set("cluster-name", "mesh");
    }
    if draw.rarely(4) {
        set(
            "labels",
            draw.one(&["k8s:!tier", "k8s:app", "app tier k8s:!app\\.kubernetes\\.io/name", "pod-template-hash"]),
        );
    }
    set("enable-node-selector-labels", "true");
    Some(options)
}

fn objects(draw: &mut Choices<'_>, world: &mut World, ends: &mut Vec<String>) {
    for name in NAMESPACES {
        let labels = labels(draw);
        world
            .objects
            .push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}));
    }
    for (name, address) in NODES {
        world.objects.push(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels(draw)},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        }));
    }
    for index in 0..2 + draw.below(5) {
        let (namespace, (node, node_address)) = (draw.one(&NAMESPACES), draw.one(&NODES));
        let host = draw.rarely(6);
        let address = if host { node_address.to_owned() } else { format!("10.0.0.{}", index + 1) };
        let mut ports = draw.list(3, |d| (d.one(&PORT_NAMES), d.one(&PROTOCOLS[..3]), d.one(&PORTS)));
        ports.sort_unstable();
        ports.dedup_by_key(|(name, protocol, _)| (*name, *protocol));
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "containerPort": port}))
            .collect();
        world.objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": format!("pod{index}"), "labels": labels(draw)},
            "spec": {
                "nodeName": node, "hostNetwork": host, "serviceAccountName": draw.one(&ACCOUNTS),
                "containers": [{"name": "c", "image": "i", "ports": ports}],
            },
            "status": {"podIP": address, "podIPs": [{"ip": address}], "phase": "Running"},
        }));
        // Pods are asked about most.
        ends.extend(vec![format!("{namespace}/pod{index}"); 3]);
        ends.push(address);
    }
    let mut service = |namespace: &str, name: &str, labels: Value, selector: Option<Value>, addresses: &[&str]| {
        let mut spec = object(vec![
            ("clusterIP", json!("None")),
            ("ports", json!([{"name": "x", "port": 80, "protocol": "TCP"}])),
        ]);
        if let Some(selector) = selector {
            spec["selector"] = selector;
        }
        let metadata = json!({"namespace": namespace, "name": name, "labels": labels});
        world.objects.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}));
        for (family, is) in [("IPv4", false), ("IPv6", true)] {
            let own: Vec<Value> = addresses
                .iter()
                .filter(|a| a.contains(':') == is)
                .map(|a| json!({"addresses": [a], "conditions": {"ready": true}}))
                .collect();
            if !own.is_empty() {
                world.objects.push(json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                    "metadata": {
                        "namespace": namespace, "name": format!("{name}-{}", family.to_lowercase()),
                        "labels": {"kubernetes.io/service-name": name},
                    },
                    "endpoints": own, "ports": [{"name": "x", "port": 6443, "protocol": "TCP"}],
                }));
            }
        }
    };
    if !draw.rarely(5) {
        let addresses = draw.one(&[&["192.168.0.1"][..], &["198.51.100.1"], &["192.168.0.2", "198.51.100.1"]]);
        service("default", "kubernetes", json!({}), None, addresses);
    }
    if draw.rarely(2) {
        service("blue", "web", labels(draw), Some(json!({"app": draw.one(&VALUES)})), &[]);
    }
    if draw.rarely(2) {
        let addresses = draw.some(2, |d| d.one(&["203.0.113.9", "10.0.0.1", "192.168.0.2", "2001:db8::7"]));
        service("green", "outer", labels(draw), None, &addresses);
    }
    if draw.rarely(2) {
        for name in ["one", "two"] {
            let ranges = draw.some(2, |d| d.one(&BLOCKS).0);
            world.objects.push(json!({
                "apiVersion": "cilium.io/v2alpha1", "kind": "CiliumCIDRGroup",
                "metadata": {"name": name, "labels": labels(draw)}, "spec": {"externalCIDRs": ranges},
            }));
        }
    }
}

fn labels(draw: &mut Choices<'_>) -> Value {
    let labels = draw.list(5, |d| (d.one(&KEYS).to_owned(), json!(d.one(&VALUES))));
    Value::Object(labels.into_iter().collect())
}

/// A selector over some of these keys.
fn selector_of(draw: &mut Choices<'_>, keys: &[&str]) -> Value {
    let mut selector = Map::new();
    let labels = draw.list(2, |d| (d.one(keys).to_owned(), json!(d.one(&VALUES))));
    if !labels.is_empty() {
        selector.insert("matchLabels".to_owned(), Value::Object(labels.into_iter().collect()));
    }
    if draw.rarely(4) {
        let expression = expression(draw, keys, &VALUES);
        selector.insert("matchExpressions".to_owned(), json!([expression]));
    }
    Value::Object(selector)
}

fn expression(draw: &mut Choices<'_>, keys: &[&str], values: &[&str]) -> Value {
    let key = draw.one(keys);
    match draw.one(&["In", "NotIn", "Exists", "DoesNotExist"]) {
        operator @ ("In" | "NotIn") => {
            json!({"key": key, "operator": operator, "values": draw.some(2, |d| d.one(values))})
        }
        operator => json!({"key": key, "operator": operator}),
    }
}

fn selector(draw: &mut Choices<'_>) -> Value {
    selector_of(draw, &KEYS)
}

fn namespace_selector(draw: &mut Choices<'_>) -> Value {
    if draw.rarely(3) {
        json!({"matchLabels": {"kubernetes.io/metadata.name": draw.one(&NAMESPACES)}})
    } else {
        selector_of(draw, &KEYS[..2])
    }
}

// -- NetworkPolicy --

fn network_policy(draw: &mut Choices<'_>, name: &str) -> Value {
    let mut spec = object(vec![("podSelector", selector(draw))]);
    if draw.rarely(2) {
        spec["policyTypes"] = draw.one(&[json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]);
    }
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        if draw.rarely(2) {
            spec[list] = json!(draw.few(|d| network_policy_rule(d, peers)));
        }
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": draw.one(&NAMESPACES), "name": name}, "spec": spec,
    })
}

fn network_policy_rule(draw: &mut Choices<'_>, field: &str) -> Value {
    let mut rule = Map::new();
    if draw.below(4) > 0 {
        let peers = draw.few(|d| match d.below(4) {
            0 => json!({"podSelector": selector(d)}),
            1 => json!({"namespaceSelector": namespace_selector(d)}),
            2 => json!({"namespaceSelector": namespace_selector(d), "podSelector": selector(d)}),
            _ => json!({"ipBlock": block(d)}),
        });
        rule.insert(field.to_owned(), json!(peers));
    }
    if draw.rarely(2) {
        let ports = draw.few(|d| {
            let mut port = Map::new();
            if d.rarely(2) {
                port.insert("protocol".to_owned(), json!(d.one(&PROTOCOLS[..3])));
            }
            match d.below(4) {
                0 | 1 => drop(port.insert("port".to_owned(), json!(d.one(&PORTS)))),
                2 => {
                    let first = d.one(&PORTS);
                    port.insert("port".to_owned(), json!(first));
                    port.insert("endPort".to_owned(), json!(first.saturating_add(d.one(&[0, 1, 500]))));
                }
                _ => drop(port.insert("port".to_owned(), json!(d.one(&PORT_NAMES)))),
            }
            Value::Object(port)
        });
        rule.insert("ports".to_owned(), json!(ports));
    }
    Value::Object(rule)
}

fn block(draw: &mut Choices<'_>) -> Value {
    let (cidr, except) = draw.one(&BLOCKS);
    if draw.rarely(2) { json!({"cidr": cidr, "except": except}) } else { json!({"cidr": cidr}) }
}

// -- The kinds with tiers --

fn pod_like(draw: &mut Choices<'_>) -> Value {
    if draw.rarely(2) {
        json!({"namespaces": namespace_selector(draw)})
    } else {
        json!({"pods": {"namespaceSelector": namespace_selector(draw), "podSelector": selector(draw)}})
    }
}

fn admin_peer(draw: &mut Choices<'_>, egress: bool, accepts: bool) -> Value {
    match draw.below(if !egress {
        3
    } else if accepts {
        6
    } else {
        5
    }) {
        0..3 => pod_like(draw),
        3 => json!({"networks": draw.some(2, |d| d.one(&BLOCKS).0)}),
        4 => json!({"nodes": selector_of(draw, &KEYS[..2])}),
        _ => json!({"domainNames": draw.some(2, |d| d.one(&["example.org", "*.example.org", "a.example.org"]))}),
    }
}

fn cluster_policy(draw: &mut Choices<'_>, name: &str) -> Value {
    let mut spec = object(vec![
        ("tier", json!(draw.one(&["Admin", "Baseline"]))),
        ("priority", json!(draw.below(4))),
        ("subject", pod_like(draw)),
    ]);
    for (list, field) in [("ingress", "from"), ("egress", "to")] {
        let rules = draw.list(4, |d| {
            let action = d.one(&["Accept", "Deny", "Pass"]);
            let mut rule = object(vec![
                ("action", json!(action)),
                (field, json!(d.some(2, |d| admin_peer(d, field == "to", action == "Accept")))),
            ]);
            let protocols = d.list(3, |d| {
                let single = json!({"destinationPort": {"number": d.one(&PORTS)}});
                let start = d.one(&PORTS[..4]);
                let range = json!({"destinationPort": {"range": {"start": start, "end": start + d.one(&[1, 500])}}});
                match d.below(5) {
                    0 => json!({"tcp": single}),
                    1 => json!({"udp": range}),
                    2 => json!({"sctp": single}),
                    3 => json!({"tcp": range}),
                    _ => json!({"destinationNamedPort": d.one(&PORT_NAMES)}),
                }
            });
            if !protocols.is_empty() {
                rule["protocols"] = json!(protocols);
            }
            rule
        });
        spec[list] = json!(rules);
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name}, "spec": spec,
    })
}

fn v1alpha1_rules(draw: &mut Choices<'_>, spec: &mut Value, actions: &[&str]) {
    for (list, field) in [("ingress", "from"), ("egress", "to")] {
        let rules = draw.list(4, |d| {
            let action = d.one(actions);
            let mut rule = object(vec![
                ("action", json!(action)),
                (field, json!(d.some(2, |d| admin_peer(d, field == "to", action == "Allow")))),
            ]);
            let ports = d.list(3, |d| {
                let (protocol, start) = (d.one(&PROTOCOLS[..3]), d.one(&PORTS[..4]));
                match d.below(3) {
                    0 => json!({"portNumber": {"protocol": protocol, "port": start}}),
                    1 => json!({"portRange": {"protocol": protocol, "start": start, "end": start + d.one(&[1, 500])}}),
                    _ => json!({"namedPort": d.one(&PORT_NAMES)}),
                }
            });
            if !ports.is_empty() {
                rule["ports"] = json!(ports);
            }
            rule
        });
        spec[list] = json!(rules);
    }
}

fn admin_policy(draw: &mut Choices<'_>, name: &str) -> Value {
    let mut spec = object(vec![("priority", json!(draw.below(4))), ("subject", pod_like(draw))]);
    v1alpha1_rules(draw, &mut spec, &["Allow", "Deny", "Pass"]);
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicy",
        "metadata": {"name": name}, "spec": spec,
    })
}

fn baseline_policy(draw: &mut Choices<'_>) -> Value {
    let mut spec = object(vec![("subject", pod_like(draw))]);
    v1alpha1_rules(draw, &mut spec, &["Allow", "Deny"]);
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "BaselineAdminNetworkPolicy",
        "metadata": {"name": "default"}, "spec": spec,
    })
}

// -- Cilium --
