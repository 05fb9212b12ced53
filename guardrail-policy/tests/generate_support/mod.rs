//! Scenarios for the generator: a small description of a cluster and of what was observed, turned
//! into a snapshot.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use guardrail_graph::{
    Peer, Protocol, Snapshot, Timestamp, WorkloadRef,
    observe::LossClass,
    snapshot::{
        API_VERSION, AddressEntry, BackendEntry, Body, Counts, Coverage, EdgePeer, EdgeRecord, Interval, KIND,
        LabelSelector, LossEntry, NamedPort, NodeCoverage, PodEntry, ServiceEntry, ServicePortEntry, Side, Source,
        SourceCounts, Window, WorkloadCoverage, WorkloadEntry,
    },
};
use guardrail_policy::{
    evaluate::{CiliumOptions, Cluster, Dataplane, Evaluator},
    generate::{External, Goal, Options, Phase},
    read,
};
use serde::Deserialize;

/// One scenario file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is about; begins with the case (`B1`).
    pub about: String,
    /// How to export.
    pub export: Export,
    /// Nodes with their addresses.
    #[serde(default)]
    pub nodes: BTreeMap<String, Vec<IpAddr>>,
    /// Nodes whose agent contributed; all if absent.
    #[serde(default)]
    pub observed: Option<BTreeSet<String>>,
    /// Pod ranges that the inventory knows.
    #[serde(default)]
    pub pod_ranges: Vec<ipnet::IpNet>,
    /// Workloads by `namespace/Kind/name`.
    #[serde(default)]
    pub workloads: BTreeMap<String, Workload>,
    /// Services by `namespace/name`.
    #[serde(default)]
    pub services: BTreeMap<String, Service>,
    /// What was observed.
    #[serde(default)]
    pub edges: Vec<Edge>,
    /// Workloads with losses.
    #[serde(default)]
    pub incomplete: BTreeMap<String, BTreeSet<String>>,
    /// A gap in the window of these nodes.
    #[serde(default)]
    pub gaps: BTreeSet<String>,
    /// Connections and what the exported policies must say about them: `from -> to port/protocol`.
    #[serde(default)]
    pub allowed: Vec<String>,
    /// The same, denied.
    #[serde(default)]
    pub denied: Vec<String>,
    /// Existing policies, as YAML.
    #[serde(default)]
    pub existing: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    pub phase: String,
    /// `networkpolicy` if absent.
    #[serde(default)]
    pub format: Option<String>,
    /// The data plane is Cilium, with these keys of its ConfigMap.
    #[serde(default)]
    pub cilium: Option<BTreeMap<String, String>>,
    /// The data plane is the AWS VPC CNI.
    #[serde(default)]
    pub aws_vpc_cni: bool,
    #[serde(default)]
    pub egress: bool,
    #[serde(default)]
    pub namespaces: BTreeSet<String>,
    #[serde(default)]
    pub accept_inferred: bool,
    #[serde(default)]
    pub also_service_ports: bool,
    #[serde(default)]
    pub force: bool,
    #[serde(default)]
    pub ignore_clients: Vec<String>,
    #[serde(default)]
    pub declare: BTreeMap<String, BTreeSet<ipnet::IpNet>>,
    /// Workloads that are closed whatever the phase.
    #[serde(default)]
    pub sensitive: Vec<String>,
    /// Namespaces with a phase of their own, as in a plan.
    #[serde(default)]
    pub phases: BTreeMap<String, String>,
    /// Services for everybody, each with ports like `53/UDP`.
    #[serde(default)]
    pub shared: BTreeMap<String, BTreeSet<String>>,
    /// DNS is for everybody.
    #[serde(default)]
    pub share_dns: bool,
    /// Clients that may reach everybody.
    #[serde(default)]
    pub callers: Vec<String>,
    #[serde(default)]
    pub node_ranges: BTreeSet<ipnet::IpNet>,
    /// What lies outside, as a plan has it.
    #[serde(default)]
    pub external: BTreeMap<String, Outside>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outside {
    #[serde(default)]
    pub names: BTreeSet<String>,
    pub ranges: BTreeSet<ipnet::IpNet>,
    pub ports: BTreeSet<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Given: the selector; absent: the labels are the selector; `none` is said by `no_selector`.
    #[serde(default)]
    pub selector: Option<LabelSelector>,
    #[serde(default)]
    pub no_selector: Option<String>,
    #[serde(default)]
    pub host_network: bool,
    #[serde(default)]
    pub pods: BTreeMap<String, Pod>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    #[serde(default)]
    pub node: String,
    #[serde(default)]
    pub addresses: BTreeSet<IpAddr>,
    /// `name: port` or `name: port/UDP`.
    #[serde(default)]
    pub ports: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    #[serde(rename = "type", default = "cluster_ip")]
    pub service_type: String,
    #[serde(default)]
    pub addresses: BTreeSet<IpAddr>,
    pub port: u16,
    #[serde(default = "tcp")]
    pub protocol: String,
    #[serde(default)]
    pub node_port: Option<u16>,
    /// `peer address:port`.
    #[serde(default)]
    pub backends: Vec<String>,
}

