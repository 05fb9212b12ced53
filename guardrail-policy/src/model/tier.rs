//! The one form that every dialect of network policy compiles into: tiers in order.
//!
//! A connection is judged once at the source (egress) and once at the destination (ingress). Per
//! direction the tiers are asked in the order of [`Tier`].
//! In an *ordered* tier (Admin, Baseline) the first rule that matches decides; `Pass` leaves the
//! tier. The *union* tier (Normal: NetworkPolicy and
//! Cilium's kinds) knows no order: a matching deny wins, then any matching accept, then isolation.
//! If no tier decides, the connection is allowed.

use std::sync::Arc;

use guardrail_graph::snapshot::LabelSelector;
use serde::Serialize;

use super::{Direction, IpBlock, Location, NetworkPolicy, PeerKind, PolicyPort, selector_matches_by};

/// The tiers, in the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Ordered: `ClusterNetworkPolicy` of tier Admin, `AdminNetworkPolicy`.
    Admin,
    /// Union: `NetworkPolicy`, `CiliumNetworkPolicy`, `CiliumClusterwideNetworkPolicy`.
    Normal,
    /// Ordered: `ClusterNetworkPolicy` of tier Baseline, `BaselineAdminNetworkPolicy`.
    Baseline,
}

impl Tier {
    /// All, in order.
    pub const ALL: [Self; 3] = [Self::Admin, Self::Normal, Self::Baseline];

    /// The first matching rule decides; else the tier is a union.
    #[must_use]
    pub const fn ordered(self) -> bool {
        !matches!(self, Self::Normal)
    }
}

/// What a matching rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Action {
    /// The connection is allowed in this direction.
    Accept,
    /// It is denied.
    Deny,
    /// The next tier decides. Only in an ordered tier.
    Pass,
}

/// The kinds of policy that are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum PolicyKind {
    /// networking.k8s.io/v1.
    NetworkPolicy,
    /// policy.networking.k8s.io/v1alpha2.
    ClusterNetworkPolicy,
    /// policy.networking.k8s.io/v1alpha1.
    AdminNetworkPolicy,
    /// policy.networking.k8s.io/v1alpha1.
    BaselineAdminNetworkPolicy,
    /// cilium.io/v2.
    CiliumNetworkPolicy,
    /// cilium.io/v2.
    CiliumClusterwideNetworkPolicy,
}

impl PolicyKind {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
        Self::CiliumNetworkPolicy,
        Self::CiliumClusterwideNetworkPolicy,
    ];

    /// The API group.
    #[must_use]
    pub const fn group(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "networking.k8s.io",
            Self::ClusterNetworkPolicy | Self::AdminNetworkPolicy | Self::BaselineAdminNetworkPolicy => {
                "policy.networking.k8s.io"
            }
            Self::CiliumNetworkPolicy | Self::CiliumClusterwideNetworkPolicy => "cilium.io",
        }
    }

    /// Its objects stand in a namespace.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        matches!(self, Self::NetworkPolicy | Self::CiliumNetworkPolicy)
    }

    /// `kind` in a file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
        }
    }

    /// Only Cilium enforces it.
    #[must_use]
    pub const fn is_cilium(self) -> bool {
        matches!(self, Self::CiliumNetworkPolicy | Self::CiliumClusterwideNetworkPolicy)
    }
}

/// A policy of any kind, or one item of a Cilium policy's `specs`.
#[derive(Clone, Debug, PartialEq)]
pub struct TierPolicy {
    /// Kind.
    pub kind: PolicyKind,
    /// `metadata.namespace`; empty for a cluster-scoped kind.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Index into `specs`, if it stands there.
    pub section: Option<u32>,
    /// Where it begins; `None` for a policy that was made in memory.
    pub location: Option<Location>,
    /// Line of the subject's selector.
    pub subject_line: u32,
    /// Which tier.
    pub tier: Tier,
    /// Lower first; in ordered tiers only.
    pub priority: u16,
    /// Whose connections it is about.
    pub subject: Subject,
    /// Whether it isolates its subjects: what no rule of the union tier accepts is denied.
    /// (Ingress, egress.)
    pub isolates: [bool; 2],
    /// Rules about connections to the subjects.
    pub ingress: Vec<TierRule>,
    /// Rules about connections of the subjects.
    pub egress: Vec<TierRule>,
    /// Cilium until 1.18: conditions ANDed to the peer selectors of rules that hold for the
    /// subjects. (Ingress, egress.)
    pub requires: [Requires; 2],
    /// What only some releases or settings of the data plane accept.
    pub needs: Vec<Need>,
}

