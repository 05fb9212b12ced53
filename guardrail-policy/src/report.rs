//! The sidecars of an export: `evidence.json` for programs, `REPORT.md` for people. Numbers, times
//! and reasons stand here, so that policy files do not change when only counts do.

mod meant;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use guardrail_graph::{
    Peer, Protocol, Snapshot, Timestamp, WorkloadRef,
    observe::LossClass,
    snapshot::{Counts, EdgeRecord, LossEntry, NodeCoverage, Side, Starts, UnresolvedEntry, Window},
};
use serde::{Serialize, Serializer};

use crate::emit::{EVIDENCE_FILE, REPORT_FILE, file_name, is_written, lowest_version};
use crate::generate::{
    Decision, EdgeUse, Format, NamespaceVerdict, Options, Phase, PlannedRule, PortRef, Problem, RulePeer, Unused,
};
use crate::memory::{self, Forgotten, REMEMBERED, Why};
use crate::model::Direction;
use crate::prove::{NewlyJudged, Proof};
use crate::words::percent;

use meant::Meant;
pub use window::window_in_words;

/// A client that reached far more servers than others (docs/semantics.md B36).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WideClient {
    /// The client.
    pub client: String,
    /// How many different servers and ports it tried or reached.
    pub servers: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
struct Evidence<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    phase: Phase,
    format: Format,
    /// The lowest release of Cilium that reads the files as they are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    lowest_cilium_version: Option<String>,
    egress: bool,
    forced: bool,
    complete: bool,
    #[serde(flatten)]
    meant: Meant,
    /// Namespaces whose policies stay as they are; `problems` says why.
    stopped: &'a BTreeSet<String>,
    /// The window in words.
    observed: String,
    window: &'a Window,
    nodes: &'a NodeCoverage,
    losses: &'a [LossEntry],
    unresolved: &'a [UnresolvedEntry],
    namespaces: &'a [NamespaceVerdict],
    policies: Vec<PolicyEvidence<'a>>,
    unused: Vec<UnusedEdge<'a>>,
    closed_without_evidence: Vec<String>,
    newly_judged: &'a [NewlyJudged],
    wide_clients: Vec<WideClient>,
    problems: &'a BTreeSet<Problem>,
    warnings: &'a BTreeSet<String>,
    /// Edges of an earlier export that the span does not show and that stay allowed.
    remembered: Vec<EdgeEntry<'a>>,
    /// Those that do not.
    forgotten: Vec<ForgottenEdge<'a>>,
    /// What the next export reads.
    memory: memory::Written<'a>,
}

#[derive(Serialize)]
struct ForgottenEdge<'a> {
    why: String,
    #[serde(flatten)]
    edge: EdgeEntry<'a>,
}

#[derive(Serialize)]
struct PolicyEvidence<'a> {
    file: String,
    namespace: &'a str,
    name: &'a str,
    complete: bool,
    rules: Vec<RuleEntry<'a>>,
}

#[derive(Serialize)]
struct RuleEntry<'a> {
    direction: Direction,
    rule: usize,
    allows: String,
    edges: Vec<EdgeEntry<'a>>,
}

#[derive(Serialize)]
struct EdgeEntry<'a> {
    #[serde(serialize_with = "as_text")]
    client: &'a Peer,
    #[serde(serialize_with = "as_text")]
    server: &'a Peer,
    protocol: Protocol,
    port: u16,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    names: BTreeSet<&'a str>,
    #[serde(flatten)]
    counts: Counts,
    first_seen: Timestamp,
    last_seen: Timestamp,
    seen_by: &'a BTreeSet<Side>,
    via: &'a BTreeSet<String>,
    marks: &'a BTreeSet<String>,
}

#[derive(Serialize)]
struct UnusedEdge<'a> {
    why: Unused,
    #[serde(flatten)]
    edge: EdgeEntry<'a>,
}

