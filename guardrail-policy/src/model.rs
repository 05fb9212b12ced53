//! NetworkPolicy as the evaluator, the linter and the generator see it: validated, defaulted, every
//! difference between "absent" and "empty" resolved.
//!
//! Meaning of each field:
//! <https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/> and
//! docs/semantics.md part A.

use std::{fmt, sync::Arc};

use guardrail_graph::snapshot::LabelSelector;
pub use guardrail_graph::{Protocol, UnknownProtocol};
use ipnet::IpNet;
use serde::Serialize;

pub mod logged;
mod selector;
mod shared;
pub mod tier;

pub(crate) use selector::words;
pub(crate) use selector::{JOB_NAME_LABEL, job_label};
pub use selector::{Labels, NAMESPACE_NAME_LABEL, selector_matches, selector_matches_by};
pub(crate) use shared::Shared;

/// A side of a policy: whose rules are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Into the selected pods.
    Ingress,
    /// Out of the selected pods.
    Egress,
}

impl Direction {
    /// Both, ingress first.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Its place in [`Direction::BOTH`].
    #[must_use]
    pub const fn slot(self) -> usize {
        match self {
            Self::Ingress => 0,
            Self::Egress => 1,
        }
    }

    /// The field of `spec` that holds the rules.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The field of a rule that holds its peers.
    #[must_use]
    pub const fn peers_field(self) -> &'static str {
        match self {
            Self::Ingress => "from",
            Self::Egress => "to",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field())
    }
}

/// A place in an input file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Location {
    /// File as the user named it.
    pub file: Arc<str>,
    /// Line, counted from 1.
    pub line: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A valid networking.k8s.io/v1 NetworkPolicy with defaults applied.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkPolicy {
    /// `metadata.namespace`, `default` if missing.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Where it begins; `None` for a policy that was made in memory.
    pub location: Option<Location>,
    /// `spec.podSelector`; empty selects all pods of the namespace (A1).
    pub pod_selector: LabelSelector,
    /// Line of `podSelector`, or of the policy.
    pub pod_selector_line: u32,
    /// The directions in which it isolates, after defaulting (A2–A4).
    pub policy_types: PolicyTypes,
    /// `spec.ingress`: kept even if `policy_types` does not list Ingress (it is then ignored).
    pub ingress: Vec<Rule>,
    /// `spec.egress`, likewise.
    pub egress: Vec<Rule>,
}

impl NetworkPolicy {
    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The rules of one direction, whether or not the policy isolates in it.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// Whether the policy isolates the pods that it selects in this direction.
    #[must_use]
    pub fn isolates(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.policy_types.ingress,
            Direction::Egress => self.policy_types.egress,
        }
    }

    /// The place of `line` in the policy's file.
    #[must_use]
    pub fn at(&self, line: u32) -> Option<Location> {
        self.location.as_ref().map(|l| Location { file: l.file.clone(), line })
    }

    /// Equal in everything that decides a verdict.
    #[must_use]
    pub fn same_spec(&self, other: &Self) -> bool {
        let rules = |a: &[Rule], b: &[Rule]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b));
        self.pod_selector == other.pod_selector
            && self.policy_types.ingress == other.policy_types.ingress
            && self.policy_types.egress == other.policy_types.egress
            && rules(&self.ingress, &other.ingress)
            && rules(&self.egress, &other.egress)
    }
}

/// `spec.policyTypes` after defaulting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyTypes {
    /// Isolates ingress.
    pub ingress: bool,
    /// Isolates egress.
    pub egress: bool,
    /// The file listed at least one type; else the types were defaulted.
    pub explicit: bool,
}

/// One entry of `spec.ingress` or `spec.egress`. It matches if its peers and its ports match (A10).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// `from` or `to`; empty means any peer, external addresses and nodes included (A11).
    pub peers: Vec<PolicyPeer>,
    /// `ports`; empty means any port of any protocol (A12).
    pub ports: Vec<PolicyPort>,
    /// Line in the policy's file; 0 if made in memory.
    pub line: u32,
}

impl Rule {
    fn same(&self, other: &Self) -> bool {
        self.peers.len() == other.peers.len()
            && self.ports.len() == other.ports.len()
            && self.peers.iter().zip(&other.peers).all(|(a, b)| a.kind == b.kind)
            && self.ports.iter().zip(&other.ports).all(|(a, b)| a.protocol == b.protocol && a.port == b.port)
    }
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyPeer {
    /// What it matches.
    pub kind: PeerKind,
    /// Line in the policy's file; 0 if made in memory.
    pub line: u32,
}

/// What a peer matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerKind {
    /// Pods. At least one of the two selectors is present (A17).
    Pods {
        /// `namespaceSelector`; `None`: the policy's own namespace (A13).
        namespaces: Option<LabelSelector>,
        /// `podSelector`; `None`: all pods of those namespaces (A14).
        pods: Option<LabelSelector>,
    },
    /// Addresses (A18).
    IpBlock(IpBlock),
}

/// An `ipBlock`: an address in `cidr` and in no `except`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// `cidr`, host bits cleared.
    pub cidr: IpNet,
    /// `except`, each a strict subset of `cidr`.
    pub except: Vec<IpNet>,
}

impl IpBlock {
    /// Whether the address is in `cidr` and in no `except`; IPv4 never matches IPv6.
    #[must_use]
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|e| e.contains(&address))
    }
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyPort {
    /// Protocol.
    pub protocol: Protocol,
    /// Which ports of that protocol.
    pub port: PortMatch,
    /// Line in the policy's file; 0 if made in memory.
    pub line: u32,
}

/// Which ports of a protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// `port` missing: every port (A24).
    Any,
    /// `port` to `endPort` inclusive; one port if they are equal (A25).
    Range {
        /// `port`.
        first: u16,
        /// `endPort`, or `port`.
        last: u16,
    },
    /// A container port by name, resolved per destination pod (A26).
    Named(String),
}

impl fmt::Display for PolicyPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.port {
            PortMatch::Any => write!(f, "{}", self.protocol),
            PortMatch::Range { first, last } if first == last => write!(f, "{}/{first}", self.protocol),
            PortMatch::Range { first, last } => write!(f, "{}/{first}-{last}", self.protocol),
            PortMatch::Named(name) => write!(f, "{}/{name}", self.protocol),
        }
    }
}
