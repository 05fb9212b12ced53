//! The highest connection rate, what it costs the agent, and that nothing is lost.

use std::time::Instant;

use anyhow::{Result, ensure};
use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Measured, Scenario, Serve},
    compare::{edges, number},
    small::{cluster, deployment, eventually, go, lab, start},
};

use crate::{
    LIMIT,
    measure::{cpu_seconds, row},
};

/// Connections of one client process.
const ROUND: u32 = 100_000;

pub(crate) fn run() -> Result<()> {
    ["off", "on"].into_iter().try_for_each(warm_edges)
}

fn warm_edges(udp: &str) -> Result<()> {
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let clients: Vec<_> = (0..2).map(|n| deployment(&mut c, &format!("client-{n}"), 8080, 0)).collect();
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let lab = lab(c)?;
    let agent = Agent::start(&lab, 0, &["--udp", udp, "--export-interval", "30"])?;
    let measured = Serve::Measured { bind: "[::]:8080".parse()? };
    let _server = start(&lab, vec![(&server, Scenario { serve: vec![measured], ..Scenario::default() })])?;
    let calls = |times| vec![Call { pause_ms: (0, 0), ..Call::new(&to, How::Measured(Measured::Reset), times) }];
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
    let snapshot = known(200 + 2 * u64::from(ROUND))?;
    let spent = cpu_seconds(agent.pid())? - cpu;
    ensure!(snapshot["coverage"]["complete"] == true, "not complete: {}", snapshot["coverage"]);
    let connections = f64::from(2 * ROUND);
    row(&format!("connections on warm edges, UDP {udp}"), &format!("{:.0}/s", connections / elapsed), "");
    row("  of them not counted", "0", "0");
    row("  agent CPU per 10,000 connections", &format!("{:.1} ms", spent * 1e3 / (connections / 1e4)), "");
    Ok(())
}
