//! What nodes were when: labels, system, addresses and pod ranges as facts with times, bounded, and
//! what follows from them when the node is gone.

mod common;

use std::sync::Arc;

use common::{Lab, edges, ip, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observer, ObserverConfig, Snapshot,
    epoch::{
        End,
        file::{Header, decode, encode},
        log::{Recorder, Write},
        state::State,
    },
    inventory::{Change, Kind, ObjectKey, read},
    snapshot::{Document, NodeTime, merge, merge_within, span::Span},
};

const HOUR: i64 = 3600;

fn node(name: &str, number: usize, labels: &str, os: &str) -> String {
    format!(
        "---\nkind: Node\nmetadata: {{name: {name}, labels: {{kubernetes.io/hostname: {name}{labels}}}}}\n\
         spec: {{podCIDR: 10.244.{number}.0/24}}\n\
         status: {{addresses: [{{type: InternalIP, address: 192.0.2.{number}}}], nodeInfo: {{operatingSystem: {os}}}}}\n"
    )
}

fn list(kind: Kind, text: &str) -> Change {
    Change::Replace { kind, objects: read::objects(text, "list").unwrap().objects }
}

/// The agent of node-a, which has heard all lists.
fn lab(change: impl FnOnce(&mut ObserverConfig), nodes: &str) -> Lab {
    let mut config = ObserverConfig::new("node-a", "i", t(0));
    change(&mut config);
    let mut observer = Observer::new(config);
    observer.apply(list(Kind::Node, &format!("{}{nodes}", node("node-a", 1, "", "linux"))), t(0));
    observer.apply(list(Kind::Pod, &pod("shop", "web", 0, "node-a", "10.244.1.2", &[])), t(0));
    observer.apply(Change::Replace { kind: Kind::Service, objects: Vec::new() }, t(0));
    let mut lab = Lab { observer, now: t(1) };
    lab.pod_cgroup(1, "web", 0);
    lab
}

impl Lab {
    fn delete_node(&mut self, name: &str) {
        let key = ObjectKey { kind: Kind::Node, namespace: String::new(), name: name.into() };
        self.observer.apply(Change::Delete(key), self.now);
    }
}

fn of<'a>(snapshot: &'a Snapshot, name: &str) -> Vec<&'a NodeTime> {
    snapshot.body.nodes.iter().filter(|node| node.name == name).collect()
}

#[test]
fn an_epoch_says_what_each_node_was_from_when_to_when() {
    let mut lab = lab(|_| (), &node("node-b", 2, ", pool: old", "linux"));
    lab.at(HOUR).apply(&node("node-b", 2, ", pool: new", "linux"));
    lab.at(2 * HOUR).delete_node("node-b");
    // It comes back, with another address and range.
    lab.at(3 * HOUR).apply(&node("node-b", 3, ", pool: new", "linux"));
    let snapshot = lab.at(4 * HOUR).snapshot();
    let all = of(&snapshot, "node-b");
    let told: Vec<_> = all
        .iter()
        .map(|node| {
            let described = &node.described;
            let (address, range) = (described.addresses.first().unwrap(), described.pod_cidrs.first().unwrap());
            let pool = described.labels.get("pool").unwrap();
            (node.time.from, node.time.to, pool, address.to_string(), range.to_string())
        })
        .collect();
    let (first, second) = (("192.0.2.2", "10.244.2.0/24"), ("192.0.2.3", "10.244.3.0/24"));
    let entry =
        |from, to, pool, (address, range): (&str, &str)| (t(from), t(to), pool, address.to_owned(), range.to_owned());
    let mut sorted = told.clone();
    sorted.sort();
    assert_eq!(
        sorted,
        [entry(0, HOUR, "old", first), entry(HOUR, 2 * HOUR, "new", first), entry(3 * HOUR, 4 * HOUR, "new", second)]
    );
    assert!(all.iter().all(|node| node.described.os.as_deref() == Some("linux") && !node.described.more_labels));
    // As JSON, as a file, and within spans.
    assert_eq!(Snapshot::from_json(&snapshot.to_json(), "it").unwrap(), snapshot);
    let document = Document::joined([snapshot.clone()]);
    let header = Header::of(&document, End::Day).unwrap();
    let file = encode(&header, &document);
    let (_, facts) = decode(&file).unwrap();
    assert_eq!(facts.body.nodes, snapshot.body.nodes);
    assert_eq!(encode(&header, &Document::joined([facts])), file);
    let within = merge_within(vec![snapshot], &Span::new(Some(t(HOUR + 1)), Some(t(2 * HOUR + 1))).unwrap());
    let only: Vec<_> = of(&within, "node-b").iter().map(|node| node.described.labels.get("pool").unwrap()).collect();
    assert_eq!(only, ["new"]);
    assert!(within.body.known_nodes()["node-b"].is_gone);
}

