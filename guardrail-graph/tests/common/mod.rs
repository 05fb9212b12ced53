//! A small cluster and short words for what the kernel side would report.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its part")]

use std::{net::IpAddr, sync::Arc};

use guardrail_graph::{
    Observation, Observer, ObserverConfig, Peer, Protocol, Snapshot, Timestamp,
    epoch::{
        log::{Recorder, Write},
        state::State,
    },
    inventory::{Change, Kind, ObjectKey, read},
    observe::{CgroupId, FlowCounts, FlowDelta, LossReason, NetnsId, Remote, Role},
    snapshot::EdgeRecord,
};

/// Seconds after the start.
pub(crate) fn t(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(1_700_000_000 + seconds)
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) const CLUSTER: &str = r#"
kind: Namespace
metadata: {name: shop}
---
kind: Node
metadata: {name: node-a}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
---
kind: Node
metadata: {name: node-b}
spec: {podCIDR: 10.244.2.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.12}]}
"#;

/// A Service of shop with its only endpoint, a pod of node-b.
pub(crate) const SERVICE: &str = "---
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.7, selector: {app: api}, ports: [{name: http, port: 80, targetPort: http}]}
---
kind: EndpointSlice
apiVersion: discovery.k8s.io/v1
addressType: IPv4
metadata: {name: api-1, namespace: shop, labels: {kubernetes.io/service-name: api}}
ports: [{name: http, protocol: TCP, port: 8080}]
endpoints:
- {addresses: [10.244.2.4], nodeName: node-b, conditions: {ready: true}, targetRef: {kind: Pod, name: api-5d9c-0, namespace: shop}}
";

/// A pod of a Deployment, on a node, with an address and `ports` as `name:number/protocol`.
pub(crate) fn pod(namespace: &str, deployment: &str, index: u32, node: &str, address: &str, ports: &[&str]) -> String {
    let ports: Vec<String> = ports
        .iter()
        .map(|p| {
            let (name, rest) = p.split_once(':').unwrap();
            let (number, protocol) = rest.split_once('/').unwrap_or((rest, "TCP"));
            format!("{{name: {name}, containerPort: {number}, protocol: {protocol}}}")
        })
        .collect();
    let status =
        if address.is_empty() { String::new() } else { format!("status: {{phase: Running, podIP: {address:?}}}\n") };
    format!(
        "---\nkind: Pod\nmetadata:\n  name: {deployment}-5d9c-{index}\n  namespace: {namespace}\n  uid: {}\n  labels: {{app: {deployment}, pod-template-hash: 5d9c}}\n  \
         ownerReferences: [{{kind: ReplicaSet, name: {deployment}-5d9c, uid: rs, controller: true}}]\nspec:\n  nodeName: {node}\n  \
         containers: [{{name: c, ports: [{}]}}]\n{status}",
        uid(deployment, index),
        ports.join(", ")
    )
}

pub(crate) fn uid(deployment: &str, index: u32) -> String {
    format!("{deployment}-00000000-{index:04}")
}

pub(crate) fn cgroup_path(deployment: &str, index: u32) -> String {
    format!("/kubepods/burstable/pod{}/0123456789abcdef", uid(deployment, index))
}

/// An observer on a node, with a cgroup per pod.
pub(crate) struct Lab {
    pub(crate) observer: Observer,
    pub(crate) now: Timestamp,
}

pub(crate) fn apply_text(observer: &mut Observer, text: &str, now: Timestamp) {
    for object in read::objects(text, "test").unwrap().objects {
        observer.apply(Change::Apply(object), now);
    }
}

/// Connections that were counted, whoever they are with.
fn all_opened(snapshot: &Snapshot) -> u64 {
    let edges = snapshot.body.edges.iter().flat_map(|edge| &edge.sources).filter(|counts| !counts.by_merge);
    edges.chain(snapshot.body.remote_flows.iter().flat_map(|flow| &flow.sources)).map(|s| s.counts.opened).sum()
}

impl Lab {
    pub(crate) fn new(node: &str, inventory: &[String]) -> Self {
        Self::with(node, inventory, |_| ())
    }

    /// With other bounds.
    pub(crate) fn with(node: &str, inventory: &[String], change: impl FnOnce(&mut ObserverConfig)) -> Self {
        let mut config = ObserverConfig::new(node, format!("instance-{node}"), t(0));
        change(&mut config);
        let mut observer = Observer::new(config);
        apply_text(&mut observer, &format!("{CLUSTER}\n{}", inventory.concat()), t(0));
        Self { observer, now: t(1) }
    }

    pub(crate) fn apply(&mut self, text: &str) {
        apply_text(&mut self.observer, text, self.now);
    }

    pub(crate) fn delete_pod(&mut self, namespace: &str, name: &str) {
        let key = ObjectKey { kind: Kind::Pod, namespace: namespace.into(), name: name.into() };
        self.observer.apply(Change::Delete(key), self.now);
    }

    pub(crate) fn at(&mut self, seconds: i64) -> &mut Self {
        self.now = t(seconds);
        self.observer.tick(self.now);
        self
    }

    pub(crate) fn cgroup(&mut self, id: u64, path: &str) {
        self.observer
            .observe(Observation::CgroupCreated { id: CgroupId(id), path: path.into(), at: self.now }, self.now);
    }

    pub(crate) fn pod_cgroup(&mut self, id: u64, deployment: &str, index: u32) {
        self.cgroup(id, &cgroup_path(deployment, index));
    }

