//! What a large cluster costs. Figures are printed (`--nocapture`); what is asserted is size, never
//! time.

mod common;

use std::{net::Ipv4Addr, sync::Arc, time::Instant};

use common::{Lab, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    epoch::{End, file},
    inventory::{Inventory, read},
};

/// Resident set in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn ten_thousand_edges_cost_a_few_mebibytes() {
    let pods: Vec<String> = (0..100)
        .map(|i| pod("shop", &format!("w{i}"), 0, "node-a", &format!("10.244.1.{}", i + 2), &["http:8080"]))
        .collect();
    let mut lab = Lab::new("node-a", &pods);
    for i in 0..100u32 {
        lab.pod_cgroup(u64::from(i), &format!("w{i}"), 0);
    }
    let address = |i: u32| Ipv4Addr::new(10, 244, 1, u8::try_from(i + 2).unwrap()).to_string();
    let flows: Vec<_> = (0..100u32)
        .flat_map(|client| (0..100u32).map(move |server| (client, server)))
        .filter(|(client, server)| client != server)
        .flat_map(|(client, server)| {
            let (c, s) = (address(client), address(server));
            [tcp_client(u64::from(client), &c, &s, 8080, t(5)), tcp_server(u64::from(server), &s, &c, 8080, t(5))]
        })
        .collect();
    let (before, number) = (resident(), flows.len());
    let again = flows.clone();
    let started = Instant::now();
    for flow in flows {
        lab.flow(flow);
    }
    let first = started.elapsed();
    let grown = resident().saturating_sub(before);
    let started = Instant::now();
    for flow in again {
        lab.flow(flow);
    }
    let warm = started.elapsed();
    assert_eq!(lab.observer.stats().edges, 9_900);
    let started = Instant::now();
    let snapshot = lab.snapshot();
    let snapshot_took = started.elapsed();
    let text = snapshot.to_json();
    println!(
        "{number} deltas of 9,900 new edges: {first:?}, of known edges: {warm:?}; resident +{} KiB; snapshot {snapshot_took:?}, {} KiB of JSON",
        grown / 1024,
        text.len() / 1024
    );
    assert!(grown < 32 << 20, "{grown} bytes for 9,900 edges and their deltas");
    on_disk(&mut lab);
}

/// What a state and a closed epoch take on disk. The state is written whole, every time.
fn on_disk(lab: &mut Lab) {
    let state: usize = Arc::new(lab.observer.document(lab.now)).chunks(1 << 18).map(|piece| piece.len()).sum();
    let document = lab.observer.turn(&[], lab.now);
    let header = file::Header::of(&document, End::Day).unwrap();
    let epoch = file::encode(&header, document.into()).len();
    println!(
        "on disk: state {} bytes an edge, closed epoch {}; a state a minute {} MiB a day",
        state / 9_900,
        epoch / 9_900,
        (state * 1_440) >> 20
    );
    assert!(epoch < 9_900 * 64, "{epoch} bytes");
}

#[test]
fn ten_thousand_pods_are_read_and_given_their_workloads() {
    let yaml: String = (0..10_000u32)
        .map(|i| {
            pod(
                &format!("ns{}", i % 20),
                &format!("w{}", i % 1000),
                i,
                "node-a",
                &Ipv4Addr::from(0x0af4_0000 + i).to_string(),
                &["http:8080"],
            )
        })
        .collect();
    let started = Instant::now();
    let read = read::objects(&yaml, "pods.yaml").unwrap();
    let reading = started.elapsed();
    let started = Instant::now();
    let inventory = Inventory::from_objects(read.objects);
    let workloads = inventory.workloads();
    println!(
        "10,000 pods of {} KiB YAML: read {reading:?}; indexed with 1,000 workloads {:?}",
        yaml.len() / 1024,
        started.elapsed()
    );
    assert_eq!(workloads.len(), 1_000);
    assert!(workloads.values().all(|w| w.selector.is_some()));
}
