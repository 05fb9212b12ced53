//! `cargo xtask bench kernel-profile`: where the time of the kernel programs goes, by sampling.
//!
//! perf(1) samples every CPU on a clock (`cpu-clock`: no hardware counters needed, so it works in
//! virtual machines) while the benchmark of the programs runs. A sample counts if a program is on
//! its stack; its innermost frame says where the time went: the program itself, or a helper of the
//! kernel.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{run, setup};

/// Samples per second and CPU.
const FREQUENCY: &str = "9999";
/// Frames below this share of their program are summed up.
const LEAST: f64 = 0.02;

/// Program → innermost frame → samples.
type Profile = BTreeMap<String, BTreeMap<String, u64>>;

/// Measures and prints, with the programs for UDP off and on.
pub(crate) fn run() -> Result<()> {
    setup::perf()?;
    run::cargo(["build", "--release", "--package", "guardrail-kernel", "--example", "bench-kernel"])?;
    let target = run::target_dir()?;
    for udp in ["off", "on"] {
        let data = target.join(format!("kernel-{udp}.perf"));
        let bench = target.join("release/examples/bench-kernel");
        let (data, bench) = (data.to_string_lossy().into_owned(), bench.to_string_lossy().into_owned());
        let record = ["record", "-q", "-g", "-a", "-e", "cpu-clock", "-F", FREQUENCY, "-o", &data, "--"];
        run::program("perf", record.into_iter().chain([bench.as_str(), "--by", "statistics", "--udp", udp]))?;
        print!("\nUDP programs {udp}\n{}", table(&read(&data)?));
    }
    Ok(())
}

fn read(data: &str) -> Result<Profile> {
    let mut script = Command::new("perf")
        .args(["script", "-i", data, "-F", "ip,sym"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run perf script")?;
    let mut profile = Profile::new();
    let mut stack = Vec::new();
    for line in BufReader::new(script.stdout.take().context("perf script has an output")?).lines() {
        let line = line?;
        match line.split_whitespace().nth(1) {
            Some(symbol) => stack.push(symbol.split('+').next().unwrap_or_default().to_owned()),
            None => add(&mut profile, &std::mem::take(&mut stack)),
        }
    }
    add(&mut profile, &stack);
    if !script.wait()?.success() {
        bail!("perf script failed");
    }
    Ok(profile)
}

/// The name of a BPF program or of a function of one, as the kernel shows it: `bpf_prog_`, sixteen
/// digits, `_`, the name.
fn bpf_name(symbol: &str) -> Option<&str> {
    let (tag, name) = symbol.strip_prefix("bpf_prog_")?.split_at_checked(16)?;
    tag.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| name.strip_prefix('_'))?
}

/// A stack, innermost frame first. The outermost frame of BPF is the program, what it calls stands
/// before it.
fn add(profile: &mut Profile, stack: &[String]) {
    let Some(program) = stack.iter().rev().find_map(|symbol| bpf_name(symbol)) else { return };
    let Some(innermost) = stack.first() else { return };
    let place = match bpf_name(innermost) {
        Some(name) if name == program => "(the program itself)".to_owned(),
        Some(name) => format!("(its function {name})"),
        None => innermost.clone(),
    };
    *profile.entry(program.to_owned()).or_default().entry(place).or_default() += 1;
}

fn table(profile: &Profile) -> String {
    let total: u64 = profile.values().flat_map(BTreeMap::values).sum();
    let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    let mut programs: Vec<_> =
        profile.iter().map(|(name, places)| (name, places, places.values().sum::<u64>())).collect();
    programs.sort_by_key(|(_, _, samples)| std::cmp::Reverse(*samples));
    let mut text = String::new();
    for (name, places, samples) in programs.into_iter().filter(|(_, _, samples)| share(*samples, total) >= LEAST) {
        text.push_str(&format!("{name:<40}{samples:>8} samples\n"));
        let mut places: Vec<_> = places.iter().collect();
        places.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let (shown, rest): (Vec<_>, Vec<_>) =
            places.into_iter().partition(|(_, count)| share(**count, samples) >= LEAST);
        for (place, count) in shown {
            text.push_str(&format!("    {place:<36}{:>7.1} %\n", 100.0 * share(*count, samples)));
        }
        let rest: u64 = rest.into_iter().map(|(_, count)| count).sum();
        if rest > 0 {
            text.push_str(&format!("    {:<36}{:>7.1} %\n", "(all else)", 100.0 * share(rest, samples)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_counts_for_the_program_on_it_at_its_innermost_frame() {
        let mut profile = Profile::new();
        let program = "bpf_prog_0123456789abcdef_tcp_state";
        let function = "bpf_prog_fedcba9876543210_opened";
        for stack in [
            &["htab_map_hash", function, program, "bpf_trace_run3"][..],
            &[program, "bpf_trace_run3"],
            &[function, program],
            &["schedule", "do_idle"],
            &["bpf_prog_load", "bpf_sys"],
        ] {
            add(&mut profile, &stack.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        }
        let places = BTreeMap::from([
            ("htab_map_hash".to_owned(), 1),
            ("(the program itself)".to_owned(), 1),
            ("(its function opened)".to_owned(), 1),
        ]);
        assert_eq!(profile, Profile::from([("tcp_state".to_owned(), places)]));
    }
}
