//! `REPORT.md`: what an export rests on, for people.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::io;

use guardrail_graph::{
    Timestamp,
    observe::LossClass,
    snapshot::{EdgeRecord, LossEntry, Side, Starts, UnresolvedEntry},
};

use super::evidence::{Evidence, UnusedEdge};
use crate::generate::{NamespaceVerdict, Problem, Unused, edge_name};
use crate::memory::REMEMBERED;
use crate::model::Direction;
use crate::prove::NewlyJudged;
use crate::words::percent;

/// In a table: as in the row above.
const DITTO: &str = "″";

/// Text on its way out: as much as a few rows have.
pub(super) struct Text<'o> {
    text: String,
    out: &'o mut dyn io::Write,
}

/// What is collected before it is written, bytes.
const AT_ONCE: usize = 1 << 16;

impl Text<'_> {
    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(self.text.as_bytes())?;
        self.text.clear();
        Ok(())
    }

    fn row(&mut self, cells: &[&dyn fmt::Display]) -> io::Result<()> {
        row(&mut self.text, cells);
        if self.text.len() < AT_ONCE { Ok(()) } else { self.flush() }
    }
}

/// Writes the report.
pub(super) fn write(evidence: &Evidence<'_>, out: &mut dyn io::Write) -> io::Result<()> {
    let mut text = Text { text: String::new(), out };
    let out = &mut text.text;
    let _ = writeln!(out, "# Export report\n");
    let verdict = if evidence.complete { "complete" } else { "incomplete" };
    let egress = if evidence.egress { ", with egress" } else { "" };
    let _ = writeln!(out, "Window: {}.", evidence.observed);
    if evidence.meant.is_plan() {
        let _ = writeln!(out, "Phases of the plan: {}. Evidence: {verdict}.", evidence.meant.phases());
    } else {
        let _ = writeln!(out, "Phase {}{egress}. Evidence: {verdict}.", evidence.phase);
    }
    if let Some(version) = &evidence.lowest_cilium_version {
        let _ = writeln!(out, "Format: {}, for Cilium {version} or later.", evidence.format.kind());
    }
    if evidence.forced {
        let _ = writeln!(out, "Exported with --force.");
    }
    let names: Vec<&str> = evidence.nodes.observed.iter().map(String::as_str).collect();
    let _ = writeln!(
        out,
        "Nodes observed: {} of {} ({}).",
        names.len(),
        evidence.nodes.expected.union(&evidence.nodes.observed).count(),
        names.join(", ")
    );

    section(out, "Stopped namespaces: their policies are not of this export", evidence.stopped.iter().cloned());
    section(out, "Problems", evidence.problems.iter().map(problem_text));
    section(out, "Warnings", evidence.warnings.iter().cloned());
    evidence.meant.write(out);
    section(out, "Losses", evidence.losses.iter().map(loss_text));
    section(out, "Flows that could not be named", evidence.unresolved.iter().map(unresolved_text));
    namespaces(out, evidence.namespaces);
    section(out, "Pods and the time in which they were observed", evidence.namespaces.iter().filter_map(time_text));
    rules(&mut text, evidence)?;
    let out = &mut text.text;
    let edges = evidence.edges.all;
    let remembered = evidence.remembered.iter().map(|index| EdgeText(&edges[*index]).to_string());
    section(out, "Remembered: allowed as an earlier export did, the span does not show it", remembered);
    let forgotten = evidence
        .forgotten
        .iter()
        .map(|f| format!("{}, last seen {}: {}", EdgeText(f.edge), date(f.edge.last_seen), f.why));
    section(out, "Forgotten: an earlier export allowed it, and this one does not", forgotten);
    section(out, "Closed without evidence", evidence.closed_without_evidence.iter().cloned());
    unused(&mut text, &evidence.unused, edges)?;
    newly_judged(&mut text, evidence.newly_judged, edges)?;
    let out = &mut text.text;
    let wide = evidence
        .wide_clients
        .iter()
        .map(|w| format!("{} reached or tried {} servers and ports: make sure it is meant to", w.client, w.servers));
    section(out, "Clients with unusually many servers", wide);
    text.flush()
}

