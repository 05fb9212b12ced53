//! `guardrail prune`: deletes exceptions that have ended.

use std::{io::Write as _, process::ExitCode, time::Duration};

use anyhow::bail;
use guardrail_graph::Timestamp;
use guardrail_kube::{
    Failure,
    exceptions::{self, PolicyObject},
    text::plain,
};
use guardrail_lifecycle::prune::{Fate, fate};
use guardrail_policy::{exception::LABEL, words::duration};

use crate::{
    exit::{Outcome, finish},
    input::{self, KubeArgs, tell},
};

/// Options of `guardrail prune`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Deletes policies that guardrail wrote for exceptions (label guardrail.dev/exception) and whose end has
come. What a GitOps tool applies is never deleted: it would come back, so its file is named instead.
Exit code 1 if something that has ended is still there.")]
pub(crate) struct Args {
    /// `kube`: the cluster of the kubeconfig, or of the pod's service account
    #[arg(value_name = "CLUSTER", value_parser = ["kube"])]
    cluster_name: String,

    /// Delete; without it only say what would be deleted
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    cluster: KubeArgs,
}

/// Runs `guardrail prune`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(prune(&args))
}

fn prune(args: &Args) -> anyhow::Result<Outcome> {
    let now = args.cluster.now();
    input::with_api(&args.cluster, async |api, limit| {
        let found =
            exceptions::list(api, LABEL, limit).await.map_err(|(resource, failure)| cannot_list(resource, failure))?;
        let mut out = std::io::stdout().lock();
        let mut left = 0_usize;
        for policy in &found {
            left += usize::from(!one(api, policy, (now, args.yes, limit), &mut out).await?);
        }
        out.flush()?;
        Ok(if left == 0 { Outcome::Fine } else { Outcome::Findings })
    })
}

/// Deals with one policy. Returns whether nothing is left to do about it.
async fn one(
    api: &guardrail_kube::Api,
    policy: &PolicyObject,
    (now, yes, limit): (Timestamp, bool, Duration),
    out: &mut impl std::io::Write,
) -> anyhow::Result<bool> {
    let name = plain(&format!("{} {}/{}", policy.resource, policy.namespace, policy.name));
    let ago = |expires: Timestamp| format!("ended {} ago", duration(now.since(expires)));
    match fate(&policy.name, &policy.labels, &policy.annotations, now) {
        Fate::Open(_) => return Ok(true),
        Fate::Foreign => {
            tell("warning", &format_args!("{name} has the label {LABEL}, and guardrail did not write it: it stays"));
            return Ok(true);
        }
        Fate::Endless => tell("error", &format_args!("{name} says no end that can be read: it stays")),
        Fate::Tracked { expires, by } => tell(
            "error",
            &format_args!(
                "{name} {}, and {by} applies it: remove the file {} where {by} reads it",
                ago(expires),
                plain(&format!("{}.{}.yaml", policy.namespace, policy.name)),
            ),
        ),
        Fate::Delete(expires) if !yes => writeln!(out, "would delete {name}, {}", ago(expires))?,
        Fate::Delete(expires) => match exceptions::delete(api, policy, limit).await {
            Ok(()) => {
                writeln!(out, "deleted {name}, {}", ago(expires))?;
                return Ok(true);
            }
            Err(Failure::Forbidden(said)) => {
                bail!("no permission to delete {name}: grant the verb delete on {} ({})", policy.resource, plain(&said))
            }
            Err(failure) => tell("error", &format_args!("{name} stays: {}", plain(&failure.to_string()))),
        },
    }
    Ok(false)
}

fn cannot_list(resource: &str, failure: Failure) -> anyhow::Error {
    match failure {
        Failure::Forbidden(said) => {
            anyhow::anyhow!("no permission to list {resource}: grant the verb list on them ({})", plain(&said))
        }
        other => anyhow::anyhow!("cannot list {resource}: {}", plain(&other.to_string())),
    }
}
