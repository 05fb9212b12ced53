//! What a plan says and nobody was seen to do: each sentence of it stands in the report.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use guardrail_graph::{Protocol, WorkloadRef};
use serde::Serialize;

use super::markdown::section;
use crate::{
    exception::ExceptionMark,
    generate::{Decision, Options},
};

/// What a plan says; empty without one.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Meant {
    /// The phase of each namespace, `with egress` if that is closed, too.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    phases: BTreeMap<String, String>,
    /// Workloads that are closed whatever the phase of their namespace.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    sensitive: BTreeSet<String>,
    /// Services that every pod may call, with their ports.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    shared: BTreeSet<String>,
    /// Clients that may call everybody but sensitive workloads, with the ports.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    callers: BTreeSet<String>,
    /// Ranges of node addresses that a person declared.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    node_ranges: BTreeSet<String>,
    /// What became of each exception that has not ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exceptions: Vec<String>,
    /// Addresses outside that a person declared, by a name of their own.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    external: BTreeSet<String>,
}

impl Meant {
    pub(super) fn new(options: &Options, decision: &Decision) -> Self {
        if options.goals.is_empty() {
            return Self::default();
        }
        let namespaces = decision.verdicts.iter().map(|verdict| verdict.namespace.clone());
        let phase = |namespace: String| {
            let egress = if options.closes_egress_of(&namespace) { " with egress" } else { "" };
            let phase = format!("{}{egress}", options.phase_of(&namespace));
            (namespace, phase)
        };
        let external = options.external.iter().map(|(label, external)| {
            let ranges: Vec<String> = external.ranges.iter().map(ToString::to_string).collect();
            format!("{label}: {} on {}", ranges.join(", "), ports(external.ports.iter()))
        });
        Self {
            phases: namespaces.map(phase).collect(),
            sensitive: options.sensitive.iter().map(ToString::to_string).collect(),
            shared: by_workload(&decision.announced.shared),
            callers: by_workload(&decision.announced.callers),
            node_ranges: options.node_ranges.iter().map(ToString::to_string).collect(),
            exceptions: exceptions(options, decision),
            external: external.collect(),
        }
    }

    /// Whether a plan says the phases.
    pub(super) fn is_plan(&self) -> bool {
        !self.phases.is_empty()
    }

    /// The phases in one line, furthest last.
    pub(super) fn phases(&self) -> String {
        let mut by_phase: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (namespace, phase) in &self.phases {
            by_phase.entry(phase).or_default().push(namespace);
        }
        let each = by_phase.iter().map(|(phase, namespaces)| format!("{phase} for {}", namespaces.join(", ")));
        each.collect::<Vec<_>>().join("; ")
    }

    pub(super) fn write(&self, out: &mut String) {
        section(out, "Sensitive workloads: closed to all but their callers", self.sensitive.iter().cloned());
        let nodes: Vec<&str> = self.node_ranges.iter().map(String::as_str).collect();
        let mut who = "Shared services: every pod may call them".to_owned();
        if !nodes.is_empty() {
            let _ = write!(who, ", and the nodes of {}", nodes.join(", "));
        }
        section(out, &who, self.shared.iter().cloned());
        section(out, "Callers: they may call everybody but sensitive workloads", self.callers.iter().cloned());
        section(out, "Exceptions: allowed until they end", self.exceptions.iter().cloned());
        section(out, "Declared addresses outside of the cluster", self.external.iter().cloned());
    }
}

fn exceptions(options: &Options, decision: &Decision) -> Vec<String> {
    let told = options.exceptions.iter().map(|opening| {
        let ExceptionMark { id, expires, reason, owner } = &opening.mark;
        let sides: Vec<String> =
            decision.exceptions.iter().filter(|side| side.id == *id).map(ToString::to_string).collect();
        format!("{id}: {opening} until {expires} ({owner}: {reason}); {}", sides.join("; "))
    });
    told.collect()
}

fn by_workload(announced: &BTreeSet<(WorkloadRef, Protocol, u16)>) -> BTreeSet<String> {
    let mut all: BTreeMap<&WorkloadRef, BTreeSet<(Protocol, u16)>> = BTreeMap::new();
    for (workload, protocol, port) in announced {
        all.entry(workload).or_default().insert((*protocol, *port));
    }
    all.into_iter().map(|(workload, all)| format!("{workload} on {}", ports(all.iter()))).collect()
}

fn ports<'a>(all: impl Iterator<Item = &'a (Protocol, u16)>) -> String {
    all.map(|(protocol, port)| format!("{port}/{protocol}")).collect::<Vec<_>>().join(", ")
}
