//! Observations that wait for a pod or for evidence of their role: bounded as a whole, and a share
//! for each cgroup.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::redirects::Redirects;
use crate::{
    observe::{CgroupId, FlowDelta, Observation},
    time::Timestamp,
};

/// Pending observations are tried again at most this often while changes of the inventory pour in.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Fewer than this are tried again with each change.
const FEW: usize = 64;
/// One cgroup may have this part of the room.
const PENDING_SHARES: usize = 8;

/// An observation that waits.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) observation: Observation,
    /// When it came.
    pub(super) since: Timestamp,
    /// What a proxy may have been told of it is no longer waited for.
    pub(super) is_settled: bool,
}

impl Pending {
    fn cgroup(&self) -> CgroupId {
        match &self.observation {
            Observation::Flow(delta) => delta.cgroup,
            Observation::DnsAnswer { cgroup, .. } => *cgroup,
            // Nothing else waits.
            _ => CgroupId(0),
        }
    }
}

/// The queue, oldest first.
#[derive(Debug)]
pub(super) struct Waiting {
    queue: VecDeque<Pending>,
    /// How many of these are of each cgroup.
    of_cgroup: HashMap<CgroupId, usize>,
    last_retry: Timestamp,
    max: usize,
    /// Flows that wait for what a proxy is told of them, with bounds of their own.
    pub(super) redirects: Redirects,
}

impl Waiting {
    /// An empty queue with room for `max`.
    pub(super) fn new(max: usize, now: Timestamp) -> Self {
        Self {
            queue: VecDeque::new(),
            of_cgroup: HashMap::new(),
            last_retry: now,
            max,
            redirects: Redirects::default(),
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Queues a new one. Returns the one that has to go for it: itself if its cgroup fills its
    /// share, else the oldest if there is no room.
    pub(super) fn push(&mut self, pending: Pending) -> Option<Pending> {
        let own = self.of_cgroup.get(&pending.cgroup()).copied().unwrap_or_default();
        if own >= self.max / PENDING_SHARES {
            return Some(pending);
        }
        let evicted = if self.queue.len() >= self.max { self.queue.pop_front() } else { None };
        if let Some(oldest) = &evicted {
            let cgroup = oldest.cgroup();
            if let Some(n) = self.of_cgroup.get_mut(&cgroup) {
                *n -= 1;
                if *n == 0 {
                    self.of_cgroup.remove(&cgroup);
                }
            }
        }
        self.put_back(pending);
        evicted
    }

    /// Queues one that was taken out and has to wait on.
    pub(super) fn put_back(&mut self, pending: Pending) {
        *self.of_cgroup.entry(pending.cgroup()).or_default() += 1;
        self.queue.push_back(pending);
    }

    /// Takes out all of them.
    pub(super) fn take(&mut self, now: Timestamp) -> VecDeque<Pending> {
        if !self.queue.is_empty() {
            self.last_retry = now;
        }
        self.of_cgroup.clear();
        std::mem::take(&mut self.queue)
    }

    /// Whether they are to be tried again after a change of the inventory: not with every one of
    /// thousands of changes.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        !self.queue.is_empty() && (self.queue.len() < FEW || now.since(self.last_retry) >= RETRY_INTERVAL)
    }

    /// All flows that wait, for whatever it be.
    pub(super) fn flows(&self) -> impl Iterator<Item = &FlowDelta> {
        let queued = self.queue.iter().filter_map(|pending| match &pending.observation {
            Observation::Flow(delta) => Some(delta),
            _ => None,
        });
        queued.chain(self.redirects.flows())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(cgroup: u64, seconds: i64) -> Pending {
        let at = Timestamp::from_unix_seconds(seconds);
        let (cgroup, name) = (CgroupId(cgroup), "x.example".to_owned());
        Pending {
            observation: Observation::DnsAnswer { cgroup, name, addresses: Vec::new(), at },
            since: at,
            is_settled: false,
        }
    }

    #[test]
    fn a_cgroup_that_fills_its_share_evicts_itself_and_many_evict_the_oldest() {
        let mut waiting = Waiting::new(16, Timestamp::from_unix_seconds(0));
        assert!(waiting.push(pending(1, 1)).is_none() && waiting.push(pending(1, 2)).is_none());
        let evicted = waiting.push(pending(1, 3)).unwrap();
        assert_eq!(evicted.since, Timestamp::from_unix_seconds(3), "its own newest");
        for cgroup in 2..16 {
            assert!(waiting.push(pending(cgroup, 4)).is_none());
        }
        let evicted = waiting.push(pending(99, 5)).unwrap();
        assert_eq!((evicted.since, waiting.len()), (Timestamp::from_unix_seconds(1), 16));
        assert!(waiting.push(pending(1, 6)).is_some_and(|gone| gone.since == Timestamp::from_unix_seconds(2)));
    }

    #[test]
    fn many_are_not_tried_with_each_change() {
        let start = Timestamp::from_unix_seconds(0);
        let mut waiting = Waiting::new(1_000, start);
        assert!(!waiting.is_due(start));
        for cgroup in 0..FEW as u64 {
            assert!(waiting.len() == 0 || waiting.is_due(start));
            waiting.push(pending(cgroup, 0));
        }
        assert!(!waiting.is_due(start));
        assert!(waiting.is_due(start.after(RETRY_INTERVAL)));
        let all = waiting.take(start.after(RETRY_INTERVAL));
        all.into_iter().for_each(|pending| waiting.put_back(pending));
        assert!(!waiting.is_due(start.after(RETRY_INTERVAL)));
    }
}
