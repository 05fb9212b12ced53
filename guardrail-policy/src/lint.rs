//! The linter: what is valid and still not what its author meant.
//!
//! Input: policies as read, problems of the reader, and the cluster if an inventory is given (rules
//! that need one are silent without). Output: [`Finding`]s, sorted by place. Rule ids are stable:
//! they are never reused or renamed.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use guardrail_graph::inventory::{Inventory, Object, Service};
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    evaluate::{CiliumOptions, Cluster, Dataplane, Evaluator},
    model::{Location, NetworkPolicy, tier::TierPolicy},
    read::{Ignore, ObjectProblem, ObjectProblemKind, PolicySet},
};

mod blocks;
mod dialects;
mod dns;
mod ports;
mod ranges;
mod rules;
mod sarif;
mod selectors;

pub use sarif::{sarif, sarif_log, sarif_place};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Wrong, or wrong after the next rollout.
    Error,
    /// Probably not what is meant.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// `error`, `warning` or `note`, as SARIF has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A lint rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LintRule {
    /// Stable id.
    pub id: &'static str,
    /// Stable name, for people.
    pub name: &'static str,
    /// Severity of its findings.
    pub severity: Severity,
    /// What it finds.
    pub summary: &'static str,
    /// What to do about it, one sentence without a full stop.
    pub fix: &'static str,
}

macro_rules! rules {
    ($($constant:ident = $id:literal $name:literal $severity:ident $summary:literal $fix:literal;)*) => {
        $(
            #[doc = $summary]
            pub const $constant: LintRule =
                LintRule { id: $id, name: $name, severity: Severity::$severity, summary: $summary, fix: $fix };
        )*
        /// Every rule, by id.
        pub const RULES: &[LintRule] = &[$($constant),*];
    };
}

