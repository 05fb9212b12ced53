//! The compiled evaluator and a naive one agree on random clusters, policies and flows; so do
//! explanations and verdicts, and what is said to change between two sets of policies.

#[path = "naive/mod.rs"]
mod naive;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use guardrail_policy::{
    evaluate::{
        Cluster, ClusterNode, ClusterPod, Evaluator,
        connections::{Connection, Party},
        difference::{Change, difference},
    },
    explain::Question,
    model::{Direction, Protocol},
    read,
};
use naive::{End, Labels, Number, Peer, Pod, Policy, Port, Rule, Selector, World};
use proptest::{collection::vec, option, prelude::*, sample::select};

const NAMESPACES: [&str; 3] = ["blue", "green", "red"];
const KEYS: [&str; 3] = ["app", "tier", "x.example/zone"];
const VALUES: [&str; 3] = ["a", "b", ""];
const NODES: [&str; 2] = ["n1", "n2"];
const PORTS: [u16; 7] = [1, 53, 80, 81, 8080, 30000, 65535];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const NAMES: [&str; 2] = ["http", "dns"];
const TYPES: [&[&str]; 4] = [&[], &["Ingress"], &["Egress"], &["Ingress", "Egress"]];
type Drawn = (&'static str, Labels, u8, Option<&'static str>, bool, Vec<(&'static str, &'static str, u16)>);
const BLOCKS: [(&str, &[&str]); 8] = [
    ("0.0.0.0/0", &["10.0.0.0/8"]),
    ("10.0.0.0/8", &["10.1.0.0/16", "10.0.0.2/32"]),
    ("10.0.0.0/30", &[]),
    ("192.168.0.0/24", &[]),
    ("fd00::/8", &["fd00::1/128"]),
    ("::/0", &[]),
    ("203.0.113.9/32", &[]),
    ("10.0.0.0/31", &["10.0.0.1/32"]),
];

fn labels() -> impl Strategy<Value = Labels> {
    vec((select(&KEYS[..]), select(&VALUES[..])), 0..3).prop_map(|l| l.into_iter().collect())
}

fn selector() -> impl Strategy<Value = Selector> {
    let values = vec(select(&["a", "b"][..]), 1..3);
    let expression = (select(&KEYS[..]), select(&["In", "NotIn", "Exists", "DoesNotExist"][..]), values).prop_map(
        |(key, operator, values)| {
            let values = if operator == "In" || operator == "NotIn" { values } else { Vec::new() };
            (key, operator, values)
        },
    );
    let label = vec((select(&KEYS[..]), select(&["a", "b"][..])), 0..2).prop_map(|l| l.into_iter().collect());
    (label, vec(expression, 0..2)).prop_map(|(labels, expressions)| Selector { labels, expressions })
}

fn namespace_selector() -> impl Strategy<Value = Selector> {
    let named = select(&NAMESPACES[..])
        .prop_map(|n| Selector { labels: Labels::from([("kubernetes.io/metadata.name", n)]), ..Selector::default() });
    prop_oneof![named, selector()]
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        selector().prop_map(Peer::Pods),
        namespace_selector().prop_map(Peer::Namespaces),
        (namespace_selector(), selector()).prop_map(|(n, p)| Peer::Both(n, p)),
        select(&BLOCKS[..]).prop_map(|(cidr, except)| Peer::Block(cidr, except.to_vec())),
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let number = prop_oneof![
        3 => (select(&PORTS[..]), option::of(0u16..9000)).prop_map(|(first, more)| (Some(Number::Int(first)), more.map(|m| first.saturating_add(m)))),
        1 => select(&NAMES[..]).prop_map(|name| (Some(Number::Name(name)), None)),
        1 => Just((None, None)),
    ];
    (option::of(select(&PROTOCOLS[..])), number).prop_map(|(protocol, (port, end))| Port { protocol, port, end })
}

fn rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    let rule =
        (option::of(vec(peer(), 0..3)), option::of(vec(port(), 0..3))).prop_map(|(peers, ports)| Rule { peers, ports });
    option::of(vec(rule, 0..3))
}

fn policy() -> impl Strategy<Value = Policy> {
    let types = option::of(select(&TYPES[..]).prop_map(<[_]>::to_vec));
    (select(&NAMESPACES[..]), option::of(selector()), types, rules(), rules()).prop_map(
        |(namespace, pods, types, ingress, egress)| Policy {
            namespace,
            name: String::new(),
            pods,
            types,
            ingress,
            egress,
        },
    )
}

