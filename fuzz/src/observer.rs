//! The observer: any sequence of observations, as an attacker's pods, addresses and answers may make it.

use std::net::{IpAddr, Ipv4Addr};

use guardrail_graph::{
    Observation, Observer, ObserverConfig, Protocol, Snapshot, Timestamp,
    inventory::{Change, Kind, ObjectKey, read},
    observe::{CgroupId, FlowCounts, FlowDelta, LossReason, NetnsId, Remote, Role},
    snapshot,
};

/// Takes numbers from the input; zeros when it is used up.
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

    /// Few addresses of each sort, so that they meet: pods, Services, nodes, the outside; any address at times.
    fn address(&mut self) -> IpAddr {
        let byte = self.byte();
        match byte >> 5 {
            0 | 1 => [10, 244, 1, byte & 15].into(),
            2 => [10, 244, 2, byte & 15].into(),
            3 => [10, 96, 0, byte & 15].into(),
            4 => [192, 0, 2, 10 + (byte & 3)].into(),
            5 => [203, 0, 113, byte & 31].into(),
            6 => IpAddr::V6(std::net::Ipv6Addr::from(u128::from(self.word()) | 0xfd00 << 112)),
            _ => Ipv4Addr::from(u32::from(self.word()) << 16 | u32::from(self.word())).into(),
        }
    }

    fn count(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX,
            byte => u64::from(byte & 7),
        }
    }
}

const CLUSTER: &str = r"
{kind: Node, metadata: {name: node-a}, spec: {podCIDR: 10.244.1.0/24}, status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}}
---
{kind: Node, metadata: {name: node-b}, spec: {podCIDR: 10.244.2.0/24}, status: {addresses: [{type: InternalIP, address: 192.0.2.12}]}}
---
{kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: 8080}]}}
";

fn pod(number: u8, address: IpAddr) -> String {
    format!(
        "{{kind: Pod, metadata: {{name: p{number}, namespace: shop, uid: pod-number-{number}, labels: {{app: a{}}}}}, \
         spec: {{nodeName: node-{}}}, status: {{podIP: '{address}'}}}}",
        number & 3,
        if number & 1 == 0 { 'a' } else { 'b' }
    )
}

fn apply(observer: &mut Observer, text: &str, now: Timestamp) {
    for object in read::objects(text, "fuzz").expect("made here").objects {
        observer.apply(Change::Apply(object), now);
    }
}

/// Small bounds hold, whatever is told; the snapshot can be read, joined with itself and continued.
pub(super) fn observe(bytes: &[u8]) {
    let start = 1_700_000_000;
    let mut config = ObserverConfig::new("node-a", "instance", Timestamp::from_unix_seconds(start));
    (config.max_edges, config.max_names, config.max_pending, config.max_listeners) = (24, 16, 8, 16);
    (config.max_external_clients, config.max_external_servers, config.max_failed_servers) = (4, 6, 3);
    let bounds = config.clone();
    let mut observer = Observer::new(config);
    apply(&mut observer, CLUSTER, Timestamp::from_unix_seconds(start));
    let mut source = Source(bytes);
    let mut now = start;
    while !source.0.is_empty() {
        let at = Timestamp::from_unix_seconds(now - i64::from(source.byte() & 15));
        let stamp = Timestamp::from_unix_seconds(now);
        let cgroup = CgroupId(u64::from(source.byte() & 15));
        let observation = match source.byte() % 10 {
            0..=3 => Observation::Flow(FlowDelta {
                cgroup,
                netns: None,
                local: source.address(),
                remote: if source.byte() == 0 { Remote::Many } else { Remote::Addr(source.address()) },
                protocol: if source.byte() & 1 == 0 { Protocol::Tcp } else { Protocol::Udp },
                role: [Role::Client, Role::Server, Role::Undecided][usize::from(source.byte() % 3)],
                server_port: source.word(),
                local_port: (source.byte() & 1 == 0).then_some(7000),
                bind_seen: source.byte() & 1 == 0,
                first_open: Some(at),
                last_open: Some(stamp),
                counts: FlowCounts {
                    opened: source.count(),
                    refused: source.count(),
                    bytes_sent: source.count(),
                    bytes_received: source.count(),
                    ..FlowCounts::default()
                },
            }),
            4 => {
                let path = format!("/kubepods/podpod-number-{}/0123456789abcdef", source.byte() & 15);
                Observation::CgroupCreated { id: cgroup, path, at }
            }
            5 => Observation::CgroupRemoved { id: cgroup, at },
            6 => Observation::Listening {
                cgroup,
                netns: NetnsId(u32::from(source.byte() & 3)),
                address: source.address(),
                port: source.word(),
                listening: source.byte() & 1 == 0,
                at,
            },
            7 => Observation::DnsAnswer {
                cgroup,
                name: format!("n{}.example.org", source.byte()),
                addresses: vec![source.address(), source.address()],
                at,
            },
            8 => {
                let number = source.byte();
                if source.byte() & 3 == 0 {
                    let name = format!("p{}", number & 15);
                    let key = ObjectKey { kind: Kind::Pod, namespace: "shop".to_owned(), name };
                    observer.apply(Change::Delete(key), stamp);
                } else {
                    let address = source.address();
                    apply(&mut observer, &pod(number & 15, address), stamp);
                }
                continue;
            }
            _ => {
                now += i64::from(source.word());
                observer.tick(Timestamp::from_unix_seconds(now));
                let reason = LossReason::ALL[usize::from(source.byte()) % LossReason::ALL.len()];
                Observation::Lost { reason, cgroup: Some(cgroup), count: source.count(), at }
            }
        };
        observer.observe(observation, stamp);
    }
    let now = Timestamp::from_unix_seconds(now);
    observer.flush(now);
    let stats = observer.stats();
    assert!(stats.edges <= bounds.max_edges && stats.service_flows <= bounds.max_edges && stats.pending == 0);
    let entries = |kind| stats.identity_entries.iter().find(|(k, _)| *k == kind).expect("a kind").1;
    assert!(entries("name") <= bounds.max_names, "{} names", entries("name"));
    assert!(entries("listener") <= 2 * bounds.max_listeners);
    // Two ends of each edge, their workloads, and the nodes.
    assert!(entries("peer") <= 2 * bounds.max_edges + 32, "{} peers", entries("peer"));

    let snapshot = observer.snapshot(now);
    assert_eq!(Snapshot::from_json(&snapshot.to_json(), "again").expect("what was written can be read"), snapshot);
    assert_eq!(snapshot::merge(vec![snapshot.clone(), snapshot.clone()]), snapshot, "a snapshot is complete in itself");
    let kept = snapshot.body.edges.iter().filter(|e| !e.sources.is_empty()).count();
    for is_seamless in [false, true] {
        let mut continued = Observer::restore(bounds.clone(), &snapshot, is_seamless).expect("its own state");
        assert!(continued.snapshot(now).body.edges.len() >= kept);
    }
}
