//! Differences of observed graphs, edge by edge.

use guardrail_graph::{Peer, Snapshot, Timestamp, snapshot::EdgeRecord};
use guardrail_lifecycle::diff::{GraphDiff, NamespaceMap, graphs};

const SHOP: &str = include_str!("../../guardrail-cli/tests/data/shop.json");

fn shop() -> Snapshot {
    Snapshot::from_json(SHOP, "shop.json").unwrap()
}

fn compare(change: impl FnOnce(&mut Vec<EdgeRecord>)) -> GraphDiff {
    let mut new = shop();
    change(&mut new.body.edges);
    graphs(&shop(), &new, &NamespaceMap::new())
}

fn external(edges: &mut [EdgeRecord]) -> &mut EdgeRecord {
    edges.iter_mut().find(|edge| edge.server.names.contains("smtp.example.org")).unwrap()
}

#[test]
fn counts_and_times_are_no_difference() {
    let diff = compare(|edges| {
        for edge in edges {
            edge.counts.opened += 7;
            edge.last_seen = edge.last_seen.after(std::time::Duration::from_secs(60));
        }
    });
    assert!(diff.is_empty(), "{diff:?}");
}

#[test]
fn an_attempt_that_becomes_a_connection_is_a_change_both_ways() {
    let mut of = 0;
    let diff = compare(|edges| {
        for edge in edges.iter_mut() {
            edge.supported = !edge.supported;
        }
        of = edges.len();
    });
    assert_eq!((diff.came.len(), diff.went.len(), diff.changed.len()), (0, 0, of));
    assert!(diff.changed.iter().all(|changed| changed.before.established != changed.edge.state.established));
    assert!(diff.changed.iter().any(|changed| changed.edge.state.established));
}

#[test]
fn every_edge_comes_and_goes() {
    let all = shop().body.edges.len();
    for index in 0..all {
        let diff = compare(|edges| drop(edges.remove(index)));
        assert_eq!((diff.came.len(), diff.went.len(), diff.changed.len()), (0, 1, 0));
        let mut old = shop();
        old.body.edges.remove(index);
        let back = graphs(&old, &shop(), &NamespaceMap::new());
        assert_eq!(back.came, diff.went);
    }
}

#[test]
fn an_external_end_is_its_name_and_without_one_its_address() {
    let other = |edge: &mut EdgeRecord| edge.server.peer = Peer::External { address: "203.0.113.99".to_owned() }.into();
    assert!(compare(|edges| other(external(edges))).is_empty(), "the name is the same");
    let diff = compare(|edges| {
        let edge = external(edges);
        other(edge);
        edge.server.names.clear();
    });
    assert_eq!((diff.came[0].server.as_str(), diff.went[0].server.as_str()), ("203.0.113.99", "smtp.example.org"));
    // A second address behind the name is the same edge, with the counts of both.
    let mut new = shop();
    let mut more = external(&mut new.body.edges).clone();
    other(&mut more);
    more.server.names.insert("mail.example.org".to_owned());
    more.first_seen = Timestamp::from_unix_seconds(0);
    new.body.edges.push(more);
    let diff = graphs(&shop(), &new, &NamespaceMap::new());
    let came: Vec<&str> = diff.came.iter().map(|edge| edge.server.as_str()).collect();
    assert_eq!((came, diff.went.len(), diff.changed.len()), (vec!["mail.example.org"], 0, 0));
}
