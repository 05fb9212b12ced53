//! The lives of cgroup ids: the same number may mean another pod later.

use std::{collections::HashMap, sync::Arc};

use super::cgroup::{self, CgroupOwner};
use crate::{observe::CgroupId, time::Timestamp};

/// Whose processes are in a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resident {
    /// The pod with this uid (or config hash).
    Pod(Arc<str>),
    /// The node's; `root`: the root cgroup, which also holds what has no cgroup v2 of its own.
    Host {
        /// It is the root.
        root: bool,
    },
}

#[derive(Debug)]
struct Life {
    from: Timestamp,
    to: Timestamp,
    resident: Resident,
}

/// All known lives.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    lives: HashMap<CgroupId, Vec<Life>>,
}

impl Cgroups {
    pub(crate) fn created(&mut self, id: CgroupId, path: &str, at: Timestamp) {
        let resident = match cgroup::parse(path) {
            CgroupOwner::Pod { uid, .. } => Resident::Pod(uid.into()),
            CgroupOwner::Host => Resident::Host { root: path.is_empty() || path == "/" },
        };
        let lives = self.lives.entry(id).or_default();
        if let Some(last) = lives.last_mut().filter(|l| l.to == Timestamp::MAX) {
            // The directory walk and the ring both tell of it.
            if last.resident == resident {
                last.from = last.from.min(at);
                return;
            }
            last.to = at.max(last.from);
        }
        lives.push(Life { from: at, to: Timestamp::MAX, resident });
        lives.sort_by_key(|l| l.from);
    }

    pub(crate) fn removed(&mut self, id: CgroupId, at: Timestamp) {
        if let Some(last) = self.lives.get_mut(&id).and_then(|l| l.last_mut()) {
            last.to = last.to.min(at.max(last.from));
        }
    }

    /// Who was in it at `at`. Before the first life that one counts (its beginning is "at latest"), after an end the life that ended.
    pub(crate) fn at(&self, id: CgroupId, at: Timestamp) -> Option<&Resident> {
        let lives = self.lives.get(&id)?;
        lives.iter().rev().find(|l| l.from <= at).or_else(|| lives.first()).map(|l| &l.resident)
    }

    /// Forgets lives that ended before `before`, and the oldest ended ones above `max`.
    pub(crate) fn expire(&mut self, before: Timestamp, max: usize) {
        let mut ended: Vec<Timestamp> = Vec::new();
        self.lives.retain(|_, lives| {
            lives.retain(|l| l.to >= before);
            !lives.is_empty()
        });
        if self.lives.len() > max {
            ended.extend(self.lives.values().flatten().map(|l| l.to).filter(|to| *to != Timestamp::MAX));
            ended.sort_unstable();
            if let Some(cut) = ended.get((self.lives.len() - max).min(ended.len()).saturating_sub(1)).copied() {
                self.lives.retain(|_, lives| {
                    lives.retain(|l| l.to > cut);
                    !lives.is_empty()
                });
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.lives.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    fn path(uid: &str) -> String {
        format!("/kubepods/pod{uid}/0123456789abcdef")
    }

    #[test]
    fn a_recycled_id_means_whoever_lived_there_at_the_time() {
        let (mut cgroups, id) = (Cgroups::default(), CgroupId(7));
        cgroups.created(id, &path("aaaaaaaa-1"), t(10));
        cgroups.removed(id, t(20));
        cgroups.created(id, &path("bbbbbbbb-1"), t(30));
        let at = |s| cgroups.at(id, t(s)).cloned();
        let (a, b) = (Some(Resident::Pod("aaaaaaaa-1".into())), Some(Resident::Pod("bbbbbbbb-1".into())));
        assert_eq!((at(5), at(15), at(25), at(30), at(99)), (a.clone(), a.clone(), a, b.clone(), b));
        assert_eq!(cgroups.at(CgroupId(8), t(1)), None);
    }

    #[test]
    fn ended_lives_are_forgotten_and_living_ones_kept() {
        let mut cgroups = Cgroups::default();
        for id in 0..10 {
            cgroups.created(CgroupId(id), &path("aaaaaaaa-1"), t(0));
        }
        for id in 0..5 {
            cgroups.removed(CgroupId(id), t(10 + i64::try_from(id).unwrap()));
        }
        cgroups.expire(t(11), 100);
        assert_eq!(cgroups.len(), 9);
        cgroups.expire(t(0), 7);
        assert_eq!(cgroups.len(), 7);
        assert!(cgroups.at(CgroupId(9), t(1)).is_some());
    }
}
