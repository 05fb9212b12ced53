//! Attempts that failed and that policies deny: which are named, and how sure that is.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{
    Peer, Protocol, Snapshot, Timestamp, WorkloadRef,
    snapshot::{
        BackendEntry, Counts, EdgePeer, EdgeRecord, PodEntry, ServiceEntry, ServiceFlow, ServicePortEntry, Side,
        Source, SourceCounts, WorkloadEntry,
    },
};
use guardrail_lifecycle::blocked::{BlockedAttempts, BlockedEvidence, Confidence, Outcome, PolicyName, blocked};
use guardrail_policy::{
    evaluate::{Cluster, Evaluator},
    model::Direction,
    read,
};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(1_780_000_000 + seconds)
}

fn workload(name: &str) -> Peer {
    Peer::Workload(WorkloadRef { namespace: "shop".to_owned(), owner: "Deployment".to_owned(), name: name.to_owned() })
}

/// What one side saw: counts, and from when to when.
type Half = (Counts, i64, i64);

fn opened(count: u64, first: i64, last: i64) -> Half {
    (Counts { opened: count, bytes_received: count * 10, ..Counts::default() }, first, last)
}

fn unanswered(count: u64, first: i64, last: i64) -> Half {
    (Counts { unanswered: count, ..Counts::default() }, first, last)
}

fn refused(count: u64, first: i64, last: i64) -> Half {
    (Counts { refused: count, ..Counts::default() }, first, last)
}

fn source(side: Side, (counts, first, last): Half) -> SourceCounts {
    let node = if side == Side::Client { "node-a" } else { "node-b" };
    SourceCounts {
        source: Source { node: node.to_owned(), instance: format!("i-{node}"), start: None }.into(),
        side,
        counts,
        first_seen: at(first),
        last_seen: at(last),
        by_merge: false,
    }
}

/// `client` and `server`: what each side saw.
fn edge(
    from: &Peer,
    to: &Peer,
    protocol: Protocol,
    port: u16,
    client: Option<Half>,
    server: Option<Half>,
) -> EdgeRecord {
    let sides = [(Side::Client, client), (Side::Server, server)];
    let sources: Vec<SourceCounts> = sides.into_iter().filter_map(|(side, half)| Some(source(side, half?))).collect();
    let counts = client.or(server).unwrap().0;
    EdgeRecord {
        client: EdgePeer { peer: from.clone().into(), names: BTreeSet::new() },
        server: EdgePeer { peer: to.clone().into(), names: BTreeSet::new() },
        protocol,
        port,
        port_name: None,
        via: BTreeSet::new(),
        seen_by: sources.iter().map(|source| source.side).collect(),
        counts,
        first_seen: sources.iter().map(|source| source.first_seen).min().unwrap(),
        last_seen: sources.iter().map(|source| source.last_seen).max().unwrap(),
        supported: counts.opened > 0 && counts.bytes_received > 0,
        marks: BTreeSet::new(),
        node_workloads: BTreeSet::new(),
        sources,
    }
}

/// `web`, `job` and `api` on one node, `db` and `db2` on another; everything was watched.
fn snapshot(edges: Vec<EdgeRecord>) -> Snapshot {
    let mut snapshot = Snapshot::empty();
    for (name, node, number) in
        [("web", "node-a", 1), ("job", "node-a", 2), ("api", "node-a", 3), ("db", "node-b", 4), ("db2", "node-b", 5)]
    {
        let Peer::Workload(workload) = workload(name) else { unreachable!() };
        let pod =
            PodEntry { name: format!("{name}-1"), addresses: [[10, 0, 0, number].into()].into(), ports: Vec::new() };
        let labels = BTreeMap::from([("app".to_owned(), name.to_owned())]);
        snapshot.body.workloads.push(WorkloadEntry {
            workload,
            selector: Some(guardrail_graph::snapshot::LabelSelector {
                match_labels: labels.clone().into(),
                match_expressions: Vec::new(),
            }),
            selector_advice: None,
            labels,
            schedule: None,
            host_network: false,
            pods: BTreeMap::from([(node.to_owned(), vec![pod])]),
            ran_on: BTreeMap::new(),
            as_of: at(0),
        });
        snapshot.body.coverage.nodes.observed.insert(node.to_owned());
    }
    snapshot.body.edges = edges;
    snapshot
}

