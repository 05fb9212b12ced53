//! What a set of policies does to a set of flows: who is newly isolated, which policies and rules
//! do nothing.
//!
//! [`Check`] judges flow by flow and keeps account; [`Check::finish`] gives the [`Findings`].

use std::collections::{BTreeSet, HashMap, HashSet};

use guardrail_graph::{Peer, WorkloadRef, snapshot::EdgeRecord};
use serde::Serialize;

use crate::{
    evaluate::{EdgeVerdict, End, Evaluator, RuleRef, Verdict, edge::UnknownPeer},
    model::{Direction, Location, Protocol, tier},
};

/// Something that is isolated by the policies under test and was not before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NewlyIsolated {
    /// Workload (`namespace/Owner/name`) or pod (`namespace/pod`).
    pub subject: String,
    /// In which direction.
    pub direction: Direction,
    /// The policies that isolate it: `namespace/name`.
    pub policies: Vec<String>,
    /// Judged flows of this direction: how many are allowed.
    pub allowed: u64,
    /// And how many are denied, by either side.
    pub denied: u64,
}

/// A policy, peer or rule that does nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Idle {
    /// `namespace/policy`, with `#rule` if a rule is meant.
    pub name: String,
    /// Which rules, if a rule is meant.
    pub direction: Option<Direction>,
    /// Where it stands.
    pub location: Option<Location>,
}

/// What was found beside the verdicts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Newly isolated workloads or pods, sorted.
    pub newly_isolated: Vec<NewlyIsolated>,
    /// Policies whose podSelector matches no live pod.
    pub select_nothing: Vec<Idle>,
    /// Rules with a peer whose selectors match no live pod.
    pub peers_match_nothing: Vec<Idle>,
    /// Rules that no judged flow used.
    pub unused_rules: Vec<Idle>,
}

/// Judges flows and keeps account.
#[derive(Debug)]
pub struct Check<'a> {
    evaluator: &'a Evaluator,
    before: &'a Evaluator,
    used: HashSet<(Direction, RuleRef)>,
    judged: HashMap<(Subject, Direction), (u64, u64)>,
}

/// Whose flows are counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Subject {
    /// Index in the cluster.
    Pod(u32),
    Workload(WorkloadRef),
}

impl<'a> Check<'a> {
    /// `before` holds the policies that are in force already, over the same cluster.
    #[must_use]
    pub fn new(evaluator: &'a Evaluator, before: &'a Evaluator) -> Self {
        Self { evaluator, before, used: HashSet::new(), judged: HashMap::new() }
    }

    /// Judges one flow between pods or addresses.
    pub fn flow(&mut self, src: &End, dst: &End, protocol: Protocol, port: u16) -> Verdict {
        let verdict = self.evaluator.evaluate(src, dst, protocol, port);
        self.uses(&verdict);
        self.judged([src, dst], verdict.allowed());
        verdict
    }

    /// Takes down the rules that a verdict rests on.
    pub fn uses(&mut self, verdict: &Verdict) {
        self.used.extend(verdict.egress.rules().iter().map(|r| (Direction::Egress, *r)));
        self.used.extend(verdict.ingress.rules().iter().map(|r| (Direction::Ingress, *r)));
    }

    /// Counts a flow between two ends that was judged elsewhere.
    pub fn judged(&mut self, [src, dst]: [&End; 2], allowed: bool) {
        for (end, direction) in [(src, Direction::Egress), (dst, Direction::Ingress)] {
            if let Some(pod) = end.pod() {
                self.account(Subject::Pod(pod), direction, allowed);
            }
        }
    }

