//! `guardrail admission`: what the API server is to refuse, so that labels and exceptions stay
//! honest.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use guardrail_lifecycle::admission::{self, AdmissionQuestion};
use guardrail_policy::emit;

use crate::{
    dataplane::DataplaneArgs,
    exit::{Outcome, finish},
    input::{self, KubeArgs, SpanArgs, tell},
    place,
    plan::PlanArgs,
    policies,
};

/// Name of the file in `-d DIR`.
const FILE: &str = "guardrail-admission.yaml";

/// Options of `guardrail admission`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Labels are those that the rules of --policies trust; whose they are says --inventory, or a snapshot.
Without them only guardrail's policies and the ends of exceptions are looked after. Apply it as it is
first, read the audit log, and then apply what --enforce writes. Kubernetes 1.30 or later.")]
pub(crate) struct Args {
    /// Snapshots that know the workloads: files, `-`, http(s)://…/v1/graph, or kube[:NAMESPACE]
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,

    #[command(flatten)]
    plan: PlanArgs,

    /// The policies whose rules trust labels: a file, a directory, or kube (repeatable)
    #[arg(long, value_name = "PATH")]
    policies: Vec<PathBuf>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them, rendered manifests, or kube
    /// (repeatable)
    #[arg(long, value_name = "FILE")]
    inventory: Vec<PathBuf>,

    /// Directory for the file; without it the objects go to stdout
    #[arg(short, long, value_name = "DIR")]
    directory: Option<PathBuf>,

    /// Refuse what breaks the rules; without it only the audit log is told
    #[arg(long)]
    enforce: bool,

    #[command(flatten)]
    dataplane: DataplaneArgs,

    #[command(flatten)]
    cluster: KubeArgs,

    #[command(flatten)]
    span: SpanArgs,
}

/// Runs `guardrail admission`.
pub(crate) fn run(mut args: Args) -> ExitCode {
    finish(admission(&mut args))
}

fn admission(args: &mut Args) -> anyhow::Result<Outcome> {
    let Some(planned) = args.plan.read(&mut args.cluster)? else {
        bail!("name the plan and its environment: --plan FILE --environment NAME");
    };
    let snapshot = match &args.snapshots[..] {
        [] => None,
        names => Some(input::snapshots(names, &args.cluster, &args.span)?),
    };
    if !args.policies.is_empty() && args.inventory.is_empty() && snapshot.is_none() {
        bail!("whose the labels are is not known: add --inventory, or a snapshot");
    }
    let loaded = policies::load(&args.policies, &args.inventory, snapshot.as_ref(), &args.dataplane, &args.cluster)?;
    let found = admission::admission(&AdmissionQuestion {
        admission: &planned.plan.admission,
        evaluator: &loaded.evaluator,
        enforce: args.enforce,
    });
    for because in &found.left_out {
        tell("warning", because);
    }
    let text = emit::documents(&found.objects);
    match &args.directory {
        Some(directory) => {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot make the directory {}", directory.display()))?;
            let file = directory.join(FILE);
            place::deliver(Some(&file), text.as_bytes())?;
            anstream::eprintln!("wrote {} objects to {}", found.objects.len(), file.display());
        }
        None => place::deliver(None, text.as_bytes())?,
    }
    Ok(Outcome::Fine)
}
