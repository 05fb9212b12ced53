//! `guardrail unblock`: why a connection is denied, the smallest rule that opens it, what else that
//! opens; and the exception in the plan.

mod exception;

use std::{
    collections::BTreeSet,
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use guardrail_graph::{WorkloadRef, inventory::Inventory};
use guardrail_lifecycle::{
    plan::{ExceptionEnd, PlanPort},
    unblock::{self, Opening, Unblock, UnblockQuestion},
};
use guardrail_policy::{
    evaluate::Evaluator,
    generate::Format as PolicyFormat,
    model::Protocol,
    words::{few, parse_duration},
};

use crate::{
    dataplane::{DataplaneArgs, formats},
    exit::{Outcome, finish},
    explain::{
        self,
        ends::{self, Named},
    },
    input::{self, KubeArgs, SpanArgs, tell},
    output, policies,
};
use exception::{ExceptionArgs, Written};

/// Options of `guardrail unblock`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "guardrail unblock [SNAPSHOT]... --policies <PATH> [--inventory <FILE>] \\\n       --from <PEER> --to <PEER> --port <N[/PROTO]> \\\n       [--plan <FILE> --reason <TEXT> --owner <TEXT> [--for <DURATION>]] [OPTIONS]",
    after_help = "\
Exit code 0 if no policy denies the connection or the exception stands in the plan, 1 if policies
deny it and nothing was written."
)]
pub(crate) struct Args {
    /// Snapshots: files, `-`, http(s)://…/v1/graph, or kube[:NAMESPACE] for all agents of a
    /// cluster; several are merged
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,

    /// The policies in force: a file, a directory, or kube (repeatable)
    #[arg(long, value_name = "PATH", required_unless_present = "inventory")]
    policies: Vec<PathBuf>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them, or kube (repeatable); its
    /// policies are in force, too, unless --policies has one of the same name
    #[arg(long, value_name = "FILE", required_unless_present = "snapshots")]
    inventory: Vec<PathBuf>,

    /// Who connects: a workload (NS/KIND/NAME), a pod, or an address
    #[arg(long, value_name = "PEER")]
    from: String,

    /// Who accepts: a workload, a pod, a Service (NS/svc/NAME, judged at the pods behind it), or an
    /// address
    #[arg(long, value_name = "PEER")]
    to: String,

    /// The port of the accepting pod; of the Service, if --to names one
    #[arg(long, value_name = "N[/PROTO]", value_parser = port)]
    port: PlanPort,

    /// How the exception's policies are written: networkpolicy; or cilium, as `export --format
    /// cilium` writes them
    #[arg(long, value_name = "FORMAT", default_value_t, value_parser = formats())]
    format: PolicyFormat,

    #[command(flatten)]
    exception: ExceptionArgs,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
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
    Text,
    Json,
}

fn port(text: &str) -> Result<PlanPort, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let number = number.parse().ok().filter(|port| *port > 0);
    match (number, protocol.parse::<Protocol>()) {
        (Some(port), Ok(protocol)) if !protocol.is_icmp() => Ok(PlanPort { port, protocol }),
        _ => Err(format!("`{text}` is no port: write one like 5432 or 53/UDP")),
    }
}

/// Runs `guardrail unblock`.
pub(crate) fn run(mut args: Args) -> ExitCode {
    finish(unblock(&mut args))
}

/// The connection that is asked about.
struct Asked {
    from: ExceptionEnd,
    to: ExceptionEnd,
    port: PlanPort,
    /// As policies judge it: pods, addresses.
    sources: Vec<Named>,
    targets: Vec<Named>,
    /// What is easily overlooked.
    notes: Vec<String>,
}

