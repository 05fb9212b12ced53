//! `cargo xtask vm-test`: the kernel tests on the kernels that clusters run.
//!
//! In: Debian's kernel packages and the test binaries of this checkout. Out: a table test × kernel,
//! the verifier's instruction counts, and an error if any test failed, gave no result, or any
//! program is over [`guardrail_common::VERIFIER_INSTRUCTION_CEILING`]. Each kernel boots under
//! emulation (no KVM needed, so it runs anywhere, and slowly) with an initramfs made here: busybox,
//! the modules the tests need, and the test binaries with their libraries at the paths they have on
//! this machine. Nothing is installed but qemu, and nothing outside the target directory is
//! written.

pub(crate) mod arch;
mod debian;
mod initramfs;
mod machine;
mod report;
mod suite;

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

pub(crate) use self::arch::Arch;
use crate::{run, setup};

/// Modules that the tests need (with what these depend on): links between namespaces, and what
/// iptables asks for.
const MODULES: [&str; 7] = ["veth", "dummy", "bridge", "iptable_nat", "ip6table_nat", "xt_REDIRECT", "xt_tcpudp"];

/// Tools that the tests call and busybox has in a lesser form or not at all (they are Debian
/// packages too).
const TOOLS: [&str; 2] = ["iproute2", "iptables"];

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
pub(crate) fn run(choice: Choice, arch: Arch, filter: Option<&str>) -> Result<()> {
    let start = Instant::now();
    setup::vm(arch)?;
    let cache = run::target_dir()?.join("vm");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let native_busybox = debian::busybox(&cache, Arch::NATIVE)?;
    let busybox = debian::busybox(&cache, arch)?;
    let userland = debian::userland(&cache, arch, &TOOLS)?;
    let suite = suite::build(filter, &userland)?;
    let shim = suite::verifier_shim(&cache, arch)?;

    let mut results = Vec::new();
    for &(version, release) in choice.kernels() {
        let dir = cache.join(format!("{release}-{}", arch.debian()));
        let kernel = debian::kernel(&dir, release, arch, &native_busybox)
            .with_context(|| format!("cannot get the kernel {version} of Debian {release}"))?;
        let modules = debian::modules_in_load_order(&kernel.modules, &MODULES)?;
        let image = dir.join("initramfs.cpio");
        initramfs::write(&image, &userland, &busybox, &modules, &suite, &shim)
            .with_context(|| format!("cannot write {}", image.display()))?;
        eprintln!("vm-test: {version} (Debian {release}, {}): {} tests", arch.debian(), suite.tests.len());
        results.push((version, machine::boot(arch, &kernel.image, &image, &dir.join("console.log"), &suite)?));
    }
    print!("{}", report::table(&suite.tests, &results));
    eprintln!("vm-test: {:.0} s in all", start.elapsed().as_secs_f64());
    let reference = reference(&suite, &shim, arch, &results)?;
    if reference.is_none() {
        eprintln!(
            "vm-test: what the verifiers drop is NOT COMPARED: that takes a kernel from 6.12 on, in a guest or (as root) this one"
        );
    }
    let reference = reference.as_ref().map(|(version, lines)| (version.as_str(), lines));
    let problems = report::problems(&suite.tests, &results, reference);
    if !problems.is_empty() {
        bail!("vm-test found {} problems:\n  {}", problems.len(), problems.join("\n  "));
    }
    Ok(())
}

/// What is left of the programs on a kernel whose verifier drops only what is dead: the newest
/// guest, else (for root) this machine.
fn reference(
    suite: &suite::Suite,
    shim: &Path,
    arch: Arch,
    results: &[(&'static str, machine::Report)],
) -> Result<Option<(String, machine::Lines)>> {
    if let Some((version, report)) = results.iter().rev().find(|(version, _)| is_sound(version)) {
        return Ok(Some(((*version).to_owned(), report.lines.clone())));
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let is_root = run::output("id", &["-u"]).is_some_and(|id| id.trim() == "0");
    if !is_root || arch != Arch::NATIVE || !is_sound(&release) {
        return Ok(None);
    }
    // The guests' programs were looked at when the first test loaded them.
    let Some(test) = suite.tests.first() else {
        return Ok(None);
    };
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let output = std::process::Command::new(&test.binary)
        .args(["--exact", &test.name])
        .env("LD_PRELOAD", shim)
        .env("GUARDRAIL_VERIFIER_LINES", directory.path())
        .output()
        .with_context(|| format!("cannot run {}", test.binary.display()))?;
    anyhow::ensure!(
        output.status.success(),
        "{} fails on this kernel: {}",
        test.name,
        String::from_utf8_lossy(&output.stdout)
    );
    let mut lines = machine::Lines::new();
    for entry in fs::read_dir(directory.path()).context("cannot read the temporary directory")? {
        let path = entry?.path();
        let program = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for (count, place) in text.lines().filter_map(|line| line.split_once(' ')) {
            lines.insert((program.clone(), machine::source(place).to_owned()), count.parse().unwrap_or(0));
        }
    }
    anyhow::ensure!(!lines.is_empty(), "nothing was said about the programs that {} loads on this kernel", test.name);
    Ok(Some((format!("this machine's {}", release.trim()), lines)))
}

/// Whether this kernel's verifier was seen to drop nothing that lives.
fn is_sound(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(12))
}

#[cfg(test)]
mod tests {
    #[test]
    fn verifiers_are_sound_from_6_12_on() {
        for (release, sound) in
            [("5.10", false), ("6.1.0-50-cloud-amd64", false), ("6.2.1", false), ("6.12", true), ("7.0\n", true)]
        {
            assert_eq!(super::is_sound(release), sound, "{release}");
        }
    }
}
