//! Properties of the generator over random clusters and flows, judged pod by pod. What must pass
//! and what must not is worked out here anew, from the flows alone; neither the generator's plan
//! nor its own proof is asked.

mod generate_support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use generate_support::{Edge, Export, Pod, Scenario, Service, Workload};
use guardrail_policy::{
    emit::{self, EVIDENCE_FILE, REPORT_FILE},
    evaluate::{End, Evaluator},
    export,
    generate::{self, ProblemKind},
    memory::Memory,
    model::{Direction, PortMatch, Protocol, tier::TierPeer},
};
use proptest::prelude::*;

const PORTS: [u16; 5] = [53, 80, 443, 8080, 9999];
const NODE_PORT: u16 = 30080;

/// A workload: namespace, pods as (node, number of port `http`, has IPv6), behind a node port.
type Shape = (usize, Vec<(usize, Option<bool>, bool)>, bool);

#[derive(Clone, Debug)]
struct World {
    namespaces: usize,
    nodes: usize,
    workloads: Vec<Shape>,
    flows: Vec<Flow>,
    phase: usize,
    cilium: bool,
    egress: bool,
    accept_inferred: bool,
    /// By workload; those beyond are not sensitive.
    sensitive: Vec<bool>,
}

#[derive(Clone, Debug)]
struct Flow {
    client: usize,
    server: usize,
    kind: Kind,
    port: usize,
    udp: bool,
    failed: bool,
    inferred: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Pods,
    FromAddress(u8),
    FromMany,
    FromNode,
    ToAddress(u8),
    ToNode,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        8 => Just(Kind::Pods),
        1 => (1u8..20).prop_map(Kind::FromAddress),
        1 => Just(Kind::FromMany),
        1 => Just(Kind::FromNode),
        1 => (1u8..20).prop_map(Kind::ToAddress),
        1 => Just(Kind::ToNode),
    ]
}

fn flow() -> impl Strategy<Value = Flow> {
    (0usize..6, 0usize..6, kind(), 0usize..4, any::<bool>(), prop::bool::weighted(0.15), prop::bool::weighted(0.15))
        .prop_map(|(client, server, kind, port, udp, failed, inferred)| Flow {
            client,
            server,
            kind,
            port,
            udp,
            failed,
            inferred,
        })
}

fn world(phases: std::ops::Range<usize>) -> impl Strategy<Value = World> {
    let pod = (0usize..3, prop::option::of(any::<bool>()), any::<bool>());
    let workload = (0usize..3, prop::collection::vec(pod, 1..3), prop::bool::weighted(0.2));
    (
        1usize..4,
        1usize..4,
        prop::collection::vec(workload, 1..6),
        prop::collection::vec(flow(), 0..14),
        phases,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec(prop::bool::weighted(0.4), 0..4),
    )
        .prop_map(|(namespaces, nodes, workloads, flows, phase, cilium, egress, accept_inferred, sensitive)| {
            World { namespaces, nodes, workloads, flows, phase, cilium, egress, accept_inferred, sensitive }
                .with_distinct_flows()
        })
}

impl World {
    fn name(&self, workload: usize) -> String {
        let index = workload % self.workloads.len();
        format!("ns{}/Deployment/w{index}", self.workloads[index].0 % self.namespaces)
    }

    fn node(&self, node: usize) -> String {
        format!("node-{}", node % self.nodes)
    }

    /// The name `http` at port 80 or 8080, if the edge's port is the one that this pod or another
    /// calls so.
    fn port_name(&self, workload: usize, port: u16) -> Option<String> {
        let workload = workload % self.workloads.len();
        let pods = &self.workloads[workload].1;
        pods.iter().any(|(_, http, _)| http.map(|h| number(h, workload)) == Some(port)).then(|| "http".to_owned())
    }

