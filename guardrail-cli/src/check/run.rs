//! Reads the input, judges every flow, decides the exit code.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
};

use anyhow::bail;
use guardrail_graph::{Peer, Snapshot, inventory::Inventory};
use guardrail_policy::{
    check::{Check, Findings},
    evaluate::{AskedServices, End, Evaluator, RuleRef, SideVerdict, UnknownEnd, Verdict, common_addresses, families},
    model::{Direction, PortMatch, Protocol, logged::LoggedEnd, tier::TierPolicy},
    read::{self, Flow, Flows, PassedOver},
};

use super::{
    Args, Format, render,
    report::{Answer, Report, Row},
    translated::{Judged, Translated},
};
use crate::{
    coverage,
    exit::Outcome,
    explain::ends::{self, Ends},
    input::{self, tell},
    output::Progress,
    policies::{self, Loaded, Unproven},
};

/// Largest flow file, bytes.
const MAX_FLOWS_BYTES: usize = 1 << 30;
/// Wrong flows that are told of before the rest is left unread.
const MAX_WRONG: usize = 20;

pub(super) fn check(args: &Args) -> anyhow::Result<Outcome> {
    let Args {
        snapshots,
        flows,
        policies,
        inventory,
        output,
        allow_partial,
        allow_unproven,
        dataplane,
        cluster,
        span,
        all: _,
    } = args;
    if matches!(output, Format::Dot | Format::Markdown) {
        bail!("-o dot and -o markdown are for --all");
    }
    let snapshot = if snapshots.is_empty() { None } else { Some(input::snapshots(snapshots, cluster, span)?) };
    let bytes = match flows {
        Some(file) => input::bytes(file, MAX_FLOWS_BYTES + 1)?,
        None => Vec::new(),
    };
    let listed = match flows {
        Some(file) if bytes.len() > MAX_FLOWS_BYTES => {
            bail!("{file}:1: more than {} MiB of flows; split the file", MAX_FLOWS_BYTES >> 20)
        }
        Some(file) => read::flows(input::shown(file), &bytes)?,
        None => Flows::default(),
    };
    for (reason, count) in &listed.passed_over {
        let severity = if *reason == PassedOver::Lost { "warning" } else { "note" };
        tell(severity, &format!("{count} lines of the log {reason}: not judged"));
    }
    let Loaded { evaluator, before, objects, unproven, without_ports, .. } = policies::load_set(
        input::policies(policies, cluster)?,
        inventory,
        snapshot.as_ref(),
        (dataplane, cluster),
        &listed.flows,
    )?;
    let mut report = Report {
        flows: Vec::new(),
        allowed: 0,
        denied: 0,
        unproven: 0,
        unproven_because: Vec::new(),
        incomplete_because: snapshot.as_ref().map(coverage::incomplete).unwrap_or_default(),
        findings: Findings::default(),
    };
    let inventory = Inventory::from_objects(objects);
    let mut judge = Judge {
        evaluator: &evaluator,
        inventory: &inventory,
        services: flows.as_ref().and_then(|_| ends::asked_services(&evaluator, &inventory)),
        check: Check::new(&evaluator, &before),
        touched: vec![false; unproven.len()],
        unproven: &unproven,
        without_ports: &without_ports,
        named_ports: evaluator.forms().iter().any(has_named_port),
        allow_unproven: *allow_unproven,
    };
    match (&snapshot, flows) {
        (Some(snapshot), _) => report.flows = judge.edges(snapshot),
        (None, Some(file)) => report.flows = judge.flows(input::shown(file), listed.flows)?,
        (None, None) => bail!("name snapshots or --flows"),
    }
    report.unproven_because = judge.told();
    report.findings = judge.check.finish();
    for row in &report.flows {
        *match row.verdict {
            Answer::Allowed => &mut report.allowed,
            Answer::Denied => &mut report.denied,
            Answer::Unproven => &mut report.unproven,
        } += 1;
    }
    for reason in &report.incomplete_because {
        tell("warning", &format!("the observation is incomplete: {reason}"));
    }
    match output {
        Format::Table => render::table(&report)?,
        Format::Json => render::json(&report)?,
        Format::Csv => render::csv(&report)?,
        Format::Dot | Format::Markdown => bail!("-o dot and -o markdown are for --all"),
    }
    Ok(outcome(&report, *allow_partial))
}

