//! Continuing from a stored state.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use thiserror::Error;

use super::{
    AddressOwner, Observer, ObserverConfig, UnresolvedReason,
    table::{Edge, Flow, mark_bit, side_index},
};
use crate::{
    identity::addresses::Tenure,
    observe::LossReason,
    peer::Peer,
    snapshot::{Body, Snapshot, SourceCounts, WorkloadEntry, facts::Seen},
    time::Timestamp,
};

/// Why a state cannot be continued.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum RestoreError {
    /// It was written on another node, or is a merge of several.
    #[error("the state holds counts of {found}, not of node {node} alone: remove the file to start anew")]
    OtherSource {
        /// This node.
        node: String,
        /// Whose counts are in it.
        found: String,
    },
}

fn seen(counts: &SourceCounts) -> Arc<Seen> {
    Arc::new(Seen { counts: counts.counts, first: counts.first_seen, last: counts.last_seen })
}

fn bits<'a>(marks: impl IntoIterator<Item = &'a String>) -> u8 {
    marks.into_iter().fold(0, |bits, mark| bits | mark_bit(mark))
}

impl Observer {
    /// Continues from a snapshot that this node's agent wrote: same instance, counts go on. The time in between is a gap in the window, unless `is_seamless`: the
    /// hooks were attached all the time, and what they counted is still to be told.
    ///
    /// # Errors
    /// If the snapshot has counts of another node, or of several instances.
    pub fn restore(mut config: ObserverConfig, state: &Snapshot, is_seamless: bool) -> Result<Self, RestoreError> {
        let mut sources = state.body.sources.iter();
        match (sources.next(), sources.next()) {
            (Some(source), None) if source.node == config.node => config.instance.clone_from(&source.instance),
            (None, _) => {}
            _ => {
                let found: Vec<String> =
                    state.body.sources.iter().map(|s| format!("{}/{}", s.node, s.instance)).collect();
                return Err(RestoreError::OtherSource { node: config.node, found: found.join(", ") });
            }
        }
        let mut observer = Self::new(config);
        observer.load(&state.body);
        if is_seamless && let Some(last) = observer.earlier.pop() {
            observer.config.started = last.from;
        }
        Ok(observer)
    }

    fn load(&mut self, body: &Body) {
        self.earlier = body.window.nodes.get(&self.config.node).cloned().unwrap_or_default();
        let ended = body.window.to.unwrap_or(self.config.started);
        for loss in &body.coverage.losses {
            if let Some(index) = LossReason::ALL.iter().position(|r| r.as_str() == loss.reason) {
                self.losses[index] = loss.count;
                if LossReason::ALL[index] == LossReason::CoarseClient {
                    self.coarse_clients = loss.count;
                }
            }
        }
        let computed = UnresolvedReason::DERIVED;
        for entry in &body.coverage.unresolved {
            if let Some(reason) =
                UnresolvedReason::ALL.iter().find(|r| r.as_str() == entry.reason && !computed.contains(r))
            {
                self.unresolved[*reason as usize] = entry.count;
                self.examples[*reason as usize].clone_from(&entry.examples);
            }
        }
        // Reasons that are computed are computed again.
        let known = |reason: &str| {
            LossReason::ALL.iter().any(|r| r.as_str() == reason)
                || UnresolvedReason::ALL.iter().any(|r| r.as_str() == reason && !computed.contains(r))
        };
        for entry in &body.coverage.workloads {
            let peer = self.peers.id(entry.peer.clone());
            for reason in entry.reasons.iter().filter(|r| known(r)) {
                self.incomplete_peer(peer, reason);
            }
        }
        let mut places = crate::snapshot::facts::Facts::default();
        for entry in &body.workloads {
            let here = entry.pods.keys().filter(|node| !node.is_empty()).map(|node| (node, &entry.as_of));
            for (node, at) in entry.ran_on.iter().chain(here) {
                places.ran_on(&entry.workload, node.clone(), *at);
            }
        }
        self.ran_on = places.ran_on;
        let gone = body.workloads.iter().map(|w| WorkloadEntry {
            pods: BTreeMap::new(),
            ran_on: BTreeMap::new(),
            ..w.clone()
        });
        self.gone_workloads = gone.map(|w| (w.workload.clone(), w.into())).collect();
        let mut services = crate::snapshot::facts::Facts::default();
        for service in &body.services {
            let mut service = service.clone();
            for backend in service.ports.iter_mut().flat_map(|p| &mut p.backends) {
                backend.to = backend.to.or(Some(ended));
            }
            services.add_service(service);
        }
        self.services = services.services;
        for entry in &body.addresses {
            let peer = self.peers.id(entry.peer.clone());
            let from = entry.from.unwrap_or(Timestamp::MIN);
            let to = entry.to.unwrap_or(ended);
            let owner = match entry.pod.as_deref().and_then(|p| p.split_once('/')) {
                Some((namespace, name)) => AddressOwner::Pod(self.pods.restore(namespace, name, peer, ended)),
                None => AddressOwner::Node(peer),
            };
            // That it was proven is stored, when is not: the tenure counts as the API server's word from here on.
            self.addresses.restore(entry.address, Tenure::told(owner, from, to));
        }
        for flow in &body.service_flows {
            let client = self.peers.id(flow.client.clone());
            let service = self.texts.intern(&flow.service);
            let kept = Flow {
                seen: flow.sources.first().map(seen),
                marks: bits(&flow.marks),
                node_workloads: flow.node_workloads.iter().map(|w| Arc::from(w.as_str())).collect(),
            };
            self.service_flows.insert((client, service, flow.protocol, flow.port), kept);
        }
        for flow in &body.remote_flows {
            let local = self.peers.id(flow.local.clone());
            let mut kept = Edge {
                marks: bits(&flow.marks),
                node_workloads: flow.node_workloads.iter().map(|w| Arc::from(w.as_str())).collect(),
                port_name: flow.port_name.as_deref().map(Arc::from),
                ..Edge::default()
            };
            kept.sides[side_index(flow.side)] = flow.sources.first().map(seen);
            self.remote_flows.insert((local, flow.side, flow.address, flow.protocol, flow.port), kept);
        }
        for edge in &body.edges {
            // An edge without counts of its own was computed.
            if edge.sources.iter().all(|s| s.by_merge) {
                continue;
            }
            let mut kept = Edge {
                marks: bits(&edge.marks),
                node_workloads: edge.node_workloads.iter().map(|w| Arc::from(w.as_str())).collect(),
                port_name: edge.port_name.as_deref().map(Arc::from),
                ..Edge::default()
            };
            for counts in edge.sources.iter().filter(|s| !s.by_merge) {
                kept.sides[side_index(counts.side)] = Some(seen(counts));
            }
            let [client, server] = [&edge.client.peer, &edge.server.peer].map(|peer| self.restored_peer(peer));
            if let Peer::External { address } = &edge.server.peer
                && let Ok(address) = address.parse::<IpAddr>()
            {
                for name in &edge.server.names {
                    self.names.learn(client, address, &Arc::from(name.as_str()), self.config.max_names);
                }
            }
            self.edges.restore((client, server, edge.protocol, edge.port), kept, &self.peers);
        }
    }

    fn restored_peer(&mut self, peer: &Peer) -> super::table::PeerId {
        match peer {
            Peer::External { address } => match address.parse::<IpAddr>() {
                Ok(address) => self.peers.external(address),
                Err(_) => self.peers.id(peer.clone()),
            },
            _ => self.peers.id(peer.clone()),
        }
    }
}
