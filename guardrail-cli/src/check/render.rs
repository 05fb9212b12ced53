//! Prints the answer.

use std::io::{BufWriter, Write};

use guardrail_policy::check::Idle;

use super::report::{Answer, Report};
use crate::output::{self, Cell, Paint, Table};

/// Most lines of one section; `-o json` has all.
const MAX_LINES: usize = 200;

pub(super) fn csv(report: &Report<'_>) -> anyhow::Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    writeln!(out, "src,dst,protocol,port,verdict,ingress_by,egress_by")?;
    for row in &report.flows {
        let verdict = row.verdict.as_str();
        let (src, dst) = (field(&row.src), field(&row.dst));
        let (ingress_by, egress_by) = (field(&row.ingress_by), field(&row.egress_by));
        writeln!(out, "{src},{dst},{},{},{verdict},{ingress_by},{egress_by}", row.protocol, row.port)?;
    }
    out.flush()?;
    Ok(())
}

/// A field of RFC 4180: a name ends neither its field nor its line.
fn field(text: &str) -> String {
    let text = output::plain_line(text);
    if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

pub(super) fn json(report: &Report<'_>) -> anyhow::Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    output::print_json(&mut out, report)?;
    out.flush()?;
    Ok(())
}

pub(super) fn table(report: &Report<'_>) -> anyhow::Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    flows(&mut out, report)?;
    let findings = &report.findings;
    if !findings.newly_isolated.is_empty() {
        writeln!(out, "\nNewly isolated ({}):", findings.newly_isolated.len())?;
        let mut table = Table::new(&["WHO", "DIRECTION", "ALLOWED", "DENIED", "BY"]);
        for newly in findings.newly_isolated.iter().take(MAX_LINES) {
            let denied = Cell::number(newly.denied).paint(if newly.denied > 0 { Paint::Bad } else { Paint::Plain });
            let cells = [
                Cell::new(&newly.subject),
                Cell::new(newly.direction),
                Cell::number(newly.allowed),
                denied,
                Cell::new(newly.policies.join(", ")),
            ];
            table.row(cells);
        }
        table.print(&mut out, output::colour())?;
        cut(&mut out, findings.newly_isolated.len())?;
    }
    idle(&mut out, "Policies that select nothing", &findings.select_nothing)?;
    idle(&mut out, "Peers that match nothing", &findings.peers_match_nothing)?;
    idle(&mut out, "Rules that no flow used", &findings.unused_rules)?;
    out.flush()?;
    Ok(())
}

fn flows(out: &mut impl Write, report: &Report<'_>) -> anyhow::Result<()> {
    let total = report.flows.len();
    let broken: Vec<_> = report.flows.iter().filter(|r| r.verdict != Answer::Allowed).collect();
    if !broken.is_empty() {
        let mut table = Table::new(&["VERDICT", "SOURCE", "DESTINATION", "PORT", "INGRESS", "EGRESS"]);
        for row in broken.iter().take(MAX_LINES) {
            let paint = if row.verdict == Answer::Denied { Paint::Bad } else { Paint::Doubtful };
            table.row([
                Cell::new(row.verdict.as_str()).paint(paint),
                Cell::new(&row.src),
                Cell::new(&row.dst),
                Cell::new(format!("{}/{}", row.protocol, row.port)),
                Cell::new(row.ingress_by.replace(';', ", ")),
                Cell::new(row.egress_by.replace(';', ", ")),
            ]);
        }
        table.print(out, output::colour())?;
        cut(out, broken.len())?;
        writeln!(out)?;
    }
    let count = |n: usize, what: &str| format!("{n} {what}");
    let parts = [count(report.allowed, "allowed"), count(report.denied, "denied"), count(report.unproven, "unproven")];
    writeln!(out, "{total} flows: {}.", parts.join(", "))?;
    Ok(())
}

fn idle(out: &mut impl Write, title: &str, idle: &[Idle]) -> anyhow::Result<()> {
    if idle.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{title} ({}):", idle.len())?;
    let mut table = Table::new(&["NAME", "DIRECTION", "AT"]);
    for item in idle.iter().take(MAX_LINES) {
        let direction = item.direction.map_or("-".to_owned(), |d| d.to_string());
        let at = item.location.as_ref().map_or("-".to_owned(), ToString::to_string);
        table.row([Cell::new(&item.name), Cell::new(direction), Cell::new(at)]);
    }
    table.print(out, output::colour())?;
    cut(out, idle.len())?;
    Ok(())
}

fn cut(out: &mut impl Write, len: usize) -> std::io::Result<()> {
    if len > MAX_LINES { writeln!(out, "… and {} more, see -o json", len - MAX_LINES) } else { Ok(()) }
}
