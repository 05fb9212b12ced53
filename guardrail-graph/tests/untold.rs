//! Proxies that do not ask what was dialled: their clients' own records tell it, also those of
//! other nodes, once the snapshots are joined.

mod common;

use common::{CLUSTER, Lab, SERVICE, edges, failed, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Snapshot,
    observe::{FlowCounts, FlowDelta, OpenFlow},
    snapshot::{Side, merge},
};
use proptest::prelude::*;

const WEB: &str = "10.244.1.2";
const API: &str = "10.244.2.4";
const VIP: &str = "10.96.0.7";

/// The nodes of web and of api; whether agents know the pods of their own node only.
fn nodes(own_pods_only: bool) -> [Lab; 2] {
    let web = pod("shop", "web", 0, "node-a", WEB, &[]);
    let api = pod("shop", "api", 0, "node-b", API, &["http:8080", "metrics:9090"]);
    let labs = [("node-a", "web", &web, &api), ("node-b", "api", &api, &web)].map(|(node, name, own, other)| {
        let mut all = vec![SERVICE.to_owned(), own.clone()];
        if !own_pods_only {
            all.push(other.clone());
        }
        let mut lab = Lab::with(node, &all, |config| config.own_pods_only = own_pods_only);
        lab.pod_cgroup(1, name, 0);
        lab
    });
    assert!(CLUSTER.contains("node-b"));
    labs
}

fn times(flow: FlowDelta, opened: u64) -> FlowDelta {
    let counts = FlowCounts { opened, ..flow.counts };
    failed(flow, counts)
}

fn unresolved(snapshot: &Snapshot) -> Vec<(String, u64)> {
    snapshot.body.coverage.unresolved.iter().map(|entry| (entry.reason.clone(), entry.count)).collect()
}

/// Both nodes' snapshots after these flows at web and at api.
fn seen(labs: [Lab; 2], at_web: Vec<FlowDelta>, at_api: Vec<FlowDelta>) -> [Snapshot; 2] {
    let [mut a, mut b] = labs;
    at_web.into_iter().for_each(|flow| a.flow(flow));
    at_api.into_iter().for_each(|flow| b.flow(flow));
    [a, b].map(|mut lab| lab.at(40).snapshot())
}

#[test]
fn the_record_of_a_client_on_another_node_tells_what_was_dialled() {
    for own_pods_only in [false, true] {
        for (asked, expected) in [
            ((API, 8080), "web -> api TCP/8080"),
            ((VIP, 80), "web -> api TCP/8080 via shop/api:80"),
            ((API, 20000), "web -> api TCP/20000"),
        ] {
            let at_web = vec![times(tcp_client(1, WEB, asked.0, asked.1, t(5)), 3)];
            let at_api = vec![times(tcp_server(1, API, WEB, 20000, t(5)), 3)];
            let [a, b] = seen(nodes(own_pods_only), at_web, at_api);
            // Alone the server's node does not know, and says so.
            assert_eq!(edges(&b), [] as [&str; 0], "{asked:?}");
            assert_eq!(unresolved(&b), [("redirected".to_owned(), 3)]);
            let flows = b.body.coverage.unresolved[0].flows.as_deref().unwrap();
            assert_eq!((flows.len(), flows[0].client.to_string()), (1, "external/10.244.1.2".to_owned()));
            let whole = merge(vec![a, b]);
            assert_eq!(edges(&whole), [expected], "{own_pods_only} {asked:?}");
            assert_eq!(whole.body.edges[0].counts.opened, 3);
            assert_eq!(whole.body.edges[0].seen_by.iter().copied().collect::<Vec<_>>(), [Side::Client, Side::Server]);
            assert!(whole.body.coverage.complete, "{own_pods_only} {asked:?} {:#?}", whole.body.coverage);
            assert_eq!(unresolved(&whole), []);
        }
    }
}

#[test]
fn of_several_ports_the_clients_record_names_all_and_a_service_with_one_workload_is_resolved() {
    let at_web = vec![times(tcp_client(1, WEB, VIP, 80, t(5)), 3), times(tcp_client(1, WEB, API, 9090, t(5)), 2)];
    let [a, b] = seen(nodes(false), at_web, vec![times(tcp_server(1, API, WEB, 15006, t(5)), 5)]);
    let whole = merge(vec![a, b]);
    assert_eq!(edges(&whole), ["web -> api TCP/8080 via shop/api:80", "web -> api TCP/9090"]);
    assert_eq!(whole.body.edges.iter().map(|edge| edge.counts.opened).collect::<Vec<_>>(), [3, 2]);
    assert!(whole.body.coverage.complete, "{:#?}", whole.body.coverage);
}

