//! The observer: any sequence of observations, as an attacker's pods, addresses and answers may
//! make it.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use guardrail_graph::{
    Observation, Observer, ObserverConfig, Protocol, Snapshot, Timestamp,
    inventory::{Change, Kind, Node, Object, ObjectKey, Pod, Service, ServicePort, TargetPort},
    observe::{CgroupId, FlowCounts, FlowDelta, LossReason, NetnsId, Remote, Role},
    snapshot,
};

/// Bytes of a record. All records are as long, so that a changed kind leaves those behind it what
/// they are.
const RECORD: usize = 12;
/// The observer's clock at the beginning, Unix seconds.
const START: i64 = 1_700_000_000;

/// Takes numbers from a record; zeros when it is used up.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// Few addresses of each sort, so that they meet: pods, Services, nodes, the outside; many at
    /// times.
    fn address(&mut self) -> IpAddr {
        let byte = self.byte();
        match byte >> 5 {
            0 | 1 => [10, 244, 1, byte & 15].into(),
            2 => [10, 244, 2, byte & 15].into(),
            3 => [10, 96, 0, byte & 15].into(),
            4 => [192, 0, 2, 10 + (byte & 3)].into(),
            5 => [203, 0, 113, byte & 31].into(),
            6 => IpAddr::V6(Ipv6Addr::from(u128::from(byte) | 0xfd00 << 112)),
            _ => {
                let [high, low] = self.word().to_be_bytes();
                [high, low, byte, low].into()
            }
        }
    }

    /// Few ports that mean something here, and others.
    fn port(&mut self) -> u16 {
        match self.byte() {
            byte @ 0..=7 => [0, 53, 80, 7000, 8080, 30080, 40000, u16::MAX][usize::from(byte)],
            byte => u16::from(byte) << 7,
        }
    }

    /// Two counts.
    fn counts(&mut self) -> [u64; 2] {
        let byte = self.byte();
        [byte & 15, byte >> 4].map(|half| if half == 15 { u64::MAX } else { u64::from(half) })
    }
}

/// Two nodes with pod ranges and a Service. Made here, not read: reading text took most of a run.
fn cluster() -> [Object; 3] {
    let node = |name: &str, range: &str, address: [u8; 4]| {
        Object::Node(Arc::new(Node {
            name: name.to_owned(),
            addresses: vec![address.into()],
            pod_cidrs: vec![range.parse().expect("a range")],
            ..Node::default()
        }))
    };
    [
        node("node-a", "10.244.1.0/24", [192, 0, 2, 11]),
        node("node-b", "10.244.2.0/24", [192, 0, 2, 12]),
        Object::Service(Arc::new(Service {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            service_type: "ClusterIP".to_owned(),
            cluster_ips: vec![[10, 96, 0, 1].into()],
            ports: vec![ServicePort {
                name: None,
                port: 80,
                protocol: "TCP".to_owned(),
                target_port: TargetPort::Number(8080),
                node_port: Some(30080),
            }],
            selector: [("app", "a1")].into_iter().collect(),
            ..Service::default()
        })),
    ]
}

/// `flags`: 1 in the host's network, 2 finished, 4 on its way out, 8 not ready.
fn pod(number: u8, address: IpAddr, flags: u8) -> Object {
    let app = format!("a{}", number & 3);
    Object::Pod(Arc::new(Pod {
        namespace: "shop".to_owned(),
        name: format!("p{number}"),
        uid: format!("pod-number-{number}"),
        labels: [("app", app.as_str())].into_iter().collect(),
        node: Some(if number & 1 == 0 { "node-a" } else { "node-b" }.to_owned()),
        host_network: flags & 1 != 0,
        addresses: vec![address],
        finished: flags & 2 != 0,
        terminating: flags & 4 != 0,
        ready: flags & 8 == 0,
        ..Pod::default()
    }))
}

/// What a record says; `None` if it is a change of the inventory or of the time, which is done
/// here.
fn observation(record: &[u8], observer: &mut Observer, now: &mut i64) -> Option<Observation> {
    let mut source = Source(record);
    let kind = source.byte();
    let (at, stamp) = (*now - i64::from(kind >> 4), Timestamp::from_unix_seconds(*now));
    let at = Timestamp::from_unix_seconds(at);
    let cgroup = CgroupId(u64::from(source.byte() & 15));
    Some(match kind & 15 {
        0..=4 => {
            let (flags, server_port) = (source.byte(), source.port());
            let ([opened, refused], [sent, received]) = (source.counts(), source.counts());
            Observation::Flow(FlowDelta {
                cgroup,
                netns: (flags & 128 != 0).then_some(NetnsId(1)),
                local: source.address(),
                remote: if flags & 64 == 0 { Remote::Addr(source.address()) } else { Remote::Many },
                protocol: if flags & 32 == 0 { Protocol::Tcp } else { Protocol::Udp },
                role: [Role::Client, Role::Server, Role::Undecided][usize::from(flags & 3) % 3],
                server_port,
                local_port: (flags & 4 != 0).then_some(7000),
                bind_seen: flags & 8 != 0,
                first_open: (flags & 16 == 0).then_some(at),
                last_open: Some(stamp),
                counts: FlowCounts {
                    opened,
                    refused,
                    bytes_sent: sent,
                    bytes_received: received,
                    ..FlowCounts::default()
                },
            })
        }
        5 => {
            let path = format!("/kubepods/podpod-number-{}/0123456789abcdef", source.byte() & 15);
            Observation::CgroupCreated { id: cgroup, path, at }
        }
        6 => Observation::CgroupRemoved { id: cgroup, at },
        7 => {
            let (flags, port) = (source.byte(), source.port());
            let netns = NetnsId(u32::from(flags >> 6));
            Observation::Listening { cgroup, netns, address: source.address(), port, listening: flags & 1 == 0, at }
        }
        8 => {
            let name = format!("n{}.example.org", source.byte());
            Observation::DnsAnswer { cgroup, name, addresses: vec![source.address(), source.address()], at }
        }
        9 => {
            let reason = LossReason::ALL[usize::from(source.byte()) % LossReason::ALL.len()];
            let [count, of_node] = source.counts();
            Observation::Lost { reason, cgroup: (of_node == 0).then_some(cgroup), count, at }
        }
        10 | 11 => {
            let (number, flags) = (source.byte() & 15, source.byte());
            let pod = pod(number, source.address(), flags);
            observer.apply(Change::Apply(pod), stamp);
            return None;
        }
        12 => {
            let name = format!("p{}", source.byte() & 15);
            observer.apply(Change::Delete(ObjectKey { kind: Kind::Pod, namespace: "shop".to_owned(), name }), stamp);
            return None;
        }
        13 => {
            let (number, address) = (source.byte() & 15, source.address());
            observer.apply(Change::Replace { kind: Kind::Pod, objects: vec![pod(number, address, 0)] }, stamp);
            return None;
        }
        _ => {
            *now += i64::from(source.word());
            observer.tick(Timestamp::from_unix_seconds(*now));
            return None;
        }
    })
}

