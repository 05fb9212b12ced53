//! Who is behind a cgroup, an address or a network namespace at a given time.
//!
//! Lookups read; what a flow proves about an address is handed back as [`Evidence`] and learned by
//! [`Identity::learn`]. Changes of pods and nodes come from the inventory, lives of pods from their
//! cgroups.

mod ends;
mod networks;
mod pods;
mod ranges;
mod sockets;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

pub(super) use ends::{Evidence, LocalEnd, RemoteEnd, Resolution, address_class};
use ipnet::IpNet;
use networks::Networks;
use pods::Pods;
pub(super) use pods::{AddressChanges, PodId, PodRecord};
pub(super) use sockets::Sockets;

use super::{
    ObserverConfig,
    peers::{PeerId, Peers},
};
use crate::{
    identity::{
        addresses::{AddressIndex, Late, Lookup, Tenure},
        cgroups::{Cgroups, PodLife},
    },
    inventory::{Inventory, Kind, Pod},
    observe::CgroupId,
    peer::Protocol,
    time::Timestamp,
};

/// How long before the first word of a pod's address its traffic may have begun.
pub(super) const ADDRESS_LEAD: Duration = Duration::from_secs(60);
/// How long before the word of its end a pod that is first heard of as finished may have had its
/// address.
const FINISHED_LEAD: Duration = Duration::from_secs(60);

/// Who may own an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressOwner {
    Pod(PodId),
    Node(PeerId),
}

/// When the API server's word of a change came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    /// What began with it began then.
    pub(super) from: Timestamp,
    /// When it came.
    pub(super) now: Timestamp,
    /// The watch had been silent since then: it may have happened at any time between.
    pub(super) silent_since: Option<Timestamp>,
}

/// Cgroups, addresses, pods, ranges of nodes and ports of sockets over time.
#[derive(Debug)]
pub(super) struct Identity {
    node: String,
    this_node: PeerId,
    own_pods_only: bool,
    max_cgroups: usize,
    guard: Duration,
    cgroups: Cgroups,
    addresses: AddressIndex<AddressOwner>,
    pods: Pods,
    sockets: Sockets,
    networks: Networks,
    /// First lists that are still to come.
    awaited: Vec<Kind>,
    /// Addresses that nodes own by their pod range (network and first host address), unless a pod
    /// has them.
    range_nodes: HashMap<IpAddr, PeerId>,
    pod_ranges: Vec<IpNet>,
    /// Those of nodes that are gone, and since when: the cluster gives them to others, and
    /// meanwhile pods call addresses that were in them.
    former_ranges: BTreeMap<IpNet, Timestamp>,
    /// Those of this node.
    own_ranges: Vec<IpNet>,
    /// Ports that host-network pods declare → their workload, if it is one.
    host_ports: HashMap<(PeerId, u16, Protocol), Option<Arc<str>>>,
}

impl Identity {
    /// Nothing is known yet but the node itself.
    pub(super) fn new(this_node: PeerId, config: &ObserverConfig) -> Self {
        Self {
            node: config.node.clone(),
            this_node,
            own_pods_only: config.own_pods_only,
            max_cgroups: config.max_cgroups,
            guard: config.guard,
            cgroups: Cgroups::default(),
            addresses: AddressIndex::new(config.guard, ADDRESS_LEAD),
            pods: Pods::default(),
            sockets: Sockets::new(config.max_listeners),
            networks: Networks::new(config.max_listeners),
            awaited: config.awaited.clone(),
            range_nodes: HashMap::new(),
            pod_ranges: Vec::new(),
            former_ranges: BTreeMap::new(),
            own_ranges: Vec::new(),
            host_ports: HashMap::new(),
        }
    }

    /// The node itself.
    pub(super) fn this_node(&self) -> PeerId {
        self.this_node
    }

    /// Ports of local sockets.
    pub(super) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Ports of local sockets.
    pub(super) fn sockets_mut(&mut self) -> &mut Sockets {
        &mut self.sockets
    }