fn pods() -> impl Strategy<Value = Vec<Pod>> {
    let port = (select(&NAMES[..]), select(&PROTOCOLS[..]), select(&PORTS[..]));
    let pod = (
        select(&NAMESPACES[..]),
        labels(),
        0..4u8,
        option::of(select(&NODES[..])),
        proptest::bool::weighted(0.15),
        vec(port, 0..3),
    );
    vec(pod, 1..6).prop_map(|pods| {
        let make = |(index, (namespace, labels, stack, node, host_network, mut ports)): (usize, Drawn)| {
            let four: IpAddr = format!("10.0.0.{}", index + 1).parse().unwrap();
            let six: IpAddr = format!("fd00::{}", index + 1).parse().unwrap();
            let addresses = match stack {
                0 => vec![four, six],
                1 => vec![six],
                _ => vec![four],
            };
            // A host-network pod has its node's address; without a node it has none yet.
            let host_network = host_network && node.is_some();
            let addresses = if host_network { node_addresses(node.unwrap()) } else { addresses };
            ports.sort();
            ports.dedup_by_key(|p: &mut (&str, &str, u16)| (p.0, p.1));
            Pod { namespace, name: format!("p{index}"), labels, addresses, node, host_network, ports }
        };
        pods.into_iter().enumerate().map(make).collect()
    })
}

fn node_addresses(node: &str) -> Vec<IpAddr> {
    vec![if node == "n1" { "192.168.0.1" } else { "192.168.0.2" }.parse().unwrap()]
}

fn world() -> impl Strategy<Value = World> {
    (vec(labels(), 3), pods(), vec(policy(), 0..5)).prop_map(|(labels, pods, mut policies)| {
        for (index, policy) in policies.iter_mut().enumerate() {
            policy.name = format!("policy-{index}");
        }
        let nodes = NODES.iter().map(|n| (*n, node_addresses(n))).collect();
        World { namespaces: NAMESPACES.into_iter().zip(labels).collect(), nodes, pods, policies }
    })
}

fn compile(world: &World) -> Evaluator {
    let text = naive::yaml(&world.policies);
    let set = read::policies("p.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let owned = |labels: &Labels| -> BTreeMap<String, String> {
        labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let mut cluster = Cluster::default();
    for (name, labels) in &world.namespaces {
        cluster.set_namespace(name, owned(labels));
    }
    for (name, addresses) in &world.nodes {
        cluster.nodes.push(ClusterNode {
            name: (*name).to_owned(),
            addresses: addresses.iter().copied().collect(),
            ..ClusterNode::default()
        });
    }
    for pod in &world.pods {
        cluster.push_pod(ClusterPod {
            namespace: pod.namespace.to_owned(),
            name: pod.name.clone(),
            labels: owned(&pod.labels),
            addresses: pod.addresses.clone(),
            node: pod.node.map(str::to_owned),
            host_network: pod.host_network,
            finished: false,
            ports: pod.ports.iter().map(|(n, p, number)| ((*n).to_owned(), p.parse().unwrap(), *number)).collect(),
            ..ClusterPod::default()
        });
    }
    Evaluator::new(cluster, set.policies)
}

fn flows(world: &World) -> Vec<(String, End)> {
    let pods = world.pods.iter().enumerate().map(|(i, p)| (format!("{}/{}", p.namespace, p.name), End::Pod(i)));
    let by_address = world.pods.iter().flat_map(|p| p.addresses.clone());
    let others = ["203.0.113.9", "198.51.100.1", "2001:db8::7", "192.168.0.1", "10.1.0.9", "fd00::99"]
        .map(|a| a.parse().unwrap());
    let addresses = by_address.chain(others).map(|a: IpAddr| (a.to_string(), End::Address(a)));
    pods.chain(addresses).collect()
}

/// `PROPTEST_CASES` sets the number of worlds; the second tier of `cargo xtask test` asks for more.
fn config() -> ProptestConfig {
    ProptestConfig { cases: cases(2_000), max_shrink_iters: 4_000, ..ProptestConfig::default() }
}

fn cases(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_naive_and_the_compiled_evaluator_agree(
        world in world(),
        picks in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), select(&PROTOCOLS[..]), select(&PORTS[..])), 8),
    ) {
        let evaluator = compile(&world);
        let ends = flows(&world);
        for (src, dst, protocol, port) in picks {
            let ((src, naive_src), (dst, naive_dst)) = (src.get(&ends), dst.get(&ends));
            let (a, b) = (evaluator.end(src).unwrap(), evaluator.end(dst).unwrap());
            let verdict = evaluator.evaluate(&a, &b, protocol.parse().unwrap(), port);
            let expected = world.allowed(*naive_src, *naive_dst, protocol, port);
            prop_assert_eq!(verdict.allowed(), expected, "{} -> {} {}/{}: {:?}\n{}", src, dst, protocol, port, verdict, naive::yaml(&world.policies));

            // The explanation, made from the policies as written, says the same: the nearest rule
            // misses, the suggested rule helps.
            let question = Question { src: (&a, src), dst: (&b, dst), protocol: protocol.parse().unwrap(), port };
            let explanation = evaluator.explain(&question);
            prop_assert_eq!(explanation.allowed, expected);
            for side in &explanation.sides {
                if let Some(near) = &side.nearest {
                    prop_assert!(!near.because.is_empty(), "{:?}", side);
                }
                prop_assert_eq!(side.smallest.is_some(), !side.allowed);
                if let Some(smallest) = &side.smallest {
                    let mut more = evaluator.policies().to_vec();
                    let target = more.iter_mut().find(|p| p.key() == smallest.policy).unwrap();
                    let types = if side.direction == Direction::Ingress { "Ingress" } else { "Egress" };
                    let text = format!(
                        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: x, namespace: {}}}\nspec:\n  policyTypes: [{types}]\n  {}:\n{}",
                        target.namespace, side.direction, smallest.yaml.lines().map(|l| format!("  {l}\n")).collect::<String>(),
                    );
                    let mut added = read::policies("s.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}")).policies.remove(0);
                    match side.direction {
                        Direction::Ingress => target.ingress.append(&mut added.ingress),
                        Direction::Egress => target.egress.append(&mut added.egress),
                    }
                    let fixed = Evaluator::new(evaluator.cluster().clone(), more);
                    let verdict = fixed.evaluate(&fixed.end(src).unwrap(), &fixed.end(dst).unwrap(), protocol.parse().unwrap(), port);
                    let now = if side.direction == Direction::Ingress { verdict.ingress } else { verdict.egress };
                    prop_assert!(now.allows(), "the suggested rule does not help: {}", text);
                }
            }
        }
    }
}

