//! Completeness over pod-time: which pods were there, where somebody watched, and when events were
//! lost.

mod common;

use common::{CLUSTER, apply_text, t};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Peer, Snapshot, WorkloadRef,
    inventory::{Change, Kind, ObjectKey, read},
    observe::{CgroupId, LossClass, LossReason},
    snapshot::{
        Coverage, Interval, LossEntry, LossTime, PodPresence, Source, Starts, Witness, WorkloadTime, merge,
        merge_within, span::Span,
    },
};
use proptest::prelude::*;

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// A pod that started then.
fn pod(name: &str, node: &str, address: &str, started: i64) -> String {
    let labels = format!("{{app: {name}}}");
    format!(
        "---\nkind: Pod\nmetadata: {{name: {name}-1, namespace: shop, uid: {name}-00000000-0001, labels: {labels}, \
         ownerReferences: [{{kind: StatefulSet, name: {name}, uid: s, controller: true}}]}}\nspec: {{nodeName: {node}}}\n\
         status: {{phase: Running, podIP: {address}, startTime: \"{}\"}}\n",
        t(started)
    )
}

/// The agent's own pod on a node.
fn agent(node: &str, ready: bool) -> String {
    format!(
        "---\nkind: Pod\nmetadata: {{name: agent-{node}, namespace: guardrail, uid: agent-{node}, \
         labels: {{app.kubernetes.io/name: guardrail-agent}}, \
         ownerReferences: [{{kind: DaemonSet, name: guardrail-agent, uid: d, controller: true}}]}}\n\
         spec: {{nodeName: {node}, hostNetwork: true}}\n\
         status: {{phase: Running, podIP: 192.0.2.1, startTime: \"{}\", conditions: [{{type: Ready, status: \"{}\"}}]}}\n",
        t(-DAY),
        if ready { "True" } else { "False" }
    )
}

/// An agent that heard these pods when it began.
fn observer(node: &str, from: i64, pods: &[String]) -> Observer {
    let mut observer = Observer::new(ObserverConfig::new(node, format!("instance-{node}-{from}"), t(from)));
    apply_text(&mut observer, CLUSTER, t(from));
    let objects = match pods {
        [] => Vec::new(),
        pods => read::objects(&pods.concat(), "pods").unwrap().objects,
    };
    observer.apply(Change::Replace { kind: Kind::Pod, objects }, t(from));
    observer
}

/// The same on the only node of a cluster.
fn alone(from: i64, pods: &[String]) -> Observer {
    let mut observer = observer("node-a", from, pods);
    let key = ObjectKey { kind: Kind::Node, namespace: String::new(), name: "node-b".into() };
    observer.apply(Change::Delete(key), t(from));
    observer
}

fn delete(observer: &mut Observer, name: &str, at: i64) {
    let key = ObjectKey { kind: Kind::Pod, namespace: "shop".into(), name: format!("{name}-1") };
    observer.apply(Change::Delete(key), t(at));
}

fn lose(observer: &mut Observer, cgroup: Option<u64>, at: i64) {
    let lost = Observation::Lost { reason: LossReason::MapFull, cgroup: cgroup.map(CgroupId), count: 3, at: t(at) };
    observer.observe(lost, t(at));
}

fn time<'a>(coverage: &'a Coverage, name: &str) -> &'a WorkloadTime {
    coverage
        .by_workload
        .iter()
        .find(|time| time.workload.name == name)
        .unwrap_or_else(|| panic!("{name}: {coverage:#?}"))
}

fn share(snapshot: &Snapshot, name: &str) -> f64 {
    time(&snapshot.body.coverage, name).coverage
}

fn is_near(share: f64, expected: f64) -> bool {
    (share - expected).abs() < 1e-5
}

