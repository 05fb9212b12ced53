//! Which policies a phase writes, and which rules they hold (docs/semantics.md part C).

mod left_out;
mod meant;
mod rules;
mod sensitive;
mod unseen;

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{
    Peer, WorkloadRef,
    snapshot::{EdgeRecord, LabelSelector, WorkloadEntry},
};

use super::{
    Announced, Decision, Phase, Plan, PlannedPolicy, PlannedRule, PortRef, Problem, ProblemKind, Purpose, RulePeer,
    RulePort,
    completeness::{Completeness, NamespaceVerdict},
    context::{Context, single},
    dns::Dns,
    edges::{EdgeUse, Need, callee, classify},
    names,
    plan::RuleSet,
    subjects::Subject,
    unmatched,
    window::{self, NamespaceWindow},
};
use crate::model::Direction;
use meant::Meant;

/// What to do where a node was not observed.
const UNOBSERVED: &str =
    "observe longer or on every node, say with --unobservable-nodes SELECTOR which nodes nobody can observe";

/// Which edges a rule rests on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleEvidence {
    /// Index of the policy in [`Plan::policies`].
    pub policy: usize,
    /// Which list of rules.
    pub direction: Direction,
    /// Index of the rule.
    pub rule: usize,
    /// Indices of edges in the snapshot, sorted.
    pub edges: Vec<usize>,
}

/// Which edge asks for which peer on which port.
type Support = Vec<(RulePeer, RulePort, usize)>;

/// Which edges one rule of a policy rests on.
type Rested = (Direction, usize, Vec<usize>);

/// Rules of one direction while they are collected.
#[derive(Default)]
struct Draft {
    rules: RuleSet,
    support: Support,
    /// Host-network workloads whose nodes are allowed already, and on which ports.
    hosts: BTreeSet<(String, BTreeSet<RulePort>)>,
    /// External servers are allowed by name where one is known.
    by_name: bool,
    notes: BTreeSet<String>,
}

/// A policy but for its rules.
struct Frame {
    name: String,
    purpose: Purpose,
    phase: Phase,
    subject: LabelSelector,
}

/// Whose ingress the policies of workloads close.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ingress {
    All,
    Sensitive,
    SensitiveAndShared,
}

impl Frame {
    /// For all pods of the namespace.
    fn of_namespace(name: &str, purpose: Purpose, phase: Phase) -> Self {
        Self { name: name.to_owned(), purpose, phase, subject: LabelSelector::default() }
    }
}

/// The rules of a policy; a direction without a draft stays open.
struct Drafts {
    ingress: Option<Draft>,
    egress: Option<Draft>,
}

impl Draft {
    fn allow(&mut self, peers: impl IntoIterator<Item = RulePeer>, ports: &BTreeSet<RulePort>, edges: &[usize]) {
        for peer in peers {
            for port in ports {
                self.support.extend(edges.iter().map(|edge| (peer.clone(), port.clone(), *edge)));
            }
            self.rules.allow(peer, ports.iter().cloned());
        }
    }
}

/// Where the export stands while it is made.
struct Builder<'a> {
    context: &'a Context<'a>,
    uses: Vec<EdgeUse>,
    completeness: Completeness<'a>,
    /// Namespaces whose nodes were not observed together for long enough.
    short: BTreeSet<String>,
    dns: Dns,
    meant: Meant,
    /// The whole export is incomplete, whatever the single namespaces are.
    whole: Option<String>,
    /// With what the rules of each rest on.
    policies: Vec<(PlannedPolicy, Vec<Rested>)>,
    closed_without_evidence: BTreeSet<WorkloadRef>,
    inexpressible: BTreeSet<usize>,
    announced: Announced,
    problems: BTreeSet<Problem>,
    warnings: BTreeSet<String>,
    inbound: BTreeMap<&'a WorkloadRef, Vec<usize>>,
    outbound: BTreeMap<&'a WorkloadRef, Vec<usize>>,
}

