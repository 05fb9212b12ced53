//! Floods: what must not be lost is not lost, and what is lost is counted and charged to the right
//! workload.

use std::{collections::BTreeSet, time::Duration};

use guardrail_tests::{
    agent::Agent,
    app::scenario::{AddressRange, Call, How, Scenario, Serve},
    bins,
    compare::{compare, edges, happened, number},
    lab::wait_until,
    small::{cluster, deployment, eventually, go, lab, same, start, truth},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// `count` servers on the internet, from 100.64.0.0 on, each called once, by four threads.
fn flood(count: u32) -> Vec<Call> {
    (0..4)
        .map(|part| {
            let first = u32::from(std::net::Ipv4Addr::new(100, 64, 0, 0)) + part * count / 4;
            let to = format!("{}:443", std::net::Ipv4Addr::from(first));
            let mut call = Call::new(&to, How::Tcp, count / 4).pause(0, 0);
            call.spread = count / 4;
            call.payload_bytes = (1, 1);
            call.timeout_ms = 10_000;
            call
        })
        .collect()
}

fn incomplete_workloads(snapshot: &Value) -> BTreeSet<String> {
    let all = snapshot["coverage"]["workloads"].as_array().cloned().unwrap_or_default();
    all.iter().map(|w| guardrail_tests::compare::peer(&w["peer"])).collect()
}

#[test]
fn a_ring_of_4_kib_loses_no_edge_of_20_000_and_counts_every_hint_that_it_dropped() {
    if !bins::can_run("20,000 edges through a ring of 4 KiB") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let client = deployment(&mut c, "crawler", 8080, 0);
    let lab = lab(c).unwrap();
    let internet = Scenario { serve: vec![Serve::tcp(443)], ..Scenario::default() };
    let server = lab.start_on_internet("everything", internet).unwrap();
    server.wait_for("ready", std::time::Instant::now() + LIMIT).unwrap();
    let agent = Agent::start(&lab, 0, &["--ring-bytes", "4096", "--new-keys-per-cgroup", "60000"]).unwrap();
    let mut processes = start(&lab, vec![(&client, Scenario { after: flood(20_000), ..Scenario::default() })]).unwrap();
    // A reader that stands still: the ring overflows for certain, and only the map knows.
    agent.signal(libc::SIGSTOP);
    let done = go(&mut processes);
    agent.signal(libc::SIGCONT);
    done.unwrap();
    let truth = truth(&lab).unwrap();
    assert_eq!(truth.edges.len(), 20_000);
    let snapshot = eventually(LIMIT, || agent.snapshot(), |s| same(&compare(s, &truth))).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    let dropped = agent.metric(r#"guardrail_events_lost_total{reason="ring_full",class="hint"}"#).unwrap();
    // A hint takes more than 32 bytes, so the ring held at most 128 of them.
    assert!((19_000.0..=20_000.0).contains(&dropped), "{dropped} hints were dropped");
}

#[test]
fn a_full_map_is_counted_and_makes_the_client_that_filled_it_incomplete_and_no_other() {
    if !bins::can_run("a map of 256 entries") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let crawler = deployment(&mut c, "crawler", 8080, 0);
    let quiet = deployment(&mut c, "quiet", 8080, 0);
    let api = deployment(&mut c, "api", 8080, 0);
    let address = c.pod(&api).addresses.0;
    let lab = lab(c).unwrap();
    let server =
        lab.start_on_internet("everything", Scenario { serve: vec![Serve::tcp(443)], ..Scenario::default() }).unwrap();
    server.wait_for("ready", std::time::Instant::now() + LIMIT).unwrap();
    let agent = Agent::start(&lab, 0, &["--flow-entries", "256"]).unwrap();
    let _api = start(&lab, vec![(&api, Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() })]).unwrap();
    let calls = vec![Call::new(&format!("{address}:8080"), How::Tcp, 10)];
    let mut first = start(&lab, vec![(&quiet, Scenario { after: calls, ..Scenario::default() })]).unwrap();
    go(&mut first).unwrap();
    let mut processes = start(&lab, vec![(&crawler, Scenario { after: flood(2_000), ..Scenario::default() })]).unwrap();
    go(&mut processes).unwrap();
    let truth = truth(&lab).unwrap();
    let snapshot = eventually(
        LIMIT,
        || agent.snapshot(),
        |s| {
            // Of the others nothing is missing.
            let observed = edges(s);
            for (edge, evidence) in truth.edges.iter().filter(|(e, _)| e.client != "lab/Deployment/crawler") {
                if observed.get(edge).map(|v| number(v, "opened")) != Some(evidence.opened) {
                    return Err(format!("{edge}: {:?}, not {}", observed.get(edge), evidence.opened));
                }
            }
            let incomplete = incomplete_workloads(s);
            if incomplete.contains("lab/Deployment/crawler") {
                Ok(())
            } else {
                Err(format!("incomplete: {incomplete:?}"))
            }
        },
    )
    .unwrap();
    assert_eq!(snapshot["coverage"]["complete"], false);
    assert_eq!(
        incomplete_workloads(&snapshot),
        BTreeSet::from(["lab/Deployment/crawler".to_owned()]),
        "{}",
        snapshot["coverage"]
    );
    let metric =
        |reason: &str| agent.metric(&format!(r#"guardrail_events_lost_total{{reason="{reason}",class="edge"}}"#));
    wait_until(LIMIT, "the loss is counted", || {
        let lost = metric("coarse_client").ok()? + metric("map_full").ok()?;
        (lost > 0.0).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}\n{}", snapshot["coverage"], agent.get("/metrics").unwrap().1));
    // And of the crawler nothing is invented.
    let observed = edges(&snapshot);
    for edge in observed.iter().filter(|(_, v)| happened(v)).map(|(e, _)| e) {
        assert!(truth.edges.contains_key(edge) || edge.server == "external/*", "{edge} is not true");
    }
}

#[test]
fn twenty_thousand_external_clients_of_one_pod_are_one_complete_edge() {
    if !bins::can_run("20,000 external clients") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let web = deployment(&mut c, "web", 8080, 0);
    let api = deployment(&mut c, "api", 8081, 0);
    let (web_address, api_address) = (c.pod(&web).addresses.0, c.pod(&api).addresses.0);
    let lab = lab(c).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let serving =
        |port: u16, after: Vec<Call>| Scenario { serve: vec![Serve::tcp(port)], after, ..Scenario::default() };
    let calls = vec![Call::new(&format!("{api_address}:8081"), How::Tcp, 30)];
    let mut pods = start(&lab, vec![(&api, serving(8081, vec![])), (&web, serving(8080, calls))]).unwrap();
    let crowd = (0..4u32)
        .map(|part| {
            let mut call = Call::new(&format!("{web_address}:8080"), How::Tcp, 5_000).pause(0, 0);
            call.payload_bytes = (1, 1);
            call.timeout_ms = 10_000;
            let first =
                std::net::Ipv4Addr::from(u32::from(std::net::Ipv4Addr::new(100, 64, 0, 0)) + part * 5_000).into();
            call.sources = Some(AddressRange { first, count: 5_000 });
            call
        })
        .collect();
    let crowd = lab.start_on_internet("crowd", Scenario { after: crowd, ..Scenario::default() }).unwrap();
    crowd.wait_for("ready", std::time::Instant::now() + LIMIT).unwrap();
    pods.push(crowd);
    go(&mut pods).unwrap();
    let truth = truth(&lab).unwrap();
    assert_eq!(truth.edges.keys().filter(|e| e.client.starts_with("external/")).count(), 20_000);
    eventually(
        LIMIT,
        || agent.snapshot(),
        |snapshot| {
            let observed = edges(snapshot);
            let external: Vec<_> = observed.iter().filter(|(e, _)| e.client.starts_with("external/")).collect();
            let [(edge, value)] = external[..] else { return Err(format!("{} external edges", external.len())) };
            if edge.client != "external/*" || edge.server != "lab/Deployment/web" || edge.port != 8080 {
                return Err(format!("the external edge is {edge}"));
            }
            if number(value, "opened") != 20_000 || value["supported"] != true {
                return Err(format!("the external edge says {value}"));
            }
            let inner: Vec<_> = observed.iter().filter(|(e, _)| !e.client.starts_with("external/")).collect();
            let [(edge, value)] = inner[..] else { return Err(format!("{} inner edges", inner.len())) };
            if edge.to_string() != "lab/Deployment/web -> lab/Deployment/api 8081/TCP" || number(value, "opened") != 30
            {
                return Err(format!("{edge}: {value}"));
            }
            if snapshot["coverage"]["complete"] != true { Err("not complete".to_owned()) } else { Ok(()) }
        },
    )
    .unwrap();
}