#[test]
fn a_gap_is_uncovered_for_the_pods_that_were_there_and_leaves_the_span() {
    let pods = [pod("web", "node-a", "10.244.1.2", -DAY)];
    let before = alone(0, &pods).snapshot(t(9 * HOUR));
    let mut after = alone(10 * HOUR, &pods);
    let whole = merge(vec![before.clone(), after.snapshot(t(100 * HOUR))]);
    let coverage = &whole.body.coverage;
    assert_eq!((coverage.coverage, coverage.complete), (Some(0.99), false), "{coverage:#?}");
    assert_eq!(time(coverage, "web").starts, Starts::default(), "it started before anybody watched");
    // Much later the gap's share is small, and a span without it knows none.
    let long = merge(vec![before.clone(), after.snapshot(t(10_000 * HOUR))]);
    assert_eq!(long.body.coverage.coverage, Some(0.9999));
    let later =
        merge_within(vec![before, after.snapshot(t(100 * HOUR))], &Span::new(Some(t(11 * HOUR)), None).unwrap());
    assert_eq!((later.body.coverage.coverage, later.body.coverage.complete), (Some(1.0), true));
}

#[test]
fn a_gap_is_none_of_a_pod_that_was_not_there() {
    let first = alone(0, &[pod("web", "node-a", "10.244.1.2", -DAY)]).snapshot(t(10));
    let late = [pod("web", "node-a", "10.244.1.2", -DAY), pod("api", "node-a", "10.244.1.3", 2 * HOUR)];
    let both = merge(vec![first, alone(HOUR, &late).snapshot(t(3 * HOUR))]);
    assert!(share(&both, "web") < 0.67, "{:#?}", both.body.coverage);
    assert_eq!(time(&both.body.coverage, "api").coverage.to_bits(), 1f64.to_bits());
    assert_eq!(time(&both.body.coverage, "api").starts, Starts { covered: 1, all: 1 });
}

#[test]
fn an_agent_that_comes_after_its_node_s_pods_missed_their_start() {
    let pods = [pod("web", "node-a", "10.244.1.2", -DAY), pod("api", "node-b", "10.244.2.3", HOUR)];
    let a = observer("node-a", 0, &pods[..1]).snapshot(t(10 * HOUR));
    let b = observer("node-b", 6 * HOUR, &pods).snapshot(t(10 * HOUR));
    let both = merge(vec![a, b]).body.coverage;
    assert!(is_near(time(&both, "api").coverage, 4.0 / 9.0), "{both:#?}");
    assert_eq!(time(&both, "api").starts, Starts { covered: 0, all: 1 });
    assert_eq!(time(&both, "web").coverage.to_bits(), 1f64.to_bits());
    assert!(is_near(both.coverage.unwrap(), 14.0 / 19.0) && !both.complete);
    assert_eq!(both.starts, Some(Starts { covered: 0, all: 1 }));
}

#[test]
fn a_pod_that_lived_for_seconds_was_seen_if_all_of_it_was() {
    let mut a = alone(0, &[]);
    for (at, name) in [(100, "one"), (200, "two")] {
        apply_text(&mut a, &pod(name, "node-a", "10.244.1.2", at), t(at));
        delete(&mut a, name, at + 5);
    }
    let coverage = a.snapshot(t(300)).body.coverage;
    assert_eq!((coverage.coverage, coverage.starts), (Some(1.0), Some(Starts { covered: 2, all: 2 })), "{coverage:#?}");
    // The next epoch knows nothing of them.
    a.turn(&[], t(301));
    let next = a.snapshot(t(400)).body;
    assert!(next.presence.is_empty() && next.coverage.by_workload.is_empty(), "{:#?}", next.presence);
}

