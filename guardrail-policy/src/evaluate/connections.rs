//! All connections that policies allow: who may reach whom, on which ports, and what the world
//! outside may reach.
//!
//! Of every pair of workloads the rules that may be about both are found once, and judged at one
//! port of each interval between the ports that they name, so the answer holds for all ports. Pods
//! that no policy tells apart are judged once, and servers on several threads.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
    thread,
};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::{
    End, Evaluator, Exemption,
    asked::{Asked, Other},
    common_addresses,
    difference::spans::Spans,
    ends::{self, Relation},
    tiers::Narrowed,
};
use crate::model::{Direction, IpBlock, Protocol};

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

fn slot(protocol: Protocol) -> Option<usize> {
    PROTOCOLS.iter().position(|own| *own == protocol)
}

fn in_order(starts: &mut Vec<u16>) {
    starts.sort_unstable();
    starts.dedup();
}

/// Adds where a range begins, and what follows it: at these ports what rules say may change.
fn bound(starts: &mut Vec<u16>, first: u16, last: u16) {
    starts.push(first);
    starts.extend(last.checked_add(1));
}

/// Fewer are not worth a thread.
const FEW_WORKLOADS: usize = 64;

/// Who may be an end of a connection. Parties are numbers in their order: of a thousand workloads
/// there are a million pairs.
struct World {
    /// Pods that no policy tells apart.
    groups: Vec<End>,
    /// Addresses that stand for the world.
    outside: Vec<End>,
    /// Those that stand for a block.
    blocks: Vec<(u32, End)>,
    /// The groups of each workload.
    workloads: Vec<(u32, Vec<usize>)>,
    everywhere: u32,
    outside_party: u32,
    every_pod: u32,
}

/// What is listed so far.
struct Listing<'a> {
    evaluator: &'a Evaluator,
    world: &'a World,
    known: Known,
    ranges: Vec<PortRange>,
    rows: Vec<(u32, u32, Ports)>,
}

impl<'a> Listing<'a> {
    fn new(evaluator: &'a Evaluator, world: &'a World) -> Self {
        Self { evaluator, world, known: Known::default(), ranges: Vec::new(), rows: Vec::new() }
    }

    /// The ports on which some of the servers accept connections from some of the clients.
    fn between(&mut self, clients: &[End], servers: &[End]) -> Ports {
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

    /// The connections to and from each of these workloads and the outside, and from the others to
    /// it. Server by server, so that no more than one row of the table of all pairs is held.
    fn rows_of(mut self, servers: &[(u32, Vec<usize>)]) -> Vec<(u32, u32, Ports)> {
        let World { groups, outside, blocks, workloads, everywhere, outside_party, every_pod } = self.world;
        for (to, own) in servers {
            let own: Vec<End> = own.iter().map(|group| groups[*group]).collect();
            let world = self.between(outside, &own);
            let from: Vec<Ports> = groups.iter().map(|client| self.between(&[*client], &own)).collect();
            let clients: Vec<(u32, Ports)> = workloads
                .iter()
                .map(|(client, theirs)| {
                    let ports = theirs.iter().map(|group| from[*group].clone());
                    (*client, ports.reduce(|all, some| self.known.union(all, some)).unwrap_or_default())
                })
                .collect();
            let everywhere_in = !world.is_empty() && clients.iter().all(|(_, ports)| ports.holds(&world));
            if !world.is_empty() {
                self.add(if everywhere_in { *everywhere } else { *outside_party }, *to, &world);
            }
            let more = |ports: &Ports| !(ports.is_empty() || everywhere_in && world.holds(ports));
            let first = clients.first().map(|(_, ports)| ports);
            if let Some(ports) = first.filter(|f| clients.len() > 1 && clients.iter().all(|(_, p)| p == *f) && more(f))
            {
                self.add(*every_pod, *to, ports);
            } else {
                for (client, ports) in clients.iter().filter(|(_, ports)| more(ports)) {
                    self.add(*client, *to, ports);
                }
            }
            for (block, there) in blocks {
                let ports = self.between(&[*there], &own);
                if !ports.is_empty() && !world.holds(&ports) {
                    self.add(*block, *to, &ports);
                }
            }
            let out = self.between(&own, outside);
            if !out.is_empty() {
                self.add(*to, *outside_party, &out);
            }
            for (block, there) in blocks {
                let ports = self.between(&own, &[*there]);
                if !ports.is_empty() && !out.holds(&ports) {
                    self.add(*to, *block, &ports);
                }
            }
        }
        self.rows
    }
}

impl Evaluator {
    /// Every allowed connection between workloads, and between them and the outside, sorted. Nodes
    /// and pods on their network are left out: policies do not select them.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        let (groups, workloads) = self.groups();
        let blocks: Vec<(Party, End)> = self
            .blocks()
            .into_iter()
            .map(|(block, address)| (Party::Block(block), self.end_of_address(address)))
            .collect();
        let mut parties = vec![Party::Everywhere, Party::Outside, Party::EveryPod];
        parties.extend(blocks.iter().map(|(party, _)| party.clone()));
        parties.extend(workloads.keys().map(|name| Party::Workload(name.as_str().into())));
        parties.sort();
        parties.dedup();
        let number =
            |party: &Party| u32::try_from(parties.binary_search(party).unwrap_or_default()).unwrap_or(u32::MAX);
        let world = World {
            groups,
            outside: self.outside(),
            blocks: blocks.into_iter().map(|(party, end)| (number(&party), end)).collect(),
            workloads: workloads
                .into_iter()
                .map(|(name, groups)| (number(&Party::Workload(name.into())), groups.into_iter().collect()))
                .collect(),
            everywhere: number(&Party::Everywhere),
            outside_party: number(&Party::Outside),
            every_pod: number(&Party::EveryPod),
        };
        // Servers are independent of each other; sorted in the end, the rows are the same whoever
        // found them.
        let threads = match world.workloads.len() {
            ..FEW_WORKLOADS => 1,
            many => thread::available_parallelism().map_or(1, usize::from).min(many / FEW_WORKLOADS + 1),
        };
        let share = world.workloads.len().div_ceil(threads).max(1);
        let mut rows: Vec<(u32, u32, Ports)> = thread::scope(|scope| {
            let list = |servers| Listing::new(self, &world).rows_of(servers);
            let mut shares = world.workloads.chunks(share);
            let own = shares.next().unwrap_or_default();
            let others: Vec<_> = shares.map(|servers| scope.spawn(move || list(servers))).collect();
            let mut rows = list(own);
            for other in others {
                rows.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            rows
        });
        rows.sort_unstable();
        let party = |number: u32| parties[number as usize].clone();
        let connection = |(src, dst, ports)| Connection { src: party(src), dst: party(dst), ports };
        rows.into_iter().map(connection).collect()
    }

