//! How much of the time of pods must have been observed: `guardrail export` says what there is and
//! what is needed, for each namespace, and time heals the rest.

#[path = "../../guardrail-policy/tests/generate_support/mod.rs"]
mod generate_support;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use generate_support::Scenario;
use guardrail_graph::{
    Peer, Protocol, Snapshot, Timestamp, WorkloadRef,
    observe::LossClass,
    snapshot::{
        FlowTime, Interval, LossEntry, LossTime, NodeDescription, NodeTime, PodPresence, UnresolvedEntry,
        UnresolvedFlow, Witness, WorkloadCoverage,
    },
};

/// Day of the month and hour.
fn t(day: u32, hour: u32) -> Timestamp {
    format!("2026-11-{day:02}T{hour:02}:00:00Z").parse().unwrap()
}

/// Namespace `shop` on both nodes, `ops` on node-a alone; observed from the first to the eleventh,
/// but node-b not in these hours of the first day.
fn cluster(gap: Option<(u32, u32)>) -> Snapshot {
    let mut snapshot = Scenario::on_two_nodes().snapshot();
    let body = &mut snapshot.body;
    let whole = vec![Interval { from: t(1, 0), to: t(11, 0) }];
    let of_b = gap.map_or_else(
        || whole.clone(),
        |(from, to)| vec![Interval { from: t(1, 0), to: t(1, from) }, Interval { from: t(1, to), to: t(11, 0) }],
    );
    body.window.nodes = [("node-a", whole), ("node-b", of_b)].map(|(node, times)| (node.to_owned(), times)).into();
    (body.window.from, body.window.to) = (Some(t(1, 0)), Some(t(11, 0)));
    for edge in &mut body.edges {
        (edge.first_seen, edge.last_seen) = (t(2, 0), t(10, 0));
        for counts in &mut edge.sources {
            (counts.first_seen, counts.last_seen) = (t(2, 0), t(10, 0));
        }
    }
    for workload in &mut body.workloads {
        workload.as_of = t(11, 0);
        for (node, pods) in &workload.pods {
            let there = pods.iter().map(|pod| present(&workload.workload, &pod.name, node, t(1, 0), t(11, 0)));
            body.presence.extend(there);
        }
    }
    body.witnesses =
        body.sources.iter().map(|source| Witness { source: source.clone(), tells: true, full: false }).collect();
    snapshot
}

fn present(workload: &WorkloadRef, pod: &str, node: &str, from: Timestamp, to: Timestamp) -> PodPresence {
    let (workload, pod, node) = (workload.clone(), pod.to_owned(), node.to_owned());
    PodPresence { workload, pod, node, from, to, started: None, told: false }
}

struct Exported {
    code: Option<i32>,
    said: String,
    files: Vec<String>,
    directory: tempfile::TempDir,
}

impl Exported {
    fn wrote(&self, namespace: &str) -> bool {
        self.files.iter().any(|file| file.starts_with(&format!("{namespace}.")))
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.directory.path().join("out").join(file)).unwrap()
    }
}

fn run(directory: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_guardrail")).current_dir(directory).args(args).output().unwrap()
}

fn export(snapshot: &Snapshot, args: &[&str]) -> Exported {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("s.json"), snapshot.to_json()).unwrap();
    let all = [&["export", "s.json", "-d", "out", "--phase", "default-deny"], args].concat();
    let output = run(directory.path(), &all);
    let files = fs::read_dir(directory.path().join("out")).map_or_else(
        |_| Vec::new(),
        |entries| entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect(),
    );
    Exported { code: output.status.code(), said: String::from_utf8(output.stderr).unwrap(), files, directory }
}

#[test]
fn a_namespace_of_whose_pods_too_little_was_observed_is_stopped_and_says_what_it_has_and_needs() {
    let gap = cluster(Some((6, 12)));
    let stopped = export(&gap, &[]);
    assert_eq!(stopped.code, Some(1), "{}", stopped.said);
    assert!(stopped.wrote("ops") && !stopped.wrote("shop"), "{:?}", stopped.files);
    let expected =
        "shop/Deployment/api: 97.5 % of its pods' time was observed, and 99.9 % is needed (--min-coverage 99.9)";
    assert!(stopped.said.contains(expected), "{}", stopped.said);

    for enough in [&["--min-coverage", "97.5"][..], &["--min-coverage", "0"], &["--force"]] {
        let accepted = export(&gap, enough);
        assert_eq!(accepted.code, Some(0), "{enough:?}: {}", accepted.said);
        assert!(accepted.wrote("ops") && accepted.wrote("shop"));
    }
    let accepted = export(&gap, &["--min-coverage", "97"]);
    let policy = accepted.text("shop.guardrail-allow-deployment-api.yaml");
    assert!(policy.contains("Evidence: complete.") && policy.contains("97.5 % of the time of its pods"), "{policy}");
    let report = accepted.text("REPORT.md");
    assert!(report.contains("shop: 97.5 % of the time of each workload's pods at least"), "{report}");
    for wrong in ["-1", "100.5", "much", "NaN"] {
        let refused = export(&gap, &[&format!("--min-coverage={wrong}")]);
        assert_eq!((refused.code, refused.files.len()), (Some(2), 0), "{}", refused.said);
        assert!(refused.said.contains("is no percentage"), "{}", refused.said);
    }
}