#[test]
fn pods_of_a_node_without_a_ready_agent_are_told_and_uncovered() {
    let api = pod("api", "node-b", "10.244.2.3", -DAY);
    let pods = |ready| [agent("node-a", true), agent("node-b", ready), api.clone()];
    // node-b's agent is away from the beginning, and comes after nine hours.
    let mut a = observer("node-a", 0, &pods(false));
    let alone = a.snapshot(t(HOUR)).body.coverage;
    assert_eq!(time(&alone, "api").coverage.to_bits(), 0f64.to_bits(), "{alone:#?}");
    assert!(!alone.complete && alone.coverage.is_some_and(|share| share < 1.0));
    apply_text(&mut a, &agent("node-b", true), t(9 * HOUR));
    let b = observer("node-b", 9 * HOUR, &pods(true)).snapshot(t(10 * HOUR));
    let both = merge(vec![a.snapshot(t(10 * HOUR)), b]).body.coverage;
    assert!(is_near(time(&both, "api").coverage, 0.1), "{both:#?}");
    // Where both agents are Ready, nobody tells.
    let mut a = observer("node-a", 0, &pods(true));
    assert!(a.snapshot(t(10 * HOUR)).body.presence.iter().all(|pod| !pod.told));
    // A pod that came and went on a node whose agent is away is told, too.
    apply_text(&mut a, &agent("node-b", false), t(11 * HOUR));
    apply_text(&mut a, &pod("job", "node-b", "10.244.2.9", 12 * HOUR), t(12 * HOUR));
    delete(&mut a, "job", 12 * HOUR + 30);
    let told = a.snapshot(t(13 * HOUR)).body;
    assert!(told.presence.iter().any(|pod| pod.told && pod.pod == "job-1"), "{:#?}", told.presence);
    assert_eq!(time(&told.coverage, "job").starts, Starts { covered: 0, all: 1 });
}

#[test]
fn agents_that_restart_or_begin_moments_apart_uncover_nothing() {
    let api = pod("api", "node-b", "10.244.2.3", HOUR);
    let pods = |ready| [agent("node-a", true), agent("node-b", ready), api.clone()];
    let mut a = observer("node-a", 0, &pods(true)[..2]);
    let mut b = observer("node-b", 2, &pods(true)[..2]);
    for observer in [&mut a, &mut b] {
        apply_text(observer, &api, t(HOUR));
    }
    // The agent of node-b restarts with its hooks attached.
    apply_text(&mut a, &agent("node-b", false), t(2 * HOUR));
    apply_text(&mut a, &agent("node-b", true), t(2 * HOUR + 40));
    // Nobody is asked at one instant.
    let both = merge(vec![a.snapshot(t(3 * HOUR + 4)), b.snapshot(t(3 * HOUR))]).body;
    assert!(both.presence.iter().all(|pod| !pod.told), "{:#?}", both.presence);
    assert_eq!(time(&both.coverage, "api").coverage.to_bits(), 1f64.to_bits(), "{:#?}", both.coverage);
    assert_eq!(time(&both.coverage, "api").starts, Starts { covered: 1, all: 1 });
}

#[test]
fn it_is_not_known_which_pods_were_there_where_a_node_has_no_word_of_them() {
    let pods = [pod("web", "node-a", "10.244.1.2", -DAY)];
    // Without pods of agents nobody knows that node-b has none.
    let one = observer("node-a", 0, &pods).snapshot(t(HOUR));
    assert_eq!((one.body.coverage.coverage, one.body.coverage.starts), (None, None), "{:#?}", one.body.coverage);
    let both = merge(vec![one.clone(), observer("node-b", 0, &pods).snapshot(t(HOUR))]);
    assert_eq!(both.body.coverage.coverage, Some(1.0));
    // An agent that does not say which pods were there is one of those that nobody knows of.
    let mut old = both.clone();
    old.body.witnesses.pop();
    assert_eq!(merge(vec![old]).body.coverage.coverage, None);
}

