//! `cargo xtask test`: what must hold before a change lands, cheapest first.

use std::time::Instant;

use anyhow::Result;

use crate::{run, setup};

/// Runs the checks; with `filter`, only the tests whose name contains it.
pub(crate) fn run(filter: Option<&str>) -> Result<()> {
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
    eprintln!("xtask: all checks passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    check()?;
    eprintln!("xtask: {name}: ok ({:.0} s)", start.elapsed().as_secs_f64());
    Ok(())
}
