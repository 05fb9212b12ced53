//! Who owned an address when: an interval index with tombstones.
//!
//! Two kinds of evidence. The API server tells of changes late, and in no particular order: its word is a tenure from one arrival time to
//! another, good to within a guard. A socket of a known cgroup that holds the address is proof for that instant, and overrides the arrival
//! times. Where two owners remain possible, the answer is "ambiguous", not the likelier of them.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use crate::time::Timestamp;

/// A time during which an owner had an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure<O> {
    /// The owner.
    pub owner: O,
    /// Start; [`Timestamp::MIN`]: before anything that was watched.
    pub from: Timestamp,
    /// End (exclusive); [`Timestamp::MAX`]: still.
    pub to: Timestamp,
    /// First and last instant at which a record of ours showed it.
    pub proven: Option<(Timestamp, Timestamp)>,
}

/// What the index says of an address at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<O> {
    /// Nobody ever had it.
    Unknown,
    /// Somebody had it, nobody at that time.
    Vacant,
    /// One owner.
    Owner(O),
    /// Several owners are possible.
    Ambiguous(Vec<O>),
}

/// The index.
#[derive(Debug)]
pub struct AddressIndex<O> {
    tenures: HashMap<IpAddr, Vec<Tenure<O>>>,
    reassigned: BTreeSet<IpAddr>,
    guard: Duration,
    lead: Duration,
}

impl<O: Copy + PartialEq> AddressIndex<O> {
    /// An empty index. `guard`: how exact the API server's times are around a change of owner. `lead`: how long before the first word of an owner
    /// the address may have been its own already, if it was nobody else's.
    #[must_use]
    pub fn new(guard: Duration, lead: Duration) -> Self {
        Self { tenures: HashMap::new(), reassigned: BTreeSet::new(), guard, lead }
    }

    /// The API server says that `owner` has the address, as of `from` (or since ever, if nobody else is known to have had it).
    pub fn claim(&mut self, address: IpAddr, owner: O, from: Timestamp) {
        let tenures = self.tenures.entry(address).or_default();
        if tenures.iter().any(|t| t.owner == owner && t.to == Timestamp::MAX) {
            return;
        }
        let others = tenures.iter().any(|t| t.owner != owner);
        let mut from =
            if others && from == Timestamp::MIN { tenures.iter().map(|t| t.from).max().unwrap_or(from) } else { from };
        for tenure in tenures.iter_mut().filter(|t| t.to == Timestamp::MAX) {
            tenure.to = from.max(tenure.proven.map_or(Timestamp::MIN, |p| p.1));
            from = from.max(tenure.from);
        }
        if others {
            self.reassigned.insert(address);
        }
        tenures.push(Tenure { owner, from, to: Timestamp::MAX, proven: None });
        tenures.sort_by_key(|t| t.from);
    }

    /// The API server says that `owner` no longer has the address.
    pub fn release(&mut self, address: IpAddr, owner: O, at: Timestamp) {
        for tenure in self.tenures.get_mut(&address).into_iter().flatten() {
            if tenure.owner == owner && tenure.to == Timestamp::MAX {
                tenure.to = at.max(tenure.proven.map_or(Timestamp::MIN, |p| p.1));
            }
        }
    }

