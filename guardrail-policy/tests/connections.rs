//! The list of all allowed connections says what the evaluator says, for every pair of workloads
//! and around every port that a policy names.

use guardrail_policy::{
    evaluate::{
        Cluster, ClusterPod, Evaluator,
        connections::{Connection, Party},
    },
    model::{Labels, Protocol},
    read,
};

const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a, namespace: one}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Ingress, Egress]
  ingress:
  - {from: [{podSelector: {}}], ports: [{port: 80, endPort: 90}, {port: http}, {protocol: UDP}]}
  - {from: [{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.0/25]}}], ports: [{port: 85, endPort: 95}]}
  egress:
  - {to: [{namespaceSelector: {}}], ports: [{port: 1, endPort: 5000}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: b, namespace: one}
spec:
  podSelector: {matchLabels: {app: b}}
  policyTypes: [Ingress]
  ingress:
  - {from: [{ipBlock: {cidr: 10.0.0.0/30}}], ports: [{port: 80}, {port: 81}]}
  - {ports: [{port: 443, protocol: SCTP}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: c, namespace: two}
spec: {podSelector: {matchLabels: {app: c}}, policyTypes: [Egress], egress: []}
";

fn evaluator() -> Evaluator {
    let mut cluster = Cluster::default();
    let names = [("one", "a"), ("one", "b"), ("one", "x"), ("two", "c"), ("two", "d")];
    for ((namespace, name), number) in names.into_iter().zip(1_u8..) {
        cluster.set_namespace(namespace, Labels::new());
        cluster.push_pod(ClusterPod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: Labels::from([("app".to_owned(), name.to_owned())]),
            addresses: vec![[10, 0, 0, number].into()],
            ports: vec![("http".to_owned(), Protocol::Tcp, 8000 + u16::from(number))],
            ..ClusterPod::default()
        });
    }
    Evaluator::new(cluster, read::policies("p.yaml", POLICIES.as_bytes()).unwrap().policies)
}

fn listed(all: &[Connection], src: &str, dst: &str, protocol: Protocol, port: u16) -> bool {
    let is = |party: &Party, name: &str| match party {
        Party::Everywhere => true,
        Party::EveryPod => name.contains('/'),
        Party::EveryPodBut(_) | Party::EveryPodOf(_) => panic!("only differences have it"),
        Party::Outside => name == "outside",
        Party::Block(own) => own == name,
        Party::Workload(own) => **own == *name,
    };
    all.iter().any(|c| is(&c.src, src) && is(&c.dst, dst) && c.ports.contains(protocol, port))
}

#[test]
fn every_pair_is_listed_at_exactly_the_ports_that_are_allowed() {
    let evaluator = evaluator();
    let all = evaluator.connections();
    let ports = [1, 79, 80, 81, 84, 85, 90, 91, 95, 96, 443, 444, 5000, 5001, 8001, 8002, 8003, 8005, 65535];
    let pods: Vec<String> = evaluator.cluster().pods.iter().map(ClusterPod::full_name).collect();
    let (mut allowed, mut denied) = (0, 0);
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        for port in ports {
            for (src, dst) in pods.iter().flat_map(|src| pods.iter().map(move |dst| (src, dst))).filter(|(s, d)| s != d)
            {
                let verdict =
                    evaluator.evaluate(&evaluator.end(src).unwrap(), &evaluator.end(dst).unwrap(), protocol, port);
                *(if verdict.allowed() { &mut allowed } else { &mut denied }) += 1;
                assert_eq!(
                    listed(&all, src, dst, protocol, port),
                    verdict.allowed(),
                    "{src} -> {dst} {protocol}/{port}"
                );
            }
            for pod in &pods {
                let own = evaluator.end(pod).unwrap();
                for (name, address) in [("outside", "203.0.113.9"), ("198.51.100.0/24", "198.51.100.200")] {
                    let there = evaluator.end(address).unwrap();
                    let into = evaluator.evaluate(&there, &own, protocol, port).allowed();
                    let stands =
                        listed(&all, name, pod, protocol, port) || listed(&all, "outside", pod, protocol, port);
                    assert_eq!(stands, into, "{name} -> {pod} {protocol}/{port}");
                    let out = evaluator.evaluate(&own, &there, protocol, port).allowed();
                    let stands =
                        listed(&all, pod, name, protocol, port) || listed(&all, pod, "outside", protocol, port);
                    assert_eq!(stands, out, "{pod} -> {name} {protocol}/{port}");
                }
            }
        }
    }
    assert!(allowed > 100 && denied > 100, "{allowed} {denied}");
}

#[test]
fn a_block_stands_for_what_no_narrower_one_holds() {
    let policies = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a, namespace: one}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
  - {from: [{ipBlock: {cidr: 203.0.0.0/8}}], ports: [{port: 1}]}
  - {from: [{ipBlock: {cidr: 203.0.0.0/16}}], ports: [{port: 2}]}
";
    let cluster = evaluator().cluster().clone();
    let evaluator = Evaluator::new(cluster, read::policies("p.yaml", policies.as_bytes()).unwrap().policies);
    let blocks: Vec<String> = evaluator
        .connections()
        .iter()
        .filter(|c| matches!(c.src, Party::Block(_)) && c.dst.to_string() == "one/a")
        .map(|c| format!("{} {}", c.src, c.ports))
        .collect();
    assert_eq!(blocks, ["203.0.0.0/16 TCP/1-2", "203.0.0.0/8 TCP/1"]);
}
