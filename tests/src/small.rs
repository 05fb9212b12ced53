//! Small labs for one question each: a few plain workloads on one or two nodes.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use guardrail_graph::{Snapshot, epoch::state::State};
use serde_json::Value;

use crate::{
    agent::Agent,
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    cluster::{Cluster, Kind, Port},
    compare::{Difference, compare, edges},
    lab::{Lab, process::AppProcess, wait_until},
    truth::Truth,
};

/// How long processes may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An empty cluster with a salt of its own.
#[must_use]
pub fn cluster(nodes: &[&str]) -> Cluster {
    Cluster::new(nodes, crate::app::log::now_ns())
}

/// Adds a Deployment with one pod on a node, serving `port` over TCP, and gives the pod's key.
pub fn deployment(cluster: &mut Cluster, name: &str, port: u16, node: usize) -> String {
    let ports = [Port { name: "main", protocol: "TCP", number: port }];
    cluster.workload("lab", Kind::Deployment, name, &ports, &[node]).remove(0)
}

/// The one edge of a [`pair`], in the lab's spelling.
pub const PAIR_EDGE: &str = "lab/Deployment/client -> lab/Deployment/server 8080/TCP";

/// A server, a client that holds one connection and makes 10 more each time it is told to go, and
/// their lab on one node.
///
/// # Errors
/// As [`lab`] and [`start`].
pub fn pair() -> Result<(Vec<AppProcess>, Lab)> {
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let lab = lab(c)?;
    let mut processes =
        start(&lab, vec![(&server, Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() })])?;
    let calls = Scenario {
        before: vec![Call::new(&to, How::Held, 1)],
        after: vec![Call::new(&to, How::Tcp, 10)],
        ..Scenario::default()
    };
    processes.extend(start(&lab, vec![(&client, calls)])?);
    Ok((processes, lab))
}

/// The edge of a [`pair`], if the snapshot has that one and no other.
///
/// # Errors
/// The edges that it has.
pub fn pair_edge(snapshot: &Value) -> std::result::Result<Value, String> {
    let all = edges(snapshot);
    match all.iter().collect::<Vec<_>>()[..] {
        [(edge, value)] if edge.to_string() == PAIR_EDGE => Ok(value.clone()),
        _ => Err(format!("{:?}", all.keys().map(ToString::to_string).collect::<Vec<_>>())),
    }
}

/// What serves these sockets.
#[must_use]
pub fn serving(serve: Vec<Serve>) -> Scenario {
    Scenario { serve, ..Scenario::default() }
}

/// What calls these addresses, so many times each, once told to go.
#[must_use]
pub fn calling(calls: &[(SocketAddr, u32)]) -> Scenario {
    let after = calls.iter().map(|(to, times)| Call::new(&to.to_string(), How::Tcp, *times)).collect();
    Scenario { after, ..Scenario::default() }
}

/// Makes the lab.
///
/// # Errors
/// As [`Lab::start`].
pub fn lab(cluster: Cluster) -> Result<Lab> {
    Lab::start(cluster, &bins::find("guardrail-lab-app"))
}

/// Starts processes in pods and waits until they are ready.
///
/// # Errors
/// One is not ready in time.
pub fn start(lab: &Lab, all: Vec<(&str, Scenario)>) -> Result<Vec<AppProcess>> {
    let processes: Vec<_> =
        all.into_iter().map(|(key, scenario)| lab.start_in_pod(key, "", scenario)).collect::<Result<_>>()?;
    wait(&processes, "ready")?;
    Ok(processes)
}

/// Tells processes to go, and waits until all are done.
///
/// # Errors
/// One is not done in time.
pub fn go(processes: &mut [AppProcess]) -> Result<()> {
    processes.iter_mut().try_for_each(AppProcess::go)?;
    wait(processes, "done")
}

/// Tells processes that were told before to do the same once more: the `n`th time.
///
/// # Errors
/// One is not done in time.
pub fn go_again(processes: &mut [AppProcess], n: usize) -> Result<()> {
    processes.iter_mut().try_for_each(AppProcess::go)?;
    let deadline = Instant::now() + PATIENCE;
    processes.iter().try_for_each(|p| p.wait_for_nth("done", n, deadline))
}

fn wait(processes: &[AppProcess], word: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    processes.iter().try_for_each(|p| p.wait_for(word, deadline))
}

/// The truth of a lab so far.
///
/// # Errors
/// The logs contradict each other.
pub fn truth(lab: &Lab) -> Result<Truth> {
    Truth::from_records(&lab.cluster, &lab.records()?)
}

/// Polls `snapshot` until it has what `wanted` asks for, and gives it.
///
/// # Errors
/// It does not within `limit`; the message has the last complaint.
pub fn eventually(
    limit: Duration,
    snapshot: impl Fn() -> Result<Value>,
    wanted: impl Fn(&Value) -> std::result::Result<(), String>,
) -> Result<Value> {
    let mut last = String::new();
    wait_until(limit, "the graph is as it must be", || {
        let current = match snapshot() {
            Ok(current) => current,
            Err(error) => {
                last = format!("{error:#}");
                return None;
            }
        };
        match wanted(&current) {
            Ok(()) => Some(current),
            Err(complaint) => {
                last = format!("{complaint}\ncoverage: {}", current["coverage"]);
                None
            }
        }
    })
    .with_context(|| last.clone())
}

/// Waits until an agent's graph equals the truth, and gives it.
///
/// # Errors
/// It does not; the message lists every difference with the log lines behind it.
pub fn eventually_true(agent: &Agent, truth: &Truth) -> Result<Value> {
    eventually(Duration::from_secs(20), || agent.snapshot(), |snapshot| same(&compare(snapshot, truth)))
}

/// No difference, or the list as text.
///
/// # Errors
/// The list.
pub fn same(difference: &Difference) -> std::result::Result<(), String> {
    if difference.is_empty() { Ok(()) } else { Err(difference.to_string()) }
}

/// The newest base of the state in a directory.
#[must_use]
pub fn base(directory: &Path) -> Option<PathBuf> {
    let number = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("state-")?.strip_suffix(".base")?.parse::<u64>().ok()
    };
    let paths = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    paths.filter_map(|path| Some((number(&path)?, path))).max().map(|(_, path)| path)
}

/// The graph that is stored in a directory.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn stored(directory: &Path) -> Result<Snapshot> {
    let base = base(directory).with_context(|| format!("no state in {}", directory.display()))?;
    let log = std::fs::read(base.with_extension("log")).unwrap_or_default();
    let whole = std::fs::read(&base).with_context(|| format!("cannot read {}", base.display()))?;
    let state = State::read(&whole, &log)?;
    Ok(state.document(state.at())?.snapshot())
}

/// [`stored`] as JSON.
///
/// # Errors
/// As [`stored`].
pub fn state(directory: &Path) -> Result<Value> {
    Ok(serde_json::to_value(stored(directory)?)?)
}
