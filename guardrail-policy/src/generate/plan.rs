//! The intermediate form: policies as data, before any format.
//!
//! A [`Plan`] is what [`super::plan_for`] decides and what printers ([`crate::emit`]), the report
//! and the proof read. Everything in it is sorted, and nothing in it depends on how often something
//! was seen, so equal decisions are equal plans.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{Protocol, WorkloadRef, snapshot::LabelSelector};
use ipnet::IpNet;

use super::Phase;

/// Policies of one export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What was asked for.
    pub phase: Phase,
    /// The policies, sorted by namespace and name.
    pub policies: Vec<PlannedPolicy>,
}

/// What a policy is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Closes ingress to every pod of the namespace; allows nothing.
    DenyIngress,
    /// Closes egress from every pod of the namespace but for DNS.
    DenyEgress,
    /// The namespace boundary of phase constrain.
    Boundary,
    /// Allows what one workload needs.
    Workload(WorkloadRef),
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPolicy {
    /// Namespace.
    pub namespace: String,
    /// Name, unique in the namespace.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its pods; the empty selector means all pods of the namespace.
    pub subject: LabelSelector,
    /// Ingress rules; `None`: this policy does not isolate ingress.
    pub ingress: Option<Vec<PlannedRule>>,
    /// Egress rules; `None`: this policy does not isolate egress.
    pub egress: Option<Vec<PlannedRule>>,
    /// Whether the evidence for what it selects is complete.
    pub complete: bool,
    /// The observed nodes, if they do not host every pod it selects: then it must not be applied.
    pub view: Option<BTreeSet<String>>,
    /// What a reader of the file must know, sorted.
    pub notes: BTreeSet<String>,
}

/// One rule: any of the peers, on any of the ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlannedRule {
    /// Peers, never empty.
    pub peers: BTreeSet<RulePeer>,
    /// Ports; empty means every port (only within a namespace, phase constrain).
    pub ports: BTreeSet<RulePort>,
}

/// One peer of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RulePeer {
    /// Pods.
    Pods {
        /// Their namespace; `None`: the policy's own.
        namespace: Option<String>,
        /// Their labels; empty means all pods there.
        selector: LabelSelector,
    },
    /// Addresses.
    Block {
        /// The range.
        cidr: IpNet,
        /// What is not meant.
        except: BTreeSet<IpNet>,
    },
}

/// One port of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RulePort {
    /// Protocol.
    pub protocol: Protocol,
    /// The pod's port.
    pub port: PortRef,
}

/// By number or by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortRef {
    /// A pod port.
    Number(u16),
    /// A container port's name, where its number differs between pods (docs/semantics.md B2).
    Name(String),
}

/// Collects what each peer may reach, and turns it into the fewest rules that say exactly that.
#[derive(Clone, Debug, Default)]
pub(crate) struct RuleSet {
    by_peer: BTreeMap<RulePeer, BTreeSet<RulePort>>,
}

impl RuleSet {
    pub(crate) fn allow(&mut self, peer: RulePeer, ports: impl IntoIterator<Item = RulePort>) {
        self.by_peer.entry(peer).or_default().extend(ports);
    }

    /// Rules that differ only in port are one rule by construction; peers with the same ports then
    /// share a rule.
    pub(crate) fn into_rules(self) -> Vec<PlannedRule> {
        let mut by_ports: BTreeMap<BTreeSet<RulePort>, BTreeSet<RulePeer>> = BTreeMap::new();
        for (peer, ports) in self.by_peer {
            by_ports.entry(ports).or_default().insert(peer);
        }
        let mut rules: Vec<_> = by_ports.into_iter().map(|(ports, peers)| PlannedRule { peers, ports }).collect();
        rules.sort();
        rules
    }
}