fn cluster_ip() -> String {
    "ClusterIP".to_owned()
}

fn tcp() -> String {
    "TCP".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// `from -> to port/protocol`.
    pub edge: String,
    #[serde(default)]
    pub port_name: Option<String>,
    #[serde(default)]
    pub via: BTreeSet<String>,
    #[serde(default)]
    pub marks: BTreeSet<String>,
    #[serde(default)]
    pub names: BTreeSet<String>,
    /// Sides that saw it, `side@node`; both ends' first observed nodes if absent.
    #[serde(default)]
    pub seen: Vec<String>,
    #[serde(default)]
    pub failed: bool,
    #[serde(default)]
    pub unanswered: bool,
    #[serde(default)]
    pub node_workloads: BTreeSet<String>,
    /// Repeats the edge for so many external addresses: the last number of the address grows.
    #[serde(default)]
    pub addresses: Option<u32>,
}

/// `namespace/Kind/name`, `node/NAME`, or an address.
pub fn peer(text: &str) -> Peer {
    if let Some(name) = text.strip_prefix("node/") {
        return Peer::Node { name: name.to_owned() };
    }
    match text.split('/').collect::<Vec<_>>().as_slice() {
        [namespace, owner, name] => Peer::Workload(WorkloadRef {
            namespace: (*namespace).to_owned(),
            owner: (*owner).to_owned(),
            name: (*name).to_owned(),
        }),
        _ => Peer::External { address: text.to_owned() },
    }
}

/// `from -> to port/protocol`.
pub fn parse_edge(text: &str) -> (Peer, Peer, Protocol, u16) {
    let (from, rest) = text.split_once(" -> ").unwrap_or_else(|| panic!("`{text}`: no arrow"));
    let (to, port) = rest.rsplit_once(' ').unwrap_or_else(|| panic!("`{text}`: no port"));
    let (protocol, port) = parse_port(port);
    (peer(from.trim()), peer(to.trim()), protocol, port)
}

/// `port` or `port/protocol`.
pub fn parse_port(text: &str) -> (Protocol, u16) {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let protocol = if protocol == "UDP" { Protocol::Udp } else { Protocol::Tcp };
    (protocol, port.parse().unwrap_or_else(|_| panic!("`{text}`: no port number")))
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(1_700_000_000 + seconds)
}

