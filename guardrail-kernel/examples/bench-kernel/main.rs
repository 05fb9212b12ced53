//! What the kernel programs cost: `cargo xtask bench kernel` (root).
//!
//! Two network namespaces over a bridge in a third; client and server are threads of this process,
//! on one CPU. First how much longer operations take by the clock (`clock.rs`), then the time of
//! every run by the kernel's own statistics (`BPF_ENABLE_STATS`): both ends run on this machine, so
//! a figure is both ends together. Beside them, in the same run and in turn: empty programs on the
//! same hooks, because the statistics' own clock reads already cost tens of nanoseconds a run. The
//! least of many samples is shown: whatever else happens on the machine runs through the same hooks
//! and only adds.

mod clock;
mod getsockopt;
mod net;
mod programs;

use std::{
    error::Error,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use guardrail_kernel::Kernel;

use self::{
    net::{LIMIT, Net, Work},
    programs::{Empty, with_ours},
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Samples of a round, with the programs attached once.
const SAMPLES: usize = 6;
/// Operations of a sample.
const OPERATIONS: u32 = 1000;
/// Works, with a reading before and after each sample; gives nanoseconds and runs per operation of
/// the least.
fn measure(net: &Net, work: Work, reading: &(dyn Fn() -> Result<(u64, u64)> + Sync)) -> Result<(f64, f64)> {
    net.client(work, |operation| {
        operation()?;
        let mut result = (f64::INFINITY, 0.0);
        for _ in 0..SAMPLES {
            settle();
            let before = reading()?;
            for _ in 0..OPERATIONS {
                operation()?;
            }
            settle();
            let after = reading()?;
            let per = |a: u64, b: u64| b.saturating_sub(a) as f64 / f64::from(OPERATIONS);
            result = least(result, (per(before.0, after.0), per(before.1, after.1)));
        }
        Ok(result)
    })
}

/// Late FINs and acknowledgements of what went before still run through the hooks.
fn settle() {
    thread::sleep(Duration::from_millis(20));
}

/// The figures of the agent's programs, or of one, as of a sweep that began after now.
fn fresh(kernel: &Kernel, only: Option<&str>) -> Result<(u64, u64)> {
    let now = kernel.stats().sweeps;
    let deadline = Instant::now() + LIMIT;
    loop {
        let stats = kernel.stats();
        if stats.sweeps >= now + 2 {
            let counted = stats.programs.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
            return Ok(counted.fold((0, 0), |sum, (_, p)| (sum.0 + p.run_ns, sum.1 + p.runs)));
        }
        if Instant::now() > deadline {
            return Err("the agent's reader does not sweep".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn one_round(net: &Net, work: Work, udp: bool, empty: bool) -> Result<(f64, f64)> {
    if empty {
        let empty = Empty::attach(udp)?;
        return measure(net, work, &|| empty.reading());
    }
    with_ours(udp, Some(Duration::from_millis(20)), |kernel| measure(net, work, &|| fresh(kernel, None)))
}

fn least(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    if b.0 < a.0 { b } else { a }
}

/// Measures the cost of guardrail's kernel programs.
#[derive(Debug, clap::Parser)]
#[command(name = "bench-kernel")]
struct Args {
    /// Rounds by the clock, of which the middle one counts.
    #[arg(long, default_value_t = 60)]
    clock_rounds: usize,
    /// Rounds by the kernel's statistics, of which the least counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only the rows with the UDP programs off or on.
    #[arg(long, value_name = "off|on")]
    udp: Option<Udp>,
    /// Only by the clock, or only by the kernel's statistics.
    #[arg(long, value_name = "clock|statistics")]
    by: Option<By>,
    /// Only operations over the network, or only calls of getsockopt.
    #[arg(long, value_name = "traffic|getsockopt")]
    only: Option<Only>,
}

/// Whether the UDP programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Udp {
    Off,
    On,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    Traffic,
    Getsockopt,
}

/// What measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum By {
    Clock,
    Statistics,
}

/// Operation, what is done, whether with UDP, and what the statistics should say; `None`: only by
/// the clock.
type Row = (&'static str, Work, bool, Option<&'static str>);

const ROWS: [Row; 7] = [
    ("TCP connect, reset", Work::Reset, false, None),
    ("TCP connect, request, response, close", Work::Connection, false, Some("above <= 200")),
    ("TCP request, response", Work::TcpRequest, false, Some("0")),
    ("TCP connect, reset", Work::Reset, true, None),
    ("TCP connect, request, response, close", Work::Connection, true, Some("")),
    ("TCP request, response", Work::TcpRequest, true, Some("ratio <= 1.15")),
    ("UDP request, response", Work::UdpRequest, true, Some("above <= 150")),
];

fn main() -> Result<()> {
    let args = <Args as clap::Parser>::parse();
    let net = Net::new()?;
    net.serve()?;
    let rows: Vec<Row> = ROWS.into_iter().filter(|row| args.udp.is_none_or(|udp| (udp == Udp::On) == row.2)).collect();
    let (traffic, getsockopt) = (args.only != Some(Only::Getsockopt), args.only != Some(Only::Traffic));
    if args.by != Some(By::Statistics) {
        if traffic {
            by_clock(&net, &rows, args.clock_rounds)?;
        }
        if getsockopt {
            getsockopt::by_clock(&net, args.clock_rounds)?;
        }
    }
    if args.by != Some(By::Clock) {
        let _stats: OwnedFd = enable_stats(Stats::RunTime)?;
        if traffic {
            by_statistics(&net, &rows, args.rounds)?;
        }
        if getsockopt {
            getsockopt::by_statistics(&net, args.rounds)?;
        }
    }
    Ok(())
}

fn by_clock(net: &Net, rows: &[Row], rounds: usize) -> Result<()> {
    println!(
        "ns per operation by the clock, client and server on one CPU; what comes on top with empty programs and with guardrail's: median (and quartiles) of {rounds} rounds; ratio without / with guardrail\n"
    );
    println!("{:<42}{:>5}{:>10}{:>26}{:>26}{:>8}", "operation", "udp", "without", "empty", "guardrail", "ratio");
    for (name, work, udp, _) in rows {
        clock::row(net, name, *work, *udp, rounds)?;
    }
    println!();
    Ok(())
}

fn by_statistics(net: &Net, rows: &[Row], rounds: usize) -> Result<()> {
    println!(
        "ns per operation in kernel programs by the kernel's statistics, both ends together; least of {rounds} rounds of {SAMPLES} samples of {OPERATIONS}; runs per operation in brackets\n"
    );
    println!("{:<42}{:>5}{:>16}{:>16}{:>9}{:>8}  aim", "operation", "udp", "guardrail", "empty", "above", "ratio");
    for (name, work, udp, aim) in rows {
        let Some(aim) = aim else { continue };
        let start = (f64::INFINITY, 0.0);
        let (mut ours, mut empty) = (start, start);
        for _ in 0..rounds {
            empty = least(empty, one_round(net, *work, *udp, true)?);
            ours = least(ours, one_round(net, *work, *udp, false)?);
        }
        let cell = |(ns, runs): (f64, f64)| format!("{ns:.0} ({runs:.1})");
        let ratio = if empty.0 > 0.0 { format!("{:.2}", ours.0 / empty.0) } else { "-".to_owned() };
        println!(
            "{name:<42}{:>5}{:>16}{:>16}{:>9.0}{ratio:>8}  {aim}",
            if *udp { "on" } else { "off" },
            cell(ours),
            cell(empty),
            ours.0 - empty.0
        );
    }
    println!();
    Ok(())
}
