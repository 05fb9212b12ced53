//! The command line, as clap sees it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    admission, blocked, check, completions, diff, drift, exceptions, explain, export, graph, init, lint, merge, prune,
    status, ui, unblock,
};

/// See who talks to whom in a Kubernetes cluster, and turn it into network policy that breaks
/// nothing.
#[derive(Debug, Parser)]
#[command(
    name = "guardrail",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
#[command(after_help = "Exit codes: 0 fine, 1 findings (a denied flow, a lint error), 2 could not answer.")]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a first plan file: environments, phases, what is shared, what to close first
    Init(init::Args),
    /// Show who talks to whom
    Graph(graph::Args),
    /// Join the snapshots of several nodes or times into one
    Merge(merge::Args),
    /// Where each namespace stands, what it may go to, and why not
    Status(status::Args),
    /// What changed between two snapshots, or between two sets of policies
    Diff(diff::Args),
    /// Find traffic, policies and intent that no longer agree
    Drift(drift::Args),
    /// Find attempts that failed and that a policy denies
    Blocked(blocked::Args),
    /// List the exceptions of a plan: what is open, until when, used or not
    Exceptions(exceptions::Args),
    /// Say why a connection is denied, what opens it, and what else that opens
    Unblock(unblock::Args),
    /// Write what keeps labels and exceptions honest: ValidatingAdmissionPolicies
    Admission(admission::Args),
    /// Delete exceptions in a cluster that have ended
    Prune(prune::Args),
    /// Judge observed edges or listed flows by policies
    Check(check::Args),
    /// Say why one connection is allowed or denied
    Explain(explain::Args),
    /// Find what is valid and still wrong in policies
    Lint(lint::Args),
    /// Write NetworkPolicy files that allow what was observed
    Export(export::Args),
    /// Show graph, status and drift as a page in the browser, served on this machine
    Ui(ui::Args),
    /// Print a shell completion script
    Completions(completions::Args),
}

/// Runs the command.
pub(crate) fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Init(args) => init::run(args),
        Command::Graph(args) => graph::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Status(args) => status::run(args),
        Command::Drift(args) => drift::run(args),
        Command::Admission(args) => admission::run(args),
        Command::Blocked(args) => blocked::run(args),
        Command::Prune(args) => prune::run(args),
        Command::Exceptions(args) => exceptions::run(args),
        Command::Unblock(args) => unblock::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Check(args) => check::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Lint(args) => lint::run(args),
        Command::Export(args) => export::run(args),
        Command::Ui(args) => ui::run(args),
    }
}
