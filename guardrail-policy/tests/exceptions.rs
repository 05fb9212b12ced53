//! Exceptions beside any set of other policies: they deny nothing that the set leaves open, allow
//! nothing but their own connections, and where nothing is said against them, these pass.
//!
//! Judged by the naive evaluator: what was written is given to it rule by rule.

mod generate_support;
#[path = "naive/mod.rs"]
#[expect(dead_code, reason = "tests/agreement.rs has the rest")]
mod naive;

use std::collections::BTreeMap;

use generate_support::{Scenario, peer};
use guardrail_graph::{Timestamp, snapshot::LabelSelector};
use guardrail_policy::{
    evaluate::Evaluator,
    exception::{self, ExceptionEnd, ExceptionMark, ExceptionOutcome, Opening},
    generate::{Options, Phase, PlannedPolicy, PlannedRule, PortRef, RulePeer},
    model::{Direction, Protocol},
    read,
};
use naive::{End, Labels, Number, Peer, Pod, Policy, Port, Rule, Selector, World};
use proptest::{collection::vec, option, prelude::*, sample::select};

const NAMESPACES: [&str; 2] = ["blue", "green"];
const PORTS: [u16; 3] = [80, 443, 5432];
const TYPES: [&[&str]; 3] = [&["Ingress"], &["Egress"], &["Ingress", "Egress"]];

/// Workloads with one or two pods: namespace, value of `app`, pods; `app` alone selects them.
type Shape = (usize, &'static str, usize);

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    vec((0..NAMESPACES.len(), select(&["a", "b", "c"][..]), 1usize..3), 2..5)
}

