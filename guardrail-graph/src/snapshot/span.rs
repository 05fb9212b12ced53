//! What a snapshot says of a span of time: a pure function, so that the same facts answer for any
//! span.
//!
//! In: snapshots, whose entries have a first and a last time, and a [`Span`]. Out: a snapshot of
//! what meets the span. Counts stay those of whole entries: nobody knows when within
//! `[first, last]` a connection was. Names are not cut: who had an address, what was behind a
//! Service and how a workload is described stay known, and what follows from them is derived anew.
//! Windows are cut to the span, and with them the nodes observed, losses and unresolved flows, so
//! that completeness is judged over the span.
//!
//! An unresolved flow and an incomplete workload have no times of their own, and that there was a
//! loss at all stands beside the times of losses: they count if
//! their source observed in the span ([`SourceWindow`]). The shorter the observations of a source,
//! the sharper the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use thiserror::Error;

use super::{
    AddressEntry, Body, Document, Interval, Side, Snapshot, Source, SourceCounts, SourceWindow, Window, WorkloadEntry,
    facts::{BySource, Facts},
    intervals::hull,
    nodes::cut_nodes,
};
use crate::{
    peer::{Peer, Protocol},
    time::Timestamp,
};

/// Path and query of everything that an agent keeps, apart by epoch: it gives the last 24 hours to
/// whoever names no span, and commands cut the span themselves.
pub const EVERYTHING: &str = "/v1/graph?since=1970-01-01&facts";

/// Nodes' clocks differ: what the server's node recorded this much outside of the span still tells
/// what was behind a Service that was used inside.
const GUARD: Duration = Duration::from_secs(5);

/// A span of time: from `since` (inclusive) to `until` (exclusive), or without an end on a side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

/// Why a span or the times of a snapshot cannot be used, in one sentence.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SpanError {
    /// It ends before or when it begins.
    #[error("the span from {since} to {until} is empty: it has to end after it begins")]
    Empty {
        /// Its begin.
        since: Timestamp,
        /// Its end.
        until: Timestamp,
    },
    /// An entry ends before it begins.
    #[error("times run backwards: {what} begins at {first} and ends at {last}")]
    Backwards {
        /// The entry.
        what: String,
        /// When it begins.
        first: Timestamp,
        /// When it ends.
        last: Timestamp,
    },
}

impl Span {
    /// A span with these ends.
    ///
    /// # Errors
    /// If there is no time in it.
    pub fn new(since: Option<Timestamp>, until: Option<Timestamp>) -> Result<Self, SpanError> {
        match (since, until) {
            (Some(since), Some(until)) if since >= until => Err(SpanError::Empty { since, until }),
            _ => Ok(Self { since, until }),
        }
    }

    /// Its begin; `None`: the beginning of all time.
    #[must_use]
    pub fn since(&self) -> Option<Timestamp> {
        self.since
    }

    /// Its end; `None`: the end of all time.
    #[must_use]
    pub fn until(&self) -> Option<Timestamp> {
        self.until
    }

    /// Whether it has no ends, and so leaves everything as it is.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether something that was first and last seen at these times was seen in the span, as far
    /// as is known.
    #[must_use]
    pub fn meets(&self, first: Timestamp, last: Timestamp) -> bool {
        self.since.is_none_or(|since| last >= since) && self.until.is_none_or(|until| first < until)
    }

    /// Whether all of such a time lies in the span.
    #[must_use]
    pub fn holds(&self, first: Timestamp, last: Timestamp) -> bool {
        self.since.is_none_or(|since| first >= since) && self.until.is_none_or(|until| last <= until)
    }

    /// The part of an interval inside; `None` if there is none.
    pub(super) fn cut(&self, interval: Interval) -> Option<Interval> {
        let from = self.since.map_or(interval.from, |since| interval.from.max(since));
        let to = self.until.map_or(interval.to, |until| interval.to.min(until));
        let instant = interval.from == interval.to && self.meets(from, to);
        (from < to || instant).then_some(Interval { from, to })
    }

    fn meets_counts(&self, counts: &SourceCounts) -> bool {
        self.meets(counts.first_seen, counts.last_seen)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.since, self.until) {
            (Some(since), Some(until)) => write!(f, "from {since} to {until}"),
            (Some(since), None) => write!(f, "since {since}"),
            (None, Some(until)) => write!(f, "until {until}"),
            (None, None) => f.write_str("at any time"),
        }
    }
}

