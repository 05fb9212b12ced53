//! A rule is never removed because its evidence grew old (docs/design.md#policy, 8).

mod generate_support;

use std::collections::BTreeMap;
use std::time::Duration;

use generate_support::Scenario;
use guardrail_graph::{
    Snapshot, Timestamp, WorkloadRef,
    snapshot::{EdgeRecord, InventoryState, merge_within, span::Span},
};
use guardrail_policy::{
    emit::{EVIDENCE_FILE, REPORT_FILE},
    export::{self, Exported},
    generate::{FlowName, Options},
    memory::Memory,
};

/// Seconds after the begin of the window, which has 100.
fn at(seconds: i64) -> Timestamp {
    generate_support::at(seconds)
}

/// `web` calls `api` all the time; a monthly job, and a client that is gone later, called it early.
fn scenario() -> Scenario {
    let pod = |address: &str| serde_json::json!({"node": "node-a", "addresses": [address]});
    serde_json::from_value(serde_json::json!({
        "about": "evidence that grows old",
        "export": {"phase": "default-deny", "egress": true},
        "nodes": {"node-a": ["192.0.2.1"]},
        "workloads": {
            "shop/Deployment/web": {"labels": {"app": "web"}, "pods": {"web-1": pod("10.244.0.5")}},
            "shop/Deployment/api": {"labels": {"app": "api"}, "pods": {"api-1": pod("10.244.0.6")}},
            "shop/Deployment/old": {"labels": {"app": "old"}},
            "shop/CronJob/monthly": {"labels": {"app": "monthly"}},
        },
        "edges": [
            {"edge": "shop/Deployment/web -> shop/Deployment/api 8080"},
            {"edge": "shop/CronJob/monthly -> shop/Deployment/api 8080"},
            {"edge": "shop/Deployment/old -> shop/Deployment/api 8080"},
            {"edge": "shop/Deployment/web -> 203.0.113.7 443"},
        ],
    }))
    .unwrap()
}

/// All edges but `web -> api` were seen in the first seconds only.
fn observed() -> Snapshot {
    let mut snapshot = scenario().snapshot();
    for edge in &mut snapshot.body.edges {
        let is_constant = edge.client.peer.to_string().ends_with("/web") && edge.port == 8080;
        let (first, last) = if is_constant { (at(1), at(99)) } else { (at(1), at(2)) };
        (edge.first_seen, edge.last_seen) = (first, last);
        edge.sources.iter_mut().for_each(|counts| (counts.first_seen, counts.last_seen) = (first, last));
    }
    snapshot
}

fn since(snapshot: &Snapshot, seconds: i64) -> Snapshot {
    merge_within(vec![snapshot.clone()], &Span::new(Some(at(seconds)), None).unwrap())
}

fn memory(exported: &Exported<'_>) -> Memory {
    Memory::read(&exported.all_files()[EVIDENCE_FILE]).unwrap()
}

fn policies(exported: &Exported<'_>) -> BTreeMap<String, String> {
    let mut files = exported.files.clone();
    files.retain(|name, _| name.ends_with(".yaml"));
    files
}

fn evidence(exported: &Exported<'_>) -> serde_json::Value {
    serde_json::from_str(&exported.all_files()[EVIDENCE_FILE]).unwrap()
}

/// `field` of the evidence as `client -> server`, with why.
fn listed(exported: &Exported<'_>, field: &str) -> Vec<String> {
    let evidence = evidence(exported);
    let said = |entry: &serde_json::Value| {
        let edge = if entry.is_object() { &entry["edge"] } else { entry };
        let edge = edge.as_u64().map_or(edge, |place| &evidence["edges"][usize::try_from(place).unwrap()]);
        let edge: EdgeRecord = serde_json::from_value(edge.clone()).unwrap();
        let why = entry["why"].as_str().unwrap_or_default();
        format!("{} -> {} {why}", edge.client.peer, edge.server.peer).trim_end().to_owned()
    };
    evidence[field].as_array().unwrap().iter().map(said).collect()
}

/// An export of all, and the options of the next one, which remembers it.
fn first() -> (Exported<'static>, Options) {
    let options = scenario().options();
    let first = export::export(&observed(), &options).into_owned();
    assert!(first.problems.is_empty(), "{:?}", first.problems);
    let next = Options { memory: memory(&first), ..options };
    (first, next)
}

#[test]
fn an_export_of_a_span_without_an_edge_keeps_its_rule_and_says_so() {
    let (first, next) = first();
    let later = since(&observed(), 50);
    assert_eq!(later.body.edges.len(), 1);
    // Without a memory the rule is gone.
    let forgetful = export::export(&later, &scenario().options());
    assert_ne!(policies(&forgetful), policies(&first));

    let second = export::export(&later, &next);
    assert_eq!(policies(&second), policies(&first));
    assert!(second.problems.is_empty(), "{:?}", second.problems);
    let remembered = [
        "shop/CronJob/monthly -> shop/Deployment/api",
        "shop/Deployment/old -> shop/Deployment/api",
        "shop/Deployment/web -> external/203.0.113.7",
    ];
    assert_eq!(listed(&second, "remembered"), remembered);
    let report = &second.all_files()[REPORT_FILE];
    let date = at(2).to_string()[..10].to_owned();
    assert!(report.contains("## Remembered"), "{report}");
    let line = format!("shop/CronJob/monthly → shop/Deployment/api 8080/TCP [remembered, last seen {date}]");
    assert!(report.contains(&line), "{report}");
    assert!(second.warnings.iter().any(|w| w.starts_with("3 edges of an earlier export: allowed as before")));

    // The third remembers what the second did, and says the same.
    let third = export::export(&later, &Options { memory: memory(&second), ..next.clone() });
    assert_eq!(third.all_files(), second.all_files());
    // Seen again, it is remembered no longer.
    let observed = observed();
    let again = export::export(&observed, &Options { memory: memory(&third), ..next });
    assert_eq!(again.all_files(), first.all_files());
}

