//! Ports of local sockets: who listens (TCP), and which UDP ports were seen to be served.

use std::{collections::HashMap, net::IpAddr};

use super::AddressOwner;
use crate::observe::NetnsId;

/// Both tables, bounded alike.
#[derive(Debug)]
pub(in crate::observer) struct Sockets {
    /// Listening TCP sockets: (namespace, port, address or any) → how many.
    listeners: HashMap<(NetnsId, u16, Option<IpAddr>), u32>,
    /// Local UDP ports on which a server record was seen, with who had the address then.
    served: HashMap<(IpAddr, u16), Option<AddressOwner>>,
    max: usize,
}

impl Sockets {
    /// Empty tables with room for `max` each.
    pub(in crate::observer) fn new(max: usize) -> Self {
        Self { listeners: HashMap::new(), served: HashMap::new(), max }
    }

    /// A socket listens. False if there is no room to note it.
    pub(in crate::observer) fn opened(&mut self, netns: NetnsId, port: u16, address: IpAddr) -> bool {
        let key = (netns, port, (!address.is_unspecified()).then_some(address));
        let has_room = self.listeners.len() < self.max || self.listeners.contains_key(&key);
        if has_room {
            let count = self.listeners.entry(key).or_default();
            *count = count.saturating_add(1);
        }
        has_room
    }

    /// A socket no longer listens.
    pub(in crate::observer) fn closed(&mut self, netns: NetnsId, port: u16, address: IpAddr) {
        let key = (netns, port, (!address.is_unspecified()).then_some(address));
        if let Some(count) = self.listeners.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.listeners.remove(&key);
            }
        }
    }

    /// Whether a socket listens there. One that listens on `::` accepts IPv4 as well, so "any" is
    /// one entry.
    pub(in crate::observer) fn listens(&self, netns: NetnsId, port: u16, address: IpAddr) -> bool {
        self.listeners.contains_key(&(netns, port, None)) || self.listeners.contains_key(&(netns, port, Some(address)))
    }

    /// Notes that `owner` serves a UDP port on its address. False if there is no room for that.
    pub(in crate::observer) fn learn_served(
        &mut self,
        address: IpAddr,
        port: u16,
        owner: Option<AddressOwner>,
    ) -> bool {
        if let Some(known) = self.served.get_mut(&(address, port)) {
            *known = owner;
        } else if self.has_room() {
            self.served.insert((address, port), owner);
        } else {
            return false;
        }
        true
    }

    /// Who had the address when the port was served; `None`: it never was.
    pub(in crate::observer) fn served_by(&self, address: IpAddr, port: u16) -> Option<Option<AddressOwner>> {
        self.served.get(&(address, port)).copied()
    }

    /// Whether every served port has found room. A full table does not tell who serves nothing.
    pub(in crate::observer) fn has_room(&self) -> bool {
        self.served.len() < self.max
    }

    /// Forgets served ports.
    pub(in crate::observer) fn retain_served(&mut self, is_kept: impl Fn(IpAddr, Option<AddressOwner>) -> bool) {
        self.served.retain(|(address, _), owner| is_kept(*address, *owner));
    }

    /// Owners of addresses on which a port is served.
    pub(in crate::observer) fn owners(&self) -> impl Iterator<Item = AddressOwner> + '_ {
        self.served.values().flatten().copied()
    }

    /// Entries of both tables.
    pub(in crate::observer) fn len(&self) -> usize {
        self.listeners.len() + self.served.len()
    }
}