impl Window {
    /// From the first to the last moment at which anybody observed; `None` if nobody did.
    #[must_use]
    pub fn whole(&self) -> Option<Interval> {
        let whole = hull(self.nodes.values().flatten().copied());
        (whole.from <= whole.to).then_some(whole)
    }
}

impl Snapshot {
    /// Whether all times go forwards.
    ///
    /// # Errors
    /// The first entry that ends before it begins.
    pub fn check_times(&self) -> Result<(), SpanError> {
        let Body { window, service_flows, remote_flows, edges, presence, addresses, nodes, coverage, .. } = &self.body;
        let check = |what: &dyn Fn() -> String, first: Timestamp, last: Timestamp| {
            if first > last { Err(SpanError::Backwards { what: what(), first, last }) } else { Ok(()) }
        };
        for (node, intervals) in &window.nodes {
            for interval in intervals {
                check(&|| format!("the window of node {node}"), interval.from, interval.to)?;
            }
        }
        for pod in presence {
            check(&|| format!("the time of pod {}/{}", pod.workload.namespace, pod.pod), pod.from, pod.to)?;
        }
        for node in nodes {
            check(&|| format!("the time of node {}", node.name), node.time.from, node.time.to)?;
        }
        for tenure in addresses {
            let what = || format!("the time of {} with the address {}", tenure.peer, tenure.address);
            tenure.from.zip(tenure.to).map_or(Ok(()), |(from, to)| check(&what, from, to))?;
        }
        for loss in &coverage.losses {
            let mut times = loss.times.iter().flatten().map(|lost| lost.time);
            times.try_for_each(|time| check(&|| format!("a loss ({})", loss.reason), time.from, time.to))?;
        }
        for flow in coverage.unresolved.iter().flat_map(|entry| entry.flows.iter().flatten()) {
            let what = || format!("the flow {} -> {}:{}/{}", flow.client, flow.server, flow.port, flow.protocol);
            check(&what, flow.time.first_seen, flow.time.last_seen)?;
        }
        for flow in service_flows {
            let what = || format!("the flow {} -> {}/{}", flow.client, flow.service, flow.protocol);
            flow.sources.iter().try_for_each(|s| check(&what, s.first_seen, s.last_seen))?;
        }
        for flow in remote_flows {
            let what = || format!("the flow {} <-> {}:{}/{}", flow.local, flow.address, flow.port, flow.protocol);
            flow.sources.iter().try_for_each(|s| check(&what, s.first_seen, s.last_seen))?;
        }
        for edge in edges {
            let (client, server) = (&edge.client.peer, &edge.server.peer);
            let what = || format!("the edge {client} -> {server}:{}/{}", edge.port, edge.protocol);
            check(&what, edge.first_seen, edge.last_seen)?;
            edge.sources.iter().try_for_each(|s| check(&what, s.first_seen, s.last_seen))?;
        }
        Ok(())
    }
}

impl Snapshot {
    /// Whether a flow of it was seen in the span. One that waited for a name is of the epoch in
    /// which it got one, and may have been before that began.
    #[must_use]
    pub fn has_flow_within(&self, span: &Span) -> bool {
        let Body { service_flows, remote_flows, edges, coverage, .. } = &self.body;
        let unresolved = coverage.unresolved.iter().flat_map(|entry| entry.flows.iter().flatten());
        edges.iter().flat_map(|edge| &edge.sources).any(|counts| span.meets_counts(counts))
            || service_flows.iter().flat_map(|flow| &flow.sources).any(|counts| span.meets_counts(counts))
            || remote_flows.iter().flat_map(|flow| &flow.sources).any(|counts| span.meets_counts(counts))
            || unresolved.into_iter().any(|flow| span.meets(flow.time.first_seen, flow.time.last_seen))
    }
}

impl Document {
    /// As [`Snapshot::has_flow_within`].
    #[must_use]
    pub fn has_flow_within(&self, span: &Span) -> bool {
        self.flow_times().any(|(first, last)| span.meets(first, last))
    }