    pub(crate) fn flow(&mut self, delta: FlowDelta) {
        self.observer.observe(Observation::Flow(delta), self.now);
    }

    /// The snapshot, after proof that its other forms say the same: the counters of a scrape, and
    /// the document in pieces.
    pub(crate) fn snapshot(&mut self) -> Snapshot {
        let counters = self.observer.edge_counters(self.now);
        let unresolved = self.observer.stats().unresolved;
        let document = Arc::new(self.observer.document(self.now));
        let snapshot = document.snapshot();
        assert_eq!(counters.edges, snapshot.edge_counters(), "counters without a snapshot");
        assert_eq!(counters.complete, snapshot.body.coverage.complete, "{:?}", snapshot.body.coverage);
        assert_eq!(unresolved, self.observer.stats().unresolved);
        self.is_stored_as(&snapshot);
        let whole = format!("{}\n", serde_json::to_string(&snapshot).unwrap());
        for bytes in [1, 1000] {
            let pieces = Arc::clone(&document).chunks(bytes).collect::<Vec<_>>().concat();
            assert_eq!(String::from_utf8(pieces).unwrap(), whole);
        }
        snapshot
    }

    /// What a base on disk says is what a snapshot says, now and if nothing happens any more.
    fn is_stored_as(&mut self, snapshot: &Snapshot) {
        let mut recorder = Recorder::default();
        let Write::Base(base) = self.observer.store(&mut recorder, self.now, |_| ()) else { panic!("no base") };
        let state = State::read(&base, &[]).unwrap();
        assert_eq!((state.at(), state.cut()), (self.now, None));
        let mut stored = state.document(self.now).unwrap().snapshot();
        // A state is no word for others.
        stored.body.revisions.clone_from(&snapshot.body.revisions);
        if stored.body.remote_flows.len() > snapshot.body.remote_flows.len() {
            // What is held under the name that is believed stands under its address there.
            assert_eq!(all_opened(&stored), all_opened(snapshot));
        } else {
            assert_eq!(stored, *snapshot);
        }
        assert_eq!(self.observer.store(&mut recorder, self.now, |_| ()), Write::Nothing);
    }

    pub(crate) fn edges(&mut self) -> Vec<String> {
        edges(&self.snapshot())
    }

    pub(crate) fn lost(&self, reason: LossReason) -> u64 {
        self.observer.stats().losses.iter().find(|(r, ..)| *r == reason).unwrap().2
    }

    /// Entries of a kind that the observer keeps.
    pub(crate) fn entries(&self, kind: &str) -> usize {
        self.observer.stats().identity_entries.iter().find(|(k, _)| *k == kind).unwrap().1
    }

    pub(crate) fn unresolved(&self, reason: &str) -> u64 {
        self.observer.stats().unresolved.iter().find(|(r, _)| *r == reason).unwrap().1
    }
}

/// A delta of one open at `at`.
pub(crate) fn delta(
    cgroup: u64,
    role: Role,
    local: &str,
    remote: &str,
    protocol: Protocol,
    server_port: u16,
    at: Timestamp,
) -> FlowDelta {
    FlowDelta {
        cgroup: CgroupId(cgroup),
        netns: Some(NetnsId(u32::try_from(cgroup).unwrap())),
        local: ip(local),
        remote: Remote::Addr(ip(remote)),
        protocol,
        role,
        server_port,
        local_port: None,
        bind_seen: true,
        first_open: Some(at),
        last_open: Some(at),
        counts: FlowCounts { opened: 1, bytes_sent: 10, bytes_received: 20, ..FlowCounts::default() },
    }
}

pub(crate) fn tcp_client(cgroup: u64, local: &str, remote: &str, port: u16, at: Timestamp) -> FlowDelta {
    delta(cgroup, Role::Client, local, remote, Protocol::Tcp, port, at)
}

pub(crate) fn tcp_server(cgroup: u64, local: &str, remote: &str, port: u16, at: Timestamp) -> FlowDelta {
    delta(cgroup, Role::Server, local, remote, Protocol::Tcp, port, at)
}

pub(crate) fn failed(mut delta: FlowDelta, counts: FlowCounts) -> FlowDelta {
    delta.counts = counts;
    delta
}

fn short(peer: &Peer) -> String {
    match peer {
        Peer::Workload(w) => w.name.clone(),
        other => other.to_string(),
    }
}

pub(crate) fn edge_text(edge: &EdgeRecord) -> String {
    let marks: Vec<&str> = edge.marks.iter().map(String::as_str).collect();
    let via: Vec<&str> = edge.via.iter().map(String::as_str).collect();
    let mut text =
        format!("{} -> {} {}/{}", short(&edge.client.peer), short(&edge.server.peer), edge.protocol, edge.port);
    if !via.is_empty() {
        text += &format!(" via {}", via.join(","));
    }
    if !marks.is_empty() {
        text += &format!(" [{}]", marks.join(","));
    }
    if !edge.supported {
        text += " unsupported";
    }
    text
}

pub(crate) fn edges(snapshot: &Snapshot) -> Vec<String> {
    snapshot.body.edges.iter().map(edge_text).collect()
}

/// The complete lists of a cluster, in the order in which a file gives them.
pub(crate) fn lists(text: &str) -> Vec<Change> {
    let objects = read::objects(text, "test").unwrap().objects;
    [Kind::Namespace, Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::Pod]
        .into_iter()
        .map(|kind| {
            let objects = objects.iter().filter(|o| o.key().kind == kind).cloned().collect();
            Change::Replace { kind, objects }
        })
        .collect()
}
