//! The application of the lab. Usage: `guardrail-lab-app SCENARIO.json`; see
//! `guardrail_tests::app`.

use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("guardrail-lab-app: give the scenario file as the only argument");
        return ExitCode::from(2);
    };
    match guardrail_tests::app::run(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guardrail-lab-app: {error:#}");
            ExitCode::from(2)
        }
    }
}
