//! Two snapshots: edges that came, went, changed.

use std::io::{BufWriter, Write};

use anyhow::bail;
use guardrail_lifecycle::diff::{self, GraphDiff, SeenEdge, State};

use super::{Args, Format};
use crate::{
    coverage,
    exit::Outcome,
    input::{self, tell},
    output::{self, Cell, Paint, Table, markdown, second},
};

pub(super) fn diff(args: &Args) -> anyhow::Result<Outcome> {
    let [old, new] = &args.snapshots[..] else {
        bail!(
            "two snapshots are compared, OLD and NEW, and {} named; `guardrail merge` makes one of several",
            if args.snapshots.len() == 1 { "one is".to_owned() } else { format!("{} are", args.snapshots.len()) }
        );
    };
    let [old, new] = [("old", old), ("new", new)].map(|(which, name)| {
        let snapshot = input::snapshots(std::slice::from_ref(name), &args.cluster, &args.span)?;
        for reason in coverage::incomplete(&snapshot) {
            tell("warning", &format!("the {which} graph is incomplete: {reason}"));
        }
        anyhow::Ok(snapshot)
    });
    let diff = diff::graphs(&old?, &new?, &args.map.iter().cloned().collect());
    for namespace in &diff.unknown_namespaces {
        tell("warning", &format!("--map: neither snapshot has namespace {namespace}"));
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    match args.output {
        Format::Json => output::print_json(&mut out, &diff)?,
        Format::Table => table(&mut out, &diff)?,
        Format::Markdown => page(&mut out, &diff)?,
    }
    out.flush()?;
    Ok(if diff.is_empty() { Outcome::Fine } else { Outcome::Findings })
}

/// Every difference as a row: what, edge, and how it was before.
fn rows(diff: &GraphDiff) -> Vec<(&'static str, &SeenEdge, String)> {
    let mut rows: Vec<_> = diff.came.iter().map(|edge| ("came", edge, told(&edge.state))).collect();
    rows.extend(diff.went.iter().map(|edge| ("went", edge, told(&edge.state))));
    rows.extend(diff.changed.iter().map(|changed| {
        let (was, is) = (&changed.before, &changed.edge.state);
        let change = if was.established == is.established {
            format!("via {}, before {}", services(is), services(was))
        } else {
            format!("{}, before {}", told(is), told(was))
        };
        ("changed", &changed.edge, change)
    }));
    rows
}

fn told(state: &State) -> String {
    if state.established { "connections" } else { "attempts only" }.to_owned()
}

fn services(state: &State) -> String {
    let names: Vec<&str> = state.via.iter().map(String::as_str).collect();
    if names.is_empty() { "no Service".to_owned() } else { names.join(" ") }
}

fn counted(diff: &GraphDiff) -> String {
    if diff.is_empty() {
        return "No difference.".to_owned();
    }
    let edges = |count: usize| if count == 1 { "1 edge".to_owned() } else { format!("{count} edges") };
    format!("{} came, {} went, {} changed.", edges(diff.came.len()), diff.went.len(), diff.changed.len())
}

fn table(out: &mut impl Write, diff: &GraphDiff) -> anyhow::Result<()> {
    if !diff.is_empty() {
        let mut table = Table::new(&["CHANGE", "CLIENT", "SERVER", "PORT", "SEEN", "LAST SEEN"]);
        for (what, edge, state) in rows(diff) {
            table.row([
                Cell::new(what).paint(if what == "came" { Paint::Doubtful } else { Paint::Plain }),
                Cell::new(&edge.client),
                Cell::new(&edge.server),
                Cell::new(format!("{}/{}", edge.protocol, edge.port)),
                Cell::new(state),
                Cell::new(second(edge.last_seen).split(' ').next().unwrap_or_default()),
            ]);
        }
        table.print(out, output::colour())?;
        writeln!(out)?;
    }
    writeln!(out, "{}", counted(diff))?;
    Ok(())
}

fn page(out: &mut impl Write, diff: &GraphDiff) -> anyhow::Result<()> {
    writeln!(out, "{}", counted(diff))?;
    if !diff.is_empty() {
        writeln!(out, "\n| change | client | server | port | seen | last seen |\n|---|---|---|---|---|---|")?;
        for (what, edge, state) in rows(diff) {
            let (client, server) = (markdown(&edge.client), markdown(&edge.server));
            let port = format!("{}/{}", edge.protocol, edge.port);
            writeln!(
                out,
                "| {what} | {client} | {server} | {port} | {} | {} |",
                markdown(&state),
                second(edge.last_seen)
            )?;
        }
    }
    Ok(())
}
