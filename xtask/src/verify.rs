//! `cargo xtask test`: what must hold before a change lands, cheapest first.

use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::{run, setup, vm};

/// Runs the checks; with `filter`, only the tests whose name contains it, and on the running kernel only. `no_vm` leaves out the other kernel.
pub(crate) fn run(filter: Option<&str>, no_vm: bool) -> Result<()> {
    setup::run()?;
    let start = Instant::now();
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
    if filter.is_none() && no_vm {
        eprintln!("xtask: kernel 6.1: NOT RUN (--no-vm)");
    } else if filter.is_none() {
        // Last, and alone: an emulated machine takes every CPU.
        step("kernel 6.1", || {
            vm::run(vm::Choice::V6_1, vm::Arch::NATIVE, None).context("cargo xtask vm-test --kernel 6.1")
        })?;
    }
    eprintln!("xtask: all checks passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    check()?;
    eprintln!("xtask: {name}: ok ({:.0} s)", start.elapsed().as_secs_f64());
    Ok(())
}
