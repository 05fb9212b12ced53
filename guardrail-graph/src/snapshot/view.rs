//! What a snapshot is fit for: which workloads it has seen as a whole, and the counters that follow
//! from it.

use std::collections::BTreeSet;

use super::{
    NodeCoverage, Snapshot,
    counters::{EdgeCounter, of_edges},
};
use crate::peer::WorkloadRef;

/// Whose eyes a workload was seen with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeView {
    /// Every node that hosts a pod of the workload was observed.
    Whole,
    /// Pods of the workload run on nodes that were not: a policy from this snapshot is not for
    /// applying.
    Partial {
        /// Nodes observed.
        observed: BTreeSet<String>,
        /// Nodes that host the workload and were not observed; empty names stand for pods whose
        /// node is not known.
        missing: BTreeSet<String>,
    },
}

impl Snapshot {
    /// Whether the observed nodes host every pod of a workload (docs/design.md#evidence). A
    /// workload that is not in the snapshot has no pods.
    #[must_use]
    pub fn node_view(&self, workload: &WorkloadRef) -> NodeView {
        let NodeCoverage { observed, unobservable, .. } = &self.body.coverage.nodes;
        let Some(entry) = self.body.workloads.iter().find(|w| w.workload == *workload) else { return NodeView::Whole };
        // A pod without node that has no address does not run yet.
        let mut missing: BTreeSet<String> = entry
            .pods
            .iter()
            .filter(|(node, pods)| {
                !observed.contains(*node)
                    && !unobservable.contains_key(*node)
                    && (!node.is_empty() || pods.iter().any(|p| !p.addresses.is_empty()))
            })
            .map(|(node, _)| node.clone())
            .collect();
        // An agent that knows its own node's pods only cannot say that the others have none.
        if !self.body.own_pods_as_of.is_empty() {
            missing.extend(self.body.coverage.nodes.expected.difference(observed).cloned());
        }
        if missing.is_empty() { NodeView::Whole } else { NodeView::Partial { observed: observed.clone(), missing } }
    }

    /// The counters that `/metrics` shows of these edges, sorted; external addresses are one peer,
    /// so a counter may join several edges.
    #[must_use]
    pub fn edge_counters(&self) -> Vec<EdgeCounter> {
        of_edges(self.body.edges.iter())
    }
}