#[test]
fn time_heals_a_gap_by_its_share_and_by_leaving_the_span() {
    // A quarter of an hour of ten days is a thousandth.
    let mut short = cluster(None);
    let quarter = Interval { from: t(1, 6), to: "2026-11-01T06:14:00Z".parse().unwrap() };
    let before = Interval { from: t(1, 0), to: quarter.from };
    short.body.window.nodes.insert("node-b".into(), vec![before, Interval { from: quarter.to, to: t(11, 0) }]);
    let healed = export(&short, &[]);
    assert_eq!(healed.code, Some(0), "{}", healed.said);
    assert!(healed.wrote("shop"));
    // What is not in the span stops nothing.
    let later = export(&cluster(Some((6, 12))), &["--since", "2026-11-02"]);
    assert_eq!(later.code, Some(0), "{}", later.said);
    assert!(later.text("shop.guardrail-allow-deployment-api.yaml").contains("Evidence: complete."));
}

#[test]
fn a_loss_stops_whom_it_concerns_until_its_share_is_small() {
    let mut snapshot = cluster(None);
    let web = snapshot.body.workloads.iter().find(|w| w.workload.name == "web").unwrap().workload.clone();
    let source = snapshot.body.sources.iter().find(|source| source.node == "node-a").unwrap().clone();
    let mut loss = |to: &str| {
        let time = Interval { from: t(3, 0), to: to.parse().unwrap() };
        let times = Some(vec![LossTime { time, peer: Some(Peer::Workload(web.clone())) }]);
        snapshot.body.coverage.losses = vec![LossEntry {
            source: source.clone(),
            reason: "map_full".into(),
            class: LossClass::Edge,
            count: 9,
            times,
        }];
        snapshot.clone()
    };
    let stopped = export(&loss("2026-11-03T05:00:00Z"), &[]);
    assert_eq!(stopped.code, Some(1), "{}", stopped.said);
    assert!(stopped.said.contains("shop/Deployment/web: 97.9166 % of its pods' time"), "{}", stopped.said);
    assert!(stopped.wrote("ops"), "{:?}", stopped.files);
    let healed = export(&loss("2026-11-03T00:01:00Z"), &[]);
    assert_eq!(healed.code, Some(0), "{}", healed.said);
}

#[test]
fn of_pods_that_started_the_first_minute_of_three_or_all_must_have_been_observed() {
    let started = |covered: u32, missed: u32| {
        let mut snapshot = cluster(Some((6, 7)));
        let api = snapshot.body.workloads.iter().find(|w| w.workload.name == "api").unwrap().workload.clone();
        for number in 0..covered + missed {
            // Those of the sixth hour began while nobody watched, and lived on.
            let from = if number < covered { t(4, 0) } else { t(1, 6) };
            let mut pod = present(&api, &format!("api-{number}x"), "node-b", from, t(11, 0));
            pod.started = Some(from);
            snapshot.body.presence.push(pod);
        }
        export(&snapshot, &["--min-coverage", "90"])
    };
    for (covered, missed, expected) in [(0, 1, 1), (2, 1, 1), (2, 0, 0), (3, 40, 0), (4, 0, 0)] {
        let exported = started(covered, missed);
        assert_eq!(exported.code, Some(expected), "{covered} of {}: {}", covered + missed, exported.said);
        let said = format!("the first minute of {covered} of {} pods that started was observed", covered + missed);
        assert_eq!(exported.said.contains(&said), expected != 0, "{}", exported.said);
    }
}

#[test]
fn where_it_is_not_known_which_pods_ran_the_nodes_are_judged() {
    let mut snapshot = cluster(Some((6, 7)));
    snapshot.body.witnesses.pop();
    let unknown = export(&snapshot, &["--min-coverage", "0"]);
    assert_eq!(unknown.code, Some(1), "{}", unknown.said);
    assert!(unknown.said.contains("window_gap:node-b"), "{}", unknown.said);
    // One node of those that know their own pods only.
    let mut one = cluster(None);
    one.body.window.nodes.remove("node-b");
    one.body.sources.retain(|source| source.node == "node-a");
    one.body.coverage.nodes.observed.remove("node-b");
    one.body.witnesses.retain_mut(|witness| {
        witness.tells = false;
        witness.source.node == "node-a"
    });
    one.body.own_pods_as_of = [("node-a".to_owned(), t(11, 0))].into();
    for edge in &mut one.body.edges {
        edge.sources.retain(|counts| counts.source.node == "node-a");
    }
    let one = export(&one, &[]);
    assert_eq!(one.code, Some(2), "{}", one.said);
    assert!(one.said.contains("which pods ran on other nodes is not known from these snapshots"), "{}", one.said);
}

