//! An agent that is killed around the ends of epochs, under load: what its successors answer at the
//! end is what happened, to the connection, and no file of a closed epoch ever changes.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use guardrail_graph::Timestamp;
use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    lab::{Lab, bpffs::BpfFs, process::AppProcess, wait_until},
    small::{cluster, deployment, eventually_true, lab, start, state, truth},
    trouble::WallClock,
};

const LIMIT: Duration = Duration::from_secs(60);

/// A client that holds connections, calls a server over and over and sends datagrams.
fn busy() -> (Lab, Vec<AppProcess>) {
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let address = c.pod(&server).addresses.0;
    let lab = lab(c).unwrap();
    let serve = Scenario { serve: vec![Serve::tcp(8080), Serve::udp(8081)], ..Scenario::default() };
    let mut processes = start(&lab, vec![(&server, serve)]).unwrap();
    let calls = Scenario {
        before: vec![Call::new(&format!("{address}:8080"), How::Held, 3)],
        after: vec![
            Call::new(&format!("{address}:8080"), How::Tcp, 4_000).pause(0, 3),
            Call::new(&format!("{address}:8081"), How::UdpConnected, 1_000).pause(0, 10),
        ],
        ..Scenario::default()
    };
    processes.extend(start(&lab, vec![(&client, calls)]).unwrap());
    (lab, processes)
}

/// The clock is set, so that an epoch ends.
fn start_at(lab: &Lab, hours: u32, arguments: &[&str]) -> (Agent, WallClock) {
    let mut clock = None;
    let file = lab.directory.join("clock");
    let agent = Agent::start_prepared(lab, 0, arguments, |command, _| {
        let given = WallClock::give(command, file)?;
        given.set(&format!("+{}", hours * 3_600))?;
        clock = Some(given);
        Ok(())
    });
    (agent.unwrap(), clock.unwrap())
}

fn files(state: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(state.join("epochs")).into_iter().flatten().flatten();
    let epochs = entries.filter(|e| e.path().extension().is_some_and(|x| x == "epoch"));
    epochs.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

#[test]
fn an_agent_that_is_killed_around_the_ends_of_epochs_loses_nothing_and_counts_nothing_twice() {
    if !bins::can_run("crashes around the ends of epochs") {
        return;
    }
    let (lab, mut processes) = busy();
    let pins = BpfFs::mount(&lab.directory).unwrap().pins();
    let arguments = ["--pin", pins.to_str().unwrap(), "--state-interval", "1"];
    let (mut agent, mut clock) = start_at(&lab, 0, &arguments);
    for process in &mut processes {
        process.go().unwrap();
    }
    let mut known = BTreeMap::new();
    for round in 1..=6 {
        wait_until(LIMIT, "a state", || state(&agent.state_dir).ok()).unwrap();
        clock.set(&format!("+{}", round * 3_600)).unwrap();
        match round % 3 {
            // Somewhere before, while it is closed and written, and after.
            0 => {}
            1 => wait_until(LIMIT, "the end of an epoch", || agent.said().contains("the epoch ends").then_some(()))
                .unwrap(),
            _ => wait_until(LIMIT, "its file", || (files(&agent.state_dir).len() > known.len()).then_some(())).unwrap(),
        }
        agent.crash().unwrap();
        for (name, bytes) in files(&agent.state_dir) {
            let before = known.entry(name.clone()).or_insert_with(|| bytes.clone());
            assert_eq!(*before, bytes, "{name} changed");
        }
        drop(agent);
        (agent, clock) = start_at(&lab, round, &arguments);
    }
    assert!(known.len() >= 2, "{} epochs", known.len());
    let deadline = Instant::now() + LIMIT;
    for process in &processes {
        process.wait_for("done", deadline).unwrap();
    }
    let snapshot = eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    let window = &snapshot["window"]["nodes"]["node-a"];
    assert_eq!(window.as_array().map(Vec::len), Some(1), "the hooks were there all the time: {window}");
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    let now = files(&agent.state_dir);
    for (name, bytes) in &known {
        assert_eq!(now.get(name), Some(bytes), "{name} changed");
    }
    // Each can be asked for as it lies there.
    let (status, list) = agent.get("/v1/epochs").unwrap();
    assert_eq!(status, 200, "{list}");
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let ids = list["epochs"].as_array().unwrap().iter().map(|e| format!("{}.epoch", e["id"].as_str().unwrap()));
    assert_eq!(ids.collect::<std::collections::BTreeSet<_>>(), now.into_keys().collect());
    assert_eq!(agent.get("/v1/graph?since=1h&until=2h").unwrap().0, 400);
    assert_eq!(agent.get("/v1/graph?until=2001-01-01").unwrap().0, 404);
    assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
}

/// What happens while programs are loaded and attached may be missed: it is not observed yet. A
/// link's name in the BPF file system is as old as the link.
#[test]
fn the_window_begins_when_the_last_hook_is_attached() {
    if !bins::can_run("the beginning of the window") {
        return;
    }
    let lab = lab(cluster(&["node-a"])).unwrap();
    let pins = BpfFs::mount(&lab.directory).unwrap().pins();
    let agent = Agent::start(&lab, 0, &["--pin", pins.to_str().unwrap()]).unwrap();
    let generation = fs::read_dir(&pins).unwrap().flatten().find(|entry| entry.path().join("links").is_dir()).unwrap();
    let links = fs::read_dir(generation.path().join("links")).unwrap().flatten();
    let attached: Vec<SystemTime> = links.map(|link| link.metadata().unwrap().modified().unwrap()).collect();
    assert!(attached.len() > 3, "{attached:?}");
    let last = attached.into_iter().max().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let last = Timestamp::from_unix_ns(i64::try_from(last.as_nanos()).unwrap());
    let window = &agent.snapshot().unwrap()["window"];
    let from: Timestamp = window["from"].as_str().unwrap().parse().unwrap();
    assert!(from >= last, "{window} begins before {last}");
}
