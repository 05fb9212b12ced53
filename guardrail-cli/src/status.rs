//! `guardrail status`: where each namespace stands, what it may go to, and why not.

mod render;

use std::{
    io::{BufWriter, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::ValueEnum;
use guardrail_graph::{Timestamp, inventory::Object};
use guardrail_lifecycle::{
    self as lifecycle,
    status::{self, Question},
};
use guardrail_policy::{
    evaluate::{Cluster, Evaluator},
    generate::{Options, Phase},
    report::window_in_words,
    words::did_you_mean,
};

use crate::{
    coverage,
    dataplane::DataplaneArgs,
    exit::{Outcome, finish},
    input::{self, KubeArgs, SpanArgs, tell},
    output,
    plan::{PlanArgs, Planned},
    policies::{self, Loaded},
};

/// Options of `guardrail status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The phase in force is read from the policies, pod by pod: a namespace is as far as the pod that is
closed least. Exit code 1 if something that the plan wants is not in force.")]
pub(crate) struct Args {
    /// Snapshots: files, `-`, http(s)://…/v1/graph, or kube[:NAMESPACE] for all agents of a
    /// cluster; several are merged
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,

    #[command(flatten)]
    plan: PlanArgs,

    /// The policies in force: a file, a directory, or kube (repeatable)
    #[arg(long, value_name = "PATH")]
    policies: Vec<PathBuf>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them, rendered manifests, or kube
    /// (repeatable); its policies are in force, too, unless --policies has one of the same name
    #[arg(long, value_name = "FILE")]
    inventory: Vec<PathBuf>,

    /// Only this namespace, with all there is to say (repeatable)
    #[arg(short, long = "namespace", value_name = "NS")]
    namespaces: Vec<String>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    /// Answer although something in the policies cannot be judged, as if it allowed nothing
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
    /// One line a namespace; the whole story with -n
    Table,
    Json,
}

/// Runs `guardrail status`.
pub(crate) fn run(mut args: Args) -> ExitCode {
    finish(status(&mut args))
}

fn status(args: &mut Args) -> anyhow::Result<Outcome> {
    let planned = args.plan.read(&mut args.cluster)?;
    let Args { snapshots, plan: _, policies, inventory, namespaces, output, allow_unproven, dataplane, cluster, span } =
        args;
    let now = cluster.now();
    let snapshot = input::snapshots(snapshots, cluster, span)?;
    let loaded = policies::load(policies, inventory, Some(&snapshot), dataplane, cluster)?;
    let doubts = loaded.doubts();
    let Loaded { evaluator, objects, .. } = loaded;
    for because in &doubts {
        tell("warning", because);
    }
    let options = options(&objects, &evaluator, planned.as_ref(), now);
    if let Some(planned) = &planned {
        planned.warn_of_unknown(&snapshot, evaluator.cluster());
    }
    let environment =
        planned.as_ref().map(|planned| anyhow::Ok((&planned.plan, planned.name.as_str(), planned.environment()?)));
    let question =
        Question { snapshot: &snapshot, evaluator: &evaluator, options: &options, plan: environment.transpose()?, now };
    let mut all = status::status(&question);
    for namespace in namespaces.iter() {
        if !all.iter().any(|status| status.namespace == *namespace) {
            let near = did_you_mean(namespace, all.iter().map(|status| status.namespace.as_str()));
            anyhow::bail!("no pod and no workload of namespace {namespace} is known{near}");
        }
    }
    if !namespaces.is_empty() {
        all.retain(|status| namespaces.contains(&status.namespace));
    }
    for reason in coverage::incomplete(&snapshot) {
        tell("warning", &format!("the observation is incomplete: {reason}"));
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    match output {
        Format::Json => {
            output::print_json(&mut out, &serde_json::json!({ "namespaces": all, "unproven_because": doubts }))?
        }
        Format::Table if namespaces.is_empty() => render::table(&mut out, &all)?,
        Format::Table => {
            for line in output::wrap(&window_in_words(&snapshot), 100) {
                writeln!(out, "{line}")?;
            }
            for status in &all {
                render::story(&mut out, status)?;
            }
        }
    }
    out.flush()?;
    if !doubts.is_empty() && !*allow_unproven {
        return Ok(Outcome::unproven());
    }
    Ok(if all.iter().all(|status| status.as_wanted) { Outcome::Fine } else { Outcome::Findings })
}

/// How policies are generated for the next step: what is known of the cluster, and what the plan
/// says.
pub(crate) fn options(objects: &[Object], evaluator: &Evaluator, planned: Option<&Planned>, now: Timestamp) -> Options {
    let mut options = Options::new(Phase::Observe);
    options.cluster = Cluster::from_objects(objects);
    options.existing = evaluator.policies().to_vec();
    let Some(Planned { plan, name, .. }) = planned else { return options };
    lifecycle::export::declare(&mut options, plan, now);
    lifecycle::export::open(&mut options, plan, name, now);
    options
}
