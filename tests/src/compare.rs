//! Holds a snapshot against the truth.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use crate::truth::{Edge, Evidence, Truth};

/// Everything in which a snapshot differs from the truth. Empty: precision and recall are 1.0.
#[derive(Debug, Default)]
pub struct Difference {
    /// True edges that are not in the snapshot.
    pub missing: Vec<(Edge, Evidence)>,
    /// Edges of the snapshot that are not true.
    pub invented: Vec<(Edge, Value)>,
    /// Failed attempts that the snapshot does not keep, or keeps where none was.
    pub failed: Vec<String>,
    /// Edges with wrong numbers, Services or marks.
    pub wrong: Vec<String>,
}

impl Difference {
    /// Nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { missing, invented, failed, wrong } = self;
        missing.is_empty() && invented.is_empty() && failed.is_empty() && wrong.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (edge, evidence) in &self.missing {
            writeln!(f, "MISSING  {edge} (opened {}, found {}), for instance", evidence.opened, evidence.found)?;
            for record in evidence.records.iter().take(2) {
                writeln!(f, "           {}", serde_json::to_string(record).unwrap_or_default())?;
            }
        }
        for (edge, value) in &self.invented {
            writeln!(f, "INVENTED {edge}: {value}")?;
        }
        for line in self.failed.iter().chain(&self.wrong) {
            writeln!(f, "WRONG    {line}")?;
        }
        Ok(())
    }
}

/// An edge of a snapshot with what it says.
#[must_use]
pub fn edges(snapshot: &Value) -> BTreeMap<Edge, Value> {
    let all = snapshot["edges"].as_array().cloned().unwrap_or_default();
    all.into_iter()
        .map(|value| {
            let edge = Edge {
                client: peer(&value["client"]),
                server: peer(&value["server"]),
                protocol: value["protocol"].as_str().unwrap_or_default().to_owned(),
                port: u16::try_from(value["port"].as_u64().unwrap_or_default()).unwrap_or_default(),
            };
            (edge, value)
        })
        .collect()
}

/// The lab's spelling of a peer.
#[must_use]
pub fn peer(value: &Value) -> String {
    let text = |key: &str| value[key].as_str().unwrap_or("?").to_owned();
    match value["kind"].as_str() {
        Some("Workload") => format!("{}/{}/{}", text("namespace"), text("owner"), text("name")),
        Some("Node") => format!("node/{}", text("name")),
        Some("External") => format!("external/{}", text("address")),
        _ => format!("?{value}"),
    }
}

/// Whether an edge rests on something that happened, not only on failed attempts.
#[must_use]
pub fn happened(value: &Value) -> bool {
    number(value, "opened") + number(value, "found") > 0
}

/// A count of an edge.
#[must_use]
pub fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

/// Whether an edge has a mark.
#[must_use]
pub fn has_mark(value: &Value, mark: &str) -> bool {
    value["marks"].as_array().is_some_and(|m| m.iter().any(|m| m == mark))
}

/// Compares the edges of a snapshot with the truth: keys, TCP numbers, Services asked for, marks,
/// failed attempts.
#[must_use]
pub fn compare(snapshot: &Value, truth: &Truth) -> Difference {
    let mut difference = Difference::default();
    let observed = edges(snapshot);
    for (edge, evidence) in &truth.edges {
        match observed.get(edge).filter(|v| happened(v)) {
            None => difference.missing.push((edge.clone(), evidence.clone())),
            Some(value) => difference.wrong.extend(wrong(edge, evidence, value)),
        }
    }
    for (edge, value) in &observed {
        if has_mark(value, "multicast") {
            if value["supported"] != false {
                difference.wrong.push(format!("{edge} is multicast and supports a rule"));
            }
        } else if happened(value) {
            if !truth.edges.contains_key(edge) {
                difference.invented.push((edge.clone(), value.clone()));
            }
        } else if !truth.failed.contains_key(edge) {
            difference.failed.push(format!("{edge}: nobody tried that: {value}"));
        }
        if !happened(value) && value["supported"] != false {
            difference.failed.push(format!("{edge}: only failed attempts, yet it supports a rule"));
        }
    }
    for (edge, records) in &truth.failed {
        let kept =
            observed.get(edge).map_or(0, |v| number(v, "refused") + number(v, "unanswered") + number(v, "unreachable"));
        if kept != records.len() as u64 {
            difference.failed.push(format!("{edge}: {} attempts failed, {kept} are counted", records.len()));
        }
    }
    difference
}

fn wrong(edge: &Edge, evidence: &Evidence, value: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    if value["supported"] != true {
        wrong.push(format!("{edge}: it really happened, but supports no rule: {value}"));
    }
    if edge.protocol == "TCP" {
        for (key, expected) in [("opened", evidence.opened), ("found", evidence.found)] {
            if number(value, key) != expected {
                wrong.push(format!("{edge}: {key} is {}, not {expected}", number(value, key)));
            }
        }
        if has_mark(value, "found-at-start") != (evidence.found > 0) {
            wrong.push(format!("{edge}: found at start {} times, marks are {}", evidence.found, value["marks"]));
        }
    }
    // What an external client asked for is seen by nobody in the cluster before it is translated.
    if !edge.client.starts_with("external/") {
        let via: Vec<_> = value["via"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !evidence.via.iter().eq(via.iter()) {
            wrong.push(format!("{edge}: via is {via:?}, not {:?}", evidence.via));
        }
    }
    wrong
}
