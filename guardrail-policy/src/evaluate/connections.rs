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
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::{End, Evaluator, difference::spans::Spans};
use crate::model::{Direction, IpBlock, PortMatch, Protocol};

mod ports;

pub use ports::Ports;
use ports::{Known, PROTOCOLS, PortRange};

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
    /// Addresses that a policy names and no narrower block of the answer holds.
    Block(String),
    /// A workload, or a pod without one.
    Workload(Arc<str>),
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everywhere => f.write_str("everywhere"),
            Self::Outside => f.write_str("outside"),
            Self::EveryPod => f.write_str("every pod"),
            Self::EveryPodBut(namespace) => write!(f, "every pod but those of {namespace}"),
            Self::EveryPodOf(namespace) => write!(f, "every pod of {namespace}"),
            Self::Block(name) => f.write_str(name),
            Self::Workload(name) => f.write_str(name),
        }
    }
}

impl Serialize for Party {
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
    end: End,
    /// Ports by name: they decide where a rule with a name begins and ends.
    names: Vec<(String, Protocol, u16)>,
    /// Where the ports begin that the policies about it as a server name; `None`: there is none,
    /// and nothing isolates it.
    ingress: Option<Starts>,
    /// Likewise as a client.
    egress: Option<Starts>,
}

/// One end of the pairs that are judged.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) end: End,
    /// `None`: an end that policies do not select.
    group: Option<&'a Group>,
}

impl<'a> Side<'a> {
    pub(super) fn of(group: &'a Group) -> Self {
        Self { end: group.end, group: Some(group) }
    }

    pub(super) fn address(end: End) -> Self {
        Self { end, group: None }
    }
}

/// Ports at which what policies say may change: where a range that they name begins, and where
/// what follows it does.
struct Starts {
    /// Per protocol, ascending, 1 first.
    numbers: [Vec<u16>; PROTOCOLS.len()],
    /// Ports by name, which each server gives a number of its own.
    names: BTreeSet<(Protocol, String)>,
}

fn slot(protocol: Protocol) -> usize {
    PROTOCOLS.iter().position(|own| *own == protocol).unwrap_or_default()
}

fn in_order(starts: &mut Vec<u16>) {
    starts.sort_unstable();
    starts.dedup();
}

/// Adds where a range begins, and what follows it.
fn bound(starts: &mut Vec<u16>, first: u16, last: u16) {
    starts.push(first);
    starts.extend(last.checked_add(1));
}

/// Adds where the ports with this name begin and end.
fn bound_by_name(starts: &mut Vec<u16>, names: &[(String, Protocol, u16)], name: &str, protocol: Protocol) {
    names.iter().filter(|(n, p, _)| n == name && *p == protocol).for_each(|(.., n)| bound(starts, *n, *n));
}

/// What is listed so far. Parties are numbers in their order: of a thousand workloads there are a
/// million pairs.
struct Listing<'a> {
    evaluator: &'a Evaluator,
    known: Known,
    ranges: Vec<PortRange>,
    rows: Vec<(u32, u32, Ports)>,
}

impl Listing<'_> {
    /// The ports on which some of the servers accept connections from some of the clients.
    fn between(&mut self, clients: &[Side<'_>], servers: &[Side<'_>]) -> Ports {
        let mut all: Option<Ports> = None;
        for (client, server) in clients.iter().flat_map(|client| servers.iter().map(move |server| (client, server))) {
            self.evaluator.allowed_ranges(client, server, &mut self.ranges);
            let ports = self.known.of(&self.ranges);
            all = Some(match all {
                Some(all) => self.known.union(all, ports),
                None => ports,
            });
        }
        all.unwrap_or_default()
    }

    fn add(&mut self, src: u32, dst: u32, ports: &Ports) {
        self.rows.push((src, dst, ports.clone()));
    }

    /// The connections, sorted, given the parties by number.
    fn connections(mut self, parties: &[Party]) -> Vec<Connection> {
        self.rows.sort_unstable();
        let party = |number: u32| parties[number as usize].clone();
        let connection = |(src, dst, ports)| Connection { src: party(src), dst: party(dst), ports };
        self.rows.into_iter().map(connection).collect()
    }
}

