//! What is missing from the graph: losses, flows without a name or role, and whose edges are
//! incomplete by them.
//!
//! It only counts. Who a loss concerns is decided before it gets here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

mod flows;
mod times;

use flows::Flows;
pub(super) use flows::{End, Ends};
use times::Times;

use super::{
    UnresolvedReason,
    peers::{PeerId, Peers},
};
use crate::{
    observe::{LossClass, LossReason},
    peer::Peer,
    snapshot::{
        Interval,
        presence::LossTimes,
        unresolved::{FlowEnds, MAX_EXAMPLES},
    },
    time::Timestamp,
};

/// Peers that are kept as incomplete, each with its reasons. If there are more, all of the node
/// are.
const MAX_INCOMPLETE: usize = 10_000;

/// Counts with reasons; each reason exists from the start at 0.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    unresolved: [u64; UnresolvedReason::ALL.len()],
    /// Those of [`UnresolvedReason::DERIVED`], as of the last document or scrape.
    derived: [u64; UnresolvedReason::ALL.len()],
    examples: [BTreeSet<String>; UnresolvedReason::ALL.len()],
    losses: [u64; LossReason::ALL.len()],
    /// All of the epochs before: counters of `/metrics` never go back.
    before: ([u64; UnresolvedReason::ALL.len()], [u64; LossReason::ALL.len()]),
    /// Flows of coarse clients that the kernel side has still to report, of the epochs before.
    coarse_owed: u64,
    /// Flows of clients under the coarse key. The kernel side reports these as a loss as well, but
    /// later: the greater number is true.
    coarse_clients: u64,
    incomplete: HashMap<PeerId, BTreeSet<Arc<str>>>,
    /// Losses that concern anyone on this node.
    node_wide: BTreeSet<Arc<str>>,
    /// When was lost what.
    times: Times,
    /// Established flows without a name or role, by their ends.
    flows: Flows,
}

impl Ledger {
    /// Counts a loss.
    pub(super) fn count_loss(&mut self, reason: LossReason, count: u64) {
        let mut count = count;
        if reason == LossReason::CoarseClient {
            let owed = count.min(self.coarse_owed);
            self.coarse_owed -= owed;
            count -= owed;
        }
        if let Some(index) = LossReason::ALL.iter().position(|r| *r == reason) {
            self.losses[index] = self.losses[index].saturating_add(count);
        }
        if reason.class() == LossClass::Hint {
            self.times.add(reason, None, Timestamp::MAX);
        }
    }

    /// What is told from here on was noticed by the sweeps of this time.
    pub(super) fn sweep(&mut self, from: Timestamp, to: Timestamp) {
        self.times.sweep(from, to);
    }

    /// When was lost what for this reason, by whom it concerns.
    pub(super) fn times(&self, reason: LossReason, peers: &Peers) -> Option<LossTimes> {
        let of_reason = self.times.of(reason).map(|(peer, times)| (peer.map(|peer| peers.get(peer)), times));
        Some(of_reason.collect())
    }

    /// Begins anew. Totals stay.
    pub(super) fn turn(&mut self) {
        let (mut unresolved, mut losses) = self.before;
        for (reason, count) in self.unresolved_totals() {
            unresolved[reason as usize] = count;
        }
        for (sum, (_, count)) in losses.iter_mut().zip(self.losses()) {
            *sum = sum.saturating_add(count);
        }
        let reported = LossReason::ALL.iter().zip(self.losses).find(|(reason, _)| **reason == LossReason::CoarseClient);
        let reported = reported.map_or(0, |(_, count)| count);
        let coarse_owed = self.coarse_owed.saturating_add(self.coarse_clients.saturating_sub(reported));
        let times = self.times.turned();
        *self = Self { before: (unresolved, losses), coarse_owed, times, ..Self::default() };
    }

