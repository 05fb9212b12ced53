//! The proof: the printed policies, read back and judged by the evaluator against everything that
//! was observed.
//!
//! Two claims (docs/design.md#policy, 1 and 2): together with the policies that exist, the export
//! allows every supported flow; and on its own it allows no other pair of covered workloads, but
//! for what the phase says and what the plan has announced as wider than observed.
//!
//! The proof shares nothing with the generator but the plan's announcements: what it judges is the
//! text that would be applied.

mod newly;
mod texts;
mod unnamed;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use guardrail_graph::{
    Peer, Snapshot, WorkloadRef,
    snapshot::{EdgeRecord, LabelSelector, WorkloadEntry, marks::HBONE},
};

use crate::{
    evaluate::{Clients, Cluster, End, Evaluator, SideVerdict, Verdict},
    generate::{
        Decision, EdgeUse, FlowName, Options, Plan, PortRef, Problem, ProblemKind, Purpose, edge_name, stopped,
    },
    model::{Direction, NetworkPolicy, PolicyPort, PortMatch, Protocol, selector_matches, tier::TierPolicy},
    parallel::in_parallel,
};

pub use newly::NewlyJudged;
use newly::newly_judged;

/// What the proof found.
#[derive(Clone, Debug, Default)]
pub struct Proof {
    /// What is wrong; empty means proven.
    pub problems: BTreeSet<Problem>,
    /// What a person should know.
    pub warnings: BTreeSet<String>,
    /// Workloads whose flows are newly judged, sorted.
    pub newly_judged: Vec<NewlyJudged>,
    /// Supported edges that were judged.
    pub edges_judged: usize,
    /// Triples (client workload, server workload, port) that were judged for the second claim.
    pub pairs_judged: usize,
}

/// Proves the policies in `files` (text by file name).
#[must_use]
pub fn prove<'a>(
    snapshot: &Snapshot,
    options: &Options,
    decision: &Decision,
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Proof {
    let cluster = Arc::new(options.cluster.clone().with_snapshot(snapshot));
    prove_in(&cluster, snapshot, options, decision, files).0
}

/// As [`prove`], in the snapshot's cluster. Beside the proof, what will be in force with these
/// files: with them the policies of other hands and of namespaces that stay as they are. No
/// exception is among them.
pub(crate) fn prove_in<'a>(
    cluster: &Arc<Cluster>,
    snapshot: &Snapshot,
    options: &Options,
    decision: &Decision,
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> (Proof, Evaluator) {
    let mut proof = Proof::default();
    let written = texts::read_back(decision, files, &mut proof);
    let enforcer = options.enforcer();
    let (kept, kept_forms) = texts::not_replaced(options, decision, &written);
    let any_exists = !(options.existing.is_empty() && options.existing_forms.is_empty());
    let evaluator = |forms: Vec<TierPolicy>| Evaluator::mixed(Arc::clone(cluster), Vec::new(), forms, &enforcer);
    let in_force = |policies: &[NetworkPolicy], forms: &[TierPolicy]| -> Vec<TierPolicy> {
        policies.iter().map(TierPolicy::from).chain(forms.iter().cloned()).collect()
    };
    // With a plan, what an earlier export wrote counts as not there: an export of the same is the
    // same.
    let before = any_exists.then(|| {
        if options.goals.is_empty() {
            evaluator(in_force(&options.existing, &options.existing_forms))
        } else {
            evaluator(in_force(&kept, &kept_forms))
        }
    });
    let together = (!(kept.is_empty() && kept_forms.is_empty())).then(|| {
        let mut all = in_force(&kept, &kept_forms);
        all.extend(written.iter().cloned());
        evaluator(all)
    });
    let alone = evaluator(written);
    let allowed_alone = allowed(&alone, &snapshot.body.edges);
    let allowed_together = together.as_ref().map(|together| allowed(together, &snapshot.body.edges));
    let judges =
        Judges { alone: (&alone, &allowed_alone), together: together.as_ref().zip(allowed_together.as_deref()) };
    supported_flows_are_allowed(snapshot, decision, judges, &mut proof);
    unnamed::flows_are_allowed(snapshot, options, &alone, &mut proof);
    Pairs::new(snapshot, options, decision, &alone).judge(&mut proof);
    newly_judged(snapshot, judges, before.as_ref(), &mut proof);
    (proof, together.unwrap_or(alone))
}

