//! Short names for people: `shop/cart`, with the owner's kind only where the name alone is not
//! enough.

use std::collections::BTreeMap;

use guardrail_graph::{
    Peer, Snapshot, WorkloadRef,
    snapshot::{EdgePeer, EdgeRecord},
};

pub(super) struct Names<'a> {
    /// How many owner kinds share a namespace and name.
    kinds: BTreeMap<(&'a str, &'a str), usize>,
}

impl<'a> Names<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let body = &snapshot.body;
        let peers = body.edges.iter().flat_map(|e| [&*e.client.peer, &*e.server.peer]);
        let mut workloads: Vec<&WorkloadRef> =
            body.workloads.iter().map(|w| &w.workload).chain(peers.filter_map(Peer::workload)).collect();
        workloads.sort();
        workloads.dedup();
        let mut kinds = BTreeMap::new();
        for workload in workloads {
            *kinds.entry((workload.namespace.as_str(), workload.name.as_str())).or_default() += 1;
        }
        Self { kinds }
    }

    pub(super) fn of(&self, peer: &EdgePeer) -> String {
        match &*peer.peer {
            Peer::Workload(workload) => self.workload(workload),
            Peer::Node { name } => format!("node {name}"),
            Peer::External { address } if address == Peer::MANY => "external (many)".to_owned(),
            Peer::External { address } => match peer.names.iter().next() {
                Some(name) => format!("{name} {address}"),
                None => format!("external {address}"),
            },
        }
    }

    fn workload(&self, workload: &WorkloadRef) -> String {
        let WorkloadRef { namespace, owner, name } = workload;
        match self.kinds.get(&(namespace.as_str(), name.as_str())) {
            Some(&n) if n > 1 => format!("{namespace}/{name} ({owner})"),
            _ => format!("{namespace}/{name}"),
        }
    }

    /// The Services of an edge, without the server's own namespace.
    pub(super) fn via_shortened(&self, edge: &EdgeRecord) -> String {
        if edge.via.is_empty() {
            return "-".to_owned();
        }
        let own = edge.server.peer.workload().map(|w| format!("{}/", w.namespace)).unwrap_or_default();
        edge.via.iter().map(|v| v.strip_prefix(&own).unwrap_or(v)).collect::<Vec<_>>().join(" ")
    }
}