    fn edge(&self, flow: &Flow) -> String {
        let (client, server) = match flow.kind {
            Kind::Pods => (self.name(flow.client), self.name(flow.server)),
            Kind::FromAddress(n) => (format!("198.51.100.{n}"), self.name(flow.server)),
            Kind::FromMany => ("*".to_owned(), self.name(flow.server)),
            Kind::FromNode => (format!("node/{}", self.node(flow.client)), self.name(flow.server)),
            Kind::ToAddress(n) => (self.name(flow.client), format!("203.0.113.{n}")),
            Kind::ToNode => (self.name(flow.client), format!("node/{}", self.node(flow.server))),
        };
        format!("{client} -> {server} {}/{}", PORTS[flow.port], if flow.udp { "UDP" } else { "TCP" })
    }

    fn supports(&self, flow: &Flow) -> bool {
        !flow.failed && (!flow.inferred || self.accept_inferred)
    }

    /// As a snapshot has them: one edge per key, the last word counts.
    fn with_distinct_flows(mut self) -> Self {
        let by_key: BTreeMap<String, Flow> = self.flows.iter().map(|f| (self.edge(f), f.clone())).collect();
        self.flows = by_key.into_values().collect();
        self
    }

    fn scenario(&self) -> Scenario {
        let mut workloads = BTreeMap::new();
        let mut services = BTreeMap::new();
        for (index, (_, pods, behind_node_port)) in self.workloads.iter().enumerate() {
            let name = self.name(index);
            let mut entry = Workload {
                labels: BTreeMap::from([
                    ("app".to_owned(), format!("w{index}")),
                    ("tier".to_owned(), "all".to_owned()),
                ]),
                ..Workload::default()
            };
            for (nth, (node, http, v6)) in pods.iter().enumerate() {
                let mut addresses: BTreeSet<IpAddr> =
                    BTreeSet::from([format!("10.244.{index}.{}", nth + 10).parse().unwrap()]);
                if *v6 {
                    addresses.insert(format!("fd00:10:244:{index}::{}", nth + 10).parse().unwrap());
                }
                let ports = http.map(|h| ("http".to_owned(), number(h, index).to_string())).into_iter().collect();
                entry.pods.insert(format!("w{index}-{nth}"), Pod { node: self.node(*node), addresses, ports });
            }
            if *behind_node_port {
                let backends = (0..pods.len())
                    .flat_map(|nth| PORTS.map(|port| format!("{name} 10.244.{index}.{}:{port}", nth + 10)))
                    .collect();
                let service = Service {
                    service_type: "NodePort".to_owned(),
                    addresses: BTreeSet::new(),
                    port: 80,
                    protocol: "TCP".to_owned(),
                    node_port: Some(NODE_PORT),
                    backends,
                };
                services.insert(format!("default/s{index}"), service);
            }
            workloads.insert(name, entry);
        }
        let edges = self
            .flows
            .iter()
            .map(|flow| {
                let seen = match flow.kind {
                    // Only the server's nodes see what a node port let through.
                    Kind::FromNode => self.server_nodes(flow).into_iter().map(|n| format!("server@{n}")).collect(),
                    _ => Vec::new(),
                };
                Edge {
                    edge: self.edge(flow),
                    port_name: matches!(flow.kind, Kind::Pods | Kind::FromAddress(_) | Kind::FromMany | Kind::FromNode)
                        .then(|| self.port_name(flow.server, PORTS[flow.port]))
                        .flatten(),
                    via: BTreeSet::new(),
                    marks: if flow.inferred { BTreeSet::from(["inferred".to_owned()]) } else { BTreeSet::new() },
                    names: BTreeSet::new(),
                    seen,
                    failed: flow.failed,
                    unanswered: false,
                    node_workloads: BTreeSet::new(),
                    addresses: None,
                }
            })
            .collect();
        Scenario {
            about: "random".to_owned(),
            export: Export {
                phase: ["observe", "constrain", "default-deny"][self.phase].to_owned(),
                format: self.cilium.then(|| "cilium".to_owned()),
                egress: self.egress,
                accept_inferred: self.accept_inferred,
                sensitive: (0..self.workloads.len()).filter(|w| self.is_sensitive(*w)).map(|w| self.name(w)).collect(),
                ..Export::default()
            },
            nodes: (0..self.nodes).map(|n| (format!("node-{n}"), vec![node_address(n), tunnel_address(n)])).collect(),
            observed: None,
            pod_ranges: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
            workloads,
            services,
            edges,
            incomplete: BTreeMap::new(),
            gaps: BTreeSet::new(),
            allowed: Vec::new(),
            denied: Vec::new(),
            existing: None,
        }
    }