    /// Losses of this epoch and those before, in the order of [`LossReason::ALL`].
    pub(super) fn loss_totals(&self) -> impl Iterator<Item = (LossReason, u64)> + '_ {
        self.losses().zip(self.before.1).map(|((reason, count), before)| (reason, count.saturating_add(before)))
    }

    /// Counts flows of a client whose servers are not known, the first of them then.
    pub(super) fn count_coarse_client(&mut self, client: PeerId, count: u64, first: Timestamp) {
        self.coarse_clients = self.coarse_clients.saturating_add(count);
        self.incomplete_peer_since(client, LossReason::CoarseClient.as_str(), first);
    }

    /// A table had no room for something of this peer that was there since then: it may have waited
    /// for a name.
    pub(super) fn count_full(&mut self, peer: PeerId, first: Timestamp) {
        self.count_loss(LossReason::GraphFull, 1);
        self.incomplete_peer_since(peer, LossReason::GraphFull.as_str(), first);
    }

    /// Losses in the order of [`LossReason::ALL`].
    pub(super) fn losses(&self) -> impl Iterator<Item = (LossReason, u64)> + '_ {
        LossReason::ALL.into_iter().zip(self.losses).map(|(reason, count)| match reason {
            LossReason::CoarseClient => (reason, count.max(self.coarse_clients)),
            _ => (reason, count),
        })
    }

    /// Counts flows that have no name or role. `example` is asked only as long as more examples are
    /// kept.
    pub(super) fn count_unresolved(&mut self, reason: UnresolvedReason, count: u64, example: impl FnOnce() -> String) {
        let index = reason as usize;
        self.unresolved[index] = self.unresolved[index].saturating_add(count);
        if self.examples[index].len() < MAX_EXAMPLES {
            self.examples[index].insert(example());
        }
    }

    /// Flows have a name after all, or are no part of this epoch. Totals stay.
    pub(super) fn take_back(&mut self, reason: UnresolvedReason, count: u64, example: &str, ends: Option<Ends>) {
        if let Some(ends) = ends {
            self.flows.take_back(reason, ends);
        }
        let index = reason as usize;
        let taken = count.min(self.unresolved[index]);
        self.unresolved[index] -= taken;
        self.before.0[index] = self.before.0[index].saturating_add(taken);
        self.examples[index].remove(example);
    }

    /// Notes an established flow without a name or role. `None`: nobody can say between whom.
    pub(super) fn keep_unresolved(&mut self, reason: UnresolvedReason, ends: Option<Ends>) {
        self.flows.add(reason, ends, self.times.now());
    }

    /// Established flows without a name or role, and whether there were more.
    pub(super) fn unresolved_flows(
        &self,
        reason: UnresolvedReason,
        peers: &Peers,
    ) -> (BTreeMap<FlowEnds, Interval>, bool) {
        let peer = |end: &End| match end {
            End::Peer(peer) => peers.get(*peer),
            End::Address(address) => Arc::new(Peer::External { address: address.to_string() }),
        };
        let flows = self
            .flows
            .of(reason)
            .map(|((client, server, protocol, port), time)| ((peer(client), peer(server), *protocol, *port), *time));
        (flows.collect(), self.flows.has_more(reason))
    }

    /// Peers that stand in flows without a name or role.
    pub(super) fn flow_peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.flows.peers()
    }

    /// Puts established flows back, as a stored state has them.
    pub(super) fn restore_flows(&mut self, reason: &str, flows: Option<Vec<(Ends, Interval)>>, more: bool) {
        let Some(reason) = stored_reason(reason) else { return };
        if more || flows.is_none() {
            self.flows.set_more(reason);
        }
        flows.into_iter().flatten().for_each(|(ends, time)| self.flows.restore(reason, ends, time));
    }

    /// Sets a count that is computed with each document or scrape.
    pub(super) fn set_derived(&mut self, reason: UnresolvedReason, count: u64) {
        self.derived[reason as usize] = count;
    }

    /// Unresolved flows in the order of [`UnresolvedReason::ALL`], without derived ones, with
    /// examples.
    pub(super) fn unresolved(&self) -> impl Iterator<Item = (UnresolvedReason, u64, &BTreeSet<String>)> {
        UnresolvedReason::ALL.into_iter().map(|r| (r, self.unresolved[r as usize], &self.examples[r as usize]))
    }

    /// Unresolved flows of this epoch and those before, in the order of [`UnresolvedReason::ALL`],
    /// with derived ones as of the last document or scrape.
    pub(super) fn unresolved_totals(&self) -> impl Iterator<Item = (UnresolvedReason, u64)> {
        self.unresolved().map(|(reason, count, _)| {
            let others = self.derived[reason as usize].saturating_add(self.before.0[reason as usize]);
            (reason, count.saturating_add(others))
        })
    }

    /// Edges of this peer may be missing.
    pub(super) fn incomplete_peer(&mut self, peer: PeerId, reason: &str) {
        self.incomplete_peer_since(peer, reason, Timestamp::MAX);
    }

    /// Edges of this peer may be missing, which were there then, or since the sweep.
    pub(super) fn incomplete_peer_since(&mut self, peer: PeerId, reason: &str, first: Timestamp) {
        if let Some(lost) = LossReason::ALL.into_iter().find(|lost| lost.as_str() == reason) {
            self.times.add(lost, Some(peer), first);
        }
        self.mark_peer(peer, reason);
    }

    fn mark_peer(&mut self, peer: PeerId, reason: &str) {
        if self.incomplete.len() >= MAX_INCOMPLETE && !self.incomplete.contains_key(&peer) {
            // Nobody is complete rather than a peer forgotten.
            self.node_wide.insert(reason.into());
            return;
        }
        let reasons = self.incomplete.entry(peer).or_default();
        if !reasons.contains(reason) {
            reasons.insert(reason.into());
        }
    }

    /// Nothing of this peer is missing for this reason any more.
    pub(super) fn complete_peer(&mut self, peer: PeerId, reason: &str) {
        if let Some(reasons) = self.incomplete.get_mut(&peer) {
            reasons.remove(reason);
            if reasons.is_empty() {
                self.incomplete.remove(&peer);
            }
        }
    }

    /// Edges of anyone on this node may be missing.
    pub(super) fn incomplete_node(&mut self, reason: &str) {
        self.incomplete_node_since(reason, Timestamp::MAX);
    }

    /// Edges of anyone on this node may be missing, which were there then, or since the sweep.
    pub(super) fn incomplete_node_since(&mut self, reason: &str, first: Timestamp) {
        if let Some(lost) = LossReason::ALL.into_iter().find(|lost| lost.as_str() == reason) {
            self.times.add(lost, None, first);
        }
        self.node_wide.insert(reason.into());
    }

    /// Peers whose edges may be missing, with the reasons.
    pub(super) fn incomplete(&self) -> impl Iterator<Item = (PeerId, &BTreeSet<Arc<str>>)> {
        self.incomplete.iter().map(|(peer, reasons)| (*peer, reasons))
    }

    /// Why edges of anyone on this node may be missing.
    pub(super) fn node_wide(&self) -> &BTreeSet<Arc<str>> {
        &self.node_wide
    }

    /// Whether nothing is known to be missing.
    pub(super) fn is_complete(&self) -> bool {
        let lost = self.losses().any(|(reason, count)| reason.class() == LossClass::Edge && count > 0);
        !lost && self.incomplete.is_empty() && self.node_wide.is_empty()
    }

    /// Puts a loss back, as a stored state has it.
    pub(super) fn restore_loss(&mut self, reason: &str, count: u64) {
        if let Some(index) = LossReason::ALL.iter().position(|r| r.as_str() == reason) {
            self.losses[index] = count;
            if LossReason::ALL[index] == LossReason::CoarseClient {
                self.coarse_clients = count;
            }
        }
    }

    /// Puts the times of a loss back; of one without, everything that was observed.
    pub(super) fn restore_times(
        &mut self,
        reason: &str,
        times: Option<Vec<(Option<PeerId>, Interval)>>,
        whole: Option<Interval>,
    ) {
        let Some(reason) = LossReason::ALL.into_iter().find(|known| known.as_str() == reason) else { return };
        for (peer, time) in times.unwrap_or_else(|| whole.into_iter().map(|whole| (None, whole)).collect()) {
            self.times.sweep(time.from, time.to);
            self.times.add(reason, peer, Timestamp::MAX);
        }
    }

    /// Puts unresolved flows back, as a stored state has them. Those that are computed are computed
    /// again.
    pub(super) fn restore_unresolved(&mut self, reason: &str, count: u64, examples: &BTreeSet<String>) {
        if let Some(reason) = stored_reason(reason) {
            self.unresolved[reason as usize] = count;
            self.examples[reason as usize].clone_from(examples);
        }
    }

    /// Puts a reason of incompleteness back, as a stored state has it. Those that are computed are
    /// computed again.
    pub(super) fn restore_incomplete(&mut self, peer: PeerId, reason: &str) {
        if LossReason::ALL.iter().any(|r| r.as_str() == reason) || stored_reason(reason).is_some() {
            self.mark_peer(peer, reason);
        }
    }
}