/// What was generated, alone and together with what is in force beside it if there is any; each
/// with its answer for every edge.
#[derive(Clone, Copy)]
struct Judges<'a> {
    alone: (&'a Evaluator, &'a [Option<bool>]),
    together: Option<(&'a Evaluator, &'a [Option<bool>])>,
}

/// Of each edge whether it is allowed; `None`: an end of it cannot be judged.
fn allowed(evaluator: &Evaluator, edges: &[EdgeRecord]) -> Vec<Option<bool>> {
    in_parallel(edges, |share| share.iter().map(|edge| evaluator.allows_edge(edge).ok()).collect::<Vec<_>>()).concat()
}

fn supported_flows_are_allowed(snapshot: &Snapshot, decision: &Decision, judges: Judges<'_>, proof: &mut Proof) {
    let Judges { alone: (alone, allowed_alone), together } = judges;
    for (index, (edge, used)) in snapshot.body.edges.iter().zip(&decision.uses).enumerate() {
        let Some(is_allowed) = allowed_alone[index].filter(|_| used.is_owed()) else { continue };
        proof.edges_judged += 1;
        if !is_allowed {
            let Ok(verdict) = alone.evaluate_edge(edge) else { continue };
            let (side, namespaces) = denied_sides(&edge.client.peer, &edge.server.peer, &verdict.verdict);
            if decision.inexpressible.contains(&index) {
                // A problem says it already. Here its namespace is not stopped: for a reader of the
                // whole plan.
                continue;
            }
            let flow = FlowName::of(edge).quoted();
            let (kind, message) = if used.must_be_allowed() {
                let message = format!(
                    "{} was observed and would be denied by the generated {side} policies: please report it; --accept {flow} leaves it without a rule",
                    edge_name(edge)
                );
                (ProblemKind::Denied, message)
            } else {
                let marks: Vec<&str> = edge.marks.iter().map(String::as_str).collect();
                let message = format!(
                    "{} was observed ({}) and would be denied ({side}): --accept-inferred writes rules for such flows, --accept {flow} leaves this one without a rule",
                    edge_name(edge),
                    marks.join(", ")
                );
                (ProblemKind::Unallowed, message)
            };
            proof.problems.insert(Problem::new(kind, namespaces, message));
            continue;
        }
        if let Some((together, allowed_together)) = together
            && allowed_together[index] == Some(false)
            && let Ok(joint) = together.evaluate_edge(edge)
        {
            conflict(edge, &joint.verdict, together, decision, proof);
        }
    }
}

/// An observed flow that a policy in force denies although the export allows it.
fn conflict(edge: &EdgeRecord, verdict: &Verdict, together: &Evaluator, decision: &Decision, proof: &mut Proof) {
    let ours = |namespace: &&str| decision.verdicts.iter().any(|v| v.namespace == *namespace);
    let (side, namespaces) = denied_sides(&edge.client.peer, &edge.server.peer, verdict);
    // Where the policy is not in a namespace of this export, the other end's namespace is the one
    // that would be changed.
    let ends = [&*edge.client.peer, &*edge.server.peer].into_iter().filter_map(Peer::workload);
    let mut stops: BTreeSet<&str> = namespaces.into_iter().filter(ours).collect();
    if stops.is_empty() {
        stops = ends.map(|workload| workload.namespace.as_str()).filter(ours).collect();
    }
    let whose = if side == "ingress" { "server's ingress" } else { "client's egress" };
    let why = match (&verdict.egress, &verdict.ingress) {
        (denying @ SideVerdict::DeniedBy(_), _) => denying_rules(together, Direction::Egress, denying),
        (_, denying @ SideVerdict::DeniedBy(_)) => denying_rules(together, Direction::Ingress, denying),
        (unproven @ SideVerdict::Unproven(_), _) => together.why_unproven(Direction::Egress, unproven).join("; "),
        (_, unproven @ SideVerdict::Unproven(_)) => together.why_unproven(Direction::Ingress, unproven).join("; "),
        _ => format!("an existing policy isolates the {whose} and allows it no more than the export does"),
    };
    let would = if verdict.denied() { "would" } else { "may" };
    let message = format!(
        "{} was observed and {would} be denied: {why}; change that policy, export with the missing direction, or leave it \
         without a rule with --accept {}",
        edge_name(edge),
        FlowName::of(edge).quoted(),
    );
    proof.problems.insert(Problem::new(ProblemKind::Conflict, stops, message));
}