    fn server_nodes(&self, flow: &Flow) -> BTreeSet<String> {
        self.workloads[flow.server % self.workloads.len()].1.iter().map(|(node, ..)| self.node(*node)).collect()
    }

    /// A node that calls only pods of its own needs no rule: those are exempt.
    fn is_probe(&self, flow: &Flow) -> bool {
        flow.kind == Kind::FromNode
            && self.server_nodes(flow) == BTreeSet::from([self.node(flow.client)])
            && !self.identity_lost(flow)
    }

    /// The node stands for whoever came through the node port.
    fn identity_lost(&self, flow: &Flow) -> bool {
        flow.kind == Kind::FromNode && !flow.udp && self.workloads[flow.server % self.workloads.len()].2
    }

    /// Whether a flow justifies that this port of `server`, which is its target or stands behind
    /// the same boundary, is open to whom it was open for: the same number, or the same name at
    /// another number, if the name is every pod's and has several (B2).
    fn opens(&self, flow: &Flow, server: usize, port: u16, udp: bool) -> bool {
        let to = flow.server % self.workloads.len();
        let seen = PORTS[flow.port];
        let numbers = |w: usize| self.workloads[w].1.iter().map(move |(_, http, _)| http.map(|h| number(h, w)));
        let varies = numbers(to).all(|n| n.is_some()) && numbers(to).collect::<BTreeSet<_>>().len() > 1;
        let by_name = varies && numbers(to).any(|n| n == Some(seen)) && numbers(server).any(|n| n == Some(port));
        flow.udp == udp && (seen == port || (!udp && by_name))
    }

    fn may_pass(&self, client: usize, server: usize, port: u16, udp: bool) -> bool {
        self.ingress_may_pass(client, server, port, udp)
            && (!self.egress || self.egress_may_pass(client, server, port, udp))
    }

    fn supported(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter().filter(|f| self.supports(f))
    }

    fn is_sensitive(&self, workload: usize) -> bool {
        self.sensitive.get(workload) == Some(&true)
    }

    fn namespace(&self, workload: usize) -> usize {
        self.workloads[workload].0 % self.namespaces
    }

    fn ingress_may_pass(&self, client: usize, server: usize, port: u16, udp: bool) -> bool {
        let boundary = self.phase != 2 && !self.is_sensitive(server);
        if boundary && self.namespace(client) == self.namespace(server) {
            return true;
        }
        self.supported().any(|f| {
            let to = f.server % self.workloads.len();
            // A boundary opens a port for every pod behind it.
            let same_target =
                to == server || (boundary && !self.is_sensitive(to) && self.namespace(to) == self.namespace(server));
            let from_client = f.kind == Kind::Pods && f.client % self.workloads.len() == client;
            let port_fits = self.opens(f, to, port, udp) || (same_target && self.opens(f, server, port, udp));
            same_target && (from_client || self.identity_lost(f)) && (port_fits || (self.egress && dns(f, port)))
        })
    }

    fn egress_may_pass(&self, client: usize, server: usize, port: u16, udp: bool) -> bool {
        let asked_for_names =
            |f: &Flow| dns(f, port) && f.kind == Kind::Pods && f.server % self.workloads.len() == server;
        self.supported()
            .any(|f| asked_for_names(f) || (self.calls(f, client, server) && self.opens(f, server, port, udp)))
    }

    fn calls(&self, flow: &Flow, client: usize, server: usize) -> bool {
        flow.kind == Kind::Pods
            && flow.client % self.workloads.len() == client
            && flow.server % self.workloads.len() == server
    }
}

