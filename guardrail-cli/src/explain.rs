//! `guardrail explain`: why one connection is allowed or denied.

use std::{
    collections::BTreeSet,
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use guardrail_graph::inventory::Inventory;
use guardrail_policy::{
    evaluate::{End, Evaluator, Exemption, common_addresses, families},
    explain::{Deciding, Explanation, Question, SideExplanation},
    model::{
        Location, Protocol,
        tier::{Action, Tier},
    },
};
use serde::Serialize;
use serde_json::json;

use crate::{
    dataplane::DataplaneArgs,
    exit::{Outcome, finish},
    input::{KubeArgs, tell},
    output,
    policies::{self, Loaded},
};

pub(crate) mod ends;
mod names;

use ends::{Asked, Named};

/// Options of `guardrail explain`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "guardrail explain --policies <PATH> --inventory <FILE> \\\n       --from <NS/NAME|IP> --to <NS/NAME|IP> --port <N> [OPTIONS]"
)]
pub(crate) struct Args {
    /// Policies to judge by: a file, a directory (YAML or JSON), or kube (repeatable)
    #[arg(long, value_name = "PATH", required = true)]
    policies: Vec<PathBuf>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them, or kube (repeatable); its
    /// NetworkPolicies apply too, unless --policies has one of the same name
    #[arg(long, value_name = "FILE", required = true)]
    inventory: Vec<PathBuf>,

    /// Who opens the connection: a pod, a workload (NS/NAME or NS/KIND/NAME), a Service (the pods
    /// behind it) or an address
    #[arg(long, value_name = "NS/NAME|IP")]
    from: String,

    /// Who accepts it: a pod, a workload, a Service (judged at the pods behind it) or an address
    #[arg(long, value_name = "NS/NAME|IP")]
    to: String,

    /// The port of the accepting pod; of the Service, if --to names one; for ICMP the type of the
    /// message
    #[arg(long, value_name = "N", value_parser = port)]
    port: u16,

    /// TCP, UDP, SCTP, ICMP or ICMPv6
    #[arg(long, default_value = "TCP", value_parser = protocol)]
    protocol: Protocol,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,

    /// Answer although something cannot be judged, as if it allowed everything
    #[arg(long)]
    allow_unproven: bool,

    #[command(flatten)]
    dataplane: DataplaneArgs,

    #[command(flatten)]
    cluster: KubeArgs,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// What is to be said of one connection.
#[derive(Serialize)]
pub(crate) struct Answer {
    from: String,
    to: String,
    protocol: Protocol,
    port: u16,
    /// The family and the addresses, if the other family has another verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    over: Option<String>,
    verdict: &'static str,
    unproven_because: Vec<String>,
    #[serde(skip)]
    namespaces: [Option<String>; 2],
    #[serde(flatten)]
    explanation: Explanation,
}

impl Answer {
    /// Whether it is denied.
    pub(crate) fn is_denied(&self) -> bool {
        self.verdict == "denied"
    }

    /// The address that was asked for is closed, whatever the rules for the pods behind it say.
    fn is_denied_at(&mut self, asked: &Asked) {
        self.verdict = "denied";
        self.explanation.notes.push(asked.denied());
    }

    /// Without the rules that would be added to policies that are there.
    pub(crate) fn without_remedy(&mut self) {
        self.explanation.sides.iter_mut().for_each(|side| side.smallest = None);
    }
}

/// Runs `guardrail explain`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(explain(&args))
}

fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_| "a port is a number from 1 to 65535")
}

fn protocol(text: &str) -> Result<Protocol, &'static str> {
    let upper = text.to_ascii_uppercase();
    let known = Protocol::of_flow(text).or_else(|| Protocol::of_flow(&upper));
    known.ok_or("a protocol is TCP, UDP, SCTP, ICMP or ICMPv6")
}

