//! What a snapshot says of a span of time.

mod common;

use common::{CLUSTER, Lab, SERVICE, apply_text, edges, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Snapshot,
    inventory::{Change, Kind, ObjectKey},
    observe::LossReason,
    snapshot::{
        Interval, merge, merge_within,
        span::{Span, SpanError},
    },
};

const DAY: i64 = 86_400;

fn span(since: Option<i64>, until: Option<i64>) -> Span {
    Span::new(since.map(t), until.map(t)).unwrap()
}

/// What one agent on node-a learned in one day: a source of its own, as each epoch is. `web`
/// reaches a server outside that is called after the day.
fn day(number: i64) -> Lab {
    let config = ObserverConfig::new("node-a", format!("day-{number}"), t(number * DAY));
    let mut observer = Observer::new(config);
    let pods = pod("shop", "web", 0, "node-a", "10.244.1.2", &[]);
    let nodes = CLUSTER.split("---").take(2).collect::<Vec<_>>().join("---");
    apply_text(&mut observer, &format!("{nodes}{pods}"), t(number * DAY));
    let mut lab = Lab { observer, now: t(number * DAY + 1) };
    lab.pod_cgroup(1, "web", 0);
    lab.flow(tcp_client(1, "10.244.1.2", &format!("198.51.100.{number}"), 443, t(number * DAY + 3600)));
    lab.now = t((number + 1) * DAY);
    lab
}

fn lossy(mut lab: Lab) -> Lab {
    lab.observer
        .observe(Observation::Lost { reason: LossReason::MapFull, cgroup: None, count: 7, at: lab.now }, lab.now);
    lab
}

#[test]
fn an_edge_counts_if_it_was_seen_in_the_span_and_counts_whole() {
    let mut lab = day(0);
    for hours in [2, 5] {
        lab.flow(tcp_client(1, "10.244.1.2", "203.0.113.9", 443, t(hours * 3600)));
    }
    let whole = lab.snapshot();
    let at = |since, until| merge_within(vec![whole.clone()], &span(since, until));
    assert_eq!(edges(&at(Some(2 * 3600 + 1), None)), ["web -> external/203.0.113.9 TCP/443"]);
    // Between the two it was open or not, nobody knows: it counts, and whole.
    let between = at(Some(3 * 3600), Some(4 * 3600));
    assert_eq!(edges(&between), ["web -> external/203.0.113.9 TCP/443"]);
    assert_eq!(between.body.edges[0].counts.opened, 2);
    assert_eq!(edges(&at(None, Some(3600))), Vec::<String>::new(), "the end is not part of it");
    assert_eq!(edges(&at(Some(5 * 3600 + 1), None)), Vec::<String>::new());
    assert_eq!(edges(&at(Some(5 * 3600), None)), ["web -> external/203.0.113.9 TCP/443"], "the begin is");
}

#[test]
fn without_ends_a_span_leaves_everything_as_it_is() {
    let all = vec![lossy(day(0)).snapshot(), day(1).snapshot()];
    assert_eq!(merge_within(all.clone(), &Span::default()).to_json(), merge(all).to_json());
}

#[test]
fn windows_are_cut_to_the_span_and_a_loss_counts_while_its_source_observed() {
    let all = vec![lossy(day(0)).snapshot(), day(1).snapshot(), day(2).snapshot()];
    assert!(!merge(all.clone()).body.coverage.complete);
    let later = merge_within(all.clone(), &span(Some(DAY), None));
    assert!(later.body.coverage.complete, "{:#?}", later.body.coverage);
    assert_eq!(later.body.window.nodes["node-a"], [Interval { from: t(DAY), to: t(3 * DAY) }]);
    assert_eq!((later.body.window.from, later.body.window.to), (Some(t(DAY)), Some(t(3 * DAY))));
    // One instant of the lossy day in it, and the loss may have been in it.
    let earlier = merge_within(all, &span(Some(DAY - 1), None));
    assert!(!earlier.body.coverage.complete);
    assert_eq!(earlier.body.coverage.losses[0].count, 7);
}

