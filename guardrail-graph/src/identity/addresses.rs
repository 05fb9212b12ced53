//! Who owned an address when: an interval index with tombstones.
//!
//! Two kinds of evidence. The API server tells of changes late, and in no particular order: its
//! word is a tenure from one arrival time to another, good to within a guard. A socket of a known
//! cgroup that holds the address is proof for that instant, and overrides the arrival times; so is
//! the end of a pod's last cgroup, after which it has no address. Where two owners remain possible,
//! the answer is "ambiguous", not the likelier of them.

mod tenure;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use tenure::TICK;
pub use tenure::{EndBasis, Late, Lookup, Tenure};

use crate::time::Timestamp;

/// Most addresses have one owner ever, so there is no room for more before it comes.
fn insert<O>(tenures: &mut Vec<Tenure<O>>, tenure: Tenure<O>) {
    tenures.reserve_exact(1);
    tenures.push(tenure);
    tenures.sort_by_key(|t| t.from);
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
    /// An empty index. `guard`: how exact the API server's times are around a change of owner.
    /// `lead`: how long before the first word of an owner the address may have been its own
    /// already, if it was nobody else's.
    #[must_use]
    pub fn new(guard: Duration, lead: Duration) -> Self {
        Self { tenures: HashMap::new(), reassigned: BTreeSet::new(), guard, lead }
    }

    /// The API server says that `owner` has the address, as of `from` (or since ever, if nobody
    /// else is known to have had it). Returns whether that is news.
    pub fn claim(&mut self, address: IpAddr, owner: O, from: Timestamp) -> bool {
        let tenures = self.tenures.entry(address).or_default();
        if let Some(last) = tenures.iter().rposition(|t| t.owner == owner) {
            let after = &tenures[last..];
            if after[0].to == Timestamp::MAX || after[0].end != EndBasis::Told {
                return false;
            }
            if after.len() == 1 {
                // Nobody else had it since, so it was this owner's all the time.
                tenures[last].to = Timestamp::MAX;
                tenures[last].sure.1 = Timestamp::MAX;
                return false;
            }
        }
        let others = tenures.iter().any(|t| t.owner != owner);
        let mut from =
            if others && from == Timestamp::MIN { tenures.iter().map(|t| t.from).max().unwrap_or(from) } else { from };
        for tenure in tenures.iter_mut().filter(|t| t.to == Timestamp::MAX) {
            tenure.to = from.max(tenure.last_proof());
            from = from.max(tenure.from);
        }
        if others {
            self.reassigned.insert(address);
        }
        insert(tenures, Tenure::told(owner, from, Timestamp::MAX));
        true
    }

    /// The claim of `owner` that has just been taken came late. Whoever lost the address by it is
    /// in doubt as well, where `silent_since` then nothing had been heard.
    pub fn came_late(&mut self, address: IpAddr, owner: O, late: Late, silent_since: Option<Timestamp>) {
        let guard = self.guard;
        let Some(tenures) = self.tenures.get_mut(&address) else { return };
        let is_first = tenures.iter().all(|t| t.owner == owner);
        let Some(own) = tenures.iter_mut().rfind(|t| t.owner == owner && t.to == Timestamp::MAX) else { return };
        let from = own.from;
        let earliest = silent_since.filter(|_| !is_first).unwrap_or(Timestamp::MIN);
        own.since = late.since.max(earliest).min(from);
        if let Some(silent) = silent_since {
            if is_first {
                // What was before, the watch did not tell of: that nobody else had it, it did.
                own.silent = silent;
            }
            own.sure.0 = late.sure;
            own.born = own.since.before(guard);
            for other in tenures.iter_mut().filter(|t| t.owner != owner && t.end == EndBasis::Told && t.to == from) {
                other.sure.1 = other.sure.1.min(silent.max(other.last_proof()));
            }
        }
    }

    /// That `owner` no longer has the address became known after a silence: it had it until
    /// `silent_since` for sure, and until the word came perhaps.
    pub fn ended_in_silence(&mut self, address: IpAddr, owner: O, silent_since: Timestamp) {
        let of_owner = self.tenures.get_mut(&address).into_iter().flatten().filter(|t| t.owner == owner);
        for tenure in of_owner.filter(|t| t.end == EndBasis::Told && silent_since < t.to && t.to < Timestamp::MAX) {
            tenure.sure.1 = tenure.sure.1.min(silent_since.max(tenure.last_proof()));
        }
    }

    /// The API server says that `owner` no longer has the address.
    pub fn release(&mut self, address: IpAddr, owner: O, at: Timestamp) {
        for tenure in self.tenures.get_mut(&address).into_iter().flatten() {
            if tenure.owner == owner {
                if tenure.to == Timestamp::MAX {
                    tenure.to = at.max(tenure.last_proof());
                }
                // From here on its word counts again.
                if tenure.end == EndBasis::Overruled {
                    tenure.end = EndBasis::Told;
                }
            }
        }
    }

    /// It is proven that `owner` had the address no longer than until `at`: it is gone, or somebody
    /// else was seen with it.
    pub fn end(&mut self, address: IpAddr, owner: O, at: Timestamp) {
        for tenure in self.tenures.get_mut(&address).into_iter().flatten() {
            if tenure.owner == owner && at < tenure.to {
                tenure.to = at.max(tenure.proven.map_or(Timestamp::MIN, |(_, p)| p.after(TICK)));
                tenure.from = tenure.from.min(tenure.to);
                tenure.end = EndBasis::Proven;
                self.reassigned.insert(address);
            } else if tenure.owner == owner && tenure.end == EndBasis::Overruled {
                tenure.end = EndBasis::Proven;
            }
        }
    }

    /// The first word of `owner` comes after its proven end: it had the address some time between
    /// `born` and `to`.
    pub fn past(&mut self, address: IpAddr, owner: O, born: Timestamp, to: Timestamp) {
        let tenures = self.tenures.entry(address).or_default();
        if tenures.iter().any(|t| t.owner == owner) {
            self.end(address, owner, to);
            return;
        }
        let mut others = false;
        for earlier in tenures.iter_mut().filter(|t| t.from <= born && born < t.to) {
            earlier.to = born.max(earlier.proven.map_or(Timestamp::MIN, |(_, p)| p.after(TICK)));
            others = true;
        }
        if others {
            self.reassigned.insert(address);
        }
        insert(tenures, Tenure { born, end: EndBasis::Proven, ..Tenure::told(owner, born, to) });
    }

    /// `owner`, whose end was proven, exists again: what the API server says of it counts from `at`
    /// on.
    pub fn revive(&mut self, address: IpAddr, owner: O, at: Timestamp) {
        let Some(tenures) = self.tenures.get_mut(&address) else { return };
        let held = tenures.iter().any(|t| t.owner != owner && at < t.to);
        let Some(last) = tenures.iter_mut().rfind(|t| t.owner == owner).filter(|t| t.end == EndBasis::Proven) else {
            return;
        };
        if held {
            last.end = EndBasis::Overruled;
        } else {
            insert(tenures, Tenure { born: at, ..Tenure::told(owner, at, Timestamp::MAX) });
        }
    }

    /// `owner` did not exist before `at`, unless a record shows that it did. What no record shows
    /// of the time since then may be its own.
    pub fn born(&mut self, address: IpAddr, owner: O, at: Timestamp) {
        let Some(tenures) = self.tenures.get_mut(&address) else { return };
        for i in 0..tenures.len() {
            if tenures[i].owner != owner || tenures[i].born != Timestamp::MIN {
                continue;
            }
            tenures[i].born = tenures[i].proven.map_or(at, |(first, _)| at.min(first));
            if tenures[i].proven.is_some_and(|(first, _)| first == tenures[i].from) {
                let others = tenures.iter().filter(|t| t.owner != owner && t.from < tenures[i].from);
                let free = others.map(|t| if t.end == EndBasis::Proven { t.to } else { t.last_proof() }).max();
                tenures[i].from = tenures[i].from.min(tenures[i].born.max(free.unwrap_or(Timestamp::MIN)));
            }
        }
        tenures.sort_by_key(|t| t.from);
    }

    /// A record shows that `owner` had the address at `at`. Returns whether nothing was known of
    /// that before.
    pub fn prove(&mut self, address: IpAddr, owner: O, at: Timestamp) -> bool {
        let tenures = self.tenures.entry(address).or_default();
        // The common case: one owner, and it is this one.
        if let [only] = &mut tenures[..]
            && only.owner == owner
        {
            only.add_proof(at);
            if only.to <= at {
                // The end was no end: nobody else has been seen since.
                only.to = if only.end == EndBasis::Told { at.after(TICK) } else { Timestamp::MAX };
                only.end = EndBasis::Told;
            }
            return false;
        }
        let others = tenures.iter().any(|t| t.owner != owner);
        // Of several tenures of this owner the one that is nearest in time.
        let mut new = false;
        let distance = |t: &Tenure<O>| if at < t.from { t.from.since(at) } else { at.since(t.to) };
        match tenures.iter_mut().filter(|t| t.owner == owner).min_by_key(|t| distance(t)) {
            Some(own) if own.to <= at && own.end != EndBasis::Told => {
                // It has the address again after somebody else had it.
                own.end = EndBasis::Told;
                let next = tenures.iter().filter(|t| t.owner != owner && at < t.from).map(|t| t.from).min();
                let to = next.unwrap_or(Timestamp::MAX);
                insert(tenures, Tenure { proven: Some((at, at)), born: at, ..Tenure::told(owner, at, to) });
                self.reassigned.insert(address);
            }
            Some(own) => {
                own.add_proof(at);
                if own.to <= at {
                    own.to = at.after(TICK);
                }
            }
            None => {
                new = true;
                insert(tenures, Tenure { proven: Some((at, at)), ..Tenure::told(owner, at, Timestamp::MAX) });
                if others {
                    self.reassigned.insert(address);
                }
            }
        }
        // Whoever had it before had it no longer than to this instant, but no shorter than its own
        // proof.
        for other in tenures.iter_mut().filter(|t| t.owner != owner && t.from <= at && at < t.to) {
            other.to = at.max(other.last_proof());
            if other.end == EndBasis::Told {
                other.end = EndBasis::Overruled;
            }
        }
        tenures.sort_by_key(|t| t.from);
        new
    }

    /// Who had the address at `at`.
    #[must_use]
    pub fn lookup(&self, address: IpAddr, at: Timestamp) -> Lookup<O> {
        let Some(tenures) = self.tenures.get(&address) else { return Lookup::Unknown };
        if let [only] = &tenures[..] {
            let lead = self.guard.max(self.lead);
            let begun = if only.sure.0 == Timestamp::MIN {
                only.from.before(lead).min(only.since.before(self.guard)) <= at
            } else {
                only.begun(at, lead)
            };
            return match begun && only.lasts(at, self.guard) {
                true if only.is_doubtful(at) => Lookup::Ambiguous(Vec::new()),
                true => Lookup::Owner(only.owner),
                false => Lookup::Vacant,
            };
        }
        if let Some(proven) = tenures.iter().rev().find(|t| t.is_proven(at)) {
            return Lookup::Owner(proven.owner);
        }
        let mut possible: Vec<&Tenure<O>> =
            tenures.iter().filter(|t| t.begun(at, self.guard) && t.lasts(at, self.guard)).collect();
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
        // Where a watch told of nothing, somebody may have come and gone; who was there beyond
        // doubt leaves no room for that.
        if possible.iter().any(|t| t.is_doubtful(at)) {
            let mut sure = possible.iter().filter(|t| t.is_sure(at));
            return match (sure.next(), sure.next()) {
                (Some(only), None) => Lookup::Owner(only.owner),
                _ => Lookup::Ambiguous(Vec::new()),
            };
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
            Some(next) if next.begun(at, self.lead) && next.is_doubtful(at) => Lookup::Ambiguous(Vec::new()),
            Some(next) if next.begun(at, self.lead) => Lookup::Owner(next.owner),
            _ => Lookup::Vacant,
        }
    }

    /// Whether whoever [`AddressIndex::lookup`] gives had ceased to have the address by then, as
    /// far as was told, and nobody else is known to have it.
    #[must_use]
    pub fn is_past_end(&self, address: IpAddr, at: Timestamp) -> bool {
        let Lookup::Owner(owner) = self.lookup(address, at) else { return false };
        self.of(address).filter(|t| t.owner == owner).all(|t| t.to <= at && !t.is_proven(at))
    }

    /// Whether the owner may have changed between two instants.
    #[must_use]
    pub fn changed_between(&self, address: IpAddr, from: Timestamp, to: Timestamp) -> bool {
        let Some(tenures) = self.tenures.get(&address) else { return false };
        if self.is_one_throughout(address, from, to) {
            return false;
        }
        let mut there = tenures.iter().filter(|t| t.earliest() <= to && from <= t.to);
        there.next().is_some_and(|first| there.any(|t| t.owner != first.owner))
    }

    /// Whether an owner of whom a watch told late had the address all the time beyond doubt,
    /// whoever else is possible.
    #[must_use]
    pub fn is_one_throughout(&self, address: IpAddr, from: Timestamp, to: Timestamp) -> bool {
        self.of(address).any(|t| t.sure.0 > Timestamp::MIN && t.is_sure(from) && t.is_sure(to))
    }

    /// Whether somebody else than these had it strictly between two instants.
    #[must_use]
    pub fn others_between(&self, address: IpAddr, from: Timestamp, to: Timestamp, ends: [O; 2]) -> bool {
        self.tenures
            .get(&address)
            .into_iter()
            .flatten()
            .any(|t| t.earliest() < to && from < t.to && !ends.contains(&t.owner))
    }

    /// Whether a record of ours shows that somebody had the address at `at`.
    #[must_use]
    pub fn is_proven(&self, address: IpAddr, at: Timestamp) -> bool {
        self.of(address).any(|t| t.is_proven(at))
    }

    /// Whether a watch was silent about the address at any time between two instants.
    #[must_use]
    pub fn is_doubtful_between(&self, address: IpAddr, from: Timestamp, to: Timestamp) -> bool {
        self.of(address).any(|t| (from < t.sure.0 && t.since.max(t.silent) < to) || (t.sure.1 < to && from < t.to))
    }

    /// Addresses that changed their owner since the last call.
    pub fn take_reassigned(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.reassigned).into_iter().collect()
    }

    /// Forgets that `owner` ever had the address.
    pub fn forget(&mut self, address: IpAddr, owner: O) {
        if let Some(tenures) = self.tenures.get_mut(&address) {
            tenures.retain(|t| t.owner != owner);
            if tenures.is_empty() {
                self.tenures.remove(&address);
            }
        }
    }

    /// Forgets tenures that ended before `before`.
    pub fn expire(&mut self, before: Timestamp) {
        self.tenures.retain(|address, tenures| {
            // Each pod's link has another one at the node's end, and no list says when it is gone.
            let is_of_link = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            let lasts = |t: &Tenure<O>| !is_of_link || t.to != Timestamp::MAX || t.last_proof() >= before;
            tenures.retain(|t| t.to >= before && lasts(t));
            !tenures.is_empty()
        });
    }

    /// The tenures of an address.
    pub fn of(&self, address: IpAddr) -> impl Iterator<Item = &Tenure<O>> {
        self.tenures.get(&address).into_iter().flatten()
    }

    /// The tenure that this owner had until then.
    pub fn until(&mut self, address: IpAddr, owner: O, to: Timestamp) -> Option<&mut Tenure<O>> {
        self.tenures.get_mut(&address)?.iter_mut().find(|t| t.owner == owner && t.to == to)
    }

    /// All tenures, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &Tenure<O>)> {
        self.tenures.iter().flat_map(|(address, tenures)| tenures.iter().map(|t| (*address, t)))
    }

    /// Puts a tenure back, as a stored state has it.
    pub fn restore(&mut self, address: IpAddr, tenure: Tenure<O>) {
        let tenures = self.tenures.entry(address).or_default();
        insert(tenures, tenure);
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
    fn a_proven_end_is_exact_and_the_api_repeating_itself_does_not_undo_it() {
        let mut index = index();
        index.claim(A, 'a', Timestamp::MIN);
        index.end(A, 'a', t(100));
        assert_eq!(index.take_reassigned(), [A]);
        index.claim(A, 'a', t(102));
        assert_eq!((index.lookup(A, t(99)), index.lookup(A, t(100))), (Lookup::Owner('a'), Lookup::Vacant));
        index.claim(A, 'c', t(140));
        index.born(A, 'c', t(120));
        assert_eq!(index.lookup(A, t(119)), Lookup::Vacant, "whoever came later was not there yet");
        assert_eq!((index.lookup(A, t(99)), index.lookup(A, t(120))), (Lookup::Owner('a'), Lookup::Owner('c')));
    }

    #[test]
    fn an_owner_that_a_record_overruled_comes_back_by_a_record_or_by_a_new_word_only() {
        let mut index = index();
        index.claim(A, 'a', Timestamp::MIN);
        index.prove(A, 'b', t(50));
        index.claim(A, 'a', t(80));
        assert_eq!(index.lookup(A, t(90)), Lookup::Owner('b'));
        index.prove(A, 'a', t(100));
        assert_eq!((index.lookup(A, t(50)), index.lookup(A, t(120))), (Lookup::Owner('b'), Lookup::Owner('a')));
        let mut index = self::index();
        index.claim(A, 'a', Timestamp::MIN);
        index.prove(A, 'b', t(50));
        index.release(A, 'a', t(60));
        index.claim(A, 'a', t(80));
        assert_eq!(index.lookup(A, t(90)), Lookup::Owner('a'), "released and given again");
    }

    #[test]
    fn an_owner_that_exists_again_has_its_address_unless_it_passed_on() {
        let mut index = index();
        index.claim(A, 'a', Timestamp::MIN);
        index.end(A, 'a', t(100));
        index.revive(A, 'a', t(130));
        assert_eq!((index.lookup(A, t(110)), index.lookup(A, t(140))), (Lookup::Vacant, Lookup::Owner('a')));
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
