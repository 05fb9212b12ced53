//! What an exception is, and what became of it: the words that plan, printers and reports share.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use guardrail_graph::{Peer, Timestamp, WorkloadRef, snapshot::EdgeRecord};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{Direction, Protocol};

/// The label that tells exceptions from other policies; its value is the exception's id.
pub const LABEL: &str = "guardrail.dev/exception";
/// Annotation: the end, RFC 3339.
pub const EXPIRES: &str = "guardrail.dev/expires";
/// Annotation: why it is there.
pub const REASON: &str = "guardrail.dev/reason";
/// Annotation: who answers for it.
pub const OWNER: &str = "guardrail.dev/owner";
/// Beginning of the name of every exception.
pub const PREFIX: &str = "guardrail-exception-";
/// End of the name of one for egress, where the one for ingress lies in the same namespace.
const EGRESS: &str = "-egress";

/// One end of an exception.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExceptionEnd {
    /// A workload of the cluster.
    Workload(WorkloadRef),
    /// Addresses outside of it.
    Range(IpNet),
}

impl ExceptionEnd {
    /// Whether it stands for this end of an edge.
    #[must_use]
    pub fn is(&self, peer: &Peer) -> bool {
        match (self, peer) {
            (Self::Workload(workload), peer) => peer.workload() == Some(workload),
            (Self::Range(range), Peer::External { address }) => {
                address.parse().is_ok_and(|address: IpAddr| range.contains(&address.to_canonical()))
            }
            (Self::Range(_), _) => false,
        }
    }
}

impl fmt::Display for ExceptionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(workload) => workload.fmt(f),
            Self::Range(range) => range.fmt(f),
        }
    }
}

/// What every object of an exception says of itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExceptionMark {
    /// Its id.
    pub id: String,
    /// Its end.
    pub expires: Timestamp,
    /// Why it is there.
    pub reason: String,
    /// Who answers for it.
    pub owner: String,
}

impl ExceptionMark {
    /// What the text of one of its policies says of it; `None`: it is no exception's.
    #[must_use]
    pub fn read(policy: &str) -> Option<Self> {
        let Written { metadata: Metadata { mut labels, mut annotations } } = serde_saphyr::from_str(policy).ok()?;
        Some(Self {
            id: labels.remove(LABEL)?,
            expires: annotations.get(EXPIRES)?.parse().ok()?,
            reason: annotations.remove(REASON)?,
            owner: annotations.remove(OWNER)?,
        })
    }
}

#[derive(Deserialize)]
struct Written {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// A connection that is to be allowed for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// What its objects say of it.
    pub mark: ExceptionMark,
    /// Who connects.
    pub from: ExceptionEnd,
    /// Who accepts.
    pub to: ExceptionEnd,
    /// On which pod ports.
    pub ports: BTreeSet<(Protocol, u16)>,
}

impl Opening {
    /// Its ends that are workloads, each with the direction in which a policy there allows it.
    pub(super) fn sides(&self) -> impl Iterator<Item = (Direction, &WorkloadRef, &ExceptionEnd)> {
        let sides = [(Direction::Egress, &self.from, &self.to), (Direction::Ingress, &self.to, &self.from)];
        sides.into_iter().filter_map(|(direction, own, other)| match own {
            ExceptionEnd::Workload(workload) => Some((direction, workload, other)),
            ExceptionEnd::Range(_) => None,
        })
    }

    /// Whether it is what allows this edge.
    #[must_use]
    pub fn is_for(&self, edge: &EdgeRecord) -> bool {
        self.ports.contains(&(edge.protocol, edge.port))
            && self.from.is(&edge.client.peer)
            && self.to.is(&edge.server.peer)
    }

    /// The name of its policy in a direction: `guardrail-exception-ID-END`. Where both lie in one
    /// namespace, the one for egress says so.
    #[must_use]
    pub fn policy_name(&self, direction: Direction) -> String {
        let namespace = |end: &ExceptionEnd| match end {
            ExceptionEnd::Workload(workload) => Some(workload.namespace.clone()),
            ExceptionEnd::Range(_) => None,
        };
        let both = namespace(&self.from) == namespace(&self.to);
        let suffix = if both && direction == Direction::Egress { EGRESS } else { "" };
        format!("{}{suffix}", policy_name(&self.mark.id, self.mark.expires))
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports: Vec<String> = self.ports.iter().map(|(protocol, port)| format!("{port}/{protocol}")).collect();
        write!(f, "{} -> {} {}", self.from, self.to, ports.join(", "))
    }
}

/// `guardrail-exception-ID-END`, the end to the second: one that is renewed is another object.
#[must_use]
pub fn policy_name(id: &str, expires: Timestamp) -> String {
    let end: String = expires.to_string().split('.').next().unwrap_or_default().to_ascii_lowercase();
    let end: String = end.chars().filter(char::is_ascii_alphanumeric).collect();
    let zone = if end.ends_with('z') { "" } else { "z" };
    format!("{PREFIX}{id}-{end}{zone}")
}

/// The id and the end in a name that [`policy_name`] or [`Opening::policy_name`] made.
#[must_use]
pub fn named(name: &str) -> Option<(&str, Timestamp)> {
    let name = name.strip_prefix(PREFIX)?;
    let (id, end) = name.strip_suffix(EGRESS).unwrap_or(name).rsplit_once('-')?;
    let (date, time) = end.strip_suffix('z')?.split_once('t')?;
    Some((id, format!("{date}T{time}Z").parse().ok()?))
}

/// What became of an exception at one of its ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExceptionOutcome {
    /// A policy of this name allows it.
    Written,
    /// No policy isolates any of the pods: nothing stands in its way.
    NotNeeded,
    /// Not written: only some of the pods are isolated, and a policy would close the others.
    SomeOpen {
        /// Pods that are isolated.
        isolated: usize,
        /// All of them.
        pods: usize,
    },
    /// Not written: no policy can say it, and why.
    Impossible(String),
}

/// What became of an exception in one direction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ExceptionSide {
    /// Its id.
    pub id: String,
    /// Which side.
    pub direction: Direction,
    /// The workload on that side.
    pub workload: WorkloadRef,
    /// The name that its policy has, or would have.
    pub policy: String,
    /// What became of it.
    pub outcome: ExceptionOutcome,
}

impl fmt::Display for ExceptionSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direction, workload, policy, outcome, .. } = self;
        match outcome {
            ExceptionOutcome::Written => write!(f, "{direction} of {workload}: {}/{policy}", workload.namespace),
            ExceptionOutcome::NotNeeded => {
                write!(f, "{direction} of {workload}: not needed, no policy isolates its pods")
            }
            ExceptionOutcome::SomeOpen { isolated, pods } => write!(
                f,
                "{direction} of {workload}: not written, {isolated} of {pods} pods are isolated, and it would close the others"
            ),
            ExceptionOutcome::Impossible(why) => write!(f, "{direction} of {workload}: not written, {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_its_id_and_its_end() {
        let end: Timestamp = "2026-03-04T00:00:07Z".parse().unwrap();
        for id in ["inc-1", "a", "egress", "7-egress", "x-20260304t000000z"] {
            let name = policy_name(id, end);
            assert_eq!(named(&name), Some((id, end)), "{name}");
            assert_eq!(named(&format!("{name}{EGRESS}")), Some((id, end)), "{name}");
        }
        for other in ["guardrail-exception-a-b", "guardrail-exception-a-20261304t000000z", "inc-1-20260304t000000z"] {
            assert_eq!(named(other), None, "{other}");
        }
    }
}
