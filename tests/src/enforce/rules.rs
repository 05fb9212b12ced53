//! Policies as the input of `iptables-restore`, for one node and one address family.
//!
//! A chain for each pod and closed direction: a packet of a connection that passes leaves it; each
//! rule that allows what it is sets a mark; without the mark it is dropped. So the rules of a pod
//! are a union, and a packet between two pods of a node passes both its chains.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result};

use super::policy::{NumberOrName, PeerRule, Policy, PortRule, Rule, Way};
use crate::cluster::{Cluster, Pod, Service, ServicePort, inventory, node_addresses};

/// Set by a rule that allows a packet; the lab's nodes mark nothing else.
const ALLOWED: &str = "0x10000/0x10000";
/// What the API speaks of.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// How a network judges, where the API leaves it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judge {
    /// At which address egress is judged.
    pub egress: AskedPlace,
    /// What it remembers.
    pub memory: Memory,
}

/// At which address egress is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedPlace {
    /// At the pod behind a Service: after address translation on the node.
    Backend,
    /// At the address that the pod asked for: before it. A `podSelector` stands for pods and for
    /// the Services whose own selector it matches, at the Service's port, as the controller of the
    /// AWS VPC CNI has it (aws/amazon-network-policy-controller-k8s, `pkg/resolvers/endpoints.go`).
    /// It takes `spec.clusterIP`; here, where clusters have two families, each of the addresses.
    Asked,
}

/// What a judge remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Connections: the packets of one that stands pass.
    Connection,
    /// Only which end opened it: each of its packets is judged, and answers pass.
    Packet,
}

/// The whole input for a node's index and an address family.
///
/// # Errors
/// An `ipBlock` is none.
pub(super) fn of_node(
    cluster: &Cluster,
    policies: &[Policy],
    judge: Judge,
    (node, v6): (usize, bool),
) -> Result<String> {
    let mut filters = Filters { cluster, judge, node, v6, forward: String::new(), asked: String::new(), excepts: 0 };
    for (number, pod) in cluster.pods.iter().enumerate() {
        if pod.node != node || !has_network(cluster, pod) {
            continue;
        }
        for way in [Way::In, Way::Out] {
            let labels = inventory::labels(cluster, pod);
            let selecting: Vec<_> =
                policies.iter().filter(|p| p.selects(&pod.namespace, &labels) && p.closes(way)).collect();
            if !selecting.is_empty() {
                filters.close(&selecting, (number, pod), way)?;
            }
        }
    }
    Ok(format!("*filter\n{}COMMIT\n*mangle\n{}COMMIT\n", filters.forward, filters.asked))
}

/// Whether it is there and has a network of its own.
fn has_network(cluster: &Cluster, pod: &Pod) -> bool {
    pod.present && !cluster.workloads[pod.workload].host_network
}

struct Filters<'a> {
    cluster: &'a Cluster,
    judge: Judge,
    node: usize,
    v6: bool,
    /// Of table `filter`.
    forward: String,
    /// Of table `mangle`.
    asked: String,
    /// How many chains for `except` there are.
    excepts: usize,
}

