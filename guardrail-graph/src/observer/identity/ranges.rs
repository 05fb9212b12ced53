//! Ranges from which nodes' pods have their addresses, and what nodes own by them.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::{AddressOwner, Identity, Told};
use crate::{
    identity::addresses::{Lookup, Tenure},
    inventory::Inventory,
    observer::peers::{PeerId, Peers},
    peer::Peer,
    snapshot::nodes::range_addresses,
    time::Timestamp,
};

/// So long after its node's end a range passes for pods': who calls a pod that is gone may do so
/// for days, and in a day another node has the range.
const FORMER_RANGE: Duration = Duration::from_secs(86_400);
/// Of more nodes that are gone their ranges are not remembered.
const MAX_FORMER_RANGES: usize = 4096;

impl Identity {
    /// Addresses that nodes own by their pod range.
    pub(in crate::observer) fn range_nodes(&self) -> &HashMap<IpAddr, PeerId> {
        &self.range_nodes
    }

    /// Since when nobody is known to have the address, [`Timestamp::MIN`] if nobody ever had it;
    /// `None`: somebody has it.
    pub(in crate::observer) fn is_free_since(&self, address: IpAddr, now: Timestamp) -> Option<Timestamp> {
        let last = self.addresses.of(address).map(|tenure| tenure.to).fold(Timestamp::MIN, Timestamp::max);
        (last <= now).then_some(last)
    }

    /// Takes the ranges of all nodes of the inventory.
    pub(in crate::observer) fn index_nodes(&mut self, inventory: &Inventory, peers: &mut Peers) {
        self.range_nodes.clear();
        self.pod_ranges.clear();
        self.own_ranges.clear();
        for node in inventory.nodes() {
            let peer = peers.id(Peer::Node { name: node.name.clone() });
            for range in &node.pod_cidrs {
                self.pod_ranges.push(*range);
                if node.name == self.node {
                    self.own_ranges.push(*range);
                }
                self.range_nodes.extend(range_addresses(*range).map(|address| (address, peer)));
            }
        }
    }

    /// A pod range is no longer a node's, which had it since then, or since ever.
    pub(in crate::observer) fn range_is_gone(
        &mut self,
        range: IpNet,
        node: PeerId,
        since: Option<Timestamp>,
        told: Told,
    ) {
        let owner = AddressOwner::Node(node);
        for address in range_addresses(range) {
            let is_its = self.range_nodes.get(&address) == Some(&node);
            if !is_its || !matches!(self.addresses.lookup(address, told.now), Lookup::Unknown | Lookup::Vacant) {
                continue;
            }
            // Whoever had it before the node did has it no more.
            let ends = self.addresses.of(address).map(|tenure| tenure.to);
            let from = ends.fold(since.unwrap_or(Timestamp::MIN), Timestamp::max);
            self.addresses.restore(address, Tenure::told(owner, from, Timestamp::MAX));
            self.release(address, owner, told);
        }
        self.remember_range(range, told.now);
    }

    /// A range was pods' until then.
    pub(in crate::observer) fn remember_range(&mut self, range: IpNet, until: Timestamp) {
        if self.former_ranges.len() < MAX_FORMER_RANGES || self.former_ranges.contains_key(&range) {
            let known = self.former_ranges.entry(range).or_insert(until);
            *known = (*known).max(until);
        }
    }

    /// Forgets ranges that were pods' long ago.
    pub(super) fn forget_ranges(&mut self, now: Timestamp) {
        self.former_ranges.retain(|_, until| until.after(FORMER_RANGE) >= now);
    }
}
