//! Sets of classes: which pods a selector selects.

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

    /// Its numbers, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(at, &word)| {
            let next = |word: &u64| Some(word & (word - 1)).filter(|rest| *rest != 0);
            let rests = std::iter::successors(Some(word).filter(|w| *w != 0), next);
            rests.map(move |rest| at * 64 + rest.trailing_zeros() as usize)
        })
    }
}

/// Sets of numbers below one limit, side by side: many are asked about the same number.
#[derive(Debug)]
pub(super) struct Sets {
    words: Vec<u64>,
    /// Words of each.
    stride: usize,
}

impl Sets {
    /// None yet, of numbers below `len`.
    pub(super) fn new(len: usize) -> Self {
        Self { words: Vec::new(), stride: len.div_ceil(64).max(1) }
    }

    /// Takes one more; its index.
    pub(super) fn push(&mut self, set: &BitSet) -> u32 {
        let index = self.words.len() / self.stride;
        self.words.extend_from_slice(&set.0);
        self.words.resize((index + 1) * self.stride, 0);
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// Whether the set with this index holds the number.
    #[inline]
    pub(super) fn contains(&self, set: u32, number: u32) -> bool {
        let number = number as usize;
        let word = self.words[set as usize * self.stride + number / 64];
        word >> (number % 64) & 1 == 1
    }

    /// Whether the set with this index holds these numbers and no others.
    pub(super) fn is(&self, set: u32, other: &BitSet) -> bool {
        let at = set as usize * self.stride;
        let words = &self.words[at..at + self.stride];
        let (same, rest) = words.split_at(other.0.len().min(words.len()));
        same == other.0 && rest.iter().all(|word| *word == 0)
    }

    /// Adds the numbers of the set with this index.
    pub(super) fn add_to(&self, set: u32, to: &mut BitSet) {
        for (a, b) in to.0.iter_mut().zip(&self.words[set as usize * self.stride..]) {
            *a |= b;
        }
    }
}

#[cfg(test)]
mod tests {
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
    fn sets_side_by_side_do_not_mix() {
        let mut sets = Sets::new(70);
        let mut first = BitSet::with_len(70);
        first.insert(69);
        let set = first.clone();
        let (first, empty) = (sets.push(&first), sets.push(&BitSet::with_len(0)));
        assert!(sets.contains(first, 69) && !sets.contains(first, 5));
        assert!((0..70).all(|n| !sets.contains(empty, n)));
        assert!(sets.is(first, &set) && !sets.is(empty, &set) && !sets.is(first, &BitSet::with_len(70)));
        assert!(sets.is(empty, &BitSet::with_len(70)) && sets.is(empty, &BitSet::with_len(0)));
        let mut all = BitSet::with_len(70);
        sets.add_to(first, &mut all);
        sets.add_to(empty, &mut all);
        assert_eq!(all.iter().collect::<Vec<_>>(), [69]);
    }
}
