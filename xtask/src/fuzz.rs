//! `cargo xtask fuzz`: coverage-guided fuzzing of every reader of foreign input, from the seeds in
//! the repository.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{run, setup};

/// Targets of crates that forbid `unsafe`, each of whose runs covers so much that libFuzzer's
/// book-keeping and AddressSanitizer's cost more than the run. They go without the weighing of
/// inputs by rare coverage, without long stacks of allocations, and without fake stack frames.
const WIDE: [&str; 2] = ["inventory", "observer"];

/// Every target of `fuzz/`: its files are the list.
fn targets() -> Result<Vec<String>> {
    let directory = run::root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut targets: Vec<String> =
        entries.flatten().filter_map(|e| Some(e.path().file_stem()?.to_str()?.to_owned())).collect();
    targets.sort();
    Ok(targets)
}

/// Runs each target, or those `wanted`, for `seconds`. A finding ends it with an error, and the
/// input stays in `fuzz/artifacts`.
pub(crate) fn run(seconds: u64, wanted: &[String]) -> Result<()> {
    let mut targets = targets()?;
    if let Some(unknown) = wanted.iter().find(|w| !targets.contains(w)) {
        bail!("there is no target {unknown}: choose of {}", targets.join(", "));
    }
    targets.retain(|t| wanted.is_empty() || wanted.contains(t));
    setup::run()?;
    if run::output("cargo-fuzz", &["--version"]).is_none() {
        eprintln!("setup: installing cargo-fuzz (drives libFuzzer)");
        run::cargo(["install", "--quiet", "cargo-fuzz", "--locked"])?;
    }
    for target in targets {
        // New inputs go beside the build, not into the repository.
        let corpus = run::target_dir()?.join("fuzz-corpus").join(&target);
        fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
        let mut command = Command::new("rustup");
        command
            .args(["run", setup::NIGHTLY, "cargo", "fuzz", "run", &target])
            .arg(corpus)
            .arg(format!("fuzz/seeds/{target}"))
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .args(["-max_len=65536", "-timeout=10", "-rss_limit_mb=1024", "-verbosity=0", "-print_final_stats=1"])
            // The readers need no kernel programs.
            .env("AYA_BUILD_SKIP", "1");
        if WIDE.contains(&target.as_str()) {
            command.arg("-entropic=0").env("ASAN_OPTIONS", "detect_stack_use_after_return=0:malloc_context_size=3");
        }
        run::show_and_run(command)?;
    }
    Ok(())
}
