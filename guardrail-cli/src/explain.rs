//! `guardrail explain`: why one connection is allowed or denied.

use std::{
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use anstyle::{AnsiColor, Style};
use anyhow::Context as _;
use clap::ValueEnum;
use guardrail_policy::{
    evaluate::Exemption,
    explain::{Explanation, Question, SideExplanation},
    model::{Location, Protocol},
};
use serde::Serialize;

use crate::{
    exit::{Outcome, finish},
    input::tell,
    output,
    policies::{self, Loaded},
};

/// Options of `guardrail explain`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "guardrail explain --policies <PATH> --inventory <FILE> \\\n       --from <NS/POD|IP> --to <NS/POD|IP> --port <N> [OPTIONS]"
)]
pub(crate) struct Args {
    /// Policies to judge by: a file or a directory, YAML or JSON (repeatable)
    #[arg(long, value_name = "PATH", required = true)]
    policies: Vec<PathBuf>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them (repeatable); its NetworkPolicies
    /// apply too, unless --policies has one of the same name
    #[arg(long, value_name = "FILE", required = true)]
    inventory: Vec<PathBuf>,

    /// Who opens the connection
    #[arg(long, value_name = "NS/POD|IP")]
    from: String,

    /// Who accepts it
    #[arg(long, value_name = "NS/POD|IP")]
    to: String,

    /// The port of the accepting pod (not of a Service)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,

    /// TCP, UDP or SCTP
    #[arg(long, default_value = "TCP")]
    protocol: Protocol,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,

    /// Answer although something cannot be judged, as if it allowed everything
    #[arg(long)]
    allow_unproven: bool,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Serialize)]
struct Answer<'a> {
    from: &'a str,
    to: &'a str,
    protocol: Protocol,
    port: u16,
    verdict: &'static str,
    unproven_because: Vec<&'a str>,
    #[serde(flatten)]
    explanation: &'a Explanation,
}

/// Runs `guardrail explain`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(explain(&args))
}

fn explain(args: &Args) -> anyhow::Result<Outcome> {
    let Args { policies, inventory, from, to, port, protocol, output, allow_unproven } = args;
    let Loaded { evaluator, unproven, .. } = policies::load(policies, inventory, None)?;
    let end = |option: &str, text: &str| evaluator.end(text).with_context(|| option.to_owned());
    let src = end("--from", from)?;
    let dst = evaluator.destination(to, *protocol, *port).context("--to")?;
    let explanation =
        evaluator.explain(&Question { src: (&src, from), dst: (&dst, to), protocol: *protocol, port: *port });
    let namespaces = [&src, &dst].map(|end| Some(evaluator.cluster().pods[end.pod()? as usize].namespace.as_str()));
    let unproven_because: Vec<&str> =
        unproven.iter().filter(|reason| reason.concerns(namespaces)).map(|reason| reason.because.as_str()).collect();
    let proven = unproven_because.is_empty() || *allow_unproven;
    let verdict = match (proven, explanation.allowed) {
        (false, _) => "unproven",
        (true, true) => "allowed",
        (true, false) => "denied",
    };
    for reason in &unproven_because {
        tell("warning", reason);
    }
    let answer =
        Answer { from, to, protocol: *protocol, port: *port, verdict, unproven_because, explanation: &explanation };
    let mut out = BufWriter::new(std::io::stdout().lock());
    match output {
        Format::Text => text(&mut out, &answer)?,
        Format::Json => output::print_json(&mut out, &answer)?,
    }
    out.flush()?;
    if !proven {
        tell("error", &"the answer is unproven; --allow-unproven judges by what is known");
        return Ok(Outcome::Unanswered);
    }
    Ok(if explanation.allowed { Outcome::Fine } else { Outcome::Findings })
}