fn unblock(args: &mut Args) -> anyhow::Result<Outcome> {
    args.dataplane.enforces(args.format)?;
    let exception = args.exception.read(&mut args.cluster)?;
    let snapshot = if args.snapshots.is_empty() {
        None
    } else {
        Some(input::snapshots(&args.snapshots, &args.cluster, &args.span)?)
    };
    let loaded = policies::load(&args.policies, &args.inventory, snapshot.as_ref(), &args.dataplane, &args.cluster)?;
    let doubts = loaded.doubts();
    for because in &doubts {
        tell("warning", because);
    }
    if !doubts.is_empty() && !args.allow_unproven {
        return Ok(Outcome::unproven());
    }
    let evaluator = &loaded.evaluator;
    let mut asked = asked(args, evaluator, &Inventory::from_objects(loaded.objects.iter().cloned()))?;
    let opening = match &exception {
        Some(exception) => exception.opening(&asked.from, &asked.to, asked.port),
        None => args.exception.opening(&asked.from, &asked.to, asked.port, args.cluster.now()),
    };
    let (known, is_new) = unblock::known(
        snapshot.as_ref(),
        evaluator.cluster(),
        &unblock::selectors(&loaded.objects),
        [&asked.from, &asked.to],
    );
    let answer =
        unblock::unblock(&UnblockQuestion { evaluator, snapshot: &known, opening: &opening, format: args.format });
    if is_new && snapshot.is_some() && matches!(answer, Unblock::Exception(_)) {
        asked.notes.push(
            "the snapshots do not have both ends: export writes the exception once they were observed".to_owned(),
        );
    }
    let instead = match (&answer, &snapshot) {
        (Unblock::NotDenied, Some(snapshot)) => unblock::instead(snapshot, &asked.from, &asked.to, asked.port),
        _ => Vec::new(),
    };
    let written = match (&answer, &exception) {
        (Unblock::Exception(_), Some(exception)) => Some(exception.write(&opening)?),
        _ => None,
    };
    let sensitive = exception.as_ref().map_or_else(BTreeSet::new, |e| e.sensitive(&asked.to, &answer, evaluator));
    let mut out = BufWriter::new(std::io::stdout().lock());
    match args.output {
        Format::Text => {
            let told = Told { asked: &asked, answer: &answer, instead: &instead, sensitive: &sensitive };
            told.text(&mut out, evaluator, snapshot.is_some())?;
            if let Some(written) = &written {
                written.text(&mut out, args.format)?;
            }
        }
        Format::Json => output::print_json(
            &mut out,
            &serde_json::json!({
                "from": asked.from.to_string(),
                "to": asked.to.to_string(),
                "port": asked.port.to_string(),
                "result": answer,
                "sensitive": sensitive,
                "seen": instead,
                "notes": asked.notes,
                "exception": written,
            }),
        )?,
    }
    out.flush()?;
    Ok(match (&answer, &written) {
        (Unblock::NotDenied, _) => Outcome::Fine,
        (_, Some(Written { is_new: true, .. })) => Outcome::Fine,
        _ => Outcome::Findings,
    })
}

/// From names to what a rule can name and policies can judge.
fn asked(args: &Args, evaluator: &Evaluator, inventory: &Inventory) -> anyhow::Result<Asked> {
    let PlanPort { port, protocol } = args.port;
    let sources = ends::from(evaluator, inventory, &args.from, &args.to)?;
    let targets = ends::to(evaluator, inventory, &sources, &args.to, (protocol, port))?;
    let (from, from_note) = end(evaluator, &sources.ends, &args.from, "--from")?;
    let (to, to_note) = end(evaluator, &targets.ends, &args.to, "--to")?;
    let ports: BTreeSet<u16> = targets.ends.iter().map(|named| named.port).collect();
    let [port] = ports.into_iter().collect::<Vec<_>>()[..] else {
        bail!("--to: the pods behind {} have different ports: name a workload and its own port", args.to);
    };
    if matches!((&from, &to), (ExceptionEnd::Range(_), ExceptionEnd::Range(_))) {
        bail!("neither {} nor {} is a pod: policies have no say between them", args.from, args.to);
    }
    let port_note = targets.ends.iter().find_map(|named| ends::port_note(evaluator, inventory, named, protocol));
    let notes = [sources.note, from_note, targets.note, to_note, port_note].into_iter().flatten().collect();
    Ok(Asked { from, to, port: PlanPort { port, protocol }, sources: sources.ends, targets: targets.ends, notes })
}

