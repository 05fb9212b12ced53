//! All connections that policies allow: who may reach whom, on which ports, and what the world
//! outside may reach.
//!
//! Every pair of workloads is judged at one port of each interval between the ports that the
//! policies of either side name, so the answer holds for all ports. Pods that no policy tells apart
//! are judged once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::{Serialize, Serializer};

use super::{End, Evaluator};
use crate::model::{Direction, IpBlock, PortMatch, Protocol};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// One end of a [`Connection`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// Every address outside the cluster, and every pod.
    Everywhere,
    /// Every address outside the cluster that no narrower block of the answer holds.
    Outside,
    /// Every workload of the cluster.
    EveryPod,
    /// Every workload of the cluster but those of this namespace.
    EveryPodBut(String),
    /// Every workload of this namespace.
    EveryPodOf(String),
    /// Addresses that a policy names.
    Block(String),
    /// A workload, or a pod without one.
    Workload(String),
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everywhere => f.write_str("everywhere"),
            Self::Outside => f.write_str("outside"),
            Self::EveryPod => f.write_str("every pod"),
            Self::EveryPodBut(namespace) => write!(f, "every pod but those of {namespace}"),
            Self::EveryPodOf(namespace) => write!(f, "every pod of {namespace}"),
            Self::Block(name) | Self::Workload(name) => f.write_str(name),
        }
    }
}

impl Serialize for Party {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Ports of each protocol, as inclusive ranges in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports(BTreeMap<Protocol, Vec<(u16, u16)>>);

impl Ports {
    fn all() -> Self {
        Self(PROTOCOLS.into_iter().map(|p| (p, vec![(1, u16::MAX)])).collect())
    }

    fn push(&mut self, protocol: Protocol, first: u16, last: u16) {
        let ranges = self.0.entry(protocol).or_default();
        match ranges.last_mut() {
            Some(before) if before.1 + 1 == first => before.1 = last,
            _ => ranges.push((first, last)),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the port is among them.
    #[must_use]
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.0.get(&protocol).is_some_and(|ranges| ranges.iter().any(|(first, last)| (*first..=*last).contains(&port)))
    }

    fn holds(&self, other: &Self) -> bool {
        other.0.iter().all(|(protocol, ranges)| {
            let own = self.0.get(protocol).map_or(&[][..], Vec::as_slice);
            ranges.iter().all(|(first, last)| own.iter().any(|(f, l)| f <= first && last <= l))
        })
    }

    /// Those that `other` does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = Self::default();
        for (protocol, ranges) in &self.0 {
            let taken = other.0.get(protocol).map_or(&[][..], Vec::as_slice);
            for (first, last) in ranges {
                let mut next = u32::from(*first);
                for (from, to) in taken.iter().filter(|(from, to)| to >= first && from <= last) {
                    let (from, to) = (u32::from(*from), u32::from(*to));
                    rest.push_wide(*protocol, next, from.min(u32::from(*last) + 1));
                    next = next.max(to + 1);
                }
                rest.push_wide(*protocol, next, u32::from(*last) + 1);
            }
        }
        rest
    }

    /// Adds the ports from `first` up to, but not with, `end`.
    fn push_wide(&mut self, protocol: Protocol, first: u32, end: u32) {
        if let (true, Ok(first), Ok(last)) = (first < end, u16::try_from(first), u16::try_from(end.wrapping_sub(1))) {
            self.push(protocol, first, last);
        }
    }

