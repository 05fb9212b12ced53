//! The page of `ui/`: built into `ui/dist`, which is committed, and tested in a browser.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{run, setup};

/// What is built.
const BUILT: [&str; 3] = ["page.js", "page.css", "policy.txt"];

/// Builds the page into `ui/dist`.
///
/// # Errors
/// If something is missing and cannot be installed, or the build fails.
pub(crate) fn build() -> Result<()> {
    setup::ui()?;
    install()?;
    node("build", &["--outDir", "dist"], &[])
}

/// Builds the page elsewhere and compares.
///
/// # Errors
/// As [`build`], and if `ui/dist` differs.
pub(crate) fn check() -> Result<()> {
    setup::ui()?;
    install()?;
    compare()
}

/// Types, unit tests, browser tests, and whether `ui/dist` is what the sources give.
///
/// # Errors
/// The first that fails. Where Node.js is too old for the page this says that nothing ran, and why;
/// in CI, where every test must run, that is a failure.
pub(crate) fn test() -> Result<()> {
    let in_ci = std::env::var("CI").as_deref() == Ok("true");
    if let Some(because) = setup::browser()? {
        if in_ci {
            bail!("the tests of the page must run in CI: {because}");
        }
        eprintln!("xtask: page: NOT RUN ({because})");
        return Ok(());
    }
    install()?;
    compare()?;
    let target = run::target_dir()?;
    let guardrail = target.join("debug/guardrail");
    // The demo's graph, with the truth beside it: what its own applications logged.
    let mut demo = target.join("demo-page");
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if is_root {
        let args = ["--seconds".as_ref(), "1".as_ref(), "--output".as_ref(), demo.as_os_str()];
        run::program(target.join("debug/guardrail-demo"), args)?;
    } else if in_ci {
        bail!("the tests of the page must run in CI: the demo needs root");
    } else {
        eprintln!("xtask: page: the test against the demo's graph is NOT RUN (it needs root)");
        demo = PathBuf::from("none");
    }
    node("test", &[], &[("GUARDRAIL", guardrail), ("GUARDRAIL_DEMO", demo)])
}

fn compare() -> Result<()> {
    let anew = run::target_dir()?.join("ui");
    node("build", &["--outDir", &anew.display().to_string()], &[])?;
    let committed = directory().join("dist");
    for file in BUILT {
        let read =
            |dir: &Path| fs::read(dir.join(file)).with_context(|| format!("cannot read {}", dir.join(file).display()));
        if read(&anew)? != read(&committed)? {
            bail!("ui/dist/{file} is not what the sources give: run `cargo xtask build-ui` and commit ui/dist");
        }
    }
    Ok(())
}

fn directory() -> PathBuf {
    run::root().join("ui")
}

/// Installs what the lock file names, once for each state of it.
fn install() -> Result<()> {
    let lock = fs::read(directory().join("package-lock.json")).context("cannot read ui/package-lock.json")?;
    // Written last, so that an interrupted installation is none.
    let installed = directory().join("node_modules/.installed-lock.json");
    if fs::read(&installed).is_ok_and(|known| known == lock) {
        return Ok(());
    }
    eprintln!("setup: installing what the page is built from, in ui/node_modules");
    npm(&["ci", "--ignore-scripts", "--no-audit", "--no-fund"], &[])?;
    fs::write(&installed, lock).with_context(|| format!("cannot write {}", installed.display()))
}

/// Runs a script of `ui/package.json`.
fn node(script: &str, args: &[&str], env: &[(&str, PathBuf)]) -> Result<()> {
    npm(&[&["run", "--silent", script, "--"], args].concat(), env)
}

fn npm(args: &[&str], env: &[(&str, PathBuf)]) -> Result<()> {
    let mut command = Command::new("npm");
    command.args(["--prefix", "ui"]).args(args).envs(env.iter().map(|(name, value)| (name, value)));
    run::show_and_run(command)
}
