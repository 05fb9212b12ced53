//! A second evaluator, deliberately naive: it follows the words of the Kubernetes documentation pod
//! by pod and rule by rule, with nothing compiled, interned or shared. It works on its own types
//! and renders them as YAML, so that the reader is under test too.

use std::{collections::BTreeMap, fmt::Write, net::IpAddr};

pub(crate) type Labels = BTreeMap<&'static str, &'static str>;

#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: &'static str,
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) node: Option<&'static str>,
    pub(crate) host_network: bool,
    pub(crate) ports: Vec<(&'static str, &'static str, u16)>,
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) namespaces: BTreeMap<&'static str, Labels>,
    pub(crate) nodes: BTreeMap<&'static str, Vec<IpAddr>>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) policies: Vec<Policy>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Selector {
    pub(crate) labels: Labels,
    /// key, operator, values
    pub(crate) expressions: Vec<(&'static str, &'static str, Vec<&'static str>)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) namespace: &'static str,
    pub(crate) name: String,
    pub(crate) pods: Option<Selector>,
    pub(crate) types: Option<Vec<&'static str>>,
    /// `None`: the field is missing.
    pub(crate) ingress: Option<Vec<Rule>>,
    pub(crate) egress: Option<Vec<Rule>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) peers: Option<Vec<Peer>>,
    pub(crate) ports: Option<Vec<Port>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Peer {
    Pods(Selector),
    Namespaces(Selector),
    Both(Selector, Selector),
    Block(&'static str, Vec<&'static str>),
}

#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) protocol: Option<&'static str>,
    pub(crate) port: Option<Number>,
    pub(crate) end: Option<u16>,
}

#[derive(Clone, Debug)]
pub(crate) enum Number {
    Int(u16),
    Name(&'static str),
}

/// One end: a pod by index, or an address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Pod(usize),
    Address(IpAddr),
}

impl World {
    pub(crate) fn allowed(&self, src: End, dst: End, protocol: &str, port: u16) -> bool {
        let (src, dst) = (self.resolve(src), self.resolve(dst));
        if let (Some(a), Some(b)) = (src.pod, dst.pod)
            && std::ptr::eq(a, b)
        {
            return true;
        }
        for (pod, other) in [(&src, &dst), (&dst, &src)] {
            if let (Some(pod), Some(node)) = (pod.pod, other.node)
                && pod.node == Some(node)
            {
                return true;
            }
        }
        self.direction_allows("Egress", &src, &dst, &dst, protocol, port)
            && self.direction_allows("Ingress", &dst, &src, &dst, protocol, port)
    }

    fn resolve(&self, end: End) -> Resolved<'_> {
        match end {
            End::Pod(index) => {
                let pod = &self.pods[index];
                if pod.host_network {
                    Resolved { pod: None, node: pod.node, addresses: pod.addresses.clone() }
                } else {
                    Resolved { pod: Some(pod), node: None, addresses: pod.addresses.clone() }
                }
            }
            End::Address(address) => {
                let pod = self.pods.iter().find(|p| !p.host_network && p.addresses.contains(&address));
                let node = self.nodes.iter().find(|(_, own)| own.contains(&address)).map(|(n, _)| *n);
                Resolved { pod, node: if pod.is_some() { None } else { node }, addresses: vec![address] }
            }
        }
    }

    fn direction_allows(
        &self,
        direction: &str,
        own: &Resolved<'_>,
        other: &Resolved<'_>,
        server: &Resolved<'_>,
        protocol: &str,
        port: u16,
    ) -> bool {
        let Some(pod) = own.pod else { return true };
        let mut isolated = false;
        for policy in &self.policies {
            if policy.namespace != pod.namespace
                || !policy.pods.as_ref().is_none_or(|s| s.matches(&pod.labels))
                || !policy.has_type(direction)
            {
                continue;
            }
            isolated = true;
            let rules = if direction == "Ingress" { &policy.ingress } else { &policy.egress };
            for rule in rules.iter().flatten() {
                let peers = rule.peers.as_deref().unwrap_or_default();
                let ports = rule.ports.as_deref().unwrap_or_default();
                let peer_ok = peers.is_empty() || peers.iter().any(|p| self.peer_matches(p, policy, own, other));
                let port_ok = ports.is_empty() || ports.iter().any(|p| p.matches(server.pod, protocol, port));
                if peer_ok && port_ok {
                    return true;
                }
            }
        }
        !isolated
    }

    fn peer_matches(&self, peer: &Peer, policy: &Policy, own: &Resolved<'_>, other: &Resolved<'_>) -> bool {
        let namespace_labels = |pod: &Pod| {
            let mut labels = self.namespaces[pod.namespace].clone();
            labels.insert("kubernetes.io/metadata.name", pod.namespace);
            labels
        };
        match (peer, other.pod) {
            (Peer::Pods(pods), Some(pod)) => pod.namespace == policy.namespace && pods.matches(&pod.labels),
            (Peer::Namespaces(namespaces), Some(pod)) => namespaces.matches(&namespace_labels(pod)),
            (Peer::Both(namespaces, pods), Some(pod)) => {
                namespaces.matches(&namespace_labels(pod)) && pods.matches(&pod.labels)
            }
            (Peer::Block(cidr, except), _) => {
                // The family in which the two ends speak; here every dual-stack pod has its IPv4
                // address first.
                let six = |ends: &Resolved<'_>| ends.addresses.iter().any(IpAddr::is_ipv6);
                let four = |ends: &Resolved<'_>| ends.addresses.iter().any(IpAddr::is_ipv4);
                let address = if four(own) && four(other) {
                    other.addresses.iter().find(|a| a.is_ipv4())
                } else if six(own) && six(other) {
                    other.addresses.iter().find(|a| a.is_ipv6())
                } else {
                    other.addresses.first()
                };
                address.is_some_and(|a| within(*a, cidr) && !except.iter().any(|e| within(*a, e)))
            }
            (_, None) => false,
        }
    }
}