impl Filters<'_> {
    fn close(&mut self, policies: &[&Policy], (number, pod): (usize, &Pod), way: Way) -> Result<()> {
        let early = way == Way::Out && self.judge.egress == AskedPlace::Asked;
        let (chain, device) = match way {
            Way::In => (format!("IN-{number}"), "-o"),
            Way::Out => (format!("OUT-{number}"), "-i"),
        };
        // What a pod sends to its node is judged as well; the node's own addresses pass below.
        let hooks = match way {
            Way::Out if early => &["PREROUTING"][..],
            Way::Out => &["FORWARD", "INPUT"],
            Way::In => &["FORWARD"],
        };
        let mut lines = format!(":{chain} - [0:0]\n");
        for (hook, protocol) in hooks.iter().flat_map(|hook| PROTOCOLS.map(|protocol| (hook, protocol))) {
            writeln!(lines, "-A {hook} {device} veth{number} -p {protocol} -j {chain}")?;
        }
        let stands = match self.judge.memory {
            Memory::Connection => "--ctstate ESTABLISHED,RELATED",
            Memory::Packet => "--ctdir REPLY",
        };
        writeln!(lines, "-A {chain} -m conntrack {stands} -j RETURN")?;
        let other = if way == Way::In { "-s" } else { "-d" };
        let mut always = vec![self.of_family(pod.addresses)];
        if way == Way::Out {
            always.push(self.of_family(node_addresses(self.node)));
        }
        for address in always {
            writeln!(lines, "-A {chain} {other} {} -j RETURN", single(address))?;
        }
        writeln!(lines, "-A {chain} -j MARK --set-xmark 0x0/0x10000")?;
        for policy in policies {
            for rule in policy.rules(way) {
                let matches = self
                    .matches(policy, rule, pod, way)
                    .with_context(|| format!("{}/{}", policy.namespace, policy.name))?;
                for Match { peer, except, ports } in matches {
                    let peer = peer.map_or_else(String::new, |peer| format!("{other} {peer} "));
                    let mut target = format!("MARK --set-xmark {ALLOWED}");
                    if !except.is_empty() {
                        let inner = format!("EXCEPT-{}", self.excepts);
                        self.excepts += 1;
                        lines.insert_str(0, &format!(":{inner} - [0:0]\n"));
                        for cidr in except {
                            writeln!(lines, "-A {inner} {other} {cidr} -j RETURN")?;
                        }
                        writeln!(lines, "-A {inner} -j {target}")?;
                        target = inner;
                    }
                    for port in ports {
                        writeln!(lines, "-A {chain} {peer}{port}-j {target}")?;
                    }
                }
            }
        }
        writeln!(lines, "-A {chain} -m mark ! --mark {ALLOWED} -j DROP")?;
        if early { &mut self.asked } else { &mut self.forward }.push_str(&lines);
        Ok(())
    }

    /// What a rule of a pod allows.
    fn matches(&self, policy: &Policy, rule: &Rule, pod: &Pod, way: Way) -> Result<Vec<Match>> {
        let mut all = Vec::new();
        if rule.peers().is_empty() {
            all.push(Match::new(None, self.ports(rule, (way == Way::In).then_some(pod))));
            if way == Way::Out {
                // A name means a port of the pod that is asked.
                all.extend(self.pods().map(|to| Match::new(Some(self.address(to)), self.named(rule, to))));
            }
        }
        for peer in rule.peers() {
            if let Some(block) = &peer.ip_block {
                if block.cidr.contains(':') != self.v6 {
                    continue;
                }
                let ports = self.ports(rule, (way == Way::In).then_some(pod));
                let except = block.except().to_vec();
                all.push(Match { peer: Some(block.cidr.clone()), except, ports });
                if way == Way::Out {
                    for to in self.pods() {
                        let inside = |cidr: &str| contains(cidr, self.of_family(to.addresses));
                        let mut excepted = false;
                        for except in block.except() {
                            excepted |= inside(except)?;
                        }
                        if inside(&block.cidr)? && !excepted {
                            all.push(Match::new(Some(self.address(to)), self.named(rule, to)));
                        }
                    }
                }
                continue;
            }
            for to in self.pods().filter(|other| self.is_peer(policy, peer, other)) {
                let ports = self.ports(rule, Some(if way == Way::In { pod } else { to }));
                all.push(Match::new(Some(self.address(to)), ports));
            }
            if way == Way::Out && self.judge.egress == AskedPlace::Asked {
                all.extend(self.services(policy, rule, peer));
            }
        }
        Ok(all)
    }

    /// Pods with a network of their own.
    fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.cluster.pods.iter().filter(|pod| has_network(self.cluster, pod))
    }

    fn is_peer(&self, policy: &Policy, peer: &PeerRule, pod: &Pod) -> bool {
        let pods = peer.pod_selector.as_ref();
        is_of(policy, peer, &pod.namespace) && pods.is_none_or(|s| s.matches(&inventory::labels(self.cluster, pod)))
    }

    /// The Services that a peer stands for where egress is judged at the address asked for.
    fn services(&self, policy: &Policy, rule: &Rule, peer: &PeerRule) -> Vec<Match> {
        let is_meant = |service: &&Service| {
            let own = [service.selector.clone()].into_iter().collect();
            let selects = peer.pod_selector.as_ref().is_none_or(|pods| pods.matches(&own));
            !service.headless && is_of(policy, peer, &service.namespace) && selects
        };
        let found = self.cluster.services.iter().filter(is_meant).map(|service| {
            let fronts = |asked: &PortRule| {
                let leads_there = |front: &&ServicePort| {
                    front.protocol == asked.protocol()
                        && self.cluster.endpoints(service).any(|pod| self.leads_to(front, pod, asked))
                };
                service.ports.iter().filter(leads_there).map(|p| number(asked, p.port, None)).collect::<Vec<_>>()
            };
            let ports = match rule.ports() {
                [] => vec![String::new()],
                ports => ports.iter().flat_map(fronts).collect(),
            };
            Match::new(Some(single(self.of_family(service.addresses))), ports)
        });
        found.collect()
    }

    /// Whether a Service's port leads to a pod's port that is asked for.
    fn leads_to(&self, front: &ServicePort, pod: &Pod, asked: &PortRule) -> bool {
        let target = self.cluster.target_port(front, pod);
        match &asked.port {
            None => true,
            Some(NumberOrName::Name(name)) => {
                target.is_some() && target == self.named_port(pod, asked.protocol(), name)
            }
            Some(NumberOrName::Number(first)) => {
                target.is_some_and(|target| (*first..=asked.end_port.unwrap_or(*first)).contains(&target))
            }
        }
    }

    /// Ports of a rule as matches; names are resolved at `at`, and match nothing without it.
    fn ports(&self, rule: &Rule, at: Option<&Pod>) -> Vec<String> {
        if rule.ports().is_empty() {
            return vec![String::new()];
        }
        let mut all: Vec<String> = rule
            .ports()
            .iter()
            .filter_map(|port| match &port.port {
                None => Some(format!("-p {} ", port.protocol().to_lowercase())),
                Some(NumberOrName::Number(first)) => Some(number(port, *first, port.end_port)),
                Some(NumberOrName::Name(_)) => None,
            })
            .collect();
        all.extend(at.map(|pod| self.named(rule, pod)).into_iter().flatten());
        all
    }

    /// The ports of a pod that a rule asks for by name.
    fn named(&self, rule: &Rule, pod: &Pod) -> Vec<String> {
        let by_name = |port: &PortRule| {
            let Some(NumberOrName::Name(name)) = &port.port else { return None };
            Some(number(port, self.named_port(pod, port.protocol(), name)?, None))
        };
        rule.ports().iter().filter_map(by_name).collect()
    }

    fn named_port(&self, pod: &Pod, protocol: &str, name: &str) -> Option<u16> {
        let ports = &self.cluster.workloads[pod.workload].ports;
        ports.iter().find(|p| p.name == name && p.protocol == protocol).map(|p| p.number)
    }

    fn of_family(&self, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> IpAddr {
        if self.v6 { v6.into() } else { v4.into() }
    }

    fn address(&self, pod: &Pod) -> String {
        single(self.of_family(pod.addresses))
    }
}

