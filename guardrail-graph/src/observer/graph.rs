//! What was seen, merged: edges, uses of Services, flows whose remote end only `merge` can name,
//! and the DNS names that clients asked for. It knows peers by number, and nothing of who is behind
//! an address.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use indexmap::IndexMap;

use super::{
    ObserverConfig,
    catalogue::Uses,
    edge::{Earlier, Edge, Flow, Gain, Key},
    edges::{Edges, Ref},
    names::Names,
    peers::{PeerId, Peers},
};
use crate::{peer::Protocol, snapshot::Side, time::Timestamp};

/// `(client, "namespace/name:port", protocol, port)`.
pub(super) type ServiceKey = (PeerId, Arc<str>, Protocol, u16);
/// `(end on this node, which end that is, address of the other, protocol, port, whether a proxy
/// took it and nobody knows what it dialled)`.
pub(super) type RemoteKey = (PeerId, Side, IpAddr, Protocol, u16, bool);

/// There is no room for another entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// All that was seen. Every table is bounded.
#[derive(Debug)]
pub(super) struct Graph {
    edges: Edges,
    service_flows: HashMap<ServiceKey, Flow>,
    remote_flows: HashMap<RemoteKey, Edge>,
    /// Those of the epoch before.
    earlier_services: Earlier<ServiceKey>,
    earlier_remotes: Earlier<RemoteKey>,
    names: Names,
    /// The peer that stands for external ones which are not kept apart.
    many: PeerId,
    max_edges: usize,
    max_names: usize,
}

/// What stood in the graph of an epoch.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) edges: IndexMap<Key, Edge>,
    pub(super) service_flows: HashMap<ServiceKey, Flow>,
    pub(super) remote_flows: HashMap<RemoteKey, Edge>,
}

/// Where a flow stands in the graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    Edge(Key, Side),
    Service(ServiceKey),
    Remote(RemoteKey),
}

impl Graph {
    /// An empty graph. `many` is [`crate::Peer::many`].
    pub(super) fn new(many: PeerId, config: &ObserverConfig) -> Self {
        Self {
            edges: Edges::new(many, config),
            service_flows: HashMap::new(),
            remote_flows: HashMap::new(),
            earlier_services: Earlier::default(),
            earlier_remotes: Earlier::default(),
            names: Names::default(),
            many,
            max_edges: config.max_edges,
            max_names: config.max_names,
        }
    }

    /// The peer that stands for external ones which are not kept apart.
    pub(super) fn many(&self) -> PeerId {
        self.many
    }

    /// Adds to an edge.
    ///
    /// # Errors
    /// If it is a new one and there is no room for it.
    pub(super) fn gain(
        &mut self,
        ends: [Ref; 2],
        port: (Protocol, u16),
        gain: &Gain,
        peers: &mut Peers,
    ) -> Result<(), Full> {
        if self.edges.gain(ends, port, gain, peers) { Ok(()) } else { Err(Full) }
    }

    /// Adds to a client's use of a Service. Bytes and ends of connections whose beginning stands
    /// elsewhere make no entry.
    ///
    /// # Errors
    /// If it is a new one and there is no room for it.
    pub(super) fn gain_service(&mut self, key: ServiceKey, gain: &Gain) -> Result<(), Full> {
        let opens = gain.seen.counts.is_seen();
        let earlier = if opens { None } else { self.earlier_services.last(&key) };
        if let Some(known) = self.service_flows.get_mut(&key) {
            known.gain(gain, earlier);
        } else if opens || earlier.is_some() {
            if self.service_flows.len() >= self.max_edges {
                return Err(Full);
            }
            self.service_flows.entry(key).or_default().gain(gain, earlier);
        }
        Ok(())
    }

    /// Remembers a use of a Service that counts for nothing: the client's proxy took it.
    ///
    /// # Errors
    /// If it is a new one and there is no room for it.
    pub(super) fn capture_service(&mut self, key: ServiceKey, gain: &Gain) -> Result<(), Full> {
        if self.service_flows.len() >= self.max_edges && !self.service_flows.contains_key(&key) {
            return Err(Full);
        }
        self.service_flows.entry(key).or_default().capture(gain);
        Ok(())
    }

