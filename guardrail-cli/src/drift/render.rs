//! Drift as a table, and as Markdown for a pull request. What the baseline has is counted only.

use std::io::Write;

use guardrail_lifecycle::drift::{DRIFT_RULES, DriftFinding, Report};

use crate::output::{self, Cell, Paint, Table};

fn new(report: &Report) -> Vec<&DriftFinding> {
    report.findings.iter().filter(|finding| !finding.known).collect()
}

fn name(finding: &DriftFinding) -> &'static str {
    DRIFT_RULES.iter().find(|rule| rule.id == finding.rule).map_or("", |rule| rule.name)
}

fn counted(report: &Report) -> String {
    let (new, all) = (new(report).len(), report.findings.len());
    let known = if all > new { format!(", {} known", all - new) } else { String::new() };
    match new {
        0 => format!("No drift{known}."),
        1 => format!("1 finding{known}."),
        _ => format!("{new} findings{known}."),
    }
}

fn at(finding: &DriftFinding) -> String {
    finding.location.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
}

pub(super) fn table(out: &mut impl Write, report: &Report) -> anyhow::Result<()> {
    let findings = new(report);
    if !findings.is_empty() {
        let mut table = Table::new(&["KIND", "RULE", "AT", "MESSAGE"]);
        for finding in findings {
            table.row([
                Cell::new(finding.kind).paint(Paint::Bad),
                Cell::new(format!("{} {}", finding.rule, name(finding))),
                Cell::new(at(finding)),
                Cell::new(&finding.message),
            ]);
        }
        table.print(out, output::colour())?;
        writeln!(out)?;
    }
    writeln!(out, "{}", counted(report))?;
    Ok(())
}

pub(super) fn page(out: &mut impl Write, report: &Report) -> anyhow::Result<()> {
    writeln!(out, "{}", counted(report))?;
    let findings = new(report);
    if !findings.is_empty() {
        writeln!(out, "\n| kind | rule | at | what |\n|---|---|---|---|")?;
        for finding in findings {
            let (at, what) = (output::markdown(&at(finding)), output::markdown(&finding.message));
            writeln!(out, "| {} | {} {} | {at} | {what} |", finding.kind, finding.rule, name(finding))?;
        }
    }
    Ok(())
}
