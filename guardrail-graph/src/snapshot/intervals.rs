//! Sets of instants: sorted, disjoint intervals.

use super::Interval;
use crate::time::Timestamp;

impl Interval {
    /// What both have in common: backwards, if that is nothing.
    #[must_use]
    pub fn both(self, other: Self) -> Self {
        Self { from: self.from.max(other.from), to: self.to.min(other.to) }
    }

    /// From where the first begins to where the last ends.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        Self { from: self.from.min(other.from), to: self.to.max(other.to) }
    }
}

/// Sorted, disjoint intervals; those that overlap or touch become one.
pub(crate) fn joined(mut intervals: Vec<Interval>) -> Vec<Interval> {
    intervals.sort_unstable();
    let mut out: Vec<Interval> = Vec::with_capacity(intervals.len());
    for next in intervals {
        match out.last_mut() {
            Some(last) if next.from <= last.to => last.to = last.to.max(next.to),
            _ => out.push(next),
        }
    }
    out
}

/// What adds nothing to a [`hull`].
const NEVER: Interval = Interval { from: Timestamp::MAX, to: Timestamp::MIN };

/// From the first beginning to the last end; of nothing, [`NEVER`].
pub(crate) fn hull(intervals: impl IntoIterator<Item = Interval>) -> Interval {
    intervals.into_iter().fold(NEVER, Interval::hull)
}

/// What two sets have in common.
pub(super) fn common(a: &[Interval], b: &[Interval]) -> Vec<Interval> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut out = Vec::new();
    while let (Some(left), Some(right)) = (a.peek(), b.peek()) {
        let both = left.both(**right);
        if both.from < both.to {
            out.push(both);
        }
        if left.to < right.to {
            a.next()
        } else {
            b.next()
        };
    }
    out
}

/// What is in the first set and not in the second.
pub(super) fn without(a: &[Interval], b: &[Interval]) -> Vec<Interval> {
    let mut out = Vec::new();
    let mut b = b.iter().peekable();
    for whole in a {
        let mut from = whole.from;
        while b.next_if(|hole| hole.to <= from).is_some() {}
        let mut holes = b.clone();
        while let Some(hole) = holes.next_if(|hole| hole.from < whole.to) {
            if from < hole.from {
                out.push(Interval { from, to: hole.from });
            }
            from = from.max(hole.to);
        }
        if from < whole.to {
            out.push(Interval { from, to: whole.to });
        }
    }
    out
}

/// Cuts a set to what is in another one, too; what has no length stays if it lies there.
pub(super) fn cut_to(set: &mut Vec<Interval>, other: &[Interval]) {
    let mut both = common(set, other);
    both.extend(set.iter().filter(|at| at.from == at.to && holds(other, **at)));
    both.sort_unstable();
    *set = both;
}

/// Whether an interval lies in a set as a whole.
pub(super) fn holds(set: &[Interval], part: Interval) -> bool {
    set.iter().any(|interval| interval.from <= part.from && part.to <= interval.to)
}

/// How long a set is, ns.
pub(super) fn length_ns(set: &[Interval]) -> u128 {
    let ns = |at: Timestamp| i128::from(at.as_unix_ns());
    set.iter().map(|i| u128::try_from(ns(i.to) - ns(i.from)).unwrap_or(0)).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set() -> impl Strategy<Value = Vec<Interval>> {
        let t = Timestamp::from_unix_ns;
        let interval =
            (0i64..40, 0i64..12).prop_map(move |(from, long)| Interval { from: t(from), to: t(from + long) });
        prop::collection::vec(interval, 0..6).prop_map(joined)
    }

    fn has(set: &[Interval], at: i64) -> bool {
        let at = Timestamp::from_unix_ns(at);
        set.iter().any(|i| i.from <= at && at < i.to)
    }

    proptest! {
        #[test]
        fn sets_are_those_of_their_instants(a in set(), b in set()) {
            let (both, rest) = (common(&a, &b), without(&a, &b));
            for at in -1..60 {
                prop_assert_eq!(has(&both, at), has(&a, at) && has(&b, at), "{} {:?} {:?}", at, a, b);
                prop_assert_eq!(has(&rest, at), has(&a, at) && !has(&b, at), "{} {:?} {:?}", at, a, b);
            }
            prop_assert_eq!(length_ns(&both) + length_ns(&rest), length_ns(&a));
            let instants = (-1..60).filter(|at| has(&a, *at)).count();
            prop_assert_eq!(length_ns(&a), instants as u128);
        }
    }
}
