//! The plan file on the command line: read, checked against the time, the environment and the
//! cluster that is asked.

use std::path::{Path, PathBuf};

use anyhow::bail;
use guardrail_graph::{Snapshot, Timestamp};
use guardrail_lifecycle::{
    export::known_workloads,
    plan::{self, Environment, Exception, Plan, PlanError, Unmatched},
};
use guardrail_policy::{evaluate::Cluster, exception::ExceptionMark};

use crate::input::{self, KubeArgs, tell};

/// Largest plan, bytes.
pub(crate) const MAX_BYTES: usize = 16 << 20;

/// Options that name a plan and an environment of it.
#[derive(Debug, clap::Args)]
pub(crate) struct PlanArgs {
    /// The plan file: what each namespace is meant to be
    #[arg(long, value_name = "FILE", requires = "environment")]
    plan: Option<PathBuf>,

    /// The environment of the plan that is asked about
    #[arg(long, value_name = "NAME", requires = "plan")]
    environment: Option<String>,
}

/// A plan, and one environment of it.
pub(crate) struct Planned {
    /// The whole plan.
    pub(crate) plan: Plan,
    /// The name of the environment.
    pub(crate) name: String,
    /// How messages call the file.
    file: String,
}

impl Planned {
    /// How messages call the file.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// The environment.
    pub(crate) fn environment(&self) -> anyhow::Result<&Environment> {
        self.plan.environment(&self.name).map_err(|error| anyhow::anyhow!("{}: {error}", self.file))
    }

    /// Warns of workloads that the plan names and nobody knows.
    pub(crate) fn warn_of_unknown(&self, snapshot: &Snapshot, cluster: &Cluster) {
        for (line, message) in self.plan.unknown_workloads(&known_workloads(snapshot, cluster)) {
            tell("warning", &format_args!("{}:{line}: {message}", self.file));
        }
    }

    /// Refuses an exception that goes on beyond the end that an earlier export wrote, with the
    /// reason that it had then: whoever renews it says why it is still needed.
    pub(crate) fn renewals_are_explained(&self, written: &[ExceptionMark], now: Timestamp) -> anyhow::Result<()> {
        let here = self.plan.exceptions.iter().filter(|e| e.applies_in(&self.name) && !e.is_over(now));
        let renewed: Vec<String> = here
            .filter_map(|exception| {
                let before = written.iter().find(|before| exception.goes_on_unexplained(before))?;
                let (Exception { id, expires, line, .. }, until) = (exception, before.expires);
                Some(format!(
                    "{}:{line}: exception {id} was to end {until} and is to go on until {expires}: a new end needs a new reason",
                    self.file
                ))
            })
            .collect();
        if !renewed.is_empty() {
            bail!("{}\nnothing was written", renewed.join("\n"));
        }
        Ok(())
    }

    /// Refuses a sensitive workload of the environment that nobody knows and that is nearly
    /// somebody's name: it would stay open while a person believes it closed. Tells of the others,
    /// and returns whether there are any that stand for one workload.
    pub(crate) fn sensitive_are_known(&self, snapshot: &Snapshot, cluster: &Cluster) -> anyhow::Result<bool> {
        let known = known_workloads(snapshot, cluster);
        let unmatched = self.environment()?.unmatched(&known);
        let told = |unmatched: &Unmatched<'_>| {
            format!("{}:{}: {}", self.file, unmatched.glob.line(), unmatched.told(&self.name))
        };
        let misspelt: Vec<String> = unmatched.iter().filter(|u| u.near.is_some()).map(told).collect();
        if !misspelt.is_empty() {
            bail!("{}\nnothing was written: what is meant to be closed would stay open", misspelt.join("\n"));
        }
        let missing: Vec<String> = unmatched.iter().filter(|u| u.glob.is_exact()).map(told).collect();
        missing.iter().for_each(|message| tell("error", message));
        Ok(missing.is_empty())
    }
}

impl PlanArgs {
    /// Reads the plan, if one is named. Its environment says which cluster `kube` means.
    pub(crate) fn read(&self, cluster: &mut KubeArgs) -> anyhow::Result<Option<Planned>> {
        let (Some(path), Some(name)) = (&self.plan, &self.environment) else { return Ok(None) };
        let (plan, file) = load(path, cluster.now())?;
        let planned = Planned { plan, name: name.clone(), file };
        means(cluster, &planned.file, name, planned.environment()?)?;
        Ok(Some(planned))
    }
}

/// Reads a plan file. Gives the plan, and how messages call the file.
pub(crate) fn load(path: &Path, now: Timestamp) -> anyhow::Result<(Plan, String)> {
    let path = path.to_string_lossy();
    let file = input::shown(&path).to_owned();
    let bytes = input::bytes(&path, MAX_BYTES + 1)?;
    if bytes.len() > MAX_BYTES {
        bail!("{file}:1: more than {} MiB, no plan is that large", MAX_BYTES >> 20);
    }
    let plan = plan::read(&file, &bytes)?;
    let problems = plan.too_long(&file, now);
    if !problems.is_empty() {
        return Err(PlanError { problems }.into());
    }
    Ok((plan, file))
}

/// `kube` means the cluster of this environment; another one is refused.
pub(crate) fn means(cluster: &mut KubeArgs, file: &str, name: &str, environment: &Environment) -> anyhow::Result<()> {
    let Some(context) = &environment.context else { return Ok(()) };
    match cluster.context() {
        Some(other) if other != context => {
            bail!("{file}: environment {name} is context {context}, and --context says {other}; name one of them")
        }
        _ => cluster.set_context(context),
    }
    Ok(())
}
