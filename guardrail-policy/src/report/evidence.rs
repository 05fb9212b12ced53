//! What both sidecars say, and `evidence.json` itself.

use std::collections::BTreeSet;
use std::fmt;

use guardrail_graph::{
    Protocol, Timestamp,
    snapshot::{Counts, EdgePeer, EdgeRecord, LossEntry, NodeCoverage, Side, SourceCounts, UnresolvedEntry, Window},
};
use serde::{Serialize, Serializer};

use super::{Meant, WideClient, wide_clients, window_in_words};
use crate::emit::{file_name, is_written, lowest_version};
use crate::export::Exported;
use crate::generate::{EdgeUse, Format, NamespaceVerdict, Phase, PlannedRule, PortRef, Problem, RulePeer, Unused};
use crate::memory::{self, KeptWorkload, REMEMBERED, Why};
use crate::model::Direction;
use crate::prove::NewlyJudged;

/// Edges are named by their places in [`Evidence::edges`].
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) struct Evidence<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    pub(super) phase: Phase,
    pub(super) format: Format,
    /// The lowest release of Cilium that reads the files as they are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lowest_cilium_version: Option<String>,
    pub(super) egress: bool,
    pub(super) forced: bool,
    pub(super) complete: bool,
    #[serde(flatten)]
    pub(super) meant: &'a Meant,
    /// Namespaces whose policies stay as they are; `problems` says why.
    pub(super) stopped: &'a BTreeSet<String>,
    /// The window in words.
    pub(super) observed: String,
    window: &'a Window,
    pub(super) nodes: &'a NodeCoverage,
    pub(super) losses: &'a [LossEntry],
    pub(super) unresolved: &'a [UnresolvedEntry],
    pub(super) namespaces: &'a [NamespaceVerdict],
    pub(super) policies: Vec<PolicyEvidence<'a>>,
    pub(super) unused: Vec<UnusedEdge>,
    pub(super) closed_without_evidence: Vec<String>,
    pub(super) newly_judged: &'a [NewlyJudged],
    pub(super) wide_clients: Vec<WideClient>,
    pub(super) problems: &'a [Problem],
    pub(super) warnings: &'a [String],
    /// Edges of an earlier export that the span does not show and that stay allowed.
    pub(super) remembered: Vec<usize>,
    /// Those that do not.
    pub(super) forgotten: Vec<ForgottenEdge<'a>>,
    /// Edges that no rule can allow.
    inexpressible: &'a BTreeSet<usize>,
    /// Edges from nodes that stand for clients of which their own sockets know nothing.
    unexplained: &'a BTreeSet<usize>,
    /// The ends of edges that support rules, and what names their pods: the next export reads it.
    workloads: Vec<KeptWorkload<'a>>,
    /// Every edge of the export.
    #[serde(serialize_with = "written_edges")]
    pub(super) edges: Edges<'a>,
}

/// The edges, and those of which nobody need know who counted.
#[derive(Clone, Copy)]
pub(super) struct Edges<'a> {
    pub(super) all: &'a [EdgeRecord],
    unexplained: &'a BTreeSet<usize>,
}

#[derive(Serialize)]
pub(super) struct ForgottenEdge<'a> {
    #[serde(serialize_with = "in_words")]
    pub(super) why: &'a Why,
    #[serde(serialize_with = "written_edge")]
    pub(super) edge: &'a EdgeRecord,
}

#[derive(Serialize)]
pub(super) struct PolicyEvidence<'a> {
    file: String,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    complete: bool,
    pub(super) rules: Vec<RuleEntry<'a>>,
}

#[derive(Serialize)]
pub(super) struct RuleEntry<'a> {
    pub(super) direction: Direction,
    /// From 1, as `check` names rules.
    pub(super) rule: usize,
    pub(super) allows: Allows<'a>,
    pub(super) edges: &'a [usize],
}

#[derive(Serialize)]
pub(super) struct UnusedEdge {
    pub(super) why: Unused,
    pub(super) edge: usize,
}

/// An edge as a graph has it; of a workload's or an external client without what each source
/// counted, which nobody reads back.
#[derive(Serialize)]
struct WrittenEdge<'a> {
    client: &'a EdgePeer,
    server: &'a EdgePeer,
    protocol: Protocol,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    port_name: Option<&'a str>,
    via: &'a BTreeSet<String>,
    seen_by: &'a BTreeSet<Side>,
    #[serde(flatten)]
    counts: Counts,
    first_seen: Timestamp,
    last_seen: Timestamp,
    supported: bool,
    marks: &'a BTreeSet<String>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    node_workloads: &'a BTreeSet<String>,
    /// Whose sockets a node's connections came from.
    sources: &'a [SourceCounts],
}

impl<'a> WrittenEdge<'a> {
    fn new(edge: &'a EdgeRecord, sources: &'a [SourceCounts]) -> Self {
        Self {
            client: &edge.client,
            server: &edge.server,
            protocol: edge.protocol,
            port: edge.port,
            port_name: edge.port_name.as_deref(),
            via: &edge.via,
            seen_by: &edge.seen_by,
            counts: edge.counts,
            first_seen: edge.first_seen,
            last_seen: edge.last_seen,
            supported: edge.supported,
            marks: &edge.marks,
            node_workloads: &edge.node_workloads,
            sources,
        }
    }
}

