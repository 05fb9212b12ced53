//! A second evaluator for policies of all dialects, deliberately naive: it reads the source objects
//! as JSON, field by field, each time that it is asked, and follows the words of the documentation.
//! Nothing is compiled, defaulted beforehand or shared with the crate under test.
//!
//! What nobody can know (an address that no name was resolved to, which of two policies of one
//! priority wins) is tried both ways: an answer that depends on it is unproven.

mod cilium;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde_json::Value;

/// A cluster with its policies, as objects.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    /// Namespaces, Nodes, Pods, Services, EndpointSlices, CiliumCIDRGroups.
    pub(crate) objects: Vec<Value>,
    pub(crate) policies: Vec<Value>,
    pub(crate) names: Vec<(String, IpAddr)>,
    /// There are no other names.
    pub(crate) all_names: bool,
    /// Options of Cilium's agent; `None`: the Kubernetes API to the letter.
    pub(crate) cilium: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Answer {
    Allow,
    Deny,
    Unproven,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Egress,
    Ingress,
}

impl Side {
    fn word(self) -> &'static str {
        if self == Self::Ingress { "ingress" } else { "egress" }
    }
}

/// A connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow<'a> {
    pub(crate) src: &'a str,
    pub(crate) dst: &'a str,
    pub(crate) protocol: &'a str,
    pub(crate) port: u16,
}

/// What an end is.
#[derive(Clone, Debug, Default)]
struct End<'a> {
    /// A pod that is not on the host network.
    pod: Option<&'a Value>,
    /// The node that it is.
    node: Option<&'a Value>,
    /// `reserved:NAME`.
    entity: Option<&'a str>,
    address: Option<IpAddr>,
}

impl End<'_> {
    fn is_node(&self) -> bool {
        self.node.is_some() || matches!(self.entity, Some("host" | "remote-node"))
    }

    fn is_world(&self) -> bool {
        self.pod.is_none() && !self.is_node() && matches!(self.entity, None | Some("world"))
    }
}

/// A question that the objects do not answer.
struct Open(String);
type Known<T> = Result<T, Open>;
type Guesses = BTreeMap<String, bool>;

/// Everything that a rule is asked about.
struct Asked<'a> {
    side: Side,
    own: End<'a>,
    other: End<'a>,
    server: End<'a>,
    protocol: &'a str,
    port: u16,
    guesses: &'a Guesses,
}

impl Asked<'_> {
    fn guess(&self, key: String) -> Known<bool> {
        self.guesses.get(&key).copied().ok_or(Open(key))
    }
}

/// The field, unless it is absent or null.
fn get<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let found = path.split('.').try_fold(value, |value, field| value.get(field))?;
    (!found.is_null()).then_some(found)
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    get(value, path).and_then(Value::as_str).unwrap_or("")
}

fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    get(value, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn number(value: &Value, path: &str) -> Option<u16> {
    get(value, path).and_then(Value::as_u64).map(|n| u16::try_from(n).unwrap())
}

/// One of several, asking about each until one says yes.
fn any<T>(list: impl IntoIterator<Item = T>, mut asks: impl FnMut(T) -> Known<bool>) -> Known<bool> {
    for item in list {
        if asks(item)? {
            return Ok(true);
        }
    }
    Ok(false)
}

impl World {
    fn of_kind(&self, kind: &'static str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |o| text(o, "kind") == kind)
    }

    fn option(&self, key: &str) -> &str {
        self.cilium.as_ref().and_then(|o| o.get(key)).map_or("", String::as_str)
    }

    /// Whether the release is this one or a later one; without a version it is the latest.
    fn since(&self, minor: u16) -> bool {
        match self.option("version").split_once('.') {
            Some(("1", known)) => known.parse::<u16>().unwrap() >= minor,
            _ => true,
        }
    }

    fn resolve<'a>(&'a self, name: &'a str) -> End<'a> {
        if let Some(entity) = name.strip_prefix("reserved:") {
            return End { entity: Some(entity), ..End::default() };
        }
        let node_of =
            |pod: &Value| self.of_kind("Node").find(|n| text(n, "metadata.name") == text(pod, "spec.nodeName"));
        let of_pod = |pod: &'a Value| {
            let address = text(pod, "status.podIP").parse().ok();
            if get(pod, "spec.hostNetwork") == Some(&Value::Bool(true)) {
                End { node: node_of(pod), address, ..End::default() }
            } else {
                End { pod: Some(pod), address, ..End::default() }
            }
        };
        if let Ok(address) = name.parse::<IpAddr>() {
            let own = |pod: &&Value| text(pod, "status.podIP").parse() == Ok(address);
            if let Some(pod) = self.of_kind("Pod").find(own) {
                return of_pod(pod);
            }
            let has = |node: &&Value| {
                items(node, "status.addresses").iter().any(|a| text(a, "address").parse() == Ok(address))
            };
            return End { node: self.of_kind("Node").find(has), address: Some(address), ..End::default() };
        }
        let is = |pod: &&Value| format!("{}/{}", text(pod, "metadata.namespace"), text(pod, "metadata.name")) == name;
        of_pod(self.of_kind("Pod").find(is).unwrap())
    }

    /// `node` is the node on which `pod` runs, or both are one node.
    fn is_own_node(&self, own: &End<'_>, node: &End<'_>) -> bool {
        let name = |node: &Value| text(node, "metadata.name").to_owned();
        let home = own.pod.map(|p| text(p, "spec.nodeName").to_owned()).or_else(|| own.node.map(name));
        match home {
            Some(home) => node.entity == Some("host") || node.node.map(name) == Some(home),
            None => false,
        }
    }

    /// What the policies of one side say; and whether anything had to be guessed.
    pub(crate) fn judge(&self, side: Side, flow: Flow<'_>) -> (Answer, bool) {
        let mut answers = BTreeSet::new();
        let mut waiting = vec![Guesses::new()];
        let mut guessed = false;
        while let Some(guesses) = waiting.pop() {
            match self.side(side, flow, &guesses) {
                Ok(answer) => drop(answers.insert(answer)),
                Err(Open(key)) => {
                    guessed = true;
                    waiting.extend([true, false].map(|guess| {
                        let mut more = guesses.clone();
                        more.insert(key.clone(), guess);
                        more
                    }));
                }
            }
        }
        let answer = if answers.len() == 1 { *answers.first().unwrap() } else { Answer::Unproven };
        (answer, guessed || answers.contains(&Answer::Unproven))
    }

    fn side(&self, side: Side, flow: Flow<'_>, guesses: &Guesses) -> Known<Answer> {
        let (src, dst) = (self.resolve(flow.src), self.resolve(flow.dst));
        if let (Some(a), Some(b)) = (src.pod, dst.pod)
            && std::ptr::eq(a, b)
        {
            return Ok(Answer::Allow);
        }
        let own_node =
            |pod: &End<'_>, node: &End<'_>| pod.pod.is_some() && node.is_node() && self.is_own_node(pod, node);
        match self.cilium {
            // A29: both ways.
            None if own_node(&src, &dst) || own_node(&dst, &src) => return Ok(Answer::Allow),
            // The own node may come in; out to it a rule is needed.
            Some(_) if side == Side::Ingress && own_node(&dst, &src) && self.option("allow-localhost") != "policy" => {
                return Ok(Answer::Allow);
            }
            _ => {}
        }
        if self.option("enable-policy") == "never" {
            return Ok(Answer::Allow);
        }
        let (own, other) = if side == Side::Ingress { (dst.clone(), src) } else { (src, dst.clone()) };
        let asked = Asked { side, own, other, server: dst, protocol: flow.protocol, port: flow.port, guesses };
        if let Some(answer) = self.ordered("Admin", &asked)? {
            return Ok(answer);
        }
        if let Some(answer) = self.union(&asked)? {
            return Ok(answer);
        }
        Ok(self.ordered("Baseline", &asked)?.unwrap_or(Answer::Allow))
    }

    // -- Tiers with an order --

    fn ordered(&self, tier: &str, asked: &Asked<'_>) -> Known<Option<Answer>> {
        let in_tier = |policy: &&Value| match text(policy, "kind") {
            "ClusterNetworkPolicy" => text(policy, "spec.tier") == tier,
            "AdminNetworkPolicy" => tier == "Admin",
            "BaselineAdminNetworkPolicy" => tier == "Baseline",
            _ => false,
        };
        // The one BaselineAdminNetworkPolicy has no priority and comes last.
        let priority = |policy: &Value| number(policy, "spec.priority").unwrap_or(u16::MAX);
        let policies: Vec<&Value> = self.policies.iter().filter(in_tier).collect();
        let priorities: BTreeSet<u16> = policies.iter().map(|p| priority(p)).collect();
        for wanted in priorities {
            let mut actions = BTreeSet::new();
            for policy in policies.iter().filter(|p| priority(p) == wanted) {
                if !self.pod_like(&policy["spec"]["subject"], &asked.own) {
                    continue;
                }
                for (index, rule) in items(policy, &format!("spec.{}", asked.side.word())).iter().enumerate() {
                    if self.admin_rule(text(policy, "metadata.name"), index, rule, asked)? {
                        actions.insert(match text(rule, "action") {
                            "Accept" | "Allow" => "Accept",
                            action => action,
                        });
                        break;
                    }
                }
            }
            match actions.iter().copied().collect::<Vec<_>>()[..] {
                [] => {}
                ["Accept"] => return Ok(Some(Answer::Allow)),
                ["Deny"] => return Ok(Some(Answer::Deny)),
                ["Pass"] => return Ok(None),
                _ => return Ok(Some(Answer::Unproven)),
            }
        }
        Ok(None)
    }

    /// `namespaces` or `pods` of a subject or peer.
    fn pod_like(&self, selects: &Value, end: &End<'_>) -> bool {
        let Some(pod) = end.pod else { return false };
        let namespace = |selector: &Value| matches(selector, |key| self.namespace_label(pod, key));
        match (get(selects, "namespaces"), get(selects, "pods")) {
            (Some(namespaces), _) => namespace(namespaces),
            (_, Some(pods)) => {
                namespace(&pods["namespaceSelector"]) && matches(&pods["podSelector"], |key| self.pod_label(pod, key))
            }
            _ => false,
        }
    }

    fn admin_rule(&self, policy: &str, index: usize, rule: &Value, asked: &Asked<'_>) -> Known<bool> {
        let ports = items(rule, "protocols").iter().chain(items(rule, "ports"));
        let named = |name: &str| self.has_port(&asked.server, name, asked.protocol, asked.port);
        let mut given = false;
        let mut open = false;
        for port in ports {
            given = true;
            let single = |port: &Value, field: &str| number(port, field) == Some(asked.port);
            let range = |range: &Value| {
                number(range, "start").unwrap() <= asked.port && asked.port <= number(range, "end").unwrap()
            };
            let is = |protocol: &str| protocol == asked.protocol;
            for (field, protocol) in [("tcp", "TCP"), ("udp", "UDP"), ("sctp", "SCTP")] {
                let Some(item) = port.get(field) else { continue };
                open |= is(protocol)
                    && match (get(item, "destinationPort.number"), get(item, "destinationPort.range")) {
                        (Some(_), _) => single(item, "destinationPort.number"),
                        (_, Some(r)) => range(r),
                        _ => true,
                    };
            }
            if let Some(name) = get(port, "destinationNamedPort").or(get(port, "namedPort")) {
                open |= named(name.as_str().unwrap());
            }
            if let Some(item) = get(port, "portNumber") {
                open |= is(text(item, "protocol")) && single(item, "port");
            }
            if let Some(item) = get(port, "portRange") {
                open |= is(text(item, "protocol")) && range(item);
            }
        }
        if given && !open {
            return Ok(false);
        }
        let peers = if asked.side == Side::Ingress { "from" } else { "to" };
        any(items(rule, peers).iter().enumerate(), |(place, peer)| {
            if let Some(nodes) = get(peer, "nodes") {
                let Some(node) = asked.other.node else { return Ok(false) };
                return Ok(matches(nodes, |key| label(node, key)));
            }
            if let Some(networks) = get(peer, "networks") {
                return any(networks.as_array().unwrap(), |network| match asked.other.address {
                    Some(address) => Ok(within(address, network.as_str().unwrap())),
                    None if asked.other.is_world() => asked.guess(format!("{policy} {index} {place} {network}")),
                    None => Ok(false),
                });
            }
            if let Some(names) = get(peer, "domainNames") {
                let depth = |pattern: &str, name: &str| match pattern.strip_prefix("*.") {
                    Some(rest) => name.len() > rest.len() + 1 && name.ends_with(&format!(".{rest}")),
                    None => pattern == name,
                };
                let patterns = names.as_array().unwrap().iter().map(|p| p.as_str().unwrap());
                return any(patterns, |pattern| {
                    self.named(asked, &format!("{policy} {index} {place} {pattern}"), |name| depth(pattern, name))
                });
            }
            Ok(self.pod_like(peer, &asked.other))
        })
    }

    // -- The tier without an order --

    fn union(&self, asked: &Asked<'_>) -> Known<Option<Answer>> {
        let (mut allow, mut deny) = (false, false);
        let mut isolated = asked.own.pod.is_some() && self.option("enable-policy") == "always";
        let mut network_rules = Vec::new();
        for policy in &self.policies {
            if text(policy, "kind") == "NetworkPolicy" && self.network_policy_selects(policy, asked) {
                isolated = true;
                let rules = items(policy, &format!("spec.{}", asked.side.word()));
                network_rules.extend(rules.iter().enumerate().map(|(index, rule)| (policy, index, rule)));
            }
        }
        let selecting: Vec<(&Value, String, &Value)> = self
            .policies
            .iter()
            .flat_map(sections)
            .filter(|(policy, _, spec)| self.cilium_selects(policy, spec, &asked.own))
            .collect();
        let (word, list, deny_list) = match asked.side {
            Side::Ingress => ("from", "ingress", "ingressDeny"),
            Side::Egress => ("to", "egress", "egressDeny"),
        };
        // Conditions on the peers of every rule of one list, of all policies of the subject.
        let requires = |list: &str| -> Vec<&Value> {
            let rules = selecting.iter().flat_map(|(_, _, spec)| items(spec, list));
            rules.flat_map(|rule| items(rule, &format!("{word}Requires"))).collect()
        };
        for (policy, index, rule) in network_rules {
            allow |= self.network_policy_rule(policy, index, rule, &requires(list), asked)?;
        }
        for (policy, name, spec) in &selecting {
            let entries = !items(spec, list).is_empty() || !items(spec, deny_list).is_empty();
            let posture = get(spec, "enableDefaultDeny").and_then(|p| p.get(asked.side.word()));
            isolated |= entries && posture != Some(&Value::Bool(false));
            for (list, action) in [(list, &mut allow), (deny_list, &mut deny)] {
                let conditions = requires(list);
                *action |= any(items(spec, list).iter().enumerate(), |(index, rule)| {
                    self.cilium_rule(policy, &format!("{name} {list} {index}"), rule, word, &conditions, asked)
                })?;
            }
        }
        Ok(match () {
            () if deny => Some(Answer::Deny),
            () if allow => Some(Answer::Allow),
            () if isolated => Some(Answer::Deny),
            () => None,
        })
    }

    fn network_policy_selects(&self, policy: &Value, asked: &Asked<'_>) -> bool {
        let Some(pod) = asked.own.pod else { return false };
        let types = items(policy, "spec.policyTypes");
        let has = |wanted: &str| match types {
            [] => wanted == "Ingress" || !items(policy, "spec.egress").is_empty(),
            types => types.iter().any(|t| t.as_str() == Some(wanted)),
        };
        text(pod, "metadata.namespace") == text(policy, "metadata.namespace")
            && matches(&policy["spec"]["podSelector"], |key| self.pod_label(pod, key))
            && has(if asked.side == Side::Ingress { "Ingress" } else { "Egress" })
    }

    fn network_policy_rule(
        &self,
        policy: &Value,
        index: usize,
        rule: &Value,
        requires: &[&Value],
        asked: &Asked<'_>,
    ) -> Known<bool> {
        let ports = items(rule, "ports");
        let port = |port: &Value| {
            let protocol = get(port, "protocol").and_then(Value::as_str).unwrap_or("TCP");
            protocol == asked.protocol
                && match (get(port, "port"), number(port, "endPort")) {
                    (None, _) => true,
                    (Some(Value::String(name)), _) => self.has_port(&asked.server, name, asked.protocol, asked.port),
                    (Some(_), end) => {
                        let first = number(port, "port").unwrap();
                        (first..=end.unwrap_or(first)).contains(&asked.port)
                    }
                }
        };
        if !ports.is_empty() && !ports.iter().any(port) {
            return Ok(false);
        }
        let peers = items(rule, if asked.side == Side::Ingress { "from" } else { "to" });
        if peers.is_empty() {
            return Ok(true);
        }
        any(peers.iter().enumerate(), |(place, peer)| {
            if let Some(block) = get(peer, "ipBlock") {
                let key = format!("{} {index} {place}", text(policy, "metadata.name"));
                return self.range(asked, key, text(block, "cidr"), items(block, "except"));
            }
            let Some(pod) = asked.other.pod else { return Ok(false) };
            let namespace = match get(peer, "namespaceSelector") {
                Some(selector) => matches(selector, |key| self.namespace_label(pod, key)),
                None => text(pod, "metadata.namespace") == text(policy, "metadata.namespace"),
            };
            let pods = get(peer, "podSelector").is_none_or(|s| matches(s, |key| self.pod_label(pod, key)));
            // To Cilium these are peers by label like its own.
            let required = requires.iter().all(|r| matches(r, |key| self.identity_label(pod, key)));
            Ok(namespace && pods && required)
        })
    }

    /// Whether a range matches the other end. To Cilium pods and nodes have no address, unless it
    /// is told so.
    fn range(&self, asked: &Asked<'_>, key: String, cidr: &str, except: &[Value]) -> Known<bool> {
        let other = &asked.other;
        if self.cilium.is_some() {
            let mode = self.option("policy-cidr-match-mode");
            let counts = match () {
                () if other.pod.is_some() => mode.contains("pods"),
                () if other.is_node() => mode.contains("nodes"),
                () => other.is_world(),
            };
            if !counts {
                return Ok(false);
            }
        }
        match other.address {
            Some(address) => Ok(within(address, cidr) && !except.iter().any(|e| within(address, e.as_str().unwrap()))),
            None if other.is_world() => asked.guess(key),
            None => Ok(false),
        }
    }

    /// Whether the other end's address was learnt for a name that matches.
    fn named(&self, asked: &Asked<'_>, key: &str, pattern: impl Fn(&str) -> bool) -> Known<bool> {
        if !asked.other.is_world() {
            return Ok(false);
        }
        if self.names.iter().any(|(name, address)| pattern(name) && Some(*address) == asked.other.address) {
            return Ok(true);
        }
        // The world without an address may be at one of the name's.
        let possible = asked.other.address.is_none() && self.names.iter().any(|(name, _)| pattern(name));
        if self.all_names && !possible { Ok(false) } else { asked.guess(key.to_owned()) }
    }

    fn has_port(&self, server: &End<'_>, name: &str, protocol: &str, port: u16) -> bool {
        let containers = server.pod.map_or(&[][..], |pod| items(pod, "spec.containers"));
        containers.iter().flat_map(|c| items(c, "ports")).any(|p| {
            text(p, "name") == name && text(p, "protocol") == protocol && number(p, "containerPort") == Some(port)
        })
    }

    // -- Cilium --
}

