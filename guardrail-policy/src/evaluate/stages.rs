//! Which policies are asked about one side of an end, tier by tier ([`crate::model::tier`]).

use super::bitset::BitSet;
use crate::model::tier::{Tier, TierPolicy};

/// Who has a say about one subject in one direction.
#[derive(Debug, Default)]
pub(super) struct Stages {
    /// Policies per tier: by priority where the tier is ordered, else by index.
    pub(super) tiers: [Vec<u32>; 3],
    /// Those of the union tier that isolate, ascending.
    pub(super) isolating: Vec<u32>,
    /// What the union tier does not accept is denied.
    pub(super) isolated: bool,
    /// Priorities of the ordered tiers' policies, beside `tiers`.
    pub(super) priorities: [Vec<u16>; 3],
    /// Peers that every selector of the union tier is confined to.
    pub(super) requires: Option<BitSet>,
}

impl Stages {
    pub(super) fn add(&mut self, tier: Tier, policy: usize, isolates: bool, requires: &[BitSet]) {
        let index = u32::try_from(policy).unwrap_or(u32::MAX);
        self.tiers[tier as usize].push(index);
        if isolates {
            self.isolating.push(index);
            self.isolated = true;
        }
        for set in requires {
            match &mut self.requires {
                Some(known) => known.intersect(set),
                None => self.requires = Some(set.clone()),
            }
        }
    }

    pub(super) fn sort(&mut self, policies: &[TierPolicy]) {
        for tier in Tier::ALL.into_iter().filter(|t| t.ordered()) {
            let list = &mut self.tiers[tier as usize];
            list.sort_by_key(|p| {
                let policy = &policies[*p as usize];
                (policy.priority, policy.key())
            });
            self.priorities[tier as usize] = list.iter().map(|p| policies[*p as usize].priority).collect();
        }
    }

    /// Policies of a tier, in the order in which they are asked.
    pub(super) fn policies(&self, tier: Tier) -> &[u32] {
        &self.tiers[tier as usize]
    }
}