/// Both sidecars.
#[must_use]
pub fn files(
    snapshot: &Snapshot,
    options: &Options,
    decision: &Decision,
    proof: &Proof,
    forgotten: &[Forgotten],
) -> BTreeMap<String, String> {
    let evidence = collect(snapshot, options, decision, proof, forgotten);
    let mut json = serde_json::to_string_pretty(&evidence).expect("maps, strings and numbers always serialise");
    json.push('\n');
    BTreeMap::from([(EVIDENCE_FILE.to_owned(), json), (REPORT_FILE.to_owned(), markdown(&evidence))])
}

fn collect<'a>(
    snapshot: &'a Snapshot,
    options: &Options,
    decision: &'a Decision,
    proof: &'a Proof,
    forgotten: &'a [Forgotten],
) -> Evidence<'a> {
    let edges = &snapshot.body.edges;
    let mut policies: Vec<PolicyEvidence<'_>> = decision
        .plan
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
    for entry in &decision.evidence {
        let policy = &decision.plan.policies[entry.policy];
        let rules = match entry.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let Some(rule) = rules.as_ref().and_then(|rules| rules.get(entry.rule)) else { continue };
        policies[entry.policy].rules.push(RuleEntry {
            direction: entry.direction,
            // From 1, as `check` names rules.
            rule: entry.rule + 1,
            allows: rule_text(rule),
            edges: entry.edges.iter().map(|index| edge_entry(&edges[*index])).collect(),
        });
    }
    if !options.stopped_too {
        // Their files are not this export's.
        let written: BTreeSet<String> =
            decision.plan.policies.iter().filter(|p| is_written(p, &decision.stopped)).map(file_name).collect();
        policies.retain(|policy| written.contains(&policy.file));
    }
    let unused = edges
        .iter()
        .zip(&decision.uses)
        .filter_map(|(edge, used)| match used {
            EdgeUse::Unused(why) => Some(UnusedEdge { why: *why, edge: edge_entry(edge) }),
            EdgeUse::Supports => None,
        })
        .collect();
    Evidence {
        api_version: guardrail_graph::snapshot::API_VERSION,
        kind: memory::KIND,
        phase: decision.plan.phase,
        format: decision.plan.format,
        lowest_cilium_version: lowest_version(decision.plan.format, &decision.plan.policies)
            .map(|(major, minor)| format!("{major}.{minor}")),
        egress: options.closes_egress(),
        forced: options.forced,
        complete: decision.stopped.is_empty()
            && decision.verdicts.iter().all(|v| v.complete)
            && decision.plan.policies.iter().all(|p| p.complete),
        meant: Meant::new(options, decision),
        stopped: &decision.stopped,
        observed: window_in_words(snapshot),
        window: &snapshot.body.window,
        nodes: &snapshot.body.coverage.nodes,
        losses: &snapshot.body.coverage.losses,
        unresolved: &snapshot.body.coverage.unresolved,
        namespaces: &decision.verdicts,
        policies,
        unused,
        closed_without_evidence: decision.closed_without_evidence.iter().map(ToString::to_string).collect(),
        newly_judged: &proof.newly_judged,
        wide_clients: wide_clients(edges),
        problems: &decision.problems,
        warnings: &decision.warnings,
        remembered: edges.iter().filter(|edge| edge.marks.contains(REMEMBERED)).map(edge_entry).collect(),
        forgotten: forgotten
            .iter()
            .map(|forgotten| ForgottenEdge { why: why_forgotten(&forgotten.why), edge: edge_entry(&forgotten.edge) })
            .collect(),
        memory: memory::written(snapshot, decision),
    }
}

fn as_text<S: Serializer>(peer: &Peer, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(peer)
}

fn edge_entry(edge: &EdgeRecord) -> EdgeEntry<'_> {
    EdgeEntry {
        client: &edge.client.peer,
        server: &edge.server.peer,
        protocol: edge.protocol,
        port: edge.port,
        names: edge.client.names.iter().chain(&edge.server.names).map(String::as_str).collect(),
        counts: edge.counts,
        first_seen: edge.first_seen,
        last_seen: edge.last_seen,
        seen_by: &edge.seen_by,
        via: &edge.via,
        marks: &edge.marks,
    }
}