/// Whoever may ask for names over one transport may do so over both.
fn dns(flow: &Flow, port: u16) -> bool {
    PORTS[flow.port] == 53 && port == 53
}

/// What a pod of this workload calls `http`.
fn number(eighty: bool, workload: usize) -> u16 {
    match (eighty, workload % 2) {
        (true, _) => 80,
        (false, 0) => 8080,
        (false, _) => 9999,
    }
}

fn node_address(node: usize) -> IpAddr {
    format!("192.0.2.{}", node + 1).parse().unwrap()
}

fn tunnel_address(node: usize) -> IpAddr {
    format!("10.244.{}.0", node + 200).parse().unwrap()
}

/// Every pod of a workload, with the number of its port `http`.
fn pods(world: &World, evaluator: &Evaluator, workload: usize) -> Vec<(End, Option<u16>)> {
    let namespace = world.workloads[workload].0 % world.namespaces;
    let pods = world.workloads[workload].1.iter().enumerate();
    pods.map(|(nth, (_, http, _))| {
        (evaluator.end(&format!("ns{namespace}/w{workload}-{nth}")).unwrap(), http.map(|h| number(h, workload)))
    })
    .collect()
}

fn check(world: &World) -> Result<(), TestCaseError> {
    let scenario = world.scenario();
    let snapshot = scenario.snapshot();
    let options = scenario.options();
    let generated = export::export(&snapshot, &options);
    // What was inferred and not accepted stops its namespace (generate_invariant.rs); the policies
    // are right all the same.
    let waits = |p: &generate::Problem| p.kind == ProblemKind::Unallowed && !world.accept_inferred;
    prop_assert!(generated.problems.iter().all(waits), "{:?}", generated.problems);
    let cluster = options.cluster.clone().with_snapshot(&snapshot);
    let evaluator = generate_support::evaluator(&options, cluster, &generated.files);
    prop_assert!(evaluator.policies().is_empty() == (world.cilium || evaluator.forms().is_empty()));
    check_form(world, &evaluator)?;

    let address = |text: &str| evaluator.end_of_address(text.parse().unwrap());
    for flow in world.flows.iter().filter(|f| world.supports(f) && !world.is_probe(f)) {
        let client = flow.client % world.workloads.len();
        let server = flow.server % world.workloads.len();
        let (port, protocol) = (PORTS[flow.port], if flow.udp { Protocol::Udp } else { Protocol::Tcp });
        let node_ends = |node: usize| vec![evaluator.end_of_address(node_address(node % world.nodes))];
        let all = |w: usize| pods(world, &evaluator, w).into_iter().map(|(end, _)| end).collect::<Vec<_>>();
        let clients = match flow.kind {
            Kind::Pods | Kind::ToAddress(_) | Kind::ToNode => all(client),
            Kind::FromAddress(n) => vec![address(&format!("198.51.100.{n}"))],
            Kind::FromMany => vec![address("198.51.100.200"), address("2001:db8::77")],
            Kind::FromNode => {
                [node_ends(flow.client), vec![evaluator.end_of_address(tunnel_address(flow.client % world.nodes))]]
                    .concat()
            }
        };
        let servers = match flow.kind {
            Kind::ToAddress(n) => vec![address(&format!("203.0.113.{n}"))],
            Kind::ToNode => node_ends(flow.server),
            _ => {
                let pods = pods(world, &evaluator, server);
                // A pod that calls another number `http` is not asked on this one.
                let named = world.port_name(server, port).is_some() && pods.iter().all(|(_, http)| http.is_some());
                pods.into_iter()
                    .filter(|(_, http)| !(named && !flow.udp && *http != Some(port)))
                    .map(|(end, _)| end)
                    .collect()
            }
        };
        for (from, to) in clients.iter().flat_map(|c| servers.iter().map(move |s| (c, s))) {
            let verdict = evaluator.evaluate(from, to, protocol, port);
            prop_assert!(verdict.allowed(), "{} was observed and is denied: {verdict:?}", world.edge(flow));
        }
    }

    let names: Vec<_> = (0..world.workloads.len()).map(|w| (w, pods(world, &evaluator, w))).collect();
    for ((client, client_pods), (server, server_pods)) in names.iter().flat_map(|c| names.iter().map(move |s| (c, s))) {
        for (port, udp) in PORTS.iter().chain(&[NODE_PORT]).flat_map(|p| [(*p, false), (*p, true)]) {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let passes = client_pods
                .iter()
                .flat_map(|(c, _)| server_pods.iter().map(move |(s, _)| (c, s)))
                .filter(|(c, s)| c != s)
                .any(|(c, s)| evaluator.evaluate(c, s, protocol, port).allowed());
            prop_assert!(
                !passes || world.may_pass(*client, *server, port, udp),
                "{} -> {} {port}/{protocol} passes and was never observed",
                world.name(*client),
                world.name(*server)
            );
        }
    }
    Ok(())
}

