//! The intermediate form: policies as data, before any format.
//!
//! A [`Plan`] is what [`super::plan_for`] decides and what printers ([`crate::emit`]), the report
//! and the proof read. Everything in it is sorted, and nothing in it depends on how often something
//! was seen, so equal decisions are equal plans.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{Protocol, WorkloadRef, snapshot::LabelSelector};
use ipnet::IpNet;

use super::{Format, Phase};
use crate::{exception::opening::ExceptionMark, model::tier::Entity};

/// Policies of one export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What was asked for.
    pub phase: Phase,
    /// The kind of policy that it is made for: only Cilium's names peers by entity or DNS name.
    pub format: Format,
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
    /// Allows something for a while, beside policies that isolate already.
    Exception(ExceptionMark),
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
    /// How far its pods are closed.
    pub phase: Phase,
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

/// One rule: any of the peers, on any of the ports. In [`Format::Cilium`] all peers are of one
/// kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlannedRule {
    /// Peers, sorted, never empty.
    pub peers: Vec<RulePeer>,
    /// Ports, sorted; empty means every port (only within a namespace, phase constrain).
    pub ports: Vec<RulePort>,
    /// A way to DNS servers on which the data plane learns which addresses a name has.
    pub learns_names: bool,
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
    /// Every pod of the cluster.
    EveryPod,
    /// Addresses.
    Block {
        /// The range.
        cidr: IpNet,
        /// What is not meant.
        except: BTreeSet<IpNet>,
    },
    /// What Cilium knows by entity: nodes, the API server, everybody outside.
    Entity(Entity),
    /// External servers by the DNS name that is asked for, lower case.
    Name(String),
}

impl RulePeer {
    /// Which of the peer fields of a Cilium rule holds it: a rule takes one.
    const fn field(&self) -> u8 {
        match self {
            Self::Pods { .. } | Self::EveryPod => 0,
            Self::Block { .. } => 1,
            Self::Entity(_) => 2,
            Self::Name(_) => 3,
        }
    }
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
    /// Those that lead to DNS servers and teach names.
    learning: BTreeMap<RulePeer, BTreeSet<RulePort>>,
}

impl RuleSet {
    pub(crate) fn allow(&mut self, peer: RulePeer, ports: impl IntoIterator<Item = RulePort>) {
        self.by_peer.entry(peer).or_default().extend(ports);
    }

    /// Nobody is allowed.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_peer.is_empty() && self.learning.is_empty()
    }

    /// Whether a server is allowed by its DNS name.
    pub(crate) fn names_servers(&self) -> bool {
        self.by_peer.keys().any(|peer| matches!(peer, RulePeer::Name(_)))
    }

    /// Has names learnt on the way to these ports.
    pub(crate) fn learn(&mut self, is_dns: impl Fn(&RulePeer, &RulePort) -> bool) {
        for (peer, ports) in &mut self.by_peer {
            let dns: BTreeSet<RulePort> = ports.extract_if(.., |port| is_dns(peer, port)).collect();
            if !dns.is_empty() {
                self.learning.entry(peer.clone()).or_default().extend(dns);
            }
        }
        // A peer without ports may be reached on all of them: what is left of a DNS server is
        // nothing.
        let learning = &self.learning;
        self.by_peer.retain(|peer, ports| !(ports.is_empty() && learning.contains_key(peer)));
    }

    /// Rules that differ only in port are one rule by construction; peers with the same ports then
    /// share a rule, if the format has one place for them.
    pub(crate) fn into_rules(self, format: Format) -> Vec<PlannedRule> {
        let mut shared: BTreeMap<(BTreeSet<RulePort>, bool, u8), BTreeSet<RulePeer>> = BTreeMap::new();
        let plain = self.by_peer.into_iter().map(|entry| (entry, false));
        for ((peer, ports), learns) in plain.chain(self.learning.into_iter().map(|entry| (entry, true))) {
            let place = if format == Format::Cilium { peer.field() } else { 0 };
            shared.entry((ports, learns, place)).or_default().insert(peer);
        }
        let rule = |((ports, learns_names, _), peers): ((BTreeSet<RulePort>, bool, u8), BTreeSet<RulePeer>)| {
            let (peers, ports) = (peers.into_iter().collect(), ports.into_iter().collect());
            PlannedRule { peers, ports, learns_names }
        };
        let mut rules: Vec<_> = shared.into_iter().map(rule).collect();
        rules.sort();
        rules
    }
}
