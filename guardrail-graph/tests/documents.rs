//! Snapshots as documents: errors, restore, merge and its laws.

mod common;

use std::sync::Arc;

use common::{CLUSTER, Lab, apply_text, delta, edges, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Peer, Protocol, Snapshot, Timestamp, WorkloadRef,
    observe::{CgroupId, FlowCounts, LossClass, LossReason, Role},
    observer::RestoreError,
    snapshot::{
        AddressEntry, BackendEntry, Body, Counts, Document, EdgePeer, EdgeRecord, FlowTime, Interval, InventoryState,
        LossEntry, LossTime, NodeDescription, NodeTime, NodeView, Packed, PodPresence, Revision, ServiceEntry,
        ServiceFlow, ServicePortEntry, Side, Source, SourceCounts, SourceRevision, UnresolvedEntry, UnresolvedFlow,
        Witness, WorkloadCoverage, WorkloadEntry, merge,
    },
};
use proptest::prelude::*;

#[test]
fn a_text_that_is_no_snapshot_gives_one_sentence() {
    let good = Snapshot::empty().to_json();
    for (text, expected) in [
        (" \n", "s.json: the file is empty"),
        (&good[..good.len() / 2], "s.json: the file ends in the middle (line "),
        ("nonsense", "s.json: line 1: this is no JSON; give a file"),
        (r#"{"kind":"Pod","apiVersion":"v1"}"#, "s.json: this is v1 Pod, not guardrail.dev/v2 GraphSnapshot"),
        (
            r#"{"kind":"GraphSnapshot","apiVersion":"guardrail.dev/v1"}"#,
            "s.json: this is a snapshot of an earlier guardrail (guardrail.dev/v1)",
        ),
        ("{}", "this is a document without apiVersion and kind, not guardrail.dev/v2"),
        (r#"{"kind":"GraphSnapshot","apiVersion":"guardrail.dev/v2"}"#, "missing field"),
        (&good.replace("\"edges\": []", "\"edges\": 5"), "invalid type: integer `5`"),
    ] {
        let message = Snapshot::from_json(text, "s.json").expect_err(text).to_string();
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains('\n'));
    }
    assert_eq!(Snapshot::from_json(&good, "f").unwrap(), Snapshot::empty());
}

fn busy(node: &str) -> Lab {
    let inventory = [
        pod("shop", "web", 0, "node-a", "10.244.1.2", &[]),
        pod("shop", "api", 0, "node-a", "10.244.1.3", &["http:8080"]),
        pod("shop", "api", 1, "node-b", "10.244.2.3", &["http:8080"]),
        "---\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.96.0.7, selector: {app: api}, ports: [{port: 80, targetPort: http}]}\n".to_owned(),
    ];
    let mut lab = Lab::new(node, &inventory);
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "api", 0);
    lab.pod_cgroup(3, "api", 1);
    lab
}

#[test]
fn a_document_stays_as_it_was_while_the_observer_counts_on() {
    let service = "---\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.96.0.7, selector: {app: api}, ports: [{port: 80, targetPort: http}]}\n";
    let mut lab = busy("node-a");
    lab.apply(service);
    let step = |lab: &mut Lab, seconds: i64| {
        lab.flow(tcp_client(1, "10.244.1.2", "10.244.1.3", 8080, t(seconds)));
        lab.flow(tcp_server(2, "10.244.1.3", "10.244.1.2", 8080, t(seconds)));
        lab.flow(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(seconds)));
        lab.flow(tcp_client(1, "10.244.1.2", "198.51.100.9", 443, t(seconds)));
    };
    step(&mut lab, 5);
    let document = lab.observer.document(lab.now);
    let before = document.snapshot();
    step(&mut lab, 6);
    lab.apply(&pod("shop", "api", 0, "node-a", "10.244.1.3", &["renamed:8080"]));
    lab.apply(&service.replace("port: 80", "port: 81"));
    lab.delete_pod("shop", "web-5d9c-0");
    lab.at(7);
    assert_eq!(document.snapshot(), before);
    let after = lab.snapshot();
    let opened = |snapshot: &Snapshot| snapshot.body.edges.iter().map(|e| e.counts.opened).collect::<Vec<_>>();
    assert!(opened(&after).iter().zip(opened(&before)).any(|(after, before)| *after > before), "{after:?}");
    assert!(after.body.workloads != before.body.workloads && after.body.services != before.body.services);
}