fn text(out: &mut impl Write, answer: &Answer<'_>) -> anyhow::Result<()> {
    let style = match (answer.verdict, output::colour()) {
        ("allowed", true) => AnsiColor::Green.on_default().bold(),
        ("denied", true) => AnsiColor::Red.on_default().bold(),
        (_, true) => AnsiColor::Yellow.on_default().bold(),
        (_, false) => Style::new(),
    };
    let Answer { from, to, protocol, port, verdict, explanation, .. } = answer;
    let (from, to) = (output::plain_line(from), output::plain_line(to));
    writeln!(out, "{style}{verdict}{style:#}: {from} -> {to} {protocol}/{port}")?;
    let mut rest = Vec::new();
    reasons(&mut rest, explanation)?;
    out.write_all(output::plain(&String::from_utf8_lossy(&rest)).as_bytes())?;
    Ok(())
}

fn reasons(out: &mut impl Write, explanation: &Explanation) -> anyhow::Result<()> {
    writeln!(out, "  from: {}\n  to:   {}", explanation.ends[0], explanation.ends[1])?;
    match explanation.exempt {
        Some(Exemption::Itself) => {
            writeln!(out, "\nA pod's connections to itself cannot be blocked by NetworkPolicy.")?
        }
        Some(Exemption::OwnNode) => writeln!(out, "\nConnections between a pod and its own node are always allowed.")?,
        None => {}
    }
    for side in &explanation.sides {
        side_text(out, side)?;
    }
    for note in &explanation.notes {
        writeln!(out, "\n{}", output::wrap(&format!("Note: {note}."), 100).join("\n"))?;
    }
    Ok(())
}

fn side_text(out: &mut impl Write, side: &SideExplanation) -> anyhow::Result<()> {
    let SideExplanation { direction, subject, allowed, policies, nearest, smallest } = side;
    let verdict = if *allowed { "allowed" } else { "denied" };
    if policies.is_empty() {
        writeln!(out, "\n{direction} of {subject}: {verdict}; no policy isolates it in this direction.")?;
        return Ok(());
    }
    let policy_word =
        if policies.len() == 1 { "1 policy isolates" } else { &format!("{} policies isolate", policies.len()) };
    writeln!(out, "\n{direction} of {subject}: {verdict}; {policy_word} it:")?;
    for policy in policies {
        write!(out, "  {}{}: ", policy.policy, at(policy.location.as_ref()))?;
        match (policy.matching.as_slice(), policy.rules) {
            ([], 0) => writeln!(out, "has no {direction} rule")?,
            ([], 1) => writeln!(out, "its one rule does not match")?,
            ([], rules) => writeln!(out, "none of its {rules} rules matches")?,
            (matching, _) => {
                let rules: Vec<String> =
                    matching.iter().map(|(n, location)| format!("rule {n}{}", line(location.as_ref()))).collect();
                writeln!(out, "{} matches", rules.join(", "))?;
            }
        }
    }
    if let Some(near) = nearest {
        writeln!(out, "  Nearest: {}{}", near.rule, at(near.location.as_ref()))?;
        for reason in &near.because {
            let wrapped = output::wrap(reason, 100 - 6);
            writeln!(out, "    - {}", wrapped.join("\n      "))?;
        }
    }
    if let Some(smallest) = smallest {
        let place = at(smallest.location.as_ref());
        writeln!(out, "  Smallest rule that would allow it, for spec.{direction} of {}{place}:", smallest.policy)?;
        for line in smallest.yaml.lines() {
            writeln!(out, "    {line}")?;
        }
        if let Some(caution) = &smallest.caution {
            writeln!(out, "  {}", output::wrap(&format!("Caution: {caution}."), 98).join("\n  "))?;
        }
    }
    Ok(())
}

fn at(location: Option<&Location>) -> String {
    location.map_or_else(String::new, |l| format!(" ({l})"))
}

fn line(location: Option<&Location>) -> String {
    location.map_or_else(String::new, |l| format!(" (line {})", l.line))
}
