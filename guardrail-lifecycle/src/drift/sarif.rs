//! Drift as SARIF 2.1.0 (<https://docs.oasis-open.org/sarif/sarif/v2.1.0/>).

use guardrail_policy::lint::{sarif_log, sarif_place};
use serde_json::{Value, json};

use super::{DRIFT_RULES, DriftFinding, DriftRule, Report};

/// The log of one run. What the baseline has is `unchanged`, the rest `new`.
///
/// Code hosts refuse a log in which any result has no file (GitHub: "expected at least one
/// location"). What stands in no file of the repository, like a flow or a policy of the cluster, is
/// told of at the beginning of `about`: the plan, or the policies.
#[must_use]
pub fn sarif(report: &Report, about: &str) -> Value {
    let rule = |rule: &&DriftRule| {
        json!({
            "id": rule.id,
            "name": rule.name,
            "shortDescription": { "text": rule.summary },
            "help": { "text": rule.fix },
            "defaultConfiguration": { "level": "error" },
            "properties": { "kind": rule.kind },
        })
    };
    let result = |finding: &DriftFinding| {
        let in_a_file = finding.location.as_ref().filter(|location| is_a_file(&location.file));
        let (file, line) = in_a_file.map_or((about, 1), |location| (&*location.file, location.line.max(1)));
        json!({
            "ruleId": finding.rule,
            "ruleIndex": DRIFT_RULES.iter().position(|rule| rule.id == finding.rule),
            "level": "error",
            "message": { "text": finding.message },
            "partialFingerprints": { "guardrail/v1": finding.fingerprint },
            "baselineState": if finding.known { "unchanged" } else { "new" },
            "locations": sarif_place(file, line),
        })
    };
    sarif_log(DRIFT_RULES.iter().map(rule).collect(), report.findings.iter().map(result).collect())
}

/// Whether messages call a file so, and not a part of the cluster or what came by a pipe.
fn is_a_file(name: &str) -> bool {
    name != "stdin" && !name.starts_with("kube ")
}
