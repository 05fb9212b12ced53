//! Two sets of policies: connections that become allowed or denied, and observed flows among them.

use std::{
    collections::BTreeSet,
    io::{BufWriter, Write},
};

use anyhow::bail;
use guardrail_lifecycle::diff::{self, Touched, TouchedFlow};
use guardrail_policy::evaluate::{
    connections::{Party, Ports},
    difference::{Change, difference},
};
use serde_json::json;

use super::{Args, Format};
use crate::{
    coverage,
    exit::Outcome,
    input::{self, tell},
    output::{self, Cell, Paint, Table, markdown, second},
    policies,
};

pub(super) fn diff(args: &Args) -> anyhow::Result<Outcome> {
    let snapshot = if args.snapshots.is_empty() {
        None
    } else {
        Some(input::snapshots(&args.snapshots, &args.cluster, &args.span)?)
    };
    let sides = [&args.from_policies[..], &args.to_policies[..]];
    let [before, after] =
        policies::load_pair(sides, &args.inventory, snapshot.as_ref(), &args.dataplane, &args.cluster)?;
    if before.evaluator.cluster().pods.is_empty() {
        bail!("there is nobody to compare the policies for: give --inventory or snapshots");
    }
    let unproven: BTreeSet<String> = [&before, &after].iter().flat_map(|side| side.doubts()).collect();
    for because in &unproven {
        tell("warning", because);
    }
    let changes = difference(&before.evaluator, &after.evaluator);
    let touched = snapshot.as_ref().map(|s| diff::touched(s, &before.evaluator, &after.evaluator));
    if let Some(snapshot) = &snapshot {
        for reason in coverage::incomplete(snapshot) {
            tell("warning", &format!("the observation is incomplete, flows may be missing: {reason}"));
        }
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    match args.output {
        Format::Json => output::print_json(
            &mut out,
            &json!({ "changes": changes, "touched": touched, "unproven_because": unproven }),
        )?,
        Format::Table => table(&mut out, &changes, touched.as_ref())?,
        Format::Markdown => page(&mut out, &changes, touched.as_ref())?,
    }
    out.flush()?;
    if !unproven.is_empty() && !args.allow_unproven {
        return Ok(Outcome::unproven());
    }
    let same = changes.is_empty() && touched.is_none_or(|touched| touched.flows.is_empty());
    Ok(if same { Outcome::Fine } else { Outcome::Findings })
}

/// Each change as one row for what is denied and one for what is allowed, denied ones first.
fn rows(changes: &[Change]) -> Vec<(&'static str, &Party, &Party, String)> {
    let of = |what: &'static str, ports: fn(&Change) -> &Ports| {
        let some = changes.iter().filter(move |change| !ports(change).is_empty());
        some.map(move |change| {
            let pods = if change.some_pods { " (some of their pods)" } else { "" };
            (what, &change.src, &change.dst, format!("{}{pods}", ports(change)))
        })
    };
    of("denied", |change| &change.denied).chain(of("allowed", |change| &change.allowed)).collect()
}

fn counted(changes: &[Change], touched: Option<&Touched>) -> String {
    let plural = |count: usize, one: &str| if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") };
    let denied = changes.iter().filter(|change| !change.denied.is_empty()).count();
    let allowed = changes.iter().filter(|change| !change.allowed.is_empty()).count();
    let mut text = if changes.is_empty() {
        "No difference: both allow the same connections".to_owned()
    } else {
        format!("{} of ends lose connections, {} gain some", plural(denied, "pair"), allowed)
    };
    if let Some(Touched { flows, unjudged }) = touched {
        let lost = flows.iter().filter(|flow| !flow.allowed).count();
        text += &format!("; {} become denied, {} allowed", plural(lost, "observed flow"), flows.len() - lost);
        if *unjudged > 0 {
            text += &format!(", {unjudged} cannot be judged");
        }
    }
    text + "."
}

fn table(out: &mut impl Write, changes: &[Change], touched: Option<&Touched>) -> anyhow::Result<()> {
    let paint = |what: &str| if what == "denied" { Paint::Bad } else { Paint::Doubtful };
    if !changes.is_empty() {
        let mut table = Table::new(&["NOW", "FROM", "TO", "PORTS"]);
        for (what, src, dst, ports) in rows(changes) {
            table.row([Cell::new(what).paint(paint(what)), Cell::new(src), Cell::new(dst), Cell::new(ports)]);
        }
        table.print(out, output::colour())?;
        writeln!(out)?;
    }
    if let Some(touched) = touched.filter(|touched| !touched.flows.is_empty()) {
        writeln!(out, "Observed flows that this touches:\n")?;
        let mut table = Table::new(&["NOW", "CLIENT", "SERVER", "PORT", "AT", "CONNS", "LAST SEEN"]);
        for flow in &touched.flows {
            let what = now(flow);
            table.row([
                Cell::new(what).paint(paint(what)),
                Cell::new(&flow.client),
                Cell::new(&flow.server),
                Cell::new(format!("{}/{}", flow.protocol, flow.port)),
                Cell::new(sides(flow)),
                Cell::number(if flow.established { flow.connections.to_string() } else { "attempts".to_owned() }),
                Cell::new(second(flow.last_seen).split(' ').next().unwrap_or_default()),
            ]);
        }
        table.print(out, output::colour())?;
        writeln!(out)?;
    }
    writeln!(out, "{}", counted(changes, touched))?;
    Ok(())
}

fn page(out: &mut impl Write, changes: &[Change], touched: Option<&Touched>) -> anyhow::Result<()> {
    writeln!(out, "{}", counted(changes, touched))?;
    if let Some(touched) = touched.filter(|touched| !touched.flows.is_empty()) {
        writeln!(out, "\n**Observed flows that this touches**\n")?;
        writeln!(
            out,
            "| now | client | server | port | at | connections | last seen |\n|---|---|---|---|---|---|---|"
        )?;
        for flow in &touched.flows {
            let (client, server) = (markdown(&flow.client), markdown(&flow.server));
            let count = if flow.established { flow.connections.to_string() } else { "attempts".to_owned() };
            writeln!(
                out,
                "| {} | {client} | {server} | {}/{} | {} | {count} | {} |",
                now(flow),
                flow.protocol,
                flow.port,
                sides(flow),
                second(flow.last_seen)
            )?;
        }
    }
    if !changes.is_empty() {
        writeln!(out, "\n**Connections that become denied or allowed**\n")?;
        writeln!(out, "| now | from | to | ports |\n|---|---|---|---|")?;
        for (what, src, dst, ports) in rows(changes) {
            writeln!(out, "| {what} | {} | {} | {ports} |", markdown(&src.to_string()), markdown(&dst.to_string()))?;
        }
    }
    Ok(())
}

fn now(flow: &TouchedFlow) -> &'static str {
    if flow.allowed { "allowed" } else { "denied" }
}

/// Where it is denied, or was.
fn sides(flow: &TouchedFlow) -> String {
    flow.denied_at.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
