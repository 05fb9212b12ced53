//! Identity, flows, the observed dependency graph and its snapshots.
//!
//! Pure: no IO, no clock (time is an argument), no async runtime, no Kubernetes client, no eBPF.
//! See ARCHITECTURE.md.
#![forbid(unsafe_code)]

pub mod epoch;
pub mod identity;
mod interner;
pub mod inventory;
pub mod observe;
pub mod observer;
pub mod peer;
mod selector;
pub mod snapshot;
pub mod time;
mod unresolved;

pub use inventory::Inventory;
pub use observe::Observation;
pub use observer::{Observer, ObserverConfig};
pub use peer::{Peer, Protocol, UnknownProtocol, WorkloadRef};
pub use snapshot::Snapshot;
pub use time::Timestamp;
