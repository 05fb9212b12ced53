//! `guardrail export`: allow-lists from snapshots.

use std::process::ExitCode;

/// Options of `guardrail export`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs `guardrail export`.
pub(crate) fn run(args: Args) -> ExitCode {
    let Args {} = args;
    anstream::eprintln!("error: this build has no generator");
    ExitCode::from(2)
}
