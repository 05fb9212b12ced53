//! Weeks of rollouts, jobs and restarts: what is kept follows the size of the cluster, not its
//! age.

mod common;

use std::collections::BTreeMap;

use common::{CLUSTER, Lab, lists, pod, t, tcp_client};
use guardrail_graph::{
    Observer, ObserverConfig, Snapshot,
    inventory::{Change, Kind, Object, ObjectKey, read},
    snapshot::merge,
};

const WORKLOADS: u32 = if cfg!(miri) { 4 } else { 400 };
/// A month in the second tier of tests, which has optimized builds; half of it in the first.
const DAYS: u32 = match (cfg!(miri), cfg!(debug_assertions)) {
    (true, _) => 8,
    (_, true) => 16,
    (_, false) => 30,
};
const DAY: i64 = 86_400;
/// The state of this day is compared with the last one.
const SETTLED: u32 = if cfg!(miri) { 4 } else { 8 };

/// The pod of a workload on a day: another name, address and mostly another node than the day
/// before.
fn pod_of(workload: u32, day: u32) -> String {
    let on_a = (workload + day).is_multiple_of(2);
    let host = 2 + (workload / 2 + day * 7) % 250;
    let (node, address) =
        if on_a { ("node-a", format!("10.244.1.{host}")) } else { ("node-b", format!("10.244.2.{host}")) };
    pod("shop", &format!("w{workload}"), day, node, &address, &["http:8080"])
}

fn client() -> String {
    pod("shop", "web", 0, "node-a", "10.244.1.254", &[])
}

fn virtual_ip(workload: u32) -> String {
    format!("10.96.{}.{}", 1 + workload / 200, 1 + workload % 200)
}

fn services() -> String {
    let service = |i: u32| {
        format!(
            "---\nkind: Service\nmetadata: {{name: w{i}, namespace: shop}}\nspec: {{clusterIP: {}, selector: {{app: w{i}}}, ports: [{{port: 80, targetPort: http}}]}}\n",
            virtual_ip(i)
        )
    };
    (0..WORKLOADS).map(service).collect()
}

/// A pod without a controller, in a namespace of its day: a workload that never comes again.
fn job(day: u32, number: u32) -> String {
    format!(
        "---\nkind: Pod\nmetadata: {{name: build-{number}, namespace: ci-{day}, uid: {day}-{number}}}\nspec: {{nodeName: node-b, containers: [{{name: c, ports: [{{name: p{day}, containerPort: 80}}]}}]}}\n\
         status: {{phase: Running, podIP: 10.244.2.{}}}\n",
        252 + number % 2
    )
}

fn objects(text: &str) -> Vec<Object> {
    read::objects(text, "test").unwrap().objects
}

/// A node's observer. Its word of a change comes late by its own delay.
struct Node {
    lab: Lab,
    delay: i64,
}