impl Scenario {
    /// Namespace `shop` with a client on node-a and its server on node-b, `ops` on node-a alone.
    pub fn on_two_nodes() -> Self {
        let pod = |node: &str, address: &str| serde_json::json!({"node": node, "addresses": [address]});
        serde_json::from_value(serde_json::json!({
            "about": "two namespaces on two nodes",
            "export": {"phase": "default-deny"},
            "nodes": {"node-a": ["192.0.2.1"], "node-b": ["192.0.2.2"]},
            "workloads": {
                "shop/Deployment/web": {"labels": {"app": "web"}, "pods": {"web-1": pod("node-a", "10.244.0.5")}},
                "shop/Deployment/api": {"labels": {"app": "api"}, "pods": {"api-1": pod("node-b", "10.244.1.6")}},
                "ops/Deployment/ui": {"labels": {"app": "ui"}, "pods": {"ui-1": pod("node-a", "10.244.0.7")}},
            },
            "edges": [{"edge": "shop/Deployment/web -> shop/Deployment/api 8080"}],
        }))
        .unwrap()
    }

    /// How to export.
    pub fn options(&self) -> Options {
        let e = &self.export;
        let mut options = Options::new(e.phase.parse::<Phase>().unwrap());
        options.format = e.format.as_deref().unwrap_or("networkpolicy").parse().unwrap();
        if let Some(keys) = &e.cilium {
            options.dataplane = Dataplane::Cilium(CiliumOptions::from_keys(keys).unwrap());
        }
        if e.aws_vpc_cni {
            options.dataplane = Dataplane::AwsVpcCni;
        }
        options.egress = e.egress;
        options.namespaces.clone_from(&e.namespaces);
        options.sensitive = e.sensitive.iter().filter_map(|name| peer(name).workload().cloned()).collect();
        let goal = |phase: &String| Goal { phase: phase.parse().unwrap(), egress: e.egress, held: Vec::new() };
        options.goals = e.phases.iter().map(|(namespace, phase)| (namespace.clone(), goal(phase))).collect();
        let workload = |name: &String| peer(name).workload().cloned().unwrap();
        let ports = |ports: &BTreeSet<String>| ports.iter().map(|port| parse_port(port)).collect::<BTreeSet<_>>();
        options.shared = e.shared.iter().map(|(name, all)| (workload(name), ports(all))).collect();
        options.share_dns = e.share_dns;
        options.callers = e.callers.iter().map(workload).collect();
        options.node_ranges.clone_from(&e.node_ranges);
        let external = |outside: &Outside| External {
            names: outside.names.clone(),
            ranges: outside.ranges.clone(),
            ports: ports(&outside.ports),
        };
        options.external = e.external.iter().map(|(label, outside)| (label.clone(), external(outside))).collect();
        options.accept_inferred = e.accept_inferred;
        options.also_service_ports = e.also_service_ports;
        options.forced = e.force;
        options.stopped_too = true;
        options.ignore_clients = e.ignore_clients.iter().map(|c| c.parse().unwrap()).collect();
        options.declared_ranges.clone_from(&e.declare);
        options.cluster.pod_ranges = self.pod_ranges.iter().copied().collect();
        if let Some(text) = &self.existing {
            let set = read::policies("existing", text.as_bytes()).unwrap();
            (options.existing, options.existing_forms) = (set.policies, set.forms);
        }
        options
    }

