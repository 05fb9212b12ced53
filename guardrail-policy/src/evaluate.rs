//! The evaluator: what a data plane does with a connection, by policies of all dialects
//! ([`crate::model::tier`]). The default data plane implements the Kubernetes API to the letter
//! (docs/semantics.md part A); [`Dataplane`] names the others.
//!
//! [`Cluster`] says which pods, nodes and addresses exist; [`Evaluator::new`] compiles policies
//! against it: pods that no policy can tell apart form
//! one class, each distinct peer selector becomes one set of classes, so that judging a connection
//! is a handful of bit tests.
//! A [`Verdict`] names the rules that decided. Workload-level questions (a snapshot's edges) are in
//! [`edge`].
//!
//! Invariant: a verdict depends only on the two ends, protocol, port, cluster and policies; never
//! on the order of policies or pods.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use guardrail_graph::snapshot::LabelSelector;

use crate::model::{
    Direction, NAMESPACE_NAME_LABEL, NetworkPolicy, Protocol, Shared,
    tier::{Entity, PodSelector, Subject, TierPeer, TierPolicy, TierRule},
};

mod asked;
mod bitset;
pub mod cluster;
mod compile;
pub mod connections;
pub mod dataplane;
pub mod difference;
pub mod edge;
mod ends;
pub mod facts;
pub(crate) mod identity;
mod kinds;
mod rules;
mod services;
mod stages;
mod stand_ins;
mod tiers;
mod virtuals;

pub use cluster::{Cluster, ClusterNode, ClusterPod};
pub use dataplane::{CiliumOptions, Dataplane, Enforcement};
pub use edge::EdgeVerdict;
pub(crate) use edge::uses_api_server;
pub(crate) use ends::is_node_cache;
pub use ends::{End, UnknownEnd, common_addresses, families};
pub use facts::Facts;
pub use identity::LabelFilter;
pub use services::{AskedPort, AskedService, AskedServices};
pub use tiers::{Admission, Clients};
pub use virtuals::DeclaredPort;

use asked::{Asked, Other};
use compile::Compiled;
use ends::Relation;
use tiers::{AnyRule, Deciders};

/// Names one rule: index of the policy in [`Evaluator::forms`] and index of the rule in its
/// direction's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef {
    /// Index into [`Evaluator::forms`]; NetworkPolicies come first there, so it is one into
    /// [`Evaluator::policies`] for those.
    pub policy: u32,
    /// Index into the policy's rules of the direction, from 0; `spec.ingress` or `spec.egress` of a
    /// NetworkPolicy.
    pub rule: u32,
}

/// What one side's policies say about a connection. `R`: what is kept of the rules that decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SideVerdict<R = Vec<RuleRef>> {
    /// Nothing is forbidden: no policy isolates this end in this direction, or the end is nothing
    /// that policies can select.
    NotIsolated,
    /// These rules accept it, sorted: all that match in the union tier, the first one in an ordered
    /// tier.
    AllowedBy(R),
    /// Isolated, and no rule accepts it.
    Denied,
    /// These rules deny it, sorted.
    DeniedBy(R),
    /// What these rules say decides, and nothing here tells what they say (see
    /// [`Evaluator::why_unproven`]).
    Unproven(R),
}

impl<R> SideVerdict<R> {
    /// Whether this side lets the connection pass.
    #[must_use]
    pub fn allows(&self) -> bool {
        matches!(self, Self::NotIsolated | Self::AllowedBy(_))
    }

    /// Whether this side denies the connection.
    #[must_use]
    pub fn denies(&self) -> bool {
        matches!(self, Self::Denied | Self::DeniedBy(_))
    }

    /// The one that lets less pass.
    fn worse(self, other: Self) -> Self {
        let rank = |side: &Self| if side.denies() { 2 } else { u8::from(!side.allows()) };
        if rank(&other) > rank(&self) { other } else { self }
    }
}

