//! `guardrail check`: what policies do to flows, observed or listed.

mod all;
mod render;
mod report;
mod run;
mod translated;

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;

use crate::{
    dataplane::DataplaneArgs,
    exit::finish,
    input::{KubeArgs, SpanArgs},
};

/// Options of `guardrail check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Snapshots whose observed edges are judged: files, `-`, http(s)://…/v1/graph, or
    /// kube[:NAMESPACE] for all agents of a cluster; several are merged
    #[arg(value_name = "SNAPSHOT", required_unless_present_any = ["flows", "all"], conflicts_with = "flows")]
    snapshots: Vec<String>,

    /// Flows to judge: CSV with the header src,dst,protocol,port (namespace/pod or IP; pod ports),
    /// or what `hubble observe -o jsonpb` prints
    #[arg(long, value_name = "FILE")]
    flows: Option<String>,

    /// List every connection that the policies allow, per pair of workloads and port; with
    /// snapshots also whether it was ever used
    #[arg(long, conflicts_with = "flows")]
    all: bool,

    /// Policies to judge by: a file, a directory (YAML or JSON), or kube (repeatable)
    #[arg(long, value_name = "PATH", required = true)]
    policies: Vec<PathBuf>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them, or kube (repeatable); its
    /// NetworkPolicies apply too, unless --policies has one of the same name
    #[arg(long, value_name = "FILE")]
    inventory: Vec<PathBuf>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    /// Answer although the snapshots are incomplete
    #[arg(long)]
    allow_partial: bool,

    /// Answer although something cannot be judged, as if it allowed everything
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
pub(crate) enum Format {
    /// For people: what is denied, and what looks wrong
    Table,
    /// Everything
    Json,
    /// src,dst,protocol,port,verdict,ingress_by,egress_by for every flow, in input order
    Csv,
    /// For Graphviz; only with --all
    Dot,
    /// For a page; only with --all
    Markdown,
}

/// Runs `guardrail check`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(if args.all { all::all(&args) } else { run::check(&args) })
}
