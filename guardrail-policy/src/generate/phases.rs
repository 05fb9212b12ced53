//! Which policies a phase writes, and which rules they hold (POLICY-SEMANTICS part C).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use guardrail_graph::{
    Peer, Protocol, WorkloadRef,
    snapshot::{EdgeRecord, LabelSelector, WorkloadEntry},
};
use serde::Serialize;

use super::{
    Announced, Decision, Phase, Plan, PlannedPolicy, PortRef, Problem, ProblemKind, Purpose, RulePeer, RulePort,
    completeness::{Completeness, NamespaceVerdict, edge_name},
    context::{Context, single},
    dns::Dns,
    edges::{EdgeUse, Need, callee, caller, classify},
    names,
    plan::RuleSet,
};

/// Ingress or egress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Towards the policy's pods.
    Ingress,
    /// From the policy's pods.
    Egress,
}

/// Which edges a rule rests on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleEvidence {
    /// Index of the policy in [`Plan::policies`].
    pub policy: usize,
    /// Which list of rules.
    pub direction: Direction,
    /// Index of the rule.
    pub rule: usize,
    /// Indices of edges in the snapshot.
    pub edges: BTreeSet<usize>,
}

/// Which edge asks for which peer on which port.
type Support = Vec<(RulePeer, RulePort, usize)>;

/// Rules of one direction while they are collected.
#[derive(Default)]
struct Draft {
    rules: RuleSet,
    support: Support,
    notes: BTreeSet<String>,
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

/// External ends of one port, gathered before it is known whether they stay single addresses.
#[derive(Default)]
struct Outside {
    ports: BTreeSet<RulePort>,
    addresses: BTreeMap<IpAddr, Vec<usize>>,
    anywhere: Vec<usize>,
    identity_lost: bool,
    names: BTreeSet<String>,
}

/// Where the export stands while it is made.
struct Builder<'a> {
    context: &'a Context<'a>,
    uses: Vec<EdgeUse>,
    completeness: Completeness<'a>,
    dns: Dns,
    /// The whole export is incomplete, whatever the single namespaces are.
    whole: Option<String>,
    policies: Vec<(PlannedPolicy, Support, Support)>,
    closed_without_evidence: BTreeSet<WorkloadRef>,
    inexpressible: BTreeSet<usize>,
    announced: Announced,
    problems: BTreeSet<Problem>,
    warnings: BTreeSet<String>,
    inbound: BTreeMap<&'a WorkloadRef, Vec<usize>>,
    outbound: BTreeMap<&'a WorkloadRef, Vec<usize>>,
}

/// Decides everything.
pub(crate) fn decide(context: &Context<'_>) -> Decision {
    let edges = &context.body.edges;
    let uses: Vec<EdgeUse> = edges.iter().map(|edge| classify(edge, context)).collect();
    let mut inbound: BTreeMap<&WorkloadRef, Vec<usize>> = BTreeMap::new();
    let mut outbound: BTreeMap<&WorkloadRef, Vec<usize>> = BTreeMap::new();
    for (index, edge) in edges.iter().enumerate().filter(|(index, _)| uses[*index].must_be_allowed()) {
        if let Peer::Workload(server) = &edge.server.peer {
            inbound.entry(server).or_default().push(index);
        }
        if let Peer::Workload(client) = &edge.client.peer {
            outbound.entry(client).or_default().push(index);
        }
    }
    let completeness = Completeness::new(context);
    let verdicts = completeness.verdicts(&uses);
    let dns = Dns::in_use(context, &uses);
    let mut announced = Announced::default();
    if context.options.egress {
        announced.dns = dns.servers().map(|(workload, protocol, port)| (workload.clone(), protocol.into(), port)).collect();
    }
    let mut builder = Builder {
        context,
        dns,
        uses,
        completeness,
        whole: None,
        policies: Vec::new(),
        closed_without_evidence: BTreeSet::new(),
        inexpressible: BTreeSet::new(),
        announced,
        problems: BTreeSet::new(),
        warnings: BTreeSet::new(),
        inbound,
        outbound,
    };
    builder.judge_evidence(&verdicts);
    for verdict in &verdicts {
        match context.options.phase {
            Phase::Observe | Phase::Constrain => builder.constrain(verdict),
            Phase::DefaultDeny => builder.default_deny(verdict),
        }
    }
    builder.explain_what_has_no_policy();
    builder.finish(verdicts)
}

