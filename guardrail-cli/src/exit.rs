//! Exit codes: the contract that scripts rely on.

use std::process::ExitCode;

use crate::input::tell;

/// What a command found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing to complain about: 0.
    Fine,
    /// Findings, for example a denied flow or a lint error: 1.
    Findings,
    /// No answer: bad input, or incomplete or unproven without the flag that accepts it: 2.
    Unanswered,
}

impl Outcome {
    /// Says that the answer is unproven.
    pub(crate) fn unproven() -> Self {
        tell("error", &"the answer is unproven; --allow-unproven judges by what is known");
        Self::Unanswered
    }

    /// Says that the observation is incomplete.
    pub(crate) fn partial() -> Self {
        tell("error", &"the observation is incomplete, flows may be missing; --allow-partial judges what was seen");
        Self::Unanswered
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Fine => Self::SUCCESS,
            Outcome::Findings => Self::from(1),
            Outcome::Unanswered => Self::from(2),
        }
    }
}

/// Turns a command's result into the exit code; an error is printed to stderr and means "could not
/// answer".
pub(crate) fn finish(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            if is_broken_pipe(&error) {
                return Outcome::Fine.into();
            }
            tell("error", &without_numbers(&format!("{error:#}")));
            Outcome::Unanswered.into()
        }
    }
}

/// Without the numbers that the system gives its errors: the words stand before them.
fn without_numbers(message: &str) -> String {
    let mut parts = message.split(" (os error ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text += part.split_once(')').map_or(part, |(_, rest)| rest);
    }
    text
}

/// Somebody closed our stdout (`| head`): they have what they wanted.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe))
}

/// Prints clap's message. Help and version are fine; a usage error is "could not answer".
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    let outcome = if error.use_stderr() || printed.is_err() { Outcome::Unanswered } else { Outcome::Fine };
    outcome.into()
}