    /// Groups of live pods that policies can select, and which of them each workload has.
    fn groups(&self) -> (Vec<End>, BTreeMap<String, BTreeSet<usize>>) {
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
                groups.push(end);
                groups.len() - 1
            });
            workloads.entry(pod.workload_name()).or_default().insert(group);
        }
        (groups, workloads)
    }

    /// The sides that have a say in a connection between these ends, on whichever port: it is
    /// allowed where all of them let it pass, as [`Self::allows`] says.
    fn sides(&self, src: &End, dst: &End) -> Vec<Narrowed<'_>> {
        let (src_address, dst_address) = common_addresses(src, dst);
        let mut sides = Vec::new();
        let mut add = |direction, relation| {
            let (own, end, address) = match direction {
                Direction::Egress => (src, dst, dst_address),
                Direction::Ingress => (dst, src, src_address),
            };
            let other = Other { class: end.class, address, kinds: end.kinds(relation), node: end.node_index() };
            sides.extend(self.compiled.narrowed(self.compiled.subject(own), other, direction));
        };
        let both = |relation, add: &mut dyn FnMut(Direction, Relation)| {
            add(Direction::Egress, relation);
            add(Direction::Ingress, relation);
        };
        match (ends::exemption(src, dst), &self.compiled.cilium) {
            (Some(_), None) | (Some(Exemption::Itself), _) => {}
            (None, None) => both(Relation::Remote, &mut add),
            (_, Some(options)) => match ends::relation(src, dst) {
                Relation::Own if src.is_node() && options.allow_localhost => add(Direction::Egress, Relation::Own),
                Relation::Unknown => {
                    both(Relation::Remote, &mut add);
                    both(Relation::Own, &mut add);
                }
                relation => both(relation, &mut add),
            },
        }
        sides
    }

    /// The ports that `server` accepts from `client`.
    pub(super) fn allowed(&self, client: &End, server: &End) -> Ports {
        let mut ranges = Vec::new();
        self.allowed_ranges(client, server, &mut ranges);
        Ports::of(&ranges)
    }

    /// Likewise, in place of what is in `ranges`. Whom the rules are about is asked once, and of
    /// those that are about the other end one port of each interval between the ports that they
    /// name.
    fn allowed_ranges(&self, client: &End, server: &End, ranges: &mut Vec<PortRange>) {
        ranges.clear();
        let sides = self.sides(client, server);
        if sides.is_empty() {
            ranges.extend(ports::ALL);
            return;
        }
        let rules = &self.compiled.rules;
        let mut starts = [(); PROTOCOLS.len()].map(|()| vec![1]);
        for rule in sides.iter().flat_map(Narrowed::rules) {
            rules.for_each_range(rule, server.class, |protocol, first, last| {
                if let Some(slot) = slot(protocol) {
                    bound(&mut starts[slot], first, last);
                }
            });
        }
        for (protocol, mut starts) in PROTOCOLS.into_iter().zip(starts) {
            in_order(&mut starts);
            for (at, first) in starts.iter().enumerate() {
                let asked = |direction| Asked { direction, protocol, port: *first, server: server.class };
                if sides.iter().all(|side| self.compiled.lets_pass(side, &asked(side.direction))) {
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
