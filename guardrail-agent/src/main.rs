//! The guardrail DaemonSet agent: see the library.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use guardrail_agent::{
    config::Config,
    daemon::{self, RunError, StartError},
};

fn main() -> ExitCode {
    guardrail_agent::memory::use_one_arena();
    let config = Config::parse();
    match init_log(&config.log).map_err(RunError::Start).and_then(|()| daemon::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Start(e)) => {
            eprintln!("guardrail-agent: {e}");
            ExitCode::from(2)
        }
        Err(e) => {
            eprintln!("guardrail-agent: {e}");
            ExitCode::FAILURE
        }
    }
}

fn init_log(filter: &str) -> Result<(), StartError> {
    let filter = tracing_subscriber::EnvFilter::builder().parse(filter).map_err(|e| StartError::Log(e.to_string()))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}