/// Two rules: `db` and `db2` take from `web` only, at 5432; `job` may leave for `web` only.
const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [db, db2]}]}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}, {port: 53, protocol: UDP}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: job, namespace: shop}
spec:
  podSelector: {matchLabels: {app: job}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]
";

/// Since when the policies of this name are in force.
fn changed(policies: &[(&str, i64)]) -> BTreeMap<PolicyName, Timestamp> {
    let kind = guardrail_policy::model::tier::PolicyKind::NetworkPolicy;
    policies.iter().map(|(name, since)| ((kind, "shop".to_owned(), (*name).to_owned()), at(*since))).collect()
}

fn ask(snapshot: &Snapshot, changed: &BTreeMap<PolicyName, Timestamp>, since: Option<i64>) -> Vec<BlockedAttempts> {
    let policies = read::policies("p.yaml", POLICIES.as_bytes()).unwrap().policies;
    let evaluator = Evaluator::new(Cluster::default().with_snapshot(snapshot), policies);
    blocked(&BlockedEvidence { snapshot, evaluator: &evaluator, changed, since: since.map(at) })
}

/// Judged with both policies in force since second 100.
fn since_100(edges: Vec<EdgeRecord>) -> Vec<BlockedAttempts> {
    ask(&snapshot(edges), &changed(&[("db", 100), ("job", 100)]), None)
}

/// `web` uses the database all the time.
fn used_by_web() -> EdgeRecord {
    edge(&workload("web"), &workload("db"), Protocol::Tcp, 5432, Some(opened(9, 0, 900)), Some(opened(9, 0, 900)))
}

fn from_api(client: Half, server: Option<Half>) -> EdgeRecord {
    edge(&workload("api"), &workload("db"), Protocol::Tcp, 5432, Some(client), server)
}

fn only(found: &[BlockedAttempts]) -> &BlockedAttempts {
    assert_eq!(found.len(), 1, "{found:#?}");
    &found[0]
}

#[test]
fn dropped_at_a_watched_server_that_others_reach_is_certain() {
    let found = since_100(vec![used_by_web(), from_api(unanswered(12, 200, 800), None)]);
    let found = only(&found);
    assert_eq!((found.confidence, &found.because[..]), (Confidence::Certain, &[][..]));
    assert_eq!(found.flow, "shop/Deployment/api->shop/Deployment/db:5432/TCP");
    assert_eq!((found.outcome, found.attempts, found.last_attempt), (Outcome::Unanswered, 12, at(800)));
    assert_eq!((&found.denied_at[..], found.denied_since), (&[Direction::Ingress][..], Some(at(100))));
    assert_eq!(found.denied_by, BTreeSet::from(["shop/db".to_owned()]));
    assert_eq!(found.namespaces, BTreeSet::from(["shop".to_owned()]));
}

#[test]
fn what_policies_allow_is_not_blocked_by_them() {
    let web = edge(&workload("web"), &workload("db"), Protocol::Tcp, 5432, Some(unanswered(5, 200, 800)), None);
    assert_eq!(since_100(vec![web]), []);
}