#[test]
fn a_restored_state_continues_its_counts_and_its_gap_is_incompleteness() {
    let mut lab = busy("node-a");
    lab.flow(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(5)));
    lab.flow(tcp_server(2, "10.244.1.3", "10.244.1.2", 8080, t(5)));
    for i in 0..100u32 {
        lab.flow(tcp_server(2, "10.244.1.3", &std::net::Ipv4Addr::from(0xc612_0000 + i).to_string(), 8080, t(6)));
    }
    lab.flow(tcp_client(1, "10.244.1.2", "203.0.113.4", 443, t(6)));
    lab.observer.observe(
        Observation::DnsAnswer {
            cgroup: CgroupId(1),
            name: "x.example".into(),
            addresses: vec![common::ip("203.0.113.4")],
            at: t(6),
        },
        t(6),
    );
    lab.observer.observe(
        Observation::Lost { reason: LossReason::MapFull, cgroup: Some(CgroupId(1)), count: 2, at: t(6) },
        t(6),
    );
    let state = lab.at(50).snapshot();
    let stored = Snapshot::from_json(&state.to_json(), "state").unwrap();

    let mut config = ObserverConfig::new("node-a", "another-instance", t(60));
    let mut observer = Observer::restore(config.clone(), &stored, false).unwrap();
    assert_eq!(observer.config().instance, "instance-node-a");
    let inventory = [
        pod("shop", "web", 0, "node-a", "10.244.1.2", &[]),
        pod("shop", "api", 0, "node-a", "10.244.1.3", &["http:8080"]),
        pod("shop", "api", 1, "node-b", "10.244.2.3", &["http:8080"]),
    ];
    apply_text(&mut observer, &format!("{CLUSTER}{}", inventory.concat()), t(60));
    observer.observe(
        Observation::CgroupCreated { id: CgroupId(11), path: common::cgroup_path("web", 0), at: t(60) },
        t(60),
    );
    observer.observe(Observation::Flow(tcp_client(11, "10.244.1.2", "203.0.113.4", 443, t(70))), t(70));
    let next = observer.snapshot(t(80));
    let opened =
        |s: &Snapshot, edge: &str| s.body.edges.iter().find(|e| common::edge_text(e) == edge).map(|e| e.counts.opened);
    assert_eq!(edges(&next), edges(&state));
    assert_eq!(opened(&next, "web -> external/203.0.113.4 TCP/443"), Some(2));
    assert_eq!(opened(&next, "external/* -> api TCP/8080"), Some(100));
    assert!(next.body.edges.iter().any(|e| e.server.names.contains("x.example")));
    assert_eq!(
        next.body.window.nodes["node-a"],
        [Interval { from: t(0), to: t(50) }, Interval { from: t(60), to: t(80) }]
    );
    assert!(next.body.coverage.losses.iter().any(|l| l.reason == "map_full" && l.count == 2));
    let web = next.body.coverage.workloads.iter().find(|w| w.peer.to_string() == "shop/Deployment/web").unwrap();
    assert!(web.reasons.contains("window_gap:node-a") && web.reasons.contains("map_full"), "{web:?}");
    assert_eq!(
        edges(&merge(vec![state.clone(), next.clone()])),
        edges(&next),
        "two states of one instance are not added up"
    );
    assert_eq!(opened(&merge(vec![next, state.clone()]), "web -> external/203.0.113.4 TCP/443"), Some(2));

    let mut seamless = Observer::restore(config.clone(), &state, true).unwrap();
    let window = seamless.snapshot(t(80)).body.window.nodes["node-a"].clone();
    assert_eq!(window, [Interval { from: t(0), to: t(80) }], "the hooks were there all the time");

    config.node = "node-b".into();
    let error = Observer::restore(config, &state, false).unwrap_err();
    assert!(matches!(error, RestoreError::OtherSource { .. }));
    assert!(error.to_string().contains("node-a/instance-node-a"), "{error}");
}

#[test]
fn one_nodes_view_is_partial_where_another_node_hosts_a_pod_and_merge_lifts_it() {
    let (mut a, mut b) = (busy("node-a"), busy("node-b"));
    let workload = |name: &str| WorkloadRef { namespace: "shop".into(), owner: "Deployment".into(), name: name.into() };
    let (a, b) = (a.snapshot(), b.snapshot());
    assert_eq!(a.node_view(&workload("web")), NodeView::Whole);
    let NodeView::Partial { missing, .. } = a.node_view(&workload("api")) else { panic!("api runs on node-b as well") };
    assert_eq!(missing.into_iter().collect::<Vec<_>>(), ["node-b"]);
    assert!(!a.body.coverage.complete);
    let merged = merge(vec![a, b]);
    assert_eq!(merged.node_view(&workload("api")), NodeView::Whole);
    assert!(merged.body.coverage.complete);
}

