//! The proof of exceptions, as their texts would be read by the API server.

use std::collections::{BTreeMap, BTreeSet};

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
    for candidate in candidates {
        let pairs = Pairs { before: in_force, after: &after, direction: candidate.direction };
        let ports = ports(context, candidate);
        let holds = context.alike(candidate.workload).iter().all(|own| {
            context.body.workloads.iter().all(|entry| {
                ports.iter().all(|port| {
                    let may = opened.has(candidate.direction, own, &entry.workload, *port);
                    pairs.are_fine(own, &entry.workload, *port, may)
                })
            })
        });
        // And what it is for.
        let passes = match candidate.other {
            ExceptionEnd::Range(_) => true,
            ExceptionEnd::Workload(other) => candidate.opening.ports.iter().all(|port| {
                pairs.ends(&after, candidate.workload, other).iter().all(|ends| pairs.passes(&after, ends, *port))
            }),
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

    fn has(
        &self,
        direction: Direction,
        own: &WorkloadRef,
        other: &WorkloadRef,
        (protocol, port): (Protocol, u16),
    ) -> bool {
        self.all.get(&(direction, own.clone())).is_some_and(|opened| opened.contains(&(other.clone(), protocol, port)))
    }
}

/// Two worlds, and the side that an exception is about.
struct Pairs<'a> {
    before: &'a Evaluator,
    after: &'a Evaluator,
    direction: Direction,
}

impl Pairs<'_> {
    /// Whether all pods of the two workloads have at the port what they had, and more only if it
    /// `may` be: a range may hold some pods of a workload.
    fn are_fine(&self, own: &WorkloadRef, other: &WorkloadRef, port: (Protocol, u16), may: bool) -> bool {
        let (before, after) = (self.ends(self.before, own, other), self.ends(self.after, own, other));
        before.iter().zip(&after).all(|(before, after)| {
            let (before, after) = (self.passes(self.before, before, port), self.passes(self.after, after, port));
            after == before || after && may
        })
    }

    fn ends(&self, evaluator: &Evaluator, own: &WorkloadRef, other: &WorkloadRef) -> Vec<(End, End)> {
        let (client, server) = if self.direction == Direction::Ingress { (other, own) } else { (own, other) };
        let ends = |workload: &WorkloadRef, is_client: bool| {
            evaluator.peer_ends(&Peer::Workload(workload.clone()), is_client).unwrap_or_default()
        };
        let (clients, servers) = (ends(client, true), ends(server, false));
        clients.iter().flat_map(|client| servers.iter().map(move |server| (*client, *server))).collect()
    }

    fn passes(&self, evaluator: &Evaluator, (client, server): &(End, End), (protocol, port): (Protocol, u16)) -> bool {
        let verdict = evaluator.evaluate(client, server, protocol, port);
        if self.direction == Direction::Ingress { verdict.ingress.allows() } else { verdict.egress.allows() }
    }
}

/// The exception's own ports, those that its workload was seen with, and one that nobody serves.
fn ports(context: &Context<'_>, candidate: &Candidate<'_>) -> BTreeSet<(Protocol, u16)> {
    let is_own = |peer: &Peer| peer.workload() == Some(candidate.workload);
    let seen = context.body.edges.iter().filter(|edge| is_own(&edge.client.peer) || is_own(&edge.server.peer));
    let nobodys = [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, NOBODYS_PORT));
    seen.map(|edge| (edge.protocol, edge.port)).chain(candidate.opening.ports.iter().copied()).chain(nobodys).collect()
}