/// One match of the other end, and the ports there; no port: nothing matches.
struct Match {
    peer: Option<String>,
    except: Vec<String>,
    ports: Vec<String>,
}

impl Match {
    fn new(peer: Option<String>, ports: Vec<String>) -> Self {
        Self { peer, except: Vec::new(), ports }
    }
}

/// Whether a peer with selectors stands for something of this namespace. The lab's namespaces have
/// the one label that each has.
fn is_of(policy: &Policy, peer: &PeerRule, namespace: &str) -> bool {
    match &peer.namespace_selector {
        None => policy.namespace == namespace,
        Some(selector) => {
            selector.matches(&[("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())].into_iter().collect())
        }
    }
}

fn number(port: &PortRule, first: u16, last: Option<u16>) -> String {
    let range = last.map_or_else(String::new, |last| format!(":{last}"));
    format!("-p {} --dport {first}{range} ", port.protocol().to_lowercase())
}

fn single(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// Whether an address lies in a CIDR of its family.
fn contains(cidr: &str, address: IpAddr) -> Result<bool> {
    let parse = || {
        let (base, bits) = cidr.split_once('/')?;
        Some((base.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?))
    };
    let (base, bits) = parse().with_context(|| format!("`{cidr}` is no CIDR"))?;
    let value = |address: IpAddr| match address {
        IpAddr::V4(a) => (u128::from(a.to_bits()) << 96, 32),
        IpAddr::V6(a) => (a.to_bits(), 128),
    };
    let ((base, of), (address, family)) = (value(base), value(address));
    // A shift by all bits is the range of everything.
    Ok(of == family && bits <= of && (base ^ address).checked_shr(128 - bits).unwrap_or(0) == 0)
}
