//! The kind of policy that an export writes.

use std::{fmt, str::FromStr};

use serde::Serialize;

/// The kind of policy that an export writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// networking.k8s.io/v1 NetworkPolicy.
    #[default]
    NetworkPolicy,
    /// cilium.io/v2 CiliumNetworkPolicy: nodes and the API server by entity, external servers by
    /// name.
    Cilium,
}

impl Format {
    /// How it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "networkpolicy",
            Self::Cilium => "cilium",
        }
    }

    /// `kind` in the files.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Cilium => "CiliumNetworkPolicy",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no format: use networkpolicy or cilium")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "networkpolicy" => Ok(Self::NetworkPolicy),
            "cilium" => Ok(Self::Cilium),
            other => Err(UnknownFormat(other.to_owned())),
        }
    }
}
