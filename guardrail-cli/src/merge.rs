//! `guardrail merge`: several snapshots as one.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;

use crate::{
    coverage,
    exit::{Outcome, finish},
    input::{self, KubeArgs, tell},
};

/// Options of `guardrail merge`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Snapshots: files, `-`, http(s)://…/v1/graph, or kube[:NAMESPACE] for all agents of a cluster
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,

    /// File to write; it is replaced as a whole or not at all. Without it the result goes to stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    cluster: KubeArgs,
}

/// Runs `guardrail merge`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(merge(&args))
}

fn merge(args: &Args) -> anyhow::Result<Outcome> {
    let Args { snapshots, output, cluster } = args;
    let snapshot = input::snapshots(snapshots, cluster)?;
    let text = snapshot.to_json();
    match output {
        Some(file) => replace(file, text.as_bytes()).with_context(|| format!("cannot write {}", file.display()))?,
        None => {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
    }
    for reason in coverage::incomplete(&snapshot) {
        tell("warning", &format!("the merged graph is incomplete: {reason}"));
    }
    Ok(Outcome::Fine)
}

/// Writes beside the file and renames, so that nobody reads half of it.
fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let name = file.file_name().ok_or(std::io::ErrorKind::IsADirectory)?;
    let mut temporary = name.to_os_string();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = file.with_file_name(temporary);
    let written = std::fs::File::create(&temporary).and_then(|mut f| {
        f.write_all(bytes)?;
        f.sync_all()
    });
    let renamed = written.and_then(|()| std::fs::rename(&temporary, file));
    if renamed.is_err() {
        // The first error is the one to tell.
        drop(std::fs::remove_file(&temporary));
    }
    renamed
}