fn selector() -> impl Strategy<Value = Selector> {
    let label = select(&["a", "b", "c"][..]).prop_map(|value| Labels::from([("app", value)]));
    let labels = option::of(label).prop_map(Option::unwrap_or_default);
    // A label of single pods: only some of a workload are selected.
    (labels, prop::bool::weighted(0.3)).prop_map(|(mut labels, first)| {
        if first {
            labels.insert("first", "yes");
        }
        Selector { labels, ..Selector::default() }
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let everybody = Just(Peer::Namespaces(Selector::default()));
    let peers = option::of(vec(prop_oneof![selector().prop_map(Peer::Pods), everybody], 1..3));
    let port = select(&PORTS[..]).prop_map(|port| Port { protocol: None, port: Some(Number::Int(port)), end: None });
    (peers, option::of(vec(port, 1..3))).prop_map(|(peers, ports)| Rule { peers, ports })
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let types = select(&TYPES[..]);
    let policy = (select(&NAMESPACES[..]), selector(), types, vec(rule(), 0..3), vec(rule(), 0..3));
    vec(policy, 0..5).prop_map(|all| {
        let policy =
            |(index, (namespace, pods, types, ingress, egress)): (usize, (_, _, &[&'static str], _, _))| Policy {
                namespace,
                name: format!("p{index}"),
                pods: Some(pods),
                types: Some(types.to_vec()),
                ingress: types.contains(&"Ingress").then_some(ingress),
                egress: types.contains(&"Egress").then_some(egress),
            };
        all.into_iter().enumerate().map(policy).collect()
    })
}

fn name(shapes: &[Shape], index: usize) -> String {
    let index = index % shapes.len();
    format!("{}/Deployment/w{index}", NAMESPACES[shapes[index].0])
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn world(shapes: &[Shape], policies: Vec<Policy>) -> World {
    let pods = shapes.iter().enumerate().flat_map(|(index, (namespace, app, count))| {
        (0..*count).map(move |nth| Pod {
            namespace: NAMESPACES[*namespace],
            name: format!("w{index}-{nth}"),
            labels: labels(app, nth),
            addresses: vec![address(index, nth).parse().unwrap()],
            node: Some("node-a"),
            host_network: false,
            ports: Vec::new(),
        })
    });
    World {
        namespaces: NAMESPACES.map(|namespace| (namespace, Labels::new())).into(),
        nodes: BTreeMap::from([("node-a", vec!["192.0.2.1".parse().unwrap()])]),
        pods: pods.collect(),
        policies,
    }
}

fn labels(app: &'static str, nth: usize) -> Labels {
    let first = (nth == 0).then_some(("first", "yes"));
    [("app", app)].into_iter().chain(first).collect()
}

fn address(index: usize, nth: usize) -> String {
    format!("10.244.{index}.{}", nth + 10)
}

/// The same pods as a snapshot, and as an inventory: labels differ within a workload.
fn scenario(shapes: &[Shape]) -> Scenario {
    let mut workloads = serde_json::Map::new();
    for (index, (_, app, count)) in shapes.iter().enumerate() {
        let pods: serde_json::Map<String, serde_json::Value> = (0..*count)
            .map(|nth| {
                let pod = serde_json::json!({"node": "node-a", "addresses": [address(index, nth)]});
                (format!("w{index}-{nth}"), pod)
            })
            .collect();
        workloads.insert(name(shapes, index), serde_json::json!({"labels": {"app": app}, "pods": pods}));
    }
    serde_json::from_value(serde_json::json!({
        "about": "random", "export": {"phase": "observe"}, "nodes": {"node-a": ["192.0.2.1"]}, "workloads": workloads,
    }))
    .unwrap()
}

fn inventory(world: &World) -> Vec<guardrail_policy::evaluate::ClusterPod> {
    let pod = |pod: &Pod| guardrail_policy::evaluate::ClusterPod {
        namespace: pod.namespace.to_owned(),
        name: pod.name.clone(),
        labels: pod.labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        addresses: pod.addresses.clone(),
        node: pod.node.map(str::to_owned),
        ..Default::default()
    };
    world.pods.iter().map(pod).collect()
}

fn naive_selector(selector: &LabelSelector) -> Selector {
    assert!(selector.match_expressions.is_empty(), "{selector:?}");
    Selector { labels: selector.match_labels.iter().map(|(k, v)| (leak(k), leak(v))).collect(), ..Selector::default() }
}

/// What was written, in the naive evaluator's own types.
fn naive_policy(policy: &PlannedPolicy) -> Policy {
    let rules = |rules: &Option<Vec<PlannedRule>>| rules.as_ref().map(|all| all.iter().map(naive_rule).collect());
    let types = [("Ingress", policy.ingress.is_some()), ("Egress", policy.egress.is_some())];
    Policy {
        namespace: leak(&policy.namespace),
        name: policy.name.clone(),
        pods: Some(naive_selector(&policy.subject)),
        types: Some(types.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect()),
        ingress: rules(&policy.ingress),
        egress: rules(&policy.egress),
    }
}

fn naive_rule(rule: &PlannedRule) -> Rule {
    let peer = |peer: &RulePeer| match peer {
        RulePeer::Pods { namespace: None, selector } => Peer::Pods(naive_selector(selector)),
        RulePeer::Pods { namespace: Some(namespace), selector } => Peer::Both(
            Selector {
                labels: Labels::from([("kubernetes.io/metadata.name", leak(namespace))]),
                ..Selector::default()
            },
            naive_selector(selector),
        ),
        RulePeer::Block { cidr, .. } => Peer::Block(leak(&cidr.to_string()), Vec::new()),
        other => panic!("{other:?}"),
    };
    let port = |port: &guardrail_policy::generate::RulePort| match &port.port {
        PortRef::Number(number) => {
            Port { protocol: Some(leak(&port.protocol.to_string())), port: Some(Number::Int(*number)), end: None }
        }
        PortRef::Name(name) => panic!("{name}"),
    };
    assert!(!rule.peers.is_empty() && !rule.ports.is_empty(), "{rule:?}");
    Rule { peers: Some(rule.peers.iter().map(peer).collect()), ports: Some(rule.ports.iter().map(port).collect()) }
}

fn opening(number: usize, from: ExceptionEnd, to: ExceptionEnd, port: u16) -> Opening {
    Opening {
        mark: ExceptionMark {
            id: format!("inc-{number}"),
            expires: Timestamp::from_unix_seconds(1_800_000_000),
            reason: "r".to_owned(),
            owner: "o".to_owned(),
        },
        from,
        to,
        ports: [(Protocol::Tcp, port)].into(),
    }
}

fn workload(shapes: &[Shape], index: usize) -> ExceptionEnd {
    ExceptionEnd::Workload(peer(&name(shapes, index)).workload().unwrap().clone())
}

/// `PROPTEST_CASES` sets the number of worlds.
fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn exceptions_deny_nothing_and_allow_nothing_but_their_own(
        shapes in shapes(),
        policies in policies(),
        drawn in vec((0usize..5, 0usize..5, select(&PORTS[..]), prop::bool::weighted(0.2)), 1..4),
    ) {
        let before = world(&shapes, policies.clone());
        let scenario = scenario(&shapes);
        let snapshot = scenario.snapshot();
        let mut options = Options::new(Phase::Observe);
        options.cluster = scenario.options().cluster;
        for pod in inventory(&before) {
            options.cluster.push_pod(pod);
        }
        let set = read::policies("p.yaml", naive::yaml(&policies).as_bytes()).map(|set| set.policies).unwrap_or_default();
        prop_assert_eq!(set.len(), policies.len());
        let in_force = Evaluator::new(options.cluster.clone().with_snapshot(&snapshot), set);
        let openings: Vec<Opening> = drawn
            .iter()
            .enumerate()
            .map(|(number, (from, to, port, range))| {
                let from = if *range { ExceptionEnd::Range("10.244.0.0/24".parse().unwrap()) } else { workload(&shapes, *from) };
                opening(number, from, workload(&shapes, *to), *port)
            })
            .collect();
        let written = exception::decide(&snapshot, &options, &openings, &in_force);
        let mut all = policies;
        all.extend(written.policies.iter().map(naive_policy));
        let after = world(&shapes, all);
        // Who bears the label of an end is meant with it.
        let is_end = |end: &ExceptionEnd, pod: &Pod| match end {
            ExceptionEnd::Range(_) => pod.addresses[0].to_string().starts_with("10.244.0."),
            ExceptionEnd::Workload(workload) => shapes.iter().enumerate().any(|(index, (ns, app, _))| {
                name(&shapes, index) == workload.to_string()
                    && pod.namespace == NAMESPACES[*ns]
                    && pod.labels.get("app") == Some(app)
            }),
        };
        for (c, client) in before.pods.iter().enumerate() {
            for (s, server) in before.pods.iter().enumerate() {
                for port in PORTS {
                    let passes = |world: &World| world.allowed(End::Pod(c), End::Pod(s), "TCP", port);
                    let (was, is) = (passes(&before), passes(&after));
                    let mine: Vec<&Opening> = openings
                        .iter()
                        .filter(|o| o.ports.contains(&(Protocol::Tcp, port)) && is_end(&o.from, client) && is_end(&o.to, server))
                        .collect();
                    prop_assert!(is || !was, "{} -> {} {port} is denied by {:?}", client.name, server.name, written.policies);
                    prop_assert!(was || !is || !mine.is_empty(), "{} -> {} {port} passes by {:?}", client.name, server.name, written.policies);
                    let fine = |o: &&&Opening| written.sides.iter().filter(|side| side.id == o.mark.id).all(|side| {
                        matches!(side.outcome, ExceptionOutcome::Written | ExceptionOutcome::NotNeeded)
                    });
                    let from_pods = |o: &&&Opening| matches!(o.from, ExceptionEnd::Workload(_));
                    if mine.iter().filter(from_pods).any(|o| fine(&o)) {
                        prop_assert!(is, "{} -> {} {port} is not let through: {:?}", client.name, server.name, written.sides);
                    }
                }
            }
        }
    }
}

/// The isolated side alone gets a policy, whose name, label and annotations say what it is.
#[test]
fn a_policy_is_written_where_another_isolates_and_says_what_it_is() {
    let shapes = [(0, "a", 1), (1, "b", 1)];
    let scenario = scenario(&shapes);
    let snapshot = scenario.snapshot();
    let options = Options::new(Phase::Observe);
    let closed = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: closed, namespace: green}, spec: {podSelector: {}, policyTypes: [Ingress]}}";
    let decide = |text: &str| {
        let policies = read::policies("p.yaml", text.as_bytes()).map(|set| set.policies).unwrap_or_default();
        let in_force = Evaluator::new(options.cluster.clone().with_snapshot(&snapshot), policies);
        let one = opening(4711, workload(&shapes, 0), workload(&shapes, 1), 5432);
        exception::decide(&snapshot, &options, &[one], &in_force)
    };
    let written = decide(closed);
    let told: Vec<String> = written.sides.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "ingress of green/Deployment/w1: green/guardrail-exception-inc-4711-20270115t080000z",
            "egress of blue/Deployment/w0: not needed, no policy isolates its pods",
        ]
    );
    assert_eq!(written.policies.len(), 1);
    let text = exception::text(&written.policies[0], &options);
    for line in [
        "    app.kubernetes.io/managed-by: guardrail\n",
        "    guardrail.dev/exception: inc-4711\n",
        "    guardrail.dev/expires: \"2027-01-15T08:00:00Z\"\n",
        "    guardrail.dev/owner: o\n",
        "    guardrail.dev/reason: r\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    // Alone in an open namespace it would isolate.
    let open = decide("");
    assert!(open.policies.is_empty());
    assert!(open.sides.iter().all(|side| side.outcome == ExceptionOutcome::NotNeeded));
    // Both ends closed: two policies.
    let both = format!("{closed}\n---\n{}", closed.replace("green", "blue").replace("Ingress", "Egress"));
    let directions: Vec<Direction> =
        decide(&both).sides.iter().filter(|s| s.outcome == ExceptionOutcome::Written).map(|s| s.direction).collect();
    assert_eq!(directions, [Direction::Ingress, Direction::Egress]);
}