/// Conditions on peers, `fromRequires` and `toRequires`: those of one list hold for the rules of
/// that list in every policy of the subject, and not for those of the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requires {
    /// Of the rules that accept.
    pub accept: Vec<PodSelector>,
    /// Of the rules that deny.
    pub deny: Vec<PodSelector>,
}

/// A setting or release without which the data plane refuses a policy, or reads it in another way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Which.
    pub what: Feature,
    /// Line in the policy's file.
    pub line: u32,
}

/// See [`Need`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// `fromNodes`, `toNodes`: `enable-node-selector-labels`.
    NodeSelector,
    /// `fromRequires`, `toRequires`: releases until 1.18.
    Requires,
}

/// The pods or nodes that a policy is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    /// Pods that are not on the host network.
    Pods(PodSelector),
    /// Nodes by label: their own connections, and those of host-network pods. Only with Cilium's
    /// host firewall.
    Nodes(LabelSelector),
}

/// Selects pods that are not on the host network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PodSelector {
    /// As Kubernetes' own kinds do.
    Kubernetes {
        /// One namespace by name.
        namespace: Option<String>,
        /// Namespaces by label; both `None`: all.
        namespaces: Option<LabelSelector>,
        /// Pods by label; `None`: all of them.
        pods: Option<LabelSelector>,
    },
    /// By Cilium's identity labels: a pod's own, less those that never enter an identity, and the
    /// derived ones. Keys are without their source.
    Cilium {
        /// Where it looks.
        scope: Scope,
        /// The labels.
        selector: LabelSelector,
    },
}

impl PodSelector {
    /// Whether it asks for absent labels only, and nothing confines it to pods: what is no pod has
    /// none of them.
    pub(crate) fn may_match_no_pod(&self) -> bool {
        match self {
            Self::Cilium { scope: Scope::Written, selector } => selector_matches_by(selector, |_| None),
            _ => false,
        }
    }
}

/// Where a Cilium selector looks for pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One namespace.
    Namespace(String),
    /// All pods, nothing else.
    Pods,
    /// As the selector says. It may match what is no pod, if it asks for absent labels only.
    Written,
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct TierRule {
    /// What it does.
    pub action: Action,
    /// Whom it matches on the other side; `None`: anybody, external addresses and nodes included;
    /// an empty list: nobody. Shared by copies: a hundred policies name one workload.
    pub peers: Option<Vec<Arc<TierPeer>>>,
    /// Line of each peer in the policy's file; 0 if made in memory.
    pub peer_lines: Vec<u32>,
    /// Which ports or ICMP types; empty: all of every protocol.
    pub ports: Vec<PolicyPort>,
    /// A proxy restricts what it accepts further, by request.
    pub l7: bool,
    /// How it is called within its policy and direction: `1` for the first, `deny1` for the first
    /// of a deny list.
    pub label: String,
    /// Line in the policy's file; 0 if made in memory.
    pub line: u32,
}

/// One peer of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TierPeer {
    /// Pods.
    Pods(PodSelector),
    /// Addresses, of those kinds of ends that a range can match.
    Addresses {
        /// Which.
        block: IpBlock,
        /// Whose.
        reach: Reach,
    },
    /// Nodes by label.
    Nodes {
        /// The labels.
        selector: LabelSelector,
        /// The own node is not meant.
        remote_only: bool,
    },
    /// A Cilium entity.
    Entity(Entity),
    /// External addresses by the DNS name that was asked for.
    Name(NamePattern),
    /// A `CiliumCIDRGroup` by name, less the exceptions.
    CidrGroup {
        /// Name.
        name: String,
        /// `except`.
        except: Vec<ipnet::IpNet>,
    },
    /// `CiliumCIDRGroup`s by label, less the exceptions.
    CidrGroups {
        /// The labels.
        selector: LabelSelector,
        /// `except`.
        except: Vec<ipnet::IpNet>,
    },
    /// What is behind a Service.
    Service {
        /// Its namespace; `None`: any, by labels.
        namespace: Option<String>,
        /// By name, or by labels.
        by: ServiceBy,
    },
    /// Something that no manifest tells: a cloud's security group. The text names it.
    Undecidable(String),
}

