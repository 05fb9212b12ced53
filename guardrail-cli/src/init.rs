//! `guardrail init`: a first plan file from what was observed.

mod images;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use guardrail_lifecycle::{init, plan};

use crate::{
    coverage,
    exit::{Outcome, finish},
    input::{self, KubeArgs, SpanArgs, tell},
    place,
};

/// Options of `guardrail init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The plan has a ladder of environments, leaves what runs the cluster at observe, names DNS and what
reads everybody's metrics, and suggests in comments what to close first. Read it before you use it.")]
pub(crate) struct Args {
    /// Snapshots: files, `-`, http(s)://…/v1/graph, or kube[:NAMESPACE] for all agents of a
    /// cluster; several are merged
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,

    /// Deployments, StatefulSets and their like as `kubectl get … -A -o yaml` prints them, or kube
    /// (repeatable): their images tell what is sensitive, too
    #[arg(long, value_name = "FILE")]
    inventory: Vec<PathBuf>,

    /// File to write, like guardrail.yaml; one that is there is never replaced. Without it the plan
    /// goes to stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    cluster: KubeArgs,

    #[command(flatten)]
    span: SpanArgs,
}

/// Runs `guardrail init`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(init(&args))
}

fn init(args: &Args) -> anyhow::Result<Outcome> {
    let Args { snapshots, inventory, output, cluster, span } = args;
    // Before anything takes time.
    if let Some(file) = output
        && file.symlink_metadata().is_ok()
    {
        bail!("{} is there already: remove it, or name another file with --output", file.display());
    }
    let snapshot = input::snapshots(snapshots, cluster, span)?;
    let images = images::of(inventory, cluster)?;
    let text = init::first_plan(&snapshot, &images, cluster.context());
    plan::read("the first plan", text.as_bytes()).context("the plan that was made is not valid, please report it")?;
    for reason in coverage::incomplete(&snapshot) {
        tell("warning", &format!("the graph is incomplete, so suggestions may be missing: {reason}"));
    }
    place::deliver(output.as_deref(), text.as_bytes())?;
    Ok(coverage::outcome(&snapshot))
}
