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

/// The life of a pod on this node, over all its cgroups: its own, and one for each container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodLife {
    /// Its first cgroup was there (at latest).
    pub(crate) from: Timestamp,
    /// Its last cgroup was removed; [`Timestamp::MAX`]: one is there still.
    pub(crate) to: Timestamp,
    cgroups: usize,
    last_removed: Timestamp,
}

/// All known lives.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    lives: HashMap<CgroupId, Vec<Life>>,
    pods: HashMap<Arc<str>, PodLife>,
}

/// A cgroup of a pod is no more. Returns the pod and when it ended, if it was the last one.
fn pod_cgroup_ended(
    pods: &mut HashMap<Arc<str>, PodLife>,
    resident: &Resident,
    at: Timestamp,
) -> Option<(Arc<str>, Timestamp)> {
    let Resident::Pod(uid) = resident else { return None };
    let life = pods.get_mut(uid)?;
    life.cgroups = life.cgroups.saturating_sub(1);
    life.last_removed = life.last_removed.max(at);
    (life.cgroups == 0).then(|| {
        life.to = life.last_removed;
        (Arc::clone(uid), life.to)
    })
}

impl Cgroups {
    /// A cgroup is there. Returns its pod if that one had ended before, and so lives again.
    pub(crate) fn created(&mut self, id: CgroupId, path: &str, at: Timestamp) -> Option<Arc<str>> {
        let resident = match cgroup::parse(path) {
            CgroupOwner::Pod { uid, .. } => Resident::Pod(uid.into()),
            CgroupOwner::Host => Resident::Host { root: path.is_empty() || path == "/" },
        };
        let lives = self.lives.entry(id).or_default();
        if let Some(last) = lives.last_mut().filter(|l| l.to == Timestamp::MAX) {
            // The directory walk and the ring both tell of it.
            if last.resident == resident {
                last.from = last.from.min(at);
                if let Resident::Pod(uid) = &resident
                    && let Some(life) = self.pods.get_mut(uid)
                {
                    life.from = life.from.min(at);
                }
                return None;
            }
            // Its end was missed, and so was when: no pod ends by it.
            last.to = at.max(last.from);
            let _ = pod_cgroup_ended(&mut self.pods, &last.resident, last.to);
        }
        let mut again = None;
        if let Resident::Pod(uid) = &resident {
            let new = PodLife { from: at, to: Timestamp::MAX, cgroups: 0, last_removed: Timestamp::MIN };
            let life = self.pods.entry(Arc::clone(uid)).or_insert(new);
            life.cgroups += 1;
            life.from = life.from.min(at);
            if life.to != Timestamp::MAX {
                life.to = Timestamp::MAX;
                again = Some(Arc::clone(uid));
            }
        }
        lives.push(Life { from: at, to: Timestamp::MAX, resident });
        lives.sort_by_key(|l| l.from);
        again
    }

    /// A cgroup was removed. Returns its pod and the time, if it was the pod's last one.
    pub(crate) fn removed(&mut self, id: CgroupId, at: Timestamp) -> Option<(Arc<str>, Timestamp)> {
        let last = self.lives.get_mut(&id)?.last_mut()?;
        let lived = last.to == Timestamp::MAX;
        last.to = last.to.min(at.max(last.from));
        if lived { pod_cgroup_ended(&mut self.pods, &last.resident, last.to) } else { None }
    }

    /// The life of the pod with this uid (or config hash) on this node.
    pub(crate) fn pod(&self, uid: &str) -> Option<&PodLife> {
        self.pods.get(uid)
    }

    /// When the life ended in which the cgroup was at `at`; [`Timestamp::MAX`] if it lasts or is
    /// not known.
    pub(crate) fn end(&self, id: CgroupId, at: Timestamp) -> Timestamp {
        let life = self.lives.get(&id).and_then(|l| l.iter().rev().find(|l| l.from <= at));
        life.map_or(Timestamp::MAX, |l| l.to)
    }

    /// Who was in it at `at`. Before the first life that one counts (its beginning is "at latest"),
    /// after an end the life that ended.
    pub(crate) fn at(&self, id: CgroupId, at: Timestamp) -> Option<&Resident> {
        let lives = self.lives.get(&id)?;
        lives.iter().rev().find(|l| l.from <= at).or_else(|| lives.first()).map(|l| &l.resident)
    }

    /// Forgets lives that ended before `before`, and the oldest ended ones above `max`.
    pub(crate) fn expire(&mut self, before: Timestamp, max: usize) {
        let mut ended: Vec<Timestamp> = Vec::new();
        self.pods.retain(|_, life| life.to >= before);
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
                self.pods.retain(|_, life| life.to > cut);
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
    fn a_pod_ends_with_its_last_cgroup_and_not_with_a_container() {
        let mut cgroups = Cgroups::default();
        let pod = || Some(("aaaaaaaa-1".into(), t(40)));
        cgroups.created(CgroupId(1), "/kubepods/podaaaaaaaa-1", t(10));
        cgroups.created(CgroupId(2), &path("aaaaaaaa-1"), t(11));
        cgroups.created(CgroupId(2), &path("aaaaaaaa-1"), t(12));
        assert_eq!(cgroups.removed(CgroupId(2), t(20)), None);
        assert_eq!(cgroups.created(CgroupId(3), &path("aaaaaaaa-1"), t(21)), None);
        assert_eq!(cgroups.removed(CgroupId(3), t(40)), None);
        assert_eq!(cgroups.removed(CgroupId(3), t(41)), None, "told twice");
        assert_eq!(
            cgroups.removed(CgroupId(1), t(39)),
            pod(),
            "the latest removal ends it, in whatever order they come"
        );
        assert_eq!(cgroups.pod("aaaaaaaa-1").map(|l| (l.from, l.to)), Some((t(10), t(40))));
        assert_eq!(cgroups.created(CgroupId(4), &path("aaaaaaaa-1"), t(50)), Some("aaaaaaaa-1".into()));
        assert_eq!(cgroups.pod("aaaaaaaa-1").map(|l| l.to), Some(Timestamp::MAX));
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