/// How a `toServices` entry names Services.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServiceBy {
    /// `k8sService.serviceName`.
    Name(String),
    /// `k8sServiceSelector.selector`.
    Labels(LabelSelector),
}

/// Which kinds of ends an address range matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// Whoever has the address.
    Everybody,
    /// As the data plane reads ranges: Cilium leaves pods and nodes out unless it is told
    /// otherwise.
    Dataplane,
}

/// Cilium's entities that a policy can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entity {
    /// Everybody.
    All,
    /// Everybody outside the cluster.
    World,
    /// Pods, nodes, and what else is of the cluster.
    Cluster,
    /// The own node.
    Host,
    /// The other nodes.
    RemoteNode,
    /// The API server's own addresses.
    KubeApiserver,
    /// Ingress and gateway proxies.
    Ingress,
    /// Endpoints that have no identity yet.
    Init,
    /// Cilium's health checks.
    Health,
    /// Endpoints that Cilium does not manage.
    Unmanaged,
    /// Nobody.
    None,
}

impl Entity {
    /// All that the custom resource definition takes.
    pub const ALL: [Self; 11] = [
        Self::All,
        Self::World,
        Self::Cluster,
        Self::Host,
        Self::Init,
        Self::Ingress,
        Self::Unmanaged,
        Self::RemoteNode,
        Self::Health,
        Self::None,
        Self::KubeApiserver,
    ];

    /// How it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::World => "world",
            Self::Cluster => "cluster",
            Self::Host => "host",
            Self::RemoteNode => "remote-node",
            Self::KubeApiserver => "kube-apiserver",
            Self::Ingress => "ingress",
            Self::Init => "init",
            Self::Health => "health",
            Self::Unmanaged => "unmanaged",
            Self::None => "none",
        }
    }

    /// The entity of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.as_str() == name)
    }
}

/// A DNS name or pattern, lower case, without the last dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePattern {
    /// As written.
    pub pattern: String,
    /// How `*` is read.
    pub stars: Stars,
}

/// How `*` in a [`NamePattern`] is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stars {
    /// There is none: the name itself.
    Literal,
    /// Cilium's `matchPattern`: within one label; a leading `**.` any depth; `*` alone every name.
    Label,
    /// `ClusterNetworkPolicy`: a leading `*.` any depth.
    Depth,
}

impl NamePattern {
    /// Whether a name (lower case, without the last dot) matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let below = |suffix: &str| {
            name.strip_suffix(suffix).and_then(|n| n.strip_suffix('.')).is_some_and(|head| !head.is_empty())
        };
        match self.stars {
            Stars::Literal => self.pattern == name,
            Stars::Depth => match self.pattern.strip_prefix("*.") {
                Some(suffix) => below(suffix),
                None => self.pattern == name,
            },
            Stars::Label if self.pattern == "*" => !name.is_empty(),
            Stars::Label => match self.pattern.strip_prefix("**.") {
                Some(suffix) if !suffix.contains('*') => below(suffix),
                Some(suffix) => name.match_indices('.').any(|(dot, _)| dot > 0 && by_label(suffix, &name[dot + 1..])),
                None => by_label(&self.pattern, name),
            },
        }
    }
}

/// Label by label; `*` stands for any characters but the dot.
fn by_label(pattern: &str, name: &str) -> bool {
    let (patterns, names): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), name.split('.').collect());
    patterns.len() == names.len() && patterns.iter().zip(&names).all(|(p, n)| glob(p, n))
}