impl SideVerdict {
    /// The rules that decide.
    #[must_use]
    pub fn rules(&self) -> &[RuleRef] {
        match self {
            Self::AllowedBy(rules) | Self::DeniedBy(rules) | Self::Unproven(rules) => rules,
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
    /// Set if the connection is allowed whatever the policies say; both sides are then
    /// [`SideVerdict::NotIsolated`].
    /// Under Cilium only the own node's way to its pods is exempt.
    pub exemption: Option<Exemption>,
    /// What the source's egress policies say.
    pub egress: SideVerdict,
    /// What the destination's ingress policies say.
    pub ingress: SideVerdict,
}

impl Verdict {
    /// Allowed: the source's egress **and** the destination's ingress allow it (A8).
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.egress.allows() && self.ingress.allows()
    }

    /// Denied for certain, by one side at least.
    #[must_use]
    pub fn denied(&self) -> bool {
        self.egress.denies() || self.ingress.denies()
    }
}

/// Policies compiled against a cluster.
///
/// ```
/// use guardrail_policy::{evaluate::{Cluster, Evaluator}, model::Protocol, read};
/// let set = read::policies("p.yaml", b"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy,
/// metadata: {name: deny}, spec: {}}").unwrap();
/// let evaluator = Evaluator::new(Cluster::default(), set.policies);
/// let outside = evaluator.end_of_address("192.0.2.7".parse().unwrap());
/// assert!(evaluator.evaluate(&outside, &outside, Protocol::Tcp, 443).allowed());
/// ```
#[derive(Debug)]
pub struct Evaluator {
    cluster: Arc<Cluster>,
    policies: Vec<NetworkPolicy>,
    /// The policies, and those of other kinds after them.
    forms: Vec<TierPolicy>,
    compiled: Compiled,
    /// Pod name (`namespace/name`) to index.
    names: HashMap<String, u32>,
    /// Who answers at an address.
    owners: HashMap<IpAddr, ends::Owner>,
    /// The kinds of pods of each workload.
    replicas: edge::Replicas,
    /// Who enforces them.
    dataplane: Dataplane,
}

impl Evaluator {
    /// Compiles NetworkPolicies for a data plane that follows the API to the letter. Cost: distinct
    /// selectors × distinct kinds of pods.
    #[must_use]
    pub fn new(cluster: Cluster, policies: Vec<NetworkPolicy>) -> Self {
        Self::mixed(cluster, policies, Vec::new(), &Dataplane::Kubernetes)
    }

    /// Compiles policies of all kinds for a data plane. It enforces them all: kinds that it does
    /// not know have to be left out by the caller.
    #[must_use]
    pub fn mixed(
        cluster: impl Into<Arc<Cluster>>,
        policies: Vec<NetworkPolicy>,
        others: Vec<TierPolicy>,
        dataplane: &Dataplane,
    ) -> Self {
        let cluster = cluster.into();
        let mut forms: Vec<TierPolicy> = policies.iter().map(TierPolicy::from).collect();
        let mut shared = Shared::default();
        forms.iter_mut().for_each(|form| shared.form(form));
        drop(shared);
        forms.extend(others);
        let compiled = Compiled::new(&cluster, &forms, dataplane);
        let names = cluster.pods.iter().zip(0..).map(|(p, i)| (format!("{}/{}", p.namespace, p.name), i)).collect();
        let owners = ends::owners(&cluster);
        let (replicas, dataplane) = (edge::Replicas::new(), dataplane.clone());
        let mut evaluator = Self { cluster, policies, forms, compiled, names, owners, replicas, dataplane };
        evaluator.replicas = evaluator.find_replicas();
        evaluator
    }

    /// The same policies over a cluster that has these pods, too; they come after its own.
    #[must_use]
    pub fn with_pods(&self, pods: impl IntoIterator<Item = ClusterPod>) -> Self {
        let mut cluster = Cluster::clone(&self.cluster);
        for pod in pods {
            cluster.push_pod(pod);
        }
        let others = self.forms[self.policies.len()..].to_vec();
        Self::mixed(cluster, self.policies.clone(), others, &self.dataplane)
    }