#[test]
fn agents_that_are_told_the_same_say_it_once_in_any_order() {
    let told = |name: &str, since: i64, labels: &str| {
        let mut observer = Observer::new(ObserverConfig::new(name, name, t(since)));
        let nodes = [node("node-a", 1, "", "linux"), node("node-b", 2, labels, "linux")].concat();
        observer.apply(list(Kind::Node, &nodes), t(since));
        observer.snapshot(t(since + HOUR))
    };
    let all =
        [told("node-a", 0, ""), told("node-b", 10, ""), told("node-a", 2 * HOUR, ""), told("node-c", 20, ", pool: x")];
    let merged = merge(all.to_vec());
    let times: Vec<_> = of(&merged, "node-b").iter().map(|node| (node.time.from, node.time.to)).collect();
    assert_eq!(times, [(t(0), t(10 + HOUR)), (t(2 * HOUR), t(3 * HOUR)), (t(20), t(20 + HOUR))]);
    let mut reversed = all.to_vec();
    reversed.reverse();
    assert_eq!(merge(reversed).to_json(), merged.to_json());
    let one_by_one = all.iter().fold(Snapshot::empty(), |sum, next| merge(vec![sum, next.clone()]));
    assert_eq!(one_by_one.to_json(), merged.to_json());
    assert_eq!(merge(vec![merged.clone(), all[1].clone()]).to_json(), merged.to_json());
}

#[test]
fn a_label_that_changes_each_minute_does_not_make_an_epoch_grow() {
    let mut lab = lab(|_| (), &node("node-b", 2, ", beat: b0, pool: x", "linux"));
    let size = |lab: &mut Lab| match lab.observer.store(&mut Recorder::default(), lab.now, |_| ()) {
        Write::Base(base) => base.len(),
        _ => unreachable!(),
    };
    for minute in 1..100 {
        lab.at(60 * minute).apply(&node("node-b", 2, &format!(", beat: b{minute}, pool: x"), "linux"));
    }
    let before = (of(&lab.snapshot(), "node-b").len(), size(&mut lab));
    for minute in 100..1400 {
        lab.at(60 * minute).apply(&node("node-b", 2, &format!(", beat: b{minute}, pool: x"), "linux"));
    }
    assert_eq!((of(&lab.snapshot(), "node-b").len(), size(&mut lab)), before);
    assert!(before.0 < 8, "{before:?}");
    // What else it becomes is told all the same.
    lab.at(60 * 1401).apply(&node("node-b", 3, ", beat: b, pool: y", "linux"));
    let snapshot = lab.at(60 * 1402).snapshot();
    let known = &snapshot.body.known_nodes()["node-b"];
    let [now] = known.described[..] else { panic!("{known:?}") };
    assert!(!known.is_gone && now.more_labels && now.labels.get("beat").is_none(), "{now:?}");
    assert_eq!((now.labels.get("pool"), now.addresses.first()), (Some("y"), Some(&ip("192.0.2.3"))));
    // Nobody knows whether it has a label that was left out.
    let selects = |text: &str| now.is_selected_by(&text.parse().unwrap());
    assert!(selects("pool=y") && selects("pool notin (x)") && !selects("beat!=b") && !selects("!beat"));
    // The next epoch tells of it again.
    lab.observer.turn(&[], lab.now);
    lab.at(60 * 1403).apply(&node("node-b", 3, ", beat: c, pool: y", "linux"));
    let snapshot = lab.at(60 * 1404).snapshot();
    assert_eq!(snapshot.body.known_nodes()["node-b"].described[0].labels.get("beat"), Some("c"));
}

