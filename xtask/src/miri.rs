//! `cargo xtask miri`: the tests of the pure crates under an interpreter that notices undefined behaviour, in them and in what they call.

use std::process::Command;

use anyhow::Result;

use crate::{run, setup};

/// Packages and which of their tests: all in the source files, and those integration tests that do not measure or read large files.
const RUNS: [(&str, &[&str]); 2] = [
    ("guardrail-common", &["--lib"]),
    (
        "guardrail-graph",
        &["--lib", "--test", "documents", "--test", "hostile", "--test", "roles", "--test", "scenarios"],
    ),
];

/// Runs the tests of guardrail-common and guardrail-graph under Miri.
pub(crate) fn run() -> Result<()> {
    setup::miri()?;
    for (package, tests) in RUNS {
        let mut command = Command::new("rustup");
        command.args(["run", setup::NIGHTLY, "cargo", "miri", "test", "--package", package]).args(tests);
        // Properties read their number of cases from the environment; isolated, a test has none.
        command.envs([("MIRIFLAGS", "-Zmiri-disable-isolation"), ("PROPTEST_CASES", "2")]);
        run::show_and_run(command)?;
    }
    Ok(())
}
