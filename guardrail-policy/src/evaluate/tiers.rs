//! One side's answer: the tiers in order, each a union or an ordered list ([`crate::model::tier`]).

use super::{
    End, RuleRef, SideVerdict,
    asked::{Asked, Other},
    bitset::BitSet,
    compile::Compiled,
    ends::Relation,
    kinds::Kinds,
    rules::{CompiledRule, Match, Others},
    stages::Stages,
};
use crate::model::{
    Direction, Protocol,
    tier::{Action, Tier},
};

/// What is kept of the rules that decide.
pub(super) trait Deciders: Default + FromIterator<RuleRef> {
    /// More rules than one tell nothing.
    const ONE_IS_ENOUGH: bool;

    fn add(&mut self, rule: RuleRef);

    fn is_empty(&self) -> bool;
}

impl Deciders for Vec<RuleRef> {
    const ONE_IS_ENOUGH: bool = false;

    fn add(&mut self, rule: RuleRef) {
        self.push(rule);
    }

    fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

/// That there is one.
#[derive(Default)]
pub(super) struct AnyRule(bool);

impl Deciders for AnyRule {
    const ONE_IS_ENOUGH: bool = true;

    fn add(&mut self, _: RuleRef) {
        self.0 = true;
    }

    fn is_empty(&self) -> bool {
        !self.0
    }
}

impl FromIterator<RuleRef> for AnyRule {
    fn from_iter<T: IntoIterator<Item = RuleRef>>(rules: T) -> Self {
        Self(rules.into_iter().next().is_some())
    }
}

/// One side of a pair of ends, of which only the port is open: its rules that may be about the
/// other end.
pub(super) struct Narrowed<'a> {
    stages: &'a Stages,
    other: Other,
    pub(super) direction: Direction,
    union: Vec<&'a CompiledRule>,
    /// Policies before and after the union tier, by priority; those without such a rule are left
    /// out.
    ordered: [Vec<(u32, Vec<&'a CompiledRule>)>; 2],
}

impl<'a> Narrowed<'a> {
    /// Its rules, whatever their tier.
    pub(super) fn rules(&self) -> impl Iterator<Item = &'a CompiledRule> + '_ {
        self.union.iter().chain(self.ordered.iter().flatten().flat_map(|(_, rules)| rules)).copied()
    }
}

impl Compiled {
    #[inline]
    fn stages(&self, own: Option<u32>, direction: Direction) -> Option<&Stages> {
        self.subjects.stages(own, direction)
    }

    pub(super) fn isolating(&self, own: Option<u32>, direction: Direction) -> &[u32] {
        self.stages(own, direction).map_or(&[], |s| &s.isolating)
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
    #[inline]
    pub(super) fn side<R: Deciders>(
        &self,
        own: Option<u32>,
        other: impl FnOnce() -> Other,
        asked: &Asked,
    ) -> SideVerdict<R> {
        let Some(stages) = self.stages(own, asked.direction) else { return SideVerdict::NotIsolated };
        let other = other();
        if stages.plain && !other.is_anywhere() {
            self.plain(stages, &other, asked)
        } else {
            self.tiers(stages, &other, asked)
        }
    }

    /// See [`Stages::plain`].
    fn plain<R: Deciders>(&self, stages: &Stages, other: &Other, asked: &Asked) -> SideVerdict<R> {
        let mut accepts = R::default();
        for place in &stages.places {
            for rule in self.rules.at(place, asked.direction) {
                if self.rules.meets(rule, None, other, asked) {
                    accepts.add(rule.name);
                    if R::ONE_IS_ENOUGH {
                        return SideVerdict::AllowedBy(accepts);
                    }
                }
            }
        }
        if accepts.is_empty() { SideVerdict::Denied } else { SideVerdict::AllowedBy(accepts) }
    }

    #[inline(never)]
    fn tiers<R: Deciders>(&self, stages: &Stages, other: &Other, asked: &Asked) -> SideVerdict<R> {
        let rules = || stages.places.iter().flat_map(|place| self.rules.at(place, asked.direction));
        let ordered = |tier| {
            let of = |policy: &u32| self.rules.of(*policy, asked.direction).iter();
            self.ordered(stages.policies(tier), |policy| *policy, of, other, asked)
        };
        ordered(Tier::Admin)
            .or_else(|| self.union(stages, rules(), other, asked))
            .or_else(|| ordered(Tier::Baseline))
            .unwrap_or(SideVerdict::NotIsolated)
    }

    /// Whom the rules about `own` name on some port, if that may be `other`; `None`: no policy has
    /// a say.
    pub(super) fn narrowed(&self, own: Option<u32>, other: Other, direction: Direction) -> Option<Narrowed<'_>> {
        let stages = self.stages(own, direction)?;
        let concerns = |rule: &&CompiledRule| self.rules.may_concern(rule, &other);
        let union = stages.places.iter().flat_map(|place| self.rules.at(place, direction)).filter(concerns).collect();
        let ordered = [Tier::Admin, Tier::Baseline].map(|tier| {
            let of = |policy: &u32| (*policy, self.rules.of(*policy, direction).iter().filter(concerns).collect());
            let policies = stages.policies(tier).iter().map(of);
            policies.filter(|(_, rules): &(u32, Vec<&CompiledRule>)| !rules.is_empty()).collect()
        });
        Some(Narrowed { stages, other, direction, union, ordered })
    }

    /// Whether such a side lets the connection pass, as [`Self::side`] says.
    pub(super) fn lets_pass(&self, side: &Narrowed<'_>, asked: &Asked) -> bool {
        let Narrowed { stages, other, union, ordered, .. } = side;
        if stages.plain && !other.is_anywhere() {
            return union.iter().any(|rule| self.rules.meets(rule, None, other, asked));
        }
        let [admin, baseline] = ordered;
        let verdict = self
            .ordered::<AnyRule, _, _>(admin, |(policy, _)| *policy, |(_, rules)| rules.iter().copied(), other, asked)
            .or_else(|| self.union(stages, union.iter().copied(), other, asked))
            .or_else(|| {
                self.ordered(baseline, |(policy, _)| *policy, |(_, rules)| rules.iter().copied(), other, asked)
            });
        verdict.is_none_or(|verdict| verdict.allows())
    }

    /// `None`: the next tier decides.
    fn union<'r, R: Deciders>(
        &self,
        stages: &Stages,
        rules: impl Iterator<Item = &'r CompiledRule>,
        other: &Other,
        asked: &Asked,
    ) -> Option<SideVerdict<R>> {
        let (mut accepts, mut denies, mut maybe) = (R::default(), R::default(), [R::default(), R::default()]);
        for rule in rules {
            let deny = rule.action == Action::Deny;
            match self.rules.matches(rule, stages.requires[usize::from(deny)].as_ref(), other, asked) {
                Match::No => {}
                Match::Yes if deny => denies.add(rule.name),
                Match::Yes => accepts.add(rule.name),
                Match::Maybe => maybe[usize::from(deny)].add(rule.name),
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

    /// Policies of one tier in the order in which they are asked: `index` is the place of one among
    /// all, `rules_of` gives its rules. `None`: nothing matched, or a rule passed; the next tier
    /// decides.
    fn ordered<'r, R: Deciders, P, I: Iterator<Item = &'r CompiledRule>>(
        &self,
        policies: &'r [P],
        index: impl Fn(&P) -> u32,
        rules_of: impl Fn(&'r P) -> I,
        other: &Other,
        asked: &Asked,
    ) -> Option<SideVerdict<R>> {
        let priority = |policy: &P| self.priorities[index(policy) as usize];
        let mut maybe: Vec<(Action, RuleRef)> = Vec::new();
        for (place, policy) in policies.iter().enumerate() {
            let first = |policy: &'r P, maybe: &mut Vec<(Action, RuleRef)>| {
                for rule in rules_of(policy) {
                    let found = (rule.action, rule.name);
                    match self.rules.matches(rule, None, other, asked) {
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
            let equal = |rival: &&P| priority(rival) == priority(policy);
            for rival in policies[place + 1..].iter().take_while(equal) {
                rivals.extend(first(rival, &mut maybe));
            }
            let mut against: Vec<RuleRef> =
                rivals.iter().chain(&maybe).filter(|(other, _)| *other != action).map(|(_, rule)| *rule).collect();
            if !against.is_empty() {
                against.push(decides);
                against.sort_unstable();
                return Some(SideVerdict::Unproven(against.into_iter().collect()));
            }
            let decides = || std::iter::once(decides).collect();
            return match action {
                Action::Accept => Some(SideVerdict::AllowedBy(decides())),
                Action::Deny => Some(SideVerdict::DeniedBy(decides())),
                Action::Pass => None,
            };
        }
        let undecided: R = maybe.iter().filter(|(a, _)| *a != Action::Pass).map(|(_, r)| *r).collect();
        (!undecided.is_empty()).then_some(SideVerdict::Unproven(undecided))
    }

    /// Who may call `server` on this port, as far as its ingress goes.
    pub(super) fn admission(&self, server: Option<u32>, protocol: Protocol, port: u16) -> Admission<'_> {
        let mut admission = Admission {
            everyone: false,
            // The own node is let in whatever the rules say.
            kinds: if self.cilium.is_some() { Kinds::HOST } else { Kinds::NONE },
            classes: BitSet::with_len(self.classes.len()),
            by_address: Vec::new(),
        };
        let stages = self.stages(server, Direction::Ingress).filter(|s| s.isolated);
        let others = |s: &Stages| !s.policies(Tier::Admin).is_empty();
        let Some(stages) = stages.filter(|s| !others(s)) else {
            admission.everyone = true;
            return admission;
        };
        let asked = Asked { direction: Direction::Ingress, protocol, port, server };
        for rule in stages.places.iter().flat_map(|place| self.rules.at(place, asked.direction)) {
            if rule.action == Action::Accept && self.rules.has_port(rule, &asked) {
                let others = self.rules.others(rule);
                admission.everyone |= rule.any_peer;
                admission.kinds = admission.kinds.with(others.entities).with(others.unknown);
                if !others.nodes.is_empty() {
                    admission.kinds = admission.kinds.with(Kinds::NODES);
                }
                if others.has_ranges() {
                    admission.by_address.push(others);
                }
                self.rules.add_classes(rule, &mut admission.classes);
            }
        }
        admission
    }
}

/// Whom the ingress rules of one server let in on one port: many clients are asked about one server
/// at the cost of a bit test each.
#[derive(Debug)]
pub struct Admission<'a> {
    everyone: bool,
    /// Ends of these kinds may be let in, whatever their labels and addresses are.
    kinds: Kinds,
    classes: BitSet,
    by_address: Vec<&'a Others>,
}

impl Admission<'_> {
    /// Whether a client might be let in: true if a rule names its class, its kind, or one of its
    /// addresses, whichever the connection would use. A client of whom this is false is denied; of
    /// whom it is true, [`super::Evaluator::evaluate`] tells.
    #[must_use]
    pub fn may_admit(&self, client: &End) -> bool {
        self.everyone
            || any_kinds(client).meets(self.kinds)
            || client.class.is_some_and(|class| self.classes.contains(class))
            || (!self.by_address.is_empty()
                && client.addresses().any(|a| self.by_address.iter().any(|others| others.has_address(a, Kinds::ALL))))
    }

    /// Which of the clients might be let in at one of their ends, as [`Self::may_admit`] says:
    /// their indices, in no order, some twice.
    #[must_use]
    pub fn candidates(&self, clients: &Clients<'_>) -> Vec<usize> {
        if self.everyone || clients.kinds.meets(self.kinds) || !self.by_address.is_empty() {
            let ends = clients.ends.iter().enumerate();
            return ends.filter(|(_, ends)| ends.iter().any(|e| self.may_admit(e))).map(|(index, _)| index).collect();
        }
        self.classes.iter().filter_map(|class| clients.by_class.get(class)).flatten().copied().collect()
    }
}

/// Clients, each with several ends, of which many servers are asked whom they let in.
#[derive(Debug)]
pub struct Clients<'a> {
    ends: Vec<&'a [End]>,
    /// Indices of those that have an end of a class.
    by_class: Vec<Vec<usize>>,
    /// What any of the ends is.
    kinds: Kinds,
}

/// What an end is, whichever node the other one runs on.
fn any_kinds(end: &End) -> Kinds {
    end.kinds(Relation::Own).with(end.kinds(Relation::Remote))
}

impl<'a> Clients<'a> {
    /// Clients by their ends, which are of the evaluator that is asked.
    #[must_use]
    pub fn new(ends: impl Iterator<Item = &'a [End]>) -> Self {
        let ends: Vec<&[End]> = ends.collect();
        let mut by_class: Vec<Vec<usize>> = Vec::new();
        for (index, ends) in ends.iter().enumerate() {
            for class in ends.iter().filter_map(|end| end.class).map(|class| class as usize) {
                if by_class.len() <= class {
                    by_class.resize_with(class + 1, Vec::new);
                }
                by_class[class].push(index);
            }
        }
        let kinds = ends.iter().copied().flatten().fold(Kinds::NONE, |all, end| all.with(any_kinds(end)));
        Self { ends, by_class, kinds }
    }
}
