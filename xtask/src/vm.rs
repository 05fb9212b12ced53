//! `cargo xtask vm-test`: the kernel tests on the kernels that clusters run.
//!
//! In: Debian's kernel packages and the test binaries of this checkout. Out: a table test × kernel, the verifier's instruction counts, and an error if any test
//! failed, gave no result, or any program is over [`INSTRUCTION_CEILING`]. Each kernel boots under emulation (no KVM needed, so it runs anywhere, and
//! slowly) with an initramfs made here: busybox, the modules the tests need, and the test binaries with their libraries at the paths they have on this machine.
//! Nothing is installed but qemu, and nothing outside the target directory is written.

mod debian;
mod initramfs;
mod machine;
mod report;
mod suite;

use std::{fs, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{run, setup};

/// The most instructions that the verifier may have to walk for one program. The kernel's limit is 1,000,000; what is far below it on these kernels also loads on
/// those between and after them, whose verifiers prune differently.
pub(crate) const INSTRUCTION_CEILING: u32 = 50_000;

/// Modules that the tests need (with what these depend on): links between namespaces.
const MODULES: [&str; 3] = ["veth", "dummy", "bridge"];

/// Which kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// Debian 11, bullseye: the oldest supported.
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12, bookworm.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13, trixie.
    #[value(name = "6.12")]
    V6_12,
    /// Every one of them.
    All,
}

impl Choice {
    /// Versions with the Debian release that carries them, oldest first.
    fn kernels(self) -> &'static [(&'static str, &'static str)] {
        const KERNELS: [(&str, &str); 3] = [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie")];
        match self {
            Self::V5_10 => &KERNELS[0..1],
            Self::V6_1 => &KERNELS[1..2],
            Self::V6_12 => &KERNELS[2..3],
            Self::All => &KERNELS,
        }
    }
}

/// Fetches, builds, boots, reports. With `filter`, only the tests whose name contains it.
///
/// # Errors
/// When something cannot be fetched, built or booted, and when a test failed.
pub(crate) fn run(choice: Choice, filter: Option<&str>) -> Result<()> {
    let start = Instant::now();
    setup::vm()?;
    let cache = run::target_dir()?.join("vm");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let busybox = debian::busybox(&cache)?;
    let suite = suite::build(filter)?;
    let shim = suite::verifier_shim(&cache)?;

    let mut results = Vec::new();
    for &(version, release) in choice.kernels() {
        let kernel = debian::kernel(&cache, release, &busybox)
            .with_context(|| format!("cannot get the kernel {version} of Debian {release}"))?;
        let modules = debian::modules_in_load_order(&kernel.modules, &MODULES)?;
        let dir = cache.join(release);
        let image = dir.join("initramfs.cpio");
        initramfs::write(&image, &busybox, &modules, &suite, &shim)
            .with_context(|| format!("cannot write {}", image.display()))?;
        eprintln!("vm-test: {version} (Debian {release}): {} tests", suite.tests.len());
        results.push((version, machine::boot(&kernel.image, &image, &dir.join("console.log"), &suite)?));
    }
    print!("{}", report::table(&suite.tests, &results));
    eprintln!("vm-test: {:.0} s in all", start.elapsed().as_secs_f64());
    let problems = report::problems(&suite.tests, &results);
    if !problems.is_empty() {
        bail!("vm-test found {} problems:\n  {}", problems.len(), problems.join("\n  "));
    }
    Ok(())
}