#[test]
fn an_edge_of_which_only_attempts_are_left_stays_allowed() {
    let (first, next) = first();
    let mut later = observed();
    for edge in later.body.edges.iter_mut().filter(|e| e.client.peer.to_string().contains("monthly")) {
        edge.supported = false;
        edge.counts = Default::default();
        edge.counts.refused = 3;
        edge.sources.iter_mut().for_each(|s| s.counts = edge.counts);
    }
    let second = export::export(&later, &next);
    assert_eq!(policies(&second), policies(&first));
    assert_eq!(listed(&second, "remembered"), ["shop/CronJob/monthly -> shop/Deployment/api"]);
}

#[test]
fn what_is_gone_from_complete_lists_is_forgotten_and_reported() {
    let (_, next) = first();
    let mut later = since(&observed(), 50);
    // A workload that stands there as it was last known, or not at all.
    for known in [true, false] {
        for entry in &mut later.body.workloads {
            if entry.workload.name == "old" {
                entry.as_of = at(40);
            }
        }
        later.body.workloads.retain(|entry| known || entry.workload.name != "old");
        // Who heard no complete list cannot say that it is gone.
        later.body.coverage.inventory = Some(InventoryState::Partial);
        assert_eq!(listed(&export::export(&later, &next), "forgotten"), [] as [&str; 0]);
        later.body.coverage.inventory = Some(InventoryState::Complete);
        let second = export::export(&later, &next);
        let gone = "shop/Deployment/old -> shop/Deployment/api shop/Deployment/old is gone";
        assert_eq!(listed(&second, "forgotten"), [gone]);
        assert!(second.all_files()[REPORT_FILE].contains("## Forgotten"), "{}", second.all_files()[REPORT_FILE]);
        let third = export::export(&later, &Options { memory: memory(&second), ..next.clone() });
        assert_eq!(listed(&third, "forgotten"), [] as [&str; 0], "it is said once");
        assert_eq!(policies(&third), policies(&second));
    }
}

#[test]
fn a_cron_job_between_runs_is_gone_only_if_cron_jobs_are_listed_themselves() {
    let (_, mut next) = first();
    let mut later = since(&observed(), 50);
    later.body.coverage.inventory = Some(InventoryState::Complete);
    later.body.workloads.retain(|entry| entry.workload.name != "monthly");
    assert!(!listed(&export::export(&later, &next), "forgotten").iter().any(|edge| edge.contains("monthly")));
    // Another one without pods shows that they are.
    let mut other = later.body.workloads[0].clone();
    other.workload = WorkloadRef { namespace: "ops".into(), owner: "CronJob".into(), name: "other".into() };
    other.pods.clear();
    other.as_of = at(100);
    let mut with_other = later.clone();
    with_other.body.workloads.insert(0, other);
    let gone = "shop/CronJob/monthly -> shop/Deployment/api shop/CronJob/monthly is gone";
    assert_eq!(listed(&export::export(&with_other, &next), "forgotten"), [gone]);
    // So does an inventory that has others of the namespace, and one that has it says it is there.
    let job = |name: &str| WorkloadRef { namespace: "shop".into(), owner: "CronJob".into(), name: name.into() };
    next.listed = [job("nightly")].into();
    assert_eq!(listed(&export::export(&later, &next), "forgotten"), [gone]);
    next.listed = [job("nightly"), job("monthly")].into();
    assert_eq!(listed(&export::export(&with_other, &next), "forgotten"), [] as [&str; 0]);
}

#[test]
fn what_was_not_used_for_as_long_as_a_person_says_is_forgotten() {
    let (_, next) = first();
    let later = since(&observed(), 50);
    let unused = |before| {
        let options = Options { forget_before: Some(before), ..next.clone() };
        listed(&export::export(&later, &options), "forgotten").len()
    };
    assert_eq!((unused(at(2)), unused(at(2).after(Duration::from_nanos(1)))), (0, 3));
}

#[test]
fn an_accepted_flow_is_left_without_a_rule_and_not_remembered() {
    let (_, next) = first();
    let later = since(&observed(), 50);
    let flow: FlowName = "shop/CronJob/monthly->shop/Deployment/api:8080/TCP".parse().unwrap();
    let accepted = export::export(&later, &Options { accepted: [flow].into(), ..next.clone() });
    let third = export::export(&later, &Options { memory: memory(&accepted), ..next });
    assert!(!listed(&third, "remembered").iter().any(|edge| edge.contains("monthly")));
    assert_eq!(policies(&third), policies(&accepted));
}

#[test]
fn the_memory_of_two_exports_is_both_and_what_is_no_evidence_is_refused() {
    let (first, next) = first();
    let mut joined = memory(&export::export(&since(&observed(), 50), &scenario().options()));
    joined.join(memory(&first));
    assert_eq!(joined, next.memory);
    assert_eq!(Memory::read("{\"kind\": \"Other\"}").unwrap_err().to_string(), "this is no ExportEvidence");
    assert!(Memory::read("{\"kind\": \"Export").unwrap_err().to_string().contains("line 1"));
    // An evidence of another form would make every rule forgotten.
    let other = Memory::read("{\"kind\": \"ExportEvidence\", \"memory\": {\"edges\": []}}");
    assert_eq!(other.unwrap_err().to_string(), "missing field `edges`");
    assert_eq!(Memory::read("{\"kind\": \"ExportEvidence\", \"edges\": []}").unwrap(), Memory::default());
}