fn denying_rules(evaluator: &Evaluator, direction: Direction, side: &SideVerdict) -> String {
    let rules: Vec<String> = side.rules().iter().map(|rule| evaluator.rule_name(direction, *rule)).collect();
    format!("{} denies it", rules.join(" and "))
}

/// Which direction does not let it pass, by name, and the namespaces whose policies say so.
fn denied_sides<'a>(client: &'a Peer, server: &'a Peer, verdict: &Verdict) -> (&'static str, BTreeSet<&'a str>) {
    let denied = |side: &SideVerdict, peer: &'a Peer| peer.workload().filter(|_| !side.allows());
    let ingress = denied(&verdict.ingress, server);
    let egress = denied(&verdict.egress, client);
    let name = match (ingress, egress) {
        (Some(_), Some(_)) => "ingress and egress",
        (None, Some(_)) => "egress",
        _ => "ingress",
    };
    (name, ingress.into_iter().chain(egress).map(|workload| workload.namespace.as_str()).collect())
}

/// A workload by its place in the snapshot: the proof looks up millions.
type Place = u32;

/// Two workloads and a port.
type Triple = (Place, Place, Protocol, u16);

/// What passes and should not: the clients by server and port.
type Excess<'a> = BTreeMap<(&'a WorkloadRef, Protocol, u16), BTreeSet<&'a WorkloadRef>>;

/// A workload with its ends as a client and as a server.
type Ends<'a> = (&'a WorkloadRef, Vec<End>, Vec<End>);

/// Who may call a server that no generated policy closes.
#[derive(Clone, Copy)]
struct Callers<'a, 'b> {
    workloads: &'b [Ends<'a>],
    /// Those whose egress is closed.
    closed: &'b BTreeSet<&'a WorkloadRef>,
    /// The ports that rules of their egress name.
    ports: &'b BTreeMap<&'a WorkloadRef, BTreeSet<(Protocol, u16)>>,
}

/// Two workloads, and which side the generated policies close.
#[derive(Clone, Copy)]
struct Pair<'a> {
    client: &'a WorkloadRef,
    server: &'a WorkloadRef,
    client_is_closed: bool,
    server_is_closed: bool,
}

/// The second claim.
struct Pairs<'a> {
    snapshot: &'a Snapshot,
    options: &'a Options,
    decision: &'a Decision,
    evaluator: &'a Evaluator,
    places: HashMap<&'a WorkloadRef, Place>,
    /// What may pass because it was observed.
    expected: HashSet<Triple>,
    /// Ports of each server worth asking about: observed, or named by a rule that selects it.
    observed_ports: BTreeMap<&'a WorkloadRef, BTreeSet<(Protocol, u16)>>,
    /// Phase constrain: who may call into a namespace, on which ports.
    into_namespace: HashSet<(Place, &'a str, Protocol, u16)>,
    /// The same for ports that the boundary names: each pod of the namespace has its own number for
    /// it.
    into_namespace_by_name: HashSet<(Place, &'a str, Protocol, &'a str)>,
    /// What the plan has announced as wider than observed.
    dns: HashSet<(Place, Protocol, u16)>,
    from_anywhere: HashSet<(Place, Protocol, u16)>,
    to_anywhere: HashSet<(Place, Protocol, u16)>,
    shared: HashSet<(Place, Protocol, u16)>,
    callers: HashSet<(Place, Protocol, u16)>,
}

/// A port that nobody serves: asked of every server, so that a rule without ports is found out.
const NOBODYS_PORT: u16 = 9;