    /// A pod, deleted ones included until they expire.
    pub(super) fn pod(&self, id: PodId) -> Option<&PodRecord> {
        self.pods.get(id)
    }

    /// The pod of that name, or the last one of it.
    pub(super) fn pod_by_name(&self, namespace: &str, name: &str) -> Option<&PodRecord> {
        self.pods.by_name(namespace, name).map(|(_, record)| record)
    }

    /// Who had which address when.
    pub(super) fn tenures(&self) -> impl Iterator<Item = (IpAddr, &Tenure<AddressOwner>)> {
        self.addresses.iter()
    }

    /// Who had this address when.
    pub(super) fn tenures_of(&self, address: IpAddr) -> impl Iterator<Item = &Tenure<AddressOwner>> {
        self.addresses.of(address)
    }

    /// Changes what is sure of the tenure that an owner had until then.
    pub(super) fn doubt(
        &mut self,
        address: IpAddr,
        owner: AddressOwner,
        to: Timestamp,
        change: impl FnOnce(&mut Tenure<AddressOwner>),
    ) {
        if let Some(tenure) = self.addresses.until(address, owner, to) {
            change(tenure);
        }
    }

    /// Nodes that have or had an address.
    pub(super) fn nodes_with(&self, address: IpAddr) -> impl Iterator<Item = PeerId> {
        self.addresses.of(address).filter_map(|tenure| match tenure.owner {
            AddressOwner::Node(peer) => Some(peer),
            AddressOwner::Pod(_) => None,
        })
    }

    /// The one owner of an address at `at`.
    pub(super) fn owner(&self, address: IpAddr, at: Timestamp) -> Option<AddressOwner> {
        match self.addresses.lookup(address, at) {
            Lookup::Owner(owner) => Some(owner),
            _ => None,
        }
    }

    /// Whether the owner of an address may have changed between two instants.
    pub(super) fn changed_between(&self, address: IpAddr, from: Timestamp, to: Timestamp) -> bool {
        self.addresses.changed_between(address, from, to)
    }

    /// Whether somebody else than the owners at two instants had the address between them. Where no
    /// owner is known, this node stands for it.
    pub(super) fn others_between(&self, address: IpAddr, first: Timestamp, last: Timestamp) -> bool {
        let owners = [first, last].map(|t| self.owner(address, t).unwrap_or(AddressOwner::Node(self.this_node)));
        self.addresses.others_between(address, first, last, owners)
    }

    /// Whether another peer than those at two instants had the address between them.
    pub(super) fn other_peers_between(&self, address: IpAddr, first: Timestamp, last: Timestamp) -> bool {
        let ends = [first, last].map(|at| self.owner(address, at).and_then(|owner| self.peer_of(owner)));
        let mut between = self.addresses.of(address).filter(|tenure| tenure.from < last && first < tenure.to);
        !self.addresses.is_one_throughout(address, first, last)
            && between.any(|tenure| !ends.contains(&self.peer_of(tenure.owner)))
    }

    /// Whether an address was the same peer's at two instants, and known to be.
    pub(super) fn is_same_peer(&self, address: IpAddr, first: Timestamp, last: Timestamp) -> bool {
        let peer = |at| self.owner(address, at).and_then(|owner| self.peer_of(owner));
        peer(first).is_some() && peer(first) == peer(last)
    }

    /// The workload of the one host-network pod of a node that declares a port.
    pub(super) fn host_port(&self, node: PeerId, port: u16, protocol: Protocol) -> Option<&Option<Arc<str>>> {
        self.host_ports.get(&(node, port, protocol))
    }