/// Clients that tried or reached at least [`WIDE_MIN`] different servers and ports, and five times
/// as many as the median client.
fn wide_clients(edges: &[EdgeRecord]) -> Vec<WideClient> {
    let mut reached: BTreeMap<&WorkloadRef, usize> = BTreeMap::new();
    for edge in edges {
        if let Some(client) = edge.client.peer.workload() {
            *reached.entry(client).or_default() += 1;
        }
    }
    let mut counts: Vec<usize> = reached.values().copied().collect();
    counts.sort_unstable();
    let median = counts.get(counts.len() / 2).copied().unwrap_or(0);
    reached
        .into_iter()
        .filter(|(_, servers)| *servers >= WIDE_MIN && (*servers >= 5 * median || counts.len() < 3))
        .map(|(client, servers)| WideClient { client: client.to_string(), servers })
        .collect()
}

/// In a table: as in the row above.
const DITTO: &str = "″";

/// Fewer servers than this are never remarkable.
const WIDE_MIN: usize = 20;

/// One rule in one line.
fn rule_text(rule: &PlannedRule) -> String {
    let peers: Vec<String> = rule.peers.iter().map(peer_text).collect();
    let ports: Vec<String> = rule
        .ports
        .iter()
        .map(|p| match &p.port {
            PortRef::Number(number) => format!("{number}/{}", p.protocol),
            PortRef::Name(name) => format!("{name}/{}", p.protocol),
        })
        .collect();
    let ports = if ports.is_empty() { "every port".to_owned() } else { ports.join(", ") };
    let learns = if rule.learns_names { ", names are learnt from the answers" } else { "" };
    format!("{} on {ports}{learns}", peers.join("; "))
}

fn peer_text(peer: &RulePeer) -> String {
    match peer {
        RulePeer::Pods { namespace, selector } => {
            let mut labels: Vec<String> = selector.match_labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            labels.extend(
                selector.match_expressions.iter().map(|e| format!("{} {:?} {}", e.key, e.operator, e.values.join(","))),
            );
            let labels = if labels.is_empty() { "all pods".to_owned() } else { labels.join(",") };
            namespace.as_ref().map_or_else(|| labels.clone(), |ns| format!("{labels} in {ns}"))
        }
        RulePeer::EveryPod => "every pod".to_owned(),
        RulePeer::Block { cidr, except } if except.is_empty() => cidr.to_string(),
        RulePeer::Block { cidr, .. } => format!("{cidr} without the cluster's pods"),
        RulePeer::Entity(entity) => format!("entity {}", entity.as_str()),
        RulePeer::Name(name) => name.clone(),
    }
}

