//! Many distinct edges: none lost, how much memory, and how soon a new one is visible.

use std::{collections::BTreeMap, net::Ipv4Addr, thread, time::Instant};

use anyhow::{Result, ensure};
use guardrail_tests::{
    agent::Agent,
    app::{
        log::{Side, now_ns},
        scenario::{Call, How, Measured, Scenario, Serve},
    },
    compare::edges,
    lab::{Lab, wait_until},
    small::{cluster, deployment, go, lab, start},
};

use crate::{
    LIMIT,
    measure::{cpu_seconds, forget_peak, median, peak_mib, row, settled_rss_mib},
};

/// First address of the servers, of which there are as many as edges.
const FIRST: u32 = u32::from_be_bytes([100, 64, 0, 0]);
/// Clients among which the edges are divided.
const CLIENTS: u32 = 4;

pub(crate) fn run() -> Result<()> {
    memory(10_000, "≤ 25 MiB")?;
    memory(100_000, "≤ 60 MiB")
}

fn crawlers(edges: u32) -> Result<(Lab, Vec<String>, guardrail_tests::lab::process::AppProcess)> {
    let mut c = cluster(&["node-a"]);
    let clients: Vec<_> = (0..CLIENTS).map(|n| deployment(&mut c, &format!("crawler-{n}"), 8080, 0)).collect();
    let lab = lab(c)?;
    ensure!(edges <= 100_000, "100.64.0.0/15 has that many addresses");
    let serve = vec![Serve::Measured { bind: "[::]:443".parse()? }];
    let server = lab.start_on_internet("everything", Scenario { serve, ..Scenario::default() })?;
    server.wait_for("ready", Instant::now() + LIMIT)?;
    Ok((lab, clients, server))
}

fn memory(count: u32, aim: &str) -> Result<()> {
    let (lab, clients, _server) = crawlers(count)?;
    let room = ["--flow-entries", "131072", "--new-keys-per-cgroup", "60000", "--export-interval", "3600"];
    let agent = Agent::start(&lab, 0, &room)?;
    let at_start = (settled_rss_mib(agent.pid())?, peak_mib(agent.pid())?);
    forget_peak(agent.pid())?;
    let part = count / CLIENTS;
    let calls = |n: u32| {
        let to = format!("{}:443", Ipv4Addr::from(FIRST + n * part));
        vec![Call { pause_ms: (0, 0), spread: part, ..Call::new(&to, How::Measured(Measured::Reset), part) }]
    };
    let load = (0..).zip(&clients).map(|(n, key)| (key.as_str(), Scenario { after: calls(n), ..Scenario::default() }));
    let mut processes = start(&lab, load.collect())?;
    let (cpu, began) = (cpu_seconds(agent.pid())?, Instant::now());
    go(&mut processes)?;
    let elapsed = began.elapsed().as_secs_f64();
    wait_until(LIMIT, "every edge is in the graph", || {
        agent.metric("guardrail_edges").ok().filter(|n| *n >= f64::from(count))
    })?;
    let spent = cpu_seconds(agent.pid())? - cpu;
    drop(processes);
    let with_edges = (settled_rss_mib(agent.pid())?, peak_mib(agent.pid())?);
    forget_peak(agent.pid())?;
    let (status, page) = agent.get("/metrics")?;
    let scraped = peak_mib(agent.pid())?;
    ensure!(status == 200, "/metrics answers {status}");
    forget_peak(agent.pid())?;
    let began = Instant::now();
    let (status, json) = agent.get("/v1/graph")?;
    let fetched = began.elapsed();
    ensure!(status == 200, "/v1/graph answers {status}");
    let one = peak_mib(agent.pid())?;
    forget_peak(agent.pid())?;
    let answers = thread::scope(|scope| {
        let readers: Vec<_> = (0..8).map(|_| scope.spawn(|| agent.get("/v1/graph"))).collect();
        readers.into_iter().map(|r| r.join().expect("no reader panics")).collect::<Result<Vec<_>>>()
    })?;
    let eight = peak_mib(agent.pid())?;
    let refused = answers.iter().filter(|(status, _)| *status != 200).count();
    let snapshot: serde_json::Value = serde_json::from_str(&json)?;
    let there = edges(&snapshot).len();
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    row(
        &format!("{count} distinct edges, opened at {:.0}/s", f64::from(count) / elapsed),
        &format!("{there} in the graph"),
        &count.to_string(),
    );
    let coverage = &snapshot["coverage"];
    row("  complete", &coverage["complete"].to_string(), "true");
    if coverage["complete"] != true {
        println!("  {coverage}");
    }
    row("  agent CPU per 10,000 new edges", &format!("{:.0} ms", spent * 1e3 / (f64::from(count) / 1e4)), "");
    row("  resident memory at start (peak)", &format!("{:.1} ({:.1}) MiB", at_start.0, at_start.1), "");
    row("  … with the edges (peak meanwhile)", &format!("{:.1} ({:.1}) MiB", with_edges.0, with_edges.1), aim);
    row(&format!("  … peak of a scrape ({:.1} MiB of text)", mib(page.len())), &format!("{scraped:.1} MiB"), "");
    let what = format!("  … peak of /v1/graph ({:.1} MiB in {:.1} s)", mib(json.len()), fetched.as_secs_f64());
    row(&what, &format!("{one:.1} MiB"), "");
    row(&format!("  … peak of eight at once ({refused} refused)"), &format!("{eight:.1} MiB"), "");
    row("  … afterwards", &format!("{:.1} MiB", settled_rss_mib(agent.pid())?), aim);
    ensure!(there == count as usize, "{there} edges, not {count}");
    Ok(())
}

