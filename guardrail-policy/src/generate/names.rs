//! Names of policies: DNS-1123, bounded, stable, and never the same for two workloads
//! (docs/semantics.md B28).

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::WorkloadRef;

/// Name of the policy that closes ingress of a namespace.
pub(crate) const DENY_INGRESS: &str = "guardrail-default-deny-ingress";
/// Name of the policy that closes egress of a namespace but for DNS.
pub(crate) const DENY_EGRESS: &str = "guardrail-default-deny-egress";
/// Name of the policy that draws a namespace's boundary.
pub(crate) const BOUNDARY: &str = "guardrail-namespace-boundary";

/// Beginning of the name of the policy that allows what a workload needs.
pub(crate) const ALLOW: &str = "guardrail-allow";
/// Beginning of the name of a workload's share of a namespace's boundary.
pub(crate) const WORKLOAD_BOUNDARY: &str = "guardrail-boundary";

/// Kubernetes allows 253; with the namespace (63) and `.yaml` the name must also be a file name
/// (255).
const MAX: usize = 180;

/// A name for the policy of each of these workloads, which share a namespace.
pub(crate) fn workload_policies<'a>(
    beginning: &str,
    workloads: impl IntoIterator<Item = &'a WorkloadRef>,
) -> BTreeMap<&'a WorkloadRef, String> {
    let plain: Vec<(&WorkloadRef, String)> = workloads
        .into_iter()
        .map(|w| (w, format!("{beginning}-{}-{}", dns_part(&w.owner), dns_part(&w.name))))
        .collect();
    let mut seen = BTreeSet::new();
    let mut twice = BTreeSet::new();
    for (_, name) in &plain {
        if !seen.insert(name.clone()) {
            twice.insert(name.clone());
        }
    }
    plain
        .into_iter()
        .map(|(workload, name)| {
            let distinct = if twice.contains(&name) { with_hash(&name, workload) } else { name };
            (workload, if distinct.len() > MAX { with_hash(&distinct, workload) } else { distinct })
        })
        .collect()
}

/// Lower-case letters, digits, `-` and `.` only, ending in a letter or digit.
fn dns_part(text: &str) -> String {
    let mapped: String = text
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '-' | '.') => c,
            _ => '-',
        })
        .collect();
    // `a..b` and `a.-b` are no DNS-1123 subdomains; a name that holds them loses its dots.
    let mapped =
        if ["..", ".-", "-."].iter().any(|bad| mapped.contains(bad)) { mapped.replace('.', "-") } else { mapped };
    let trimmed = mapped.trim_matches(['-', '.']);
    if trimmed.is_empty() { "x".to_owned() } else { trimmed.to_owned() }
}

fn with_hash(name: &str, workload: &WorkloadRef) -> String {
    let kept: String = name.chars().take(MAX - 17).collect();
    format!("{}-{:016x}", kept.trim_end_matches(['-', '.']), fnv1a(&workload.to_string()))
}

/// FNV-1a, 64 bit: stable over versions and machines, which the standard hasher does not promise.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(owner: &str, name: &str) -> WorkloadRef {
        WorkloadRef { namespace: "shop".into(), owner: owner.into(), name: name.into() }
    }

    fn is_dns_1123(name: &str) -> bool {
        name.len() <= 253
            && name.split('.').all(|label| {
                !label.is_empty()
                    && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            })
    }

    #[test]
    fn workloads_of_different_kinds_with_one_name_get_different_policies() {
        let refs = [
            workload("Deployment", "web"),
            workload("StatefulSet", "web"),
            workload("Rollout", "web"),
            workload("RollOut", "web"),
        ];
        let names = workload_policies(ALLOW, &refs);
        assert_eq!(names.values().collect::<BTreeSet<_>>().len(), 4, "{names:?}");
        assert_eq!(names[&refs[0]], "guardrail-allow-deployment-web");
    }

    #[test]
    fn every_name_is_a_bounded_dns_1123_subdomain() {
        let long = "a".repeat(253);
        let long_tail = format!("{}b", "a".repeat(252));
        let refs = [
            workload("Deployment", &long),
            workload("Deployment", &long_tail),
            workload("Pod", "api.v1.example"),
            workload("Odd_Kind", "Straße"),
            workload("", ""),
            workload("Pod", "a-.b"),
        ];
        let names = workload_policies(ALLOW, &refs);
        for name in names.values() {
            assert!(is_dns_1123(name) && name.len() <= MAX, "{name}");
        }
        assert_eq!(names.values().collect::<BTreeSet<_>>().len(), refs.len(), "{names:?}");
    }
}
