//! Names: the right pod, also when it is hard to tell.

use guardrail_tests::{
    agent::Agent,
    app::log::Outcome,
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    compare::{edges, happened},
    small::{cluster, deployment, eventually, eventually_true, go, lab, start, truth},
    truth::Truth,
};
use std::time::{Duration, Instant};

#[test]
fn a_passive_open_belongs_to_its_listener_while_another_pod_spins_on_the_same_cpu() {
    if !bins::can_run("passive opens beside a spinning pod") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let spinner = deployment(&mut c, "spinner", 8080, 0);
    let address = c.pod(&server).addresses.0;
    let lab = lab(c).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let on_cpu_0 = |scenario: Scenario| Scenario { cpu: Some(0), ..scenario };
    let calls = vec![Call::new(&format!("{address}:8080"), How::Tcp, 300).pause(0, 2)];
    let mut processes = start(
        &lab,
        vec![
            (&server, on_cpu_0(Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() })),
            (&spinner, on_cpu_0(Scenario { spin: true, ..Scenario::default() })),
            (&client, Scenario { after: calls, ..Scenario::default() }),
        ],
    )
    .unwrap();
    go(&mut processes).unwrap();
    let truth = truth(&lab).unwrap();
    let snapshot = eventually_true(&agent, &truth).unwrap();
    let (_, edge) = edges(&snapshot).into_iter().next().expect("one edge");
    assert_eq!(edge["seen_by"], serde_json::json!(["client", "server"]), "both ends are on this node");
}

#[test]
fn an_address_that_passes_to_another_pod_gives_both_edges_and_no_other() {
    if !bins::can_run("an address that changes its owner") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let old = deployment(&mut c, "old", 8080, 0);
    let new = deployment(&mut c, "new", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    c.pods.iter_mut().find(|p| p.key() == new).unwrap().present = false;
    let address = c.pod(&old).addresses.0;
    let mut lab = lab(c).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let serve = || Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let mut first = start(&lab, vec![(&old, serve())]).unwrap();
    let calls = vec![Call::new(&format!("{address}:8080"), How::Tcp, u32::MAX).pause(2, 4).timeout(200)];
    let mut caller = start(&lab, vec![(&client, Scenario { after: calls, ..Scenario::default() })]).unwrap();
    for process in &mut caller {
        process.go().unwrap();
    }
    let reached = |lab: &guardrail_tests::lab::Lab, key: &str| {
        let key = key.to_owned();
        let records = lab.records().unwrap();
        guardrail_tests::lab::wait_until(Duration::from_secs(30), "calls arrive", || {
            let count = lab.records().ok()?.iter().filter(|r| r.process == key && r.id.is_some()).count();
            (count > 50).then_some(count)
        })
        .unwrap_or_else(|e| panic!("{e}; {} records", records.len()))
    };
    reached(&lab, &old);
    // The old pod dies, its address goes to the new one, and only then does the inventory say so.
    // The client never stops calling.
    first.iter_mut().try_for_each(guardrail_tests::lab::process::AppProcess::stop).unwrap();
    lab.remove_pod_cgroup(&old).unwrap();
    lab.move_addresses(&old, &new).unwrap();
    let _second = start(&lab, vec![(&new, serve())]).unwrap();
    reached(&lab, &new);
    lab.write_inventory().unwrap();
    caller[0].enough().unwrap();
    caller[0].wait_for("done", Instant::now() + Duration::from_secs(30)).unwrap();
    // A call that the old pod's end cut off is left out at both ends: it adds nothing to the many
    // before it.
    let mut records = lab.records().unwrap();
    let broken: Vec<_> = records.iter().filter(|r| r.outcome == Outcome::Broken).filter_map(|r| r.id.clone()).collect();
    records.retain(|r| r.id.as_ref().is_none_or(|id| !broken.contains(id)));
    let truth = Truth::from_records(&lab.cluster, &records).unwrap();
    let expected: Vec<_> = truth.edges.keys().map(ToString::to_string).collect();
    assert_eq!(
        expected,
        [
            "lab/Deployment/client -> lab/Deployment/new 8080/TCP",
            "lab/Deployment/client -> lab/Deployment/old 8080/TCP"
        ]
    );
    let exactly = |snapshot: &serde_json::Value| {
        let observed: Vec<_> =
            edges(snapshot).into_iter().filter(|(_, v)| happened(v)).map(|(e, _)| e.to_string()).collect();
        if observed == expected { Ok(()) } else { Err(format!("{observed:?}")) }
    };
    eventually(Duration::from_secs(20), || agent.snapshot(), exactly).unwrap();
}