#[test]
fn a_server_that_nobody_watched_or_reached_makes_it_likely() {
    let attempts = || from_api(unanswered(12, 200, 800), None);
    assert_eq!(only(&since_100(vec![attempts()])).confidence, Confidence::Likely);
    let times = changed(&[("db", 100)]);
    for hide in [
        |s: &mut Snapshot| s.body.coverage.nodes.observed.retain(|node| node != "node-b"),
        |s: &mut Snapshot| {
            s.body.coverage.workloads.push(guardrail_graph::snapshot::WorkloadCoverage {
                peer: workload("db"),
                complete: false,
                reasons: ["losses:node-b".to_owned()].into(),
            });
        },
    ] {
        let mut seen = snapshot(vec![used_by_web(), attempts()]);
        hide(&mut seen);
        let found = ask(&seen, &times, None);
        assert_eq!(only(&found).confidence, Confidence::Likely);
        assert_eq!(found[0].because, ["nobody watched the server's side"]);
    }
    // Others who got through before the policies changed prove nothing about now.
    let early =
        edge(&workload("web"), &workload("db"), Protocol::Tcp, 5432, Some(opened(9, 0, 90)), Some(opened(9, 0, 90)));
    assert_eq!(only(&since_100(vec![early, attempts()])).confidence, Confidence::Likely);
}

#[test]
fn attempts_count_from_the_last_change_of_what_denies_them() {
    let seen = snapshot(vec![used_by_web(), from_api(unanswered(12, 200, 800), None)]);
    for (times, since, confidence) in [
        (&[("db", 100)][..], None, Some(Confidence::Certain)),
        (&[("db", 800)], None, None),
        // The other policy says nothing of it.
        (&[("db", 100), ("job", 900)], None, Some(Confidence::Certain)),
        // It failed before, too.
        (&[("db", 300)], None, Some(Confidence::Possible)),
        (&[], None, Some(Confidence::Possible)),
        (&[], Some(100), Some(Confidence::Certain)),
        (&[], Some(900), None),
        // What the cluster says of a policy is better.
        (&[("db", 100)], Some(900), Some(Confidence::Certain)),
    ] {
        let found = ask(&seen, &changed(times), since);
        assert_eq!(found.first().map(|found| found.confidence), confidence, "{times:?} {since:?}");
    }
    // Two sides deny it: the one that has denied it longer is enough.
    let job = edge(&workload("job"), &workload("db"), Protocol::Tcp, 5432, Some(unanswered(3, 200, 800)), None);
    let found = ask(&snapshot(vec![used_by_web(), job]), &changed(&[("db", 100), ("job", 900)]), None);
    assert_eq!(only(&found).denied_since, Some(at(100)));
    assert_eq!(found[0].denied_at, [Direction::Ingress, Direction::Egress]);
    assert_eq!(found[0].denied_by, BTreeSet::from(["shop/db".to_owned(), "shop/job".to_owned()]));
}

#[test]
fn a_success_after_the_attempts_ends_it_and_one_before_does_not() {
    let mixed = |last| (Counts { opened: 5, unanswered: 3, ..Counts::default() }, 0, last);
    // The server saw all five, the last one long before the client's last attempt.
    let found = since_100(vec![used_by_web(), from_api(mixed(800), Some(opened(5, 0, 95)))]);
    assert_eq!(only(&found).confidence, Confidence::Certain);
    // The last thing that the client did came through.
    assert_eq!(since_100(vec![used_by_web(), from_api(mixed(800), Some(opened(5, 0, 800)))]), []);
    // Within what clocks differ, nobody knows better.
    assert_eq!(since_100(vec![used_by_web(), from_api(mixed(800), Some(opened(5, 0, 796)))]), []);
    // Some came through somewhere else, or nobody looked.
    for server in [Some(opened(2, 0, 95)), None] {
        let found = since_100(vec![used_by_web(), from_api(mixed(800), server)]);
        assert_eq!(only(&found).confidence, Confidence::Possible);
        assert!(found[0].because[0].contains("which was last is not known"), "{:?}", found[0].because);
    }
}

