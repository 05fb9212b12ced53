//! `cargo xtask miri`: the tests of the pure crates under an interpreter that notices undefined
//! behaviour, in them and in what they call.

use std::process::Command;

use anyhow::Result;

use crate::{run, setup};

/// Whose unit tests run; the integration tests take too long.
const PACKAGES: [&str; 2] = ["guardrail-common", "guardrail-graph"];

/// Runs the unit tests of guardrail-common and guardrail-graph under Miri.
pub(crate) fn run() -> Result<()> {
    setup::miri()?;
    for package in PACKAGES {
        let mut command = Command::new("rustup");
        command.args(["run", setup::NIGHTLY, "cargo", "miri", "test", "--package", package, "--lib"]);
        // Properties read their number of cases from the environment; isolated, a test has none.
        command.envs([("MIRIFLAGS", "-Zmiri-disable-isolation"), ("PROPTEST_CASES", "2")]);
        run::show_and_run(command)?;
    }
    Ok(())
}
