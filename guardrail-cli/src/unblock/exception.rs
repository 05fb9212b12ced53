//! The exception that goes into the plan.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use guardrail_graph::{Timestamp, WorkloadRef};
use guardrail_lifecycle::{
    export as lifecycle,
    plan::{self, Exception, ExceptionEnd, MAX_ID, Plan, PlanPort},
    unblock::Unblock,
};
use guardrail_policy::{
    evaluate::Evaluator,
    exception::{ExceptionMark, Opening},
    generate::Format,
    words::duration,
};
use serde::Serialize;

use crate::{
    input::{self, KubeArgs},
    output,
    place::{self, Place},
    plan::means,
};

/// Options about the exception.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options for the exception")]
pub(super) struct ExceptionArgs {
    /// Add the exception to this plan file, whose comments and order stay as they are
    #[arg(long, value_name = "FILE", requires_all = ["reason", "owner"])]
    plan: Option<PathBuf>,

    /// The environment of the plan that it is for; without it the exception holds in all
    #[arg(long, value_name = "NAME", requires = "plan")]
    environment: Option<String>,

    /// For how long
    #[arg(long = "for", value_name = "DURATION", default_value = "72h", value_parser = super::length)]
    length: Duration,

    /// Why it is needed
    #[arg(long, value_name = "TEXT", value_parser = line)]
    reason: Option<String>,

    /// Who answers for it
    #[arg(long, value_name = "TEXT", value_parser = line)]
    owner: Option<String>,

    /// What it is called: lower case letters, digits and `-`; without it, by its ends
    #[arg(long, value_name = "NAME", value_parser = name)]
    id: Option<String>,
}

fn line(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() {
        return Err("it is empty; write something");
    }
    if text.chars().any(char::is_control) {
        return Err("it has more than one line, or control characters; write one line");
    }
    Ok(text.trim().to_owned())
}