/// Whether the changes say that the connection becomes allowed, and denied.
fn listed(changes: &[Change], src: &str, dst: &str, protocol: Protocol, port: u16) -> (bool, bool) {
    let is = |party: &Party, name: &str| match party {
        Party::EveryPod => name.contains('/'),
        Party::EveryPodBut(namespace) => name.contains('/') && !name.starts_with(&format!("{namespace}/")),
        Party::EveryPodOf(namespace) => name.starts_with(&format!("{namespace}/")),
        Party::Outside => !name.contains('/'),
        Party::Block(text) => name.parse().is_ok_and(|address: IpAddr| {
            text.split(" and ").any(|family| {
                let (within, except) = family.split_once(" except ").unwrap_or((family, ""));
                let holds = |list: &str| {
                    list.split(", ")
                        .filter(|b| !b.is_empty())
                        .any(|block| block.parse::<ipnet::IpNet>().unwrap().contains(&address))
                };
                holds(within) && !holds(except)
            })
        }),
        Party::Workload(own) => **own == *name,
        Party::Everywhere => panic!("no change has it"),
    };
    let of: Vec<&Change> = changes.iter().filter(|c| is(&c.src, src) && is(&c.dst, dst)).collect();
    assert!(of.len() <= 1, "{src} -> {dst} is listed twice: {of:?}");
    let in_ports = |ports: fn(&Change) -> &guardrail_policy::evaluate::connections::Ports| {
        of.iter().any(|change| ports(change).contains(protocol, port))
    };
    (in_ports(|c| &c.allowed), in_ports(|c| &c.denied))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(150), max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    /// Both ways: what is listed changes by the words of the documentation, and what changes is
    /// listed.
    #[test]
    fn a_difference_lists_exactly_what_the_naive_evaluator_decides_otherwise(
        before in world(),
        mut more in vec(policy(), 0..3),
        kept in 0..5_usize,
    ) {
        // A set of policies and another one that shares some with it.
        let mut after = before.clone();
        after.policies.truncate(kept);
        more.iter_mut().enumerate().for_each(|(index, policy)| policy.name = format!("more-{index}"));
        after.policies.extend(more);
        let changes = difference(&compile(&before), &compile(&after));
        let of_pods = before.pods.iter().enumerate().filter(|(_, pod)| !pod.host_network);
        let pods: Vec<(String, End)> =
            of_pods.map(|(i, p)| (format!("{}/{}", p.namespace, p.name), End::Pod(i))).collect();
        let outside = ["203.0.113.9", "198.51.100.1", "2001:db8::7", "192.168.0.77", "10.1.0.9", "10.0.0.99", "fd00::99"];
        let outside: Vec<(String, End)> =
            outside.iter().map(|a| ((*a).to_owned(), End::Address(a.parse().unwrap()))).collect();
        let all = || pods.iter().chain(&outside);
        for (src, naive_src) in all() {
            for (dst, naive_dst) in all() {
                if src == dst || !src.contains('/') && !dst.contains('/') {
                    continue;
                }
                for protocol in PROTOCOLS {
                    for port in PORTS.into_iter().flat_map(|port| [port, port.saturating_add(1)]) {
                        let was = before.allowed(*naive_src, *naive_dst, protocol, port);
                        let is = after.allowed(*naive_src, *naive_dst, protocol, port);
                        let told = listed(&changes, src, dst, protocol.parse().unwrap(), port);
                        prop_assert_eq!(told, (is && !was, was && !is),
                            "{} -> {} {}/{}\n{:?}\n{}\nto\n{}", src, dst, protocol, port, changes,
                            naive::yaml(&before.policies), naive::yaml(&after.policies));
                    }
                }
            }
        }
    }
}