rules! {
    INVALID = "GR001" "invalid" Error "The API server rejects this policy." "Correct the field that the message names";
    QUOTED_PORT = "GR002" "quoted-port" Error "A port number in quotes is a port name, and an invalid one." "Remove the quotes";
    CONFLICT = "GR003" "conflict" Error "Two different policies have one namespace and name." "Keep one of them or rename the other";
    UNKNOWN_FIELD = "GR004" "unknown-field" Warning "The API server drops a field that it does not know; a dropped selector widens a rule." "Correct the spelling or remove the field";
    GENERATED_LABEL = "GR005" "generated-label" Error "A selector names a label that a controller generates: it stops matching at the next rollout." "Select by labels that the workload's author sets";
    CLUSTER_IP_BLOCK = "GR006" "ip-block-in-cluster" Error "An ipBlock lies inside the ranges of pods or Services: pod addresses change, Service addresses are never seen." "Use podSelector and namespaceSelector";
    NODE_PORT = "GR007" "node-port" Error "A port is a Service's node port: policies are judged at the pod's own port." "Write the container port";
    SELECTS_NOTHING = "GR008" "selects-nothing" Warning "The podSelector matches no pod of the inventory." "Correct the labels or the namespace, or remove the policy";
    PEER_MATCHES_NOTHING = "GR009" "peer-matches-nothing" Warning "A peer matches no pod of the inventory." "Correct the labels; do not remove the only peer, a rule without peers allows everybody";
    WIDE_PEER = "GR010" "wide-peer" Warning "A peer is wider than it looks." "Name the pods and namespaces that are meant, both selectors in one item";
    MISSING_POLICY_TYPES = "GR011" "missing-policy-types" Warning "Without policyTypes the directions follow from the rules; removing the last egress rule then opens egress." "List policyTypes";
    IGNORED_RULES = "GR012" "ignored-rules" Warning "Rules of a direction that policyTypes does not list are ignored." "Add the direction to policyTypes or remove the rules";
    NO_DNS = "GR013" "no-dns-egress" Warning "Egress is closed and no rule allows DNS: names stop resolving." "Allow UDP and TCP 53 to the DNS pods";
    ALLOW_ALL = "GR014" "allow-all" Warning "A rule without peers and ports allows everything, external addresses included." "Name peers and ports, or drop the direction from policyTypes";
    UNKNOWN_PORT_NAME = "GR015" "unknown-port-name" Warning "No pod of the inventory that the rule can concern has a port of this name and protocol." "Correct the name, or write the number";
    UNEVALUATED = "GR016" "unevaluated-kind" Note "A policy of this kind is not evaluated: verdicts are unproven beside it." "Check it with its own tool";
    EMPTY_SPEC = "GR017" "empty-spec" Warning "Without a spec the policy closes ingress of every pod in its namespace." "Write the spec that is meant";
    UNREAD_POLICY = "GR018" "unread-policy" Warning "A policy stands inside an object that is not opened: nobody judges it." "Give the policy as an object of its own";
    RELEASE_LABEL = "GR019" "release-label" Warning "A selector names a label that holds a version, a revision or a run: it stops matching at the next release." "Select by labels that stay the same over releases";
    HOST_NETWORK_SUBJECT = "GR020" "host-network-subject" Warning "The podSelector matches only pods on their host's network, to which NetworkPolicy does not apply: the policy closes nothing." "Run them without hostNetwork, or close their ports with the firewall of the nodes";
    HOST_NETWORK_PEER = "GR021" "host-network-peer" Warning "A peer matches only pods on their host's network: most network plugins see the address of their node, and the rule admits nobody from other nodes." "Write an ipBlock of the node addresses, or run those pods without hostNetwork";
    SPLIT_RULE = "GR022" "split-rule" Warning "Peers and ports are two rules where one was probably meant: the ports are open to everybody, the peers may use every port." "Remove the second `-` if both are to hold";
    SERVICE_PORT = "GR023" "service-port" Warning "A port is that of a Service, and the pods behind it listen on another one: policies are judged at the pod's own port." "Write the container port";
    ANY_PEER = "GR024" "ports-without-peers" Note "Ports without peers are open to everybody, external addresses included." "Name the peers, unless everybody is meant";
    CLIENT_ADDRESS_LOST = "GR025" "client-address-lost" Note "An ipBlock of external clients, and the pods are behind a Service that replaces the client's address by a node's." "Set externalTrafficPolicy: Local, or close this at the load balancer";
    AMBIGUOUS_CIDR = "GR026" "ambiguous-cidr" Warning "A range is written in a way that newer API servers reject and other readers may take for another range." "Write it as it is meant";
    METADATA_ADDRESS = "GR027" "metadata-address" Note "Egress to every address includes the cloud's metadata service, which hands out credentials of the node." "Except 169.254.169.254/32";
    ONE_FAMILY = "GR028" "one-address-family" Warning "Pods have addresses of both families, and a rule's ipBlocks are of one: IPv4 blocks never match IPv6." "Add the blocks of the other family";
    ANY_NAMESPACE = "GR029" "any-namespace" Warning "A selector of a CiliumClusterwideNetworkPolicy names no namespace: it matches pods of all of them." "Add k8s:io.kubernetes.pod.namespace to the selector, unless every namespace is meant";
    MATCHES_NOBODY = "GR030" "matches-nobody" Warning "A rule of a Cilium policy without peers and ports, or with an empty list of peers, matches nobody; in a NetworkPolicy it matches everybody." "Write fromEntities or toEntities with all to allow everything, or remove the rule";
    NAMES_WITHOUT_DNS = "GR031" "names-without-dns" Warning "toFQDNs without a DNS rule for the same pods: the proxy sees no answers, so the names stand for no address." "Add an egress rule to the DNS pods with port 53 and rules.dns";
    DENY_CLOSES = "GR032" "deny-closes-the-rest" Warning "A Cilium policy that only denies isolates its pods as well: what it does not deny is closed, too." "Add enableDefaultDeny with false for the direction, or a policy that allows";
    LABEL_OUTSIDE_IDENTITY = "GR033" "label-outside-identity" Warning "A Cilium selector asks for a label that is not part of identities by default: it matches nobody." "Select by a label that is part of identities";
    PRIORITY_TIE = "GR034" "priority-tie" Warning "Two policies of one tier have the same priority and do different things: which one wins is undefined." "Give them different priorities";
    EVERY_PORT = "GR035" "every-port" Note "Port 0 of a Cilium rule, or no port, is every port." "Name the ports";
    EMPTY_FIELD = "GR036" "empty-field" Warning "A list of peers or ports, or a port, is there and empty: that means everybody, or every port." "Name them, or remove the rule";
    OTHER_PROTOCOL = "GR037" "other-protocol" Warning "No pod that the rule can concern declares the port with this protocol, and one does with another." "Write the protocol; without one it is TCP";
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Id of the rule.
    pub rule: &'static str,
    /// Name of the rule.
    pub name: &'static str,
    /// Severity.
    pub severity: Severity,
    /// Where.
    pub location: Option<Location>,
    /// `namespace/policy`, if it is about one.
    pub policy: Option<String>,
    /// What is wrong here, one sentence without a full stop.
    pub message: String,
    /// What to do, one sentence without a full stop.
    pub fix: Cow<'static, str>,
}

