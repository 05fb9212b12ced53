//! `guardrail export`: allow-lists from snapshots.

mod args;
mod earlier;
mod write;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use guardrail_lifecycle::plan::Environment;
use guardrail_policy::{
    emit::{EVIDENCE_FILE, KUSTOMIZATION_FILE, REPORT_FILE, is_exception_file, namespace_of_file},
    exception::ExceptionOutcome,
    export::{self, Exported},
    generate::{Options, Phase},
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
    let Input { snapshot, options, unevaluated, planned, sensitive_are_known } = args.input()?;
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
    let mut generated = export::export(&snapshot, &options);
    for warning in &generated.warnings {
        tell("warning", warning);
    }
    tell_problems(&generated, &options);
    let all_said = tell_exceptions(&generated);
    let policies = generated.files.keys().filter(|name| !SIDECARS.contains(&name.as_str())).count();
    if let Some(planned) = &planned {
        let earlier = args.directory.as_deref().map(write::earlier).transpose()?.unwrap_or_default();
        keep_unseen(&earlier, planned.environment()?, &mut generated);
        if !generated.stopped.is_empty() && changes_nothing(&earlier, &generated, args.directory.as_deref()) {
            tell("error", &format_args!("nothing was written: {} are not ready", namespaces(&generated.stopped)));
            let all = generated.verdicts.iter().all(|verdict| generated.stopped.contains(&verdict.namespace));
            return Ok(if all { Outcome::Unanswered } else { Outcome::Findings });
        }
    } else if policies == 0 && !generated.problems.iter().all(|problem| !problem.stops(options.forced)) {
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
        return Ok(if all_said && sensitive_are_known { Outcome::Fine } else { Outcome::Findings });
    }
    let kept = if args.directory.is_some() { ": their files stay as they were" } else { "" };
    tell("error", &format_args!("not written: {}{kept}", namespaces(&generated.stopped)));
    Ok(Outcome::Findings)
}

fn namespaces(stopped: &BTreeSet<String>) -> String {
    let stopped: Vec<&str> = stopped.iter().map(String::as_str).collect();
    format!("namespaces {}", stopped.join(", "))
}

/// Whether no policy would be written, changed or removed: everything that has files stays as it
/// is, and so do the exceptions. A namespace that stays at observe is ready, too, and its earlier
/// files go.
fn changes_nothing(earlier: &BTreeSet<String>, generated: &Exported, directory: Option<&Path>) -> bool {
    let policies = || generated.files.iter().filter(|(name, _)| !SIDECARS.contains(&name.as_str()));
    let is_there = |(name, text): (&String, &String)| {
        is_exception_file(name)
            && directory.is_some_and(|to| std::fs::read(to.join(name)).is_ok_and(|old| old == text.as_bytes()))
    };
    let stays = |name: &String| {
        if is_exception_file(name) {
            return generated.files.contains_key(name);
        }
        namespace_of_file(name).is_some_and(|namespace| generated.stopped.contains(namespace))
    };
    policies().all(is_there) && earlier.iter().all(stays)
}

/// Says what became of exceptions. Returns whether each is written, or needs no policy.
fn tell_exceptions(generated: &Exported) -> bool {
    let mut all_said = true;
    for side in &generated.exceptions {
        let severity = match side.outcome {
            ExceptionOutcome::Written => continue,
            ExceptionOutcome::NotNeeded => "note",
            ExceptionOutcome::SomeOpen { .. } | ExceptionOutcome::Impossible(_) => {
                all_said = false;
                "error"
            }
        };
        tell(severity, &format_args!("exception {}: {side}", side.id));
    }
    all_said
}

/// A namespace that is meant to be closed and of which nothing was observed stays as it is: without
/// its files it would be open.
fn keep_unseen(earlier: &BTreeSet<String>, environment: &Environment, generated: &mut Exported) {
    let namespaces: BTreeSet<&str> = earlier.iter().filter_map(|name| namespace_of_file(name)).collect();
    for namespace in namespaces {
        let seen = generated.verdicts.iter().any(|verdict| verdict.namespace == namespace);
        let closed = environment.wanted(namespace).phase != Phase::Observe
            || environment.sensitive.iter().any(|glob| glob.is_of(namespace));
        if !seen && closed {
            tell("error", &format_args!("{namespace}: the snapshot has no workload of it"));
            generated.stopped.insert(namespace.to_owned());
        }
    }
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
