//! Measures the agent: CPU per 10,000 connections on warm edges at the highest rate, and memory with 10,000 edges.
//!
//! Usage: `bench-agent [--seconds N]`, as root, from a release build. Connections cross two network namespaces (loopback would be no edge).

use std::{
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Scenario, Serve},
    compare::{edges, number},
    small::{cluster, deployment, eventually, go, lab, start, truth},
};

/// Connections of one client process in one round.
const ROUND: u32 = 50_000;
/// Edges for the memory figure.
const EDGES: u32 = 10_000;
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-agent: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<()> {
    // SAFETY: geteuid(2) cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("needs root: it makes network namespaces and cgroups, and loads eBPF programs");
    }
    if cfg!(debug_assertions) {
        eprintln!("bench-agent: a debug build measures nothing worth knowing; use cargo xtask bench agent");
    }
    for udp in ["off", "on"] {
        warm_edges(udp)?;
    }
    memory()
}

fn warm_edges(udp: &str) -> Result<()> {
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let clients: Vec<_> = (0..2).map(|n| deployment(&mut c, &format!("client-{n}"), 8080, 0)).collect();
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let lab = lab(c)?;
    let agent = Agent::start(&lab, 0, &["--udp", udp])?;
    let bare = Serve::TcpBare { bind: "[::]:8080".parse()? };
    let _server = start(&lab, vec![(&server, Scenario { serve: vec![bare], ..Scenario::default() })])?;
    let calls = |times| vec![Call { pause_ms: (0, 0), ..Call::new(&to, How::TcpBare, times) }];
    let load = |times| {
        clients.iter().map(|key| (key.as_str(), Scenario { after: calls(times), ..Scenario::default() })).collect()
    };
    // The edges are known before it counts.
    go(&mut start(&lab, load(100))?)?;
    let known = |expected: u64| {
        eventually(
            LIMIT,
            || agent.snapshot(),
            |snapshot| {
                let opened: u64 = edges(snapshot).values().map(|v| number(v, "opened")).sum();
                if opened == expected { Ok(()) } else { Err(format!("{opened} of {expected} connections are counted")) }
            },
        )
    };
    known(200)?;
    let mut processes = start(&lab, load(ROUND))?;
    let (cpu, begin) = (cpu_seconds(agent.pid())?, Instant::now());
    go(&mut processes)?;
    let elapsed = begin.elapsed().as_secs_f64();
    // The sweep that folds the last of them belongs to the price.
    known(200 + 2 * u64::from(ROUND))?;
    let spent = cpu_seconds(agent.pid())? - cpu;
    let connections = f64::from(2 * ROUND);
    println!(
        "warm edges, udp {udp:3}: {connections:.0} connections in {elapsed:.1} s = {:.0}/s; agent CPU {:.1} ms per 10,000 connections",
        connections / elapsed,
        spent * 1e3 / (connections / 1e4)
    );
    Ok(())
}

fn memory() -> Result<()> {
    let mut c = cluster(&["node-a"]);
    let client = deployment(&mut c, "crawler", 8080, 0);
    let lab = lab(c)?;
    let server =
        lab.start_on_internet("everything", Scenario { serve: vec![Serve::tcp(443)], ..Scenario::default() })?;
    server.wait_for("ready", Instant::now() + LIMIT)?;
    let agent = Agent::start(&lab, 0, &["--new-keys-per-cgroup", "60000"])?;
    let before = rss_mib(agent.pid())?;
    let mut call =
        Call { pause_ms: (0, 0), spread: EDGES, payload_bytes: (1, 1), ..Call::new("100.64.0.0:443", How::Tcp, EDGES) };
    call.timeout_ms = 10_000;
    go(&mut start(&lab, vec![(&client, Scenario { after: vec![call], ..Scenario::default() })])?)?;
    let expected = truth(&lab)?.edges.len() as u64;
    guardrail_tests::lab::wait_until(LIMIT, "every edge is in the graph", || {
        agent.metric("guardrail_edges").ok().filter(|n| *n >= expected as f64)
    })?;
    let with_edges = settled_rss_mib(agent.pid())?;
    let bytes = agent.get("/v1/graph")?.1.len();
    let peak = status_mib(agent.pid(), "VmHWM:")?;
    let after_graph = settled_rss_mib(agent.pid())?;
    println!(
        "memory: {before:.1} MiB at start, {with_edges:.1} MiB with {expected} edges, {after_graph:.1} MiB after /v1/graph ({:.1} MiB of JSON); peak {peak:.1} MiB",
        bytes as f64 / f64::from(1 << 20)
    );
    Ok(())
}

/// User and system time of a process so far, in seconds (fields 14 and 15 of `/proc/PID/stat`).
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit_once(") ").context("a stat line")?.1.split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    // SAFETY: sysconf(3) with a known name.
    Ok(ticks / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64)
}

fn rss_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmRSS:")
}

/// Resident memory some seconds later: an answer is built, sent, and its memory given back at the agent's next ticks.
fn settled_rss_mib(pid: u32) -> Result<f64> {
    std::thread::sleep(Duration::from_secs(6));
    rss_mib(pid)
}

fn status_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line =
        status.lines().find_map(|l| l.strip_prefix(field)).with_context(|| format!("no {field} of the agent"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