impl Evaluator {
    /// Every allowed connection between workloads, and between them and the outside, sorted. Nodes
    /// and pods on their network are left out: policies do not select them.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        let (groups, workloads) = self.groups();
        let sides: Vec<Side<'_>> = groups.iter().map(Side::of).collect();
        let outside: Vec<Side<'_>> = self.outside().into_iter().map(Side::address).collect();
        let blocks: Vec<(Party, Side<'_>)> = self
            .blocks()
            .into_iter()
            .map(|(block, address)| (Party::Block(block), Side::address(self.end_of_address(address))))
            .collect();
        let mut parties = vec![Party::Everywhere, Party::Outside, Party::EveryPod];
        parties.extend(blocks.iter().map(|(party, _)| party.clone()));
        parties.extend(workloads.keys().map(|name| Party::Workload(name.as_str().into())));
        parties.sort();
        parties.dedup();
        let number =
            |party: &Party| u32::try_from(parties.binary_search(party).unwrap_or_default()).unwrap_or(u32::MAX);
        let [everywhere, outside_party, every_pod] =
            [Party::Everywhere, Party::Outside, Party::EveryPod].map(|party| number(&party));
        let blocks: Vec<(u32, Side<'_>)> = blocks.into_iter().map(|(party, side)| (number(&party), side)).collect();
        let workloads: Vec<(u32, Vec<usize>)> = workloads
            .into_iter()
            .map(|(name, groups)| (number(&Party::Workload(name.into())), groups.into_iter().collect()))
            .collect();
        let mut listing = Listing { evaluator: self, known: Known::default(), ranges: Vec::new(), rows: Vec::new() };
        // Server by server, so that no more than one row of the table of all pairs is held.
        for (to, own) in &workloads {
            let own: Vec<Side<'_>> = own.iter().map(|group| sides[*group]).collect();
            let world = listing.between(&outside, &own);
            let from: Vec<Ports> = sides.iter().map(|client| listing.between(&[*client], &own)).collect();
            let clients: Vec<(u32, Ports)> = workloads
                .iter()
                .map(|(client, theirs)| {
                    let ports = theirs.iter().map(|group| from[*group].clone());
                    (*client, ports.reduce(|all, some| listing.known.union(all, some)).unwrap_or_default())
                })
                .collect();
            let everywhere_in = !world.is_empty() && clients.iter().all(|(_, ports)| ports.holds(&world));
            if !world.is_empty() {
                listing.add(if everywhere_in { everywhere } else { outside_party }, *to, &world);
            }
            let more = |ports: &Ports| !(ports.is_empty() || everywhere_in && world.holds(ports));
            let first = clients.first().map(|(_, ports)| ports);
            if let Some(ports) = first.filter(|f| clients.len() > 1 && clients.iter().all(|(_, p)| p == *f) && more(f))
            {
                listing.add(every_pod, *to, ports);
            } else {
                for (client, ports) in clients.iter().filter(|(_, ports)| more(ports)) {
                    listing.add(*client, *to, ports);
                }
            }
            for (block, there) in &blocks {
                let ports = listing.between(&[*there], &own);
                if !ports.is_empty() && !world.holds(&ports) {
                    listing.add(*block, *to, &ports);
                }
            }
            let out = listing.between(&own, &outside);
            if !out.is_empty() {
                listing.add(*to, outside_party, &out);
            }
            for (block, there) in &blocks {
                let ports = listing.between(&own, &[*there]);
                if !ports.is_empty() && !out.holds(&ports) {
                    listing.add(*to, *block, &ports);
                }
            }
        }
        listing.connections(&parties)
    }

    /// The pod as any replica like it, with what decides its ports.
    pub(super) fn group(&self, pod: u32) -> Group {
        let end = self.end_of_pod(pod).any_replica();
        let names = self.cluster().pods[pod as usize].ports.clone();
        let mut ingress = self.starts(&end, Direction::Ingress);
        if let Some(starts) = &mut ingress {
            for (protocol, name) in std::mem::take(&mut starts.names) {
                bound_by_name(&mut starts.numbers[slot(protocol)], &names, &name, protocol);
            }
            starts.numbers.iter_mut().for_each(in_order);
        }
        Group { end, names, ingress, egress: self.starts(&end, Direction::Egress) }
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
            // Between which addresses a connection runs depends on the families, and which is
            // first.
            let families: Vec<bool> = end.addresses().map(|address| address.is_ipv6()).collect();
            let group = *known.entry((end.class, families, within)).or_insert_with(|| {
                groups.push(self.group(index));
                groups.len() - 1
            });
            workloads.entry(pod.workload_name()).or_default().insert(group);
        }
        (groups, workloads)
    }

