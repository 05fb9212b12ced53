//! What the naive evaluator knows of Cilium's kinds.

use super::*;

impl World {
    pub(super) fn cilium_selects(&self, policy: &Value, spec: &Value, own: &End<'_>) -> bool {
        if let Some(nodes) = get(spec, "nodeSelector") {
            let firewall = self.option("enable-host-firewall") == "true";
            return firewall && own.node.is_some_and(|node| matches(nodes, |key| label(node, key)));
        }
        let Some(pod) = own.pod else { return false };
        let namespace = text(policy, "metadata.namespace");
        if namespace.is_empty() {
            return matches(&spec["endpointSelector"], |key| self.identity_label(pod, key));
        }
        // Whatever the selector says of the namespace, it is the policy's.
        let label = |key: &str| self.identity_label(pod, key);
        text(pod, "metadata.namespace") == namespace && matches_but(&spec["endpointSelector"], NAMESPACE_KEY, label)
    }

    pub(super) fn cilium_rule(
        &self,
        policy: &Value,
        key: &str,
        rule: &Value,
        word: &str,
        requires: &[&Value],
        asked: &Asked<'_>,
    ) -> Known<bool> {
        let (ports, icmps) = (items(rule, "toPorts"), items(rule, "icmps"));
        if !ports.is_empty() && !ports.iter().flat_map(|p| items(p, "ports")).any(|p| self.cilium_port(p, asked)) {
            return Ok(false);
        }
        if !icmps.is_empty() {
            let family = if asked.protocol == "ICMPv6" { "IPv6" } else { "IPv4" };
            let is = |field: &Value| {
                let wanted = get(field, "family").and_then(Value::as_str).unwrap_or("IPv4");
                asked.protocol.starts_with("ICMP") && wanted == family && number(field, "type") == Some(asked.port)
            };
            if !icmps.iter().flat_map(|i| items(i, "fields")).any(is) {
                return Ok(false);
            }
        }
        let kinds = ["Endpoints", "CIDR", "CIDRSet", "Entities", "Nodes", "Services", "FQDNs", "Groups"];
        let given = kinds.iter().find(|kind| get(rule, &format!("{word}{kind}")).is_some());
        let Some(kind) = given else { return Ok(!ports.is_empty() || !icmps.is_empty()) };
        any(items(rule, &format!("{word}{kind}")).iter().enumerate(), |(place, peer)| {
            let key = format!("{key} {place}");
            match *kind {
                "Endpoints" => self.cilium_endpoints(policy, &key, peer, requires, asked),
                "CIDR" => self.range(asked, key, peer.as_str().unwrap(), &[]),
                "CIDRSet" => self.cidr_set(&key, peer, asked),
                "Entities" => self.entity(&key, peer.as_str().unwrap(), asked),
                "Nodes" => {
                    let remote = asked.other.node.filter(|_| !self.is_own_node(&asked.own, &asked.other));
                    Ok(remote.is_some_and(|node| matches(peer, |key| label(node, key))))
                }
                "Services" => self.service(policy, &key, peer, requires, asked),
                "FQDNs" => {
                    let by = |name: &str| match get(peer, "matchName") {
                        Some(exact) => exact == name,
                        None => self.pattern(text(peer, "matchPattern"), name),
                    };
                    self.named(asked, &key, by)
                }
                // A cloud knows them.
                _ if asked.other.is_world() => asked.guess(key),
                _ => Ok(false),
            }
        })
    }

    pub(super) fn cilium_port(&self, port: &Value, asked: &Asked<'_>) -> bool {
        let protocol = match text(port, "protocol") {
            "" | "ANY" => ["TCP", "UDP"].contains(&asked.protocol),
            protocol => protocol == asked.protocol,
        };
        protocol
            && match (text(port, "port").parse::<u16>(), number(port, "endPort")) {
                (Ok(0), _) => true,
                // Earlier releases do not know ranges.
                (Ok(first), Some(end)) if self.since(16) => first <= asked.port && asked.port <= end,
                (Ok(first), _) => first == asked.port,
                (Err(_), _) => self.has_port(&asked.server, text(port, "port"), asked.protocol, asked.port),
            }
    }

