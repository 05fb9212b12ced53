//! What `unblock` proposes opens its connection and nothing that it does not say, and closes
//! nothing: held against the naive evaluator of guardrail-policy's tests.

#[path = "../../guardrail-policy/tests/naive/mod.rs"]
#[allow(dead_code, clippy::allow_attributes, reason = "each test file uses its part")]
mod naive;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use guardrail_graph::{
    Timestamp, WorkloadRef,
    snapshot::{LabelSelector, SelectorOperator},
};
use guardrail_lifecycle::{
    plan::ExceptionEnd,
    unblock::{self, AlsoOpened, Opening, Unblock, UnblockQuestion, unblock},
};
use guardrail_policy::{
    evaluate::{Cluster, ClusterPod, Evaluator},
    exception::{self, ExceptionMark},
    generate::Format,
    model::{PeerKind, PortMatch, Protocol},
    read,
};
use naive::{End, Labels, Number, Peer, Pod, Policy, Port, Rule, Selector, World};
use proptest::{collection::vec, option, prelude::*, sample::select};

const NAMESPACES: [&str; 2] = ["blue", "green"];
const PORTS: [u16; 3] = [53, 80, 8080];
const PROTOCOLS: [&str; 2] = ["TCP", "UDP"];
const TYPES: [&[&str]; 3] = [&["Ingress"], &["Egress"], &["Ingress", "Egress"]];
const OUTSIDE: [&str; 2] = ["203.0.113.9", "198.51.100.1"];

/// A workload: its namespace, labels, and how many pods it has.
type Drawn = (&'static str, Labels, usize);

fn labels() -> impl Strategy<Value = Labels> {
    vec((select(&["app", "tier"][..]), select(&["a", "b"][..])), 0..3).prop_map(|all| all.into_iter().collect())
}

fn selector() -> impl Strategy<Value = Selector> {
    labels().prop_map(|labels| Selector { labels, expressions: Vec::new() })
}

fn peer() -> impl Strategy<Value = Peer> {
    let namespace = select(&NAMESPACES[..]).prop_map(|name| Selector {
        labels: Labels::from([("kubernetes.io/metadata.name", name)]),
        ..Selector::default()
    });
    prop_oneof![
        selector().prop_map(Peer::Pods),
        (namespace, selector()).prop_map(|(namespace, pods)| Peer::Both(namespace, pods)),
        select(&["203.0.113.0/24", "10.0.0.0/30"][..]).prop_map(|cidr| Peer::Block(cidr, Vec::new())),
    ]
}

fn rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    let port = (select(&PROTOCOLS[..]), select(&PORTS[..])).prop_map(|(protocol, port)| Port {
        protocol: Some(protocol),
        port: Some(Number::Int(port)),
        end: None,
    });
    let rule = (option::of(vec(peer(), 1..3)), option::of(vec(port, 1..3)));
    option::of(vec(rule.prop_map(|(peers, ports)| Rule { peers, ports }), 0..2))
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let types = select(&TYPES[..]).prop_map(<[_]>::to_vec);
    let policy = (select(&NAMESPACES[..]), option::of(selector()), types, rules(), rules());
    vec(policy, 0..5).prop_map(|all| {
        let named = |(index, (namespace, pods, types, ingress, egress))| Policy {
            namespace,
            name: format!("p{index}"),
            pods,
            types: Some(types),
            ingress,
            egress,
        };
        all.into_iter().enumerate().map(named).collect()
    })
}

fn world(workloads: &[Drawn], policies: Vec<Policy>) -> (World, Vec<WorkloadRef>) {
    let (mut pods, mut owners) = (Vec::new(), Vec::new());
    for (index, (namespace, labels, count)) in workloads.iter().enumerate() {
        for _ in 0..*count {
            let number = pods.len();
            pods.push(Pod {
                namespace,
                name: format!("pod{number}"),
                labels: labels.clone(),
                addresses: vec![IpAddr::from([10, 0, 0, u8::try_from(number + 1).unwrap()])],
                node: None,
                host_network: false,
                ports: Vec::new(),
            });
            owners.push(workload(namespace, index));
        }
    }
    let namespaces = NAMESPACES.into_iter().map(|name| (name, Labels::new())).collect();
    (World { namespaces, nodes: BTreeMap::new(), pods, policies }, owners)
}

