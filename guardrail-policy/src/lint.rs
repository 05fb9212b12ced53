//! The linter: what is valid and still not what its author meant.
//!
//! Input: policies as read, problems of the reader, and the cluster if an inventory is given (rules that need one are silent without). Output:
//! [`Finding`]s, sorted by place. Rule ids are stable: they are never reused or renamed.

use std::{collections::BTreeSet, net::IpAddr};

use guardrail_graph::inventory::Object;
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    evaluate::{Cluster, Evaluator},
    model::{Location, NetworkPolicy},
    read::{PolicySet, Problem, ProblemKind},
};

mod dns;
mod rules;
mod sarif;

pub use sarif::sarif;

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
    /// What to do about it, one sentence.
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
    INVALID = "GR001" "invalid" Error "The API server rejects this policy." "Correct the field that the message names.";
    QUOTED_PORT = "GR002" "quoted-port" Error "A port number in quotes is a port name, and an invalid one." "Remove the quotes.";
    CONFLICT = "GR003" "conflict" Error "Two different policies have one namespace and name." "Keep one of them or rename the other.";
    UNKNOWN_FIELD = "GR004" "unknown-field" Warning "The API server drops a field that it does not know; a dropped selector widens a rule." "Correct the spelling or remove the field.";
    GENERATED_LABEL = "GR005" "generated-label" Error "A selector names a label that a controller generates: it stops matching at the next rollout." "Select by labels that the workload's author sets.";
    CLUSTER_IP_BLOCK = "GR006" "ip-block-in-cluster" Error "An ipBlock lies inside the ranges of pods or Services: pod addresses change, Service addresses are never seen." "Use podSelector and namespaceSelector.";
    NODE_PORT = "GR007" "node-port" Error "A port is a Service's node port: policies are judged at the pod's own port." "Write the container port.";
    SELECTS_NOTHING = "GR008" "selects-nothing" Warning "The podSelector matches no pod of the inventory." "Correct the labels or the namespace, or remove the policy.";
    PEER_MATCHES_NOTHING = "GR009" "peer-matches-nothing" Warning "A peer matches no pod of the inventory." "Correct the labels, or remove the peer.";
    WIDE_PEER = "GR010" "wide-peer" Warning "A peer is wider than it looks." "Name the pods and namespaces that are meant, both selectors in one item.";
    MISSING_POLICY_TYPES = "GR011" "missing-policy-types" Warning "Without policyTypes the directions follow from the rules; removing the last egress rule then opens egress." "List policyTypes.";
    IGNORED_RULES = "GR012" "ignored-rules" Warning "Rules of a direction that policyTypes does not list are ignored." "Add the direction to policyTypes or remove the rules.";
    NO_DNS = "GR013" "no-dns-egress" Warning "Egress is closed and no rule allows DNS: names stop resolving." "Allow UDP and TCP 53 to the DNS pods.";
    ALLOW_ALL = "GR014" "allow-all" Warning "A rule without peers and ports allows everything, external addresses included." "Name peers and ports, or drop the direction from policyTypes.";
    UNKNOWN_PORT_NAME = "GR015" "unknown-port-name" Warning "No pod of the inventory that the rule can concern has a port of this name and protocol." "Correct the name, or write the number.";
    UNEVALUATED = "GR016" "unevaluated-kind" Note "A policy of this kind is not evaluated: verdicts are unproven beside it." "Check it with its own tool.";
    EMPTY_SPEC = "GR017" "empty-spec" Warning "Without a spec the policy closes ingress of every pod in its namespace." "Write the spec that is meant.";
    UNREAD_POLICY = "GR018" "unread-policy" Warning "A policy stands inside an object that is not opened: nobody judges it." "Give the policy as an object of its own.";
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
    /// What to do, one sentence.
    pub fix: &'static str,
}

impl Finding {
    /// What is wrong and what to do, as one text. A reader's message says both already.
    #[must_use]
    pub fn text(&self) -> String {
        let policy = self.policy.as_ref().map_or_else(String::new, |p| format!("{p}: "));
        let told = [INVALID, QUOTED_PORT, CONFLICT, UNKNOWN_FIELD, UNREAD_POLICY].iter().any(|r| r.id == self.rule);
        if told {
            format!("{policy}{}.", self.message).replace("?.", "?")
        } else {
            format!("{policy}{}. {}", self.message, self.fix)
        }
    }
}

/// What the linter knows beside the policies.
#[derive(Debug, Default)]
pub struct Context {
    /// Pods, namespaces, nodes; `None` without an inventory.
    pub cluster: Option<Cluster>,
    /// Addresses of Services.
    pub service_addresses: BTreeSet<IpAddr>,
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
        let cluster = Cluster::from_objects(objects);
        let mut context = Self { pod_ranges: cluster.pod_ranges.clone(), cluster: Some(cluster), ..Self::default() };
        for object in objects {
            if let Object::Service(service) = object {
                context.service_addresses.extend(&service.cluster_ips);
                let name = format!("{}/{}", service.namespace, service.name);
                context.node_ports.extend(service.ports.iter().filter_map(|p| Some((p.node_port?, name.clone()))));
            }
        }
        context
    }
}

/// Lints what a reader found, with the reader's own problems.
#[must_use]
pub fn lint(set: &PolicySet, problems: &[Problem], context: &Context) -> Vec<Finding> {
    let mut findings: Vec<Finding> = problems.iter().chain(&set.warnings).map(of_problem).collect();
    let evaluator = context.cluster.clone().map(|cluster| Evaluator::new(cluster, set.policies.clone()));
    let mut linter = Linter { context, evaluator: evaluator.as_ref(), findings: Vec::new() };
    for (policy, index) in set.policies.iter().zip(0..) {
        linter.policy(policy, index);
    }
    linter.dns(&set.policies);
    findings.extend(linter.findings);
    for unevaluated in &set.unevaluated {
        let rule = if unevaluated.inside.is_some() { &UNREAD_POLICY } else { &UNEVALUATED };
        findings.push(finding(rule, Some(unevaluated.location.clone()), None, unevaluated.without_place()));
    }
    findings.sort_by(|a, b| (&a.location, a.rule, &a.message).cmp(&(&b.location, b.rule, &b.message)));
    findings.dedup();
    findings
}

fn of_problem(problem: &Problem) -> Finding {
    let rule = match problem.kind {
        ProblemKind::QuotedPort => &QUOTED_PORT,
        ProblemKind::Conflict => &CONFLICT,
        ProblemKind::UnknownField => &UNKNOWN_FIELD,
        ProblemKind::Syntax | ProblemKind::WrongKind | ProblemKind::Invalid => &INVALID,
    };
    finding(rule, Some(problem.location.clone()), problem.policy.clone(), problem.message.clone())
}

fn finding(rule: &LintRule, location: Option<Location>, policy: Option<String>, message: String) -> Finding {
    Finding { rule: rule.id, name: rule.name, severity: rule.severity, location, policy, message, fix: rule.fix }
}

struct Linter<'a> {
    context: &'a Context,
    evaluator: Option<&'a Evaluator>,
    findings: Vec<Finding>,
}

impl Linter<'_> {
    fn add(&mut self, rule: &LintRule, policy: &NetworkPolicy, line: u32, message: String) {
        self.findings.push(finding(rule, policy.at(line), Some(policy.key()), message));
    }
}

#[cfg(test)]
mod tests;
