//! The NetworkPolicies in force. They are no part of the inventory, and what they mean is
//! guardrail-policy's affair: the caller gives the reader.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Reads a NetworkPolicy (networking.k8s.io/v1) from a JSON document. The first argument is its
/// `namespace/name`, for messages. The error says why the document makes no sense.
pub type ReadPolicy<P> = fn(&str, &str) -> Result<P, String>;

/// The policies in force. One watcher writes, the generator of allow-lists reads.
#[derive(Debug)]
pub struct Policies<P> {
    read: ReadPolicy<P>,
    /// By `namespace/name`.
    in_force: Mutex<BTreeMap<String, P>>,
}

impl<P: Clone> Policies<P> {
    /// None yet.
    #[must_use]
    pub const fn new(read: ReadPolicy<P>) -> Self {
        Self { read, in_force: Mutex::new(BTreeMap::new()) }
    }

    /// All of them, sorted by namespace and name.
    #[must_use]
    pub fn all(&self) -> Vec<P> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) const fn reader(&self) -> ReadPolicy<P> {
        self.read
    }

    pub(super) fn apply(&self, name: &str, policy: P) {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), policy);
    }

    pub(super) fn delete(&self, name: &str) {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Makes `all` the policies in force, with those of `kept` as they were.
    pub(super) fn replace(&self, all: BTreeMap<String, P>, kept: &[String]) {
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        in_force.retain(|name, _| kept.contains(name));
        in_force.extend(all);
    }
}
