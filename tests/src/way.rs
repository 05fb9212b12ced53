//! The whole way of a cluster with guardrail, on real packets: plan, status, policies, an unknown
//! caller, drift, blocked, unblock, and the end of the exception. The demo and its test go it.
//!
//! Input: a lab in which much was observed already, its agent, and who is to be closed to whom.
//! Every step is a command as a user types it, in a directory with the files of a user; its exit
//! code is held against what it must be.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    agent::Agent,
    bins,
    enforce::{AskedPlace, Judge, Memory, enforce},
    lab::{Lab, wait_until},
    shop::Shop,
    tries::{self, Trier, Try},
};

/// For how long the exception holds, and by when it is over.
const OPEN: &str = "1h";
const LATER: Duration = Duration::from_hours(2);
/// How long the agent may take to show an attempt.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who is closed, and who comes along.
#[derive(Clone, Debug)]
pub struct Ends {
    /// The sensitive workload, `NAMESPACE/KIND/NAME`.
    pub sensitive: String,
    /// A pod of it, `NAMESPACE/NAME`.
    pub server: String,
    /// The port that it serves over TCP.
    pub port: u16,
    /// The workload that never called it, `NAMESPACE/KIND/NAME`.
    pub stranger: String,
    /// A pod of it.
    pub client: String,
}

impl Ends {
    /// Of the shop: the database, and who never called it.
    #[must_use]
    pub fn of_shop(shop: &Shop) -> Self {
        Self {
            sensitive: "data/StatefulSet/db".to_owned(),
            server: shop.pods("db").remove(0),
            port: 5432,
            stranger: "ops/Deployment/metrics".to_owned(),
            client: shop.pods("metrics").remove(0),
        }
    }
}

/// What happened in a step.
#[derive(Clone, Debug)]
pub enum Step {
    /// A user edits a file: what changes.
    Edit(String),
    /// A command was run.
    Command {
        /// As it is typed.
        line: String,
        /// Its exit code.
        code: i32,
        /// Standard output.
        stdout: String,
        /// Standard error.
        stderr: String,
    },
    /// The policies below a directory are in force now, on real packets.
    Applied(String),
    /// The stranger called.
    Called {
        /// Who called whom.
        who: String,
        /// Whether it got through.
        passed: bool,
    },
}

/// Goes the way, and gives each step to `tell` when it is done.
///
/// # Errors
/// A step does not end as it must; the message has what it said.
pub fn walk(
    lab: &Lab,
    agent: &Agent,
    directory: &Path,
    ends: &Ends,
    tell: &mut dyn FnMut(&Step) -> Result<()>,
) -> Result<()> {
    fs::create_dir_all(directory)?;
    fs::copy(lab.inventory(), directory.join("cluster.yaml"))?;
    let mut way = Way { lab, agent, directory, ends, tell, calls: 0 };
    way.look("observed.json")?;
    way.run(0, &["init", "observed.json", "--output", "guardrail.yaml"])?;
    way.plan()?;
    way.run(1, &["status", "observed.json", PLAN, ENVIRONMENT, INVENTORY])?;
    way.run(0, &["export", "observed.json", PLAN, ENVIRONMENT, INVENTORY, "-d", "policies"])?;

    // Somebody comes who was not there when the policies were made, and they are not in force yet.
    way.call(true)?;
    let met =
        way.until(&["drift", "later.json", POLICIES, PLAN, ENVIRONMENT, INVENTORY], &["GD001", &ends.stranger])?;
    way.told(1, met)?;
    let since = way.apply("policies")?;
    way.run(0, &["status", "later.json", POLICIES, PLAN, ENVIRONMENT, INVENTORY])?;
    let since = format!("--policies-since={}", rfc3339(since)?);
    let blocked = way.refused(&["blocked", "later.json", POLICIES, INVENTORY, &since])?;
    way.told(1, blocked)?;

    let (from, to) = (format!("--from={}", ends.stranger), format!("--to={}", ends.sensitive));
    let (port, open) = (format!("--port={}", ends.port), format!("--for={OPEN}"));
    let why = ["--reason=the new dashboard", "--owner=team-ops"];
    let ask = ["unblock", "later.json", POLICIES, INVENTORY, &from, &to, &port, PLAN, ENVIRONMENT, &open];
    way.run(0, &[&ask[..], &why].concat())?;
    way.run(0, &["export", "later.json", PLAN, ENVIRONMENT, INVENTORY, "-d", "policies"])?;
    way.apply("policies")?;
    way.call(true)?;

    // Time passes.
    let now = format!("--now={}", rfc3339(SystemTime::now() + LATER)?);
    way.look("later.json")?;
    way.run(1, &["drift", "later.json", POLICIES, PLAN, ENVIRONMENT, INVENTORY, &now])?;
    way.run(0, &["export", "later.json", PLAN, ENVIRONMENT, INVENTORY, "-d", "policies", &now])?;
    way.apply("policies")?;
    way.call(false)
}

