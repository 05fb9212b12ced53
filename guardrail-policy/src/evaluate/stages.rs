//! Which policies are asked about one side of an end, tier by tier ([`crate::model::tier`]).

use std::{collections::HashMap, ops::Range};

use super::{
    bitset::{BitSet, SetId},
    kinds::Kinds,
    rules::Rules,
};
use crate::model::{
    Direction,
    tier::{Action, Tier, TierPolicy},
};

/// Who has a say about one subject in one direction. Subjects that the same policies select share
/// it.
#[derive(Debug, Default)]
pub(super) struct Stages {
    /// Where the rules of the union tier lie, ascending.
    pub(super) places: Vec<Range<u32>>,
    /// The union tier alone decides, isolates, and its rules accept for certain or not at all: all
    /// that there is where NetworkPolicy is the only kind.
    pub(super) plain: bool,
    /// What the union tier does not accept is denied.
    pub(super) isolated: bool,
    /// Policies of the union tier, ascending.
    union: Vec<u32>,
    /// Policies of the tiers before and after it, by priority.
    ordered: [Vec<u32>; 2],
    /// Those of the union tier that isolate, ascending.
    pub(super) isolating: Vec<u32>,
    /// Peers that every selector of the union tier is confined to, in rules that accept and in
    /// rules that deny.
    pub(super) requires: [Option<BitSet>; 2],
}

impl Stages {
    /// Policies of a tier, in the order in which they are asked.
    pub(super) fn policies(&self, tier: Tier) -> &[u32] {
        match tier {
            Tier::Admin => &self.ordered[0],
            Tier::Normal => &self.union,
            Tier::Baseline => &self.ordered[1],
        }
    }
}

/// The stages of every subject and direction.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    /// Index into `stages` per subject and direction (ingress, egress).
    of: Vec<[u32; 2]>,
    stages: Vec<Stages>,
}

impl Subjects {
    /// `None`: no policy has a say.
    #[inline]
    pub(super) fn stages(&self, subject: Option<u32>, direction: Direction) -> Option<&Stages> {
        let of = self.of.get(subject? as usize)?;
        self.stages.get(of[direction.slot()] as usize)
    }
}

/// Groups subjects by the policies that select them.
pub(super) struct SubjectsBuilder<'a> {
    pub(super) policies: &'a [TierPolicy],
    pub(super) rules: &'a Rules,
    /// Per policy and direction: the pods that peers are confined to, in rules that accept and in
    /// rules that deny.
    pub(super) requires: &'a [[[Vec<BitSet>; 2]; 2]],
    pub(super) subjects: Subjects,
}

impl SubjectsBuilder<'_> {
    /// Adds `count` subjects. `selected` says of each policy which of these it selects; `isolated`:
    /// they are isolated whether or not a policy says so.
    pub(super) fn add(&mut self, count: usize, selected: &[SetId], isolated: bool) {
        let mut asked: Vec<[Vec<u32>; 2]> = vec![<[Vec<u32>; 2]>::default(); count];
        for ((policy, subjects), index) in self.policies.iter().zip(selected).zip(0..) {
            for direction in Direction::BOTH {
                let requires = self.requires[index as usize][direction.slot()].iter().any(|sets| !sets.is_empty());
                if requires || policy.isolates(direction) || !policy.rules(direction).is_empty() {
                    let subjects = self.rules.sets.iter(*subjects);
                    subjects.for_each(|subject| asked[subject as usize][direction.slot()].push(index));
                }
            }
        }
        let mut known: [HashMap<Vec<u32>, u32>; 2] = [HashMap::new(), HashMap::new()];
        for asked in asked {
            let of = asked.into_iter().zip(Direction::BOTH).zip(&mut known).map(|((asked, direction), known)| {
                if asked.is_empty() && !isolated {
                    return u32::MAX;
                }
                if let Some(index) = known.get(&asked) {
                    return *index;
                }
                let index = u32::try_from(self.subjects.stages.len()).unwrap_or(u32::MAX);
                self.subjects.stages.push(self.stages(&asked, direction, isolated));
                known.insert(asked, index);
                index
            });
            let of: Vec<u32> = of.collect();
            self.subjects.of.push([of[0], of[1]]);
        }
    }

    fn stages(&self, asked: &[u32], direction: Direction, isolated: bool) -> Stages {
        let mut stages = Stages { isolated, ..Stages::default() };
        for &index in asked {
            let policy = &self.policies[index as usize];
            match policy.tier {
                Tier::Normal => stages.union.push(index),
                Tier::Admin => stages.ordered[0].push(index),
                Tier::Baseline => stages.ordered[1].push(index),
            }
            if policy.isolates(direction) {
                stages.isolating.push(index);
                stages.isolated = true;
            }
            for (own, sets) in stages.requires.iter_mut().zip(&self.requires[index as usize][direction.slot()]) {
                for set in sets {
                    match own {
                        Some(known) => known.intersect(set),
                        None => *own = Some(set.clone()),
                    }
                }
            }
        }
        for list in &mut stages.ordered {
            list.sort_by_key(|p| {
                let policy = &self.policies[*p as usize];
                (policy.priority, policy.key())
            });
        }
        for &policy in &stages.union {
            let place = self.rules.place(policy, direction);
            match stages.places.last_mut() {
                Some(last) if last.end == place.start => last.end = place.end,
                _ if place.is_empty() => {}
                _ => stages.places.push(place),
            }
        }
        let mut rules = stages.places.iter().flat_map(|place| self.rules.at(place, direction));
        let certain = rules.all(|r| r.action == Action::Accept && self.rules.others(r).unknown == Kinds::NONE);
        let alone = stages.ordered.iter().all(Vec::is_empty);
        stages.plain = certain && alone && stages.isolated && stages.requires.iter().all(Option::is_none);
        stages
    }
}