fn explain(args: &Args) -> anyhow::Result<Outcome> {
    let Args { policies, inventory, from, to, port, protocol, output, allow_unproven, dataplane, cluster } = args;
    if !protocol.is_icmp() && *port == 0 {
        anyhow::bail!("--port 0 is no port; name one from 1 to 65535");
    }
    let Loaded { evaluator, objects, unproven, .. } = policies::load(policies, inventory, None, dataplane, cluster)?;
    let inventory = Inventory::from_objects(objects);
    let sources = ends::from(&evaluator, &inventory, from, to)?;
    let destinations = ends::to(&evaluator, &inventory, &sources, to, (*protocol, *port))?;
    let services = destinations.asked.as_ref().and_then(|_| ends::asked_services(&evaluator, &inventory));
    let mut answers = Vec::new();
    for src in &sources.ends {
        for dst in &destinations.ends {
            let mut judged = judge(&evaluator, src, dst, *protocol);
            if let Some(asked) = &destinations.asked
                && asked.egress(services.as_ref(), &src.end, (*protocol, dst.port)).is_some_and(|side| !side.allows())
            {
                judged.iter_mut().for_each(|(answer, _)| answer.is_denied_at(asked));
            }
            answers.extend(judged);
        }
    }
    for (answer, dst) in &mut answers {
        let notes = &mut answer.explanation.notes;
        notes.extend(ends::port_note(&evaluator, &inventory, dst, *protocol));
        answer.unproven_because = unproven
            .iter()
            .filter(|reason| reason.concerns([answer.namespaces[0].as_deref(), answer.namespaces[1].as_deref()]))
            .map(|reason| reason.because.clone())
            .collect();
        // One side that denies for certain decides, whatever the other would say.
        let sides = &answer.explanation.sides;
        if !sides.iter().any(|s| !s.allowed && s.unproven.is_empty()) {
            let open: Vec<String> = sides.iter().flat_map(|s| s.unproven.clone()).collect();
            answer.unproven_because.extend(open);
        }
        if !answer.unproven_because.is_empty() && !allow_unproven {
            answer.verdict = "unproven";
        }
    }
    let mut answers: Vec<Answer> = answers.into_iter().map(|(answer, _)| answer).collect();
    // What is wrong stands first.
    answers.sort_by_key(|answer| ["unproven", "denied", "allowed"].iter().position(|v| *v == answer.verdict));
    let mut told = BTreeSet::new();
    for reason in answers.iter().flat_map(|a| &a.unproven_because).filter(|reason| told.insert(reason.as_str())) {
        tell("warning", reason);
    }
    let notes: Vec<&String> = [&sources.note, &destinations.note].into_iter().flatten().collect();
    let verdict = answers[0].verdict;
    let mut out = BufWriter::new(std::io::stdout().lock());
    match output {
        Format::Text => {
            for (answer, number) in answers.iter().zip(0..) {
                if number > 0 {
                    writeln!(out)?;
                }
                text(&mut out, answer)?;
            }
            for note in notes {
                writeln!(out, "\n{}", output::wrap(&output::plain_line(&format!("Note: {note}.")), 100).join("\n"))?;
            }
        }
        Format::Json if answers.len() == 1 && notes.is_empty() => output::print_json(&mut out, &answers[0])?,
        Format::Json => output::print_json(
            &mut out,
            &json!({"from": from, "to": to, "protocol": protocol, "port": port, "verdict": verdict, "notes": notes, "answers": answers}),
        )?,
    }
    out.flush()?;
    Ok(match verdict {
        "unproven" => Outcome::unproven(),
        "denied" => Outcome::Findings,
        _ => Outcome::Fine,
    })
}

/// One answer, or one for each address family if they differ.
pub(crate) fn judge(evaluator: &Evaluator, src: &Named, dst: &Named, protocol: Protocol) -> Vec<(Answer, Named)> {
    let answer = |from: &End, to: &End, over: Option<&'static str>| {
        let question = Question { src: (from, &src.name), dst: (to, &dst.name), protocol, port: dst.port };
        let explanation = evaluator.explain(&question);
        let namespace = |end: &End| Some(evaluator.cluster().pods[end.pod()? as usize].namespace.clone());
        let addresses = common_addresses(from, to);
        let answer = Answer {
            from: src.name.clone(),
            to: dst.name.clone(),
            protocol,
            port: dst.port,
            over: over.map(|family| match addresses {
                (Some(from), Some(to)) => format!("{family} ({from} -> {to})"),
                _ => family.to_owned(),
            }),
            verdict: if explanation.allowed { "allowed" } else { "denied" },
            unproven_because: Vec::new(),
            namespaces: [namespace(from), namespace(to)],
            explanation,
        };
        (answer, dst.clone())
    };
    let both = families(&src.end, &dst.end);
    if let [four, six] = &both[..] {
        let answers = [answer(&four.0, &four.1, Some("IPv4")), answer(&six.0, &six.1, Some("IPv6"))];
        if answers[0].0.verdict != answers[1].0.verdict {
            return answers.into();
        }
    }
    vec![answer(&src.end, &dst.end, None)]
}