    /// More policies over the same cluster; the NetworkPolicies come after its own, and so do the
    /// others.
    #[must_use]
    pub fn beside(&self, policies: Vec<NetworkPolicy>, others: Vec<TierPolicy>) -> Self {
        let (own, own_others) = (&self.policies, &self.forms[self.policies.len()..]);
        let policies = own.iter().cloned().chain(policies).collect();
        let others = own_others.iter().cloned().chain(others).collect();
        Self::mixed(Arc::clone(&self.cluster), policies, others, &self.dataplane)
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The data plane that it judges for.
    #[must_use]
    pub fn dataplane(&self) -> &Dataplane {
        &self.dataplane
    }

    /// The NetworkPolicies, in the order given.
    #[must_use]
    pub fn policies(&self) -> &[NetworkPolicy] {
        &self.policies
    }

    /// All policies in the one form: the NetworkPolicies, then the others, in the order given.
    #[must_use]
    pub fn forms(&self) -> &[TierPolicy] {
        &self.forms
    }

    /// The policy that a rule belongs to.
    #[must_use]
    pub fn form(&self, rule: RuleRef) -> &TierPolicy {
        &self.forms[rule.policy as usize]
    }

    /// The rule itself.
    #[must_use]
    pub fn rule(&self, direction: Direction, rule: RuleRef) -> &TierRule {
        &self.form(rule).rules(direction)[rule.rule as usize]
    }

    /// `namespace/policy#rule`, rules counted from 1; the kind stands first unless it is
    /// NetworkPolicy.
    #[must_use]
    pub fn rule_name(&self, direction: Direction, rule: RuleRef) -> String {
        format!("{}#{}", self.form(rule).key(), self.rule(direction, rule).label)
    }

    /// Whether a proxy restricts what this side allows: every rule that accepts it has rules about
    /// requests.
    #[must_use]
    pub fn restricted(&self, direction: Direction, side: &SideVerdict) -> bool {
        match side {
            SideVerdict::AllowedBy(rules) => rules.iter().all(|r| self.rule(direction, *r).l7),
            _ => false,
        }
    }

    /// Why an unproven side is: one sentence a rule.
    #[must_use]
    pub fn why_unproven(&self, direction: Direction, side: &SideVerdict) -> Vec<String> {
        let SideVerdict::Unproven(rules) = side else { return Vec::new() };
        let mut policies: Vec<u32> = rules.iter().map(|r| r.policy).collect();
        policies.dedup();
        let priorities = || policies.iter().map(|p| self.forms[*p as usize].priority);
        let tie = rules.iter().all(|r| self.form(*r).tier.ordered())
            && policies.len() > 1
            && priorities().all(|p| Some(p) == priorities().next());
        let undecidable = |rule: &&RuleRef| {
            let peers = || self.rule(direction, **rule).peers.iter().flatten();
            let range = |peer: &TierPeer| {
                matches!(
                    peer,
                    TierPeer::Addresses { .. }
                        | TierPeer::CidrGroup { .. }
                        | TierPeer::CidrGroups { .. }
                        | TierPeer::Service { .. }
                        | TierPeer::Name(_)
                )
            };
            let without_address = || {
                (!tie && peers().any(|peer| range(peer)))
                    .then(|| "whether its addresses hold the peer, which has none here, is not known".to_owned())
            };
            peers().find_map(|peer| self.undecidable(peer)).or_else(without_address)
        };
        let mut reasons = Vec::new();
        for rule in rules {
            reasons.extend(undecidable(&rule).map(|why| format!("{}: {why}", self.rule_name(direction, *rule))));
        }
        if reasons.is_empty() {
            let names: Vec<String> = rules.iter().map(|r| self.rule_name(direction, *r)).collect();
            let priority = rules.first().map_or(0, |r| self.form(*r).priority);
            reasons.push(format!(
                "{} have the same priority {priority} and disagree; which one wins is undefined",
                names.join(" and ")
            ));
        }
        reasons
    }

    /// Rules of which nothing here tells whom they match: one sentence each.
    #[must_use]
    pub fn undecided(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (form, policy) in self.forms.iter().zip(0..) {
            for direction in Direction::BOTH {
                for (rule, number) in form.rules(direction).iter().zip(0..) {
                    let why = rule.peers.iter().flatten().find_map(|peer| self.undecidable(peer));
                    let name = || self.rule_name(direction, RuleRef { policy, rule: number });
                    all.extend(why.map(|why| format!("{}: {why}", name())));
                }
            }
        }
        all
    }

    /// References to `CiliumCIDRGroup`s that are not there, though others are: one sentence each.
    #[must_use]
    pub fn missing_groups(&self) -> Vec<String> {
        let groups = &self.cluster.cidr_groups;
        let mut all = Vec::new();
        for (form, policy) in self.forms.iter().zip(0..).filter(|_| !groups.is_empty()) {
            for direction in Direction::BOTH {
                for (rule, number) in form.rules(direction).iter().zip(0..) {
                    let missing = |peer: &TierPeer| match peer {
                        TierPeer::CidrGroup { name, .. } if !groups.contains_key(name) => Some(name.clone()),
                        _ => None,
                    };
                    for name in rule.peers.iter().flatten().filter_map(|peer| missing(peer)) {
                        let rule = self.rule_name(direction, RuleRef { policy, rule: number });
                        all.push(format!(
                            "{rule} refers to CiliumCIDRGroup {name}, which the inventory does not have: it matches nobody"
                        ));
                    }
                }
            }
        }
        all
    }

    fn undecidable(&self, peer: &TierPeer) -> Option<String> {
        match peer {
            TierPeer::Undecidable(what) => Some(format!("{what} is known to a cloud or a cluster only")),
            TierPeer::Name(name) if !self.cluster.all_names => Some(format!(
                "the addresses of {} are not known; give all that were resolved with --names",
                name.pattern
            )),
            TierPeer::Entity(Entity::KubeApiserver | Entity::Cluster) if self.cluster.api_servers().is_none() => Some(
                "the API server's addresses are not known; add the EndpointSlices of default/kubernetes to --inventory"
                    .to_owned(),
            ),
            TierPeer::CidrGroup { name, .. } if self.cluster.cidr_groups.is_empty() => Some(format!(
                "the ranges of CiliumCIDRGroup {name} are not known; add the CiliumCIDRGroups to --inventory"
            )),
            TierPeer::CidrGroups { selector, .. } if self.cluster.cidr_groups.is_empty() => Some(format!(
                "the CiliumCIDRGroups with {} are not known; add the CiliumCIDRGroups to --inventory",
                crate::model::words(selector)
            )),
            TierPeer::Pods(selector) if selector.may_match_no_pod() => {
                Some("its selector asks for absent labels only, which may hold for what is no pod".to_owned())
            }
            _ => None,
        }
    }

    /// Judges one connection from `src` to `dst` at the destination's own port (after address
    /// translation, A27).
    ///
    /// A pod that was given by name and has addresses of both families is judged at the family that
    /// both ends have, the destination's first one
    /// if they share both.
    #[must_use]
    pub fn evaluate(&self, src: &End, dst: &End, protocol: Protocol, port: u16) -> Verdict {
        let (exemption, egress, ingress) = self.verdict(src, dst, protocol, port);
        Verdict { exemption, egress, ingress }
    }

    /// Whether that connection is allowed, as [`Verdict::allowed`] says. It costs less than asking
    /// which rules decide.
    #[must_use]
    pub fn allows(&self, src: &End, dst: &End, protocol: Protocol, port: u16) -> bool {
        let (_, egress, ingress) = self.verdict::<AnyRule>(src, dst, protocol, port);
        egress.allows() && ingress.allows()
    }

    /// Whether the policies of one side let that connection pass: the source's egress, or the
    /// destination's ingress.
    pub(crate) fn side_allows(&self, of: Direction, src: &End, dst: &End, protocol: Protocol, port: u16) -> bool {
        let (_, egress, ingress) = self.verdict::<AnyRule>(src, dst, protocol, port);
        if of == Direction::Ingress { ingress.allows() } else { egress.allows() }
    }

    /// What exempts the connection, if anything, and what the policies of its source and of its
    /// destination say.
    fn verdict<R: Deciders>(
        &self,
        src: &End,
        dst: &End,
        protocol: Protocol,
        port: u16,
    ) -> (Option<Exemption>, SideVerdict<R>, SideVerdict<R>) {
        let (src_address, dst_address) = common_addresses(src, dst);
        let asked = |direction| Asked { direction, protocol, port, server: dst.class };
        let other = |end: &End, address, relation| Other {
            class: end.class,
            address,
            kinds: end.kinds(relation),
            node: end.node_index(),
        };
        let side = |own, end, address, direction, relation| {
            self.compiled.side(self.compiled.subject(own), || other(end, address, relation), &asked(direction))
        };
        let egress = |relation| side(src, dst, dst_address, Direction::Egress, relation);
        let ingress = |relation| side(dst, src, src_address, Direction::Ingress, relation);
        let exempt = |exemption| (Some(exemption), SideVerdict::NotIsolated, SideVerdict::NotIsolated);
        let exemption = ends::exemption(src, dst);
        let Some(options) = &self.compiled.cilium else {
            return match exemption {
                Some(exemption) => exempt(exemption),
                None => (None, egress(Relation::Remote), ingress(Relation::Remote)),
            };
        };
        if exemption == Some(Exemption::Itself) {
            return exempt(Exemption::Itself);
        }
        match ends::relation(src, dst) {
            // The own node may always come in; out to it, a pod needs a rule.
            Relation::Own if src.is_node() && options.allow_localhost => match egress(Relation::Own) {
                SideVerdict::NotIsolated if dst.is_pod() => exempt(Exemption::OwnNode),
                egress => (None, egress, SideVerdict::NotIsolated),
            },
            // The node of the pod is not known: it may be this one or another.
            Relation::Unknown => {
                let egress = egress(Relation::Remote).worse(egress(Relation::Own));
                (None, egress, ingress(Relation::Remote).worse(ingress(Relation::Own)))
            }
            relation => (None, egress(relation), ingress(relation)),
        }
    }

    /// The name of the cluster, as Cilium's identities have it.
    pub(crate) fn cilium_cluster(&self) -> &str {
        self.compiled.cilium.as_ref().map_or("default", |o| &o.cluster)
    }

    /// Which labels are part of Cilium's identities.
    pub(crate) fn label_filter(&self) -> LabelFilter {
        self.compiled.cilium.as_ref().map(|o| o.labels.clone()).unwrap_or_default()
    }

    /// Whether the data plane is Cilium.
    #[must_use]
    pub fn is_cilium(&self) -> bool {
        self.compiled.cilium.is_some()
    }

    /// Prepares to ask about many clients of one server's port. Exempt pairs (A28, A29) are not
    /// considered.
    #[must_use]
    pub fn admission(&self, server: &End, protocol: Protocol, port: u16) -> Admission<'_> {
        self.compiled.admission(server.class, protocol, port)
    }

