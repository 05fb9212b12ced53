//! Who had which address when, over all nodes.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    Counts,
    facts::{Facts, Seen},
};
use crate::{peer::Peer, time::Timestamp};

/// Nodes' clocks differ, and around a change of owner only the API server's word may be known:
/// doubt on both sides of a tenure.
const GUARD: Duration = Duration::from_secs(5);
/// How long before the first word of its owner an address may have been in use.
const LEAD: Duration = Duration::from_secs(60);

/// From when, until when, who.
type Tenure<'a> = (Timestamp, Timestamp, &'a Arc<Peer>);

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
            let tenure = (from.unwrap_or(Timestamp::MIN), known.to.unwrap_or(Timestamp::MAX), peer);
            owners.0.entry(*address).or_default().push(tenure);
        }
        owners
    }

    /// The one who had the address at an instant; `None` if nobody is known, or several are
    /// possible.
    pub(super) fn at(&self, address: IpAddr, at: Timestamp) -> Option<&'a Arc<Peer>> {
        let tenures = self.0.get(&address)?;
        let possible: BTreeSet<&Arc<Peer>> = tenures
            .iter()
            .filter(|(from, to, _)| from.before(GUARD) <= at && at <= to.after(GUARD))
            .map(|(.., peer)| *peer)
            .collect();
        if !possible.is_empty() {
            return possible.first().copied().filter(|_| possible.len() == 1);
        }
        tenures.iter().filter(|(from, ..)| at < *from && from.before(LEAD) <= at).min().map(|(.., peer)| *peer)
    }

    /// Everybody who had it some time in between.
    pub(super) fn between(&self, address: IpAddr, first: Timestamp, last: Timestamp) -> BTreeSet<&'a Arc<Peer>> {
        let tenures = self.0.get(&address).into_iter().flatten();
        let mut peers: BTreeSet<&Arc<Peer>> = tenures
            .filter(|(from, to, _)| from.before(GUARD) <= last && first <= to.after(GUARD))
            .map(|t| t.2)
            .collect();
        peers.extend(self.at(address, first));
        peers.extend(self.at(address, last));
        peers
    }

    /// Whose a flow is: parts of it with their owner, and how many connections nobody can be given.
    pub(super) fn shares(&self, address: IpAddr, seen: &Seen) -> (Vec<(&'a Arc<Peer>, Seen)>, u64) {
        let weight = |c: &Counts| c.established().saturating_add(c.failed());
        let all = self.between(address, seen.first, seen.last);
        match all.len() {
            0 => return (Vec::new(), weight(&seen.counts)),
            1 => return (all.into_iter().map(|peer| (peer, *seen)).collect(), 0),
            _ => {}
        }
        // The address changed hands: the first and the last connection each prove an edge, and of
        // those between nothing is known.
        let ends = (self.at(address, seen.first), self.at(address, seen.last));
        let (Some(first), Some(last)) = ends else { return (Vec::new(), weight(&seen.counts)) };
        if seen.counts.opened < 2 || seen.counts.failed() > 0 || seen.counts.found > 0 {
            return (Vec::new(), weight(&seen.counts));
        }
        let one = |at| Seen { counts: Counts { opened: 1, ..Counts::default() }, first: at, last: at };
        (vec![(first, one(seen.first)), (last, one(seen.last))], seen.counts.opened - 2)
    }
}
