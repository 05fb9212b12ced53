//! Drift as SARIF 2.1.0 (<https://docs.oasis-open.org/sarif/sarif/v2.1.0/>).

use guardrail_policy::lint::{sarif_log, sarif_place};
use serde_json::{Value, json};

use super::{DRIFT_RULES, DriftFinding, DriftRule, Report};

/// The log of one run. What the baseline has is `unchanged`, the rest `new`.
#[must_use]
pub fn sarif(report: &Report) -> Value {
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
        let mut result = json!({
            "ruleId": finding.rule,
            "ruleIndex": DRIFT_RULES.iter().position(|rule| rule.id == finding.rule),
            "level": "error",
            "message": { "text": finding.message },
            "partialFingerprints": { "guardrail/v1": finding.fingerprint },
            "baselineState": if finding.known { "unchanged" } else { "new" },
        });
        if let Some(location) = &finding.location {
            result["locations"] = sarif_place(&location.file, location.line.max(1));
        }
        result
    };
    sarif_log(DRIFT_RULES.iter().map(rule).collect(), report.findings.iter().map(result).collect())
}
