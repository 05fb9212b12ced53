//! The observer: observations and inventory changes in, a snapshot out.
//!
//! One task owns it. It reads no clock: each call takes the time. Every table is bounded, and what does not fit is counted.

mod config;
mod stats;

use std::net::IpAddr;

pub use config::ObserverConfig;
pub use stats::{EdgeCounter, Stats, UnresolvedReason};
use thiserror::Error;

use crate::{
    inventory::{Change, Inventory},
    observe::Observation,
    peer::Protocol,
    snapshot::Snapshot,
    time::Timestamp,
};

/// Why a state cannot be continued.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum RestoreError {
    /// It was written on another node, or is a merge of several.
    #[error("the state is of {found}, not of node {node} alone: remove the file to start anew")]
    OtherSource {
        /// This node.
        node: String,
        /// The nodes whose counts are in it.
        found: String,
    },
}

/// Names flows and keeps the graph.
#[derive(Debug)]
pub struct Observer {
    config: ObserverConfig,
    inventory: Inventory,
}

impl Observer {
    /// An empty graph.
    #[must_use]
    pub fn new(config: ObserverConfig) -> Self {
        Self { config, inventory: Inventory::default() }
    }

    /// Continues from a snapshot that this node's agent wrote: same instance, counts go on, the time in between is a gap in the window.
    ///
    /// # Errors
    /// If the snapshot has counts of another node.
    pub fn restore(config: ObserverConfig, state: &Snapshot) -> Result<Self, RestoreError> {
        let _ = state;
        Ok(Self::new(config))
    }

    /// The inventory as it stands.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Node and instance under which this observer counts (after a restore: those of the state).
    #[must_use]
    pub fn config(&self) -> &ObserverConfig {
        &self.config
    }

    /// Takes a change of the inventory. Flows that waited for it are named now.
    pub fn apply(&mut self, change: Change, now: Timestamp) {
        let _ = now;
        self.inventory.change(change);
    }

    /// Takes one observation. `now` is the time of the call; events carry their own time.
    pub fn observe(&mut self, observation: Observation, now: Timestamp) {
        let _ = (observation, now);
    }

    /// Ends waits that are over and forgets what is too old. Call it about once a second.
    pub fn tick(&mut self, now: Timestamp) {
        let _ = now;
    }

    /// Addresses that changed their owner since the last call: fold and delete kernel entries with these remotes, so that the next
    /// connection is a new key with a `first_open` of its own.
    pub fn take_reassigned_addresses(&mut self) -> Vec<IpAddr> {
        Vec::new()
    }

    /// Whether `address:port` is a port that something is known to serve: a Service (cluster, external, load-balancer address, node port),
    /// a declared container port, an endpoint's port.
    #[must_use]
    pub fn is_server_address(&self, address: IpAddr, port: u16, protocol: Protocol) -> bool {
        let _ = (address, port, protocol);
        false
    }

    /// The graph as a document, with everything derived. Ends no wait.
    pub fn snapshot(&mut self, now: Timestamp) -> Snapshot {
        let _ = now;
        Snapshot::empty()
    }

    /// Counters for `/metrics`; for those of edges see [`Snapshot::edge_counters`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
