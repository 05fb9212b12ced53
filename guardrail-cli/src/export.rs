//! `guardrail export`: allow-lists from snapshots.

mod args;
mod write;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use guardrail_policy::generate::{self, EVIDENCE_FILE, Generated, KUSTOMIZATION_FILE, Options, REPORT_FILE};

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
    if !unevaluated.is_empty() {
        let names: Vec<String> = unevaluated.iter().map(ToString::to_string).collect();
        let message = format!("policies in force are not evaluated, so the export is unproven: {}", names.join(", "));
        if !options.forced {
            anyhow::bail!("{message}; nothing was written, --force accepts it");
        }
        tell("warning", &message);
    }
    let generated = generate::generate(&snapshot, &options);
    for warning in &generated.warnings {
        tell("warning", warning);
    }
    if !acceptable(&generated, &options) {
        tell("error", &"nothing was written");
        return Ok(Outcome::Unanswered);
    }
    match &args.directory {
        Some(directory) => {
            write::replace_set(directory, &generated.files)
                .with_context(|| format!("cannot write the export to {}", directory.display()))?;
            let policies = generated.plan.policies.len();
            anstream::eprintln!(
                "{policies} policies, {KUSTOMIZATION_FILE}, {EVIDENCE_FILE} and {REPORT_FILE} in {}",
                directory.display()
            );
        }
        None => print(&generated)?,
    }
    Ok(Outcome::Fine)
}

/// Reports what stands against the export; `--force` accepts what a person may accept.
fn acceptable(generated: &Generated, options: &Options) -> bool {
    let mut acceptable = true;
    for problem in &generated.problems {
        if options.forced && problem.kind.can_be_forced() {
            tell("warning", &problem.message);
        } else {
            tell("error", &problem.message);
            acceptable = false;
        }
    }
    acceptable
}

/// Without a directory: the policies as one YAML stream.
fn print(generated: &Generated) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let sidecars = [KUSTOMIZATION_FILE, EVIDENCE_FILE, REPORT_FILE];
    for text in generated.files.iter().filter(|(name, _)| !sidecars.contains(&name.as_str())).map(|(_, text)| text) {
        out.write_all(b"---\n")?;
        out.write_all(text.as_bytes())?;
    }
    out.flush()?;
    Ok(())
}