#[test]
fn edge_counters_bound_external_addresses() {
    let mut lab = busy("node-a");
    for remote in ["203.0.113.4", "203.0.113.5"] {
        lab.flow(tcp_client(1, "10.244.1.2", remote, 443, t(5)));
    }
    let counters = lab.snapshot().edge_counters();
    assert_eq!(counters.len(), 1);
    assert_eq!((counters[0].client.to_string().as_str(), &*counters[0].server), ("shop/Deployment/web", &Peer::many()));
    assert_eq!(counters[0].outcomes, [2, 0, 0, 0, 0]);
}

// ---- laws, over snapshots that observers made ----

#[derive(Clone, Debug)]
struct Step {
    kind: u8,
    remote: u8,
    port: u16,
    counts: (u64, u64, u64),
    at: i64,
}

fn step() -> impl Strategy<Value = Step> {
    (0u8..5, 0u8..8, prop_oneof![Just(80u16), Just(8080), Just(443)], (0u64..3, 0u64..2, 0u64..2), 0i64..100)
        .prop_map(|(kind, remote, port, counts, at)| Step { kind, remote, port, counts, at })
}

fn run(node: &str, steps: &[Step], cut: usize) -> [Snapshot; 2] {
    let mut lab = busy(node);
    let remotes = [
        "10.244.1.2",
        "10.244.1.3",
        "10.244.2.3",
        "10.96.0.7",
        "203.0.113.4",
        "192.0.2.12",
        "10.244.2.50",
        "239.0.0.1",
    ];
    let mut early = None;
    for (i, step) in steps.iter().enumerate() {
        if i == cut {
            early = Some(lab.snapshot());
        }
        let (cgroup, local) = if node == "node-a" {
            if step.kind.is_multiple_of(2) { (1, "10.244.1.2") } else { (2, "10.244.1.3") }
        } else {
            (3, "10.244.2.3")
        };
        let (role, protocol) = match step.kind {
            0 | 1 => (Role::Client, Protocol::Tcp),
            2 | 3 => (Role::Server, Protocol::Tcp),
            _ => (Role::Client, Protocol::Udp),
        };
        let mut flow = delta(cgroup, role, local, remotes[usize::from(step.remote)], protocol, step.port, t(step.at));
        flow.counts = FlowCounts {
            opened: step.counts.0,
            refused: step.counts.1,
            found: step.counts.2,
            bytes_sent: step.counts.0,
            ..FlowCounts::default()
        };
        lab.flow(flow);
    }
    lab.at(200);
    [early.unwrap_or_else(|| lab.snapshot()), lab.snapshot()]
}

#[track_caller]
fn same(left: &str, right: &str, law: &str) {
    if let Some((l, r)) = left.lines().zip(right.lines()).enumerate().find(|(_, (l, r))| l != r).map(|(i, _)| (i, i)) {
        let around = |text: &str| text.lines().skip(l.saturating_sub(12)).take(16).collect::<Vec<_>>().join("\n");
        panic!("{law}: line {r}\n--- left\n{}\n--- right\n{}", around(left), around(right));
    }
    assert_eq!(left.len(), right.len(), "{law}");
}

fn laws(snapshots: &[Snapshot]) {
    let all = merge(snapshots.to_vec());
    let text = all.to_json();
    let mut reversed = snapshots.to_vec();
    reversed.reverse();
    same(&merge(reversed).to_json(), &text, "commutative");
    for split in 1..snapshots.len() {
        let (left, right) = snapshots.split_at(split);
        let nested = merge(vec![merge(left.to_vec()), merge(right.to_vec())]);
        same(&nested.to_json(), &text, "associative");
    }
    same(&merge(vec![all.clone(), all.clone()]).to_json(), &text, "idempotent");
    same(&merge(snapshots.iter().cloned().chain([all.clone()]).collect()).to_json(), &text, "absorbing");
    assert_eq!(Snapshot::from_json(&text, "f").unwrap(), all, "read back");
}

