//! An agent that crashes again and again under load, with pins: what its successors show at the end
//! is what happened, to the connection.

use std::{path::Path, process::Command, time::Duration};

use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    compare::{edges, number},
    lab::{Lab, bpffs::BpfFs, process::AppProcess, wait_until},
    small::{cluster, deployment, eventually, eventually_true, lab, start, truth},
    truth::{Edge, Evidence},
};

const LIMIT: Duration = Duration::from_secs(60);

/// Clients that hold connections, call a server over and over, send datagrams, and reach 600
/// servers on the internet.
fn busy() -> (Lab, Vec<AppProcess>) {
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let crawler = deployment(&mut c, "crawler", 8080, 0);
    let address = c.pod(&server).addresses.0;
    let lab = lab(c).unwrap();
    let internet = Scenario { serve: vec![Serve::tcp(443)], ..Scenario::default() };
    let everything = lab.start_on_internet("everything", internet).unwrap();
    everything.wait_for("ready", std::time::Instant::now() + LIMIT).unwrap();
    let serve = Scenario { serve: vec![Serve::tcp(8080), Serve::udp(8081)], ..Scenario::default() };
    let mut processes = start(&lab, vec![(&server, serve)]).unwrap();
    let calls = Scenario {
        before: vec![Call::new(&format!("{address}:8080"), How::Held, 3)],
        after: vec![
            Call::new(&format!("{address}:8080"), How::Tcp, 3_000).pause(0, 2),
            Call::new(&format!("{address}:8081"), How::UdpConnected, 1_000).pause(0, 6),
        ],
        ..Scenario::default()
    };
    let mut crawl = Call::new("100.64.0.0:443", How::Tcp, 600).pause(0, 10);
    crawl.spread = 600;
    let crawl = Scenario { after: vec![crawl], ..Scenario::default() };
    processes.extend(start(&lab, vec![(&client, calls), (&crawler, crawl)]).unwrap());
    processes.push(everything);
    (lab, processes)
}

fn start_pinned(lab: &Lab, pins: &Path, extra: &[&str]) -> Agent {
    let pins = pins.to_str().expect("a path");
    Agent::start(lab, 0, &[&["--pin", pins, "--state-interval", "1"], extra].concat()).unwrap()
}

fn until_more(agent: &Agent, edges: f64) {
    wait_until(LIMIT, "more edges", || agent.metric("guardrail_edges").ok().filter(|now| *now >= edges)).unwrap();
    // Both are due every second: neither may keep the other from being written.
    for written in ["guardrail_state_last_success_timestamp_seconds", "guardrail_export_last_success_timestamp_seconds"]
    {
        wait_until(LIMIT, written, || agent.metric(written).ok().filter(|at| *at > 0.0)).unwrap();
    }
}

fn until_done(processes: &[AppProcess]) {
    let deadline = std::time::Instant::now() + LIMIT;
    for process in processes {
        process.wait_for("done", deadline).unwrap();
    }
}

#[test]
fn an_agent_that_is_killed_over_and_over_under_load_loses_no_edge_and_no_connection() {
    if !bins::can_run("crashes with pins") {
        return;
    }
    let (lab, mut processes) = busy();
    let pins = BpfFs::mount(&lab.directory).unwrap().pins();
    let mut agent = start_pinned(&lab, &pins, &[]);
    for process in &mut processes {
        process.go().unwrap();
    }
    // Crashes and an orderly restart, each once there is more to lose.
    for (more, is_crash) in [(50.0, true), (120.0, true), (250.0, false), (400.0, true)] {
        until_more(&agent, more);
        if is_crash {
            agent.crash().unwrap();
        } else {
            assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
        }
        drop(agent);
        agent = start_pinned(&lab, &pins, &[]);
    }
    until_done(&processes);
    let truth = truth(&lab).unwrap();
    assert_eq!(truth.edges.len(), 602);
    let snapshot = eventually_true(&agent, &truth).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    let window = &snapshot["window"]["nodes"]["node-a"];
    assert_eq!(window.as_array().map(Vec::len), Some(1), "the hooks were there all the time: {window}");

    let unpin = || Command::new(bins::find("guardrail-agent")).arg("unpin").arg(&pins).output().unwrap();
    let refused = unpin();
    assert_eq!(refused.status.code(), Some(2), "an agent runs");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another agent uses"), "{refused:?}");
    let held = agent.bpf_ids().unwrap();
    assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
    assert_eq!(held.still_there().unwrap().programs, held.programs, "what is pinned outlives the agent");
    let removed = unpin();
    assert_eq!(removed.status.code(), Some(0), "{removed:?}");
    wait_until(LIMIT, "the programs go with their names", || {
        held.still_there().unwrap().programs.is_empty().then_some(())
    })
    .unwrap();
}

#[test]
fn an_agent_with_other_settings_goes_on_without_a_gap_and_misses_no_edge() {
    if !bins::can_run("other settings with pins") {
        return;
    }
    let (lab, mut processes) = busy();
    let pins = BpfFs::mount(&lab.directory).unwrap().pins();
    let mut agent = start_pinned(&lab, &pins, &[]);
    for process in &mut processes {
        process.go().unwrap();
    }
    // The maps of each are drained into those of the next, also if it crashes before that is
    // stored.
    for (more, settings) in [(100.0, "8192"), (250.0, "16384"), (400.0, "8192")] {
        until_more(&agent, more);
        agent.crash().unwrap();
        drop(agent);
        agent = start_pinned(&lab, &pins, &["--ring-bytes", settings]);
    }
    until_done(&processes);
    let truth = truth(&lab).unwrap();
    // While one set of programs takes over from the other, a connection may be counted by both,
    // never by none.
    let snapshot = eventually(
        LIMIT,
        || agent.snapshot(),
        |snapshot| {
            let observed = edges(snapshot);
            let fewer = |(edge, evidence): &(&Edge, &Evidence)| match observed.get(*edge) {
                Some(value) => edge.protocol == "TCP" && number(value, "opened") < evidence.opened,
                None => true,
            };
            match truth.edges.iter().find(fewer) {
                None => Ok(()),
                Some((edge, evidence)) => Err(format!("{edge}: {:?}, not {}", observed.get(edge), evidence.opened)),
            }
        },
    )
    .unwrap();
    let observed = edges(&snapshot);
    assert_eq!(observed.keys().collect::<Vec<_>>(), truth.edges.keys().collect::<Vec<_>>(), "none is invented");
    let twice: u64 = truth
        .edges
        .iter()
        .filter(|(edge, _)| edge.protocol == "TCP")
        .map(|(edge, evidence)| number(&observed[edge], "opened") - evidence.opened)
        .sum();
    // Attaching and detaching a tracepoint each wait for an RCU grace period, some tens of
    // milliseconds.
    assert!(twice <= 360, "{twice} of 3,603 connections were counted twice over three changes");
    assert_eq!(snapshot["window"]["nodes"]["node-a"].as_array().map(Vec::len), Some(1), "{}", snapshot["window"]);
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
}