    /// A record shows that `owner` had the address at `at`.
    pub fn prove(&mut self, address: IpAddr, owner: O, at: Timestamp) {
        let tenures = self.tenures.entry(address).or_default();
        // The common case: one owner, and it is this one.
        if let [only] = &mut tenures[..]
            && only.owner == owner
        {
            only.from = only.from.min(at);
            only.to = if only.to < at { at.after(Duration::from_nanos(1)) } else { only.to };
            only.proven = Some(only.proven.map_or((at, at), |(a, b)| (a.min(at), b.max(at))));
            return;
        }
        let others = tenures.iter().any(|t| t.owner != owner);
        // Of several tenures of this owner the one that is nearest in time.
        let distance = |t: &Tenure<O>| if at < t.from { t.from.since(at) } else { at.since(t.to) };
        match tenures.iter_mut().filter(|t| t.owner == owner).min_by_key(|t| distance(t)) {
            Some(own) => {
                own.proven = Some(own.proven.map_or((at, at), |(a, b)| (a.min(at), b.max(at))));
                own.from = own.from.min(at);
                if own.to < at {
                    own.to = at.after(Duration::from_nanos(1));
                }
            }
            None => {
                tenures.push(Tenure { owner, from: at, to: Timestamp::MAX, proven: Some((at, at)) });
                if others {
                    self.reassigned.insert(address);
                }
            }
        }
        // Whoever had it before had it no longer than to this instant, but no shorter than its own proof.
        for other in tenures.iter_mut().filter(|t| t.owner != owner && t.from <= at && at < t.to) {
            other.to = at.max(other.proven.map_or(Timestamp::MIN, |p| p.1));
        }
        tenures.sort_by_key(|t| t.from);
    }

    /// Who had the address at `at`.
    #[must_use]
    pub fn lookup(&self, address: IpAddr, at: Timestamp) -> Lookup<O> {
        let Some(tenures) = self.tenures.get(&address) else { return Lookup::Unknown };
        if let [only] = &tenures[..] {
            let there = only.from.before(self.guard.max(self.lead)) <= at
                && (only.to == Timestamp::MAX || at <= only.to.after(self.guard));
            return if there { Lookup::Owner(only.owner) } else { Lookup::Vacant };
        }
        if let Some(proven) = tenures.iter().rev().find(|t| t.proven.is_some_and(|(a, b)| a <= at && at <= b)) {
            return Lookup::Owner(proven.owner);
        }
        let mut possible: Vec<&Tenure<O>> = tenures
            .iter()
            .filter(|t| t.from.before(self.guard) <= at && (t.to == Timestamp::MAX || at <= t.to.after(self.guard)))
            .collect();
        // A proof settles who came before and who after it.
        if possible.len() > 1 {
            let all = possible.clone();
            possible.retain(|t| {
                !all.iter().any(|o| {
                    o.owner != t.owner
                        && o.proven.is_some_and(|(first, last)| {
                            (t.from <= o.from && first <= at) || (t.from >= o.from && at <= last && t.from > first)
                        })
                })
            });
        }
        let mut owners: Vec<O> = Vec::new();
        for tenure in possible {
            if !owners.contains(&tenure.owner) {
                owners.push(tenure.owner);
            }
        }
        match owners[..] {
            [owner] => return Lookup::Owner(owner),
            [] => {}
            _ => return Lookup::Ambiguous(owners),
        }
        // The first word of an owner comes after its first traffic, and nobody else is possible.
        match tenures.iter().find(|t| at < t.from) {
            Some(next) if next.from.before(self.lead) <= at => Lookup::Owner(next.owner),
            _ => Lookup::Vacant,
        }
    }

    /// Whether the owner may have changed between two instants.
    #[must_use]
    pub fn changed_between(&self, address: IpAddr, from: Timestamp, to: Timestamp) -> bool {
        let Some(tenures) = self.tenures.get(&address) else { return false };
        let mut there = tenures.iter().filter(|t| t.from <= to && from <= t.to);
        there.next().is_some_and(|first| there.any(|t| t.owner != first.owner))
    }

    /// Whether somebody else than these had it strictly between two instants.
    #[must_use]
    pub fn others_between(&self, address: IpAddr, from: Timestamp, to: Timestamp, ends: [O; 2]) -> bool {
        self.tenures.get(&address).into_iter().flatten().any(|t| t.from < to && from < t.to && !ends.contains(&t.owner))
    }