fn name(text: &str) -> Result<String, String> {
    if plan::is_exception_id(text) {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` becomes part of an object's name: write at most {MAX_ID} lower case letters, digits and `-`"))
}

/// What goes into the plan, but for the connection.
pub(super) struct Draft {
    path: PathBuf,
    file: String,
    text: String,
    plan: Plan,
    environment: Option<String>,
    expires: Timestamp,
    now: Timestamp,
    reason: String,
    owner: String,
    id: Option<String>,
}

/// The exception as it stands in the plan.
#[derive(Debug, Serialize)]
pub(super) struct Written {
    id: String,
    expires: Timestamp,
    file: String,
    line: u32,
    environments: BTreeSet<String>,
    /// It was not there before.
    pub(super) is_new: bool,
    #[serde(skip)]
    told: String,
}

impl ExceptionArgs {
    /// Reads the plan, if one is named. Its environment says which cluster `kube` means.
    pub(super) fn read(&self, cluster: &mut KubeArgs) -> anyhow::Result<Option<Draft>> {
        let Self { plan, environment, length, reason, owner, id } = self;
        let (Some(path), Some(reason), Some(owner)) = (plan, reason, owner) else {
            return Ok(None);
        };
        let name = path.to_string_lossy();
        if name == "-" || name.contains("://") {
            bail!("--plan {name} cannot be written: name a file");
        }
        let bytes = input::bytes(&name, crate::plan::MAX_BYTES)?;
        let plan = plan::read(&name, &bytes)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| anyhow::anyhow!("{name}:1: it is no UTF-8, so nothing can be added; save it as UTF-8"))?;
        if let Some(environment) = environment {
            let found = plan.environment(environment).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
            means(cluster, &name, environment, found)?;
        }
        if let Some(limit) = plan.admission.max_duration.filter(|limit| length > limit) {
            bail!(
                "--for {} is longer than {name} allows: admission.maxDuration is {}",
                duration(*length),
                duration(limit)
            );
        }
        let now = cluster.now();
        Ok(Some(Draft {
            path: path.clone(),
            file: name.into_owned(),
            text,
            plan,
            environment: environment.clone(),
            expires: ends(now, *length),
            now,
            reason: reason.clone(),
            owner: owner.clone(),
            id: id.clone(),
        }))
    }

    /// What it would be without a plan.
    pub(super) fn opening(&self, from: &ExceptionEnd, to: &ExceptionEnd, port: PlanPort, now: Timestamp) -> Opening {
        Opening {
            mark: ExceptionMark {
                id: self.id.clone().unwrap_or_else(|| id_of(from, to, port)),
                expires: ends(now, self.length),
                reason: self.reason.clone().unwrap_or_else(|| "(--reason)".to_owned()),
                owner: self.owner.clone().unwrap_or_else(|| "(--owner)".to_owned()),
            },
            from: from.clone(),
            to: to.clone(),
            ports: [(port.protocol, port.port)].into(),
        }
    }
}

/// Whole seconds: no longer than was asked for.
fn ends(now: Timestamp, length: Duration) -> Timestamp {
    Timestamp::from_unix_seconds(now.after(length).as_unix_ns().div_euclid(1_000_000_000))
}

impl Draft {
    /// The exception that the plan has for it already, or the one that it gets.
    pub(super) fn opening(&self, from: &ExceptionEnd, to: &ExceptionEnd, port: PlanPort) -> Opening {
        match self.known(from, to, port) {
            Some(known) => lifecycle::opening(known),
            None => Opening {
                mark: ExceptionMark {
                    id: self.id(from, to, port),
                    expires: self.expires,
                    reason: self.reason.clone(),
                    owner: self.owner.clone(),
                },
                from: from.clone(),
                to: to.clone(),
                ports: [(port.protocol, port.port)].into(),
            },
        }
    }

    /// The exception of the plan that opens this, here, and has not ended.
    fn known(&self, from: &ExceptionEnd, to: &ExceptionEnd, port: PlanPort) -> Option<&Exception> {
        let applies = |exception: &&Exception| match &self.environment {
            Some(name) => exception.applies_in(name),
            None => exception.environments.is_empty(),
        };
        let same = |exception: &&Exception| {
            exception.from == *from
                && exception.to == *to
                && exception.ports.contains(&port)
                && !exception.is_over(self.now)
        };
        self.plan.exceptions.iter().filter(same).find(applies)
    }

    /// What the exception is called: as was asked for, or by its ends, and like none that is there.
    fn id(&self, from: &ExceptionEnd, to: &ExceptionEnd, port: PlanPort) -> String {
        if let Some(id) = &self.id {
            return id.clone();
        }
        let base = id_of(from, to, port);
        let is_free = |id: &String| self.plan.exceptions.iter().all(|exception| exception.id != *id);
        let numbered = (2..).map(|number| {
            let end = format!("-{number}");
            format!("{}{end}", cut(&base, MAX_ID - end.len()))
        });
        std::iter::once(base.clone()).chain(numbered).find(is_free).unwrap_or_default()
    }

    /// Sensitive workloads that are opened, by the environment, or by any.
    pub(super) fn sensitive(&self, to: &ExceptionEnd, answer: &Unblock, evaluator: &Evaluator) -> BTreeSet<String> {
        let Unblock::Exception(opening) = answer else { return BTreeSet::new() };
        let environments = self.plan.environments.iter();
        let environments: Vec<_> = environments
            .filter(|(name, _)| self.environment.as_ref().is_none_or(|wanted| wanted == *name))
            .map(|(_, environment)| environment)
            .collect();
        let opened: BTreeSet<String> =
            opening.also.iter().map(|pair| pair.to.clone()).chain([to.to_string()]).collect();
        let workloads: BTreeSet<&WorkloadRef> =
            evaluator.cluster().pods.iter().filter_map(|pod| pod.workload.as_ref()).collect();
        let is_sensitive =
            |workload: &&WorkloadRef| environments.iter().any(|environment| environment.is_sensitive(workload));
        let names = workloads.into_iter().filter(is_sensitive).map(ToString::to_string);
        names.filter(|name| opened.contains(name)).collect()
    }

    /// Adds the exception to the file, unless it has it.
    pub(super) fn write(&self, opening: &Opening) -> anyhow::Result<Written> {
        let Opening { mark, from, to, ports } = opening;
        let id = &mark.id;
        if let Some(other) = self.plan.exceptions.iter().find(|other| other.id == *id) {
            if lifecycle::opening(other) == *opening {
                return Ok(self.written(other, false));
            }
            bail!("{}:{}: an exception is called {id} already; give --id another name", self.file, other.line);
        }
        let exception = Exception {
            id: id.clone(),
            from: from.clone(),
            to: to.clone(),
            ports: ports.iter().map(|(protocol, port)| PlanPort { port: *port, protocol: *protocol }).collect(),
            expires: mark.expires,
            reason: mark.reason.clone(),
            owner: mark.owner.clone(),
            environments: self.environment.iter().cloned().collect(),
            line: 0,
        };
        let text = plan::with_exception(&self.file, &self.text, &exception)?;
        let plan = plan::read(&self.file, text.as_bytes())?;
        let written = plan.exceptions.iter().find(|there| there.id == *id);
        let written = written.with_context(|| format!("{}: the exception is not in the new text", self.file))?;
        replace(&self.path, text.as_bytes()).with_context(|| format!("cannot write {}", self.file))?;
        Ok(self.written(written, true))
    }

    fn written(&self, exception: &Exception, is_new: bool) -> Written {
        Written {
            id: exception.id.clone(),
            expires: exception.expires,
            file: self.file.clone(),
            line: exception.line,
            environments: exception.environments.clone(),
            is_new,
            // The end is whole seconds, so the beginning is.
            told: duration(exception.expires.since(ends(self.now, Duration::ZERO))),
        }
    }
}

impl Written {
    pub(super) fn text(&self, out: &mut impl Write, format: Format) -> anyhow::Result<()> {
        let Self { id, expires, file, line, environments, is_new, told } = self;
        let begins = if *is_new {
            format!("Written: exception {id} at {file}:{line}, until {expires} ({told}).")
        } else {
            format!("{file}:{line} has exception {id} for it already, until {expires} ({told} from now).")
        };
        super::paragraph(out, &begins)?;
        let environment = environments.first().map_or("NAME", String::as_str);
        let format = if format == Format::default() { String::new() } else { format!(" --format {format}") };
        let export = format!("guardrail export SNAPSHOT --plan {file} --environment {environment} -d DIR{format}");
        writeln!(out, "Its policies are written by: {}", output::plain_line(&export))?;
        Ok(())
    }
}

/// By its ends: `legacy-db-5432`.
fn id_of(from: &ExceptionEnd, to: &ExceptionEnd, port: PlanPort) -> String {
    let name = |end: &ExceptionEnd| match end {
        ExceptionEnd::Workload(workload) => workload.name.clone(),
        ExceptionEnd::Range(range) => range.addr().to_string(),
    };
    let tail = format!("-{}", port.port);
    let text = format!("{}-{}", name(from), name(to)).to_lowercase();
    let text: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{}{tail}", cut(text.trim_start_matches('-'), MAX_ID - tail.len()))
}

fn cut(text: &str, length: usize) -> &str {
    text[..text.len().min(length)].trim_end_matches('-')
}

/// A new file in the place of the old one, with its permissions.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let Place::File(file) = place::place(path)? else {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no regular file"));
    };
    let permissions = fs::metadata(&file)?.permissions();
    let staged = place::stage(&file, bytes, permissions.mode())?;
    // What the umask took away.
    fs::set_permissions(&staged, permissions)?;
    place::persist(vec![(staged, file)])
}
