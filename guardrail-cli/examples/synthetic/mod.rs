//! A graph of any size, the same at every run: what the benchmarks of the command read.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use guardrail_graph::{
    Peer, Protocol, Snapshot, Timestamp, WorkloadRef,
    snapshot::{
        API_VERSION, Body, Counts, Coverage, EdgePeer, EdgeRecord, Interval, KIND, LabelSelector, NodeCoverage,
        PodEntry, Revision, Side, Source, SourceCounts, SourceRevision, Window, WorkloadEntry,
    },
};

/// `VmHWM` of this process.
pub(crate) fn peak_memory_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

/// How large a graph is.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) workloads: usize,
    pub(crate) namespaces: usize,
    pub(crate) edges: usize,
    pub(crate) nodes: usize,
}

impl Size {
    fn workload(self, index: usize) -> WorkloadRef {
        WorkloadRef {
            namespace: format!("team-{}", index % self.namespaces),
            owner: "Deployment".to_owned(),
            name: format!("service-{index}"),
        }
    }

    /// The graph, as one agent at these sides of its connections saw it, in one of its epochs.
    pub(crate) fn snapshot(self, sides: &BTreeSet<Side>, epoch: i64) -> Snapshot {
        let node = |index: usize| format!("node-{}", index % self.nodes);
        let instance = format!("at the {sides:?}");
        let counter = Arc::new(Source { node: node(1), instance, start: Some(at(epoch)) });
        let mut workloads: Vec<WorkloadEntry> = (0..self.workloads)
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
                    workload: self.workload(index),
                    selector: Some(LabelSelector::of_labels(labels.clone())),
                    selector_advice: None,
                    labels,
                    schedule: None,
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
        while keys.len() < self.edges {
            keys.insert((
                Peer::Workload(self.workload(random(self.workloads))),
                Peer::Workload(self.workload(random(self.workloads))),
                8000 + random(5),
            ));
        }
        let edges = keys
            .into_iter()
            .map(|(client, server, port)| {
                let counts = Counts { opened: 10, bytes_sent: 1_000, bytes_received: 9_000, ..Counts::default() };
                let source = |side| SourceCounts {
                    source: Arc::clone(&counter),
                    side,
                    counts,
                    first_seen: at(1),
                    last_seen: at(90),
                    by_merge: false,
                };
                EdgeRecord {
                    client: EdgePeer { peer: client.into(), names: BTreeSet::new() },
                    server: EdgePeer { peer: server.into(), names: BTreeSet::new() },
                    protocol: Protocol::Tcp,
                    port: u16::try_from(port).expect("a port"),
                    port_name: None,
                    via: BTreeSet::new(),
                    seen_by: sides.clone(),
                    counts,
                    first_seen: at(1),
                    last_seen: at(90),
                    supported: true,
                    marks: BTreeSet::new(),
                    node_workloads: BTreeSet::new(),
                    sources: sides.iter().copied().map(source).collect(),
                }
            })
            .collect();
        let nodes: BTreeSet<String> = (0..self.nodes).map(node).collect();
        Snapshot {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            body: Body {
                sources: BTreeSet::from([Source::clone(&counter)]),
                revisions: vec![SourceRevision {
                    source: Source::clone(&counter),
                    revision: Revision { run: 1, n: 1 },
                }],
                window: Window {
                    from: Some(at(0)),
                    to: Some(at(100)),
                    nodes: nodes.iter().map(|n| (n.clone(), vec![Interval { from: at(0), to: at(100) }])).collect(),
                    ..Window::default()
                },
                source_windows: Vec::new(),
                coverage: Coverage {
                    complete: true,
                    nodes: NodeCoverage { observed: nodes.clone(), expected: nodes, ..NodeCoverage::default() },
                    ..Coverage::default()
                },
                workloads,
                edges,
                ..Body::default()
            },
        }
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(1_700_000_000 + seconds)
}
