//! `cargo xtask fuzz`: coverage-guided fuzzing of the readers, from the seeds in the repository.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{run, setup};

/// Every target of `fuzz/`.
const TARGETS: [&str; 2] = ["policies", "flows"];

/// Runs each target for `seconds`. A finding ends it with an error, and the input stays in `fuzz/artifacts`.
pub(crate) fn run(seconds: u64) -> Result<()> {
    setup::run()?;
    if run::output("cargo-fuzz", &["--version"]).is_none() {
        eprintln!("setup: installing cargo-fuzz (drives libFuzzer)");
        run::cargo(["install", "--quiet", "cargo-fuzz", "--locked"])?;
    }
    for target in TARGETS {
        // New inputs go beside the build, not into the repository.
        let corpus = run::target_dir()?.join("fuzz-corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
        let (corpus, seeds) = (corpus.display().to_string(), format!("fuzz/seeds/{target}"));
        let limit = format!("-max_total_time={seconds}");
        run::program(
            "rustup",
            [
                "run",
                setup::NIGHTLY,
                "cargo",
                "fuzz",
                "run",
                target,
                &corpus,
                &seeds,
                "--",
                &limit,
                "-max_len=65536",
                "-timeout=10",
                "-verbosity=0",
                "-print_final_stats=1",
            ],
        )?;
    }
    Ok(())
}