    /// Adds to a flow with a pod of another node, likewise.
    ///
    /// # Errors
    /// If it is a new one and there is no room for it.
    pub(super) fn gain_remote(&mut self, key: RemoteKey, gain: &Gain) -> Result<(), Full> {
        let opens = gain.seen.counts.is_seen();
        let earlier = if opens { None } else { self.earlier_remotes.last(&key) };
        if let Some(known) = self.remote_flows.get_mut(&key) {
            known.gain(gain, earlier);
        } else if opens || earlier.is_some() {
            if self.remote_flows.len() >= self.max_edges {
                return Err(Full);
            }
            self.remote_flows.entry(key).or_default().gain(gain, earlier);
        }
        Ok(())
    }

    /// Learns a name that a client was told for an address.
    pub(super) fn learn_name(&mut self, client: PeerId, address: IpAddr, name: &Arc<str>) {
        self.names.learn(client, address, name, self.max_names);
    }

    /// The edges.
    pub(super) fn edges(&self) -> &Edges {
        &self.edges
    }

    /// Uses of Services.
    pub(super) fn service_flows(&self) -> &HashMap<ServiceKey, Flow> {
        &self.service_flows
    }

    /// Who used which Service port when.
    pub(super) fn uses(&self) -> Uses {
        let mut uses = Uses::new();
        for ((client, service, protocol, _), flow) in &self.service_flows {
            if let Some(seen) = &flow.seen {
                let of_port = uses.entry((Arc::clone(service), protocol.to_string())).or_default();
                of_port.push((*client, seen.first, seen.last));
            }
        }
        uses
    }

    /// Whether there is such a flow with a pod of another node, or was in the epoch before.
    pub(super) fn has_remote(&self, key: &RemoteKey) -> bool {
        self.remote_flows.contains_key(key) || self.earlier_remotes.last(key).is_some()
    }

    /// Flows with pods of other nodes.
    pub(super) fn remote_flows(&self) -> &HashMap<RemoteKey, Edge> {
        &self.remote_flows
    }

    /// Takes out those of which everything is told, but for what is open since an earlier epoch and
    /// what a proxy took: who called it is not what is missing there.
    pub(super) fn take_remotes(&mut self, is_told: impl Fn(&RemoteKey, &Edge) -> bool) -> Vec<(RemoteKey, Edge)> {
        let is_open = |edge: &Edge| [Side::Client, Side::Server].iter().any(|side| edge.still_open(*side) > 0);
        let is_past = |key: &RemoteKey, edge: &Edge| !key.5 && !is_open(edge) && is_told(key, edge);
        self.remote_flows.extract_if(|key, edge| is_past(key, edge)).collect()
    }

    /// Names that clients were told.
    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// Takes out an edge between the end that is here and an address that turned out to be no
    /// external peer.
    pub(super) fn take(&mut self, key: &Key, local: PeerId, external: PeerId) -> Option<Edge> {
        self.edges.take(key, local, external)
    }

    /// Forgets that these external peers, which stand in no edge any more, were kept apart.
    pub(super) fn forget_external(&mut self, gone: &[PeerId]) {
        self.edges.forget_external(gone);
    }