#[test]
fn what_was_merged_before_answers_for_a_span_as_its_parts_do() {
    let parts = vec![lossy(day(0)).snapshot(), day(1).snapshot(), lossy(day(2)).snapshot(), day(3).snapshot()];
    let merged = merge(parts.clone());
    assert_eq!(merge(vec![merged.clone(), parts[1].clone()]), merged, "merging again changes nothing");
    let read = Snapshot::from_json(&merged.to_json(), "merged").unwrap();
    for (since, until) in [(Some(DAY), None), (Some(DAY), Some(2 * DAY)), (None, Some(DAY)), (Some(3 * DAY), None)] {
        let span = span(since, until);
        let of_parts = merge_within(parts.clone(), &span);
        assert_eq!(merge_within(vec![read.clone()], &span), of_parts, "{span}");
        assert_eq!(merge_within(vec![of_parts.clone()], &span), of_parts, "{span} of itself");
    }
}

#[test]
fn a_gap_before_the_span_is_none_of_the_span() {
    let all = vec![day(0).snapshot(), day(2).snapshot(), day(3).snapshot()];
    assert!(!merge(all.clone()).body.coverage.complete);
    assert!(merge_within(all.clone(), &span(Some(2 * DAY), None)).body.coverage.complete);
    assert!(merge_within(all.clone(), &span(None, Some(DAY))).body.coverage.complete);
    assert!(!merge_within(all, &span(Some(DAY - 1), None)).body.coverage.complete);
}

#[test]
fn a_node_that_was_gone_before_the_span_is_not_missing_in_it() {
    let mut lab = Lab::new("node-a", &[pod("shop", "web", 0, "node-a", "10.244.1.2", &[])]);
    let key = ObjectKey { kind: Kind::Node, namespace: String::new(), name: "node-b".into() };
    lab.at(100).observer.apply(Change::Delete(key), t(100));
    let first = lab.at(DAY).snapshot();
    assert!(first.body.coverage.nodes.expected.contains("node-b"), "{:?}", first.body.coverage.nodes);
    let alone = merge_within(vec![first.clone()], &span(Some(200), None));
    assert!(alone.body.coverage.complete, "{:#?}", alone.body.coverage);
    // Another agent's word from before it went.
    let early = Lab::new("node-a", &[]).at(50).snapshot();
    let all = vec![early, first];
    assert_eq!(merge(all.clone()).body.coverage.nodes.expected.len(), 2);
    let later = merge_within(all.clone(), &span(Some(200), None));
    assert!(later.body.coverage.complete, "{:#?}", later.body.coverage);
    let before = merge_within(all, &span(None, Some(90)));
    assert_eq!(before.body.coverage.nodes.expected.len(), 2);
}

#[test]
fn a_node_that_nobody_observed_in_the_span_is_missing_in_it() {
    let mut b = Lab::new("node-b", &[]);
    let mut a = Lab::new("node-a", &[]);
    let all = vec![a.at(2 * DAY).snapshot(), b.at(DAY).snapshot()];
    let whole = merge(all.clone()).body.coverage;
    assert!(whole.complete, "{whole:#?}");
    let later = merge_within(all, &span(Some(DAY + 1), None)).body.coverage;
    assert!(!later.complete);
    assert!(later.nodes.expected.contains("node-b") && !later.nodes.observed.contains("node-b"), "{later:#?}");
}

fn both_nodes() -> [Lab; 2] {
    let pods = [
        pod("shop", "web", 0, "node-a", "10.244.1.2", &[]),
        pod("shop", "api", 0, "node-b", "10.244.2.4", &["http:8080"]),
        SERVICE.to_owned(),
    ];
    let (mut a, mut b) = (Lab::new("node-a", &pods), Lab::new("node-b", &pods));
    a.pod_cgroup(1, "web", 0);
    b.pod_cgroup(2, "api", 0);
    [a, b]
}

