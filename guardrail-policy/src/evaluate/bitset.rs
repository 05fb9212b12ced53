//! Sets of classes: which pods a selector selects.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

/// A set of small numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct BitSet(Vec<u64>);

impl BitSet {
    pub(super) fn with_len(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    pub(super) fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        let index = index as usize;
        self.0.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    pub(super) fn union(&mut self, other: &Self) {
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            *a |= b;
        }
    }

    pub(super) fn intersect(&mut self, other: &Self) {
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            *a &= b;
        }
    }

    /// How many numbers it holds.
    fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Its numbers, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(at, &word)| {
            let next = |word: &u64| Some(word & (word - 1)).filter(|rest| *rest != 0);
            let rests = std::iter::successors(Some(word).filter(|w| *w != 0), next);
            rests.map(move |rest| at * 64 + rest.trailing_zeros() as usize)
        })
    }
}

/// A set among [`Sets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetId(u32);

/// Many sets, side by side: a set of few numbers lists them, as most rules name few of many
/// workloads; the others are bits. Equal sets are one.
#[derive(Debug, Default)]
pub(super) struct Sets {
    /// Of each set how many numbers it lists, or [`BITS`] and of how many words, and these.
    words: Vec<u32>,
    /// Where sets with a hash begin: what is in them lies in `words`.
    known: HashMap<u64, Vec<u32>>,
    hasher: RandomState,
}

/// What follows are bits.
const BITS: u32 = 1 << 31;

impl Sets {
    /// Takes a set; an equal one keeps its place.
    pub(super) fn push(&mut self, set: &BitSet) -> SetId {
        let start = self.words.len();
        let listed = set.len();
        // Trailing zeros say nothing: equal sets are equal words.
        let bits = 2 * set.0.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        if listed <= bits {
            self.words.push(number(listed));
            self.words.extend(set.iter().map(number));
        } else {
            self.words.push(number(bits) | BITS);
            #[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
            self.words.extend(set.0[..bits / 2].iter().flat_map(|word| [*word as u32, (word >> 32) as u32]));
        }
        let (old, new) = self.words.split_at(start);
        let alike = self.known.entry(self.hasher.hash_one(new)).or_default();
        if let Some(at) = alike.iter().copied().find(|at| old[*at as usize..].starts_with(new)) {
            self.words.truncate(start);
            return SetId(at);
        }
        alike.push(number(start));
        SetId(number(start))
    }

    /// No set is taken any more.
    pub(super) fn finish(&mut self) {
        self.known = HashMap::new();
        self.words.shrink_to_fit();
    }

    #[inline]
    fn of(&self, set: SetId) -> (bool, &[u32]) {
        let at = set.0 as usize;
        let head = self.words[at];
        (head & BITS != 0, &self.words[at + 1..][..(head & !BITS) as usize])
    }

    /// Whether a set holds the number.
    #[inline]
    pub(super) fn contains(&self, set: SetId, number: u32) -> bool {
        /// So many are found sooner by looking at each.
        const FEW: usize = 16;
        match self.of(set) {
            (true, words) => words.get(number as usize / 32).is_some_and(|word| word >> (number % 32) & 1 == 1),
            (false, listed) if listed.len() <= FEW => listed.contains(&number),
            (false, listed) => listed.binary_search(&number).is_ok(),
        }
    }

    /// The numbers of a set, ascending.
    pub(super) fn iter(&self, set: SetId) -> impl Iterator<Item = u32> + '_ {
        let (bits, words) = self.of(set);
        let (listed, words) = if bits { (&[][..], words) } else { (words, &[][..]) };
        let of_word = |(at, word): (u32, &u32)| {
            let next = |word: &u32| Some(word & (word - 1)).filter(|rest| *rest != 0);
            let rests = std::iter::successors(Some(*word).filter(|w| *w != 0), next);
            rests.map(move |rest| at * 32 + rest.trailing_zeros())
        };
        listed.iter().copied().chain((0..).zip(words).flat_map(of_word))
    }

    /// Adds the numbers of a set to another that has room for them.
    pub(super) fn add_to(&self, set: SetId, to: &mut BitSet) {
        self.iter(set).for_each(|number| to.insert(number as usize));
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("sets of classes of pods are below 8 GiB")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_of_a_set_in_order() {
        let mut set = BitSet::with_len(200);
        let numbers = [0, 63, 64, 130, 199];
        numbers.iter().for_each(|n| set.insert(*n));
        assert_eq!(set.iter().collect::<Vec<_>>(), numbers);
        assert_eq!(BitSet::with_len(200).iter().count(), 0);
    }

    #[test]
    fn sets_side_by_side_hold_what_they_were_given() {
        let mut sets = Sets::default();
        let given: Vec<BTreeSet<u32>> = vec![
            BTreeSet::new(),
            BTreeSet::from([69]),
            BTreeSet::from([0, 31, 32, 63, 64]),
            (0..1_000).filter(|n| n % 3 == 0).collect(),
            (0..40).map(|n| n * 101).collect(),
            BTreeSet::from([4_999]),
        ];
        let bits = |numbers: &BTreeSet<u32>, len| {
            let mut set = BitSet::with_len(len);
            numbers.iter().for_each(|n| set.insert(*n as usize));
            set
        };
        let ids: Vec<SetId> = given.iter().map(|numbers| sets.push(&bits(numbers, 5_000))).collect();
        for (numbers, id) in given.iter().zip(&ids) {
            assert_eq!(sets.iter(*id).collect::<BTreeSet<_>>(), *numbers);
            assert!((0..6_000).all(|n| sets.contains(*id, n) == numbers.contains(&n)), "{numbers:?}");
            let mut to = bits(&BTreeSet::from([7]), 5_000);
            sets.add_to(*id, &mut to);
            assert_eq!(to, bits(&numbers.iter().copied().chain([7]).collect(), 5_000));
            // Whatever room it had.
            assert_eq!(sets.push(&bits(numbers, 7_000)), *id);
        }
        assert_eq!(sets.push(&BitSet::default()), ids[0]);
        assert!(ids.iter().enumerate().all(|(at, id)| !ids[..at].contains(id)));
    }
}