#[test]
fn whatever_changes_all_the_time_is_bounded() {
    // Other keys each time, and addresses.
    let mut lab = lab(|_| (), &node("node-b", 2, "", "linux"));
    for minute in 1..1000usize {
        let labels = format!(", job-{minute}: running");
        lab.at(60 * i64::try_from(minute).unwrap()).apply(&node("node-b", 2 + minute % 200, &labels, "linux"));
    }
    let count = of(&lab.snapshot(), "node-b").len();
    assert!((33..70).contains(&count), "{count}");
    // Labels of a megabyte.
    let long: String = (0..5000).map(|n| format!(", label-{n}: {}", "v".repeat(1 + n % 63))).collect();
    lab.apply(&node("node-c", 3, &long, "linux"));
    let snapshot = lab.at(60 * 1001).snapshot();
    let [c] = of(&snapshot, "node-c")[..] else { panic!() };
    let bytes: usize = c.described.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert!(c.described.more_labels && (15_000..=16_384).contains(&bytes), "{bytes}");
    assert_eq!(c.described.labels.get("label-0"), Some("v"), "the longest are left out");
}

#[test]
fn sixty_nodes_that_come_and_go_share_their_labels() {
    let labels: String = (0..19).map(|n| format!(", example.com/label-{n}: value-of-label-{n}")).collect();
    let nodes =
        |from: usize| (from..from + 60).map(|n| node(&format!("node-{n}"), n, &labels, "linux")).collect::<String>();
    let mut lab = lab(|_| (), &nodes(10));
    let base = |lab: &mut Lab| match lab.observer.store(&mut Recorder::default(), lab.now, |_| ()) {
        Write::Base(base) => base.len(),
        _ => unreachable!(),
    };
    let without = base(&mut self::lab(|_| (), ""));
    let with = base(&mut lab);
    let mut recorder = Recorder::default();
    lab.observer.store(&mut recorder, lab.now, |_| ());
    assert_eq!(lab.observer.store(&mut recorder, lab.now, |_| ()), Write::Nothing);
    lab.at(60).apply(&node("node-10", 10, &format!("{labels}, pool: x"), "linux"));
    let Write::Append { bytes, .. } = lab.observer.store(&mut recorder, lab.now, |_| ()) else { panic!() };
    let change = bytes.len();
    // All of them are replaced by others, six times in a day.
    for hour in 1..7 {
        for n in 10..70 {
            lab.at(hour * 4 * HOUR).delete_node(&format!("node-{}", usize::try_from(hour - 1).unwrap() * 100 + n));
        }
        let from = 10 + usize::try_from(hour).unwrap() * 100;
        let text = (from..from + 60).map(|n| node(&format!("node-{n}"), n % 100, &labels, "linux")).collect::<String>();
        lab.apply(&text);
    }
    let all = base(&mut lab);
    let document = lab.observer.turn(&[], t(25 * HOUR));
    let file = encode(&Header::of(&document, End::Day).unwrap(), &document);
    println!(
        "60 nodes x 20 labels: state {without} -> {with} bytes, a label's change {change}; 420 nodes in a day: state {all}, closed {}",
        file.len()
    );
    assert!(with - without < 60 * 120, "{with}");
    assert!(change < 300, "{change}");
    assert!(file.len() < 420 * 120, "{}", file.len());
}