    pub(super) fn cilium_endpoints(
        &self,
        policy: &Value,
        key: &str,
        selector: &Value,
        requires: &[&Value],
        asked: &Asked<'_>,
    ) -> Known<bool> {
        if let Some(reserved) = keys(selector).iter().find_map(|key| key.strip_prefix("reserved:")) {
            return self.entity(key, reserved, asked);
        }
        let namespace = text(policy, "metadata.namespace");
        let wide = keys(selector)
            .iter()
            .map(|key| bare(key))
            .any(|key| key == NAMESPACE_KEY || key.starts_with("io.cilium.k8s.namespace.labels."));
        match asked.other.pod {
            Some(pod) => {
                let label = |key: &str| self.identity_label(pod, key);
                Ok((namespace.is_empty() || wide || text(pod, "metadata.namespace") == namespace)
                    && matches(selector, label)
                    && requires.iter().all(|r| matches(r, label)))
            }
            // It asks only for what is absent, which may hold for anybody.
            None if wide && matches(selector, |_| None) => asked.guess(key.to_owned()),
            None => Ok(false),
        }
    }

    pub(super) fn cidr_set(&self, key: &str, set: &Value, asked: &Asked<'_>) -> Known<bool> {
        let except = items(set, "except");
        if let Some(cidr) = get(set, "cidr") {
            return self.range(asked, key.to_owned(), cidr.as_str().unwrap(), except);
        }
        if self.of_kind("CiliumCIDRGroup").next().is_none() {
            // Nobody listed the groups: the range may be any.
            let somewhere = any(["0.0.0.0/0", "::/0"], |all| self.range(asked, key.to_owned(), all, &[]))?;
            return if somewhere { asked.guess(key.to_owned()) } else { Ok(false) };
        }
        let groups = self.of_kind("CiliumCIDRGroup").filter(|group| match get(set, "cidrGroupRef") {
            Some(name) => name == text(group, "metadata.name"),
            None => matches(&set["cidrGroupSelector"], |key| label(group, key)),
        });
        any(groups.flat_map(|g| items(g, "spec.externalCIDRs")), |cidr| {
            self.range(asked, format!("{key} {cidr}"), cidr.as_str().unwrap(), except)
        })
    }

    pub(super) fn entity(&self, key: &str, entity: &str, asked: &Asked<'_>) -> Known<bool> {
        let other = &asked.other;
        let own_node = other.is_node() && self.is_own_node(&asked.own, other);
        match entity {
            "all" => Ok(true),
            "none" => Ok(false),
            "world" => Ok(other.is_world()),
            "host" => Ok(own_node),
            "remote-node" => Ok(other.is_node() && !own_node),
            "kube-apiserver" => self.is_api_server(key, other, asked),
            "cluster" => {
                let outside = other.is_world();
                if outside { self.is_api_server(key, other, asked) } else { Ok(true) }
            }
            named => Ok(other.entity == Some(named)),
        }
    }

    pub(super) fn is_api_server(&self, key: &str, other: &End<'_>, asked: &Asked<'_>) -> Known<bool> {
        if other.entity == Some("kube-apiserver") {
            return Ok(true);
        }
        let kubernetes = |slice: &&Value| label(slice, "kubernetes.io/service-name").as_deref() == Some("kubernetes");
        let slices = self.of_kind("EndpointSlice").filter(kubernetes);
        let known: Vec<&str> = slices
            .flat_map(|s| items(s, "endpoints"))
            .flat_map(|e| items(e, "addresses"))
            .map(|a| a.as_str().unwrap())
            .collect();
        match other.address {
            _ if !other.is_node() && !other.is_world() => Ok(false),
            // `world` is not what is known to be the API server.
            None if !known.is_empty() => Ok(false),
            Some(address) if !known.is_empty() => Ok(known.iter().any(|k| k.parse() == Ok(address))),
            _ => asked.guess(format!("{key} API server")),
        }
    }