struct Resolved<'a> {
    pod: Option<&'a Pod>,
    node: Option<&'static str>,
    addresses: Vec<IpAddr>,
}

impl Policy {
    fn has_type(&self, direction: &str) -> bool {
        match &self.types {
            Some(types) if !types.is_empty() => types.contains(&direction),
            _ => direction == "Ingress" || self.egress.as_ref().is_some_and(|e| !e.is_empty()),
        }
    }
}

impl Selector {
    fn matches(&self, labels: &Labels) -> bool {
        let mut all = true;
        for (key, value) in &self.labels {
            all &= labels.get(key) == Some(value);
        }
        for (key, operator, values) in &self.expressions {
            let has = labels.get(key);
            all &= match *operator {
                "In" => has.is_some() && values.contains(has.unwrap()),
                "NotIn" => has.is_none() || !values.contains(has.unwrap()),
                "Exists" => has.is_some(),
                "DoesNotExist" => has.is_none(),
                other => panic!("{other}"),
            };
        }
        all
    }

    fn yaml(&self) -> String {
        let labels: Vec<String> = self.labels.iter().map(|(k, v)| format!("{k}: \"{v}\"")).collect();
        let expressions = self.expressions.iter().map(|(k, o, v)| {
            let values = if v.is_empty() { String::new() } else { format!(", values: [{}]", v.join(", ")) };
            format!("{{key: {k}, operator: {o}{values}}}")
        });
        let expressions: Vec<String> = expressions.collect();
        match (labels.is_empty(), expressions.is_empty()) {
            (true, true) => "{}".to_owned(),
            (_, true) => format!("{{matchLabels: {{{}}}}}", labels.join(", ")),
            _ => format!("{{matchLabels: {{{}}}, matchExpressions: [{}]}}", labels.join(", "), expressions.join(", ")),
        }
    }
}

impl Port {
    fn matches(&self, server: Option<&Pod>, protocol: &str, port: u16) -> bool {
        if self.protocol.unwrap_or("TCP") != protocol {
            return false;
        }
        match (&self.port, self.end) {
            (None, _) => true,
            (Some(Number::Int(number)), None) => *number == port,
            (Some(Number::Int(number)), Some(end)) => *number <= port && port <= end,
            (Some(Number::Name(name)), _) => {
                let Some(pod) = server else { return false };
                pod.ports.iter().any(|(n, p, number)| n == name && *p == protocol && *number == port)
            }
        }
    }
}

/// By hand, on purpose: compares the leading bits one by one.
fn within(address: IpAddr, cidr: &str) -> bool {
    let (network, length) = cidr.split_once('/').unwrap();
    let length: usize = length.parse().unwrap();
    let bits = |a: IpAddr| -> Vec<bool> {
        let bytes = match a {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        bytes.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1 == 1)).collect()
    };
    let (a, n) = (bits(address), bits(network.parse().unwrap()));
    a.len() == n.len() && a[..length] == n[..length]
}

/// The policies as a file.
pub(crate) fn yaml(policies: &[Policy]) -> String {
    let mut out = String::new();
    for policy in policies {
        let _ = writeln!(out, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy");
        let _ = writeln!(out, "metadata: {{name: {}, namespace: {}}}\nspec:", policy.name, policy.namespace);
        match &policy.pods {
            Some(selector) => drop(writeln!(out, "  podSelector: {}", selector.yaml())),
            None => drop(writeln!(out, "  podSelector: null")),
        }
        if let Some(types) = &policy.types {
            let _ = writeln!(out, "  policyTypes: [{}]", types.join(", "));
        }
        for (field, peers, rules) in [("ingress", "from", &policy.ingress), ("egress", "to", &policy.egress)] {
            if let Some(rules) = rules {
                let rules: Vec<String> = rules.iter().map(|r| rule(r, peers)).collect();
                let _ = writeln!(out, "  {field}: [{}]", rules.join(", "));
            }
        }
    }
    out
}

fn rule(rule: &Rule, peers_field: &str) -> String {
    let peer = |peer: &Peer| match peer {
        Peer::Pods(s) => format!("{{podSelector: {}}}", s.yaml()),
        Peer::Namespaces(s) => format!("{{namespaceSelector: {}}}", s.yaml()),
        Peer::Both(n, p) => format!("{{namespaceSelector: {}, podSelector: {}}}", n.yaml(), p.yaml()),
        Peer::Block(cidr, except) => {
            let except: Vec<String> = except.iter().map(|e| format!("\"{e}\"")).collect();
            format!("{{ipBlock: {{cidr: \"{cidr}\", except: [{}]}}}}", except.join(", "))
        }
    };
    let port = |port: &Port| {
        let mut fields = Vec::new();
        fields.extend(port.protocol.map(|p| format!("protocol: {p}")));
        fields.extend(port.port.as_ref().map(|p| match p {
            Number::Int(n) => format!("port: {n}"),
            Number::Name(n) => format!("port: {n}"),
        }));
        fields.extend(port.end.map(|e| format!("endPort: {e}")));
        format!("{{{}}}", fields.join(", "))
    };
    let mut fields = Vec::new();
    if let Some(peers) = &rule.peers {
        fields.push(format!("{peers_field}: [{}]", peers.iter().map(peer).collect::<Vec<_>>().join(", ")));
    }
    if let Some(ports) = &rule.ports {
        fields.push(format!("ports: [{}]", ports.iter().map(port).collect::<Vec<_>>().join(", ")));
    }
    format!("{{{}}}", fields.join(", "))
}