    /// The snapshot.
    pub fn snapshot(&self) -> Snapshot {
        let observed = self.observed.clone().unwrap_or_else(|| self.nodes.keys().cloned().collect());
        let source = |node: &str| Source { node: node.to_owned(), instance: format!("agent-{node}"), start: None };
        let workloads: Vec<WorkloadEntry> = self.workloads.iter().map(|(name, w)| workload(name, w)).collect();
        let hosts = |peer: &Peer| -> Vec<String> {
            match peer {
                Peer::Node { name } => vec![name.clone()],
                Peer::External { .. } => vec![],
                Peer::Workload(r) => workloads
                    .iter()
                    .find(|w| w.workload == *r)
                    .map(|w| w.pods.keys().filter(|n| observed.contains(*n)).cloned().collect())
                    .unwrap_or_default(),
            }
        };
        let mut edges: Vec<EdgeRecord> = self
            .edges
            .iter()
            .flat_map(|e| (0..e.addresses.unwrap_or(1)).map(move |nth| (e, nth)))
            .map(|(e, nth)| {
                let (client, server, protocol, port) = parse_edge(&e.edge);
                let (client, server) = (nth_address(client, nth), nth_address(server, nth));
                let seen: Vec<(Side, String)> = if e.seen.is_empty() {
                    let client_side = hosts(&client).into_iter().take(1).map(|n| (Side::Client, n));
                    let server_side = hosts(&server).into_iter().take(1).map(|n| (Side::Server, n));
                    client_side.chain(server_side).collect()
                } else {
                    e.seen
                        .iter()
                        .map(|s| {
                            let (side, node) = s.split_once('@').unwrap();
                            (if side == "client" { Side::Client } else { Side::Server }, node.to_owned())
                        })
                        .collect()
                };
                let counts = if e.failed {
                    Counts { refused: 3, ..Counts::default() }
                } else if e.unanswered {
                    Counts { unanswered: 3, ..Counts::default() }
                } else {
                    Counts { opened: 5, bytes_sent: 100, bytes_received: 1000, ..Counts::default() }
                };
                let sources = seen
                    .iter()
                    .map(|(side, node)| SourceCounts {
                        source: source(node).into(),
                        side: *side,
                        counts,
                        first_seen: at(10),
                        last_seen: at(20),
                        by_merge: false,
                    })
                    .collect();
                let external = |p: &Peer| matches!(p, Peer::External { .. });
                let names = |p: &Peer| if external(p) { e.names.clone() } else { BTreeSet::new() };
                EdgeRecord {
                    client: EdgePeer { names: names(&client), peer: client.into() },
                    server: EdgePeer { names: names(&server), peer: server.into() },
                    protocol,
                    port,
                    port_name: e.port_name.clone(),
                    via: e.via.clone(),
                    seen_by: seen.iter().map(|(side, _)| *side).collect(),
                    counts,
                    first_seen: at(10),
                    last_seen: at(20),
                    supported: !e.failed && !e.unanswered,
                    marks: e.marks.clone(),
                    node_workloads: e.node_workloads.clone(),
                    sources,
                }
            })
            .collect();
        edges.sort_by(|a, b| {
            (&a.client, &a.server, a.protocol, a.port).cmp(&(&b.client, &b.server, b.protocol, b.port))
        });
        let mut addresses: Vec<AddressEntry> = self
            .nodes
            .iter()
            .flat_map(|(name, list)| {
                list.iter().map(|a| AddressEntry {
                    address: *a,
                    from: None,
                    to: None,
                    peer: Peer::Node { name: name.clone() },
                    pod: None,
                    heard: None,
                    proven: false,
                    listed: None,
                })
            })
            .collect();
        addresses.sort_by_key(|a| a.address);
        let window_nodes = observed
            .iter()
            .map(|n| {
                let whole = vec![Interval { from: at(0), to: at(100) }];
                let split = vec![Interval { from: at(0), to: at(30) }, Interval { from: at(60), to: at(100) }];
                (n.clone(), if self.gaps.contains(n) { split } else { whole })
            })
            .collect();
        let expected: BTreeSet<String> = self.nodes.keys().cloned().collect();
        let coverage = Coverage {
            complete: expected == observed && self.incomplete.is_empty() && self.gaps.is_empty(),
            coverage: None,
            starts: None,
            by_workload: Vec::new(),
            not_run: Vec::new(),
            nodes: NodeCoverage { observed: observed.clone(), expected, ..NodeCoverage::default() },
            losses: self
                .incomplete
                .values()
                .flatten()
                .map(|reason| LossEntry {
                    source: source("node-a"),
                    reason: reason.clone(),
                    class: LossClass::Edge,
                    count: 7,
                    times: None,
                })
                .collect(),
            inventory: None,
            unresolved: Vec::new(),
            workloads: self
                .incomplete
                .iter()
                .map(|(name, reasons)| WorkloadCoverage { peer: peer(name), complete: false, reasons: reasons.clone() })
                .collect(),
        };
        Snapshot {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            body: Body {
                facts: Vec::new(),
                sources: observed.iter().map(|n| source(n)).collect(),
                window: Window { from: Some(at(0)), to: Some(at(100)), nodes: window_nodes, ..Window::default() },
                source_windows: Vec::new(),
                revisions: Vec::new(),
                coverage,
                workloads,
                label_changes: Vec::new(),
                services: self.services.iter().map(|(name, s)| service(name, s)).collect(),
                addresses,
                service_flows: Vec::new(),
                remote_flows: Vec::new(),
                own_pods_as_of: BTreeMap::new(),
                witnesses: Vec::new(),
                presence: Vec::new(),
                nodes: Vec::new(),
                edges,
            },
        }
    }
}

