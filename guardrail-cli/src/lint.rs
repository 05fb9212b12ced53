//! `guardrail lint`: policies that are valid and still not what their author meant.

use std::{
    collections::BTreeSet,
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::ValueEnum;
use guardrail_policy::{
    lint::{self, Context, Finding, Severity},
    read::ObjectProblemKind,
};
use serde_json::json;

use crate::{
    exit::{Outcome, finish},
    input::{self, KubeArgs, tell},
    output::{self, Cell, Paint, Table},
};

/// Options of `guardrail lint`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Policies: files or directories, YAML or JSON, `-` for stdin, or kube
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them, or kube (repeatable): what
    /// selectors match, the ranges of pods and Services, and node ports are known only with it
    #[arg(long, value_name = "FILE")]
    inventory: Vec<PathBuf>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    #[command(flatten)]
    cluster: KubeArgs,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    /// SARIF 2.1.0
    Sarif,
}

/// Runs `guardrail lint`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(lint(&args))
}

fn lint(args: &Args) -> anyhow::Result<Outcome> {
    let Args { paths, inventory, output, cluster } = args;
    let (set, problems) = input::policy_reader(paths, cluster)?.finish_lenient();
    input::tell_left_out(&set.left_out.iter().cloned().collect());
    let context = Context::from_objects(&input::inventory(inventory, cluster, false)?.objects);
    let findings = lint::lint(&set, &problems, &context);
    // One object of Cilium's may be several policies.
    let others: BTreeSet<_> = set.forms.iter().map(|f| (f.kind, &f.namespace, &f.name)).collect();
    let policies = set.policies.len() + others.len();
    let mut out = BufWriter::new(std::io::stdout().lock());
    match output {
        Format::Table => table(&mut out, &findings, policies)?,
        Format::Json => output::print_json(&mut out, &json!({ "findings": findings, "policies": policies }))?,
        Format::Sarif => output::print_json(&mut out, &lint::sarif(&findings))?,
    }
    out.flush()?;
    // A quoted port is a finding like others; what cannot be read at all leaves the rest of the
    // file unjudged.
    let unread = problems.iter().filter(|p| p.kind != ObjectProblemKind::QuotedPort).count();
    if unread > 0 {
        for problem in problems.iter().filter(|p| p.kind != ObjectProblemKind::QuotedPort) {
            tell("error", problem);
        }
        return Ok(Outcome::Unanswered);
    }
    Ok(if findings.iter().any(|f| f.severity == Severity::Error) { Outcome::Findings } else { Outcome::Fine })
}

fn table(out: &mut impl Write, findings: &[Finding], policies: usize) -> anyhow::Result<()> {
    if !findings.is_empty() {
        let mut table = Table::new(&["SEVERITY", "RULE", "AT", "MESSAGE"]);
        for finding in findings {
            let paint = match finding.severity {
                Severity::Error => Paint::Bad,
                Severity::Warning => Paint::Doubtful,
                Severity::Note => Paint::Plain,
            };
            table.row([
                Cell::new(finding.severity.as_str()).paint(paint),
                Cell::new(format!("{} {}", finding.rule, finding.name)),
                Cell::new(finding.location.as_ref().map_or("-".to_owned(), ToString::to_string)),
                Cell::new(finding.text()),
            ]);
        }
        table.print(out, output::colour())?;
        writeln!(out)?;
    }
    let of = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (errors, warnings, notes) = (of(Severity::Error), of(Severity::Warning), of(Severity::Note));
    let counted = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    let policies = counted(policies, "policy", "policies");
    let findings =
        [counted(errors, "error", "errors"), counted(warnings, "warning", "warnings"), counted(notes, "note", "notes")];
    writeln!(out, "{policies}: {}.", findings.join(", "))?;
    Ok(())
}
