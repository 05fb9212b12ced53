//! `guardrail graph`: the observed dependency graph as a table, JSON, a drawing or a page.

mod draw;
mod names;

use std::{
    io::{BufWriter, Write},
    process::ExitCode,
};

use clap::ValueEnum;
use guardrail_graph::{
    Peer, Snapshot,
    snapshot::{EdgeRecord, Window, write_lines},
};

use crate::{
    coverage,
    exit::{Outcome, finish},
    input::{self, KubeArgs, SpanArgs, tell},
    output::{self, Cell, Paint, Table, second},
    page,
};
use names::Names;

/// Options of `guardrail graph`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Snapshots: files, `-`, http(s)://…/v1/graph, or kube[:NAMESPACE] for all agents of a
    /// cluster; several are merged
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,

    /// Only edges that begin or end in this namespace (repeatable)
    #[arg(short, long = "namespace", value_name = "NS")]
    namespaces: Vec<String>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    #[command(flatten)]
    cluster: KubeArgs,

    #[command(flatten)]
    span: SpanArgs,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One line per edge
    Table,
    /// The merged snapshot
    Json,
    /// Graphviz
    Dot,
    /// Mermaid flowchart, as Markdown renderers draw it
    Mermaid,
    /// A page to look at and search in, as one file
    Html,
}

/// Runs `guardrail graph`.
pub(crate) fn run(args: Args) -> ExitCode {
    finish(graph(&args))
}

fn graph(args: &Args) -> anyhow::Result<Outcome> {
    let Args { snapshots, namespaces, output, cluster, span } = args;
    let mut snapshot = input::snapshots(snapshots, cluster, span)?;
    if !namespaces.is_empty() {
        restrict(&mut snapshot, namespaces);
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    match output {
        Format::Table => table(&mut out, &snapshot)?,
        Format::Json => write_lines(&mut out, &snapshot)?,
        Format::Dot => draw::dot(&mut out, &snapshot)?,
        Format::Mermaid => draw::mermaid(&mut out, &snapshot)?,
        Format::Html => page::file(&mut out, &snapshot)?,
    }
    out.flush()?;
    for reason in coverage::incomplete(&snapshot) {
        tell("warning", &format!("the graph is incomplete: {reason}"));
    }
    Ok(coverage::outcome(&snapshot))
}

/// Keeps what touches one of the namespaces.
fn restrict(snapshot: &mut Snapshot, namespaces: &[String]) {
    let inside = |peer: &Peer| peer.workload().is_some_and(|w| namespaces.contains(&w.namespace));
    let body = &mut snapshot.body;
    body.edges.retain(|e| inside(&e.client.peer) || inside(&e.server.peer));
    body.workloads.retain(|w| namespaces.contains(&w.workload.namespace));
    body.services.retain(|s| namespaces.contains(&s.namespace));
    body.service_flows.retain(|f| inside(&f.client));
    body.remote_flows.retain(|f| inside(&f.local));
    for namespace in namespaces {
        let known = body.workloads.iter().any(|w| w.workload.namespace == *namespace)
            || body.edges.iter().any(|e| {
                [&*e.client.peer, &*e.server.peer]
                    .iter()
                    .any(|p| p.workload().is_some_and(|w| w.namespace == *namespace))
            });
        if !known {
            tell("warning", &format!("nothing was observed in namespace {namespace}"));
        }
    }
}

fn table(out: &mut impl Write, snapshot: &Snapshot) -> anyhow::Result<()> {
    let names = Names::new(snapshot);
    let mut table = Table::new(&["CLIENT", "SERVER", "PORT", "VIA", "CONNS", "FAILED", "MARKS"]);
    let mut edges: Vec<&EdgeRecord> = snapshot.body.edges.iter().collect();
    edges.sort_by(|a, b| (&a.client, &a.server, a.protocol, a.port).cmp(&(&b.client, &b.server, b.protocol, b.port)));
    for edge in &edges {
        let port = match &edge.port_name {
            Some(name) => format!("{}/{} {name}", edge.protocol, edge.port),
            None => format!("{}/{}", edge.protocol, edge.port),
        };
        let failed = edge.counts.failed();
        let mut marks: Vec<String> = edge.marks.iter().cloned().collect();
        if !edge.supported {
            marks.push("no-evidence".to_owned());
        }
        if edge.counts.broken > 0 {
            marks.push(format!("broken:{}", edge.counts.broken));
        }
        table.row([
            Cell::new(names.of(&edge.client)),
            Cell::new(names.of(&edge.server)),
            Cell::new(port),
            Cell::new(names.via_shortened(edge)),
            Cell::number(blank_zero(edge.counts.established())),
            Cell::number(blank_zero(failed)).paint(if failed > 0 { Paint::Doubtful } else { Paint::Plain }),
            Cell::new(marks.join(" ")),
        ]);
    }
    table.print(out, output::colour())?;
    let workloads = snapshot.body.workloads.len();
    writeln!(out, "\n{} edges, {workloads} workloads, {}", edges.len(), window(&snapshot.body.window))?;
    Ok(())
}

fn blank_zero(count: u64) -> String {
    if count == 0 { "-".to_owned() } else { count.to_string() }
}

fn window(window: &Window) -> String {
    let nodes = window.nodes.len();
    match (window.from, window.to) {
        (Some(from), Some(to)) => {
            format!("{} to {} UTC on {nodes} node{}.", second(from), second(to), if nodes == 1 { "" } else { "s" })
        }
        _ => "nothing observed yet.".to_owned(),
    }
}
