//! The graph as Graphviz or Mermaid source: one box per peer, grouped by namespace; one arrow per
//! pair, labelled with its ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
};

use guardrail_graph::{Peer, Snapshot, snapshot::EdgePeer};

use super::names::Names;
use crate::output::plain_line;

/// What is drawn, with numbers as identifiers.
struct Drawing {
    /// Namespace (empty: outside of all), then the boxes.
    groups: BTreeMap<String, Vec<(usize, String)>>,
    /// From, to, ports; whether any of them is supported by evidence.
    arrows: BTreeMap<(usize, usize), (BTreeSet<String>, bool)>,
}

fn drawing(snapshot: &Snapshot) -> Drawing {
    let names = Names::new(snapshot);
    let body = &snapshot.body;
    let mut peers: BTreeMap<&Peer, EdgePeer> = BTreeMap::new();
    for edge in &body.edges {
        for peer in [&edge.client, &edge.server] {
            // A DNS name is what one client was told. A box stands for the address to all of them,
            // so it has the names that all were told.
            peers
                .entry(&peer.peer)
                .and_modify(|known| known.names.retain(|name| peer.names.contains(name)))
                .or_insert_with(|| peer.clone());
        }
    }
    let numbers: BTreeMap<&Peer, usize> = peers.keys().copied().zip(0..).collect();
    let mut drawing = Drawing { groups: BTreeMap::new(), arrows: BTreeMap::new() };
    for (peer, edge_peer) in &peers {
        let namespace = peer.workload().map(|w| w.namespace.clone()).unwrap_or_default();
        let name = names.of(edge_peer);
        let label = name.strip_prefix(&format!("{namespace}/")).unwrap_or(&name).to_owned();
        drawing.groups.entry(namespace).or_default().push((numbers[peer], label));
    }
    for edge in &body.edges {
        let arrow = drawing.arrows.entry((numbers[&*edge.client.peer], numbers[&*edge.server.peer])).or_default();
        arrow.0.insert(format!("{}/{}", edge.protocol, edge.port));
        arrow.1 |= edge.supported;
    }
    drawing
}

pub(super) fn dot(out: &mut impl Write, snapshot: &Snapshot) -> std::io::Result<()> {
    let Drawing { groups, arrows } = drawing(snapshot);
    let quoted = |s: &str| format!("\"{}\"", plain_line(s).replace('\\', "\\\\").replace('"', "\\\""));
    writeln!(out, "digraph guardrail {{\n  rankdir=LR;\n  node [shape=box, style=rounded];")?;
    for ((namespace, boxes), number) in groups.iter().zip(0..) {
        let indent = if namespace.is_empty() { "  " } else { "    " };
        if !namespace.is_empty() {
            writeln!(out, "  subgraph cluster_{number} {{\n    label={};", quoted(namespace))?;
        }
        for (id, label) in boxes {
            writeln!(out, "{indent}n{id} [label={}];", quoted(label))?;
        }
        if !namespace.is_empty() {
            writeln!(out, "  }}")?;
        }
    }
    for ((from, to), (ports, supported)) in arrows {
        let style = if supported { "" } else { ", style=dashed" };
        let ports = ports.into_iter().collect::<Vec<_>>().join(", ");
        writeln!(out, "  n{from} -> n{to} [label={}{style}];", quoted(&ports))?;
    }
    writeln!(out, "}}")
}

pub(super) fn mermaid(out: &mut impl Write, snapshot: &Snapshot) -> std::io::Result<()> {
    let Drawing { groups, arrows } = drawing(snapshot);
    // Mermaid's labels are Markdown with HTML; its entities begin with `#`.
    let quoted = |s: &str| {
        let entities: String = plain_line(s)
            .chars()
            .map(|c| if "\"#&<>`\\".contains(c) { format!("#{};", u32::from(c)) } else { c.to_string() })
            .collect();
        format!("\"{entities}\"")
    };
    writeln!(out, "flowchart LR")?;
    for ((namespace, boxes), number) in groups.iter().zip(0..) {
        let indent = if namespace.is_empty() { "  " } else { "    " };
        if !namespace.is_empty() {
            writeln!(out, "  subgraph g{number} [{}]", quoted(namespace))?;
        }
        for (id, label) in boxes {
            writeln!(out, "{indent}n{id}[{}]", quoted(label))?;
        }
        if !namespace.is_empty() {
            writeln!(out, "  end")?;
        }
    }
    for ((from, to), (ports, supported)) in arrows {
        let arrow = if supported { "-->" } else { "-.->" };
        let ports = ports.into_iter().collect::<Vec<_>>().join(", ");
        writeln!(out, "  n{from} {arrow}|{}| n{to}", quoted(&ports))?;
    }
    Ok(())
}
