//! Pods as the observer remembers them, deleted ones included.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::super::peers::{PeerId, Peers};
use crate::{
    inventory::{Inventory, Pod},
    peer::Peer,
    time::Timestamp,
};

/// A pod's number; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::observer) struct PodId(pub(in crate::observer) u32);

/// What the observer needs of a pod.
#[derive(Debug)]
pub(in crate::observer) struct PodRecord {
    pub(in crate::observer) pod: Arc<Pod>,
    pub(in crate::observer) peer: PeerId,
    /// `namespace/Owner/name` of a host-network pod's workload.
    pub(in crate::observer) node_workload: Option<Arc<str>>,
    /// The name of its workload may still change.
    pub(in crate::observer) provisional: bool,
    pub(in crate::observer) deleted: Option<Timestamp>,
}

/// A change of addresses that follows from a pod's change.
pub(in crate::observer) struct AddressChanges {
    pub(in crate::observer) id: PodId,
    pub(in crate::observer) claimed: Vec<IpAddr>,
    pub(in crate::observer) released: Vec<IpAddr>,
    /// The pod had none before: those claimed may be its own since it started.
    pub(in crate::observer) is_first: bool,
}

/// All pods.
#[derive(Debug, Default)]
pub(in crate::observer) struct Pods {
    records: HashMap<PodId, PodRecord>,
    /// Namespace → name → the live pod (or the last one of that name).
    by_name: BTreeMap<Arc<str>, HashMap<Arc<str>, PodId>>,
    by_uid: HashMap<Arc<str>, PodId>,
    /// Pods that say in an annotation that they have this config hash.
    by_hash: HashMap<Arc<str>, Vec<PodId>>,
    next: u32,
}

/// The addresses that are a pod's alone.
fn own_addresses(pod: &Pod) -> &[IpAddr] {
    if pod.host_network || pod.finished { &[] } else { &pod.addresses }
}

impl Pods {
    pub(in crate::observer) fn get(&self, id: PodId) -> Option<&PodRecord> {
        self.records.get(&id)
    }

    /// The pod whose cgroup shows this uid or config hash. The API server chooses uids, but anyone
    /// who may create a pod may write annotations: a hash never stands for a pod that has it as its
    /// uid, and a hash that several live pods claim is nobody's.
    pub(in crate::observer) fn by_uid(&self, uid: &str) -> Option<(PodId, &PodRecord)> {
        let get = |id: &PodId| Some((*id, self.records.get(id)?));
        if let Some(id) = self.by_uid.get(uid) {
            return get(id);
        }
        let claims = self.by_hash.get(uid)?;
        let mut live = claims.iter().filter_map(get).filter(|(_, record)| record.deleted.is_none());
        match (live.next(), live.next()) {
            (Some(only), None) => Some(only),
            (None, _) => claims.last().and_then(get),
            (Some(_), Some(_)) => None,
        }
    }

    pub(in crate::observer) fn by_name(&self, namespace: &str, name: &str) -> Option<(PodId, &PodRecord)> {
        let id = *self.by_name.get(namespace)?.get(name)?;
        Some((id, self.records.get(&id)?))
    }

    pub(in crate::observer) fn len(&self) -> usize {
        self.records.len()
    }

    pub(in crate::observer) fn iter(&self) -> impl Iterator<Item = (PodId, &PodRecord)> {
        self.records.iter().map(|(id, r)| (*id, r))
    }

    fn identity(
        pod: &Pod,
        inventory: &Inventory,
        peers: &mut Peers,
        this_node: &str,
    ) -> (PeerId, Option<Arc<str>>, bool) {
        let owner = inventory.owner_of(pod);
        if pod.host_network {
            let name = pod.node.as_deref().unwrap_or(this_node).to_owned();
            return (peers.id(Peer::Node { name }), Some(owner.workload.to_string().into()), owner.provisional);
        }
        (peers.id(Peer::Workload(owner.workload)), None, owner.provisional)
    }