/// The same with a CronJob in `ops` that did not run; `stranded`: beside a workload that nothing
/// selects.
fn with_cronjob(schedule: &str, stranded: bool) -> Snapshot {
    let mut snapshot = cluster(None);
    let body = &mut snapshot.body;
    let ui = body.workloads.iter().find(|entry| entry.workload.name == "ui").unwrap().clone();
    let mut cron = ui.clone();
    cron.workload = WorkloadRef { namespace: "ops".into(), owner: "CronJob".into(), name: "report".into() };
    cron.labels = [("app".to_owned(), "report".to_owned())].into();
    cron.selector = None;
    cron.schedule = Some(schedule.to_owned());
    cron.pods.clear();
    body.workloads.push(cron);
    if stranded {
        let mut bare = ui;
        bare.workload = WorkloadRef { namespace: "ops".into(), owner: "Pod".into(), name: "bare".into() };
        (bare.labels, bare.selector) = (Default::default(), None);
        // It is called, so closing it as a whole would cut its caller off.
        let mut called = body.edges[0].clone();
        called.server.peer = Peer::Workload(bare.workload.clone()).into();
        body.edges.push(called);
        body.workloads.push(bare);
    }
    body.workloads.sort_by(|a, b| a.workload.cmp(&b.workload));
    snapshot
}

#[test]
fn a_workload_that_did_not_run_is_named_with_its_schedule_and_blocks_nothing_but_its_own_policy() {
    let monthly = export(&with_cronjob("0 3 1 * *", false), &[]);
    assert_eq!(monthly.code, Some(0), "{}", monthly.said);
    let warned = "up to 31 days pass between two runs of ops/CronJob/report (0 3 1 * *), and 10 days were observed";
    assert!(monthly.said.contains(warned), "{}", monthly.said);
    let closed = monthly.text("ops.guardrail-default-deny-ingress.yaml");
    let listed = "it isolates pods that did not run in the span: ops/CronJob/report (0 3 1 * *)";
    assert!(closed.contains(listed) && closed.contains("Evidence: incomplete."), "{closed}");
    assert!(monthly.text("REPORT.md").contains("did not run: ops/CronJob/report (0 3 1 * *)"));
    // One that should have run is named, too, and its period is no reason.
    let daily = export(&with_cronjob("@daily", false), &[]);
    assert!(!daily.said.contains("pass between two runs"), "{}", daily.said);

    // Where the namespace is closed workload by workload, its own policy waits for a person.
    let own = "ops.guardrail-allow-cronjob-report.yaml";
    let held = export(&with_cronjob("0 3 1 * *", true), &[]);
    assert_eq!(held.code, Some(0), "{}", held.said);
    let way_out = "no policy of its own is written: --accept ops/CronJob/report writes it";
    assert!(
        held.said.contains(way_out) && !held.files.iter().any(|file| file == own),
        "{} {:?}",
        held.said,
        held.files
    );
    let accepted = export(&with_cronjob("0 3 1 * *", true), &["--accept", "ops/CronJob/report"]);
    assert_eq!(accepted.code, Some(0), "{}", accepted.said);
    assert!(accepted.files.iter().any(|file| file == own), "{:?}", accepted.files);
    let useless = export(&cluster(None), &["--accept", "shop/Deployment/web"]);
    assert!(useless.said.contains("--accept shop/Deployment/web has no effect"), "{}", useless.said);
}

