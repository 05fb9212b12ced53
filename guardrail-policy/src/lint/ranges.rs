//! What is left of ranges of addresses when exceptions are taken out.

use ipnet::IpNet;

use crate::model::IpBlock;

/// Whether anything of the range is left when the exceptions are taken out.
pub(super) fn is_left(range: IpNet, except: &[IpNet]) -> bool {
    if except.iter().any(|e| e.contains(&range)) {
        return false;
    }
    let inside: Vec<IpNet> = except.iter().copied().filter(|e| range.contains(e)).collect();
    if inside.is_empty() {
        return true;
    }
    // As often as the longest exception is longer than the range.
    range.subnets(range.prefix_len() + 1).map_or(true, |mut halves| halves.any(|half| is_left(half, &inside)))
}

/// Whether the block holds what a cluster's own DNS usually has: a private address.
pub(super) fn holds_private(block: &IpBlock) -> bool {
    let private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];
    private.iter().filter_map(|r| r.parse::<IpNet>().ok()).any(|range| {
        (block.cidr.contains(&range) || range.contains(&block.cidr))
            && is_left(if block.cidr.contains(&range) { range } else { block.cidr }, &block.except)
            // All of one private range left is what counts: a cluster uses one of them.
            && !block.except.iter().any(|e| range.contains(e) && e.prefix_len() <= range.prefix_len() + 4)
    })
}