// ---- laws, over documents that no observer would write ----

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        "[ab]".prop_map(|name| Peer::Workload(WorkloadRef { namespace: "n".into(), owner: "Deployment".into(), name })),
        "[xy]".prop_map(|name| Peer::Node { name }),
        "[12]".prop_map(|last| Peer::External { address: format!("203.0.113.{last}") }),
    ]
}

fn time() -> impl Strategy<Value = Timestamp> {
    (0i64..200).prop_map(t)
}

fn source() -> impl Strategy<Value = Source> {
    ("[xy]", "[12]", prop::option::of(time())).prop_map(|(node, instance, start)| Source { node, instance, start })
}

fn counts() -> impl Strategy<Value = Counts> {
    (0u64..4, 0u32..2, 0u32..2, 0u64..3, 0u64..2, 0u64..9, 0u64..9).prop_map(
        |(opened, found, open, refused, unanswered, bytes_sent, bytes_received)| Counts {
            opened,
            found,
            open,
            refused,
            unanswered,
            unreachable: 0,
            broken: 0,
            bytes_sent,
            bytes_received,
        },
    )
}

fn source_counts(client_only: bool) -> impl Strategy<Value = Vec<SourceCounts>> {
    let one = (source(), any::<bool>(), counts(), time(), time()).prop_map(move |(source, server, counts, a, b)| {
        SourceCounts {
            source: source.into(),
            side: if server && !client_only { Side::Server } else { Side::Client },
            counts,
            first_seen: a.min(b),
            last_seen: a.max(b),
            by_merge: false,
        }
    });
    prop::collection::vec(one, 0..3)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
}

fn words() -> impl Strategy<Value = std::collections::BTreeSet<String>> {
    prop::collection::btree_set(
        prop_oneof![Just("inferred"), Just("proxied"), Just("one-way"), Just("multicast"), Just("via-service")]
            .prop_map(str::to_owned),
        0..3,
    )
}

fn edge() -> impl Strategy<Value = EdgeRecord> {
    let sides = prop::collection::btree_set(prop_oneof![Just(Side::Client), Just(Side::Server)], 0..2);
    (
        peer(),
        peer(),
        protocol(),
        1u16..3,
        source_counts(false),
        words(),
        counts(),
        (time(), time()),
        (any::<bool>(), sides, prop::option::of("[pq]")),
    )
        .prop_map(
            |(client, server, protocol, port, sources, marks, counts, (a, b), (supported, seen_by, port_name))| {
                EdgeRecord {
                    client: EdgePeer { peer: client.into(), names: Default::default() },
                    server: EdgePeer { peer: server.into(), names: Default::default() },
                    protocol,
                    port,
                    port_name,
                    via: Default::default(),
                    seen_by,
                    counts,
                    first_seen: a.min(b),
                    last_seen: a.max(b),
                    supported,
                    marks,
                    node_workloads: Default::default(),
                    sources,
                }
            },
        )
}

fn service() -> impl Strategy<Value = ServiceEntry> {
    let backend =
        (0u8..3, 1u16..3, peer(), prop::option::of("[xyz]"), prop::option::of(time()), prop::option::of(time()))
            .prop_map(|(last, port, peer, node, from, to)| BackendEntry {
                address: [10, 0, 0, last].into(),
                port,
                peer,
                node,
                from,
                to,
            });
    (prop::collection::vec(backend, 0..4), time(), "[st]").prop_map(|(backends, as_of, service_type)| ServiceEntry {
        namespace: "n".into(),
        name: "s".into(),
        service_type,
        addresses: Default::default(),
        external_name: None,
        ports: vec![ServicePortEntry { port: 80, protocol: "TCP".into(), name: None, node_port: None, backends }],
        as_of,
    })
}

