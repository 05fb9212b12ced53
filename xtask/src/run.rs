//! Running other programs: every command is shown before it runs, and a failure names it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> Result<PathBuf> {
    Ok(match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(dir).context("CARGO_TARGET_DIR is not a path")?,
        None => root().join("target"),
    })
}

/// Shows and runs `cargo ARGS` in the repository's root.
pub(crate) fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(args);
    show_and_run(command)
}

/// Builds every binary that the demo and the tests start as processes.
pub(crate) fn build_binaries() -> Result<()> {
    cargo([
        "build",
        "--quiet",
        "--package",
        "guardrail-agent",
        "--package",
        "guardrail-cli",
        "--package",
        "guardrail-tests",
        "--bins",
    ])
}

/// Shows and runs another program.
pub(crate) fn program<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Result<()> {
    let mut command = Command::new(program);
    command.current_dir(root()).args(args);
    show_and_run(command)
}

/// Runs a program that talks to the user itself, takes Ctrl-C itself, and whose exit code becomes
/// ours.
pub(crate) fn interactive<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = S>,
) -> Result<()> {
    use std::os::unix::process::CommandExt as _;
    let program = program.as_ref();
    let error = Command::new(program).current_dir(root()).args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// Whether a program of this name is on the PATH.
pub(crate) fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Standard output of a command that succeeds, or `None` if it cannot run or fails.
pub(crate) fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Shows and runs a command in the repository's root.
pub(crate) fn show_and_run(mut command: Command) -> Result<()> {
    command.current_dir(root());
    let shown = std::iter::once(Path::new(command.get_program()).file_name().unwrap_or_default())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    eprintln!("$ {shown}");
    let status = command.status().with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}
