//! `guardrail exceptions`: what is open, until when, used or not.

use std::{
    collections::BTreeSet,
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::ValueEnum;
use guardrail_lifecycle::exceptions::{self, ExceptionList, ExceptionRow};

use crate::{
    exit::{Outcome, finish},
    input::{self, KubeArgs, SpanArgs},
    output::{self, Cell, Paint, Table},
    plan,
};

/// Options of `guardrail exceptions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code 1 if an exception that has ended, or that the plan does not have, is still in force.")]
pub(crate) struct Args {
    /// Snapshots that show whether exceptions are used: files, `-`, URLs, or kube[:NAMESPACE]
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,

    /// The plan file
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,

    /// Only those of this environment
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,

    /// The policies in force: a file or a directory (repeatable)
    #[arg(long, value_name = "PATH")]
    policies: Vec<PathBuf>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    #[command(flatten)]
    cluster: KubeArgs,

    #[command(flatten)]
    span: SpanArgs,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One line an exception
    Table,
    Json,
}

/// Runs `guardrail exceptions`.
pub(crate) fn run(mut args: Args) -> ExitCode {
    finish(exceptions(&mut args))
}

fn exceptions(args: &mut Args) -> anyhow::Result<Outcome> {
    let now = args.cluster.now();
    let (plan, file) = plan::load(&args.plan, now)?;
    if let Some(name) = &args.environment {
        let environment = plan.environment(name).map_err(|error| anyhow::anyhow!("{file}: {error}"))?;
        plan::means(&mut args.cluster, &file, name, environment)?;
    }
    let snapshot = if args.snapshots.is_empty() {
        None
    } else {
        Some(input::snapshots(&args.snapshots, &args.cluster, &args.span)?)
    };
    let in_force = if args.policies.is_empty() {
        None
    } else {
        let set = input::policies(&args.policies, &args.cluster)?;
        let policies = set.policies.iter().map(|policy| (policy.namespace.clone(), policy.name.clone()));
        let forms = set.forms.iter().map(|form| (form.namespace.clone(), form.name.clone()));
        Some(policies.chain(forms).collect::<BTreeSet<_>>())
    };
    let all = exceptions::list(&plan, args.environment.as_deref(), in_force.as_ref(), snapshot.as_ref(), now);
    let mut out = BufWriter::new(std::io::stdout().lock());
    match args.output {
        Format::Json => output::print_json(&mut out, &all)?,
        Format::Table => table(&mut out, &all)?,
    }
    out.flush()?;
    Ok(if all.has_leftovers() { Outcome::Findings } else { Outcome::Fine })
}

fn table(out: &mut impl Write, all: &ExceptionList) -> anyhow::Result<()> {
    let mut table = Table::new(&["ID", "ALLOWS", "ENDS", "IN FORCE", "USED", "OWNER"]);
    for row in &all.exceptions {
        let bad = row.status.is_over && row.in_force.as_ref().is_some_and(|all| !all.is_empty());
        table.row([
            Cell::new(&row.status.id),
            Cell::new(&row.allows),
            Cell::new(&row.status.told).paint(if bad { Paint::Bad } else { Paint::Plain }),
            Cell::new(in_force(row)).paint(if bad { Paint::Bad } else { Paint::Plain }),
            Cell::new(used(row)),
            Cell::new(&row.status.owner),
        ]);
    }
    if all.exceptions.is_empty() {
        writeln!(out, "The plan has no exceptions.")?;
    } else {
        table.print(out, output::colour())?;
    }
    for policy in &all.unplanned {
        writeln!(out, "{} is in force, and the plan does not have it.", output::plain_line(policy))?;
    }
    Ok(())
}

fn in_force(row: &ExceptionRow) -> String {
    match &row.in_force {
        None => "-".to_owned(),
        Some(policies) if policies.is_empty() => "no".to_owned(),
        Some(policies) => policies.iter().cloned().collect::<Vec<_>>().join(", "),
    }
}

fn used(row: &ExceptionRow) -> String {
    match &row.used {
        None => "-".to_owned(),
        Some(used) => match used.last_seen {
            None => "never".to_owned(),
            Some(last) => format!("{} times, last {}", used.connections, output::second(last)),
        },
    }
}