    /// Whether lists of the cluster are still to come.
    pub(super) fn awaits_lists(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// No list of this kind is awaited (any more).
    pub(super) fn await_no_list(&mut self, kind: &Kind) {
        self.awaited.retain(|awaited| awaited != kind);
    }

    /// Addresses that changed their owner since the last call.
    pub(super) fn take_reassigned(&mut self) -> Vec<IpAddr> {
        self.addresses.take_reassigned()
    }

    /// A cgroup is there. A pod whose cgroups were gone has its addresses again.
    pub(super) fn cgroup_created(&mut self, id: CgroupId, path: &str, at: Timestamp) {
        let Some(uid) = self.cgroups.created(id, path, at) else { return };
        let Some((pod, record)) = self.pods.by_uid(&uid) else { return };
        if record.deleted.is_none() && !record.pod.finished && !record.pod.host_network {
            for address in &record.pod.addresses {
                self.addresses.revive(*address, AddressOwner::Pod(pod), at);
            }
        }
    }

    /// A cgroup is gone. With a pod's last one on this node its addresses are not its own, whatever
    /// the API server still says.
    pub(super) fn cgroup_removed(&mut self, id: CgroupId, at: Timestamp) {
        let Some((uid, at)) = self.cgroups.removed(id, at) else { return };
        let Some((pod, record)) = self.pods.by_uid(&uid) else { return };
        for address in &record.pod.addresses {
            self.addresses.end(*address, AddressOwner::Pod(pod), at);
        }
    }

    /// A pod was added or changed. `inventory` already holds it.
    pub(super) fn apply_pod(
        &mut self,
        pod: &Arc<Pod>,
        inventory: &Inventory,
        peers: &mut Peers,
        now: Timestamp,
    ) -> Vec<AddressChanges> {
        self.pods.apply(pod, inventory, peers, &self.node, now)
    }

    /// A pod was deleted.
    pub(super) fn delete_pod(&mut self, namespace: &str, name: &str, now: Timestamp) -> Option<AddressChanges> {
        self.pods.delete(namespace, name, now)
    }

    /// A controller became known: pods that waited for it get their name.
    pub(super) fn rename_provisional(&mut self, inventory: &Inventory, peers: &mut Peers) {
        self.pods.rename_provisional(inventory, peers, &self.node);
    }

    /// Takes what a pod's change means for addresses.
    pub(super) fn change_addresses(&mut self, change: &AddressChanges, told: Told) {
        let owner = AddressOwner::Pod(change.id);
        let pod = self.pods.get(change.id).map(|record| Arc::clone(&record.pod));
        if let Some(pod) = pod.as_ref().filter(|pod| !pod.host_network) {
            self.networks.claim(change.id, pod.secondary_addresses.iter().copied());
        }
        for address in &change.released {
            self.release(*address, owner, told);
        }
        let started = pod.as_ref().and_then(|pod| pod.started).filter(|_| change.is_first);
        let networked = pod.as_ref().and_then(|pod| pod.networked);
        // What our own cgroups show of the pod's life bounds what the API server says of its
        // addresses.
        let life = self.pod_life(change.id);
        for address in &change.claimed {
            match life {
                Some(life) if life.to != Timestamp::MAX => self.addresses.past(*address, owner, life.from, life.to),
                _ => self.claim_since(*address, owner, told, (started, networked)),
            }
            if let Some(life) = life {
                self.addresses.born(*address, owner, life.from);
            }
        }
    }

    /// A pod of a second may be over before the API server tells of it: it had its address until
    /// now.
    pub(super) fn finished_pod(&mut self, pod: &Pod, id: PodId, now: Timestamp, is_late: bool) {
        let life = self.pod_life(id).filter(|l| l.to != Timestamp::MAX);
        for address in &pod.addresses {
            if let Some(life) = life {
                self.addresses.past(*address, AddressOwner::Pod(id), life.from, life.to);
            } else if matches!(self.addresses.lookup(*address, now), Lookup::Unknown) {
                let mut tenure = Tenure::told(AddressOwner::Pod(id), now.before(FINISHED_LEAD), now);
                if is_late {
                    // It was over some time in the silence.
                    tenure.sure = (now, now);
                }
                self.addresses.restore(*address, tenure);
            }
        }
    }

    /// The API server says that `owner` has the address.
    pub(super) fn claim(&mut self, address: IpAddr, owner: AddressOwner, told: Told) {
        self.claim_since(address, owner, told, (None, None));
    }

    /// The same of an owner that may have had it since the first of these, and did since the
    /// second.
    fn claim_since(
        &mut self,
        address: IpAddr,
        owner: AddressOwner,
        told: Told,
        (started, networked): (Option<Timestamp>, Option<Timestamp>),
    ) {
        if !self.addresses.claim(address, owner, told.from) {
            return;
        }
        let late = match told.silent_since {
            None => Late { since: started.unwrap_or(told.from), sure: Timestamp::MIN },
            // Not its own clock's: the guard is for the difference.
            Some(silent) => Late {
                since: started.unwrap_or(silent),
                sure: networked.map_or(told.now, |at| at.after(self.guard).min(told.now)),
            },
        };
        self.addresses.came_late(address, owner, late, told.silent_since);
    }

    /// The API server says that `owner` no longer has the address.
    pub(super) fn release(&mut self, address: IpAddr, owner: AddressOwner, told: Told) {
        self.addresses.release(address, owner, told.now);
        if let Some(silent) = told.silent_since {
            self.addresses.ended_in_silence(address, owner, silent);
        }
    }

    /// Whether a record of ours, and not the API server's word alone, says that this owner has the
    /// address at `at`.
    pub(super) fn is_on_record(&self, address: IpAddr, owner: AddressOwner, at: Timestamp) -> bool {
        let is_here = |id| self.pods.get(id).is_some_and(|record| record.pod.node.as_ref() == Some(&self.node));
        let lives = |id| is_here(id) && self.pod_life(id).is_some_and(|life| life.from <= at && at < life.to);
        match owner {
            AddressOwner::Node(peer) if peer == self.this_node => true,
            AddressOwner::Pod(id) if lives(id) => true,
            _ => self.addresses.is_proven(address, at),
        }
    }

    /// Whether a watch was silent about the address at any time between two instants.
    pub(super) fn is_doubtful_between(&self, address: IpAddr, first: Timestamp, last: Timestamp) -> bool {
        self.addresses.is_doubtful_between(address, first, last)
    }

    /// Whether it was last told that whoever is believed to have had the address then no longer had
    /// it.
    pub(super) fn is_past_end(&self, address: IpAddr, at: Timestamp) -> bool {
        self.addresses.is_past_end(address, at)
    }

    /// Forgets that `owner` ever had the address.
    pub(super) fn forget_address(&mut self, address: IpAddr, owner: AddressOwner) {
        self.addresses.forget(address, owner);
    }

    /// Learns what a flow proved. Returns the address if nobody was known to own it before.
    pub(super) fn learn(&mut self, evidence: Evidence) -> Option<IpAddr> {
        match evidence {
            Evidence::Ended { address, owner, at } => {
                self.addresses.end(address, owner, at);
                None
            }
            Evidence::Beside { address, pod } => {
                self.networks.claim(pod, [address]);
                None
            }
            Evidence::Link { address, at } => {
                self.addresses.prove(address, AddressOwner::Node(self.this_node), at).then_some(address)
            }
            Evidence::Owned { address, owner, at } => {
                if !self.addresses.prove(address, owner, at) {
                    return None;
                }
                if let AddressOwner::Pod(id) = owner
                    && let Some(life) = self.pod_life(id)
                {
                    self.addresses.born(address, owner, life.from);
                }
                Some(address)
            }
        }
    }

    /// The life of a pod on this node, as its cgroups show it.
    fn pod_life(&self, id: PodId) -> Option<PodLife> {
        let pod = &self.pods.get(id)?.pod;
        let uids = std::iter::once(&pod.uid).chain(&pod.config_hash);
        let mut own = uids.filter(|uid| self.pods.by_uid(uid).is_some_and(|(owner, _)| owner == id));
        own.find_map(|uid| self.cgroups.pod(uid)).copied()
    }

    /// Takes the ports that host-network pods declare.
    pub(super) fn index_host_ports(&mut self) {
        self.host_ports.clear();
        let hosts = self.pods.iter().filter(|(_, r)| r.pod.host_network && r.deleted.is_none() && !r.pod.finished);
        for (_, record) in hosts {
            for port in &*record.pod.ports {
                let Ok(protocol) = port.protocol.parse() else { continue };
                let name = record.node_workload.clone();
                self.host_ports
                    .entry((record.peer, port.port, protocol))
                    .and_modify(|known| {
                        if *known != name {
                            *known = None;
                        }
                    })
                    .or_insert(name);
            }
        }
    }

    /// Notes that whoever has `address` at `at` serves a UDP port on it. False if there is no room
    /// for that.
    pub(super) fn learn_served(&mut self, address: IpAddr, port: u16, at: Timestamp) -> bool {
        let owner = self.owner(address, at);
        self.sockets.learn_served(address, port, owner)
    }

    /// Whether whoever has the address at `at` was seen serving this UDP port on it: what an
    /// earlier owner served tells nothing of the next one.
    pub(super) fn serves(&self, address: IpAddr, port: u16, at: Timestamp) -> bool {
        self.sockets.served_by(address, port).is_some_and(|owner| owner == self.owner(address, at))
    }

    /// Forgets pods, tenures and cgroups that ended before `before`, and what was served by those
    /// who no longer have the address.
    pub(super) fn expire(&mut self, now: Timestamp, before: Timestamp) {
        let addresses = &self.addresses;
        self.sockets.retain_served(|address, owner| {
            let now_there = match addresses.lookup(address, now) {
                Lookup::Owner(owner) => Some(owner),
                _ => None,
            };
            owner == now_there
        });
        self.forget_ranges(now);
        self.pods.expire(before);
        self.networks.retain(|pod| self.pods.get(pod).is_some());
        self.addresses.expire(before);
        self.cgroups.expire(before, self.max_cgroups);
    }

    /// Every peer that it refers to, some of them several times.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        let owners = self.addresses.iter().map(|(_, tenure)| tenure.owner).chain(self.sockets.owners());
        let of_nodes = owners.filter_map(|owner| match owner {
            AddressOwner::Node(peer) => Some(peer),
            AddressOwner::Pod(_) => None,
        });
        let of_ranges = self.range_nodes.values().copied();
        let of_pods = self.pods.iter().map(|(_, record)| record.peer);
        of_nodes.chain(of_ranges).chain(of_pods).chain(self.host_ports.keys().map(|key| key.0)).chain([self.this_node])
    }

