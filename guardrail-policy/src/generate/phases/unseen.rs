//! What was not seen, or not all the time: workloads that did not run, CronJobs that run more
//! seldom than was observed, nodes that nobody can observe.

use guardrail_graph::{WorkloadRef, snapshot::WorkloadEntry};

use super::{Builder, Subject};
use crate::{
    schedule::longest_pause,
    words::{duration, few, percent},
};

impl Builder<'_> {
    /// Names what a reader of the export must know.
    pub(super) fn warn_unseen(&mut self) {
        let body = self.context.body;
        let observed = body.window.from.zip(body.window.to).map(|(from, to)| to.since(from));
        let mut warnings = Vec::new();
        for entry in self.context.namespaces().into_iter().flat_map(|namespace| self.context.covered(namespace)) {
            let workload = &entry.workload;
            if let (Some(schedule), Some(observed)) = (&entry.schedule, observed)
                && let Some(pause) = longest_pause(schedule).filter(|pause| *pause > observed)
            {
                let (pause, observed) = (duration(pause), duration(observed));
                warnings.push(format!(
                    "up to {pause} pass between two runs of {workload} ({schedule}), and {observed} were observed: \
                     what it does may not have been seen"
                ));
            }
            for node in entry.pods.keys() {
                if let Some(why) = body.coverage.nodes.unobservable.get(node) {
                    warnings.push(format!(
                        "{workload} has pods on {node}, which nobody can observe ({why}): what is known of them rests on \
                         the other end"
                    ));
                }
            }
        }
        for accepted in &self.context.options.accepted_workloads {
            if self.completeness.not_run(accepted).is_none() {
                warnings.push(format!("{accepted} is no workload that did not run: --accept {accepted} has no effect"));
            }
        }
        self.warnings.extend(warnings);
    }

    /// A workload that did not run, of which nothing is known and which nobody has accepted.
    fn idle(&self, workload: &WorkloadRef) -> Option<String> {
        let is_known = self.inbound.contains_key(workload) || self.outbound.contains_key(workload);
        let is_accepted = self.context.options.accepted_workloads.contains(workload);
        self.completeness.not_run(workload).filter(|_| !is_known && !is_accepted)
    }

    /// Whether workloads get no policy of their own, because they did not run.
    pub(super) fn holds_back(&mut self, subject: &Subject<'_>) -> bool {
        let idle: Option<Vec<String>> = subject.members.iter().map(|member| self.idle(member)).collect();
        let Some(idle) = idle else { return false };
        let idle: Vec<&str> = idle.iter().map(String::as_str).collect();
        self.warnings.insert(format!(
            "{} did not run in the span, so no policy of its own is written: --accept {} writes it",
            few(&idle),
            subject.members[0]
        ));
        true
    }

    /// What a policy isolates although it did not run.
    pub(super) fn isolates_idle(&self, selects: &[&WorkloadEntry], isolates: bool) -> Option<String> {
        let idle: Vec<String> = selects.iter().filter_map(|entry| self.idle(&entry.workload)).collect();
        let idle: Vec<&str> = idle.iter().map(String::as_str).collect();
        (isolates && !idle.is_empty())
            .then(|| format!("it isolates pods that did not run in the span: {}", idle.join(", ")))
    }

    /// How much of the time of these workloads' pods was observed, if that was enough and not all.
    pub(super) fn observed_in_part(&self, selects: &[&WorkloadEntry]) -> Option<String> {
        let times = || selects.iter().filter_map(|entry| self.completeness.time(&entry.workload));
        let least = times().min_by(|a, b| a.coverage.total_cmp(&b.coverage)).filter(|time| time.coverage < 1.0)?;
        let whom = if selects.len() == 1 { "its".to_owned() } else { format!("{}'s", least.workload) };
        Some(format!("{} of the time of {whom} pods was observed", percent(least.coverage)))
    }
}
