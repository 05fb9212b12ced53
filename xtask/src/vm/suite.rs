//! What runs in the guest: every test of guardrail-kernel's `kernel*` test binaries, and the
//! library that reads the verifier's statistics.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::arch::{Arch, Userland};
use crate::run;

/// Whose tests.
const PACKAGE: &str = "guardrail-kernel";

/// One test function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Test {
    /// The libtest program that has it; the guest has it at the same path.
    pub(super) binary: PathBuf,
    /// Name of the test target (`kernel_tcp`).
    pub(super) target: String,
    /// Name within the program.
    pub(super) name: String,
}

/// The tests and the programs that they start.
#[derive(Debug)]
pub(super) struct Suite {
    /// Sorted by target and name.
    pub(super) tests: Vec<Test>,
    /// The package's own binaries (`CARGO_BIN_EXE_*`).
    pub(super) programs: BTreeSet<PathBuf>,
}

/// Builds the tests and lists those whose name contains `filter`. Ignored tests are left out.
pub(super) fn build(filter: Option<&str>, userland: &Userland) -> Result<Suite> {
    let mut args = vec![
        "test",
        "--no-run",
        "--quiet",
        "--message-format=json-render-diagnostics",
        "--package",
        PACKAGE,
        "--test",
        "kernel*",
    ];
    let cross = userland.arch.cross();
    if let Some(cross) = &cross {
        args.extend(["--target", cross.target]);
    }
    eprintln!("$ cargo {}", args.join(" "));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(args)
        .envs(cross.map(|cross| (cross.linker_variable, cross.linker)))
        .current_dir(run::root())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let mut suite = Suite { tests: Vec::new(), programs: BTreeSet::new() };
    for line in BufReader::new(cargo.stdout.take().context("cargo has no output")?).lines() {
        let message: Value = serde_json::from_str(&line?).context("cargo wrote something that is no JSON")?;
        let Some(executable) = message["executable"].as_str().map(PathBuf::from) else {
            continue;
        };
        let target = message["target"]["name"].as_str().unwrap_or_default();
        match message["target"]["kind"][0].as_str() {
            Some("test") => suite.tests.extend(list(&executable, target, userland)?),
            Some("bin") if message["profile"]["test"] == false => {
                suite.programs.insert(executable);
            }
            _ => {}
        }
    }
    ensure!(cargo.wait().context("cannot wait for cargo")?.success(), "the kernel tests do not build");
    suite.tests.retain(|test| filter.is_none_or(|filter| test.name.contains(filter) || test.target.contains(filter)));
    suite.tests.sort_by(|a, b| (&a.target, &a.name).cmp(&(&b.target, &b.name)));
    if suite.tests.is_empty() {
        match filter {
            Some(filter) => bail!("no kernel test has a name with '{filter}'"),
            None => bail!("{PACKAGE} has no kernel tests (tests/kernel*.rs)"),
        }
    }
    Ok(suite)
}

fn list(binary: &Path, target: &str, userland: &Userland) -> Result<Vec<Test>> {
    let names = |args: &[&str]| -> Result<BTreeSet<String>> {
        let output =
            userland.command(binary).args(args).output().with_context(|| format!("cannot run {}", binary.display()))?;
        ensure!(output.status.success(), "{} cannot list its tests", binary.display());
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    };
    let ignored = names(&["--list", "--format=terse", "--ignored"])?;
    Ok(names(&["--list", "--format=terse"])?
        .difference(&ignored)
        .map(|name| Test { binary: binary.to_owned(), target: target.to_owned(), name: name.clone() })
        .collect())
}

/// Compiles the library that is preloaded into the tests.
pub(super) fn verifier_shim(cache: &Path, arch: Arch) -> Result<PathBuf> {
    let source = run::root().join("xtask/src/vm/verifier_shim.rs");
    let library = cache.join(format!("verifier_shim-{}.so", arch.debian()));
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    if let Some(cross) = arch.cross() {
        rustc.arg(format!("--target={}", cross.target)).arg(format!("-Clinker={}", cross.linker));
    }
    let status = rustc
        .args([
            "--edition=2024",
            "--crate-type=cdylib",
            "--crate-name=verifier_shim",
            "-Copt-level=2",
            "-Cpanic=abort",
            "-Cstrip=debuginfo",
        ])
        .arg("-o")
        .arg(&library)
        .arg(&source)
        .status()
        .context("cannot run rustc")?;
    ensure!(status.success(), "{} does not compile", source.display());
    Ok(library)
}
