//! One side's answer: the tiers in order, each a union or an ordered list ([`crate::model::tier`]).

use std::net::IpAddr;

use super::{
    RuleRef, SideVerdict,
    bitset::BitSet,
    compile::{Compiled, CompiledRule},
    kinds::Kinds,
    stages::Stages,
};
use crate::model::{
    Direction, Protocol,
    tier::{Action, Tier},
};

/// The other end, as one side's rules see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Other {
    pub(super) class: Option<u32>,
    pub(super) address: Option<IpAddr>,
    pub(super) kinds: Kinds,
    pub(super) node: Option<u32>,
}

/// What is asked of a side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) direction: Direction,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    /// Class of the end that has the port.
    pub(super) server: Option<u32>,
}

/// How a rule answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Match {
    No,
    /// Nothing here tells.
    Maybe,
    Yes,
}

impl Compiled {
    /// Whether no policy has a say about this subject.
    fn stages(&self, own: Option<u32>, direction: Direction) -> Option<&Stages> {
        own.and_then(|own| self.stages.get(own as usize)).map(|stages| &stages[direction.slot()])
    }

    pub(super) fn isolating(&self, own: Option<u32>, direction: Direction) -> impl Iterator<Item = u32> + '_ {
        self.stages(own, direction).into_iter().flat_map(|s| s.isolating.iter().copied())
    }

    /// Every policy that has a say about a subject, in the order in which it is asked.
    pub(super) fn asked(&self, own: Option<u32>, direction: Direction) -> impl Iterator<Item = u32> + '_ {
        let stages = self.stages(own, direction);
        Tier::ALL.into_iter().flat_map(move |t| stages.map_or(&[][..], |s| s.policies(t)).iter().copied())
    }

    /// Whether a subject is isolated in the union tier, by a policy or by the agent's setting.
    pub(super) fn isolated(&self, own: Option<u32>, direction: Direction) -> bool {
        self.stages(own, direction).is_some_and(|s| s.isolated)
    }

    /// What the policies about `own` say about `other`.
    pub(super) fn side(&self, own: Option<u32>, other: Other, asked: Asked) -> SideVerdict {
        let Some(stages) = self.stages(own, asked.direction) else { return SideVerdict::NotIsolated };
        // Most clusters have no ordered tier: nothing is asked of one that is empty.
        let ordered = |tier: Tier| {
            if stages.policies(tier).is_empty() { None } else { self.ordered(stages, tier, other, asked) }
        };
        if let Some(side) = ordered(Tier::Admin) {
            return side;
        }
        if let Some(side) = self.union(stages, other, asked) {
            return side;
        }
        ordered(Tier::Baseline).unwrap_or(SideVerdict::NotIsolated)
    }

    /// `None`: the next tier decides.
    fn union(&self, stages: &Stages, other: Other, asked: Asked) -> Option<SideVerdict> {
        if stages.policies(Tier::Normal).is_empty() {
            return stages.isolated.then_some(SideVerdict::Denied);
        }
        let (mut accepts, mut denies, mut maybe) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
        for &policy in stages.policies(Tier::Normal) {
            for (rule, index) in self.rules[policy as usize][asked.direction.slot()].iter().zip(0..) {
                let reference = RuleRef { policy, rule: index };
                let deny = rule.action == Action::Deny;
                match self.matches(rule, stages.requires[usize::from(deny)].as_ref(), other, asked) {
                    Match::No => {}
                    Match::Yes if deny => denies.push(reference),
                    Match::Yes => accepts.push(reference),
                    Match::Maybe => maybe[usize::from(deny)].push(reference),
                }
            }
        }
        let [maybe_accepts, maybe_denies] = maybe;
        if !denies.is_empty() {
            return Some(SideVerdict::DeniedBy(denies));
        }
        if accepts.is_empty() && maybe_accepts.is_empty() {
            return if stages.isolated {
                Some(SideVerdict::Denied)
            } else {
                (!maybe_denies.is_empty()).then_some(SideVerdict::Unproven(maybe_denies))
            };
        }
        if !maybe_denies.is_empty() {
            return Some(SideVerdict::Unproven(maybe_denies));
        }
        if accepts.is_empty() {
            // Not isolated, a rule that may match adds nothing, unless a later tier would deny.
            let decides = stages.isolated || !stages.policies(Tier::Baseline).is_empty();
            return decides.then_some(SideVerdict::Unproven(maybe_accepts));
        }
        Some(SideVerdict::AllowedBy(accepts))
    }

    /// `None`: nothing matched, or a rule passed; the next tier decides.
    #[inline(never)]
    fn ordered(&self, stages: &Stages, tier: Tier, other: Other, asked: Asked) -> Option<SideVerdict> {
        let policies = stages.policies(tier);
        let priority = |policy: u32| self.priorities[policy as usize];
        let mut maybe: Vec<(Action, RuleRef)> = Vec::new();
        for (place, &policy) in policies.iter().enumerate() {
            let first = |policy: u32, maybe: &mut Vec<(Action, RuleRef)>| {
                for (rule, index) in self.rules[policy as usize][asked.direction.slot()].iter().zip(0..) {
                    let found = (rule.action, RuleRef { policy, rule: index });
                    match self.matches(rule, None, other, asked) {
                        Match::No => {}
                        Match::Maybe => maybe.push(found),
                        Match::Yes => return Some(found),
                    }
                }
                None
            };
            let Some((action, decides)) = first(policy, &mut maybe) else { continue };
            // Policies of one priority that disagree: which one wins is undefined.
            let mut rivals = Vec::new();
            let equal = |rival: &&u32| priority(**rival) == priority(policy);
            for &rival in policies[place + 1..].iter().take_while(equal) {
                rivals.extend(first(rival, &mut maybe));
            }
            let mut against: Vec<RuleRef> =
                rivals.iter().chain(&maybe).filter(|(other, _)| *other != action).map(|(_, rule)| *rule).collect();
            if !against.is_empty() {
                against.push(decides);
                against.sort_unstable();
                return Some(SideVerdict::Unproven(against));
            }
            return match action {
                Action::Accept => Some(SideVerdict::AllowedBy(vec![decides])),
                Action::Deny => Some(SideVerdict::DeniedBy(vec![decides])),
                Action::Pass => None,
            };
        }
        let undecided: Vec<RuleRef> = maybe.iter().filter(|(a, _)| *a != Action::Pass).map(|(_, r)| *r).collect();
        (!undecided.is_empty()).then_some(SideVerdict::Unproven(undecided))
    }

    fn matches(&self, rule: &CompiledRule, requires: Option<&BitSet>, other: Other, asked: Asked) -> Match {
        if !self.ports_match(rule, asked.server, asked.protocol, asked.port) {
            return Match::No;
        }
        let Other { class, address, kinds, node } = other;
        let selected = |set: &BitSet, class| set.contains(class) && requires.is_none_or(|r| r.contains(class));
        if rule.any_peer
            || rule.classes.as_ref().zip(class).is_some_and(|(set, class)| selected(set, class))
            || address.is_some_and(|a| rule.has_address(a, kinds))
            || kinds.meets(rule.entities)
            || node.is_some_and(|n| rule.nodes.iter().any(|(set, meant)| kinds.meets(*meant) && set.contains(n)))
        {
            return Match::Yes;
        }
        // The world without an address: each range may hold it.
        let somewhere = address.is_none() && kinds.meets(Kinds::WORLD) && rule.has_ranges();
        if kinds.meets(rule.unknown) || somewhere { Match::Maybe } else { Match::No }
    }

    /// Who may call `server` on this port, as far as its ingress goes.
    pub(super) fn admission(&self, server: Option<u32>, protocol: Protocol, port: u16) -> Admission<'_> {
        let mut admission =
            Admission { everyone: false, classes: BitSet::with_len(self.classes.len()), by_address: Vec::new() };
        let stages = self.stages(server, Direction::Ingress).filter(|s| s.isolated);
        let others = |s: &Stages| !s.policies(Tier::Admin).is_empty();
        let Some(stages) = stages.filter(|s| !others(s)) else {
            admission.everyone = true;
            return admission;
        };
        let policies = stages.policies(Tier::Normal);
        for rule in policies.iter().flat_map(|p| &self.rules[*p as usize][Direction::Ingress.slot()]) {
            if rule.action == Action::Accept && self.ports_match(rule, server, protocol, port) {
                admission.everyone |= rule.any_peer
                    || rule.entities != Kinds::NONE
                    || rule.unknown != Kinds::NONE
                    || !rule.nodes.is_empty();
                if rule.has_ranges() {
                    admission.by_address.push(rule);
                }
                if let Some(classes) = &rule.classes {
                    admission.classes.union(classes);
                }
            }
        }
        // The own node is let in whatever the rules say.
        admission.everyone |= self.cilium.is_some();
        admission
    }
}

/// Whom the ingress rules of one server let in on one port: many clients are asked about one server
/// at the cost of a bit test each.
#[derive(Debug)]
pub struct Admission<'a> {
    everyone: bool,
    classes: BitSet,
    by_address: Vec<&'a CompiledRule>,
}

impl Admission<'_> {
    /// Whether a client might be let in: true if a rule names its class, or one of its addresses
    /// whichever the connection would use. A client of
    /// whom this is false is denied; of whom it is true, [`super::Evaluator::evaluate`] tells.
    #[must_use]
    pub fn may_admit(&self, client: &super::End) -> bool {
        self.everyone
            || client.class.is_some_and(|class| self.classes.contains(class))
            || (!self.by_address.is_empty()
                && client.addresses().any(|a| self.by_address.iter().any(|rule| rule.has_address(a, Kinds::ALL))))
    }
}
