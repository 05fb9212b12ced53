//! Faults while running: restarts, broken state, directories that go away.

use std::{fs, time::Duration};

use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    compare::{edges, has_mark, number},
    lab::{Lab, process::AppProcess, wait_until},
    policies,
    small::{cluster, deployment, eventually, eventually_true, go, lab, start, state, truth},
};
use serde_json::Value;

/// A server, a client that holds a connection and made 10 more, and the lab.
fn pair() -> (Vec<AppProcess>, Lab) {
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let lab = lab(c).unwrap();
    let mut processes =
        start(&lab, vec![(&server, Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() })]).unwrap();
    let calls = Scenario {
        before: vec![Call::new(&to, How::Held, 1)],
        after: vec![Call::new(&to, How::Tcp, 10)],
        ..Scenario::default()
    };
    processes.extend(start(&lab, vec![(&client, calls)]).unwrap());
    (processes, lab)
}

fn the_edge(snapshot: &Value) -> Result<Value, String> {
    let all = edges(snapshot);
    match all.iter().collect::<Vec<_>>()[..] {
        [(edge, value)] if edge.to_string() == "lab/Deployment/client -> lab/Deployment/server 8080/TCP" => {
            Ok(value.clone())
        }
        _ => Err(format!("{:?}", all.keys().map(ToString::to_string).collect::<Vec<_>>())),
    }
}

#[test]
fn a_restart_continues_the_graph_and_its_counts() {
    if !bins::can_run("a restart with state") {
        return;
    }
    let (mut processes, lab) = pair();
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    go(&mut processes).unwrap();
    eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
    let before = the_edge(&state(&agent.state_dir).unwrap()).unwrap();
    drop(agent);
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    let restored = eventually(Duration::from_secs(10), || agent.snapshot(), |s| the_edge(s).map(drop)).unwrap();
    assert_eq!(number(&the_edge(&restored).unwrap(), "opened"), 10);
    processes[1].go().unwrap();
    let grown = eventually(
        Duration::from_secs(20),
        || agent.snapshot(),
        |s| match the_edge(s)? {
            edge if number(&edge, "opened") == 20 => Ok(()),
            edge => Err(edge.to_string()),
        },
    )
    .unwrap();
    let after = the_edge(&grown).unwrap();
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
    let (mut processes, lab) = pair();
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    go(&mut processes).unwrap();
    eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    agent.terminate().unwrap();
    let directory = agent.state_dir.clone();
    drop(agent);
    let whole = fs::read(directory.join("state.json")).unwrap();
    let mut flipped = whole.clone();
    flipped[0] = 0xff;
    for (what, bytes) in [
        ("cut off", &whole[..whole.len() / 2]),
        ("binary", &flipped[..]),
        ("empty", b""),
        ("other JSON", b"{\"kind\":\"List\"}"),
    ] {
        fs::write(directory.join("state.json"), bytes).unwrap();
        let mut agent = Agent::start(&lab, 0, &[]).unwrap_or_else(|e| panic!("{what}: {e:#}"));
        let warnings: Vec<_> =
            agent.said().lines().filter(|l| l.contains("WARN") && l.contains("set aside")).map(str::to_owned).collect();
        assert_eq!(warnings.len(), 1, "{what}: {}", agent.said());
        let kept = fs::read_dir(&directory)
            .unwrap()
            .flatten()
            .any(|e| e.file_name() != "state.json" && fs::read(e.path()).is_ok_and(|content| content == bytes));
        assert!(kept, "{what}: the unusable state is kept somewhere in {}", directory.display());
        // It observes: the connection that is still held is found again.
        eventually(Duration::from_secs(10), || agent.snapshot(), |s| the_edge(s).map(drop)).unwrap();
        assert_eq!(agent.terminate().unwrap().code(), Some(0), "{what}");
        assert!(the_edge(&state(&directory).unwrap()).is_ok(), "{what}: a whole state is written again");
    }
}

#[test]
fn an_export_directory_that_goes_away_is_counted_and_retried_while_observing_goes_on() {
    if !bins::can_run("an export directory that goes away") {
        return;
    }
    let (mut processes, lab) = pair();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let limit = Duration::from_secs(20);
    wait_until(limit, "the first export", || policies::read(&agent.export_dir).ok().filter(|f| !f.is_empty())).unwrap();
    // Root may write anywhere, so permissions cannot deny it; a file in place of the directory does.
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