    /// Judges one edge of a snapshot.
    ///
    /// # Errors
    /// If an end cannot be judged.
    pub fn edge(&mut self, edge: &EdgeRecord) -> Result<EdgeVerdict, UnknownPeer> {
        let verdict = self.evaluator.evaluate_edge(edge)?;
        self.used.extend(verdict.egress_rules.iter().map(|r| (Direction::Egress, *r)));
        self.used.extend(verdict.ingress_rules.iter().map(|r| (Direction::Ingress, *r)));
        for (peer, direction) in [(&*edge.client.peer, Direction::Egress), (&*edge.server.peer, Direction::Ingress)] {
            if let Peer::Workload(workload) = peer {
                self.account(Subject::Workload(workload.clone()), direction, verdict.allowed());
            }
        }
        Ok(verdict)
    }

    fn account(&mut self, subject: Subject, direction: Direction, allowed: bool) {
        let counts = self.judged.entry((subject, direction)).or_default();
        *(if allowed { &mut counts.0 } else { &mut counts.1 }) += 1;
    }

    /// The findings about everything judged so far.
    #[must_use]
    pub fn finish(self) -> Findings {
        let mut findings = Findings { newly_isolated: self.newly_isolated(), ..Findings::default() };
        for (policy, index) in self.evaluator.forms().iter().zip(0..) {
            let name = policy.key();
            let nodes = matches!(policy.subject, tier::Subject::Nodes(_));
            if !nodes && self.evaluator.selected_pods(index).is_empty() {
                let location = policy.at(policy.subject_line);
                findings.select_nothing.push(Idle { name, direction: None, location });
                continue;
            }
            for direction in Direction::BOTH {
                for (rule, number) in policy.rules(direction).iter().zip(0..) {
                    let idle = |line| Idle {
                        name: format!("{name}#{}", rule.label),
                        direction: Some(direction),
                        location: policy.at(line),
                    };
                    let peers = rule.peers.iter().flatten().zip(&rule.peer_lines);
                    let empty = peers.filter(|(peer, _)| self.evaluator.peer_pods(peer) == Some(0));
                    findings.peers_match_nothing.extend(empty.map(|(_, line)| idle(*line)));
                    if !self.used.contains(&(direction, RuleRef { policy: index, rule: number })) {
                        findings.unused_rules.push(idle(rule.line));
                    }
                }
            }
        }
        findings.select_nothing.sort();
        findings.peers_match_nothing.sort();
        findings.unused_rules.sort();
        findings
    }

    fn newly_isolated(&self) -> Vec<NewlyIsolated> {
        let mut newly = Vec::new();
        let cluster = self.evaluator.cluster();
        let subjects: Vec<(Subject, Vec<u32>)> = if cluster.workloads.is_empty() {
            let pods: BTreeSet<u32> = self
                .judged
                .keys()
                .filter_map(|(subject, _)| if let Subject::Pod(pod) = subject { Some(*pod) } else { None })
                .collect();
            pods.into_iter().map(|pod| (Subject::Pod(pod), vec![pod])).collect()
        } else {
            cluster
                .workloads
                .iter()
                .map(|(workload, pods)| (Subject::Workload(workload.clone()), pods.clone()))
                .collect()
        };
        for (subject, pods) in subjects {
            for direction in Direction::BOTH {
                let mut policies = BTreeSet::new();
                for pod in &pods {
                    let now = self.evaluator.isolating(&self.evaluator.end_of_pod(*pod), direction);
                    if self.before.isolating(&self.before.end_of_pod(*pod), direction).is_empty() {
                        policies.extend(now.into_iter().map(|p| self.evaluator.forms()[p as usize].key()));
                    }
                }
                if !policies.is_empty() {
                    let (allowed, denied) = self.judged.get(&(subject.clone(), direction)).copied().unwrap_or_default();
                    let subject = match &subject {
                        Subject::Pod(pod) => {
                            let known = &cluster.pods[*pod as usize];
                            format!("{}/{}", known.namespace, known.name)
                        }
                        Subject::Workload(workload) => workload.to_string(),
                    };
                    newly.push(NewlyIsolated {
                        subject,
                        direction,
                        policies: policies.into_iter().collect(),
                        allowed,
                        denied,
                    });
                }
            }
        }
        newly.sort();
        newly
    }
}
