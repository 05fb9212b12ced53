//! DNS names that clients asked for, bounded as a whole and per client: whoever asks for many names
//! loses his own, not the others'.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use super::peers::PeerId;

/// Names kept for one address of one client.
const MAX_NAMES_PER_ADDRESS: usize = 8;
/// One client has at most this part of all names while others want some.
const SHARE: usize = 8;

/// One client's names; the oldest addresses go first.
#[derive(Debug, Default)]
struct Client {
    names: HashMap<IpAddr, Vec<Arc<str>>>,
    order: VecDeque<IpAddr>,
    /// Over all addresses.
    count: usize,
}

impl Client {
    /// Forgets the oldest address. Returns how many names that were.
    fn forget_oldest(&mut self) -> usize {
        let forgotten = self.order.pop_front().and_then(|oldest| self.names.remove(&oldest)).map_or(0, |n| n.len());
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
            Vec::new()
        });
        if known.contains(name) || known.len() >= MAX_NAMES_PER_ADDRESS {
            return;
        }
        known.push(Arc::clone(name));
        own.count += 1;
        self.count += 1;
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
        self.clients.get(&client).and_then(|c| c.names.get(&address)).map_or(&[], Vec::as_slice)
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
