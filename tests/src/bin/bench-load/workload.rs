//! What a workload loses by being watched: rounds with and without the agent in turn.
//!
//! Client and server share a CPU and work in turn, so that one operation is the work of both ends
//! and no waiting. The machine is quick and slow by more than what is looked for: so a pair of
//! neighbouring rounds gives a ratio, and the middle one of all pairs counts. The first decile of
//! the latencies is an operation that nothing disturbed: what the programs in the kernel add to it
//! hides behind no noise.

use std::{mem::MaybeUninit, time::Instant};

use anyhow::{Context as _, Result, ensure};
use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Measured, Scenario, Serve},
    lab::process::AppProcess,
    small::{cluster, deployment, go_again, lab, start},
};

use crate::measure::{give_ports, median, row};

/// Pairs of rounds; the first warms up and is left out.
const PAIRS: usize = 31;
/// The CPU of client and server. The agent may run on any.
const CPU: usize = 0;
/// A document that takes a service some time to read and to write.
const DOCUMENT: u32 = 8_000;

/// What a round comes to: an operation's first decile, median and 99th percentile, and the time of
/// all by their number (µs); CPU time of both ends, and of the agent, by operations (µs).
type Round = [f64; 6];

pub(crate) fn run() -> Result<()> {
    for udp in ["off", "on"] {
        println!(
            "UDP programs {udp}; median of {} pairs of rounds, without / with the agent (aim: ratios ≥ 0.99)",
            PAIRS - 1
        );
        compare("connections, reset at once", Measured::Reset, 0, 5_000, udp)?;
        compare("connection, small request, close", Measured::Connection, 80, 3_000, udp)?;
        compare("connection, document, close", Measured::Connection, DOCUMENT, 1_000, udp)?;
        compare("small request on an open connection", Measured::Kept, 80, 10_000, udp)?;
        compare("document on an open connection", Measured::Kept, DOCUMENT, 1_500, udp)?;
    }
    Ok(())
}

fn compare(what: &str, measured: Measured, bytes: u32, times: u32, udp: &str) -> Result<()> {
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let lab = lab(c)?;
    let here = || Scenario { cpu: Some(CPU), ..Scenario::default() };
    let serve = vec![Serve::Measured { bind: "[::]:8080".parse()? }];
    let calls = vec![Call {
        pause_ms: (0, 0),
        payload_bytes: (bytes, bytes),
        ..Call::new(&to, How::Measured(measured), times)
    }];
    let mut processes = start(&lab, vec![(&server, Scenario { serve, ..here() })])?;
    processes.extend(start(&lab, vec![(&client, Scenario { after: calls, ..here() })])?);
    give_ports(processes.last().context("a client")?.pid())?;
    let mut pairs = Vec::new();
    for pair in 0..PAIRS {
        let mut rounds = [Round::default(); 2];
        // Which comes first changes, so that a drift of the machine favours neither.
        for watched in [pair % 2 == 0, pair % 2 == 1] {
            let agent =
                if watched { Some(Agent::start(&lab, 0, &["--udp", udp, "--export-interval", "30"])?) } else { None };
            let n = 2 * pair + if watched == (pair % 2 == 0) { 1 } else { 2 };
            rounds[usize::from(watched)] = round(&mut processes, n, times, agent.as_ref())?;
        }
        if pair > 0 {
            pairs.push(rounds);
        }
    }
    println!(" {what}");
    // Of a column: the figure without, that with, and their ratio, which is better the greater it
    // is.
    let show = |name: &str, of: &dyn Fn(&Round) -> f64| {
        let middle = |each: &dyn Fn(&[Round; 2]) -> f64| median(&mut pairs.iter().map(each).collect::<Vec<_>>());
        let (without, with) = (middle(&|pair| of(&pair[0])), middle(&|pair| of(&pair[1])));
        let ratio = middle(&|pair| of(&pair[0]) / of(&pair[1]));
        row(&format!("  {name}: {without:.1} / {with:.1} µs"), &format!("{ratio:.3}"), "");
    };
    show("undisturbed operation (first decile)", &|r| r[0]);
    show("median latency", &|r| r[1]);
    show("99 % latency", &|r| r[2]);
    show("time per operation (throughput)", &|r| r[3]);
    show("CPU per operation, both ends", &|r| r[4]);
    show("CPU per operation, with the agent's", &|r| r[4] + r[5]);
    Ok(())
}

fn round(processes: &mut [AppProcess], n: usize, times: u32, agent: Option<&Agent>) -> Result<Round> {
    let cpu = |processes: &[AppProcess]| processes.iter().map(|p| cpu_micros(p.pid())).sum::<Result<f64>>();
    let agent_cpu = || agent.map_or(Ok(0.0), |agent| cpu_micros(agent.pid()));
    let (before, agent_before, begin) = (cpu(processes)?, agent_cpu()?, Instant::now());
    let [_, client @ ..] = processes else { unreachable!("a server and a client") };
    go_again(client, n)?;
    let elapsed = begin.elapsed().as_secs_f64() * 1e6;
    let (after, agent_after) = (cpu(processes)?, agent_cpu()?);
    let said = processes.last().and_then(|p| p.said("took-ns")).context("the client measures")?;
    let took: Vec<f64> = said.split(' ').map(|ns| Ok(ns.parse::<f64>()? / 1e3)).collect::<Result<_>>()?;
    ensure!(took.len() == 3, "three times: {said}");
    let per = |micros: f64| micros / f64::from(times);
    Ok([took[0], took[1], took[2], per(elapsed), per(after - before), per(agent_after - agent_before)])
}

/// CPU time of a process so far, in microseconds: `/proc/PID/stat` knows it to ten milliseconds
/// only.
fn cpu_micros(pid: u32) -> Result<f64> {
    let mut clock = 0;
    // SAFETY: writes the id of the process's clock.
    let found = unsafe { libc::clock_getcpuclockid(libc::pid_t::try_from(pid)?, &raw mut clock) };
    ensure!(found == 0, "no CPU clock of process {pid}: {}", std::io::Error::from_raw_os_error(found));
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: writes the time, which is read if the call succeeds.
    let time = unsafe {
        ensure!(libc::clock_gettime(clock, time.as_mut_ptr()) == 0, "process {pid} has no CPU clock any more");
        time.assume_init()
    };
    Ok(time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3)
}