#[test]
fn what_is_behind_a_service_is_derived_from_what_meets_the_span() {
    let [mut a, mut b] = both_nodes();
    a.at(1000).flow(tcp_client(1, "10.244.1.2", "10.96.0.7", 80, t(1000)));
    // By the other node's clock it was a moment earlier.
    b.at(1000).flow(tcp_server(2, "10.244.2.4", "10.244.1.2", 8080, t(998)));
    let merged = merge(vec![a.at(2000).snapshot(), b.at(2000).snapshot()]);
    let again = |since, until| merge_within(vec![merged.clone()], &span(since, until));
    let edge = again(Some(999), None);
    assert_eq!(edges(&edge), edges(&merged));
    assert_eq!(edge.body.edges[0].via.iter().collect::<Vec<_>>(), ["shop/api:80"]);
    assert!(edge.body.coverage.complete, "{:#?}", edge.body.coverage);
    // Only the server's record: an edge, reached no one knows how.
    let direct = again(None, Some(999));
    assert_eq!(edges(&direct), ["web -> api TCP/8080"]);
    assert!(direct.body.edges[0].via.is_empty() && direct.body.service_flows.is_empty(), "{direct:#?}");
    assert!(edges(&again(Some(1001), None)).is_empty());
}

#[test]
fn names_of_remote_ends_rest_on_everything_and_edges_on_the_span() {
    let own = |node: &str, pods: &str| {
        let config =
            ObserverConfig { own_pods_only: true, ..ObserverConfig::new(node, format!("instance-{node}"), t(0)) };
        let mut observer = Observer::new(config);
        apply_text(&mut observer, &format!("{CLUSTER}{pods}"), t(0));
        Lab { observer, now: t(1) }
    };
    let mut a = own("node-a", &pod("shop", "web", 0, "node-a", "10.244.1.2", &[]));
    let mut b = own("node-b", &pod("shop", "api", 0, "node-b", "10.244.2.4", &[]));
    a.pod_cgroup(1, "web", 0);
    b.pod_cgroup(2, "api", 0);
    b.flow(tcp_server(2, "10.244.2.4", "10.244.1.2", 8080, t(5)));
    // The first connection was api's, the last its successor's.
    for at in [5, 300] {
        a.at(at).flow(tcp_client(1, "10.244.1.2", "10.244.2.4", 8080, t(at)));
    }
    b.at(100).delete_pod("shop", "api-5d9c-0");
    b.at(150).apply(&pod("shop", "next", 0, "node-b", "10.244.2.4", &[]));
    let parts = vec![a.at(310).snapshot(), b.at(310).snapshot()];
    assert_eq!(edges(&merge(parts.clone())), ["web -> api TCP/8080", "web -> next TCP/8080"]);
    assert_eq!(edges(&merge_within(parts.clone(), &span(Some(200), None))), ["web -> next TCP/8080"]);
    assert_eq!(edges(&merge_within(parts, &span(None, Some(200)))), ["web -> api TCP/8080"]);
}

#[test]
fn a_workload_that_was_gone_before_the_span_asks_for_no_node() {
    let mut all = vec![day(0).snapshot(), day(1).snapshot()];
    // On the first day it also ran on a node that nobody watched.
    all[0].body.workloads[0].pods.insert("node-x".into(), Vec::new());
    all[1].body.workloads.clear();
    all[1].body.edges.clear();
    assert!(!merge(all.clone()).body.coverage.complete);
    let later = merge_within(all, &span(Some(DAY + 1), None));
    assert!(later.body.coverage.complete, "{:#?}", later.body.coverage);
    assert!(later.body.workloads[0].pods.is_empty());
}