impl Node {
    fn apply(&mut self, objects: &[Object], seconds: i64) {
        for object in objects {
            self.lab.observer.apply(Change::Apply(object.clone()), t(seconds + self.delay));
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        self.lab.observer.snapshot(self.lab.now)
    }

    fn delete(&mut self, namespace: &str, name: String, seconds: i64) {
        let key = ObjectKey { kind: Kind::Pod, namespace: namespace.to_owned(), name };
        self.lab.observer.apply(Change::Delete(key), t(seconds + self.delay));
    }

    fn restart(&mut self, day: u32, seconds: i64) {
        let state = Snapshot::from_json(&self.snapshot().to_json(), "state").unwrap();
        let node = self.lab.observer.config().node.clone();
        self.lab.observer = Observer::restore(ObserverConfig::new(node, "next", t(seconds)), &state, false).unwrap();
        let pods: String = (0..WORKLOADS).map(|i| pod_of(i, day)).collect();
        for list in lists(&format!("{CLUSTER}{}{}{pods}", services(), client())) {
            self.lab.observer.apply(list, t(seconds));
        }
        self.lab.at(seconds + 1);
        self.lab.pod_cgroup(1, "web", 0);
    }
}

/// What is kept, by name.
fn kept(node: &mut Node) -> BTreeMap<String, usize> {
    let entries = node.lab.observer.stats().identity_entries;
    let mut kept: BTreeMap<String, usize> = entries.into_iter().map(|(kind, n)| (kind.to_owned(), n)).collect();
    let snapshot = node.snapshot();
    kept.extend(size(&snapshot));
    kept
}

fn size(snapshot: &Snapshot) -> [(String, usize); 5] {
    let endpoints = snapshot.body.services.iter().flat_map(|s| &s.ports).map(|p| p.backends.len()).sum();
    [
        ("state bytes", snapshot.to_json().len()),
        ("endpoints", endpoints),
        ("tenures", snapshot.body.addresses.len()),
        ("workloads", snapshot.body.workloads.len()),
        ("edges", snapshot.body.edges.len()),
    ]
    .map(|(name, n)| (name.to_owned(), n))
}

#[track_caller]
fn assert_flat(what: &str, early: &BTreeMap<String, usize>, late: &BTreeMap<String, usize>) {
    println!("{what}: {early:?}\n{what}: {late:?}");
    for (name, n) in late {
        // Counts have more digits, and there are more intervals in the window.
        assert!(*n <= early[name] + early[name] / 50 + 8, "{what}, {name}: {} and then {n}", early[name]);
    }
}

#[test]
fn daily_rollouts_and_weekly_restarts_leave_memory_and_state_flat() {
    let first: Vec<String> = [services(), client()].into_iter().chain((0..WORKLOADS).map(|i| pod_of(i, 0))).collect();
    let mut nodes = [("node-a", 0), ("node-b", 2)].map(|(name, delay)| Node { lab: Lab::new(name, &first), delay });
    nodes[0].lab.pod_cgroup(1, "web", 0);
    let mut early = Vec::new();
    for day in 1..=DAYS {
        let noon = i64::from(day) * DAY;
        let pods = objects(&(0..WORKLOADS).map(|i| pod_of(i, day)).collect::<String>());
        let jobs = objects(&(0..20.min(WORKLOADS)).map(|number| job(day, number)).collect::<String>());
        for node in &mut nodes {
            for i in 0..WORKLOADS {
                node.delete("shop", format!("w{i}-5d9c-{}", day - 1), noon);
            }
            node.apply(&pods, noon + 10);
            for (number, job) in jobs.iter().enumerate() {
                node.apply(std::slice::from_ref(job), noon + 20);
                node.delete(&format!("ci-{day}"), format!("build-{number}"), noon + 21);
            }
            node.lab.at(noon + 60);
            if day % 7 == 0 {
                node.restart(day, noon + 90);
            }
        }
        for i in 0..WORKLOADS {
            let at = noon + 100;
            nodes[0].lab.now = t(at);
            nodes[0].lab.flow(tcp_client(1, "10.244.1.254", &virtual_ip(i), 80, t(at)));
        }
        for node in &mut nodes {
            for hours in [1, 3] {
                node.lab.at(noon + hours * 3_600);
            }
        }
        if day == SETTLED {
            early.extend(nodes.iter_mut().map(kept));
            early.push(size(&merge(nodes.iter_mut().map(Node::snapshot).collect())).into());
        }
    }
    let merged = merge(nodes.iter_mut().map(Node::snapshot).collect());
    let mut late: Vec<_> = nodes.iter_mut().map(kept).collect();
    late.push(size(&merged).into());
    for ((what, early), late) in ["node-a", "node-b", "merged"].into_iter().zip(&early).zip(&late) {
        assert_flat(what, early, late);
    }
    // One open and one ended endpoint for each workload: two nodes have hosted it.
    assert_eq!(late[0]["endpoints"], 2 * WORKLOADS as usize);
    assert_eq!(late[1]["endpoints"], WORKLOADS as usize, "nothing went through a Service there");
    assert!(late[2]["endpoints"] <= 3 * WORKLOADS as usize);
    // Every use of a Service still has the workload behind it.
    assert_eq!(late[0]["edges"], WORKLOADS as usize);
    for edge in &merged.body.edges {
        assert_eq!(edge.counts.opened, u64::from(DAYS), "{}", common::edge_text(edge));
    }
}