    /// Addresses that changed their owner since the last call.
    pub fn take_reassigned(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.reassigned).into_iter().collect()
    }

    /// Forgets tenures that ended before `before`.
    pub fn expire(&mut self, before: Timestamp) {
        self.tenures.retain(|_, tenures| {
            tenures.retain(|t| t.to >= before);
            !tenures.is_empty()
        });
    }

    /// All tenures, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &Tenure<O>)> {
        self.tenures.iter().flat_map(|(address, tenures)| tenures.iter().map(|t| (*address, t)))
    }

    /// Puts a tenure back, as a stored state has it.
    pub fn restore(&mut self, address: IpAddr, tenure: Tenure<O>) {
        let tenures = self.tenures.entry(address).or_default();
        tenures.push(tenure);
        tenures.sort_by_key(|t| t.from);
    }

    /// Number of addresses.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tenures.len()
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tenures.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 7));

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    fn index() -> AddressIndex<char> {
        AddressIndex::new(Duration::from_secs(5), Duration::from_secs(60))
    }

    #[test]
    fn an_owner_keeps_what_happened_before_the_address_passed_on() {
        let mut index = index();
        index.claim(A, 'a', Timestamp::MIN);
        index.release(A, 'a', t(100));
        index.claim(A, 'b', t(200));
        assert_eq!(index.lookup(A, t(50)), Lookup::Owner('a'));
        assert_eq!(index.lookup(A, t(103)), Lookup::Owner('a'), "the word of the end comes late or early by the guard");
        assert_eq!(index.lookup(A, t(300)), Lookup::Owner('b'));
        assert_eq!(index.lookup(A, t(196)), Lookup::Owner('b'), "nobody else is possible there");
        assert_eq!(index.take_reassigned(), [A]);
        assert!(index.take_reassigned().is_empty());
    }

    #[test]
    fn around_a_change_that_only_the_api_knows_the_answer_is_ambiguous_until_a_record_settles_it() {
        let mut index = index();
        index.claim(A, 'a', Timestamp::MIN);
        index.claim(A, 'b', t(100));
        for at in [96, 100, 104] {
            assert_eq!(index.lookup(A, t(at)), Lookup::Ambiguous(vec!['a', 'b']), "{at}");
        }
        assert_eq!((index.lookup(A, t(90)), index.lookup(A, t(106))), (Lookup::Owner('a'), Lookup::Owner('b')));
        index.prove(A, 'b', t(98));
        assert_eq!((index.lookup(A, t(99)), index.lookup(A, t(104))), (Lookup::Owner('b'), Lookup::Owner('b')));
        assert_eq!(index.lookup(A, t(97)), Lookup::Ambiguous(vec!['a', 'b']), "before the proof both remain possible");
        index.prove(A, 'a', t(97));
        assert_eq!(index.lookup(A, t(96)), Lookup::Owner('a'));
    }

    #[test]
    fn a_record_overrides_the_time_at_which_the_api_told_of_a_new_owner() {
        let mut index = index();
        index.claim(A, 'a', Timestamp::MIN);
        index.prove(A, 'b', t(50));
        index.claim(A, 'b', t(80));
        assert_eq!(index.lookup(A, t(60)), Lookup::Owner('b'));
        assert_eq!(index.lookup(A, t(40)), Lookup::Owner('a'));
    }

    #[test]
    fn the_first_flows_of_a_pod_come_before_the_word_of_its_address() {
        let mut index = index();
        index.claim(A, 'a', t(100));
        assert_eq!(index.lookup(A, t(70)), Lookup::Owner('a'));
        assert_eq!(index.lookup(A, t(10)), Lookup::Vacant);
    }

    #[test]
    fn a_dead_address_has_no_owner_and_is_forgotten_in_time() {
        let mut index = index();
        index.claim(A, 'a', Timestamp::MIN);
        index.release(A, 'a', t(100));
        assert_eq!(index.lookup(A, t(110)), Lookup::Vacant);
        index.expire(t(101));
        assert_eq!(index.lookup(A, t(50)), Lookup::Unknown);
    }
}
