//! Ends of connections as a log of another observer names them.

use std::net::IpAddr;

use super::{Labels, tier::Entity};

/// What a log says of the two ends of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The initiator.
    pub src: LoggedEnd,
    /// The responder.
    pub dst: LoggedEnd,
}

/// What a log says of one end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedEnd {
    /// `IP.source` or `IP.destination`.
    pub address: Option<IpAddr>,
    /// Its reserved identities; a node that runs the API server has two.
    pub entities: Vec<Entity>,
    /// The pod that it is.
    pub pod: Option<LoggedPod>,
}

/// A pod by its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedPod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its own labels, as far as they are part of its identity.
    pub labels: Labels,
    /// Labels of its namespace, likewise.
    pub namespace_labels: Labels,
    /// Service account, if the identity has it.
    pub service_account: Option<String>,
    /// Kind and name of its workload, if the log has it.
    pub workload: Option<(String, String)>,
}
