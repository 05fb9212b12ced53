//! `guardrail export`: allow-lists from snapshots.

mod args;
mod earlier;
mod write;

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use guardrail_lifecycle::plan::Environment;
use guardrail_policy::{
    emit::{EVIDENCE_FILE, KUSTOMIZATION_FILE, REPORT_FILE, is_exception_file, namespace_of_file},
    exception::ExceptionOutcome,
    export::{self, Exported, Sidecar},
    generate::{Options, Phase},
    report::window_in_words,
};

use crate::exit::{Outcome, finish};
use crate::input::tell;

pub(crate) use args::Args;
use args::Input;
use write::Streamed;

/// Runs `guardrail export`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(export(&args))
}

fn export(args: &Args) -> anyhow::Result<Outcome> {
    let Input { snapshot, mut options, unevaluated, planned, sensitive_are_known } = args.input()?;
    anstream::eprintln!("{}", window_in_words(&snapshot));
    // What only closes more than NetworkPolicy does takes nothing from the proof that everything
    // observed stays allowed.
    let (closing, unevaluated): (Vec<_>, Vec<_>) = unevaluated.into_iter().partition(|u| u.restricts_only);
    for restricting in &closing {
        tell("warning", &format!("{restricting} is not evaluated: it may close more than the exported policies do"));
    }
    // What applies to one namespace's pods stops that namespace.
    let (of_namespaces, unevaluated): (Vec<_>, Vec<_>) = unevaluated.into_iter().partition(|u| u.concerns().is_some());
    for policy in &of_namespaces {
        let namespace = policy.concerns().unwrap_or_default().to_owned();
        options.unproven.entry(namespace).or_default().insert(policy.to_string());
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
        keep_unseen(&earlier, planned.environment()?, &options, &mut generated);
        let stopped = stopped(&generated, &options);
        if !stopped.is_empty() && changes_nothing(&earlier, (&generated, &options), args.directory.as_deref()) {
            tell("error", &format_args!("nothing was written: {} are not ready", namespaces(&stopped)));
            let asked = generated.verdicts.iter().filter(|verdict| !options.leaves(&verdict.namespace));
            let all = asked.into_iter().all(|verdict| stopped.contains(&*verdict.namespace));
            return Ok(if all { Outcome::Unanswered } else { Outcome::Findings });
        }
    } else if policies == 0 && !generated.problems.iter().all(|problem| !problem.stops(options.forced)) {
        tell("error", &"nothing was written");
        return Ok(Outcome::Unanswered);
    }
    match &args.directory {
        Some(directory) => {
            let fill = |sidecar| {
                let generated = &generated;
                (move |out: &mut dyn io::Write| generated.write(sidecar, out), Sidecar::file(sidecar))
            };
            let sidecars = Sidecar::ALL.map(fill);
            let streamed = sidecars.each_ref().map(|(fill, name)| -> Streamed<'_> { (*name, fill) });
            write::replace_set(directory, &generated.files, &streamed, |name| stays(name, &generated, &options))
                .with_context(|| format!("cannot write the export to {}", directory.display()))?;
            anstream::eprintln!(
                "{policies} policies, {KUSTOMIZATION_FILE}, {EVIDENCE_FILE} and {REPORT_FILE} in {}",
                directory.display()
            );
        }
        None => print(&generated)?,
    }
    let stopped = stopped(&generated, &options);
    if stopped.is_empty() {
        return Ok(if all_said && sensitive_are_known { Outcome::Fine } else { Outcome::Findings });
    }
    let kept = if args.directory.is_some() { ": their files stay as they were" } else { "" };
    tell("error", &format_args!("not written: {}{kept}", namespaces(&stopped)));
    Ok(Outcome::Findings)
}

/// The namespaces that were asked for and are not written.
fn stopped<'a>(generated: &'a Exported<'_>, options: &Options) -> BTreeSet<&'a str> {
    generated.stopped.iter().map(String::as_str).filter(|namespace| !options.leaves(namespace)).collect()
}

fn namespaces(stopped: &BTreeSet<&str>) -> String {
    let stopped: Vec<&str> = stopped.iter().copied().collect();
    format!("namespaces {}", stopped.join(", "))
}

/// Whether a policy's file that an earlier export wrote stays, whatever this one says: exceptions
/// are decided for every namespace that was asked for.
fn stays(name: &str, generated: &Exported<'_>, options: &Options) -> bool {
    namespace_of_file(name).is_some_and(|namespace| {
        options.leaves(namespace) || generated.stopped.contains(namespace) && !is_exception_file(name)
    })
}

/// Whether no policy would be written, changed or removed: everything that has files stays as it
/// is, and so do the exceptions. A namespace that stays at observe is ready, too, and its earlier
/// files go.
fn changes_nothing(
    earlier: &BTreeSet<String>,
    (generated, options): (&Exported<'_>, &Options),
    directory: Option<&Path>,
) -> bool {
    let policies = || generated.files.iter().filter(|(name, _)| !SIDECARS.contains(&name.as_str()));
    let is_there = |(name, text): (&String, &String)| {
        is_exception_file(name)
            && directory.is_some_and(|to| std::fs::read(to.join(name)).is_ok_and(|old| old == text.as_bytes()))
    };
    let remains = |name: &String| {
        stays(name, generated, options) || is_exception_file(name) && generated.files.contains_key(name)
    };
    policies().all(is_there) && earlier.iter().all(remains)
}

/// Says what became of exceptions. Returns whether each is written, or needs no policy.
fn tell_exceptions(generated: &Exported<'_>) -> bool {
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
fn keep_unseen(earlier: &BTreeSet<String>, environment: &Environment, options: &Options, generated: &mut Exported<'_>) {
    let namespaces: BTreeSet<&str> = earlier.iter().filter_map(|name| namespace_of_file(name)).collect();
    for namespace in namespaces.into_iter().filter(|namespace| !options.leaves(namespace)) {
        let seen = generated.verdicts.iter().any(|verdict| verdict.namespace == namespace);
        let closed = environment.wanted(namespace).phase != Phase::Observe
            || environment.sensitive.iter().any(|glob| glob.is_of(namespace));
        if !seen && closed {
            tell(
                "error",
                &format_args!(
                    "{namespace}: the snapshot has no workload of it: if it is gone, remove its files, or leave it at observe in the plan"
                ),
            );
            generated.stopped.insert(namespace.to_owned());
        }
    }
}

/// Files that are no policies.
const SIDECARS: [&str; 3] = [KUSTOMIZATION_FILE, EVIDENCE_FILE, REPORT_FILE];

/// Says what stops which namespace, and what `--force` has accepted.
fn tell_problems(generated: &Exported<'_>, options: &Options) {
    for problem in &generated.problems {
        let namespaces: Vec<&str> =
            problem.namespaces.iter().map(String::as_str).filter(|namespace| !options.leaves(namespace)).collect();
        // What concerns only namespaces that nobody asked for stands in the report.
        if namespaces.is_empty() && !problem.namespaces.is_empty() {
            continue;
        }
        let severity = if problem.stops(options.forced) { "error" } else { "warning" };
        match namespaces.as_slice() {
            [] => tell(severity, &problem.message),
            names => tell(severity, &format_args!("{}: {}", names.join(", "), problem.message)),
        }
    }
}

/// Without a directory: the policies as one YAML stream.
fn print(generated: &Exported<'_>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for text in generated.files.iter().filter(|(name, _)| !SIDECARS.contains(&name.as_str())).map(|(_, text)| text) {
        out.write_all(b"---\n")?;
        out.write_all(text.as_bytes())?;
    }
    out.flush()?;
    Ok(())
}
