//! Faults while running: restarts, broken state, directories that go away.

use std::{fs, time::Duration};

use guardrail_tests::{
    agent::Agent,
    bins,
    compare::{has_mark, number},
    lab::wait_until,
    policies,
    small::{base, eventually, eventually_true, go, pair, pair_edge, state, truth},
};

#[test]
fn a_restart_continues_the_graph_and_its_counts() {
    if !bins::can_run("a restart with state") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    go(&mut processes).unwrap();
    eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
    let before = pair_edge(&state(&agent.state_dir).unwrap()).unwrap();
    drop(agent);
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    let restored = eventually(Duration::from_secs(10), || agent.snapshot(), |s| pair_edge(s).map(drop)).unwrap();
    assert_eq!(number(&pair_edge(&restored).unwrap(), "opened"), 10);
    processes[1].go().unwrap();
    let grown = eventually(
        Duration::from_secs(20),
        || agent.snapshot(),
        |s| match pair_edge(s)? {
            edge if number(&edge, "opened") == 20 => Ok(()),
            edge => Err(edge.to_string()),
        },
    )
    .unwrap();
    let after = pair_edge(&grown).unwrap();
    assert_eq!(after["first_seen"], before["first_seen"], "{after}");
    assert!(has_mark(&after, "found-at-start"));
    let intervals = grown["window"]["nodes"]["node-a"].as_array().cloned().unwrap_or_default();
    assert_eq!(intervals.len(), 2, "nobody watched between the two runs: {}", grown["window"]);
    assert_eq!(agent.terminate().unwrap().code(), Some(0));
}

#[test]
fn a_state_that_is_corrupt_or_cut_off_is_set_aside_with_a_warning() {
    if !bins::can_run("a broken state") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    go(&mut processes).unwrap();
    eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    agent.terminate().unwrap();
    let directory = agent.state_dir.clone();
    drop(agent);
    let whole = fs::read(base(&directory).unwrap()).unwrap();
    let mut flipped = whole.clone();
    flipped[0] = 0xff;
    for (what, bytes) in [
        ("cut off", &whole[..whole.len() / 2]),
        ("binary", &flipped[..]),
        ("empty", b""),
        ("other JSON", b"{\"kind\":\"List\"}"),
    ] {
        let broken = base(&directory).unwrap();
        fs::write(&broken, bytes).unwrap();
        let mut agent = Agent::start(&lab, 0, &[]).unwrap_or_else(|e| panic!("{what}: {e:#}"));
        let warnings: Vec<_> =
            agent.said().lines().filter(|l| l.contains("WARN") && l.contains("set aside")).map(str::to_owned).collect();
        assert_eq!(warnings.len(), 1, "{what}: {}", agent.said());
        let kept = fs::read_dir(&directory)
            .unwrap()
            .flatten()
            .any(|e| e.path() != broken && fs::read(e.path()).is_ok_and(|content| content == bytes));
        assert!(kept, "{what}: the unusable state is kept somewhere in {}", directory.display());
        // It observes: the connection that is still held is found again.
        eventually(Duration::from_secs(10), || agent.snapshot(), |s| pair_edge(s).map(drop)).unwrap();
        assert_eq!(agent.terminate().unwrap().code(), Some(0), "{what}");
        assert!(pair_edge(&state(&directory).unwrap()).is_ok(), "{what}: a whole state is written again");
    }
}

#[test]
fn an_export_directory_that_goes_away_is_counted_and_retried_while_observing_goes_on() {
    if !bins::can_run("an export directory that goes away") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let limit = Duration::from_secs(20);
    wait_until(limit, "the first export", || policies::read(&agent.export_dir).ok().filter(|f| !f.is_empty())).unwrap();
    // Root may write anywhere, so permissions cannot deny it; a file in place of the directory
    // does.
    let aside = agent.export_dir.with_extension("aside");
    fs::rename(&agent.export_dir, &aside).unwrap();
    fs::write(&agent.export_dir, "in the way").unwrap();
    go(&mut processes).unwrap();
    eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    wait_until(limit, "the failed export is counted", || {
        agent.metric("guardrail_export_failures_total").ok().filter(|n| *n >= 1.0)
    })
    .unwrap();
    assert!(agent.said().contains("WARN"), "{}", agent.said());
    fs::remove_file(&agent.export_dir).unwrap();
    fs::rename(&aside, &agent.export_dir).unwrap();
    wait_until(limit, "the edge is exported after all", || {
        let files = policies::read(&agent.export_dir).ok()?;
        let client = ("lab", vec![("app", "client")]);
        let server = ("lab", vec![("app", "server")]);
        policies::allows_ingress(&files, &client, &server, "TCP", 8080, "main").then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", agent.said()));
}
