//! Rules as they are judged. What every verdict reads lies together, two rules in a line of the
//! cache; what few rules have lies elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    ops::Range,
};

use ipnet::IpNet;

use super::{
    RuleRef,
    asked::{Asked, Other},
    bitset::{BitSet, SetId, Sets},
    kinds::Kinds,
};
use crate::model::{Direction, IpBlock, Protocol, tier::Action};

/// One rule.
#[derive(Debug)]
pub(super) struct CompiledRule {
    pub(super) name: RuleRef,
    /// Pods that it names, among [`Rules::sets`].
    set: SetId,
    /// What else it names, among [`Rules::others`]; 0: nothing.
    others: u32,
    ports: Ports,
    pub(super) action: Action,
    pub(super) any_peer: bool,
}

/// Ports of one protocol.
#[derive(Clone, Copy, Debug)]
pub(super) enum Port {
    Range(Protocol, u16, u16),
    /// Those that the server gives a name to, by index into [`Named`].
    Named(Protocol, u32),
}

#[derive(Clone, Copy, Debug)]
enum Ports {
    /// All of every protocol.
    All,
    One(Port),
    /// Some of [`Rules::ports`].
    Several {
        first: u32,
        len: u32,
    },
}

/// What a rule names apart from pods.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// Ranges that are more than one address, and the kinds of ends that each matches.
    blocks: Vec<(IpBlock, Kinds)>,
    /// Single addresses, likewise: a rule for the nodes of a large cluster has thousands.
    singles: HashMap<IpAddr, Kinds>,
    pub(super) entities: Kinds,
    /// Nodes by index, and the kinds that are meant: the own node may be left out.
    pub(super) nodes: Vec<(BitSet, Kinds)>,
    /// Ends of these kinds may match, and nothing here tells.
    pub(super) unknown: Kinds,
}

/// Whom a rule names.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) classes: BitSet,
    pub(super) others: Others,
}

/// How a rule answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    No,
    /// Nothing here tells.
    Maybe,
    Yes,
}

/// The rules of all policies.
#[derive(Debug)]
pub(super) struct Rules {
    /// Per direction (ingress, egress), those of a policy together.
    rules: [Vec<CompiledRule>; 2],
    /// Where the rules of each policy lie, per direction.
    places: Vec<[Range<u32>; 2]>,
    ports: Vec<Port>,
    /// Those that rules name, and those that policies select.
    pub(super) sets: Sets,
    others: Vec<Others>,
    named: Named,
}

impl Rules {
    /// Where the rules of a policy lie.
    pub(super) fn place(&self, policy: u32, direction: Direction) -> Range<u32> {
        self.places[policy as usize][direction.slot()].clone()
    }

    /// The rules there.
    pub(super) fn at(&self, place: &Range<u32>, direction: Direction) -> &[CompiledRule] {
        &self.rules[direction.slot()][place.start as usize..place.end as usize]
    }

    /// The rules of a policy.
    pub(super) fn of(&self, policy: u32, direction: Direction) -> &[CompiledRule] {
        self.at(&self.place(policy, direction), direction)
    }

    /// Whether the rule is about the port that is asked about.
    #[inline]
    pub(super) fn has_port(&self, rule: &CompiledRule, asked: &Asked) -> bool {
        match rule.ports {
            Ports::All => true,
            Ports::One(port) => self.is_port(port, asked),
            Ports::Several { first, len } => {
                let ports = &self.ports[first as usize..(first + len) as usize];
                ports.iter().any(|port| self.is_port(*port, asked))
            }
        }
    }

    #[inline]
    fn is_port(&self, port: Port, asked: &Asked) -> bool {
        match port {
            Port::Range(protocol, first, last) => protocol == asked.protocol && (first..=last).contains(&asked.port),
            Port::Named(protocol, id) => {
                protocol == asked.protocol && asked.server.is_some_and(|class| self.named.is(id, class, asked.port))
            }
        }
    }