fn document() -> impl Strategy<Value = Snapshot> {
    let interval = (time(), time()).prop_map(|(a, b)| Interval { from: a.min(b), to: a.max(b) });
    let windows = prop::collection::btree_map("[xy]", prop::collection::vec(interval, 0..3), 0..2);
    let flow = (peer(), source_counts(true)).prop_map(|(client, sources)| ServiceFlow {
        client,
        service: "n/s:80".into(),
        protocol: Protocol::Tcp,
        port: 80,
        marks: Default::default(),
        node_workloads: Default::default(),
        backend_unknown: None,
        sources,
    });
    let span = || (time(), time()).prop_map(|(a, b)| Interval { from: a.min(b), to: a.max(b) });
    let times = prop::collection::vec((span(), prop::option::of(peer())), 0..3);
    let loss = (source(), 0u64..3, prop::option::of(times)).prop_map(|(source, count, times)| LossEntry {
        source,
        reason: "map_full".into(),
        class: LossClass::Edge,
        count,
        times: times.map(|times| times.into_iter().map(|(time, peer)| LossTime { time, peer }).collect()),
    });
    let witness =
        (source(), any::<bool>(), any::<bool>()).prop_map(|(source, tells, full)| Witness { source, tells, full });
    let present = ("[ab]", "[pq]", "[xy]", span(), prop::option::of(time()), any::<bool>()).prop_map(
        |(name, pod, node, Interval { from, to }, started, told)| PodPresence {
            workload: WorkloadRef { namespace: "n".into(), owner: "Deployment".into(), name },
            pod,
            node,
            from,
            to,
            started,
            told,
        },
    );
    let presence = (prop::collection::vec(witness, 0..3), prop::collection::vec(present, 0..4));
    let unresolved = (
        source(),
        prop_oneof![Just("ip_reuse"), Just("service_backend_unknown")],
        0u64..4,
        prop::collection::btree_set("[a-z]{1,2}", 0..9),
        prop::option::of(prop::collection::vec((peer(), peer(), span()), 0..3)),
        any::<bool>(),
    )
        .prop_map(|(source, reason, count, examples, flows, more)| {
            let flow = |(client, server, Interval { from, to })| UnresolvedFlow {
                client,
                server,
                protocol: Protocol::Tcp,
                port: 80,
                time: FlowTime { first_seen: from, last_seen: to },
            };
            let flows = flows.map(|flows| flows.into_iter().map(flow).collect());
            UnresolvedEntry { source, reason: reason.into(), count, examples, flows, more }
        });
    let incomplete = (
        peer(),
        prop::collection::btree_set(
            "map_full|node_unobserved:z|window_apart:x|losses:y|inventory_missing|ip_reuse",
            0..3,
        ),
    )
        .prop_map(|(peer, reasons)| WorkloadCoverage { peer, complete: false, reasons });
    let workload = (
        "[ab]",
        time(),
        prop::collection::btree_set("[xyz]", 0..3),
        prop::collection::btree_map("[xyz]", time(), 0..3),
    )
        .prop_map(|(name, as_of, nodes, ran_on)| WorkloadEntry {
            workload: WorkloadRef { namespace: "n".into(), owner: "Deployment".into(), name },
            selector: None,
            selector_advice: None,
            labels: Default::default(),
            schedule: None,
            host_network: false,
            pods: nodes.into_iter().map(|n| (n, Vec::new())).collect(),
            ran_on,
            as_of,
        });
    let heard = prop::option::of((time(), time()).prop_map(|(a, b)| Interval { from: a.min(b), to: a.max(b) }));
    let known = (any::<bool>(), prop::option::of(any::<bool>()), heard);
    let address = (0u8..3, prop::option::of(time()), prop::option::of(time()), peer(), known).prop_map(
        |(last, from, to, peer, (proven, listed, heard))| AddressEntry {
            address: [10, 0, 0, last].into(),
            from,
            to,
            peer,
            pod: None,
            heard,
            proven,
            listed,
        },
    );
    let node = ("[xyz]", prop::option::of("as told|windows node"), 0u8..3, any::<bool>(), time(), time()).prop_map(
        |(name, unobservable, n, more_labels, a, b)| NodeTime {
            name,
            unobservable,
            described: Arc::new(NodeDescription {
                os: Some("linux".into()).filter(|_| n > 0),
                labels: (0..n).map(|n| (["a", "b"][usize::from(n)], "v")).collect(),
                more_labels,
                addresses: (0..n).map(|last| [10, 0, 0, last].into()).collect(),
                pod_cidrs: (0..n).map(|n| format!("10.0.{n}.0/24").parse().unwrap()).collect(),
            }),
            time: Interval { from: a.min(b), to: a.max(b) },
        },
    );
    let nodes = prop::collection::vec(node, 0..3);
    (
        (
            windows,
            prop::collection::vec(flow, 0..3),
            prop::collection::vec(loss, 0..2),
            prop::collection::vec(unresolved, 0..2),
        ),
        prop::collection::vec(incomplete, 0..2),
        prop::collection::vec(workload, 0..2),
        prop::collection::vec(address, 0..3),
        prop::collection::vec(service(), 0..2),
        prop::collection::vec(edge(), 0..4),
        (prop::collection::btree_set(source(), 0..2), presence),
        (
            (
                prop::collection::btree_set("[xyz]", 0..3),
                prop::collection::btree_map("[xyz]", "as told|windows node", 0..2),
                nodes,
            ),
            prop::option::of(prop_oneof![
                Just(InventoryState::Missing),
                Just(InventoryState::Partial),
                Just(InventoryState::Complete)
            ]),
        ),
    )
        .prop_map(
            |(
                (windows, flows, losses, unresolved),
                incomplete,
                workloads,
                addresses,
                services,
                edges,
                (sources, (witnesses, presence)),
                ((expected, unobservable, nodes), inventory),
            )| {
                let mut snapshot = Snapshot::empty();
                let body = &mut snapshot.body;
                body.window.nodes = windows;
                (body.service_flows, body.coverage.losses, body.coverage.unresolved) = (flows, losses, unresolved);
                (body.coverage.workloads, body.workloads, body.addresses) = (incomplete, workloads, addresses);
                (body.services, body.edges, body.sources) = (services, edges, sources);
                (body.witnesses, body.presence) = (witnesses, presence);
                (body.coverage.nodes.expected, body.coverage.nodes.unobservable) = (expected, unobservable);
                body.nodes = nodes;
                body.coverage.inventory = inventory;
                snapshot
            },
        )
}

