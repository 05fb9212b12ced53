//! Measures the evaluator: 1,000 workloads, 500 policies, 1,000,000 flows, one thread; with
//! NetworkPolicies alone, and with five kinds of policy under Cilium. Then what `check --all` asks:
//! every connection that they allow. `cargo xtask bench policy` runs it.
//!
//! Prints what it did, so that a verdict that costs nothing because nothing is isolated would show.

use std::time::Instant;

use guardrail_policy::{
    evaluate::{CiliumOptions, Cluster, ClusterPod, Dataplane, End, Evaluator},
    model::{Direction, Labels, Protocol},
    read,
};

const NAMESPACES: usize = 50;
const WORKLOADS: usize = 1_000;
const POLICIES: usize = 500;
const FLOWS: usize = 1_000_000;

/// A small fixed sequence (xorshift), so that every run measures the same.
struct Sequence(u64);

impl Sequence {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap_or(0)
    }
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for n in 0..NAMESPACES {
        cluster.set_namespace(&format!("ns{n}"), Labels::from([("team".to_owned(), format!("t{}", n % 7))]));
    }
    for w in 0..WORKLOADS {
        for replica in 0..3 {
            let labels =
                [("app", format!("app{w}")), ("tier", format!("tier{}", w % 5)), ("track", "stable".to_owned())];
            cluster.push_pod(ClusterPod {
                namespace: format!("ns{}", w % NAMESPACES),
                name: format!("app{w}-{replica}"),
                labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
                addresses: vec![format!("10.{}.{}.{replica}", w / 250, w % 250).parse().expect("an address")],
                ports: vec![("http".to_owned(), Protocol::Tcp, 8080), ("dns".to_owned(), Protocol::Udp, 53)],
                ..ClusterPod::default()
            });
        }
    }
    cluster
}

/// Half of them open one workload to others; the rest close namespaces, allow tiers across
/// namespaces, and name addresses.
fn policies() -> String {
    let mut text = String::new();
    for p in 0..POLICIES {
        let namespace = p % NAMESPACES;
        let workload = (p * 7) % WORKLOADS;
        let spec = match p % 10 {
            0 => "podSelector: {}\n  policyTypes: [Ingress, Egress]\n  egress: [{to: [{namespaceSelector: {}}]}]".to_owned(),
            1..=5 => format!(
                "podSelector: {{matchLabels: {{app: app{}}}}}\n  policyTypes: [Ingress]\n  ingress:\n  - from:\n    - podSelector: {{matchLabels: {{tier: tier{}}}}}\n    - namespaceSelector: {{matchLabels: {{team: t{}}}}}\n      podSelector: {{matchExpressions: [{{key: tier, operator: In, values: [tier1, tier2]}}]}}\n    ports: [{{port: http}}, {{port: 9090, endPort: 9099}}]\n  - ports: [{{port: 53, protocol: UDP}}]",
                workload - workload % NAMESPACES + namespace, p % 5, p % 7
            ),
            6..=8 => format!(
                "podSelector: {{matchLabels: {{tier: tier{}}}}}\n  policyTypes: [Ingress]\n  ingress:\n  - from: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: ns{}}}}}}}]",
                p % 5, (p * 3) % NAMESPACES
            ),
            _ => "podSelector: {matchLabels: {track: stable}}\n  policyTypes: [Ingress]\n  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: 8080}]}]".to_owned(),
        };
        text.push_str(&format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p{p}, namespace: ns{namespace}}}\nspec:\n  {spec}\n"
        ));
    }
    text
}

