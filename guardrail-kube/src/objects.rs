//! What a cluster has at this moment, as the texts that its API server sends: for `--policies kube`
//! and `--inventory kube`.
//!
//! The user needs the verb `list` on what is asked for. Policies of kinds that the server does not
//! serve are none. Nothing is decoded here but the lists: what reads the texts are guardrail-graph
//! and guardrail-policy.

use std::time::Duration;

use serde::Deserialize;

use crate::{Api, Failure, Resource, client::page_path, text::plain, watch::decode};

/// Objects per page of a list.
const PAGE: usize = 500;
/// Group of the kinds that come after NetworkPolicy; several of its versions are served at once,
/// each with kinds of its own.
const POLICY_GROUP: &str = "policy.networking.k8s.io";

/// Why the objects of a cluster are not known; for the user of a kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// The user may not list them.
    #[error("no permission to read {what} of the cluster: grant the verb list on them ({said})")]
    Forbidden {
        /// Resource and group, as RBAC rules name them.
        what: String,
        /// What the API server says.
        said: String,
    },
    /// The server does not accept the credentials.
    #[error("the API server does not accept the credentials of the kubeconfig, or of the pod's service account")]
    Unauthorized,
    /// No connection, or it broke.
    #[error("cannot reach the API server: {0}")]
    Unreachable(String),
    /// No whole answer in time.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// Another refusal, or an answer that makes no sense.
    #[error("the API server does not give {what}: {said}")]
    Refused {
        /// Resource and group.
        what: String,
        /// What went wrong.
        said: String,
    },
}

impl ObjectsError {
    fn new(failure: Failure, what: &str, limit: Duration) -> Self {
        let what = what.to_owned();
        match failure {
            Failure::Forbidden(said) => Self::Forbidden { what, said: plain(&said) },
            Failure::Unauthorized => Self::Unauthorized,
            Failure::Transport(why) => Self::Unreachable(why),
            Failure::Stalled => Self::TimedOut(limit),
            other => Self::Refused { what, said: plain(&other.to_string()) },
        }
    }
}

/// A part of what the cluster has: a page of a list, or an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterText {
    /// Resource and group, as RBAC rules name them: `networkpolicies.networking.k8s.io`.
    pub what: String,
    /// JSON as the server sends it.
    pub json: String,
}

/// `/apis`, as far as it is read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Group {
    name: String,
    versions: Vec<Version>,
    preferred_version: Version,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Version {
    group_version: String,
}

/// `/apis/GROUP/VERSION`, as far as it is read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Resources {
    resources: Vec<Served>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Served {
    name: String,
    kind: String,
    verbs: Vec<String>,
}

/// Everything that decides who may connect: NetworkPolicies, and of each other group the kinds that
/// `is_policy` (kind, group) wants. `limit` is for each answer.
///
/// # Errors
/// No server, no permission, or an answer that makes no sense; the message is for the user.
pub async fn policies(
    api: &Api,
    is_policy: impl Fn(&str, &str) -> bool,
    limit: Duration,
) -> Result<Vec<ClusterText>, ObjectsError> {
    let mut all = Vec::new();
    list(api, &Resource::NetworkPolicies.path(), &name(Resource::NetworkPolicies), limit, &mut all).await?;
    let groups: Groups = get(api, "/apis", "the list of API groups", limit).await?.unwrap_or_default();
    for group in groups.groups.iter().filter(|group| may_have_policies(&group.name)) {
        let versions = if group.name == POLICY_GROUP {
            &group.versions[..]
        } else {
            std::slice::from_ref(&group.preferred_version)
        };
        for Version { group_version } in versions {
            let what = format!("the resources of {group_version}");
            let path = format!("/apis/{group_version}");
            let served: Resources = get(api, &path, &what, limit).await?.unwrap_or_default();
            let listed =
                |served: &&Served| served.verbs.iter().any(|verb| verb == "list") && !served.name.contains('/');
            for served in served.resources.iter().filter(listed).filter(|s| is_policy(&s.kind, &group.name)) {
                let what = format!("{}.{}", served.name, group.name);
                list(api, &format!("{path}/{}", served.name), &what, limit, &mut all).await?;
            }
        }
    }
    Ok(all)
}