fn stored_reason(text: &str) -> Option<UnresolvedReason> {
    let known = UnresolvedReason::ALL.into_iter().find(|r| r.as_str() == text);
    known.filter(|reason| !UnresolvedReason::DERIVED.contains(reason))
}

#[cfg(test)]
mod tests {
    use super::{super::peers::Peers, *};

    fn count(ledger: &Ledger, reason: LossReason) -> u64 {
        ledger.losses().find(|(r, _)| *r == reason).unwrap().1
    }

    #[test]
    fn of_the_two_counts_of_coarse_clients_the_greater_is_shown() {
        let (mut ledger, mut peers) = (Ledger::default(), Peers::default());
        let client = peers.id(Peer::Node { name: "a".into() });
        ledger.count_coarse_client(client, 5, Timestamp::MAX);
        ledger.count_loss(LossReason::CoarseClient, 3);
        assert_eq!(count(&ledger, LossReason::CoarseClient), 5);
        ledger.count_loss(LossReason::CoarseClient, 4);
        assert_eq!(count(&ledger, LossReason::CoarseClient), 7);
        assert!(!ledger.is_complete());
    }

    #[test]
    fn hints_leave_the_graph_complete_and_losses_of_edges_do_not() {
        let mut ledger = Ledger::default();
        ledger.count_loss(LossReason::RingFull, 1);
        ledger.count_unresolved(UnresolvedReason::RoleUnknown, 2, || "a -> b".into());
        assert!(ledger.is_complete());
        ledger.count_loss(LossReason::MapFull, 1);
        assert!(!ledger.is_complete());
    }