#[test]
fn a_node_that_nobody_can_observe_stops_nothing_and_is_named() {
    let mut snapshot = cluster(None);
    let body = &mut snapshot.body;
    let drop_b = |node: &str| node != "node-b";
    body.window.nodes.retain(|node, _| drop_b(node));
    body.sources.retain(|source| drop_b(&source.node));
    body.witnesses.retain(|witness| drop_b(&witness.source.node));
    body.coverage.nodes.observed.remove("node-b");
    body.presence.iter_mut().filter(|pod| pod.node == "node-b").for_each(|pod| pod.told = true);
    for edge in &mut body.edges {
        edge.sources.retain(|counts| drop_b(&counts.source.node));
    }
    let missing = export(&snapshot, &[]);
    assert_eq!(missing.code, Some(1), "{}", missing.said);
    assert!(missing.said.contains("shop/Deployment/api: 0 % of its pods' time was observed"), "{}", missing.said);
    // A person may say so later: what labels the nodes had stands in the snapshot.
    let mut labelled = snapshot.clone();
    labelled.body.nodes = ["node-a", "node-b"]
        .map(|name| NodeTime {
            name: name.to_owned(),
            unobservable: None,
            described: Arc::new(NodeDescription {
                labels: [("on", name)].into_iter().collect(),
                ..NodeDescription::default()
            }),
            time: Interval { from: t(1, 0), to: t(11, 0) },
        })
        .into();
    let told = export(&labelled, &["--unobservable-nodes", "on=node-b"]);
    assert_eq!(told.code, Some(0), "{}", told.said);
    assert!(told.wrote("shop"));
    let warned = "shop/Deployment/api has pods on node-b, which nobody can observe (as told)";
    assert!(told.said.contains(warned), "{}", told.said);
    let useless = export(&labelled, &["--unobservable-nodes", "on=node-c"]);
    assert_eq!(useless.code, Some(1), "{}", useless.said);
    let warned = "--unobservable-nodes 'on=node-c' has no effect: no node of the snapshots had such labels at any time";
    assert!(useless.said.contains(warned), "{}", useless.said);
    let wrong = export(&labelled, &["--unobservable-nodes", "on in"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.said);
    snapshot.body.coverage.nodes.unobservable = [("node-b".to_owned(), "windows node".to_owned())].into();
    let named = export(&snapshot, &[]);
    assert_eq!(named.code, Some(0), "{}", named.said);
    assert!(named.wrote("shop"));
    let warned = "shop/Deployment/api has pods on node-b, which nobody can observe (windows node)";
    assert!(named.said.contains(warned), "{}", named.said);
}

#[test]
fn a_flow_without_a_name_is_a_problem_of_its_own_that_a_person_accepts_by_name() {
    let workload = |name: &str| {
        Peer::Workload(WorkloadRef { namespace: "shop".into(), owner: "Deployment".into(), name: name.into() })
    };
    let address = || Peer::External { address: "10.244.9.9".into() };
    let mut snapshot = cluster(None);
    let source = snapshot.body.sources.first().unwrap().clone();
    let entry = |reason: &str, [client, server]: [Peer; 2], more: bool| UnresolvedEntry {
        source: source.clone(),
        reason: reason.into(),
        count: 3,
        examples: ["example".to_owned()].into(),
        flows: Some(vec![UnresolvedFlow {
            client,
            server,
            protocol: Protocol::Tcp,
            port: 8080,
            time: FlowTime { first_seen: t(2, 0), last_seen: t(9, 0) },
        }]),
        more,
    };
    let mark = |name: &str, reason: &str| WorkloadCoverage {
        peer: workload(name),
        complete: false,
        reasons: [reason.to_owned()].into(),
    };
    let body = &mut snapshot.body.coverage;
    body.unresolved = vec![
        entry("ip_reuse", [workload("web"), address()], false),
        entry("pod_unknown", [address(), workload("api")], false),
    ];
    body.workloads = vec![mark("api", "pod_unknown"), mark("web", "ip_reuse")];
    let inbound = "--accept '10.244.9.9->shop/Deployment/api:8080/TCP'";
    let outbound = "--accept 'shop/Deployment/web->10.244.9.9:8080/TCP'";
    // Nothing that stays open denies a flow.
    for (args, expected) in [(&[][..], [true, false]), (&["--egress"], [true, true])] {
        let stopped = export(&snapshot, args);
        assert_eq!(stopped.code, Some(1), "{}", stopped.said);
        assert_eq!([inbound, outbound].map(|flow| stopped.said.contains(flow)), expected, "{}", stopped.said);
        assert!(!stopped.said.contains("is incomplete"), "{}", stopped.said);
        assert!(stopped.wrote("ops") && !stopped.wrote("shop"));
        let forced = export(&snapshot, &[args, &["--force"]].concat());
        assert_eq!(forced.code, Some(1), "{}", forced.said);
    }
    let pasted = [inbound, outbound].map(|flow| flow.strip_prefix("--accept '").unwrap().trim_end_matches('\''));
    let accepted = export(&snapshot, &["--egress", "--accept", pasted[0], "--accept", pasted[1]]);
    assert_eq!(accepted.code, Some(0), "{}", accepted.said);
    // What nobody kept can be accepted by no name.
    snapshot.body.coverage.unresolved[1].more = true;
    let more = export(&snapshot, &["--accept", pasted[0]]);
    assert_eq!(more.code, Some(1), "{}", more.said);
    assert!(more.said.contains("shop/Deployment/api: pod_unknown"), "{}", more.said);
    // A span without them knows none.
    let later = export(&snapshot, &["--since", "2026-11-10"]);
    assert!(!later.said.contains("10.244.9.9"), "{}", later.said);
}
