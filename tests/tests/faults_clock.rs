//! The wall clock is set while the agent runs: names stay right, times stay in order, waits end,
//! files go on being written.

use std::time::{Duration, Instant};

use guardrail_graph::Timestamp;
use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    compare::{edges, number},
    lab::{Lab, process::AppProcess, wait_until},
    small::{cluster, deployment, eventually_true, lab, start, state, truth},
    trouble::WallClock,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// Every time in the snapshot is in order and no time is after the window.
fn sane(snapshot: &Value) {
    let intervals = snapshot["window"]["nodes"]["node-a"].as_array().expect("this node's window");
    let end = intervals.last().unwrap()["to"].as_str().unwrap();
    for interval in intervals {
        // RFC 3339 with the same offset sorts as text, but for fractions of differing length:
        // compared to the second.
        let (from, to) = (&interval["from"].as_str().unwrap()[..19], &interval["to"].as_str().unwrap()[..19]);
        assert!(from <= to, "{intervals:?}");
    }
    for (edge, value) in edges(snapshot) {
        let (first, last) = (&value["first_seen"].as_str().unwrap()[..19], &value["last_seen"].as_str().unwrap()[..19]);
        assert!(first <= last && last <= &end[..19], "{edge}: {value}, window to {end}");
    }
}

/// No epoch reaches over a step: none lasted for longer than this took, and none says that more was
/// observed.
fn no_epoch_reaches_over_a_step(agent: &Agent, took: Duration) {
    let list: Value = serde_json::from_str(&agent.get("/v1/epochs").unwrap().1).unwrap();
    let at = |value: &Value| value.as_str().unwrap().parse::<Timestamp>().unwrap();
    let mut times: Vec<_> =
        list["epochs"].as_array().unwrap().iter().map(|epoch| (at(&epoch["from"]), at(&epoch["to"]))).collect();
    let snapshot = agent.snapshot().unwrap();
    let windows = snapshot["window"]["nodes"]["node-a"].as_array().unwrap();
    times.extend(windows.iter().map(|window| (at(&window["from"]), at(&window["to"]))));
    for pod in snapshot["presence"].as_array().into_iter().flatten() {
        times.extend(Some((at(&pod["from"]), at(&pod["to"]))).filter(|_| pod["node"] == "node-a"));
    }
    assert!(times.len() > 1 && times.iter().all(|(from, to)| to.since(*from) < took), "{times:#?}");
}