    /// Whether the rule matches for certain. `requires`: pods that every selector is confined to.
    #[inline]
    pub(super) fn meets(&self, rule: &CompiledRule, requires: Option<&BitSet>, other: &Other, asked: &Asked) -> bool {
        let selected = |class| self.sets.contains(rule.set, class) && requires.is_none_or(|r| r.contains(class));
        // Peers tell more rules apart than ports do.
        let named = rule.any_peer || other.class.is_some_and(selected);
        (named || rule.others != 0) && self.has_port(rule, asked) && (named || self.others(rule).meet(other))
    }

    /// Whether the rule matches.
    #[inline]
    pub(super) fn matches(
        &self,
        rule: &CompiledRule,
        requires: Option<&BitSet>,
        other: &Other,
        asked: &Asked,
    ) -> Match {
        if self.meets(rule, requires, other, asked) {
            return Match::Yes;
        }
        let maybe = rule.others != 0 && self.others(rule).may_meet(other) && self.has_port(rule, asked);
        if maybe { Match::Maybe } else { Match::No }
    }

    /// Whether the rule may match on some port, as far as its peers go.
    #[inline]
    pub(super) fn may_concern(&self, rule: &CompiledRule, other: &Other) -> bool {
        rule.any_peer
            || other.class.is_some_and(|class| self.sets.contains(rule.set, class))
            || rule.others != 0 && (self.others(rule).meet(other) || self.others(rule).may_meet(other))
    }

    /// Calls `bound` with each range of ports of the rule, its names as this server has them;
    /// nothing is said of a rule for all ports.
    pub(super) fn for_each_range(
        &self,
        rule: &CompiledRule,
        server: Option<u32>,
        mut bound: impl FnMut(Protocol, u16, u16),
    ) {
        let mut of = |port: Port| match port {
            Port::Range(protocol, first, last) => bound(protocol, first, last),
            Port::Named(protocol, id) => {
                server.into_iter().flat_map(|class| self.named.of(id, class)).for_each(|n| bound(protocol, n, n));
            }
        };
        match rule.ports {
            Ports::All => {}
            Ports::One(port) => of(port),
            Ports::Several { first, len } => {
                self.ports[first as usize..(first + len) as usize].iter().for_each(|port| of(*port));
            }
        }
    }

    /// What the rule names apart from pods.
    pub(super) fn others(&self, rule: &CompiledRule) -> &Others {
        &self.others[rule.others as usize]
    }

    /// Every range that a rule holds; single addresses, too.
    pub(super) fn ranges(&self) -> BTreeSet<IpBlock> {
        let single = |address: &IpAddr| IpBlock { cidr: IpNet::from(*address), except: Vec::new() };
        let ranges = |others: &Others| -> Vec<IpBlock> {
            others.blocks.iter().map(|(block, _)| block.clone()).chain(others.singles.keys().map(single)).collect()
        };
        self.others.iter().flat_map(ranges).collect()
    }

    /// Adds the pods that the rule names.
    pub(super) fn add_classes(&self, rule: &CompiledRule, to: &mut BitSet) {
        self.sets.add_to(rule.set, to);
    }
}

impl Others {
    #[inline(never)]
    fn meet(&self, other: &Other) -> bool {
        let Other { address, kinds, node, .. } = *other;
        address.is_some_and(|a| self.has_address(a, kinds))
            || kinds.meets(self.entities)
            || node.is_some_and(|n| self.nodes.iter().any(|(set, meant)| kinds.meets(*meant) && set.contains(n)))
    }

    fn may_meet(&self, other: &Other) -> bool {
        other.kinds.meets(self.unknown) || (other.is_anywhere() && self.has_ranges())
    }

    /// Whether one of its ranges holds this address, for an end of these kinds.
    pub(super) fn has_address(&self, address: IpAddr, kinds: Kinds) -> bool {
        self.blocks.iter().any(|(block, reach)| kinds.meets(*reach) && block.contains(address))
            || self.singles.get(&address).is_some_and(|reach| kinds.meets(*reach))
    }

    pub(super) fn has_ranges(&self) -> bool {
        !(self.blocks.is_empty() && self.singles.is_empty())
    }

    fn is_empty(&self) -> bool {
        let none = self.entities == Kinds::NONE && self.unknown == Kinds::NONE;
        none && self.nodes.is_empty() && !self.has_ranges()
    }
}

impl Peers {
    pub(super) fn new(classes: usize) -> Self {
        Self { classes: BitSet::with_len(classes), others: Others::default() }
    }

