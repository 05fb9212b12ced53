//! Established flows with an address of the pods' room that nobody is known to own: counted as
//! unresolved, and named when the word comes after all.
//!
//! A pod may call before the API server tells of its address: while its `postStart` hook runs, or
//! its images are pulled. The served graph says that the flow has no name; as long as there is room
//! it is kept beside it, and moves to its edge when somebody is known to have had the address at
//! its time. It is given up when every watch has spoken past its time, and not before minutes are
//! over.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use super::{
    Observer, UnresolvedReason,
    flows::{DecidedFlow, Last, ends, example, weight},
    identity::{LocalEnd, Resolution},
    ledger::End,
    peers::PeerId,
};
use crate::{
    observe::{self, FlowDelta, Role},
    time::Timestamp,
};

/// How long a flow is kept at least after it was counted as unresolved, while there is room.
const PATIENCE: Duration = Duration::from_secs(600);
/// Flows that are kept.
const MAX: usize = 4_096;
/// Of these at most so many with the same end here.
const MAX_HELD: usize = MAX / 8;

/// The reason under which all of them are counted.
const REASON: UnresolvedReason = UnresolvedReason::PodRangeNoOwner;

/// A flow without a name.
#[derive(Debug)]
struct Kept {
    delta: FlowDelta,
    role: Role,
    /// The server's port.
    port: u16,
    address: IpAddr,
    local: LocalEnd,
    since: Timestamp,
}

/// Those that may still be named, oldest first.
#[derive(Debug, Default)]
pub(super) struct Unnamed {
    kept: VecDeque<Kept>,
    /// How many of them each peer has.
    held: HashMap<PeerId, usize>,
    /// Peers with flows that were kept no longer, or never: they stay incomplete.
    given_up: HashSet<PeerId>,
}

impl Unnamed {
    /// Their ends that are here.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.held.keys().chain(&self.given_up).copied()
    }

    /// A flow of this peer has no name, and will get none.
    pub(super) fn give_up(&mut self, peer: PeerId) {
        self.given_up.insert(peer);
    }

    fn has_room(&self, peer: PeerId) -> bool {
        self.kept.len() < MAX && self.held.get(&peer).is_none_or(|held| *held < MAX_HELD)
    }

    fn push(&mut self, kept: Kept) {
        *self.held.entry(kept.local.peer).or_default() += 1;
        self.kept.push_back(kept);
    }

    fn let_go(&mut self, peer: PeerId) {
        if let Some(held) = self.held.get_mut(&peer) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                self.held.remove(&peer);
            }
        }
    }
}

impl Observer {
    /// Counts a flow whose remote address has no owner, and keeps it if it may still get one.
    pub(super) fn keep_unnamed(&mut self, flow: DecidedFlow<'_>, local: &LocalEnd, now: Timestamp) {
        let DecidedFlow { delta, role, port, address } = flow;
        let established = delta.counts.opened > 0 || delta.counts.found > 0;
        if !established || !self.unnamed.has_room(local.peer) {
            let remote = (observe::Remote::Addr(address), delta.server_port, delta.protocol);
            return self.unresolved(REASON, (role, local.peer), remote, weight(&delta.counts), established);
        }
        let kept = Kept { delta: delta.clone(), role, port, address, local: local.clone(), since: now };
        self.count_unnamed(&kept);
        self.unnamed.push(kept);
    }

    fn count_unnamed(&mut self, kept: &Kept) {
        let Kept { delta, role, local, .. } = kept;
        let remote = (delta.remote, delta.server_port, delta.protocol);
        let peers = &self.peers;
        self.ledger.count_unresolved(REASON, weight(&delta.counts), || example(peers.get(local.peer), *role, remote));
        self.ledger.incomplete_peer(local.peer, REASON.as_str());
        self.ledger.keep_unresolved(REASON, ends(End::Peer(local.peer), *role, remote));
    }

    /// It is no longer without a name, or not in this epoch.
    fn uncount_unnamed(&mut self, kept: &Kept) {
        let Kept { delta, role, local, .. } = kept;
        let remote = (delta.remote, delta.server_port, delta.protocol);
        self.unnamed.let_go(local.peer);
        let text = example(self.peers.get(local.peer), *role, remote);
        let ends = ends(End::Peer(local.peer), *role, remote);
        self.ledger.take_back(REASON, weight(&delta.counts), &text, ends);
        if !self.unnamed.held.contains_key(&local.peer) && !self.unnamed.given_up.contains(&local.peer) {
            self.ledger.complete_peer(local.peer, REASON.as_str());
        }
    }

    /// Moves those to their edges whose address somebody is known to have had by now, and gives up
    /// those that waited for too long. Called once a second.
    pub(super) fn name_unnamed(&mut self, now: Timestamp) {
        for kept in std::mem::take(&mut self.unnamed.kept) {
            let at = kept.delta.last_open.or(kept.delta.first_open).unwrap_or(kept.since);
            let asked = (kept.address, kept.port, kept.delta.protocol);
            let remote = match kept.role {
                Role::Server => self.remote_peer(kept.address, at, false),
                _ => self.remote_server(asked, at, false),
            };
            if matches!(remote, Resolution::Known(_)) {
                self.uncount_unnamed(&kept);
                let Kept { delta, role, port, address, local, .. } = &kept;
                let flow = DecidedFlow { delta, role: *role, port: *port, address: *address };
                self.instants(flow, local.clone(), at, now, Last::ALL);
            } else if now.since(kept.since) >= PATIENCE && at <= self.words.told_until() {
                self.unnamed.let_go(kept.local.peer);
                self.unnamed.give_up(kept.local.peer);
            } else {
                self.unnamed.kept.push_back(kept);
            }
        }
    }

    /// Takes them out of the epoch that ends: none of them is counted in it.
    pub(super) fn take_unnamed(&mut self) -> UnnamedOfEpoch {
        let kept = std::mem::take(&mut self.unnamed.kept);
        for kept in &kept {
            self.uncount_unnamed(kept);
        }
        self.unnamed = Unnamed::default();
        UnnamedOfEpoch(kept)
    }

    /// Counts them in the epoch that begins.
    pub(super) fn put_unnamed(&mut self, taken: UnnamedOfEpoch) {
        for kept in taken.0 {
            self.count_unnamed(&kept);
            self.unnamed.push(kept);
        }
    }
}

/// Those that move from one epoch to the next.
pub(super) struct UnnamedOfEpoch(VecDeque<Kept>);
