//! Observed flows that the policies in force deny, and those that are new.

use guardrail_policy::generate::FlowName;

use super::{
    Evidence, Report,
    rules::{DENIED, NEW},
};

pub(super) fn find(evidence: &Evidence<'_>, report: &mut Report) {
    let mut unjudged = 0;
    for edge in evidence.snapshot.body.edges.iter().filter(|edge| edge.supported) {
        let flow = FlowName::of(edge).to_string();
        match evidence.evaluator.evaluate_edge(edge) {
            // For certain, and for some pods of the two ends at least.
            Ok(verdict) if verdict.denied > verdict.unproven => {
                let sides = [("egress", &verdict.verdict.egress), ("ingress", &verdict.verdict.ingress)];
                let at: Vec<&str> =
                    sides.into_iter().filter(|(_, side)| !side.allows()).map(|(name, _)| name).collect();
                let message = format!("{flow} was observed, and the policies in force deny it at {}", at.join(" and "));
                report.add(&DENIED, &flow, message, None);
            }
            Ok(_) => {
                if evidence.baseline.is_some_and(|baseline| !baseline.flows.contains(&flow)) {
                    report.add(&NEW, &flow, format!("{flow} was not there when the baseline was made"), None);
                }
            }
            Err(_) => unjudged += 1,
        }
    }
    if unjudged > 0 {
        let flows = if unjudged == 1 { "flow has an end" } else { "flows have an end" };
        report.not_looked_at.push(format!("{unjudged} {flows} that nobody knows, so nothing is said of them"));
    }
}