fn written_edges<S: Serializer>(edges: &Edges<'_>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(edges.all.iter().enumerate().map(|(index, edge)| {
        let kept = memory::needs_sources(edge) && !edges.unexplained.contains(&index);
        WrittenEdge::new(edge, if kept { &edge.sources } else { &[] })
    }))
}

fn written_edge<S: Serializer>(edge: &&EdgeRecord, serializer: S) -> Result<S::Ok, S::Error> {
    WrittenEdge::new(edge, &[]).serialize(serializer)
}

fn in_words<S: Serializer>(why: &&Why, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(*why)
}

impl<'a> Evidence<'a> {
    pub(super) fn of(exported: &'a Exported<'_>) -> Self {
        let Exported { plan, told, verdicts, .. } = exported;
        let snapshot = &*told.snapshot;
        let edges = snapshot.body.edges.as_slice();
        let mut policies: Vec<PolicyEvidence<'_>> = plan
            .policies
            .iter()
            .map(|p| PolicyEvidence {
                file: file_name(p),
                namespace: &p.namespace,
                name: &p.name,
                complete: p.complete,
                rules: Vec::new(),
            })
            .collect();
        for entry in &told.evidence {
            let policy = &plan.policies[entry.policy];
            let rules = match entry.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let Some(rule) = rules.as_ref().and_then(|rules| rules.get(entry.rule)) else { continue };
            policies[entry.policy].rules.push(RuleEntry {
                direction: entry.direction,
                rule: entry.rule + 1,
                allows: Allows(rule),
                edges: &entry.edges,
            });
        }
        if !told.stopped_too {
            // Their files are not this export's.
            let written: BTreeSet<String> =
                plan.policies.iter().filter(|p| is_written(p, &told.stopped)).map(file_name).collect();
            policies.retain(|policy| written.contains(&policy.file));
        }
        let unused = told.uses.iter().enumerate().filter_map(|(edge, used)| match used {
            EdgeUse::Unused(why) => Some(UnusedEdge { why: *why, edge }),
            EdgeUse::Supports => None,
        });
        let remembered = edges.iter().enumerate().filter(|(_, edge)| edge.marks.contains(REMEMBERED));
        Self {
            api_version: guardrail_graph::snapshot::API_VERSION,
            kind: memory::KIND,
            phase: plan.phase,
            format: plan.format,
            lowest_cilium_version: lowest_version(plan.format, &plan.policies)
                .map(|(major, minor)| format!("{major}.{minor}")),
            egress: told.egress,
            forced: told.forced,
            complete: told.stopped.is_empty()
                && verdicts.iter().all(|v| v.complete)
                && plan.policies.iter().all(|p| p.complete),
            meant: &told.meant,
            stopped: &told.stopped,
            observed: window_in_words(snapshot),
            window: &snapshot.body.window,
            nodes: &snapshot.body.coverage.nodes,
            losses: &snapshot.body.coverage.losses,
            unresolved: &snapshot.body.coverage.unresolved,
            namespaces: verdicts,
            policies,
            unused: unused.collect(),
            closed_without_evidence: told.closed_without_evidence.iter().map(ToString::to_string).collect(),
            newly_judged: &exported.proof.newly_judged,
            wide_clients: wide_clients(edges),
            problems: &exported.problems,
            warnings: &exported.warnings,
            remembered: remembered.map(|(index, _)| index).collect(),
            forgotten: told.forgotten.iter().map(|f| ForgottenEdge { why: &f.why, edge: &f.edge }).collect(),
            inexpressible: &told.inexpressible,
            unexplained: &told.unexplained,
            workloads: memory::workloads(snapshot, &told.uses, &told.inexpressible),
            edges: Edges { all: edges, unexplained: &told.unexplained },
        }
    }
}

/// What a rule allows, in one line.
pub(super) struct Allows<'a>(&'a PlannedRule);

impl Serialize for Allows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Allows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlannedRule { peers, ports, learns_names } = self.0;
        for (place, peer) in peers.iter().enumerate() {
            f.write_str(if place == 0 { "" } else { "; " })?;
            write_peer(peer, f)?;
        }
        f.write_str(" on ")?;
        if ports.is_empty() {
            f.write_str("every port")?;
        }
        for (place, p) in ports.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            match &p.port {
                PortRef::Number(number) => write!(f, "{comma}{number}/{}", p.protocol)?,
                PortRef::Name(name) => write!(f, "{comma}{name}/{}", p.protocol)?,
            }
        }
        f.write_str(if *learns_names { ", names are learnt from the answers" } else { "" })
    }
}

fn write_peer(peer: &RulePeer, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match peer {
        RulePeer::Pods { namespace, selector } => {
            let mut comma = "";
            for (key, value) in selector.match_labels.iter() {
                write!(f, "{comma}{key}={value}")?;
                comma = ",";
            }
            for e in &selector.match_expressions {
                write!(f, "{comma}{} {:?} {}", e.key, e.operator, e.values.join(","))?;
                comma = ",";
            }
            if selector.is_empty() {
                f.write_str("all pods")?;
            }
            namespace.as_ref().map_or(Ok(()), |namespace| write!(f, " in {namespace}"))
        }
        RulePeer::EveryPod => f.write_str("every pod"),
        RulePeer::Block { cidr, except } if except.is_empty() => write!(f, "{cidr}"),
        RulePeer::Block { cidr, .. } => write!(f, "{cidr} without the cluster's pods"),
        RulePeer::Entity(entity) => write!(f, "entity {}", entity.as_str()),
        RulePeer::Name(name) => f.write_str(name),
    }
}