fn problem_text(problem: &Problem) -> String {
    if problem.namespaces.is_empty() {
        return problem.message.clone();
    }
    format!("{}: {}", list(&problem.namespaces), problem.message)
}

fn loss_text(loss: &LossEntry) -> String {
    let cost = match loss.class {
        LossClass::Hint => "repaired, nothing is missing",
        LossClass::Edge => "an edge may be missing",
    };
    format!("{}: {} × {} ({cost})", loss.source.node, loss.count, loss.reason)
}

fn unresolved_text(unresolved: &UnresolvedEntry) -> String {
    let UnresolvedEntry { source, reason, count, examples, flows: _, more: _ } = unresolved;
    let examples = if examples.is_empty() { String::new() } else { format!(", for example {}", list(examples)) };
    format!("{}: {count} × {reason}{examples}", source.node)
}

pub(super) fn section(out: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let mut lines = lines.peekable();
    if lines.peek().is_none() {
        return;
    }
    let _ = writeln!(out, "\n## {title}\n");
    for line in lines {
        let _ = writeln!(out, "- {}", one_line(&line));
    }
}

fn namespaces(out: &mut String, verdicts: &[NamespaceVerdict]) {
    let _ = writeln!(out, "\n## Namespaces\n");
    let _ = writeln!(
        out,
        "| namespace | evidence | why not | observed | since the last new edge | without evidence | seen from one side | inferred |"
    );
    let _ = writeln!(out, "|---|---|---|---|---|---|---|---|");
    let seconds = |s: Option<u64>| s.map_or_else(|| "-".to_owned(), |s| format!("{s} s"));
    for v in verdicts {
        row(
            out,
            &[
                &v.namespace,
                &if v.complete { "complete" } else { "incomplete" },
                &list(&v.reasons),
                &seconds(v.window_seconds),
                &seconds(v.since_last_new_edge_seconds),
                &list(&v.without_evidence),
                &list(&v.one_sided),
                &v.inferred,
            ],
        );
    }
}

/// How much of the time of its pods was observed, of a namespace of which that is known.
fn time_text(verdict: &NamespaceVerdict) -> Option<String> {
    let NamespaceVerdict { namespace, coverage, starts: Starts { covered, all }, not_run, .. } = verdict;
    let mut said = coverage.map_or_else(Vec::new, |least| {
        let starts = if *all == 1 { "pod" } else { "pods" };
        let starts = format!("the first minute of {covered} of {all} {starts} that started");
        vec![format!("{} of the time of each workload's pods at least, {starts}", percent(least))]
    });
    if !not_run.is_empty() {
        said.push(format!("did not run: {}", list(not_run)));
    }
    (!said.is_empty()).then(|| format!("{namespace}: {}", said.join("; ")))
}

fn rules(out: &mut Text<'_>, evidence: &Evidence<'_>) -> io::Result<()> {
    let _ = writeln!(out.text, "\n## Rules\n");
    let _ =
        writeln!(out.text, "| policy | rule | allows | edge | connections | first seen | last seen | seen by | via |");
    let _ = writeln!(out.text, "|---|---|---|---|---|---|---|---|---|");
    for policy in &evidence.policies {
        let name = format!("{}/{}", policy.namespace, policy.name);
        for rule in &policy.rules {
            let direction = if rule.direction == Direction::Ingress { "ingress" } else { "egress" };
            let number = format!("{direction} {}", rule.rule);
            for (place, index) in rule.edges.iter().enumerate() {
                let edge = &evidence.edges.all[*index];
                // A rule of many peers has as many edges: what it allows stands once.
                let allows: &dyn fmt::Display = if place == 0 { &rule.allows } else { &DITTO };
                out.row(&[
                    &name,
                    &number,
                    allows,
                    &EdgeText(edge),
                    &edge.counts.established(),
                    &edge.first_seen,
                    &edge.last_seen,
                    &sides(&edge.seen_by),
                    &list(&edge.via),
                ])?;
            }
        }
    }
    Ok(())
}

