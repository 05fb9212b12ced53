//! An agent that is killed around the ends of epochs, under load: what its successors answer at the
//! end is what happened, to the connection, and no file of a closed epoch ever changes.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use guardrail_graph::{Timestamp, snapshot::span::EVERYTHING};
use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    compare::number,
    lab::{Lab, bpffs::BpfFs, process::AppProcess, wait_until},
    small::{cluster, deployment, eventually, eventually_true, go_again, lab, pair_edge, start, state, truth},
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
    // The hooks were there all the time that ever was: what is missing is what the clock was set
    // over.
    let times = |what: &str| -> Vec<(Timestamp, Timestamp)> {
        let times = snapshot["window"][what]["node-a"].as_array().unwrap_or_else(|| panic!("{snapshot}"));
        let at = |value: &serde_json::Value| value.as_str().unwrap().parse().unwrap();
        times.iter().map(|time| (at(&time["from"]), at(&time["to"]))).collect()
    };
    let holes: Vec<_> = times("nodes").windows(2).map(|pair| (pair[0].1, pair[1].0)).collect();
    assert_eq!(holes, times("steps"));
    assert!(!holes.is_empty());
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
    // Three days later: the last 24 hours, unless asked.
    clock.set("+96h").unwrap();
    let epochs = |path| {
        let snapshot: serde_json::Value = serde_json::from_str(&agent.get(path).ok()?.1).ok()?;
        Some(snapshot["sources"].as_array()?.len())
    };
    wait_until(LIMIT, "a day without yesterday's epochs", || (epochs("/v1/graph")? == 1).then_some(())).unwrap();
    assert!(epochs(EVERYTHING).unwrap() > known.len());
    assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
}

/// Calls of the client each time it is told to go.
const CALLS: u32 = 10;

/// A client that calls a server when it is told to, and holds nothing.
fn calling() -> (Lab, Vec<AppProcess>) {
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let lab = lab(c).unwrap();
    let serve = Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let mut processes = start(&lab, vec![(&server, serve)]).unwrap();
    let calls = Scenario { after: vec![Call::new(&to, How::Tcp, CALLS)], ..Scenario::default() };
    processes.extend(start(&lab, vec![(&client, calls)]).unwrap());
    (lab, processes)
}

/// How far the end of an epoch is, as the agent's words and files show it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Said,
    NextBegun,
    Next,
    FileBegun,
    File,
    State,
}

impl Step {
    const ALL: [Self; 6] = [Self::Said, Self::NextBegun, Self::Next, Self::FileBegun, Self::File, Self::State];

    /// Whether it is this far, or further; `before`: files of epochs before this one ended.
    fn is_reached(self, agent: &Agent, before: usize) -> bool {
        let begun = |dir: &Path| {
            let mut names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
            names.any(|name| name.to_string_lossy().starts_with(".guardrail-"))
        };
        let dir = &agent.state_dir;
        let next = || {
            let mut names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
            names.any(|path| path.extension().is_some_and(|ending| ending == "next"))
        };
        let file = || {
            let entries = fs::read_dir(dir.join("epochs")).into_iter().flatten().flatten();
            entries.filter(|entry| entry.path().extension().is_some_and(|suffix| suffix == "epoch")).count() > before
        };
        match self {
            Self::Said => agent.said().contains("the epoch ends"),
            Self::NextBegun => begun(dir) || next() || file(),
            Self::Next => next() || file(),
            Self::FileBegun => begun(&dir.join("epochs")) || file(),
            Self::File => file(),
            Self::State => file() && !next(),
        }
    }
}

/// Kills the agent at each step of an epoch's end. Everything was on disk before.
fn is_killed_at_every_step(lab: &Lab, processes: &mut [AppProcess], arguments: &[&str]) {
    let (mut agent, mut clock) = start_at(lab, 0, arguments);
    for (hours, step) in (1..).zip(Step::ALL) {
        go_again(&mut processes[1..], hours as usize).unwrap();
        let counted = |snapshot: &serde_json::Value| {
            let opened = number(&pair_edge(snapshot)?, "opened");
            let all = u64::from(CALLS * hours);
            if opened == all { Ok(()) } else { Err(format!("{step:?}: {opened} of {all}")) }
        };
        eventually(LIMIT, || agent.snapshot(), counted).unwrap();
        // Of two writes that end from here on the second began here.
        let written = || agent.metric("guardrail_state_last_success_timestamp_seconds").unwrap_or_default();
        let mut last = written();
        for _ in 0..2 {
            last = wait_until(LIMIT, "a state", || Some(written()).filter(|at| *at > last)).unwrap();
        }
        let before = files(&agent.state_dir).len();
        clock.set(&format!("+{}", hours * 3_600)).unwrap();
        let deadline = Instant::now() + LIMIT;
        // At once: what a step leaves may be there for a moment only.
        while !step.is_reached(&agent, before) {
            assert!(Instant::now() < deadline, "{step:?}");
        }
        agent.crash().unwrap();
        drop(agent);
        (agent, clock) = start_at(lab, hours, arguments);
        eventually(LIMIT, || agent.snapshot(), counted).unwrap();
    }
    assert!(files(&agent.state_dir).len() >= 2, "epochs ended");
    assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
}

/// How far a write of the state is, as its files show it.
#[derive(Clone, Copy, Debug)]
enum Written {
    /// The log is longer.
    Log,
    /// All that is on disk is known to be so until later.
    Touched,
    /// A new base is begun, in its place beside the old one, and alone.
    BaseBegun,
    Base,
    BaseAlone,
}