/// The edges that each of these rules rests on, for those that rest on any.
fn rest(rules: &[PlannedRule], support: &Support) -> impl Iterator<Item = (usize, Vec<usize>)> + use<> {
    let mut by_rule = vec![Vec::new(); rules.len()];
    for (peer, port, edge) in support {
        let allows =
            |rule: &PlannedRule| rule.peers.binary_search(peer).is_ok() && rule.ports.binary_search(port).is_ok();
        if let Some(rule) = rules.iter().position(allows) {
            by_rule[rule].push(*edge);
        }
    }
    by_rule.into_iter().enumerate().filter(|(_, edges)| !edges.is_empty()).map(|(rule, mut edges)| {
        edges.sort_unstable();
        edges.dedup();
        edges.shrink_to_fit();
        (rule, edges)
    })
}

/// What a reader must know of workloads that share a policy.
fn one_subject(subject: &Subject<'_>) -> String {
    let members: Vec<String> = subject.members.iter().map(ToString::to_string).collect();
    format!("no label tells {} apart: one policy allows what any of them needs", members.join(" and "))
}

/// Decides everything.
pub(crate) fn decide(context: &Context<'_>) -> Decision {
    let edges = &context.body.edges;
    let uses: Vec<EdgeUse> = edges.iter().map(|edge| classify(edge, context)).collect();
    let mut inbound: BTreeMap<&WorkloadRef, Vec<usize>> = BTreeMap::new();
    let mut outbound: BTreeMap<&WorkloadRef, Vec<usize>> = BTreeMap::new();
    for (index, edge) in edges.iter().enumerate().filter(|(index, _)| uses[*index].must_be_allowed()) {
        if let Peer::Workload(server) = &*edge.server.peer {
            inbound.entry(server).or_default().push(index);
        }
        if let Peer::Workload(client) = &*edge.client.peer {
            outbound.entry(client).or_default().push(index);
        }
    }
    let completeness = Completeness::new(context);
    let verdicts = completeness.verdicts(&uses);
    let dns = Dns::in_use(context, &uses);
    let mut warnings = BTreeSet::new();
    let meant = Meant::new(context, &uses, &dns, &mut warnings);
    let mut announced = Announced::default();
    meant.announce(context, &mut announced);
    if context.options.closes_egress() || !context.options.goals.is_empty() {
        announced.dns = dns
            .servers()
            .flat_map(|(workload, protocol, port)| {
                context.alike(workload).into_iter().map(move |alike| (alike, protocol, port))
            })
            .collect();
    }
    let mut builder = Builder {
        context,
        dns,
        meant,
        uses,
        completeness,
        short: BTreeSet::new(),
        whole: None,
        policies: Vec::new(),
        closed_without_evidence: BTreeSet::new(),
        inexpressible: BTreeSet::new(),
        announced,
        problems: BTreeSet::new(),
        warnings,
        inbound,
        outbound,
    };
    builder.judge_evidence(&verdicts);
    for verdict in &verdicts {
        match context.options.phase_of(&verdict.namespace) {
            Phase::Observe if context.options.goals.contains_key(&verdict.namespace) => {
                builder.close_sensitive(&verdict.namespace);
            }
            Phase::Observe | Phase::Constrain => builder.constrain(verdict),
            Phase::DefaultDeny => builder.default_deny(verdict),
        }
    }
    builder.explain_what_has_no_policy();
    builder.warnings.extend(unmatched::warnings(context));
    builder.finish(verdicts)
}

