//! The evaluator: what a CNI that implements networking.k8s.io/v1 to the letter does with a connection (docs/semantics.md part A).
//!
//! [`Cluster`] says which pods, nodes and addresses exist; [`Evaluator::new`] compiles policies against it: pods that no policy can tell apart form
//! one class, each distinct peer selector becomes one set of classes, so that judging a connection is a handful of bit tests.
//! A [`Verdict`] names the rules that decided. Workload-level questions (a snapshot's edges) are in [`edge`].
//!
//! Invariant: a verdict depends only on the two ends, protocol, port, cluster and policies; never on the order of policies or pods.

use std::{collections::HashMap, net::IpAddr};

use guardrail_graph::snapshot::LabelSelector;

use crate::model::{Direction, NAMESPACE_NAME_LABEL, NetworkPolicy, Protocol};

pub mod cluster;
mod compile;
pub mod connections;
pub mod edge;
mod ends;
mod stand_ins;
mod virtuals;

pub use cluster::{Cluster, ClusterNode, ClusterPod};
pub use compile::Admission;
pub use edge::EdgeVerdict;
pub use ends::{End, UnknownEnd, common_addresses, families};
pub use virtuals::DeclaredPort;

use compile::Compiled;

/// Names one rule: index of the policy in [`Evaluator::policies`] and index of the rule in its direction's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef {
    /// Index into [`Evaluator::policies`].
    pub policy: u32,
    /// Index into `spec.ingress` or `spec.egress`, from 0.
    pub rule: u32,
}

/// What one side's policies say about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// No policy isolates this end in this direction (or the end is no pod): nothing is forbidden.
    NotIsolated,
    /// Isolated, and these rules match, sorted.
    AllowedBy(Vec<RuleRef>),
    /// Isolated, and no rule matches.
    Denied,
}

impl Side {
    /// Whether this side lets the connection pass.
    #[must_use]
    pub fn allows(&self) -> bool {
        !matches!(self, Self::Denied)
    }

    /// The rules that match; empty unless [`Side::AllowedBy`].
    #[must_use]
    pub fn rules(&self) -> &[RuleRef] {
        match self {
            Self::AllowedBy(rules) => rules,
            Self::NotIsolated | Self::Denied => &[],
        }
    }
}

/// Why policies have no say in a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exemption {
    /// A pod to itself (A28).
    Itself,
    /// A pod and its own node (A29).
    OwnNode,
}

/// The answer for one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Set if the connection is allowed whatever the policies say; both sides are then [`Side::NotIsolated`].
    pub exemption: Option<Exemption>,
    /// What the source's egress policies say.
    pub egress: Side,
    /// What the destination's ingress policies say.
    pub ingress: Side,
}

impl Verdict {
    /// Allowed: the source's egress **and** the destination's ingress allow it (A8).
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.egress.allows() && self.ingress.allows()
    }
}

/// Policies compiled against a cluster.
///
/// ```
/// use guardrail_policy::{evaluate::{Cluster, Evaluator}, model::Protocol, read};
/// let set = read::policies("p.yaml", b"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {}}").unwrap();
/// let evaluator = Evaluator::new(Cluster::default(), set.policies);
/// let outside = evaluator.end_of_address("192.0.2.7".parse().unwrap());
/// assert!(evaluator.evaluate(&outside, &outside, Protocol::Tcp, 443).allowed());
/// ```
#[derive(Debug)]
pub struct Evaluator {
    cluster: Cluster,
    policies: Vec<NetworkPolicy>,
    compiled: Compiled,
    /// Pod name (`namespace/name`) to index.
    names: HashMap<String, u32>,
    /// Who answers at an address.
    owners: HashMap<IpAddr, ends::Owner>,
    /// The kinds of pods of each workload.
    replicas: edge::Replicas,
}

