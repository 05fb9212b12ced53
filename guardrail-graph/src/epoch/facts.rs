//! Facts as entries on disk: of the open epoch, as its observer has them now, and of a closed one,
//! as its document has them. [`super::state`] reads both.

use std::collections::BTreeSet;

use super::{
    flows::Flows,
    log::Recording,
    nodes::put_nodes,
    state::{Flow, Head, Unnamed, put_json, section},
};
use crate::{
    peer::CompactPeer,
    snapshot::{
        Coverage, Document, InventoryState, LossEntry, Side, Source, UnresolvedEntry, WorkloadCoverage,
        facts::{BySource, Facts, Seen, is_computed},
    },
    unresolved::UnresolvedReason,
};

/// What stands beside the facts of a source, or elsewhere in a document.
pub(crate) struct Beside {
    /// The agent knows the pods of its own node only.
    pub(crate) own_pods: bool,
    pub(crate) inventory: Option<InventoryState>,
    pub(crate) losses: Vec<LossEntry>,
    pub(crate) unresolved: Vec<UnresolvedEntry>,
    pub(crate) incomplete: Vec<WorkloadCoverage>,
}

/// Puts everything of a source but its edges and flows.
pub(crate) fn put_facts(recording: &mut Recording<'_>, source: &Source, facts: &Facts, beside: Beside) {
    let Beside { own_pods, inventory, losses, unresolved, incomplete } = beside;
    let head = Head {
        source: source.clone(),
        window: facts.window.get(&source.node).cloned().unwrap_or_default(),
        steps: facts.steps.get(&source.node).cloned().unwrap_or_default(),
        expected: facts.expected.clone(),
        unobservable: facts.unobservable.clone(),
        inventory,
        own_pods,
        witness: facts.witnesses.get(source).copied(),
    };
    put_json(recording, section::HEAD, &(), &head);
    put_nodes(recording, &facts.nodes, source.start.unwrap_or_default());
    for loss in losses {
        put_json(recording, section::LOSS, &loss.reason, &loss);
    }
    for mut entry in unresolved {
        let flows = entry.flows.as_mut().map(std::mem::take);
        put_json(recording, section::UNRESOLVED, &entry.reason, &entry);
        for flow in flows.into_iter().flatten() {
            let flow = Unnamed { reason: entry.reason.clone(), flow };
            let key = (&flow.reason, &flow.flow.client, &flow.flow.server, flow.flow.protocol, flow.flow.port);
            put_json(recording, section::UNRESOLVED_FLOW, &key, &flow);
        }
    }
    for entry in incomplete {
        put_json(recording, section::INCOMPLETE, &entry.peer, &entry);
    }
    facts.each_workload(|entry| put_json(recording, section::WORKLOAD, &entry.workload, &entry));
    facts.each_service(|entry| put_json(recording, section::SERVICE, &(&entry.namespace, &entry.name), &entry));
    facts.each_address(|entry| {
        put_json(recording, section::ADDRESS, &(entry.address, entry.from, &entry.peer, &entry.pod), &entry);
    });
    facts.each_presence(|entry| {
        let key = (&entry.workload.namespace, &entry.pod, &entry.node, entry.from, entry.told);
        put_json(recording, section::PRESENCE, &key, &entry);
    });
}

/// Puts what a document of one source has, which is that of a closed epoch: nothing that follows
/// from it.
pub(super) fn put_document(recording: &mut Recording<'_>, source: &Source, document: &Document) {
    let facts = document.facts();
    let Coverage { inventory, losses, unresolved, workloads, .. } = document.coverage();
    let derived = UnresolvedReason::DERIVED.map(UnresolvedReason::as_str);
    let incomplete = workloads.iter().filter_map(|entry| {
        let reasons = entry.reasons.iter().filter(|reason| !is_computed(reason)).cloned().collect();
        let entry = WorkloadCoverage { reasons, ..entry.clone() };
        (!entry.reasons.is_empty()).then_some(entry)
    });
    let beside = Beside {
        own_pods: facts.own_pods.contains_key(&source.node),
        inventory: *inventory,
        losses: losses.clone(),
        unresolved: unresolved.iter().filter(|entry| !derived.contains(&&*entry.reason)).cloned().collect(),
        incomplete: incomplete.collect(),
    };
    put_facts(recording, source, facts, beside);
    for entry in document.label_changes() {
        put_json(recording, section::LABEL_CHANGES, &entry.workload, &entry);
    }
    let begun = source.start.unwrap_or_default();
    let mut flows = Flows::new(recording, begun);
    for ((client, service, protocol, port), flow) in &facts.service_flows {
        let client = CompactPeer::from(client);
        let words = [texts(&flow.marks), texts(&flow.node_workloads), Vec::new()];
        let counted = Flow { sides: sides(&flow.sources), port_name: None, words };
        flows.service_flow((client.clone(), &client), service, (*protocol, *port), &counted);
    }
    for ((local, side, address, protocol, port, untold), facts) in &facts.remote_flows {
        let local = CompactPeer::from(local);
        let words = [texts(&facts.flow.marks), texts(&facts.flow.node_workloads), Vec::new()];
        let counted = Flow { sides: sides(&facts.flow.sources), port_name: facts.port_name.as_deref(), words };
        flows.remote_flow(((local.clone(), &local), *side, *untold), *address, (*protocol, *port), counted);
    }
    // What no source counted follows from something else.
    for ((client, server, protocol, port), edge) in facts.edges.iter().filter(|(_, edge)| !edge.sources.is_empty()) {
        let rare = edge.rare();
        let words = [texts(&rare.marks), texts(&rare.node_workloads), texts(&rare.server_names)];
        let counted = Flow { sides: sides(&edge.sources), port_name: edge.port_name.as_deref(), words };
        flows.edge([client, server].map(|end| (end.clone(), end)), (*protocol, *port), &counted);
    }
}

fn texts(texts: &BTreeSet<String>) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// At the client, at the server: nothing of a closed epoch counts until now.
fn sides(sources: &BySource) -> [Option<(&Seen, bool)>; 2] {
    let at = |of: Side| sources.iter().find(|(_, side, _)| *side == of).map(|(_, _, seen)| (seen, false));
    [at(Side::Client), at(Side::Server)]
}
