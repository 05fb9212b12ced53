//! The proof of exceptions, as their texts would be read by the API server.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use guardrail_graph::{Peer, WorkloadRef};

use super::{Candidate, ExceptionEnd, text};
use crate::{
    evaluate::{End, Evaluator},
    generate::Context,
    model::{Direction, Protocol},
    read,
};

/// A port that nobody serves: a rule without ports is found out.
const NOBODYS_PORT: u16 = 9;

/// Which sides fail: their policy does not read back, or beside those in force it denies something
/// that they allow, lets its own connections not pass, or allows another pair of workloads.
pub(super) fn failing(context: &Context<'_>, in_force: &Evaluator, candidates: &[Candidate<'_>]) -> BTreeSet<usize> {
    if candidates.is_empty() {
        return BTreeSet::new();
    }
    let (mut policies, mut forms, mut wrong) = (Vec::new(), Vec::new(), BTreeSet::new());
    for candidate in candidates {
        match read::policies(&candidate.policy.name, text(&candidate.policy, context.options).as_bytes()) {
            Ok(set) if set.policies.len() + set.forms.len() == 1 => {
                policies.extend(set.policies);
                forms.extend(set.forms);
            }
            _ => {
                wrong.insert(candidate.side);
            }
        }
    }
    let after = in_force.beside(policies, forms);
    let opened = Opened::new(context, in_force, candidates);
    let worlds = [in_force, &after].map(|evaluator| World::new(context, evaluator));
    for candidate in candidates {
        let ports = ports(context, candidate);
        let holds = context.alike(candidate.workload).iter().all(|own| {
            let may = opened.by(candidate.direction, own);
            let pairs = Pairs { worlds: &worlds, own, direction: candidate.direction };
            context.body.workloads.iter().all(|entry| pairs.are_fine(&entry.workload, &ports, may))
        });
        // And what it is for.
        let passes = match candidate.other {
            ExceptionEnd::Range(_) => true,
            ExceptionEnd::Workload(other) => {
                let pairs = Pairs { worlds: &worlds, own: candidate.workload, direction: candidate.direction };
                candidate.opening.ports.iter().all(|port| pairs.passes_all(other, *port))
            }
        };
        if !(holds && passes) {
            wrong.insert(candidate.side);
        }
    }
    wrong
}

/// Who, and on which port.
type Ports = BTreeSet<(WorkloadRef, Protocol, u16)>;

/// What the exceptions are meant to open: by direction and workload, to whom on which port.
struct Opened {
    all: BTreeMap<(Direction, WorkloadRef), Ports>,
}

impl Opened {
    fn new(context: &Context<'_>, in_force: &Evaluator, candidates: &[Candidate<'_>]) -> Self {
        let mut all: BTreeMap<_, Ports> = BTreeMap::new();
        for candidate in candidates {
            let others: BTreeSet<WorkloadRef> = match candidate.other {
                ExceptionEnd::Workload(workload) => context.alike(workload),
                ExceptionEnd::Range(range) => {
                    let cluster = in_force.cluster();
                    let has = |pods: &Vec<u32>| {
                        pods.iter().flat_map(|pod| &cluster.pods[*pod as usize].addresses).any(|a| range.contains(a))
                    };
                    cluster.workloads.iter().filter(|(_, pods)| has(pods)).map(|(w, _)| w.clone()).collect()
                }
            };
            for own in context.alike(candidate.workload) {
                let opened = all.entry((candidate.direction, own)).or_default();
                for (protocol, port) in &candidate.opening.ports {
                    opened.extend(others.iter().map(|other| (other.clone(), *protocol, *port)));
                }
            }
        }
        Self { all }
    }

    /// Whom exceptions are meant to open to this workload, if any.
    fn by(&self, direction: Direction, own: &WorkloadRef) -> Option<&Ports> {
        self.all.get(&(direction, own.clone()))
    }
}

/// One of two worlds, with the ends of each workload.
struct World<'a> {
    evaluator: &'a Evaluator,
    ends: HashMap<&'a WorkloadRef, Vec<End>>,
}

impl<'a> World<'a> {
    fn new(context: &Context<'a>, evaluator: &'a Evaluator) -> Self {
        let ends = |workload: &'a WorkloadRef| evaluator.peer_ends(&Peer::Workload(workload.clone()), true).ok();
        let workloads = context.body.workloads.iter().map(|entry| &entry.workload);
        Self { evaluator, ends: workloads.filter_map(|workload| Some((workload, ends(workload)?))).collect() }
    }

    fn ends(&self, workload: &WorkloadRef) -> &[End] {
        self.ends.get(workload).map_or(&[], Vec::as_slice)
    }
}

/// The world before and after, and the side that an exception is about.
struct Pairs<'a> {
    worlds: &'a [World<'a>; 2],
    own: &'a WorkloadRef,
    direction: Direction,
}

impl Pairs<'_> {
    /// Whether all pods of the two workloads have at the ports what they had, and more only if it
    /// `may` be: a range may hold some pods of a workload.
    fn are_fine(&self, other: &WorkloadRef, ports: &BTreeSet<(Protocol, u16)>, may: Option<&Ports>) -> bool {
        let [before, after] = self.worlds;
        let may = |(protocol, port)| may.is_some_and(|may| may.contains(&(other.clone(), protocol, port)));
        ports.iter().all(|port| {
            self.ends(before, other).zip(self.ends(after, other)).all(|(old, new)| {
                let (old, new) = (self.passes(before, old, *port), self.passes(after, new, *port));
                new == old || new && may(*port)
            })
        })
    }

    /// Whether all pods of the two workloads may connect afterwards.
    fn passes_all(&self, other: &WorkloadRef, port: (Protocol, u16)) -> bool {
        let [_, after] = self.worlds;
        self.ends(after, other).all(|ends| self.passes(after, ends, port))
    }

    /// Every client with every server.
    fn ends<'w>(&self, world: &'w World<'_>, other: &WorkloadRef) -> impl Iterator<Item = [&'w End; 2]> + use<'w> {
        let (own, other) = (world.ends(self.own), world.ends(other));
        let [clients, servers] = if self.direction == Direction::Ingress { [other, own] } else { [own, other] };
        clients.iter().flat_map(move |client| servers.iter().map(move |server| [client, server]))
    }

    fn passes(&self, world: &World<'_>, [client, server]: [&End; 2], (protocol, port): (Protocol, u16)) -> bool {
        world.evaluator.side_allows(self.direction, client, server, protocol, port)
    }
}

/// The exception's own ports, those that its workload was seen with, and one that nobody serves.
fn ports(context: &Context<'_>, candidate: &Candidate<'_>) -> BTreeSet<(Protocol, u16)> {
    let is_own = |peer: &Peer| peer.workload() == Some(candidate.workload);
    let seen = context.body.edges.iter().filter(|edge| is_own(&edge.client.peer) || is_own(&edge.server.peer));
    let nobodys = [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, NOBODYS_PORT));
    seen.map(|edge| (edge.protocol, edge.port)).chain(candidate.opening.ports.iter().copied()).chain(nobodys).collect()
}