fn markdown(evidence: &Evidence<'_>) -> String {
    let mut text = String::new();
    let out = &mut text;
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
    rules(out, evidence);
    let remembered = evidence.remembered.iter().map(edge_text);
    section(out, "Remembered: allowed as an earlier export did, the span does not show it", remembered);
    let forgotten = evidence
        .forgotten
        .iter()
        .map(|f| format!("{}, last seen {}: {}", edge_text(&f.edge), date(f.edge.last_seen), f.why));
    section(out, "Forgotten: an earlier export allowed it, and this one does not", forgotten);
    section(out, "Closed without evidence", evidence.closed_without_evidence.iter().cloned());
    unused(out, &evidence.unused);
    newly_judged(out, evidence.newly_judged);
    let wide = evidence
        .wide_clients
        .iter()
        .map(|w| format!("{} reached or tried {} servers and ports: make sure it is meant to", w.client, w.servers));
    section(out, "Clients with unusually many servers", wide);
    text
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

fn section(out: &mut String, title: &str, lines: impl Iterator<Item = String>) {
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
                v.namespace.clone(),
                if v.complete { "complete" } else { "incomplete" }.to_owned(),
                list(&v.reasons),
                seconds(v.window_seconds),
                seconds(v.since_last_new_edge_seconds),
                list(&v.without_evidence),
                list(&v.one_sided),
                v.inferred.to_string(),
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

fn rules(out: &mut String, evidence: &Evidence<'_>) {
    let _ = writeln!(out, "\n## Rules\n");
    let _ = writeln!(out, "| policy | rule | allows | edge | connections | first seen | last seen | seen by | via |");
    let _ = writeln!(out, "|---|---|---|---|---|---|---|---|---|");
    for policy in &evidence.policies {
        for rule in &policy.rules {
            for (place, edge) in rule.edges.iter().enumerate() {
                // A rule of many peers has as many edges: what it allows stands once.
                let allows = if place == 0 { rule.allows.clone() } else { DITTO.to_owned() };
                row(
                    out,
                    &[
                        format!("{}/{}", policy.namespace, policy.name),
                        format!(
                            "{} {}",
                            if rule.direction == Direction::Ingress { "ingress" } else { "egress" },
                            rule.rule
                        ),
                        allows,
                        edge_text(edge),
                        edge.counts.established().to_string(),
                        edge.first_seen.to_string(),
                        edge.last_seen.to_string(),
                        sides(edge.seen_by),
                        list(edge.via),
                    ],
                );
            }
        }
    }
}

/// Flows on which no policy had a say until now (docs/semantics.md B24).
fn newly_judged(out: &mut String, flows: &[NewlyJudged]) {
    if flows.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n## Flows that these policies judge for the first time\n");
    let _ = writeln!(out, "| workload | becomes isolated | flow | verdict |");
    let _ = writeln!(out, "|---|---|---|---|");
    for f in flows {
        let verdict = if f.allowed { "allowed" } else { "denied" };
        row(out, &[f.workload.clone(), f.direction.to_string(), f.flow.clone(), verdict.to_owned()]);
    }
}

fn unused(out: &mut String, unused: &[UnusedEdge<'_>]) {
    if unused.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n## Edges that support no rule\n");
    let _ = writeln!(out, "| why | edge | refused | unanswered | unreachable | last seen |");
    let _ = writeln!(out, "|---|---|---|---|---|---|");
    for UnusedEdge { why, edge } in unused {
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
        row(
            out,
            &[
                why.to_owned(),
                edge_text(edge),
                c.refused.to_string(),
                c.unanswered.to_string(),
                c.unreachable.to_string(),
                edge.last_seen.to_string(),
            ],
        );
    }
}

fn why_forgotten(why: &Why) -> String {
    match why {
        Why::Gone(peer) => format!("{peer} is gone"),
        Why::Unused => "not used for longer than --drop-unused says".to_owned(),
    }
}

/// `2026-11-29`.
fn date(time: Timestamp) -> String {
    let text = time.to_string();
    text.get(..10).unwrap_or(&text).to_owned()
}

fn edge_text(edge: &EdgeEntry<'_>) -> String {
    let names: Vec<&str> = edge.names.iter().copied().collect();
    let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    let mark = |mark: &String| match mark.as_str() {
        REMEMBERED => format!("{mark}, last seen {}", date(edge.last_seen)),
        _ => mark.clone(),
    };
    let marks: Vec<String> = edge.marks.iter().map(mark).collect();
    let marks = if marks.is_empty() { String::new() } else { format!(" [{}]", marks.join(", ")) };
    format!("{} → {} {}/{}{names}{marks}", edge.client, edge.server, edge.port, edge.protocol)
}

fn sides(sides: &BTreeSet<Side>) -> String {
    let names: Vec<&str> = sides.iter().map(|s| if *s == Side::Client { "client" } else { "server" }).collect();
    names.join(", ")
}

fn list(items: &BTreeSet<String>) -> String {
    if items.is_empty() { "-".to_owned() } else { items.iter().cloned().collect::<Vec<_>>().join(", ") }
}

fn row(out: &mut String, cells: &[String]) {
    let cells: Vec<String> = cells.iter().map(|c| one_line(c).replace('|', "\\|")).collect();
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

/// Names come from the cluster: they must not break a list or a table.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
