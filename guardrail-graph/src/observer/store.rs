//! The open epoch as entries on disk, and what of them is no part of a snapshot.

use std::collections::HashMap;

use super::{
    Observer, OwnPod,
    doubts::Doubt,
    edge::{Edge, marks_of, side_index},
    graph::RemoteKey,
    names::UnusedNames,
    peers::PeerId,
};
use crate::{
    epoch::{
        facts::{Beside, put_facts},
        flows::Flows,
        log::{LogError, Recorder, Recording, Write},
        state::{self, OPEN, State, json, put_json, section},
    },
    observe::FlowDelta,
    snapshot::{Side, WorkloadCoverage, facts::Facts},
    time::Timestamp,
};

impl Observer {
    /// What has to be written so that the disk has everything that is known now. Pending flows are
    /// stored as what they are. `more` puts what else belongs to it, in sections from
    /// [`section::CALLER`] on; it may be asked twice.
    pub fn store(&mut self, recorder: &mut Recorder, now: Timestamp, more: impl Fn(&mut Recording<'_>)) -> Write {
        let mut facts = self.facts_but_flows(now, OPEN);
        facts.settle();
        let revision = (self.config.run, self.documents.saturating_add(1));
        loop {
            let mut recording = recorder.begin();
            self.put_facts(&mut recording, &facts);
            self.put_flows(&mut recording);
            for pod in self.own_pods() {
                put_json(&mut recording, section::OWN_POD, &pod.uid, &pod);
            }
            for doubt in self.doubts() {
                put_json(&mut recording, section::DOUBT, &(doubt.address, &doubt.owner, doubt.to), &doubt);
            }
            for names in self.unused_names() {
                put_json(&mut recording, section::NAMES, &(&names.client, names.address), &names);
            }
            let mut same: HashMap<Vec<u8>, u32> = HashMap::new();
            for flow in self.waiting() {
                let flow = json(&flow);
                let nth = same.entry(flow.clone()).or_default();
                recording.put_value(section::WAITING, &[&nth.to_le_bytes(), &flow[..]].concat(), &flow);
                *nth += 1;
            }
            more(&mut recording);
            if let Some(write) = recording.end(revision, now) {
                if write != Write::Nothing && self.config.run > 0 {
                    self.documents = revision.1;
                }
                return write;
            }
        }
    }

    fn put_facts(&self, recording: &mut Recording<'_>, facts: &Facts) {
        let Some(source) = facts.sources.first() else { return };
        let unresolved = facts.unresolved.iter();
        let incomplete = facts.incomplete.iter();
        let beside = Beside {
            own_pods: self.config.own_pods_only,
            inventory: facts.inventory,
            losses: facts.loss_entries().collect(),
            unresolved: unresolved
                .map(|((source, reason), unresolved)| unresolved.clone().entry(source.clone(), reason.clone()))
                .collect(),
            incomplete: incomplete
                .map(|(peer, reasons)| WorkloadCoverage {
                    peer: (**peer).clone(),
                    complete: false,
                    reasons: reasons.clone(),
                })
                .collect(),
        };
        put_facts(recording, source, facts, beside);
    }

    fn put_flows(&self, recording: &mut Recording<'_>) {
        let mut flows = Flows::new(recording, self.history.epoch().unwrap_or_default());
        let end = |peer: PeerId| (peer, self.peers.compact(peer));
        for ((client, service, protocol, port), flow) in self.graph.service_flows() {
            let Some(seen) = &flow.seen else { continue };
            let words =
                [marks_of(flow.marks).collect(), flow.node_workloads.iter().map(|w| &**w).collect(), Vec::new()];
            let counted = state::Flow { sides: [Some((seen, flow.still_open > 0)), None], port_name: None, words };
            flows.service_flow(end(*client), service, (*protocol, *port), &counted);
        }
        let held = self.held_with_remotes();
        let remotes = self.graph.remote_flows().iter().filter(|(key, _)| !held.contains_key(*key));
        for ((local, side, address, protocol, port, untold), edge) in remotes.chain(&held) {
            let at = side_index(*side);
            let Some(seen) = &edge.sides[at] else { continue };
            let mut counted = counted(edge, Vec::new());
            counted.sides = [None, None];
            counted.sides[at] = Some((seen, edge.still_open(*side) > 0));
            flows.remote_flow((end(*local), *side, *untold), *address, (*protocol, *port), counted);
        }
        for ((client, server, protocol, port), edge) in self.graph.edges().iter() {
            let names = self.peers.address(*server).map_or(&[][..], |address| self.graph.names().of(*client, address));
            let counted = counted(edge, names.iter().map(|name| &**name).collect());
            flows.edge([*client, *server].map(end), (*protocol, *port), &counted);
        }
    }

    /// Flows that wait until it is told who had the address, each with what the graph has under it:
    /// an agent that continues waits for that, too.
    fn held_with_remotes(&self) -> HashMap<RemoteKey, Edge> {
        let mut held = HashMap::new();
        for (key, edge) in self.held.edges() {
            let known = || self.graph.remote_flows().get(key).cloned().unwrap_or_default();
            held.entry(*key).or_insert_with(known).absorb(edge.clone());
        }
        held
    }

    /// Takes what a state knows beside its facts. Call it before anything is observed.
    ///
    /// # Errors
    /// It makes no sense; then nothing was taken.
    pub fn continue_with(&mut self, state: &State) -> Result<(), LogError> {
        let pods: Vec<OwnPod> = state.values(section::OWN_POD, "pods")?;
        let waiting: Vec<FlowDelta> = state.values(section::WAITING, "flows")?;
        let doubts: Vec<Doubt> = state.values(section::DOUBT, "doubts")?;
        let names: Vec<UnusedNames> = state.values(section::NAMES, "names")?;
        self.know_pods(pods);
        self.know_names(names);
        self.restore_doubts(doubts);
        let started = self.config.started;
        for flow in waiting {
            self.observe(crate::observe::Observation::Flow(flow), started);
        }
        Ok(())
    }
}

fn counted<'a>(edge: &'a Edge, names: Vec<&'a str>) -> state::Flow<'a> {
    let at = |side| edge.sides[side_index(side)].as_deref().map(|seen| (seen, edge.still_open(side) > 0));
    state::Flow {
        sides: [at(Side::Client), at(Side::Server)],
        port_name: edge.port_name.as_deref(),
        words: [marks_of(edge.marks).collect(), edge.node_workloads().map(|w| &**w).collect(), names],
    }
}