#[test]
fn a_restart_knows_what_nodes_were() {
    let mut lab = lab(|_| (), &node("node-b", 2, ", pool: old", "linux"));
    lab.at(HOUR).apply(&node("node-b", 2, ", pool: new", "linux"));
    lab.at(2 * HOUR).delete_node("node-b");
    let mut recorder = Recorder::default();
    let Write::Base(base) = lab.at(3 * HOUR).observer.store(&mut recorder, t(3 * HOUR), |_| ()) else { panic!() };
    let facts = State::read(&base, &[]).unwrap().facts(t(3 * HOUR)).unwrap();
    let mut config = ObserverConfig::new("node-a", "x", t(3 * HOUR));
    config.watched = true;
    let mut restored = Observer::restore(config, &facts, true).unwrap();
    restored.apply(list(Kind::Node, &node("node-a", 1, "", "linux")), t(3 * HOUR));
    restored.apply(list(Kind::Pod, &pod("shop", "web", 0, "node-a", "10.244.1.2", &[])), t(3 * HOUR));
    let after = restored.snapshot(t(4 * HOUR));
    assert_eq!(of(&after, "node-b"), of(&facts, "node-b"));
    assert_eq!(of(&after, "node-b").len(), 2);
}

#[test]
fn the_kubelets_word_tells_the_operating_system_where_no_label_does() {
    let mut lab = lab(|_| (), &node("win", 2, "", "windows"));
    let snapshot = lab.at(HOUR).snapshot();
    assert_eq!(snapshot.body.coverage.nodes.unobservable["win"], "windows node");
    assert_eq!(of(&snapshot, "win")[0].described.os.as_deref(), Some("windows"));
}

#[test]
fn a_person_says_later_which_nodes_nobody_can_observe() {
    let mut lab = lab(|_| (), &node("node-b", 2, ", pool: edge", "linux"));
    lab.at(HOUR).apply(&node("node-b", 2, ", pool: core", "linux"));
    let mut snapshot = lab.at(2 * HOUR).snapshot();
    assert!(snapshot.body.coverage.nodes.expected.contains("node-b"));
    assert!(!snapshot.body.tell_unobservable(&"pool=none".parse().unwrap()));
    assert!(snapshot.body.tell_unobservable(&"pool=edge".parse().unwrap()));
    let within = |since, until| {
        let span = Span::new(Some(t(since)), Some(t(until))).unwrap();
        merge_within(vec![snapshot.clone()], &span).body.coverage.nodes
    };
    let (edge, core) = (within(0, HOUR), within(HOUR, 2 * HOUR));
    assert_eq!((edge.unobservable["node-b"].as_str(), edge.expected.contains("node-b")), ("as told", false));
    assert!(core.unobservable.is_empty() && core.expected.contains("node-b"), "{core:?}");
}

#[test]
fn what_a_node_owned_by_its_pod_range_was_its_own_until_its_end() {
    let mut lab = lab(|_| (), &node("node-b", 2, "", "linux"));
    lab.at(HOUR).delete_node("node-b");
    // Told late: a flow of the node's time, at its bridge, and one of later.
    lab.at(HOUR + 20).flow(tcp_server(1, "10.244.1.2", "10.244.2.1", 8080, t(HOUR - 60)));
    assert_eq!(lab.edges(), ["node/node-b -> web TCP/8080"]);
    // Another node has the range since.
    lab.at(HOUR + 600).apply(&node("node-c", 2, "", "linux"));
    lab.at(HOUR + 1200).flow(tcp_server(1, "10.244.1.2", "10.244.2.1", 8080, t(HOUR + 1200)));
    assert_eq!(lab.edges(), ["node/node-b -> web TCP/8080", "node/node-c -> web TCP/8080"]);
    let snapshot = lab.snapshot();
    let tenures: Vec<_> = snapshot.body.addresses.iter().filter(|entry| entry.address == ip("10.244.2.1")).collect();
    let times: Vec<_> = tenures.iter().map(|entry| (entry.peer.to_string(), entry.from, entry.to)).collect();
    let (b, c) = ("node/node-b".to_owned(), "node/node-c".to_owned());
    assert_eq!(times, [(b, None, Some(t(HOUR))), (c, Some(t(HOUR + 600)), None)]);
}

