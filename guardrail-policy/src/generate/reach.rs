//! What a rule can name beside pods, in the format that is written and under the data plane that
//! reads it (docs/semantics.md B12).

use std::{collections::BTreeSet, net::IpAddr};

use super::{Format, Options};
use crate::{evaluate::Dataplane, model::tier::Entity};

use super::RulePeer;

/// How a rule names a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// By its addresses.
    Addresses,
    /// As one of all nodes, by entity.
    Entities,
    /// Not at all: no `ipBlock` matches a node.
    Nothing,
}

/// What rules can name.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    pub(crate) format: Format,
    pub(crate) nodes: Nodes,
    /// An address range matches a pod that has an address in it.
    pub(crate) ranges_match_pods: bool,
    /// A node comes in to its own pods whatever the rules say (A29).
    pub(crate) own_node_enters: bool,
    /// A port is named by its numbers even where they differ between pods: on egress, Cilium before
    /// 1.20 drops a rule of which a name has several.
    pub(crate) ports_by_number: bool,
}

impl Reach {
    pub(crate) fn new(options: &Options) -> Self {
        let Dataplane::Cilium(cilium) = options.enforcer() else {
            return Self {
                format: options.format,
                nodes: Nodes::Addresses,
                ranges_match_pods: true,
                own_node_enters: true,
                ports_by_number: false,
            };
        };
        Self {
            format: options.format,
            nodes: match options.format {
                Format::Cilium => Nodes::Entities,
                Format::NetworkPolicy if cilium.cidr_nodes => Nodes::Addresses,
                Format::NetworkPolicy => Nodes::Nothing,
            },
            ranges_match_pods: cilium.cidr_pods,
            own_node_enters: cilium.allow_localhost,
            ports_by_number: true,
        }
    }

    /// Entities and names take the place of addresses.
    pub(crate) fn by_entity(&self) -> bool {
        self.nodes == Nodes::Entities
    }
}

/// Every node, the own one among them.
pub(crate) fn every_node() -> BTreeSet<RulePeer> {
    BTreeSet::from([Entity::Host, Entity::RemoteNode].map(RulePeer::Entity))
}

/// The name as a rule may hold it, if it is a DNS name: at most 255 letters, digits, `-`, `_` and
/// dots between labels.
pub(crate) fn dns_name(name: &str) -> Option<String> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    (name.len() <= 255 && name.split('.').all(label) && name.parse::<IpAddr>().is_err()).then_some(name)
}

/// 169.254.0.0/16 and fe80::/10.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dns_names_are_named() {
        for name in ["cdn.example.com", "CDN.example.com.", "_sip._udp.example.com", "localhost"] {
            assert!(dns_name(name).is_some(), "{name}");
        }
        let long = "a".repeat(64);
        for name in ["", ".", "a..b", "a b", "*.example.com", "203.0.113.9", "straße.example", long.as_str()] {
            assert_eq!(dns_name(name), None, "{name}");
        }
    }
}
