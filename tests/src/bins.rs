//! Finds the programs under test, and says when a test cannot run.

use std::path::PathBuf;

/// The path of one of the workspace's programs: in `GUARDRAIL_BIN_DIR` if that is set, else where
/// cargo put the program that is running.
///
/// `cargo xtask test` and `cargo xtask demo` build everything first (`cargo build -p
/// guardrail-agent -p guardrail-cli -p guardrail-tests`).
///
/// # Panics
/// It is not there: the message says what to build.
#[must_use]
pub fn find(name: &str) -> PathBuf {
    let directory = std::env::var_os("GUARDRAIL_BIN_DIR").map_or_else(
        || {
            let own = std::env::current_exe().expect("a running program has a path");
            let parent = own.parent().expect("a program lies in a directory");
            if parent.ends_with("deps") {
                parent.parent().expect("deps lies in a directory").to_owned()
            } else {
                parent.to_owned()
            }
        },
        PathBuf::from,
    );
    let path = directory.join(name);
    assert!(
        path.exists(),
        "{} does not exist: run `cargo build -p guardrail-agent -p guardrail-cli -p guardrail-tests` first (`cargo xtask test` does)",
        path.display()
    );
    path
}

/// Whether tests that need root can run. If not, says so; where `CI` is `true` that is a failure.
///
/// # Panics
/// Not root in CI.
#[must_use]
pub fn can_run(test: &str) -> bool {
    // SAFETY: geteuid(2) cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} needs root, and in CI every test must run");
    eprintln!("DID NOT RUN: {test} needs root (network namespaces, cgroups, eBPF)");
    false
}
