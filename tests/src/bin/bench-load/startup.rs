//! The start of the agent on a node with 100 pods whose sockets are open already.

use std::time::Instant;

use anyhow::{Context as _, Result};
use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Scenario, Serve},
    compare::{edges, number},
    lab::Lab,
    small::{cluster, deployment, eventually, go, lab, start},
};

use crate::{
    LIMIT,
    measure::{median, row},
};

const PODS: usize = 100;
/// Connections that each pod holds to its neighbour: each is a socket at both ends.
const HELD: u32 = 10;
const ROUNDS: usize = 5;
/// Steps of the start, as the agent's log calls them.
const STEPS: [&str; 3] = ["load_ms", "attach_ms", "sockets_ms"];

pub(crate) fn run() -> Result<()> {
    let mut c = cluster(&["node-a"]);
    let pods: Vec<_> = (0..PODS).map(|n| deployment(&mut c, &format!("pod-{n}"), 8080, 0)).collect();
    let addresses: Vec<_> = pods.iter().map(|key| c.pod(key).addresses.0).collect();
    let lab = lab(c)?;
    let empty = rounds(&lab)?;
    let scenario = |n: usize| {
        let to = format!("{}:8080", addresses[(n + 1) % PODS]);
        let held = Call { pause_ms: (0, 0), ..Call::new(&to, How::Held, HELD) };
        Scenario { serve: vec![Serve::tcp(8080)], after: vec![held], ..Scenario::default() }
    };
    let mut processes = start(&lab, pods.iter().enumerate().map(|(n, key)| (key.as_str(), scenario(n))).collect())?;
    go(&mut processes)?;
    let full = rounds(&lab)?;
    let agent = Agent::start(&lab, 0, &[])?;
    let all_found = |snapshot: &serde_json::Value| {
        let found = edges(snapshot);
        let whole = found.values().filter(|e| number(e, "found") >= u64::from(HELD)).count();
        if whole == PODS { Ok(()) } else { Err(format!("{} edges found, {whole} with all connections", found.len())) }
    };
    eventually(LIMIT, || agent.snapshot(), all_found)?;
    row(&format!("start with {PODS} pods and their {} connections: edges found", PODS * HELD as usize), "all", "all");
    for (i, what, aim) in [
        (2, "socket inventory", "≤ 250 ms"),
        (0, "loading the programs", ""),
        (1, "attaching them", ""),
        (3, "exec to ready", ""),
    ] {
        row(&format!("  {what}"), &format!("{:.0} ms (without sockets {:.0} ms)", full[i], empty[i]), aim);
    }
    Ok(())
}

/// Medians of the steps, then of the whole, in milliseconds.
fn rounds(lab: &Lab) -> Result<[f64; 4]> {
    let mut all: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let agent = Agent::start(lab, 0, &["--log", "guardrail_agent=debug,guardrail_kernel=debug"])?;
        all[3].push(began.elapsed().as_secs_f64() * 1e3);
        let said = agent.said();
        for (values, step) in all.iter_mut().zip(STEPS) {
            let value = said.split_whitespace().find_map(|word| word.strip_prefix(step)?.strip_prefix('='));
            values.push(value.with_context(|| format!("the agent's log has no {step}:\n{said}"))?.parse()?);
        }
    }
    Ok(all.map(|mut values| median(&mut values)))
}
