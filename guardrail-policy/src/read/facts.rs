//! Facts of objects that are no policies, as far as policies of some kinds ask for them
//! ([`Facts`]); and options in files of their own.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{
    ObjectProblem, ObjectProblemKind, ReadError,
    yaml::{self, Node, Value},
};
use crate::{
    evaluate::Facts,
    model::{Labels, Location},
};

/// Name of the ConfigMap with the options of Cilium's agent.
pub(super) const CILIUM_CONFIG: &str = "cilium-config";

/// Takes what is wanted from one object. What is malformed is left out: the inventory's own reader
/// tells of it.
pub(super) fn collect(kind: &str, group: &str, node: &Node, facts: &mut Facts) {
    let metadata = node.get("metadata");
    let text = |field: &str| metadata.and_then(|m| m.get(field)).and_then(Node::as_str).unwrap_or_default().to_owned();
    let labels = || metadata.and_then(|m| m.get("labels")).map(strings).unwrap_or_default();
    match (kind, group) {
        ("Pod", "") => {
            let account = node.get("spec").and_then(|s| s.get("serviceAccountName")).and_then(Node::as_str);
            // The API server fills in `default`.
            let account = account.filter(|a| !a.is_empty()).unwrap_or("default").to_owned();
            facts.service_accounts.insert((text("namespace"), text("name")), account);
        }
        ("Service", "") => {
            facts.service_labels.insert((text("namespace"), text("name")), labels());
        }
        ("ConfigMap", "") if text("name") == CILIUM_CONFIG => {
            facts.cilium_config = Some(node.get("data").map(strings).unwrap_or_default());
        }
        ("CiliumCIDRGroup", "cilium.io") => {
            let list = node.get("spec").and_then(|s| s.get("externalCIDRs"));
            let Some(Node { value: Value::Seq(items), .. }) = list else { return };
            let ranges = items.iter().filter_map(Node::as_str).filter_map(range).collect();
            facts.cidr_groups.insert(text("name"), (labels(), ranges));
        }
        _ => {}
    }
}

fn range(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().map(|net| net.trunc()).or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)).ok()
}

fn strings(node: &Node) -> Labels {
    let Value::Map(entries) = &node.value else { return Labels::new() };
    entries.iter().filter_map(|(key, value)| Some((key.name.clone(), scalar(value)?))).collect()
}

fn scalar(node: &Node) -> Option<String> {
    match &node.value {
        Value::Str(text) => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        Value::Null => Some(String::new()),
        _ => None,
    }
}

/// Options of Cilium's agent from a file: a ConfigMap, its `data` alone, or a mapping with the one
/// key `cilium`. Values are strings.
///
/// # Errors
/// The file is no YAML, or holds something else.
pub fn options(file: &str, bytes: &[u8]) -> Result<BTreeMap<String, String>, ReadError> {
    let file = file.into();
    let wrong = |line: u32, message: &str| ReadError {
        problems: vec![ObjectProblem {
            location: Location { file: std::sync::Arc::clone(&file), line },
            kind: ObjectProblemKind::Invalid,
            policy: None,
            message: message.to_owned(),
        }],
    };
    let documents = yaml::documents(&file, bytes).map_err(|problem| ReadError { problems: vec![problem] })?;
    let [document] = documents.as_slice() else {
        return Err(wrong(
            1,
            "a data plane configuration is one YAML document: the ConfigMap cilium-config, or its keys",
        ));
    };
    let data = match (document.get("cilium"), document.get("kind").and_then(Node::as_str)) {
        (Some(keys), _) => Some(keys),
        (None, Some("ConfigMap")) => document.get("data"),
        (None, Some(_)) => {
            return Err(wrong(document.line, "this object is no ConfigMap; name the ConfigMap cilium-config"));
        }
        (None, None) => Some(document),
    };
    let Some(data) = data else { return Ok(BTreeMap::new()) };
    let Value::Map(entries) = &data.value else {
        return Err(wrong(data.line, "the keys of a data plane configuration are a mapping"));
    };
    let mut keys = BTreeMap::new();
    for (key, value) in entries {
        match scalar(value) {
            Some(text) => keys.insert(key.name.clone(), text),
            None => return Err(wrong(value.line, "the value of a data plane option is a string; put it in quotes")),
        };
    }
    Ok(keys)
}
