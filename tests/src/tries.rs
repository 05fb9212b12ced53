//! Tries single connections, and holds what packets did against what `guardrail check` says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    agent::guardrail,
    app::{
        log::{Outcome, Record, Side},
        scenario::{AddressRange, Call, How, Scenario},
    },
    lab::{Lab, process::AppProcess},
};

/// How long a try waits for an answer; what was dropped costs this, all tries of a round together.
const TIMEOUT_MS: u32 = 2000;

/// Who tries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trier {
    /// A pod, by `namespace/name`.
    Pod(String),
    /// A process of the node with this index, outside any pod.
    Node(usize),
    /// Somebody on the internet with this address.
    Internet(IpAddr),
}

/// One connection to try.
#[derive(Clone, Debug)]
pub struct Try {
    /// Who.
    pub trier: Trier,
    /// What is asked for: `address:port`, or a DNS name with [`How::DnsMusl`].
    pub to: String,
    /// How.
    pub how: How,
    /// What policies judge, as `guardrail check --flows` takes it: destination and port of the pod.
    pub judged: (String, u16),
}

impl Try {
    /// A connection over TCP that nobody translates.
    #[must_use]
    pub fn tcp(trier: Trier, to: SocketAddr) -> Self {
        Self { trier, to: to.to_string(), how: How::Tcp, judged: (to.ip().to_string(), to.port()) }
    }

    /// The same over UDP.
    #[must_use]
    pub fn udp(trier: Trier, to: SocketAddr) -> Self {
        Self { how: How::UdpConnected, ..Self::tcp(trier, to) }
    }

    /// The same, with what policies judge.
    #[must_use]
    pub fn judged(self, destination: &str, port: u16) -> Self {
        Self { judged: (destination.to_owned(), port), ..self }
    }

    fn protocol(&self) -> &'static str {
        if self.how == How::Tcp { "TCP" } else { "UDP" }
    }
}

/// Makes the tries, all at once, each from a process of its own beside those that run, and says
/// which reached whoever is there. `round` is a word that no other round of this lab has.
///
/// # Errors
/// A process fails, or a try ended in a way that is neither.
pub fn run(lab: &Lab, round: &str, tries: &[Try]) -> Result<Vec<bool>> {
    let mut calls: BTreeMap<&Trier, Vec<Call>> = BTreeMap::new();
    let mut asked = BTreeSet::new();
    for Try { trier, to, how, judged: _ } in tries {
        let mut call = Call::new(to, *how, 1).timeout(TIMEOUT_MS);
        if let Trier::Internet(first) = trier {
            call.sources = Some(AddressRange { first: *first, count: 1 });
        }
        if asked.insert((trier, to, *how == How::Tcp)) {
            calls.entry(trier).or_default().push(call);
        }
    }
    let mut processes: Vec<(&Trier, AppProcess)> = Vec::new();
    for (trier, after) in calls {
        let scenario = Scenario { after, resolver: lab.resolver(), ..Scenario::default() };
        let process = match trier {
            Trier::Pod(key) => lab.start_in_pod(key, &format!(":{round}"), scenario)?,
            Trier::Node(node) => lab.start_on_node(*node, round, scenario)?,
            Trier::Internet(address) => lab.start_on_internet(&format!("{address}-{round}"), scenario)?,
        };
        processes.push((trier, process));
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    processes.iter().try_for_each(|(_, p)| p.wait_for("ready", deadline))?;
    processes.iter_mut().try_for_each(|(_, p)| p.go())?;
    processes.iter().try_for_each(|(_, p)| p.wait_for("done", deadline))?;
    let records = lab.records()?;
    let arrived: BTreeSet<&str> =
        records.iter().filter(|r| r.side == Side::Server).filter_map(|r| r.id.as_deref()).collect();
    let mut outcomes: BTreeMap<(&str, &str, &str), &Record> = BTreeMap::new();
    for record in records.iter().filter(|r| r.side == Side::Client) {
        let key = (record.process.as_str(), record.target.as_deref().unwrap_or_default(), record.protocol.as_str());
        outcomes.insert(key, record);
    }
    let mut reached = Vec::new();
    for one in tries {
        let process = &processes.iter().find(|(t, _)| **t == one.trier).context("each trier has a process")?.1;
        let record = outcomes
            .get(&(process.name(), one.to.as_str(), one.protocol()))
            .with_context(|| format!("no record of {one:?}"))?;
        let arrived = record.id.as_deref().is_some_and(|id| arrived.contains(id));
        reached.push(match record.outcome {
            Outcome::Established | Outcome::Refused => true,
            // A server may listen without an answer; a proxy takes what it cannot carry on.
            Outcome::Unanswered | Outcome::Broken => arrived,
            other => bail!("{one:?} was {other:?}"),
        });
    }
    for (_, process) in &mut processes {
        process.stop()?;
    }
    Ok(reached)
}

/// What `guardrail check` says of the tries by the policies below a directory, with more arguments.
///
/// # Errors
/// It cannot answer, or not for each of them.
pub fn verdicts(lab: &Lab, directory: &Path, tries: &[Try], extra: &[&str]) -> Result<Vec<bool>> {
    let mut flows = "src,dst,protocol,port\n".to_owned();
    for one in tries {
        let source = match &one.trier {
            Trier::Pod(key) => key.clone(),
            Trier::Node(node) => crate::cluster::node_addresses(*node).0.to_string(),
            Trier::Internet(address) => address.to_string(),
        };
        writeln!(flows, "{source},{},{},{}", one.judged.0, one.protocol(), one.judged.1)?;
    }
    let file = lab.directory.join("tries.csv");
    fs::write(&file, flows)?;
    let inventory = lab.inventory();
    let mut args = vec!["check".as_ref(), "--flows".as_ref(), file.as_os_str(), "--policies".as_ref()];
    args.extend([directory.as_os_str(), "--inventory".as_ref(), inventory.as_os_str(), "-o".as_ref(), "csv".as_ref()]);
    args.extend(extra.iter().map(std::ffi::OsStr::new));
    let output = guardrail(args)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !matches!(output.status.code(), Some(0 | 1)) {
        bail!("guardrail check: {}: {said}", output.status);
    }
    let text = String::from_utf8(output.stdout)?;
    let verdicts = text.lines().skip(1).map(|line| match line.split(',').nth(4) {
        Some("allowed") => Ok(true),
        Some("denied") => Ok(false),
        _ => bail!("guardrail check: no verdict in `{line}`: {said}"),
    });
    let verdicts = verdicts.collect::<Result<Vec<_>>>()?;
    if verdicts.len() != tries.len() {
        bail!("guardrail check answers {} of {} flows: {said}", verdicts.len(), tries.len());
    }
    Ok(verdicts)
}

/// Every try that ended otherwise than expected, as text; empty: none.
#[must_use]
pub fn differences(tries: &[Try], reached: &[bool], expected: &[bool]) -> String {
    let mut text = String::new();
    for (one, (reached, expected)) in tries.iter().zip(reached.iter().zip(expected)) {
        if reached != expected {
            let word = |passes: &bool| if *passes { "passes" } else { "is dropped" };
            let Try { trier, to, judged: (destination, port), .. } = one;
            let _ = writeln!(
                text,
                "{trier:?} -> {to} {} (judged at {destination} {port}): {}, where it {}",
                one.protocol(),
                word(reached),
                word(expected)
            );
        }
    }
    text
}
