//! Policies of a cluster that carry a label: listed as metadata, and deleted one by one.
//!
//! The only place that writes to a cluster. The user needs the verbs `list` and `delete` on the
//! kinds of policies that the cluster has, and no others.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::json;

use crate::{Api, Failure, client::page_path, text::escaped, watch::decode};

/// The kinds that can be exceptions, by the path of their collection: group and version, plural.
const KINDS: [(&str, &str); 2] =
    [("networking.k8s.io/v1", "networkpolicies"), ("cilium.io/v2", "ciliumnetworkpolicies")];
/// Policies per page of a list.
const PAGE: usize = 500;
/// Metadata alone is asked for: what a policy allows is not read here.
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// A policy's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyObject {
    /// Plural of its kind, as RBAC names it.
    pub resource: &'static str,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    group: &'static str,
    uid: String,
    resource_version: String,
}

#[derive(Deserialize)]
struct Item {
    metadata: Meta,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    namespace: String,
    name: String,
    uid: String,
    resource_version: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

/// Lists the policies that have this label, whatever its value. A kind that the cluster does not
/// serve has none.
///
/// # Errors
/// The kind that could not be listed, and why.
pub async fn list(api: &Api, label: &str, limit: Duration) -> Result<Vec<PolicyObject>, (&'static str, Failure)> {
    let mut all = Vec::new();
    for (group, resource) in KINDS {
        match pages(api, group, resource, label, limit).await {
            Ok(found) => all.extend(found),
            Err(Failure::NotServed) if group != KINDS[0].0 => {}
            Err(failure) => return Err((resource, failure)),
        }
    }
    Ok(all)
}

async fn pages(
    api: &Api,
    group: &'static str,
    resource: &'static str,
    label: &str,
    limit: Duration,
) -> Result<Vec<PolicyObject>, Failure> {
    let mut all = Vec::new();
    let mut next: Option<String> = None;
    loop {
        let mut path = format!("/apis/{group}/{resource}?limit={PAGE}&labelSelector=");
        path.extend(escaped(label));
        let path = page_path(path, next.as_deref());
        let bytes = api.get(&path, METADATA, limit).await?.whole(limit).await?;
        let page = decode::page(&bytes)?;
        for item in page.items {
            let Item { metadata } = serde_json::from_str(item.get()).map_err(|e| Failure::Malformed(e.to_string()))?;
            all.push(PolicyObject {
                resource,
                group,
                namespace: metadata.namespace,
                name: metadata.name,
                labels: metadata.labels.unwrap_or_default(),
                annotations: metadata.annotations.unwrap_or_default(),
                uid: metadata.uid,
                resource_version: metadata.resource_version,
            });
        }
        next = page.next;
        if next.is_none() {
            return Ok(all);
        }
    }
}

/// Deletes a policy, if it is still the one that was listed: whoever has changed it since, or made
/// another of the name, keeps it.
///
/// # Errors
/// What the API server says; 409 (as [`Failure::Refused`]) if it is another by now.
pub async fn delete(api: &Api, policy: &PolicyObject, limit: Duration) -> Result<(), Failure> {
    let PolicyObject { group, resource, namespace, name, uid, resource_version, .. } = policy;
    let path = format!("/apis/{group}/namespaces/{namespace}/{resource}/{name}");
    let options = json!({
        "apiVersion": "v1", "kind": "DeleteOptions",
        "preconditions": {"uid": uid, "resourceVersion": resource_version},
    });
    match api.delete(&path, options.to_string().into_bytes(), limit).await {
        // Somebody else was first.
        Ok(_) | Err(Failure::NotServed) => Ok(()),
        Err(failure) => Err(failure),
    }
}