    /// Where the ports begin that the policies about this end name; `None`: there is none, and
    /// nothing isolates it.
    fn starts(&self, end: &End, direction: Direction) -> Option<Starts> {
        let asked = self.asked(end, direction);
        if asked.is_empty() && !self.isolated(end, direction) {
            return None;
        }
        let mut starts = Starts { numbers: [(); PROTOCOLS.len()].map(|()| vec![1]), names: BTreeSet::new() };
        let rules = asked.iter().flat_map(|p| self.forms()[*p as usize].rules(direction));
        for port in rules.flat_map(|rule| &rule.ports) {
            match &port.port {
                PortMatch::Any => {}
                PortMatch::Range { first, last } => bound(&mut starts.numbers[slot(port.protocol)], *first, *last),
                PortMatch::Named(name) => drop(starts.names.insert((port.protocol, name.clone()))),
            }
        }
        starts.numbers.iter_mut().for_each(in_order);
        Some(starts)
    }

    /// The ports that `server` accepts from `client`.
    pub(super) fn allowed(&self, client: &Side<'_>, server: &Side<'_>) -> Ports {
        let mut ranges = Vec::new();
        self.allowed_ranges(client, server, &mut ranges);
        Ports::of(&ranges)
    }

    /// Likewise, in place of what is in `ranges`.
    fn allowed_ranges(&self, client: &Side<'_>, server: &Side<'_>, ranges: &mut Vec<PortRange>) {
        ranges.clear();
        let egress = client.group.and_then(|group| group.egress.as_ref());
        let ingress = server.group.and_then(|group| group.ingress.as_ref());
        if egress.is_none() && ingress.is_none() {
            ranges.extend(ports::ALL);
            return;
        }
        let mut both = Vec::new();
        for protocol in PROTOCOLS {
            let starts = match (egress, ingress) {
                (None, Some(only)) => &only.numbers[slot(protocol)],
                (Some(only), None) if only.names.is_empty() => &only.numbers[slot(protocol)],
                _ => {
                    both.clear();
                    for starts in [egress, ingress].into_iter().flatten() {
                        both.extend(&starts.numbers[slot(protocol)]);
                    }
                    let names = server.group.map_or(&[][..], |group| &group.names);
                    for (_, name) in egress.iter().flat_map(|e| &e.names).filter(|(p, _)| *p == protocol) {
                        bound_by_name(&mut both, names, name, protocol);
                    }
                    in_order(&mut both);
                    &both
                }
            };
            for (at, first) in starts.iter().enumerate() {
                if self.allows(&client.end, &server.end, protocol, *first) {
                    ports::push(ranges, protocol, *first, starts.get(at + 1).map_or(u16::MAX, |next| next - 1));
                }
            }
        }
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

    /// Each block that is not every address, and an address in it that is in no narrower one, in no
    /// exception and nobody's of the cluster.
    fn blocks(&self) -> Vec<(String, IpAddr)> {
        let blocks = self.ip_blocks();
        let ranges: BTreeSet<IpNet> = blocks.iter().map(|block| block.cidr).collect();
        let bounds = blocks.iter().flat_map(|block| std::iter::once(block.cidr).chain(block.except.iter().copied()));
        let free = |address| !self.owners.contains_key(&address);
        let spans = Spans::between(&bounds.collect(), self.owners.len(), |span| span.find(free));
        let mut within: BTreeMap<IpNet, Vec<IpAddr>> = BTreeMap::new();
        for address in spans.ends() {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            let holding = (1..=longest).rev().filter_map(|length| Some(IpNet::new(*address, length).ok()?.trunc()));
            if let Some(narrowest) = holding.filter_map(|range| ranges.get(&range)).next() {
                within.entry(*narrowest).or_default().push(*address);
            }
        }
        let mut found = Vec::new();
        for block in blocks.iter().filter(|block| block.cidr.prefix_len() > 0) {
            let own = within.get(&block.cidr).into_iter().flatten().find(|address| block.contains(**address));
            found.extend(own.map(|address| (block.cidr.to_string(), *address)));
        }
        found.dedup();
        found
    }
}