fn workload(namespace: &str, index: usize) -> WorkloadRef {
    WorkloadRef { namespace: namespace.to_owned(), owner: "Deployment".to_owned(), name: format!("w{index}") }
}

fn compile(world: &World, owners: &[WorkloadRef]) -> Evaluator {
    let text = naive::yaml(&world.policies);
    let policies = if world.policies.is_empty() {
        Vec::new()
    } else {
        read::policies("p.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}")).policies
    };
    let mut cluster = Cluster::default();
    for name in NAMESPACES {
        cluster.set_namespace(name, BTreeMap::new());
    }
    for (pod, owner) in world.pods.iter().zip(owners) {
        cluster.push_pod(ClusterPod {
            namespace: pod.namespace.to_owned(),
            name: pod.name.clone(),
            labels: pod.labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            addresses: pod.addresses.clone(),
            workload: Some(owner.clone()),
            ..ClusterPod::default()
        });
    }
    Evaluator::new(cluster, policies)
}

fn end() -> Timestamp {
    "2026-03-04T00:00:00Z".parse().unwrap()
}

fn leaked(text: &str) -> &'static str {
    String::leak(text.to_owned())
}

/// A rule as it was printed, in the naive evaluator's own form.
fn read_back(yaml: &str) -> Policy {
    let read = read::policies("r.yaml", yaml.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    let [policy] = &read.policies[..] else { panic!("{yaml}") };
    let selector = |selector: &LabelSelector| Selector {
        labels: selector.match_labels.iter().map(|(k, v)| (leaked(k), leaked(v))).collect(),
        expressions: selector
            .match_expressions
            .iter()
            .map(|expression| {
                let operator = match expression.operator {
                    SelectorOperator::In => "In",
                    SelectorOperator::NotIn => "NotIn",
                    SelectorOperator::Exists => "Exists",
                    SelectorOperator::DoesNotExist => "DoesNotExist",
                };
                (leaked(&expression.key), operator, expression.values.iter().map(|value| leaked(value)).collect())
            })
            .collect(),
    };
    let rule = |rule: &guardrail_policy::model::Rule| Rule {
        peers: Some(
            rule.peers
                .iter()
                .map(|peer| match &peer.kind {
                    PeerKind::Pods { namespaces: Some(namespace), pods: Some(pods) } => {
                        Peer::Both(selector(namespace), selector(pods))
                    }
                    PeerKind::Pods { namespaces: None, pods: Some(pods) } => Peer::Pods(selector(pods)),
                    PeerKind::IpBlock(block) => Peer::Block(leaked(&block.cidr.to_string()), Vec::new()),
                    PeerKind::Pods { .. } => panic!("everybody of a namespace: {yaml}"),
                })
                .collect(),
        ),
        ports: Some(
            rule.ports
                .iter()
                .map(|port| {
                    let PortMatch::Range { first, last } = port.port else { panic!("{yaml}") };
                    assert_eq!(first, last);
                    let protocol = Some(leaked(&port.protocol.to_string()));
                    Port { protocol, port: Some(Number::Int(first)), end: None }
                })
                .collect(),
        ),
    };
    let mut types = Vec::new();
    if policy.policy_types.ingress {
        types.push("Ingress");
    }
    if policy.policy_types.egress {
        types.push("Egress");
    }
    Policy {
        namespace: leaked(&policy.namespace),
        name: policy.name.clone(),
        pods: Some(selector(&policy.pod_selector)),
        types: Some(types),
        ingress: Some(policy.ingress.iter().map(rule).collect()),
        egress: Some(policy.egress.iter().map(rule).collect()),
    }
}

/// Every end, with what an announcement calls it.
fn all_ends(world: &World, owners: &[WorkloadRef]) -> Vec<(String, End)> {
    let pods = owners.iter().enumerate().map(|(index, owner)| (owner.to_string(), End::Pod(index)));
    let _ = world;
    pods.chain(OUTSIDE.map(|address| (address.to_owned(), End::Address(address.parse().unwrap())))).collect()
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000);
    ProptestConfig { cases, max_shrink_iters: 4_000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_rule_opens_its_connection_and_nothing_that_it_does_not_say(
        workloads in vec((select(&NAMESPACES[..]), labels(), 1..3_usize), 2..6),
        policies in policies(),
        picks in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        port in select(&PORTS[..]),
        protocol in select(&PROTOCOLS[..]),
        known in any::<bool>(),
    ) {
        let (world, owners) = world(&workloads, policies);
        let evaluator = compile(&world, &owners);
        let mut choices: Vec<ExceptionEnd> = workloads
            .iter()
            .enumerate()
            .map(|(index, (namespace, ..))| ExceptionEnd::Workload(workload(namespace, index)))
            .collect();
        let inside = choices.len();
        choices.extend(OUTSIDE.map(|address| ExceptionEnd::Range(address.parse::<IpAddr>().unwrap().into())));
        let (from, to) = (picks.0.get(&choices), &choices[picks.1.index(inside)]);
        // A controller selects by part of its pods' labels.
        let selectors: BTreeMap<WorkloadRef, LabelSelector> = workloads
            .iter()
            .enumerate()
            .filter(|(_, (_, labels, _))| known && !labels.is_empty())
            .map(|(index, (namespace, labels, _))| {
                let first = labels.iter().take(1).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
                (workload(namespace, index), LabelSelector::of_labels(first))
            })
            .collect();
        let mark = ExceptionMark { id: "x".to_owned(), expires: end(), reason: "r".to_owned(), owner: "o".to_owned() };
        let ports = [(protocol.parse::<Protocol>().unwrap(), port)].into();
        let opening = exception::Opening { mark, from: from.clone(), to: to.clone(), ports };
        let (snapshot, _) = unblock::known(None, evaluator.cluster(), &selectors, [from, to]);
        let answer = unblock(&UnblockQuestion { evaluator: &evaluator, snapshot: &snapshot, opening: &opening, format: Format::NetworkPolicy });
        let ends = all_ends(&world, &owners);
        let name = |end: &ExceptionEnd| match end {
            ExceptionEnd::Workload(workload) => workload.to_string(),
            ExceptionEnd::Range(range) => range.addr().to_string(),
        };
        let (from, to) = (name(from), name(to));
        let asked_pairs: Vec<(End, End)> = ends
            .iter()
            .filter(|(name, _)| *name == from)
            .flat_map(|(_, a)| ends.iter().filter(|(name, _)| *name == to).map(move |(_, b)| (*a, *b)))
            .collect();
        let denied = asked_pairs.iter().any(|(a, b)| !world.allowed(*a, *b, protocol, port));
        match answer {
            Unblock::NotDenied => prop_assert!(!denied),
            Unblock::Impossible { because } => prop_assert!(denied, "{}", because),
            Unblock::Exception(Opening { rules, also }) => {
                prop_assert!(denied);
                let mut opened = world.clone();
                opened.policies.extend(rules.iter().map(|rule| read_back(&rule.yaml)));
                for (a, b) in asked_pairs {
                    prop_assert!(opened.allowed(a, b, protocol, port), "{:?} -> {:?}", a, b);
                }
                let mut more: BTreeSet<AlsoOpened> = BTreeSet::new();
                for (a_name, a) in &ends {
                    for (b_name, b) in &ends {
                        for other_protocol in PROTOCOLS {
                            for other_port in PORTS {
                                let before = world.allowed(*a, *b, other_protocol, other_port);
                                let after = opened.allowed(*a, *b, other_protocol, other_port);
                                prop_assert!(after || !before, "closed: {} -> {}", a_name, b_name);
                                if before == after {
                                    continue;
                                }
                                prop_assert_eq!((other_protocol, other_port), (protocol, port));
                                if (a_name, b_name) != (&from, &to) {
                                    more.insert(AlsoOpened { from: a_name.clone(), to: b_name.clone() });
                                }
                            }
                        }
                    }
                }
                prop_assert_eq!(more, also);
            }
        }
    }
}
