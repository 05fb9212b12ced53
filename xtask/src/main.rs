//! guardrail's list of commands: `cargo xtask <command>`.

mod deny;
mod fuzz;
mod image;
mod miri;
mod profile;
mod run;
mod setup;
mod ui;
mod verify;
mod vm;

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use crate::verify::Tiers;

/// Everything that is done with this repository, as one list of commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what building and testing needs (eBPF toolchain, bpf-linker, Debian packages); quick
    /// when it is all there.
    Setup,
    /// Build the kernel programs and the agent that carries them.
    BuildEbpf,
    /// Run the lab's shop under the agent and a real Prometheus, print its dependency graph, and go
    /// the whole way from a plan to the end of an exception (needs root).
    Demo {
        /// How long the shop runs under observation, in seconds.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Open the demo's graph in a browser at the end.
        #[arg(long)]
        ui: bool,
    },
    /// Build the page (`ui/`) into `ui/dist`, which is committed: nothing else needs Node.js.
    BuildUi {
        /// Build it elsewhere, and fail if `ui/dist` is not the same byte for byte.
        #[arg(long)]
        check: bool,
    },
    /// Format check, lints and every test on the running kernel; kernel and lab tests need root.
    /// See docs/testing.md.
    Test {
        /// Only the tests whose name contains this.
        #[arg(conflicts_with = "all")]
        filter: Option<String>,
        /// And everything that takes longer: Debian's kernels in emulated machines, properties with
        /// many cases, every fuzz target for some seconds.
        #[arg(long)]
        all: bool,
        /// With --all: begin nothing that would end later than this many minutes after the start,
        /// and name what was left out.
        #[arg(long, value_name = "MINUTES", requires = "all")]
        within: Option<u64>,
    },
    /// Check licences, advisories, duplicates and sources of every dependency (deny.toml).
    Deny {
        /// Leave out the advisories, whose database is a git repository on the internet.
        #[arg(long)]
        offline: bool,
    },
    /// Build the container image (static, one file for agent and command) into target/image, and
    /// manifests that name it.
    Image(image::Options),
    /// Run the kernel tests on Debian's kernels, booted under emulation; says what it fetches.
    VmTest {
        /// Which kernel.
        #[arg(long, default_value = "all")]
        kernel: vm::Choice,
        /// Whose machine code; another than this machine's is cross-compiled.
        #[arg(long, default_value_t = vm::Arch::NATIVE, value_enum)]
        arch: vm::Arch,
        /// Only the tests whose name contains this.
        filter: Option<String>,
    },
    /// Fuzz every reader of foreign input, each for some time, from the seeds in fuzz/seeds.
    Fuzz {
        /// How long each target runs, in seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Only these targets.
        targets: Vec<String>,
    },
    /// Run the tests of guardrail-common and guardrail-graph under Miri.
    Miri,
    /// Measure.
    Bench {
        /// What to measure.
        what: Bench,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Bench {
    /// Cost of the kernel programs, by the clock and by the kernel's own statistics (needs root).
    Kernel,
    /// Where the time of the kernel programs goes, sampled with perf (needs root).
    KernelProfile,
    /// The agent under load: highest connection rate, a thousand calls a second through sidecars,
    /// 10,000 and 100,000 edges, time to a visible edge, start, a workload with and without it, a
    /// cluster of 10,000 pods (needs root).
    Load,
    /// Policy evaluation: 1,000,000 flows against 500 policies; export and proof of 10,000 edges;
    /// the commands on 100,000 edges; those of a plan on 500 namespaces and 50,000 edges.
    Policy,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Setup => setup::tests(),
        Command::BuildEbpf => {
            setup::run()?;
            run::cargo(["build", "--package", "guardrail-agent"])
        }
        Command::Demo { seconds, ui } => {
            setup::run()?;
            run::build_binaries()?;
            let seconds = seconds.to_string();
            let mut args = vec!["--seconds", seconds.as_str()];
            args.extend(ui.then_some("--open"));
            run::interactive(run::target_dir()?.join("debug/guardrail-demo"), args)
        }
        Command::BuildUi { check: false } => ui::build(),
        Command::BuildUi { check: true } => ui::check(),
        Command::Test { filter, all, within } => {
            verify::run(Tiers { filter: filter.as_deref(), all, within: within.map(Duration::from_mins) })
        }
        Command::Deny { offline } => deny::run(offline),
        Command::Image(options) => image::run(&options),
        Command::VmTest { kernel, arch, filter } => vm::run(kernel, arch, filter.as_deref()),
        Command::Fuzz { seconds, targets } => fuzz::run(seconds, &targets),
        Command::Miri => miri::run(),
        Command::Bench { what } => {
            setup::run()?;
            match what {
                Bench::Kernel => {
                    run::cargo(["run", "--release", "--package", "guardrail-kernel", "--example", "bench-kernel"])
                }
                Bench::KernelProfile => profile::run(),
                Bench::Load => {
                    run::cargo(["build", "--release", "--package", "guardrail-agent", "--package", "guardrail-tests"])?;
                    run::interactive(run::target_dir()?.join("release/bench-load"), [] as [&str; 0])
                }
                Bench::Policy => {
                    run::cargo(["run", "--release", "--package", "guardrail-policy", "--example", "bench-policy"])?;
                    run::cargo(["run", "--release", "--package", "guardrail-cli", "--example", "bench-export"])?;
                    run::cargo(["run", "--release", "--package", "guardrail-cli", "--example", "bench-commands"])
                }
            }
        }
    }
}