#[test]
fn a_loss_uncovers_its_minutes_for_whom_it_concerns() {
    let pods = [pod("web", "node-a", "10.244.1.2", -DAY), pod("api", "node-a", "10.244.1.3", -DAY)];
    let mut a = alone(0, &pods);
    let path = "/kubepods/burstable/podweb-00000000-0001/0123456789abcdef";
    a.observe(Observation::CgroupCreated { id: CgroupId(7), path: path.into(), at: t(0) }, t(0));
    let minute = t(0).as_unix_ns() / 1_000_000_000 % 60;
    // Sweeps of one minute are one time.
    for at in [1_800 + 60 - minute + 20, 1_800 + 60 - minute + 35] {
        lose(&mut a, Some(7), at);
    }
    let snapshot = a.snapshot(t(HOUR));
    let times = snapshot.body.coverage.losses[0].times.clone().unwrap();
    assert_eq!(times.len(), 1, "{times:?}");
    assert_eq!(times[0].time.to.since(times[0].time.from).as_secs(), 60);
    assert!(is_near(share(&snapshot, "web"), 59.0 / 60.0), "{:#?}", snapshot.body.coverage);
    assert_eq!(share(&snapshot, "api").to_bits(), 1f64.to_bits());
    // Nobody knows whose: anyone's.
    lose(&mut a, None, 3 * 60);
    assert!(share(&a.snapshot(t(HOUR)), "api") < 1.0);
    // A span after it is covered.
    let later = merge_within(vec![a.snapshot(t(3 * HOUR))], &Span::new(Some(t(HOUR)), None).unwrap());
    assert_eq!(later.body.coverage.coverage, Some(1.0), "{:#?}", later.body.coverage);
    // Without times it was all of the time.
    let mut bare = a.snapshot(t(3 * HOUR));
    bare.body.coverage.losses.iter_mut().for_each(|loss| loss.times = None);
    assert_eq!(merge(vec![bare]).body.coverage.coverage, Some(0.0));
    // Hints uncover nothing, and say when.
    let mut hint = alone(0, &pods);
    hint.observe(Observation::Lost { reason: LossReason::RingFull, cgroup: None, count: 1, at: t(90) }, t(90));
    let hint = hint.snapshot(t(HOUR)).body.coverage;
    assert_eq!((hint.coverage, hint.losses[0].times.as_ref().map(Vec::len)), (Some(1.0), Some(1)));
}

#[test]
fn a_restart_keeps_who_was_there_and_when_was_lost_what() {
    let mut a = alone(0, &[pod("web", "node-a", "10.244.1.2", -DAY)]);
    apply_text(&mut a, &pod("job", "node-a", "10.244.1.9", HOUR), t(HOUR));
    delete(&mut a, "job", 2 * HOUR);
    lose(&mut a, None, 3 * HOUR);
    let state = a.snapshot(t(4 * HOUR));
    let mut restored = Observer::restore(ObserverConfig::new("node-a", "x", t(4 * HOUR)), &state, true).unwrap();
    assert_eq!(restored.snapshot(t(4 * HOUR)).body.presence, state.body.presence);
    let objects = read::objects(&pod("web", "node-a", "10.244.1.2", -DAY), "pods").unwrap().objects;
    restored.apply(Change::Replace { kind: Kind::Pod, objects }, t(4 * HOUR));
    let now = restored.snapshot(t(8 * HOUR));
    assert_eq!(now.body.presence.len(), 2, "{:#?}", now.body.presence);
    assert_eq!(now.body.coverage.losses, state.body.coverage.losses);
    assert_eq!(time(&now.body.coverage, "job").starts, Starts { covered: 1, all: 1 });
    assert!(share(&now, "web") < 1.0 && share(&now, "web") > 0.99);
}

/// An agent that goes on from a state of four hours after two more, in which nobody watched.
fn after_a_gap(before: &[String], after: &[String]) -> Snapshot {
    let state = alone(0, before).snapshot(t(4 * HOUR));
    let mut next = Observer::restore(ObserverConfig::new("node-a", "x", t(6 * HOUR)), &state, false).unwrap();
    let objects = if after.is_empty() { Vec::new() } else { read::objects(&after.concat(), "pods").unwrap().objects };
    next.apply(Change::Replace { kind: Kind::Pod, objects }, t(6 * HOUR));
    next.snapshot(t(8 * HOUR))
}

#[test]
fn a_pod_that_began_and_ended_in_a_gap_was_there_if_the_list_after_it_still_has_it() {
    let over = |name: &str, at| pod(name, "node-a", "10.244.1.9", at).replace("Running", "Succeeded");
    let web = pod("web", "node-a", "10.244.1.2", -DAY);
    let snapshot = after_a_gap(std::slice::from_ref(&web), &[web.clone(), over("job", 5 * HOUR), over("old", -HOUR)]);
    let coverage = &snapshot.body.coverage;
    assert_eq!(
        (share(&snapshot, "job").to_bits(), share(&snapshot, "web").to_bits()),
        (0f64.to_bits(), 0.75f64.to_bits())
    );
    assert_eq!(time(coverage, "job").starts, Starts { covered: 0, all: 1 });
    assert!(coverage.by_workload.iter().all(|time| time.workload.name != "old"), "how long, nobody knows");
}