    /// Whether all of it was observed and seen in the span, so that nothing is to be cut.
    #[must_use]
    pub fn is_within(&self, span: &Span) -> bool {
        let window = self.window();
        window.from.zip(window.to).is_none_or(|(from, to)| span.holds(from, to))
            && self.flow_times().all(|(first, last)| span.meets(first, last))
    }

    /// When each of its flows was first and last seen.
    fn flow_times(&self) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        let Facts { service_flows, remote_flows, edges, .. } = self.facts();
        let of_services = service_flows.values().map(|flow| &flow.sources);
        let counted = edges.values().map(|edge| &edge.sources).chain(of_services);
        let counted = counted.chain(remote_flows.values().map(|remote| &remote.flow.sources));
        let unresolved = self.coverage().unresolved.iter().flat_map(|entry| entry.flows.iter().flatten());
        let unresolved = unresolved.map(|flow| (flow.time.first_seen, flow.time.last_seen));
        counted.flat_map(BySource::iter).map(|(.., seen)| (seen.first, seen.last)).chain(unresolved)
    }
}

impl Body {
    /// When each source observed, as far as this snapshot says: a hull of nothing if it does not.
    pub(super) fn windows_of_sources(&self) -> BTreeMap<Source, Interval> {
        let of_node = |node: &str| hull(self.window.nodes.get(node).into_iter().flatten().copied());
        let mut windows: BTreeMap<Source, Interval> =
            self.sources.iter().map(|source| (source.clone(), of_node(&source.node))).collect();
        windows.extend(self.source_windows.iter().map(|known| (known.source.clone(), known.window)));
        windows
    }
}

/// Cuts facts to a span that has an end. What follows from them is not: it is derived anew.
pub(super) fn cut(body: &mut Body, span: &Span) {
    let all_of_it = body.window.whole();
    cut_nodes(body, span);
    cut_coverage(body, span, all_of_it);
    cut_presence(body, span);
    // Whoever said so of all of the window said so of all of it, not of the part that is left.
    if let Some(whole) = all_of_it {
        body.addresses.iter_mut().for_each(|tenure| tenure.heard = tenure.heard.or(Some(whole)));
    }
    cut_places(body, span);
    cut_flows(body, span);
    for times in [&mut body.window.nodes, &mut body.window.steps] {
        times.values_mut().for_each(|times| *times = times.iter().filter_map(|time| span.cut(*time)).collect());
        times.retain(|_, times| !times.is_empty());
    }
    let left = body.window.whole();
    (body.window.from, body.window.to) = (left.map(|w| w.from), left.map(|w| w.to));
}

