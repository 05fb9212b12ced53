//! Joining what is known of pods that were there, and of the times of losses.

use std::{collections::BTreeMap, sync::Arc};

use super::Facts;
use crate::{
    peer::Peer,
    snapshot::{
        Interval, LossTime, PodPresence, Source, Witness,
        intervals::joined,
        presence::{LossTimes, Present, add_pod},
    },
};

impl Facts {
    /// Joins who was there.
    pub(in crate::snapshot) fn add_presence(&mut self, witnesses: Vec<Witness>, pods: Vec<PodPresence>) {
        for Witness { source, tells, full } in witnesses {
            let known = self.witnesses.entry(self.counters.intern(source)).or_default();
            *known = (known.0 | tells, known.1 | full);
        }
        for PodPresence { workload, pod, node, from, to, started, told } in pods {
            let key = (self.words.intern(&*workload.namespace), pod.into(), self.words.intern(&*node), from, told);
            let present = Present { to, started, workload: self.workload_names.intern(workload) };
            add_pod(&mut self.pods, key, present);
        }
    }

    /// Joins when a source lost events for a reason. `None`: nobody knows when, so all of the time.
    pub(in crate::snapshot) fn add_loss_times(&mut self, source: &Source, reason: &str, times: Option<Vec<LossTime>>) {
        let key = (Arc::new(source.clone()), reason.to_owned());
        let known = self.loss_times.entry(key).or_insert_with(|| Some(LossTimes::new()));
        match (known, times) {
            (Some(known), Some(times)) => {
                for LossTime { time, peer } in times {
                    let peer = peer.map(|peer| self.peers.intern(peer));
                    known.entry(peer).or_default().push(time);
                }
            }
            (known, _) => *known = None,
        }
    }

    /// Joins intervals that touch.
    pub(in crate::snapshot) fn settle_losses(&mut self) {
        for intervals in self.loss_times.values_mut().flatten().flat_map(BTreeMap::values_mut) {
            *intervals = joined(std::mem::take(intervals));
        }
    }

    /// When a source lost events for a reason, as it stands in a snapshot.
    pub(in crate::snapshot) fn loss_times_of(&self, key: &(Arc<Source>, String)) -> Option<Vec<LossTime>> {
        let times = self.loss_times.get(key)?.as_ref()?;
        let of_peer = |(peer, intervals): (&Option<Arc<Peer>>, &Vec<Interval>)| {
            let peer = peer.as_deref().cloned();
            intervals.iter().map(move |time| LossTime { time: *time, peer: peer.clone() }).collect::<Vec<_>>()
        };
        Some(times.iter().flat_map(of_peer).collect())
    }

    /// Who says which pods were there.
    pub(in crate::snapshot) fn witness_list(&self) -> Vec<Witness> {
        let known = self.witnesses.iter();
        known
            .map(|(source, (tells, full))| Witness { source: Source::clone(source), tells: *tells, full: *full })
            .collect()
    }
}