#[test]
fn a_pod_that_did_not_outlive_a_gap_lived_into_it() {
    let web = [pod("web", "node-a", "10.244.1.2", -DAY)];
    let snapshot = after_a_gap(&web, &[]);
    assert!(share(&snapshot, "web") < 1.0 && share(&snapshot, "web") > 0.999, "{:#?}", snapshot.body.coverage);
    // One that had ended before is covered.
    let mut a = alone(0, &web);
    delete(&mut a, "web", 3 * HOUR);
    let state = a.snapshot(t(4 * HOUR));
    let mut next = Observer::restore(ObserverConfig::new("node-a", "x", t(6 * HOUR)), &state, false).unwrap();
    next.apply(Change::Replace { kind: Kind::Pod, objects: Vec::new() }, t(6 * HOUR));
    assert_eq!(share(&next.snapshot(t(8 * HOUR)), "web").to_bits(), 1f64.to_bits());
}

#[test]
fn an_epoch_that_ends_as_of_its_state_and_the_next_say_together_what_one_of_both_does() {
    let over = |name: &str, at| pod(name, "node-a", "10.244.1.9", at).replace("Running", "Succeeded");
    let web = pod("web", "node-a", "10.244.1.2", -DAY);
    for after in [vec![web.clone(), over("job", 5 * HOUR)], vec![]] {
        let whole = after_a_gap(std::slice::from_ref(&web), &after);
        let mut first = alone(0, std::slice::from_ref(&web)).snapshot(t(4 * HOUR));
        let mut next = Observer::restore(ObserverConfig::new("node-a", "x", t(6 * HOUR)), &first, false).unwrap();
        next.turn_back();
        let objects = if after.is_empty() { Vec::new() } else { read::objects(&after.concat(), "p").unwrap().objects };
        next.apply(Change::Replace { kind: Kind::Pod, objects }, t(6 * HOUR));
        let second = next.snapshot(t(8 * HOUR));
        assert_eq!(second.body.window.nodes["node-a"].iter().map(|run| run.from).collect::<Vec<_>>(), [t(6 * HOUR)]);
        first.body.revisions.clear();
        let both = merge(vec![second, first]).body.coverage;
        let coverage = whole.body.coverage;
        assert_eq!(
            (&both.by_workload, both.coverage, both.complete),
            (&coverage.by_workload, coverage.coverage, coverage.complete)
        );
    }
}

#[test]
fn a_workload_without_pods_in_the_span_did_not_run() {
    let mut a = alone(0, &[pod("web", "node-a", "10.244.1.2", -DAY)]);
    let cron = "kind: CronJob\nmetadata: {name: report, namespace: shop}\nspec: {schedule: \"0 3 1 * *\", jobTemplate: {spec: {template: {metadata: {labels: {app: report}}}}}}\n";
    apply_text(&mut a, cron, t(0));
    let coverage = a.snapshot(t(HOUR)).body.coverage;
    let names: Vec<&str> = coverage.not_run.iter().map(|idle| &*idle.workload.name).collect();
    assert_eq!(names, ["report"], "{coverage:#?}");
    assert_eq!(coverage.not_run[0].schedule.as_deref(), Some("0 3 1 * *"));
    assert!(coverage.by_workload.iter().all(|time| time.workload.name != "report"));
}