#[test]
fn a_refusal_counts_only_where_nobody_is_known_to_refuse() {
    let attempts = || from_api(refused(4, 200, 800), None);
    let found = since_100(vec![used_by_web(), attempts()]);
    assert_eq!((only(&found).confidence, found[0].outcome), (Confidence::Likely, Outcome::Refused));
    assert_eq!(only(&since_100(vec![attempts()])).confidence, Confidence::Possible);
    // Who is allowed is refused, too: nobody listens there.
    let web = edge(&workload("web"), &workload("db"), Protocol::Tcp, 5432, Some(refused(1, 0, 700)), None);
    assert_eq!(since_100(vec![web, attempts()]), []);
    // It was refused before the policies were there.
    assert_eq!(since_100(vec![used_by_web(), from_api(refused(4, 50, 800), None)]), []);
    // A firewall may say "unreachable" instead.
    let unreachable = (Counts { unreachable: 2, ..Counts::default() }, 200, 800);
    assert_eq!(only(&since_100(vec![used_by_web(), from_api(unreachable, None)])).outcome, Outcome::Refused);
}

#[test]
fn connections_that_broke_off_after_the_policy_came_are_blocked_ones_until_another_comes_through() {
    let broken = |last| (Counts { opened: 5, broken: 2, ..Counts::default() }, 0, last);
    // All were opened before; two broke off at 800.
    let found = since_100(vec![used_by_web(), from_api(broken(800), Some(opened(5, 0, 95)))]);
    assert_eq!(
        (only(&found).confidence, found[0].outcome, found[0].attempts),
        (Confidence::Likely, Outcome::Broken, 2)
    );
    assert!(found[0].because[0].contains("break off"), "{:?}", found[0].because);
    assert_eq!(found[0].last_attempt, at(800));
    // Before the policy, and with a connection that came through later.
    assert_eq!(since_100(vec![used_by_web(), from_api(broken(95), Some(opened(5, 0, 90)))]), []);
    assert_eq!(since_100(vec![used_by_web(), from_api(broken(800), Some(opened(6, 0, 800)))]), []);
    // An attempt that failed says more.
    let both = (Counts { opened: 5, broken: 2, unanswered: 1, ..Counts::default() }, 0, 800);
    let found = since_100(vec![used_by_web(), from_api(both, Some(opened(5, 0, 95)))]);
    assert_eq!((only(&found).outcome, found[0].attempts), (Outcome::Unanswered, 1));
}

#[test]
fn a_server_that_answers_nobody_makes_it_possible_only() {
    let web = edge(&workload("web"), &workload("db"), Protocol::Tcp, 5432, Some(unanswered(1, 0, 700)), None);
    let found = since_100(vec![web, from_api(unanswered(4, 200, 800), None)]);
    assert_eq!(only(&found).confidence, Confidence::Possible);
    assert!(found[0].because[0].contains("policies allow get no answer"), "{:?}", found[0].because);
}

#[test]
fn datagrams_that_never_arrived_are_attempts() {
    let sent = || (Counts { opened: 6, bytes_sent: 60, ..Counts::default() }, 200, 800);
    let dns =
        |from: &str, client, server| edge(&workload(from), &workload("db"), Protocol::Udp, 53, Some(client), server);
    let found = since_100(vec![dns("web", opened(9, 0, 900), Some(opened(9, 0, 900))), dns("api", sent(), None)]);
    assert_eq!((only(&found).confidence, found[0].attempts), (Confidence::Certain, 6));
    // They did arrive: nobody had to answer.
    assert_eq!(since_100(vec![dns("api", sent(), Some(opened(6, 200, 800)))]), []);
    // Outside nobody looks, and syslog never answers.
    let outside = Peer::External { address: "198.51.100.9".to_owned() };
    let found = since_100(vec![edge(&workload("job"), &outside, Protocol::Udp, 514, Some(sent()), None)]);
    assert_eq!(only(&found).confidence, Confidence::Possible);
    assert_eq!(found[0].denied_at, [Direction::Egress]);
}