/// A fifth each of NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy,
/// ClusterNetworkPolicy and AdminNetworkPolicy. Those of the cluster speak of a tier or a team, so
/// that every flow asks dozens of them.
fn mixed_policies() -> String {
    let mut text = String::new();
    for p in 0..POLICIES {
        let (namespace, tier, team) = (p % NAMESPACES, p % 5, p % 7);
        let app = (p * 7) % WORKLOADS;
        let app = app - app % NAMESPACES + namespace;
        let object = match p / NAMESPACES % 5 {
            0 => format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p{p}, namespace: ns{namespace}}}\nspec:\n  podSelector: {{matchLabels: {{tier: tier{tier}}}}}\n  policyTypes: [Ingress]\n  ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{team: t{team}}}}}}}], ports: [{{port: http}}, {{port: 9090, endPort: 9099}}]}}]"
            ),
            1 => format!(
                "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p{p}, namespace: ns{namespace}}}\nspec:\n  endpointSelector: {{matchLabels: {{app: app{app}}}}}\n  ingress: [{{fromEndpoints: [{{matchLabels: {{k8s:io.kubernetes.pod.namespace: ns{}}}}}], toPorts: [{{ports: [{{port: \"8080\", protocol: TCP}}]}}]}}, {{fromEntities: [host]}}]\n  ingressDeny: [{{fromEndpoints: [{{matchLabels: {{tier: tier{tier}}}}}]}}]\n  egress: [{{toEntities: [cluster]}}, {{toCIDR: [192.0.2.0/24]}}]",
                (p * 3) % NAMESPACES
            ),
            2 => format!(
                "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: p{p}}}\nspec:\n  endpointSelector: {{matchLabels: {{tier: tier{tier}}}}}\n  ingress: [{{fromEndpoints: [{{matchLabels: {{app: app{app}}}}}], toPorts: [{{ports: [{{port: \"443\", protocol: TCP}}]}}]}}]"
            ),
            3 => format!(
                "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: p{p}}}\nspec:\n  tier: {}\n  priority: {p}\n  subject: {{namespaces: {{matchLabels: {{team: t{team}}}}}}}\n  ingress:\n  - action: {}\n    from: [{{namespaces: {{matchLabels: {{kubernetes.io/metadata.name: ns{namespace}}}}}}}]\n    protocols: [{{tcp: {{destinationPort: {{number: 9095}}}}}}]",
                if p % 2 == 0 { "Admin" } else { "Baseline" },
                if p % 4 == 0 { "Pass" } else { "Deny" }
            ),
            _ => format!(
                "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {{name: p{p}}}\nspec:\n  priority: {p}\n  subject: {{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{tier: tier{tier}}}}}}}}}\n  egress:\n  - action: Deny\n    to: [{{pods: {{namespaceSelector: {{matchLabels: {{team: t{team}}}}}, podSelector: {{matchLabels: {{app: app{app}}}}}}}}}]\n    ports: [{{portNumber: {{port: 443, protocol: TCP}}}}]"
            ),
        };
        text.push_str(&format!("---\n{object}\n"));
    }
    text
}

fn main() {
    judge("NetworkPolicy alone", &policies(), &Dataplane::Kubernetes);
    judge("five kinds, Cilium", &mixed_policies(), &Dataplane::Cilium(CiliumOptions::default()));
    println!("peak memory        {:>9.1} MiB", peak_mib());
}

fn judge(what: &str, text: &str, dataplane: &Dataplane) {
    let started = Instant::now();
    let set = read::policies("bench.yaml", text.as_bytes()).expect("valid policies");
    let read = started.elapsed();
    assert_eq!(set.policies.len() + set.forms.len(), POLICIES);

    let started = Instant::now();
    let evaluator = Evaluator::mixed(cluster(), set.policies, set.forms, dataplane);
    let compiled = started.elapsed();

    let mut sequence = Sequence(0x9e37_79b9_7f4a_7c15);
    let pods = evaluator.cluster().pods.len();
    let ends: Vec<End> = (0..pods).map(|p| evaluator.end_of_pod(u32::try_from(p).expect("few pods"))).collect();
    let flows: Vec<(usize, usize, Protocol, u16)> = (0..FLOWS)
        .map(|_| {
            let (protocol, port) =
                [(Protocol::Tcp, 8080), (Protocol::Tcp, 9095), (Protocol::Udp, 53), (Protocol::Tcp, 443)]
                    [sequence.below(4)];
            (sequence.below(pods), sequence.below(pods), protocol, port)
        })
        .collect();

    let started = Instant::now();
    let (mut allowed, mut isolated, mut rules) = (0_u64, 0_u64, 0_usize);
    for &(src, dst, protocol, port) in &flows {
        let verdict = evaluator.evaluate(&ends[src], &ends[dst], protocol, port);
        allowed += u64::from(verdict.allowed());
        rules += verdict.egress.rules().len() + verdict.ingress.rules().len();
        isolated += u64::from(!evaluator.isolating(&ends[dst], Direction::Ingress).is_empty());
    }
    let judged = started.elapsed();

    println!("{what}: {WORKLOADS} workloads, {pods} pods, {POLICIES} policies, {FLOWS} flows, one thread");
    println!("read policies      {:>9.1} ms", read.as_secs_f64() * 1e3);
    println!("compile            {:>9.1} ms", compiled.as_secs_f64() * 1e3);
    println!(
        "judge all flows    {:>9.1} ms   {:.0} ns a flow",
        judged.as_secs_f64() * 1e3,
        judged.as_secs_f64() * 1e9 / FLOWS as f64
    );
    println!("allowed {allowed}, destination isolated {isolated}, deciding rules named {rules}");

    let started = Instant::now();
    let connections = evaluator.connections();
    let listed = started.elapsed();
    println!("list all allowed   {:>9.1} ms   {} connections\n", listed.as_secs_f64() * 1e3, connections.len());
}

/// `VmHWM`: the most memory this process had, flows and names of the benchmark itself included.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}