/// Everything that names pods and what they belong to, as the agent watches it, without policies.
/// `limit` is for each answer.
///
/// # Errors
/// As [`policies`].
pub async fn inventory(api: &Api, limit: Duration) -> Result<Vec<ClusterText>, ObjectsError> {
    let mut all = Vec::new();
    for resource in Resource::ALL.into_iter().filter(|resource| *resource != Resource::NetworkPolicies) {
        list(api, &resource.path(), &name(resource), limit, &mut all).await?;
    }
    Ok(all)
}

/// One object; `None` if there is none.
///
/// # Errors
/// As [`policies`].
pub async fn object(api: &Api, path: &str, limit: Duration) -> Result<Option<ClusterText>, ObjectsError> {
    let json = match text(api, path, path, limit).await {
        Ok(json) => json,
        Err(Failure::NotServed) => return Ok(None),
        Err(failure) => return Err(ObjectsError::new(failure, path, limit)),
    };
    Ok(Some(ClusterText { what: path.to_owned(), json }))
}

/// As RBAC rules name it.
fn name(resource: Resource) -> String {
    match resource.group() {
        "" => resource.as_str().to_owned(),
        group => format!("{}.{group}", resource.as_str()),
    }
}

/// Whether the group is one that Kubernetes itself does not have, or the one of its later policies.
fn may_have_policies(group: &str) -> bool {
    group == POLICY_GROUP || group.contains('.') && !group.ends_with(".k8s.io")
}

async fn get<T: for<'de> Deserialize<'de>>(
    api: &Api,
    path: &str,
    what: &str,
    limit: Duration,
) -> Result<Option<T>, ObjectsError> {
    let text = match text(api, path, what, limit).await {
        Ok(text) => text,
        // A group may go while it is asked for; old servers serve less.
        Err(Failure::NotServed) => return Ok(None),
        Err(failure) => return Err(ObjectsError::new(failure, what, limit)),
    };
    let parsed = serde_json::from_str(&text).map_err(|error| Failure::Malformed(error.to_string()));
    parsed.map(Some).map_err(|failure| ObjectsError::new(failure, what, limit))
}

async fn text(api: &Api, path: &str, what: &str, limit: Duration) -> Result<String, Failure> {
    let bytes = api.get(path, "application/json", limit).await?.whole(limit).await?;
    String::from_utf8(bytes).map_err(|_| Failure::Malformed(format!("{what} as something that is no text")))
}

/// The pages of a list that hold something; none if the server does not serve it.
async fn list(
    api: &Api,
    path: &str,
    what: &str,
    limit: Duration,
    all: &mut Vec<ClusterText>,
) -> Result<(), ObjectsError> {
    let mut next: Option<String> = None;
    loop {
        let asked = page_path(format!("{path}?limit={PAGE}"), next.as_deref());
        let json = match text(api, &asked, what, limit).await {
            Ok(json) => json,
            Err(Failure::NotServed) => return Ok(()),
            Err(failure) => return Err(ObjectsError::new(failure, what, limit)),
        };
        let page = decode::page(json.as_bytes()).map_err(|failure| ObjectsError::new(failure, what, limit))?;
        next.clone_from(&page.next);
        if !page.items.is_empty() {
            all.push(ClusterText { what: what.to_owned(), json });
        }
        if next.is_none() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_kubernetes_itself_are_not_searched_but_for_one() {
        for (group, searched) in [
            ("apps", false),
            ("networking.k8s.io", false),
            ("rbac.authorization.k8s.io", false),
            ("policy.networking.k8s.io", true),
            ("cilium.io", true),
            ("k8s.ovn.org", true),
            ("crd.projectcalico.org", true),
        ] {
            assert_eq!(may_have_policies(group), searched, "{group}");
        }
        assert_eq!(name(Resource::Pods), "pods");
        assert_eq!(name(Resource::NetworkPolicies), "networkpolicies.networking.k8s.io");
    }
}