impl Finding {
    /// What is wrong and what to do, as one text. A reader's message says both already.
    #[must_use]
    pub fn text(&self) -> String {
        let policy = self.policy.as_ref().map_or_else(String::new, |p| format!("{p}: "));
        let told = [INVALID, QUOTED_PORT, CONFLICT, UNKNOWN_FIELD, UNREAD_POLICY, AMBIGUOUS_CIDR, EMPTY_FIELD]
            .iter()
            .any(|r| r.id == self.rule);
        if told {
            format!("{policy}{}.", self.message).replace("?.", "?")
        } else {
            format!("{policy}{}. {}.", self.message, self.fix)
        }
    }
}

/// What the linter knows beside the policies.
#[derive(Debug, Default)]
pub struct Context {
    /// Pods (also those that templates would make), namespaces, nodes; `None` without an inventory.
    pub cluster: Option<Cluster>,
    /// The objects, for what is behind Services.
    pub inventory: Inventory,
    /// Services by address.
    pub service_addresses: BTreeMap<IpAddr, Arc<Service>>,
    /// Node ports of Services, with the Service.
    pub node_ports: BTreeSet<(u16, String)>,
    /// Ranges of pods.
    pub pod_ranges: BTreeSet<IpNet>,
}

impl Context {
    /// From the objects of an inventory; none: no inventory.
    #[must_use]
    pub fn from_objects(objects: &[Object]) -> Self {
        if objects.is_empty() {
            return Self::default();
        }
        let cluster = Cluster::with_templates(objects);
        let mut context = Self {
            pod_ranges: cluster.pod_ranges.clone(),
            cluster: Some(cluster),
            inventory: Inventory::from_objects(objects.iter().cloned()),
            ..Self::default()
        };
        for service in context.inventory.services() {
            for address in &service.cluster_ips {
                context.service_addresses.insert(*address, Arc::clone(service));
            }
            let name = format!("{}/{}", service.namespace, service.name);
            context.node_ports.extend(service.ports.iter().filter_map(|p| Some((p.node_port?, name.clone()))));
        }
        context
    }
}

/// Lints what a reader found, with the reader's own problems.
#[must_use]
pub fn lint(set: &PolicySet, problems: &[ObjectProblem], context: &Context) -> Vec<Finding> {
    let mut findings: Vec<Finding> = problems.iter().chain(&set.warnings).map(of_problem).collect();
    let evaluator = context.cluster.clone().map(|cluster| compile(cluster, set));
    let network_policies = set.policies.as_slice();
    let mut linter = Linter { context, evaluator: evaluator.as_ref(), network_policies, findings: Vec::new() };
    for (policy, index) in set.policies.iter().zip(0..) {
        linter.policy(policy, index);
    }
    linter.dns(&set.policies);
    let first = u32::try_from(set.policies.len()).unwrap_or(u32::MAX);
    for (form, index) in set.forms.iter().zip(first..) {
        linter.form(form, index, &set.forms);
    }
    linter.ties(&set.forms, first);
    findings.extend(linter.findings);
    for unevaluated in &set.unevaluated {
        let rule = if unevaluated.inside.is_some() { &UNREAD_POLICY } else { &UNEVALUATED };
        findings.push(finding(rule, Some(unevaluated.location.clone()), None, unevaluated.without_place()));
    }
    drop_said_twice(&mut findings);
    findings.retain(|finding| !is_ignored(finding, set));
    findings.sort_by(|a, b| (&a.location, a.rule, &a.message).cmp(&(&b.location, b.rule, &b.message)));
    findings.dedup();
    findings
}

/// `from: []` is told as empty; that its ports are open to everybody is no second mistake, nor is
/// every port where `port:` is empty.
fn drop_said_twice(findings: &mut Vec<Finding>) {
    let place = |f: &Finding| (f.policy.clone(), f.location.clone());
    let empty: BTreeSet<_> = findings.iter().filter(|f| f.rule == EMPTY_FIELD.id).map(place).collect();
    findings.retain(|f| ![ANY_PEER.id, EVERY_PORT.id].contains(&f.rule) || !empty.contains(&place(f)));
}

