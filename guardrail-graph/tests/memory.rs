//! What is kept, and what a scrape and a document take on top, in allocated bytes: exact, whatever
//! the machine and the profile. One test alone in its process, because the count is the whole
//! process's.

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use common::{Lab, pod, t, tcp_client, tcp_server};
use guardrail_graph::inventory::{Change, Kind, read};

/// Bytes that are allocated now, and the most since it was last set.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that `work` left allocated, and the most it had allocated meanwhile.
fn cost<T>(work: impl FnOnce() -> T) -> (usize, usize, T) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let done = work();
    let (live, peak) = (LIVE.load(Relaxed), PEAK.load(Relaxed));
    (live.saturating_sub(before), peak.saturating_sub(before), done)
}

#[track_caller]
fn at_most(what: &str, bytes: usize, limit: usize) {
    println!("{what}: {bytes} bytes (limit {limit})");
    assert!(bytes <= limit, "{what}: {bytes} bytes, more than {limit}");
}

#[test]
fn edges_pods_scrapes_and_documents_stay_within_their_bytes() {
    external_edges();
    edges_between_pods();
    pods_behind_services();
}

fn external_edges() {
    const EDGES: u32 = 10_000;
    let mut lab = Lab::new("node-a", &[pod("shop", "web", 0, "node-a", "10.244.1.2", &[])]);
    lab.pod_cgroup(1, "web", 0);
    let (kept, ..) = cost(|| {
        for n in 0..EDGES {
            lab.flow(tcp_client(1, "10.244.1.2", &Ipv4Addr::from(0x6440_0000 + n).to_string(), 443, t(5)));
        }
    });
    assert_eq!(lab.observer.stats().edges, EDGES as usize);
    at_most("an edge to an external server", kept / EDGES as usize, 300);
    documents("10,000 external edges", &mut lab, EDGES as usize);
}

fn edges_between_pods() {
    const PODS: u32 = 100;
    let pods: Vec<String> = (0..PODS)
        .map(|i| pod("shop", &format!("w{i}"), 0, "node-a", &format!("10.244.1.{}", i + 2), &["http:8080"]))
        .collect();
    let mut lab = Lab::new("node-a", &pods);
    for i in 0..PODS {
        lab.pod_cgroup(u64::from(i), &format!("w{i}"), 0);
    }
    let address = |i: u32| Ipv4Addr::new(10, 244, 1, u8::try_from(i + 2).unwrap()).to_string();
    let (kept, ..) = cost(|| {
        for (client, server) in (0..PODS).flat_map(|a| (0..PODS).map(move |b| (a, b))).filter(|(a, b)| a != b) {
            let (c, s) = (address(client), address(server));
            lab.flow(tcp_client(u64::from(client), &c, &s, 8080, t(5)));
            lab.flow(tcp_server(u64::from(server), &s, &c, 8080, t(5)));
        }
    });
    let edges = lab.observer.stats().edges;
    assert_eq!(edges, 9_900);
    at_most("an edge between pods, seen at both ends", kept / edges, 300);
    documents("9,900 edges between pods", &mut lab, edges);
}

/// What leaves the observer takes a bounded part more.
fn documents(what: &str, lab: &mut Lab, edges: usize) {
    // The first may fill caches.
    lab.observer.edge_counters(lab.now);
    let (_, peak, counters) = cost(|| lab.observer.edge_counters(lab.now));
    let per_series = peak / counters.edges.len().max(100);
    at_most(&format!("{what}: a scrape, per series"), per_series, 160);
    let (kept, peak, document) = cost(|| Arc::new(lab.observer.document(lab.now)));
    at_most(&format!("{what}: a document, per edge"), kept / edges, 200);
    at_most(&format!("{what}: making it, per edge"), peak / edges, 220);
    let (_, peak, bytes) = cost(|| Arc::clone(&document).chunks(64 << 10).map(|piece| piece.len()).sum::<usize>());
    at_most(&format!("{what}: sending its {bytes} bytes"), peak, 128 << 10);
    let (snapshot, ..) = cost(|| document.snapshot());
    assert!(kept * 2 < snapshot, "a document takes {kept} bytes, the snapshot {snapshot}");
}

fn pods_behind_services() {
    const PODS: u32 = 10_000;
    const SERVICES: u32 = 1_000;
    let mut yaml = String::new();
    for i in 0..PODS {
        let (namespace, node) = (format!("ns{}", i % 20), format!("node-{}", i / 100));
        let address = Ipv4Addr::from(0x0a40_0000 + i).to_string();
        yaml += &pod(&namespace, &format!("w{}", i % SERVICES), i, &node, &address, &["http:8080"]);
    }
    for i in 0..SERVICES {
        let (namespace, name) = (format!("ns{}", i % 20), format!("w{i}"));
        let address = Ipv4Addr::from(0x0a60_0000 + i);
        yaml += &format!(
            "---\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIP: {address}, selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: http}}]}}\n"
        );
    }
    let mut lab = Lab::new("node-0", &[]);
    let before = LIVE.load(Relaxed);
    let per_pod_since = || (LIVE.load(Relaxed) - before) / PODS as usize;
    let objects = read::objects(&yaml, "test").unwrap().objects;
    at_most("a list as it is read, per pod", per_pod_since(), 750);
    let (pods, services) = objects.into_iter().partition(|object| object.key().kind == Kind::Pod);
    for (kind, objects) in [(Kind::Pod, pods), (Kind::Service, services)] {
        lab.observer.apply(Change::Replace { kind, objects }, lab.now);
    }
    lab.observer.tick(lab.now);
    lab.observer.edge_counters(lab.now);
    at_most("everything that is kept, per pod", per_pod_since(), 1_600);
    let (kept, peak, document) = cost(|| Arc::new(lab.observer.document(lab.now)));
    at_most("a document, per pod", kept / PODS as usize, 350);
    at_most("making it, per pod", peak / PODS as usize, 400);
    let (_, peak, bytes) = cost(|| document.chunks(64 << 10).map(|piece| piece.len()).sum::<usize>());
    at_most(&format!("sending its {bytes} bytes"), peak, 128 << 10);
}
