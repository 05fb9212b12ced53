//! Single values of a plan: a node of the file in, the value or the end of a sentence out.

use std::{net::IpAddr, time::Duration};

use guardrail_graph::{Timestamp, WorkloadRef};
use guardrail_policy::{
    generate::{FlowName, Phase},
    model::Protocol,
    read::yaml::{Node, Value},
    words::{nearest, parse_duration},
};
use ipnet::IpNet;

use super::{ExceptionEnd, PlanPort};

/// A value, or what is wrong with it: the end of a sentence that begins with the field's name.
pub(super) type Parsed<T> = Result<T, String>;

pub(super) fn text(node: &Node) -> Parsed<String> {
    match node.as_str() {
        Some(text) if !text.trim().is_empty() => Ok(text.to_owned()),
        Some(_) => Err("is empty; write something".to_owned()),
        None => Err(format!("is {}, where text is meant; put it in quotes", node.describe())),
    }
}

pub(super) fn flag(node: &Node) -> Parsed<bool> {
    match node.value {
        Value::Bool(flag) => Ok(flag),
        _ => Err(format!("is {}; write true or false", node.describe())),
    }
}

pub(super) fn percent(node: &Node) -> Parsed<f64> {
    let number = match node.value {
        // Every whole number in range is exact.
        Value::Int(number) => u8::try_from(number).ok().map(f64::from),
        Value::Float(number) => Some(number),
        _ => None,
    };
    number.filter(|n| (0.0..=100.0).contains(n)).ok_or_else(|| "is no percentage; write a number from 0 to 100".into())
}

pub(super) fn phase(node: &Node) -> Parsed<Phase> {
    let word = text(node)?;
    word.parse().map_err(|_| match nearest(&word, ["observe", "constrain", "default-deny"]) {
        Some(near) => format!("is `{word}`, which is no phase; did you mean {near}?"),
        None => format!("is `{word}`, which is no phase; write observe, constrain or default-deny"),
    })
}

pub(super) fn duration(node: &Node) -> Parsed<Duration> {
    match node.as_str() {
        Some(text) => {
            parse_duration(text).map_err(|_| format!("is `{text}`, which is no duration; write one like 24h or 7d"))
        }
        None => Err(format!("is {}; write a duration like 24h or 7d", node.describe())),
    }
}

pub(super) fn instant(node: &Node) -> Parsed<Timestamp> {
    let text = text(node)?;
    let midnight = || format!("{text}T00:00:00Z").parse::<Timestamp>();
    text.parse::<Timestamp>()
        .or_else(|_| midnight())
        .map_err(|_| format!("is `{text}`, which is no time; write one like 2026-12-15T00:00:00Z, or a date"))
}

pub(super) fn range(node: &Node) -> Parsed<IpNet> {
    let text = text(node)?;
    let range: IpNet =
        text.parse().map_err(|_| format!("is `{text}`, which is no range; write one like 10.0.0.0/16"))?;
    let trunc = range.trunc();
    if range == trunc { Ok(range) } else { Err(format!("is `{text}`, whose last bits are not 0; write {trunc}")) }
}

pub(super) fn port(node: &Node) -> Parsed<PlanPort> {
    let wrong = |what: &str| format!("is {what}, which is no port; write one like 5432/TCP");
    let (number, protocol) = match &node.value {
        Value::Int(number) => (number.to_string(), "TCP".to_owned()),
        Value::Str(text) => match text.split_once('/') {
            Some((number, protocol)) => (number.to_owned(), protocol.to_owned()),
            None => (text.clone(), "TCP".to_owned()),
        },
        _ => return Err(wrong(node.describe())),
    };
    let shown = format!("`{number}/{protocol}`");
    let port: u16 = number.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong(&shown))?;
    let protocol: Protocol =
        protocol.parse().map_err(|_| match nearest(&protocol.to_uppercase(), ["TCP", "UDP", "SCTP"]) {
            Some(near) => format!("is {shown}; did you mean {port}/{near}?"),
            None => wrong(&shown),
        })?;
    Ok(PlanPort { port, protocol })
}

pub(super) fn workload(node: &Node) -> Parsed<WorkloadRef> {
    let text = text(node)?;
    workload_of(&text).ok_or_else(|| format!("is `{text}`, which is no workload; write NAMESPACE/KIND/NAME"))
}

fn workload_of(text: &str) -> Option<WorkloadRef> {
    match text.split('/').collect::<Vec<_>>()[..] {
        [namespace, owner, name]
            if [namespace, owner, name].iter().all(|part| !part.is_empty() && !part.contains('*')) =>
        {
            Some(WorkloadRef { namespace: namespace.to_owned(), owner: owner.to_owned(), name: name.to_owned() })
        }
        _ => None,
    }
}

pub(super) fn end(node: &Node) -> Parsed<ExceptionEnd> {
    let text = text(node)?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(ExceptionEnd::Range(address.to_canonical().into()));
    }
    if text.parse::<IpNet>().is_ok() {
        return range(node).map(ExceptionEnd::Range);
    }
    let wrong = || format!("is `{text}`, which is no peer; write NAMESPACE/KIND/NAME, an address or a range");
    workload_of(&text).map(ExceptionEnd::Workload).ok_or_else(wrong)
}

pub(super) fn flow(node: &Node) -> Parsed<FlowName> {
    text(node)?.parse().map_err(|error: guardrail_policy::generate::BadFlowName| format!("is wrong: {error}"))
}
