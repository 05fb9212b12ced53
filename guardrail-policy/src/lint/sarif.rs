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
            result["locations"] = sarif_place(&location.file, location.line);
        }
        result
    };
    sarif_log(RULES.iter().map(rule).collect(), findings.iter().map(result).collect())
}

/// The log of one run with these rules and results.
#[must_use]
pub fn sarif_log(rules: Vec<Value>, results: Vec<Value>) -> Value {
    json!({
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "guardrail",
                "version": env!("CARGO_PKG_VERSION"),
                "informationUri": env!("CARGO_PKG_REPOSITORY"),
                "rules": rules,
            } },
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

/// The `locations` of a result: one line of a file.
#[must_use]
pub fn sarif_place(file: &str, line: u32) -> Value {
    json!([{
        "physicalLocation": {
            "artifactLocation": { "uri": uri(file) },
            "region": { "startLine": line },
        }
    }])
}

/// A file name as a relative or absolute URI reference.
fn uri(file: &str) -> String {
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
