//! DNS names that clients asked for, bounded as a whole and per client: whoever asks for many names
//! loses his own, not the others'.
//!
//! A name that was answered for an address holds until an epoch has other answers for that address
//! and not this one. As several names may have one address at a time, the names of an epoch are all
//! that held at some time in it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Observer, peers::PeerId};
use crate::peer::Peer;

/// Names kept for one address of one client: those that were answered last.
pub const MAX_NAMES_PER_ADDRESS: usize = 8;
/// One client has at most this part of all names while others want some.
const SHARE: usize = 8;

/// Names of one address, the one that was answered last at the end.
#[derive(Debug, Default)]
struct OfAddress {
    names: Vec<Arc<str>>,
    /// So many at the end were answered in the open epoch.
    answered: usize,
}

impl OfAddress {
    /// Takes an answer. Gives how many names that adds, and how many go for it.
    fn learn(&mut self, name: &Arc<str>) -> (usize, usize) {
        let known = self.names.iter().position(|known| known == name);
        if let Some(at) = known {
            let is_first = at < self.names.len() - self.answered;
            self.names[at..].rotate_left(1);
            self.answered += usize::from(is_first);
            return (0, 0);
        }
        let goes = self.names.len() >= MAX_NAMES_PER_ADDRESS;
        if goes {
            self.names.remove(0);
        }
        self.names.push(Arc::clone(name));
        self.answered = (self.answered + 1).min(self.names.len());
        (1, usize::from(goes))
    }

    /// Another epoch begins: other answers than those of an earlier epoch contradict these. Gives
    /// how many names that takes.
    fn turn(&mut self) -> usize {
        let contradicted = if self.answered > 0 { self.names.len() - self.answered } else { 0 };
        self.names.drain(..contradicted);
        self.answered = 0;
        contradicted
    }
}

/// One client's names; the oldest addresses go first.
#[derive(Debug, Default)]
struct Client {
    names: HashMap<IpAddr, OfAddress>,
    order: VecDeque<IpAddr>,
    /// Over all addresses.
    count: usize,
}

impl Client {
    /// Forgets the oldest address. Returns how many names that were.
    fn forget_oldest(&mut self) -> usize {
        let forgotten =
            self.order.pop_front().and_then(|oldest| self.names.remove(&oldest)).map_or(0, |n| n.names.len());
        self.count -= forgotten;
        forgotten
    }
}

/// Client → address → names. What a client was told says nothing about what others call an address.
#[derive(Debug, Default)]
pub(super) struct Names {
    clients: HashMap<PeerId, Client>,
    count: usize,
    forgotten: u64,
}

impl Names {
    /// Learns a name of an address. There are at most `max` names over all clients, and an eighth
    /// of that for each.
    pub(super) fn learn(&mut self, client: PeerId, address: IpAddr, name: &Arc<str>, max: usize) {
        let own = self.clients.entry(client).or_default();
        let known = own.names.entry(address).or_insert_with(|| {
            own.order.push_back(address);
            OfAddress::default()
        });
        let (more, gone) = known.learn(name);
        own.count = own.count + more - gone;
        self.count = self.count + more - gone;
        self.forgotten = self.forgotten.saturating_add(gone as u64);
        let mut forgotten = 0;
        while own.count > (max / SHARE).max(1) {
            forgotten += own.forget_oldest();
        }
        self.count -= forgotten;
        while self.count > max {
            let Some(largest) = self.clients.values_mut().max_by_key(|c| c.count) else { break };
            let gone = largest.forget_oldest();
            self.count -= gone;
            forgotten += gone;
        }
        if forgotten > 0 {
            self.clients.retain(|_, c| c.count > 0);
            self.forgotten = self.forgotten.saturating_add(forgotten as u64);
        }
    }

    pub(super) fn of(&self, client: PeerId, address: IpAddr) -> &[Arc<str>] {
        self.clients.get(&client).and_then(|c| c.names.get(&address)).map_or(&[], |of| &of.names)
    }