impl<'a> Builder<'a> {
    fn judge_evidence(&mut self, verdicts: &[NamespaceVerdict]) {
        let coverage = &self.context.body.coverage;
        for verdict in verdicts.iter().filter(|v| !v.complete) {
            let shown: Vec<&str> = verdict.reasons.iter().take(5).map(String::as_str).collect();
            let more = verdict.reasons.len().saturating_sub(shown.len());
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            self.problem(
                ProblemKind::Incomplete,
                format!(
                    "the evidence for namespace {} is incomplete ({}{more}): observe longer or on every node, or accept it with --force",
                    verdict.namespace,
                    shown.join(", ")
                ),
            );
        }
        if !coverage.complete && self.context.options.namespaces.is_empty() {
            let missing: Vec<&str> =
                coverage.nodes.expected.difference(&coverage.nodes.observed).map(String::as_str).collect();
            let why = if missing.is_empty() { "losses or gaps".to_owned() } else { format!("nodes not observed: {}", missing.join(", ")) };
            self.whole = Some(why.clone());
            if verdicts.iter().all(|v| v.complete) {
                self.problem(
                    ProblemKind::Incomplete,
                    format!("the snapshot is incomplete ({why}): merge every node's snapshot, choose complete namespaces with -n, or accept it with --force"),
                );
            }
        }
        for namespace in &self.context.options.namespaces {
            if !verdicts.iter().any(|v| v.namespace == *namespace) {
                self.warnings.insert(format!("namespace {namespace} has no workload that a policy could select: nothing is written for it"));
            }
        }
        if self.context.options.namespaces.is_empty() && verdicts.is_empty() {
            self.warnings.insert("the snapshot has no workload that a policy could select: nothing is written".to_owned());
        }
    }

    fn problem(&mut self, kind: ProblemKind, message: String) {
        self.problems.insert(Problem { kind, message });
    }