/// docs/design.md#policy, 3: ports of pods, no address of the cluster but a node's, explicit types.
fn check_form(world: &World, evaluator: &Evaluator) -> Result<(), TestCaseError> {
    let node_addresses: BTreeSet<IpAddr> =
        (0..world.nodes).flat_map(|n| [node_address(n), tunnel_address(n)]).collect();
    prop_assert!(evaluator.policies().iter().all(|policy| policy.policy_types.explicit));
    for policy in evaluator.forms() {
        for rule in Direction::BOTH.into_iter().flat_map(|d| policy.rules(d)) {
            // Nobody in Cilium's form is its default deny.
            let peers = rule.peers.as_deref().unwrap_or_default();
            prop_assert!(!peers.is_empty() || (world.cilium && rule.peers.is_some() && rule.ports.is_empty()));
            for port in &rule.ports {
                match &port.port {
                    PortMatch::Range { first, last } => {
                        prop_assert!(first == last && PORTS.contains(first), "{policy:?}")
                    }
                    PortMatch::Named(name) => prop_assert!(name == "http" && !world.cilium, "{policy:?}"),
                    PortMatch::Any => prop_assert!(false, "a rule names its ports: {:?}", policy),
                }
            }
            for peer in peers {
                let TierPeer::Addresses { block, .. } = &**peer else { continue };
                let inside =
                    block.cidr.to_string().starts_with("10.244.") || block.cidr.to_string().starts_with("fd00:10:244");
                let node = node_addresses.contains(&block.cidr.addr());
                prop_assert!(if world.cilium { !inside && !node } else { !inside || node }, "{policy:?}");
            }
        }
    }
    Ok(())
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    // Two tests, so that two processors share the cases.
    #![proptest_config(cases(1_500))]

    #[test]
    fn default_deny_allows_every_supported_flow_and_no_unobserved_pair(world in world(2..3)) {
        check(&world)?;
    }

    #[test]
    fn boundaries_allow_every_supported_flow_and_no_unobserved_pair_across_them(world in world(0..2)) {
        check(&world)?;
    }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn generation_depends_neither_on_the_run_nor_on_the_order_of_records(world in world(0..3), seed in any::<u64>()) {
        let scenario = world.scenario();
        let snapshot = scenario.snapshot();
        let mut shuffled = snapshot.clone();
        let by = |index: usize| (index as u64 + 1).wrapping_mul(seed | 1).rotate_left(17);
        shuffle(&mut shuffled.body.edges, by);
        shuffle(&mut shuffled.body.workloads, by);
        shuffle(&mut shuffled.body.services, by);
        shuffle(&mut shuffled.body.addresses, by);
        let files = |s| export::export(s, &scenario.options()).files;
        prop_assert_eq!(files(&snapshot), files(&snapshot));
        prop_assert_eq!(files(&snapshot), files(&shuffled));
    }

    #[test]
    fn counts_and_times_change_the_sidecars_alone(world in world(0..3), more in 1u64..1000) {
        let scenario = world.scenario();
        let snapshot = scenario.snapshot();
        let mut later = snapshot.clone();
        for edge in &mut later.body.edges {
            edge.counts.bytes_sent += more;
            if edge.counts.opened > 0 {
                edge.counts.opened += more;
            }
            edge.last_seen = edge.last_seen.after(std::time::Duration::from_secs(more));
        }
        let policies = |s| {
            let mut files = export::export(s, &scenario.options()).all_files();
            let sidecars = (files.remove(EVIDENCE_FILE), files.remove(REPORT_FILE));
            (files, sidecars)
        };
        let (before, before_sidecars) = policies(&snapshot);
        let (after, after_sidecars) = policies(&later);
        prop_assert_eq!(before, after);
        let mentioned = snapshot.body.edges.iter().any(|e| before_sidecars.0.as_ref().is_some_and(|text| text.contains(&e.last_seen.to_string())));
        prop_assert!(!mentioned || before_sidecars != after_sidecars);
    }

    #[test]
    fn who_counted_an_edge_is_asked_only_where_it_is_kept(world in world(0..3)) {
        let scenario = world.scenario();
        let (whole, options) = (scenario.snapshot(), scenario.options());
        let mut without = whole.clone();
        for edge in without.body.edges.iter_mut().filter(|edge| !generate::asks_who_counted(edge)) {
            edge.sources.clear();
        }
        let [exported, again] = [&whole, &without].map(|snapshot| export::export(snapshot, &options));
        prop_assert_eq!(exported.all_files(), again.all_files());
        let cluster = options.cluster.clone().with_snapshot(&whole);
        let evaluator = generate_support::evaluator(&options, cluster, &exported.all_files());
        for edge in &whole.body.edges {
            let verdict = evaluator.evaluate_edge(edge).map(|verdict| verdict.allowed());
            prop_assert_eq!(evaluator.allows_edge(edge), verdict, "{}", generate::edge_name(edge));
        }
    }

    #[test]
    fn what_an_export_allowed_the_next_ones_allow_whatever_they_see(
        world in world(0..3),
        seen in any::<[u16; 2]>(),
    ) {
        let scenario = world.scenario();
        let whole = scenario.snapshot();
        let mut options = scenario.options();
        let mut directory: BTreeMap<String, String> = BTreeMap::new();
        let mut allowed: Option<Vec<bool>> = None;
        for seen in [u16::MAX, seen[0], seen[1]] {
            let mut snapshot = whole.clone();
            let mut bits = (0u32..16).cycle();
            snapshot.body.edges.retain(|_| seen >> bits.next().unwrap() & 1 == 1);
            let exported = export::export(&snapshot, &options);
            // Files of stopped namespaces stay as they were.
            let namespace = |name: &str| emit::namespace_of_file(name).map(str::to_owned);
            directory.retain(|name, _| namespace(name).is_some_and(|ns| exported.stopped.contains(&ns)));
            directory.extend(exported.all_files());
            let cluster = options.cluster.clone().with_snapshot(&whole);
            let evaluator = generate_support::evaluator(&options, cluster, &directory);
            let verdicts: Vec<bool> = whole
                .body
                .edges
                .iter()
                .map(|edge| evaluator.evaluate_edge(edge).is_ok_and(|verdict| verdict.allowed()))
                .collect();
            let before = allowed.get_or_insert_with(|| verdicts.clone());
            for ((edge, before), now) in whole.body.edges.iter().zip(before.iter()).zip(&verdicts) {
                let supports = edge.supported && (world.accept_inferred || !edge.marks.contains("inferred"));
                prop_assert!(!supports || !before || *now, "{} is denied", generate::edge_name(edge));
            }
            options.memory = Memory::read(&directory[EVIDENCE_FILE]).unwrap();
        }
    }
}

fn shuffle<T: Clone>(items: &mut [T], key: impl Fn(usize) -> u64) {
    let mut keyed: Vec<(u64, T)> = items.iter().cloned().enumerate().map(|(index, item)| (key(index), item)).collect();
    keyed.sort_by_key(|(key, _)| *key);
    for (slot, (_, item)) in items.iter_mut().zip(keyed) {
        *slot = item;
    }
}