impl<'a> Pairs<'a> {
    fn new(snapshot: &'a Snapshot, options: &'a Options, decision: &'a Decision, evaluator: &'a Evaluator) -> Self {
        let places: HashMap<&WorkloadRef, Place> =
            snapshot.body.workloads.iter().map(|w| &w.workload).zip(0..).collect();
        let placed = |announced: &BTreeSet<(WorkloadRef, Protocol, u16)>| {
            announced.iter().filter_map(|(w, protocol, port)| Some((*places.get(w)?, *protocol, *port))).collect()
        };
        let announced = &decision.announced;
        let mut pairs = Self {
            dns: placed(&announced.dns),
            from_anywhere: placed(&announced.from_anywhere),
            to_anywhere: placed(&announced.to_anywhere),
            shared: placed(&announced.shared),
            callers: placed(&announced.callers),
            snapshot,
            options,
            decision,
            evaluator,
            places,
            expected: HashSet::new(),
            observed_ports: BTreeMap::new(),
            into_namespace: HashSet::new(),
            into_namespace_by_name: HashSet::new(),
        };
        let named = names_in_boundaries(&decision.plan);
        for (edge, used) in snapshot.body.edges.iter().zip(&decision.uses) {
            let Peer::Workload(server) = &*edge.server.peer else { continue };
            if let (EdgeUse::Supports, Peer::Workload(client), Some(name)) = (used, &*edge.client.peer, &edge.port_name)
            {
                let (namespace, protocol) = (server.namespace.as_str(), edge.protocol);
                if named.contains(&(namespace, protocol, name)) {
                    let clients = pairs.indistinguishable(client).into_iter();
                    pairs.into_namespace_by_name.extend(clients.map(|c| (c, namespace, protocol, name.as_str())));
                }
            }
            for (protocol, port) in pairs.ports_of(edge, server) {
                pairs.observed_ports.entry(server).or_default().insert((protocol, port));
                let (EdgeUse::Supports, Peer::Workload(client)) = (used, &*edge.client.peer) else { continue };
                let servers = pairs.indistinguishable(server);
                for client in pairs.indistinguishable(client) {
                    pairs.expected.extend(servers.iter().map(|server| (client, *server, protocol, port)));
                    let shared =
                        pairs.places.get(server).is_some_and(|at| pairs.shared.contains(&(*at, protocol, port)));
                    if options.is_inside_a_boundary(server) && !shared {
                        pairs.into_namespace.insert((client, &server.namespace, protocol, port));
                    }
                }
            }
        }
        pairs
    }

    /// The ports that an observed edge justifies.
    fn ports_of(&self, edge: &EdgeRecord, server: &WorkloadRef) -> BTreeSet<(Protocol, u16)> {
        let protocol = edge.protocol;
        let mut ports = BTreeSet::from([(protocol, edge.port)]);
        if let (Some(name), Some(entry)) = (&edge.port_name, self.entry(server)) {
            // A port that pods know by one name and different numbers is one port (B2).
            let pods = entry.pods.values().flatten();
            let named = pods.flat_map(|p| &p.ports).filter(|p| p.name == *name && protocol.is_named(&p.protocol));
            ports.extend(named.map(|p| (protocol, p.port)));
        }
        if self.options.also_service_ports {
            ports.extend(edge.via.iter().filter_map(|via| Some((protocol, via.rsplit_once(':')?.1.parse().ok()?))));
        }
        if self.places.get(server).is_some_and(|server| self.dns.contains(&(*server, protocol, edge.port))) {
            ports.extend([(Protocol::Tcp, edge.port), (Protocol::Udp, edge.port)]);
        }
        if edge.marks.contains("proxied") {
            ports.insert((Protocol::Tcp, HBONE));
        }
        ports
    }

