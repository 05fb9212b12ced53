//! Continuing from a stored state.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use thiserror::Error;

use super::{
    AddressOwner, Observer, ObserverConfig,
    edge::{Edge, Flow, mark_bit, side_index},
    identity::Told,
    ledger::{End, Ends},
    peers::PeerId,
};
use crate::{
    identity::addresses::Tenure,
    inventory::{Kind, Labels, Service, ServicePort, TargetPort},
    peer::Peer,
    snapshot::{Body, Interval, ServiceEntry, Snapshot, SourceCounts, UnresolvedFlow, facts::Seen, owners::LEAD},
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

/// What a restored state says of the cluster, until the lists of the inventory confirm it. Until
/// then what stood still stands.
#[derive(Debug)]
pub(super) struct Restored {
    /// End of the state's window.
    pub(super) ended: Timestamp,
    /// What was counted since then is still to be told.
    is_seamless: bool,
    /// Kinds of which no list has come.
    unheard: BTreeSet<Kind>,
    /// Who had which address when the state ended.
    owners: HashMap<IpAddr, AddressOwner>,
    /// Whether the API listed an address as the node's that had it.
    listed: HashMap<IpAddr, (PeerId, bool)>,
    /// Nodes that the cluster had.
    pub(super) expected: BTreeSet<String>,
}

impl Restored {
    /// Nodes that had an address when the state ended, and still have it as far as known.
    pub(super) fn nodes(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.owners.values().filter_map(|owner| match owner {
            AddressOwner::Node(peer) => Some(*peer),
            AddressOwner::Pod(_) => None,
        })
    }

    /// Whether the API listed the address as this node's when the state ended.
    pub(super) fn is_listed(&self, address: IpAddr, node: PeerId) -> Option<bool> {
        self.listed.get(&address).filter(|(owner, _)| *owner == node).map(|(_, listed)| *listed)
    }

    /// Whether the list of this kind has come.
    pub(super) fn knows(&self, kind: &Kind) -> bool {
        !self.unheard.contains(kind)
    }

    /// Whether a node that is in no list is none any more.
    pub(super) fn knows_nodes(&self) -> bool {
        [Kind::Node, Kind::Pod].iter().all(|kind| self.knows(kind))
    }

    /// Whether an endpoint that is in no list is none any more.
    pub(super) fn knows_endpoints(&self) -> bool {
        [Kind::Service, Kind::EndpointSlice, Kind::Pod].iter().all(|kind| self.knows(kind))
    }

    /// Until when an owner that is no more may have had its address, if that became known at `now`.
    fn end(&self, now: Timestamp) -> Timestamp {
        if self.is_seamless { now } else { self.ended }
    }
}

/// The virtual addresses of a stored Service: its own until the list says otherwise.
fn stored_service(entry: &ServiceEntry) -> Service {
    let port = |p: &crate::snapshot::ServicePortEntry| ServicePort {
        name: p.name.clone(),
        port: p.port,
        protocol: p.protocol.clone(),
        target_port: TargetPort::Number(p.port),
        node_port: p.node_port,
    };
    Service {
        namespace: entry.namespace.clone(),
        name: entry.name.clone(),
        service_type: entry.service_type.clone(),
        cluster_ips: entry.addresses.iter().copied().collect(),
        external_ips: Vec::new(),
        external_name: entry.external_name.clone(),
        selector: Labels::default(),
        ports: entry.ports.iter().map(port).collect(),
        ..Service::default()
    }
}

/// Until when a stored Service was there, as far as its endpoints and its description show; `None`:
/// it was when the state ended.
fn service_end(entry: &ServiceEntry) -> Option<Timestamp> {
    let ends: Option<Vec<Timestamp>> = entry.ports.iter().flat_map(|p| &p.backends).map(|b| b.to).collect();
    Some(ends?.into_iter().fold(entry.as_of, Timestamp::max))
}

/// Until when the API server's word of addresses was heard, by a state that ended then.
fn word_of(body: &Body, ended: Timestamp) -> Timestamp {
    let open = body.addresses.iter().filter(|entry| entry.to.is_none());
    open.filter_map(|entry| Some(entry.heard?.to.after(LEAD))).fold(ended, Timestamp::min)
}

impl Observer {
    /// Continues from a snapshot that this node's agent wrote: same instance, counts go on. The
    /// time in between is a gap in the window, unless `is_seamless`: the hooks were attached all
    /// the time, and what they counted is still to be told.
    ///
    /// # Errors
    /// If the snapshot has counts of another node, or of several instances.
    pub fn restore(mut config: ObserverConfig, state: &Snapshot, is_seamless: bool) -> Result<Self, RestoreError> {
        let mut sources = state.body.sources.iter();
        let epoch = match (sources.next(), sources.next()) {
            (Some(source), None) if source.node == config.node => {
                config.instance.clone_from(&source.instance);
                source.start
            }
            (None, _) => Some(config.started),
            _ => {
                let found: Vec<String> =
                    state.body.sources.iter().map(|s| format!("{}/{}", s.node, s.instance)).collect();
                return Err(RestoreError::OtherSource { node: config.node, found: found.join(", ") });
            }
        };
        let mut observer = Self::new(config);
        observer.history.continue_epoch(epoch);
        observer.load(&state.body, is_seamless);
        if is_seamless && let Some(started) = observer.history.join_last() {
            observer.config.started = started;
        }
        Ok(observer)
    }

    fn load(&mut self, body: &Body, is_seamless: bool) {
        let earlier = body.window.nodes.get(&self.config.node).cloned().unwrap_or_default();
        let ended = body.window.to.unwrap_or(self.config.started);
        let steps = body.window.steps.get(&self.config.node).cloned().unwrap_or_default();
        self.history.restore((earlier, steps), ended);
        self.words.restore(word_of(body, ended));
        let mut restored = Restored {
            ended,
            is_seamless,
            unheard: BTreeSet::from([Kind::Node, Kind::Pod, Kind::Service, Kind::EndpointSlice]),
            owners: HashMap::new(),
            listed: HashMap::new(),
            expected: body.coverage.nodes.expected.clone(),
        };
        self.restore_presence(body);
        self.nodes.restore(body);
        for node in &body.nodes {
            node.described.pod_cidrs.iter().for_each(|range| self.identity.remember_range(*range, node.time.to));
        }
        let unknown = body.window.whole();
        for loss in &body.coverage.losses {
            self.ledger.restore_loss(&loss.reason, loss.count);
            let times = loss.times.as_deref().unwrap_or_default();
            let times =
                times.iter().map(|loss| (loss.peer.as_ref().map(|peer| self.peers.id(peer.clone())), loss.time));
            self.ledger.restore_times(&loss.reason, loss.times.is_some().then(|| times.collect()), unknown);
        }
        for entry in &body.coverage.unresolved {
            self.ledger.restore_unresolved(&entry.reason, entry.count, &entry.examples);
            let flows = entry.flows.as_ref().map(|flows| flows.iter().map(|flow| self.restored_flow(flow)).collect());
            self.ledger.restore_flows(&entry.reason, flows, entry.more);
        }
        for entry in &body.coverage.workloads {
            let peer = self.peers.id(entry.peer.clone());
            entry.reasons.iter().for_each(|reason| self.ledger.restore_incomplete(peer, reason));
            self.unnamed.give_up(peer);
        }
        self.catalogue.restore_workloads(&body.workloads);
        self.catalogue.restore_services(&body.services);
        for service in &body.services {
            let gone_at = service_end(service).unwrap_or(self.config.started);
            if !service.addresses.is_empty() && gone_at >= ended.before(self.config.tombstone_ttl) {
                self.catalogue.restore_gone_service(&Arc::new(stored_service(service)), gone_at);
            }
        }
        for entry in &body.addresses {
            let peer = self.peers.id(entry.peer.clone());
            if self.former.restore(entry, peer, ended.before(self.config.tombstone_ttl)) {
                continue;
            }
            let from = entry.from.unwrap_or(Timestamp::MIN);
            let to = entry.to.unwrap_or(Timestamp::MAX);
            let owner = match entry.pod.as_deref().and_then(|p| p.split_once('/')) {
                Some((namespace, name)) => {
                    AddressOwner::Pod(self.identity.restore_pod(namespace, name, peer, self.config.started))
                }
                None => AddressOwner::Node(peer),
            };
            if let (AddressOwner::Node(_), None, Some(listed)) = (owner, entry.to, entry.listed) {
                restored.listed.insert(entry.address, (peer, listed));
            }
            // That it was proven is stored, when is not: the tenure counts as the API server's word
            // from here on. What this node itself still had when the state ended stays proven, as
            // no list tells of addresses that Kubernetes does not know.
            let mut tenure = Tenure::told(owner, from, to);
            let is_own = entry.proven && owner == AddressOwner::Node(self.identity.this_node());
            if is_own && entry.to.is_none() {
                tenure.proven = Some((ended, ended));
            }
            self.identity.restore_tenure(entry.address, tenure);
            if entry.to.is_none() && !is_own {
                restored.owners.insert(entry.address, owner);
            }
        }
        // Without pins nobody knows which of them ended in between; those that did not are found
        // again.
        let still_open = |counts: &SourceCounts| match is_seamless {
            true => counts.counts.open,
            false => 0,
        };
        for flow in &body.service_flows {
            let client = self.peers.id(flow.client.clone());
            let service = self.texts.intern(flow.service.as_str());
            let kept = Flow {
                seen: flow.sources.first().map(seen),
                still_open: flow.sources.first().map_or(0, still_open),
                marks: bits(&flow.marks),
                node_workloads: flow.node_workloads.iter().map(|w| Arc::from(w.as_str())).collect(),
            };
            self.graph.restore_service_flow((client, service, flow.protocol, flow.port), kept);
        }
        for flow in &body.remote_flows {
            let local = self.peers.id(flow.local.clone());
            let workloads = flow.node_workloads.iter().map(|w| Arc::from(w.as_str()));
            let mut kept = Edge::of(bits(&flow.marks), flow.port_name.as_deref().map(Arc::from), workloads);
            kept.sides[side_index(flow.side)] = flow.sources.first().map(seen);
            kept.set_still_open(flow.side, flow.sources.first().map_or(0, still_open));
            let untold = flow.marks.contains(crate::snapshot::marks::REDIRECTED);
            self.graph.restore_remote_flow((local, flow.side, flow.address, flow.protocol, flow.port, untold), kept);
        }
        for edge in &body.edges {
            // An edge without counts of its own was computed.
            if edge.sources.iter().all(|s| s.by_merge) {
                continue;
            }
            let workloads = edge.node_workloads.iter().map(|w| Arc::from(w.as_str()));
            let mut kept = Edge::of(bits(&edge.marks), edge.port_name.as_deref().map(Arc::from), workloads);
            for counts in edge.sources.iter().filter(|s| !s.by_merge) {
                kept.sides[side_index(counts.side)] = Some(seen(counts));
                kept.set_still_open(counts.side, still_open(counts));
            }
            let [client, server] = [&edge.client.peer, &edge.server.peer].map(|peer| self.restored_peer(peer));
            if let Peer::External { address } = &*edge.server.peer
                && let Ok(address) = address.parse::<IpAddr>()
            {
                for name in &edge.server.names {
                    self.graph.learn_name(client, address, &Arc::from(name.as_str()));
                }
            }
            self.graph.restore_edge((client, server, edge.protocol, edge.port), kept, &self.peers);
        }
        self.restored = Some(restored);
    }

    /// A list of this kind has come, or none will. What the state has of that kind and the list has
    /// not is over.
    pub(super) fn settle_restored(&mut self, kind: &Kind, now: Timestamp) {
        let Some(mut restored) = self.restored.take() else { return };
        if restored.unheard.remove(kind) {
            let (confirmed, open): (HashMap<_, _>, _) =
                restored.owners.into_iter().partition(|(_, owner)| match owner {
                    AddressOwner::Node(_) => *kind == Kind::Node,
                    AddressOwner::Pod(_) => *kind == Kind::Pod,
                });
            restored.owners = open;
            for (address, owner) in confirmed {
                if let AddressOwner::Node(peer) = owner
                    && self.identity.range_nodes().get(&address) == Some(&peer)
                {
                    // It follows from the node's range, as long as no pod has it.
                    self.identity.forget_address(address, owner);
                } else if !self.has_address(owner, address) {
                    let told = Told { now: restored.end(now), ..self.told(kind, now) };
                    self.identity.release(address, owner, told);
                }
            }
            if *kind == Kind::Node {
                restored.listed.clear();
            }
            if *kind == Kind::Pod {
                self.catalogue.forget_restored_pods();
            }
            if restored.knows_endpoints() {
                self.catalogue.mark_all_services();
            }
        }
        self.restored = Some(restored).filter(|restored| !restored.unheard.is_empty());
    }

    /// Whether the inventory says that this owner has the address.
    fn has_address(&self, owner: AddressOwner, address: IpAddr) -> bool {
        match owner {
            AddressOwner::Node(peer) => {
                let node = self.peers.node_name(peer).and_then(|name| self.catalogue.inventory().node(name));
                node.is_some_and(|node| node.addresses.contains(&address))
            }
            AddressOwner::Pod(id) => self
                .identity
                .pod(id)
                .is_some_and(|r| r.deleted.is_none() && !r.pod.finished && r.pod.addresses.contains(&address)),
        }
    }

    /// The API server gives an address to `owner`. If the state gives it to another, the time
    /// between state and now is in doubt, as far as it was observed.
    pub(super) fn release_restored(&mut self, address: IpAddr, owner: AddressOwner, now: Timestamp) {
        let Some(restored) = &mut self.restored else { return };
        if let Some(before) = restored.owners.get(&address).copied().filter(|before| *before != owner) {
            restored.owners.remove(&address);
            let end = restored.end(now);
            let kind = if matches!(before, AddressOwner::Node(_)) { Kind::Node } else { Kind::Pod };
            let told = Told { now: end, ..self.told(&kind, now) };
            self.identity.release(address, before, told);
        }
    }

    fn restored_flow(&mut self, flow: &UnresolvedFlow) -> (Ends, Interval) {
        let [client, server] = [&flow.client, &flow.server].map(|peer| match peer {
            Peer::External { address } => match address.parse() {
                Ok(address) => End::Address(address),
                Err(_) => End::Peer(self.peers.id(peer.clone())),
            },
            named => End::Peer(self.peers.id(named.clone())),
        });
        let time = Interval { from: flow.time.first_seen, to: flow.time.last_seen };
        ((client, server, flow.protocol, flow.port), time)
    }

    fn restored_peer(&mut self, peer: &Peer) -> PeerId {
        match peer {
            Peer::External { address } => match address.parse::<IpAddr>() {
                Ok(address) => self.peers.external(address),
                Err(_) => self.peers.id(peer.clone()),
            },
            _ => self.peers.id(peer.clone()),
        }
    }
}