/// From a connection's end at the client to the answer of `/v1/graph` that has its edge.
pub(crate) fn visible() -> Result<()> {
    for busy in [false, true] {
        let (lab, clients, _server) = crawlers(40)?;
        let served = Scenario { serve: vec![Serve::tcp(444)], ..Scenario::default() };
        let server = lab.start_on_internet("timed", served)?;
        server.wait_for("ready", Instant::now() + LIMIT)?;
        let agent = Agent::start(&lab, 0, &["--export-interval", "30"])?;
        let timed = Call { spread: 40, payload_bytes: (1, 1), ..Call::new("100.64.0.0:444", How::Tcp, 40) };
        let timed = Scenario { after: vec![timed.pause(150, 250)], ..Scenario::default() };
        let mut processes = start(&lab, vec![(&clients[0], timed)])?;
        let noise = Call { pause_ms: (0, 0), ..Call::new("100.65.0.1:443", How::Measured(Measured::Reset), u32::MAX) };
        let noise = Scenario { after: vec![noise], ..Scenario::default() };
        let mut others = if busy { start(&lab, vec![(&clients[1], noise)])? } else { Vec::new() };
        for process in &mut others {
            process.go()?;
        }
        processes[0].go()?;
        let mut first_seen: BTreeMap<String, u64> = BTreeMap::new();
        wait_until(LIMIT, "every edge was seen", || {
            let snapshot = agent.snapshot().ok()?;
            let now = now_ns();
            for edge in edges(&snapshot).keys().filter(|e| e.port == 444) {
                first_seen.entry(edge.server.clone()).or_insert(now);
            }
            (first_seen.len() == 40).then_some(())
        })?;
        let mut delays = Vec::new();
        for record in lab.records()?.iter().filter(|r| r.side == Side::Client && r.remote.port() == 444) {
            let seen = first_seen.get(&format!("external/{}", record.remote.ip()));
            ensure!(seen.is_some(), "{record:?} was not seen");
            delays.extend(seen.map(|seen| seen.saturating_sub(record.at_ns) as f64 / 1e6));
        }
        let longest = delays.iter().copied().fold(0.0, f64::max);
        let what = if busy { "while another client connects as fast as it can" } else { "on a quiet node" };
        let figure = format!("median {:.0} ms, longest {longest:.0} ms", median(&mut delays));
        row(&format!("from exchange to visible edge, {what}"), &figure, "≤ 1 s");
    }
    Ok(())
}
