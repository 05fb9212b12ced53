//! `guardrail merge`: several snapshots as one.

use std::{path::PathBuf, process::ExitCode};

use guardrail_graph::snapshot::write_lines;

use crate::{
    coverage,
    exit::{Outcome, finish},
    input::{self, KubeArgs, SpanArgs, tell},
    place,
};

/// Options of `guardrail merge`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Snapshots: files, `-`, http(s)://…/v1/graph, or kube[:NAMESPACE] for all agents of a cluster
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,

    /// File to write; it is replaced as a whole or not at all, a device or FIFO is written to.
    /// Without it the result goes to stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    cluster: KubeArgs,

    #[command(flatten)]
    span: SpanArgs,
}

/// Runs `guardrail merge`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(merge(&args))
}

fn merge(args: &Args) -> anyhow::Result<Outcome> {
    let Args { snapshots, output, cluster, span } = args;
    let snapshot = input::merged(snapshots, cluster, span)?;
    place::deliver_with(output.as_deref(), |out| write_lines(out, &snapshot))?;
    for reason in coverage::incomplete(&snapshot) {
        tell("warning", &format!("the merged graph is incomplete: {reason}"));
    }
    Ok(coverage::outcome(&snapshot))
}
