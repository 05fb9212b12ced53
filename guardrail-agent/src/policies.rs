//! NetworkPolicies in force, as the API server reports them.

use guardrail_policy::{model::NetworkPolicy, read::policies};

/// Reads one from a JSON document; `name` is its `namespace/name`, for messages.
///
/// # Errors
/// Why it makes no sense.
pub fn read(name: &str, document: &str) -> Result<NetworkPolicy, String> {
    let set = policies(name, document.as_bytes()).map_err(|e| e.to_string())?;
    set.policies.into_iter().next().ok_or_else(|| "it is no NetworkPolicy".to_owned())
}
