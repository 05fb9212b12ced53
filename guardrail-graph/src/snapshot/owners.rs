//! Who had which address when, over all nodes.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    Counts, Interval,
    facts::{Facts, Seen},
    nodes::range_addresses,
};
use crate::{peer::Peer, time::Timestamp};

/// Nodes' clocks differ, and around a change of owner only the API server's word may be known:
/// doubt on both sides of a tenure.
pub(super) const GUARD: Duration = Duration::from_secs(5);
/// How long before the first word of its owner an address may have been in use.
pub(crate) const LEAD: Duration = Duration::from_secs(60);

/// Who had an address, as far as those who say so observed.
struct Tenure<'a> {
    from: Timestamp,
    to: Timestamp,
    /// It is not known to have ended at `to`: nobody looked any more.
    open: bool,
    peer: &'a Arc<Peer>,
}

impl Tenure<'_> {
    /// Whether it may reach into a time, by clocks that differ.
    fn meets(&self, first: Timestamp, last: Timestamp) -> bool {
        self.from.before(GUARD) <= last && first <= self.to.after(GUARD)
    }

    /// Whether it is all there is to explain an instant just outside of it: before the first word
    /// of it, or after the last.
    fn is_near(&self, at: Timestamp) -> bool {
        (at < self.from && self.from.before(LEAD) <= at) || (self.open && self.to < at && at <= self.to.after(LEAD))
    }
}

/// Who had which address when, over all nodes.
#[derive(Default)]
pub(super) struct Owners<'a>(HashMap<IpAddr, Vec<Tenure<'a>>>);
impl<'a> Owners<'a> {
    /// Those of the facts, or none if nothing has to be named.
    pub(super) fn of(facts: &'a Facts) -> Self {
        let mut owners = Self::default();
        if facts.own_pods.is_empty() && facts.remote_flows.is_empty() {
            return owners;
        }
        for ((address, from, peer, _), known) in &facts.addresses {
            let to = known.to.unwrap_or(known.heard.to);
            let from = from.unwrap_or(known.heard.from.min(to));
            let to = to.max(from);
            owners.0.entry(*address).or_default().push(Tenure { from, to, open: known.to.is_none(), peer });
        }
        owners.add_nodes(facts);
        owners
    }

    /// What was told of nodes themselves outlasts the tenures that their agents remember.
    fn add_nodes(&mut self, facts: &'a Facts) {
        let last = facts.named_nodes().values().flatten().map(|time| time.to).max();
        let pods: HashSet<IpAddr> = facts.addresses.keys().filter(|key| key.3.is_some()).map(|key| key.0).collect();
        for ((name, _, described), times) in facts.named_nodes() {
            let Some(peer) = facts.node_peers.get(name) else { continue };
            let by_range = described.pod_cidrs.iter().flat_map(|range| range_addresses(*range));
            // A pod may have an address that else is its node's.
            let by_range = by_range.filter(|address| !pods.contains(address));
            for address in described.addresses.iter().copied().chain(by_range) {
                let tenure =
                    |time: &Interval| Tenure { from: time.from, to: time.to, open: Some(time.to) == last, peer };
                self.0.entry(address).or_default().extend(times.iter().map(tenure));
            }
        }
    }

    /// The one who had the address at an instant; `None` if nobody is known, or several are
    /// possible.
    pub(super) fn at(&self, address: IpAddr, at: Timestamp) -> Option<&'a Arc<Peer>> {
        let tenures = self.0.get(&address)?;
        let one = |peers: BTreeSet<&'a Arc<Peer>>| peers.first().copied().filter(|_| peers.len() == 1);
        let possible: BTreeSet<_> = tenures.iter().filter(|t| t.meets(at, at)).map(|t| t.peer).collect();
        if !possible.is_empty() {
            return one(possible);
        }
        one(tenures.iter().filter(|t| t.is_near(at)).map(|t| t.peer).collect())
    }

    /// Whether it is known for all of a time who had the address, but for moments.
    fn is_known_throughout(&self, address: IpAddr, first: Timestamp, last: Timestamp) -> bool {
        let mut tenures: Vec<_> = self.0.get(&address).into_iter().flatten().map(|t| (t.from, t.to)).collect();
        tenures.sort_unstable();
        let known_until = tenures
            .into_iter()
            .fold(first, |until, (from, to)| if from.before(LEAD) <= until { until.max(to) } else { until });
        known_until.after(LEAD) >= last
    }

    /// Whether nobody but those who are known to have had it can have had it in between.
    pub(super) fn are_all_known(&self, address: IpAddr, first: Timestamp, last: Timestamp) -> bool {
        let tenures = self.0.get(&address).into_iter().flatten();
        let had = |at| tenures.clone().any(|t| t.meets(at, at) || t.is_near(at));
        had(first) && had(last) && self.is_known_throughout(address, first, last)
    }

    /// Everybody who had it some time in between.
    pub(super) fn between(&self, address: IpAddr, first: Timestamp, last: Timestamp) -> BTreeSet<&'a Arc<Peer>> {
        let tenures = self.0.get(&address).into_iter().flatten();
        let mut peers: BTreeSet<&Arc<Peer>> = tenures.filter(|t| t.meets(first, last)).map(|t| t.peer).collect();
        peers.extend(self.at(address, first));
        peers.extend(self.at(address, last));
        peers
    }

    /// Whose a flow is: parts of it with their owner, and how many connections nobody can be given.
    pub(super) fn shares(&self, address: IpAddr, seen: &Seen) -> (Vec<(&'a Arc<Peer>, Seen)>, u64) {
        let weight = |c: &Counts| c.established().max(c.open.into()).saturating_add(c.failed());
        let all = self.between(address, seen.first, seen.last);
        let ends = (self.at(address, seen.first), self.at(address, seen.last));
        if let (1, (Some(owner), Some(_))) = (all.len(), ends)
            && self.is_known_throughout(address, seen.first, seen.last)
        {
            return (vec![(owner, *seen)], 0);
        }
        // The address changed hands, or nobody looked for a while: the first and the last
        // connection each prove an edge to who had it then, and of those between nothing is known.
        if seen.counts.opened < 2 || seen.counts.failed() > 0 || seen.counts.found > 0 {
            return (Vec::new(), weight(&seen.counts));
        }
        let one = |at| Seen { counts: Counts { opened: 1, ..Counts::default() }, first: at, last: at };
        let proven = [(ends.0, seen.first), (ends.1, seen.last)];
        let proven: Vec<_> = proven.into_iter().filter_map(|(owner, at)| Some((owner?, one(at)))).collect();
        let left = seen.counts.opened.saturating_sub(proven.len() as u64);
        (proven, left)
    }
}
