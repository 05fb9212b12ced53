//! The first invariant over random worlds: every established flow is allowed by what is written, or
//! stops its namespace by name; marks, node ends, link-local addresses and flows seen from one side
//! are no way around it. And the second: the option that a problem names ends it. The judge reads
//! the snapshot and the files alone.

mod generate_support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use generate_support::{Edge, Export, Pod, Scenario, Workload};
use guardrail_graph::{Peer, snapshot::EdgeRecord};
use guardrail_policy::{
    emit,
    export::{self, Exported},
    generate::{self, Options, ProblemKind},
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct World {
    /// Per workload: its namespace, its labels, whether a selector is known, nodes of its pods,
    /// host network.
    workloads: Vec<(usize, usize, bool, Vec<usize>, bool)>,
    flows: Vec<Flow>,
    phase: &'static str,
    network: Network,
    egress: bool,
    accept_inferred: bool,
}

/// The form that is written, and who enforces it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Network {
    Kubernetes,
    /// Cilium's form; its agent may close the own node's way in.
    Cilium {
        own_node_closed: bool,
    },
    /// NetworkPolicy, enforced by Cilium.
    UnderCilium,
}

#[derive(Clone, Debug)]
struct Flow {
    client: End,
    server: End,
    port: u16,
    udp: bool,
    established: bool,
    marks: BTreeSet<&'static str>,
    /// An external server was asked for by name.
    named: bool,
    /// Which ends' nodes saw it: client, server, both.
    seen: usize,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Workload(usize),
    Node(usize),
    Address(&'static str),
}

const ADDRESSES: [&str; 8] =
    ["203.0.113.9", "2001:db8::9", "169.254.169.254", "169.254.20.10", "fe80::1", "10.244.9.9", "*", "198.51.100.7"];
const MARKS: [&str; 8] =
    ["inferred", "masqueraded", "link-local", "multicast", "one-way", "found-at-start", "host-port", "proxied"];

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        6 => (0usize..5).prop_map(End::Workload),
        1 => (0usize..2).prop_map(End::Node),
        1 => (0usize..ADDRESSES.len()).prop_map(|i| End::Address(ADDRESSES[i])),
    ]
}

fn flow() -> impl Strategy<Value = Flow> {
    let marks = prop::collection::btree_set((0usize..MARKS.len()).prop_map(|i| MARKS[i]), 0..3);
    let marks = prop_oneof![2 => Just(BTreeSet::new()), 1 => marks];
    let port = prop_oneof![Just(53u16), Just(80), Just(8080)];
    (end(), end(), port, any::<bool>(), prop::bool::weighted(0.85), marks, 0usize..3, any::<bool>()).prop_map(
        |(client, server, port, udp, established, marks, seen, named)| Flow {
            named,
            client,
            server,
            port,
            udp,
            established,
            marks,
            seen,
        },
    )
}

fn world() -> impl Strategy<Value = World> {
    let workload = (
        0usize..2,
        0usize..5,
        prop::bool::weighted(0.8),
        prop::collection::vec(0usize..2, 0..3),
        prop::bool::weighted(0.1),
    );
    (
        prop::collection::vec(workload, 1..6),
        prop::collection::vec(flow(), 1..10),
        prop_oneof![Just("constrain"), Just("default-deny")],
        prop_oneof![
            Just(Network::Kubernetes),
            any::<bool>().prop_map(|own_node_closed| Network::Cilium { own_node_closed }),
            Just(Network::UnderCilium)
        ],
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(workloads, flows, phase, network, egress, accept_inferred)| World {
            network,
            workloads,
            flows,
            phase,
            egress,
            accept_inferred,
        })
}