/// Says that one source of a node counted all of it. `nodes`: of which it has windows.
fn of_one_epoch(snapshot: &mut Snapshot, nodes: &[&str], n: u32) {
    let source = Source { node: nodes[0].to_owned(), instance: "i".into(), start: Some(t(0)) };
    let Body { sources, revisions, window, coverage, service_flows, witnesses, edges, .. } = &mut snapshot.body;
    *sources = [source.clone()].into();
    *revisions = vec![SourceRevision { source: source.clone(), revision: Revision { run: 1, n } }];
    let intervals = window.nodes.values().next().cloned().unwrap_or_default();
    window.nodes = nodes.iter().map(|node| ((*node).to_owned(), intervals.clone())).collect();
    coverage.losses.iter_mut().for_each(|loss| loss.source.clone_from(&source));
    coverage.unresolved.iter_mut().for_each(|entry| entry.source.clone_from(&source));
    witnesses.iter_mut().for_each(|witness| witness.source.clone_from(&source));
    let counts = edges.iter_mut().flat_map(|edge| &mut edge.sources);
    for counts in counts.chain(service_flows.iter_mut().flat_map(|flow| &mut flow.sources)) {
        counts.source = source.clone().into();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merge_of_observed_snapshots_obeys_its_laws(
        a in prop::collection::vec(step(), 0..12),
        b in prop::collection::vec(step(), 0..12),
        cut in 0usize..12,
    ) {
        let [early, late] = run("node-a", &a, cut);
        let [first, second] = run("node-b", &b, cut);
        same(&merge(vec![late.clone()]).to_json(), &late.to_json(), "a snapshot is canonical");
        laws(&[early, late, first, second]);
    }

    #[test]
    fn the_order_of_flows_within_a_node_does_not_matter(steps in prop::collection::vec(step(), 0..12)) {
        let mut reversed = steps.clone();
        reversed.reverse();
        same(&run("node-a", &steps, 99)[1].to_json(), &run("node-a", &reversed, 99)[1].to_json(), "order");
    }

    #[test]
    fn a_document_of_one_epoch_is_packed_without_a_loss(
        mut any in document(),
        other in document(),
        (foreign, revision) in (0u8..4, 1u32..3),
    ) {
        of_one_epoch(&mut any, &["x", "y"][..1 + usize::from(foreign == 0)], revision);
        let document = Document::joined([any]);
        let packed = Packed::of(&document);
        same(&Document::joined([packed.unpacked()]).snapshot().to_json(), &document.snapshot().to_json(), "packed");
        let mut same_epoch = other;
        of_one_epoch(&mut same_epoch, &["x"], revision % 2 + 1);
        let mut next = document.snapshot();
        of_one_epoch(&mut next, &["y"], 1);
        laws(&[document.snapshot(), same_epoch, next]);
    }

    #[test]
    fn merge_of_any_documents_obeys_its_laws(a in document(), b in document(), c in document()) {
        laws(&[a, b, c]);
    }
}
