//! `guardrail export`: allow-lists from snapshots.

mod args;
mod write;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use guardrail_policy::{
    emit::{EVIDENCE_FILE, KUSTOMIZATION_FILE, REPORT_FILE},
    export::{self, Exported},
    generate::Options,
    report::window_in_words,
};

use crate::exit::{Outcome, finish};
use crate::input::tell;

pub(crate) use args::Args;
use args::Input;

/// Runs `guardrail export`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(export(&args))
}

fn export(args: &Args) -> anyhow::Result<Outcome> {
    let Input { snapshot, options, unevaluated } = args.input()?;
    anstream::eprintln!("{}", window_in_words(&snapshot));
    // What only closes more than NetworkPolicy does takes nothing from the proof that everything
    // observed stays allowed.
    let (closing, unevaluated): (Vec<_>, Vec<_>) = unevaluated.into_iter().partition(|u| u.restricts_only);
    for restricting in &closing {
        tell("warning", &format!("{restricting} is not evaluated: it may close more than the exported policies do"));
    }
    if !unevaluated.is_empty() {
        let names: Vec<String> = unevaluated.iter().map(ToString::to_string).collect();
        let message = format!("policies in force are not evaluated, so the export is unproven: {}", names.join(", "));
        if !options.forced {
            anyhow::bail!("{message}; nothing was written, --force accepts it");
        }
        tell("warning", &message);
    }
    let generated = export::export(&snapshot, &options);
    for warning in &generated.warnings {
        tell("warning", warning);
    }
    tell_problems(&generated, &options);
    let policies = generated.files.keys().filter(|name| !SIDECARS.contains(&name.as_str())).count();
    if policies == 0 && !generated.problems.iter().all(|problem| !problem.stops(options.forced)) {
        tell("error", &"nothing was written");
        return Ok(Outcome::Unanswered);
    }
    match &args.directory {
        Some(directory) => {
            write::replace_set(directory, &generated.files, &generated.stopped)
                .with_context(|| format!("cannot write the export to {}", directory.display()))?;
            anstream::eprintln!(
                "{policies} policies, {KUSTOMIZATION_FILE}, {EVIDENCE_FILE} and {REPORT_FILE} in {}",
                directory.display()
            );
        }
        None => print(&generated)?,
    }
    if generated.stopped.is_empty() {
        return Ok(Outcome::Fine);
    }
    let stopped: Vec<&str> = generated.stopped.iter().map(String::as_str).collect();
    let kept = if args.directory.is_some() { ": their files stay as they were" } else { "" };
    tell("error", &format_args!("not written: namespaces {}{kept}", stopped.join(", ")));
    Ok(Outcome::Findings)
}

/// Files that are no policies.
const SIDECARS: [&str; 3] = [KUSTOMIZATION_FILE, EVIDENCE_FILE, REPORT_FILE];

/// Says what stops which namespace, and what `--force` has accepted.
fn tell_problems(generated: &Exported, options: &Options) {
    for problem in &generated.problems {
        let namespaces: Vec<&str> = problem.namespaces.iter().map(String::as_str).collect();
        let severity = if problem.stops(options.forced) { "error" } else { "warning" };
        match namespaces.as_slice() {
            [] => tell(severity, &problem.message),
            names => tell(severity, &format_args!("{}: {}", names.join(", "), problem.message)),
        }
    }
}

/// Without a directory: the policies as one YAML stream.
fn print(generated: &Exported) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for text in generated.files.iter().filter(|(name, _)| !SIDECARS.contains(&name.as_str())).map(|(_, text)| text) {
        out.write_all(b"---\n")?;
        out.write_all(text.as_bytes())?;
    }
    out.flush()?;
    Ok(())
}