impl<'a> Builder<'a> {
    fn judge_evidence(&mut self, verdicts: &[NamespaceVerdict]) {
        let coverage = &self.context.body.coverage;
        let options = self.context.options;
        for namespace in &options.namespaces {
            if !verdicts.iter().any(|v| v.namespace == *namespace) {
                self.warnings.insert(format!(
                    "namespace {namespace} has no workload that a policy could select: nothing is written for it"
                ));
            }
        }
        for (verdict, goal) in verdicts.iter().filter_map(|v| Some((v, options.goals.get(&v.namespace)?))) {
            if options.leaves(&verdict.namespace) {
                let message = format!("namespace {} stays as it is: others were asked for", verdict.namespace);
                self.problem(ProblemKind::LeftAlone, [verdict.namespace.as_str()], message);
                continue;
            }
            for reason in &goal.held {
                self.problem(ProblemKind::Held, [verdict.namespace.as_str()], reason.clone());
            }
        }
        let verdicts_of_all = verdicts;
        let verdicts: Vec<&NamespaceVerdict> =
            verdicts.iter().filter(|v| !options.goals.contains_key(&v.namespace)).collect();
        // Nodes that know their own pods only cannot say what ran on the others.
        let of_others = coverage.coverage.is_none() && !self.context.body.own_pods_as_of.is_empty();
        let unobserved: BTreeSet<&String> = coverage.nodes.expected.difference(&coverage.nodes.observed).collect();
        for verdict in verdicts.iter().filter(|v| !v.complete) {
            let shown: Vec<&str> = verdict.reasons.iter().take(5).map(String::as_str).collect();
            let more = verdict.reasons.len().saturating_sub(shown.len());
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            let mut hosts = self.context.covered(&verdict.namespace).flat_map(|entry| entry.pods.keys());
            let advice = if of_others {
                "which pods ran on other nodes is not known from these snapshots: give those of every node, or ask the collector"
            } else if hosts.any(|node| unobserved.contains(node)) {
                UNOBSERVED
            } else {
                "observe longer or on every node"
            };
            self.problem(
                ProblemKind::Incomplete,
                [verdict.namespace.as_str()],
                format!(
                    "the evidence for namespace {} is incomplete ({}{more}): {advice}, or accept it with --force",
                    verdict.namespace,
                    shown.join(", ")
                ),
            );
        }
        for NamespaceVerdict { namespace, .. } in &verdicts {
            let window = NamespaceWindow::new(self.context, namespace);
            if let Some(message) = window.too_short(namespace, options.phase, options.min_window) {
                self.problem(ProblemKind::ShortWindow, [namespace.as_str()], message);
                self.short.insert(namespace.clone());
            }
        }
        let is_over_time = self.completeness.is_over_time();
        if !coverage.complete && !is_over_time && options.namespaces.is_empty() && options.goals.is_empty() {
            let missing: Vec<&str> =
                coverage.nodes.expected.difference(&coverage.nodes.observed).map(String::as_str).collect();
            let why = if missing.is_empty() {
                "losses or gaps".to_owned()
            } else {
                format!("nodes not observed: {}", missing.join(", "))
            };
            self.whole = Some(why.clone());
            if verdicts.iter().all(|v| v.complete) {
                self.problem(
                    ProblemKind::Incomplete,
                    verdicts.iter().map(|v| v.namespace.as_str()),
                    format!("the snapshot is incomplete ({why}): merge every node's snapshot, say with --unobservable-nodes SELECTOR which nodes nobody can observe, choose complete namespaces with -n, or accept it with --force"),
                );
            }
        }
        self.refuse_unproven(verdicts_of_all);
        self.warn_unseen();
        if options.namespaces.is_empty() && options.goals.is_empty() && verdicts.is_empty() {
            self.warnings
                .insert("the snapshot has no workload that a policy could select: nothing is written".to_owned());
        }
    }