/// Small bounds, so that inputs of a few records reach them.
fn bounds() -> ObserverConfig {
    let mut config = ObserverConfig::new("node-a", "instance", Timestamp::from_unix_seconds(START));
    (config.max_edges, config.max_names, config.max_pending, config.max_listeners) = (24, 16, 8, 16);
    (config.max_external_clients, config.max_external_servers, config.max_failed_servers) = (4, 6, 3);
    config
}

/// An observer that was told the records and waits for nothing any more, and its time.
fn told(records: &[u8]) -> (Observer, Timestamp) {
    let mut observer = Observer::new(bounds());
    for object in cluster() {
        observer.apply(Change::Apply(object), Timestamp::from_unix_seconds(START));
    }
    let mut now = START;
    for record in records.chunks(RECORD) {
        if let Some(observation) = observation(record, &mut observer, &mut now) {
            observer.observe(observation, Timestamp::from_unix_seconds(now));
        }
    }
    let now = Timestamp::from_unix_seconds(now);
    observer.flush(now);
    (observer, now)
}

/// Small bounds hold, whatever is told; the snapshot can be read, joined with itself and continued.
/// The first byte says which of the three is tried, since each takes longer than all records; the
/// rest are records of [`RECORD`] bytes.
pub(super) fn observe(bytes: &[u8]) {
    let Some((what, records)) = bytes.split_first() else { return };
    let bounds = bounds();
    let (mut observer, now) = told(records);
    let stats = observer.stats();
    assert!(stats.edges <= bounds.max_edges && stats.service_flows <= bounds.max_edges && stats.pending == 0);
    let entries = |kind| stats.identity_entries.iter().find(|(k, _)| *k == kind).expect("a kind").1;
    assert!(entries("name") <= bounds.max_names, "{} names", entries("name"));
    assert!(entries("listener") <= 2 * bounds.max_listeners);
    // Two ends of each edge, their workloads, and the nodes.
    assert!(entries("peer") <= 2 * bounds.max_edges + 32, "{} peers", entries("peer"));

    let snapshot = observer.snapshot(now);
    match what & 3 {
        0 => {
            let again = Snapshot::from_json(&snapshot.to_json(), "again").expect("what was written can be read");
            assert_eq!(again, snapshot);
        }
        1 => {
            let twice = snapshot::merge(vec![snapshot.clone(), snapshot.clone()]);
            assert_eq!(twice, snapshot, "a snapshot is complete in itself");
        }
        seamless => {
            let kept = snapshot.body.edges.iter().filter(|e| !e.sources.is_empty()).count();
            let mut continued = Observer::restore(bounds, &snapshot, seamless == 2).expect("its own state");
            assert!(continued.snapshot(now).body.edges.len() >= kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn seed(name: &str) -> Vec<u8> {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/observer").join(name)).unwrap()
    }

    #[test]
    fn seeds_say_what_their_names_say() {
        // Edges, service flows, names, unresolved flows, losses.
        for (name, expected) in [
            ("edge", [2, 0, 0, 0, 0]),
            ("external-clients", [1, 0, 0, 0, 0]),
            ("gossip", [2, 0, 0, 1, 0]),
            ("host", [2, 0, 0, 0, 1]),
            ("losses", [1, 0, 0, 0, 4]),
            ("many", [1, 0, 0, 0, 1]),
            ("named", [2, 0, 2, 0, 0]),
            ("names-of-one", [0, 0, 2, 0, 0]),
            ("node-port", [0, 1, 0, 1, 0]),
            ("reused-address", [3, 0, 0, 0, 0]),
            ("scan", [9, 0, 0, 0, 0]),
            ("service", [0, 1, 0, 0, 0]),
            ("undecided", [1, 0, 0, 1, 0]),
            ("waits", [1, 0, 0, 1, 0]),
        ] {
            let bytes = seed(name);
            for what in 0..4 {
                observe(&[&[what], &bytes[1..]].concat());
            }
            let stats = told(&bytes[1..]).0.stats();
            let count = |n: usize| u64::try_from(n).unwrap();
            let names = stats.identity_entries.iter().find(|(kind, _)| *kind == "name").unwrap().1;
            let unresolved = stats.unresolved.iter().map(|(_, n)| n).sum();
            let lost = stats.losses.iter().map(|(.., n)| n).sum();
            let found = [count(stats.edges), count(stats.service_flows), count(names), unresolved, lost];
            assert_eq!(found, expected, "{name}: {stats:?}");
        }
    }
}
