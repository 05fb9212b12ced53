//! Two observed graphs, side by side: of two times, or of two environments.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{
    Peer, Protocol, Snapshot, Timestamp,
    snapshot::{EdgePeer, EdgeRecord},
};
use serde::Serialize;

/// Namespaces that are called otherwise in the other graph: old name to new name.
pub type NamespaceMap = BTreeMap<String, String>;

/// What was seen of an edge, as far as it says who talks to whom and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct State {
    /// Connections came about; otherwise there were only attempts.
    pub established: bool,
    /// Services through which the client reached it: `namespace/name:port`.
    pub via: BTreeSet<String>,
}

/// An edge of one of the graphs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeenEdge {
    /// The client.
    pub client: String,
    /// The server.
    pub server: String,
    /// Protocol.
    pub protocol: Protocol,
    /// The server's own port.
    pub port: u16,
    /// What was seen of it.
    #[serde(flatten)]
    pub state: State,
    /// How many connections came about.
    pub connections: u64,
    /// First open or attempt.
    pub first_seen: Timestamp,
    /// Last open or attempt.
    pub last_seen: Timestamp,
}

/// An edge of both graphs of which something else was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChangedEdge {
    /// As the new graph has it.
    #[serde(flatten)]
    pub edge: SeenEdge,
    /// As the old one had it.
    pub before: State,
}

/// The difference of two graphs. Counts and times of edges that both have are no difference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GraphDiff {
    /// Edges of the new graph alone.
    pub came: Vec<SeenEdge>,
    /// Edges of the old graph alone.
    pub went: Vec<SeenEdge>,
    /// Edges of both that were attempts in one and connections in the other, or went through other
    /// Services.
    pub changed: Vec<ChangedEdge>,
    /// Namespaces of the map that neither graph has.
    pub unknown_namespaces: BTreeSet<String>,
}

impl GraphDiff {
    /// Whether the graphs say the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.came.is_empty() && self.went.is_empty() && self.changed.is_empty()
    }
}

type Key = (String, String, Protocol, u16);

/// Compares two graphs. External ends with a DNS name are compared by name, since addresses behind
/// names change. With a map the graphs are of two clusters, whose nodes have other names: all nodes
/// are one then.
#[must_use]
pub fn graphs(old: &Snapshot, new: &Snapshot, map: &NamespaceMap) -> GraphDiff {
    let mut unknown: BTreeSet<String> = map.keys().cloned().collect();
    let before = edges(old, map, &mut unknown);
    let after = edges(new, map, &mut unknown);
    let mut diff = GraphDiff { unknown_namespaces: unknown, ..GraphDiff::default() };
    for (key, edge) in &after {
        match before.get(key) {
            None => diff.came.push(edge.clone()),
            Some(was) if was.state != edge.state => {
                diff.changed.push(ChangedEdge { edge: edge.clone(), before: was.state.clone() });
            }
            Some(_) => {}
        }
    }
    diff.went = before.into_iter().filter(|(key, _)| !after.contains_key(key)).map(|(_, edge)| edge).collect();
    diff
}

fn edges(snapshot: &Snapshot, map: &NamespaceMap, unknown: &mut BTreeSet<String>) -> BTreeMap<Key, SeenEdge> {
    let mut edges: BTreeMap<Key, SeenEdge> = BTreeMap::new();
    for workload in &snapshot.body.workloads {
        unknown.remove(&workload.workload.namespace);
    }
    for edge in &snapshot.body.edges {
        for client in ends(&edge.client, map, unknown) {
            for server in ends(&edge.server, map, unknown) {
                let seen = seen(edge, client.clone(), server, map);
                edges
                    .entry((seen.client.clone(), seen.server.clone(), seen.protocol, seen.port))
                    .and_modify(|known| join(known, &seen))
                    .or_insert(seen);
            }
        }
    }
    edges
}

/// The names of an end: one, or each DNS name of an external one.
fn ends(peer: &EdgePeer, map: &NamespaceMap, unknown: &mut BTreeSet<String>) -> Vec<String> {
    match &*peer.peer {
        Peer::Workload(workload) => {
            unknown.remove(&workload.namespace);
            let mut workload = workload.clone();
            if let Some(other) = map.get(&workload.namespace) {
                workload.namespace.clone_from(other);
            }
            vec![workload.to_string()]
        }
        Peer::Node { .. } if !map.is_empty() => vec!["node".to_owned()],
        Peer::External { .. } if !peer.names.is_empty() => peer.names.iter().cloned().collect(),
        _ => vec![super::name(peer)],
    }
}

fn seen(edge: &EdgeRecord, client: String, server: String, map: &NamespaceMap) -> SeenEdge {
    let via = |service: &String| match service.split_once('/') {
        Some((namespace, rest)) if map.contains_key(namespace) => format!("{}/{rest}", map[namespace]),
        _ => service.clone(),
    };
    SeenEdge {
        client,
        server,
        protocol: edge.protocol,
        port: edge.port,
        state: State { established: edge.supported, via: edge.via.iter().map(via).collect() },
        connections: edge.counts.established(),
        first_seen: edge.first_seen,
        last_seen: edge.last_seen,
    }
}

fn join(known: &mut SeenEdge, other: &SeenEdge) {
    known.state.established |= other.state.established;
    known.state.via.extend(other.state.via.iter().cloned());
    known.connections = known.connections.saturating_add(other.connections);
    known.first_seen = known.first_seen.min(other.first_seen);
    known.last_seen = known.last_seen.max(other.last_seen);
}