    /// Indices of the policies that select this end and isolate it in this direction.
    #[must_use]
    pub fn isolating(&self, end: &End, direction: Direction) -> Vec<u32> {
        self.compiled.isolating(self.compiled.subject(end), direction).to_vec()
    }

    /// Whether what no rule accepts is denied at this end in this direction.
    #[must_use]
    pub fn isolated(&self, end: &End, direction: Direction) -> bool {
        self.compiled.isolated(self.compiled.subject(end), direction)
    }

    /// Indices of the policies that have a say about this end in this direction, in the order in
    /// which they are asked.
    #[must_use]
    pub fn asked(&self, end: &End, direction: Direction) -> Vec<u32> {
        self.compiled.asked(self.compiled.subject(end), direction).collect()
    }

    /// Indices of the pods that the policy selects: live, not on the host network.
    #[must_use]
    pub fn selected_pods(&self, policy: u32) -> Vec<u32> {
        self.compiled.selected(policy)
    }

    /// Indices of the live pods that a selector matches, as peers: not those on the host network.
    pub(crate) fn pods_selected_by(&self, selector: &PodSelector) -> Vec<u32> {
        self.compiled.pods_selected_by(selector)
    }

    /// How many live pods a peer's selectors match; `None` for a peer that selects no pods by
    /// label.
    #[must_use]
    pub fn peer_pods(&self, peer: &TierPeer) -> Option<usize> {
        match peer {
            TierPeer::Pods(selector) => Some(self.compiled.pods_of(selector)),
            _ => None,
        }
    }