    #[test]
    fn of_more_peers_than_are_kept_none_passes_for_complete() {
        let (mut ledger, mut peers) = (Ledger::default(), Peers::default());
        for i in 0..=MAX_INCOMPLETE {
            ledger.incomplete_peer(peers.id(Peer::Node { name: i.to_string() }), "map_full");
        }
        assert_eq!(ledger.incomplete().count(), MAX_INCOMPLETE);
        assert!(ledger.node_wide().contains("map_full"));
    }

    #[test]
    fn what_is_computed_is_not_restored() {
        let mut ledger = Ledger::default();
        let examples = BTreeSet::from(["a -> b".to_owned()]);
        for reason in UnresolvedReason::ALL {
            ledger.restore_unresolved(reason.as_str(), 7, &examples);
        }
        for (reason, count, kept) in ledger.unresolved() {
            let is_derived = UnresolvedReason::DERIVED.contains(&reason);
            assert_eq!((count, kept.len()), if is_derived { (0, 0) } else { (7, 1) }, "{reason:?}");
        }
        ledger.set_derived(UnresolvedReason::RemotePod, 2);
        let shown = ledger.unresolved_totals().find(|(r, _)| *r == UnresolvedReason::RemotePod).unwrap();
        assert_eq!(shown.1, 2);
    }
}