/// What an exception calls these ends, and what is to be said of that.
fn end(
    evaluator: &Evaluator,
    ends: &[Named],
    text: &str,
    option: &str,
) -> anyhow::Result<(ExceptionEnd, Option<String>)> {
    let mut workloads: BTreeSet<WorkloadRef> = BTreeSet::new();
    for named in ends {
        match named.end.pod() {
            Some(pod) => {
                let pod = &evaluator.cluster().pods[pod as usize];
                workloads.insert(pod.workload.clone().with_context(|| {
                    format!("{option}: what {} belongs to is not known; name the workload", pod.full_name())
                })?);
            }
            None => {
                let address: std::net::IpAddr = named.name.parse().with_context(|| {
                    format!("{option}: {} is on its node's network: name the node's address", named.name)
                })?;
                return Ok((ExceptionEnd::Range(address.to_canonical().into()), None));
            }
        }
    }
    let names: Vec<String> = workloads.iter().map(ToString::to_string).collect();
    match workloads.pop_first() {
        Some(workload) if workloads.is_empty() => {
            let pods = evaluator.pods_of_workload(&workload.to_string()).len();
            let is_pod = ends.len() == 1 && ends[0].name == text && pods > 1;
            let note = is_pod.then(|| format!("{text} is one of {pods} pods of {workload}: a rule is for all of them"));
            Ok((ExceptionEnd::Workload(workload), note))
        }
        _ => bail!(
            "{option}: {text} leads to several workloads ({}): name one of them",
            few(&names.iter().map(String::as_str).collect::<Vec<_>>())
        ),
    }
}

/// What is printed for people.
struct Told<'a> {
    asked: &'a Asked,
    answer: &'a Unblock,
    instead: &'a [String],
    sensitive: &'a BTreeSet<String>,
}

impl Told<'_> {
    fn text(&self, out: &mut impl Write, evaluator: &Evaluator, is_observed: bool) -> anyhow::Result<()> {
        let Asked { from, to, port, .. } = self.asked;
        match self.answer {
            Unblock::NotDenied => {
                writeln!(out, "not blocked by policy: {}", output::plain_line(&format!("{from} -> {to} {port}")))?;
                if !is_observed {
                    paragraph(out, "Name a snapshot to see what was observed of it.")?;
                }
                for seen in self.instead {
                    item(out, seen)?;
                }
            }
            Unblock::Impossible { because } => {
                self.reasons(out, evaluator)?;
                paragraph(out, &format!("No exception opens it: {because}."))?;
            }
            Unblock::Exception(opening) => {
                self.reasons(out, evaluator)?;
                self.opening(out, opening)?;
            }
        }
        for note in &self.asked.notes {
            paragraph(out, &format!("Note: {note}."))?;
        }
        Ok(())
    }

    /// Why it is denied: one pair of pods stands for all.
    fn reasons(&self, out: &mut impl Write, evaluator: &Evaluator) -> anyhow::Result<()> {
        let Asked { sources, targets, port, .. } = self.asked;
        let pairs = sources.iter().flat_map(|source| targets.iter().map(move |target| (source, target)));
        let answers = pairs.flat_map(|(source, target)| explain::judge(evaluator, source, target, port.protocol));
        if let Some((mut answer, _)) = answers.into_iter().find(|(answer, _)| answer.is_denied()) {
            // An exception is a policy of its own.
            answer.without_remedy();
            explain::text(out, &answer)?;
        }
        Ok(())
    }

    fn opening(&self, out: &mut impl Write, opening: &Opening) -> anyhow::Result<()> {
        let Opening { rules, also } = opening;
        let what = if rules.len() == 1 { "a policy of its own" } else { "a policy of its own at each side" };
        writeln!(out, "\nThe smallest rule that opens it, {what}:")?;
        for (rule, number) in rules.iter().zip(0..) {
            if number > 0 {
                writeln!(out, "  ---")?;
            }
            for line in output::plain(&rule.yaml).lines() {
                writeln!(out, "  {line}")?;
            }
        }
        if also.is_empty() {
            paragraph(out, "It opens nothing else.")?;
        } else {
            paragraph(out, "It also opens, because the same labels stand there:")?;
            for pair in also {
                item(out, &format!("{} -> {}", pair.from, pair.to))?;
            }
        }
        for workload in self.sensitive {
            paragraph(out, &format!("Sensitive: the plan wants {workload} closed to all but its callers."))?;
        }
        Ok(())
    }
}

fn paragraph(out: &mut impl Write, text: &str) -> anyhow::Result<()> {
    writeln!(out, "\n{}", output::wrap(&output::plain_line(text), 100).join("\n"))?;
    Ok(())
}

fn item(out: &mut impl Write, text: &str) -> anyhow::Result<()> {
    writeln!(out, "  - {}", output::wrap(&output::plain_line(text), 96).join("\n    "))?;
    Ok(())
}

/// `3 days`.
fn length(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(|length| {
        if length.is_zero() {
            Err("an exception of no length opens nothing: write one like 72h".to_owned())
        } else {
            Ok(length)
        }
    })
}
