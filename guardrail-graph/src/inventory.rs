//! The cluster as Kubernetes objects describe it, trimmed to what identity and policy need.
//!
//! Input is either text as kubectl prints it ([`read`]) or single changes from a watch
//! ([`Change`]); both end in the same [`Inventory`], so whoever reads it needs no API server.

mod complaint;
mod error;
mod labels;
mod raw;
pub mod read;
mod selectors;
mod services;
mod shared;
mod store;
pub mod types;
mod workloads;

pub use complaint::{complaint, is_duplicate};
pub use error::InventoryError;
pub use raw::parse_sloppy;
pub use selectors::{is_generated_label, is_release, is_release_label, is_replica_label, release_keys, stable_labels};
pub use services::{Backend, VirtualTarget};
pub use store::Inventory;
pub use types::*;
pub use workloads::{Owner, WorkloadSelector, as_label_value};

use crate::time::Timestamp;

/// A change of the inventory, as a watch reports it.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// An object was added or modified.
    Apply(Object),
    /// An object is gone.
    Delete(ObjectKey),
    /// The complete list of one kind: what is not in it is gone.
    Replace {
        /// The kind.
        kind: Kind,
        /// All objects of that kind.
        objects: Vec<Object>,
    },
    /// Everything that happened to objects of this kind before an instant has been told: a complete
    /// list, or a bookmark.
    Heard {
        /// The kind.
        kind: Kind,
        /// When that was said.
        at: Timestamp,
    },
    /// The watch of this kind broke. What it tells until the next [`Change::Heard`] may have
    /// happened at any time since the last one.
    Interrupted {
        /// The kind.
        kind: Kind,
    },
}