#[test]
fn nodes_that_nobody_can_observe_are_named_and_not_waited_for() {
    let nodes = "---\nkind: Node\nmetadata: {name: win, labels: {kubernetes.io/os: windows}}\n\
                 ---\nkind: Node\nmetadata: {name: burst, labels: {type: virtual-kubelet}}\n\
                 ---\nkind: Node\nmetadata: {name: told, labels: {pool: gpu}}\n";
    let pods = [pod("web", "node-a", "10.244.1.2", -DAY), pod("iis", "win", "10.244.5.2", -DAY)];
    let mut config = ObserverConfig::new("node-a", "i", t(0));
    config.unobservable.push("pool=gpu".parse().unwrap());
    let mut a = Observer::new(config);
    let only_a = CLUSTER.split("---").take(2).collect::<Vec<_>>().join("---");
    apply_text(&mut a, &format!("{only_a}{nodes}"), t(0));
    let objects = read::objects(&pods.concat(), "pods").unwrap().objects;
    a.apply(Change::Replace { kind: Kind::Pod, objects }, t(0));
    let snapshot = a.snapshot(t(HOUR));
    let coverage = &snapshot.body.coverage;
    assert_eq!(coverage.nodes.expected.iter().collect::<Vec<_>>(), ["node-a"], "{coverage:#?}");
    let named: Vec<(&str, &str)> = coverage.nodes.unobservable.iter().map(|(node, why)| (&**node, &**why)).collect();
    assert_eq!(named, [("burst", "virtual kubelet"), ("told", "as told"), ("win", "windows node")]);
    assert_eq!((coverage.coverage, coverage.complete), (Some(1.0), true), "{coverage:#?}");
    assert!(coverage.not_run.iter().all(|idle| idle.workload.name != "iis"), "it runs where nobody looks");
    assert_eq!(merge(vec![snapshot.clone()]), snapshot);
}

fn expected(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.body.coverage.nodes.expected.iter().map(String::as_str).collect()
}

#[test]
fn a_node_that_is_gone_is_expected_in_spans_in_which_it_was_there_and_in_no_other() {
    let pods = [pod("web", "node-a", "10.244.1.2", -DAY)];
    let mut a = observer("node-a", 0, &pods);
    let key = ObjectKey { kind: Kind::Node, namespace: String::new(), name: "node-b".into() };
    a.apply(Change::Delete(key), t(2 * HOUR));
    let first = a.snapshot(t(10 * HOUR));
    assert_eq!((expected(&first), first.body.coverage.complete), (vec!["node-a", "node-b"], false));
    let within = |snapshot: &Snapshot, since: i64, until: i64| {
        merge_within(vec![snapshot.clone()], &Span::new(Some(t(since)), Some(t(until))).unwrap())
    };
    assert_eq!(expected(&within(&first, HOUR, 3 * HOUR)), ["node-a", "node-b"]);
    let later = within(&first, 3 * HOUR, 9 * HOUR);
    assert_eq!((expected(&later), later.body.coverage.complete), (vec!["node-a"], true), "{:#?}", later.body.coverage);
    // A restart knows of it; the next epoch does not.
    let mut restored = Observer::restore(ObserverConfig::new("node-a", "x", t(10 * HOUR)), &first, true).unwrap();
    let only_a = CLUSTER.split("---").take(2).collect::<Vec<_>>().join("---");
    let list = |kind, text: &str| Change::Replace { kind, objects: read::objects(text, "list").unwrap().objects };
    restored.apply(list(Kind::Node, &only_a), t(10 * HOUR));
    restored.apply(list(Kind::Pod, &pods.concat()), t(10 * HOUR));
    assert_eq!(expected(&restored.snapshot(t(11 * HOUR))), ["node-a", "node-b"]);
    let ended = restored.turn(&[], t(12 * HOUR)).snapshot();
    let next = restored.snapshot(t(20 * HOUR));
    assert_eq!((expected(&ended), expected(&next)), (vec!["node-a", "node-b"], vec!["node-a"]));
    let both = merge(vec![next.clone(), ended.clone()]);
    assert_eq!(expected(&both), ["node-a", "node-b"]);
    assert_eq!(merge(vec![both.clone(), next, ended]), both);
}