/// Whether the list says that the connection is allowed.
fn is_listed(all: &[Connection], src: &str, dst: &str, protocol: Protocol, port: u16) -> bool {
    let is = |party: &Party, name: &str| match party {
        Party::Everywhere => true,
        Party::EveryPod => name.contains('/'),
        Party::Outside => !name.contains('/'),
        Party::Workload(own) => **own == *name,
        Party::Block(_) => false,
        Party::EveryPodBut(_) | Party::EveryPodOf(_) => panic!("only differences have it"),
    };
    all.iter().any(|c| is(&c.src, src) && is(&c.dst, dst) && c.ports.contains(protocol, port))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(300), max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    /// Every pair of pods, and every pod with the world outside, at each port that a rule may name
    /// and the one after it.
    #[test]
    fn all_connections_are_those_that_the_naive_evaluator_allows(world in world()) {
        let evaluator = compile(&world);
        let all = evaluator.connections();
        let of_pods = world.pods.iter().enumerate().filter(|(_, pod)| !pod.host_network);
        let pods: Vec<(String, End)> =
            of_pods.map(|(i, p)| (format!("{}/{}", p.namespace, p.name), End::Pod(i))).collect();
        let outside = ["198.51.100.1", "2001:db8::7"].map(|a| End::Address(a.parse().unwrap()));
        let named: Vec<u16> = world.pods.iter().flat_map(|pod| pod.ports.iter().map(|(.., number)| *number)).collect();
        let of_rules = world.policies.iter().flat_map(|p| p.ingress.iter().chain(&p.egress)).flatten();
        let of_rules = of_rules.flat_map(|rule| rule.ports.iter().flatten()).flat_map(|port| {
            let first = if let Some(Number::Int(first)) = port.port { Some(first) } else { None };
            [first, port.end].into_iter().flatten()
        });
        let bounds: Vec<u16> = of_rules.chain(named).chain([1, 65535]).collect();
        let ports: BTreeSet<u16> =
            bounds.iter().flat_map(|port| [port.saturating_sub(1).max(1), *port, port.saturating_add(1)]).collect();
        let told = |src: &str, dst: &str, protocol: &str, port: u16, expected: bool| {
            let told = is_listed(&all, src, dst, protocol.parse().unwrap(), port);
            prop_assert_eq!(told, expected, "{} -> {} {}/{}\n{:?}\n{}",
                src, dst, protocol, port, all, naive::yaml(&world.policies));
            Ok(())
        };
        for (protocol, port) in PROTOCOLS.into_iter().flat_map(|protocol| ports.iter().map(move |port| (protocol, *port))) {
            for (name, own) in &pods {
                for (other, there) in pods.iter().filter(|(other, _)| other != name) {
                    told(name, other, protocol, port, world.allowed(*own, *there, protocol, port))?;
                }
                // An address of each family stands for the world.
                let into = outside.iter().any(|there| world.allowed(*there, *own, protocol, port));
                told("outside", name, protocol, port, into)?;
                let out = outside.iter().any(|there| world.allowed(*own, *there, protocol, port));
                told(name, "outside", protocol, port, out)?;
            }
        }
    }
}