    pub(super) fn add_block(&mut self, block: IpBlock, kinds: Kinds) {
        if block.cidr.prefix_len() == block.cidr.max_prefix_len() && block.except.is_empty() {
            self.add_address(block.cidr.addr(), kinds);
        } else {
            self.others.blocks.push((block, kinds));
        }
    }

    pub(super) fn add_address(&mut self, address: IpAddr, kinds: Kinds) {
        let known = self.others.singles.entry(address).or_default();
        *known = known.with(kinds);
    }
}

/// The numbers of named ports, per class of pods.
#[derive(Debug)]
struct Named {
    classes: usize,
    /// The first number, per name and class.
    first: Vec<Option<u16>>,
    /// Further ones: a name may stand for several ports of one pod.
    further: BTreeMap<(u32, u32), Vec<u16>>,
}

impl Named {
    #[inline]
    fn is(&self, name: u32, class: u32, port: u16) -> bool {
        self.first[name as usize * self.classes + class as usize] == Some(port)
            || (!self.further.is_empty() && self.further.get(&(name, class)).is_some_and(|more| more.contains(&port)))
    }

    fn of(&self, name: u32, class: u32) -> impl Iterator<Item = u16> + '_ {
        let first = self.first[name as usize * self.classes + class as usize];
        first.into_iter().chain(self.further.get(&(name, class)).into_iter().flatten().copied())
    }
}

/// Takes rules, those of a policy one after the other. What is judged together should come
/// together.
pub(super) struct RulesBuilder {
    rules: Rules,
}

impl RulesBuilder {
    pub(super) fn new(policies: usize, classes: usize) -> Self {
        let rules = Rules {
            rules: [Vec::new(), Vec::new()],
            places: vec![[0..0, 0..0]; policies],
            ports: Vec::new(),
            sets: Sets::default(),
            others: vec![Others::default()],
            named: Named { classes, first: Vec::new(), further: BTreeMap::new() },
        };
        Self { rules }
    }

    /// Those that rules name, and those that policies select.
    pub(super) fn sets(&mut self) -> &mut Sets {
        &mut self.rules.sets
    }

    /// A named port, by the numbers that it stands for in each class.
    pub(super) fn name<N: Iterator<Item = u16>>(&mut self, numbers: impl Iterator<Item = N>) -> u32 {
        let named = &mut self.rules.named;
        let id = number(named.first.len() / named.classes.max(1));
        for (mut numbers, class) in numbers.zip(0..) {
            named.first.push(numbers.next());
            let further: Vec<u16> = numbers.collect();
            if !further.is_empty() {
                named.further.insert((id, class), further);
            }
        }
        id
    }

    /// The next rule of a policy. No ports: all; no peers: everybody.
    pub(super) fn add(
        &mut self,
        policy: u32,
        direction: Direction,
        action: Action,
        ports: Vec<Port>,
        peers: Option<Peers>,
    ) {
        let Self { rules } = self;
        let ports = match *ports {
            [] => Ports::All,
            [port] => Ports::One(port),
            _ => {
                let first = number(rules.ports.len());
                let len = number(ports.len());
                rules.ports.extend(ports);
                Ports::Several { first, len }
            }
        };
        let any_peer = peers.is_none();
        let Peers { classes, others } = peers.unwrap_or_else(|| Peers::new(0));
        let set = rules.sets.push(&classes);
        let others = if others.is_empty() {
            0
        } else {
            rules.others.push(others);
            number(rules.others.len() - 1)
        };
        let place = &mut rules.places[policy as usize][direction.slot()];
        let list = &mut rules.rules[direction.slot()];
        if place.start == place.end {
            *place = number(list.len())..number(list.len());
        }
        debug_assert_eq!(place.end, number(list.len()), "rules of a policy one after the other");
        let name = RuleRef { policy, rule: place.end - place.start };
        list.push(CompiledRule { name, set, others, ports, action, any_peer });
        place.end += 1;
    }

    pub(super) fn build(mut self) -> Rules {
        self.rules.sets.finish();
        self.rules
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_rules_fit_a_line_of_the_cache() {
        assert!(size_of::<CompiledRule>() <= 32, "{}", size_of::<CompiledRule>());
    }
}