    /// Sizes of its tables by kind.
    pub(super) fn entries(&self) -> [(&'static str, usize); 4] {
        [
            ("address", self.addresses.len()),
            ("cgroup", self.cgroups.len()),
            ("listener", self.sockets.len()),
            ("pod", self.pods.len()),
        ]
    }

    /// Puts a tenure back, as a stored state has it.
    pub(super) fn restore_tenure(&mut self, address: IpAddr, tenure: Tenure<AddressOwner>) {
        self.addresses.restore(address, tenure);
    }

    /// Pods of this node, deleted ones included, with their peer and a host-network pod's workload.
    pub(super) fn own_pods(&self) -> impl Iterator<Item = (&Arc<Pod>, PeerId, Option<&Arc<str>>)> {
        let records = self.pods.iter().map(|(_, record)| record);
        let own = records.filter(|r| r.pod.node.as_ref() == Some(&self.node) && !r.pod.uid.is_empty());
        own.map(|record| (&record.pod, record.peer, record.node_workload.as_ref()))
    }

    /// A pod that an earlier agent knew.
    pub(super) fn know_pod(&mut self, pod: Arc<Pod>, peer: PeerId, node_workload: Option<Arc<str>>, at: Timestamp) {
        self.pods.know(pod, peer, node_workload, at);
    }

    /// A pod of a stored state, of which only name and peer are known.
    pub(super) fn restore_pod(&mut self, namespace: &str, name: &str, peer: PeerId, at: Timestamp) -> PodId {
        self.pods.restore(namespace, name, peer, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        inventory::{Object, read},
        peer::Peer,
    };

    const CLUSTER: &str = "kind: Node\nmetadata: {name: a}\nspec: {podCIDR: 10.244.1.0/24}\n---\nkind: Node\nmetadata: {name: b}\nspec: {podCIDR: 10.244.2.0/24}\n---\n\
        kind: Pod\nmetadata: {name: web, namespace: shop, uid: aaaaaaaa-1}\nspec: {nodeName: a}\nstatus: {podIP: 10.244.1.2}\n";

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    fn ip(last: [u8; 2]) -> IpAddr {
        IpAddr::from([10, 244, last[0], last[1]])
    }

    fn known() -> (Identity, Inventory, Peers) {
        let mut peers = Peers::default();
        let this_node = peers.id(Peer::Node { name: "a".into() });
        let mut identity = Identity::new(this_node, &ObserverConfig::new("a", "i", t(0)));
        let inventory = Inventory::from_objects(read::objects(CLUSTER, "test").unwrap().objects);
        identity.index_nodes(&inventory, &mut peers);
        for object in inventory.pods().cloned().map(Object::Pod) {
            let Object::Pod(pod) = object else { continue };
            for change in identity.apply_pod(&pod, &inventory, &mut peers, t(0)) {
                let told = Told { from: Timestamp::MIN, now: t(0), silent_since: None };
                identity.change_addresses(&change, told);
            }
        }
        (identity, inventory, peers)
    }

    #[test]
    fn an_address_is_a_pod_s_a_node_s_by_its_range_awaited_or_external() {
        let (identity, inventory, peers) = known();
        let at = |address, last| identity.remote_peer(&inventory, address, t(5), last);
        let name = |found| match found {
            Resolution::Known(RemoteEnd::Peer { peer, .. }) => peers.get(peer).to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!(name(at(ip([1, 2]), false)), "shop/Pod/web");
        assert_eq!((name(at(ip([2, 0]), false)), name(at(ip([2, 1]), false))), ("node/b".into(), "node/b".into()));
        assert_eq!(at(ip([2, 9]), false), Resolution::Wait);
        assert!(matches!(at(ip([2, 9]), true), Resolution::Unresolved(_)));
        assert_eq!(at(IpAddr::from([203, 0, 113, 1]), false), Resolution::Known(RemoteEnd::External { marks: 0 }));
    }

    #[test]
    fn lookups_hand_back_what_they_prove_and_change_nothing_themselves() {
        let (mut identity, ..) = known();
        identity.cgroup_created(CgroupId(1), "/kubepods/podaaaaaaaa-1", t(1));
        identity.cgroup_created(CgroupId(2), "/system.slice/kubelet.service", t(1));
        let bridge = IpAddr::from([172, 17, 0, 1]);
        let (host, evidence) = identity.local_end(CgroupId(2), bridge, t(5), false);
        assert!(matches!(host, Resolution::Known(LocalEnd { pod: None, .. })));
        assert_eq!(identity.owner(bridge, t(5)), None, "not learned yet");
        let learned: Vec<_> = evidence.and_then(|e| identity.learn(e)).into_iter().collect();
        assert_eq!(learned, [bridge]);
        assert_eq!(identity.owner(bridge, t(5)), Some(AddressOwner::Node(identity.this_node())));
        let (pod, evidence) = identity.local_end(CgroupId(1), ip([1, 2]), t(5), false);
        assert!(matches!(pod, Resolution::Known(LocalEnd { pod: Some(_), .. })));
        let learned: Vec<_> = evidence.and_then(|e| identity.learn(e)).into_iter().collect();
        assert!(learned.is_empty(), "the API server had said so");
        assert_eq!(identity.local_end(CgroupId(9), ip([1, 9]), t(5), false).0, Resolution::Wait);
    }
}