/// An answer for people.
pub(crate) fn text(out: &mut impl Write, answer: &Answer) -> anyhow::Result<()> {
    let style = match (answer.verdict, output::colour()) {
        ("allowed", true) => AnsiColor::Green.on_default().bold(),
        ("denied", true) => AnsiColor::Red.on_default().bold(),
        (_, true) => AnsiColor::Yellow.on_default().bold(),
        (_, false) => Style::new(),
    };
    let Answer { from, to, protocol, port, over, verdict, explanation, .. } = answer;
    let (from, to) = (output::plain_line(from), output::plain_line(to));
    let over = over.as_ref().map_or_else(String::new, |over| format!(" over {over}"));
    writeln!(out, "{style}{verdict}{style:#}{over}: {from} -> {to} {protocol}/{port}")?;
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
    let SideExplanation { direction, subject, allowed, policies, nearest, smallest, .. } = side;
    let verdict = match allowed {
        true if side.restricted => "allowed, restricted by request (L7)",
        true => "allowed",
        false if side.unproven.is_empty() => "denied",
        false => "unproven",
    };
    if policies.is_empty() && side.allowed {
        writeln!(out, "\n{direction} of {subject}: {verdict}; no policy isolates it in this direction.")?;
        return Ok(());
    }
    // NetworkPolicy alone knows no tiers: what isolates is all there is to say.
    let plain = policies.iter().all(|p| p.isolates && p.tier == Tier::Normal) && !policies.is_empty();
    let (count, es) = (policies.len(), policies.len() == 1);
    if plain {
        let (policies, isolate) = if es { ("policy", "isolates") } else { ("policies", "isolate") };
        writeln!(out, "\n{direction} of {subject}: {verdict}; {count} {policies} {isolate} it:")?;
    } else {
        let decided = match side.tier {
            Some(Tier::Normal) => "decided among the policies without order",
            Some(Tier::Admin) => "decided by the Admin tier",
            Some(Tier::Baseline) => "decided by the Baseline tier",
            None => "no rule decides, and nothing isolates it",
        };
        writeln!(out, "\n{direction} of {subject}: {verdict}; {decided}; asked in this order:")?;
    }
    for reason in &side.unproven {
        writeln!(out, "  Unproven: {reason}")?;
    }
    for policy in policies {
        write!(out, "  {}{}: ", policy.policy, at(policy.location.as_ref()))?;
        match (policy.matching.as_slice(), policy.rules) {
            ([], 0) => writeln!(out, "has no {direction} rule")?,
            ([], 1) => writeln!(out, "its one rule does not match")?,
            ([], rules) => writeln!(out, "none of its {rules} rules matches")?,
            (matching, _) => {
                let rules: Vec<String> =
                    matching.iter().map(|m| format!("rule {}{}", m.rule, line(m.location.as_ref()))).collect();
                let does = match matching[0].action {
                    Action::Accept if policy.tier == Tier::Normal => "matches",
                    Action::Accept => "matches and accepts",
                    Action::Deny => "matches and denies",
                    Action::Pass => "matches and passes",
                };
                writeln!(out, "{} {does}", rules.join(", "))?;
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
    let denied = |p: &Deciding| p.tier == Tier::Normal && p.matching.iter().any(|m| m.action == Action::Deny);
    if !allowed && policies.iter().any(denied) {
        writeln!(
            out,
            "  No rule can allow it: among policies without order a deny wins. Narrow the rule that denies."
        )?;
    }
    if let Some(smallest) = smallest {
        let place = at(smallest.location.as_ref());
        let spec = smallest.section.map_or_else(|| "spec".to_owned(), |section| format!("specs[{section}]"));
        let before = smallest.before.map_or_else(String::new, |rule| format!(", before rule {rule}"));
        let policy = &smallest.policy;
        writeln!(out, "  Smallest rule that would allow it, for {spec}.{direction} of {policy}{place}{before}:")?;
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
