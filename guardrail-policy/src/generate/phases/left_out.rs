//! Workloads that a policy leaves out, and why.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{WorkloadRef, snapshot::WorkloadEntry};

use super::{Builder, one_subject};
use crate::generate::{NamespaceVerdict, ProblemKind};

impl<'a> Builder<'a> {
    /// Workloads that talk but that no selector names: a namespace-wide deny would cut them off.
    pub(super) fn stranded(
        &self,
        namespace: &str,
        edges: &BTreeMap<&'a WorkloadRef, Vec<usize>>,
    ) -> Vec<&'a WorkloadEntry> {
        self.context
            .covered(namespace)
            .filter(|w| self.context.selector(&w.workload).is_none() && edges.contains_key(&w.workload))
            .collect()
    }

    /// Where a plan goes from phase to phase, a workload that was inside of a boundary must not
    /// become open to everybody.
    pub(super) fn refuse_stranded(&mut self, namespace: &str, stranded: &[&WorkloadEntry]) {
        for entry in stranded {
            let advice = entry.selector_advice.as_deref().unwrap_or("give its pod template a label of its own");
            let message = format!(
                "{} cannot be selected, so at default-deny it would be open to everybody: {advice}, or stay at constrain",
                entry.workload
            );
            self.problem(ProblemKind::Unselectable, [namespace], message);
        }
    }

    /// Where policies in force are not evaluated, nobody knows what else is closed or open: that
    /// stops the namespaces to whose pods they apply, and no other.
    pub(super) fn refuse_unproven(&mut self, verdicts: &[NamespaceVerdict]) {
        for (namespace, names) in &self.context.options.unproven {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let what = format!("policies in force are not evaluated, so the export is unproven: {}", names.join(", "));
            if verdicts.iter().any(|verdict| verdict.namespace == *namespace) {
                self.problem(ProblemKind::Unproven, [namespace.as_str()], format!("{what}; --force accepts it"));
            } else {
                self.warnings.insert(format!("{namespace}, of which nothing is written: {what}"));
            }
        }
    }

    /// guardrail's own agents, if nobody was seen to call them. A policy that closes them would
    /// take away what shows the next mistake, and who scrapes them often comes after them.
    pub(super) fn uncalled_agents(&self, namespace: &str) -> BTreeSet<&'a WorkloadRef> {
        let is_agent = |entry: &&WorkloadEntry| {
            entry.workload.owner == "DaemonSet"
                && entry.labels.get("app.kubernetes.io/name").is_some_and(|name| name == "guardrail-agent")
        };
        let agents = self.context.covered(namespace).filter(is_agent).map(|entry| &entry.workload);
        agents.filter(|agent| !self.inbound.contains_key(agent)).collect()
    }

    pub(super) fn warn_stranded(&mut self, namespace: &str, stranded: &[&WorkloadEntry], direction: &str) {
        for entry in stranded {
            let advice = entry.selector_advice.as_deref().unwrap_or("give its pod template a label of its own");
            self.warnings.insert(format!(
                "{} cannot be selected, so it gets no policy and namespace {namespace} is closed workload by workload ({direction}): {advice}",
                entry.workload
            ));
        }
    }

    /// Names what stays without a policy and why (B12, B6).
    pub(super) fn explain_what_has_no_policy(&mut self) {
        for workload in self.inbound.keys().chain(self.outbound.keys()) {
            if self.context.in_scope(&workload.namespace) && !self.context.workloads.contains_key(workload) {
                self.warnings.insert(format!(
                    "{workload} is gone and nothing but its name is known: it gets no policy of its own"
                ));
            }
        }
        for subject in self.context.shared_subjects() {
            if self.context.in_scope(&subject.members[0].namespace) {
                self.warnings.insert(one_subject(subject));
            }
        }
        for entry in &self.context.body.workloads {
            let workload = &entry.workload;
            if !self.context.in_scope(&workload.namespace) {
                continue;
            }
            if entry.host_network {
                self.warnings.insert(format!(
                    "{workload} uses the host's network: {} does not apply to it, it gets no policy",
                    self.context.reach.format.kind()
                ));
            } else if self.context.selector(workload).is_none() {
                let advice = entry.selector_advice.as_deref().unwrap_or("give its pod template a label of its own");
                self.warnings.insert(format!(
                    "{workload} gets no policy of its own, no stable label selects it alone: {advice}"
                ));
            }
        }
    }
}
