//! Workloads that are closed whatever the phase of their namespace.
//!
//! Policies are a union: a boundary that selects such a workload would open it to its namespace. So
//! the boundary leaves its pods out, by a label that only sensitive pods bear, and where there is
//! none, it is drawn workload by workload, with the same rules for each.

use std::{collections::BTreeMap, sync::Arc};

use guardrail_graph::{
    WorkloadRef,
    inventory::is_generated_label,
    snapshot::{LabelSelector, SelectorOperator, SelectorRequirement, WorkloadEntry},
};

use super::{Builder, Draft, Drafts, Frame, Ingress};
use crate::{
    generate::{ProblemKind, Purpose, RulePeer, names, subjects::labels_of},
    model::Direction,
};

impl<'a> Builder<'a> {
    /// Whether the workload's ingress is closed whatever its namespace's phase: it is sensitive, or
    /// no label tells it from one that is.
    pub(super) fn is_closed(&self, workload: &WorkloadRef) -> bool {
        let sensitive = &self.context.options.sensitive;
        !sensitive.is_empty()
            && (sensitive.contains(workload)
                || self.context.selector(workload).is_some()
                    && self.context.members(workload).iter().any(|member| sensitive.contains(*member)))
    }

    /// Nothing but the sensitive workloads of a namespace that stays open.
    pub(super) fn close_sensitive(&mut self, namespace: &str) {
        self.explain_sensitive(namespace);
        self.allow_per_workload(namespace, Ingress::Sensitive, false);
    }

    /// The boundary of a namespace, around all pods but sensitive ones.
    pub(super) fn draw_boundary(&mut self, namespace: &str) {
        self.explain_sensitive(namespace);
        let (closed, open): (Vec<&WorkloadEntry>, Vec<&WorkloadEntry>) =
            self.context.covered(namespace).partition(|entry| self.is_closed(&entry.workload));
        let phase = self.context.options.phase_of(namespace);
        if let Some(subject) = all_but(&closed, &open) {
            let draft = self.boundary_of(namespace, &open);
            let frame = Frame { subject, ..Frame::of_namespace(names::BOUNDARY, Purpose::Boundary, phase) };
            self.push(namespace, frame, Drafts { ingress: Some(draft), egress: None }, &open);
            return;
        }
        self.warnings.insert(format!(
            "no label tells the sensitive workloads of namespace {namespace} from all others: its boundary is drawn workload by workload, \
             and a new workload stays open until the next export"
        ));
        let context = self.context;
        let subjects: Vec<_> =
            context.subjects(namespace).filter(|subject| !self.is_closed(subject.members[0])).collect();
        let names = names::workload_policies(names::WORKLOAD_BOUNDARY, subjects.iter().map(|s| s.members[0]));
        for subject in subjects {
            let Some(selector) = subject.selector.clone() else {
                // Inside of no boundary, it would be open to everybody.
                let message = format!(
                    "no boundary of {namespace} can leave its sensitive workloads out and {} in: give it a label of its own",
                    subject.members[0]
                );
                self.problem(ProblemKind::Unselectable, [namespace], message);
                continue;
            };
            let members: Vec<&WorkloadEntry> =
                subject.members.iter().filter_map(|member| context.workloads.get(member).copied()).collect();
            // The same everywhere, as a boundary in one piece is: else a plan that closes one
            // workload more, after which a label tells, would open the others to each other's
            // callers.
            let draft = self.boundary_of(namespace, &open);
            let name = names[subject.members[0]].clone();
            let frame = Frame { name, purpose: Purpose::Boundary, phase, subject: selector };
            self.push(namespace, frame, Drafts { ingress: Some(draft), egress: None }, &members);
        }
    }

    /// Everybody of the namespace, and who was seen to call these workloads from elsewhere.
    fn boundary_of(&mut self, namespace: &str, servers: &[&'a WorkloadEntry]) -> Draft {
        let mut draft = Draft::default();
        let inside = RulePeer::Pods { namespace: None, selector: LabelSelector::default() };
        draft.rules.allow(inside, []);
        let indices: Vec<usize> = servers
            .iter()
            .filter_map(|w| self.inbound.get(&w.workload))
            .flatten()
            .copied()
            .filter(|index| self.edge(*index).client.peer.workload().is_none_or(|c| c.namespace != namespace))
            // A shared service has a policy of its own, which opens its port and nobody else's.
            .filter(|index| !self.meant.covers(self.edge(*index), self.context))
            .collect();
        self.collect(&mut draft, &indices, namespace, Direction::Ingress);
        self.let_callers_in(&mut draft, namespace);
        draft
    }

    /// Says who is closed with a sensitive workload, and who cannot be.
    pub(super) fn explain_sensitive(&mut self, namespace: &str) {
        let context = self.context;
        for entry in context.covered(namespace) {
            let workload = &entry.workload;
            if !context.options.sensitive.contains(workload) {
                if self.is_closed(workload) {
                    self.warnings
                        .insert(format!("{workload} is closed, too: no label tells it from a sensitive workload"));
                }
                continue;
            }
            if context.selector(workload).is_none() {
                let advice = entry.selector_advice.as_deref().unwrap_or("give its pod template a label of its own");
                self.problem(
                    ProblemKind::Unselectable,
                    [namespace],
                    format!(
                        "{workload} is sensitive, and no label names it alone, so no policy can close it: {advice}"
                    ),
                );
            } else if !self.inbound.contains_key(workload) {
                self.closed_without_evidence.insert(workload.clone());
            }
        }
    }
}

/// A selector of all pods but those of the closed workloads, those included that come later; `None`
/// if some closed workload has no label that no open one has.
fn all_but(closed: &[&WorkloadEntry], open: &[&WorkloadEntry]) -> Option<LabelSelector> {
    let open: Vec<_> = open.iter().map(|entry| labels_of(entry)).collect();
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in closed {
        let labels = labels_of(entry);
        // A controller's selector cannot change, its template's other labels can.
        let firm = entry.selector.iter().flat_map(|selector| selector.match_labels.iter());
        let own = |(key, value): &(&String, &String)| {
            !is_generated_label(key) && !open.iter().any(|other| other.get(*key) == Some(*value))
        };
        let (key, value) = firm.chain(&labels).find(own)?;
        values.entry(key.clone()).or_default().push(value.clone());
    }
    let requirement = |(key, mut values): (String, Vec<String>)| {
        values.sort();
        values.dedup();
        SelectorRequirement { key, operator: SelectorOperator::NotIn, values }
    };
    Some(LabelSelector {
        match_labels: Arc::default(),
        match_expressions: values.into_iter().map(requirement).collect(),
    })
}
