//! How long export and proof take: 10,000 edges over 1,000 workloads in 50 namespaces. Prints one
//! line of figures; started by `cargo xtask bench policy`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use guardrail_graph::{
    Peer, Protocol, Snapshot, Timestamp, WorkloadRef,
    snapshot::{
        API_VERSION, Body, Counts, Coverage, EdgePeer, EdgeRecord, Interval, KIND, LabelSelector, NodeCoverage,
        PodEntry, Side, Source, SourceCounts, Window, WorkloadEntry,
    },
};
use guardrail_policy::{
    emit,
    emit::KUSTOMIZATION_FILE,
    export::export,
    generate::{Options, Phase, plan_for},
    prove::prove,
};

const WORKLOADS: usize = 1_000;
const NAMESPACES: usize = 50;
const EDGES: usize = 10_000;
const NODES: usize = 20;

fn main() {
    let snapshot = snapshot();
    for (phase, egress) in [(Phase::DefaultDeny, false), (Phase::DefaultDeny, true), (Phase::Constrain, false)] {
        let mut options = Options::new(phase);
        options.egress = egress;
        let before = Instant::now();
        let generated = export(&snapshot, &options);
        let took = before.elapsed();
        assert!(generated.problems.is_empty(), "{:?}", generated.problems);
        let before = Instant::now();
        let decision = plan_for(&snapshot, &options);
        let planned = before.elapsed();
        let before = Instant::now();
        let files = emit::files(&decision.plan, &options, &decision.stopped);
        let printed = before.elapsed();
        let before = Instant::now();
        let policies = files
            .iter()
            .filter(|(name, _)| *name != KUSTOMIZATION_FILE)
            .map(|(name, text)| (name.as_str(), text.as_str()));
        let proof = prove(&snapshot, &options, &decision, policies);
        let proven = before.elapsed();
        assert!(proof.problems.is_empty());
        println!(
            "export {phase}{}: {} ms (plan {}, print {}, prove {}); {} policies, {} edges and {} pairs judged, peak memory {} MiB",
            if egress { " with egress" } else { "" },
            took.as_millis(),
            planned.as_millis(),
            printed.as_millis(),
            proven.as_millis(),
            generated.plan.policies.len(),
            generated.proof.edges_judged,
            generated.proof.pairs_judged,
            peak_memory_mib().map_or_else(|| "?".to_owned(), |m| m.to_string()),
        );
    }
}

/// `VmHWM` of this process.
fn peak_memory_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

fn workload(index: usize) -> WorkloadRef {
    WorkloadRef {
        namespace: format!("team-{}", index % NAMESPACES),
        owner: "Deployment".to_owned(),
        name: format!("service-{index}"),
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(1_700_000_000 + seconds)
}

fn snapshot() -> Snapshot {
    let node = |index: usize| format!("node-{}", index % NODES);
    let mut workloads: Vec<WorkloadEntry> = (0..WORKLOADS)
        .map(|index| {
            let labels = BTreeMap::from([
                ("app.kubernetes.io/name".to_owned(), format!("service-{index}")),
                ("app.kubernetes.io/part-of".to_owned(), format!("system-{}", index % 7)),
            ]);
            let pod = |replica: usize| {
                let address =
                    format!("10.{}.{}.{}", replica, index / 250, index % 250 + 1).parse().expect("an address");
                let entry = PodEntry {
                    name: format!("service-{index}-{replica}"),
                    addresses: BTreeSet::from([address]),
                    ports: Vec::new(),
                };
                (node(index + replica), vec![entry])
            };
            WorkloadEntry {
                workload: workload(index),
                selector: Some(LabelSelector { match_labels: labels.clone(), match_expressions: Vec::new() }),
                selector_advice: None,
                labels,
                host_network: false,
                pods: (1..4).map(pod).collect(),
                ran_on: BTreeMap::new(),
                as_of: at(100),
            }
        })
        .collect();
    workloads.sort_by(|a, b| a.workload.cmp(&b.workload));
    // A linear congruential generator: the same graph every time.
    let mut state = 42_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut keys = BTreeSet::new();
    while keys.len() < EDGES {
        keys.insert((
            Peer::Workload(workload(random(WORKLOADS))),
            Peer::Workload(workload(random(WORKLOADS))),
            8000 + random(5),
        ));
    }
    let edges = keys
        .into_iter()
        .map(|(client, server, port)| {
            let counts = Counts { opened: 10, bytes_sent: 1_000, bytes_received: 9_000, ..Counts::default() };
            let source = |side| SourceCounts {
                source: Source { node: node(1), instance: "agent".to_owned(), start: None },
                side,
                counts,
                first_seen: at(1),
                last_seen: at(90),
                by_merge: false,
            };
            EdgeRecord {
                client: EdgePeer { peer: client, names: BTreeSet::new() },
                server: EdgePeer { peer: server, names: BTreeSet::new() },
                protocol: Protocol::Tcp,
                port: u16::try_from(port).expect("a port"),
                port_name: None,
                via: BTreeSet::new(),
                seen_by: BTreeSet::from([Side::Client, Side::Server]),
                counts,
                first_seen: at(1),
                last_seen: at(90),
                supported: true,
                marks: BTreeSet::new(),
                node_workloads: BTreeSet::new(),
                sources: vec![source(Side::Client), source(Side::Server)],
            }
        })
        .collect();
    let nodes: BTreeSet<String> = (0..NODES).map(node).collect();
    Snapshot {
        api_version: API_VERSION.to_owned(),
        kind: KIND.to_owned(),
        body: Body {
            window: Window {
                from: Some(at(0)),
                to: Some(at(100)),
                nodes: nodes.iter().map(|n| (n.clone(), vec![Interval { from: at(0), to: at(100) }])).collect(),
            },
            source_windows: Vec::new(),
            coverage: Coverage {
                complete: true,
                nodes: NodeCoverage { observed: nodes.clone(), expected: nodes },
                ..Coverage::default()
            },
            workloads,
            edges,
            ..Body::default()
        },
    }
}
