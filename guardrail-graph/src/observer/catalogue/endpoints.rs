//! The endpoints of one Service port over time: opened, closed, and folded once they are long over.
//!
//! Rollouts give a workload new addresses every day, and a flow through a Service may be as old as
//! the window. So an ended endpoint that a flow may have reached is not forgotten. It is joined
//! with the others of its peer, port and node: whom a flow reached is decided by peer, and the
//! intervals of a peer that is behind the Service all the time are one interval.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    peer::Peer,
    snapshot::{
        behind::ENDPOINT_SLACK,
        facts::{BackendKey, Backends},
    },
    time::Timestamp,
};

/// Agents hear of an endpoint within seconds of each other. Starts in whole minutes make it one
/// endpoint when snapshots are merged; nothing depends on less, as an endpoint counts for flows
/// [`ENDPOINT_SLACK`] before it.
const START_GRID_SECONDS: i64 = 60;

/// Address, port, peer and node of an endpoint.
pub(super) type Endpoint = (IpAddr, u16, Arc<Peer>, Option<Arc<str>>);

fn endpoint((address, port, peer, node, _): &BackendKey) -> Endpoint {
    (*address, *port, Arc::clone(peer), node.clone())
}

/// Whether nothing that looks at two intervals can tell the gap between them.
fn touches(end: Timestamp, start: Timestamp) -> bool {
    start <= end.after(ENDPOINT_SLACK).after(ENDPOINT_SLACK)
}

fn start(key: &BackendKey) -> Timestamp {
    key.4.unwrap_or(Timestamp::MIN)
}

fn end(to: Option<Timestamp>) -> Timestamp {
    to.unwrap_or(Timestamp::MAX)
}

/// Closes what is open and not in `current`.
pub(super) fn close(known: &mut Backends, current: Option<&BTreeSet<Endpoint>>, now: Timestamp) {
    for (key, to) in known.iter_mut().filter(|(_, to)| to.is_none()) {
        if !current.is_some_and(|current| current.contains(&endpoint(key))) {
            *to = Some(now);
        }
    }
}

/// Opens an endpoint as of `since` (`None`: before the window), unless it is open. One that was
/// gone for less than anybody can tell is open again.
pub(super) fn open(
    known: &mut Backends,
    (address, port, peer, node): Endpoint,
    since: Option<Timestamp>,
    now: Timestamp,
) {
    let is_same = |key: &BackendKey| (key.0, key.1, &key.2, &key.3) == (address, port, &peer, &node);
    let first = known.range((address, port, Arc::clone(&peer), node.clone(), None)..);
    let latest = first.take_while(|(key, _)| is_same(key)).max_by_key(|(_, to)| end(**to));
    match latest.map(|(key, to)| (key.clone(), *to)) {
        Some((_, None)) => {}
        Some((key, Some(to))) if touches(to, now) => {
            known.insert(key, None);
        }
        _ => {
            let since = since.map(|since| since.floor(START_GRID_SECONDS));
            known.insert((address, port, peer, node, since), None);
        }
    }
}

/// Endpoints that ended before `before`: forgets those that `is_used` says no flow can have
/// reached, and joins the rest.
pub(super) fn fold(known: &mut Backends, before: Timestamp, is_used: impl Fn(&BackendKey, Timestamp) -> bool) {
    let mut old: Vec<(BackendKey, Timestamp)> = Vec::new();
    known.retain(|key, to| match to {
        Some(to) if *to < before => {
            if is_used(key, *to) {
                old.push((key.clone(), *to));
            }
            false
        }
        _ => true,
    });
    if old.is_empty() {
        return;
    }
    // When each peer was behind the port, wherever it ran.
    let mut presence: BTreeMap<_, Vec<(Timestamp, Timestamp)>> = BTreeMap::new();
    let recent = known.iter().map(|(key, to)| (key, end(*to)));
    for (key, to) in recent.chain(old.iter().map(|(key, to)| (key, *to))) {
        presence.entry((Arc::clone(&key.2), key.1)).or_default().push((start(key), to));
    }
    for spans in presence.values_mut() {
        spans.sort_unstable();
        spans.dedup_by(|next, kept| {
            let joins = touches(kept.1, next.0);
            if joins {
                kept.1 = kept.1.max(next.1);
            }
            joins
        });
    }
    let span = |peer: &Arc<Peer>, port: u16, at: Timestamp| {
        let spans = &presence[&(Arc::clone(peer), port)];
        spans.partition_point(|(from, _)| *from <= at)
    };
    // One entry for each node in each span of its peer; the latest address stands for all.
    type Place = (Arc<Peer>, u16, Option<Arc<str>>, usize);
    let mut folded: BTreeMap<Place, (BackendKey, Timestamp)> = BTreeMap::new();
    for (key, to) in old {
        let place = (Arc::clone(&key.2), key.1, key.3.clone(), span(&key.2, key.1, start(&key)));
        match folded.entry(place) {
            std::collections::btree_map::Entry::Vacant(new) => {
                new.insert((key, to));
            }
            std::collections::btree_map::Entry::Occupied(mut kept) => {
                let (kept, kept_to) = kept.get_mut();
                let from = kept.4.min(key.4);
                if (to, key.0) > (*kept_to, kept.0) {
                    (kept.0, *kept_to) = (key.0, to);
                }
                kept.4 = from;
            }
        }
    }
    for ((peer, port, node, at), (key, to)) in folded {
        let heir = known
            .iter()
            .filter(|(k, _)| (&k.2, k.1, &k.3) == (&peer, port, &node) && span(&peer, port, start(k)) == at);
        match heir.max_by_key(|(_, to)| end(**to)).map(|(key, to)| (key.clone(), *to)) {
            Some((heir, heir_to)) => {
                if key.4 < heir.4 {
                    known.remove(&heir);
                    known.insert((heir.0, heir.1, heir.2, heir.3, key.4), heir_to);
                }
            }
            None => {
                known.insert(key, Some(to));
            }
        }
    }
}

