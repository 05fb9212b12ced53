//! What names and values may look like: the API machinery's rules
//! (`k8s.io/apimachinery/pkg/util/validation`).

/// RFC 1123 label: at most 63 of `a-z0-9-`, alphanumeric at both ends.
pub(super) fn is_dns_label(s: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !s.is_empty()
        && s.len() <= 63
        && s.bytes().all(|b| inner(b) || b == b'-')
        && s.bytes().next().is_some_and(inner)
        && s.bytes().last().is_some_and(inner)
}

/// RFC 1123 subdomain: at most 253, labels joined by dots (each label of any length).
pub(super) fn is_dns_subdomain(s: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |p: &str| {
        p.bytes().all(|b| inner(b) || b == b'-')
            && p.bytes().next().is_some_and(inner)
            && p.bytes().last().is_some_and(inner)
    };
    s.len() <= 253 && s.split('.').all(part)
}

/// The part of a label key after the prefix, or a non-empty label value: at most 63 of
/// `A-Za-z0-9-_.`, alphanumeric at both ends.
fn is_qualified_part(s: &str) -> bool {
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    s.len() <= 63
        && ends(s.bytes().next())
        && ends(s.bytes().last())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// A label key: `[prefix/]name`.
pub(super) fn is_label_key(s: &str) -> bool {
    match s.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_qualified_part(name),
        None => is_qualified_part(s),
    }
}

/// A label value; may be empty.
pub(super) fn is_label_value(s: &str) -> bool {
    s.is_empty() || is_qualified_part(s)
}

/// A port name (IANA service name): at most 15 of `a-z0-9-`, one letter at least, no `-` at an end,
/// no two in a row.
pub(super) fn is_port_name(s: &str) -> bool {
    (1..=15).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && s.bytes().any(|b| b.is_ascii_lowercase())
        && !s.starts_with('-')
        && !s.ends_with('-')
        && !s.contains("--")
}