/// Where there are policies of Cilium's, it enforces them all.
fn compile(cluster: Cluster, set: &PolicySet) -> Evaluator {
    let cilium = set.forms.iter().any(|form| form.kind.is_cilium());
    let dataplane = if cilium { Dataplane::Cilium(CiliumOptions::default()) } else { Dataplane::Kubernetes };
    Evaluator::mixed(cluster, set.policies.clone(), set.forms.clone(), &dataplane)
}

fn of_problem(problem: &ObjectProblem) -> Finding {
    let rule = match problem.kind {
        ObjectProblemKind::QuotedPort => &QUOTED_PORT,
        ObjectProblemKind::Conflict => &CONFLICT,
        ObjectProblemKind::UnknownField => &UNKNOWN_FIELD,
        ObjectProblemKind::AmbiguousCidr => &AMBIGUOUS_CIDR,
        ObjectProblemKind::EmptyField => &EMPTY_FIELD,
        ObjectProblemKind::Syntax | ObjectProblemKind::WrongKind | ObjectProblemKind::Invalid => &INVALID,
    };
    finding(rule, Some(problem.location.clone()), problem.policy.clone(), problem.message.clone())
}

fn finding(rule: &LintRule, location: Option<Location>, policy: Option<String>, message: String) -> Finding {
    Finding { rule: rule.id, name: rule.name, severity: rule.severity, location, policy, message, fix: rule.fix.into() }
}

/// Whether a comment `# guardrail: ignore GRnnn reason` speaks of it: on its line, on the lines
/// directly above, or above the policy for all of it. What the API server rejects cannot be
/// ignored.
fn is_ignored(finding: &Finding, set: &PolicySet) -> bool {
    let Some(location) = &finding.location else { return false };
    if [INVALID, QUOTED_PORT, CONFLICT].iter().any(|r| r.id == finding.rule) {
        return false;
    }
    let start = finding.policy.as_ref().and_then(|key| {
        let own = set.policies.iter().filter_map(|p| Some((p.key(), p.location.as_ref()?)));
        let own = own.chain(set.forms.iter().filter_map(|p| Some((p.key(), p.location.as_ref()?))));
        own.filter(|(k, at)| k == key && at.file == location.file).map(|(_, at)| at.line).next()
    });
    let holds = |ignore: &Ignore| Some(ignore.line) == start || ignore.line == location.line;
    set.ignores.iter().any(|i| i.file == location.file && i.rule == finding.rule && holds(i))
}

/// A policy of any kind, as findings name it.
trait Policy {
    fn name(&self) -> String;
    fn place(&self, line: u32) -> Option<Location>;
}

impl Policy for NetworkPolicy {
    fn name(&self) -> String {
        self.key()
    }

    fn place(&self, line: u32) -> Option<Location> {
        self.at(line)
    }
}

impl Policy for TierPolicy {
    fn name(&self) -> String {
        self.key()
    }

    fn place(&self, line: u32) -> Option<Location> {
        self.at(line)
    }
}

struct Linter<'a> {
    context: &'a Context,
    evaluator: Option<&'a Evaluator>,
    network_policies: &'a [NetworkPolicy],
    findings: Vec<Finding>,
}

impl Linter<'_> {
    fn add(&mut self, rule: &LintRule, policy: &impl Policy, line: u32, message: String) {
        self.findings.push(finding(rule, policy.place(line), Some(policy.name()), message));
    }

    /// As [`Linter::add`], with what to do here.
    fn add_with(&mut self, rule: &LintRule, policy: &impl Policy, line: u32, message: String, fix: String) {
        let finding = finding(rule, policy.place(line), Some(policy.name()), message);
        self.findings.push(Finding { fix: fix.into(), ..finding });
    }

    /// As [`Linter::add`], less sure than the rule usually is.
    fn add_as(&mut self, severity: Severity, rule: &LintRule, policy: &impl Policy, line: u32, message: String) {
        let finding = finding(rule, policy.place(line), Some(policy.name()), message);
        self.findings.push(Finding { severity, ..finding });
    }
}

#[cfg(test)]
mod tests;
