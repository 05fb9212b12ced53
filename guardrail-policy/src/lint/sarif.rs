//! Findings as SARIF 2.1.0 (<https://docs.oasis-open.org/sarif/sarif/v2.1.0/>), which code hosts
//! show beside the lines.

use serde_json::{Value, json};

use super::{Finding, LintRule, RULES};

/// The log of one run.
#[must_use]
pub fn sarif(findings: &[Finding]) -> Value {
    let rule = |rule: &LintRule| {
        json!({
            "id": rule.id,
            "name": rule.name,
            "shortDescription": { "text": rule.summary },
            "help": { "text": rule.fix },
            "defaultConfiguration": { "level": rule.severity.as_str() },
        })
    };
    let result = |finding: &Finding| {
        let mut result = json!({
            "ruleId": finding.rule,
            "ruleIndex": RULES.iter().position(|r| r.id == finding.rule),
            "level": finding.severity.as_str(),
            "message": { "text": finding.text() },
        });
        if let Some(location) = &finding.location {
            result["locations"] = json!([{
                "physicalLocation": {
                    "artifactLocation": { "uri": uri(&location.file) },
                    "region": { "startLine": location.line },
                }
            }]);
        }
        result
    };
    json!({
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "guardrail",
                "version": env!("CARGO_PKG_VERSION"),
                "informationUri": env!("CARGO_PKG_REPOSITORY"),
                "rules": RULES.iter().map(rule).collect::<Vec<_>>(),
            } },
            "columnKind": "unicodeCodePoints",
            "results": findings.iter().map(result).collect::<Vec<_>>(),
        }],
    })
}

/// A file name as a relative or absolute URI reference.
#[must_use]
pub fn uri(file: &str) -> String {
    let file = file.strip_prefix("./").unwrap_or(file);
    let mut uri = String::new();
    for byte in file.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    if file.starts_with('/') { format!("file://{uri}") } else { uri }
}