/// Labels that workloads may have; none, and some that others have, too.
fn labels(kind: usize, index: usize) -> BTreeMap<String, String> {
    let app = |pairs: &[(&str, String)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    match kind {
        0 => BTreeMap::new(),
        1 => app(&[("app", "shared".to_owned())]),
        2 => app(&[("app", "shared".to_owned()), ("run", format!("w{index}"))]),
        _ => app(&[("app", format!("w{index}"))]),
    }
}

impl World {
    fn name(&self, index: usize) -> String {
        let index = index % self.workloads.len();
        format!("ns{}/Deployment/w{index}", self.workloads[index].0)
    }

    fn end(&self, end: End) -> String {
        match end {
            // What runs on the host's network is its node, on both sides.
            End::Workload(w) if self.workloads[w % self.workloads.len()].4 => "node/node-0".to_owned(),
            End::Workload(w) => self.name(w),
            End::Node(n) => format!("node/node-{n}"),
            End::Address(address) => address.to_owned(),
        }
    }

    fn nodes(&self, end: End) -> Vec<String> {
        match end {
            End::Workload(w) => {
                let (.., nodes, host) = &self.workloads[w % self.workloads.len()];
                if *host { vec!["node-0".to_owned()] } else { nodes.iter().map(|n| format!("node-{n}")).collect() }
            }
            End::Node(n) => vec![format!("node-{n}")],
            End::Address(_) => Vec::new(),
        }
    }

    fn edges(&self) -> Vec<Edge> {
        let mut edges: BTreeMap<String, Edge> = BTreeMap::new();
        for flow in &self.flows {
            let (client, server) = (self.end(flow.client), self.end(flow.server));
            if !client.contains('/') && !server.contains('/') {
                continue;
            }
            let at_client = self.nodes(flow.client).into_iter().map(|n| format!("client@{n}"));
            let at_server = self.nodes(flow.server).into_iter().map(|n| format!("server@{n}"));
            let seen: Vec<String> = match flow.seen {
                0 => at_client.collect(),
                1 => at_server.collect(),
                _ => at_client.chain(at_server).collect(),
            };
            if seen.is_empty() {
                continue;
            }
            let name = format!("{client} -> {server} {}/{}", flow.port, if flow.udp { "UDP" } else { "TCP" });
            let edge = Edge {
                edge: name.clone(),
                port_name: None,
                via: BTreeSet::new(),
                marks: flow.marks.iter().map(|m| (*m).to_owned()).collect(),
                names: flow.named.then(|| format!("on-{}.example.com", flow.port)).into_iter().collect(),
                seen: seen.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
                failed: !flow.established,
                unanswered: false,
                node_workloads: BTreeSet::new(),
                addresses: None,
            };
            edges.insert(name, edge);
        }
        edges.into_values().collect()
    }

    fn scenario(&self) -> Scenario {
        let workloads = self.workloads.iter().enumerate().map(|(index, (_, kind, selector, nodes, host))| {
            let pods = nodes.iter().enumerate().map(|(nth, node)| {
                let address: IpAddr = format!("10.244.{index}.{}", nth + 10).parse().unwrap();
                let pod = Pod { node: format!("node-{node}"), addresses: [address].into(), ports: BTreeMap::new() };
                (format!("w{index}-{nth}"), pod)
            });
            let labels = labels(*kind, index);
            let no_selector = (!selector || labels.is_empty()).then(|| "add a label".to_owned());
            let pods = if *host { BTreeMap::new() } else { pods.collect() };
            (self.name(index), Workload { labels, selector: None, no_selector, host_network: *host, pods })
        });
        Scenario {
            about: "random".to_owned(),
            export: Export {
                format: matches!(self.network, Network::Cilium { .. }).then(|| "cilium".to_owned()),
                cilium: match self.network {
                    Network::Kubernetes => None,
                    Network::Cilium { own_node_closed: true } => {
                        Some([("allow-localhost".to_owned(), "policy".to_owned())].into())
                    }
                    _ => Some(BTreeMap::new()),
                },
                phase: self.phase.to_owned(),
                egress: self.egress,
                accept_inferred: self.accept_inferred,
                ..Export::default()
            },
            nodes: (0..2).map(|n| (format!("node-{n}"), vec![format!("192.0.2.{}", n + 1).parse().unwrap()])).collect(),
            observed: None,
            pod_ranges: vec!["10.244.0.0/16".parse().unwrap()],
            workloads: workloads.collect(),
            services: BTreeMap::new(),
            edges: self.edges(),
            incomplete: BTreeMap::new(),
            gaps: BTreeSet::new(),
            allowed: Vec::new(),
            denied: Vec::new(),
            existing: None,
        }
    }
}

/// As a problem prints it and `--accept` reads it.
fn flow_name(edge: &EdgeRecord) -> String {
    let end = |peer: &Peer| match peer {
        Peer::Workload(w) => format!("{}/{}/{}", w.namespace, w.owner, w.name),
        Peer::Node { name } => format!("node/{name}"),
        Peer::External { address } if address == "*" => "external".to_owned(),
        Peer::External { address } if address.contains(':') => format!("[{address}]"),
        Peer::External { address } => address.clone(),
    };
    format!("{}->{}:{}/{}", end(&edge.client.peer), end(&edge.server.peer), edge.port, edge.protocol)
}

/// The flows that problems offer to accept.
fn offered(generated: &Exported<'_>) -> BTreeSet<String> {
    let texts = generated.problems.iter().flat_map(|p| p.message.split("--accept '").skip(1));
    texts.map(|rest| rest.split_once('\'').unwrap().0.to_owned()).collect()
}

fn check(world: &World) -> Result<(), TestCaseError> {
    let scenario = world.scenario();
    let mut snapshot = scenario.snapshot();
    for edge in &mut snapshot.body.edges {
        // As the graph derives it: some marks take the support away.
        edge.supported &= !["link-local", "multicast", "broadcast"].iter().any(|m| edge.marks.contains(*m));
    }
    let mut options: Options = scenario.options();
    options.stopped_too = false;
    let generated = export::export(&snapshot, &options);
    let cluster = options.cluster.clone().with_snapshot(&snapshot);
    let written = generate_support::evaluator(&options, cluster.clone(), &generated.files);
    let everything = emit::policies(&generated.plan, &options, &BTreeSet::new());
    let everything = generate_support::evaluator(&options, cluster, &everything);
    for edge in &snapshot.body.edges {
        if edge.counts.opened == 0 {
            continue;
        }
        let name = flow_name(edge);
        prop_assert!(written.evaluate_edge(edge).unwrap().allowed(), "{name} is denied by what is written");
        if !everything.evaluate_edge(edge).unwrap().allowed() {
            let named: Vec<_> =
                generated.problems.iter().filter(|p| p.message.contains(&format!("'{name}'"))).collect();
            prop_assert!(!named.is_empty(), "nothing says that {name} would be denied: {:?}", generated.problems);
            prop_assert!(named.iter().all(|p| !p.namespaces.is_empty() && p.namespaces.is_subset(&generated.stopped)));
        }
    }
    for problem in generated.problems.iter().filter(|p| p.kind == ProblemKind::Inexpressible) {
        let of_a_node = problem.message.starts_with("node/") || problem.message.contains("-> node/");
        let names_the_format = problem.message.contains("--format cilium");
        match world.network {
            Network::UnderCilium => prop_assert!(!of_a_node || names_the_format, "{}", problem.message),
            _ => prop_assert!(!names_the_format, "{}", problem.message),
        }
    }
    let failed = |p: &&generate::Problem| matches!(p.kind, ProblemKind::Denied | ProblemKind::Excess);
    let failed: Vec<_> = generated.problems.iter().filter(failed).collect();
    prop_assert!(failed.is_empty(), "a proof failed: {failed:?}");
    for file in generated.files.keys() {
        let namespace = emit::namespace_of_file(file);
        prop_assert!(namespace.is_none_or(|ns| !generated.stopped.contains(ns)), "{file} is of a stopped namespace");
    }
    // What stops can be accepted by name, and then nothing stops.
    let mut last = generated;
    for _ in 0..4 {
        let more = offered(&last);
        if more.is_empty() {
            break;
        }
        options.accepted.extend(more.iter().map(|flow| flow.parse().unwrap()));
        last = export::export(&snapshot, &options);
    }
    prop_assert!(last.stopped.is_empty(), "no way out: {:?}", last.problems);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(600),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_established_flow_is_allowed_or_stops_its_namespace_by_name(world in world()) {
        check(&world)?;
    }
}

#[test]
fn a_resolver_with_a_name_is_allowed_by_its_address_since_names_are_learnt_from_it() {
    let flow = Flow {
        client: End::Workload(0),
        server: End::Address("203.0.113.9"),
        port: 53,
        udp: false,
        established: true,
        marks: BTreeSet::new(),
        named: true,
        seen: 2,
    };
    let world = World {
        workloads: vec![(0, 1, false, vec![0], false)],
        flows: vec![flow],
        phase: "constrain",
        network: Network::Cilium { own_node_closed: false },
        egress: true,
        accept_inferred: false,
    };
    check(&world).unwrap();
}

#[test]
fn a_question_that_no_rule_allows_teaches_no_names() {
    let flow = |client, server, port, named| Flow {
        client,
        server,
        port,
        udp: false,
        established: true,
        marks: BTreeSet::new(),
        named,
        seen: 2,
    };
    let world = World {
        workloads: vec![(0, 1, false, vec![0], false), (0, 0, false, vec![], false), (0, 0, false, vec![], false)],
        flows: vec![
            flow(End::Workload(0), End::Workload(1), 53, false),
            flow(End::Workload(3), End::Address("203.0.113.9"), 80, true),
        ],
        phase: "constrain",
        network: Network::Cilium { own_node_closed: false },
        egress: true,
        accept_inferred: false,
    };
    check(&world).unwrap();
}
