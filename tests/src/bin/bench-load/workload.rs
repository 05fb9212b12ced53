//! What a workload loses by being watched: rounds with and without the agent in turn.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow};
use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Scenario, Serve},
    lab::{netns::enter, process::AppProcess},
    small::{cluster, deployment, go_again, lab, start},
};

use crate::measure::{cpu_seconds, median, row};

/// Pairs of rounds; the first of either kind warms up and is left out.
const PAIRS: usize = 9;

/// Per round: operations a second, median and 99th percentile of a connection in µs, CPU seconds of the workload.
type Round = [f64; 4];

pub(crate) fn run() -> Result<()> {
    for udp in ["off", "on"] {
        compare("connections, reset at once (the worst case)", How::TcpBare, 40_000, udp)?;
        compare("connect, request, answer, close (both ends write a log)", How::Tcp, 6_000, udp)?;
    }
    Ok(())
}

fn compare(what: &str, how: How, times: u32, udp: &str) -> Result<()> {
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let lab = lab(c)?;
    let serve = if how == How::TcpBare { Serve::TcpBare { bind: "[::]:8080".parse()? } } else { Serve::tcp(8080) };
    let serving = Scenario { serve: vec![serve], ..Scenario::default() };
    let calls = vec![Call { pause_ms: (0, 0), payload_bytes: (64, 64), ..Call::new(&to, how, times) }];
    let mut processes = start(&lab, vec![(&server, serving)])?;
    processes.extend(start(&lab, vec![(&client, Scenario { after: calls, ..Scenario::default() })])?);
    give_ports(processes.last().context("a client")?.pid())?;
    let mut rounds: [Vec<Round>; 2] = Default::default();
    let mut n = 0;
    for pair in 0..PAIRS {
        // Which comes first changes, so that a drift of the machine favours neither.
        for watched in [pair % 2 == 0, pair % 2 == 1] {
            let agent =
                if watched { Some(Agent::start(&lab, 0, &["--udp", udp, "--export-interval", "30"])?) } else { None };
            n += 1;
            let round = round(&mut processes, n, times)?;
            drop(agent);
            if pair > 0 {
                rounds[usize::from(watched)].push(round);
            }
        }
    }
    let of = |watched: usize, i: usize| median(&mut rounds[watched].iter().map(|r| r[i]).collect::<Vec<_>>());
    println!("{what}, UDP programs {udp}, median of {} rounds each, in turn:", PAIRS - 1);
    for (i, name, unit) in [
        (0, "throughput", "/s"),
        (1, "median latency", " µs"),
        (2, "99 % latency", " µs"),
        (3, "CPU per 10,000", " ms"),
    ] {
        let scale = if i == 3 { 1e3 / (f64::from(times) / 1e4) } else { 1.0 };
        let (without, with) = (of(0, i) * scale, of(1, i) * scale);
        if without.is_nan() {
            continue;
        }
        // As a ratio that is better the greater it is.
        let ratio = if i == 0 { with / without } else { without / with };
        row(&format!("  {name}: without {without:.0}{unit}, with {with:.0}{unit}"), &format!("{ratio:.3}"), "≥ 0.99");
    }
    Ok(())
}

/// Room for the connections of all rounds: closed ones hold their port for a minute, and where few ports are left the kernel looks for one longer than all else takes.
fn give_ports(pid: u32) -> Result<()> {
    let netns = File::open(format!("/proc/{pid}/ns/net"))?;
    std::thread::spawn(move || -> Result<()> {
        enter(netns.as_fd())?;
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")?;
        Ok(fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?)
    })
    .join()
    .map_err(|_| anyhow!("the thread in the client's namespace panicked"))?
}

fn round(processes: &mut [AppProcess], n: usize, times: u32) -> Result<Round> {
    let cpu = |processes: &[AppProcess]| processes.iter().map(|p| cpu_seconds(p.pid())).sum::<Result<f64>>();
    let (before, began) = (cpu(processes)?, Instant::now());
    let [_, client @ ..] = processes else { unreachable!("a server and a client") };
    go_again(client, n)?;
    let rate = f64::from(times) / began.elapsed().as_secs_f64();
    let spent = cpu(processes)? - before;
    let latency = match processes.last().and_then(|p| p.said("bare-us")) {
        None => [f64::NAN; 2],
        Some(said) => {
            let (median, p99) = said.split_once(' ').context("two numbers")?;
            [median.parse()?, p99.parse()?]
        }
    };
    Ok([rate, latency[0], latency[1], spent])
}