const PLAN: &str = "--plan=guardrail.yaml";
const ENVIRONMENT: &str = "--environment=production";
const INVENTORY: &str = "--inventory=cluster.yaml";
const POLICIES: &str = "--policies=policies";

struct Way<'a, 'b> {
    lab: &'a Lab,
    agent: &'a Agent,
    directory: &'a Path,
    ends: &'a Ends,
    tell: &'b mut dyn FnMut(&Step) -> Result<()>,
    /// How often the stranger called.
    calls: usize,
}

impl Way<'_, '_> {
    /// What the agent has seen so far, as a file.
    fn look(&self, name: &str) -> Result<()> {
        fs::write(self.directory.join(name), self.agent.get("/v1/graph")?.1).context(name.to_owned())
    }

    /// What a person decides: production is constrain, the sensitive workload that `init` suggests
    /// is meant, and what was observed is enough.
    fn plan(&mut self) -> Result<()> {
        let path = self.directory.join("guardrail.yaml");
        let text = fs::read_to_string(&path)?;
        let (before, production) = text.split_once("    production:\n").context("init writes no production")?;
        let (mut told, mut changed) = (String::new(), String::new());
        for line in production.lines() {
            let is_suggested = line.trim_start().starts_with(&format!("# - {} ", self.ends.sensitive));
            let new = if line.starts_with("      phase: ") {
                "      phase: constrain".to_owned()
            } else if line.starts_with("      gates: ") {
                "      gates: {window: 1s, coverage: 100}".to_owned()
            } else if is_suggested || line.trim_start().starts_with("# sensitive:") {
                line.replacen("# ", "", 1)
            } else {
                line.to_owned()
            };
            if new != line {
                told += &format!("{new}\n");
            }
            changed += &format!("{new}\n");
        }
        if !told.contains(&self.ends.sensitive) {
            bail!("init does not suggest that {} is sensitive:\n{text}", self.ends.sensitive);
        }
        fs::write(&path, format!("{before}    production:\n{changed}"))?;
        (self.tell)(&Step::Edit(told))
    }

    /// Runs a command to its end.
    fn command(&self, args: &[&str]) -> Result<Step> {
        let output = Command::new(bins::find("guardrail"))
            .args(args)
            .current_dir(self.directory)
            .stdin(Stdio::null())
            .output()
            .context("cannot run guardrail")?;
        let text = |bytes| String::from_utf8(bytes).context("guardrail prints no UTF-8");
        let mut line = "guardrail".to_owned();
        for arg in args {
            let arg = arg.replacen('=', " ", usize::from(arg.starts_with("--")));
            let quoted = arg.split_once(' ').filter(|(_, value)| value.contains(' '));
            match quoted {
                Some((name, value)) => write!(line, " {name} '{value}'")?,
                None => write!(line, " {arg}")?,
            }
        }
        let code = output.status.code().with_context(|| format!("{line}: {}", output.status))?;
        Ok(Step::Command { line, code, stdout: text(output.stdout)?, stderr: text(output.stderr)? })
    }

