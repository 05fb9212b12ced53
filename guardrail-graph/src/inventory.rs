//! The cluster as Kubernetes objects describe it, trimmed to what identity and policy need.
//!
//! Input is either text as kubectl prints it or single changes from a watch ([`Change`]); both end in the same
//! [`Inventory`], so whoever reads it needs no API server.

pub mod types;

pub use types::*;

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
}
