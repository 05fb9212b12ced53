//! The guardrail DaemonSet agent: kernel events and inventory in; metrics, graph and allow-lists
//! out.
//!
//! [`daemon`] wires guardrail-kernel, [`inventory`], the pure observer of guardrail-graph,
//! [`http`], [`metrics`] and [`files`] together; it decides nothing about identity or policy.

#![deny(unsafe_code)]

pub mod answer;
pub mod auth;
pub mod config;
pub mod daemon;
pub mod files;
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod inventory;
#[expect(
    unsafe_code,
    reason = "mallopt(3) and malloc_trim(3), which give free memory back, are calls of the C library"
)]
pub mod memory;
pub mod metrics;
pub mod policies;
pub mod process;
pub mod serve;
pub mod state;

use std::{
    error::Error,
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
};

use clap::Parser as _;

use crate::{
    config::{Command, Config},
    daemon::{RunError, StartError},
};

/// Runs `guardrail-agent` with these arguments, the program's name first, until it is asked to
/// stop. Call it before any thread starts.
///
/// Exit codes: 0 fine, 2 it could not start, 1 a part of it ended by itself.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    memory::use_one_arena();
    let config = Config::parse_from(args);
    if let Some(Command::Unpin { dir }) = &config.command {
        return unpin(dir);
    }
    match init_log(&config.log).map_err(RunError::Start).and_then(|()| daemon::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Start(e)) => {
            say(&e);
            ExitCode::from(2)
        }
        Err(e) => {
            say(&e);
            ExitCode::FAILURE
        }
    }
}

fn unpin(dir: &Path) -> ExitCode {
    match guardrail_kernel::unpin(dir) {
        Ok(0) => println!("nothing is pinned below {}", dir.display()),
        Ok(_) => println!("detached and removed what was pinned below {}", dir.display()),
        Err(e) => {
            say(&e);
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// `eprintln!` panics when nobody takes it, and the exit code would be another one.
fn say(error: &dyn Error) {
    let _ = writeln!(io::stderr(), "guardrail-agent: {error}");
}

fn init_log(filter: &str) -> Result<(), StartError> {
    let filter = tracing_subscriber::EnvFilter::builder().parse(filter).map_err(|e| StartError::Log(e.to_string()))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // It says by `eprintln!` that a message cannot be written, and that panics in whichever
        // thread had something to say.
        .log_internal_errors(false)
        .init();
    Ok(())
}
