//! What is asked of one side: about whom, and on which port.

use std::net::IpAddr;

use super::kinds::Kinds;
use crate::model::{Direction, Protocol};

/// The other end, as one side's rules see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Other {
    pub(super) class: Option<u32>,
    pub(super) address: Option<IpAddr>,
    pub(super) kinds: Kinds,
    pub(super) node: Option<u32>,
}

impl Other {
    /// The world without an address: each range may hold it.
    pub(super) fn is_anywhere(&self) -> bool {
        self.address.is_none() && self.kinds.meets(Kinds::WORLD)
    }
}

/// What is asked of a side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) direction: Direction,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    /// Class of the end that has the port.
    pub(super) server: Option<u32>,
}
