//! Prints the answer.

use std::io::{BufWriter, Write};

use comfy_table::{Cell, Color};
use guardrail_policy::check::Idle;

use super::run::{Answer, Report};
use crate::output;

/// Most lines of one section; `-o json` has all.
const MAX_LINES: usize = 200;

pub(super) fn csv(report: &Report<'_>) -> anyhow::Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    writeln!(out, "src,dst,protocol,port,verdict,ingress_by,egress_by")?;
    for row in &report.flows {
        let verdict = row.verdict.as_str();
        writeln!(out, "{},{},{},{},{verdict},{},{}", row.src, row.dst, row.protocol, row.port, row.ingress_by, row.egress_by)?;
    }
    out.flush()?;
    Ok(())
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
        let mut table = output::table(&["WHO", "DIRECTION", "ALLOWED", "DENIED", "BY"]);
        for newly in findings.newly_isolated.iter().take(MAX_LINES) {
            let denied = Cell::new(newly.denied);
            let denied = if newly.denied > 0 { denied.fg(Color::Red) } else { denied };
            let cells = [Cell::new(&newly.subject), Cell::new(newly.direction), Cell::new(newly.allowed), denied, Cell::new(newly.policies.join(", "))];
            table.add_row(cells);
        }
        output::print_table(&mut out, &table)?;
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
        let mut table = output::table(&["VERDICT", "SOURCE", "DESTINATION", "PORT", "INGRESS", "EGRESS"]);
        for row in broken.iter().take(MAX_LINES) {
            let colour = if row.verdict == Answer::Denied { Color::Red } else { Color::Yellow };
            table.add_row([
                Cell::new(row.verdict.as_str()).fg(colour),
                Cell::new(&row.src),
                Cell::new(&row.dst),
                Cell::new(format!("{}/{}", row.protocol, row.port)),
                Cell::new(row.ingress_by.replace(';', ", ")),
                Cell::new(row.egress_by.replace(';', ", ")),
            ]);
        }
        output::at_least(&mut table, 3, 12);
        output::print_table(out, &table)?;
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
    let mut table = output::table(&["NAME", "DIRECTION", "AT"]);
    for item in idle.iter().take(MAX_LINES) {
        let direction = item.direction.map_or("-".to_owned(), |d| d.to_string());
        let at = item.location.as_ref().map_or("-".to_owned(), ToString::to_string);
        table.add_row([item.name.clone(), direction, at]);
    }
    output::print_table(out, &table)?;
    cut(out, idle.len())?;
    Ok(())
}

fn cut(out: &mut impl Write, len: usize) -> std::io::Result<()> {
    if len > MAX_LINES { writeln!(out, "… and {} more, see -o json", len - MAX_LINES) } else { Ok(()) }
}
