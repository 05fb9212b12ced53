//! Agent and command in one file, for the container image: the name it is called by says which.
//! Under any other name the first argument does.

use std::{ffi::OsString, path::Path, process::ExitCode};

const AGENT: &str = "guardrail-agent";
const COMMAND: &str = "guardrail";

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let called = |arg: Option<&OsString>| {
        let name = Path::new(arg?).file_name()?;
        [AGENT, COMMAND].into_iter().find(|known| name == *known)
    };
    let program = called(args.first()).or_else(|| {
        let program = called(args.get(1));
        args.drain(..usize::from(program.is_some()));
        program
    });
    match program {
        Some(AGENT) => guardrail_agent::run(args),
        Some(_) => guardrail_cli::run(args),
        None => {
            eprintln!(
                "this file is both {AGENT} and {COMMAND}: call it by one of these names, or give the name as the first argument"
            );
            ExitCode::from(2)
        }
    }
}