fn outcome(report: &Report<'_>, allow_partial: bool) -> Outcome {
    if report.unproven > 0 {
        return Outcome::unproven();
    }
    if !report.incomplete_because.is_empty() && !allow_partial {
        return Outcome::partial();
    }
    if report.denied > 0 { Outcome::Findings } else { Outcome::Fine }
}

/// A flow or an edge without a verdict.
fn row<'a>(src: Cow<'a, str>, dst: Cow<'a, str>, (protocol, port): (Protocol, u16)) -> Row<'a> {
    Row {
        src,
        dst,
        protocol,
        port,
        verdict: Answer::Unproven,
        ingress_by: "-".to_owned(),
        egress_by: "-".to_owned(),
        exempt: None,
        restricted: false,
        reason: None,
    }
}

struct Judge<'a> {
    evaluator: &'a Evaluator,
    inventory: &'a Inventory,
    /// Services, where the network judges their own addresses.
    services: Option<AskedServices>,
    check: Check<'a>,
    /// What makes verdicts unproven, and whether it concerned one yet.
    unproven: &'a [Unproven],
    touched: Vec<bool>,
    /// Pods that a log alone knows: which of their ports have names is not known.
    without_ports: &'a BTreeSet<String>,
    /// Some rule asks for a port by name.
    named_ports: bool,
    allow_unproven: bool,
}