    fn edge(&self, index: usize) -> &'a EdgeRecord {
        &self.context.body.edges[index]
    }

    /// Phase constrain: one boundary around the namespace.
    fn constrain(&mut self, verdict: &NamespaceVerdict) {
        let namespace = verdict.namespace.as_str();
        let mut draft = Draft::default();
        let inside = RulePeer::Pods { namespace: None, selector: LabelSelector::default() };
        draft.rules.allow(inside, []);
        let indices: Vec<usize> = self
            .context
            .covered(namespace)
            .filter_map(|w| self.inbound.get(&w.workload))
            .flatten()
            .copied()
            .filter(|index| self.edge(*index).client.peer.workload().is_none_or(|c| c.namespace != namespace))
            .collect();
        self.collect(&mut draft, &indices, namespace, Direction::Ingress);
        let everything: Vec<&WorkloadEntry> = self.context.covered(namespace).collect();
        self.push(namespace, names::BOUNDARY, Purpose::Boundary, LabelSelector::default(), Some(draft), None, &everything);
        if self.context.options.egress {
            self.close_egress(namespace);
            self.allow_per_workload(namespace, false, true);
        }
    }

    /// Phase default-deny: everything closed, then one policy per workload for what it needs.
    fn default_deny(&mut self, verdict: &NamespaceVerdict) {
        let namespace = verdict.namespace.as_str();
        let everything: Vec<&WorkloadEntry> = self.context.covered(namespace).collect();
        for entry in &everything {
            if !self.inbound.contains_key(&entry.workload) {
                self.closed_without_evidence.insert(entry.workload.clone());
            }
        }
        let stranded = self.stranded(namespace, &self.inbound);
        if stranded.is_empty() {
            let draft = Some(Draft::default());
            self.push(namespace, names::DENY_INGRESS, Purpose::DenyIngress, LabelSelector::default(), draft, None, &everything);
        } else {
            self.warn_stranded(namespace, &stranded, "ingress");
        }
        if self.context.options.egress {
            self.close_egress(namespace);
        }
        self.allow_per_workload(namespace, true, self.context.options.egress);
    }

    /// Workloads that talk but that no selector names: a namespace-wide deny would cut them off.
    fn stranded(&self, namespace: &str, edges: &BTreeMap<&'a WorkloadRef, Vec<usize>>) -> Vec<&'a WorkloadEntry> {
        self.context.covered(namespace).filter(|w| w.selector.is_none() && edges.contains_key(&w.workload)).collect()
    }

    fn warn_stranded(&mut self, namespace: &str, stranded: &[&WorkloadEntry], direction: &str) {
        for entry in stranded {
            let advice = entry.selector_advice.as_deref().unwrap_or("give its pod template a label of its own");
            self.warnings.insert(format!(
                "{} cannot be selected, so it gets no policy and namespace {namespace} is closed workload by workload ({direction}): {advice}",
                entry.workload
            ));
        }
    }

    fn close_egress(&mut self, namespace: &str) {
        let stranded = self.stranded(namespace, &self.outbound);
        if !stranded.is_empty() {
            self.warn_stranded(namespace, &stranded, "egress");
            return;
        }
        let mut draft = Draft::default();
        self.allow_dns(&mut draft, namespace);
        let everything: Vec<&WorkloadEntry> = self.context.covered(namespace).collect();
        self.push(namespace, names::DENY_EGRESS, Purpose::DenyEgress, LabelSelector::default(), None, Some(draft), &everything);
    }

    fn allow_dns(&mut self, draft: &mut Draft, namespace: &str) {
        if self.dns.is_empty() {
            self.warnings.insert("no pod was seen asking for names: the egress policies hold no DNS rule".to_owned());
        }
        let (allowed, nameless) = self.dns.allowed(namespace, self.context);
        for (peer, ports) in allowed {
            let edges: Vec<usize> = self
                .context
                .covered(namespace)
                .filter_map(|w| self.outbound.get(&w.workload))
                .flatten()
                .copied()
                .filter(|index| self.dns.covers(self.edge(*index)))
                .filter(|index| match callee(self.edge(*index), namespace, self.context) {
                    Need::Peers { peers, .. } => peers.contains(&peer),
                    Need::ExternalAddress(address) => single(address) == peer,
                    _ => false,
                })
                .collect();
            draft.allow([peer], &ports.into_iter().collect(), &edges);
        }
        for workload in nameless {
            self.problem(
                ProblemKind::Inexpressible,
                format!("the DNS pods of {workload} have no label that an egress rule could name: give them one, or accept it with --force"),
            );
        }
    }

    fn allow_per_workload(&mut self, namespace: &str, ingress: bool, egress: bool) {
        let entries: Vec<&WorkloadEntry> = self.context.covered(namespace).filter(|w| w.selector.is_some()).collect();
        let names = names::workload_policies(entries.iter().map(|w| &w.workload));
        let close_each_ingress = ingress && !self.stranded(namespace, &self.inbound).is_empty();
        let close_each_egress = egress && !self.stranded(namespace, &self.outbound).is_empty();
        for entry in entries {
            let Some(selector) = entry.selector.clone() else { continue };
            let mut inbound = Draft::default();
            if ingress {
                let indices = self.inbound.get(&entry.workload).cloned().unwrap_or_default();
                self.collect(&mut inbound, &indices, namespace, Direction::Ingress);
            }
            let mut outbound = Draft::default();
            if egress {
                let indices: Vec<usize> = self
                    .outbound
                    .get(&entry.workload)
                    .into_iter()
                    .flatten()
                    .copied()
                    .filter(|index| !self.dns.covers(self.edge(*index)))
                    .collect();
                self.collect(&mut outbound, &indices, namespace, Direction::Egress);
                if close_each_egress {
                    self.allow_dns(&mut outbound, namespace);
                }
            }
            let inbound = (ingress && (close_each_ingress || !inbound.support.is_empty())).then_some(inbound);
            let outbound = (egress && (close_each_egress || !outbound.support.is_empty())).then_some(outbound);
            if inbound.is_none() && outbound.is_none() {
                continue;
            }
            let purpose = Purpose::Workload(entry.workload.clone());
            self.push(namespace, &names[&entry.workload], purpose, selector, inbound, outbound, &[entry]);
        }
    }

    /// Turns edges into rules of one direction.
    fn collect(&mut self, draft: &mut Draft, indices: &[usize], namespace: &str, direction: Direction) {
        let mut outside: BTreeMap<(Option<WorkloadRef>, Protocol, u16, String), Outside> = BTreeMap::new();
        for &index in indices {
            let edge = self.edge(index);
            let need = match direction {
                Direction::Ingress => caller(edge, namespace, self.context),
                Direction::Egress => callee(edge, namespace, self.context),
            };
            let ports = self.ports(edge);
            match need {
                Need::Peers { peers, note } => {
                    draft.allow(peers, &ports, &[index]);
                    if let Some(note) = note {
                        self.warnings.insert(format!("{}: {note}", edge_name(edge)));
                        draft.notes.insert(note);
                    }
                }
                Need::ExternalAddress(address) => {
                    let gathered = outside.entry(outside_key(edge, direction)).or_default();
                    gathered.ports.extend(ports);
                    gathered.addresses.entry(address).or_default().push(index);
                    let end = if direction == Direction::Ingress { &edge.client } else { &edge.server };
                    gathered.names.extend(end.names.iter().cloned());
                }
                Need::Anywhere { identity_lost } => {
                    let gathered = outside.entry(outside_key(edge, direction)).or_default();
                    gathered.ports.extend(ports);
                    gathered.anywhere.push(index);
                    gathered.identity_lost |= identity_lost;
                }
                Need::Implicit => {}
                Need::Inexpressible(why) => {
                    self.inexpressible.insert(index);
                    let side = if direction == Direction::Ingress { "ingress" } else { "egress" };
                    self.problem(
                        ProblemKind::Inexpressible,
                        format!("{} would be denied, no {side} rule can allow it: {why}; --force leaves it out", edge_name(edge)),
                    );
                    draft.notes.insert(format!("not allowed although observed: {} ({side})", edge_name(edge)));
                }
            }
        }
        for (key, gathered) in outside {
            self.allow_outside(draft, &key, gathered, namespace, direction);
        }
    }

    fn allow_outside(&mut self, draft: &mut Draft, key: &(Option<WorkloadRef>, Protocol, u16, String), gathered: Outside, namespace: &str, direction: Direction) {
        let (workload, protocol, port, name) = key;
        let Outside { ports, addresses, anywhere, identity_lost, names } = gathered;
        let who = workload.as_ref().map_or_else(String::new, |w| format!("{w} "));
        if anywhere.is_empty() && addresses.len() <= self.context.options.max_external_addresses {
            for (address, edges) in &addresses {
                draft.allow([single(*address)], &ports, edges);
            }
            return;
        }
        let mut edges: Vec<usize> = addresses.values().flatten().copied().chain(anywhere).collect();
        edges.sort_unstable();
        if let (Direction::Egress, Some(declared)) = (direction, self.context.options.declared_ranges.get(name))
            && addresses.keys().all(|a| declared.iter().any(|range| range.contains(a)))
        {
            let peers = declared.iter().map(|cidr| RulePeer::Block { cidr: cidr.trunc(), except: BTreeSet::new() });
            draft.allow(peers, &ports, &edges);
            draft.notes.insert(format!("{name}: ranges as declared"));
            return;
        }
        draft.allow(self.context.anywhere(!identity_lost), &ports, &edges);
        let label = format!("{who}{port}/{protocol}");
        if identity_lost || !self.context.knows_pod_ranges() {
            self.announce(workload.as_ref(), &ports, namespace, direction);
        }
        match direction {
            Direction::Ingress if identity_lost => {
                let note = format!("{label}: client identity lost behind node addresses (node port or load balancer), open to any address");
                self.warnings.insert(note.clone());
                draft.notes.insert(note);
            }
            Direction::Ingress => {
                draft.notes.insert(format!("{label}: many external clients, open to any external address"));
            }
            Direction::Egress => {
                let known = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
                let known = if known.is_empty() { "many external servers".to_owned() } else { known };
                let note = format!("{label}: {known} has too many addresses, open to any external address; declare its ranges with --declare NAME=CIDR");
                self.warnings.insert(note.clone());
                draft.notes.insert(note);
            }
        }
        if !identity_lost && !self.context.knows_pod_ranges() {
            let note = format!("{label}: the ranges where pods live are not known, so \"any external address\" includes them; give --inventory");
            self.warnings.insert(note.clone());
            draft.notes.insert(note);
        }
    }

    /// Remembers that any address, those of pods included, passes these ports.
    fn announce(&mut self, workload: Option<&WorkloadRef>, ports: &BTreeSet<RulePort>, namespace: &str, direction: Direction) {
        for port in ports {
            match direction {
                Direction::Ingress => {
                    // A namespace's boundary opens the port for all of its pods.
                    let boundary = self.context.options.phase != Phase::DefaultDeny;
                    let opened = self.context.covered(namespace).map(|w| &w.workload).filter(|w| boundary || Some(*w) == workload);
                    let triples = opened.flat_map(|w| self.context.numbers_of(w, port).into_iter().map(|n| (w.clone(), port.protocol.into(), n)));
                    self.announced.from_anywhere.extend(triples);
                }
                Direction::Egress => {
                    let PortRef::Number(number) = port.port else { continue };
                    self.announced.to_anywhere.extend(workload.map(|w| (w.clone(), port.protocol.into(), number)));
                }
            }
        }
    }

    /// The ports that allow this edge.
    fn ports(&self, edge: &EdgeRecord) -> BTreeSet<RulePort> {
        let port = match &edge.server.peer {
            Peer::Workload(server) => self.context.port_of(server, edge.protocol, edge.port, edge.port_name.as_deref()),
            _ => PortRef::Number(edge.port),
        };
        let mut ports = BTreeSet::from([RulePort { protocol: edge.protocol, port }]);
        if self.context.options.also_service_ports {
            let service_ports = edge.via.iter().filter_map(|via| via.rsplit_once(':')?.1.parse().ok());
            ports.extend(service_ports.map(|number| RulePort { protocol: edge.protocol, port: PortRef::Number(number) }));
        }
        if self.context.options.egress && self.dns.covers(edge) {
            // A resolver turns to TCP when an answer is long (B15).
            let protocols = [Protocol::Tcp, Protocol::Udp];
            ports.extend(protocols.map(|protocol| RulePort { protocol, port: PortRef::Number(edge.port) }));
        }
        if edge.marks.contains("proxied") {
            // An ambient mesh carries the connection to the same pod inside HBONE.
            ports.insert(RulePort { protocol: Protocol::Tcp, port: PortRef::Number(15008) });
        }
        ports
    }

    #[expect(clippy::too_many_arguments, reason = "one call per kind of policy; a struct would only repeat PlannedPolicy")]
    fn push(
        &mut self,
        namespace: &str,
        name: &str,
        purpose: Purpose,
        subject: LabelSelector,
        ingress: Option<Draft>,
        egress: Option<Draft>,
        selects: &[&WorkloadEntry],
    ) {
        let judged: Vec<_> = selects.iter().map(|entry| self.completeness.of(entry)).collect();
        let whole_namespace = !matches!(purpose, Purpose::Workload(_));
        let complete = judged.iter().all(|j| j.reasons.is_empty()) && !(whole_namespace && self.whole.is_some());
        let view = (!judged.iter().all(|j| j.hosted)).then(|| self.context.body.coverage.nodes.observed.clone());
        let mut notes = BTreeSet::new();
        let mut split = |draft: Option<Draft>| match draft {
            None => (None, Vec::new()),
            Some(Draft { rules, support, notes: said }) => {
                notes.extend(said);
                (Some(rules.into_rules()), support)
            }
        };
        let (ingress, ingress_support) = split(ingress);
        let (egress, egress_support) = split(egress);
        let policy = PlannedPolicy {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            purpose,
            subject,
            ingress,
            egress,
            complete,
            view,
            notes,
        };
        self.policies.push((policy, ingress_support, egress_support));
    }

    /// Names what stays without a policy and why (B12, B6).
    fn explain_what_has_no_policy(&mut self) {
        for entry in &self.context.body.workloads {
            let workload = &entry.workload;
            if !self.context.in_scope(&workload.namespace) {
                continue;
            }
            if entry.host_network {
                self.warnings.insert(format!("{workload} uses the host's network: NetworkPolicy does not apply to it, it gets no policy"));
            } else if entry.selector.is_none() {
                let advice = entry.selector_advice.as_deref().unwrap_or("give its pod template a label of its own");
                self.warnings.insert(format!("{workload} gets no policy of its own, no stable label selects it alone: {advice}"));
            }
        }
    }

    fn finish(self, verdicts: Vec<NamespaceVerdict>) -> Decision {
        let mut policies = self.policies;
        policies.sort_by(|(a, ..), (b, ..)| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let mut evidence = Vec::new();
        let mut planned = Vec::with_capacity(policies.len());
        for (index, (policy, ingress_support, egress_support)) in policies.into_iter().enumerate() {
            for (direction, rules, support) in
                [(Direction::Ingress, &policy.ingress, ingress_support), (Direction::Egress, &policy.egress, egress_support)]
            {
                let mut by_rule: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
                let rules = rules.as_deref().unwrap_or_default();
                for (peer, port, edge) in support {
                    if let Some(rule) = rules.iter().position(|r| r.peers.contains(&peer) && r.ports.contains(&port)) {
                        by_rule.entry(rule).or_default().insert(edge);
                    }
                }
                evidence.extend(by_rule.into_iter().map(|(rule, edges)| RuleEvidence { policy: index, direction, rule, edges }));
            }
            planned.push(policy);
        }
        Decision {
            plan: Plan { phase: self.context.options.phase, policies: planned },
            evidence,
            uses: self.uses,
            verdicts,
            closed_without_evidence: self.closed_without_evidence,
            inexpressible: self.inexpressible,
            announced: self.announced,
            problems: self.problems,
            warnings: self.warnings,
        }
    }
}

/// External ends are counted per port of a workload (ingress), or per name and port (egress).
fn outside_key(edge: &EdgeRecord, direction: Direction) -> (Option<WorkloadRef>, Protocol, u16, String) {
    match direction {
        Direction::Ingress => (edge.server.peer.workload().cloned(), edge.protocol, edge.port, String::new()),
        Direction::Egress => (
            edge.client.peer.workload().cloned(),
            edge.protocol,
            edge.port,
            edge.server.names.iter().next().cloned().unwrap_or_default(),
        ),
    }
}
