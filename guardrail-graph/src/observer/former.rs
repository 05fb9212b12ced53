//! Who had an address of this node's pods in the open epoch, after the index of addresses has
//! forgotten it: other nodes' flows of these hours are named by it, whenever they are asked about.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{AddressOwner, Observer, identity::PodRecord, peers::PeerId};
use crate::{
    identity::addresses::Tenure,
    snapshot::{AddressEntry, Interval, facts::Facts, facts::KnownTenure},
    time::Timestamp,
};

/// A pod is forgotten a little before or after its last tenure.
const APART: Duration = Duration::from_secs(300);
/// An agent without a state never ends its epoch: what ended so long ago is forgotten.
const LONGEST: Duration = Duration::from_secs(25 * 3_600);
/// So many are kept. A flow with an older one is counted without a name.
const MAX: usize = 10_000;

/// By address, beginning, owner and pod: the end, and whether a record showed it.
type Kept = BTreeMap<(IpAddr, Option<Timestamp>, PeerId, String), (Timestamp, bool)>;

/// Tenures that ended in the open epoch.
#[derive(Debug, Default)]
pub(super) struct Former(Kept);

impl Former {
    /// Another epoch begins: what had ended before is part of the one that ended.
    pub(super) fn turn(&mut self) {
        self.0.clear();
    }

    /// The owners.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.0.keys().map(|key| key.2)
    }

    /// Puts back what a state has; false: it is not known to have ended before `before`.
    pub(super) fn restore(&mut self, entry: &AddressEntry, peer: PeerId, before: Timestamp) -> bool {
        let (Some(to), Some(pod)) = (entry.to.filter(|to| *to < before), &entry.pod) else { return false };
        self.keep((entry.address, entry.from, peer, pod.clone()), (to, entry.proven));
        true
    }

    fn keep(&mut self, key: (IpAddr, Option<Timestamp>, PeerId, String), known: (Timestamp, bool)) {
        self.0.insert(key, known);
        if self.0.len() > MAX
            && let Some(oldest) = self.0.iter().min_by_key(|(_, (to, _))| *to).map(|(key, _)| key.clone())
        {
            self.0.remove(&oldest);
        }
    }
}

impl Observer {
    /// When a tenure began, as a snapshot says it: who had the address before this agent began
    /// others may have seen, so it is the pod's start, or the first proof if that is earlier.
    pub(super) fn begin_of(
        &self,
        tenure: &Tenure<AddressOwner>,
        started: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        if tenure.from != Timestamp::MIN {
            return Some(tenure.from);
        }
        let first_proof = tenure.proven.map_or(Timestamp::MAX, |(first, _)| first);
        started.map(|at| at.min(first_proof)).filter(|at| *at < now.max(self.history.started()))
    }

    /// Keeps what is forgotten of this node's own pods with what ended before `before`.
    pub(super) fn keep_former(&mut self, now: Timestamp, before: Timestamp) {
        let begun = self.history.epoch().unwrap_or(Timestamp::MIN);
        let is_due = |tenure: &Tenure<AddressOwner>| tenure.to >= begun && tenure.to < before.after(APART);
        let due = self.identity.tenures().filter(|(_, tenure)| is_due(tenure)).filter_map(|(address, tenure)| {
            let AddressOwner::Pod(id) = tenure.owner else { return None };
            let PodRecord { peer, pod, .. } = self.identity.pod(id)?;
            let is_here = self.config.own_pods_only || pod.node.as_ref() == Some(&self.config.node);
            let key =
                (address, self.begin_of(tenure, pod.started, now), *peer, format!("{}/{}", pod.namespace, pod.name));
            (is_here || tenure.proven.is_some()).then_some((key, (tenure.to, tenure.proven.is_some())))
        });
        let due: Vec<_> = due.collect();
        self.former.0.retain(|_, (to, _)| *to >= now.before(LONGEST));
        for (key, known) in due {
            self.former.keep(key, known);
        }
    }

    /// Adds them to the facts; what the index of addresses still knows of one replaces it.
    pub(super) fn former_facts(&self, facts: &mut Facts, heard: Interval) {
        for ((address, from, peer, pod), (to, proven)) in &self.former.0 {
            let known = KnownTenure { to: Some(*to), heard, proven: *proven, listed: None };
            facts.addresses.insert((*address, *from, self.peers.get(*peer), Some(pod.clone())), known);
        }
    }
}
