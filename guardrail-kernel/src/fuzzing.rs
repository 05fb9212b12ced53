//! Doors for the checks of hostile input (`fuzz/`): each takes raw bytes to a reader that is
//! private otherwise, and gives plain values. No part of the agent uses it, and it is no API.

use std::net::IpAddr;

use crate::{btf, dns, sockets};

/// Finds `path` in each of `structures` of a BTF file; bit offsets.
///
/// # Errors
/// Why the bytes are no BTF.
pub fn btf(bytes: &[u8], members: &[(&str, &str)]) -> Result<Vec<Option<u32>>, String> {
    let btf = btf::Btf::parse(bytes.to_vec())?;
    Ok(members.iter().map(|(name, path)| btf.member(name, path).map(|m| m.bit)).collect())
}

/// The name and addresses of a DNS answer.
#[must_use]
pub fn dns(message: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    dns::answer(message)
}

/// What the socket iterator's records hold: listening sockets, connections, broken records.
#[must_use]
pub fn sockets(bytes: &[u8]) -> (usize, u64, u64) {
    let found = sockets::classify(bytes);
    (found.listening.len(), found.connections.values().map(|c| c.count).sum(), found.broken)
}