    fn entry(&self, workload: &WorkloadRef) -> Option<&'a WorkloadEntry> {
        self.places.get(workload).map(|place| &self.snapshot.body.workloads[*place as usize])
    }

    /// The workload itself; and, if no selector names it alone, those of its namespace that share
    /// all its labels (announced as a warning).
    fn indistinguishable(&self, workload: &WorkloadRef) -> Vec<Place> {
        if let Some(subject) = self.decision.subjects.iter().find(|subject| subject.contains(workload)) {
            return subject.iter().filter_map(|member| self.places.get(member).copied()).collect();
        }
        let Some(entry) = self.entry(workload).filter(|e| e.selector.is_none() && !e.labels.is_empty()) else {
            return self.places.get(workload).copied().into_iter().collect();
        };
        let selector = LabelSelector::of_labels(entry.labels.clone());
        let alike = self
            .snapshot
            .body
            .workloads
            .iter()
            .zip(0..)
            .filter(|(w, _)| w.workload.namespace == workload.namespace && selector_matches(&selector, &w.labels));
        alike.map(|(_, place)| place).collect()
    }

    fn is_let_in_by_name(&self, client: Place, server: &WorkloadEntry, protocol: Protocol, port: u16) -> bool {
        if self.into_namespace_by_name.is_empty() {
            return false;
        }
        let pods = server.pods.values().flatten();
        pods.flat_map(|pod| &pod.ports).filter(|p| p.port == port && protocol.is_named(&p.protocol)).any(|p| {
            let namespace = server.workload.namespace.as_str();
            self.into_namespace_by_name.contains(&(client, namespace, protocol, p.name.as_str()))
        })
    }

    fn judge(&self, proof: &mut Proof) {
        let workloads: Vec<Ends<'_>> = self
            .snapshot
            .body
            .workloads
            .iter()
            .filter(|w| !w.host_network)
            .filter_map(|w| {
                let peer = Peer::Workload(w.workload.clone());
                let clients = self.evaluator.peer_ends(&peer, true).ok()?;
                let servers = self.evaluator.peer_ends(&peer, false).ok()?;
                Some((&w.workload, clients, servers))
            })
            .collect();
        let covered_ingress: BTreeSet<&WorkloadRef> = self.isolated(&workloads, Direction::Ingress);
        let covered_egress: BTreeSet<&WorkloadRef> = self.isolated(&workloads, Direction::Egress);
        self.sensitive_are_closed(&workloads, &covered_ingress, proof);
        let clients = Clients::new(workloads.iter().map(|(_, ends, _)| ends.as_slice()));
        let egress_closed: Vec<bool> = workloads.iter().map(|(w, ..)| covered_egress.contains(w)).collect();
        let egress_ports: BTreeMap<&WorkloadRef, BTreeSet<(Protocol, u16)>> =
            workloads.iter().map(|(w, ends, _)| (*w, self.rule_ports(ends, Direction::Egress))).collect();
        let mut excess = Excess::new();
        for (server, _, server_ends) in &workloads {
            let ingress = covered_ingress.contains(server);
            let mut ports = self.rule_ports(server_ends, Direction::Ingress);
            ports.extend(self.observed_ports.get(server).into_iter().flatten());
            ports.extend([
                (Protocol::Tcp, NOBODYS_PORT),
                (Protocol::Udp, NOBODYS_PORT),
                (Protocol::Tcp, 1),
                (Protocol::Udp, 65535),
            ]);
            if !ingress {
                let callers = Callers { workloads: &workloads, closed: &covered_egress, ports: &egress_ports };
                self.judge_open_server((server, server_ends), &ports, callers, &mut excess, proof);
                continue;
            }
            for &(protocol, port) in &ports {
                // Few of many clients come into question; those are judged in full.
                let admissions = server_ends.iter().map(|end| self.evaluator.admission(end, protocol, port));
                let in_question: BTreeSet<usize> = admissions.flat_map(|a| a.candidates(&clients)).collect();
                proof.pairs_judged += workloads.len();
                for index in in_question {
                    let (client, client_ends, _) = &workloads[index];
                    let pair = Pair { client, server, client_is_closed: egress_closed[index], server_is_closed: true };
                    if self.passes(client_ends, server_ends, protocol, port) && !self.may_pass(&pair, protocol, port) {
                        excess.entry((server, protocol, port)).or_default().insert(client);
                    }
                }
            }
        }
        for ((server, protocol, port), clients) in excess {
            let shown: Vec<String> = clients.iter().take(3).map(ToString::to_string).collect();
            let more = clients.len().saturating_sub(shown.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let message = format!(
                "{}{more} could call {server} {port}/{protocol}, which nobody observed: please report it; -n writes other namespaces",
                shown.join(", ")
            );
            let closed = covered_ingress.get(server).copied().into_iter();
            let callers = clients.iter().filter(|client| covered_egress.contains(**client)).copied();
            let namespaces = closed.chain(callers).map(|workload| workload.namespace.as_str());
            proof.problems.insert(Problem::new(ProblemKind::Excess, namespaces, message));
        }
    }

    /// An open server admits everybody, and no port of it would be judged: sensitive ones must not
    /// be.
    fn sensitive_are_closed(&self, all: &[Ends<'a>], closed: &BTreeSet<&WorkloadRef>, proof: &mut Proof) {
        let accepted = self.options.forced || self.options.stopped_too;
        let stopped = stopped(&self.decision.problems, accepted);
        let open = all.iter().map(|(workload, ..)| *workload).filter(|workload| {
            self.options.sensitive.contains(workload)
                && self.decision.verdicts.iter().any(|v| v.namespace == workload.namespace)
                && !closed.contains(workload)
                && !stopped.contains(&workload.namespace)
        });
        proof.problems.extend(open.map(|workload| {
            let message = format!("{workload} is sensitive, and no policy would close it: please report it");
            Problem::new(ProblemKind::Excess, [workload.namespace.as_str()], message)
        }));
    }

    /// A server that no generated policy closes: only what closes the client's egress is judged.
    fn judge_open_server(
        &self,
        (server, server_ends): (&'a WorkloadRef, &[End]),
        ports: &BTreeSet<(Protocol, u16)>,
        callers: Callers<'a, '_>,
        excess: &mut Excess<'a>,
        proof: &mut Proof,
    ) {
        let closed = callers.workloads.iter().filter(|(client, ..)| callers.closed.contains(client));
        for (client, client_ends, _) in closed {
            let pair = Pair { client, server, client_is_closed: true, server_is_closed: false };
            for &(protocol, port) in ports.iter().chain(callers.ports.get(client).into_iter().flatten()) {
                proof.pairs_judged += 1;
                if self.passes(client_ends, server_ends, protocol, port) && !self.may_pass(&pair, protocol, port) {
                    excess.entry((server, protocol, port)).or_default().insert(client);
                }
            }
        }
    }

    fn isolated(&self, workloads: &[Ends<'a>], direction: Direction) -> BTreeSet<&'a WorkloadRef> {
        let isolated = |ends: &[End]| ends.iter().any(|end| !self.evaluator.isolating(end, direction).is_empty());
        workloads.iter().filter(|(_, ends, _)| isolated(ends)).map(|(w, ..)| *w).collect()
    }

    /// Every port that a rule of a policy selecting these pods names.
    fn rule_ports(&self, ends: &[End], direction: Direction) -> BTreeSet<(Protocol, u16)> {
        let policies: BTreeSet<u32> = ends.iter().flat_map(|end| self.evaluator.isolating(end, direction)).collect();
        let ports = policies
            .iter()
            .flat_map(|p| self.evaluator.forms()[*p as usize].rules(direction))
            .flat_map(|rule| &rule.ports);
        ports
            .flat_map(|PolicyPort { protocol, port, .. }| match port {
                PortMatch::Range { first, last } => vec![(*protocol, *first), (*protocol, *last)],
                // A name's numbers are among the observed ports.
                PortMatch::Any | PortMatch::Named(_) => vec![],
            })
            .collect()
    }

    fn passes(&self, clients: &[End], servers: &[End], protocol: Protocol, port: u16) -> bool {
        clients.iter().any(|client| servers.iter().any(|server| self.evaluator.allows(client, server, protocol, port)))
    }

    /// Whether a pair that passes was observed, or is opened by what the phase says or the plan has
    /// announced: on each side that is closed.
    fn may_pass(&self, pair: &Pair<'a>, protocol: Protocol, port: u16) -> bool {
        let Pair { client, server, client_is_closed, server_is_closed } = *pair;
        // Workloads that are judged are those of the snapshot.
        let (Some(&client_at), Some(&server_at)) = (self.places.get(client), self.places.get(server)) else {
            return false;
        };
        if self.expected.contains(&(client_at, server_at, protocol, port)) {
            return true;
        }
        let boundary = self.options.is_inside_a_boundary(server);
        let server_entry = &self.snapshot.body.workloads[server_at as usize];
        let egress_says_so = || {
            !client_is_closed
                || self.dns.contains(&(server_at, protocol, port))
                || self.shared.contains(&(server_at, protocol, port))
                || self.callers.contains(&(client_at, protocol, port))
                || self.to_anywhere.contains(&(client_at, protocol, port))
        };
        let ingress_says_so = || {
            !server_is_closed
                || (boundary && client.namespace == server.namespace)
                || (boundary && self.into_namespace.contains(&(client_at, &server.namespace, protocol, port)))
                || (boundary && self.is_let_in_by_name(client_at, server_entry, protocol, port))
                || self.from_anywhere.contains(&(server_at, protocol, port))
                || self.shared.contains(&(server_at, protocol, port))
                || (!self.options.sensitive.contains(server) && self.callers.contains(&(client_at, protocol, port)))
        };
        ingress_says_so() && egress_says_so()
    }
}

/// `(namespace, protocol, name)` of the ports that boundaries open by name.
fn names_in_boundaries(plan: &Plan) -> BTreeSet<(&str, Protocol, &str)> {
    let boundaries = plan.policies.iter().filter(|policy| policy.purpose == Purpose::Boundary);
    let mut names = BTreeSet::new();
    for policy in boundaries {
        for port in policy.ingress.iter().flatten().flat_map(|rule| &rule.ports) {
            if let PortRef::Name(name) = &port.port {
                names.insert((policy.namespace.as_str(), port.protocol, name.as_str()));
            }
        }
    }
    names
}
