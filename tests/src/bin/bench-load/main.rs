//! Measures what guardrail costs and what it keeps up with, on a machine with root: see
//! docs/benchmarks.md.
//!
//! Usage: `bench-load [PART …]`, from a release build; without parts all of them. Connections cross
//! network namespaces (loopback would be no edge).

mod cluster;
mod edges;
mod measure;
mod rate;
mod sidecars;
mod startup;
mod workload;

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, bail};

/// How long a part may wait for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

type Part = fn() -> Result<()>;

/// Parts by name.
const PARTS: [(&str, Part); 7] = [
    ("rate", rate::run),
    ("sidecars", sidecars::run),
    ("edges", edges::run),
    ("visible", edges::visible),
    ("startup", startup::run),
    ("workload", workload::run),
    ("cluster", cluster::run),
];

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-load: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(wanted: &[String]) -> Result<()> {
    // SAFETY: geteuid(2) cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("needs root: it makes network namespaces and cgroups, and loads eBPF programs");
    }
    if let Some(unknown) = wanted.iter().find(|w| !PARTS.iter().any(|(name, _)| name == w)) {
        let names: Vec<_> = PARTS.iter().map(|(name, _)| *name).collect();
        bail!("there is no part {unknown}; the parts are {}", names.join(", "));
    }
    if cfg!(debug_assertions) {
        eprintln!("bench-load: a debug build measures nothing worth knowing; use cargo xtask bench load");
    }
    for (name, part) in PARTS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| w == name)) {
        println!("== {name}");
        part()?;
    }
    Ok(())
}