    pub(super) fn service(
        &self,
        policy: &Value,
        key: &str,
        peer: &Value,
        requires: &[&Value],
        asked: &Asked<'_>,
    ) -> Known<bool> {
        let services: Vec<&Value> = self
            .of_kind("Service")
            .filter(|service| {
                let namespace = text(service, "metadata.namespace");
                if let Some(by) = get(peer, "k8sService") {
                    let wanted = match text(by, "namespace") {
                        "" => text(policy, "metadata.namespace"),
                        wanted => wanted,
                    };
                    return namespace == wanted && text(service, "metadata.name") == text(by, "serviceName");
                }
                let by = &peer["k8sServiceSelector"];
                (text(by, "namespace").is_empty() || text(by, "namespace") == namespace)
                    && matches(&by["selector"], |key| label(service, key))
            })
            .collect();
        any(services, |service| {
            let namespace = text(service, "metadata.namespace");
            if let Some(selector) = get(service, "spec.selector") {
                let Some(pod) = asked.other.pod.filter(|_| self.since(17)) else { return Ok(false) };
                let wanted = selector.as_object().unwrap();
                let label = |key: &str| self.identity_label(pod, key);
                return Ok(text(pod, "metadata.namespace") == namespace
                    && wanted.iter().all(|(k, v)| label(k).as_deref() == v.as_str())
                    && requires.iter().all(|r| matches(r, label)));
            }
            let own = |slice: &&Value| {
                text(slice, "metadata.namespace") == namespace
                    && label(slice, "kubernetes.io/service-name").as_deref() == Some(text(service, "metadata.name"))
            };
            let addresses = self.of_kind("EndpointSlice").filter(own).flat_map(|s| items(s, "endpoints"));
            any(addresses.flat_map(|e| items(e, "addresses")), |address| {
                let address = address.as_str().unwrap();
                let length = if address.contains(':') { 128 } else { 32 };
                self.range(asked, format!("{key} {address}"), &format!("{address}/{length}"), &[])
            })
        })
    }

    /// `*` is anything within one label, alone every name; a leading `**.` any depth since 1.19.
    pub(super) fn pattern(&self, pattern: &str, name: &str) -> bool {
        if pattern == "*" {
            return true;
        }
        if let Some(rest) = pattern.strip_prefix("**.") {
            if self.since(19) {
                let labels: Vec<&str> = name.split('.').collect();
                return (1..labels.len()).any(|from| self.pattern(rest, &labels[from..].join(".")));
            }
            return self.pattern(&format!("*.{rest}"), name);
        }
        let (patterns, labels): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), name.split('.').collect());
        let one = |(pattern, label): (&&str, &&str)| match pattern.split_once('*') {
            Some((start, end)) => {
                label.len() >= start.len() + end.len() && label.starts_with(start) && label.ends_with(end)
            }
            None => pattern == label,
        };
        patterns.len() == labels.len() && patterns.iter().zip(&labels).all(one)
    }

    // -- Labels --

    /// A pod's own label. Cilium knows a pod by its identity.
    pub(super) fn pod_label(&self, pod: &Value, key: &str) -> Option<String> {
        label(pod, key).filter(|_| self.cilium.is_none() || !self.is_no_identity(key))
    }

    pub(super) fn namespace_label(&self, pod: &Value, key: &str) -> Option<String> {
        let name = text(pod, "metadata.namespace");
        if key == "kubernetes.io/metadata.name" {
            return Some(name.to_owned());
        }
        let namespace = self.of_kind("Namespace").find(|n| text(n, "metadata.name") == name)?;
        label(namespace, key)
    }

    /// Whether a label is no part of identities. The patterns of the worlds are beginnings of keys;
    /// of an inclusive and an exclusive one the longer decides.
    pub(super) fn is_no_identity(&self, key: &str) -> bool {
        let (mut included, mut excluded) = (None, if is_left_out(key) { Some(key.len()) } else { None });
        let mut inclusive = false;
        for word in self.option("labels").split(' ').filter(|word| !word.is_empty()) {
            let pattern = word.trim_start_matches("k8s:").replace('\\', "");
            let (start, list) = match pattern.strip_prefix('!') {
                Some(start) => (start, &mut excluded),
                None => {
                    inclusive = true;
                    (pattern.as_str(), &mut included)
                }
            };
            if key.starts_with(start) {
                *list = (*list).max(Some(start.len()));
            }
        }
        for start in ["io.cilium.k8s.namespace.labels", "app.kubernetes.io"] {
            if key.starts_with(start) {
                included = included.max(Some(start.len()));
            }
        }
        if inclusive || excluded.is_some() { included.is_none() || excluded > included } else { false }
    }

    pub(super) fn identity_label(&self, pod: &Value, key: &str) -> Option<String> {
        if key != NAMESPACE_KEY && self.is_no_identity(key) {
            return None;
        }
        match key {
            NAMESPACE_KEY => Some(text(pod, "metadata.namespace").to_owned()),
            "io.cilium.k8s.policy.serviceaccount" => Some(text(pod, "spec.serviceAccountName").to_owned()),
            "io.cilium.k8s.policy.cluster" => {
                let name = self.option("cluster-name");
                Some(if name.is_empty() { "default" } else { name }.to_owned())
            }
            _ => match key.strip_prefix("io.cilium.k8s.namespace.labels.") {
                Some(own) => self.namespace_label(pod, own),
                None => self.pod_label(pod, key),
            },
        }
    }
}