/// The clock is set to and fro, and after each step another pod gets the address that a pod had
/// before. Each owner has a client of its own, so a call that is counted for the wrong owner is an
/// edge that never was.
fn stepped(distances: &[&str]) {
    let began = Instant::now();
    let mut c = cluster(&["node-a"]);
    let clients: Vec<_> = (0..=distances.len()).map(|i| deployment(&mut c, &format!("client-{i}"), 8080, 0)).collect();
    let early = deployment(&mut c, "early", 8080, 0);
    let heirs: Vec<_> = (0..distances.len()).map(|i| deployment(&mut c, &format!("heir-{i}"), 8080, 0)).collect();
    for heir in &heirs {
        c.pods.iter_mut().find(|p| &p.key() == heir).unwrap().present = false;
    }
    let address = c.pod(&early).addresses.0;
    let mut lab = lab(c).unwrap();
    let mut clock = None;
    let file = lab.directory.join("clock");
    let mut agent = Agent::start_prepared(&lab, 0, &["--state-interval", "1"], |command, _| {
        clock = Some(WallClock::give(command, file)?);
        Ok(())
    })
    .unwrap();
    let clock = clock.unwrap();
    let serve = || Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let mut owner = early;
    let mut serving = start(&lab, vec![(&owner, serve())]).unwrap();
    let call = |lab: &Lab, client: usize, round: usize| {
        let after = vec![Call::new(&format!("{address}:8080"), How::Tcp, 5)];
        let scenario = Scenario { after, ..Scenario::default() };
        let mut caller = lab.start_in_pod(&clients[client], &format!(":{round}"), scenario)?;
        caller.wait_for("ready", Instant::now() + LIMIT)?;
        caller.go()?;
        caller.wait_for("done", Instant::now() + LIMIT)?;
        anyhow::Ok(caller)
    };
    let mut callers = vec![call(&lab, 0, 0).unwrap()];
    sane(&eventually_true(&agent, &truth(&lab).unwrap()).unwrap());
    for (step, (distance, heir)) in distances.iter().zip(heirs).enumerate() {
        let exports = agent.metric("guardrail_export_last_success_timestamp_seconds").unwrap();
        let stored = wait_until(LIMIT, "a state", || state(&agent.state_dir).ok()).unwrap();
        let begun = stored["sources"][0]["start"].clone();
        clock.set(distance).unwrap();
        // Whoever has the address keeps it over the step.
        callers.push(call(&lab, step, 1).unwrap());
        sane(&eventually_true(&agent, &truth(&lab).unwrap()).unwrap());
        // Then somebody else gets it.
        serving.iter_mut().try_for_each(AppProcess::stop).unwrap();
        lab.remove_pod_cgroup(&owner).unwrap();
        lab.move_addresses(&owner, &heir).unwrap();
        lab.write_inventory().unwrap();
        owner = heir;
        serving = start(&lab, vec![(&owner, serve())]).unwrap();
        callers.push(call(&lab, step + 1, 0).unwrap());
        sane(&eventually_true(&agent, &truth(&lab).unwrap()).unwrap());
        wait_until(LIMIT, "exports and states go on", || {
            let now = agent.metric("guardrail_export_last_success_timestamp_seconds").ok()?;
            let epoch = agent.get("/v1/epochs").ok()?.1.matches("clock-step").count();
            let written = state(&agent.state_dir).ok()?["sources"][0]["start"].clone();
            (now != exports && epoch == step + 1 && written != begun).then_some(())
        })
        .unwrap_or_else(|e| panic!("after {distance}: {e}\n{}", agent.said()));
    }
    no_epoch_reaches_over_a_step(&agent, began.elapsed() + Duration::from_secs(60));
    let snapshot = agent.snapshot().unwrap();
    // Around each change of an owner some calls may be undecided, clock or no clock; nothing else
    // is.
    assert_eq!(snapshot["coverage"]["losses"].as_array().map(Vec::len), Some(0), "{}", snapshot["coverage"]);
    let unresolved = snapshot["coverage"]["unresolved"].as_array().unwrap();
    assert!(unresolved.iter().all(|u| u["reason"] == "ip_reuse"), "{unresolved:?}");
    assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
}

#[test]
fn a_clock_that_is_set_back_by_an_hour_and_more_costs_no_name_and_turns_no_time() {
    if bins::can_run("a clock that is set back") {
        stepped(&["-3600", "-7200"]);
    }
}

#[test]
fn a_clock_that_is_set_forward_and_back_again_costs_no_name_and_turns_no_time() {
    if bins::can_run("a clock that is set forward") {
        stepped(&["+3600", "+0"]);
    }
}

#[test]
fn a_flow_that_waits_for_its_pod_is_counted_in_time_although_the_clock_was_set_back() {
    if !bins::can_run("a wait over a step of the clock") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let stranger = deployment(&mut c, "stranger", 8080, 0);
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let mut lab = lab(c).unwrap();
    // The inventory does not know this pod, which has a network namespace and a cgroup all the
    // same.
    let index = lab.cluster.pods.iter().position(|p| p.key() == stranger).unwrap();
    lab.cluster.pods[index].present = false;
    lab.write_inventory().unwrap();
    lab.cluster.pods[index].present = true;
    let mut clock = None;
    let file = lab.directory.join("clock");
    let agent = Agent::start_prepared(&lab, 0, &[], |command, _| {
        clock = Some(WallClock::give(command, file)?);
        Ok(())
    })
    .unwrap();
    let calls = Scenario { after: vec![Call::new(&to, How::Tcp, 3)], ..Scenario::default() };
    let serve = Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let mut processes = start(&lab, vec![(&server, serve), (&stranger, calls)]).unwrap();
    guardrail_tests::small::go(&mut processes).unwrap();
    wait_until(LIMIT, "the flow waits", || agent.metric("guardrail_flows_pending").ok().filter(|n| *n > 0.0)).unwrap();
    clock.unwrap().set("-3600").unwrap();
    let ended = || agent.metric("guardrail_flows_pending").ok().filter(|n| *n == 0.0);
    wait_until(LIMIT, "the wait ends", ended).unwrap();
    let snapshot = agent.snapshot().unwrap();
    let unresolved = snapshot["coverage"]["unresolved"].as_array().unwrap();
    assert!(unresolved.iter().any(|u| u["reason"] == "pod_unknown" && number(u, "count") == 3), "{unresolved:?}");
    assert!(edges(&snapshot).is_empty(), "{:?}", edges(&snapshot));
}