    /// Runs a command that must end with this code.
    fn run(&mut self, code: i32, args: &[&str]) -> Result<()> {
        let step = self.command(args)?;
        self.told(code, step)
    }

    fn told(&mut self, expected: i32, step: Step) -> Result<()> {
        if let Step::Command { line, code, stdout, stderr } = &step
            && *code != expected
        {
            bail!("{line}: exit code {code}, not {expected}\n{stdout}{stderr}");
        }
        (self.tell)(&step)
    }

    /// Runs a command on what the agent has seen until its output has all of these words.
    fn until(&self, args: &[&str], words: &[&str]) -> Result<Step> {
        let mut last = None;
        wait_until(PATIENCE, "the agent shows the call", || {
            let step = self.look("later.json").and_then(|()| self.command(args)).ok()?;
            let Step::Command { stdout, .. } = &step else { return None };
            // However the table wraps them.
            let is_there = words.iter().all(|word| flat(stdout).contains(&flat(word)));
            last = Some(step);
            is_there.then_some(())
        })
        .with_context(|| format!("{last:?}"))?;
        last.context("nothing was run")
    }

    /// The stranger calls until its failures are surely later than its last success.
    fn refused(&mut self, args: &[&str]) -> Result<Step> {
        let mut last = None;
        wait_until(PATIENCE, "the stranger is named as blocked", || {
            let passed = self.try_call().ok()?;
            let step = self.look("later.json").and_then(|()| self.command(args)).ok()?;
            let Step::Command { stdout, .. } = &step else { return None };
            let is_there = !passed && flat(stdout).contains(&flat(&self.ends.stranger));
            last = Some(step);
            is_there.then_some(())
        })
        .with_context(|| format!("{last:?}"))?;
        self.called(false)?;
        last.context("nothing was run")
    }

    /// Puts the policies below a directory into force; gives the time from which they are.
    fn apply(&mut self, name: &str) -> Result<SystemTime> {
        let judge = Judge { egress: AskedPlace::Backend, memory: Memory::Connection };
        enforce(self.lab, judge, &self.directory.join(name))?;
        (self.tell)(&Step::Applied(name.to_owned()))?;
        Ok(SystemTime::now())
    }

    /// The stranger calls, which must end so.
    fn call(&mut self, passes: bool) -> Result<()> {
        let passed = self.try_call()?;
        if passed != passes {
            bail!("{} -> {}: {}", self.ends.client, self.ends.server, if passed { "passed" } else { "was dropped" });
        }
        self.called(passed)
    }

    fn called(&mut self, passed: bool) -> Result<()> {
        let Ends { stranger, sensitive, port, .. } = self.ends;
        (self.tell)(&Step::Called { who: format!("{stranger} -> {sensitive} {port}/TCP"), passed })
    }

    fn try_call(&mut self) -> Result<bool> {
        self.calls += 1;
        let server = self.lab.cluster.pod(&self.ends.server).addresses.0;
        let one = Try::tcp(Trier::Pod(self.ends.client.clone()), (server, self.ends.port).into());
        Ok(tries::run(self.lab, &format!("stranger-{}", self.calls), &[one])?[0])
    }
}

/// Without white space: tables wrap where they must.
fn flat(text: &str) -> String {
    text.split_whitespace().collect()
}

/// `2026-03-01T12:00:00Z`.
fn rfc3339(time: SystemTime) -> Result<String> {
    let seconds = time.duration_since(UNIX_EPOCH).context("a time before 1970")?.as_secs();
    let output = Command::new("date").args(["-u", "-d", &format!("@{seconds}"), "+%FT%TZ"]).output()?;
    Ok(String::from_utf8(output.stdout).context("date prints no UTF-8")?.trim().to_owned())
}