impl Evaluator {
    /// Compiles. Cost: distinct selectors × distinct kinds of pods.
    #[must_use]
    pub fn new(cluster: Cluster, policies: Vec<NetworkPolicy>) -> Self {
        let compiled = Compiled::new(&cluster, &policies);
        let names = cluster.pods.iter().zip(0..).map(|(p, i)| (format!("{}/{}", p.namespace, p.name), i)).collect();
        let owners = ends::owners(&cluster);
        let mut evaluator = Self { cluster, policies, compiled, names, owners, replicas: edge::Replicas::new() };
        evaluator.replicas = evaluator.find_replicas();
        evaluator
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The policies, in the order given.
    #[must_use]
    pub fn policies(&self) -> &[NetworkPolicy] {
        &self.policies
    }

    /// The policy that a rule belongs to.
    #[must_use]
    pub fn policy(&self, rule: RuleRef) -> &NetworkPolicy {
        &self.policies[rule.policy as usize]
    }

    /// `namespace/policy#rule`, rules counted from 1.
    #[must_use]
    pub fn rule_name(&self, rule: RuleRef) -> String {
        let policy = self.policy(rule);
        format!("{}/{}#{}", policy.namespace, policy.name, rule.rule + 1)
    }

    /// Judges one connection from `src` to `dst` at the destination's own port (after address translation, A27).
    ///
    /// A pod that was given by name and has addresses of both families is judged at the family that both ends have, the destination's first one
    /// if they share both.
    #[must_use]
    pub fn evaluate(&self, src: &End, dst: &End, protocol: Protocol, port: u16) -> Verdict {
        if let Some(exemption) = ends::exemption(src, dst) {
            return Verdict { exemption: Some(exemption), egress: Side::NotIsolated, ingress: Side::NotIsolated };
        }
        let (src_address, dst_address) = common_addresses(src, dst);
        let c = &self.compiled;
        Verdict {
            exemption: None,
            egress: c.side(Direction::Egress, src.class, dst.class, dst_address, dst.class, protocol, port),
            ingress: c.side(Direction::Ingress, dst.class, src.class, src_address, dst.class, protocol, port),
        }
    }

    /// Prepares to ask about many clients of one server's port. Exempt pairs (A28, A29) are not considered.
    #[must_use]
    pub fn admission(&self, server: &End, protocol: Protocol, port: u16) -> Admission<'_> {
        self.compiled.admission(server.class, protocol, port)
    }

    /// Indices of the policies that select this end and isolate it in this direction.
    #[must_use]
    pub fn isolating(&self, end: &End, direction: Direction) -> Vec<u32> {
        self.compiled.isolating(end.class, direction).collect()
    }

    /// Indices of the pods that the policy selects: live, not on the host network.
    #[must_use]
    pub fn selected_pods(&self, policy: u32) -> Vec<u32> {
        self.compiled.selected(policy)
    }

    /// How many live pods the label selectors of a peer match; `None` for an `ipBlock`.
    #[must_use]
    pub fn peer_pods(&self, policy: &NetworkPolicy, peer: &crate::model::PeerKind) -> Option<usize> {
        self.compiled.peer_pods(&self.cluster, policy, peer)
    }

    /// Policies that select namespaces by other labels than the name, if the cluster's namespace labels are not known: their verdicts are not proven.
    #[must_use]
    pub fn needs_namespace_labels(&self) -> Vec<&NetworkPolicy> {
        let unknown = |policy: &NetworkPolicy| {
            let selectors =
                [&policy.ingress, &policy.egress].into_iter().flatten().flat_map(|r| &r.peers).filter_map(|p| match &p
                    .kind
                {
                    crate::model::PeerKind::Pods { namespaces, .. } => namespaces.as_ref(),
                    crate::model::PeerKind::IpBlock(_) => None,
                });
            selectors.into_iter().any(by_other_labels)
        };
        if self.cluster.namespaces_without_labels().next().is_none() {
            return Vec::new();
        }
        self.policies.iter().filter(|p| unknown(p)).collect()
    }
}

fn by_other_labels(selector: &LabelSelector) -> bool {
    selector
        .match_labels
        .keys()
        .chain(selector.match_expressions.iter().map(|e| &e.key))
        .any(|key| key != NAMESPACE_NAME_LABEL)
}

#[cfg(test)]
mod tests;
