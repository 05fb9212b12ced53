//! TokenReview (authentication.k8s.io/v1) and SubjectAccessReview (authorization.k8s.io/v1): who
//! the bearer of a token is, and what that user may read.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::json;

use crate::{Api, Failure};

/// What the API server says of a token and a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The bearer may read it.
    Allowed,
    /// Nobody's token: 401.
    Unknown,
    /// The token of a user who may not: 403.
    Forbidden,
}

#[derive(Deserialize)]
struct Review<S> {
    status: S,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenStatus {
    authenticated: bool,
    user: User,
    audiences: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AccessStatus {
    allowed: bool,
    denied: bool,
}

async fn post<S: serde::de::DeserializeOwned>(
    api: &Api,
    path: &str,
    document: &serde_json::Value,
    limit: Duration,
) -> Result<S, Failure> {
    let answer = api.post(path, document.to_string().into_bytes(), limit).await?;
    serde_json::from_slice::<Review<S>>(&answer).map(|r| r.status).map_err(|e| Failure::Malformed(e.to_string()))
}

/// Asks who the bearer of `token` is, and whether that user may `get` the non-resource URL `path`.
/// With an audience, only tokens issued for it count. Each of the two questions may take as long as
/// `limit`.
///
/// # Errors
/// If the API server does not answer, or refuses the question.
pub async fn review(
    api: &Api,
    token: &str,
    audience: Option<&str>,
    path: &str,
    limit: Duration,
) -> Result<Verdict, Failure> {
    let mut spec = json!({"token": token});
    if let Some(audience) = audience {
        spec["audiences"] = json!([audience]);
    }
    let document = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec});
    let token: TokenStatus = post(api, "/apis/authentication.k8s.io/v1/tokenreviews", &document, limit).await?;
    // A server without support for audiences returns none: it did not check that the token is meant
    // for us.
    let meant = audience.is_none_or(|a| token.audiences.iter().any(|is| is == a));
    if !token.authenticated || !meant || token.user.username.is_empty() {
        return Ok(Verdict::Unknown);
    }
    let User { username, uid, groups, extra } = token.user;
    let document = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": username, "uid": uid, "groups": groups, "extra": extra,
            "nonResourceAttributes": {"path": path, "verb": "get"},
        },
    });
    let access: AccessStatus =
        post(api, "/apis/authorization.k8s.io/v1/subjectaccessreviews", &document, limit).await?;
    Ok(if access.allowed && !access.denied { Verdict::Allowed } else { Verdict::Forbidden })
}
