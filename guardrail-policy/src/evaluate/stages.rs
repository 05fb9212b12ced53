//! Which policies are asked about one side of an end, tier by tier ([`crate::model::tier`]).

use super::bitset::BitSet;
use crate::model::tier::{Tier, TierPolicy};

/// Who has a say about one subject in one direction. Every verdict reads it, mostly the union tier
/// alone, so what few clusters have lies elsewhere.
#[derive(Debug, Default)]
pub(super) struct Stages {
    /// Policies of the union tier, ascending.
    union: Vec<u32>,
    /// Policies of the tiers before and after it, by priority.
    ordered: Option<Box<[Vec<u32>; 2]>>,
    /// Those of the union tier that isolate, ascending.
    pub(super) isolating: Vec<u32>,
    /// What the union tier does not accept is denied.
    pub(super) isolated: bool,
    /// Peers that every selector of the union tier is confined to, in rules that accept and in
    /// rules that deny.
    pub(super) requires: [Option<BitSet>; 2],
}

impl Stages {
    pub(super) fn add(&mut self, tier: Tier, policy: usize, isolates: bool, requires: &[Vec<BitSet>; 2]) {
        let index = u32::try_from(policy).unwrap_or(u32::MAX);
        match tier {
            Tier::Normal => self.union.push(index),
            Tier::Admin => self.ordered.get_or_insert_default()[0].push(index),
            Tier::Baseline => self.ordered.get_or_insert_default()[1].push(index),
        }
        if isolates {
            self.isolating.push(index);
            self.isolated = true;
        }
        for (own, sets) in self.requires.iter_mut().zip(requires) {
            for set in sets {
                match own {
                    Some(known) => known.intersect(set),
                    None => *own = Some(set.clone()),
                }
            }
        }
    }

    pub(super) fn sort(&mut self, policies: &[TierPolicy]) {
        for list in self.ordered.iter_mut().flat_map(|ordered| ordered.iter_mut()) {
            list.sort_by_key(|p| {
                let policy = &policies[*p as usize];
                (policy.priority, policy.key())
            });
        }
    }

    /// Policies of a tier, in the order in which they are asked.
    pub(super) fn policies(&self, tier: Tier) -> &[u32] {
        match (tier, &self.ordered) {
            (Tier::Normal, _) => &self.union,
            (_, None) => &[],
            (Tier::Admin, Some(ordered)) => &ordered[0],
            (Tier::Baseline, Some(ordered)) => &ordered[1],
        }
    }
}
