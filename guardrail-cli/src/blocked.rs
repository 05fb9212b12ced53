//! `guardrail blocked`: attempts that failed and that a policy denies.

use std::{
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::ValueEnum;
use guardrail_graph::Timestamp;
use guardrail_lifecycle::blocked::{self, BlockedAttempts, BlockedEvidence, Confidence, Outcome as Failed};
use guardrail_policy::words::PointInTime;

use crate::{
    coverage,
    dataplane::DataplaneArgs,
    exit::{Outcome, finish},
    input::{self, KubeArgs, SpanArgs, tell},
    output::{self, Cell, Paint, Table},
    plan::PlanArgs,
    policies,
};

/// Options of `guardrail blocked`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Certain: denied, nothing arrived at the server, which was watched, and others get through. Likely:
denied, and nothing speaks against it. Possible: there may be another reason. Exit code 1 if there
are any.")]
pub(crate) struct Args {
    /// Snapshots: files, `-`, http(s)://…/v1/graph, or kube[:NAMESPACE] for all agents of a
    /// cluster; several are merged
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,

    /// The policies in force: a file, a directory, or kube (repeatable)
    #[arg(long, value_name = "PATH", required_unless_present = "inventory")]
    policies: Vec<PathBuf>,

    /// Since when the policies are in force of which the files do not say it: RFC 3339, or a date
    #[arg(long, value_name = "TIME", value_parser = time)]
    policies_since: Option<Timestamp>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them, rendered manifests, or kube
    /// (repeatable); its policies are in force, too, unless --policies has one of the same name
    #[arg(long, value_name = "FILE")]
    inventory: Vec<PathBuf>,

    /// Only attempts from or to this namespace (repeatable)
    #[arg(short, long = "namespace", value_name = "NS")]
    namespaces: Vec<String>,

    #[command(flatten)]
    plan: PlanArgs,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    /// Answer although the snapshots are incomplete
    #[arg(long)]
    allow_partial: bool,

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
    Table,
    Json,
}

/// Reads the value of `--policies-since`.
pub(crate) fn time(text: &str) -> Result<Timestamp, String> {
    match text.parse() {
        Ok(PointInTime::At(at) | PointInTime::Day(at)) => Ok(at),
        _ => Err(format!("`{text}` is no time: write one like 2026-12-15T08:00:00Z, or a date")),
    }
}

/// Runs `guardrail blocked`.
pub(crate) fn run(mut args: Args) -> ExitCode {
    finish(blocked(&mut args))
}

fn blocked(args: &mut Args) -> anyhow::Result<Outcome> {
    // The plan says which cluster `kube` means.
    args.plan.read(&mut args.cluster)?;
    let snapshot = input::snapshots(&args.snapshots, &args.cluster, &args.span)?;
    let loaded = policies::load(&args.policies, &args.inventory, Some(&snapshot), &args.dataplane, &args.cluster)?;
    let doubts = loaded.doubts();
    for because in &doubts {
        tell("warning", because);
    }
    let incomplete = coverage::incomplete(&snapshot);
    for reason in &incomplete {
        tell("warning", &format!("the observation is incomplete: {reason}"));
    }
    let mut found = blocked::blocked(&BlockedEvidence {
        snapshot: &snapshot,
        evaluator: &loaded.evaluator,
        changed: &loaded.changed,
        since: args.policies_since,
    });
    if !args.namespaces.is_empty() {
        found.retain(|attempts| args.namespaces.iter().any(|namespace| attempts.namespaces.contains(namespace)));
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    match args.output {
        Format::Table => table(&mut out, &found)?,
        Format::Json => {
            let answer =
                serde_json::json!({"blocked": found, "incomplete_because": incomplete, "unproven_because": doubts});
            output::print_json(&mut out, &answer)?;
        }
    }
    out.flush()?;
    if !doubts.is_empty() && !args.allow_unproven {
        return Ok(Outcome::unproven());
    }
    if !found.is_empty() {
        return Ok(Outcome::Findings);
    }
    Ok(if incomplete.is_empty() || args.allow_partial { Outcome::Fine } else { Outcome::partial() })
}

fn table(out: &mut impl Write, found: &[BlockedAttempts]) -> anyhow::Result<()> {
    if found.is_empty() {
        writeln!(out, "Nothing blocked.")?;
        return Ok(());
    }
    let mut table = Table::new(&["CONFIDENCE", "CLIENT", "SERVER", "PORT", "FAILED", "LAST", "DENIED BY"]);
    for attempts in found {
        let paint = if attempts.confidence == Confidence::Certain { Paint::Bad } else { Paint::Doubtful };
        table.row([
            Cell::new(attempts.confidence.as_str()).paint(paint),
            Cell::new(&attempts.client),
            Cell::new(&attempts.server),
            Cell::new(format!("{}/{}", attempts.port, attempts.protocol)),
            Cell::new(failed(attempts)),
            Cell::new(output::second(attempts.last_attempt)),
            Cell::new(denied_by(attempts)),
        ]);
    }
    table.print(out, output::colour())?;
    writeln!(out)?;
    for attempts in found.iter().filter(|attempts| !attempts.because.is_empty()) {
        let told = format!("{}: {} only: {}", attempts.flow, attempts.confidence.as_str(), attempts.because.join("; "));
        writeln!(out, "{}", output::wrap(&output::plain_line(&told), 100).join("\n  "))?;
    }
    let counts = Confidence::ALL.map(|confidence| {
        (confidence.as_str(), found.iter().filter(|attempts| attempts.confidence == confidence).count())
    });
    let counts: Vec<String> =
        counts.iter().filter(|(_, count)| *count > 0).map(|(word, count)| format!("{count} {word}")).collect();
    if found.iter().any(|attempts| !attempts.because.is_empty()) {
        writeln!(out)?;
    }
    writeln!(out, "Blocked: {}.", counts.join(", "))?;
    Ok(())
}

fn failed(attempts: &BlockedAttempts) -> String {
    let word = match attempts.outcome {
        Failed::Refused => "refused",
        Failed::Broken => "broken off",
        _ => "unanswered",
    };
    format!("{} {word}", attempts.attempts)
}

fn denied_by(attempts: &BlockedAttempts) -> String {
    let sides: Vec<String> = attempts.denied_at.iter().map(ToString::to_string).collect();
    let policies: Vec<&str> = attempts.denied_by.iter().map(String::as_str).collect();
    format!("{}: {}", sides.join(" and "), policies.join(", "))
}