#[test]
fn without_a_record_of_the_clients_own_and_of_that_time_it_stays_unresolved_and_concerns_both() {
    let untold = || times(tcp_server(1, API, WEB, 20000, t(30)), 4);
    for at_web in [
        vec![],
        // Another server's port; long before, though the client's node was observed.
        vec![tcp_client(1, WEB, "203.0.113.9", 8080, t(30))],
        vec![tcp_client(1, WEB, API, 8080, t(5))],
    ] {
        let [a, b] = seen(nodes(false), at_web, vec![untold()]);
        let whole = merge(vec![a, b]);
        assert!(!edges(&whole).iter().any(|edge| edge.contains("20000")), "{:?}", edges(&whole));
        assert_eq!(unresolved(&whole), [("redirected".to_owned(), 4)]);
        let concerned: Vec<_> = whole.body.coverage.workloads.iter().map(|w| w.peer.to_string()).collect();
        assert_eq!(concerned, ["shop/Deployment/api", "shop/Deployment/web"]);
    }
}

#[test]
fn of_more_connections_than_the_client_opened_the_rest_is_unresolved() {
    let told = |count| FlowDelta { local_port: Some(20000), ..times(tcp_server(1, API, WEB, 9090, t(5)), count) };
    // Of six, the server's proxy was told of two, which dialled another port; so was a client.
    let at_api = vec![times(tcp_server(1, API, WEB, 20000, t(5)), 6), told(2)];
    let at_web =
        |count| vec![times(tcp_client(1, WEB, API, 8080, t(5)), count), times(tcp_client(1, WEB, API, 9090, t(5)), 2)];
    for (opened, left) in [(4, 0), (3, 1), (1, 3)] {
        let [a, b] = seen(nodes(false), at_web(opened), at_api.clone());
        let mut whole = merge(vec![a.clone(), b.clone()]);
        let expected: Vec<_> = (left > 0).then(|| ("redirected".to_owned(), left)).into_iter().collect();
        assert_eq!((unresolved(&whole), edges(&whole).len()), (expected, 2));
        // Until a moment before a record ends, the other end may have counted more.
        let mut early = a;
        for interval in early.body.window.nodes.values_mut().flatten() {
            interval.to = t(20);
        }
        whole = merge(vec![early, b]);
        assert_eq!((unresolved(&whole), edges(&whole).len()), (vec![], 2));
    }
}

#[test]
fn a_record_of_a_client_whose_node_was_not_observed_at_that_time_explains_nothing() {
    let [mut a, mut b] = nodes(false);
    b.flow(times(tcp_server(1, API, WEB, 20000, t(5)), 2));
    // This agent began long after.
    b.at(40);
    a.flow(times(tcp_client(1, WEB, API, 8080, t(5)), 2));
    let a = a.at(40).snapshot();
    let b = b.snapshot();
    let mut late = a.clone();
    for interval in late.body.window.nodes.values_mut().flatten() {
        interval.from = t(300);
        interval.to = t(400);
    }
    assert_eq!(unresolved(&merge(vec![a, b.clone()])), []);
    assert_eq!(unresolved(&merge(vec![late, b])), [("redirected".to_owned(), 2)]);
}

#[test]
fn connections_older_than_the_servers_agent_are_told_by_a_client_that_was_seen_to_open_them() {
    let found = FlowCounts { found: 2, ..FlowCounts::default() };
    let at_api = vec![failed(tcp_server(1, API, WEB, 15006, t(35)), found)];
    let [a, b] = seen(nodes(true), vec![times(tcp_client(1, WEB, API, 8080, t(5)), 2)], at_api);
    let whole = merge(vec![a, b]);
    assert_eq!(edges(&whole), ["web -> api TCP/8080 [found-at-start]"]);
    assert_eq!(unresolved(&whole), []);
}

#[test]
fn of_many_clients_outside_the_cluster_a_bounded_number_is_kept_apart_and_none_is_lost() {
    let [_, mut b] = nodes(false);
    for client in 0..1_200u32 {
        let address = format!("203.0.{}.{}", 113 + client / 250, client % 250 + 1);
        b.flow(tcp_server(1, API, &address, 20000, t(5)));
    }
    let snapshot = b.at(40).snapshot();
    assert_eq!((edges(&snapshot).len(), unresolved(&snapshot)), (0, vec![("redirected".to_owned(), 1_200)]));
    assert_eq!(snapshot.body.remote_flows.len(), 1_001);
    let entry = &snapshot.body.coverage.unresolved[0];
    assert!(entry.more || entry.flows.as_ref().unwrap().iter().any(|flow| flow.client.to_string() == "external/*"));
    // Another epoch has room for others.
    b.observer.turn(&[], t(50));
    b.at(60).flow(tcp_server(1, API, "203.0.117.250", 20000, t(60)));
    let flows = b.at(100).snapshot().body.remote_flows;
    assert_eq!(flows.iter().map(|flow| flow.address.to_string()).collect::<Vec<_>>(), ["203.0.117.250"]);
}

