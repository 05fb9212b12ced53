//! Ranges of addresses, as the API server reads them, and what to write in place of those that it
//! refuses (A19).

use std::net::IpAddr;

use guardrail_graph::inventory::parse_sloppy;
use ipnet::IpNet;

use super::{ObjectProblemKind, policy::Decoder};

impl Decoder<'_> {
    pub(super) fn cidr(&mut self, text: &str, line: u32) -> Option<IpNet> {
        // Older API servers take host bits (`10.0.0.1/24`) and mean the network.
        match parse_cidr(text) {
            Some(net) => {
                let net = net.trunc();
                if is_ambiguous(text, net) {
                    let meant = unmapped(net).unwrap_or(net);
                    let message = format!("`{text}` is ambiguous and newer API servers reject it; write {meant}");
                    self.warnings.push(self.make(ObjectProblemKind::AmbiguousCidr, line, message));
                }
                Some(net)
            }
            None => {
                self.invalid(line, format!("`{text}` is no valid CIDR{}", cidr_hint(text)));
                None
            }
        }
    }
}

/// As Go's ParseCIDRSloppy, which the API server uses: leading zeros mean nothing.
fn parse_cidr(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| {
        let (address, length) = text.split_once('/')?;
        format!("{}/{length}", parse_sloppy(address)?).parse().ok()
    })
}

/// An IPv4 range that is written as IPv6.
fn unmapped(net: IpNet) -> Option<IpNet> {
    let IpNet::V6(v6) = net else { return None };
    let length = net.prefix_len().checked_sub(96)?;
    IpNet::new(v6.addr().to_ipv4_mapped()?.into(), length).ok()
}

/// What to write in place of what is no range.
fn cidr_hint(text: &str) -> String {
    let alone = |text: &str| parse_sloppy(text).map(|a| format!("{a}/{}", if a.is_ipv4() { 32 } else { 128 }));
    let is_name =
        |text: &str| text.contains('.') && text.bytes().any(|b| b.is_ascii_alphabetic()) && !text.contains([':', '/']);
    match text.trim() {
        trimmed if trimmed != text && parse_cidr(trimmed).is_some() => "; remove the blank at its end".to_owned(),
        trimmed if alone(trimmed).is_some() => {
            format!("; for one address write {}", alone(trimmed).unwrap_or_default())
        }
        trimmed if trimmed.split_once('-').is_some_and(|(a, b)| alone(a.trim()).is_some() && alone(b.trim()).is_some()) => {
            "; write the range as one or more CIDRs".to_owned()
        }
        trimmed if trimmed.contains(',') => "; write one ipBlock for each".to_owned(),
        trimmed if is_name(trimmed) => {
            "; NetworkPolicy knows no names: write the addresses behind it, or use a kind that knows them (toFQDNs of a CiliumNetworkPolicy)".to_owned()
        }
        _ => String::new(),
    }
}

/// Beyond spelling (`2001:DB8::/32`): host bits, leading zeros, an IPv4 address in IPv6 form.
fn is_ambiguous(text: &str, net: IpNet) -> bool {
    let written = text.split_once('/').and_then(|(address, _)| address.parse::<IpAddr>().ok());
    written != Some(net.addr())
        || unmapped(net).is_some()
        || text.split(['.', '/']).any(|part| part.len() > 1 && part.starts_with('0') && net.addr().is_ipv4())
}
