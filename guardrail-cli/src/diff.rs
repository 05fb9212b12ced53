//! `guardrail diff`: what changed, between two snapshots or between two sets of policies.

mod graphs;
mod policies;

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;

use crate::{
    dataplane::DataplaneArgs,
    exit::finish,
    input::{KubeArgs, SpanArgs},
};

/// Options of `guardrail diff`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Two snapshots: edges that came, went, or changed. Two sets of policies: which workloads may reach each
other on which ports under one and not under the other, whatever the files look like, and which
observed flows that touches. Exit code 1 if anything is different.")]
pub(crate) struct Args {
    /// OLD and NEW; with --from-policies any number, merged, whose flows are looked at. Files, `-`,
    /// http(s)://…/v1/graph, or kube[:NAMESPACE] for all agents of a cluster
    #[arg(value_name = "SNAPSHOT", required_unless_present = "from_policies")]
    snapshots: Vec<String>,

    /// A namespace that has another name in the other snapshot (repeatable); nodes then count as
    /// one, since those of another cluster have other names
    #[arg(long, value_name = "NS=NS", value_parser = mapped, conflicts_with = "from_policies")]
    map: Vec<(String, String)>,

    /// The policies as they were: a file, a directory, or kube (repeatable)
    #[arg(long, value_name = "OLD", requires = "to_policies")]
    from_policies: Vec<PathBuf>,

    /// The policies as they will be (repeatable)
    #[arg(long, value_name = "NEW", requires = "from_policies")]
    to_policies: Vec<PathBuf>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them, rendered manifests, or kube
    /// (repeatable); its policies apply on both sides, unless one of the same name is in OLD or NEW
    #[arg(long, value_name = "FILE", requires = "from_policies")]
    inventory: Vec<PathBuf>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    /// Answer although something cannot be judged, as if it allowed nothing
    #[arg(long)]
    allow_unproven: bool,

    #[command(flatten)]
    dataplane: DataplaneArgs,

    #[command(flatten)]
    cluster: KubeArgs,

    #[command(flatten)]
    span: SpanArgs,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    /// For a pull request
    Markdown,
}

fn mapped(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.to_owned(), new.to_owned())),
        _ => Err(format!("`{text}` is no pair of namespaces: write OLD=NEW, like shop-staging=shop")),
    }
}

/// Runs `guardrail diff`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(if args.from_policies.is_empty() { graphs::diff(&args) } else { policies::diff(&args) })
}
