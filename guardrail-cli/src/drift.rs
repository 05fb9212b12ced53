//! `guardrail drift`: traffic, policies and intent that no longer agree.

mod render;

use std::{
    io::{BufWriter, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, anyhow};
use clap::ValueEnum;
use guardrail_lifecycle::{
    drift::{self, Baseline, DriftKind, Evidence, PlanEvidence},
    status::{self, Question},
};

use crate::{
    coverage,
    dataplane::DataplaneArgs,
    exit::{Outcome, finish},
    input::{self, KubeArgs, SpanArgs, tell},
    output,
    plan::PlanArgs,
    policies::{self, Loaded},
    status::options,
};

/// Largest baseline, bytes.
const MAX_BASELINE_BYTES: usize = 256 << 20;

/// Options of `guardrail drift`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Traffic: observed flows that the policies in force deny; with a baseline also flows that are new.
Policies: those of the cluster (--against) against the files. Intent: what the plan wants and what is
in force. Exit code 1 if there is drift that the baseline does not have.")]
pub(crate) struct Args {
    /// Snapshots: files, `-`, http(s)://…/v1/graph, or kube[:NAMESPACE] for all agents of a
    /// cluster; several are merged
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,

    /// The policies as they should be: a file, a directory, or kube (repeatable)
    #[arg(long, value_name = "PATH", required = true)]
    policies: Vec<PathBuf>,

    /// The policies of the cluster, as `kubectl get networkpolicies -A -o yaml` prints them
    /// (repeatable); they are in force then, else those of --policies are
    #[arg(long, value_name = "PATH")]
    against: Vec<PathBuf>,

    #[command(flatten)]
    plan: PlanArgs,

    /// What was known before: the output of an earlier `drift -o json`
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,

    /// Exit with 1 for this kind of drift only (repeatable)
    #[arg(long, value_enum, value_name = "KIND")]
    fail_on: Vec<KindName>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them, rendered manifests, or kube
    /// (repeatable)
    #[arg(long, value_name = "FILE")]
    inventory: Vec<PathBuf>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    /// Answer although the snapshots are incomplete
    #[arg(long)]
    allow_partial: bool,

    /// Answer although something in the policies cannot be judged
    #[arg(long)]
    allow_unproven: bool,

    #[command(flatten)]
    dataplane: DataplaneArgs,

    #[command(flatten)]
    cluster: KubeArgs,

    #[command(flatten)]
    span: SpanArgs,
}

/// The kinds by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindName {
    Traffic,
    Policies,
    Intent,
}

impl From<KindName> for DriftKind {
    fn from(name: KindName) -> Self {
        match name {
            KindName::Traffic => Self::Traffic,
            KindName::Policies => Self::Policies,
            KindName::Intent => Self::Intent,
        }
    }
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// What is new
    Table,
    /// Everything; a baseline for later
    Json,
    /// SARIF 2.1.0
    Sarif,
    /// For a pull request
    Markdown,
}

/// Runs `guardrail drift`.
pub(crate) fn run(mut args: Args) -> ExitCode {
    finish(drift(&mut args))
}

fn drift(args: &mut Args) -> anyhow::Result<Outcome> {
    let planned = args.plan.read(&mut args.cluster)?;
    let baseline = args.baseline.as_ref().map(|path| baseline(path)).transpose()?;
    let now = args.cluster.now();
    let snapshot = input::snapshots(&args.snapshots, &args.cluster, &args.span)?;
    let files = input::policies(&args.policies, &args.cluster)?;
    let cluster = if args.against.is_empty() { None } else { Some(input::policies(&args.against, &args.cluster)?) };
    let in_force = cluster.clone().unwrap_or_else(|| files.clone());
    let loaded = policies::load_set(in_force, &args.inventory, Some(&snapshot), (&args.dataplane, &args.cluster), &[])?;
    let doubts = loaded.doubts();
    let Loaded { evaluator, objects, .. } = loaded;
    doubts.iter().for_each(|because| tell("warning", because));
    let incomplete = coverage::incomplete(&snapshot);
    for reason in &incomplete {
        tell("warning", &format!("the observation is incomplete: {reason}"));
    }
    let mut standing = Vec::new();
    if let Some(planned) = &planned {
        planned.warn_of_unknown(&snapshot, evaluator.cluster());
        let question = Question {
            snapshot: &snapshot,
            evaluator: &evaluator,
            options: &options(&objects, &evaluator, Some(planned), now),
            plan: Some((&planned.plan, planned.name.as_str(), planned.environment()?)),
            now,
        };
        standing = status::standing(&question);
    }
    let report = drift::drift(&Evidence {
        snapshot: &snapshot,
        evaluator: &evaluator,
        policies: cluster.as_ref().map(|cluster| [&files, cluster]),
        plan: planned.as_ref().map(|planned| PlanEvidence {
            file: planned.file(),
            plan: &planned.plan,
            environment: &planned.name,
            status: &standing,
        }),
        baseline: baseline.as_ref(),
        now,
    });
    for reason in &report.not_looked_at {
        tell("note", &format!("not looked at: {reason}"));
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    match args.output {
        Format::Table => render::table(&mut out, &report)?,
        Format::Json => output::print_json(&mut out, &report)?,
        Format::Sarif => {
            let policies = args.policies.first().map(|path| path.to_string_lossy()).unwrap_or_default();
            let about = planned.as_ref().map_or(&*policies, |planned| planned.file());
            output::print_json(&mut out, &drift::sarif(&report, about))?;
        }
        Format::Markdown => render::page(&mut out, &report)?,
    }
    out.flush()?;
    if !doubts.is_empty() && !args.allow_unproven {
        return Ok(Outcome::unproven());
    }
    if !incomplete.is_empty() && !args.allow_partial {
        return Ok(Outcome::partial());
    }
    let kinds: Vec<DriftKind> = args.fail_on.iter().map(|name| DriftKind::from(*name)).collect();
    Ok(if report.fails(&kinds) { Outcome::Findings } else { Outcome::Fine })
}

fn baseline(path: &std::path::Path) -> anyhow::Result<Baseline> {
    let name = path.to_string_lossy();
    let bytes = input::bytes(&name, MAX_BASELINE_BYTES)?;
    let text = String::from_utf8(bytes).with_context(|| format!("{}:1: this is no baseline", input::shown(&name)))?;
    Baseline::from_json(input::shown(&name), &text).map_err(|error| anyhow!(error))
}
