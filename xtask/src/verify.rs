//! `cargo xtask test`: what must hold before a change lands, cheapest first, in two tiers
//! (docs/testing.md).

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::{fuzz, run, setup, ui, vm};

/// A check of the second tier.
struct Further {
    name: &'static str,
    /// How long it takes on two cores, generously: a check that has less time left does not begin.
    takes: Duration,
    check: fn() -> Result<()>,
}

/// The second tier, in the order in which the checks run. Each runs alone: emulated machines and
/// fuzzers take every CPU.
const FURTHER: [Further; 8] = [
    Further { name: "kernel 6.1", takes: Duration::from_mins(6), check: || kernel(vm::Choice::V6_1) },
    Further { name: "kernel 5.10", takes: Duration::from_mins(6), check: || kernel(vm::Choice::V5_10) },
    Further { name: "kernel 6.12", takes: Duration::from_mins(6), check: || kernel(vm::Choice::V6_12) },
    Further { name: "properties, 50,000 clusters", takes: Duration::from_mins(8), check: properties },
    Further { name: "dialects, 20,000 worlds", takes: Duration::from_mins(6), check: dialects },
    Further { name: "agreement, 100,000 worlds", takes: Duration::from_mins(6), check: agreement },
    Further { name: "a month of churn", takes: Duration::from_mins(4), check: churn },
    Further { name: "fuzz targets, 10 s each", takes: Duration::from_mins(15), check: || fuzz::run(10, &[]) },
];

/// Which checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiers<'a> {
    /// Only the tests whose name contains this, and nothing else of the first tier.
    pub(crate) filter: Option<&'a str>,
    /// Also the second tier.
    pub(crate) all: bool,
    /// The time for everything: checks of the second tier that would end later do not begin, and
    /// are named.
    pub(crate) within: Option<Duration>,
}

/// Runs the checks.
///
/// # Errors
/// The first check that fails.
pub(crate) fn run(Tiers { filter, all, within }: Tiers<'_>) -> Result<()> {
    let start = Instant::now();
    setup::tests()?;
    if filter.is_none() {
        step("format", || run::cargo(["fmt", "--all", "--check"]))?;
        step("lints", || {
            run::cargo([
                "clippy",
                "--quiet",
                "--all-targets",
                "--features",
                "guardrail-cli/multicall",
                "--",
                "--deny",
                "warnings",
            ])
        })?;
    }
    step("binaries", run::build_binaries)?;
    step("tests", || {
        let mut args = vec!["test", "--no-fail-fast"];
        args.extend(filter);
        run::cargo(args)
    })?;
    if filter.is_none() {
        step("page", ui::test)?;
    }
    let mut left_out = Vec::new();
    for further in FURTHER.iter().filter(|_| all) {
        if fits(further.takes, start.elapsed(), within) {
            step(further.name, further.check)?;
        } else {
            left_out.push(further.name);
        }
    }
    for name in &left_out {
        eprintln!("xtask: {name}: NOT RUN (no time left; `cargo xtask test --all` without --within runs it)");
    }
    eprintln!("xtask: all checks that ran passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Whether a check that takes so long ends in time.
fn fits(takes: Duration, passed: Duration, within: Option<Duration>) -> bool {
    within.is_none_or(|within| passed + takes <= within)
}

fn kernel(version: vm::Choice) -> Result<()> {
    vm::run(version, vm::Arch::NATIVE, None).context("cargo xtask vm-test")
}

/// The properties of generated policies, with many more clusters than the first tier tries.
fn properties() -> Result<()> {
    with_cases("50000", "generate_properties")
}

/// The naive and the compiled evaluator on policies of all dialects.
fn dialects() -> Result<()> {
    with_cases("20000", "tiers")
}

/// The same on NetworkPolicies alone.
fn agreement() -> Result<()> {
    with_cases("100000", "agreement")
}

/// A month of rollouts and restarts; the first tier, which is not optimized, has 16 days.
fn churn() -> Result<()> {
    run::cargo(["test", "--release", "--package", "guardrail-graph", "--test", "churn"])
}

/// A test of guardrail-policy with so many random cases.
fn with_cases(cases: &str, test: &str) -> Result<()> {
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.env("PROPTEST_CASES", cases);
    command.args(["test", "--release", "--package", "guardrail-policy", "--test", test]);
    run::show_and_run(command)
}

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    check()?;
    eprintln!("xtask: {name}: ok ({:.0} s)", start.elapsed().as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_begins_only_if_it_ends_in_time() {
        let minutes = Duration::from_mins;
        assert!(fits(minutes(6), minutes(20), None));
        assert!(fits(minutes(6), minutes(34), Some(minutes(40))));
        assert!(!fits(minutes(6), minutes(35), Some(minutes(40))));
    }
}