    /// Every name, by client and address.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, IpAddr, &[Arc<str>])> {
        self.clients
            .iter()
            .flat_map(|(client, own)| own.names.iter().map(|(address, of)| (*client, *address, &*of.names)))
    }

    /// Another epoch begins. What an answer of the one that ended contradicts is forgotten, but for
    /// addresses to which a client has connections of that time.
    pub(super) fn turn(&mut self, is_open: impl Fn(PeerId, IpAddr) -> bool) {
        for (client, own) in &mut self.clients {
            for (address, of) in &mut own.names {
                if is_open(*client, *address) {
                    of.answered = 0;
                    continue;
                }
                let gone = of.turn();
                own.count -= gone;
                self.count -= gone;
            }
        }
    }

    /// Forgets what clients were told that `is_used` says are no more.
    pub(super) fn retain(&mut self, is_used: impl Fn(PeerId) -> bool) {
        self.clients.retain(|client, own| {
            let keep = is_used(*client);
            if !keep {
                self.count -= own.count;
            }
            keep
        });
    }

    /// Names over all clients.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Names that made room for newer ones.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

/// Names of an address that no edge shows: the workload that was told them may call it later.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UnusedNames {
    pub(super) client: Peer,
    pub(super) address: IpAddr,
    /// The one that was answered last at the end.
    names: Vec<String>,
}

impl Observer {
    /// Names that no edge shows, for the state: a snapshot has them only where they were used.
    pub(super) fn unused_names(&self) -> impl Iterator<Item = UnusedNames> + '_ {
        let used = self.graph.edges().iter().filter_map(|((client, server, ..), _)| {
            let address = self.peers.address(*server)?;
            Some((*client, address))
        });
        let used: HashSet<(PeerId, IpAddr)> = used.collect();
        let unused = self.graph.names().iter().filter(move |(client, address, _)| !used.contains(&(*client, *address)));
        unused.map(|(client, address, names)| UnusedNames {
            client: Peer::clone(&self.peers.get(client)),
            address,
            names: names.iter().map(|name| name.to_string()).collect(),
        })
    }

    /// Takes them back. They count as answered in the open epoch: when they were is not stored.
    pub(super) fn know_names(&mut self, all: Vec<UnusedNames>) {
        for UnusedNames { client, address, names } in all {
            let client = self.peers.id(client);
            names.iter().for_each(|name| self.graph.learn_name(client, address, &Arc::from(name.as_str())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::peers::Peers, *};
    use crate::peer::Peer;

    #[test]
    #[cfg_attr(miri, ignore = "a flood takes minutes under Miri")]
    fn a_client_that_asks_for_many_names_loses_its_own_and_no_other_s() {
        let (mut names, mut peers) = (Names::default(), Peers::default());
        let [quiet, loud] = ["quiet", "loud"].map(|name| peers.id(Peer::Node { name: name.to_owned() }));
        let address = |i: u32| IpAddr::V4((0xc612_0000 + i).into());
        names.learn(quiet, address(0), &"kept.example.org".into(), 64);
        for i in 0..10_000 {
            names.learn(loud, address(i), &format!("n{i}.example.org").into(), 64);
            names.learn(loud, address(9), &format!("n{i}.example.org").into(), 64);
            assert!(names.len() <= 9, "an eighth, and the one");
        }
        assert_eq!(names.of(quiet, address(0)), ["kept.example.org".into()]);
        assert_eq!(names.of(loud, address(9_999)), ["n9999.example.org".into()], "the newest are known");
        assert!(names.forgotten() > 9_000);
        for i in 0..200 {
            let other = peers.id(Peer::Node { name: format!("other-{i}") });
            names.learn(other, address(i), &"x.example.org".into(), 64);
            assert!(names.len() <= 64);
        }
    }
}
