//! The `guardrail` command: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    guardrail_cli::run(std::env::args_os())
}
