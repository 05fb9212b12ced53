//! Established flows with an end or role that nobody can name: each has to be allowed, or accepted
//! by a person, so they are kept by their ends.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use crate::{
    observer::{UnresolvedReason, peers::PeerId},
    peer::Protocol,
    snapshot::{Interval, intervals::hull, unresolved::MAX_FLOWS},
};

/// How long before it is counted a flow may have been.
const LEAD: Duration = Duration::from_secs(60);

/// An end as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::observer) enum End {
    /// By name.
    Peer(PeerId),
    /// By address alone.
    Address(IpAddr),
}

/// `(client, server, protocol, port)`. Where the role could not be told, the local end stands
/// first.
pub(in crate::observer) type Ends = (End, End, Protocol, u16);

/// When a flow was, and how often it was noted.
#[derive(Clone, Copy, Debug)]
struct Known {
    time: Interval,
    times: u64,
}

/// Flows by reason.
#[derive(Debug, Default)]
pub(super) struct Flows {
    flows: BTreeMap<(UnresolvedReason, Ends), Known>,
    /// There were some that are not kept.
    more: [bool; UnresolvedReason::ALL.len()],
    kept: [usize; UnresolvedReason::ALL.len()],
}

impl Flows {
    /// A flow, counted in sweeps of this time. `None`: nobody can say between whom.
    pub(super) fn add(&mut self, reason: UnresolvedReason, ends: Option<Ends>, sweep: Interval) {
        let index = reason as usize;
        let Some(ends) = ends else {
            self.more[index] = true;
            return;
        };
        let time = Interval { from: sweep.from.before(LEAD), to: sweep.to };
        self.restore(reason, ends, time);
    }

    /// A flow of this time.
    pub(super) fn restore(&mut self, reason: UnresolvedReason, ends: Ends, time: Interval) {
        let index = reason as usize;
        if let Some(known) = self.flows.get_mut(&(reason, ends)) {
            *known = Known { time: hull([known.time, time]), times: known.times + 1 };
        } else if self.kept[index] < MAX_FLOWS {
            self.kept[index] += 1;
            self.flows.insert((reason, ends), Known { time, times: 1 });
        } else {
            self.more[index] = true;
        }
    }

    /// A flow got its name, or is no part of this epoch.
    pub(super) fn take_back(&mut self, reason: UnresolvedReason, ends: Ends) {
        let Some(known) = self.flows.get_mut(&(reason, ends)) else { return };
        known.times -= 1;
        if known.times == 0 {
            self.flows.remove(&(reason, ends));
            self.kept[reason as usize] -= 1;
        }
    }

    /// Some are not kept.
    pub(super) fn set_more(&mut self, reason: UnresolvedReason) {
        self.more[reason as usize] = true;
    }

    /// Whether some of a reason are not kept.
    pub(super) fn has_more(&self, reason: UnresolvedReason) -> bool {
        self.more[reason as usize]
    }

    /// Those of a reason.
    pub(super) fn of(&self, reason: UnresolvedReason) -> impl Iterator<Item = (&Ends, &Interval)> {
        self.flows.iter().filter(move |((of, _), _)| *of == reason).map(|((_, ends), known)| (ends, &known.time))
    }

    /// Peers that stand in them.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        let ends = self.flows.keys().flat_map(|(_, (client, server, ..))| [*client, *server]);
        ends.filter_map(|end| match end {
            End::Peer(peer) => Some(peer),
            End::Address(_) => None,
        })
    }
}
