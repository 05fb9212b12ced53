//! What was seen, merged: edges, uses of Services, flows whose remote end only `merge` can name,
//! and the DNS names that clients asked for. It knows peers by number, and nothing of who is behind
//! an address.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::{
    ObserverConfig,
    catalogue::Uses,
    edge::{Edge, Flow, Gain, Key},
    edges::{Edges, Ref},
    names::Names,
    peers::{PeerId, Peers},
};
use crate::{peer::Protocol, snapshot::Side};

/// `(client, "namespace/name:port", protocol, port)`.
pub(super) type ServiceKey = (PeerId, Arc<str>, Protocol, u16);
/// `(end on this node, which end that is, address of the other, protocol, port)`.
pub(super) type RemoteKey = (PeerId, Side, IpAddr, Protocol, u16);

/// There is no room for another entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// All that was seen. Every table is bounded.
#[derive(Debug)]
pub(super) struct Graph {
    edges: Edges,
    service_flows: HashMap<ServiceKey, Flow>,
    remote_flows: HashMap<RemoteKey, Edge>,
    names: Names,
    /// The peer that stands for external ones which are not kept apart.
    many: PeerId,
    max_edges: usize,
    max_names: usize,
}

fn opens(gain: &Gain) -> bool {
    gain.seen.counts.established() > 0 || gain.seen.counts.failed() > 0
}

impl Graph {
    /// An empty graph. `many` is [`crate::Peer::many`].
    pub(super) fn new(many: PeerId, config: &ObserverConfig) -> Self {
        Self {
            edges: Edges::new(many, config),
            service_flows: HashMap::new(),
            remote_flows: HashMap::new(),
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
        if let Some(known) = self.service_flows.get_mut(&key) {
            known.gain(gain);
        } else if opens(gain) {
            if self.service_flows.len() >= self.max_edges {
                return Err(Full);
            }
            self.service_flows.entry(key).or_default().gain(gain);
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
        if let Some(known) = self.remote_flows.get_mut(&key) {
            known.gain(gain);
        } else if opens(gain) {
            if self.remote_flows.len() >= self.max_edges {
                return Err(Full);
            }
            self.remote_flows.entry(key).or_default().gain(gain);
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

    /// Flows with pods of other nodes.
    pub(super) fn remote_flows(&self) -> &HashMap<RemoteKey, Edge> {
        &self.remote_flows
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
        let service_clients = self.service_flows.keys().map(|key| key.0);
        let remote = self.remote_flows.keys().map(|key| key.0);
        self.edges.peers().chain(service_clients).chain(remote).chain([self.many])
    }

    /// Forgets names that clients were told which `is_used` says are no more.
    pub(super) fn forget_names(&mut self, is_used: impl Fn(PeerId) -> bool) {
        self.names.retain(is_used);
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
        let remote = |port: u16| (here, Side::Client, IpAddr::from([10, 244, 2, 2]), Protocol::Tcp, port);
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
