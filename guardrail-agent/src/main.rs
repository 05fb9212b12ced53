//! The guardrail DaemonSet agent: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    guardrail_agent::run(std::env::args_os())
}