/// The policies in these files of an export and those in force, compiled for the data plane that
/// it is made for.
pub fn evaluator<'a>(
    options: &Options,
    cluster: Cluster,
    files: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Evaluator {
    let (mut policies, mut forms) = (options.existing.clone(), options.existing_forms.clone());
    for (name, text) in files.into_iter().filter(|(name, _)| name.contains(".guardrail-")) {
        let set = read::policies(name, text.as_bytes()).unwrap_or_else(|e| panic!("{e}:\n{text}"));
        assert!(set.warnings.is_empty(), "{:?}:\n{text}", set.warnings);
        policies.extend(set.policies);
        forms.extend(set.forms);
    }
    Evaluator::mixed(cluster, policies, forms, &options.enforcer())
}

fn nth_address(peer: Peer, nth: u32) -> Peer {
    match peer {
        Peer::External { address } if nth > 0 => {
            let base: std::net::Ipv4Addr = address.parse().unwrap();
            Peer::External { address: std::net::Ipv4Addr::from(u32::from(base) + nth).to_string() }
        }
        other => other,
    }
}

fn workload(name: &str, w: &Workload) -> WorkloadEntry {
    let Peer::Workload(workload) = peer(name) else { panic!("`{name}` is no workload") };
    let selector = match (&w.selector, &w.no_selector) {
        (_, Some(_)) => None,
        (Some(selector), None) => Some(selector.clone()),
        (None, None) => Some(LabelSelector::of_labels(w.labels.clone())),
    };
    let mut pods: BTreeMap<String, Vec<PodEntry>> = BTreeMap::new();
    for (pod, p) in &w.pods {
        let ports = p.ports.iter().map(|(name, port)| {
            let (number, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
            NamedPort { name: name.clone(), protocol: protocol.to_owned(), port: number.parse().unwrap() }
        });
        pods.entry(p.node.clone()).or_default().push(PodEntry {
            name: pod.clone(),
            addresses: p.addresses.clone(),
            ports: ports.collect(),
        });
    }
    WorkloadEntry {
        workload,
        selector: if w.host_network { None } else { selector },
        selector_advice: w.no_selector.clone(),
        labels: w.labels.clone(),
        schedule: None,
        host_network: w.host_network,
        pods,
        ran_on: BTreeMap::new(),
        as_of: at(100),
    }
}

fn service(name: &str, s: &Service) -> ServiceEntry {
    let (namespace, name) = name.split_once('/').unwrap();
    let backends = s.backends.iter().map(|b| {
        let (owner, socket) = b.rsplit_once(' ').unwrap();
        let socket: std::net::SocketAddr = socket.parse().unwrap();
        BackendEntry { address: socket.ip(), port: socket.port(), peer: peer(owner), node: None, from: None, to: None }
    });
    ServiceEntry {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        service_type: s.service_type.clone(),
        addresses: s.addresses.clone(),
        external_name: None,
        as_of: at(100),
        ports: vec![ServicePortEntry {
            port: s.port,
            protocol: s.protocol.clone(),
            name: None,
            node_port: s.node_port,
            backends: backends.collect(),
        }],
    }
}