/// `*` stands for any characters, none included. The first and last piece are anchored, those
/// between are found from the left.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match text.find(piece) {
            Some(at) => text = &text[at + piece.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

impl TierPeer {
    /// A peer of a NetworkPolicy of this namespace.
    #[must_use]
    pub fn of(namespace: &str, kind: &PeerKind) -> Self {
        match kind {
            PeerKind::IpBlock(block) => Self::Addresses { block: block.clone(), reach: Reach::Dataplane },
            PeerKind::Pods { namespaces, pods } => Self::Pods(PodSelector::Kubernetes {
                namespace: namespaces.is_none().then(|| namespace.to_owned()),
                namespaces: namespaces.clone(),
                pods: pods.clone(),
            }),
        }
    }
}

impl TierPolicy {
    /// `namespace/name` of a NetworkPolicy; the kind stands before the names of all others, so that
    /// no two are called alike.
    #[must_use]
    pub fn key(&self) -> String {
        let section = self.section.map_or_else(String::new, |s| format!(".specs[{s}]"));
        match (self.kind, self.namespace.as_str()) {
            (PolicyKind::NetworkPolicy, namespace) => format!("{namespace}/{}", self.name),
            (kind, "") => format!("{}/{}{section}", kind.as_str(), self.name),
            (kind, namespace) => format!("{}/{namespace}/{}{section}", kind.as_str(), self.name),
        }
    }

    /// The object that it stands in: kind, namespace, name.
    #[must_use]
    pub fn object(&self) -> (PolicyKind, String, String) {
        (self.kind, self.namespace.clone(), self.name.clone())
    }

    /// The rules of one direction.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> &[TierRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// Whether it isolates in this direction.
    #[must_use]
    pub fn isolates(&self, direction: Direction) -> bool {
        self.isolates[direction.slot()]
    }

    /// The place of `line` in the policy's file.
    #[must_use]
    pub fn at(&self, line: u32) -> Option<Location> {
        self.location.as_ref().map(|l| Location { file: l.file.clone(), line })
    }

    /// Equal in everything that decides a verdict, lines aside.
    #[must_use]
    pub fn same_spec(&self, other: &Self) -> bool {
        self.plain() == other.plain()
    }

    /// The policy without the places at which its parts stand.
    #[must_use]
    pub fn plain(&self) -> Self {
        let mut policy = self.clone();
        (policy.location, policy.subject_line) = (None, 0);
        policy.needs.iter_mut().for_each(|n| n.line = 0);
        for rule in policy.ingress.iter_mut().chain(&mut policy.egress) {
            rule.line = 0;
            rule.peer_lines.clear();
            rule.ports.iter_mut().for_each(|p| p.line = 0);
        }
        policy
    }
}

impl From<&NetworkPolicy> for TierPolicy {
    /// Rules of a direction that the policy does not isolate are ignored by the API, and left out
    /// here.
    fn from(policy: &NetworkPolicy) -> Self {
        let rules = |direction| -> Vec<TierRule> {
            let rules = if policy.isolates(direction) { policy.rules(direction) } else { &[] };
            let rule = |(rule, number): (&super::Rule, u32)| TierRule {
                action: Action::Accept,
                peer_lines: rule.peers.iter().map(|p| p.line).collect(),
                peers: (!rule.peers.is_empty())
                    .then(|| rule.peers.iter().map(|p| Arc::new(TierPeer::of(&policy.namespace, &p.kind))).collect()),
                ports: rule.ports.clone(),
                l7: false,
                label: number.to_string(),
                line: rule.line,
            };
            rules.iter().zip(1..).map(rule).collect()
        };
        Self {
            kind: PolicyKind::NetworkPolicy,
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            section: None,
            location: policy.location.clone(),
            subject_line: policy.pod_selector_line,
            tier: Tier::Normal,
            priority: 0,
            subject: Subject::Pods(PodSelector::Kubernetes {
                namespace: Some(policy.namespace.clone()),
                namespaces: None,
                pods: Some(policy.pod_selector.clone()),
            }),
            isolates: Direction::BOTH.map(|d| policy.isolates(d)),
            ingress: rules(Direction::Ingress),
            egress: rules(Direction::Egress),
            requires: Default::default(),
            needs: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_by_label_or_by_depth() {
        let matches =
            |pattern: &str, stars, name: &str| NamePattern { pattern: pattern.to_owned(), stars }.matches(name);
        for (pattern, name, expected) in [
            ("*", "a.example.org", true),
            ("*.example.org", "a.example.org", true),
            ("*.example.org", "a.b.example.org", false),
            ("*.example.org", "example.org", false),
            ("**.example.org", "a.b.example.org", true),
            ("**.example.org", "a.example.org", true),
            ("**.example.org", "example.org", false),
            ("**.s3.*.example.org", "x.y.s3.eu.example.org", true),
            ("**.s3.*.example.org", "s3.eu.example.org", false),
            ("api-*-v*.example.org", "api-eu-v2.example.org", true),
            ("api-*-v*.example.org", "api-v2.example.org", false),
        ] {
            assert_eq!(matches(pattern, Stars::Label, name), expected, "{pattern} {name}");
        }
        assert!(matches("*.example.org", Stars::Depth, "a.b.example.org"));
        assert!(!matches("*.example.org", Stars::Depth, "example.org"));
        assert!(!matches("*.example.org", Stars::Literal, "a.example.org"));
    }
}