    /// Policies that select namespaces by other labels than the name, if the cluster's namespace
    /// labels are not known: their verdicts are not proven.
    #[must_use]
    pub fn needs_namespace_labels(&self) -> Vec<&TierPolicy> {
        if self.cluster.namespaces_without_labels().next().is_none() {
            return Vec::new();
        }
        self.forms.iter().filter(|p| selectors(p).any(by_namespace_labels)).collect()
    }

    /// Policies that select pods by service account, if those of some pods are not known: their
    /// verdicts are not proven.
    #[must_use]
    pub fn needs_service_accounts(&self) -> Vec<&TierPolicy> {
        let unknown = |pod: &ClusterPod| pod.service_account.is_none() && !pod.host_network && !pod.finished;
        if !self.cluster.pods.iter().any(unknown) {
            return Vec::new();
        }
        let by_account = |selector: &PodSelector| match selector {
            PodSelector::Kubernetes { .. } => false,
            PodSelector::Cilium { selector, .. } => keys(selector).any(|key| key == identity::SERVICE_ACCOUNT),
        };
        self.forms.iter().filter(|p| selectors(p).any(by_account)).collect()
    }
}

/// Every selector of pods in a policy.
fn selectors(policy: &TierPolicy) -> impl Iterator<Item = &PodSelector> {
    let subject = match &policy.subject {
        Subject::Pods(selector) => Some(selector),
        Subject::Nodes(_) => None,
    };
    let peers = policy.ingress.iter().chain(&policy.egress).flat_map(|r| r.peers.iter().flatten());
    let peers = peers.filter_map(|peer| if let TierPeer::Pods(selector) = &**peer { Some(selector) } else { None });
    subject.into_iter().chain(peers).chain(policy.requires.iter().flat_map(|r| r.accept.iter().chain(&r.deny)))
}

fn by_namespace_labels(selector: &PodSelector) -> bool {
    match selector {
        PodSelector::Kubernetes { namespaces, .. } => namespaces.as_ref().is_some_and(by_other_labels),
        PodSelector::Cilium { selector, .. } => keys(selector)
            .filter_map(|key| key.strip_prefix(identity::NAMESPACE_LABELS))
            .any(|key| key != NAMESPACE_NAME_LABEL),
    }
}

fn keys(selector: &LabelSelector) -> impl Iterator<Item = &String> {
    selector.match_labels.keys().chain(selector.match_expressions.iter().map(|e| &e.key))
}

fn by_other_labels(selector: &LabelSelector) -> bool {
    keys(selector).any(|key| key != NAMESPACE_NAME_LABEL)
}

#[cfg(test)]
mod tests;
