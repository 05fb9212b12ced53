//! Two sidecars, the client's and the server's, at a thousand calls a second and more: nothing is
//! left at the proxies' ports, nothing is unresolved, every connection is counted.
//!
//! A call is three connections: the application's, which its proxy takes; the proxy's, which the
//! server's proxy takes; and that one's to the server. Callers pause between calls, so that the
//! machine is not full and the rate is that of a busy service, held for some time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Onward, Scenario, Serve},
    bins,
    cluster::{ServicePort, Target},
    compare::{edges, number},
    lab::{Lab, plane::Sidecar, process::AppProcess, wait_until},
    small::{cluster, deployment, eventually, go, serving, start, truth},
};

use crate::{
    LIMIT,
    measure::{cpu_seconds, give_ports, row},
};

const PLANE: Sidecar = Sidecar { inbound: 15006, outbound: Some(15001) };
/// Threads of the client that call, how often each does, and how long it pauses, in milliseconds.
const CALLERS: u32 = 24;
const TIMES: u32 = 750;
const PAUSE: (u32, u32) = (13, 18);
/// What is asked for: calls a second, for so long.
const RATE: f64 = 1_000.0;
const HELD: Duration = Duration::from_secs(10);

pub(crate) fn run() -> Result<()> {
    let mut c = cluster(&["node-a"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 0), deployment(&mut c, "client", 8080, 0));
    let http = ServicePort { name: "http", protocol: "TCP", port: 80, target: Target::Number(8080), node_port: None };
    let asked = format!("{}:80", c.service("lab", "meshed", "server", &[http]).addresses.0);
    let lab = Lab::start_on(PLANE, c, &bins::find("guardrail-lab-app"))?;
    let agent = Agent::start(&lab, 0, &["--export-interval", "3600"])?;
    let halves = || {
        let outbound = Onward::Outside { endpoints: BTreeMap::new() };
        serving(vec![
            Serve::Proxy { port: 15006, on: Onward::Inside { inner: 8080 } },
            Serve::Proxy { port: 15001, on: outbound },
        ])
    };
    let ready = |pod: &str| -> Result<AppProcess> {
        let proxy = lab.start_in_pod(pod, ":proxy", halves())?;
        proxy.wait_for("ready", Instant::now() + LIMIT)?;
        Ok(proxy)
    };
    let _proxies = [ready(&server)?, ready(&client)?];
    wait_until(LIMIT, "the program at getsockopt is attached", || {
        agent.said().contains("redirected connections are seen").then_some(())
    })?;
    let _server = start(&lab, vec![(&server, serving(vec![Serve::tcp(8080)]))])?;
    let call = Call { payload_bytes: (10, 200), ..Call::new(&asked, How::Tcp, TIMES).pause(PAUSE.0, PAUSE.1) };
    let calls = Scenario { after: vec![call; CALLERS as usize], ..Scenario::default() };
    let mut clients = start(&lab, vec![(&client, calls)])?;
    // The application and its proxy both call from here.
    give_ports(clients.last().context("a client")?.pid())?;
    let cpu = cpu_seconds(agent.pid())?;
    go(&mut clients)?;
    let truth = truth(&lab)?;
    let all = u64::from(CALLERS) * u64::from(TIMES);
    let made: u64 = truth.edges.values().map(|edge| edge.opened).sum();
    ensure!(made == all && truth.failed.is_empty(), "{made} of {all} calls, {} failed", truth.failed.len());
    let mut times: Vec<u64> = truth.edges.values().flat_map(|edge| edge.records.iter().map(|r| r.at_ns)).collect();
    times.sort_unstable();
    let took = Duration::from_nanos(times.last().unwrap_or(&0) - times.first().unwrap_or(&0));
    let rate = all as f64 / took.as_secs_f64();

    // The last of them are folded, and nothing waits for the answer to a proxy.
    let settled = |snapshot: &serde_json::Value| {
        let pending = agent.metric("guardrail_flows_pending").unwrap_or(f64::NAN);
        let opened: u64 = edges(snapshot).values().map(|value| number(value, "opened")).sum();
        if pending == 0.0 && opened >= all { Ok(()) } else { Err(format!("{opened} opened, {pending} wait")) }
    };
    let snapshot = eventually(LIMIT, || agent.snapshot(), settled)?;
    let spent = cpu_seconds(agent.pid())? - cpu;
    let seen = edges(&snapshot);
    let at_proxies = seen.keys().filter(|edge| edge.port == PLANE.inbound || Some(edge.port) == PLANE.outbound).count();
    let counted: u64 = seen.values().map(|value| number(value, "opened")).sum();
    let coverage = &snapshot["coverage"];
    let unresolved = coverage["unresolved"].as_array().map_or(0, Vec::len);
    let (_, page) = agent.get("/metrics")?;
    let reasons = page.lines().filter(|line| line.starts_with("guardrail_flows_unresolved_total{"));
    let ever: f64 = reasons.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum();
    row(
        &format!("{all} calls through two sidecars in {:.1} s", took.as_secs_f64()),
        &format!("{rate:.0} calls/s, {:.0} connections/s", 3.0 * rate),
        "≥ 1,000 calls/s for ≥ 10 s",
    );
    row("  edges at the proxies' ports", &at_proxies.to_string(), "0");
    row("  unresolved, in the graph and ever", &format!("{unresolved}, {ever:.0}"), "0, 0");
    row("  of them not counted", &(all.abs_diff(counted)).to_string(), "0");
    row("  edges", &seen.len().to_string(), "1");
    row("  complete", &coverage["complete"].to_string(), "true");
    row("  agent CPU per 10,000 calls", &format!("{:.0} ms", spent * 1e3 / (all as f64 / 1e4)), "");
    ensure!(
        at_proxies == 0 && unresolved == 0 && ever == 0.0 && counted == all && seen.len() == 1,
        "not what happened: {}\n{coverage}",
        seen.keys().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    );
    ensure!(coverage["complete"] == true, "not complete: {coverage}");
    ensure!(rate >= RATE && took >= HELD, "the machine is too slow or the run too short: it shows nothing");
    Ok(())
}
