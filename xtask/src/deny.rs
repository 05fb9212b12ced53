//! `cargo xtask deny`: what may come into the dependency tree, by the rules of `deny.toml`.

use anyhow::{Result, bail};

use crate::run;

/// The version that the rules were written for.
const CARGO_DENY: &str = "0.20.2";

/// Checks licences, duplicates and sources, then advisories. With `offline` the last are left out,
/// which it says: their database is a git repository on the internet.
///
/// # Errors
/// A rule is broken, or the advisories cannot be fetched.
pub(crate) fn run(offline: bool) -> Result<()> {
    let version = run::output("cargo-deny", &["--version"]);
    if version.as_deref().map(str::trim) != Some(&format!("cargo-deny {CARGO_DENY}")) {
        eprintln!("setup: installing cargo-deny {CARGO_DENY} (some minutes)");
        run::cargo(["install", "--quiet", "cargo-deny", "--version", CARGO_DENY, "--locked"])?;
    }
    run::cargo(["deny", "--locked", "check", "bans", "licenses", "sources"])?;
    if offline {
        eprintln!("deny: advisories were NOT checked (--offline)");
        return Ok(());
    }
    if run::cargo(["deny", "--locked", "check", "advisories"]).is_err() {
        bail!(
            "advisories were not checked, or one applies (see above); without a way to github.com, `cargo xtask deny --offline` checks the rest"
        );
    }
    Ok(())
}
