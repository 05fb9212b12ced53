//! The start of the agent on a node with 100 pods whose sockets are open already.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Scenario, Serve},
    compare::{edges, number},
    lab::Lab,
    small::{cluster, deployment, go, lab, start},
};

use crate::measure::{median, row};

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
    let snapshot = agent.snapshot()?;
    let found = edges(&snapshot);
    let whole = found.values().filter(|e| number(e, "found") == u64::from(HELD)).count();
    ensure!(found.len() == PODS && whole == PODS, "{} edges found, {whole} with all their connections", found.len());
    row(&format!("start with {PODS} pods and their {} connections: edges found", PODS * HELD as usize), "all", "all");
    for (i, what) in ["socket inventory", "load the programs", "attach them", "exec to ready"]
        .into_iter()
        .zip([2usize, 0, 1, 3])
        .map(|(what, i)| (i, what))
    {
        let aim = if i == 2 { "≤ 250 ms" } else { "" };
        row(&format!("  {what}"), &format!("{:.0} ms (without sockets {:.0} ms)", full[i], empty[i]), aim);
    }
    Ok(())
}

/// Medians of the steps, then of the whole, in milliseconds.
fn rounds(lab: &Lab) -> Result<[f64; 4]> {
    let mut all: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let agent = Agent::start(lab, 0, &["--log", "guardrail_agent=debug"])?;
        all[3].push(began.elapsed().as_secs_f64() * 1e3);
        let said = agent.said();
        for (values, step) in all.iter_mut().zip(STEPS) {
            let value = said.split_whitespace().find_map(|word| word.strip_prefix(step)?.strip_prefix('='));
            values.push(value.with_context(|| format!("the agent's log has no {step}:\n{said}"))?.parse()?);
        }
    }
    Ok(all.map(|mut values| median(&mut values)))
}