    /// The union.
    pub(super) fn with(&self, other: &Self) -> Self {
        let mut joined = Self::default();
        for protocol in PROTOCOLS {
            let mut ranges: Vec<(u16, u16)> =
                [self, other].into_iter().filter_map(|p| p.0.get(&protocol)).flatten().copied().collect();
            ranges.sort_unstable();
            let mut merged: Vec<(u16, u16)> = Vec::new();
            for (first, last) in ranges {
                match merged.last_mut() {
                    Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                    _ => merged.push((first, last)),
                }
            }
            if !merged.is_empty() {
                joined.0.insert(protocol, merged);
            }
        }
        joined
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::all() {
            return f.write_str("all");
        }
        let mut parts = Vec::new();
        for (protocol, ranges) in &self.0 {
            parts.extend(ranges.iter().map(|range| match range {
                (1, u16::MAX) => format!("{protocol}/all"),
                (first, last) if first == last => format!("{protocol}/{first}"),
                (first, last) => format!("{protocol}/{first}-{last}"),
            }));
        }
        f.write_str(&parts.join(", "))
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What one end may open to the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Connection {
    /// Who opens it.
    pub src: Party,
    /// Who accepts it.
    pub dst: Party,
    /// On which of the acceptor's own ports.
    pub ports: Ports,
}

/// Pods that no policy tells apart.
pub(super) struct Group {
    pub(super) end: End,
    /// Ports by name: they decide where a rule with a name begins and ends.
    names: Vec<(String, Protocol, u16)>,
    /// Boundaries of the ports that the policies isolating it name; `None`: not isolated.
    bounds: [Option<Vec<NamedPort>>; 2],
}

/// A port of a rule, with its protocol.
type NamedPort = (Protocol, PortMatch);

impl Evaluator {
    /// Every allowed connection between workloads, and between them and the outside, sorted. Nodes
    /// and pods on their network are left out: policies do not select them.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        let (groups, workloads) = self.groups();
        let outside = self.outside();
        let blocks = self.blocks();
        let mut between: BTreeMap<(usize, usize), Ports> = BTreeMap::new();
        let mut ports_of = |a: usize, b: usize| {
            between
                .entry((a, b))
                .or_insert_with(|| self.allowed(&groups[a].end, &groups[b].end, Some(&groups[a]), Some(&groups[b])))
                .clone()
        };
        let mut connections = Vec::new();
        for (server, own) in &workloads {
            let to = Party::Workload(server.clone());
            let world = joined(own.iter().map(|g| self.outside_to(&outside, &groups[*g])));
            let clients: Vec<(&String, Ports)> = workloads
                .iter()
                .map(|(client, theirs)| {
                    (
                        client,
                        joined(theirs.iter().flat_map(|c| own.iter().map(|s| (*c, *s))).map(|(c, s)| ports_of(c, s))),
                    )
                })
                .collect();
            let everywhere = !world.is_empty() && clients.iter().all(|(_, ports)| ports.holds(&world));
            if !world.is_empty() {
                let src = if everywhere { Party::Everywhere } else { Party::Outside };
                connections.push(Connection { src, dst: to.clone(), ports: world.clone() });
            }
            let more = |ports: &Ports| !(ports.is_empty() || everywhere && world.holds(ports));
            let first = clients.first().map(|(_, ports)| ports);
            if let Some(ports) = first.filter(|f| clients.len() > 1 && clients.iter().all(|(_, p)| p == *f) && more(f))
            {
                connections.push(Connection { src: Party::EveryPod, dst: to.clone(), ports: ports.clone() });
            } else {
                for (client, ports) in clients.into_iter().filter(|(_, ports)| more(ports)) {
                    connections.push(Connection { src: Party::Workload(client.clone()), dst: to.clone(), ports });
                }
            }
            for (block, address) in &blocks {
                let end = self.end_of_address(*address);
                let ports = joined(own.iter().map(|g| self.allowed(&end, &groups[*g].end, None, Some(&groups[*g]))));
                if !ports.is_empty() && !world.holds(&ports) {
                    connections.push(Connection { src: Party::Block(block.clone()), dst: to.clone(), ports });
                }
            }
            let out = joined(own.iter().map(|g| self.to_the_outside(&outside, &groups[*g])));
            if !out.is_empty() {
                connections.push(Connection { src: to.clone(), dst: Party::Outside, ports: out.clone() });
            }
            for (block, address) in &blocks {
                let end = self.end_of_address(*address);
                let ports = joined(own.iter().map(|g| self.allowed(&groups[*g].end, &end, Some(&groups[*g]), None)));
                if !ports.is_empty() && !out.holds(&ports) {
                    connections.push(Connection { src: to.clone(), dst: Party::Block(block.clone()), ports });
                }
            }
        }
        connections.sort();
        connections
    }

    /// The pod as any replica like it, with what decides its ports.
    pub(super) fn group(&self, pod: u32) -> Group {
        let end = self.end_of_pod(pod).any_replica();
        Group {
            end,
            names: self.cluster().pods[pod as usize].ports.clone(),
            bounds: [Direction::Ingress, Direction::Egress].map(|direction| self.named_ports(&end, direction)),
        }
    }

    /// Groups of live pods that policies can select, and which of them each workload has.
    fn groups(&self) -> (Vec<Group>, BTreeMap<String, BTreeSet<usize>>) {
        let blocks = self.ip_blocks();
        let mut known = BTreeMap::new();
        let mut groups = Vec::new();
        let mut workloads: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for (pod, index) in self.cluster().pods.iter().zip(0..).filter(|(p, _)| !p.finished && !p.host_network) {
            let end = self.end_of_pod(index).any_replica();
            let within: Vec<bool> =
                blocks.iter().map(|block| end.addresses().any(|address| block.contains(address))).collect();
            let group = *known.entry((end.class, within)).or_insert_with(|| {
                groups.push(self.group(index));
                groups.len() - 1
            });
            workloads.entry(pod.workload_name()).or_default().insert(group);
        }
        (groups, workloads)
    }

    /// The ports that the policies about this end name; `None`: there is none, and nothing isolates
    /// it.
    fn named_ports(&self, end: &End, direction: Direction) -> Option<Vec<NamedPort>> {
        let asked = self.asked(end, direction);
        if asked.is_empty() && !self.isolated(end, direction) {
            return None;
        }
        let rules = asked.iter().flat_map(|p| self.forms()[*p as usize].rules(direction));
        let ports: BTreeSet<NamedPort> =
            rules.flat_map(|rule| &rule.ports).map(|port| (port.protocol, port.port.clone())).collect();
        Some(ports.into_iter().collect())
    }

    /// The ports that `dst` accepts from `src`; `None`: an end that policies do not select.
    pub(super) fn allowed(&self, src: &End, dst: &End, client: Option<&Group>, server: Option<&Group>) -> Ports {
        let egress = client.and_then(|group| group.bounds[1].as_ref());
        let ingress = server.and_then(|group| group.bounds[0].as_ref());
        if egress.is_none() && ingress.is_none() {
            return Ports::all();
        }
        let mut ports = Ports::default();
        for protocol in PROTOCOLS {
            let mut starts = BTreeSet::from([1_u16]);
            let mut bound = |first: u16, last: u16| {
                starts.insert(first);
                starts.extend(last.checked_add(1));
            };
            for (_, wanted) in egress.into_iter().chain(ingress).flatten().filter(|(p, _)| *p == protocol) {
                match wanted {
                    PortMatch::Any => {}
                    PortMatch::Range { first, last } => bound(*first, *last),
                    PortMatch::Named(name) => {
                        let named = server.into_iter().flat_map(|group| &group.names);
                        named.filter(|(n, p, _)| n == name && *p == protocol).for_each(|(.., n)| bound(*n, *n));
                    }
                }
            }
            let starts: Vec<u16> = starts.into_iter().collect();
            for (at, first) in starts.iter().enumerate() {
                if self.evaluate(src, dst, protocol, *first).allowed() {
                    ports.push(protocol, *first, starts.get(at + 1).map_or(u16::MAX, |next| next - 1));
                }
            }
        }
        ports
    }

    fn outside_to(&self, outside: &[End], group: &Group) -> Ports {
        joined(outside.iter().map(|end| self.allowed(end, &group.end, None, Some(group))))
    }

    fn to_the_outside(&self, outside: &[End], group: &Group) -> Ports {
        joined(outside.iter().map(|end| self.allowed(&group.end, end, Some(group), None)))
    }

    /// The ranges that rules mean, sorted: those written, and what is known to be behind names,
    /// groups and Services without pods.
    pub(super) fn ip_blocks(&self) -> Vec<IpBlock> {
        self.compiled.rules.ranges().into_iter().collect()
    }

    /// An address of each family that stands for the world: in no block but those of every address.
    #[must_use]
    pub fn outside(&self) -> Vec<End> {
        let blocks = self.ip_blocks();
        let is_named = |address: IpAddr| {
            blocks.iter().any(|block| {
                block.cidr.prefix_len() > 0 && block.cidr.contains(&address)
                    || block.except.iter().any(|except| except.contains(&address))
            })
        };
        let free = |address: &IpAddr| !is_named(*address) && !self.owners.contains_key(address);
        let v4 =
            (1..=223_u8).rev().filter(|a| *a != 127 && *a != 10).map(|a| IpAddr::from([a, 51, 100, 77])).find(free);
        let v6 = (0..0x1000_u16).map(|a| IpAddr::from([0x2001 + a, 0xdb8, 0, 0, 0, 0, 0, 0x77])).find(free);
        v4.into_iter().chain(v6).map(|address| self.end_of_address(address)).collect()
    }

    /// Each block that is not every address, and an address in it that is in no exception and
    /// nobody's of the cluster.
    fn blocks(&self) -> Vec<(String, IpAddr)> {
        let mut found = Vec::new();
        for block in self.ip_blocks().into_iter().filter(|b| b.cidr.prefix_len() > 0) {
            let free = |address: &IpAddr| block.contains(*address) && !self.owners.contains_key(address);
            let address = block.cidr.hosts().take(4096).find(free);
            found.extend(address.map(|address| (block.cidr.to_string(), address)));
        }
        found.dedup();
        found
    }
}

fn joined(ports: impl Iterator<Item = Ports>) -> Ports {
    ports.fold(Ports::default(), |all, some| if all == some { all } else { all.with(&some) })
}