const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";

/// Labels that are not part of an identity.
fn is_left_out(key: &str) -> bool {
    let exact = ["pod-template-hash", "controller-revision-hash", "statefulset.kubernetes.io/pod-name"];
    exact.contains(&key)
        || ["batch.kubernetes.io/", "kubernetes.io", "k8s.io"].iter().any(|start| key.starts_with(start))
}

/// The specs of a Cilium policy, with a name for each.
fn sections(policy: &Value) -> Vec<(&Value, String, &Value)> {
    if !text(policy, "kind").starts_with("Cilium") {
        return Vec::new();
    }
    let name = text(policy, "metadata.name");
    let specs = get(policy, "spec").into_iter().chain(items(policy, "specs"));
    specs.enumerate().map(|(index, spec)| (policy, format!("{name} {index}"), spec)).collect()
}

/// The object's own label.
fn label(object: &Value, key: &str) -> Option<String> {
    get(object, "metadata.labels")?.get(key)?.as_str().map(str::to_owned)
}

/// A key without its source.
fn bare(key: &str) -> &str {
    key.split_once(':').map_or(key, |(_, key)| key)
}

fn keys(selector: &Value) -> Vec<&str> {
    let labels = get(selector, "matchLabels").and_then(Value::as_object);
    let labels = labels.into_iter().flat_map(|l| l.keys().map(String::as_str));
    labels.chain(items(selector, "matchExpressions").iter().map(|e| text(e, "key"))).collect()
}