#[test]
fn a_node_is_expected_while_it_can_be_observed_and_its_pods_time_counts_then() {
    let label = |os: &str| format!("---\nkind: Node\nmetadata: {{name: node-b, labels: {{kubernetes.io/os: {os}}}}}\n");
    let pods = [agent("node-a", true), agent("node-b", false), pod("api", "node-b", "10.244.2.3", -DAY)];
    let mut a = observer("node-a", 0, &pods);
    apply_text(&mut a, &label("windows"), t(2 * HOUR));
    let whole = a.snapshot(t(10 * HOUR));
    assert_eq!((expected(&whole), share(&whole, "api").to_bits()), (vec!["node-a", "node-b"], 0f64.to_bits()));
    let within = |since, until| {
        merge_within(vec![whole.clone()], &Span::new(Some(t(since)), Some(t(until))).unwrap()).body.coverage
    };
    let (before, after) = (within(HOUR, 2 * HOUR), within(3 * HOUR, 9 * HOUR));
    assert!(before.nodes.unobservable.is_empty() && before.nodes.expected.contains("node-b"), "{before:#?}");
    assert_eq!(after.nodes.unobservable.keys().collect::<Vec<_>>(), ["node-b"]);
    assert!(!after.nodes.expected.contains("node-b") && after.complete, "{after:#?}");
    assert!(after.by_workload.iter().all(|time| time.workload.name != "api"), "{after:#?}");
    // Back in Linux's hands it is as before.
    apply_text(&mut a, &label("linux"), t(12 * HOUR));
    let whole = a.snapshot(t(22 * HOUR));
    let api = time(&whole.body.coverage, "api");
    assert_eq!(api.coverage.to_bits(), 0f64.to_bits());
    assert_eq!(whole.body.nodes.iter().filter(|node| node.name == "node-b").count(), 3, "{:#?}", whole.body.nodes);
}

#[test]
fn established_flows_without_a_name_are_kept_by_their_ends_and_leave_the_span() {
    let mut a = alone(0, &[pod("web", "node-a", "10.244.1.2", -DAY)]);
    let path = "/kubepods/burstable/podweb-00000000-0001/0123456789abcdef";
    a.observe(Observation::CgroupCreated { id: CgroupId(7), path: path.into(), at: t(0) }, t(0));
    for list in [Kind::Node, Kind::Service] {
        a.list_unavailable(&list);
    }
    // An address of a pod range that nobody ever had.
    let flow = common::tcp_client(7, "10.244.1.2", "10.244.1.77", 5432, t(HOUR));
    a.observe(Observation::Flow(flow), t(HOUR));
    for at in [HOUR + 11, HOUR + 700] {
        a.tick(t(at));
    }
    let snapshot = a.snapshot(t(2 * HOUR));
    let unresolved = &snapshot.body.coverage.unresolved;
    let [entry] = &unresolved[..] else { panic!("{unresolved:#?}") };
    let flows = entry.flows.as_ref().unwrap();
    assert_eq!((entry.reason.as_str(), flows.len(), entry.more), ("pod_range_no_owner", 1, false), "{entry:#?}");
    assert_eq!(flows[0].client.to_string(), "shop/StatefulSet/web");
    assert_eq!((flows[0].server.to_string(), flows[0].port), ("external/10.244.1.77".to_owned(), 5432));
    assert!(flows[0].time.first_seen <= t(HOUR) && t(HOUR) <= flows[0].time.last_seen, "{entry:#?}");
    assert_eq!(snapshot.body.coverage.coverage, Some(1.0), "it is no part of the time");
    let restored = Observer::restore(ObserverConfig::new("node-a", "x", t(2 * HOUR)), &snapshot, true);
    assert_eq!(restored.unwrap().snapshot(t(2 * HOUR)).body.coverage.unresolved, *unresolved);
    let later = merge_within(vec![snapshot], &Span::new(Some(t(HOUR + 800)), None).unwrap());
    assert!(later.body.coverage.unresolved.iter().all(|entry| entry.flows.as_ref().is_some_and(Vec::is_empty)));
}

/// Minutes, half open.
type Minutes = (i64, i64);

#[derive(Clone, Debug)]
struct World {
    windows: [Vec<Minutes>; 2],
    /// Workload, node, when, and whether it started then.
    pods: Vec<(usize, usize, Minutes, bool)>,
    /// Workload (2: anyone), node, when.
    losses: Vec<(usize, usize, Minutes)>,
}

fn world() -> impl Strategy<Value = World> {
    let span = || (0i64..200, 1i64..80).prop_map(|(from, long)| (from, from + long));
    let windows = || prop::collection::vec(span(), 1..4);
    let pod = (0usize..2, 0usize..2, span(), any::<bool>());
    (
        [windows(), windows()],
        prop::collection::vec(pod, 1..6),
        prop::collection::vec((0usize..3, 0usize..2, span()), 0..3),
    )
        .prop_map(|(windows, pods, losses)| World { windows, pods, losses })
}

