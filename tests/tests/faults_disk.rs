//! Disks that are full or read-only, directories that are gone or somebody else's: the graph goes
//! on, files stay whole, failures are counted.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use guardrail_tests::{
    agent::Agent,
    bins,
    lab::{process, wait_until},
    policies,
    small::{base, eventually_true, go, pair, pair_edge, state, truth},
    trouble,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);
/// Both kinds of files are written every second.
const OFTEN: [&str; 2] = ["--state-interval", "1"];

/// Whether the exported files let the pair's client in.
fn exported(directory: &Path) -> Option<()> {
    let files = policies::read(directory).ok()?;
    let (client, server) = (("lab", vec![("app", "client")]), ("lab", vec![("app", "server")]));
    policies::allows_ingress(&files, &client, &server, "TCP", 8080, "main").then_some(())
}

/// The names in a directory, of unfinished files too.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A file that will replace another one when it is whole.
fn is_temporary(name: &str) -> bool {
    name.starts_with(".guardrail-") && name != ".guardrail-files"
}

fn opened(state: &Value) -> u64 {
    pair_edge(state).map_or(0, |edge| edge["opened"].as_u64().unwrap_or(0))
}

#[test]
fn a_full_disk_leaves_the_earlier_files_whole_is_counted_and_costs_nothing_once_there_is_room() {
    if !bins::can_run("a full disk") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let mut agent = Agent::start_prepared(&lab, 0, &OFTEN, |command, directories| {
        trouble::small_disk(command, &[&directories.state, &directories.export], 512, "")
    })
    .unwrap();
    let (state_dir, export_dir) = (agent.seen_by_agent(&agent.state_dir), agent.seen_by_agent(&agent.export_dir));
    go(&mut processes).unwrap();
    wait_until(LIMIT, "the first 10 connections are on disk", || {
        (opened(&state(&state_dir).ok()?) == 10).then_some(())?;
        exported(&export_dir)
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", agent.said()));
    // Between two writes.
    let whole = || Some(names(&export_dir)).filter(|names| names.iter().all(|name| !is_temporary(name)));
    let before = wait_until(LIMIT, "no file is being written", whole).unwrap();

    let fillers = [&state_dir, &export_dir].map(|dir| trouble::fill_disk(dir, "filler").unwrap());
    let failures = || {
        let of = |what: &str| agent.metric(&format!("guardrail_{what}_failures_total")).ok();
        Some((of("state")?, of("export")?))
    };
    // What is written next may fit where the log ends; a log that is not as it was written does not
    // grow, and a new base needs room.
    let log = base(&state_dir).unwrap().with_extension("log");
    if log.exists() {
        fs::File::options().append(true).open(log).unwrap().write_all(&[0]).unwrap();
    }
    let earlier = failures().unwrap();
    processes[1].go().unwrap();
    processes[1].wait_for_nth("done", 2, Instant::now() + LIMIT).unwrap();
    // The graph itself needs no disk.
    eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    wait_until(LIMIT, "both failures are counted, more than once", || {
        failures().filter(|now| now.0 >= earlier.0 + 2.0 && now.1 >= earlier.1 + 2.0)
    })
    .unwrap_or_else(|e| panic!("{e}\n{:?}\n{}", failures(), agent.said()));
    let said = agent.said();
    for what in ["the state was not written, next try in 1 s", "the allow-lists were not written, next try in 1 s"] {
        assert!(said.lines().any(|l| l.contains(what) && l.contains("No space left")), "{what}:\n{said}");
    }
    let kept = state(&state_dir).unwrap();
    assert_eq!(opened(&kept), 10, "the earlier state is whole");
    exported(&export_dir).expect("the earlier export is whole");
    let mut with_filler = before.clone();
    with_filler.push("filler".to_owned());
    with_filler.sort();
    wait_until(LIMIT, "nothing half-written stays", || (names(&export_dir) == with_filler).then_some(()))
        .unwrap_or_else(|e| panic!("{e}: {:?}, not {with_filler:?}", names(&export_dir)));
    assert_eq!(agent.get("/readyz").unwrap().0, 200);

    for filler in fillers {
        fs::remove_file(filler).unwrap();
    }
    wait_until(LIMIT, "all 20 are on disk", || (opened(&state(&state_dir).ok()?) == 20).then_some(()))
        .unwrap_or_else(|e| panic!("{e}\n{}", agent.said()));
    assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
}

#[test]
fn a_state_directory_that_becomes_read_only_is_counted_and_tried_again() {
    if !bins::can_run("a state directory that becomes read-only") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let mut agent = Agent::start_prepared(&lab, 0, &OFTEN, |command, directories| {
        trouble::small_disk(command, &[&directories.state], 512, "")
    })
    .unwrap();
    let (inside, directory) = (agent.state_dir.display().to_string(), agent.seen_by_agent(&agent.state_dir));
    go(&mut processes).unwrap();
    wait_until(LIMIT, "the first 10 connections are on disk", || {
        (opened(&state(&directory).ok()?) == 10).then_some(())
    })
    .unwrap();
    agent.in_mount_namespace(&["mount", "-o", "remount,ro", &inside]).unwrap();
    let earlier = agent.metric("guardrail_state_failures_total").unwrap();
    processes[1].go().unwrap();
    processes[1].wait_for_nth("done", 2, Instant::now() + LIMIT).unwrap();
    eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    wait_until(LIMIT, "the failure is counted, more than once", || {
        agent.metric("guardrail_state_failures_total").ok().filter(|now| *now >= earlier + 2.0)
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", agent.said()));
    assert!(agent.said().contains("Read-only file system"), "{}", agent.said());
    assert_eq!(opened(&state(&directory).unwrap()), 10, "the good file stays");
    let written = agent.metric("guardrail_state_last_success_timestamp_seconds").unwrap();
    agent.in_mount_namespace(&["mount", "-o", "remount,rw", &inside]).unwrap();
    wait_until(LIMIT, "all 20 are on disk", || (opened(&state(&directory).ok()?) == 20).then_some(()))
        .unwrap_or_else(|e| panic!("{e}\n{}", agent.said()));
    // The metric follows the file.
    wait_until(LIMIT, "the success is told", || {
        agent.metric("guardrail_state_last_success_timestamp_seconds").ok().filter(|now| *now > written)
    })
    .unwrap();

    // At the end there is no next try: the exit code says that the last state is missing.
    agent.in_mount_namespace(&["mount", "-o", "remount,ro", &inside]).unwrap();
    assert_eq!(agent.terminate().unwrap().code(), Some(1));
    let said = agent.said();
    let last = said.lines().last().unwrap_or_default();
    assert!(last.contains("stopped, but") && last.contains("Read-only"), "{said}");
}

#[test]
fn a_read_only_directory_at_start_is_refused_with_the_option() {
    if !bins::can_run("read-only directories") {
        return;
    }
    let (_processes, lab) = pair().unwrap();
    for option in ["--state-dir", "--export-dir"] {
        let agent = Agent::spawn_prepared(&lab, 0, &[], |command, directories| {
            let directory = if option == "--state-dir" { &directories.state } else { &directories.export };
            trouble::small_disk(command, &[directory], 512, "ro")
        })
        .unwrap();
        let said = agent.refused().unwrap();
        assert!(said.contains(option) && said.contains("Read-only file system"), "{said}");
    }
}

#[test]
fn directories_that_are_removed_are_made_again() {
    if !bins::can_run("directories that are removed") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let agent = Agent::start(&lab, 0, &OFTEN).unwrap();
    wait_until(LIMIT, "the first files", || {
        (!policies::read(&agent.export_dir).ok()?.is_empty() && state(&agent.state_dir).is_ok()).then_some(())
    })
    .unwrap();
    for directory in [&agent.export_dir, &agent.state_dir] {
        fs::rename(directory, directory.with_extension("gone")).unwrap();
    }
    go(&mut processes).unwrap();
    wait_until(LIMIT, "the edge is in both places", || {
        (opened(&state(&agent.state_dir).ok()?) == 10).then_some(())?;
        exported(&agent.export_dir)
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", agent.said()));
}

#[test]
fn a_second_agent_with_the_same_state_directory_is_refused_and_the_first_goes_on() {
    if !bins::can_run("two agents with one state directory") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let mut first = Agent::start(&lab, 0, &OFTEN).unwrap();
    let stderr = lab.directory.join("second.stderr");
    let mut command = Command::new(bins::find("guardrail-agent"));
    command
        .args(["--node", "node-a", "--listen", "127.0.0.1:0", "--inventory"])
        .arg(lab.inventory())
        .arg("--cgroup-root")
        .arg(&lab.nodes[0].cgroup)
        .arg("--state-dir")
        .arg(&first.state_dir)
        .stderr(fs::File::create(&stderr).unwrap());
    let mut second = lab.spawn_on_node(0, "second", command).unwrap();
    let ended = process::wait(&mut second, LIMIT);
    if ended.is_err() {
        second.kill().unwrap();
    }
    let said = fs::read_to_string(&stderr).unwrap();
    assert_eq!(ended.unwrap().code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("--state-dir") && said.contains("another agent"), "{said}");
    go(&mut processes).unwrap();
    eventually_true(&first, &truth(&lab).unwrap()).unwrap();
    assert_eq!(first.terminate().unwrap().code(), Some(0));
}

/// A log that cannot be written must not cost the thread that has something to say: with this
/// filter all do, the one that reads the kernel's maps at each sweep.
#[test]
fn an_agent_whose_messages_nobody_takes_goes_on_and_its_exit_codes_stay() {
    if !bins::can_run("messages that nobody takes") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let mut agent = Agent::start_prepared(&lab, 0, &["--log", "debug"], |command, _| {
        command.stderr(full());
        Ok(())
    })
    .unwrap();
    go(&mut processes).unwrap();
    let snapshot = eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    assert_eq!(agent.terminate().unwrap().code(), Some(0));
    let refused = Command::new(bins::find("guardrail-agent"))
        .args(["--inventory", "/no/such/file"])
        .stderr(full())
        .status()
        .unwrap();
    assert_eq!(refused.code(), Some(2));
}