fn matches(selector: &Value, label: impl Fn(&str) -> Option<String>) -> bool {
    matches_but(selector, "", label)
}

/// As [`matches`], with one key that is not looked at.
fn matches_but(selector: &Value, but: &str, label: impl Fn(&str) -> Option<String>) -> bool {
    let labels = get(selector, "matchLabels").and_then(Value::as_object);
    for (key, value) in labels.into_iter().flatten().filter(|(key, _)| bare(key) != but) {
        if label(bare(key)).as_deref() != value.as_str() {
            return false;
        }
    }
    for expression in items(selector, "matchExpressions").iter().filter(|e| bare(text(e, "key")) != but) {
        let has = label(bare(text(expression, "key")));
        let listed = has.as_ref().is_some_and(|has| items(expression, "values").iter().any(|v| v == has));
        let holds = match text(expression, "operator") {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => has.is_some(),
            "DoesNotExist" => has.is_none(),
            other => panic!("{other}"),
        };
        if !holds {
            return false;
        }
    }
    true
}

/// By hand, on purpose: compares the leading bits one by one.
fn within(address: IpAddr, cidr: &str) -> bool {
    let (network, length) = cidr.split_once('/').unwrap_or((cidr, if cidr.contains(':') { "128" } else { "32" }));
    let bits = |a: IpAddr| -> Vec<bool> {
        let bytes = match a {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        bytes.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1 == 1)).collect()
    };
    let length: usize = length.parse().unwrap();
    let (a, n) = (bits(address), bits(network.parse().unwrap()));
    a.len() == n.len() && a[..length] == n[..length]
}
