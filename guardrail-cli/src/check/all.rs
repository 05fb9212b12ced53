//! `guardrail check --all`: every connection that the policies allow, and with snapshots whether
//! anybody ever made it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufWriter, Write},
    net::IpAddr,
};

use anyhow::bail;
use guardrail_graph::{Peer, Snapshot};
use guardrail_policy::evaluate::connections::{Connection, Party};
use ipnet::IpNet;
use serde::Serialize;
use serde_json::json;

use super::{Args, Format};
use crate::{
    exit::Outcome,
    input::{self, tell},
    output::{self, Cell, Paint, Table},
    policies::{self, Loaded, Unproven},
};

#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    connection: &'a Connection,
    /// Whether an established connection of it was seen; only with snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<bool>,
}

pub(super) fn all(args: &Args) -> anyhow::Result<Outcome> {
    let snapshot = if args.snapshots.is_empty() {
        None
    } else {
        Some(input::snapshots(&args.snapshots, &args.cluster, &args.span)?)
    };
    let Loaded { evaluator, mut unproven, .. } =
        policies::load(&args.policies, &args.inventory, snapshot.as_ref(), &args.dataplane, &args.cluster)?;
    if evaluator.cluster().pods.is_empty() {
        bail!("--all needs the pods or the workloads of the cluster: give --inventory or snapshots");
    }
    unproven.extend(evaluator.undecided().into_iter().map(|because| Unproven { because, namespace: None }));
    for reason in &unproven {
        tell("warning", &reason.because);
    }
    let connections = evaluator.connections();
    let used = snapshot.as_ref().map(|snapshot| used(snapshot, &connections));
    let rows: Vec<Row<'_>> = connections
        .iter()
        .enumerate()
        .map(|(index, connection)| Row { connection, used: used.as_ref().map(|used| used[index]) })
        .collect();
    let mut out = BufWriter::new(std::io::stdout().lock());
    match args.output {
        Format::Table => table(&mut out, &rows)?,
        Format::Json => output::print_json(
            &mut out,
            &json!({ "connections": rows, "unproven_because": unproven.iter().map(|u| &u.because).collect::<Vec<_>>() }),
        )?,
        Format::Csv => {
            writeln!(out, "src,dst,ports,used")?;
            for Row { connection: Connection { src, dst, ports }, used } in &rows {
                let used = used.map_or("", |used| if used { "yes" } else { "never" });
                writeln!(out, "{},{},\"{ports}\",{used}", name(src), name(dst))?;
            }
        }
        Format::Markdown => {
            writeln!(out, "| from | to | ports |{}", if snapshot.is_some() { " used |" } else { "" })?;
            writeln!(out, "|---|---|---|{}", if snapshot.is_some() { "---|" } else { "" })?;
            for Row { connection: Connection { src, dst, ports }, used } in &rows {
                let used = used.map_or("", |used| if used { " yes |" } else { " never |" });
                writeln!(out, "| {} | {} | {ports} |{used}", name(src), name(dst))?;
            }
        }
        Format::Dot => {
            writeln!(out, "digraph allowed {{\n  rankdir=LR;\n  node [shape=box];")?;
            for Row { connection: Connection { src, dst, ports }, used } in &rows {
                let style = if *used == Some(false) { ", style=dashed" } else { "" };
                let quoted = |party: &Party| name(party).replace(['\\', '"'], "");
                writeln!(out, "  \"{}\" -> \"{}\" [label=\"{ports}\"{style}];", quoted(src), quoted(dst))?;
            }
            writeln!(out, "}}")?;
        }
    }
    out.flush()?;
    if !unproven.is_empty() && !args.allow_unproven {
        return Ok(Outcome::unproven());
    }
    Ok(Outcome::Fine)
}

fn name(party: &Party) -> String {
    output::plain_line(&party.to_string())
}

/// Which connections, which are sorted, an established edge uses. Edge by edge: there may be a
/// million connections.
fn used(snapshot: &Snapshot, connections: &[Connection]) -> Vec<bool> {
    let mut used = vec![false; connections.len()];
    let ranges: Vec<(IpNet, &Party)> = connections
        .iter()
        .flat_map(|connection| [&connection.src, &connection.dst])
        .filter_map(|party| if let Party::Block(range) = party { Some((range.parse().ok()?, party)) } else { None })
        .collect::<BTreeMap<IpNet, &Party>>()
        .into_iter()
        .collect();
    let parties = |peer: &Peer| {
        let mut parties = vec![Party::Everywhere];
        match peer {
            Peer::Workload(workload) => {
                parties.extend([Party::EveryPod, Party::Workload(workload.to_string().into())]);
            }
            Peer::Node { .. } => parties.push(Party::Outside),
            Peer::External { address } => {
                parties.push(Party::Outside);
                let address = address.parse::<IpAddr>().ok();
                let holds = |range: &IpNet| address.is_some_and(|address| range.contains(&address));
                parties.extend(ranges.iter().filter(|(range, _)| holds(range)).map(|(_, party)| (*party).clone()));
            }
        }
        parties
    };
    for edge in snapshot.body.edges.iter().filter(|edge| edge.supported) {
        let servers = parties(&edge.server.peer);
        for src in parties(&edge.client.peer) {
            for dst in &servers {
                let first = connections.partition_point(|c| (&c.src, &c.dst) < (&src, dst));
                let same = connections[first..].iter().take_while(|c| c.src == src && c.dst == *dst);
                for (connection, index) in same.zip(first..) {
                    used[index] |= connection.ports.contains(edge.protocol, edge.port);
                }
            }
        }
    }
    used
}

fn table(out: &mut impl Write, rows: &[Row<'_>]) -> anyhow::Result<()> {
    let used = rows.iter().any(|row| row.used.is_some());
    let header: &[&'static str] = if used { &["FROM", "TO", "PORTS", "USED"] } else { &["FROM", "TO", "PORTS"] };
    let mut table = Table::new(header);
    for Row { connection: Connection { src, dst, ports }, used } in rows {
        let wide = matches!(src, Party::Everywhere | Party::Outside);
        let cells = [
            Cell::new(name(src)).paint(if wide { Paint::Doubtful } else { Paint::Plain }),
            Cell::new(name(dst)),
            Cell::new(ports.to_string()),
        ];
        match used {
            Some(used) => {
                let [src, dst, ports] = cells;
                table.row([src, dst, ports, Cell::new(if *used { "yes" } else { "never" })]);
            }
            None => table.row(cells),
        }
    }
    table.print(out, output::colour())?;
    let named: BTreeSet<&Party> = rows.iter().map(|r| &r.connection.dst).collect();
    writeln!(out, "\n{} allowed connections to {} destinations.", rows.len(), named.len())?;
    Ok(())
}