#[test]
fn connections_that_are_open_as_an_epoch_begins_are_told_in_that_epoch_as_well() {
    let [mut a, mut b] = nodes(false);
    let (at_web, at_api) = (tcp_client(1, WEB, API, 8080, t(5)), tcp_server(1, API, WEB, 20000, t(5)));
    a.flow(at_web.clone());
    b.flow(at_api.clone());
    let first = [(&mut a, at_web), (&mut b, at_api)].map(|(lab, flow)| {
        lab.at(40);
        lab.observer.turn(&[OpenFlow { flow, open: 1 }], t(50)).snapshot()
    });
    let second = [a, b].map(|mut lab| lab.at(60).snapshot());
    for (epoch, both) in [first.clone(), second.clone()].into_iter().enumerate() {
        assert_eq!(unresolved(&both[1]), [("redirected".to_owned(), 1)], "epoch {epoch}");
        let whole = merge(both.to_vec());
        assert_eq!((edges(&whole), unresolved(&whole)), (vec!["web -> api TCP/8080".to_owned()], vec![]));
    }
    assert_eq!(unresolved(&merge([first, second].concat())), []);
}

#[test]
fn what_is_open_of_clients_that_are_not_kept_apart_is_open_in_the_next_epoch_too() {
    let [_, mut b] = nodes(false);
    let of =
        |client: u32| tcp_server(1, API, &format!("203.0.{}.{}", 113 + client / 250, client % 250 + 1), 20000, t(5));
    (0..1_100).for_each(|client| b.flow(of(client)));
    let pools = [7, 1_050].map(|client| OpenFlow { flow: of(client), open: 1 });
    b.at(40).observer.turn(&pools, t(50));
    let flows = b.at(60).snapshot().body.remote_flows;
    let open = flows.iter().map(|flow| (flow.address.to_string(), flow.sources[0].counts.open));
    assert_eq!(open.collect::<Vec<_>>(), [("203.0.113.8".to_owned(), 1), ("::".to_owned(), 1)]);
}

/// Flows at web and at api, in any mixture of ways and of who asks.
fn mixture() -> impl Strategy<Value = Vec<(u16, bool, u64)>> {
    let port = prop_oneof![Just(80u16), Just(8080), Just(9090), Just(20000)];
    prop::collection::vec((port, any::<bool>(), 1u64..4), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn joining_in_any_order_gives_the_same_and_no_port_that_the_client_did_not_dial(
        calls in mixture(), own_pods_only: bool, is_recorded: bool
    ) {
        let (mut at_web, mut at_api) = (Vec::new(), Vec::new());
        for (port, asks, count) in &calls {
            let (server, dialled) = if *port == 80 { (VIP, 8080) } else { (API, *port) };
            if is_recorded {
                at_web.push(times(tcp_client(1, WEB, server, *port, t(5)), *count));
            }
            at_api.push(times(tcp_server(1, API, WEB, 20000, t(5)), *count));
            if *asks {
                let told = FlowDelta { local_port: Some(20000), ..tcp_server(1, API, WEB, dialled, t(5)) };
                at_api.push(times(told, *count));
            }
        }
        let [a, b] = seen(nodes(own_pods_only), at_web, at_api);
        let whole = merge(vec![a.clone(), b.clone()]);
        prop_assert_eq!(&whole, &merge(vec![b.clone(), a.clone()]));
        prop_assert_eq!(&whole, &merge(vec![whole.clone(), b.clone()]));
        prop_assert_eq!(&whole, &merge(vec![whole.clone(), merge(vec![a])]));
        let dialled: Vec<u16> = calls.iter().map(|(port, ..)| if *port == 80 { 8080 } else { *port }).collect();
        for edge in &whole.body.edges {
            prop_assert!(dialled.contains(&edge.port), "{:?}", edges(&whole));
        }
        let untold: u64 = calls.iter().filter(|(_, asks, _)| !asks).map(|(.., count)| count).sum();
        let counted = unresolved(&whole).iter().filter(|(reason, _)| reason == "redirected").map(|(_, n)| n).sum::<u64>();
        prop_assert_eq!(counted, if is_recorded { 0 } else { untold });
        if is_recorded {
            prop_assert!(whole.body.coverage.complete, "{:?}", whole.body.coverage);
        }
    }
}
