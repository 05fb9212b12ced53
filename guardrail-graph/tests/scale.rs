//! What a large cluster costs. Figures are printed (`--nocapture`); what is asserted is size, never
//! time.

mod common;

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use common::{Lab, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    epoch::{
        End, file,
        log::{Recorder, Write},
    },
    inventory::{Inventory, read},
    snapshot::Document,
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

/// What the state, a day of its changes and a closed epoch take on disk. Times are as a clock has
/// them: to the nanosecond.
fn on_disk(lab: &mut Lab) {
    let address = |i: u32| Ipv4Addr::new(10, 244, 1, u8::try_from(i + 2).unwrap()).to_string();
    let pairs: Vec<(u32, u32)> = (0..100).flat_map(|c| (0..100).map(move |s| (c, s))).filter(|(c, s)| c != s).collect();
    let mut random = 1_u64;
    let mut use_pair = |lab: &mut Lab, (client, server): (u32, u32)| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = lab.now.before(Duration::from_nanos(random >> 29));
        let (c, s) = (address(client), address(server));
        for mut flow in [
            tcp_client(u64::from(client), &c, &s, 8080, at),
            tcp_server(u64::from(server), &s, &c, 8080, at.after(Duration::from_nanos(random >> 49))),
        ] {
            flow.counts.opened = 1 + (random >> 62);
            (flow.counts.bytes_sent, flow.counts.bytes_received) = (random >> 50, random >> 44);
            lab.flow(flow);
        }
    };
    lab.at(120);
    pairs.iter().for_each(|pair| use_pair(lab, *pair));
    let mut recorder = Recorder::default();
    let Write::Base(base) = lab.observer.store(&mut recorder, lab.now, |_| ()) else { panic!("no base") };
    let per_edge = base.len() / pairs.len();
    println!("on disk: base {per_edge} bytes an edge");
    assert!(per_edge <= 64, "{per_edge} bytes an edge, of two sides");
    let mut seconds = 120;
    for changed in [0, 1, 10, 100, 1_000, 9_900] {
        let (minutes, mut written, mut first) = (if changed > 1_000 { 4 } else { 12_000 / (100 + changed) }, 0, 0);
        for minute in 0..minutes {
            seconds += 60;
            lab.at(seconds);
            (0..changed).for_each(|i| use_pair(lab, pairs[(minute * 997 + i) % pairs.len()]));
            let bytes = match lab.observer.store(&mut recorder, lab.now, |_| ()) {
                Write::Nothing => 0,
                Write::Append { bytes, .. } | Write::Base(bytes) => bytes.len(),
            };
            if minute == 0 {
                first = bytes;
            }
            written += bytes;
        }
        let all = (changed * minutes * per_edge).max(1);
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let ratio = written as f64 / all as f64;
        println!(
            "{changed} of {} edges a minute: {} bytes a minute (a block: {first}), {ratio:.2} times those of the edges, {} KiB a day",
            pairs.len(),
            written / minutes,
            written / minutes * 1_440 / 1_024
        );
        assert!(changed > 0 || written == 0, "{written} bytes of nothing");
        assert!(changed < 10 || ratio <= 3.0, "{changed}: {ratio}");
    }
    let document = lab.observer.turn(&[], lab.now);
    let header = file::Header::of(&document, End::Day).unwrap();
    let epoch = file::encode(&header, &document);
    println!("closed epoch: {} bytes an edge", epoch.len() / 9_900);
    assert!(epoch.len() <= 9_900 * 40, "{} bytes", epoch.len());
    let (_, facts) = file::decode(&epoch).unwrap();
    assert_eq!(Document::joined([facts]).snapshot(), document.snapshot());
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
