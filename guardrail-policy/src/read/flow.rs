//! A flow to be judged, as CSV ([`super::flows`]) and Hubble's log ([`super::hubble`]) give it.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use crate::model::{Protocol, logged::Logged};

/// One flow to be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow<'a> {
    /// `namespace/pod`, an IP address, or `reserved:NAME`, as written.
    pub src: Cow<'a, str>,
    /// `namespace/pod`, an IP address, or `reserved:NAME`, as written.
    pub dst: Cow<'a, str>,
    /// Protocol.
    pub protocol: Protocol,
    /// The destination's own port, 1 to 65535; the type of an ICMP message, 0 to 255.
    pub port: u16,
    /// Line in the file, from 1.
    pub line: u32,
    /// What a log says of the ends; `None` in CSV, where the names say all.
    pub logged: Option<Box<Logged>>,
}

/// What a file of flows holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flows<'a> {
    /// The flows, in the order of the file; of a log's each connection once.
    pub flows: Vec<Flow<'a>>,
    /// How many lines of a log tell of no connection, by reason.
    pub passed_over: BTreeMap<PassedOver, u64>,
}

/// Why a line of a log tells of no connection to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PassedOver {
    /// `is_reply`: it belongs to a connection the other way round.
    Reply,
    /// Neither `is_reply` nor TCP flags tell who opened the connection.
    NoDirection,
    /// `DROPPED`, `ERROR`: no connection came of it.
    Dropped,
    /// A protocol that policies do not know, or no port.
    NoPort,
    /// Neither pod, reserved identity nor address.
    NoIdentity,
    /// The address of a Service before its translation (`Type` SOCK).
    Translation,
    /// Status of nodes, events of agents.
    NoFlow,
    /// Hubble lost events: flows may be missing.
    Lost,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reply => "are replies",
            Self::NoDirection => "do not tell who opened the connection",
            Self::Dropped => "were dropped, so that no connection came of them",
            Self::NoPort => "have no port or message type that policies know",
            Self::NoIdentity => "name neither pod, identity nor address of an end",
            Self::Translation => "are a socket's translations of addresses",
            Self::NoFlow => "are no flows",
            Self::Lost => "say that events were lost: flows may be missing",
        })
    }
}

/// Most problems that are told.
pub(super) const MAX_PROBLEMS: usize = 20;

/// The beginning of what is wrong, as a message quotes it.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(40).collect::<String>().escape_debug().to_string()
}