/// A Service with these backends, and what a client saw of it.
fn through_service(backends: &[&str], client: &str, seen: Half, edges: Vec<EdgeRecord>) -> Snapshot {
    let mut snapshot = snapshot(edges);
    let backend = |(name, number): (&&str, u8)| BackendEntry {
        address: [10, 0, 1, number].into(),
        port: 5432,
        peer: workload(name),
        node: Some("node-b".to_owned()),
        from: None,
        to: None,
    };
    snapshot.body.services.push(ServiceEntry {
        namespace: "shop".to_owned(),
        name: "sql".to_owned(),
        service_type: "ClusterIP".to_owned(),
        addresses: [[10, 96, 0, 9].into()].into(),
        external_name: None,
        ports: vec![ServicePortEntry {
            port: 15432,
            protocol: "TCP".to_owned(),
            name: None,
            node_port: None,
            backends: backends.iter().zip(1..).map(backend).collect(),
        }],
        as_of: at(0),
    });
    snapshot.body.service_flows.push(ServiceFlow {
        client: workload(client),
        service: "shop/sql:15432".to_owned(),
        protocol: Protocol::Tcp,
        port: 15432,
        marks: BTreeSet::new(),
        node_workloads: BTreeSet::new(),
        backend_unknown: None,
        sources: vec![source(Side::Client, seen)],
    });
    snapshot
}

#[test]
fn through_a_service_the_pods_behind_it_are_judged() {
    let times = changed(&[("db", 100)]);
    let seen = || unanswered(7, 200, 800);
    // One workload: its own port, as if it had been called directly.
    let one = ask(&through_service(&["db"], "api", seen(), vec![used_by_web()]), &times, None);
    assert_eq!(only(&one).confidence, Confidence::Certain);
    assert_eq!(one[0].flow, "shop/Deployment/api->shop/Deployment/db:5432/TCP");
    assert_eq!(one[0].via, BTreeSet::from(["shop/sql:15432".to_owned()]));
    // Several: the Service, and all are denied.
    let both = ask(&through_service(&["db", "db2"], "api", seen(), vec![used_by_web()]), &times, None);
    assert_eq!(only(&both).confidence, Confidence::Certain);
    assert_eq!(both[0].flow, "shop/Deployment/api->shop/svc/sql:15432/TCP");
    let behind = ["shop/Deployment/db2:5432", "shop/Deployment/db:5432"].map(str::to_owned);
    assert_eq!(both[0].behind, BTreeSet::from(behind));
    // One of them is open to the client.
    let some = ask(&through_service(&["db", "web"], "api", seen(), vec![used_by_web()]), &times, None);
    assert_eq!(only(&some).confidence, Confidence::Possible);
    assert_eq!(some[0].because, ["policies deny it to some of the pods only"]);
    // All are.
    assert_eq!(ask(&through_service(&["db", "db2"], "web", seen(), Vec::new()), &times, None), []);
    // Nobody is behind it: no policy is to blame.
    assert_eq!(ask(&through_service(&[], "api", seen(), Vec::new()), &times, None), []);
    // It came through the last time.
    let arrived = edge(&workload("api"), &workload("db"), Protocol::Tcp, 5432, None, Some(opened(2, 300, 800)));
    let mixed = (Counts { opened: 2, unanswered: 7, ..Counts::default() }, 200, 800);
    assert_eq!(ask(&through_service(&["db", "db2"], "api", mixed, vec![arrived]), &times, None), []);
}

#[test]
fn the_surest_stand_first_whatever_the_order_of_edges() {
    let udp = (Counts { opened: 6, bytes_sent: 60, ..Counts::default() }, 200, 800);
    let outside = Peer::External { address: "198.51.100.9".to_owned() };
    let mut edges = vec![
        edge(&workload("job"), &outside, Protocol::Udp, 514, Some(udp), None),
        edge(&workload("api"), &workload("db2"), Protocol::Tcp, 5432, Some(unanswered(1, 200, 300)), None),
        from_api(unanswered(12, 200, 800), None),
        used_by_web(),
    ];
    let found = since_100(edges.clone());
    let confidences: Vec<Confidence> = found.iter().map(|found| found.confidence).collect();
    assert_eq!(confidences, Confidence::ALL);
    edges.reverse();
    assert_eq!(since_100(edges), found);
}