    fn problem<'n>(&mut self, kind: ProblemKind, namespaces: impl IntoIterator<Item = &'n str>, message: String) {
        self.problems.insert(Problem::new(kind, namespaces, message));
    }

    fn edge(&self, index: usize) -> &'a EdgeRecord {
        &self.context.body.edges[index]
    }

    /// Phase constrain: one boundary around the namespace.
    fn constrain(&mut self, verdict: &NamespaceVerdict) {
        let namespace = verdict.namespace.as_str();
        self.draw_boundary(namespace);
        for agent in self.uncalled_agents(namespace) {
            self.warnings.insert(format!(
                "nobody was seen to call guardrail's own agents: the boundary closes {agent} to scrapers of other namespaces"
            ));
        }
        let egress = self.context.options.closes_egress_of(namespace);
        if egress {
            self.close_egress(namespace);
        }
        self.allow_per_workload(namespace, Ingress::SensitiveAndShared, egress);
    }

    /// Phase default-deny: everything closed, then one policy per workload for what it needs.
    fn default_deny(&mut self, verdict: &NamespaceVerdict) {
        let namespace = verdict.namespace.as_str();
        let everything: Vec<&WorkloadEntry> = self.context.covered(namespace).collect();
        let agents = self.uncalled_agents(namespace);
        for entry in &everything {
            if !self.inbound.contains_key(&entry.workload) && !agents.contains(&&entry.workload) {
                self.closed_without_evidence.insert(entry.workload.clone());
            }
        }
        let stranded = self.stranded(namespace, &self.inbound);
        for agent in &agents {
            self.warnings.insert(format!(
                "nobody was seen to call guardrail's own agents: {agent} stays open for whoever scrapes them later, and namespace {namespace} is closed \
                 workload by workload (ingress)"
            ));
        }
        if stranded.is_empty() && agents.is_empty() {
            self.push(
                namespace,
                Frame::of_namespace(names::DENY_INGRESS, Purpose::DenyIngress, Phase::DefaultDeny),
                Drafts { ingress: Some(Draft::default()), egress: None },
                &everything,
            );
        } else {
            self.explain_sensitive(namespace);
            self.warn_stranded(namespace, &stranded, "ingress");
            if self.context.options.goals.contains_key(namespace) {
                self.refuse_stranded(namespace, &stranded);
            }
        }
        let egress = self.context.options.closes_egress_of(namespace);
        if egress {
            self.close_egress(namespace);
        }
        self.allow_per_workload(namespace, Ingress::All, egress);
    }

    fn close_egress(&mut self, namespace: &str) {
        let stranded = self.stranded(namespace, &self.outbound);
        if !stranded.is_empty() {
            self.warn_stranded(namespace, &stranded, "egress");
            return;
        }
        let mut draft = Draft::default();
        let everybodys = self.asks_of_dns(namespace);
        self.allow_dns(&mut draft, namespace, &everybodys);
        self.allow_shared(&mut draft, namespace, &self.asks_of_shared(namespace));
        let everything: Vec<&WorkloadEntry> = self.context.covered(namespace).collect();
        self.push(
            namespace,
            Frame::of_namespace(names::DENY_EGRESS, Purpose::DenyEgress, self.context.options.phase_of(namespace)),
            Drafts { ingress: None, egress: Some(draft) },
            &everything,
        );
    }

    /// The edges of a namespace's workloads to the DNS servers in use.
    fn asks_of_dns(&self, namespace: &str) -> Vec<usize> {
        let outbound = self.context.covered(namespace).filter_map(|w| self.outbound.get(&w.workload));
        outbound.flatten().copied().filter(|index| self.dns.covers(self.edge(*index))).collect()
    }

    /// The edges of a namespace's workloads to shared services.
    fn asks_of_shared(&self, namespace: &str) -> Vec<usize> {
        let outbound = self.context.covered(namespace).filter_map(|w| self.outbound.get(&w.workload));
        outbound.flatten().copied().filter(|index| self.meant.covers(self.edge(*index), self.context)).collect()
    }

    /// Whether a rule can have the names learnt that a workload of these edges asks for.
    fn learns_names(&self, namespace: &str, edges: &[usize]) -> bool {
        // An edge to a resolver that no rule can allow teaches nothing.
        let teaches = |index: &usize| {
            let edge = self.edge(*index);
            edge.port == 53
                && self.ports(edge).iter().any(|port| port.port == PortRef::Number(53))
                && !matches!(callee(edge, namespace, self.context), Need::Implicit | Need::Inexpressible(_))
        };
        !self.dns.allowed(namespace, self.context).is_empty() || edges.iter().any(teaches)
    }

    /// A name in a rule holds nothing unless the answers pass Cilium's DNS proxy: every rule that
    /// leads the same pods to a DNS server sends them there.
    fn learn_names(&self, draft: &mut Draft, namespace: &str) {
        let servers = self.dns.allowed(namespace, self.context);
        draft.rules.learn(|peer, port| {
            let is_dns = || servers.iter().any(|(server, ports)| server == peer && ports.contains(port));
            !matches!(peer, RulePeer::Name(_)) && (port.port == PortRef::Number(53) || is_dns())
        });
    }

    fn allow_dns(&mut self, draft: &mut Draft, namespace: &str, asks: &[usize]) {
        if self.dns.is_empty() {
            self.warnings.insert("no pod was seen asking for names: the egress policies hold no DNS rule".to_owned());
        }
        for (peer, ports) in self.dns.allowed(namespace, self.context) {
            let edges: Vec<usize> = asks
                .iter()
                .copied()
                .filter(|index| match callee(self.edge(*index), namespace, self.context) {
                    Need::Peers { peers, .. } => peers.contains(&peer),
                    Need::ExternalAddress(address) => single(address) == peer,
                    _ => false,
                })
                .collect();
            draft.allow([peer], &ports.into_iter().collect(), &edges);
        }
        if !self.context.options.enforcer().judges_what_was_asked() {
            return;
        }
        for index in (0..self.uses.len()).filter(|index| self.uses[*index].must_be_allowed()) {
            if self.dns.covers(self.edge(index)) {
                let edges = asks.iter().copied().filter(|ask| *ask == index).collect::<Vec<_>>();
                self.allow_services(draft, index, &edges);
            }
        }
    }

    fn allow_per_workload(&mut self, namespace: &str, ingress: Ingress, egress: bool) {
        let context = self.context;
        let named: Vec<_> = context.subjects(namespace).filter(|subject| subject.selector.is_some()).collect();
        let names = names::workload_policies(names::ALLOW, named.iter().map(|subject| subject.members[0]));
        let agents = self.uncalled_agents(namespace);
        let denied = ingress == Ingress::All && agents.is_empty() && self.stranded(namespace, &self.inbound).is_empty();
        let close_each_egress = egress && !self.stranded(namespace, &self.outbound).is_empty();
        for subject in named {
            let Some(selector) = subject.selector.clone() else { continue };
            let of_all = |edges: &BTreeMap<&WorkloadRef, Vec<usize>>| -> Vec<usize> {
                subject.members.iter().filter_map(|member| edges.get(member)).flatten().copied().collect()
            };
            let sensitive = subject.members.iter().any(|member| self.is_closed(member));
            let shared = subject.members.iter().any(|member| self.meant.shares(member));
            let whole = ingress == Ingress::All || sensitive;
            let ingress = whole || shared && ingress == Ingress::SensitiveAndShared;
            let mut inbound = Draft::default();
            if ingress {
                let others = self.share(&mut inbound, &subject.members, of_all(&self.inbound));
                if whole {
                    self.collect(&mut inbound, &others, namespace, Direction::Ingress);
                }
                if whole && !sensitive {
                    self.let_callers_in(&mut inbound, namespace);
                }
            }
            let mut outbound = Draft::default();
            if egress {
                let (dns, others): (Vec<usize>, Vec<usize>) =
                    of_all(&self.outbound).into_iter().partition(|index| self.dns.covers(self.edge(*index)));
                let (shared, others): (Vec<usize>, Vec<usize>) =
                    others.into_iter().partition(|index| self.meant.covers(self.edge(*index), context));
                outbound.by_name = self.context.reach.by_entity() && self.learns_names(namespace, &others);
                self.collect(&mut outbound, &others, namespace, Direction::Egress);
                self.let_caller_out(&mut outbound, &subject.members);
                if close_each_egress {
                    self.allow_shared(&mut outbound, namespace, &shared);
                    let everybodys = self.asks_of_dns(namespace);
                    self.allow_dns(&mut outbound, namespace, &everybodys);
                } else if outbound.rules.names_servers() {
                    self.allow_dns(&mut outbound, namespace, &dns);
                }
                if outbound.rules.names_servers() {
                    self.learn_names(&mut outbound, namespace);
                }
            }
            let left_open = !sensitive && subject.members.iter().any(|member| agents.contains(member));
            let inbound = (ingress && !left_open && (!denied || !inbound.rules.is_empty())).then_some(inbound);
            let outbound = (egress && (close_each_egress || !outbound.rules.is_empty())).then_some(outbound);
            if inbound.is_none() && outbound.is_none() || !sensitive && self.holds_back(subject) {
                continue;
            }
            let members: Vec<&WorkloadEntry> =
                subject.members.iter().filter_map(|member| context.workloads.get(member).copied()).collect();
            let purpose = Purpose::Workload(subject.members[0].clone());
            let name = names[subject.members[0]].clone();
            let phase = if sensitive { Phase::DefaultDeny } else { self.context.options.phase_of(namespace) };
            let frame = Frame { name, purpose, phase, subject: selector };
            self.push(namespace, frame, Drafts { ingress: inbound, egress: outbound }, &members);
            if let ([_, _, ..], Some((policy, ..))) = (subject.members.as_slice(), self.policies.last_mut()) {
                policy.notes.insert(one_subject(subject));
            }
        }
    }

    /// Adds a policy of the namespace, with the rules of its drafts. It selects these workloads.
    fn push(&mut self, namespace: &str, frame: Frame, drafts: Drafts, selects: &[&WorkloadEntry]) {
        let Frame { name, purpose, phase, subject } = frame;
        let Drafts { ingress, egress } = drafts;
        let judged: Vec<_> = selects.iter().map(|entry| self.completeness.of(entry)).collect();
        let whole_namespace = !matches!(purpose, Purpose::Workload(_));
        let complete = judged.iter().all(|j| j.reasons.is_empty()) && !(whole_namespace && self.whole.is_some());
        let view = (!judged.iter().all(|j| j.hosted)).then(|| self.context.body.coverage.nodes.observed.clone());
        let format = self.context.reach.format;
        let mut notes = BTreeSet::new();
        if self.short.contains(namespace) {
            let needed = window::argument(self.context.options.min_window);
            notes.insert(format!(
                "short window: all nodes of the namespace at once were observed for less than {needed}"
            ));
        }
        notes.extend(self.observed_in_part(selects));
        let idle = self.isolates_idle(selects, ingress.is_some() || egress.is_some());
        let complete = complete && idle.is_none();
        notes.extend(idle);
        let mut rested = Vec::new();
        let mut rules = |draft: Option<Draft>, direction| {
            let Draft { rules, support, notes: said, .. } = draft?;
            notes.extend(said);
            let rules = rules.into_rules(format);
            rested.extend(rest(&rules, &support).map(|(rule, edges)| (direction, rule, edges)));
            Some(rules)
        };
        let ingress = rules(ingress, Direction::Ingress);
        let egress = rules(egress, Direction::Egress);
        let policy = PlannedPolicy {
            namespace: namespace.to_owned(),
            name,
            purpose,
            phase,
            subject,
            ingress,
            egress,
            complete,
            view,
            notes,
        };
        self.policies.push((policy, rested));
    }

    fn finish(self, verdicts: Vec<NamespaceVerdict>) -> Decision {
        let mut policies = self.policies;
        policies.sort_by(|(a, _), (b, _)| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let mut evidence = Vec::new();
        let mut planned = Vec::with_capacity(policies.len());
        for (index, (policy, rested)) in policies.into_iter().enumerate() {
            let of_rule = |(direction, rule, edges)| RuleEvidence { policy: index, direction, rule, edges };
            evidence.extend(rested.into_iter().map(of_rule));
            planned.push(policy);
        }
        let edges = self.context.body.edges.iter().zip(&self.uses).enumerate();
        let unexplained = edges
            .filter(|(_, (edge, used))| {
                let (Peer::Node { .. }, Peer::Workload(server)) = (&*edge.client.peer, &*edge.server.peer) else {
                    return false;
                };
                used.must_be_allowed()
                    && self.context.is_reachable_from_outside(server, edge.protocol, edge.port)
                    && !self.context.explains_itself(edge)
            })
            .map(|(index, _)| index)
            .collect();
        Decision {
            plan: Plan { phase: self.context.options.phase, format: self.context.reach.format, policies: planned },
            evidence,
            uses: self.uses,
            verdicts,
            closed_without_evidence: self.closed_without_evidence,
            inexpressible: self.inexpressible,
            unexplained,
            subjects: self
                .context
                .shared_subjects()
                .map(|s| s.members.iter().map(|m| (*m).clone()).collect())
                .collect(),
            announced: self.announced,
            exceptions: Vec::new(),
            problems: self.problems,
            stopped: BTreeSet::new(),
            warnings: self.warnings,
        }
    }
}