/// At most `max`: forgets those that ended first. Returns what it forgot.
pub(super) fn bound(known: &mut Backends, max: usize) -> Vec<(BackendKey, Timestamp)> {
    let excess = known.len().saturating_sub(max);
    if excess == 0 {
        return Vec::new();
    }
    let mut ended: Vec<(Timestamp, BackendKey)> =
        known.iter().filter_map(|(key, to)| Some(((*to)?, key.clone()))).collect();
    ended.sort_unstable();
    ended.truncate(excess);
    ended
        .into_iter()
        .map(|(to, key)| {
            known.remove(&key);
            (key, to)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::WorkloadRef;

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(6_000_000 + seconds)
    }

    fn at(address: u8, workload: &str, node: &str) -> Endpoint {
        let peer = WorkloadRef { namespace: "shop".into(), owner: "Deployment".into(), name: workload.into() };
        (IpAddr::from([10, 0, 0, address]), 80, Arc::new(Peer::Workload(peer)), Some(node.into()))
    }

    fn lasting(spans: &[(Endpoint, i64, i64)]) -> Backends {
        let key = |(e, from, to): &(Endpoint, i64, i64)| {
            ((e.0, e.1, Arc::clone(&e.2), e.3.clone(), Some(t(*from))), (*to < 9_999).then(|| t(*to)))
        };
        spans.iter().map(key).collect()
    }

    fn text(known: &Backends) -> Vec<String> {
        let seconds = |at: Timestamp| at.since(t(0)).as_secs();
        let line = |((address, _, peer, node, from), to): (&BackendKey, &Option<Timestamp>)| {
            let peer = peer.workload().map_or("-", |w| &w.name);
            let to = to.map_or("open".to_owned(), |to| seconds(to).to_string());
            format!("{peer}@{} {address} {}..{to}", node.as_deref().unwrap_or("-"), seconds(from.unwrap()))
        };
        known.iter().map(line).collect()
    }

    #[test]
    fn rollouts_of_a_workload_leave_one_entry_a_node() {
        let mut known = lasting(&[
            (at(1, "web", "a"), 0, 1000),
            (at(2, "web", "b"), 1000, 2000),
            (at(3, "web", "a"), 2000, 3000),
            (at(4, "web", "b"), 3000, 9_999),
        ]);
        fold(&mut known, t(3500), |_, _| true);
        assert_eq!(text(&known), ["web@a 10.0.0.3 0..3000", "web@b 10.0.0.4 1000..open"]);
    }

    #[test]
    fn a_time_in_which_another_workload_was_behind_the_service_stays_a_gap() {
        let spans =
            [(at(1, "blue", "a"), 0, 1000), (at(2, "green", "a"), 1000, 2000), (at(3, "blue", "a"), 2000, 3000)];
        let mut known = lasting(&spans);
        fold(&mut known, t(3500), |_, _| true);
        assert_eq!(known, lasting(&spans));
    }

    #[test]
    fn what_no_flow_can_have_reached_is_forgotten_and_what_ended_lately_is_not() {
        let mut known =
            lasting(&[(at(1, "web", "a"), 0, 1000), (at(2, "web", "a"), 5000, 6000), (at(3, "web", "a"), 7000, 8000)]);
        fold(&mut known, t(7500), |_, to| to == t(6000));
        assert_eq!(text(&known), ["web@a 10.0.0.2 5000..6000", "web@a 10.0.0.3 7000..8000"]);
    }

    #[test]
    fn an_endpoint_that_was_gone_for_seconds_is_open_again() {
        let (web, mut known) = (at(1, "web", "a"), Backends::new());
        open(&mut known, web.clone(), Some(t(30)), t(30));
        close(&mut known, None, t(100));
        open(&mut known, web.clone(), Some(t(150)), t(150));
        assert_eq!(text(&known), ["web@a 10.0.0.1 0..open"]);
        close(&mut known, None, t(200));
        open(&mut known, web, Some(t(300)), t(300));
        assert_eq!(text(&known), ["web@a 10.0.0.1 0..200", "web@a 10.0.0.1 300..open"]);
    }

    #[test]
    fn the_bound_takes_those_that_ended_first() {
        let mut known = lasting(&[(at(1, "a", "a"), 0, 9_999), (at(2, "b", "a"), 0, 200), (at(3, "c", "a"), 0, 100)]);
        let gone = bound(&mut known, 2);
        assert_eq!(gone.iter().map(|(_, to)| *to).collect::<Vec<_>>(), [t(100)]);
        assert_eq!(bound(&mut known, 0).len(), 1, "what is open stays");
    }
}
