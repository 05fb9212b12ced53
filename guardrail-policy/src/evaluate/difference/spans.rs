//! The space of addresses, cut where a block begins or ends.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// An interval of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::evaluate) struct Span {
    v6: bool,
    first: u128,
    last: u128,
    /// Addresses that are looked at before it counts as full.
    tries: usize,
}

impl Span {
    /// The first address in it that will do; so many are tried as there are pods, and one more.
    pub(in crate::evaluate) fn find(&self, will_do: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        (self.first..=self.last).take(self.tries).map(|number| address(self.v6, number)).find(|a| will_do(*a))
    }
}

fn address(v6: bool, number: u128) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if !v6 => Ipv4Addr::from_bits(number).into(),
        _ => Ipv6Addr::from_bits(number).into(),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

const fn width(v6: bool) -> u32 {
    if v6 { 128 } else { 32 }
}

const fn greatest(v6: bool) -> u128 {
    if v6 { u128::MAX } else { u32::MAX as u128 }
}

/// All intervals that have something in them.
pub(in crate::evaluate) struct Spans<T>(Vec<(Span, T)>);

impl<T> Spans<T> {
    /// Those between the bounds of the blocks, each with what `inside` finds in it. There are so
    /// many pods, of which each has one address of a family.
    pub(in crate::evaluate) fn between(
        blocks: &BTreeSet<IpNet>,
        pods: usize,
        inside: impl Fn(&Span) -> Option<T>,
    ) -> Self {
        let mut spans = Vec::new();
        for v6 in [false, true] {
            let mut starts = BTreeSet::from([0_u128]);
            for block in blocks.iter().filter(|block| matches!(block, IpNet::V6(_)) == v6) {
                starts.insert(number(block.network()));
                let last = number(block.broadcast());
                starts.extend((last < greatest(v6)).then(|| last + 1));
            }
            let starts: Vec<u128> = starts.into_iter().collect();
            for (at, first) in starts.iter().enumerate() {
                let last = starts.get(at + 1).map_or(greatest(v6), |next| next - 1);
                let span = Span { v6, first: *first, last, tries: pods + 1 };
                spans.extend(inside(&span).map(|found| (span, found)));
            }
        }
        Self(spans)
    }

    pub(in crate::evaluate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(in crate::evaluate) fn ends(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, found)| found)
    }

    /// Some of them in words, as few ranges as possible; `None`: all of them.
    pub(in crate::evaluate) fn name(&self, chosen: &[usize]) -> Option<String> {
        if chosen.len() == self.0.len() {
            return None;
        }
        let mut parts = Vec::new();
        for v6 in [false, true] {
            let of = |in_it: bool| {
                let spans = self
                    .0
                    .iter()
                    .enumerate()
                    .filter(|(index, (span, _))| span.v6 == v6 && chosen.binary_search(index).is_ok() == in_it);
                ranges(v6, spans.map(|(_, (span, _))| *span))
            };
            let (within, without) = (of(true), of(false));
            let everything = if v6 { "::/0" } else { "0.0.0.0/0" };
            if within.is_empty() {
                continue;
            }
            if without.is_empty() {
                parts.push(everything.to_owned());
            } else if without.len() < within.len() {
                parts.push(format!("{everything} except {}", without.join(", ")));
            } else {
                parts.push(within.join(", "));
            }
        }
        Some(parts.join(" and "))
    }
}

/// The fewest ranges that hold exactly these, which are in order.
fn ranges(v6: bool, spans: impl Iterator<Item = Span>) -> Vec<String> {
    let mut joined: Vec<(u128, u128)> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(before) if before.1.checked_add(1) == Some(span.first) => before.1 = span.last,
            _ => joined.push((span.first, span.last)),
        }
    }
    let mut ranges = Vec::new();
    for (mut first, last) in joined {
        loop {
            // The largest block that begins here and does not go beyond the end.
            let mut free = first.trailing_zeros().min(width(v6));
            let size = |free: u32| 1_u128.checked_shl(free).map_or(u128::MAX, |size| size - 1);
            while size(free) > last - first {
                free -= 1;
            }
            ranges.push(format!("{}/{}", address(v6, first), width(v6) - free));
            match first.checked_add(size(free)).and_then(|end| end.checked_add(1)) {
                Some(next) if next <= last => first = next,
                _ => break,
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(blocks: &[&str]) -> Spans<()> {
        Spans::between(&blocks.iter().map(|b| b.parse().unwrap()).collect(), 0, |_| Some(()))
    }

    #[test]
    fn intervals_have_short_names() {
        let all = spans(&["10.0.0.0/8", "10.1.0.0/16"]);
        // Below 10, 10.0, 10.1, the rest of 10, above 10, and every IPv6 address.
        assert_eq!(all.len(), 6);
        for (chosen, name) in [
            (&[2][..], Some("10.1.0.0/16")),
            (&[1, 2, 3], Some("10.0.0.0/8")),
            (&[0, 4], Some("0.0.0.0/0 except 10.0.0.0/8")),
            (&[0, 4, 5], Some("0.0.0.0/0 except 10.0.0.0/8 and ::/0")),
            (&[0, 1, 2, 3, 4], Some("0.0.0.0/0")),
            (&[5], Some("::/0")),
            (&[0, 1, 2, 3, 4, 5], None),
            (&[1], Some("10.0.0.0/16")),
        ] {
            assert_eq!(all.name(chosen).as_deref(), name, "{chosen:?}");
        }
        assert_eq!(spans(&[]).len(), 2);
        let ends = spans(&["255.255.255.255/32", "::1/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"]);
        assert_eq!(ends.len(), 6);
        assert_eq!(ends.name(&[1]).as_deref(), Some("255.255.255.255/32"));
        assert_eq!(ends.name(&[5]).as_deref(), Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"));
        assert_eq!(ends.name(&[2]).as_deref(), Some("::/128"));
    }
}
