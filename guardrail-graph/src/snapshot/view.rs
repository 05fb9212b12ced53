//! What a snapshot is fit for: which workloads it has seen as a whole, and the counters that follow from it.

use std::collections::{BTreeMap, BTreeSet};

use super::Snapshot;
use crate::{
    observer::EdgeCounter,
    peer::{Peer, WorkloadRef},
};

/// Whose eyes a workload was seen with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeView {
    /// Every node that hosts a pod of the workload was observed.
    Whole,
    /// Pods of the workload run on nodes that were not: a policy from this snapshot is not for applying.
    Partial {
        /// Nodes observed.
        observed: BTreeSet<String>,
        /// Nodes that host the workload and were not observed; empty names stand for pods whose node is not known.
        missing: BTreeSet<String>,
    },
}

impl Snapshot {
    /// Whether the observed nodes host every pod of a workload (DESIGN §5). A workload that is not in the snapshot has no pods.
    #[must_use]
    pub fn node_view(&self, workload: &WorkloadRef) -> NodeView {
        let observed = &self.body.coverage.nodes.observed;
        let Some(entry) = self.body.workloads.iter().find(|w| w.workload == *workload) else { return NodeView::Whole };
        // A pod without node that has no address does not run yet.
        let mut missing: BTreeSet<String> = entry
            .pods
            .iter()
            .filter(|(node, pods)| {
                !observed.contains(*node) && (!node.is_empty() || pods.iter().any(|p| !p.addresses.is_empty()))
            })
            .map(|(node, _)| node.clone())
            .collect();
        // An agent that knows its own node's pods only cannot say that the others have none.
        if !self.body.own_pods_as_of.is_empty() {
            missing.extend(self.body.coverage.nodes.expected.difference(observed).cloned());
        }
        if missing.is_empty() { NodeView::Whole } else { NodeView::Partial { observed: observed.clone(), missing } }
    }

    /// The edges as bounded label values with their counts, sorted; external addresses are one peer, so lines may join several edges.
    #[must_use]
    pub fn edge_counters(&self) -> Vec<EdgeCounter> {
        fn label(peer: &Peer) -> (String, String) {
            match peer {
                Peer::Workload(w) => (w.namespace.clone(), format!("{}/{}", w.owner, w.name)),
                Peer::Node { name } => (String::new(), format!("node/{name}")),
                Peer::External { .. } => (String::new(), "external".to_owned()),
            }
        }
        let mut lines = BTreeMap::new();
        for edge in &self.body.edges {
            let (client, server) = (label(&edge.client.peer), label(&edge.server.peer));
            let counts: &mut [u64; 4] = lines.entry((client, server, edge.protocol, edge.port)).or_default();
            let c = &edge.counts;
            for (sum, gain) in
                counts.iter_mut().zip([c.opened.saturating_add(c.found), c.refused, c.unanswered, c.unreachable])
            {
                *sum = sum.saturating_add(gain);
            }
        }
        lines
            .into_iter()
            .map(|((client, server, protocol, port), [opened, refused, unanswered, unreachable])| EdgeCounter {
                client_namespace: client.0,
                client_workload: client.1,
                server_namespace: server.0,
                server_workload: server.1,
                protocol,
                port,
                outcomes: [
                    ("opened", opened),
                    ("refused", refused),
                    ("unanswered", unanswered),
                    ("unreachable", unreachable),
                ],
            })
            .collect()
    }
}