    /// Every peer that stands in it, some of them several times.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        let service_clients = self.service_flows.keys().chain(self.earlier_services.keys()).map(|key| key.0);
        let remote = self.remote_flows.keys().chain(self.earlier_remotes.keys()).map(|key| key.0);
        self.edges.peers().chain(service_clients).chain(remote).chain([self.many])
    }

    /// Forgets names that clients were told which `is_used` says are no more.
    pub(super) fn forget_names(&mut self, is_used: impl Fn(PeerId) -> bool) {
        self.names.retain(is_used);
    }

    /// Takes out edges with an external peer that were first seen at `since` or later: it may turn
    /// out to be none.
    pub(super) fn take_young(&mut self, since: Timestamp, peers: &Peers) -> Vec<(Key, Edge)> {
        self.edges.take_young(since, peers)
    }

    /// Begins anew, and gives what there was. `open`: what is open now. Names stay as long as no
    /// other answer contradicts them.
    pub(super) fn turn(&mut self, config: &ObserverConfig, open: &HashMap<Standing, u32>, peers: &Peers) -> Closed {
        let to_address = |standing: &Standing| match standing {
            Standing::Edge((client, server, ..), Side::Client) => Some((*client, peers.address(*server)?)),
            _ => None,
        };
        let connected: HashSet<(PeerId, IpAddr)> = open.keys().filter_map(to_address).collect();
        self.names.turn(|client, address| connected.contains(&(client, address)));
        let edges = self.edges.turn(config);
        let service_flows = std::mem::take(&mut self.service_flows);
        let remote_flows = std::mem::take(&mut self.remote_flows);
        let seen = |(key, flow): (&ServiceKey, &Flow)| Some((key.clone(), flow.seen.as_ref()?.last));
        self.earlier_services = Earlier::of(service_flows.iter().filter_map(seen));
        let seen = |(key, flow): (&RemoteKey, &Edge)| Some((*key, flow.sides.iter().flatten().next()?.last));
        self.earlier_remotes = Earlier::of(remote_flows.iter().filter_map(seen));
        Closed { edges, service_flows, remote_flows }
    }

    /// Says how many connections are open of those that were when the epoch began.
    pub(super) fn set_open(&mut self, open: &HashMap<Standing, u32>) {
        let count = |standing: &Standing| open.get(standing).copied().unwrap_or_default();
        self.edges.set_open(|(key, side)| count(&Standing::Edge(*key, *side)));
        for (key, flow) in self.service_flows.iter_mut().filter(|(_, flow)| flow.still_open > 0) {
            flow.still_open = count(&Standing::Service(key.clone()));
        }
        for (key, flow) in &mut self.remote_flows {
            if flow.still_open(key.1) > 0 {
                flow.set_still_open(key.1, count(&Standing::Remote(*key)));
            }
        }
    }

    /// Adds connections that are open as an epoch begins to what the one before had.
    pub(super) fn open(&mut self, at: Standing, count: u32, start: Timestamp, before: &Closed, peers: &Peers) {
        match at {
            Standing::Edge(key, side) => {
                if let Some(edge) = before.edges.get(&key) {
                    self.edges.open((key, side), count, start, edge, peers);
                }
            }
            Standing::Service(key) => {
                if let Some(flow) = before.service_flows.get(&key) {
                    self.service_flows.insert(key, flow.open_since(count, start));
                }
            }
            Standing::Remote(key) => {
                if let Some(flow) = before.remote_flows.get(&key) {
                    self.remote_flows.insert(key, flow.open_since(key.1, count, start));
                }
            }
        }
    }

    /// Puts an edge back, as a stored state has it.
    pub(super) fn restore_edge(&mut self, key: Key, edge: Edge, peers: &Peers) {
        self.edges.restore(key, edge, peers);
    }

    /// Puts a use of a Service back.
    pub(super) fn restore_service_flow(&mut self, key: ServiceKey, flow: Flow) {
        self.service_flows.insert(key, flow);
    }

    /// Puts a flow with a pod of another node back.
    pub(super) fn restore_remote_flow(&mut self, key: RemoteKey, flow: Edge) {
        self.remote_flows.insert(key, flow);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Peer, Timestamp,
        snapshot::{Counts, facts::Seen},
    };

    fn gain(opened: u64) -> Gain {
        let at = Timestamp::from_unix_seconds(1);
        let counts = Counts { opened, bytes_sent: 1, ..Counts::default() };
        Gain {
            side: Side::Client,
            seen: Seen { counts, first: at, last: at },
            closed: 0,
            marks: 0,
            node_workload: None,
            port_name: None,
        }
    }

    #[test]
    fn every_table_is_bounded_and_bytes_alone_make_no_entry() {
        let mut config = ObserverConfig::new("a", "i", Timestamp::from_unix_seconds(0));
        config.max_edges = 2;
        let mut peers = Peers::default();
        let [many, here] = [Peer::many(), Peer::Node { name: "a".into() }].map(|peer| peers.id(peer));
        let mut graph = Graph::new(many, &config);
        let service = |port: u16| (here, "shop/api:80".into(), Protocol::Tcp, port);
        let remote = |port: u16| (here, Side::Client, IpAddr::from([10, 244, 2, 2]), Protocol::Tcp, port, false);
        for port in [1, 2] {
            assert_eq!(graph.gain_service(service(port), &gain(0)), Ok(()));
            assert_eq!(graph.gain_remote(remote(port), &gain(0)), Ok(()));
        }
        assert!(graph.service_flows().is_empty() && graph.remote_flows().is_empty());
        for (port, expected) in [(1, Ok(())), (2, Ok(())), (3, Err(Full)), (2, Ok(()))] {
            assert_eq!(graph.gain_service(service(port), &gain(1)), expected, "{port}");
            assert_eq!(graph.gain_remote(remote(port), &gain(1)), expected, "{port}");
            let ends = [Ref::Peer(here), Ref::Peer(here)];
            assert_eq!(graph.gain(ends, (Protocol::Tcp, port), &gain(1), &mut peers), expected, "{port}");
        }
        assert_eq!((graph.edges().len(), graph.service_flows().len(), graph.remote_flows().len()), (2, 2, 2));
    }
}
