//! `guardrail ui`: the page, served to the person at this machine.
//!
//! Sources are read again every minute. One that cannot be read keeps what it last gave, and the
//! page says since when and why.

mod serve;
mod sources;

use std::{io::Write as _, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use guardrail_graph::{Snapshot, Timestamp};
use guardrail_lifecycle::{
    blocked::{self, BlockedEvidence},
    drift::{self, Evidence, PlanEvidence},
    page::Page,
    status::{self, Question},
};

use crate::{
    blocked::time,
    coverage,
    dataplane::DataplaneArgs,
    exit::{Outcome, finish},
    input::{self, KubeArgs, SpanArgs, tell},
    plan::PlanArgs,
    policies::{self, Loaded},
    status::options,
};
use serve::{Server, Shown};
use sources::Sources;

/// Options of `guardrail ui`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The page is served on loopback only, to whoever knows the address that is printed: it holds a token.
What is named is read again every minute; the page shows its age. Ctrl-C ends it. With --policies or
--inventory it shows what the policies in force say of each flow, with --plan what is wanted.")]
pub(crate) struct Args {
    /// Snapshots: files, `-`, http(s)://…/v1/graph, or kube[:NAMESPACE] for all agents of a
    /// cluster; several are merged
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,

    #[command(flatten)]
    plan: PlanArgs,

    /// The policies in force: a file or a directory (repeatable)
    #[arg(long, value_name = "PATH")]
    policies: Vec<PathBuf>,

    /// Since when the policies are in force of which the files do not say it: RFC 3339, or a date
    #[arg(long, value_name = "TIME", value_parser = time)]
    policies_since: Option<Timestamp>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them, rendered manifests, or kube
    /// (repeatable); its policies are in force, too, unless --policies has one of the same name
    #[arg(long, value_name = "FILE")]
    inventory: Vec<PathBuf>,

    /// The port on loopback; 0: one that is free
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,

    /// How often everything is read again
    #[arg(long, value_name = "SECONDS", hide = true, default_value_t = 60)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    refresh: u64,

    #[command(flatten)]
    dataplane: DataplaneArgs,

    #[command(flatten)]
    cluster: KubeArgs,

    #[command(flatten)]
    span: SpanArgs,
}

/// Runs `guardrail ui`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(ui(args))
}

fn ui(mut args: Args) -> anyhow::Result<Outcome> {
    let mut sources = Sources::new(&args.snapshots);
    // What cannot be read at the start is a mistake of whoever asks, as for every other command.
    let first = read(&mut args, &mut sources)?;
    if let Some(source) = sources.failed() {
        bail!("{source}");
    }
    let shown = Arc::new(Shown::new(first));
    let server = Server::bind(args.port, Arc::clone(&shown))?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", server.address())?;
    out.flush()?;
    tell("note", &"the page is there until Ctrl-C; what it is read from is read again every minute");
    let every = Duration::from_secs(args.refresh);
    std::thread::Builder::new()
        .name("refresh".to_owned())
        .spawn(move || {
            loop {
                std::thread::sleep(every);
                match read(&mut args, &mut sources) {
                    Ok(document) => shown.replace(document),
                    // Policies or plan: the page stays, and its age tells.
                    Err(error) => tell("warning", &format_args!("the page stays as it was: {error:#}")),
                }
            }
        })
        .context("cannot start the thread that refreshes")?;
    server.run()?;
    Ok(Outcome::Fine)
}

/// The document of what the sources give now.
fn read(args: &mut Args, sources: &mut Sources) -> anyhow::Result<String> {
    sources.read(&args.cluster, input::clock());
    let snapshot = input::joined(sources.last(), &args.span, args.cluster.now())?;
    let mut page = Page::new(&snapshot, coverage::incomplete(&snapshot));
    page.sources = sources.told();
    answer(args, &snapshot, &mut page)?;
    Ok(serde_json::to_string(&page)?)
}

/// What policies and plan say, where they are named.
fn answer(args: &mut Args, snapshot: &Snapshot, page: &mut Page<'_>) -> anyhow::Result<()> {
    let planned = args.plan.read(&mut args.cluster)?;
    let now = args.cluster.now();
    let is_judged = !args.policies.is_empty() || !args.inventory.is_empty();
    let loaded = policies::load(&args.policies, &args.inventory, Some(snapshot), &args.dataplane, &args.cluster)?;
    let doubts = loaded.doubts();
    let Loaded { evaluator, objects, unproven, changed, .. } = loaded;
    let options = options(&objects, &evaluator, planned.as_ref(), now);
    page.preview_default_deny(snapshot, &evaluator, &options);
    if !is_judged && planned.is_none() {
        return Ok(());
    }
    page.judge(snapshot, &evaluator, |ends| {
        unproven.iter().find(|reason| reason.concerns(ends)).map(|reason| reason.because.clone())
    });
    page.unproven_because = doubts;
    let evidence = BlockedEvidence { snapshot, evaluator: &evaluator, changed: &changed, since: args.policies_since };
    page.blocked = Some(blocked::blocked(&evidence));
    let plan = match &planned {
        Some(planned) => Some((&planned.plan, planned.name.as_str(), planned.environment()?)),
        None => None,
    };
    let question = Question { snapshot, evaluator: &evaluator, options: &options, plan, now };
    let standing = status::status(&question);
    let plan = planned.as_ref().map(|planned| PlanEvidence {
        file: planned.file(),
        plan: &planned.plan,
        environment: &planned.name,
        status: &standing,
    });
    let mut drift =
        drift::drift(&Evidence { snapshot, evaluator: &evaluator, policies: None, plan, baseline: None, now });
    // They are for baselines; the page has every flow already.
    drift.flows.clear();
    page.drift = Some(drift);
    page.environment = planned.as_ref().map(|planned| planned.name.clone());
    page.status = Some(standing);
    Ok(())
}