/// Flows on which no policy had a say until now (docs/semantics.md B24).
fn newly_judged(out: &mut Text<'_>, newly: &[NewlyJudged], edges: &[EdgeRecord]) -> io::Result<()> {
    if newly.is_empty() {
        return Ok(());
    }
    let _ = writeln!(out.text, "\n## Flows that these policies judge for the first time\n");
    let _ = writeln!(out.text, "| workload | becomes isolated | flow | verdict |");
    let _ = writeln!(out.text, "|---|---|---|---|");
    for NewlyJudged { direction, workload, allowed, denied } in newly {
        let flows = |indices: &[usize], verdict: &'static str| -> Vec<(String, &'static str)> {
            indices.iter().map(|index| (edge_name(&edges[*index]), verdict)).collect()
        };
        let mut flows = [flows(allowed, "allowed"), flows(denied, "denied")].concat();
        flows.sort();
        for (flow, verdict) in flows {
            out.row(&[workload, direction, &flow, &verdict])?;
        }
    }
    Ok(())
}

fn unused(out: &mut Text<'_>, unused: &[UnusedEdge], edges: &[EdgeRecord]) -> io::Result<()> {
    if unused.is_empty() {
        return Ok(());
    }
    let _ = writeln!(out.text, "\n## Edges that support no rule\n");
    let _ = writeln!(out.text, "| why | edge | refused | unanswered | unreachable | last seen |");
    let _ = writeln!(out.text, "|---|---|---|---|---|---|");
    for UnusedEdge { why, edge } in unused {
        let edge = &edges[*edge];
        let why = match why {
            Unused::Failed => "failed attempts only",
            Unused::NotRoutable => "multicast, broadcast, or link-local without an answer",
            Unused::NotJudged => "inside a tunnel, or on a secondary network: no policy judges it",
            Unused::Inferred => "backend inferred (--accept-inferred)",
            Unused::Ignored => "client ignored",
            Unused::Accepted => "accepted without a rule (--accept)",
            Unused::Excepted => "an exception of the plan is for it",
            Unused::Stale => "not seen for longer than --drop-unused",
        };
        let c = edge.counts;
        out.row(&[&why, &EdgeText(edge), &c.refused, &c.unanswered, &c.unreachable, &edge.last_seen])?;
    }
    Ok(())
}

/// `2026-11-29`.
fn date(time: Timestamp) -> String {
    let text = time.to_string();
    text.get(..10).unwrap_or(&text).to_owned()
}

/// An edge with what stands beside it, in one line.
struct EdgeText<'a>(&'a EdgeRecord);

impl fmt::Display for EdgeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let edge = self.0;
        write!(f, "{} → {} {}/{}", edge.client.peer, edge.server.peer, edge.port, edge.protocol)?;
        let names: BTreeSet<&String> = edge.client.names.iter().chain(&edge.server.names).collect();
        for (place, name) in names.iter().enumerate() {
            write!(f, "{}{name}", if place == 0 { " (" } else { ", " })?;
        }
        f.write_str(if names.is_empty() { "" } else { ")" })?;
        for (place, mark) in edge.marks.iter().enumerate() {
            write!(f, "{}{mark}", if place == 0 { " [" } else { ", " })?;
            if mark == REMEMBERED {
                write!(f, ", last seen {}", date(edge.last_seen))?;
            }
        }
        f.write_str(if edge.marks.is_empty() { "" } else { "]" })
    }
}

fn sides(sides: &BTreeSet<Side>) -> String {
    let names: Vec<&str> = sides.iter().map(|s| if *s == Side::Client { "client" } else { "server" }).collect();
    names.join(", ")
}

fn list(items: &BTreeSet<String>) -> String {
    if items.is_empty() { "-".to_owned() } else { items.iter().cloned().collect::<Vec<_>>().join(", ") }
}

fn row(out: &mut String, cells: &[&dyn fmt::Display]) {
    out.push('|');
    for cell in cells {
        out.push(' ');
        let _ = write!(Cell(out), "{cell}");
        out.push_str(" |");
    }
    out.push('\n');
}

/// Names come from the cluster: they must not break a table.
struct Cell<'a>(&'a mut String);

impl fmt::Write for Cell<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let plain = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b'|';
        if text.bytes().all(plain) {
            self.0.push_str(text);
            return Ok(());
        }
        for c in text.chars() {
            match c {
                '|' => self.0.push_str("\\|"),
                c if c.is_control() => self.0.push(' '),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

/// Nor a list.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