#[test]
fn a_span_without_time_and_times_that_run_backwards_are_refused_in_a_sentence() {
    for until in [5, 4] {
        let error = Span::new(Some(t(5)), Some(t(until))).unwrap_err();
        assert!(matches!(error, SpanError::Empty { .. }));
        assert!(error.to_string().contains("is empty: it has to end after it begins"), "{error}");
    }
    let fine = day(0).snapshot();
    assert_eq!(fine.check_times(), Ok(()));
    let mut edge = fine.clone();
    edge.body.edges[0].sources[0].last_seen = t(0);
    let error = edge.check_times().unwrap_err().to_string();
    assert!(error.starts_with("times run backwards: the edge shop/Deployment/web -> "), "{error}");
    let mut window = fine;
    window.body.window.nodes.get_mut("node-a").unwrap()[0].to = t(-1);
    assert!(window.check_times().unwrap_err().to_string().contains("the window of node node-a begins at"));
}

#[test]
fn times_of_pods_addresses_nodes_and_losses_that_run_backwards_are_refused_too() {
    let mut lab = Lab::new("node-a", &[pod("shop", "api", 0, "node-a", "10.244.1.3", &[])]);
    lab.pod_cgroup(1, "api", 0);
    lab.observer.observe(Observation::Lost { reason: LossReason::MapFull, cgroup: None, count: 1, at: t(50) }, t(50));
    let right = lab.at(100).snapshot();
    assert_eq!(right.check_times(), Ok(()));
    let [mut pods, mut nodes, mut tenures, mut losses, mut unnamed] = [(); 5].map(|()| right.clone());
    pods.body.presence[0].to = t(-7_200);
    nodes.body.nodes[0].time.to = t(-7_200);
    (tenures.body.addresses[0].from, tenures.body.addresses[0].to) = (Some(t(9)), Some(t(8)));
    losses.body.coverage.losses[0].times.as_mut().unwrap()[0].time.to = t(-7_200);
    let ends = serde_json::json!({"client": {"kind": "External", "address": "192.0.2.1"}, "protocol": "TCP", "port": 80,
        "server": {"kind": "Node", "name": "node-a"}, "first_seen": t(9), "last_seen": t(8)});
    let entry = serde_json::json!({"source": right.body.sources.first(), "reason": "role_unknown", "count": 1,
        "examples": [], "flows": [ends]});
    unnamed.body.coverage.unresolved.push(serde_json::from_value(entry).unwrap());
    let wrong = [("pod", pods), ("node", nodes), ("address", tenures), ("loss", losses), ("the flow", unnamed)];
    for (what, wrong) in wrong {
        let said = wrong.check_times().unwrap_err().to_string();
        assert!(said.contains("times run backwards: ") && said.contains(what), "{said}");
    }
}

#[test]
fn a_clock_that_is_set_back_turns_no_time_of_what_an_agent_says() {
    let pods = [("api", "node-a", "10.244.1.3"), ("db", "node-b", "10.244.2.4")];
    let pods = pods.map(|(name, node, address)| pod("shop", name, 0, node, address, &[]));
    let mut lab = Lab::new("node-a", &pods);
    lab.pod_cgroup(1, "api", 0);
    lab.at(50_000).apply(&pod("shop", "late", 0, "node-a", "10.244.1.9", &[]));
    lab.flow(tcp_client(1, "10.244.1.3", "10.244.2.4", 80, t(50_000)));
    let lost = || Observation::Lost { reason: LossReason::MapFull, cgroup: None, count: 1, at: t(50_001) };
    lab.observer.observe(lost(), t(50_001));
    assert_eq!(lab.at(50_010).snapshot().check_times(), Ok(()));
    lab.now = t(1_000);
    assert_eq!(lab.observer.turn(&[], t(1_000)).snapshot().check_times(), Ok(()));
    lab.at(1_010).delete_pod("shop", "late-5d9c-0");
    lab.delete_pod("shop", "db-5d9c-0");
    lab.observer.observe(lost(), t(1_020));
    lab.observer.apply(
        Change::Delete(ObjectKey { kind: Kind::Node, namespace: String::new(), name: "node-b".into() }),
        t(1_030),
    );
    for at in [1_040, 20_000] {
        assert_eq!(lab.at(at).snapshot().check_times(), Ok(()), "{at}");
    }
}