#[test]
fn an_address_in_the_range_of_a_node_that_is_gone_is_nobodys_and_not_external() {
    let mut lab = lab(|_| (), &node("node-b", 2, "", "linux"));
    lab.at(HOUR).delete_node("node-b");
    // A client that knows a pod of that node by its address, and has not given up.
    let call = |at: i64| tcp_client(1, "10.244.1.2", "10.244.2.9", 5432, t(at));
    lab.at(2 * HOUR).flow(call(2 * HOUR));
    lab.at(2 * HOUR + 700);
    assert_eq!((lab.edges(), lab.unresolved("pod_range_no_owner")), (vec![], 1));
    // So it is after a restart,
    let Write::Base(base) = lab.observer.store(&mut Recorder::default(), lab.now, |_| ()) else { panic!() };
    let facts = State::read(&base, &[]).unwrap().facts(lab.now).unwrap();
    let mut observer = Observer::restore(ObserverConfig::new("node-a", "x", lab.now), &facts, true).unwrap();
    observer.apply(list(Kind::Node, &node("node-a", 1, "", "linux")), lab.now);
    observer.apply(list(Kind::Pod, &pod("shop", "web", 0, "node-a", "10.244.1.2", &[])), lab.now);
    let mut again = Lab { observer, now: lab.now };
    again.pod_cgroup(1, "web", 0);
    again.at(3 * HOUR).flow(call(3 * HOUR));
    again.at(3 * HOUR + 700);
    assert_eq!((again.edges(), again.unresolved("pod_range_no_owner")), (vec![], 2));
    // and in the days that follow, but not for ever.
    lab.at(23 * HOUR).flow(call(23 * HOUR));
    lab.at(23 * HOUR + 700);
    assert_eq!((lab.edges(), lab.unresolved("pod_range_no_owner")), (vec![], 2));
    lab.at(60 * HOUR).flow(call(60 * HOUR));
    lab.at(60 * HOUR + 700);
    assert_eq!(lab.edges(), ["web -> external/10.244.2.9 TCP/5432"]);
}

/// An agent forgets who had an address an hour after its end; the epoch has it in what nodes were.
#[test]
fn a_flow_that_is_named_later_with_a_node_that_is_gone_by_then_is_the_nodes() {
    let mut lab = lab(|config| config.own_pods_only = true, &node("node-b", 2, "", "linux"));
    lab.at(600).flow(tcp_client(1, "10.244.1.2", "10.244.2.7", 9100, t(600)));
    lab.at(HOUR).delete_node("node-b");
    let mut snapshot = lab.at(10 * HOUR).snapshot();
    assert!(snapshot.body.addresses.iter().all(|entry| entry.address != ip("192.0.2.2")), "forgotten");
    for address in ["192.0.2.2", "10.244.2.1"] {
        snapshot.body.remote_flows[0].address = ip(address);
        assert_eq!(edges(&merge(vec![snapshot.clone()])), ["web -> node/node-b TCP/9100"], "{address}");
        // Names are not cut to the span.
        let span = Span::new(Some(t(600)), Some(t(601))).unwrap();
        assert_eq!(edges(&merge_within(vec![snapshot.clone()], &span)), ["web -> node/node-b TCP/9100"], "{address}");
    }
    // After its end it was not.
    let counts = &mut snapshot.body.remote_flows[0].sources[0];
    (counts.first_seen, counts.last_seen) = (t(2 * HOUR), t(2 * HOUR));
    assert_eq!(edges(&merge(vec![snapshot])), Vec::<String>::new());
}

#[test]
fn bytes_that_name_a_label_or_a_word_that_is_not_there_are_refused() {
    let mut lab = lab(|_| (), &node("node-b", 2, ", pool: x", "linux"));
    let document = Arc::new(lab.observer.document(t(HOUR)));
    let header = Header::of(&document, End::Day).unwrap();
    let file = encode(&header, &document);
    for at in 20..file.len() {
        for bit in 0..8 {
            let mut changed = file.clone();
            changed[at] ^= 1 << bit;
            let checksum = crc32fast::hash(&changed[20..]);
            changed[16..20].copy_from_slice(&checksum.to_le_bytes());
            let _ = decode(&changed);
        }
    }
}
