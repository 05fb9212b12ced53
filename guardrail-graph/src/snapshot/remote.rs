//! What agents with `--inventory-scope node` leave to `merge`: the names of pods on other nodes.
//!
//! Such an agent knows the pods of its own node. Of a flow with another node's pod it keeps the
//! address; who had that address when stands in the snapshot of the node that hosts the pod.
//! Everything here is computed from the joined facts, anew each time, so that joining stays
//! commutative, associative and idempotent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    RemoteFlow, Side, WorkloadEntry,
    derive::Deriver,
    facts::{EdgeKey, Facts, PodsOfNode, RemoteFacts, RemoteKey, source_counts},
    owners::Owners,
};
use crate::{peer::Peer, time::Timestamp, unresolved::UnresolvedReason};

impl Facts {
    /// Sets apart the pods that an agent knows of its own node: whatever else knows of that node,
    /// this is the better word.
    pub(crate) fn take_own_pods(&mut self, as_of: BTreeMap<String, Timestamp>, workloads: &mut [WorkloadEntry]) {
        if as_of.is_empty() {
            return;
        }
        for (node, at) in as_of {
            let mut pods = PodsOfNode::new();
            for entry in workloads.iter_mut() {
                if let Some(own) = entry.pods.remove(&node) {
                    self.ran_on(&entry.workload, node.clone(), at);
                    pods.insert(entry.workload.clone(), own);
                }
            }
            let text = |pods: &PodsOfNode| serde_json::to_string(&pods.iter().collect::<Vec<_>>()).unwrap_or_default();
            match self.own_pods.get_mut(&node) {
                Some(kept) if (kept.0, text(&kept.1)) < (at, text(&pods)) => *kept = (at, pods),
                Some(_) => {}
                None => {
                    self.own_pods.insert(node, (at, pods));
                }
            }
        }
        for entry in workloads.iter_mut().filter(|w| w.host_network) {
            self.host_network.insert(entry.workload.clone());
            entry.host_network = false;
        }
    }

    /// Puts the pods of each node where they belong.
    pub(super) fn place_own_pods(&mut self) {
        for (node, (_, pods)) in &self.own_pods {
            for (name, workload) in &mut self.workloads {
                workload.place(node, pods.get(name).cloned());
            }
        }
        for name in &self.host_network {
            if let Some(workload) = self.workloads.get_mut(name) {
                workload.set_host_network();
            }
        }
    }

    /// Adds the remote flows whose other end has a name by now to the edges. What remains is
    /// counted by [`Deriver::unnamed_flows`].
    pub(super) fn name_remote_flows(&mut self) {
        if self.remote_flows.is_empty() {
            return;
        }
        let mut named = Vec::new();
        let owners = Owners::of(self);
        let mut listed: HashMap<(IpAddr, &Arc<Peer>), Option<bool>> = HashMap::new();
        for ((address, _, peer, _), known) in &self.addresses {
            let kept = listed.entry((*address, peer)).or_default();
            *kept = (*kept).max(known.listed);
        }
        for (key, facts) in self.remote_flows.iter().filter(|(key, _)| !key.5) {
            for (source, _, seen) in facts.flow.sources.iter() {
                let shares = owners.shares(key.2, seen).0.into_iter();
                for (peer, share) in shares.filter(|(_, share)| self.span.meets(share.first, share.last)) {
                    let unlisted = key.1 == Side::Server && listed.get(&(key.2, peer)) == Some(&Some(false));
                    named.push((edge_key(key, peer), Arc::clone(source), share, key.clone(), unlisted));
                }
            }
        }
        for (edge, source, share, remote, unlisted) in named {
            // On another node it is never the same pod, so a workload's edge to itself is one.
            let facts = self.edges.entry(edge).or_default();
            facts.gives_way(false);
            let by_merge = &mut facts.rare_mut().by_merge;
            by_merge.sources.plus(source, remote.1, &Arc::new(share));
            if unlisted {
                by_merge.marks.insert(super::marks::UNLISTED_ADDRESS.to_owned());
            }
            if let Some(RemoteFacts { port_name, flow, .. }) = self.remote_flows.get(&remote) {
                if by_merge.port_name < *port_name {
                    by_merge.port_name.clone_from(port_name);
                }
                by_merge.marks.extend(flow.marks.iter().cloned());
                by_merge.node_workloads.extend(flow.node_workloads.iter().cloned());
            }
        }
    }
}

/// A remote flow as it stands in a snapshot.
pub(super) fn remote_entry(
    (local, side, address, protocol, port, untold): &RemoteKey,
    facts: &RemoteFacts,
) -> RemoteFlow {
    let mut marks = facts.flow.marks.clone();
    if *untold {
        marks.insert(super::marks::REDIRECTED.to_owned());
    }
    RemoteFlow {
        local: Peer::clone(local),
        side: *side,
        address: *address,
        protocol: *protocol,
        port: *port,
        port_name: facts.port_name.as_deref().map(str::to_owned),
        marks,
        node_workloads: facts.flow.node_workloads.clone(),
        may_be: facts.may_be.as_ref().map(|peers| peers.iter().map(|peer| Peer::clone(peer)).collect()),
        sources: source_counts(&facts.flow.sources, false).collect(),
    }
}

fn edge_key((local, side, _, protocol, port, _): &RemoteKey, other: &Arc<Peer>) -> EdgeKey {
    match side {
        Side::Client => (local.into(), other.into(), *protocol, *port),
        Side::Server => (other.into(), local.into(), *protocol, *port),
    }
}

impl Deriver {
    /// Counts the remote flows that nobody can name.
    pub(super) fn unnamed_flows(&mut self, facts: &Facts, owners: &Owners<'_>) {
        for (key, remote) in facts.remote_flows.iter().filter(|(key, _)| !key.5) {
            let (local, side, address, protocol, port, _) = key;
            let mut may_be = BTreeSet::new();
            for (source, _, seen) in remote.flow.sources.iter() {
                let left = owners.shares(*address, seen).1;
                if left == 0 {
                    continue;
                }
                let example = match side {
                    Side::Client => format!("{local} -> {address}:{port}/{protocol}"),
                    Side::Server => format!("{address} -> {local}:{port}/{protocol}"),
                };
                self.count_at(source, UnresolvedReason::RemotePod, left, example);
                // Failed attempts support nothing, so nothing is missing without them.
                if seen.counts.is_established() {
                    self.incomplete
                        .entry(Arc::clone(local))
                        .or_default()
                        .insert(UnresolvedReason::RemotePod.as_str().to_owned());
                    may_be.extend(owners.between(*address, seen.first, seen.last).into_iter().cloned());
                    if !owners.are_all_known(*address, seen.first, seen.last) {
                        may_be.insert(Arc::new(Peer::External { address: address.to_string() }));
                    }
                }
            }
            if !may_be.is_empty() {
                self.unnamed.push((key.clone(), may_be));
            }
        }
    }
}