    /// A pod was added or changed. `inventory` already holds it.
    pub(in crate::observer) fn apply(
        &mut self,
        pod: &Arc<Pod>,
        inventory: &Inventory,
        peers: &mut Peers,
        this_node: &str,
        now: Timestamp,
    ) -> Vec<AddressChanges> {
        let mut changes = Vec::new();
        let known = self.by_name.get(pod.namespace.as_str()).and_then(|pods| pods.get(pod.name.as_str())).copied();
        let same = known.filter(|id| {
            // Pods of a file may lack a uid, and so do those of a restored state.
            self.records.get(id).is_some_and(|r| r.pod.uid == pod.uid || r.pod.uid.is_empty() || pod.uid.is_empty())
        });
        if let Some(old) = known.filter(|_| same.is_none()) {
            changes.extend(self.end(old, now));
        }
        let (peer, node_workload, provisional) = Self::identity(pod, inventory, peers, this_node);
        let id = same.unwrap_or_else(|| {
            let id = PodId(self.next);
            self.next += 1;
            id
        });
        let before: Vec<IpAddr> = self
            .records
            .get(&id)
            .filter(|r| r.deleted.is_none())
            .map(|r| own_addresses(&r.pod).to_vec())
            .unwrap_or_default();
        let after = own_addresses(pod);
        changes.push(AddressChanges {
            id,
            claimed: after.to_vec(),
            is_first: before.is_empty(),
            released: before.into_iter().filter(|a| !after.contains(a)).collect(),
        });
        self.records.insert(id, PodRecord { pod: Arc::clone(pod), peer, node_workload, provisional, deleted: None });
        if same.is_none() {
            self.by_name.entry(pod.namespace.as_str().into()).or_default().insert(pod.name.as_str().into(), id);
        }
        if !pod.uid.is_empty() && self.by_uid.get(pod.uid.as_str()) != Some(&id) {
            self.by_uid.insert(pod.uid.as_str().into(), id);
        }
        if let Some(hash) = pod.config_hash.as_deref().filter(|hash| !hash.is_empty()) {
            let claims = self.by_hash.entry(hash.into()).or_default();
            if !claims.contains(&id) {
                claims.push(id);
            }
        }
        changes
    }

    fn end(&mut self, id: PodId, now: Timestamp) -> Option<AddressChanges> {
        let record = self.records.get_mut(&id).filter(|r| r.deleted.is_none())?;
        record.deleted = Some(now);
        let released = own_addresses(&record.pod).to_vec();
        Some(AddressChanges { id, claimed: Vec::new(), released, is_first: false })
    }

    /// A pod was deleted.
    pub(in crate::observer) fn delete(
        &mut self,
        namespace: &str,
        name: &str,
        now: Timestamp,
    ) -> Option<AddressChanges> {
        let id = *self.by_name.get(namespace)?.get(name)?;
        self.end(id, now)
    }

    /// A controller became known: pods that waited for it get their name.
    pub(in crate::observer) fn rename_provisional(
        &mut self,
        inventory: &Inventory,
        peers: &mut Peers,
        this_node: &str,
    ) {
        for record in self.records.values_mut().filter(|r| r.provisional) {
            let (peer, node_workload, provisional) = Self::identity(&record.pod, inventory, peers, this_node);
            (record.peer, record.node_workload, record.provisional) = (peer, node_workload, provisional);
        }
    }

    /// A pod of a stored state, of which only name and peer are known.
    pub(in crate::observer) fn restore(&mut self, namespace: &str, name: &str, peer: PeerId, at: Timestamp) -> PodId {
        if let Some((id, _)) = self.by_name(namespace, name) {
            return id;
        }
        let id = PodId(self.next);
        self.next += 1;
        let pod = Arc::new(Pod { namespace: namespace.to_owned(), name: name.to_owned(), ..Pod::default() });
        self.records.insert(id, PodRecord { pod, peer, node_workload: None, provisional: false, deleted: Some(at) });
        self.by_name.entry(namespace.into()).or_default().insert(name.into(), id);
        id
    }

    /// A pod that an earlier agent knew. One that is known already stays as it is.
    pub(in crate::observer) fn know(
        &mut self,
        pod: Arc<Pod>,
        peer: PeerId,
        node_workload: Option<Arc<str>>,
        at: Timestamp,
    ) {
        if self.by_uid.contains_key(pod.uid.as_str()) {
            return;
        }
        // The state has the name of one with the same name: the last that had it.
        let of_name = self.by_name(&pod.namespace, &pod.name).map(|(id, record)| (id, record.pod.uid.is_empty()));
        let id = match of_name {
            Some((id, true)) => id,
            Some((_, false)) => {
                let id = PodId(self.next);
                self.next += 1;
                id
            }
            None => self.restore(&pod.namespace, &pod.name, peer, at),
        };
        self.by_uid.insert(pod.uid.as_str().into(), id);
        if let Some(hash) = pod.config_hash.as_deref().filter(|hash| !hash.is_empty()) {
            self.by_hash.entry(hash.into()).or_default().push(id);
        }
        self.records.insert(id, PodRecord { pod, peer, node_workload, provisional: false, deleted: Some(at) });
    }

    /// Forgets pods deleted before `before`.
    pub(in crate::observer) fn expire(&mut self, before: Timestamp) {
        let records = &mut self.records;
        let old = records.len();
        records.retain(|_, r| r.deleted.is_none_or(|at| at >= before));
        if records.len() < old {
            self.by_uid.retain(|_, id| records.contains_key(id));
            self.by_hash.retain(|_, claims| {
                claims.retain(|id| records.contains_key(id));
                !claims.is_empty()
            });
            for pods in self.by_name.values_mut() {
                pods.retain(|_, id| records.contains_key(id));
            }
            self.by_name.retain(|_, pods| !pods.is_empty());
        }
    }
}
