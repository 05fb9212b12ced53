//! Reads exported policies, without guardrail's own code.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Every document of every `.yaml` file below a directory, with the file's text.
///
/// # Errors
/// A file cannot be read or is not YAML.
pub fn read(directory: &Path) -> Result<Vec<(String, Vec<Value>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(read(&path)?);
        } else if path.extension().is_some_and(|e| e == "yaml") {
            let text = fs::read_to_string(&path)?;
            let documents =
                serde_saphyr::from_multiple(&text).with_context(|| format!("{} is not YAML", path.display()))?;
            files.push((text, documents));
        }
    }
    Ok(files)
}

/// NetworkPolicies among the documents.
pub fn network_policies(files: &[(String, Vec<Value>)]) -> impl Iterator<Item = &Value> {
    files.iter().flat_map(|(_, documents)| documents).filter(|d| d["kind"] == "NetworkPolicy")
}

/// Every port number in rules, with its protocol.
#[must_use]
pub fn ports(files: &[(String, Vec<Value>)]) -> BTreeSet<(String, String)> {
    let mut out = BTreeSet::new();
    for policy in network_policies(files) {
        for rule in ["ingress", "egress"].iter().flat_map(|k| policy["spec"][k].as_array().into_iter().flatten()) {
            for port in rule["ports"].as_array().into_iter().flatten() {
                let number = port["port"].as_str().map_or_else(|| port["port"].to_string(), str::to_owned);
                out.insert((number, port["protocol"].as_str().unwrap_or("TCP").to_owned()));
                if !port["endPort"].is_null() {
                    out.insert((port["endPort"].to_string(), "endPort".into()));
                }
            }
        }
    }
    out
}

/// A pod as policies see it: namespace and labels.
pub type Labelled<'a> = (&'a str, Vec<(&'a str, &'a str)>);

/// Whether some policy lets `client` reach `server` on a port: union over the policies of the
/// server's namespace, selectors by `matchLabels`.
#[must_use]
pub fn allows_ingress(
    files: &[(String, Vec<Value>)],
    client: &Labelled<'_>,
    server: &Labelled<'_>,
    protocol: &str,
    port: u16,
    port_name: &str,
) -> bool {
    network_policies(files)
        .filter(|p| p["metadata"]["namespace"] == server.0 && selects(&p["spec"]["podSelector"], &server.1))
        .flat_map(|p| p["spec"]["ingress"].as_array().into_iter().flatten())
        .any(|rule| {
            let port_fits = rule["ports"].as_array().into_iter().flatten().any(|p| {
                p["protocol"].as_str().unwrap_or("TCP") == protocol && (p["port"] == port || p["port"] == port_name)
            });
            port_fits
                && rule["from"].as_array().into_iter().flatten().any(|from| {
                    let namespace = match &from["namespaceSelector"] {
                        Value::Null => client.0 == server.0,
                        selector => selects(selector, &[("kubernetes.io/metadata.name", client.0)]),
                    };
                    from["ipBlock"].is_null() && namespace && selects(&from["podSelector"], &client.1)
                })
        })
}

fn selects(selector: &Value, labels: &[(&str, &str)]) -> bool {
    !selector.is_null()
        && selector["matchLabels"]
            .as_object()
            .into_iter()
            .flatten()
            .all(|(key, value)| labels.iter().any(|(k, v)| k == key && value == v))
}