/// Leaves who observed in the span, what they expected, and what they lost.
fn cut_coverage(body: &mut Body, span: &Span, all_of_it: Option<Interval>) {
    let windows = body.windows_of_sources();
    let observed_in = |source: &Source| windows.get(source).is_some_and(|w| span.cut(*w).is_some());
    body.source_windows = windows
        .iter()
        .filter_map(|(source, window)| Some(SourceWindow { source: source.clone(), window: span.cut(*window)? }))
        .collect();
    let coverage = &mut body.coverage;
    let losses = coverage.losses.iter().map(|loss| (&loss.source, &loss.reason));
    let unresolved = coverage.unresolved.iter().map(|entry| (&entry.source, &entry.reason));
    let (mut here, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for (source, reason) in losses.chain(unresolved) {
        if observed_in(source) { &mut here } else { &mut gone }.insert(reason.clone());
    }
    coverage.losses.retain(|loss| observed_in(&loss.source));
    coverage.unresolved.retain_mut(|unresolved| {
        unresolved.cut(span);
        observed_in(&unresolved.source)
    });
    let of_the_span = all_of_it.is_none_or(|whole| span.cut(whole).is_some());
    for workload in &mut coverage.workloads {
        workload.reasons.retain(|reason| of_the_span && (here.contains(reason) || !gone.contains(reason)));
    }
    coverage.workloads.retain(|workload| !workload.reasons.is_empty());
    let in_window = |node: &String| {
        body.window.nodes.get(node).is_some_and(|intervals| intervals.iter().any(|i| span.cut(*i).is_some()))
    };
    coverage.nodes.observed.retain(in_window);
    if of_the_span {
        let absent = absent_nodes(&body.addresses, span, all_of_it);
        coverage.nodes.expected.retain(|node| !absent.contains(node));
    } else {
        coverage.nodes.expected.clear();
        coverage.inventory = None;
    }
    body.sources.retain(observed_in);
    body.revisions.retain(|known| observed_in(&known.source));
}

/// Nodes whose addresses nobody had in the span: they were gone before it, or came after it.
fn absent_nodes(addresses: &[AddressEntry], span: &Span, all_of_it: Option<Interval>) -> BTreeSet<String> {
    let (mut there, mut known) = (BTreeSet::new(), BTreeSet::new());
    for tenure in addresses {
        let (Peer::Node { name }, Some(heard)) = (&tenure.peer, tenure.heard.or(all_of_it)) else { continue };
        known.insert(name.clone());
        if span.meets(tenure.from.unwrap_or(heard.from), tenure.to.unwrap_or(heard.to)) {
            there.insert(name.clone());
        }
    }
    known.difference(&there).cloned().collect()
}

/// Of a workload or node that nobody spoke of in the span any more, no pod runs: what is left is
/// where they ran.
fn cut_places(body: &mut Body, span: &Span) {
    let Some(since) = span.since else { return };
    // Without a time nobody knows how old the word is.
    let is_old = |at: Timestamp| at != Timestamp::default() && at < since;
    for workload in &mut body.workloads {
        let WorkloadEntry { pods, ran_on, as_of, .. } = workload;
        pods.retain(|node, _| {
            let at = body.own_pods_as_of.get(node).copied().unwrap_or(*as_of);
            if is_old(at) && !node.is_empty() {
                let last = ran_on.entry(node.clone()).or_insert(at);
                *last = (*last).max(at);
            }
            !is_old(at)
        });
    }
}

/// Leaves the flows that meet the span.
fn cut_flows(body: &mut Body, span: &Span) {
    // What Services add to edges is derived anew, from the flows that are left.
    let by_service: BTreeSet<(Peer, String, Protocol)> =
        body.service_flows.iter().map(|flow| (flow.client.clone(), flow.service.clone(), flow.protocol)).collect();
    body.service_flows.retain_mut(|flow| {
        flow.sources.retain(|counts| span.meets_counts(counts));
        !flow.sources.is_empty()
    });
    body.remote_flows.retain_mut(|flow| {
        flow.sources.retain(|counts| span.meets_counts(counts));
        !flow.sources.is_empty()
    });
    let mut uses: BTreeMap<(&Peer, Protocol), Vec<&SourceCounts>> = BTreeMap::new();
    for flow in &body.service_flows {
        uses.entry((&flow.client, flow.protocol)).or_default().extend(&flow.sources);
    }
    body.edges.retain_mut(|edge| {
        if edge.sources.is_empty() {
            return span.meets(edge.first_seen, edge.last_seen);
        }
        let client = &edge.client.peer;
        edge.via.retain(|via| !by_service.contains(&(Peer::clone(client), via.clone(), edge.protocol)));
        let uses = uses.get(&(client, edge.protocol)).map_or(&[][..], Vec::as_slice);
        edge.sources.retain(|counts| {
            let (first, last) = (counts.first_seen.before(GUARD), counts.last_seen.after(GUARD));
            let is_near = |used: &&SourceCounts| used.first_seen <= last && first <= used.last_seen;
            let answers = || counts.side == Side::Server && span.meets(first, last) && uses.iter().any(is_near);
            span.meets_counts(counts) || answers()
        });
        !edge.sources.is_empty()
    });
}

/// Leaves the pods that were there in the span, and when something was lost in it.
fn cut_presence(body: &mut Body, span: &Span) {
    body.witnesses.retain(|witness| body.sources.contains(&witness.source));
    body.presence.retain_mut(|pod| match span.cut(Interval { from: pod.from, to: pod.to }) {
        Some(part) => {
            (pod.from, pod.to) = (part.from, part.to);
            pod.started = pod.started.filter(|at| span.meets(*at, *at));
            true
        }
        None => false,
    });
    for loss in &mut body.coverage.losses {
        if let Some(times) = &mut loss.times {
            times.retain_mut(|loss| span.cut(loss.time).map(|part| loss.time = part).is_some());
        }
    }
}