impl World {
    fn workload(index: usize) -> WorkloadRef {
        WorkloadRef { namespace: "shop".into(), owner: "Deployment".into(), name: ["web", "api"][index].into() }
    }

    /// One snapshot for each node, as its agent would say it.
    fn snapshots(&self) -> Vec<Snapshot> {
        let minutes = |(from, to): Minutes| Interval { from: t(60 * from), to: t(60 * to) };
        let of_node = |node: usize| {
            let name = ["node-a", "node-b"][node];
            let source = Source { node: name.into(), instance: "i".into(), start: Some(t(0)) };
            let mut snapshot = Snapshot::empty();
            let body = &mut snapshot.body;
            body.sources.insert(source.clone());
            body.window.nodes.insert(name.into(), self.windows[node].iter().map(|span| minutes(*span)).collect());
            body.witnesses.push(Witness { source: source.clone(), tells: false, full: false });
            for (number, (workload, _, span, started)) in self.pods.iter().enumerate().filter(|(_, pod)| pod.1 == node)
            {
                let Interval { from, to } = minutes(*span);
                let (workload, pod) = (Self::workload(*workload), format!("p{number}"));
                let started = started.then_some(from);
                body.presence.push(PodPresence { workload, pod, node: name.into(), from, to, started, told: false });
            }
            let whom = |of: usize| (of < 2).then(|| Peer::Workload(Self::workload(of)));
            let here = self.losses.iter().filter(|loss| loss.1 == node);
            let times: Vec<_> = here.map(|loss| LossTime { time: minutes(loss.2), peer: whom(loss.0) }).collect();
            if !times.is_empty() {
                let (reason, class, times) = ("map_full".into(), LossClass::Edge, Some(times));
                body.coverage.losses.push(LossEntry { source, reason, class, count: 1, times });
            }
            snapshot
        };
        vec![of_node(0), of_node(1)]
    }

    /// By counting minutes: those of pods, those covered, starts and those covered.
    fn counted(&self, workload: usize) -> [u64; 4] {
        let within = |spans: &[Minutes], at: i64| spans.iter().any(|(from, to)| (*from..*to).contains(&at));
        let first = self.windows.iter().flatten().map(|span| span.0).min().unwrap();
        let last = self.windows.iter().flatten().map(|span| span.1).max().unwrap();
        let covered = |node: usize, at: i64| {
            let concerns = |(whom, on, span): &&(usize, usize, Minutes)| {
                *on == node && (*whom == workload || *whom == 2) && within(&[*span], at)
            };
            within(&self.windows[node], at) && !self.losses.iter().any(|loss| concerns(&loss))
        };
        let mut sums = [0; 4];
        for (_, node, (from, to), started) in self.pods.iter().filter(|pod| pod.0 == workload) {
            for at in (*from).max(first)..(*to).min(last) {
                sums[0] += 1;
                sums[1] += u64::from(covered(*node, at));
            }
            if *started && (first..last).contains(from) {
                sums[2] += 1;
                sums[3] += u64::from(covered(*node, *from));
            }
        }
        sums
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_covered_is_what_counting_minutes_says(world in world()) {
        let snapshots = world.snapshots();
        let merged = merge(snapshots.clone());
        let coverage = &merged.body.coverage;
        let mut all_whole = true;
        for workload in 0..2 {
            let [all, covered, starts, seen] = world.counted(workload);
            let name = World::workload(workload);
            let found = coverage.by_workload.iter().find(|time| time.workload == name);
            prop_assert_eq!(found.is_some(), all > 0, "{:#?}", coverage);
            let Some(found) = found else { continue };
            let share = f64::from(u32::try_from(covered * 1_000_000 / all).unwrap()) / 1e6;
            prop_assert_eq!(found.coverage.to_bits(), share.to_bits(), "{} {:#?}", name, coverage);
            prop_assert_eq!(found.starts, Starts { covered: seen, all: starts }, "{}", name);
            all_whole &= covered == all && seen == starts;
        }
        prop_assert!(!coverage.complete || all_whole);
        // In any order, and as often as one likes.
        let again = merge(vec![snapshots[1].clone(), merged.clone(), snapshots[0].clone()]);
        prop_assert_eq!(again.to_json(), merged.to_json());
    }
}