/// What the state's files show: bases with their length and time, the length of logs, files that
/// are begun.
#[derive(Debug, PartialEq)]
struct Files {
    bases: BTreeMap<String, SystemTime>,
    log: u64,
    begun: bool,
}

impl Files {
    fn of(dir: &Path) -> Self {
        let mut files = Self { bases: BTreeMap::new(), log: 0, begun: false };
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (Ok(name), Ok(found)) = (entry.file_name().into_string(), entry.metadata()) else { continue };
            files.begun |= name.starts_with(".guardrail-");
            if name.ends_with(".log") {
                files.log += found.len();
            } else if name.ends_with(".base") {
                files.bases.insert(name, found.modified().unwrap());
            }
        }
        files
    }
}

impl Written {
    const ALL: [Self; 5] = [Self::Log, Self::Touched, Self::BaseBegun, Self::Base, Self::BaseAlone];

    /// Whether it is this far, or further, since the files were as `before`.
    fn is_reached(self, dir: &Path, before: &Files) -> bool {
        let now = Files::of(dir);
        let is_new = now.bases.keys().any(|base| !before.bases.contains_key(base));
        match self {
            Self::Log => now.log != before.log || is_new,
            Self::Touched => now.bases != before.bases,
            Self::BaseBegun => now.begun || is_new,
            Self::Base => is_new,
            Self::BaseAlone => is_new && now.bases.len() == 1,
        }
    }
}

/// Kills the agent at each step of an append and of a new base, with connections on the way to the
/// disk: they are found in the kernel with pins, and without are there or not, but never twice.
fn is_killed_while_it_writes(lab: &Lab, processes: &mut [AppProcess], arguments: &[&str], is_pinned: bool) {
    let mut agent = Agent::start(lab, 0, arguments).unwrap();
    let (mut least, mut most) = (0, 0);
    for (round, step) in (1..).zip(Written::ALL) {
        let base = matches!(step, Written::BaseBegun | Written::Base | Written::BaseAlone);
        wait_until(LIMIT, "a state", || state(&agent.state_dir).ok()).unwrap();
        if base {
            // Without its log a base is not what was written, and a new one is.
            let logs = fs::read_dir(&agent.state_dir).unwrap().flatten().map(|entry| entry.path());
            let logs: Vec<_> = logs.filter(|path| path.extension().is_some_and(|ending| ending == "log")).collect();
            go_again(&mut processes[1..], round).unwrap();
            if logs.is_empty() {
                let dir = agent.state_dir.clone();
                wait_until(LIMIT, "a log", || (Files::of(&dir).log > 0).then_some(())).unwrap();
            }
        }
        let before = Files::of(&agent.state_dir);
        if base {
            for entry in fs::read_dir(&agent.state_dir).unwrap().flatten() {
                if entry.path().extension().is_some_and(|ending| ending == "log") {
                    let log = fs::File::options().append(true).open(entry.path()).unwrap();
                    std::io::Write::write_all(&mut &log, &[0]).unwrap();
                }
            }
        } else {
            go_again(&mut processes[1..], round).unwrap();
        }
        most += u64::from(CALLS);
        let deadline = Instant::now() + LIMIT;
        while !step.is_reached(&agent.state_dir, &before) {
            assert!(Instant::now() < deadline, "{step:?}: {before:?}, {:?}", Files::of(&agent.state_dir));
        }
        agent.crash().unwrap();
        drop(agent);
        agent = Agent::start(lab, 0, arguments).unwrap();
        if is_pinned {
            least = most;
        }
        let counted = |snapshot: &serde_json::Value| {
            let opened = pair_edge(snapshot).map_or(0, |edge| number(&edge, "opened"));
            if (least..=most).contains(&opened) {
                Ok(opened)
            } else {
                Err(format!("{step:?}: {opened} of {least} to {most}"))
            }
        };
        eventually(LIMIT, || agent.snapshot(), |snapshot| counted(snapshot).map(drop)).unwrap();
        let opened = counted(&agent.snapshot().unwrap()).unwrap();
        (least, most) = (opened, opened);
    }
    assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
}

#[test]
fn an_agent_with_pins_that_is_killed_at_any_step_of_a_write_counts_everything_once() {
    if !bins::can_run("crashes while the state is written, with pins") {
        return;
    }
    let (lab, mut processes) = calling();
    let pins = BpfFs::mount(&lab.directory).unwrap().pins();
    let arguments = ["--state-interval", "1", "--pin", pins.to_str().unwrap()];
    is_killed_while_it_writes(&lab, &mut processes, &arguments, true);
}

#[test]
fn an_agent_without_pins_that_is_killed_at_any_step_of_a_write_counts_nothing_twice() {
    if !bins::can_run("crashes while the state is written, without pins") {
        return;
    }
    let (lab, mut processes) = calling();
    is_killed_while_it_writes(&lab, &mut processes, &["--state-interval", "1"], false);
}

#[test]
fn an_agent_without_pins_that_is_killed_at_any_step_of_an_epoch_s_end_keeps_what_was_on_disk_once() {
    if !bins::can_run("crashes around the ends of epochs without pins") {
        return;
    }
    let (lab, mut processes) = calling();
    is_killed_at_every_step(&lab, &mut processes, &["--state-interval", "1"]);
}

#[test]
fn an_agent_with_pins_that_is_killed_at_any_step_of_an_epoch_s_end_counts_everything_once() {
    if !bins::can_run("crashes around the ends of epochs with pins") {
        return;
    }
    let (lab, mut processes) = calling();
    let pins = BpfFs::mount(&lab.directory).unwrap().pins();
    is_killed_at_every_step(&lab, &mut processes, &["--state-interval", "1", "--pin", pins.to_str().unwrap()]);
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
