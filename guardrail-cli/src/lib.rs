//! The `guardrail` command: files and URLs in, tables and YAML out.
//!
//! Exit codes (stable): 0 fine, 1 findings, 2 could not answer. Answers go to stdout, everything
//! else to stderr.
#![forbid(unsafe_code)]

mod admission;
mod blocked;
mod check;
mod cli;
mod completions;
mod coverage;
mod dataplane;
mod diff;
mod drift;
mod exceptions;
mod exit;
mod explain;
mod export;
mod graph;
mod init;
mod input;
mod lint;
mod merge;
mod output;
mod page;
mod place;
mod plan;
mod policies;
mod prune;
mod status;
mod ui;
mod unblock;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser;

/// Runs `guardrail` with these arguments, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match cli::Cli::try_parse_from(args) {
        Ok(cli) => cli::run(cli),
        Err(error) => exit::usage(&error),
    }
}
