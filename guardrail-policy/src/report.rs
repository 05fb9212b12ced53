//! The sidecars of an export: `evidence.json` for programs, `REPORT.md` for people. Numbers, times
//! and reasons stand here, so that policy files do not change when only counts do.
//!
//! They are as long as the graph, and so they are never in memory: they are written piece by piece
//! from what the export rests on ([`Told`]).

mod evidence;
mod markdown;
mod meant;
mod window;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use guardrail_graph::{
    Snapshot, WorkloadRef,
    snapshot::{EdgeRecord, write_lines},
};
use serde::Serialize;

use crate::export::Exported;
use crate::generate::{Decision, EdgeUse, Options, RuleEvidence};
use crate::memory::Forgotten;

use evidence::Evidence;
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

/// What the sidecars say beside what an [`Exported`] tells everybody.
#[derive(Clone, Debug)]
pub(crate) struct Told<'a> {
    /// The snapshot as it was exported: with what was remembered, and selectors that hold.
    pub(crate) snapshot: Cow<'a, Snapshot>,
    evidence: Vec<RuleEvidence>,
    uses: Vec<EdgeUse>,
    closed_without_evidence: BTreeSet<WorkloadRef>,
    inexpressible: BTreeSet<usize>,
    unexplained: BTreeSet<usize>,
    /// Namespaces that are stopped, as the proof has it.
    stopped: BTreeSet<String>,
    meant: Meant,
    egress: bool,
    forced: bool,
    stopped_too: bool,
    forgotten: Vec<Forgotten>,
}

impl<'a> Told<'a> {
    /// Takes out of the decision what only the sidecars say.
    pub(crate) fn new(
        snapshot: Cow<'a, Snapshot>,
        options: &Options,
        decision: &mut Decision,
        forgotten: Vec<Forgotten>,
    ) -> Self {
        Self {
            snapshot,
            meant: Meant::new(options, decision),
            evidence: std::mem::take(&mut decision.evidence),
            uses: std::mem::take(&mut decision.uses),
            closed_without_evidence: std::mem::take(&mut decision.closed_without_evidence),
            inexpressible: std::mem::take(&mut decision.inexpressible),
            unexplained: std::mem::take(&mut decision.unexplained),
            stopped: decision.stopped.clone(),
            egress: options.closes_egress(),
            forced: options.forced,
            stopped_too: options.stopped_too,
            forgotten,
        }
    }

    /// The same, with a snapshot of its own.
    pub(crate) fn into_owned(self) -> Told<'static> {
        Told { snapshot: Cow::Owned(self.snapshot.into_owned()), ..self }
    }
}

/// Writes `evidence.json`: one list of all edges, which the rest names by their places in it.
pub(crate) fn write_evidence(exported: &Exported<'_>, out: &mut dyn io::Write) -> io::Result<()> {
    write_lines(out, &Evidence::of(exported))
}

/// Writes `REPORT.md`.
pub(crate) fn write_report(exported: &Exported<'_>, out: &mut dyn io::Write) -> io::Result<()> {
    markdown::write(&Evidence::of(exported), out)
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

/// Fewer servers than this are never remarkable.
const WIDE_MIN: usize = 20;
