//! The two ends of an edge, in canonical form.

mod compact;
pub(crate) mod fields;
mod protocol;

use std::fmt;

pub(crate) use compact::CompactPeer;
pub use protocol::{Protocol, UnknownProtocol};
use serde::{Deserialize, Serialize};

/// One end of an edge. Canonical: a host-network pod or host process is always `Node`, on both
/// sides.
///
/// JSON: `{"kind":"Workload","namespace":…,"owner":"Deployment","name":…}`,
/// `{"kind":"Node","name":…}`, `{"kind":"External","address":…}`. The DNS names of an external peer
/// stand beside it in the edge's `External` value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "kind")]
pub enum Peer {
    /// A workload: the owning controller of a pod, or the bare pod itself (`owner: "Pod"`).
    Workload(WorkloadRef),
    /// A node of the cluster: its host processes and its host-network pods.
    Node {
        /// Node name (`metadata.name`).
        name: String,
    },
    /// Something outside the cluster.
    External {
        /// The address, or [`Peer::MANY`] when the addresses were too many to keep apart.
        address: String,
    },
}

impl Peer {
    /// The address of the external peer that stands for many addresses.
    pub const MANY: &'static str = "*";

    /// The external peer that stands for many addresses.
    #[must_use]
    pub fn many() -> Self {
        Self::External { address: Self::MANY.to_owned() }
    }

    /// The workload, if this peer is one.
    #[must_use]
    pub fn workload(&self) -> Option<&WorkloadRef> {
        match self {
            Self::Workload(w) => Some(w),
            _ => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(w) => w.fmt(f),
            Self::Node { name } => write!(f, "node/{name}"),
            Self::External { address } => write!(f, "external/{address}"),
        }
    }
}

/// Names a workload: `(namespace, owner kind, name)` is unique in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkloadRef {
    /// Namespace of the pods.
    pub namespace: String,
    /// Kind of the owning controller (`Deployment`, `StatefulSet`, `DaemonSet`, `Job`, `CronJob`, a
    /// custom kind) or `Pod`.
    pub owner: String,
    /// Name of the owning controller, or of the bare pod.
    pub name: String,
}

impl fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.owner, self.name)
    }
}
