//! Figures of a process, and how they are printed.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use guardrail_tests::lab::netns::enter;

/// One line: what, the figure, and what it should be.
pub(crate) fn row(what: &str, figure: &str, aim: &str) {
    let aim = if aim.is_empty() { String::new() } else { format!("   (aim {aim})") };
    println!("{what:<58} {figure}{aim}");
}

/// User and system time of a process so far, in seconds (fields 14 and 15 of `/proc/PID/stat`).
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit_once(") ").context("a stat line")?.1.split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    // SAFETY: sysconf(3) with a known name.
    Ok(ticks / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64)
}

/// Room for the connections of all rounds: closed ones hold their port for a minute, and where few
/// ports are left the kernel looks for one longer than all else takes.
pub(crate) fn give_ports(pid: u32) -> Result<()> {
    let netns = File::open(format!("/proc/{pid}/ns/net"))?;
    std::thread::spawn(move || -> Result<()> {
        enter(netns.as_fd())?;
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")?;
        Ok(fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?)
    })
    .join()
    .map_err(|_| anyhow!("the thread in the client's namespace panicked"))?
}

/// Resident memory now, MiB.
pub(crate) fn rss_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmRSS:")
}

/// The most it was since the start or [`forget_peak`], MiB.
pub(crate) fn peak_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmHWM:")
}

/// Begins a new peak (`/proc/PID/clear_refs`, proc(5)).
pub(crate) fn forget_peak(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// Resident memory some seconds later: an answer is built, sent, and its memory given back at the
/// agent's next ticks.
pub(crate) fn settled_rss_mib(pid: u32) -> Result<f64> {
    std::thread::sleep(Duration::from_secs(6));
    rss_mib(pid)
}

fn status_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line =
        status.lines().find_map(|l| l.strip_prefix(field)).with_context(|| format!("no {field} of the agent"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// The middle of these.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}
