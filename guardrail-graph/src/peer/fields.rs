//! Peers as they stand in JSON: `kind`, and the fields of that kind beside it. Read without copying
//! anything, so that of equal peers only the first needs memory.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, de};

use super::{Peer, WorkloadRef};

/// A text that stands in the input as it is, if it can.
#[derive(Debug, PartialEq, Eq, Hash, Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

impl From<Text<'_>> for String {
    fn from(text: Text<'_>) -> Self {
        text.0.into_owned()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub(crate) enum Kind {
    Workload,
    Node,
    External,
}

/// The fields of any kind.
#[derive(Debug, PartialEq, Eq, Hash, Deserialize)]
pub(crate) struct PeerFields<'a> {
    pub(crate) kind: Kind,
    #[serde(borrow, default)]
    pub(crate) namespace: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(crate) owner: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(crate) name: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(crate) address: Option<Text<'a>>,
}

impl PeerFields<'_> {
    /// Spelled out.
    ///
    /// # Errors
    /// If a field of the kind is missing.
    pub(crate) fn peer<E: de::Error>(&self) -> Result<Peer, E> {
        let text = |field: &Option<Text<'_>>, name: &'static str| match field {
            Some(text) => Ok(text.0.clone().into_owned()),
            None => Err(E::missing_field(name)),
        };
        Ok(match self.kind {
            Kind::Workload => Peer::Workload(WorkloadRef {
                namespace: text(&self.namespace, "namespace")?,
                owner: text(&self.owner, "owner")?,
                name: text(&self.name, "name")?,
            }),
            Kind::Node => Peer::Node { name: text(&self.name, "name")? },
            Kind::External => Peer::External { address: text(&self.address, "address")? },
        })
    }
}

impl<'de> Deserialize<'de> for Peer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PeerFields::deserialize(deserializer)?.peer()
    }
}