impl Judge<'_> {
    fn flows<'b>(&mut self, file: &str, flows: Vec<Flow<'b>>) -> anyhow::Result<Vec<Row<'b>>> {
        let mut ends: HashMap<Cow<'b, str>, Result<End, UnknownEnd>> = HashMap::new();
        let mut wrong = Vec::new();
        let mut rows = Vec::with_capacity(flows.len());
        let mut progress = Progress::new("flows", flows.len());
        for (flow, done) in flows.into_iter().zip(0..) {
            if wrong.len() == MAX_WRONG {
                break;
            }
            progress.at(done);
            let mut end = |name: &Cow<'b, str>| match ends.get(name) {
                Some(known) => known.clone(),
                None => {
                    let found = self.evaluator.end(name);
                    ends.insert(name.clone(), found.clone());
                    found
                }
            };
            let logged = |seen: &LoggedEnd| self.evaluator.end_seen_as(&seen.entities, seen.address);
            let (src_seen, dst_seen) = flow.logged.as_ref().map_or((None, None), |l| (Some(&l.src), Some(&l.dst)));
            let src = match src_seen.filter(|seen| seen.pod.is_none()) {
                Some(seen) => logged(seen),
                None => end(&flow.src),
            };
            let dst = match dst_seen.filter(|seen| seen.pod.is_none()) {
                Some(seen) => logged(seen),
                None => end(&flow.dst),
            };
            let dst = dst.and_then(|dst| {
                let elsewhere = self.evaluator.redirected(&dst, &flow.dst, flow.protocol, flow.port);
                elsewhere.map_or(Ok(dst), Err)
            });
            if flow.logged.is_none()
                && (src.is_err() || dst.is_err())
                && let Some(judged) = self.several(&flow, &src, &dst)
            {
                match judged {
                    Ok(row) => rows.push(row),
                    Err(error) => wrong.push(format!("{file}:{}: {error}", flow.line)),
                }
                continue;
            }
            let bad = [&src, &dst].into_iter().filter_map(|e| e.as_ref().err()).find(|e| !e.is_unproven());
            if let Some(error) = bad {
                wrong.push(format!("{file}:{}: {error}; correct the flow or complete --inventory", flow.line));
                continue;
            }
            let mut row = row(flow.src.clone(), flow.dst.clone(), (flow.protocol, flow.port));
            match (src, dst) {
                (Ok(_), Ok(_)) if self.named_ports && self.without_ports.contains(&*row.dst) => {
                    let why = format!(
                        "policies name ports, and the inventory does not have pod {}, so its port names are not known",
                        row.dst
                    );
                    self.unproven(&mut row, why);
                }
                (Ok(src), Ok(dst)) => {
                    let verdict = self.check.flow(&src, &dst, flow.protocol, flow.port);
                    self.other_family(&row, &src, &dst, verdict.allowed());
                    let namespaces = [&src, &dst].map(|end| namespace(self.evaluator, end));
                    self.fill(&mut row, &verdict, !verdict.allowed() && !verdict.denied(), namespaces);
                }
                (Err(error), _) | (_, Err(error)) => self.unproven(&mut row, error.to_string()),
            }
            rows.push(row);
        }
        if !wrong.is_empty() {
            bail!("{}", wrong.join("\n"));
        }
        Ok(rows)
    }

    /// Judges a flow whose ends name several pods: a workload, a Service or its address within the
    /// cluster. The worst of their verdicts counts. `None`: it names nothing of that kind.
    fn several<'b>(
        &mut self,
        flow: &Flow<'b>,
        src: &Result<End, UnknownEnd>,
        dst: &Result<End, UnknownEnd>,
    ) -> Option<anyhow::Result<Row<'b>>> {
        let asked = (flow.protocol, flow.port);
        let translated =
            dst.as_ref().err().and_then(|unknown| Translated::new(self.evaluator, self.inventory, unknown, asked));
        let to_node = translated.is_some() || dst.as_ref().is_ok_and(End::is_node);
        let from = match src {
            Ok(end) => Ok(Ends::one(*end, &flow.src, 0)),
            Err(_) => ends::initiators(self.evaluator, self.inventory, &flow.src, to_node)?,
        };
        let from = match from {
            Ok(from) => from,
            Err(error) => return Some(Err(error)),
        };
        match translated {
            Some(Ok(translated)) => return Some(Ok(self.translated(flow, &from, &translated))),
            // Nobody is there to be judged.
            Some(Err(_)) => return None,
            None => {}
        }
        let to = match dst {
            Ok(end) => Ok(Ends::one(*end, &flow.dst, flow.port)),
            Err(_) => ends::acceptors(self.evaluator, self.inventory, &from, &flow.dst, asked)?,
        };
        let to = match to {
            Ok(to) => to,
            // An address that nobody answers for is unproven.
            Err(_) if dst.as_ref().is_err_and(UnknownEnd::is_unproven) => return None,
            Err(error) => return Some(Err(error)),
        };
        let mut worst: Option<(usize, Verdict, [&End; 2])> = None;
        let mut counts = [0; 3];
        for src in &from.ends {
            for dst in &to.ends {
                let mut verdict = self.check.flow(&src.end, &dst.end, flow.protocol, dst.port);
                let at_address = to
                    .asked
                    .as_ref()
                    .and_then(|asked| asked.egress(self.services.as_ref(), &src.end, (flow.protocol, dst.port)));
                if let Some(side) = at_address.filter(|side| !side.allows()) {
                    verdict.exemption = None;
                    verdict.egress = side;
                }
                let rank = if verdict.denied() { 2 } else { usize::from(!verdict.allowed()) };
                counts[rank] += 1;
                if worst.as_ref().is_none_or(|(known, ..)| rank > *known) {
                    worst = Some((rank, verdict, [&src.end, &dst.end]));
                }
            }
        }
        let (rank, verdict, ends) = worst?;
        let mut notes: Vec<String> = [from.note, to.note].into_iter().flatten().collect();
        if counts.iter().filter(|count| **count > 0).count() > 1 {
            let word = ["allowed", "unproven", "denied"][rank];
            notes.push(format!("{} of {} are {word}", counts[rank], counts.iter().sum::<usize>()));
        }
        let said = format!("{} -> {} {}/{}: {}", flow.src, flow.dst, flow.protocol, flow.port, notes.join("; "));
        tell("note", &said);
        let mut row = row(flow.src.clone(), flow.dst.clone(), (flow.protocol, flow.port));
        let namespaces = ends.map(|end| namespace(self.evaluator, end));
        self.fill(&mut row, &verdict, rank == 1, namespaces);
        Some(Ok(row))
    }

    /// Judges a flow to an address that a node translates: the worst that becomes of it at a pod
    /// behind.
    fn translated<'b>(&mut self, flow: &Flow<'b>, from: &Ends, to: &Translated<'_>) -> Row<'b> {
        let said = format!("{} -> {} {}/{}: ", flow.src, flow.dst, flow.protocol, flow.port);
        let mut row = row(flow.src.clone(), flow.dst.clone(), (flow.protocol, flow.port));
        let mut worst: Option<(Judged, [&End; 2])> = None;
        for src in &from.ends {
            let all = match to.judge(src, |verdict| self.check.uses(verdict)) {
                Ok(all) => all,
                Err(why) => {
                    self.unproven(&mut row, why);
                    return row;
                }
            };
            for (judged, behind) in all {
                self.check.judged([&src.end, behind], judged.verdict.allowed());
                if worst.as_ref().is_none_or(|(known, _)| judged.rank() > known.rank()) {
                    worst = Some((judged, [&src.end, behind]));
                }
            }
        }
        let notes: Vec<&str> = [from.note.as_deref(), Some(&*to.note)].into_iter().flatten().collect();
        tell("note", &(said + &notes.join("; ")));
        let Some((judged, ends)) = worst else { return row };
        match judged.depends {
            Some(depends) => {
                row.ingress_by = self.by(Direction::Ingress, &judged.verdict.ingress);
                row.egress_by = self.by(Direction::Egress, &judged.verdict.egress);
                self.unproven(&mut row, depends);
            }
            None => {
                let namespaces = ends.map(|end| namespace(self.evaluator, end));
                let open = !judged.verdict.allowed() && !judged.verdict.denied();
                self.fill(&mut row, &judged.verdict, open, namespaces);
            }
        }
        row
    }

    /// Tells of dual-stack ends whose families are judged differently: which one is used is the
    /// client's choice, and one line has one verdict.
    fn other_family(&self, row: &Row<'_>, src: &End, dst: &End, allowed: bool) {
        let word = |allowed| if allowed { "allowed" } else { "denied" };
        for (src, dst) in families(src, dst) {
            if self.evaluator.allows(&src, &dst, row.protocol, row.port) != allowed
                && let (Some(from), Some(to)) = common_addresses(&src, &dst)
            {
                let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
                let said = format!(
                    "{} -> {} {}/{}: {} over the first address; over {family} ({from} -> {to}) it is {}, and the client chooses",
                    row.src,
                    row.dst,
                    row.protocol,
                    row.port,
                    word(allowed),
                    word(!allowed)
                );
                tell("warning", &said);
            }
        }
    }

    fn edges(&mut self, snapshot: &Snapshot) -> Vec<Row<'static>> {
        let (supported, failed): (Vec<_>, Vec<_>) = snapshot.body.edges.iter().partition(|e| e.supported);
        if !failed.is_empty() {
            let edges = if failed.len() == 1 { "edge" } else { "edges" };
            tell("note", &format!("{} {edges} without an established connection: not judged", failed.len()));
        }
        let mut progress = Progress::new("edges", supported.len());
        let mut rows = Vec::with_capacity(supported.len());
        for (edge, done) in supported.into_iter().zip(0..) {
            progress.at(done);
            let [src, dst] = [&edge.client, &edge.server].map(|end| end.peer.to_string().into());
            let mut row = row(src, dst, (edge.protocol, edge.port));
            match self.check.edge(edge) {
                Ok(verdict) => {
                    let namespaces = [&*edge.client.peer, &*edge.server.peer].map(|peer| match peer {
                        Peer::Workload(workload) => Some(workload.namespace.as_str()),
                        Peer::Node { .. } | Peer::External { .. } => None,
                    });
                    let open = verdict.denied > 0 && verdict.denied == verdict.unproven;
                    self.fill(&mut row, &verdict.verdict, open, namespaces);
                }
                Err(error) => self.unproven(&mut row, error.to_string()),
            }
            rows.push(row);
        }
        rows
    }

    /// The verdict, unless something that is not evaluated may change it.
    fn answer(&mut self, row: &mut Row<'_>, allowed: bool, ends: [Option<&str>; 2]) {
        let mut because = None;
        for (reason, touched) in self.unproven.iter().zip(&mut self.touched) {
            if reason.concerns(ends) {
                *touched = true;
                because.get_or_insert(&reason.because);
            }
        }
        row.verdict = match (because, allowed) {
            (Some(_), _) if !self.allow_unproven => Answer::Unproven,
            (_, true) => Answer::Allowed,
            (_, false) => Answer::Denied,
        };
        row.reason = because.cloned();
    }

    /// What made a verdict unproven; told once, not for each flow.
    fn told(&self) -> Vec<String> {
        let touched = self.unproven.iter().zip(&self.touched).filter(|(_, touched)| **touched);
        let told: Vec<String> = touched.map(|(reason, _)| reason.because.clone()).collect();
        told.iter().for_each(|because| tell("warning", because));
        told
    }

    /// An end that exists and cannot be judged: the user may accept that, then nothing forbids the
    /// flow.
    fn unproven(&self, row: &mut Row<'_>, reason: String) {
        tell("warning", &format!("{} -> {} {}/{}: {reason}", row.src, row.dst, row.protocol, row.port));
        row.verdict = if self.allow_unproven { Answer::Allowed } else { Answer::Unproven };
        row.reason = Some(reason);
    }

    /// Writes a verdict down; `open`: what decides it is not known.
    fn fill(&mut self, row: &mut Row<'_>, verdict: &Verdict, open: bool, ends: [Option<&str>; 2]) {
        row.ingress_by = self.by(Direction::Ingress, &verdict.ingress);
        row.egress_by = self.by(Direction::Egress, &verdict.egress);
        row.exempt = verdict.exemption;
        if open {
            let mut reasons = self.evaluator.why_unproven(Direction::Egress, &verdict.egress);
            reasons.extend(self.evaluator.why_unproven(Direction::Ingress, &verdict.ingress));
            return self.unproven(row, reasons.join("; "));
        }
        self.answer(row, verdict.allowed(), ends);
        row.restricted = verdict.allowed()
            && (self.evaluator.restricted(Direction::Ingress, &verdict.ingress)
                || self.evaluator.restricted(Direction::Egress, &verdict.egress));
    }

    /// `-`: not isolated; `deny`: no rule accepts it; else the rules that decide, after `deny:` if
    /// they deny, after `?` if that is not known. `+l7` behind a rule: a proxy restricts what it
    /// accepts.
    fn by(&self, direction: Direction, side: &SideVerdict) -> String {
        let prefix = match side {
            SideVerdict::NotIsolated => return "-".to_owned(),
            SideVerdict::Denied => return "deny".to_owned(),
            SideVerdict::AllowedBy(_) => "",
            SideVerdict::DeniedBy(_) => "deny:",
            SideVerdict::Unproven(_) => "?",
        };
        let name = |rule: &RuleRef| {
            let l7 = if self.evaluator.rule(direction, *rule).l7 { "+l7" } else { "" };
            format!("{prefix}{}{l7}", self.evaluator.rule_name(direction, *rule))
        };
        side.rules().iter().map(name).collect::<Vec<_>>().join(";")
    }
}

fn has_named_port(policy: &TierPolicy) -> bool {
    let mut ports = policy.ingress.iter().chain(&policy.egress).flat_map(|rule| &rule.ports);
    ports.any(|port| matches!(port.port, PortMatch::Named(_)))
}

/// The namespace of a pod that policies can select.
fn namespace<'a>(evaluator: &'a Evaluator, end: &End) -> Option<&'a str> {
    end.pod().map(|pod| evaluator.cluster().pods[pod as usize].namespace.as_str())
}
