//! `guardrail completions`: what a shell needs to complete this command.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{
    cli::Cli,
    exit::{Outcome, finish},
};

/// Options of `guardrail completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

/// Runs `guardrail completions`.
pub(crate) fn run(args: Args) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "guardrail", &mut script);
    finish(
        std::io::Write::write_all(&mut std::io::stdout().lock(), &script).map(|()| Outcome::Fine).map_err(Into::into),
    )
}
